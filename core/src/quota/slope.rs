//! Some providers refuse traffic that grows too fast although it is below their limit.
//!
//! A slope is a rolling limit whose number moves: what was in use at most in the last windows, and a step above it. What
//! is in use is what was admitted within one window, so this bounds the admitted rate, over all replicas together, by the
//! same permits as any other limit. Only windows that are over count as the recent maximum: else each grant would
//! justify the next, and the rate would double within seconds.

use std::collections::VecDeque;

use super::Nanos;

/// How fast a limit may grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slope {
    /// Units per window that are always allowed.
    pub base: u64,
    /// Per window, in percent above the recent maximum.
    pub step_percent: u64,
    /// Windows that are recent.
    pub memory: usize,
}

/// The recent maximum and what follows from it.
#[derive(Clone, Debug)]
pub(super) struct Ramp {
    slope: Slope,
    window: Nanos,
    /// The number of the window that is on, and the most in use in it so far.
    current: (u64, u64),
    /// The most in use in windows that are over, newest first.
    past: VecDeque<u64>,
}

impl Ramp {
    /// `recent` is the recent maximum as [`Ramp::recent`] said it in an earlier life.
    pub(super) fn new(slope: Slope, window: Nanos, recent: u64, now: Nanos) -> Self {
        let window = window.max(1);
        Self {
            slope,
            window,
            current: (now / window, 0),
            past: VecDeque::from([recent]),
        }
    }

    /// Takes notice that `held` units are in use.
    pub(super) fn observe(&mut self, held: u64, now: Nanos) {
        let index = now / self.window;
        if index > self.current.0 {
            // Windows without a look had nothing in use that is known.
            let gap = (index - self.current.0 - 1).min(self.slope.memory as u64);
            self.past.push_front(self.current.1);
            (0..gap).for_each(|_| self.past.push_front(0));
            self.past.truncate(self.slope.memory.max(1));
            self.current = (index, 0);
        }
        self.current.1 = self.current.1.max(held);
    }

    /// The most in use in a recent window that is over.
    pub(super) fn recent(&self) -> u64 {
        self.past.iter().copied().max().unwrap_or(0)
    }

    /// Units that may be in use.
    pub(super) fn capacity(&self) -> u64 {
        let recent = self.recent();
        let step = u128::from(recent) * u128::from(self.slope.step_percent) / 100;
        let grown = recent.saturating_add(u64::try_from(step).unwrap_or(u64::MAX).max(1));
        grown.max(self.slope.base)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_by_a_step_per_window_and_forgets() {
        let slope = Slope {
            base: 100,
            step_percent: 20,
            memory: 3,
        };
        let mut ramp = Ramp::new(slope, 10, 0, 0);
        let mut capacities = Vec::new();
        for now in 0..40 {
            // All that is allowed is used at once.
            ramp.observe(ramp.capacity(), now);
            if now % 10 == 9 {
                capacities.push(ramp.capacity());
            }
        }
        assert_eq!(capacities, [100, 120, 144, 172]);
        ramp.observe(0, 65);
        assert_eq!(ramp.capacity(), 206, "the last full use is still recent");
        ramp.observe(0, 70);
        assert_eq!(ramp.capacity(), 100);
        assert_eq!(
            Ramp::new(slope, 10, 172, 0).capacity(),
            206,
            "a restart does not start from nothing"
        );
    }
}
