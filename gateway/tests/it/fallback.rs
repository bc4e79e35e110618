//! Whom else is asked: fallbacks, breakers, and what is never repeated.

use std::time::Duration;

use flotilla_gateway::config::{ProviderConfig, ProviderType};
use flotilla_simulator::Simulator;
use flotilla_simulator::script::Step;
use http::StatusCode;
use serde_json::json;

use crate::budgets::in_pieces;
use crate::models::{ask, chat, config, gateway, idle, priced, simulator, spent, with_budget};
use crate::support::{Agent, Answer, Client, fresh_ip, get};

/// The path of `sim-fast` at `main` with `backup` as its fallback.
const CHAIN: &str = "/providers/main/for/sim-fast/else/other/backup/v1/chat/completions";

fn header<'a>(answer: &'a Answer, name: &str) -> Option<&'a str> {
    answer.headers.get(name).and_then(|value| value.to_str().ok())
}

#[tokio::test]
async fn a_fallback_answers_when_the_first_does_not() {
    let (first, second, agent) = (simulator(&[]).await, simulator(&[]).await, fresh_ip());
    let providers = [
        ("main", priced(first.addr, ProviderType::OpenAI)),
        ("other", priced(second.addr, ProviderType::OpenAI)),
    ];
    let (fixture, mut client) = gateway(agent, &providers).await;
    let step = |status, retry_after_seconds| Step {
        status,
        count: 1,
        model: None,
        retry_after_seconds,
    };
    let mut body = chat("sim-fast");
    for stream in [false, true] {
        body["stream"] = json!(stream);
        let answer = client.send(ask(CHAIN, &body)).await.unwrap();
        assert_eq!(
            (
                header(&answer, "x-flotilla-provider"),
                header(&answer, "x-flotilla-model"),
                header(&answer, "x-flotilla-fallback")
            ),
            (Some("main"), Some("sim-fast"), None)
        );
        first.script(vec![step(503, None)]).unwrap();
        let answer = client.send(ask(CHAIN, &body)).await.unwrap();
        assert_eq!(answer.status, StatusCode::OK);
        assert_eq!(
            (
                header(&answer, "x-flotilla-provider"),
                header(&answer, "x-flotilla-model"),
                header(&answer, "x-flotilla-fallback")
            ),
            (Some("other"), Some("backup"), Some("server_error"))
        );
        assert!(
            answer.text().contains("\"model\":\"backup\""),
            "{}",
            answer.text()
        );
        assert_eq!(stream, answer.text().contains("[DONE]"));
    }
    first.script(vec![step(503, None)]).unwrap();
    let answer = client.send(in_pieces(CHAIN, &body.to_string())).await.unwrap();
    assert_eq!(
        (answer.status, header(&answer, "x-flotilla-provider")),
        (StatusCode::OK, Some("other")),
        "a body without a length has its fallback, too"
    );
    // Who is at fault himself is told so, and another model has no fallback.
    let mut wrong = chat("sim-fast");
    wrong["messages"] = json!([]);
    assert_eq!(
        client.send(ask(CHAIN, &wrong)).await.unwrap().status,
        StatusCode::BAD_REQUEST
    );
    let other_model = client.send(ask(CHAIN, &chat("sim-error-100"))).await.unwrap();
    assert_eq!(
        (
            other_model.status.as_u16(),
            header(&other_model, "x-flotilla-provider")
        ),
        (500, None)
    );

    // A 429 with a wish to be left alone: the next request does not ask there.
    first.script(vec![step(429, Some(30))]).unwrap();
    let events = |simulator: &Simulator| simulator.log().events.len();
    for _ in 0..2 {
        let before = events(&first);
        let answer = client.send(ask(CHAIN, &chat("sim-fast"))).await.unwrap();
        assert_eq!(header(&answer, "x-flotilla-fallback"), Some("quota"));
        assert!(events(&first) <= before + 1);
    }
    let asked = events(&first);
    client.send(ask(CHAIN, &chat("sim-fast"))).await.unwrap();
    assert_eq!(events(&first), asked);
    // Without a fallback it is asked all the same.
    assert_eq!(
        client
            .send(ask("/providers/main/v1/chat/completions", &chat("sim-fast")))
            .await
            .unwrap()
            .status,
        StatusCode::OK
    );

    // Both fail: the last answer is passed on.
    second.script(vec![step(500, None)]).unwrap();
    let answer = client.send(ask(CHAIN, &chat("sim-fast"))).await.unwrap();
    assert_eq!(
        (answer.status.as_u16(), header(&answer, "x-flotilla-provider")),
        (500, Some("other"))
    );
    let metrics = get(fixture.gateway.admin, "/metrics").await.text();
    let line =
        r#"flotilla_gateway_fallbacks_total{provider="main",fallback="other",reason="server_error"} 3"#;
    assert!(metrics.contains(line), "{metrics}");
}

