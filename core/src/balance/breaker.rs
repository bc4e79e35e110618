//! Whether one replica may have requests: a circuit breaker in one atomic word.
//!
//! ```text
//!                      open (by the Ejector)
//!        ┌─────────┐ ─────────────────────────► ┌────────┐
//!        │ Closed  │                            │  Open  │ ◄─┐
//!        └─────────┘ ◄──── enough probes ───┐   └────────┘   │ a probe failed:
//!                           succeeded       │        │       │ open again, longer
//!                                       ┌──────────┐ │       │
//!                                       │ HalfOpen │◄┘ the first request after the time is over
//!                                       └──────────┘ ────────┘
//! ```
//!
//! * *Closed*: every request may go. Consecutive failures are counted, for the [`super::Ejector`] to judge.
//! * *Open*: none may go, until a set time.
//! * *HalfOpen*: a few requests at once may go, the probes. The replica is on probation until enough of them have succeeded.
//!
//! # What an answer may say
//!
//! A request carries a [`Ticket`] from its start, with the number of the state in which it started. An answer counts
//! only in that state: requests that were sent before the breaker opened neither close it nor open it again. Requests
//! that are sent although the breaker refuses them (all replicas are ejected) count for nothing; probes alone decide.
//!
//! # How long
//!
//! `open · 2^(n-1)` for the `n`-th time, at most `open_max`; at least what the replica itself asked for with
//! `Retry-After`, within the same maximum, because a replica must not be able to take itself out of the pool for a day.
//! One time is forgotten for each `forget_after` spent closed.
//!
//! # The word
//!
//! | bits | 63–62 | 61–56 | 55–40 | 39–0 |
//! |---|---|---|---|---|
//! | | state | times opened | number of the state, mod 65,536 | Closed: failures (8), closed since in s (32) |
//! | | | | | Open: until, in ms (40, 34 years) |
//! | | | | | HalfOpen: probes out (8), successes (8) |
//!
//! A healthy replica costs one relaxed load at the start of a request and one at its end: only failures, the first
//! success after them, and probes write. Relaxed is enough since the word refers to no other memory.

#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

const NANOS_PER_MILLI: u64 = 1_000_000;
const NANOS_PER_SECOND: u64 = 1_000_000_000;
const MAX_TIMES: u8 = 63;
const UNTIL_MASK: u64 = (1 << 40) - 1;

/// When a breaker closes again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BreakerPolicy {
    /// How long it stays open the first time.
    pub open: Duration,
    /// The longest it stays open.
    pub open_max: Duration,
    /// Time spent closed for which one earlier opening is forgotten; zero counts as 1 s.
    pub forget_after: Duration,
    /// Probes at once; 0 counts as 1.
    pub probes: u8,
    /// Successful probes until it closes; 0 counts as 1.
    pub successes: u8,
}

impl Default for BreakerPolicy {
    /// 10 s at first, 5 min at most; one opening is forgotten a minute; one probe at a time, two to succeed.
    fn default() -> Self {
        Self {
            open: Duration::from_secs(10),
            open_max: Duration::from_secs(300),
            forget_after: Duration::from_secs(60),
            probes: 1,
            successes: 2,
        }
    }
}

impl BreakerPolicy {
    /// How long the breaker stays open the `times`-th time, from 1, when the replica asks for `retry_after`.
    pub fn open_for(&self, times: u8, retry_after: Option<Duration>) -> Duration {
        let doublings = u32::from(times.clamp(1, 32)) - 1;
        let grown = self.open.saturating_mul(1 << doublings);
        grown.max(retry_after.unwrap_or_default()).min(self.open_max)
    }
}

/// The state of a breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// All requests may go.
    Closed {
        /// Failures since the last success.
        failures: u8,
    },
    /// No request may go.
    Open {
        /// End of this state.
        until_nanos: u64,
    },
    /// Probes may go.
    HalfOpen {
        /// Probes in flight.
        probes: u8,
        /// Probes that have succeeded.
        successes: u8,
    },
}

/// What a request took with it from the breaker. Must be ended exactly once, by [`Breaker::succeed`], [`Breaker::fail`]
/// or [`Breaker::abandon`]: a probe that is lost keeps its place until the next change of state.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a probe's place is given back only by ending the ticket"]
pub struct Ticket {
    kind: Kind,
    generation: u16,
}

impl Ticket {
    /// The request is a probe.
    pub fn is_probe(&self) -> bool {
        self.kind == Kind::Probe
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Normal,
    Probe,
    /// Sent against the breaker's advice.
    Forced,
}

/// What a success has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Succeeded {
    /// It was from another state, or forced.
    Ignored,
    /// Nothing that shows.
    Counted,
    /// It was the last probe needed: the breaker is closed.
    Closed,
}

/// What a failure has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failed {
    /// It was from another state, or forced.
    Ignored,
    /// The breaker is still closed, after this many failures in a row.
    Counted(u8),
    /// It was a probe: the breaker is open again.
    Reopened(Opened),
}

