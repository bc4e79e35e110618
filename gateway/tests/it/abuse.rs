//! Clients that mean no good, or know no better: the gateway goes on serving others, with bounded memory, and an agent never
//! sees a request that the client could pass off as two.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::support::{Agent, Client, Fixture, PoolExt as _, config, full, get, pool, settings};
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// The big figures of the issue instead of samples.
fn full_size() -> bool {
    std::env::var_os("FLOTILLA_FULL").is_some()
}

/// An agent that notes each request as it understood it: method, path, body.
async fn noting() -> (Agent, Arc<Mutex<Vec<String>>>) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let notes = seen.clone();
    let agent = Agent::start(move |request: Request<Incoming>| {
        let notes = notes.clone();
        async move {
            let (head, body) = request.into_parts();
            let body = body
                .collect()
                .await
                .map(|body| body.to_bytes())
                .unwrap_or_default();
            let text = String::from_utf8_lossy(&body).into_owned();
            notes
                .lock()
                .unwrap()
                .push(format!("{} {} {text}", head.method, head.uri));
            Response::new(full("ok"))
        }
    })
    .await;
    (agent, seen)
}

async fn one_agent(agent: &Agent) -> Fixture {
    Fixture::with(config(pool().revision("a", 100, 1000, &[agent.address]))).await
}

/// Sends `bytes` and reads until the gateway closes, or until `quiet` has passed without anything.
async fn raw(fixture: &Fixture, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(fixture.gateway.ingress).await.unwrap();
    // It may be closed before all is taken.
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(Ok(count)) = tokio::time::timeout(Duration::from_millis(400), stream.read(&mut buffer)).await
    {
        if count == 0 {
            break;
        }
        answer.extend_from_slice(&buffer[..count]);
    }
    String::from_utf8_lossy(&answer).into_owned()
}

fn statuses(answer: &str) -> Vec<&str> {
    answer
        .lines()
        .filter_map(|line| line.strip_prefix("HTTP/1.1 ")?.get(..3))
        .collect()
}

async fn still_serves(fixture: &Fixture) {
    let answer = get(fixture.gateway.ingress, &fixture.path("/ping")).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
}

