//! One mergeable latency histogram for the gateway, the load generator and the operator.
//!
//! # Why log buckets
//!
//! Percentiles of percentiles mean nothing, so whatever leaves a process must be mergeable, and it has to fit
//! a container's termination message (4096 bytes) and an object's status. HDR histograms spend linear
//! sub-buckets unevenly (128 per octave for two digits); a uniform relative bound of 1 % needs 35. This is the
//! mapping of DDSketch (Masson, Rim, Lee: "DDSketch", VLDB 2019, section 2.1): bucket `i` holds the values in
//! `(γ^(i-1), γ^i]` with `γ = 1.01/0.99`, and answers with `2γ^i/(γ+1)`, which is at most 1 % away from each of
//! them. OpenTelemetry's exponential histograms are the same family.
//!
//! # Coarser precisions
//!
//! Merging two neighbouring buckets squares γ, and the error becomes `2α/(1+α²)`, a little less than twice the
//! old one. So precision is a number of halvings: 1 %, 2 %, 4 % and on. Coarsening needs no raw data, and it
//! commutes with merging: histograms of different precision merge to the coarser one.
//!
//! # What is exact
//!
//! Count, sum, minimum and maximum. Values are microseconds by convention, but nothing here depends on it.
//! Zero has its own bucket. Quantiles are `f64` because rounding a 150 µs answer to a whole microsecond would
//! already break the 1 %.

mod atomic;
pub(crate) mod codec;

use std::fmt;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub use atomic::{AtomicHistogram, MAX_TRACKED_MICROSECONDS};
pub use codec::DecodeError;

/// `ln(1.01 / 0.99)`, written out so that no platform's `ln` decides where a bucket ends.
const LN_GAMMA: f64 = 0.020000666706669525;

/// Index of the bucket that holds `u64::MAX` at the finest precision: `ceil(64 ln 2 / ln γ)`.
pub(crate) const MAX_INDEX: usize = 2218;

/// How far an answer may be from the truth, as a number of halvings of the finest resolution.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Precision(u8);

impl Precision {
    /// At most 1 % relative error; what every histogram starts with.
    pub const ONE_PERCENT: Self = Self(0);
    /// At most 2 % relative error.
    pub const TWO_PERCENT: Self = Self(1);
    /// At most 4 % relative error.
    pub const FOUR_PERCENT: Self = Self(2);
    /// The last resort: any histogram fits 40 buckets here.
    pub const COARSEST: Self = Self(6);

    /// The precision with `halvings` halvings of the finest; `None` beyond [`Precision::COARSEST`].
    pub fn from_halvings(halvings: u8) -> Option<Self> {
        (halvings <= Self::COARSEST.0).then_some(Self(halvings))
    }

    /// The number of halvings: 0 is 1 %, 1 is 2 %, 2 is 4 %.
    pub fn halvings(self) -> u8 {
        self.0
    }

    /// The bound on the relative error, 0.01 for [`Precision::ONE_PERCENT`]: `(γ'-1)/(γ'+1) = tanh(ln γ' / 2)`.
    pub fn relative_error(self) -> f64 {
        (self.ln_gamma() / 2.0).tanh()
    }

    /// The error bound in percent, rounded up to a whole one: 1, 2, 4, 8, …
    pub fn percent(self) -> u32 {
        (self.relative_error() * 100.0 - 1e-9).ceil() as u32
    }

    fn ln_gamma(self) -> f64 {
        LN_GAMMA * f64::from(1u32 << self.0)
    }
}

/// A histogram of non-negative integers (microseconds by convention) with logarithmic buckets.
///
/// Equality is by content: equal buckets, count, sum, minimum, maximum and precision.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Histogram {
    precision: Precision,
    zeros: u64,
    /// `counts[i]` is bucket `i`; the last element is never 0.
    counts: Vec<u64>,
    count: u64,
    sum: u128,
    /// Meaningless while `count` is 0.
    min: u64,
    max: u64,
}

