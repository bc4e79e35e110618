//! WebSockets: through the gateway, and out of it.

use std::time::Duration;

use crate::support::{Agent, Fixture, PoolExt as _, config, fresh_ip, full, get, pool, settings};
use flotilla_core::stats::Stats;
use flotilla_gateway::config::AppProtocol;
use http::{Response, StatusCode};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

const AGREED: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                      Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
/// A `Close` with status 1001.
const GOING_AWAY: [u8; 4] = [0x88, 0x02, 0x03, 0xE9];
const HELLO: &[u8] = b"\x81\x05hello";

/// Reads up to the end of a head.
async fn head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

async fn exactly(stream: &mut TcpStream, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).await.unwrap();
    bytes
}

fn asked(path: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: gateway\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
}

/// A fixture with one replica that the test plays, and the settings' drain cut short.
async fn fixture(app_protocol: AppProtocol) -> (Fixture, TcpListener) {
    let listener = TcpListener::bind((fresh_ip(), 0)).await.unwrap();
    let mut wanted = pool().revision("a", 100, 1, &[listener.local_addr().unwrap()]);
    wanted.request_timeout = Duration::from_millis(500);
    wanted.revisions.get_mut("a").unwrap().app_protocol = app_protocol;
    let mut settings = settings();
    // Goodbyes are said 3 s before the end.
    settings.drain_deadline = Duration::from_millis(3600);
    let fixture = Fixture::start(settings).await;
    fixture.tell(config(wanted)).await;
    (fixture, listener)
}

/// A client and an agent with a WebSocket between them.
async fn connected(fixture: &Fixture, listener: &TcpListener) -> (TcpStream, TcpStream, String) {
    let mut client = TcpStream::connect(fixture.gateway.ingress).await.unwrap();
    client
        .write_all(asked(&fixture.path("/chat")).as_bytes())
        .await
        .unwrap();
    let mut agent = listener.accept().await.unwrap().0;
    let request = head(&mut agent).await;
    // The first frame comes right behind the head.
    agent
        .write_all(&[AGREED.as_bytes(), HELLO].concat())
        .await
        .unwrap();
    let response = head(&mut client).await.to_ascii_lowercase();
    assert!(response.starts_with("http/1.1 101"), "{response}");
    assert!(
        response.contains("upgrade: websocket") && response.contains("connection: upgrade"),
        "{response}"
    );
    assert!(
        response.contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo="),
        "{response}"
    );
    assert_eq!(exactly(&mut client, HELLO.len()).await, HELLO);
    (client, agent, request)
}

fn in_flight(stats: &Stats) -> u64 {
    stats.pools["support"].revisions["a"].in_flight
}

#[tokio::test]
async fn it_passes_both_ways_holds_its_slot_and_outlives_the_requests_time() {
    for app_protocol in [AppProtocol::HTTP1, AppProtocol::H2C] {
        let (fixture, listener) = fixture(app_protocol).await;
        let (mut client, mut agent, request) = connected(&fixture, &listener).await;
        let request = request.to_ascii_lowercase();
        assert!(request.starts_with("get /chat http/1.1"), "{request}");
        assert!(
            request.contains("upgrade: websocket") && request.contains("connection: upgrade"),
            "{request}"
        );
        assert!(
            request.contains("sec-websocket-key: dghlihnhbxbszsbub25jzq=="),
            "{request}"
        );
        let stats = fixture.stats().await;
        assert_eq!(in_flight(&stats), 1);
        let window = stats.pools["support"].revisions["a"].windows.last().unwrap();
        assert_eq!(
            (window.started, window.ended, window.failed),
            (1, 1, 0),
            "the handshake counts"
        );
        // Longer than a request may take.
        tokio::time::sleep(Duration::from_millis(700)).await;
        for round in 0..3u8 {
            let frame = [0x82, 0x81, 1, 2, 3, 4, round];
            client.write_all(&frame).await.unwrap();
            assert_eq!(exactly(&mut agent, frame.len()).await, frame);
            agent.write_all(&[0x82, 0x01, round]).await.unwrap();
            assert_eq!(exactly(&mut client, 3).await, [0x82, 0x01, round]);
        }
        drop(client);
        let mut rest = Vec::new();
        agent.read_to_end(&mut rest).await.unwrap();
        assert!(rest.is_empty(), "the agent sees the end and nothing else");
        drop(agent);
        fixture
            .wait("the slot is free", |stats| in_flight(stats) == 0)
            .await;
    }
}

