//! Agents reach providers: who may, with which key, and what is counted.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::support::{Agent, Body, Client, Fixture, fresh_ip, full, get, provider, request, settings};
use bytes::Bytes;
use flotilla_core::stats::Credential;
use flotilla_gateway::config::Config;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Frame, Incoming};

const KEY: &str = "sk-planted-5f0b1a";

/// A provider that streams when asked to, refuses `/refused`, and says which headers it has seen.
async fn openai() -> Agent {
    Agent::start(|request: Request<Incoming>| async move {
        let (head, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        if head.uri.path().ends_with("/refused") {
            let mut response = Response::new(full(r#"{"error":{"message":"slow down"}}"#));
            *response.status_mut() = StatusCode::TOO_MANY_REQUESTS;
            response
                .headers_mut()
                .insert("retry-after", HeaderValue::from_static("7"));
            response
                .headers_mut()
                .insert("content-type", HeaderValue::from_static("application/json"));
            return response;
        }
        let (body, media): (Body, _) = if body.windows(13).any(|part| part == b"\"stream\":true") {
            let events = [
                "data: {\"model\":\"gpt-5-mini-2025\",\"usage\":null}\n\n",
                "data: {\"choices\":[],\"usage\":{\"prompt_tok",
                "ens\":11,\"completion_tokens\":22}}\n\ndata: [DONE]\n\n",
            ];
            let frames = events.map(|text| Ok(Frame::data(Bytes::from(text))));
            (
                StreamBody::new(futures::stream::iter(frames)).boxed(),
                "text/event-stream",
            )
        } else {
            let seen = |name: &str| {
                head.headers
                    .get(name)
                    .map(|value| value.to_str().unwrap().to_owned())
            };
            let answer = serde_json::json!({
                "model": "gpt-5-mini-2025", "path": head.uri.to_string(),
                "host": seen("host"), "authorized": seen("authorization") == Some(format!("Bearer {KEY}")),
                "key": seen("x-api-key"), "encoding": seen("accept-encoding"), "for": seen("x-forwarded-for"),
                "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7},
            });
            (full(answer.to_string()), "application/json; charset=utf-8")
        };
        let mut response = Response::new(body);
        response
            .headers_mut()
            .insert("content-type", HeaderValue::from_static(media));
        response
            .headers_mut()
            .insert("x-ratelimit-remaining", HeaderValue::from_static("41"));
        response
    })
    .await
}

/// A folder that goes with the test.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("flotilla-keys-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn write(&self, provider: &str, key: &str) {
        let folder = self.0.join(provider);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("api-key"), key).unwrap();
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

async fn fixture(keys: &Path, at: &Agent, agents: &[IpAddr]) -> Fixture {
    let mut settings = settings();
    settings.credentials = keys.to_path_buf();
    let fixture = Fixture::start(settings).await;
    fixture.tell(wanted(at, agents)).await;
    fixture
}

fn wanted(at: &Agent, agents: &[IpAddr]) -> Config {
    let endpoint = format!("http://{}/v1", at.address);
    Config {
        agents: agents.iter().copied().collect(),
        providers: [
            (
                "main".to_owned(),
                provider(endpoint.clone(), Some(("main-secret", "token"))),
            ),
            (
                "lost".to_owned(),
                provider(endpoint.clone(), Some(("lost-secret", "token"))),
            ),
            ("open".to_owned(), provider(endpoint, None)),
        ]
        .into(),
        ..Config::default()
    }
}

fn chat(path: &str, stream: bool) -> Request<Body> {
    let body = format!(
        r#"{{"messages":[{{"content":"\"model\":\"no\""}}],"model":"gpt-5-mini","stream":{stream}}}"#
    );
    let mut request = request(Method::POST, path, body);
    let headers = request.headers_mut();
    headers.insert("content-type", HeaderValue::from_static("application/json"));
    headers.insert("authorization", HeaderValue::from_static("Bearer flotilla"));
    headers.insert("x-api-key", HeaderValue::from_static("client"));
    headers.insert("accept-encoding", HeaderValue::from_static("gzip"));
    request
}

#[tokio::test]
async fn the_key_is_added_the_clients_is_not_passed_and_use_is_counted() {
    let (keys, provider, agent) = (Folder::new(), openai().await, fresh_ip());
    keys.write("main", &format!("{KEY}\n"));
    let fixture = fixture(&keys.0, &provider, &[agent]).await;
    let mut client = Client::connect_from(agent, fixture.gateway.egress).await;

    let answer = client
        .send(chat("/providers/main/v1/chat/completions?a=b", false))
        .await
        .unwrap();
    let seen: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(seen["path"], "/v1/chat/completions?a=b");
    assert_eq!(seen["host"], provider.address.to_string());
    assert_eq!(
        (seen["authorized"].as_bool(), &seen["key"]),
        (Some(true), &serde_json::Value::Null)
    );
    assert_eq!(
        (&seen["encoding"], &seen["for"]),
        (&"identity".into(), &serde_json::Value::Null)
    );
    assert_eq!(answer.headers["x-ratelimit-remaining"], "41");

    let streamed = client
        .send(chat("/providers/main/v1/chat/completions", true))
        .await
        .unwrap();
    assert!(
        streamed.text().ends_with("data: [DONE]\n\n")
            && streamed.headers["content-type"] == "text/event-stream"
    );
    let refused = client
        .send(chat("/providers/main/v1/refused", false))
        .await
        .unwrap();
    assert_eq!(
        (refused.status, &refused.headers["retry-after"]),
        (StatusCode::TOO_MANY_REQUESTS, &"7".parse().unwrap())
    );
    assert_eq!(refused.text(), r#"{"error":{"message":"slow down"}}"#);

    let stats = fixture
        .wait("all is counted", |stats| stats.providers["main"].in_flight == 0)
        .await;
    let main = &stats.providers["main"];
    let used = main.models["gpt-5-mini"];
    assert_eq!(
        (used.requests, used.failed, used.input_tokens, used.output_tokens),
        (3, 1, 14, 26)
    );
    assert_eq!((main.models.len(), main.credential), (1, Credential::Present));
    assert_eq!(stats.providers["lost"].credential, Credential::Missing);
    assert_eq!(stats.providers["open"].credential, Credential::NotNeeded);
}

#[tokio::test]
async fn a_long_streamed_request_is_counted_by_its_model_too() {
    let (keys, provider, agent) = (Folder::new(), openai().await, fresh_ip());
    keys.write("main", KEY);
    let fixture = fixture(&keys.0, &provider, &[agent]).await;
    let long = format!(r#"{{"input":"{}","model":"long-model"}}"#, "x".repeat(200_000));
    let mut request = request(Method::POST, "/providers/main/v1/embeddings", long);
    request
        .headers_mut()
        .insert("content-type", HeaderValue::from_static("application/json"));
    let mut client = Client::connect_from(agent, fixture.gateway.egress).await;
    assert_eq!(client.send(request).await.unwrap().status, StatusCode::OK);
    fixture
        .wait("it is counted", |stats| {
            stats.providers["main"].models.contains_key("long-model")
        })
        .await;
}

#[tokio::test]
async fn only_agents_of_the_namespace_may_and_a_new_one_has_a_moment() {
    let (keys, provider, agent, newcomer) = (Folder::new(), openai().await, fresh_ip(), fresh_ip());
    let fixture = fixture(&keys.0, &provider, &[agent]).await;
    let path = "/providers/open/v1/models";
    let mut stranger = Client::connect_from(fresh_ip(), fixture.gateway.egress).await;
    let answer = stranger.get(path).await;
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (StatusCode::FORBIDDEN, "NotAnAgent")
    );
    assert_eq!(provider.hits(), 0);

    let mut early = Client::connect_from(newcomer, fixture.gateway.egress).await;
    let answer = tokio::spawn(async move { early.get(path).await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    fixture.tell_only(wanted(&provider, &[agent, newcomer]));
    assert_eq!(answer.await.unwrap().status, StatusCode::OK);
}

#[tokio::test]
async fn a_missing_key_is_named_and_a_rotated_one_is_used() {
    let (keys, provider, agent) = (Folder::new(), openai().await, fresh_ip());
    let fixture = fixture(&keys.0, &provider, &[agent]).await;
    let mut client = Client::connect_from(agent, fixture.gateway.egress).await;
    let answer = client.get("/providers/main/v1/models").await;
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (StatusCode::SERVICE_UNAVAILABLE, "KeyMissing")
    );
    assert!(
        answer
            .text()
            .contains(r#"the key of provider \"main\" is missing: Secret \"main-secret\", key \"token\""#)
    );
    // Mounted meanwhile: used at once. Rotated: used within the housekeeping interval.
    keys.write("main", "an old key");
    let authorized = |answer: crate::support::Answer| {
        serde_json::from_slice::<serde_json::Value>(&answer.body).unwrap()["authorized"]
            .as_bool()
            .unwrap()
    };
    assert!(!authorized(client.get("/providers/main/v1/models").await));
    keys.write("main", KEY);
    for attempt in 0.. {
        if authorized(client.get("/providers/main/v1/models").await) {
            break;
        }
        assert!(attempt < 100, "the rotated key is not used");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn paths_and_providers_that_are_not_there_are_told() {
    let (keys, provider, agent) = (Folder::new(), openai().await, fresh_ip());
    let fixture = fixture(&keys.0, &provider, &[agent]).await;
    let mut client = Client::connect_from(agent, fixture.gateway.egress).await;
    for (path, code) in [
        ("/providers/none/v1/models", "NoSuchProvider"),
        ("/models", "NoSuchRoute"),
        ("/providers/open/v1/../admin", "PathRefused"),
        ("/providers/open/v1/%2e%2E/admin", "PathRefused"),
    ] {
        assert_eq!(client.get(path).await.code(), code, "{path}");
    }
    assert_eq!(provider.hits(), 0);
    provider.kill();
    tokio::time::sleep(Duration::from_millis(20)).await;
    let answer = client.get("/providers/open/v1/models").await;
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (StatusCode::SERVICE_UNAVAILABLE, "ProviderUnreachable")
    );
}

#[tokio::test]
async fn the_key_is_nowhere_to_be_seen() {
    let (keys, provider, agent) = (Folder::new(), openai().await, fresh_ip());
    keys.write("main", KEY);
    let fixture = fixture(&keys.0, &provider, &[agent]).await;
    let mut client = Client::connect_from(agent, fixture.gateway.egress).await;
    let mut seen = String::new();
    for path in [
        "/providers/main/v1/x",
        "/providers/main/v1/..",
        "/providers/main/v1/refused",
    ] {
        let answer = client.send(chat(path, false)).await.unwrap();
        seen += &format!("{:?}{}", answer.headers, answer.text());
    }
    provider.kill();
    tokio::time::sleep(Duration::from_millis(20)).await;
    let answer = client.send(chat("/providers/main/v1/x", false)).await.unwrap();
    assert_eq!(answer.code(), "ProviderUnreachable");
    seen += &format!("{:?}{}", answer.headers, answer.text());
    for path in ["/stats", "/metrics", "/readyz"] {
        let text = get(fixture.gateway.admin, path).await.text();
        assert!(
            path != "/metrics" || text.contains("flotilla_gateway_egress_requests_total{provider=\"main\""),
            "{text}"
        );
        seen += &text;
    }
    assert!(!seen.contains(KEY) && !seen.contains("planted"), "{seen}");
}
