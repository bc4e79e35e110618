//! Sends a worker's share of the schedule.
//!
//! One thread: a worker scales by more workers, not by more threads, so that one process's figures are not those of
//! its own contention. Every start is a task of its own; the only thing it waits for is its place below
//! `maxInFlight`, and that wait is part of its latency.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use flotilla_core::load::result::ErrorCategory;
use flotilla_core::load::schedule::{Schedule, Start};
use http::header::HeaderValue;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::exchange::{Client, Outcome};
use crate::pacer::Pacer;
use crate::recorder::{Recorder, Timing};

/// How long requests in flight may still take after a stop. Kubelet gives a pod 30 s, and the result has to be
/// written in less than 5 s, because not every stop is that patient.
const GRACE: Duration = Duration::from_secs(2);

/// Warm-up requests at once.
const WARMUP_CONCURRENCY: usize = 4;

/// Starts that are fired without a pause when many are due, before the others get the thread.
const BURST: u32 = 32;

/// How a worker's share ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Every start has an outcome.
    Complete,
    /// It was stopped.
    Interrupted,
}

/// A worker and what it works with.
#[derive(Clone)]
pub struct Worker {
    /// The worker's index.
    pub index: u32,
    /// The whole schedule.
    pub schedule: Arc<Schedule>,
    /// Sends.
    pub client: Arc<Client>,
    /// Measures.
    pub recorder: Arc<Recorder>,
}

impl Worker {
    /// Sends the warm-up requests, which nothing records.
    pub async fn warm_up(&self, stop: &CancellationToken) {
        let places = Arc::new(Semaphore::new(WARMUP_CONCURRENCY));
        let tracker = TaskTracker::new();
        for start in self.schedule.warmup_of(self.index) {
            let worker = self.clone();
            let places = Arc::clone(&places);
            tracker.spawn(async move {
                // The semaphore is never closed.
                let _place = places.acquire_owned().await;
                let Ok(label) = HeaderValue::try_from(format!("warmup-{}", start.index)) else {
                    return;
                };
                let prompt = worker.schedule.prompt(&start);
                let (outcome, connection) = worker.client.send(&start, label, prompt, Instant::now()).await;
                if let Some(category) = outcome.failure {
                    tracing::warn!(
                        index = start.index,
                        category = category.as_str(),
                        detail = outcome.detail,
                        "a warm-up request failed"
                    );
                }
                if let Some(connection) = connection {
                    worker.client.keep(connection).await;
                }
            });
        }
        tracker.close();
        tokio::select! {
            () = tracker.wait() => {}
            () = stop.cancelled() => {}
        }
    }

    /// Sends every start of this worker that is due at `joined` or later, at its time counted from `origin`.
    ///
    /// Earlier ones are not made up for: a worker that joins late has missed them, and they are missing coverage.
    ///
    /// # Errors
    /// If the timer cannot be made.
    pub async fn run(&self, origin: Instant, joined: Instant, stop: &CancellationToken) -> io::Result<Ended> {
        let mut pacer = Pacer::new()?;
        let mut limits = Limits::new(self);
        let in_flight = TaskTracker::new();
        let mut burst = 0;
        let mut ended = Ended::Complete;
        for start in self.schedule.starts_of(self.index) {
            let due = origin + Duration::from_nanos(start.offset_nanoseconds);
            if due < joined {
                continue;
            }
            if due > Instant::now() {
                burst = 0;
                tokio::select! {
                    biased;
                    () = stop.cancelled() => {}
                    waited = pacer.sleep_until(due) => waited?,
                }
            } else if burst == BURST {
                burst = 0;
                tokio::task::yield_now().await;
            }
            if stop.is_cancelled() {
                ended = Ended::Interrupted;
                break;
            }
            burst += 1;
            self.recorder.started(&start);
            in_flight.spawn(self.clone().request(start, due, limits.of(start.stage)));
        }
        in_flight.close();
        tokio::select! {
            () = in_flight.wait() => return Ok(ended),
            () = stop.cancelled() => {}
        }
        let unfinished = tokio::time::timeout(GRACE, in_flight.wait()).await.is_err();
        Ok(if unfinished { Ended::Interrupted } else { ended })
    }

    async fn request(self, start: Start, due: Instant, limit: Option<Arc<Semaphore>>) {
        let begun = Instant::now();
        let prompt = self.schedule.prompt(&start);
        let place = match limit {
            None => Ok(None),
            Some(limit) => tokio::time::timeout_at(self.client.deadline(due).into(), limit.acquire_owned())
                .await
                .map(Result::ok),
        };
        let admitted = Instant::now();
        let timing = Timing { due, begun, admitted };
        if place.is_err() {
            let failure = Some(ErrorCategory::InFlightLimit);
            let outcome = Outcome {
                failure,
                ended: Some(admitted),
                ..Outcome::default()
            };
            self.recorder.finished(&start, &timing, &outcome);
            return;
        }
        let label = HeaderValue::from(start.index);
        let (mut outcome, connection) = self.client.send(&start, label, prompt, due).await;
        let with_target = outcome
            .ended
            .unwrap_or(admitted)
            .saturating_duration_since(admitted);
        if outcome.failure == Some(ErrorCategory::Timeout) && admitted.duration_since(begun) > with_target {
            outcome.failure = Some(ErrorCategory::InFlightLimit);
        }
        self.recorder.finished(&start, &timing, &outcome);
        drop(place);
        if let Some(connection) = connection {
            self.client.keep(connection).await;
        }
    }
}

/// The worker's share of each stage's `maxInFlight`.
struct Limits<'a> {
    worker: &'a Worker,
    places: HashMap<usize, Option<Arc<Semaphore>>>,
}

impl<'a> Limits<'a> {
    fn new(worker: &'a Worker) -> Self {
        Self {
            worker,
            places: HashMap::new(),
        }
    }

    fn of(&mut self, stage: usize) -> Option<Arc<Semaphore>> {
        let places = self.places.entry(stage).or_insert_with(|| {
            let cap = self.worker.schedule.max_in_flight(stage, self.worker.index)?;
            Some(Arc::new(Semaphore::new(
                usize::try_from(cap)
                    .unwrap_or(usize::MAX)
                    .min(Semaphore::MAX_PERMITS),
            )))
        });
        places.clone()
    }
}
