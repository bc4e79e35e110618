//! What the provider counted, against the limits.

use super::{Counts, MS, Outcome, Plan, Process, World};
use crate::quota::provider_model::over_concurrency;
use crate::quota::*;

impl World {
    pub(super) fn judge(mut self) -> Outcome {
        // One that came when the calm was long on has not had the time in which all have had a turn.
        let patience = (self.plan.length - self.plan.calm_from).saturating_sub(SECOND);
        let late = |(slot, process): (usize, &Process)| {
            let now = self.mono(slot);
            let waiting = process.queue.iter();
            let waiting = waiting.filter(|asked| now.saturating_sub(asked.since) >= patience);
            (process.admitted_late, waiting.count())
        };
        let mut outcome = Outcome {
            largest_error: self.largest_error.clone(),
            late: self.processes.iter().enumerate().map(late).collect(),
            writes: self.writes,
            ..Outcome::default()
        };
        let phases: Vec<u64> = (0..3).map(|_| self.dice.below(20 * SECOND)).collect();
        for (limit, (counts, sure)) in self
            .plan
            .limits
            .iter()
            .zip(self.counts.iter_mut().zip(&mut self.sure))
        {
            if limit.resource == Resource::Concurrency {
                let over = over_concurrency(&self.intervals, limit.limit);
                outcome.over.push(over);
                outcome.over_by_estimates.push(over);
            } else {
                outcome.over.push(over(&self.plan, &phases, limit, sure));
                outcome
                    .over_by_estimates
                    .push(over(&self.plan, &phases, limit, counts));
            }
            outcome.counted.push(counts.between(0, u64::MAX));
        }
        outcome.admitted = self.intervals.len() as u64;
        outcome
    }
}

/// Units over a limit, by the worst way of counting.
fn over(plan: &Plan, phases: &[u64], limit: &Limit, counts: &mut Counts) -> u64 {
    counts.sort();
    if let Window::Rolling(window) = &limit.window {
        // The provider's clock may be slow as well.
        let slower = window + window * plan.terms.drift_ppm * 99 / 200_000_000;
        let fixed = phases
            .iter()
            .map(|phase| counts.over_fixed(slower, *phase, limit.limit))
            .max();
        let others = counts
            .over_sliding(slower, limit.limit)
            .max(counts.over_bucket(slower, limit.limit));
        return fixed.unwrap_or(0).max(others);
    }
    let late = plan.provider_late_ms * MS as i64;
    let midnight = plan.midnight.saturating_add_signed(late);
    let days = [counts.between(0, midnight), counts.between(midnight, u64::MAX)];
    days.map(|day| day.saturating_sub(limit.limit))
        .into_iter()
        .max()
        .unwrap_or(0)
}
