//! A planted key and a planted prompt are found nowhere but where they belong: the key in the provider's request, the prompt
//! in the body. Not in a log, of this crate or any other, at any level; not in a metric, a span, a line of the access
//! log, `/stats`, a header to a client or an error of ours.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::collector::{Collector, Text};
use crate::support::{
    Agent, Answer, Body, Client, Fixture, PoolExt as _, config, fresh_ip, full, get, pool, provider, request,
    settings,
};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Frame, Incoming};
use tokio::net::TcpListener;

const KEY: &str = "sk-planted-7c1f0e9b2d";
const PROMPT: &str = "planted-prompt-41aa";
const QUERY: &str = "planted-query-9c3e";

/// A folder with the key of each provider, that goes with the test.
struct Keys(PathBuf);

impl Keys {
    fn of(providers: &[&str]) -> Self {
        let path = std::env::temp_dir().join(format!("flotilla-secrets-{}", uuid::Uuid::new_v4()));
        for provider in providers {
            std::fs::create_dir_all(path.join(provider)).unwrap();
            std::fs::write(path.join(provider).join("api-key"), KEY).unwrap();
        }
        Self(path)
    }
}

impl Drop for Keys {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A provider that behaves as its path says; it counts requests with the key.
async fn provider_side(with_key: Arc<AtomicUsize>) -> Agent {
    Agent::start(move |request: Request<Incoming>| {
        let with_key = with_key.clone();
        async move {
            let (head, body) = request.into_parts();
            let proof = head.headers.get("authorization").cloned();
            if proof
                .as_ref()
                .is_some_and(|proof| proof == &format!("Bearer {KEY}"))
            {
                with_key.fetch_add(1, Ordering::SeqCst);
            }
            let path = head.uri.path().to_owned();
            if path.ends_with("/never") {
                std::future::pending::<()>().await;
            }
            let _ = body.collect().await;
            let mut response = if path.ends_with("/stream") {
                let events = ["data: {\"choices\":[]}\n\n", "data: [DONE]\n\n"];
                let frames = events.map(|text| Ok(Frame::data(text.into())));
                Response::new(StreamBody::new(futures::stream::iter(frames)).boxed())
            } else {
                Response::new(full(
                    r#"{"model":"m","usage":{"prompt_tokens":1,"completion_tokens":2}}"#,
                ))
            };
            let status = match path.rsplit('/').next() {
                Some("401") => StatusCode::UNAUTHORIZED,
                Some("403") => StatusCode::FORBIDDEN,
                Some("429") => StatusCode::TOO_MANY_REQUESTS,
                Some("500") => StatusCode::INTERNAL_SERVER_ERROR,
                _ => StatusCode::OK,
            };
            if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
                // Says what it was given, as some do.
                let body =
                    format!(r#"{{"error":{{"message":"Incorrect API key provided: {KEY}. It ends so"}}}}"#);
                response = Response::new(full(body));
                response.headers_mut().insert("x-debug-proof", proof.unwrap());
            }
            *response.status_mut() = status;
            let media = if path.ends_with("/stream") {
                "text/event-stream"
            } else {
                "application/json"
            };
            response
                .headers_mut()
                .insert("content-type", HeaderValue::from_static(media));
            response
        }
    })
    .await
}

/// Takes connections and closes them after the first bytes.
async fn closing() -> String {
    let listener = TcpListener::bind((fresh_ip(), 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let mut stream = listener.accept().await.unwrap().0;
            let mut some = [0; 16];
            let _ = tokio::io::AsyncReadExt::read(&mut stream, &mut some).await;
        }
    });
    address.to_string()
}

/// Answers with nonsense.
async fn babbling() -> String {
    let listener = TcpListener::bind((fresh_ip(), 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let mut stream = listener.accept().await.unwrap().0;
            let mut some = vec![0; 64 * 1024];
            let _ = tokio::io::AsyncReadExt::read(&mut stream, &mut some).await;
            let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, b"what was that?\r\n\r\n").await;
        }
    });
    address.to_string()
}

fn call(path: &str, body: Body) -> Request<Body> {
    let mut request = Request::post(format!("{path}?api_key={QUERY}"))
        .header("host", "gateway")
        .header("content-type", "application/json")
        .header("authorization", format!("Bearer {QUERY}"))
        .body(body)
        .unwrap();
    let secret = HeaderValue::from_static(QUERY);
    request.headers_mut().insert("x-api-key", secret.clone());
    request.headers_mut().insert("cookie", secret);
    request
}

