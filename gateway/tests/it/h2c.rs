//! HTTP/2 without TLS: to agents, and through and through.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::support::{
    Agent, Body, Client, Fixture, PoolExt as _, config, fresh_ip, full, pool, request, settings,
};
use bytes::Bytes;
use flotilla_gateway::config::{AppProtocol, PoolConfig};
use futures::StreamExt as _;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http2::SendRequest;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc};

/// An agent that speaks HTTP/2 only, and counts its connections.
struct H2cAgent {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl H2cAgent {
    async fn start<F, R>(answer: F) -> Self
    where
        F: Fn(Request<Incoming>) -> R + Send + Sync + 'static,
        R: Future<Output = Response<Body>> + Send + 'static,
    {
        let listener = TcpListener::bind((fresh_ip(), 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let (answer, counted) = (Arc::new(answer), connections.clone());
        let task = tokio::spawn(async move {
            loop {
                let stream = listener.accept().await.unwrap().0;
                stream.set_nodelay(true).unwrap();
                counted.fetch_add(1, Ordering::SeqCst);
                let answer = answer.clone();
                let service = service_fn(move |request| {
                    let response = answer(request);
                    async move { Ok::<_, Infallible>(response.await) }
                });
                tokio::spawn(
                    hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                        .serve_connection(TokioIo::new(stream), service),
                );
            }
        });
        Self {
            address,
            connections,
            task,
        }
    }
}

impl Drop for H2cAgent {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn h2c(agents: &[SocketAddr]) -> PoolConfig {
    let mut pool = pool().revision("a", 100, 1000, agents);
    pool.revisions.get_mut("a").unwrap().app_protocol = AppProtocol::H2C;
    pool
}

async fn h2_client(to: SocketAddr) -> SendRequest<Body> {
    let stream = TcpStream::connect(to).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    tokio::spawn(connection);
    sender
}

/// Tells what it has seen.
async fn echo() -> H2cAgent {
    H2cAgent::start(|request: Request<Incoming>| async move {
        let (head, body) = request.into_parts();
        assert_eq!(head.version, Version::HTTP_2);
        let bytes = body.collect().await.unwrap().to_bytes();
        let text = format!("{} {} {} {:?}", head.method, head.uri, bytes.len(), head.headers);
        Response::new(full(text))
    })
    .await
}

#[tokio::test]
async fn an_idle_connection_ends_and_one_with_a_stream_does_not() {
    let agent = Agent::start(|request: Request<Incoming>| async move {
        if request.uri().path() == "/slow" {
            tokio::time::sleep(Duration::from_millis(1_500)).await;
        }
        Response::new(full("done"))
    })
    .await;
    let mut settings = settings();
    settings.clients.idle = Duration::from_millis(400);
    let fixture = Fixture::start(settings).await;
    fixture
        .tell(config(pool().revision("a", 100, 10, &[agent.address])))
        .await;
    let mut client = h2_client(fixture.gateway.ingress).await;
    for path in ["/", "/slow", "/"] {
        let request = Request::get(format!("http://support{path}"))
            .body(full(""))
            .unwrap();
        let response = client.send_request(request).await.unwrap();
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "done");
    }
    for attempt in 0.. {
        if client.is_closed() {
            break;
        }
        assert!(attempt < 500, "it stays open");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn clients_of_either_version_share_few_connections() {
    let agent = echo().await;
    let fixture = Fixture::with(config(h2c(&[agent.address]))).await;
    let mut client = Client::connect(fixture.gateway.ingress).await;
    for size in [0, 10, 200_000] {
        let answer = client
            .send(request(Method::POST, &fixture.path("/x?y=z"), vec![b'x'; size]))
            .await
            .unwrap();
        let text = answer.text();
        assert!(
            text.starts_with(&format!("POST http://gateway/x?y=z {size} ")),
            "{text}"
        );
        assert!(
            !text.contains("transfer-encoding") && !text.contains("\"host\""),
            "{text}"
        );
        assert!(text.contains("x-forwarded-for"), "{text}");
    }
    let sender = h2_client(fixture.gateway.ingress).await;
    let many = (0..90).map(|number| {
        let mut sender = sender.clone();
        async move {
            let request = Request::get(format!("http://support/{number}"))
                .body(full(""))
                .unwrap();
            let response = sender.send_request(request).await.unwrap();
            let text = response.into_body().collect().await.unwrap().to_bytes();
            assert!(
                text.starts_with(format!("GET http://support/{number} 0").as_bytes()),
                "{text:?}"
            );
        }
    });
    futures::future::join_all(many).await;
    // One for each worker.
    let connections = agent.connections.load(Ordering::SeqCst);
    assert!(connections <= settings().workers, "{connections}");
}

#[tokio::test]
async fn more_requests_than_a_connection_takes_get_another() {
    let gate = Arc::new(Notify::new());
    let (inside, mut entered) = mpsc::unbounded_channel();
    let inner = gate.clone();
    let agent = H2cAgent::start(move |_| {
        let (gate, inside) = (inner.clone(), inside.clone());
        async move {
            let opened = gate.notified();
            inside.send(()).unwrap();
            opened.await;
            Response::new(full("done"))
        }
    })
    .await;
    // A request that waits too long for a connection opens one of its own: on a busy machine a second is soon over.
    let patience = Duration::from_secs(60);
    let mut settings = settings();
    settings.agents.connect = patience;
    let fixture = Fixture::start(settings).await;
    let mut pool = h2c(&[agent.address]);
    pool.request_timeout = patience;
    fixture.tell(config(pool)).await;
    let (sender, path) = (h2_client(fixture.gateway.ingress).await, fixture.path("/"));
    let waiting: Vec<_> = (0..150)
        .map(|_| {
            let mut sender = sender.clone();
            let request = Request::get(format!("http://g{path}")).body(full("")).unwrap();
            tokio::spawn(async move { sender.send_request(request).await.unwrap().status() })
        })
        .collect();
    for _ in 0..150 {
        entered.recv().await.unwrap();
    }
    assert_eq!(agent.connections.load(Ordering::SeqCst), 2);
    gate.notify_waiters();
    for waiting in waiting {
        assert_eq!(waiting.await.unwrap(), StatusCode::OK);
    }
}

/// A body that is fed by hand.
fn fed() -> (mpsc::UnboundedSender<Frame<Bytes>>, Body) {
    let (sender, mut receiver) = mpsc::unbounded_channel();
    let frames = futures::stream::poll_fn(move |cx| receiver.poll_recv(cx)).map(Ok);
    (sender, http_body_util::BodyExt::boxed(StreamBody::new(frames)))
}

#[tokio::test]
async fn a_call_like_grpcs_goes_both_ways_at_once_and_ends_with_trailers() {
    let agent = H2cAgent::start(|request: Request<Incoming>| async move {
        assert_eq!(request.headers()["te"], "trailers");
        let mut trailers = HeaderMap::new();
        if request.uri().path() == "/refused" {
            // All trailers, no body.
            let mut response = Response::new(full(""));
            response
                .headers_mut()
                .insert("grpc-status", HeaderValue::from_static("12"));
            return response;
        }
        trailers.insert("grpc-status", HeaderValue::from_static("0"));
        let echo = request
            .into_body()
            .into_data_stream()
            .map(|data| data.map(Frame::data));
        let end = futures::stream::iter([Ok(Frame::trailers(trailers))]);
        Response::new(http_body_util::BodyExt::boxed(StreamBody::new(echo.chain(end))))
    })
    .await;
    let fixture = Fixture::with(config(h2c(&[agent.address]))).await;
    let mut sender = h2_client(fixture.gateway.ingress).await;
    let call = |path: &str, body| {
        Request::post(format!("http://support{path}"))
            .header("te", "trailers")
            .header("content-type", "application/grpc")
            .body(body)
            .unwrap()
    };
    let (feed, body) = fed();
    let response = sender.send_request(call("/echo", body)).await.unwrap();
    let mut body = response.into_body();
    for text in ["one", "two", "three"] {
        feed.send(Frame::data(Bytes::from(text))).unwrap();
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), text);
    }
    drop(feed);
    let trailers = body.frame().await.unwrap().unwrap().into_trailers().unwrap();
    assert_eq!(trailers["grpc-status"], "0");
    let (_feed, body) = fed();
    let response = sender.send_request(call("/refused", body)).await.unwrap();
    assert_eq!(response.headers()["grpc-status"], "12");
    assert!(
        hyper::body::Body::is_end_stream(response.body()),
        "the head ends the stream"
    );
}

#[tokio::test]
async fn a_stream_that_was_refused_goes_to_the_next_replica() {
    let listener = TcpListener::bind((fresh_ip(), 0)).await.unwrap();
    let refusing = listener.local_addr().unwrap();
    let refused = Arc::new(AtomicUsize::new(0));
    let counted = refused.clone();
    tokio::spawn(async move {
        loop {
            let stream = listener.accept().await.unwrap().0;
            let counted = counted.clone();
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(stream).await.unwrap();
                while let Some(Ok((_, mut respond))) = connection.accept().await {
                    counted.fetch_add(1, Ordering::SeqCst);
                    respond.send_reset(h2::Reason::REFUSED_STREAM);
                }
            });
        }
    });
    let good = echo().await;
    let fixture = Fixture::with(config(h2c(&[refusing, good.address]))).await;
    let mut client = Client::connect(fixture.gateway.ingress).await;
    for _ in 0..4 {
        let answer = client
            .send(request(Method::POST, &fixture.path("/"), "once"))
            .await
            .unwrap();
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
    }
    assert!(refused.load(Ordering::SeqCst) > 0);
}

#[tokio::test]
async fn a_client_that_goes_is_gone_for_the_agent_too() {
    struct Told(Arc<Notify>);
    impl Drop for Told {
        fn drop(&mut self) {
            self.0.notify_one();
        }
    }
    let (gone, (inside, mut entered)) = (Arc::new(Notify::new()), mpsc::unbounded_channel());
    let told = gone.clone();
    let never = move |_: Request<Incoming>| {
        let (told, inside) = (Told(told.clone()), inside.clone());
        async move {
            let _told = told;
            inside.send(()).unwrap();
            std::future::pending::<Response<Body>>().await
        }
    };
    let h2 = H2cAgent::start(never.clone()).await;
    let h1 = Agent::start(never).await;
    for (address, app_protocol) in [(h2.address, AppProtocol::H2C), (h1.address, AppProtocol::HTTP1)] {
        let mut wanted = h2c(&[address]);
        wanted.revisions.get_mut("a").unwrap().app_protocol = app_protocol;
        let fixture = Fixture::with(config(wanted)).await;
        let path = fixture.path("/");
        // One that speaks HTTP/1.1 and closes its connection, one that resets a stream of HTTP/2.
        let client = Client::connect(fixture.gateway.ingress).await;
        let mut sender = client.sender;
        let asked = tokio::spawn({
            let request = request(Method::GET, &path, "");
            async move { sender.send_request(request).await.map(drop) }
        });
        entered.recv().await.unwrap();
        asked.abort();
        client.task.abort();
        gone.notified().await;
        let mut sender = h2_client(fixture.gateway.ingress).await;
        let request = Request::get(format!("http://g{path}")).body(full("")).unwrap();
        let asked = tokio::spawn(async move { sender.send_request(request).await.map(drop) });
        entered.recv().await.unwrap();
        asked.abort();
        gone.notified().await;
    }
}

#[tokio::test]
async fn a_body_that_grows_too_long_is_the_clients_mistake() {
    let (h1, h2) = (
        Agent::start(|request: Request<Incoming>| async move {
            let _ = request.into_body().collect().await;
            Response::new(full("done"))
        })
        .await,
        echo().await,
    );
    for (address, app_protocol) in [(h2.address, AppProtocol::H2C), (h1.address, AppProtocol::HTTP1)] {
        let mut wanted = h2c(&[address]);
        wanted.http.max_request_bytes = 100_000;
        wanted.revisions.get_mut("a").unwrap().app_protocol = app_protocol;
        let fixture = Fixture::with(config(wanted)).await;
        let (feed, body) = fed();
        let upload = Request::post(fixture.path("/"))
            .header("host", "g")
            .body(body)
            .unwrap();
        let mut client = Client::connect(fixture.gateway.ingress).await;
        let answer = tokio::spawn(async move { client.send(upload).await.unwrap() });
        for _ in 0..101 {
            let _ = feed.send(Frame::data(Bytes::from(vec![b'x'; 1000])));
        }
        let answer = answer.await.unwrap();
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (StatusCode::PAYLOAD_TOO_LARGE, "RequestTooLarge")
        );
        let stats = fixture
            .wait("it has ended", |stats| {
                stats.pools["support"].revisions["a"].in_flight == 0
            })
            .await;
        let failed: u64 = stats.pools["support"].revisions["a"]
            .windows
            .iter()
            .map(|window| window.failed)
            .sum();
        assert_eq!(failed, 0, "no evidence against the revision");
    }
}
