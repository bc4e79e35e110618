//! A client that forgives nothing: keep-alive connections, a fixed rate, no retries, every response checked to its end.
//!
//! It behaves as HTTP/1.1 asks of a client and no better: a connection that the server has closed, or announced to
//! close, is not used again. Everything else (a reset, a status other than 200, a body that ends early, a timeout)
//! counts as a failure.

use anyhow::Result;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// What is sent.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where to connect.
    pub address: SocketAddr,
    /// Host header.
    pub host: String,
    /// Requests per second, all connections together.
    pub per_second: u32,
    /// Connections, each with one request at a time.
    pub connections: u32,
    /// Limit of one request.
    pub timeout: Duration,
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Requests that were sent.
    pub requests: u64,
    /// Failures by kind.
    pub failures: BTreeMap<String, u64>,
    /// Requests that found no free connection at their time and were sent late, by more than 100 ms.
    pub late: u64,
}

impl Outcome {
    /// Number of failures.
    pub fn failed(&self) -> u64 {
        self.failures.values().sum()
    }
}

/// Running traffic.
pub struct Traffic {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    tasks: JoinSet<Outcome>,
}

impl Traffic {
    /// Starts to send: one request in ten asks for a stream.
    pub fn start(plan: Plan) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let sent = Arc::new(AtomicU64::new(0));
        let begin = Instant::now() + Duration::from_millis(50);
        let mut tasks = JoinSet::new();
        for lane in 0..plan.connections {
            tasks.spawn(run_lane(plan.clone(), lane, begin, stop.clone(), sent.clone()));
        }
        Self { stop, sent, tasks }
    }

    /// Requests sent so far.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Waits until `requests` have been sent.
    pub async fn reach(&self, requests: u64) {
        while self.sent() < requests {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Stops, lets what is in flight end, and adds up.
    pub async fn stop(mut self) -> Outcome {
        self.stop.store(true, Ordering::Relaxed);
        let mut total = Outcome::default();
        while let Some(lane) = self.tasks.join_next().await {
            let lane = lane.unwrap_or_else(|e| Outcome {
                failures: [(format!("client panicked: {e}"), 1)].into(),
                ..Outcome::default()
            });
            total.requests += lane.requests;
            total.late += lane.late;
            for (kind, count) in lane.failures {
                *total.failures.entry(kind).or_default() += count;
            }
        }
        total
    }
}

async fn run_lane(
    plan: Plan,
    lane: u32,
    begin: Instant,
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
) -> Outcome {
    let mut outcome = Outcome::default();
    let mut connection = None;
    for turn in 0u64.. {
        let index = turn * u64::from(plan.connections) + u64::from(lane);
        let due = begin + Duration::from_secs_f64(index as f64 / f64::from(plan.per_second));
        tokio::time::sleep_until(due.into()).await;
        if stop.load(Ordering::Relaxed) {
            break;
        }
        outcome.late += u64::from(due.elapsed() > Duration::from_millis(100));
        outcome.requests += 1;
        sent.fetch_add(1, Ordering::Relaxed);
        match tokio::time::timeout(plan.timeout, send(&plan, &mut connection, index)).await {
            Ok(Ok(())) => {}
            Ok(Err(kind)) => {
                *outcome.failures.entry(kind).or_default() += 1;
                connection = None;
            }
            Err(_) => {
                *outcome.failures.entry("timeout".into()).or_default() += 1;
                connection = None;
            }
        }
    }
    outcome
}

async fn send(
    plan: &Plan,
    connection: &mut Option<SendRequest<Full<Bytes>>>,
    index: u64,
) -> Result<(), String> {
    let mut reused = None;
    if let Some(mut open) = connection.take()
        && open.ready().await.is_ok()
    {
        reused = Some(open);
    }
    let mut sender = match reused {
        Some(open) => open,
        None => connect(plan.address).await?,
    };
    let stream = index.is_multiple_of(10);
    let request = if stream {
        streamed(plan, index)
    } else {
        plain(plan, index)
    }
    .map_err(|e| format!("request: {e}"))?;
    let response = sender
        .send_request(request)
        .await
        .map_err(|e| format!("send: {}", chain(&e)))?;
    let status = response.status();
    let body = response
        .into_body()
        .collect()
        .await
        .map_err(|e| format!("body: {}", chain(&e)))?
        .to_bytes();
    if status != 200 {
        return Err(format!(
            "status {status}: {}",
            String::from_utf8_lossy(&body)
                .chars()
                .take(160)
                .collect::<String>()
        ));
    }
    let whole = if stream {
        body.ends_with(b"data: [DONE]\n\n")
    } else {
        body.ends_with(b"}")
    };
    if !whole {
        return Err("truncated body".into());
    }
    *connection = Some(sender);
    Ok(())
}

fn plain(plan: &Plan, index: u64) -> hyper::http::Result<Request<Full<Bytes>>> {
    let body = format!("{{\"message\":\"Why was I charged twice for order {index}?\"}}");
    post(plan, "/chat", body)
}

fn streamed(plan: &Plan, index: u64) -> hyper::http::Result<Request<Full<Bytes>>> {
    let body = format!(
        "{{\"model\":\"default\",\"stream\":true,\"messages\":[{{\"role\":\"user\",\"content\":\"Where is order {index}?\"}}]}}"
    );
    post(plan, "/v1/chat/completions", body)
}

fn post(plan: &Plan, path: &str, body: String) -> hyper::http::Result<Request<Full<Bytes>>> {
    Request::builder()
        .method(Method::POST)
        .uri(path)
        .header(HOST, &plan.host)
        .header(CONTENT_TYPE, "application/json")
        .body(Full::new(body.into()))
}

async fn connect(address: SocketAddr) -> Result<SendRequest<Full<Bytes>>, String> {
    let stream = TcpStream::connect(address)
        .await
        .map_err(|e| format!("connect: {e}"))?;
    stream.set_nodelay(true).map_err(|e| format!("connect: {e}"))?;
    let (sender, connection) = handshake(TokioIo::new(stream))
        .await
        .map_err(|e| format!("connect: {e}"))?;
    tokio::spawn(connection);
    Ok(sender)
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text += &format!(": {inner}");
        source = inner.source();
    }
    text
}
