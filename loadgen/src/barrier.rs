//! When the workers start: all at once, or at the deadline with enough of them, or never.
//!
//! Pure bookkeeping in the coordinator's own time, a number of nanoseconds since it began.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What a worker is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all_fields = "camelCase")]
pub enum Signal {
    /// Others are missing; ask again.
    Waiting,
    /// Begin at this moment of the coordinator's clock; it may be past.
    Start {
        /// The common start.
        at_nanoseconds: u64,
    },
    /// Too few came in time.
    Abandoned,
    /// The worker has another plan than the coordinator.
    Refused,
}

/// Waits for the workers of a run.
#[derive(Debug)]
pub struct Barrier {
    workers: u32,
    needed: u32,
    deadline: u64,
    lead: u64,
    /// Worst round trip of each worker that has come.
    arrived: BTreeMap<u32, u64>,
    decided: Option<Signal>,
}

impl Barrier {
    /// A barrier for `workers` workers that can do without those that `min_coverage_percent` does not need, but
    /// waits for them until `deadline`. The start is at least `lead` after the decision.
    pub fn new(workers: u32, min_coverage_percent: u32, deadline: u64, lead: u64) -> Self {
        let needed = (u64::from(workers) * u64::from(min_coverage_percent))
            .div_ceil(100)
            .max(1);
        let needed = u32::try_from(needed).unwrap_or(u32::MAX).min(workers);
        Self {
            workers,
            needed,
            deadline,
            lead,
            arrived: BTreeMap::new(),
            decided: None,
        }
    }

    /// Notes that a worker is ready; saying so twice changes nothing but its round trip.
    pub fn arrive(&mut self, index: u32, round_trip: u64) {
        if index < self.workers {
            let worst = self.arrived.entry(index).or_default();
            *worst = round_trip.max(*worst);
        }
    }

    /// Workers that have come.
    pub fn ready(&self) -> u32 {
        self.arrived.len() as u32
    }

    /// What to tell a worker at `now`. Once decided, the answer never changes: late workers get the same start.
    pub fn signal(&mut self, now: u64) -> Signal {
        if let Some(signal) = self.decided {
            return signal;
        }
        let ready = self.ready();
        let decided = if ready >= self.workers || (now >= self.deadline && ready >= self.needed) {
            // Every worker has to hear of it before it is time: one that polls every quarter of a second and
            // then measures its clock needs several round trips.
            let worst = self.arrived.values().copied().max().unwrap_or(0);
            Signal::Start {
                at_nanoseconds: now.saturating_add(self.lead.max(worst.saturating_mul(4))),
            }
        } else if now >= self.deadline {
            Signal::Abandoned
        } else {
            return Signal::Waiting;
        };
        self.decided = Some(decided);
        decided
    }
}

/// One reading of another clock: asked at `sent` and answered at `received` on ours, `theirs` in between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockReading {
    /// Our clock before.
    pub sent: u64,
    /// The other clock when the question came.
    pub their_received: u64,
    /// The other clock when the answer went.
    pub their_sent: u64,
    /// Our clock after.
    pub received: u64,
}

/// How to convert the other clock's time to ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockOffset {
    /// Theirs minus ours, in nanoseconds.
    pub nanoseconds: i128,
    /// The error is at most this: half the round trip.
    pub uncertainty: u64,
}

impl ClockOffset {
    /// The offset by the reading with the shortest round trip (RFC 5905, section 8): that one had the least room for
    /// an uneven way there and back. `None` without readings.
    pub fn best_of(readings: &[ClockReading]) -> Option<Self> {
        readings
            .iter()
            .map(|reading| {
                let ClockReading {
                    sent,
                    their_received,
                    their_sent,
                    received,
                } = *reading;
                let there = i128::from(their_received) - i128::from(sent);
                let back = i128::from(their_sent) - i128::from(received);
                let away = received
                    .saturating_sub(sent)
                    .saturating_sub(their_sent.saturating_sub(their_received));
                Self {
                    nanoseconds: (there + back) / 2,
                    uncertainty: away.div_ceil(2),
                }
            })
            .min_by_key(|offset| offset.uncertainty)
    }

    /// A moment of their clock on ours, or 0 if that is before ours began.
    pub fn to_ours(self, theirs: u64) -> u64 {
        u64::try_from(i128::from(theirs) - self.nanoseconds).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn barrier() -> Barrier {
        Barrier::new(4, 75, 10 * SECOND, 2 * SECOND)
    }

    #[test]
    fn starts_when_all_are_there_and_tells_late_ones_the_same() {
        let mut barrier = barrier();
        (0..3).for_each(|index| barrier.arrive(index, 1));
        assert_eq!(barrier.signal(SECOND), Signal::Waiting);
        barrier.arrive(2, 1);
        assert_eq!(barrier.signal(SECOND), Signal::Waiting);
        barrier.arrive(9, 1);
        barrier.arrive(3, SECOND);
        let start = Signal::Start {
            at_nanoseconds: 6 * SECOND,
        };
        assert_eq!(barrier.signal(2 * SECOND), start);
        assert_eq!(barrier.signal(60 * SECOND), start);
    }

    #[test]
    fn at_the_deadline_enough_start_and_too_few_give_up() {
        let mut enough = barrier();
        (0..3).for_each(|index| enough.arrive(index, 1));
        assert_eq!(
            enough.signal(10 * SECOND),
            Signal::Start {
                at_nanoseconds: 12 * SECOND
            }
        );
        let mut few = barrier();
        (0..2).for_each(|index| few.arrive(index, 1));
        assert_eq!(few.signal(10 * SECOND), Signal::Abandoned);
        (2..4).for_each(|index| few.arrive(index, 1));
        assert_eq!(few.signal(11 * SECOND), Signal::Abandoned);
        assert_eq!(Barrier::new(4, 99, 1, 1).needed, 4);
    }

    #[test]
    fn signals_are_json() {
        let text = serde_json::to_string(&Signal::Start { at_nanoseconds: 5 }).unwrap();
        assert_eq!(text, r#"{"state":"Start","atNanoseconds":5}"#);
    }

    #[test]
    fn the_shortest_round_trip_gives_the_offset() {
        // Theirs is 1000 ahead; the first reading lost 600 on the way back.
        let readings = [
            ClockReading {
                sent: 0,
                their_received: 1100,
                their_sent: 1110,
                received: 810,
            },
            ClockReading {
                sent: 2000,
                their_received: 3050,
                their_sent: 3060,
                received: 2110,
            },
        ];
        let offset = ClockOffset::best_of(&readings).unwrap();
        assert_eq!(
            offset,
            ClockOffset {
                nanoseconds: 1000,
                uncertainty: 50
            }
        );
        assert_eq!((offset.to_ours(5000), offset.to_ours(10)), (4000, 0));
        assert_eq!(ClockOffset::best_of(&[]), None);
    }
}
