//! A target that remembers what it was sent, and helpers to run workers against it.
#![allow(dead_code, reason = "every test binary uses a part of it")]

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use flotilla_core::load::plan::LoadPlan;
use flotilla_core::load::wire::WorkerResult;
use flotilla_loadgen::{RunError, Settings, run};
use http::{Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpSocket};
use tokio_util::sync::CancellationToken;

pub type Answer = Response<UnsyncBoxBody<Bytes, std::io::Error>>;

/// A request as the target saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    pub index: String,
    pub path: String,
    pub body: String,
    pub arrived: Instant,
    pub answered: Instant,
}

/// A server on a thread of its own, so that it and the generator do not wait for each other.
pub struct Target {
    pub address: SocketAddr,
    received: Arc<Mutex<Vec<Received>>>,
    stop: CancellationToken,
}

impl Target {
    /// Answers with what `behave` makes of each request.
    pub fn start<F, R>(behave: F) -> Self
    where
        F: Fn(Request<String>) -> R + Clone + Send + 'static,
        R: Future<Output = Answer> + Send + 'static,
    {
        let received = Arc::new(Mutex::new(Vec::new()));
        let stop = CancellationToken::new();
        let (sender, address) = std::sync::mpsc::channel();
        let (log, stopped) = (Arc::clone(&received), stop.clone());
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async move {
                let socket = TcpSocket::new_v4().unwrap();
                socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
                let listener = socket.listen(4096).unwrap();
                sender.send(listener.local_addr().unwrap()).unwrap();
                tokio::select! {
                    () = accept(listener, log, behave) => {}
                    () = stopped.cancelled() => {}
                }
            });
        });
        Self {
            address: address.recv().unwrap(),
            received,
            stop,
        }
    }

    /// Answers everything at once with `ok`.
    pub fn echo() -> Self {
        Self::start(|_| async { answer(StatusCode::OK, "text/plain", "ok") })
    }

    /// What was received so far, warm-up included, in order of arrival.
    pub fn received(&self) -> Vec<Received> {
        self.received.lock().clone()
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn accept<F, R>(listener: TcpListener, log: Arc<Mutex<Vec<Received>>>, behave: F)
where
    F: Fn(Request<String>) -> R + Clone + Send + 'static,
    R: Future<Output = Answer> + Send + 'static,
{
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            continue;
        };
        stream.set_nodelay(true).unwrap();
        let (log, behave) = (Arc::clone(&log), behave.clone());
        let service = service_fn(move |request: Request<Incoming>| {
            let (log, behave) = (Arc::clone(&log), behave.clone());
            async move {
                let arrived = Instant::now();
                let (head, body) = request.into_parts();
                let index = head
                    .headers
                    .get("x-flotilla-request")
                    .map(|v| v.to_str().unwrap().to_owned());
                let path = head.uri.to_string();
                let body = body
                    .collect()
                    .await
                    .map(|body| body.to_bytes())
                    .unwrap_or_default();
                let body = String::from_utf8_lossy(&body).into_owned();
                let answer = behave(Request::from_parts(head, body.clone())).await;
                let received = Received {
                    index: index.unwrap_or_default(),
                    path,
                    body,
                    arrived,
                    answered: Instant::now(),
                };
                log.lock().push(received);
                Ok::<_, Infallible>(answer)
            }
        });
        tokio::spawn(async move {
            let _ = http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

pub fn answer(status: StatusCode, content_type: &str, body: impl Into<Bytes>) -> Answer {
    let body = Full::new(body.into())
        .map_err(|never| match never {})
        .boxed_unsync();
    Response::builder()
        .status(status)
        .header("content-type", content_type)
        .body(body)
        .unwrap()
}

/// An answer whose chunks come with pauses before them; `None` breaks the connection.
pub fn chunks(content_type: &str, chunks: Vec<(Duration, Option<String>)>) -> Answer {
    let stream = futures::stream::unfold(chunks.into_iter(), |mut chunks| async move {
        let (pause, chunk) = chunks.next()?;
        tokio::time::sleep(pause).await;
        let frame = match chunk {
            Some(text) => Ok(http_body::Frame::data(Bytes::from(text))),
            None => Err(std::io::Error::other("cut")),
        };
        Some((frame, chunks))
    });
    let body = http_body_util::StreamBody::new(stream).boxed_unsync();
    Response::builder()
        .header("content-type", content_type)
        .body(body)
        .unwrap()
}

/// A plan against `target` with the given stages and changes.
pub fn plan(target: &Target, workers: u32, stages: serde_json::Value) -> LoadPlan {
    serde_json::from_value(serde_json::json!({
        "name": "test",
        "seed": 42,
        "workers": {"count": workers, "minCoveragePercent": 99, "startDeadlineSeconds": 60},
        "target": {"url": format!("http://{}", target.address), "protocol": "HTTP"},
        "requests": {"timeoutMilliseconds": 10000},
        "scenarios": [
            {"name": "a", "weight": 2, "prompt": "order {{order}} of {{name}}"},
            {"name": "b", "weight": 1, "prompt": "{{product}} for {{amount}}"},
        ],
        "stages": stages,
    }))
    .unwrap()
}

pub fn constant_rate(per_second: &str, seconds: u32, arrival: &str) -> serde_json::Value {
    serde_json::json!({
        "name": "steady", "type": "ConstantRate",
        "constantRate": {"perSecond": per_second, "seconds": seconds, "arrival": arrival, "maxInFlight": 5000},
    })
}

/// An address that was free a moment ago.
pub fn free_address() -> SocketAddr {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let [_, _, high, low] = std::process::id().to_be_bytes();
    // A host of its own: a port alone may be taken by another test before its owner binds it.
    let host = [127, 1 + high % 250, low, NEXT.fetch_add(1, Ordering::Relaxed)];
    std::net::TcpListener::bind((IpAddr::from(host), 0))
        .unwrap()
        .local_addr()
        .unwrap()
}

pub fn settings(plan: &LoadPlan, index: u32, coordinator: SocketAddr) -> Settings {
    Settings {
        plan: plan.clone(),
        index,
        listen: coordinator,
        coordinator: Some(coordinator.to_string()),
        start_lead: Duration::from_millis(700),
        samples: None,
    }
}

/// Runs all workers of `plan`, each on a thread and runtime of its own.
pub fn run_workers(plan: &LoadPlan) -> Vec<Result<WorkerResult, RunError>> {
    let coordinator = free_address();
    let threads: Vec<_> = (0..plan.workers.count)
        .map(|index| {
            let settings = settings(plan, index, coordinator);
            std::thread::spawn(move || run_alone(settings))
        })
        .collect();
    threads.into_iter().map(|thread| thread.join().unwrap()).collect()
}

pub fn run_alone(settings: Settings) -> Result<WorkerResult, RunError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(run(settings, CancellationToken::new()))
}
