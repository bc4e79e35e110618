//! Models and money: every protocol's usage, streams, budgets.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flotilla_core::price::budget::Calendar;
use flotilla_core::price::ledger::Policy;
use flotilla_core::price::{Currency, Price};
use flotilla_core::stats::Stats;
use flotilla_gateway::config::{Config, ProviderConfig, ProviderType};
use flotilla_simulator::{Config as Simulated, Simulator};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Frame, Incoming};
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::support::{Agent, Body, Client, Fixture, fresh_ip, get, provider, request, settings};

const KEY: &str = "sk-of-the-provider";

pub async fn simulator(keys: &[&str]) -> Simulator {
    let config = Simulated {
        listen: SocketAddr::new(fresh_ip(), 0),
        api_keys: keys.iter().map(|key| (*key).to_owned()).collect(),
        ..Simulated::local()
    };
    Simulator::start(config).await.unwrap()
}

/// A provider at `to` whose models cost a dollar for a thousand tokens, in and out.
pub fn priced(to: SocketAddr, type_: ProviderType) -> ProviderConfig {
    let price = Price::parse("USD", "1000", "1000").unwrap();
    let models = [
        "sim",
        "sim-fast",
        "backup",
        "sim-tokens-10",
        "sim-error-100",
        "sim-cut-100-tokens-10",
    ];
    ProviderConfig {
        type_,
        prices: models.map(|model| (model.to_owned(), price)).into(),
        ..provider(format!("http://{to}/v1"), None)
    }
}

pub fn with_budget(config: ProviderConfig, limit: &str) -> ProviderConfig {
    ProviderConfig {
        budget: Some(Policy {
            limit: limit.parse().unwrap(),
            currency: Currency::USD,
            calendar: Calendar::Year,
            blocks: true,
        }),
        ..config
    }
}

pub fn config(agent: IpAddr, providers: &[(&str, ProviderConfig)]) -> Config {
    Config {
        agents: [agent].into(),
        providers: providers
            .iter()
            .map(|(name, provider)| ((*name).to_owned(), provider.clone()))
            .collect(),
        ready_gateways: 1,
        ..Config::default()
    }
}

pub async fn gateway(agent: IpAddr, providers: &[(&str, ProviderConfig)]) -> (Fixture, Client) {
    let fixture = Fixture::with(config(agent, providers)).await;
    let client = Client::connect_from(agent, fixture.gateway.egress).await;
    (fixture, client)
}

pub fn ask(path: &str, body: &Value) -> Request<Body> {
    let mut request = request(Method::POST, path, body.to_string());
    let headers = request.headers_mut();
    headers.insert("content-type", HeaderValue::from_static("application/json"));
    headers.insert("anthropic-version", HeaderValue::from_static("2023-06-01"));
    headers.insert("x-api-key", HeaderValue::from_static("of-the-agent"));
    request
}

pub fn chat(model: &str) -> Value {
    json!({"model": model, "messages": [{"role": "user", "content": "My parcel is late"}]})
}

/// Tokens and spend at a provider.
fn used(stats: &Stats, provider: &str, model: &str) -> (u64, u64, u64, u64) {
    let used = stats.providers[provider]
        .models
        .get(model)
        .copied()
        .unwrap_or_default();
    (used.requests, used.failed, used.input_tokens, used.output_tokens)
}

pub fn spent(stats: &Stats, provider: &str) -> String {
    let spend = &stats.providers[provider].spend;
    spend.get(&Currency::USD).copied().unwrap_or_default().to_string()
}

pub async fn idle(fixture: &Fixture) -> Stats {
    fixture
        .wait("all is counted", |stats| {
            stats.providers.values().all(|provider| provider.in_flight == 0)
        })
        .await
}

