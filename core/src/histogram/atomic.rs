//! A histogram that many threads record into without a lock, for the gateway's request path.
//!
//! A record is one `ln`, two relaxed additions and, rarely, a new minimum or maximum. The price for having no
//! lock is a fixed range and a snapshot that may lie between the steps of a record in progress; what such a
//! record has not yet written is made good in [`AtomicHistogram::snapshot`], so a snapshot is always consistent
//! with itself and the next one has the rest.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::{Histogram, LN_GAMMA, index_of};

/// The largest value with a bucket of its own, 2 h in microseconds: far above any request timeout. What is
/// larger is counted in the last bucket; the maximum and the sum stay exact.
pub const MAX_TRACKED_MICROSECONDS: u64 = 7_200_000_000;

/// `index_of(MAX_TRACKED_MICROSECONDS) + 1`.
const BUCKETS: usize = 1136;

/// A lock-free recorder of values from 0 to [`MAX_TRACKED_MICROSECONDS`], 9 KiB in size.
#[derive(Debug)]
pub struct AtomicHistogram {
    zeros: AtomicU64,
    counts: Box<[AtomicU64]>,
    sum: AtomicU64,
    min: AtomicU64,
    max: AtomicU64,
}

impl Default for AtomicHistogram {
    fn default() -> Self {
        Self::new()
    }
}

impl AtomicHistogram {
    /// An empty recorder.
    pub fn new() -> Self {
        Self {
            zeros: AtomicU64::new(0),
            counts: (0..BUCKETS).map(|_| AtomicU64::new(0)).collect(),
            sum: AtomicU64::new(0),
            min: AtomicU64::new(u64::MAX),
            max: AtomicU64::new(0),
        }
    }

    /// Adds one value; never blocks.
    pub fn record(&self, value: u64) {
        if value > self.max.load(Relaxed) {
            self.max.fetch_max(value, Relaxed);
        }
        if value < self.min.load(Relaxed) {
            self.min.fetch_min(value, Relaxed);
        }
        self.sum.fetch_add(value, Relaxed);
        let bucket = if value == 0 {
            &self.zeros
        } else {
            &self.counts[index_of(value).min(BUCKETS - 1)]
        };
        bucket.fetch_add(1, Relaxed);
    }

    #[cfg(test)]
    pub(super) fn counts_len(&self) -> usize {
        self.counts.len()
    }

    /// Everything recorded so far, as a mergeable histogram.
    pub fn snapshot(&self) -> Histogram {
        let mut counts: Vec<u64> = self.counts.iter().map(|n| n.load(Relaxed)).collect();
        counts.truncate(counts.iter().rposition(|n| *n > 0).map_or(0, |last| last + 1));
        let zeros = self.zeros.load(Relaxed);
        let count = counts.iter().fold(zeros, |total, n| total.saturating_add(*n));
        if count == 0 {
            return Histogram::new();
        }
        // A bucket may be seen before the minimum, maximum or sum of its value: then its own bound stands in.
        let smallest_of = |index: usize| ((index as f64 - 1.0) * LN_GAMMA).exp().floor() as u64 + 1;
        let min = match counts.iter().position(|n| *n > 0) {
            Some(first) if zeros == 0 => match self.min.load(Relaxed) {
                min if min > 0 && index_of(min) <= first => min,
                _ => smallest_of(first),
            },
            _ => 0,
        };
        let max = match counts.len().checked_sub(1) {
            Some(last) => match self.max.load(Relaxed) {
                max if max > 0 && index_of(max) >= last => max,
                _ => smallest_of(last),
            },
            None => 0,
        };
        let sum = u128::from(self.sum.load(Relaxed)).clamp(
            u128::from(count) * u128::from(min),
            u128::from(count) * u128::from(max),
        );
        Histogram {
            precision: Default::default(),
            zeros,
            counts,
            count,
            sum,
            min,
            max,
        }
    }
}