/// The bucket of `value` (> 0) at the finest precision.
fn index_of(value: u64) -> usize {
    if value <= 1 {
        return 0;
    }
    (((value as f64).ln() / LN_GAMMA).ceil() as usize).min(MAX_INDEX)
}

/// The index at `precision` of what was bucket `fine` at the finest: `ceil(fine / 2^halvings)`, because bucket
/// `j` covers the fine indices in `((j-1)·2^h, j·2^h]`.
fn coarse_index(fine: usize, halvings: u8) -> usize {
    (fine + (1 << halvings) - 1) >> halvings
}

impl Histogram {
    /// An empty histogram at 1 % precision.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds one value.
    pub fn record(&mut self, value: u64) {
        self.record_n(value, 1);
    }

    /// Adds `n` equal values; 0 of them changes nothing. Counts saturate at `u64::MAX`.
    pub fn record_n(&mut self, value: u64, n: u64) {
        if n == 0 {
            return;
        }
        if value == 0 {
            self.zeros = self.zeros.saturating_add(n);
        } else {
            self.add_to_bucket(coarse_index(index_of(value), self.precision.0), n);
        }
        self.widen(value, value);
        self.count = self.count.saturating_add(n);
        self.sum = self.sum.saturating_add(u128::from(value) * u128::from(n));
    }

    fn add_to_bucket(&mut self, index: usize, n: u64) {
        if index >= self.counts.len() {
            self.counts.resize(index + 1, 0);
        }
        self.counts[index] = self.counts[index].saturating_add(n);
    }

    fn widen(&mut self, min: u64, max: u64) {
        if self.count == 0 {
            (self.min, self.max) = (min, max);
        } else {
            (self.min, self.max) = (self.min.min(min), self.max.max(max));
        }
    }

    /// Adds all values of `other`. The result has the coarser of both precisions.
    ///
    /// Associative and commutative, so results of any number of processes merge in any order.
    pub fn merge(&mut self, other: &Self) {
        if other.precision > self.precision {
            self.coarsen(other.precision);
        }
        let shift = self.precision.0 - other.precision.0;
        for (index, n) in other.counts.iter().enumerate().filter(|(_, n)| **n > 0) {
            self.add_to_bucket(coarse_index(index, shift), *n);
        }
        if other.count > 0 {
            self.widen(other.min, other.max);
        }
        self.zeros = self.zeros.saturating_add(other.zeros);
        self.count = self.count.saturating_add(other.count);
        self.sum = self.sum.saturating_add(other.sum);
    }

    /// Gives up resolution until `precision` is reached; never gains any.
    pub fn coarsen(&mut self, precision: Precision) {
        if precision <= self.precision {
            return;
        }
        let shift = precision.0 - self.precision.0;
        let fine = std::mem::take(&mut self.counts);
        self.precision = precision;
        for (index, n) in fine.into_iter().enumerate().filter(|(_, n)| *n > 0) {
            self.add_to_bucket(coarse_index(index, shift), n);
        }
    }

    /// A copy at `precision`, or at this histogram's own if that is coarser.
    pub fn coarsened(&self, precision: Precision) -> Self {
        let mut copy = self.clone();
        copy.coarsen(precision);
        copy
    }

    /// The present precision.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// The exact number of recorded values.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Whether nothing was recorded.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The exact sum of all values.
    pub fn sum(&self) -> u128 {
        self.sum
    }

    /// The exact smallest value.
    pub fn min(&self) -> Option<u64> {
        (self.count > 0).then_some(self.min)
    }

    /// The exact largest value.
    pub fn max(&self) -> Option<u64> {
        (self.count > 0).then_some(self.max)
    }

    /// The exact mean.
    pub fn mean(&self) -> Option<f64> {
        (self.count > 0).then(|| self.sum as f64 / self.count as f64)
    }

