//! Probes against real servers on this machine.

use std::convert::Infallible;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::*;

/// An agent that answers `/healthz`, refuses `/admin`, speaks A2A on `/` and echoes the rest with its headers.
async fn agent() -> Target {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(reply)));
        }
    });
    Target {
        namespace: "shop".into(),
        name: "support-2.shop.svc".into(),
        address: Some("127.0.0.1".parse().unwrap()),
        port,
        protocol: LoadProtocol::A2A,
    }
}

async fn reply(request: Request<Incoming>) -> Result<http::Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let (status, text) = match head.uri.path() {
        "/healthz" => (200, "ok\n".to_owned()),
        "/broken" => (503, "no\n database \u{1b}[0m".to_owned()),
        "/admin" => (401, String::new()),
        "/long" => (200, "x".repeat(HTTP_BODY + 10)),
        "/" => {
            let call: Value = serde_json::from_slice(&body).unwrap();
            let text = &call["params"]["message"]["parts"][0]["text"];
            (
                200,
                json!({"result": {"message": {"parts": [{"text": format!("Pong to {text}")}]}}}).to_string(),
            )
        }
        _ => {
            let header = |name: &str| {
                head.headers
                    .get(name)
                    .map(|value| value.to_str().unwrap().to_owned())
            };
            let seen = ["host", "x-flotilla-synthetic", "x-tenant"].map(header);
            (200, format!("{seen:?} {}", String::from_utf8_lossy(&body)))
        }
    };
    Ok(http::Response::builder()
        .status(status)
        .body(Full::new(Bytes::from(text)))
        .unwrap())
}

async fn attempt(probe: Probe, target: &Target) -> Result<String, Miss> {
    Network::default().ask(probe, target.clone()).await
}

async fn ask(probe: Probe, target: &Target) -> Result<String, String> {
    attempt(probe, target).await.map_err(|miss| match miss {
        Miss::Failed(sentence) => sentence,
        Miss::Unreached(sentence) => panic!("not reached: {sentence}"),
    })
}

fn http(test: Value) -> Probe {
    Probe::Http(serde_json::from_value(test).unwrap())
}

#[tokio::test]
async fn an_answer_is_held_against_status_and_text() {
    let target = agent().await;
    assert_eq!(
        ask(http(json!({"path": "/healthz"})), &target).await.as_deref(),
        Ok("GET /healthz was answered with 200")
    );
    assert!(
        ask(http(json!({"path": "/admin", "expectStatus": 401})), &target)
            .await
            .is_ok()
    );
    assert_eq!(
        ask(http(json!({"path": "/broken"})), &target).await.unwrap_err(),
        "GET /broken was answered with 503, not 200: no database [0m"
    );
    let missing = http(json!({"path": "/healthz", "expectContains": "fine"}));
    assert_eq!(
        ask(missing, &target).await.unwrap_err(),
        "the answer to GET /healthz does not contain \"fine\": ok"
    );
    assert!(
        ask(http(json!({"path": "/long", "expectContains": "xxx"})), &target)
            .await
            .is_ok()
    );
    let echoed = http(json!({
        "method": "POST", "path": "/echo", "body": "hello", "headers": [{"name": "X-Tenant", "value": "t-1"}],
        "expectContains": "[Some(\"support-2.shop.svc\"), Some(\"smoke-test\"), Some(\"t-1\")] hello",
    }));
    assert!(ask(echoed, &target).await.is_ok());
}

#[tokio::test]
async fn an_agent_is_held_against_what_it_says() {
    let target = agent().await;
    let says = |test: Value| Probe::Agent(serde_json::from_value(test).unwrap());
    assert!(
        ask(says(json!({"prompt": "ping", "expectContains": "PONG"})), &target)
            .await
            .is_ok()
    );
    for (test, part) in [
        (
            json!({"prompt": "ping", "expectContains": "pang"}),
            "does not contain \"pang\": Pong to \"ping\"",
        ),
        (
            json!({"prompt": "ping", "expectWithout": "pong"}),
            "the answer contains \"pong\"",
        ),
        (
            json!({"prompt": "ping", "path": "/broken"}),
            "POST /broken was answered with 503: no database",
        ),
        (
            json!({"prompt": "ping", "path": "/healthz"}),
            "the answer is no JSON",
        ),
        (
            json!({"prompt": "ping", "protocol": "HTTP", "path": "/admin"}),
            "answered with 401",
        ),
    ] {
        let error = ask(says(test), &target).await.unwrap_err();
        assert!(error.contains(part), "{error}");
    }
}

#[tokio::test]
async fn connections_and_names() {
    let target = agent().await;
    assert!(ask(Probe::Tcp(TcpTest::default_of(80)), &target).await.is_ok());
    let dns = |host: &str| Probe::Dns(DnsTest { host: host.into() });
    assert!(ask(dns("127.0.0.1"), &target).await.is_ok());
    let unknown = ask(dns("nobody.invalid"), &target).await.unwrap_err();
    assert!(unknown.starts_with("nobody.invalid has no address"), "{unknown}");
}

#[tokio::test]
async fn a_refused_connection_to_the_candidate_is_told_from_an_answer() {
    let free = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    let target = Target {
        port,
        ..agent().await
    };
    let prompt: AgentTest = serde_json::from_value(json!({"prompt": "ping"})).unwrap();
    for probe in [
        Probe::Tcp(TcpTest::default_of(port.into())),
        http(json!({"path": "/healthz"})),
        Probe::Agent(prompt),
    ] {
        let miss = attempt(probe, &target).await.unwrap_err();
        assert!(
            matches!(&miss, Miss::Unreached(sentence) if sentence.contains("refused")),
            "{miss:?}"
        );
    }
    // One that does not answer as it should was reached.
    let broken = attempt(http(json!({"path": "/broken"})), &agent().await).await;
    assert!(matches!(broken, Err(Miss::Failed(_))), "{broken:?}");
}

trait OfPort {
    fn default_of(port: i32) -> Self;
}

impl OfPort for TcpTest {
    fn default_of(port: i32) -> Self {
        Self {
            service_name: None,
            port,
        }
    }
}

#[test]
fn an_excerpt_is_one_short_line() {
    assert_eq!(excerpt(" a\n\tb\u{0}c "), ": a b c");
    assert_eq!(excerpt(" \n"), "");
    assert_eq!(excerpt(&"ä".repeat(500)).chars().count(), EXCERPT + 2);
}
