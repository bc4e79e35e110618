//! What is told of single requests: ids, traces, origins, the access log.

use std::sync::Arc;
use std::time::Duration;

use crate::collector::{Collector, attribute, hex};
use crate::support::{
    Agent, Answer, Client, Fixture, PoolExt as _, config, fresh_ip, full, get, pool, provider, request,
    settings,
};
use flotilla_gateway::config::{ProviderType, ServedBy};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;

const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

/// Answers with the value of some headers of the request, as JSON.
async fn mirror() -> Agent {
    Agent::start(|request: Request<Incoming>| async move {
        let of = |name: &str| {
            let values: Vec<_> = request.headers().get_all(name).iter().collect();
            values
                .iter()
                .map(|value| value.to_str().unwrap().to_owned())
                .collect::<Vec<_>>()
        };
        let seen = serde_json::json!({
            "id": of("x-request-id"), "parent": of("traceparent"), "state": of("tracestate"),
        });
        let mut response = Response::new(full(seen.to_string()));
        if request.uri().path() == "/own" {
            response
                .headers_mut()
                .insert("x-request-id", HeaderValue::from_static("its-own"));
        }
        if request.uri().path() == "/fails" {
            *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
        }
        response
    })
    .await
}

fn json(answer: &Answer) -> serde_json::Value {
    serde_json::from_slice(&answer.body).unwrap()
}

async fn ask(fixture: &Fixture, path: &str, headers: &[(&'static str, &'static str)]) -> Answer {
    let mut request = request(Method::GET, &fixture.path(path), "");
    for (name, value) in headers {
        request
            .headers_mut()
            .append(*name, HeaderValue::from_static(value));
    }
    let mut client = Client::connect(fixture.gateway.ingress).await;
    client.send(request).await.unwrap()
}

#[tokio::test]
async fn a_request_id_is_kept_or_made_and_told_to_both_sides() {
    let agent = mirror().await;
    let fixture = Fixture::with(config(pool().revision("a", 100, 4, &[agent.address]))).await;
    let kept = ask(&fixture, "/", &[("x-request-id", "mine-1")]).await;
    assert_eq!(
        (&json(&kept)["id"], &kept.headers["x-request-id"]),
        (
            &serde_json::json!(["mine-1"]),
            &HeaderValue::from_static("mine-1")
        )
    );
    let made = ask(&fixture, "/", &[]).await;
    let id = made.headers["x-request-id"].to_str().unwrap().to_owned();
    assert!(uuid::Uuid::parse_str(&id).is_ok(), "{id}");
    assert_eq!(json(&made)["id"], serde_json::json!([id]));
    let unusable = ask(&fixture, "/", &[("x-request-id", "no good")]).await;
    assert_ne!(unusable.headers["x-request-id"], "no good");
    let own = ask(&fixture, "/own", &[]).await;
    assert_eq!(own.headers["x-request-id"], "its-own");
    // The gateway's own answers have one, too.
    let refused = get(fixture.gateway.ingress, "/pools/none/").await;
    assert_eq!(refused.status, StatusCode::NOT_FOUND);
    assert!(refused.headers.contains_key("x-request-id"));
    // Nobody else's business.
    assert!(
        !get(fixture.gateway.admin, "/healthz")
            .await
            .headers
            .contains_key("x-request-id")
    );
}

#[tokio::test]
async fn without_a_collector_a_trace_passes_as_it_came() {
    let agent = mirror().await;
    let fixture = Fixture::with(config(pool().revision("a", 100, 4, &[agent.address]))).await;
    let seen = json(&ask(&fixture, "/", &[("traceparent", PARENT), ("tracestate", "a=b")]).await);
    assert_eq!(
        (&seen["parent"], &seen["state"]),
        (&serde_json::json!([PARENT]), &serde_json::json!(["a=b"]))
    );
    let none = json(&ask(&fixture, "/", &[]).await);
    assert_eq!(none["parent"], serde_json::json!([]));
}