#[tokio::test]
async fn what_two_servers_could_read_differently_is_refused() {
    let (agent, seen) = noting().await;
    let fixture = one_agent(&agent).await;
    for (what, head) in [
        (
            "lengths that differ",
            "Host: x\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        ),
        ("a list of lengths", "Host: x\r\nContent-Length: 3, 4\r\n\r\nabcd"),
        ("a signed length", "Host: x\r\nContent-Length: +3\r\n\r\nabc"),
        (
            "a hexadecimal length",
            "Host: x\r\nContent-Length: 0x3\r\n\r\nabc",
        ),
        (
            "a length beyond all bounds",
            "Host: x\r\nContent-Length: 99999999999999999999\r\n\r\n",
        ),
        (
            "chunked not last",
            "Host: x\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        ),
        (
            "an unknown coding",
            "Host: x\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        ),
        (
            "a space before the colon",
            "Host: x\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        ),
        (
            "a folded line",
            "Host: x\r\nX-A: 1\r\n Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        ),
        ("a name with a space", "Host: x\r\nBad Name: 1\r\n\r\n"),
        ("an empty name", "Host: x\r\n: 1\r\n\r\n"),
        ("a bare CR in a value", "Host: x\r\nX-A: 1\rX-B: 2\r\n\r\n"),
        ("a NUL in a value", "Host: x\r\nX-A: 1\0\r\n\r\n"),
        ("two hosts", "Host: x\r\nHost: y\r\n\r\n"),
        ("no host", "X-A: 1\r\n\r\n"),
    ] {
        let answer = raw(
            &fixture,
            format!("POST /pools/support/bad HTTP/1.1\r\n{head}").as_bytes(),
        )
        .await;
        assert_eq!(statuses(&answer).first(), Some(&"400"), "{what}: {answer}");
    }
    for (what, head) in [
        (
            "chunks in HTTP/1.0",
            "POST /pools/support/bad HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        ),
        (
            "a version that is none",
            "GET /pools/support/bad HTTP/1.9x\r\nHost: x\r\n\r\n",
        ),
        (
            "a target with a space",
            "GET /pools/support/b ad HTTP/1.1\r\nHost: x\r\n\r\n",
        ),
        (
            "no HTTP at all",
            "\x16\x03\x01\x02\x00\x01\x00\x01\u{fc}\x03\x03 nonsense\r\n\r\n",
        ),
    ] {
        let answer = raw(&fixture, head.as_bytes()).await;
        assert!(
            statuses(&answer).iter().all(|status| *status == "400"),
            "{what}: {answer}"
        );
    }
    assert_eq!(
        *seen.lock().unwrap(),
        Vec::<String>::new(),
        "the agent has seen none of them"
    );
    still_serves(&fixture).await;
}

/// What may be read in one way only is read so, and written anew: nothing behind it becomes a request of its own.
#[tokio::test]
async fn what_is_let_through_is_one_request_for_the_agent_too() {
    let (agent, seen) = noting().await;
    let fixture = one_agent(&agent).await;
    const HIDDEN: &str = "GET /hidden HTTP/1.1\r\nHost: x\r\n\r\n";
    for (what, rest, expected) in [
        // RFC 9112 section 6.3: the coding wins, and the connection is closed.
        (
            "a length and chunks",
            format!("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n{HIDDEN}"),
            "POST /one abc",
        ),
        (
            "chunks and a length",
            format!("Transfer-Encoding: chunked\r\nContent-Length: 50\r\n\r\n3\r\nabc\r\n0\r\n\r\n{HIDDEN}"),
            "POST /one abc",
        ),
        (
            "the same length twice",
            "Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc".to_owned(),
            "POST /one abc",
        ),
        (
            "a body that looks like a request",
            format!("Content-Length: {}\r\n\r\n{HIDDEN}", HIDDEN.len()),
            "POST /one GET /hidden HTTP/1.1\r\nHost: x\r\n\r\n",
        ),
        (
            "a length that Connection names",
            "Connection: content-length\r\nContent-Length: 3\r\n\r\nabc".to_owned(),
            "POST /one abc",
        ),
        (
            "an extension of a chunk",
            "Transfer-Encoding: chunked\r\n\r\n3;a=b\r\nabc\r\n0\r\n\r\n".to_owned(),
            "POST /one abc",
        ),
        (
            "bare line feeds",
            "Content-Length: 3\n\nabc".to_owned(),
            "POST /one abc",
        ),
    ] {
        seen.lock().unwrap().clear();
        let request = format!("POST /pools/support/one HTTP/1.1\r\nHost: x\r\n{rest}");
        let answer = raw(&fixture, request.as_bytes()).await;
        let seen = seen.lock().unwrap().clone();
        match statuses(&answer).as_slice() {
            ["200"] => assert_eq!(seen, [expected], "{what}"),
            ["400"] => assert_eq!(seen, Vec::<String>::new(), "{what}"),
            other => panic!("{what}: {other:?}, {seen:?}, {answer}"),
        }
    }
    still_serves(&fixture).await;
}

#[tokio::test]
async fn broken_chunks_end_the_connection_and_no_request_is_made_of_the_rest() {
    let (agent, seen) = noting().await;
    let fixture = one_agent(&agent).await;
    for chunks in [
        "x\r\nabc\r\n0\r\n\r\n",
        "-3\r\nabc\r\n0\r\n\r\n",
        "fffffffffffffffff\r\nabc\r\n0\r\n\r\n",
        "3\r\nabcdef\r\n0\r\n\r\nGET /pools/support/hidden HTTP/1.1\r\nHost: x\r\n\r\n",
        "3\nabc\n0\n\nGET /pools/support/hidden HTTP/1.1\r\nHost: x\r\n\r\n",
        "0x3\r\nabc\r\n0\r\n\r\n",
    ] {
        let request = format!(
            "POST /pools/support/chunks HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}"
        );
        let answer = raw(&fixture, request.as_bytes()).await;
        assert!(
            statuses(&answer).iter().all(|status| *status != "200"),
            "{chunks:?}: {answer}"
        );
    }
    fixture
        .wait("all have ended", |stats| {
            stats.pools["support"].revisions["a"].in_flight == 0
        })
        .await;
    let seen = seen.lock().unwrap().clone();
    assert!(!seen.iter().any(|request| request.contains("hidden")), "{seen:?}");
    still_serves(&fixture).await;
}

#[tokio::test]
async fn huge_heads_are_refused() {
    let (agent, seen) = noting().await;
    let fixture = one_agent(&agent).await;
    let head = |rest: String| format!("GET /pools/support/ HTTP/1.1\r\nHost: x\r\n{rest}\r\n\r\n");
    let one = head(format!("X-Long: {}", "x".repeat(300_000)));
    let many = head(vec!["X-Many: 1"; 200].join("\r\n"));
    let no_end = format!(
        "GET /pools/support/ HTTP/1.1\r\nX-Long: {}",
        "x".repeat(2_000_000)
    );
    for (what, bytes, status) in [
        ("one field", one, "431"),
        ("many fields", many, "431"),
        ("no end", no_end, "431"),
    ] {
        let answer = raw(&fixture, bytes.as_bytes()).await;
        assert_eq!(statuses(&answer), [status], "{what}: {answer}");
    }
    let target = format!(
        "GET /pools/support/{} HTTP/1.1\r\nHost: x\r\n\r\n",
        "x".repeat(70_000)
    );
    assert_eq!(statuses(&raw(&fixture, target.as_bytes()).await), ["414"]);
    assert!(seen.lock().unwrap().is_empty());
    still_serves(&fixture).await;
}

#[tokio::test]
async fn many_slow_heads_and_bodies_hold_up_nobody() {
    let (agent, _) = noting().await;
    let mut settings = settings();
    settings.clients.head = Duration::from_millis(800);
    let fixture = Fixture::start(settings).await;
    let mut wanted = pool().revision("a", 100, 4, &[agent.address]);
    wanted.request_timeout = Duration::from_secs(2);
    fixture.tell(config(wanted)).await;
    let mut slow = Vec::new();
    for number in 0..200 {
        let mut stream = TcpStream::connect(fixture.gateway.ingress).await.unwrap();
        // Held bodies take no slot: a client that promises little and sends less holds up only itself.
        let begun: &[u8] = if number % 2 == 0 {
            b"GET /pools/support/ HTTP/1.1\r\nHost: x\r\nX-Slow: "
        } else {
            b"POST /pools/support/ HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nx"
        };
        stream.write_all(begun).await.unwrap();
        slow.push(stream);
    }
    for _ in 0..20 {
        still_serves(&fixture).await;
    }
    // And each is ended, without any byte more from it.
    for mut stream in slow {
        let mut rest = Vec::new();
        let ended = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut rest)).await;
        assert!(ended.is_ok(), "a slow one is still connected");
    }
    still_serves(&fixture).await;
}

#[tokio::test]
async fn half_closed_connections_leave_nothing_behind() {
    let agent = Agent::start(|_| async {
        std::future::pending::<()>().await;
        Response::new(full(""))
    })
    .await;
    let fixture = one_agent(&agent).await;
    for begun in [
        "",
        "GET /pools/supp",
        "GET /pools/support/ HTTP/1.1\r\nHost: x\r\n",
        "GET /pools/support/ HTTP/1.1\r\nHost: x\r\n\r\n",
        "POST /pools/support/ HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc",
        "POST /pools/support/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ] {
        let mut stream = TcpStream::connect(fixture.gateway.ingress).await.unwrap();
        stream.write_all(begun.as_bytes()).await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        stream.shutdown().await.unwrap();
        let mut rest = Vec::new();
        let ended = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut rest)).await;
        assert!(ended.is_ok(), "still open after {begun:?}");
    }
    fixture
        .wait("the slots are free", |stats| {
            stats.pools["support"].revisions["a"].in_flight == 0
        })
        .await;
}

/// Resident memory of this process, in bytes.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = statm.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

/// Files that this process may have open.
fn open_files() -> usize {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap();
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))
        .unwrap();
    line.split_whitespace()
        .next()
        .unwrap()
        .parse()
        .unwrap_or(1_000_000)
}