fn chat() -> Body {
    full(format!(
        r#"{{"model":"m","messages":[{{"role":"user","content":"{PROMPT}"}}]}}"#
    ))
}

async fn ask(from: IpAddr, fixture: &Fixture, request: Request<Body>) -> Option<Answer> {
    let mut client = Client::connect_from(from, fixture.gateway.egress).await;
    client.send(request).await.ok()
}

/// Nothing planted is in `text`.
fn check(what: &str, text: &str) {
    for planted in [KEY, PROMPT, QUERY] {
        let at = text.find(planted);
        let around = at.map(|at| {
            text.get(at.saturating_sub(300)..(at + 100).min(text.len()))
                .unwrap_or(text)
        });
        assert!(
            at.is_none(),
            "{planted} is in {what}: …{}…",
            around.unwrap_or_default()
        );
    }
}

#[tokio::test]
async fn nothing_planted_is_told() {
    // With one subscriber alone, `tracing` asks only the thread that meets a call site first, which may be another test's,
    // and remembers its no.
    let _second = tracing::Dispatch::new(tracing_subscriber::registry());
    // All crates, all levels. The test's runtime has one thread, so this is where the gateway logs.
    let log = Text::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(move || writer.clone())
        .with_ansi(false)
        .finish();
    let _logging = tracing::subscriber::set_default(subscriber);

    let collector = Collector::start().await;
    let providers = ["main", "away", "tls", "closing", "babbling"];
    let (keys, with_key, agent) = (Keys::of(&providers), Arc::new(AtomicUsize::new(0)), fresh_ip());
    let side = provider_side(with_key.clone()).await;
    let mut settings = settings();
    settings.credentials = keys.0.clone();
    settings.provider_timeout = Duration::from_millis(700);
    settings.max_provider_request_bytes = 1_000_000;
    settings.observe = collector.observe.clone();
    let fixture = Fixture::start(settings).await;

    let replica = Agent::start(|request: Request<Incoming>| async move {
        if request.uri().path() == "/never" {
            std::future::pending::<()>().await;
        }
        let _ = request.into_body().collect().await;
        Response::new(full("an answer"))
    })
    .await;
    let gone = std::net::SocketAddr::new(fresh_ip(), 9);
    let mut wanted = pool().revision("a", 100, 4, &[replica.address]);
    wanted.request_timeout = Duration::from_millis(700);
    wanted.http.max_request_bytes = 10_000;
    let mut wanted = config(wanted);
    wanted.agents.insert(agent);
    for (name, at) in [
        ("main", format!("http://{}", side.address)),
        ("away", format!("http://{gone}")),
        ("tls", format!("https://{}", side.address)),
        ("closing", format!("http://{}", closing().await)),
        ("babbling", format!("http://{}", babbling().await)),
        ("keyless", format!("http://{}", side.address)),
    ] {
        let endpoint = format!("{at}/v1");
        wanted
            .providers
            .insert(name.into(), provider(endpoint, Some(("secret-of-it", "token"))));
    }
    fixture.tell(wanted).await;

    // Egress, through all that can happen.
    let mut asked = 0;
    for (path, status) in [
        ("main/v1/chat/completions", Some(200)),
        ("main/v1/stream", Some(200)),
        ("main/v1/401", Some(401)),
        ("main/v1/403", Some(403)),
        ("main/v1/429", Some(429)),
        ("main/v1/500", Some(500)),
        ("main/v1/never", Some(504)),
        ("main/v1/../x", Some(400)),
        ("away/v1/chat/completions", Some(503)),
        ("tls/v1/chat/completions", Some(503)),
        ("closing/v1/chat/completions", Some(502)),
        ("babbling/v1/chat/completions", Some(502)),
        ("keyless/v1/chat/completions", Some(503)),
        ("nobody/v1/chat/completions", Some(404)),
    ] {
        let answer = ask(agent, &fixture, call(&format!("/providers/{path}"), chat())).await;
        let answer = answer.unwrap_or_else(|| panic!("{path}: no answer"));
        assert_eq!(Some(answer.status.as_u16()), status, "{path}: {}", answer.text());
        check(
            &format!("the answer of {path}"),
            &format!("{:?}{}", answer.headers, answer.text()),
        );
        asked += 1;
    }
    let answer = ask(
        fresh_ip(),
        &fixture,
        call("/providers/main/v1/chat/completions", chat()),
    )
    .await;
    assert_eq!(answer.unwrap().status, StatusCode::FORBIDDEN, "no agent");
    let long = format!("{}{PROMPT}", "x".repeat(1_000_001));
    let sized = full(long.clone());
    let frames = futures::stream::iter([Ok(Frame::data(long.into()))]);
    for body in [sized, StreamBody::new(frames).boxed()] {
        let answer = ask(agent, &fixture, call("/providers/main/v1/chat/completions", body)).await;
        let answer = answer.unwrap();
        assert_eq!(answer.status, StatusCode::PAYLOAD_TOO_LARGE);
        check("the answer to what is too long", &answer.text());
    }
    asked += 3;
    assert!(
        with_key.load(Ordering::SeqCst) >= 7,
        "the key does go where it belongs"
    );

    // Ingress, likewise.
    let to = fixture.gateway.ingress;
    for (path, size, status) in [
        ("/pools/support/x", 10, 200),
        ("/pools/support/never", 10, 504),
        ("/pools/support/x", 20_000, 413),
        ("/pools/none/x", 10, 404),
    ] {
        let body = format!("{PROMPT}{}", "x".repeat(size));
        let mut client = Client::connect(to).await;
        let answer = client.send(call(path, full(body))).await.unwrap();
        assert_eq!(answer.status.as_u16(), status, "{path}: {}", answer.text());
        check(
            &format!("the answer of {path}"),
            &format!("{:?}{}", answer.headers, answer.text()),
        );
        asked += 1;
    }
    replica.kill();
    let unreachable = pool().revision("b", 100, 4, &[gone]);
    let mut wanted = config(unreachable);
    wanted.agents.insert(agent);
    fixture.tell(wanted).await;
    let mut client = Client::connect(to).await;
    let answer = client.send(call("/pools/support/x", chat())).await.unwrap();
    assert_eq!(
        answer.status,
        StatusCode::SERVICE_UNAVAILABLE,
        "{}",
        answer.text()
    );
    check("the answer of an unreachable replica", &answer.text());
    asked += 1;

    // What was told.
    let metrics = get(fixture.gateway.admin, "/metrics").await.text();
    check("the metrics", &metrics);
    check("/stats", &get(fixture.gateway.admin, "/stats").await.text());
    check("/readyz", &fixture.readyz().await.1);
    let lines = collector.json_lines(asked).await;
    assert_eq!(lines.len(), asked, "a line for each");
    check("the access log", &collector.lines.read());
    let exports = collector.finish().await;
    let spans: usize = exports.iter().map(bytes::Bytes::len).sum();
    assert!(spans > 1000, "{spans} bytes of spans");
    for export in exports {
        check("the spans", &String::from_utf8_lossy(&export));
    }
    let log = log.read();
    assert!(
        log.contains("TRACE") && log.contains("no response from the provider"),
        "the log is written"
    );
    check("the log", &log);
}

