//! The simulator over real connections, and its windows recomputed from its log.

use std::time::Duration;

use bytes::Bytes;
use flotilla_simulator::log::{EventKind, LogEvent};
use flotilla_simulator::quota::LimitUnit;
use flotilla_simulator::{Config, Simulator, limit::LimitMode, quota::LimitSpec};
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};

type HttpClient = Client<HttpConnector, Full<Bytes>>;

fn client() -> HttpClient {
    Client::builder(TokioExecutor::new()).build_http()
}

fn chat(model: &str, question: &str) -> Value {
    json!({"model": model, "messages": [{"role": "user", "content": question}]})
}

fn post(simulator: &Simulator, body: &Value) -> Request<Full<Bytes>> {
    Request::post(format!("{}/chat/completions", simulator.base_url()))
        .header("authorization", "Bearer sk-test")
        .body(Full::new(Bytes::from(body.to_string())))
        .expect("a request")
}

async fn answer(simulator: &Simulator, body: &Value) -> (StatusCode, HeaderMap, Value) {
    let response = client().request(post(simulator, body)).await.expect("an answer");
    let (head, body) = response.into_parts();
    let bytes = body.collect().await.expect("a whole body").to_bytes();
    (
        head.status,
        head.headers,
        serde_json::from_slice(&bytes).expect("JSON"),
    )
}

/// The `data` of all events, and whether the stream ended properly.
async fn events(simulator: &Simulator, body: &Value) -> (Vec<String>, bool) {
    let response = client().request(post(simulator, body)).await.expect("an answer");
    assert_eq!(response.status(), StatusCode::OK);
    let mut body = response.into_body();
    let mut decoder = flotilla_serve::SseDecoder::new(1 << 20);
    let mut events = Vec::new();
    while let Some(frame) = body.frame().await {
        match frame {
            Ok(frame) => {
                let data = frame.into_data().unwrap_or_default();
                events.extend(decoder.push(&data).expect("events"));
            }
            Err(_) => return (events, false),
        }
    }
    (events, true)
}