#[tokio::test]
async fn idle_connections_cost_little_and_hold_up_nobody() {
    let count = if full_size() {
        ((open_files() - 500) / 2).min(10_000)
    } else {
        1_000
    };
    let (agent, _) = noting().await;
    let mut settings = settings();
    settings.max_connections = 20_000;
    let fixture = Fixture::start(settings).await;
    fixture
        .tell(config(pool().revision("a", 100, 4, &[agent.address])))
        .await;
    still_serves(&fixture).await;
    let before = resident();
    let mut idle = Vec::with_capacity(count);
    for number in 0..count {
        let mut stream = TcpStream::connect(fixture.gateway.ingress).await.unwrap();
        // Some have asked for something, some have begun to, some have not.
        match number % 4 {
            0 => {
                stream
                    .write_all(b"GET /pools/support/ HTTP/1.1\r\nHost: x\r\n\r\n")
                    .await
                    .unwrap();
                let mut answer = [0; 15];
                stream.read_exact(&mut answer).await.unwrap();
                assert_eq!(&answer, b"HTTP/1.1 200 OK");
            }
            1 => stream
                .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
                .await
                .unwrap(),
            2 => stream.write_all(b"GET ").await.unwrap(),
            _ => {}
        }
        idle.push(stream);
    }
    for _ in 0..20 {
        still_serves(&fixture).await;
    }
    let each = resident().saturating_sub(before) / count;
    println!("{count} idle connections, both ends in this process: {each} bytes each");
    assert!(each < 64 * 1024, "{each} bytes for each connection, both ends");
    drop(idle);
    still_serves(&fixture).await;
}