    /// What bucket `index` answers with: within the relative error of all its values, and never outside what
    /// was really seen.
    fn representative(&self, index: usize) -> f64 {
        let ln_gamma = self.precision.ln_gamma();
        let upper = (index as f64 * ln_gamma).exp();
        (2.0 * upper / (1.0 + ln_gamma.exp())).clamp(self.min as f64, self.max as f64)
    }

    /// The value at quantile `q` (0 to 1, clamped) by nearest rank: the `ceil(q·n)`-th smallest, within the
    /// relative error of [`Histogram::precision`]. `None` when nothing was recorded: no data has no percentile.
    pub fn quantile(&self, q: f64) -> Option<f64> {
        if self.count == 0 {
            return None;
        }
        let rank = ((q.clamp(0.0, 1.0) * self.count as f64).ceil() as u64).clamp(1, self.count);
        if rank == self.count {
            return Some(self.max as f64);
        }
        let mut seen = self.zeros;
        if seen >= rank {
            return Some(0.0);
        }
        for (index, n) in self.counts.iter().enumerate() {
            seen = seen.saturating_add(*n);
            if seen >= rank {
                return Some(self.representative(index));
            }
        }
        Some(self.max as f64)
    }

    /// [`Histogram::quantile`] of microseconds as whole milliseconds, rounded to the nearest.
    pub fn quantile_milliseconds(&self, q: f64) -> Option<i64> {
        self.quantile(q)
            .map(|microseconds| (microseconds / 1000.0).round() as i64)
    }

    /// How many values are above `limit`: the misses of a threshold.
    ///
    /// The bucket that `limit` falls into is counted by what it answers with, so this agrees with
    /// [`Histogram::quantile`] (a quantile is above `limit` exactly if enough values are) and equals the exact
    /// count for some limit within the relative error of the given one. Exact where all values are on one side.
    pub fn count_above(&self, limit: u64) -> u64 {
        if self.count == 0 || self.max <= limit {
            return 0;
        }
        if self.min > limit {
            return self.count;
        }
        let above = self
            .counts
            .iter()
            .enumerate()
            .rev()
            .take_while(|(index, _)| self.representative(*index) > limit as f64)
            .fold(0u64, |total, (_, n)| total.saturating_add(*n));
        // The extremes are known exactly, whatever their buckets answer with.
        above.clamp(1, self.count - 1)
    }

    /// The non-empty buckets in ascending order as (inclusive upper bound, count), the zero bucket first.
    pub fn buckets(&self) -> impl Iterator<Item = (f64, u64)> + '_ {
        let ln_gamma = self.precision.ln_gamma();
        let zero = (self.zeros > 0).then_some((0.0, self.zeros));
        let rest = self.counts.iter().enumerate().filter(|(_, n)| **n > 0);
        zero.into_iter()
            .chain(rest.map(move |(index, n)| ((index as f64 * ln_gamma).exp(), *n)))
    }

    /// The compact text form, about 0.5 kB for 100,000 latencies at 1 %. See [`Histogram::from_text`].
    pub fn to_text(&self) -> String {
        codec::to_text(self)
    }

    /// Reads the compact text form.
    ///
    /// # Errors
    /// If the text is not one that [`Histogram::to_text`] can have written. Never panics and never allocates
    /// more than 64 KiB, whatever the input.
    pub fn from_text(text: &str) -> Result<Self, DecodeError> {
        codec::from_text(text)
    }
}

impl fmt::Debug for Histogram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Histogram")
            .field("count", &self.count)
            .field("min", &self.min())
            .field("p50", &self.quantile(0.5))
            .field("p99", &self.quantile(0.99))
            .field("max", &self.max())
            .field("precision", &self.precision)
            .finish_non_exhaustive()
    }
}

impl FromIterator<u64> for Histogram {
    fn from_iter<I: IntoIterator<Item = u64>>(values: I) -> Self {
        let mut histogram = Self::new();
        values.into_iter().for_each(|value| histogram.record(value));
        histogram
    }
}

impl Serialize for Histogram {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.to_text())
    }
}

impl<'de> Deserialize<'de> for Histogram {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        Self::from_text(&text).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests;
