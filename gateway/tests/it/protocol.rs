//! HTTP as it passes through.

use std::sync::Arc;
use std::time::Duration;

use crate::support::{
    Agent, Body, Client, Fixture, PoolExt as _, config, full, get, pool, request, settings,
};
use bytes::Bytes;
use futures::StreamExt as _;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, mpsc};

fn channel() -> (mpsc::UnboundedSender<&'static str>, Body) {
    let (sender, mut receiver) = mpsc::unbounded_channel();
    let stream = futures::stream::poll_fn(move |cx| receiver.poll_recv(cx));
    let frames = stream.map(|text: &'static str| Ok(Frame::data(Bytes::from(text))));
    (sender, BodyExt::boxed(StreamBody::new(frames)))
}

#[tokio::test]
async fn an_event_arrives_before_the_next_is_sent() {
    let gate = Arc::new(Semaphore::new(0));
    let inner = gate.clone();
    let agent = Agent::start(move |_| {
        let gate = inner.clone();
        async move {
            let events = futures::stream::unfold((gate, 0), |(gate, number)| async move {
                if number == 3 {
                    return None;
                }
                gate.acquire().await.unwrap().forget();
                let frame = Frame::data(Bytes::from(format!("data: {number}\n\n")));
                Some((Ok::<_, hyper::Error>(frame), (gate, number + 1)))
            });
            let mut response = Response::new(BodyExt::boxed(StreamBody::new(events)));
            response
                .headers_mut()
                .insert("content-type", HeaderValue::from_static("text/event-stream"));
            response
        }
    })
    .await;
    let fixture = Fixture::with(config(pool().revision("a", 100, 1, &[agent.address]))).await;
    let mut client = Client::connect(fixture.gateway.ingress).await;
    let response = client
        .sender
        .send_request(request(Method::GET, &fixture.path("/"), ""))
        .await
        .unwrap();
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let mut body = response.into_body();
    for number in 0..3 {
        gate.add_permits(1);
        let frame = body.frame().await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), format!("data: {number}\n\n"));
    }
    assert!(body.frame().await.is_none());
}

#[tokio::test]
async fn a_chunk_reaches_the_agent_before_the_next_is_sent() {
    let (seen, mut sees) = mpsc::unbounded_channel();
    let agent = Agent::start(move |request| {
        let seen = seen.clone();
        async move {
            let mut body = request.into_body();
            while let Some(frame) = body.frame().await {
                if let Ok(data) = frame.unwrap().into_data() {
                    seen.send(data).unwrap();
                }
            }
            Response::new(full("done"))
        }
    })
    .await;
    let fixture = Fixture::with(config(pool().revision("a", 100, 1, &[agent.address]))).await;
    let mut client = Client::connect(fixture.gateway.ingress).await;
    let (chunks, body) = channel();
    let upload = Request::post(fixture.path("/"))
        .header("host", "g")
        .body(body)
        .unwrap();
    let answer = tokio::spawn(async move { client.send(upload).await.unwrap() });
    for text in ["one", "two", "three"] {
        chunks.send(text).unwrap();
        assert_eq!(sees.recv().await.unwrap(), text);
    }
    drop(chunks);
    assert_eq!(answer.await.unwrap().text(), "done");
}

/// A body of unknown length with trailers.
fn with_trailers(text: String, trailers: HeaderMap) -> Body {
    let frames = [Ok(Frame::data(Bytes::from(text))), Ok(Frame::trailers(trailers))];
    BodyExt::boxed(StreamBody::new(futures::stream::iter(frames)))
}

/// Answers with method, headers and the length of the body; trailers, where the request has some.
async fn echo() -> Agent {
    Agent::start(|request: Request<hyper::body::Incoming>| async move {
        let (head, body) = request.into_parts();
        let whole = body.collect().await.unwrap();
        let trailers = whole.trailers().cloned();
        let text = format!("{} {:?} {}", head.method, head.headers, whole.to_bytes().len());
        let mut response = match trailers {
            Some(trailers) => Response::new(with_trailers(text, trailers)),
            None => Response::new(full(text)),
        };
        response
            .headers_mut()
            .insert("connection", HeaderValue::from_static("x-private"));
        response
            .headers_mut()
            .insert("x-private", HeaderValue::from_static("1"));
        response
            .headers_mut()
            .insert("trailer", HeaderValue::from_static("x-sum"));
        response
    })
    .await
}

#[tokio::test]
async fn lengths_and_methods_are_kept_and_hops_are_not() {
    let agent = echo().await;
    let fixture = Fixture::with(config(pool().revision("a", 100, 4, &[agent.address]))).await;
    let mut client = Client::connect(fixture.gateway.ingress).await;
    for size in [0, 1, 1000, 64 * 1024, 64 * 1024 + 1, 1_000_000] {
        let answer = client
            .send(request(Method::POST, &fixture.path("/"), vec![b'x'; size]))
            .await
            .unwrap();
        let text = answer.text();
        assert!(
            text.starts_with("POST") && text.ends_with(&format!(" {size}")),
            "{size}: {text}"
        );
        assert!(
            !text.contains("transfer-encoding") && text.contains("\"x-forwarded-for\": \"127."),
            "{text}"
        );
        assert!(!answer.headers.contains_key("x-private") && !answer.headers.contains_key("connection"));
    }
    let head = client
        .send(request(Method::HEAD, &fixture.path("/"), ""))
        .await
        .unwrap();
    assert!(head.body.is_empty() && head.headers.contains_key("content-length"));
}