async fn wait_for(simulator: &Simulator, kind: EventKind) -> LogEvent {
    for _ in 0..1_000 {
        if let Some(event) = simulator
            .log()
            .events
            .into_iter()
            .find(|event| event.kind == kind)
        {
            return event;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("no {kind:?} in {:#?}", simulator.log());
}

#[tokio::test]
async fn a_stream_says_what_the_whole_reply_says() {
    let simulator = Simulator::start(Config::local()).await.expect("starts");
    let mut body = chat("sim-tokens-12", "My parcel 48213 is late");
    let (status, headers, whole) = answer(&simulator, &body).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(headers["x-request-id"], "req-0");
    assert_eq!(
        whole["usage"],
        json!({"prompt_tokens": 10, "completion_tokens": 12, "total_tokens": 22})
    );
    assert_eq!(whole["choices"][0]["finish_reason"], "stop");

    body["stream"] = json!(true);
    body["stream_options"] = json!({"include_usage": true});
    let (events, ended) = events(&simulator, &body).await;
    assert!(ended);
    assert_eq!(events.last().map(String::as_str), Some("[DONE]"));
    let chunks: Vec<Value> = events[..events.len() - 1]
        .iter()
        .map(|event| serde_json::from_str(event).expect("JSON"))
        .collect();
    let text: String = chunks
        .iter()
        .filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str())
        .collect();
    assert_eq!(whole["choices"][0]["message"]["content"], text);
    assert_eq!(chunks.last().expect("chunks")["usage"], whole["usage"]);
    assert_eq!(chunks.last().expect("chunks")["choices"], json!([]));

    let kinds: Vec<EventKind> = simulator.log().events.iter().map(|event| event.kind).collect();
    use EventKind::{Admitted, Completed};
    assert_eq!(kinds, [Admitted, Completed, Admitted, Completed]);
}

#[tokio::test]
async fn bad_requests_are_rejected_before_any_limit_is_asked() {
    let limits = vec![LimitSpec {
        name: "one".to_owned(),
        unit: LimitUnit::Requests,
        mode: LimitMode::FixedWindow,
        limit: 1,
        per_milliseconds: 3_600_000,
        burst: None,
        model: None,
    }];
    let config = Config {
        api_keys: vec!["sk-test".to_owned()],
        max_body_bytes: 500,
        limits,
        ..Config::local()
    };
    let simulator = Simulator::start(config).await.expect("starts");
    for (body, status, code) in [
        (chat("sim-missing", "x"), 404, json!("model_not_found")),
        (chat("sim-quick", "x"), 404, json!("model_not_found")),
        (json!({"model": "sim"}), 400, Value::Null),
        (json!({"model": "sim", "messages": []}), 400, Value::Null),
        (chat("sim", &"x".repeat(600)), 413, Value::Null),
    ] {
        let (found, _, error) = answer(&simulator, &body).await;
        assert_eq!(
            (found.as_u16(), &error["error"]["code"]),
            (status, &code),
            "{error}"
        );
    }
    let mut without_key = post(&simulator, &chat("sim", "x"));
    without_key
        .headers_mut()
        .insert("authorization", "Bearer sk-other".parse().expect("a value"));
    let response = client().request(without_key).await.expect("an answer");
    assert_eq!(response.status(), StatusCode::UNAUTHORIZED);

    let log = serde_json::to_string(&simulator.log()).expect("JSON");
    assert!(!log.contains("sk-"), "no key in the log: {log}");
    assert!(
        simulator
            .log()
            .events
            .iter()
            .all(|event| event.kind == EventKind::Rejected)
    );
    assert_eq!(
        answer(&simulator, &chat("sim", "x")).await.0,
        StatusCode::OK,
        "the limit is unused"
    );
}

#[tokio::test]
async fn failures_are_as_their_models_say() {
    let simulator = Simulator::start(Config::local()).await.expect("starts");
    assert_eq!(
        answer(&simulator, &chat("sim-error-100", "x")).await.0.as_u16(),
        500
    );
    assert_eq!(
        answer(&simulator, &chat("sim-unavailable-100", "x"))
            .await
            .0
            .as_u16(),
        503
    );

    let mut body = chat("sim-cut-100-tokens-10", "x");
    body["stream"] = json!(true);
    let (events, ended) = events(&simulator, &body).await;
    assert!(!ended, "the stream breaks instead of ending");
    assert!(!events.iter().any(|event| event == "[DONE]"));
    let failed = simulator.log().events.last().cloned().expect("events");
    assert_eq!((failed.kind, failed.output_tokens), (EventKind::Failed, 5));
}

#[tokio::test]
async fn a_client_that_leaves_is_seen() {
    let simulator = Simulator::start(Config::local()).await.expect("starts");
    let gone = tokio::time::timeout(
        Duration::from_millis(50),
        client().request(post(&simulator, &chat("sim-timeout-100", "x"))),
    );
    assert!(gone.await.is_err(), "it never answers");
    let cancelled = wait_for(&simulator, EventKind::Cancelled).await;
    assert_eq!((cancelled.status, cancelled.output_tokens), (0, 0));

    simulator.reset();
    let mut body = chat("sim-speed-1-tokens-100", "x");
    body["stream"] = json!(true);
    let mut reply = client()
        .request(post(&simulator, &body))
        .await
        .expect("an answer")
        .into_body();
    reply.frame().await.expect("a frame").expect("data");
    drop(reply);
    let cancelled = wait_for(&simulator, EventKind::Cancelled).await;
    assert!(cancelled.output_tokens < 100, "{cancelled:?}");
}

#[tokio::test]
async fn a_drain_lets_streams_end() {
    let simulator = Simulator::start(Config::local()).await.expect("starts");
    let mut body = chat("sim-speed-50-tokens-10", "x");
    body["stream"] = json!(true);
    let mut reply = client()
        .request(post(&simulator, &body))
        .await
        .expect("an answer")
        .into_body();
    reply.frame().await.expect("a frame").expect("data");
    let rest = tokio::spawn(reply.collect());
    simulator.shutdown().await;
    let rest = rest
        .await
        .expect("no panic")
        .expect("an undisturbed end")
        .to_bytes();
    assert!(rest.ends_with(b"data: [DONE]\n\n"));
}

/// A limit's arithmetic once more, as plainly as it can be written, over the admitted events before an event.
fn would_be_admitted(spec: &LimitSpec, admitted: &[(u64, u64)], now: u64, cost: u64) -> bool {
    let per = spec.per_milliseconds * 1_000_000;
    let used_since = |from: u64| {
        admitted
            .iter()
            .filter(|(at, _)| *at >= from)
            .map(|(_, cost)| cost)
            .sum::<u64>()
    };
    match spec.mode {
        LimitMode::FixedWindow => used_since(now / per * per) + cost <= spec.limit,
        LimitMode::SlidingWindow => used_since((now + 1).saturating_sub(per)) + cost <= spec.limit,
        LimitMode::TokenBucket => {
            let full = u128::from(spec.burst.unwrap_or(spec.limit)) * u128::from(per);
            let (mut level, mut filled_at) = (full, 0);
            for (at, cost) in admitted.iter().copied().chain([(now, 0)]) {
                level = (level + u128::from(at - filled_at) * u128::from(spec.limit)).min(full);
                level -= u128::from(cost) * u128::from(per);
                filled_at = at;
            }
            u128::from(cost) * u128::from(per) <= level
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_decision_can_be_recomputed_from_the_log() {
    for mode in [
        LimitMode::FixedWindow,
        LimitMode::SlidingWindow,
        LimitMode::TokenBucket,
    ] {
        let burst = (mode == LimitMode::TokenBucket).then_some(300);
        let limit = |name: &str, unit, limit, per_milliseconds, burst| LimitSpec {
            name: name.to_owned(),
            unit,
            mode,
            limit,
            per_milliseconds,
            burst,
            model: None,
        };
        let limits = vec![
            limit("requests", LimitUnit::Requests, 20, 50, None),
            limit("tokens", LimitUnit::Tokens, 600, 100, burst),
        ];
        let simulator = Simulator::start(Config {
            limits: limits.clone(),
            ..Config::local()
        })
        .await
        .expect("starts");
        let shared = client();
        let senders = (0..4).map(|sender| {
            let (shared, simulator) = (shared.clone(), &simulator);
            async move {
                for number in 0..60 {
                    let body = chat("sim", &format!("where is parcel {sender}{number:05}"));
                    let response = shared.request(post(simulator, &body)).await.expect("an answer");
                    let (head, body) = response.into_parts();
                    body.collect().await.expect("a body");
                    let refused = head.status == StatusCode::TOO_MANY_REQUESTS;
                    assert_eq!(head.headers.contains_key("retry-after"), refused);
                    for name in [
                        "x-ratelimit-limit-requests",
                        "x-ratelimit-remaining-tokens",
                        "x-ratelimit-reset-tokens",
                    ] {
                        assert!(head.headers.contains_key(name), "{name}");
                    }
                    if refused {
                        tokio::time::sleep(Duration::from_millis(3)).await;
                    }
                }
            }
        });
        futures::future::join_all(senders).await;

        let log = simulator.log();
        assert_eq!(log.dropped, 0);
        let mut admitted: Vec<LogEvent> = Vec::new();
        let mut refused = 0;
        let cost = |unit: LimitUnit, event: &LogEvent| match unit {
            LimitUnit::Requests => 1,
            _ => event.input_tokens + event.output_tokens,
        };
        for event in &log.events {
            let passes = limits.iter().all(|spec| {
                let before: Vec<(u64, u64)> = admitted
                    .iter()
                    .map(|event| (event.monotonic_nanoseconds, cost(spec.unit, event)))
                    .collect();
                would_be_admitted(spec, &before, event.monotonic_nanoseconds, cost(spec.unit, event))
            });
            match event.kind {
                EventKind::Admitted => {
                    assert!(passes, "{mode:?}: admitted over a limit: {event:?}");
                    admitted.push(event.clone());
                }
                EventKind::Refused => {
                    assert!(!passes, "{mode:?}: refused with room left: {event:?}");
                    refused += 1;
                }
                _ => {}
            }
        }
        assert!(
            admitted.len() >= 20 && refused >= 20,
            "{mode:?}: {} admitted, {refused} refused",
            admitted.len()
        );
    }
}

async fn ask(simulator: &Simulator, path: &str, body: &Value) -> (StatusCode, HeaderMap, Bytes) {
    let request = Request::post(format!("{}{path}", simulator.base_url()))
        .header("authorization", "Bearer sk-test")
        .header("x-api-key", "sk-test")
        .header("anthropic-version", "2023-06-01")
        .body(Full::new(Bytes::from(body.to_string())))
        .expect("a request");
    let (head, body) = client().request(request).await.expect("an answer").into_parts();
    let bytes = body.collect().await.expect("a whole body").to_bytes();
    (head.status, head.headers, bytes)
}

/// The events of a stream: name and data.
fn named(body: &[u8]) -> Vec<(String, Value)> {
    let text = String::from_utf8_lossy(body).into_owned();
    let events = text.split("\n\n").filter(|event| !event.is_empty());
    events
        .map(|event| {
            let (name, data) = event.split_once('\n').expect("a name and data");
            let data = data.strip_prefix("data: ").expect("data");
            (
                name.strip_prefix("event: ").expect("a name").to_owned(),
                serde_json::from_str(data).expect("JSON"),
            )
        })
        .collect()
}

#[tokio::test]
async fn responses_and_messages_say_the_same_whole_and_streamed() {
    let config = Config {
        api_keys: vec!["sk-test".to_owned()],
        ..Config::local()
    };
    let simulator = Simulator::start(config).await.expect("starts");
    let messages = json!([{"role": "user", "content": "My parcel 48213 is late"}]);
    let json_of = |bytes: &Bytes| serde_json::from_slice::<Value>(bytes).expect("JSON");

    let mut body = json!({"model": "sim-tokens-12", "input": messages});
    let (status, _, whole) = ask(&simulator, "/responses", &body).await;
    let whole = json_of(&whole);
    assert_eq!((status, &whole["object"]), (StatusCode::OK, &json!("response")));
    assert_eq!(
        (&whole["usage"]["input_tokens"], &whole["usage"]["output_tokens"]),
        (&json!(10), &json!(12))
    );
    body["stream"] = json!(true);
    let (_, headers, stream) = ask(&simulator, "/responses", &body).await;
    assert_eq!(headers["content-type"], "text/event-stream");
    let events = named(&stream);
    let text: String = events
        .iter()
        .filter_map(|(_, event)| event["delta"].as_str())
        .collect();
    assert_eq!(whole["output"][0]["content"][0]["text"], text);
    let (name, last) = events.last().expect("events");
    assert_eq!(
        (name.as_str(), &last["response"]["usage"]),
        ("response.completed", &whole["usage"])
    );

    let mut body = json!({"model": "sim-tokens-12", "messages": messages, "max_tokens": 5});
    let (status, _, whole) = ask(&simulator, "/messages", &body).await;
    let whole = json_of(&whole);
    assert_eq!(
        (status, &whole["stop_reason"]),
        (StatusCode::OK, &json!("max_tokens"))
    );
    assert_eq!(whole["usage"]["output_tokens"], 5);
    body["stream"] = json!(true);
    let (_, headers, stream) = ask(&simulator, "/messages", &body).await;
    assert!(headers.contains_key("request-id"));
    let events = named(&stream);
    let text: String = events
        .iter()
        .filter_map(|(_, event)| event["delta"]["text"].as_str())
        .collect();
    assert_eq!(whole["content"][0]["text"], text);
    let (first, last) = (
        &events[0].1["message"]["usage"],
        &events[events.len() - 2].1["usage"],
    );
    assert_eq!(
        (&first["input_tokens"], &last["output_tokens"]),
        (&json!(10), &json!(5))
    );

    let body = json!({"model": "sim", "input": ["one", "two"]});
    let (status, _, whole) = ask(&simulator, "/embeddings", &body).await;
    let whole = json_of(&whole);
    assert_eq!(
        (status, whole["data"].as_array().map(Vec::len)),
        (StatusCode::OK, Some(2))
    );
    assert_eq!(whole["usage"], json!({"prompt_tokens": 10, "total_tokens": 10}));
    assert!(simulator.log().events.iter().all(|event| event.status == 200));
}

#[tokio::test]
async fn anthropics_errors_and_limits_have_its_names() {
    let limits = vec![LimitSpec {
        name: "one".to_owned(),
        unit: LimitUnit::Requests,
        mode: LimitMode::FixedWindow,
        limit: 1,
        per_milliseconds: 3_600_000,
        burst: None,
        model: None,
    }];
    let simulator = Simulator::start(Config {
        limits,
        ..Config::local()
    })
    .await
    .expect("starts");
    let body = json!({"model": "sim", "messages": [{"role": "user", "content": "x"}], "max_tokens": 5});
    let (status, headers, _) = ask(&simulator, "/messages", &body).await;
    assert_eq!(
        (
            status.as_u16(),
            &headers["anthropic-ratelimit-requests-remaining"]
        ),
        (200, &"0".parse().expect("a value"))
    );
    let (status, headers, error) = ask(&simulator, "/messages", &body).await;
    let error: Value = serde_json::from_slice(&error).expect("JSON");
    assert_eq!(
        (status.as_u16(), &error["error"]["type"]),
        (429, &json!("rate_limit_error"))
    );
    assert!(headers.contains_key("retry-after"));
}

#[tokio::test]
async fn a_script_decides_before_any_limit() {
    let simulator = Simulator::start(Config::local()).await.expect("starts");
    let request = |body: &str| {
        let uri = format!("http://{}/admin/script", simulator.addr);
        client().request(
            Request::post(uri)
                .body(Full::new(Bytes::from(body.to_owned())))
                .expect("a request"),
        )
    };
    let script = r#"[{"status": 503, "count": 2, "model": "sim"}, {"status": 429, "retryAfterSeconds": 7}]"#;
    assert_eq!(request(script).await.expect("an answer").status(), StatusCode::OK);
    assert_eq!(
        request("[{}]").await.expect("an answer").status(),
        StatusCode::BAD_REQUEST
    );
    let body = chat("sim", "x");
    for expected in [503, 503, 429, 200] {
        let (status, headers, _) = answer(&simulator, &body).await;
        assert_eq!(status.as_u16(), expected);
        assert_eq!(
            headers.get("retry-after").is_some_and(|value| value == "7"),
            expected == 429
        );
    }
}
