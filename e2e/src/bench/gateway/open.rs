//! Open-loop load: each request has an absolute due time, whatever became of those before it, and its latency counts
//! from then. A proxy that stalls is seen to stall.

use anyhow::{Result, anyhow};
use bytes::Bytes;
use flotilla_core::histogram::Histogram;
use flotilla_loadgen::pacer::Pacer;
use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::{LocalSet, spawn_local};

use super::http::Connection;
use super::machine::Cores;

/// Connections opened before the first request is due; more are opened when these are busy.
const CONNECTIONS: usize = 32;
/// More than this many at once mean that the target does not keep up at all.
const MAX_CONNECTIONS: usize = 4096;

/// What is sent, and when.
#[derive(Clone)]
pub struct Open {
    /// Where to.
    pub to: SocketAddr,
    /// Whole requests, sent in turn.
    pub requests: Arc<[Bytes]>,
    /// Requests per second.
    pub rate: u32,
    /// Requests due in this time at the beginning are not recorded.
    pub warm: Duration,
    /// Requests due in this time afterwards are.
    pub time: Duration,
    /// Cores of the client's thread.
    pub cores: Vec<usize>,
}

/// What came of it, in nanoseconds.
#[derive(Clone, Debug, Default)]
pub struct Latencies {
    /// From the due time to the last byte.
    pub latency: Histogram,
    /// From the due time to the start of sending: the client's own lateness.
    pub late: Histogram,
}

impl Open {
    /// Sends it all.
    ///
    /// # Errors
    /// When a request fails.
    pub fn run(self) -> Result<Latencies> {
        let thread = std::thread::spawn(move || {
            Cores::pin(&self.cores)?;
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            LocalSet::new().block_on(&runtime, self.send_all())
        });
        thread.join().map_err(|_| anyhow!("the client panicked"))?
    }

    async fn send_all(self) -> Result<Latencies> {
        let shared = Rc::new(Shared::default());
        for _ in 0..CONNECTIONS {
            let connection = Connection::open(self.to).await?;
            shared.idle.borrow_mut().push(connection);
        }
        let mut pacer = Pacer::new()?;
        let begin = Instant::now() + Duration::from_millis(20);
        let recorded_from = begin + self.warm;
        let end = recorded_from + self.time;
        let step = Duration::from_secs(1) / self.rate;
        let (mut due, mut opened) = (begin, CONNECTIONS);
        for request in self.requests.iter().cycle() {
            if due >= end {
                break;
            }
            pacer.sleep_until(due).await?;
            if let Some(error) = shared.failure.borrow_mut().take() {
                return Err(error);
            }
            let idle = shared.idle.borrow_mut().pop();
            if idle.is_none() {
                opened += 1;
                if opened > MAX_CONNECTIONS {
                    return Err(anyhow!("{} requests per second are not kept up with", self.rate));
                }
            }
            let record = due >= recorded_from;
            spawn_local(shared.clone().one(idle, self.to, request.clone(), due, record));
            // It sends before the next sleep.
            tokio::task::yield_now().await;
            due += step;
        }
        while Rc::strong_count(&shared) > 1 {
            tokio::time::sleep(Duration::from_millis(5)).await;
            if end.elapsed() > Duration::from_secs(10) {
                return Err(anyhow!("requests have no answer 10 s after the end"));
            }
        }
        if let Some(error) = shared.failure.borrow_mut().take() {
            return Err(error);
        }
        Ok(shared.latencies.take())
    }
}

#[derive(Default)]
struct Shared {
    idle: RefCell<Vec<Connection>>,
    latencies: RefCell<Latencies>,
    failure: RefCell<Option<anyhow::Error>>,
}

impl Shared {
    async fn one(
        self: Rc<Self>,
        idle: Option<Connection>,
        to: SocketAddr,
        request: Bytes,
        due: Instant,
        record: bool,
    ) {
        let late = due.elapsed();
        match exchange(idle, to, &request).await {
            Ok(connection) => {
                if record {
                    let mut latencies = self.latencies.borrow_mut();
                    latencies.latency.record(nanoseconds(due.elapsed()));
                    latencies.late.record(nanoseconds(late));
                }
                self.idle.borrow_mut().push(connection);
            }
            Err(error) => *self.failure.borrow_mut() = Some(error),
        }
    }
}

async fn exchange(idle: Option<Connection>, to: SocketAddr, request: &Bytes) -> Result<Connection> {
    let mut connection = match idle {
        Some(connection) => connection,
        None => Connection::open(to).await?,
    };
    connection.exchange(request).await?;
    Ok(connection)
}

/// As histograms here count.
pub fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