#[tokio::test]
async fn chunks_and_trailers_pass_both_ways() {
    let agent = echo().await;
    let fixture = Fixture::with(config(pool().revision("a", 100, 4, &[agent.address]))).await;
    let mut trailers = HeaderMap::new();
    trailers.insert("x-sum", HeaderValue::from_static("42"));
    let body = with_trailers("abc".to_owned(), trailers);
    let upload = Request::post(fixture.path("/"))
        .header("host", "g")
        .header("te", "trailers");
    let upload = upload
        .header("trailer", "x-sum")
        .header("transfer-encoding", "chunked")
        .body(body)
        .unwrap();
    let mut client = Client::connect(fixture.gateway.ingress).await;
    let response = client.sender.send_request(upload).await.unwrap();
    let whole = response.into_body().collect().await.unwrap();
    assert_eq!(whole.trailers().unwrap()["x-sum"], "42");
    let text = String::from_utf8(whole.to_bytes().to_vec()).unwrap();
    assert!(
        text.contains("\"transfer-encoding\": \"chunked\"") && text.ends_with(" 3"),
        "{text}"
    );
}

#[tokio::test]
async fn http2_with_prior_knowledge_comes_in() {
    let agent = echo().await;
    let fixture = Fixture::with(config(pool().revision("a", 100, 4, &[agent.address]))).await;
    let stream = TcpStream::connect(fixture.gateway.ingress).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    let connection = tokio::spawn(connection);
    for _ in 0..3 {
        let request = Request::post(format!("http://support.apps{}", "/x"))
            .body(full("hello"))
            .unwrap();
        let response = sender.send_request(request).await.unwrap();
        assert_eq!(
            (response.status(), response.version()),
            (StatusCode::OK, Version::HTTP_2)
        );
        let text = response.into_body().collect().await.unwrap().to_bytes();
        let text = String::from_utf8(text.to_vec()).unwrap();
        assert!(
            text.contains("\"host\": \"support.apps\"") && text.ends_with(" 5"),
            "{text}"
        );
    }
    fixture.gateway.drain("test");
    // GOAWAY ends the connection without an error.
    connection.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_client_that_takes_nothing_frees_its_slot_at_the_deadline() {
    let agent = Agent::start(|_| async { Response::new(full(vec![b'x'; 8_000_000])) }).await;
    let mut wanted = pool().revision("a", 100, 4, &[agent.address]);
    wanted.request_timeout = Duration::from_millis(400);
    let fixture = Fixture::with(config(wanted)).await;
    let stream = TcpStream::connect(fixture.gateway.ingress).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    let _connection = tokio::spawn(connection);
    let request = Request::get("http://support.apps/x").body(full("")).unwrap();
    let response = sender.send_request(request).await.unwrap();
    let idle = |stats: &flotilla_core::stats::Stats| stats.pools["support"].revisions["a"].in_flight == 0;
    assert!(!idle(&fixture.stats().await), "it still sends");
    let stats = fixture.wait("the slot is free", idle).await;
    assert_eq!(
        stats.pools["support"].revisions["a"]
            .windows
            .iter()
            .map(|window| window.failed)
            .sum::<u64>(),
        1
    );
    assert!(
        response.into_body().collect().await.is_err(),
        "a body that ends early must not look whole"
    );
}

#[tokio::test]
async fn upgrades_are_refused_clearly_but_h2c_is_ignored() {
    let agent = echo().await;
    let fixture = Fixture::with(config(pool().revision("a", 100, 4, &[agent.address]))).await;
    let upgrade = |to: &str| {
        let request = Request::get(fixture.path("/")).header("host", "g");
        request
            .header("connection", "upgrade")
            .header("upgrade", to)
            .body(full(""))
            .unwrap()
    };
    let mut client = Client::connect(fixture.gateway.ingress).await;
    assert_eq!(client.send(upgrade("h2c")).await.unwrap().status, StatusCode::OK);
    let mut client = Client::connect(fixture.gateway.ingress).await;
    let answer = client.send(upgrade("foo/2")).await.unwrap();
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (StatusCode::NOT_IMPLEMENTED, "UpgradeNotSupported")
    );
}

