//! Counts of durations by fixed buckets, for Prometheus.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Upper bounds of the buckets on `/metrics`, in seconds.
pub const BUCKETS: [f64; 14] = [
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0,
];

/// A histogram that many threads add to.
#[derive(Default)]
pub struct Durations {
    /// By bucket, not cumulated; the last is what is above them.
    counts: [AtomicU64; BUCKETS.len() + 1],
    microseconds: AtomicU64,
}

impl Durations {
    /// Counts one.
    pub fn record(&self, time: Duration) {
        let seconds = time.as_secs_f64();
        let bucket = BUCKETS
            .iter()
            .position(|bound| seconds <= *bound)
            .unwrap_or(BUCKETS.len());
        if let Some(count) = self.counts.get(bucket) {
            count.fetch_add(1, Relaxed);
        }
        let microseconds = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        self.microseconds.fetch_add(microseconds, Relaxed);
    }

    /// Upper bounds in seconds, the last for all above, with what is in each bucket.
    pub fn buckets(&self) -> Vec<(f64, u64)> {
        let bounds = BUCKETS.iter().copied().chain([f64::MAX]);
        bounds
            .zip(self.counts.iter().map(|count| count.load(Relaxed)))
            .collect()
    }

    /// The sum of all, in seconds.
    pub fn sum_seconds(&self) -> f64 {
        self.microseconds.load(Relaxed) as f64 / 1e6
    }
}
