//! What the provider counted, against the limits.

use super::{MS, Outcome, World};
use crate::quota::provider_model::over_concurrency;
use crate::quota::*;

impl World {
    pub(super) fn judge(mut self) -> Outcome {
        let mut outcome = Outcome {
            largest_error: self.largest_error.clone(),
            late: self
                .processes
                .iter()
                .map(|process| (process.admitted_late, process.queue.len()))
                .collect(),
            writes: self.writes,
            ..Outcome::default()
        };
        let phases: Vec<u64> = (0..3).map(|_| self.dice.below(20 * SECOND)).collect();
        for (limit, counts) in self.plan.limits.iter().zip(&mut self.counts) {
            counts.sort();
            let all = counts.between(0, u64::MAX);
            let over = match (&limit.window, limit.resource) {
                (_, Resource::Concurrency) => over_concurrency(&self.intervals, limit.limit),
                (Window::Rolling(window), _) => {
                    // The provider's clock may be slow as well.
                    let slower = window + window * self.plan.terms.drift_ppm * 99 / 200_000_000;
                    let fixed = phases
                        .iter()
                        .map(|phase| counts.over_fixed(slower, *phase, limit.limit))
                        .max();
                    let others = counts
                        .over_sliding(slower, limit.limit)
                        .max(counts.over_bucket(slower, limit.limit));
                    fixed.unwrap_or(0).max(others)
                }
                _ => {
                    let late = self.plan.provider_late_ms * MS as i64;
                    let midnight = self.plan.midnight.saturating_add_signed(late);
                    let before = counts.between(0, midnight).saturating_sub(limit.limit);
                    before.max(counts.between(midnight, u64::MAX).saturating_sub(limit.limit))
                }
            };
            outcome.over.push(over);
            outcome.counted.push(all);
        }
        outcome.admitted = self.intervals.len() as u64;
        outcome
    }
}