#[tokio::test]
async fn every_protocol_is_counted_and_priced_whole_and_streamed() {
    let (simulator, agent) = (simulator(&[KEY]).await, fresh_ip());
    let keys = std::env::temp_dir().join(format!("flotilla-models-{}", uuid::Uuid::new_v4()));
    for name in ["main", "claude"] {
        std::fs::create_dir_all(keys.join(name)).unwrap();
        std::fs::write(keys.join(name).join("api-key"), KEY).unwrap();
    }
    let keyed = |type_| ProviderConfig {
        secret: Some(("s".into(), "k".into())),
        ..priced(simulator.addr, type_)
    };
    let mut settings = settings();
    settings.credentials = keys.clone();
    let fixture = Fixture::start(settings).await;
    let providers = [
        ("main", keyed(ProviderType::OpenAI)),
        ("claude", keyed(ProviderType::Anthropic)),
    ];
    fixture.tell(config(agent, &providers)).await;
    let mut client = Client::connect_from(agent, fixture.gateway.egress).await;

    // Each has 9 tokens of input and 10 of output; embeddings have none.
    let model = "sim-tokens-10";
    let mut streamed_chat = chat(model);
    streamed_chat["stream"] = json!(true);
    let response = json!({"model": model, "input": "My parcel is late"});
    let mut streamed_response = response.clone();
    streamed_response["stream"] = json!(true);
    let mut message = chat(model);
    message["max_tokens"] = json!(100);
    let mut streamed_message = message.clone();
    streamed_message["stream"] = json!(true);
    let mut expected = (0, 0, 0, 0);
    for (name, path, body, output) in [
        ("main", "chat/completions", chat(model), 10),
        ("main", "chat/completions", streamed_chat, 10),
        ("main", "responses", response, 10),
        ("main", "responses", streamed_response, 10),
        (
            "main",
            "embeddings",
            json!({"model": model, "input": "My parcel is late"}),
            0,
        ),
        ("claude", "messages", message, 10),
        ("claude", "messages", streamed_message, 10),
    ] {
        let before = if path == "messages" && expected.0 == 5 {
            (0, 0, 0, 0)
        } else {
            expected
        };
        let answer = client
            .send(ask(&format!("/providers/{name}/v1/{path}"), &body))
            .await
            .unwrap();
        assert_eq!(answer.status, StatusCode::OK, "{path}: {}", answer.text());
        assert!(
            !answer.text().contains("\"choices\":[]"),
            "the usage is not the agent's: {}",
            answer.text()
        );
        expected = (before.0 + 1, 0, before.2 + 9, before.3 + output);
        let stats = idle(&fixture).await;
        assert_eq!(used(&stats, name, model), expected, "{path} {body}");
    }
    let stats = idle(&fixture).await;
    assert_eq!(
        (spent(&stats, "main"), spent(&stats, "claude")),
        ("0.085".into(), "0.038".into())
    );
    let log = simulator.log();
    assert!(log.events.iter().all(|event| event.status == 200), "{log:?}");
    let metrics = get(fixture.gateway.admin, "/metrics").await.text();
    let line =
        r#"flotilla_gateway_egress_spend_total{provider="main",model="sim-tokens-10",currency="USD"} 0.085"#;
    assert!(metrics.contains(line), "{metrics}");
    let _ = std::fs::remove_dir_all(keys);
}

/// A provider that sends these pieces as a stream, and keeps the requests that came.
async fn streaming(pieces: Arc<Mutex<Vec<Bytes>>>, seen: Arc<Mutex<Vec<Value>>>) -> Agent {
    Agent::start(move |request: Request<Incoming>| {
        let (pieces, seen) = (pieces.lock().clone(), seen.clone());
        async move {
            let (head, body) = request.into_parts();
            assert_eq!(head.headers["accept-encoding"], "identity");
            let length = head.headers["content-length"]
                .to_str()
                .unwrap()
                .parse::<usize>()
                .unwrap();
            let body = body.collect().await.unwrap().to_bytes();
            assert_eq!(length, body.len());
            seen.lock().push(serde_json::from_slice(&body).unwrap());
            let (sender, frames) = tokio::sync::mpsc::channel(1);
            tokio::spawn(async move {
                for piece in pieces {
                    if sender
                        .send(Ok::<_, hyper::Error>(Frame::data(piece)))
                        .await
                        .is_err()
                    {
                        return;
                    }
                    // The next one is a segment of its own.
                    tokio::time::sleep(Duration::from_micros(200)).await;
                }
            });
            let frames = futures::stream::unfold(frames, |mut frames| async move {
                let frame = frames.recv().await?;
                Some((frame, frames))
            });
            let mut response = Response::new(StreamBody::new(frames).boxed());
            let media = HeaderValue::from_static("text/event-stream; charset=utf-8");
            response.headers_mut().insert("content-type", media);
            response
        }
    })
    .await
}

const BEFORE: &str = "data: {\"id\":\"x\",\"choices\":[{\"delta\":{\"content\":\"a\"}}],\"usage\":null}\n\n";
const USAGE: &str =
    "data: {\"id\":\"x\",\"choices\":[],\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":4}}\n\n";
