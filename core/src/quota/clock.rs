//! A wall clock that is steered and never jumps.
//!
//! A system clock may be stepped by hours, in both directions, by an operator or a bad time server. Within a process
//! the monotonic clock knows better, so the wall clock is read once and from then on only pulled towards what the
//! system says, by at most a thousandth of the time that has passed: ten times a bad quartz, so it keeps up with any real
//! clock, while a step of an hour takes six weeks to be believed.

use super::{MILLISECOND, Nanos};

/// The steered clock of one process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WallClock {
    at: Nanos,
    unix_nanos: i64,
}

impl WallClock {
    /// A clock that believes `unix_ms` (milliseconds since 1970), best from a server's `Date`, at `now`.
    pub fn new(now: Nanos, unix_ms: i64) -> Self {
        Self {
            at: now,
            unix_nanos: unix_ms.saturating_mul(MILLISECOND as i64),
        }
    }

    /// The wall clock at `now`, when the system's says `unix_ms`. Milliseconds since 1970.
    pub fn observe(&mut self, now: Nanos, unix_ms: i64) -> i64 {
        let elapsed = i64::try_from(now.saturating_sub(self.at)).unwrap_or(i64::MAX);
        let predicted = self.unix_nanos.saturating_add(elapsed);
        let error = unix_ms
            .saturating_mul(MILLISECOND as i64)
            .saturating_sub(predicted);
        let pull = error.clamp(-(elapsed / 1_000), elapsed / 1_000);
        self.at = now.max(self.at);
        self.unix_nanos = predicted.saturating_add(pull);
        self.unix_nanos / MILLISECOND as i64
    }
}

#[cfg(test)]
mod tests {
    use super::super::SECOND;
    use super::*;

    #[test]
    fn a_step_is_not_believed_and_drift_is_followed() {
        let mut clock = WallClock::new(0, 1_000_000);
        assert_eq!(clock.observe(10 * SECOND, 1_010_000), 1_010_000);
        let jumped = clock.observe(20 * SECOND, 1_020_000 + 3_600_000);
        assert_eq!(jumped, 1_020_010, "a thousandth of 10 s");
        let mut clock = WallClock::new(0, 0);
        // A system clock that runs 200 ppm faster than the monotonic one.
        for second in 1..=10_000u64 {
            let system = (second * 1_000 + second / 5) as i64;
            let said = clock.observe(second * SECOND, system);
            assert!((said - system).abs() <= 2, "{said} against {system}");
        }
    }
}
