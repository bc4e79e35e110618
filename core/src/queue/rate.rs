//! How fast waiting requests are served.
//!
//! Measured between two handovers without an idle moment, because only then is everything at work that can be: the
//! completions of a pool that has free slots say how fast requests come, not how fast it can serve. The time from the
//! first arrival to the first handover of a busy period is left out: the slot was taken before, so that time is
//! shorter than a service (and zero where a slot became free at the same moment).
//!
//! Numerator and denominator fade with the same exponential in busy time, so that the ratio is an average and not an
//! average of ratios, which the shortest gaps would rule.
//!
//! A rate that nobody has waited at for a while is forgotten. It could not be kept: a pool that hung and works again
//! would be predicted to hang, everybody would be refused, and nobody would ever wait and show that it works.

/// Handovers without which nothing is predicted, unless most of the time that counts has been seen: slow is a rate too.
const ENOUGH: f64 = 6.0;

/// A rate in units of cost per nanosecond.
#[derive(Clone, Debug)]
pub(super) struct Rate {
    /// Busy time in which a measurement loses 63 % of its weight, and idle time after which all of it is forgotten.
    memory: u64,
    /// Faded busy time that must have been seen.
    least: f64,
    /// Faded sum of costs.
    cost: f64,
    /// Faded number of handovers.
    count: f64,
    /// Faded busy time in nanoseconds.
    time: f64,
    /// Since when something has been waiting.
    busy_since: Option<u64>,
    /// The last handover of this busy period.
    last: Option<u64>,
    /// End of the last busy period.
    idle_since: u64,
}

impl Rate {
    /// Nothing is known yet, and nothing will be before so much busy time was seen.
    pub(super) fn new(memory_nanoseconds: u64, least_nanoseconds: u64) -> Self {
        let memory = memory_nanoseconds.max(1);
        Self {
            memory,
            least: faded(least_nanoseconds, memory),
            cost: 0.0,
            count: 0.0,
            time: 0.0,
            busy_since: None,
            last: None,
            idle_since: 0,
        }
    }

    /// The first request waits.
    pub(super) fn busy(&mut self, now: u64) {
        if self.is_forgotten(now) {
            (self.cost, self.count, self.time) = (0.0, 0.0, 0.0);
        }
        self.busy_since = Some(now);
        self.last = None;
    }

    fn is_forgotten(&self, now: u64) -> bool {
        self.busy_since.is_none() && now.saturating_sub(self.idle_since) > self.memory
    }

    /// A waiting request of this cost was handed over.
    pub(super) fn served(&mut self, cost: u64, now: u64) {
        if let Some(last) = self.last {
            self.pass(now.saturating_sub(last));
            self.cost += cost as f64;
            self.count += 1.0;
        }
        self.last = Some(now);
    }

    /// Nothing waits any more. Time since the last handover counts: nothing was served in it.
    pub(super) fn idle(&mut self, now: u64) {
        if let Some(last) = self.last.take() {
            self.pass(now.saturating_sub(last));
        }
        self.busy_since = None;
        self.idle_since = now;
    }

    fn pass(&mut self, nanoseconds: u64) {
        let new = faded(nanoseconds, self.memory);
        let kept = 1.0 - new / self.memory as f64;
        self.cost *= kept;
        self.count *= kept;
        self.time = self.time * kept + new;
    }

    /// Cost per nanosecond; none until enough was seen, and again when it is forgotten. Sinks while a handover is overdue, so that a pool that hangs is
    /// not predicted to go on as before.
    pub(super) fn per_nanosecond(&self, now: u64) -> Option<f64> {
        let seen = self.count >= ENOUGH || (self.count >= 1.0 && self.time >= 0.8 * self.memory as f64);
        if !seen || self.time <= 0.0 || self.time < self.least || self.is_forgotten(now) {
            return None;
        }
        let rate = self.cost / self.time;
        let Some(since) = self.last.or(self.busy_since) else {
            return Some(rate);
        };
        let open = now.saturating_sub(since) as f64;
        let overdue = (self.cost + self.cost / self.count) / (self.time + open);
        Some(rate.min(overdue))
    }
}

/// What is left of a stretch of time that has just passed, when its earlier parts have faded.
fn faded(nanoseconds: u64, memory: u64) -> f64 {
    let memory = memory as f64;
    memory * -(-(nanoseconds as f64) / memory).exp_m1()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn per_second(rate: &Rate, now: u64) -> f64 {
        rate.per_nanosecond(now).unwrap() * 1e9
    }

    #[test]
    fn only_gaps_between_handovers_of_one_busy_period_count() {
        let mut rate = Rate::new(30 * SECOND, 0);
        let mut now = 0;
        for _ in 0..20 {
            rate.busy(now);
            for _ in 0..3 {
                rate.served(2, now + SECOND / 10);
                now += SECOND / 10;
            }
            rate.idle(now);
            now += 5 * SECOND;
        }
        assert!((per_second(&rate, now) - 20.0).abs() < 0.5, "{rate:?}");
    }

    #[test]
    fn nothing_is_known_of_a_queue_that_never_held_two() {
        let mut rate = Rate::new(30 * SECOND, 0);
        for second in 0..100 {
            rate.busy(second * SECOND);
            rate.served(1, second * SECOND);
            rate.idle(second * SECOND);
        }
        assert!(rate.per_nanosecond(100 * SECOND).is_none());
    }

    #[test]
    fn a_rate_that_has_changed_is_believed_soon_and_an_old_one_forgotten() {
        let mut rate = Rate::new(30 * SECOND, 0);
        rate.busy(0);
        for second in 0..60 {
            rate.served(1, second * SECOND);
        }
        for tenth in 600..1800 {
            rate.served(1, tenth * SECOND / 10);
        }
        assert!((per_second(&rate, 180 * SECOND) - 10.0).abs() < 0.3, "{rate:?}");
        rate.idle(180 * SECOND);
        assert!(rate.per_nanosecond(210 * SECOND).is_some());
        assert!(rate.per_nanosecond(211 * SECOND).is_none());
        rate.busy(211 * SECOND);
        assert!(rate.per_nanosecond(212 * SECOND).is_none());
    }

    #[test]
    fn a_pool_that_hangs_is_not_predicted_to_go_on() {
        let mut rate = Rate::new(30 * SECOND, 0);
        rate.busy(0);
        for tenth in 0..600 {
            rate.served(1, tenth * SECOND / 10);
        }
        let (soon, late) = (per_second(&rate, 60 * SECOND), per_second(&rate, 360 * SECOND));
        assert!(soon > 9.5 && late < 1.2, "{soon} {late}");
    }

    #[test]
    fn a_rate_is_not_believed_before_enough_time_was_seen() {
        let mut rate = Rate::new(180 * SECOND, 120 * SECOND);
        rate.busy(0);
        for second in 0..120 {
            rate.served(1, second * SECOND);
        }
        assert!(rate.per_nanosecond(119 * SECOND).is_none());
        rate.served(1, 121 * SECOND);
        assert!((per_second(&rate, 121 * SECOND) - 1.0).abs() < 0.05, "{rate:?}");
    }
}
