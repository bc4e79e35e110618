//! The absolute e-process: is a rate below (or above) a limit, whatever stable does?
//!
//! The comparison says nothing while neither arm has errors, yet a clean record is evidence too. For H0 `θ ≥ θ0` and an
//! alternative `θ1 < θ0` a window multiplies the e-value by `(θ1/θ0)^x ((1-θ1)/(1-θ0))^(n-x)`, the likelihood ratio; for
//! `θ1 > θ0` the same tests `θ ≤ θ0`. Bursts of at most c events: all counts divided by c, which Jensen's inequality keeps valid.

use super::ratio::{Arm, LogE};

/// Alternatives of the test that a rate is below a limit.
pub const BELOW: usize = 6;
/// Alternatives of the test that a rate is above a limit.
pub const ABOVE: usize = 8;
/// As multiples of the limit. 0 is the sharpest while nothing fails and is out after the first failure.
const BELOW_MULTIPLES: [f64; BELOW] = [0.0, 0.05, 0.1, 0.2, 0.4, 0.7];
/// As multiples of the limit's odds, which keeps every alternative below 1.
const ABOVE_ODDS: [f64; ABOVE] = [1.25, 1.6, 2.0, 3.0, 5.0, 10.0, 30.0, 100.0];
/// Limits are kept off 0 and 1, where the likelihood ratio is undefined.
const LOWEST: f64 = 1e-6;
const HIGHEST: f64 = 0.999;

/// A test of a rate against a limit with `N` alternatives.
#[derive(Clone, Debug)]
pub struct RateTest<const N: usize> {
    /// `ln(θ1/θ0)` and `ln((1-θ1)/(1-θ0))`.
    gains: [(f64, f64); N],
    cluster: f64,
}

impl RateTest<BELOW> {
    /// H0: the rate is at least `limit` (a share, clamped to 10⁻⁶ … 0.999). `cluster` is the largest burst of events.
    pub fn below(limit: f64, cluster: f64) -> Self {
        let limit = limit.clamp(LOWEST, HIGHEST);
        Self::new(limit, BELOW_MULTIPLES.map(|multiple| multiple * limit), cluster)
    }
}

impl RateTest<ABOVE> {
    /// H0: the rate is at most `limit` (a share, clamped to 10⁻⁶ … 0.999). `cluster` is the largest burst of events.
    pub fn above(limit: f64, cluster: f64) -> Self {
        let limit = limit.clamp(LOWEST, HIGHEST);
        Self::new(limit, ABOVE_ODDS.map(|times| odds_times(limit, times)), cluster)
    }
}

impl<const N: usize> RateTest<N> {
    fn new(limit: f64, alternatives: [f64; N], cluster: f64) -> Self {
        Self {
            gains: alternatives.map(|rate| ((rate / limit).ln(), ((1.0 - rate) / (1.0 - limit)).ln())),
            cluster: cluster.max(1.0),
        }
    }

    /// Adds one window's counts; none changes nothing.
    pub fn observe(&self, evidence: &mut LogE<N>, arm: Arm) {
        if arm.requests == 0 {
            return;
        }
        let bad = arm.events as f64;
        let good = arm.requests.saturating_sub(arm.events) as f64;
        for (index, (ln_bad, ln_good)) in self.gains.iter().enumerate() {
            // 0 · ln 0 is 0 here.
            let of_bad = if arm.events == 0 { 0.0 } else { bad * ln_bad };
            evidence.multiply(index, (of_bad + good * ln_good) / self.cluster);
        }
    }

    /// The expected growth of `ln E` per request of the best alternative, were the true rate `rate` (a share).
    pub fn growth(&self, rate: f64) -> f64 {
        let growth = |(ln_bad, ln_good): &(f64, f64)| {
            let of_bad = if rate == 0.0 { 0.0 } else { rate * ln_bad };
            (of_bad + (1.0 - rate) * ln_good) / self.cluster
        };
        self.gains.iter().map(growth).fold(f64::NEG_INFINITY, f64::max)
    }
}

/// The rate whose odds are `times` those of `rate`.
pub(super) fn odds_times(rate: f64, times: f64) -> f64 {
    let odds = rate / (1.0 - rate) * times;
    odds / (1.0 + odds)
}