#[tokio::test]
async fn a_response_names_its_origin_to_whoever_may_ask() {
    let agent = mirror().await;
    for (served_by, unasked, asked) in [
        (ServedBy::OnRequest, false, true),
        (ServedBy::Always, true, true),
        (ServedBy::Never, false, false),
    ] {
        let mut wanted = pool().revision("support-1a2b", 100, 4, &[agent.address]);
        wanted.http.served_by = served_by;
        let fixture = Fixture::with(config(wanted)).await;
        let told = |headers: &HeaderMap| {
            let names = ["x-flotilla-revision", "x-flotilla-replica"];
            let values = names.map(|name| headers.get(name).map(|value| value.to_str().unwrap().to_owned()));
            assert!(
                values == [None, None]
                    || values == [Some("support-1a2b".to_owned()), Some(agent.address.to_string())],
                "{values:?}"
            );
            values[0].is_some()
        };
        let plain = ask(&fixture, "/", &[]).await;
        let curious = ask(&fixture, "/", &[("x-flotilla-served-by", "1")]).await;
        assert_eq!(
            (told(&plain.headers), told(&curious.headers)),
            (unasked, asked),
            "{served_by:?}"
        );
    }
}

fn of_name<'a>(spans: &'a [Span], name: &str) -> Vec<&'a Span> {
    spans.iter().filter(|span| span.name == name).collect()
}

#[tokio::test]
async fn an_ingress_request_is_a_span_in_the_clients_trace_or_a_new_one() {
    let (agent, collector) = (mirror().await, Collector::start().await);
    let mut settings = settings();
    settings.observe = collector.observe.clone();
    let fixture = Fixture::start(settings).await;
    fixture
        .tell(config(pool().revision("support-1", 100, 4, &[agent.address])))
        .await;
    let continued = json(
        &ask(
            &fixture,
            "/a?secret=1",
            &[("traceparent", PARENT), ("tracestate", "v=1")],
        )
        .await,
    );
    let begun = json(&ask(&fixture, "/b", &[("traceparent", "nonsense")]).await);
    let unsampled = PARENT.strip_suffix('1').unwrap().to_owned() + "0";
    let unsampled: &'static str = unsampled.leak();
    let passed = json(&ask(&fixture, "/c", &[("traceparent", unsampled)]).await);
    ask(&fixture, "/fails", &[("x-request-id", "of-the-failure")]).await;
    let refused = get(fixture.gateway.ingress, "/pools/none/").await;
    assert_eq!(refused.status, StatusCode::NOT_FOUND);

    let lines = collector.json_lines(5).await;
    let spans = collector.spans().await;
    assert_eq!(spans.len(), 4, "{spans:#?}");
    assert_eq!(
        passed["parent"],
        serde_json::json!([unsampled]),
        "not sampled: as it came"
    );
    let mine = of_name(&spans, "GET support");
    assert_eq!(mine.len(), 3);
    let first = mine
        .iter()
        .find(|span| attribute(span, "url.path").as_deref() == Some("/pools/support/a"))
        .unwrap();
    assert_eq!(
        (hex(&first.trace_id), hex(&first.parent_span_id)),
        (TRACE.to_owned(), "b7ad6b7169203331".into())
    );
    assert_eq!(first.kind, i32::from(SpanKind::Server));
    assert_eq!(
        continued["parent"],
        serde_json::json!([format!("00-{TRACE}-{}-01", hex(&first.span_id))]),
        "the agent's parent is the gateway's span"
    );
    assert_eq!(continued["state"], serde_json::json!(["v=1"]));
    for (key, value) in [
        ("http.response.status_code", "200"),
        ("http.request.method", "GET"),
        ("flotilla.pool", "support"),
        ("flotilla.revision", "support-1"),
        ("flotilla.replica", &agent.address.to_string()),
    ] {
        assert_eq!(attribute(first, key).as_deref(), Some(value), "{key}");
    }
    assert_eq!(attribute(first, "error.type"), None);
    let second = mine
        .iter()
        .find(|span| attribute(span, "url.path").as_deref() == Some("/pools/support/b"))
        .unwrap();
    assert!(second.parent_span_id.is_empty() && hex(&second.trace_id) != TRACE);
    assert_eq!(
        begun["parent"],
        serde_json::json!([format!(
            "00-{}-{}-01",
            hex(&second.trace_id),
            hex(&second.span_id)
        )])
    );
    let failed = mine
        .iter()
        .find(|span| attribute(span, "flotilla.request_id").as_deref() == Some("of-the-failure"))
        .unwrap();
    assert_eq!(attribute(failed, "error.type").as_deref(), Some("500"));

    let of_path = |path: &str| lines.iter().find(|line| line["path"] == path).unwrap();
    let line = of_path("/pools/support/a");
    assert_eq!(
        (&line["pool"], &line["revision"]),
        (&"support".into(), &"support-1".into())
    );
    assert_eq!((&line["status"], &line["ending"]), (&200.into(), &"whole".into()));
    assert_eq!(
        (&line["traceId"], &line["kind"]),
        (&TRACE.into(), &"ingress".into())
    );
    assert!(line["responseBytes"].as_u64().unwrap() > 10 && line["requestId"].is_string());
    assert_eq!(of_path("/pools/none/")["code"], "NoSuchPool");
}

