//! Budgets of a provider and of a model, as agents meet them.

use std::net::SocketAddr;

use bytes::Bytes;
use flotilla_core::price::Money;
use flotilla_core::price::ledger::Policy;
use flotilla_gateway::config::{Config, ProviderConfig, ProviderType, SpendConfig};
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Frame, Incoming};
use serde_json::{Value, json};

use crate::models::{ask, chat, config, gateway, idle, priced, simulator, spent, with_budget};
use crate::support::{Agent, Body, Client, Fixture, fresh_ip, full, get, settings};

#[tokio::test]
async fn a_budget_blocks_in_the_providers_words_and_counts_what_is_hung_up_on() {
    let (simulator, agent) = (simulator(&[]).await, fresh_ip());
    // A call costs 0.019.
    let providers = [
        (
            "main",
            with_budget(priced(simulator.addr, ProviderType::OpenAI), "0.03"),
        ),
        (
            "claude",
            with_budget(priced(simulator.addr, ProviderType::Anthropic), "0.000001"),
        ),
    ];
    let (fixture, mut client) = gateway(agent, &providers).await;
    let path = "/providers/main/v1/chat/completions";
    let mut body = chat("sim-tokens-10");
    body["max_tokens"] = json!(10);
    for expected in [200, 200, 429, 429] {
        let answer = client.send(ask(path, &body)).await.unwrap();
        assert_eq!(answer.status.as_u16(), expected, "{}", answer.text());
        if expected == 429 {
            assert_eq!(
                (answer.code().as_str(), &answer.headers["x-should-retry"]),
                ("BudgetExhausted", &"false".parse().unwrap())
            );
            assert!(
                answer
                    .text()
                    .contains("the budget of 0.03 USD of ModelProvider \\\"main\\\" is spent"),
                "{}",
                answer.text()
            );
        }
        idle(&fixture).await;
    }
    // Nothing that costs nothing is refused.
    assert_eq!(
        client.get("/providers/main/v1/models").await.status,
        StatusCode::OK
    );
    let unpriced = client.send(ask(path, &chat("unheard-of"))).await.unwrap();
    assert_eq!(
        (unpriced.status, unpriced.code().as_str()),
        (StatusCode::FORBIDDEN, "ModelWithoutPrice")
    );
    let stats = idle(&fixture).await;
    assert_eq!(
        (
            spent(&stats, "main").as_str(),
            simulator
                .log()
                .events
                .iter()
                .filter(|event| event.status == 200)
                .count()
        ),
        ("0.038", 4)
    );

    // One request is let through where anything is left; the next is refused as Anthropic would.
    body["model"] = json!("sim-tokens-10");
    assert_eq!(
        client
            .send(ask("/providers/claude/v1/messages", &body))
            .await
            .unwrap()
            .status,
        StatusCode::OK
    );
    idle(&fixture).await;
    let answer = client
        .send(ask("/providers/claude/v1/messages", &body))
        .await
        .unwrap();
    let error: Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(
        (answer.status.as_u16(), &error["type"], &error["error"]["type"]),
        (429, &json!("error"), &json!("rate_limit_error"))
    );
    assert_eq!(error["error"]["code"], "BudgetExhausted");
    let metrics = get(fixture.gateway.admin, "/metrics").await.text();
    assert!(
        metrics.contains(
            r#"flotilla_gateway_budget_refused_total{provider="main",reason="budget_exhausted"} 2"#
        ),
        "{metrics}"
    );

    // A larger budget goes on where it was; a stream that is given up is charged by its events.
    fixture
        .tell(config(
            agent,
            &[(
                "main",
                with_budget(priced(simulator.addr, ProviderType::OpenAI), "100"),
            )],
        ))
        .await;
    let mut long = json!({"model": "sim", "messages": body["messages"], "stream": true});
    long["model"] = json!("sim-cut-100-tokens-10");
    let before = spent(&idle(&fixture).await, "main");
    let cut = client.send(ask(path, &long)).await;
    assert!(cut.is_err(), "the provider breaks off");
    let after = spent(&idle(&fixture).await, "main");
    assert!(
        after.parse::<Money>().unwrap() > before.parse().unwrap(),
        "{before} {after}"
    );
}

/// A body without a length.
pub fn in_pieces(path: &str, text: &str) -> Request<Body> {
    let pieces = text.as_bytes().chunks(9_000).map(Bytes::copy_from_slice);
    let pieces: Vec<_> = pieces.map(|piece| Ok(Frame::data(piece))).collect();
    let mut request = ask(path, &Value::Null);
    *request.body_mut() = StreamBody::new(futures::stream::iter(pieces)).boxed();
    request
}

