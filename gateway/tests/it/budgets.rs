//! Budgets of a provider and of a model, as agents meet them.

use bytes::Bytes;
use flotilla_core::price::Money;
use flotilla_core::price::ledger::Policy;
use flotilla_gateway::config::{Config, ProviderType, SpendConfig};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Frame, Incoming};
use serde_json::{Value, json};

use crate::models::{ask, chat, config, gateway, idle, priced, simulator, spent, with_budget};
use crate::support::{Agent, Client, Fixture, fresh_ip, full, get, request};

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
    for kind in ["application/json", "text/plain"] {
        let (fixture, mut client) = gateway(agent, &providers).await;
        let text = format!(
            r#"{{"stream":true,"model":"sim","messages":["{}"]}}"#,
            "word ".repeat(8_000)
        );
        let pieces = text
            .into_bytes()
            .chunks(9_000)
            .map(Bytes::copy_from_slice)
            .collect::<Vec<_>>();
        let pieces = pieces.into_iter().map(|piece| Ok(Frame::data(piece)));
        let mut request = request(Method::POST, "/providers/main/v1/chat/completions", "");
        request
            .headers_mut()
            .insert("content-type", HeaderValue::from_static(kind));
        *request.body_mut() = StreamBody::new(futures::stream::iter(pieces)).boxed();
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

#[tokio::test]
async fn a_models_own_budget_blocks_that_model_only() {
    let (simulator, agent) = (simulator(&[]).await, fresh_ip());
    let path = "/providers/main/v1/chat/completions";
    let of_model = |written: Option<&str>| -> Config {
        // A call of either model costs 0.019.
        let mut main = with_budget(priced(simulator.addr, ProviderType::OpenAI), "10");
        let own = main.budget.map(|budget| Policy {
            limit: "0.03".parse().unwrap(),
            ..budget
        });
        main.model_budgets = own
            .map(|own| ("sim-tokens-10".to_owned(), own))
            .into_iter()
            .collect();
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