#[tokio::test]
async fn an_agent_may_say_no() {
    let agent = Agent::start(|_| async {
        let mut response = Response::new(full("not today"));
        *response.status_mut() = StatusCode::FORBIDDEN;
        response
    })
    .await;
    let fixture = Fixture::with(config(pool().revision("a", 100, 1, &[agent.address]))).await;
    let mut client = TcpStream::connect(fixture.gateway.ingress).await.unwrap();
    client
        .write_all(asked(&fixture.path("/")).as_bytes())
        .await
        .unwrap();
    let response = head(&mut client).await;
    assert!(response.starts_with("HTTP/1.1 403"), "{response}");
    assert_eq!(exactly(&mut client, 9).await, b"not today");
    fixture
        .wait("the slot is free", |stats| in_flight(stats) == 0)
        .await;
}

#[tokio::test]
async fn a_switch_that_nobody_asked_for_is_refused() {
    let (fixture, listener) = fixture(AppProtocol::HTTP1).await;
    let (to, path) = (fixture.gateway.ingress, fixture.path("/"));
    let asked = tokio::spawn(async move { get(to, &path).await });
    let mut agent = listener.accept().await.unwrap().0;
    head(&mut agent).await;
    agent.write_all(AGREED.as_bytes()).await.unwrap();
    let answer = asked.await.unwrap();
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (StatusCode::BAD_GATEWAY, "ReplicaBroken")
    );
    let mut rest = Vec::new();
    // Closed, however: with or without a reset.
    let _ = agent.read_to_end(&mut rest).await;
    assert!(rest.is_empty());
}

#[tokio::test]
async fn a_gateway_that_leaves_says_goodbye_between_two_frames() {
    let (fixture, listener) = fixture(AppProtocol::HTTP1).await;
    let (mut client, mut agent, _) = connected(&fixture, &listener).await;
    // Half a frame is on its way.
    agent.write_all(b"\x82\x0a01234").await.unwrap();
    assert_eq!(exactly(&mut client, 7).await, b"\x82\x0a01234");
    let left = tokio::spawn(fixture.gateway.stop());
    // The other direction is between two frames: masked, because the agent sees a client.
    let close = exactly(&mut agent, 8).await;
    assert_eq!(close[..2], [0x88, 0x82]);
    assert_eq!([close[6] ^ close[2], close[7] ^ close[3]], [0x03, 0xE9]);
    agent.write_all(b"56789").await.unwrap();
    assert_eq!(exactly(&mut client, 5).await, b"56789");
    assert_eq!(exactly(&mut client, 4).await, GOING_AWAY);
    // Both answer and close, as RFC 6455 wants it; the answers are for nobody.
    client.write_all(b"\x88\x82\0\0\0\0\x03\xe9").await.unwrap();
    agent.write_all(&GOING_AWAY).await.unwrap();
    drop((client, agent));
    assert_eq!(left.await.unwrap(), 0, "nothing was cut");
}

#[tokio::test]
async fn a_silent_one_ends_like_an_idle_connection() {
    let listener = TcpListener::bind((fresh_ip(), 0)).await.unwrap();
    let mut settings = settings();
    settings.clients.idle = Duration::from_millis(300);
    let fixture = Fixture::start(settings).await;
    let wanted = pool().revision("a", 100, 1, &[listener.local_addr().unwrap()]);
    fixture.tell(config(wanted)).await;
    let (mut client, mut agent, _) = connected(&fixture, &listener).await;
    assert_eq!(exactly(&mut client, 4).await, GOING_AWAY);
    assert_eq!(exactly(&mut agent, 8).await[..2], [0x88, 0x82]);
    drop((client, agent));
    fixture
        .wait("the slot is free", |stats| in_flight(stats) == 0)
        .await;
}