/// Neither a body without a length nor one that says it is no JSON, answered by a stream that tells no usage, is free.
#[tokio::test]
async fn what_nobody_has_counted_is_charged_by_its_length() {
    let at = Agent::start(|request: Request<Incoming>| async move {
        request.into_body().collect().await.unwrap();
        let chunk = json!({"model": "sim", "choices": [{"delta": {"content": "a"}}]});
        let mut response = Response::new(full(format!("data: {chunk}\n\n").repeat(20)));
        let headers = response.headers_mut();
        headers.insert("content-type", HeaderValue::from_static("text/event-stream"));
        response
    })
    .await;
    let agent = fresh_ip();
    let providers = [(
        "main",
        with_budget(priced(at.address, ProviderType::OpenAI), "1000"),
    )];
    for (kind, blocks) in [
        ("application/json", true),
        ("text/plain", true),
        ("text/plain", false),
    ] {
        let mut providers = providers.clone();
        providers[0].1.budget.as_mut().unwrap().blocks = blocks;
        let (fixture, mut client) = gateway(agent, &providers).await;
        let text = format!(
            r#"{{"stream":true,"model":"sim","messages":["{}"]}}"#,
            "word ".repeat(8_000)
        );
        let mut request = in_pieces("/providers/main/v1/chat/completions", &text);
        request
            .headers_mut()
            .insert("content-type", HeaderValue::from_static(kind));
        assert_eq!(client.send(request).await.unwrap().status, StatusCode::OK);
        // A dollar for a thousand tokens, of four bytes or less.
        let spent: f64 = spent(&idle(&fixture).await, "main").parse().unwrap();
        assert!((10.0..40.0).contains(&spent), "{kind}: {spent}");
    }
}

#[tokio::test]
async fn what_the_operator_has_written_is_spent_after_a_restart_too() {
    let (simulator, agent) = (simulator(&[]).await, fresh_ip());
    let providers = [(
        "main",
        with_budget(priced(simulator.addr, ProviderType::OpenAI), "10"),
    )];
    let written = |spent: &str, gateways: u32| {
        let mut config = config(agent, &providers);
        let spend = SpendConfig {
            // The year's beginning, however late the test runs.
            window_start: jiff::Timestamp::now(),
            spent: spent.parse().unwrap(),
            counted: [].into(),
        };
        config.spends = [("main".to_owned(), spend)].into();
        config.ready_gateways = gateways;
        config
    };
    let (fixture, mut client) = gateway(agent, &providers).await;
    let path = "/providers/main/v1/chat/completions";
    let mut body = chat("sim-tokens-10");
    body["max_tokens"] = json!(10);
    for (spent, gateways, status, code) in [
        ("9.99", 1, 200, ""),
        ("10", 1, 429, "BudgetExhausted"),
        // Own spend of 0.019 is more than a third of 0.03, and less than all of it.
        ("9.97", 3, 429, "BudgetShareUsed"),
        ("9.9", 3, 200, ""),
    ] {
        fixture.tell(written(spent, gateways)).await;
        let answer = client.send(ask(path, &body)).await.unwrap();
        assert_eq!(
            (answer.status.as_u16(), answer.code().as_str()),
            (status, code),
            "{spent} {gateways}: {}",
            answer.text()
        );
        idle(&fixture).await;
    }
}

/// Its model `sim-tokens-10` has a budget of its own, of less than two calls; a call of any model costs 0.019.
fn with_model_budget(to: SocketAddr) -> ProviderConfig {
    let mut main = with_budget(priced(to, ProviderType::OpenAI), "10");
    let own = main.budget.map(|budget| Policy {
        limit: "0.03".parse().unwrap(),
        ..budget
    });
    main.model_budgets = own
        .map(|own| ("sim-tokens-10".to_owned(), own))
        .into_iter()
        .collect();
    main
}

