//! Worker 0's small server: the barrier, a clock to read, and the merged progress.
//!
//! | request | answer |
//! |---|---|
//! | `POST /ready` | a [`Signal`]; asked again and again until it is not `Waiting` |
//! | `GET /clock` | this clock, for an NTP-style exchange |
//! | `POST /progress` | takes a worker's cumulative snapshot |
//! | `GET /progress` | the merged [`Progress`], for the operator |
//! | `GET /healthz` | 200 |
//!
//! Nothing that decides a verdict passes through here: results travel in termination messages.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use flotilla_core::load::decimal::Decimal;
use flotilla_core::load::plan::LoadPlan;
use flotilla_core::load::result::LatencySummary;
use flotilla_core::load::wire::{Progress, ProgressTable, RunState, WorkerProgress};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;

use crate::barrier::{Barrier, Signal};

/// The largest request that is read; a snapshot is a few kilobytes.
const MAX_REQUEST_BYTES: usize = 256 * 1024;

/// The rate in [`Progress`] is over this long.
const RATE_WINDOW: Duration = Duration::from_secs(5);

/// A worker at the barrier.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ready {
    /// The worker's index.
    pub index: u32,
    /// The number of workers in its plan.
    pub workers: u32,
    /// Its plan's workload id.
    pub workload: u64,
    /// Its last round trip to the coordinator.
    pub round_trip_nanoseconds: u64,
}

/// The coordinator's clock.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Clock {
    /// When the question came.
    pub received_nanoseconds: u64,
    /// When the answer went.
    pub sent_nanoseconds: u64,
}

/// The state behind the server; worker 0 also uses it directly.
pub struct Coordinator {
    epoch: Instant,
    workers: u32,
    workload: u64,
    planned: u64,
    stages: Vec<String>,
    state: Mutex<State>,
}

struct State {
    barrier: Barrier,
    table: ProgressTable,
    start: Option<(u64, jiff::Timestamp)>,
    /// (time, starts so far), for the rate.
    history: VecDeque<(Instant, u64)>,
}

impl Coordinator {
    /// A coordinator of `plan` whose time and start deadline begin now.
    pub fn new(plan: &LoadPlan, lead: Duration) -> Arc<Self> {
        let nanoseconds = |duration: Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let workers = &plan.workers;
        let deadline = Duration::from_secs(workers.start_deadline_seconds.into());
        let barrier = Barrier::new(
            workers.count,
            workers.min_coverage_percent,
            nanoseconds(deadline),
            nanoseconds(lead),
        );
        Arc::new(Self {
            epoch: Instant::now(),
            workers: workers.count,
            workload: plan.workload_id(),
            planned: plan.requests(),
            stages: plan.stages.iter().map(|stage| stage.name.clone()).collect(),
            state: Mutex::new(State {
                barrier,
                table: ProgressTable::default(),
                start: None,
                history: VecDeque::new(),
            }),
        })
    }

