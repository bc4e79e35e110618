//! Which replica answers worse than the others.
//!
//! Envoy compares each host with the mean of all minus a multiple of the standard deviation *between hosts*, which
//! needs five hosts with a hundred requests each; and with `n` hosts none can be more than `√(n-1)` deviations from the
//! mean, so in a pool of three nothing is ever found. Agent pools are that small. So each replica's failures are
//! compared with those of *all others together*, by the usual test of two proportions, whose deviation comes from the
//! numbers of requests (Fleiss, "Statistical methods for rates and proportions", section 2.4):
//!
//! ```text
//!   z = (p₁ - p₂ - (1/n₁ + 1/n₂)/2) / √(p(1-p)(1/n₁ + 1/n₂)),   p = (x₁+x₂)/(n₁+n₂)
//! ```
//!
//! Being significant is not enough, with many requests any difference is; it must also matter, by a margin. The worst
//! one is taken first and left out of the rest, or two bad ones would hide each other. When all are equally bad, nobody
//! is worse than the others: a broken dependency ejects nobody.

/// When a replica's failures are too many.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SuccessRatePolicy {
    /// Requests that a replica, and the others together, must have had.
    pub min_requests: u64,
    /// How much larger its share of failures must be, from 0 to 1.
    pub margin: f64,
    /// How many standard deviations larger.
    pub deviations: f64,
}

impl Default for SuccessRatePolicy {
    /// 20 requests, 20 percentage points, 4 deviations: of five replicas that all fail alike, at any rate up to 60 %,
    /// one is accused in about one of 7,000 looks (`equal_replicas_are_hardly_ever_ejected`).
    fn default() -> Self {
        Self {
            min_requests: 20,
            margin: 0.2,
            deviations: 4.0,
        }
    }
}

/// The answers of one replica.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Good ones.
    pub answered: u64,
    /// Failures.
    pub failed: u64,
}

impl Tally {
    fn requests(self) -> u64 {
        self.answered + self.failed
    }

    fn failure_share(self) -> f64 {
        self.failed as f64 / self.requests().max(1) as f64
    }
}

/// Indices of the replicas that fail more than the others, the worst first, at most `limit`.
pub fn outliers(tallies: &[Tally], policy: &SuccessRatePolicy, limit: usize) -> Vec<usize> {
    let mut left: Vec<(usize, Tally)> = tallies.iter().copied().enumerate().collect();
    let mut found = Vec::new();
    while found.len() < limit {
        let worst = left
            .iter()
            .enumerate()
            .filter(|(_, (_, tally))| tally.requests() >= policy.min_requests.max(1))
            .max_by(|(_, (_, one)), (_, (_, other))| {
                one.failure_share()
                    .total_cmp(&other.failure_share())
                    .then(one.failed.cmp(&other.failed))
            });
        let Some((place, _)) = worst else { break };
        let (index, tally) = left.swap_remove(place);
        let rest = left.iter().fold(Tally::default(), |sum, (_, tally)| Tally {
            answered: sum.answered + tally.answered,
            failed: sum.failed + tally.failed,
        });
        if !is_worse(tally, rest, policy) {
            break;
        }
        found.push(index);
    }
    found
}

fn is_worse(tally: Tally, rest: Tally, policy: &SuccessRatePolicy) -> bool {
    let (own, others) = (tally.requests() as f64, rest.requests() as f64);
    if rest.requests() < policy.min_requests.max(1) {
        return false;
    }
    let difference = tally.failure_share() - rest.failure_share();
    let pooled = (tally.failed + rest.failed) as f64 / (own + others);
    let deviation = (pooled * (1.0 - pooled) * (1.0 / own + 1.0 / others)).sqrt();
    let continuity = (1.0 / own + 1.0 / others) / 2.0;
    difference > 0.0
        && difference >= policy.margin
        && difference - continuity >= policy.deviations * deviation
}