#[tokio::test]
async fn connections_beyond_the_limit_wait_and_are_served_later() {
    let (agent, _) = noting().await;
    let mut settings = settings();
    settings.max_connections = 10;
    let fixture = Fixture::start(settings).await;
    fixture
        .tell(config(pool().revision("a", 100, 4, &[agent.address])))
        .await;
    let mut open = Vec::new();
    for _ in 0..10 {
        let mut client = Client::connect(fixture.gateway.ingress).await;
        assert_eq!(client.get(&fixture.path("/")).await.status, StatusCode::OK);
        open.push(client);
    }
    let (to, path) = (fixture.gateway.ingress, fixture.path("/late"));
    let late = tokio::spawn(async move { get(to, &path).await.status });
    // The operator and Prometheus are not among the crowd.
    assert_eq!(fixture.readyz().await.0, StatusCode::OK);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!late.is_finished());
    drop(open.pop());
    assert_eq!(late.await.unwrap(), StatusCode::OK);
}

#[tokio::test]
async fn streams_reset_in_haste_hold_up_nobody() {
    let agent = Agent::start(|_| async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        Response::new(full("ok"))
    })
    .await;
    let fixture = one_agent(&agent).await;
    let stream = TcpStream::connect(fixture.gateway.ingress).await.unwrap();
    let (mut client, connection) = h2::client::handshake(stream).await.unwrap();
    let connection = tokio::spawn(connection);
    for _ in 0..3_000 {
        let Ok(ready) = client.ready().await else { break };
        client = ready;
        let request = Request::get(format!("http://g{}", fixture.path("/")))
            .body(())
            .unwrap();
        let Ok((_response, mut send)) = client.send_request(request, false) else {
            break;
        };
        send.send_reset(h2::Reason::CANCEL);
    }
    for _ in 0..10 {
        still_serves(&fixture).await;
    }
    connection.abort();
    fixture
        .wait("the slots are free", |stats| {
            stats.pools["support"].revisions["a"].in_flight == 0
        })
        .await;
}