#[tokio::test]
async fn a_slow_head_is_cut_and_an_idle_connection_is_not() {
    let agent = Agent::named("a").await;
    let mut settings = settings();
    settings.clients.head = Duration::from_millis(200);
    let fixture = Fixture::start(settings).await;
    fixture
        .tell(config(pool().revision("a", 100, 4, &[agent.address])))
        .await;
    let mut slow = TcpStream::connect(fixture.gateway.ingress).await.unwrap();
    let mut idle = Client::connect(fixture.gateway.ingress).await;
    assert_eq!(idle.get(&fixture.path("/")).await.text(), "a");
    slow.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: ")
        .await
        .unwrap();
    let mut rest = Vec::new();
    let cut = tokio::time::timeout(Duration::from_secs(2), slow.read_to_end(&mut rest)).await;
    assert!(cut.is_ok(), "the slow one is still connected");
    assert_eq!(idle.get(&fixture.path("/")).await.text(), "a");
}

#[tokio::test]
async fn ambiguous_framing_is_refused() {
    let agent = Agent::named("a").await;
    let fixture = Fixture::with(config(pool().revision("a", 100, 4, &[agent.address]))).await;
    for head in [
        "POST /pools/support/ HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        "POST /pools/support/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        "GET /pools/support/ HTTP/1.1\r\nHost: x\r\nBad Name: 1\r\n\r\n",
        "POST /pools/support/ HTTP/1.1\r\nHost: x\r\nContent-Length: +3\r\n\r\nabc",
    ] {
        let mut stream = TcpStream::connect(fixture.gateway.ingress).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        assert!(
            answer.starts_with(b"HTTP/1.1 400"),
            "{head:?}: {:?}",
            String::from_utf8_lossy(&answer)
        );
    }
    assert_eq!(agent.hits(), 0);
    assert_eq!(
        get(fixture.gateway.ingress, &fixture.path("/")).await.status,
        StatusCode::OK
    );
}

/// Answers with the length of the body.
async fn swallow() -> Agent {
    Agent::start(|request: Request<hyper::body::Incoming>| async move {
        let body = request.into_body().collect().await;
        let length = body.map_or(0, |body| body.to_bytes().len());
        Response::new(full(length.to_string()))
    })
    .await
}

/// A client that is told no while it still sends must be able to read that.
#[tokio::test]
async fn a_refusal_is_read_by_a_client_that_is_still_sending() {
    let agent = swallow().await;
    let mut wanted = pool().revision("a", 100, 4, &[agent.address]);
    wanted.http.max_request_bytes = 1_000_000;
    let fixture = Fixture::with(config(wanted)).await;
    for _ in 0..10 {
        let mut client = Client::connect(fixture.gateway.ingress).await;
        let answer = client
            .send(request(Method::POST, &fixture.path("/"), vec![b'x'; 5_000_000]))
            .await
            .expect("an answer and no reset");
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (StatusCode::PAYLOAD_TOO_LARGE, "RequestTooLarge")
        );
        assert!(
            answer.text().contains("spec.traffic.maxRequestBytes"),
            "{}",
            answer.text()
        );
    }
    // hyper's client stops sending when it is answered; one that does not is not waited for for ever.
    let mut stubborn = TcpStream::connect(fixture.gateway.ingress).await.unwrap();
    let head = "POST /pools/support/ HTTP/1.1\r\nHost: x\r\nContent-Length: 900000000\r\n\r\n";
    stubborn.write_all(head.as_bytes()).await.unwrap();
    let sending = async {
        let block = vec![b'x'; 64 * 1024];
        while stubborn.write_all(&block).await.is_ok() {}
    };
    let ended = tokio::time::timeout(Duration::from_secs(20), sending).await;
    assert!(ended.is_ok(), "it may still send");
    assert_eq!(agent.hits(), 0);
    assert_eq!(
        get(fixture.gateway.ingress, &fixture.path("/")).await.status,
        StatusCode::OK
    );
}

/// Exactly the limit is allowed.
#[tokio::test]
async fn the_limit_of_a_body_is_inclusive() {
    let agent = swallow().await;
    let mut wanted = pool().revision("a", 100, 4, &[agent.address]);
    wanted.http.max_request_bytes = 2_000;
    let fixture = Fixture::with(config(wanted)).await;
    let chunked = |size: usize| -> Request<Body> {
        let frames = futures::stream::iter([Ok(Frame::data(vec![b'x'; size].into()))]);
        Request::post(fixture.path("/"))
            .header("host", "g")
            .body(BodyExt::boxed(StreamBody::new(frames)))
            .unwrap()
    };
    let sized = |size: usize| request(Method::POST, &fixture.path("/"), vec![b'x'; size]);
    for (request, status, answered) in [
        (sized(2_000), StatusCode::OK, Some("2000")),
        (sized(2_001), StatusCode::PAYLOAD_TOO_LARGE, None),
        (chunked(2_000), StatusCode::OK, Some("2000")),
        (chunked(2_001), StatusCode::PAYLOAD_TOO_LARGE, None),
    ] {
        let mut client = Client::connect(fixture.gateway.ingress).await;
        let answer = client.send(request).await.unwrap();
        assert_eq!(answer.status, status);
        assert!(answered.is_none_or(|length| answer.text() == length));
    }
}