#[tokio::test]
async fn nothing_goes_past_a_models_own_budget_unread() {
    let (simulator, agent) = (simulator(&[]).await, fresh_ip());
    let mut settings = settings();
    settings.max_provider_request_bytes = 64 << 20;
    let fixture = Fixture::start(settings).await;
    let mut budget_only = with_budget(priced(simulator.addr, ProviderType::OpenAI), "10");
    budget_only.prices = [].into();
    let mut quota_only = priced(simulator.addr, ProviderType::OpenAI);
    let quota =
        json!([{"name": "rpm", "resource": "Requests", "limit": 9, "windowSeconds": 60, "models": ["sim"]}]);
    quota_only.quotas = serde_json::from_value(quota).unwrap();
    let providers = [
        ("main", with_model_budget(simulator.addr)),
        ("budget", budget_only),
        ("quota", quota_only),
        ("free", priced(simulator.addr, ProviderType::OpenAI)),
    ];
    fixture.tell(config(agent, &providers)).await;
    let path = |provider: &str| format!("/providers/{provider}/v1/chat/completions");
    let send = async |request: Request<Body>| {
        let mut client = Client::connect_from(agent, fixture.gateway.egress).await;
        let answer = client.send(request).await.unwrap();
        idle(&fixture).await;
        (answer.status.as_u16(), answer.code())
    };
    let (main, mut body) = (path("main"), chat("sim-tokens-10"));
    body["max_tokens"] = json!(10);
    let text = body.to_string();
    let mut untyped = in_pieces(&main, &text);
    untyped.headers_mut().remove("content-type");
    let mut encoded = in_pieces(&main, &text);
    encoded
        .headers_mut()
        .insert("content-encoding", HeaderValue::from_static("gzip"));
    // Without a length it is read, held to the budget and charged as with one.
    for _ in 0..2 {
        assert_eq!(send(in_pieces(&main, &text)).await, (200, String::new()));
    }
    assert_eq!(spent(&fixture.stats().await, "main"), "0.038");
    let spent = || (429, "BudgetExhausted".to_owned());
    let unknown = || (400, "ModelUnknown".to_owned());
    let mut large = body.clone();
    large["messages"][0]["content"] = "word ".repeat(1 << 20).into();
    let mut huge = body.clone();
    huge["messages"][0]["content"] = "word ".repeat(7 << 20).into();
    let twice = text.replacen('{', r#"{"model":"sim","#, 1);
    let spelled = text.replacen('{', r#"{"Model":"sim","#, 1);
    for (what, request, expected) in [
        ("no length", in_pieces(&main, &text), spent()),
        ("large", ask(&main, &large), spent()),
        ("large, no length", in_pieces(&main, &large.to_string()), spent()),
        ("no type", untyped, spent()),
        ("huge", ask(&main, &huge), (413, "RequestTooLarge".to_owned())),
        ("twice", in_pieces(&main, &twice), unknown()),
        ("in another case", in_pieces(&main, &spelled), unknown()),
        ("no JSON", in_pieces(&main, "model=sim-tokens-10"), unknown()),
        ("no model", in_pieces(&main, r#"{"messages":[]}"#), unknown()),
        ("compressed", encoded, unknown()),
        (
            "another model",
            in_pieces(&main, &chat("sim").to_string()),
            (200, String::new()),
        ),
        // Nor past the refusal of what has no price, or the quota of a model.
        (
            "no price",
            in_pieces(&path("budget"), &text),
            (403, "ModelWithoutPrice".to_owned()),
        ),
        ("no price, twice", in_pieces(&path("budget"), &twice), unknown()),
        ("quota, twice", in_pieces(&path("quota"), &twice), unknown()),
        // Where nothing depends on it, the provider says what it thinks of it.
        (
            "free, twice",
            in_pieces(&path("free"), &twice),
            (400, String::new()),
        ),
    ] {
        assert_eq!(send(request).await, expected, "{what}");
    }
}

#[tokio::test]
async fn a_models_own_budget_blocks_that_model_only() {
    let (simulator, agent) = (simulator(&[]).await, fresh_ip());
    let path = "/providers/main/v1/chat/completions";
    let of_model = |written: Option<&str>| -> Config {
        let main = with_model_budget(simulator.addr);
        let mut config = config(agent, &[("main", main)]);
        let written = written.map(|spent| SpendConfig {
            window_start: jiff::Timestamp::now(),
            spent: spent.parse().unwrap(),
            counted: [].into(),
        });
        let models = written.map(|spend| ("sim-tokens-10".to_owned(), spend));
        config.model_spends = [("main".to_owned(), models.into_iter().collect())].into();
        config
    };
    let fixture = Fixture::with(of_model(None)).await;
    let mut client = Client::connect_from(agent, fixture.gateway.egress).await;
    let mut send = async |model: &str| {
        let mut body = chat(model);
        body["max_tokens"] = json!(10);
        let answer = client.send(ask(path, &body)).await.unwrap();
        idle(&fixture).await;
        answer
    };
    for expected in [200, 200, 429] {
        let answer = send("sim-tokens-10").await;
        assert_eq!(answer.status.as_u16(), expected, "{}", answer.text());
    }
    let refused = send("sim-tokens-10").await;
    let sentence =
        "the budget of 0.03 USD of model \\\"sim-tokens-10\\\" of ModelProvider \\\"main\\\" is spent";
    assert!(refused.text().contains(sentence), "{}", refused.text());
    assert_eq!(refused.code(), "BudgetExhausted");
    for _ in 0..3 {
        assert_eq!(
            send("sim").await.status,
            StatusCode::OK,
            "it has no budget of its own"
        );
    }
    let metrics = get(fixture.gateway.admin, "/metrics").await.text();
    let line = r#"flotilla_gateway_budget_refused_total{provider="main",reason="model_budget_exhausted"} 2"#;
    assert!(metrics.contains(line), "{metrics}");

    // Another gateway knows what was spent from what the operator has written.
    let second = Fixture::with(of_model(Some("0.03"))).await;
    let mut client = Client::connect_from(agent, second.gateway.egress).await;
    for (model, expected) in [("sim-tokens-10", 429), ("sim", 200)] {
        let answer = client.send(ask(path, &chat(model))).await.unwrap();
        assert_eq!(answer.status.as_u16(), expected, "{model}: {}", answer.text());
    }
}