const AFTER: &str = "data: [DONE]\n\n";

#[tokio::test]
async fn the_usage_chunk_is_asked_for_and_taken_out_wherever_segments_end() {
    let whole = format!("{BEFORE}{USAGE}{AFTER}");
    let mut body = chat("sim");
    body["stream"] = json!(true);
    let (pieces, seen, agent) = (Arc::default(), Arc::default(), fresh_ip());
    let at = streaming(Arc::clone(&pieces), Arc::clone(&seen)).await;
    let (fixture, mut client) = gateway(agent, &[("main", priced(at.address, ProviderType::OpenAI))]).await;
    for cut in 1..whole.len() {
        let (one, two) = whole.split_at(cut);
        *pieces.lock() = [one, two]
            .map(|piece| Bytes::copy_from_slice(piece.as_bytes()))
            .into();
        let answer = client
            .send(ask("/providers/main/v1/chat/completions", &body))
            .await
            .unwrap();
        assert_eq!(answer.text(), format!("{BEFORE}{AFTER}"), "cut at {cut}");
        let asked = seen.lock().pop().unwrap_or_default();
        assert_eq!(asked["stream_options"], json!({"include_usage": true}));
    }
    let calls = whole.len() as u64 - 1;
    assert_eq!(
        used(&idle(&fixture).await, "main", "sim"),
        (calls, 0, 9 * calls, 4 * calls)
    );
    body["stream_options"] = json!({"include_usage": true});
    let answer = client
        .send(ask("/providers/main/v1/chat/completions", &body))
        .await
        .unwrap();
    assert_eq!(answer.text(), whole, "who asks for it gets it");
}

#[tokio::test]
async fn events_are_neither_held_nor_put_together() {
    let agent = fresh_ip();
    let (go, gate) = tokio::sync::watch::channel(0usize);
    let at = Agent::start(move |_| {
        let gate = gate.clone();
        async move {
            let frames = futures::stream::unfold((0usize, gate), |(sent, mut gate)| async move {
                gate.wait_for(|allowed| *allowed > sent).await.ok()?;
                let text = match sent {
                    0..5 => BEFORE,
                    5 => USAGE,
                    6 => AFTER,
                    _ => return None,
                };
                Some((
                    Ok::<_, hyper::Error>(Frame::data(Bytes::from_static(text.as_bytes()))),
                    (sent + 1, gate),
                ))
            });
            let mut response = Response::new(StreamBody::new(frames).boxed());
            let media = HeaderValue::from_static("text/event-stream");
            response.headers_mut().insert("content-type", media);
            response
        }
    })
    .await;
    let (_fixture, mut client) = gateway(agent, &[("main", priced(at.address, ProviderType::OpenAI))]).await;
    let mut body = chat("sim");
    body["stream"] = json!(true);
    client.sender.ready().await.unwrap();
    go.send_replace(1);
    let answer = client
        .sender
        .send_request(ask("/providers/main/v1/chat/completions", &body))
        .await
        .unwrap();
    let mut frames = answer.into_body();
    for number in 0..5 {
        // It is here before the next one is sent.
        let frame = tokio::time::timeout(Duration::from_secs(5), frames.frame())
            .await
            .expect("at once");
        assert_eq!(frame.unwrap().unwrap().into_data().unwrap(), BEFORE);
        go.send_replace(number + 2);
    }
    go.send_replace(8);
    assert_eq!(frames.frame().await.unwrap().unwrap().into_data().unwrap(), AFTER);
    assert!(frames.frame().await.is_none());
}

#[tokio::test]
async fn a_long_body_is_asked_for_its_usage_too() {
    let (simulator, agent) = (simulator(&[]).await, fresh_ip());
    let (fixture, mut client) =
        gateway(agent, &[("main", priced(simulator.addr, ProviderType::OpenAI))]).await;
    let mut body = chat("sim-tokens-10");
    // Held, and asked for usage.
    body["messages"][0]["content"] = json!("x".repeat(1 << 20));
    body["stream"] = json!(true);
    let answer = client
        .send(ask("/providers/main/v1/chat/completions", &body))
        .await
        .unwrap();
    assert_eq!(answer.status, StatusCode::OK);
    let (requests, _, input, output) = used(&idle(&fixture).await, "main", "sim-tokens-10");
    assert_eq!((requests, output), (1, 10));
    assert!(input > 200_000);
}
