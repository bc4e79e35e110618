//! Counts by window of a request's start and by assignment epoch, as `/stats` reports them.
//!
//! A request finds its window with one atomic load while window and epoch stay the same, which is nearly always; a new
//! one is made under a lock, once in 15 seconds.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use flotilla_core::histogram::AtomicHistogram;
use flotilla_core::stats::{WINDOW_SECONDS, WindowStats, window_start};
use parking_lot::Mutex;

/// Windows kept per revision at most, 18 KiB each: 64 minutes. With longer request timeouts older ones are given up,
/// long after the operator, which asks every 15 s, has read them.
const MAX_WINDOWS: usize = 256;

/// Counts of the requests that started in one window under one epoch.
pub struct Window {
    start: i64,
    epoch: i64,
    started: AtomicU64,
    ended: AtomicU64,
    failed: AtomicU64,
    cancelled: AtomicU64,
    latency: AtomicHistogram,
    first_byte: AtomicHistogram,
}

/// The windows of one revision.
#[derive(Default)]
pub struct Windows {
    current: ArcSwapOption<Window>,
    kept: Mutex<Vec<Arc<Window>>>,
}

/// How a request ended for the statistics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Answered whole, with a status below 500.
    Succeeded,
    /// Status 500 and above, a reset, a cut stream, a timeout.
    Failed,
    /// Given up by the client: nobody's fault, and its latency says nothing.
    Cancelled,
}

impl Window {
    fn new(start: i64, epoch: i64) -> Self {
        Self {
            start,
            epoch,
            started: AtomicU64::new(0),
            ended: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            cancelled: AtomicU64::new(0),
            latency: AtomicHistogram::new(),
            first_byte: AtomicHistogram::new(),
        }
    }

    /// The first byte of the response's body came after `time`.
    pub fn first_byte(&self, time: Duration) {
        self.first_byte.record(microseconds(time));
    }

    /// A request ended after `time`.
    pub fn ended(&self, outcome: Outcome, time: Duration) {
        match outcome {
            Outcome::Succeeded => self.latency.record(microseconds(time)),
            Outcome::Failed => {
                self.latency.record(microseconds(time));
                self.failed.fetch_add(1, Ordering::Relaxed);
            }
            Outcome::Cancelled => {
                self.cancelled.fetch_add(1, Ordering::Relaxed);
            }
        }
        self.ended.fetch_add(1, Ordering::Relaxed);
    }

    fn report(&self) -> WindowStats {
        WindowStats {
            start: self.start,
            epoch: self.epoch,
            started: self.started.load(Ordering::Relaxed),
            ended: self.ended.load(Ordering::Relaxed),
            failed: self.failed.load(Ordering::Relaxed),
            cancelled: self.cancelled.load(Ordering::Relaxed),
            latency: self.latency.snapshot(),
            first_byte: self.first_byte.snapshot(),
        }
    }
}

fn microseconds(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

impl Windows {
    /// Counts a request that arrived at `unix_seconds` and was assigned under `epoch`; its end goes into the window
    /// that is returned.
    pub fn started(&self, unix_seconds: i64, epoch: i64) -> Arc<Window> {
        let start = window_start(unix_seconds);
        let window = match &*self.current.load() {
            Some(window) if window.start == start && window.epoch == epoch => window.clone(),
            _ => self.find(start, epoch),
        };
        window.started.fetch_add(1, Ordering::Relaxed);
        window
    }

    fn find(&self, start: i64, epoch: i64) -> Arc<Window> {
        let mut kept = self.kept.lock();
        if let Some(window) = kept
            .iter()
            .find(|window| window.start == start && window.epoch == epoch)
        {
            return window.clone();
        }
        let window = Arc::new(Window::new(start, epoch));
        let place = kept.partition_point(|other| (other.start, other.epoch) < (start, epoch));
        kept.insert(place, window.clone());
        if kept.len() > MAX_WINDOWS {
            kept.remove(0);
        }
        // One that waited in the queue may be of an older window; the current one stays the newest.
        if kept.last().is_some_and(|newest| Arc::ptr_eq(newest, &window)) {
            self.current.store(Some(window.clone()));
        }
        window
    }

    /// All windows that ended less than `keep_seconds` before `unix_seconds`; older ones are forgotten.
    pub fn report(&self, unix_seconds: i64, keep_seconds: i64) -> Vec<WindowStats> {
        let mut kept = self.kept.lock();
        kept.retain(|window| window.start.saturating_add(WINDOW_SECONDS + keep_seconds) > unix_seconds);
        kept.iter().map(|window| window.report()).collect()
    }

    /// Nothing to report any more.
    pub fn is_empty(&self) -> bool {
        self.kept.lock().is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_counts_where_it_started_whenever_it_ends() {
        let windows = Windows::default();
        let early = windows.started(1_000_004, 3);
        let late = windows.started(1_000_006, 3);
        let other_epoch = windows.started(1_000_006, 4);
        early.ended(Outcome::Failed, Duration::from_millis(900));
        late.first_byte(Duration::from_millis(10));
        late.ended(Outcome::Succeeded, Duration::from_millis(20));
        other_epoch.ended(Outcome::Cancelled, Duration::from_millis(20));
        let report = windows.report(1_000_100, 120);
        let keys: Vec<_> = report
            .iter()
            .map(|w| (w.start, w.epoch, w.started, w.ended, w.failed, w.cancelled))
            .collect();
        assert_eq!(
            keys,
            [
                (999_990, 3, 1, 1, 1, 0),
                (1_000_005, 3, 1, 1, 0, 0),
                (1_000_005, 4, 1, 1, 0, 1)
            ]
        );
        assert_eq!(report[0].latency.count(), 1);
        assert_eq!(report[1].first_byte.max(), Some(10_000));
        assert_eq!(report[2].latency.count(), 0);
    }

    #[test]
    fn a_window_is_kept_until_its_requests_must_be_over() {
        let windows = Windows::default();
        windows.started(30, 0);
        assert_eq!(windows.report(45 + 119, 120).len(), 1);
        assert_eq!(windows.report(45 + 120, 120).len(), 0);
        assert!(windows.is_empty());
    }

    #[test]
    fn one_that_waited_goes_to_its_own_window_and_the_current_one_stays() {
        let windows = Windows::default();
        windows.started(60, 1);
        windows.started(50, 1);
        windows.started(61, 1);
        let started: Vec<_> = windows
            .report(62, 100)
            .iter()
            .map(|w| (w.start, w.started))
            .collect();
        assert_eq!(started, [(45, 1), (60, 2)]);
    }
}