    /// Nanoseconds since this coordinator began.
    pub fn now(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// A moment of this coordinator's clock on the machine's.
    pub fn instant(&self, nanoseconds: u64) -> Instant {
        self.epoch + Duration::from_nanos(nanoseconds)
    }

    /// A worker is at the barrier.
    pub fn ready(&self, ready: &Ready) -> Signal {
        let Ready {
            index,
            workers,
            workload,
            round_trip_nanoseconds,
        } = *ready;
        if workers != self.workers || workload != self.workload || index >= self.workers {
            return Signal::Refused;
        }
        let now = self.now();
        let mut state = self.state.lock();
        state.barrier.arrive(index, round_trip_nanoseconds);
        let signal = state.barrier.signal(now);
        if let Signal::Start { at_nanoseconds } = signal
            && state.start.is_none()
        {
            let ahead = Duration::from_nanos(at_nanoseconds.saturating_sub(now));
            state.start = Some((at_nanoseconds, jiff::Timestamp::now() + ahead));
            tracing::info!(
                workers = state.barrier.ready(),
                ?ahead,
                "all workers that came start together"
            );
        }
        signal
    }

    /// Takes a snapshot in.
    pub fn accept(&self, progress: WorkerProgress) {
        if progress.index < self.workers {
            self.state.lock().table.accept(progress);
        }
    }

    /// Whether every worker that came has sent its last snapshot.
    pub fn all_finished(&self) -> bool {
        let state = self.state.lock();
        state.table.totals().finished >= state.barrier.ready()
    }

    /// The run so far.
    pub fn progress(&self) -> Progress {
        let now = Instant::now();
        let mut state = self.state.lock();
        let totals = state.table.totals();
        let begun = state.start.is_some_and(|(at, _)| at <= self.now());
        let rate = state.rate(now, totals.counts.started);
        let run_state = match begun {
            false => RunState::Waiting,
            true if totals.finished >= state.barrier.ready() => RunState::Finished,
            true => RunState::Running,
        };
        let done = totals.counts.done.min(self.planned);
        Progress {
            state: run_state,
            start_time: state.start.map(|(_, time)| time.to_string()),
            stage: if begun {
                self.stages
                    .get(totals.stage as usize)
                    .cloned()
                    .unwrap_or_default()
            } else {
                String::new()
            },
            workers_desired: self.workers,
            workers_ready: state.barrier.ready(),
            percent: u32::try_from(done * 100 / self.planned.max(1)).unwrap_or(100),
            planned: self.planned,
            started: totals.counts.started,
            done: totals.counts.done,
            failed: totals.counts.failed,
            in_flight: totals.counts.started.saturating_sub(totals.counts.done),
            per_second: format!("{rate:.1}"),
            latency: LatencySummary::of(&totals.latency),
        }
    }

    /// Answers connections on `listener` until it is dropped.
    pub async fn serve(self: Arc<Self>, listener: TcpListener) {
        loop {
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of file descriptors, mostly; what is open goes on.
                    tracing::warn!(%error, "failed to accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let _ = stream.set_nodelay(true);
            let coordinator = Arc::clone(&self);
            let service = service_fn(move |request| {
                let coordinator = Arc::clone(&coordinator);
                async move { Ok::<_, Infallible>(coordinator.answer(request).await) }
            });
            let mut server = http1::Builder::new();
            server
                .timer(TokioTimer::new())
                .header_read_timeout(Duration::from_secs(30));
            tokio::spawn(async move {
                if let Err(error) = server.serve_connection(TokioIo::new(stream), service).await {
                    tracing::debug!(%error, "a connection ended");
                }
            });
        }
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let received = self.now();
        let (head, body) = request.into_parts();
        match (&head.method, head.uri.path()) {
            (&Method::GET, "/healthz") => text(StatusCode::OK, "ok\n"),
            (&Method::GET, "/progress") => json(&self.progress()),
            (&Method::GET, "/clock") => json(&Clock {
                received_nanoseconds: received,
                sent_nanoseconds: self.now(),
            }),
            (&Method::POST, "/ready") => match read(body).await {
                Ok(ready) => json(&self.ready(&ready)),
                Err(response) => response,
            },
            (&Method::POST, "/progress") => match read(body).await {
                Ok(progress) => {
                    self.accept(progress);
                    text(StatusCode::OK, "")
                }
                Err(response) => response,
            },
            _ => text(
                StatusCode::NOT_FOUND,
                "there are /ready, /clock, /progress and /healthz\n",
            ),
        }
    }
}

impl State {
    /// Starts per second over the last seconds.
    fn rate(&mut self, now: Instant, started: u64) -> Decimal {
        self.history.push_back((now, started));
        while self.history.len() > 2
            && self
                .history
                .get(1)
                .is_some_and(|(time, _)| now.saturating_duration_since(*time) >= RATE_WINDOW)
        {
            self.history.pop_front();
        }
        let Some((then, before)) = self.history.front().copied() else {
            return Decimal::default();
        };
        let microseconds = now.saturating_duration_since(then).as_micros();
        if microseconds == 0 {
            return Decimal::default();
        }
        Decimal::from_millionths(
            u128::from(started.saturating_sub(before)) * 1_000_000_000_000 / microseconds,
        )
    }
}

async fn read<T: serde::de::DeserializeOwned>(body: Incoming) -> Result<T, Response<Full<Bytes>>> {
    let bytes = Limited::new(body, MAX_REQUEST_BYTES)
        .collect()
        .await
        .map_err(|error| {
            text(
                StatusCode::BAD_REQUEST,
                &format!("failed to read the body: {error}\n"),
            )
        })?
        .to_bytes();
    serde_json::from_slice(&bytes)
        .map_err(|error| text(StatusCode::BAD_REQUEST, &format!("failed to decode: {error}\n")))
}

fn json(value: &impl Serialize) -> Response<Full<Bytes>> {
    match serde_json::to_vec(value) {
        Ok(body) => {
            let mut response = Response::new(Full::new(Bytes::from(body)));
            let json = http::HeaderValue::from_static("application/json");
            response.headers_mut().insert(http::header::CONTENT_TYPE, json);
            response
        }
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

fn text(status: StatusCode, body: &str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::copy_from_slice(body.as_bytes())));
    *response.status_mut() = status;
    response
}

/// Binds the coordinator's address.
///
/// # Errors
/// If it is in use or not this machine's.
pub async fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    TcpListener::bind(address).await
}