#[tokio::test]
async fn a_call_of_a_model_is_a_span_and_metrics_by_the_conventions() {
    let (collector, agent) = (Collector::start().await, fresh_ip());
    let provider_side = Agent::start(|request: Request<Incoming>| async move {
        let parent = request.headers()["traceparent"].clone();
        let path = request.uri().path().to_owned();
        let events = "data: {\"choices\":[]}\n\n";
        let mut response = if path.ends_with("/messages") {
            let mut response = Response::new(full(r#"{"error":"slow down"}"#));
            *response.status_mut() = StatusCode::TOO_MANY_REQUESTS;
            response
        } else {
            let last = "data: {\"model\":\"gpt-5-mini-2025\",\"usage\":{\"prompt_tokens\":20,\"completion_tokens\":5}}\n\n";
            let steps = futures::stream::unfold(0, move |step| async move {
                tokio::time::sleep(Duration::from_millis(10)).await;
                let text = if step < 3 { events } else { last };
                (step < 4).then(|| (Ok(hyper::body::Frame::data(text.into())), step + 1))
            });
            let body = http_body_util::StreamBody::new(steps);
            let mut response = Response::new(http_body_util::BodyExt::boxed(body));
            let stream = HeaderValue::from_static("text/event-stream");
            response.headers_mut().insert("content-type", stream);
            response
        };
        response.headers_mut().insert("x-seen-parent", parent);
        response
    })
    .await;
    let mut settings = settings();
    settings.observe = collector.observe.clone();
    let fixture = Fixture::start(settings).await;
    let mut wanted = flotilla_gateway::config::Config::default();
    wanted.agents.insert(agent);
    let endpoint = format!("http://{}/v1", provider_side.address);
    let mut claude = provider(endpoint.clone(), None);
    claude.type_ = ProviderType::Anthropic;
    wanted.providers.insert("main".into(), provider(endpoint, None));
    wanted.providers.insert("claude".into(), claude);
    fixture.tell(wanted).await;
    let mut client = Client::connect_from(agent, fixture.gateway.egress).await;
    let mut call = async |path: &str| {
        let body =
            r#"{"model":"gpt-5-mini","messages":[{"role":"user","content":"a prompt"}],"stream":true}"#;
        let mut request = request(Method::POST, path, body);
        let headers = request.headers_mut();
        headers.insert("content-type", HeaderValue::from_static("application/json"));
        headers.insert("traceparent", HeaderValue::from_static(PARENT));
        client.send(request).await.unwrap()
    };
    let streamed = call("/providers/main/v1/chat/completions").await;
    assert_eq!(streamed.status, StatusCode::OK);
    assert_eq!(
        call("/providers/claude/v1/messages").await.status,
        StatusCode::TOO_MANY_REQUESTS
    );

    let lines = collector.json_lines(2).await;
    let spans = collector.spans().await;
    let chats = of_name(&spans, "chat gpt-5-mini");
    assert_eq!((spans.len(), chats.len()), (2, 2), "{spans:#?}");
    let good = chats
        .iter()
        .find(|span| attribute(span, "error.type").is_none())
        .unwrap();
    assert_eq!(good.kind, i32::from(SpanKind::Client));
    assert_eq!(
        streamed.headers["x-seen-parent"].to_str().unwrap(),
        format!("00-{TRACE}-{}-01", hex(&good.span_id))
    );
    for (key, value) in [
        ("gen_ai.operation.name", "chat"),
        ("gen_ai.provider.name", "openai"),
        ("gen_ai.request.model", "gpt-5-mini"),
        ("gen_ai.response.model", "gpt-5-mini-2025"),
        ("gen_ai.usage.input_tokens", "20"),
        ("gen_ai.usage.output_tokens", "5"),
        ("flotilla.provider", "main"),
    ] {
        assert_eq!(attribute(good, key).as_deref(), Some(value), "{key}");
    }
    assert!(attribute(good, "gen_ai.response.time_to_first_chunk").is_some());
    let bad = chats
        .iter()
        .find(|span| attribute(span, "error.type").is_some())
        .unwrap();
    assert_eq!(attribute(bad, "error.type").as_deref(), Some("429"));
    assert_eq!(
        attribute(bad, "gen_ai.provider.name").as_deref(),
        Some("anthropic")
    );
    let line = lines.iter().find(|line| line["status"] == 200).unwrap();
    assert_eq!(
        (&line["model"], &line["inputTokens"]),
        (&"gpt-5-mini".into(), &20.into())
    );
    assert_eq!(
        (&line["kind"], &line["provider"]),
        (&"egress".into(), &"main".into())
    );

    let metrics = get(fixture.gateway.admin, "/metrics").await.text();
    let labels = r#"provider="main",gen_ai_operation_name="chat",gen_ai_provider_name="openai",gen_ai_request_model="gpt-5-mini""#;
    for sample in [
        format!("gen_ai_client_token_usage_sum{{{labels},gen_ai_token_type=\"input\"}} 20.0"),
        format!("gen_ai_client_token_usage_bucket{{le=\"16.0\",{labels},gen_ai_token_type=\"output\"}} 1"),
        format!("gen_ai_client_operation_duration_seconds_count{{{labels},error_type=\"\"}} 1"),
        format!("gen_ai_client_operation_time_to_first_chunk_seconds_count{{{labels}}} 1"),
        format!("gen_ai_server_time_to_first_token_seconds_count{{{labels}}} 1"),
        format!("gen_ai_client_operation_time_per_output_chunk_seconds_count{{{labels}}} 3"),
        format!("gen_ai_server_time_per_output_token_seconds_count{{{labels}}} 1"),
        r#"gen_ai_client_operation_duration_seconds_count{provider="claude",gen_ai_operation_name="chat",gen_ai_provider_name="anthropic",gen_ai_request_model="gpt-5-mini",error_type="429"} 1"#.to_owned(),
    ] {
        assert!(metrics.contains(&sample), "{sample} is not in\n{metrics}");
    }
}

#[tokio::test]
async fn a_collector_that_is_away_costs_no_request() {
    let agent = mirror().await;
    let identity = flotilla_gateway::observe::otlp::Identity {
        namespace: "apps".into(),
        pod: "gateway-0".into(),
    };
    let nobody = format!("http://{}:1/v1/traces", fresh_ip());
    let tls = flotilla_gateway::egress::tls::client_config();
    let spans = flotilla_gateway::observe::otlp::start(&identity, &tls, Some(&nobody)).unwrap();
    let mut settings = settings();
    settings.observe.spans = Some(Arc::clone(&spans));
    let fixture = Fixture::start(settings).await;
    fixture
        .tell(config(pool().revision("a", 100, 4, &[agent.address])))
        .await;
    let mut client = Client::connect(fixture.gateway.ingress).await;
    // More than the SDK's queue takes (2,048).
    for _ in 0..2_500 {
        assert_eq!(client.get(&fixture.path("/")).await.status, StatusCode::OK);
    }
    tokio::task::spawn_blocking(move || spans.shutdown())
        .await
        .unwrap();
}
