//! What parts of the gateway do to each other: limits with conversations, WebSockets with the pool's room, fallbacks with
//! what is told of a request.

use flotilla_gateway::config::{KeySource, ProviderConfig, ProviderType};
use flotilla_simulator::script::Step;
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::collector::Collector;
use crate::models::{ask, chat, priced, simulator};
use crate::sessions::sessions;
use crate::support::{
    Agent, Body, Client, Fixture, PoolExt as _, config, fresh_ip, full, get, pool, settings,
};

/// The beginning that is read for the names of a conversation counts like the rest.
#[tokio::test]
async fn a_message_of_a_conversation_is_bounded_as_any_other() {
    let agent = Agent::start(|request: Request<hyper::body::Incoming>| async move {
        let body = request.into_body().collect().await;
        let length = body.map_or(0, |body| body.to_bytes().len());
        http::Response::new(full(length.to_string()))
    })
    .await;
    let mut wanted = pool().revision("a", 100, 1, &[agent.address]);
    wanted.sessions = Some(sessions(KeySource::A2AContext, &[]));
    wanted.http.max_request_bytes = 100_000;
    let mut small = wanted.clone();
    small.http.max_request_bytes = 20_000;
    for (wanted, chunks, status) in [
        (&wanted, [70_000, 30_000], StatusCode::OK),
        (&wanted, [70_000, 30_001], StatusCode::PAYLOAD_TOO_LARGE),
        (&small, [10_000, 10_000], StatusCode::OK),
        (&small, [10_000, 10_001], StatusCode::PAYLOAD_TOO_LARGE),
    ] {
        let fixture = Fixture::with(config(wanted.clone())).await;
        let frames = chunks.map(|size| Ok(Frame::data(vec![b' '; size].into())));
        let body: Body = StreamBody::new(futures::stream::iter(frames)).boxed();
        let request = Request::post(fixture.path("/")).header("host", "g").body(body);
        let mut client = Client::connect(fixture.gateway.ingress).await;
        let answer = client.send(request.unwrap()).await.unwrap();
        assert_eq!(answer.status, status, "{chunks:?}: {}", answer.text());
        if status == StatusCode::OK {
            let length: usize = chunks.iter().sum();
            assert_eq!(answer.text(), length.to_string());
        } else {
            assert_eq!(answer.code(), "RequestTooLarge");
        }
        // Not the replica's fault.
        let stats = fixture
            .wait("the slot is free", |stats| {
                stats.pools["support"].revisions["a"].in_flight == 0
            })
            .await;
        let windows = &stats.pools["support"].revisions["a"].windows;
        assert_eq!(windows.iter().map(|window| window.failed).sum::<u64>(), 0);
    }
}

/// It begins a conversation, and keeps its place in the pool's room and its slot until its end.
#[tokio::test]
async fn a_websocket_is_a_request_of_its_pool_until_it_ends() {
    let listener = TcpListener::bind((fresh_ip(), 0)).await.unwrap();
    let mut wanted = pool().revision("a", 100, 4, &[listener.local_addr().unwrap()]);
    wanted.max_requests = 1;
    wanted.sessions = Some(sessions(KeySource::Cookie("talk".into()), &[]));
    let fixture = Fixture::with(config(wanted)).await;
    let mut client = TcpStream::connect(fixture.gateway.ingress).await.unwrap();
    let asked = format!(
        "GET {} HTTP/1.1\r\nHost: g\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
        fixture.path("/")
    );
    client.write_all(asked.as_bytes()).await.unwrap();
    let mut agent = listener.accept().await.unwrap().0;
    head(&mut agent).await;
    let agreed = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    agent.write_all(agreed.as_bytes()).await.unwrap();
    let response = head(&mut client).await.to_ascii_lowercase();
    assert!(response.starts_with("http/1.1 101"), "{response}");
    assert!(response.contains("set-cookie: talk="), "{response}");

    let refused = get(fixture.gateway.ingress, &fixture.path("/")).await;
    assert_eq!(
        (refused.status, refused.code().as_str()),
        (StatusCode::SERVICE_UNAVAILABLE, "TooManyRequests")
    );
    drop((client, agent));
    fixture
        .wait("the slot is free", |stats| {
            stats.pools["support"].revisions["a"].in_flight == 0
        })
        .await;
    let (to, path) = (fixture.gateway.ingress, fixture.path("/"));
    let next = tokio::spawn(async move { get(to, &path).await });
    let mut agent = listener.accept().await.unwrap().0;
    head(&mut agent).await;
    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
    agent.write_all(answer).await.unwrap();
    assert_eq!(next.await.unwrap().status, StatusCode::OK);
}

/// Reads up to the end of a head.
async fn head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

/// Each provider's call is counted at it; the request is told of as one of who has answered.
#[tokio::test]
async fn a_request_that_went_on_to_another_provider_is_told_of_as_that_ones() {
    let (first, second, agent) = (simulator(&[]).await, simulator(&[]).await, fresh_ip());
    let collector = Collector::start().await;
    let mut settings = settings();
    settings.observe = collector.observe.clone();
    let fixture = Fixture::start(settings).await;
    let keyless = ProviderConfig {
        secret: Some(("s".into(), "k".into())),
        ..priced(second.addr, ProviderType::Anthropic)
    };
    let providers = [
        ("main", priced(first.addr, ProviderType::OpenAI)),
        ("other", priced(second.addr, ProviderType::OpenAI)),
        ("claude", keyless),
    ];
    fixture.tell(crate::models::config(agent, &providers)).await;
    let mut client = Client::connect_from(agent, fixture.gateway.egress).await;
    first
        .script(vec![Step {
            status: 503,
            count: 1,
            model: None,
            retry_after_seconds: None,
        }])
        .unwrap();
    let chain = "/providers/main/for/sim-fast/else/other/backup/v1/chat/completions";
    let answer = client.send(ask(chain, &chat("sim-fast"))).await.unwrap();
    assert_eq!(
        (answer.status, &answer.headers["x-flotilla-provider"]),
        (StatusCode::OK, &"other".parse().unwrap())
    );
    let refused = client
        .send(ask("/providers/claude/v1/messages", &chat("m")))
        .await;
    assert_eq!(refused.unwrap().status, StatusCode::SERVICE_UNAVAILABLE);

    let lines = collector.json_lines(2).await;
    let line = |status: u16| lines.iter().find(|line| line["status"] == status).unwrap();
    assert_eq!(
        (
            &line(200)["provider"],
            &line(200)["model"],
            &line(200)["operation"]
        ),
        (&"other".into(), &"backup".into(), &"chat".into())
    );
    assert!(
        line(200)["outputTokens"]
            .as_u64()
            .is_some_and(|tokens| tokens > 0)
    );
    assert_eq!(line(503)["code"], "KeyMissing");
    let metrics = fixture.metrics().await;
    for (provider, model, error) in [("main", "sim-fast", "503"), ("other", "backup", "")] {
        let sample = format!(
            "gen_ai_client_operation_duration_seconds_count{{provider=\"{provider}\",gen_ai_operation_name=\"chat\",\
             gen_ai_provider_name=\"openai\",gen_ai_request_model=\"{model}\",error_type=\"{error}\"}} 1"
        );
        assert!(metrics.contains(&sample), "{sample} is not in\n{metrics}");
    }
}