/// How a breaker was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    /// For which time in a row, from 1, without those that were forgotten.
    pub times: u8,
    /// Until when.
    pub until_nanos: u64,
}

/// Names one uninterrupted stay in one state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stay(u16);

/// The breaker of one replica. Starts closed.
#[derive(Debug, Default)]
pub struct Breaker {
    word: AtomicU64,
}

#[derive(Clone, Copy)]
enum Phase {
    Closed { failures: u8, since_seconds: u32 },
    Open { until_millis: u64 },
    HalfOpen { probes: u8, successes: u8 },
}

#[derive(Clone, Copy)]
struct Word {
    times: u8,
    generation: u16,
    phase: Phase,
}

impl Word {
    fn unpack(word: u64) -> Self {
        let phase = match word >> 62 {
            0 => Phase::Closed {
                failures: (word >> 32) as u8,
                since_seconds: word as u32,
            },
            1 => Phase::Open {
                until_millis: word & UNTIL_MASK,
            },
            _ => Phase::HalfOpen {
                probes: (word >> 8) as u8,
                successes: word as u8,
            },
        };
        Self {
            times: (word >> 56) as u8 & MAX_TIMES,
            generation: (word >> 40) as u16,
            phase,
        }
    }

    fn pack(self) -> u64 {
        let (state, payload) = match self.phase {
            Phase::Closed {
                failures,
                since_seconds,
            } => (0, u64::from(failures) << 32 | u64::from(since_seconds)),
            Phase::Open { until_millis } => (1, until_millis.min(UNTIL_MASK)),
            Phase::HalfOpen { probes, successes } => (2, u64::from(probes) << 8 | u64::from(successes)),
        };
        state << 62 | u64::from(self.times) << 56 | u64::from(self.generation) << 40 | payload
    }

    /// The same with other numbers in the same state.
    fn stay(self, phase: Phase) -> Self {
        Self { phase, ..self }
    }

    /// The next state.
    fn go(self, phase: Phase) -> Self {
        Self {
            generation: self.generation.wrapping_add(1),
            phase,
            ..self
        }
    }

    fn open(self, times: u8, retry_after: Option<Duration>, now_nanos: u64, policy: &BreakerPolicy) -> Self {
        let open_for = policy.open_for(times, retry_after).as_millis();
        let until = (now_nanos / NANOS_PER_MILLI).saturating_add(u64::try_from(open_for).unwrap_or(u64::MAX));
        let opened = self.go(Phase::Open {
            until_millis: until.min(UNTIL_MASK),
        });
        Self { times, ..opened }
    }

    fn opened(self) -> Opened {
        Opened {
            times: self.times,
            until_nanos: match self.phase {
                Phase::Open { until_millis } => until_millis.saturating_mul(NANOS_PER_MILLI),
                Phase::Closed { .. } | Phase::HalfOpen { .. } => 0,
            },
        }
    }

    /// A request starts: the word with it, and its kind; none if it may not go.
    fn begin(self, now_nanos: u64, policy: &BreakerPolicy) -> Option<(Self, Kind)> {
        match self.phase {
            Phase::Closed { .. } => Some((self, Kind::Normal)),
            Phase::Open { until_millis } => (now_nanos / NANOS_PER_MILLI >= until_millis).then(|| {
                let first = Phase::HalfOpen {
                    probes: 1,
                    successes: 0,
                };
                (self.go(first), Kind::Probe)
            }),
            Phase::HalfOpen { probes, successes } => (probes < policy.probes.max(1)).then(|| {
                let probes = probes + 1;
                (self.stay(Phase::HalfOpen { probes, successes }), Kind::Probe)
            }),
        }
    }

    fn is_of(self, ticket: &Ticket) -> bool {
        let expected = match self.phase {
            Phase::Closed { .. } => Kind::Normal,
            Phase::HalfOpen { .. } => Kind::Probe,
            Phase::Open { .. } => return false,
        };
        ticket.kind == expected && ticket.generation == self.generation
    }
}

impl Breaker {
    /// Its state; an open one whose time is over is half open.
    pub fn state(&self, now_nanos: u64) -> State {
        match self.read().phase {
            Phase::Closed { failures, .. } => State::Closed { failures },
            Phase::Open { until_millis } if now_nanos / NANOS_PER_MILLI < until_millis => State::Open {
                until_nanos: until_millis.saturating_mul(NANOS_PER_MILLI),
            },
            Phase::Open { .. } => State::HalfOpen {
                probes: 0,
                successes: 0,
            },
            Phase::HalfOpen { probes, successes } => State::HalfOpen { probes, successes },
        }
    }

    /// Whether a request might go now. One load.
    pub fn admits(&self, now_nanos: u64, policy: &BreakerPolicy) -> bool {
        self.read().begin(now_nanos, policy).is_some()
    }

    /// Not closed: no traffic, or probes only.
    pub fn is_out(&self) -> bool {
        !matches!(self.read().phase, Phase::Closed { .. })
    }

    /// The present stay, for [`Breaker::open`].
    pub fn stay(&self) -> Stay {
        Stay(self.read().generation)
    }