#[tokio::test]
async fn a_provider_that_cannot_be_reached_or_paid_is_passed_over() {
    let (second, agent) = (simulator(&[]).await, fresh_ip());
    let gone = Agent::named("gone").await;
    let address = gone.address;
    drop(gone);
    tokio::time::sleep(Duration::from_millis(20)).await;
    let other = priced(second.addr, ProviderType::OpenAI);
    let unreachable = priced(address, ProviderType::OpenAI);
    let (fixture, mut client) =
        gateway(agent, &[("main", unreachable.clone()), ("other", other.clone())]).await;
    let reasons = async |client: &mut Client, count: usize| {
        let mut reasons = Vec::new();
        for _ in 0..count {
            let answer = client.send(ask(CHAIN, &chat("sim-fast"))).await.unwrap();
            assert_eq!(answer.status, StatusCode::OK);
            reasons.push(
                header(&answer, "x-flotilla-fallback")
                    .unwrap_or_default()
                    .to_owned(),
            );
        }
        reasons
    };
    let mut expected = vec!["unreachable"; 5];
    expected.push("breaker_open");
    assert_eq!(reasons(&mut client, 6).await, expected);
    let metrics = get(fixture.gateway.admin, "/metrics").await.text();
    assert!(
        metrics.contains(r#"flotilla_gateway_egress_breaker_state{provider="main"} 2"#),
        "{metrics}"
    );
    assert_eq!(
        spent(&idle(&fixture).await, "main"),
        "0",
        "what was not sent costs nothing"
    );

    // Without money.
    let broke = with_budget(priced(second.addr, ProviderType::OpenAI), "0");
    fixture
        .tell(config(agent, &[("main", broke), ("other", other.clone())]))
        .await;
    assert_eq!(reasons(&mut client, 1).await, ["budget"]);
    // Without a key.
    let keyless = ProviderConfig {
        secret: Some(("s".into(), "k".into())),
        ..priced(second.addr, ProviderType::OpenAI)
    };
    fixture
        .tell(config(agent, &[("main", keyless), ("other", other.clone())]))
        .await;
    assert_eq!(reasons(&mut client, 1).await, ["unusable"]);
    // A fallback of another protocol is none; the first's own error is told.
    let claude = priced(second.addr, ProviderType::Anthropic);
    fixture
        .tell(config(agent, &[("main", unreachable), ("other", claude)]))
        .await;
    let answer = client.send(ask(CHAIN, &chat("sim-fast"))).await.unwrap();
    assert_eq!(answer.code(), "ProviderUnreachable");
}

#[tokio::test]
async fn a_provider_that_breaks_off_before_its_answer_is_passed_over_and_one_that_has_begun_is_not() {
    let (second, agent) = (simulator(&[]).await, fresh_ip());
    let closing = tokio::net::TcpListener::bind((fresh_ip(), 0)).await.unwrap();
    let address = closing.local_addr().unwrap();
    tokio::spawn(async move {
        use tokio::io::AsyncReadExt as _;
        loop {
            let (mut stream, _) = closing.accept().await.unwrap();
            let mut read = [0; 4096];
            let _ = stream.read(&mut read).await;
        }
    });
    let other = priced(second.addr, ProviderType::OpenAI);
    let (fixture, mut client) = gateway(
        agent,
        &[
            ("main", priced(address, ProviderType::OpenAI)),
            ("other", other.clone()),
        ],
    )
    .await;
    let answer = client.send(ask(CHAIN, &chat("sim-fast"))).await.unwrap();
    assert_eq!(
        (answer.status, header(&answer, "x-flotilla-fallback")),
        (StatusCode::OK, Some("no_answer"))
    );

    let first = simulator(&[]).await;
    fixture
        .tell(config(
            agent,
            &[
                ("main", priced(first.addr, ProviderType::OpenAI)),
                ("other", other),
            ],
        ))
        .await;
    let mut body = chat("sim-cut-100-tokens-10");
    body["stream"] = json!(true);
    let path = "/providers/main/for/sim-cut-100-tokens-10/else/other/backup/v1/chat/completions";
    let asked = second.log().events.len();
    assert!(
        client.send(ask(path, &body)).await.is_err(),
        "the agent learns that it broke off"
    );
    assert_eq!(second.log().events.len(), asked);
}
