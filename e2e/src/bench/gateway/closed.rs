//! Closed-loop load: each connection sends its next request when it has its answer. For cost per request and for
//! throughput; latencies of it mean nothing and are not taken.

use anyhow::{Context as _, Result, anyhow};
use bytes::Bytes;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

use super::http::Connection;
use super::machine::{Cores, pause};
use super::process::Child;

/// Fewer answers than this say little about their cost: requests that are half done at both ends weigh too much.
const ENOUGH: u64 = 100;
/// Longest measurement of a slow target.
const LONGEST: Duration = Duration::from_secs(15);

/// What is sent, and how.
#[derive(Clone)]
pub struct Load {
    /// Where to.
    pub to: SocketAddr,
    /// Whole requests; each connection sends one after the other, beginning anywhere.
    pub requests: Arc<[Bytes]>,
    /// Connections, with one request each at a time.
    pub connections: usize,
    /// Cores of the client's thread.
    pub cores: Vec<usize>,
}

/// What came of it.
#[derive(Clone, Copy, Debug)]
pub struct Done {
    /// Answered requests.
    pub requests: u64,
    /// In this time.
    pub time: Duration,
    /// CPU time of the measured process in this time.
    pub cpu: Duration,
}

impl Done {
    /// CPU time per request in microseconds.
    pub fn cpu_micros(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / self.requests as f64
    }

    /// Requests per second.
    pub fn rate(&self) -> f64 {
        self.requests as f64 / self.time.as_secs_f64()
    }
}

/// A load that runs until it is stopped.
pub struct Running {
    count: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<Result<()>>>,
}

impl Load {
    /// Starts to send, on a thread of its own.
    pub fn start(self) -> Running {
        let (count, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let thread = {
            let (count, stop) = (count.clone(), stop.clone());
            std::thread::spawn(move || {
                Cores::pin(&self.cores)?;
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()?;
                runtime.block_on(self.run(count, stop))
            })
        };
        Running {
            count,
            stop,
            thread: Some(thread),
        }
    }

    /// Sends for `warm`, then for `time` (longer if there are less than [`ENOUGH`] answers by then), and measures what
    /// `child` spends in that second part.
    ///
    /// # Errors
    /// When a request fails.
    pub fn measure(self, child: &Child, warm: Duration, time: Duration) -> Result<Done> {
        let running = self.start();
        pause(warm);
        let (before, counted, begin) = (child.cpu()?, running.count(), Instant::now());
        while begin.elapsed() < time
            || (running.count() - counted < ENOUGH && begin.elapsed() < LONGEST && !running.has_ended())
        {
            pause((time.saturating_sub(begin.elapsed())).max(Duration::from_millis(1)));
        }
        let (after, total, end) = (child.cpu()?, running.count(), Instant::now());
        running.stop()?;
        let requests = total - counted;
        if requests == 0 {
            return Err(anyhow!("no request was answered within {} s", LONGEST.as_secs()));
        }
        Ok(Done {
            requests,
            time: end - begin,
            cpu: after.saturating_sub(before),
        })
    }

    async fn run(self, count: Arc<AtomicU64>, stop: Arc<AtomicBool>) -> Result<()> {
        let mut lanes = JoinSet::new();
        for lane in 0..self.connections {
            let (count, stop, requests) = (count.clone(), stop.clone(), self.requests.clone());
            let mut connection = Connection::open(self.to).await?;
            lanes.spawn(async move {
                // Lanes do not walk in step.
                let mut order = requests.iter().cycle().skip(lane * 7 % requests.len().max(1));
                while !stop.load(Ordering::Relaxed) {
                    let request = order.next().context("no request to send")?;
                    connection.exchange(request).await?;
                    count.fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            });
        }
        while let Some(lane) = lanes.join_next().await {
            let lane: Result<()> = lane?;
            lane?;
        }
        Ok(())
    }
}

impl Running {
    /// Requests answered so far.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// A request has failed.
    fn has_ended(&self) -> bool {
        self.thread
            .as_ref()
            .is_none_or(std::thread::JoinHandle::is_finished)
    }

    /// Waits until `count` requests have been answered, calling `meanwhile` about every 100 ms.
    ///
    /// # Errors
    /// When a request fails, or `meanwhile` does.
    pub fn reach(&self, count: u64, mut meanwhile: impl FnMut() -> Result<()>) -> Result<()> {
        while self.count() < count {
            if self
                .thread
                .as_ref()
                .is_none_or(std::thread::JoinHandle::is_finished)
            {
                return Err(anyhow!("the load ended after {} requests", self.count()));
            }
            meanwhile()?;
            pause(Duration::from_millis(100));
        }
        Ok(())
    }

    /// Stops, lets what is in flight end.
    ///
    /// # Errors
    /// The first failure of a request.
    pub fn stop(mut self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.take() {
            Some(thread) => thread.join().map_err(|_| anyhow!("the client panicked"))?,
            None => Ok(()),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