    /// A request starts; none if it may not, or if the last probe's place has just been taken.
    pub fn begin(&self, now_nanos: u64, policy: &BreakerPolicy) -> Option<Ticket> {
        let mut seen = self.word.load(Relaxed);
        loop {
            let (next, kind) = Word::unpack(seen).begin(now_nanos, policy)?;
            let ticket = Ticket {
                kind,
                generation: next.generation,
            };
            if kind == Kind::Normal {
                return Some(ticket);
            }
            match self
                .word
                .compare_exchange_weak(seen, next.pack(), Relaxed, Relaxed)
            {
                Ok(_) => return Some(ticket),
                Err(now) => seen = now,
            }
        }
    }

    /// A request starts whether it may or not: as a probe where there is a place, otherwise without any weight.
    pub fn begin_anyway(&self, now_nanos: u64, policy: &BreakerPolicy) -> Ticket {
        self.begin(now_nanos, policy).unwrap_or(Ticket {
            kind: Kind::Forced,
            generation: 0,
        })
    }

    /// The replica did well. One load where there was no failure before.
    pub fn succeed(&self, ticket: Ticket, now_nanos: u64, policy: &BreakerPolicy) -> Succeeded {
        let mut result = Succeeded::Ignored;
        self.update(|word| {
            result = Succeeded::Ignored;
            if !word.is_of(&ticket) {
                return None;
            }
            result = Succeeded::Counted;
            match word.phase {
                Phase::Closed { failures: 0, .. } | Phase::Open { .. } => None,
                Phase::Closed { since_seconds, .. } => Some(word.stay(Phase::Closed {
                    failures: 0,
                    since_seconds,
                })),
                Phase::HalfOpen { probes, successes } => {
                    let successes = successes.saturating_add(1);
                    if successes < policy.successes.max(1) {
                        let probes = probes.saturating_sub(1);
                        return Some(word.stay(Phase::HalfOpen { probes, successes }));
                    }
                    result = Succeeded::Closed;
                    Some(word.go(Phase::Closed {
                        failures: 0,
                        since_seconds: seconds(now_nanos),
                    }))
                }
            }
        });
        result
    }

    /// The replica failed, and may have said when to come back.
    pub fn fail(
        &self,
        ticket: Ticket,
        retry_after: Option<Duration>,
        now_nanos: u64,
        policy: &BreakerPolicy,
    ) -> Failed {
        let mut result = Failed::Ignored;
        self.update(|word| {
            result = Failed::Ignored;
            if !word.is_of(&ticket) {
                return None;
            }
            let next = match word.phase {
                Phase::Open { .. } => return None,
                Phase::Closed {
                    failures,
                    since_seconds,
                } => {
                    let failures = failures.saturating_add(1);
                    result = Failed::Counted(failures);
                    word.stay(Phase::Closed {
                        failures,
                        since_seconds,
                    })
                }
                Phase::HalfOpen { .. } => {
                    let times = (word.times + 1).min(MAX_TIMES);
                    let next = word.open(times, retry_after, now_nanos, policy);
                    result = Failed::Reopened(next.opened());
                    next
                }
            };
            Some(next)
        });
        result
    }

    /// The request ended without saying anything about the replica.
    pub fn abandon(&self, ticket: Ticket) {
        self.update(|word| match word.phase {
            Phase::HalfOpen { probes, successes } if word.is_of(&ticket) => {
                Some(word.stay(Phase::HalfOpen {
                    probes: probes.saturating_sub(1),
                    successes,
                }))
            }
            _ => None,
        });
    }

    /// Opens a closed breaker; none if it has not been closed since `stay` was read.
    pub fn open(
        &self,
        stay: Stay,
        retry_after: Option<Duration>,
        now_nanos: u64,
        policy: &BreakerPolicy,
    ) -> Option<Opened> {
        let mut opened = None;
        self.update(|word| {
            opened = None;
            let Phase::Closed { since_seconds, .. } = word.phase else {
                return None;
            };
            if word.generation != stay.0 {
                return None;
            }
            let quiet = seconds(now_nanos).saturating_sub(since_seconds);
            let forgotten = u64::from(quiet) / policy.forget_after.as_secs().max(1);
            let remembered = word
                .times
                .saturating_sub(u8::try_from(forgotten).unwrap_or(u8::MAX));
            let next = word.open((remembered + 1).min(MAX_TIMES), retry_after, now_nanos, policy);
            opened = Some(next.opened());
            Some(next)
        });
        opened
    }

    fn read(&self) -> Word {
        Word::unpack(self.word.load(Relaxed))
    }

    /// Replaces the word unless `next` has nothing to change.
    fn update(&self, mut next: impl FnMut(Word) -> Option<Word>) {
        // An error says that there is nothing to change.
        let _ = self
            .word
            .fetch_update(Relaxed, Relaxed, |word| next(Word::unpack(word)).map(Word::pack));
    }
}

fn seconds(now_nanos: u64) -> u32 {
    u32::try_from(now_nanos / NANOS_PER_SECOND).unwrap_or(u32::MAX)
}