/// The bodies of a provider's refusals are passed on, but for the key.
#[tokio::test]
async fn a_refused_key_is_cut_out_of_what_the_provider_says() {
    let (keys, agent) = (Keys::of(&["main"]), fresh_ip());
    let side = provider_side(Arc::default()).await;
    let mut settings = settings();
    settings.credentials = keys.0.clone();
    let fixture = Fixture::start(settings).await;
    let mut wanted = flotilla_gateway::config::Config::default();
    wanted.agents.insert(agent);
    let endpoint = format!("http://{}/v1", side.address);
    wanted
        .providers
        .insert("main".into(), provider(endpoint, Some(("main", "key"))));
    fixture.tell(wanted).await;
    let mut client = Client::connect_from(agent, fixture.gateway.egress).await;
    for (path, status) in [("401", StatusCode::UNAUTHORIZED), ("403", StatusCode::FORBIDDEN)] {
        let path = format!("/providers/main/v1/{path}");
        let answer = client.send(request(Method::POST, &path, "{}")).await.unwrap();
        assert_eq!(answer.status, status);
        assert_eq!(
            answer.text(),
            r#"{"error":{"message":"Incorrect API key provided: [key]. It ends so"}}"#
        );
        assert!(!answer.headers.contains_key("x-debug-proof"));
        assert_eq!(answer.headers["content-type"], "application/json");
    }
    // And it was counted as any other.
    let stats = fixture
        .wait("it is counted", |stats| stats.providers["main"].in_flight == 0)
        .await;
    let failed: u64 = stats.providers["main"]
        .models
        .values()
        .map(|used| used.failed)
        .sum();
    assert_eq!(failed, 2);
}
