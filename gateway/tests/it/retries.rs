//! What is sent again, and what must not be.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::support::{Agent, Client, Fixture, PoolExt as _, config, fresh_ip, pool, request};
use http::{Method, StatusCode};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// How the second request on a connection fares.
#[derive(Clone, Copy)]
enum Second {
    /// The socket is closed with the request in its buffer.
    ClosedUnread,
    /// The request is read, worked on, and then the process dies.
    ReadThenClosed,
}

async fn read_request(stream: &mut TcpStream) -> Option<()> {
    let mut seen = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let n = stream.read(&mut buffer).await.ok().filter(|n| *n > 0)?;
        seen.extend_from_slice(&buffer[..n]);
        let text = String::from_utf8_lossy(&seen);
        let (head, body) = match text.split_once("\r\n\r\n") {
            Some(parts) => parts,
            None => continue,
        };
        let length = head
            .to_ascii_lowercase()
            .lines()
            .find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
        if body.len() >= length.unwrap_or(0) {
            return Some(());
        }
    }
}

/// An agent that answers the first request of its first connection, treats the second as told, and behaves from then on.
/// Gives its address and the number of requests it has worked on.
async fn flaky(second: Second) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind((fresh_ip(), 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let worked = Arc::new(AtomicUsize::new(0));
    let count = worked.clone();
    tokio::spawn(async move {
        let mut first_connection = true;
        while let Ok((mut stream, _)) = listener.accept().await {
            let flaky = std::mem::replace(&mut first_connection, false);
            let count = count.clone();
            tokio::spawn(async move {
                let mut answered = 0;
                loop {
                    if flaky && answered == 1 {
                        stream.readable().await.unwrap();
                        if let Second::ReadThenClosed = second {
                            read_request(&mut stream).await.unwrap();
                            count.fetch_add(1, Ordering::SeqCst);
                        } else {
                            stream.peek(&mut [0]).await.unwrap();
                        }
                        return;
                    }
                    if read_request(&mut stream).await.is_none() {
                        return;
                    }
                    count.fetch_add(1, Ordering::SeqCst);
                    answered += 1;
                    stream
                        .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
                        .await
                        .unwrap();
                }
            });
        }
    });
    (address, worked)
}

async fn two_requests(second: Second, method: Method) -> (StatusCode, String, usize) {
    let (address, worked) = flaky(second).await;
    let fixture = Fixture::with(config(pool().revision("a", 100, 4, &[address]))).await;
    let mut client = Client::connect(fixture.gateway.ingress).await;
    let first = client
        .send(request(method.clone(), &fixture.path("/"), "body"))
        .await
        .unwrap();
    assert_eq!(first.status, StatusCode::OK);
    let second = client
        .send(request(method, &fixture.path("/"), "body"))
        .await
        .unwrap();
    (second.status, second.code(), worked.load(Ordering::SeqCst))
}

#[tokio::test]
async fn a_post_that_nobody_read_is_sent_again() {
    let (status, _, worked) = two_requests(Second::ClosedUnread, Method::POST).await;
    assert_eq!((status, worked), (StatusCode::OK, 2));
}

#[tokio::test]
async fn a_post_that_was_read_is_not() {
    let (status, code, worked) = two_requests(Second::ReadThenClosed, Method::POST).await;
    assert_eq!(
        (status, code.as_str(), worked),
        (StatusCode::BAD_GATEWAY, "ReplicaClosed", 2)
    );
}

#[tokio::test]
async fn an_idempotent_one_is_sent_again_either_way() {
    for second in [Second::ClosedUnread, Second::ReadThenClosed] {
        let (status, _, worked) = two_requests(second, Method::PUT).await;
        assert_eq!(status, StatusCode::OK);
        assert_eq!(
            worked,
            if matches!(second, Second::ReadThenClosed) {
                3
            } else {
                2
            }
        );
    }
}

#[tokio::test]
async fn a_replica_that_cannot_be_reached_is_passed_over() {
    let dead = TcpListener::bind((fresh_ip(), 0))
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let alive = Agent::named("alive").await;
    let fixture = Fixture::with(config(pool().revision("a", 100, 4, &[dead, alive.address]))).await;
    let mut client = Client::connect(fixture.gateway.ingress).await;
    for _ in 0..10 {
        let answer = client
            .send(request(Method::POST, &fixture.path("/"), "x"))
            .await
            .unwrap();
        assert_eq!(answer.text(), "alive");
    }
    let stats = fixture.stats().await;
    let window = stats.pools["support"].revisions["a"].windows.iter();
    assert_eq!(
        window.fold((0, 0), |(s, f), w| (s + w.started, f + w.failed)),
        (10, 0),
        "each counts once"
    );
}

#[tokio::test]
async fn with_none_in_reach_the_client_is_told_that_another_try_is_safe() {
    let dead = TcpListener::bind((fresh_ip(), 0))
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let fixture = Fixture::with(config(pool().revision("a", 100, 4, &[dead]))).await;
    let answer = crate::support::post(fixture.gateway.ingress, &fixture.path("/"), "x").await;
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (StatusCode::SERVICE_UNAVAILABLE, "ReplicaUnreachable")
    );
    assert!(answer.headers.contains_key("retry-after"));
}

/// An agent that closes each connection a millisecond or so after an answer, while the next request may be under way.
/// Gives its address and the number of requests it has worked on.
async fn impatient() -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind((fresh_ip(), 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let worked = Arc::new(AtomicUsize::new(0));
    let count = worked.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let count = count.clone();
            tokio::spawn(async move {
                stream.set_nodelay(true).unwrap();
                loop {
                    let patience = Duration::from_micros(500 + u64::from(rand::random::<u16>() % 1000));
                    match tokio::time::timeout(patience, stream.readable()).await {
                        Ok(_) => {}
                        Err(_) => return,
                    }
                    if read_request(&mut stream).await.is_none() {
                        return;
                    }
                    count.fetch_add(1, Ordering::SeqCst);
                    if stream
                        .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
                        .await
                        .is_err()
                    {
                        return;
                    }
                }
            });
        }
    });
    (address, worked)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn posts_race_with_closing_connections_and_each_is_worked_on_once() {
    const CLIENTS: usize = 8;
    const REQUESTS: usize = 250;
    let (address, worked) = impatient().await;
    let fixture = Fixture::with(config(pool().revision("a", 100, 64, &[address]))).await;
    let to = fixture.gateway.ingress;
    let clients = (0..CLIENTS).map(|_| {
        tokio::spawn(async move {
            let mut client = Client::connect(to).await;
            for number in 0..REQUESTS {
                let answer = client
                    .send(request(Method::POST, "/pools/support/", "body"))
                    .await
                    .unwrap();
                assert_eq!(
                    answer.status,
                    StatusCode::OK,
                    "request {number}: {}",
                    answer.text()
                );
                tokio::time::sleep(Duration::from_micros(u64::from(rand::random::<u16>() % 2000))).await;
            }
        })
    });
    for client in clients.collect::<Vec<_>>() {
        client.await.unwrap();
    }
    assert_eq!(worked.load(Ordering::SeqCst), CLIENTS * REQUESTS);
}
