//! Many streams at once: when their first event comes, how far apart events are, and whether they are still apart.

use anyhow::{Result, anyhow, bail};
use bytes::Bytes;
use flotilla_core::histogram::Histogram;
use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::task::{JoinSet, LocalSet};

use super::http::{Connection, Framing};
use super::machine::{Cores, wait_for};
use super::open::nanoseconds;
use super::origin::{INTERVAL, TOKENS};

/// Streams that follow one another on each of many connections.
#[derive(Clone)]
pub struct Streams {
    /// Where to.
    pub to: SocketAddr,
    /// Whole requests for a paced stream, sent in turn.
    pub requests: Arc<[Bytes]>,
    /// Streams at once.
    pub concurrent: usize,
    /// Not recorded at the beginning.
    pub warm: Duration,
    /// Recorded afterwards.
    pub time: Duration,
    /// Cores of the client's thread.
    pub cores: Vec<usize>,
}

/// What came of it; times in nanoseconds.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// From the request to the first event.
    pub first: Histogram,
    /// Between the reads of one event and the next; 0 where one read had both.
    pub gap: Histogram,
    /// Events in all.
    pub events: u64,
    /// Events that shared a chunk with another: joined on the way.
    pub joined: u64,
    /// Whole streams.
    pub streams: u64,
}

impl Streams {
    /// Runs it all.
    ///
    /// # Errors
    /// When a stream fails or has not as many events as were sent.
    pub fn run(self) -> Result<Seen> {
        let thread = std::thread::spawn(move || {
            Cores::pin(&self.cores)?;
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            LocalSet::new().block_on(&runtime, self.run_all())
        });
        thread.join().map_err(|_| anyhow!("the client panicked"))?
    }

    async fn run_all(self) -> Result<Seen> {
        let seen = Rc::new(RefCell::new(Seen::default()));
        let mut lanes = JoinSet::new();
        let begin = Instant::now() + Duration::from_millis(100);
        // Spread over the length of a stream, or all would start and end together for ever.
        let length = INTERVAL * u32::try_from(TOKENS + 1).unwrap_or(u32::MAX);
        for lane in 0..self.concurrent {
            let seen = seen.clone();
            let (to, requests) = (self.to, self.requests.clone());
            let start = begin + length.mul_f64(lane as f64 / self.concurrent as f64);
            let recorded_from = begin + self.warm;
            let end = recorded_from + self.time;
            lanes.spawn_local(async move {
                let mut connection = Connection::open(to).await?;
                tokio::time::sleep_until(start.into()).await;
                let mut order = requests.iter().cycle().skip(lane % requests.len().max(1));
                while Instant::now() < end {
                    let Some(request) = order.next() else {
                        bail!("no request to send")
                    };
                    let record = Instant::now() >= recorded_from;
                    one(&mut connection, request, record.then_some(&*seen)).await?;
                }
                Ok(())
            });
        }
        while let Some(lane) = lanes.join_next().await {
            lane??;
        }
        Ok(seen.take())
    }
}

async fn one(connection: &mut Connection, request: &[u8], seen: Option<&RefCell<Seen>>) -> Result<()> {
    let sent = Instant::now();
    let mut head = connection.send(request).await?;
    let (mut before, mut last) = (0, None);
    loop {
        let whole = connection.take_body(&mut head.framing)?;
        let Framing::Chunked(chunks) = &head.framing else {
            bail!("a stream with a length: the proxy has collected it");
        };
        let (came, now) = (chunks.events() - before, Instant::now());
        before = chunks.events();
        if came > 0
            && let Some(seen) = seen
        {
            let mut seen = seen.borrow_mut();
            match last {
                None => seen.first.record(nanoseconds(now - sent)),
                Some(last) => seen.gap.record(nanoseconds(now - last)),
            }
            seen.gap.record_n(0, came as u64 - 1);
            seen.events += came as u64;
        }
        if came > 0 {
            last = Some(now);
        }
        if whole {
            // The last two, usage and [DONE], are sent in one write and follow each other at once.
            if chunks.events() != TOKENS + 2 {
                bail!("a stream of {} events; {} were sent", chunks.events(), TOKENS + 2);
            }
            if let Some(seen) = seen {
                let mut seen = seen.borrow_mut();
                seen.joined += chunks.joined as u64;
                seen.streams += 1;
            }
            return Ok(());
        }
        connection.read().await?;
    }
}

/// Streams that are open and stay so.
pub struct Held {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<Result<()>>>,
}

impl Held {
    /// Opens `count` streams of events that come once a second, and waits until the first event of each has come.
    ///
    /// # Errors
    /// The first failure of a stream, or how many are open after `time`.
    pub fn open(to: SocketAddr, request: Bytes, count: usize, time: Duration) -> Result<Self> {
        let (open, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let thread = {
            let (open, stop) = (open.clone(), stop.clone());
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()?;
                runtime.block_on(hold_all(to, request, count, open, stop))
            })
        };
        let failed = || thread.is_finished();
        let waited = wait_for(time, &format!("{count} open streams"), || {
            let now = open.load(Ordering::Relaxed);
            if now < count && !failed() {
                bail!("{now} of {count} are open");
            }
            Ok(())
        });
        let failed = failed();
        let held = Self {
            stop,
            thread: Some(thread),
        };
        if failed {
            held.close()?;
            bail!("the client has ended");
        }
        waited.map(|()| held)
    }

    /// Closes them.
    ///
    /// # Errors
    /// The first failure of a stream.
    pub fn close(mut self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.take() {
            Some(thread) => thread.join().map_err(|_| anyhow!("the client panicked"))?,
            None => Ok(()),
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

async fn hold_all(
    to: SocketAddr,
    request: Bytes,
    count: usize,
    open: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
) -> Result<()> {
    let mut lanes: JoinSet<Result<()>> = JoinSet::new();
    for _ in 0..count {
        let (request, open) = (request.clone(), open.clone());
        let mut connection = Connection::open(to).await?;
        lanes.spawn(async move {
            let mut head = connection.send(&request).await?;
            connection.read().await?;
            open.fetch_add(1, Ordering::Relaxed);
            while !connection.take_body(&mut head.framing)? {
                connection.read().await?;
            }
            bail!("a stream that should stay open has ended")
        });
    }
    while !stop.load(Ordering::Relaxed) {
        if let Ok(Some(ended)) = tokio::time::timeout(Duration::from_millis(20), lanes.join_next()).await {
            ended??;
        }
    }
    Ok(())
}
