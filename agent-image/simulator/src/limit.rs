//! The three ways in which providers count: fixed window, sliding window, token bucket.
//!
//! A limiter is a plain value. It reads no clock: `now` is the time since the simulator's start and must not go
//! backwards. All arithmetic is on integers, so a test that recomputes a window from the log gets exactly
//! these answers. `check` and `charge` are apart because a request has to pass several limits and is charged to
//! all or none.

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How a limit counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum LimitMode {
    /// At most `limit` units in each window `[k·per, (k+1)·per)` since the start. Lets twice the limit pass around
    /// a window's border, as the providers that use it do.
    FixedWindow,
    /// At most `limit` units in any half-open interval of length `per`, exactly.
    SlidingWindow,
    /// A bucket of `burst` units that fills at `limit` per `per`. Full at the start.
    TokenBucket,
}

/// What a limiter says to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// There is room.
    Admit,
    /// There is none now, but there will be this much later if nothing else is admitted meanwhile.
    RetryAfter(Duration),
    /// The request alone is larger than the limit.
    Never,
}

/// What the `x-ratelimit-*` headers say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Level {
    /// Units that a window or a full bucket holds.
    pub limit: u64,
    /// Units left now.
    pub remaining: u64,
    /// Time until all of `limit` is left again, if nothing else is admitted.
    pub reset_after: Duration,
}

/// One limit's state.
#[derive(Debug, Clone)]
pub struct Limiter {
    limit: u64,
    per: Duration,
    state: State,
}

#[derive(Debug, Clone)]
enum State {
    Fixed {
        window: u128,
        used: u64,
    },
    Sliding {
        charges: VecDeque<(Duration, u64)>,
        used: u64,
    },
    /// `level` is in units times `per` in nanoseconds, so that filling is exact: `limit` for each nanosecond.
    Bucket {
        burst: u64,
        level: u128,
        filled_at: Duration,
    },
}

impl Limiter {
    /// A limiter of `limit` units per `per`. `burst` is the size of a token bucket, by default `limit`; the other
    /// modes have none. A zero `per` counts as one nanosecond.
    pub fn new(mode: LimitMode, limit: u64, per: Duration, burst: Option<u64>) -> Self {
        let per = per.max(Duration::from_nanos(1));
        let state = match mode {
            LimitMode::FixedWindow => State::Fixed { window: 0, used: 0 },
            LimitMode::SlidingWindow => State::Sliding {
                charges: VecDeque::new(),
                used: 0,
            },
            LimitMode::TokenBucket => {
                let burst = burst.unwrap_or(limit);
                State::Bucket {
                    burst,
                    level: u128::from(burst) * per.as_nanos(),
                    filled_at: Duration::ZERO,
                }
            }
        };
        Self { limit, per, state }
    }

    /// Whether `cost` units would be admitted at `now`.
    pub fn check(&mut self, now: Duration, cost: u64) -> Decision {
        self.advance(now);
        let per = self.per.as_nanos();
        match &self.state {
            State::Fixed { window, used } => {
                if cost > self.limit {
                    Decision::Never
                } else if cost <= self.limit - used {
                    Decision::Admit
                } else {
                    Decision::RetryAfter(nanoseconds((window + 1) * per) - now)
                }
            }
            State::Sliding { charges, used } => {
                if cost > self.limit {
                    return Decision::Never;
                }
                let mut missing = (used + cost).saturating_sub(self.limit);
                if missing == 0 {
                    return Decision::Admit;
                }
                let mut free_at = now;
                for (charged_at, units) in charges {
                    free_at = *charged_at + self.per;
                    missing = missing.saturating_sub(*units);
                    if missing == 0 {
                        break;
                    }
                }
                Decision::RetryAfter(free_at - now)
            }
            State::Bucket { burst, level, .. } => {
                let needed = u128::from(cost) * per;
                if cost > *burst {
                    Decision::Never
                } else if needed <= *level {
                    Decision::Admit
                } else if self.limit == 0 {
                    Decision::Never
                } else {
                    Decision::RetryAfter(nanoseconds((needed - level).div_ceil(u128::from(self.limit))))
                }
            }
        }
    }

    /// Takes `cost` units at `now`. Call it only after `check` said [`Decision::Admit`] for the same `now`.
    pub fn charge(&mut self, now: Duration, cost: u64) {
        self.advance(now);
        let per = self.per.as_nanos();
        match &mut self.state {
            State::Fixed { used, .. } => *used += cost,
            State::Sliding { charges, used } => {
                if cost > 0 {
                    charges.push_back((now, cost));
                    *used += cost;
                }
            }
            State::Bucket { level, .. } => *level = level.saturating_sub(u128::from(cost) * per),
        }
    }

    /// What is left at `now`.
    pub fn level(&mut self, now: Duration) -> Level {
        self.advance(now);
        let per = self.per.as_nanos();
        match &self.state {
            State::Fixed { window, used } => Level {
                limit: self.limit,
                remaining: self.limit.saturating_sub(*used),
                reset_after: if *used == 0 {
                    Duration::ZERO
                } else {
                    nanoseconds((window + 1) * per) - now
                },
            },
            State::Sliding { charges, used } => Level {
                limit: self.limit,
                remaining: self.limit.saturating_sub(*used),
                reset_after: charges
                    .back()
                    .map_or(Duration::ZERO, |(at, _)| *at + self.per - now),
            },
            State::Bucket { burst, level, .. } => {
                let missing = u128::from(*burst) * per - level;
                let reset_after = match self.limit {
                    0 => Duration::MAX,
                    limit => nanoseconds(missing.div_ceil(u128::from(limit))),
                };
                Level {
                    limit: *burst,
                    remaining: u64::try_from(level / per).unwrap_or(u64::MAX),
                    reset_after: if missing == 0 { Duration::ZERO } else { reset_after },
                }
            }
        }
    }

    fn advance(&mut self, now: Duration) {
        let per = self.per;
        match &mut self.state {
            State::Fixed { window, used } => {
                let current = now.as_nanos() / per.as_nanos();
                if current != *window {
                    (*window, *used) = (current, 0);
                }
            }
            State::Sliding { charges, used } => {
                while let Some((charged_at, units)) = charges.front().copied() {
                    if charged_at + per > now {
                        break;
                    }
                    charges.pop_front();
                    *used -= units;
                }
            }
            State::Bucket {
                burst,
                level,
                filled_at,
            } => {
                let elapsed = now.saturating_sub(*filled_at).as_nanos();
                let full = u128::from(*burst) * per.as_nanos();
                *level = level
                    .saturating_add(elapsed.saturating_mul(u128::from(self.limit)))
                    .min(full);
                *filled_at = now.max(*filled_at);
            }
        }
    }
}

/// Nanoseconds as a duration; more than 584 years is `Duration::MAX`, which no caller waits for.
fn nanoseconds(value: u128) -> Duration {
    u64::try_from(value).map_or(Duration::MAX, Duration::from_nanos)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ms(value: u64) -> Duration {
        Duration::from_millis(value)
    }

    /// Runs `(at in ms, cost)` requests and returns what each was told.
    fn run(mut limiter: Limiter, requests: &[(u64, u64)]) -> Vec<Decision> {
        requests
            .iter()
            .map(|&(at, cost)| {
                let decision = limiter.check(ms(at), cost);
                if decision == Decision::Admit {
                    limiter.charge(ms(at), cost);
                }
                decision
            })
            .collect()
    }

    #[test]
    fn decisions() {
        use Decision::{Admit, Never, RetryAfter};
        use LimitMode::{FixedWindow, SlidingWindow, TokenBucket};
        let second = ms(1000);
        for (name, limiter, requests, expected) in [
            (
                "a fixed window lets twice the limit pass around its border",
                Limiter::new(FixedWindow, 2, second, None),
                vec![(900, 1), (950, 1), (999, 1), (1000, 1), (1001, 1), (1002, 1)],
                vec![Admit, Admit, RetryAfter(ms(1)), Admit, Admit, RetryAfter(ms(998))],
            ),
            (
                "a sliding window does not",
                Limiter::new(SlidingWindow, 2, second, None),
                vec![
                    (900, 1),
                    (950, 1),
                    (1000, 1),
                    (1899, 1),
                    (1900, 1),
                    (1949, 1),
                    (1950, 1),
                ],
                vec![
                    Admit,
                    Admit,
                    RetryAfter(ms(900)),
                    RetryAfter(ms(1)),
                    Admit,
                    RetryAfter(ms(1)),
                    Admit,
                ],
            ),
            (
                "a sliding window waits for as many old charges as it needs",
                Limiter::new(SlidingWindow, 10, second, None),
                vec![(0, 4), (100, 4), (200, 5), (300, 2)],
                vec![Admit, Admit, RetryAfter(ms(800)), Admit],
            ),
            (
                "a bucket spends its burst, then goes at its rate",
                Limiter::new(TokenBucket, 10, second, Some(2)),
                vec![(0, 1), (0, 1), (0, 1), (100, 1), (150, 1), (5000, 2), (5000, 1)],
                vec![
                    Admit,
                    Admit,
                    RetryAfter(ms(100)),
                    Admit,
                    RetryAfter(ms(50)),
                    Admit,
                    RetryAfter(ms(100)),
                ],
            ),
            (
                "more than the limit at once is never admitted",
                Limiter::new(FixedWindow, 5, second, None),
                vec![(0, 6), (0, 5)],
                vec![Never, Admit],
            ),
            (
                "nor more than the bucket",
                Limiter::new(TokenBucket, 10, second, Some(2)),
                vec![(0, 3)],
                vec![Never],
            ),
            (
                "a limit of 0 admits nothing",
                Limiter::new(SlidingWindow, 0, second, None),
                vec![(0, 1)],
                vec![Never],
            ),
        ] {
            assert_eq!(run(limiter, &requests), expected, "{name}");
        }
    }

    #[test]
    fn levels() {
        let second = ms(1000);
        let mut fixed = Limiter::new(LimitMode::FixedWindow, 5, second, None);
        fixed.charge(ms(250), 2);
        assert_eq!(
            fixed.level(ms(250)),
            Level {
                limit: 5,
                remaining: 3,
                reset_after: ms(750)
            }
        );
        assert_eq!(
            fixed.level(ms(1000)),
            Level {
                limit: 5,
                remaining: 5,
                reset_after: ms(0)
            }
        );

        let mut sliding = Limiter::new(LimitMode::SlidingWindow, 5, second, None);
        sliding.charge(ms(250), 2);
        sliding.charge(ms(500), 1);
        assert_eq!(
            sliding.level(ms(600)),
            Level {
                limit: 5,
                remaining: 2,
                reset_after: ms(900)
            }
        );
        assert_eq!(
            sliding.level(ms(1250)),
            Level {
                limit: 5,
                remaining: 4,
                reset_after: ms(250)
            }
        );

        let mut bucket = Limiter::new(LimitMode::TokenBucket, 10, second, Some(4));
        bucket.charge(ms(0), 4);
        assert_eq!(
            bucket.level(ms(150)),
            Level {
                limit: 4,
                remaining: 1,
                reset_after: ms(250)
            }
        );
        assert_eq!(
            bucket.level(ms(400)),
            Level {
                limit: 4,
                remaining: 4,
                reset_after: ms(0)
            }
        );
    }

    fn requests() -> impl Strategy<Value = Vec<(u64, u64)>> {
        proptest::collection::vec((0u64..400, 0u64..8), 1..200).prop_map(|steps| {
            let mut at = 0;
            steps
                .into_iter()
                .map(|(wait, cost)| {
                    at += wait;
                    (at, cost)
                })
                .collect()
        })
    }

    proptest! {
        /// Recomputed from the admitted requests alone, as a test does from the log.
        #[test]
        fn no_window_ever_holds_more_than_its_limit(requests in requests(), limit in 1u64..20) {
            for mode in [LimitMode::FixedWindow, LimitMode::SlidingWindow, LimitMode::TokenBucket] {
                let decisions = run(Limiter::new(mode, limit, ms(1000), None), &requests);
                let admitted: Vec<(u64, u64)> = requests.iter().zip(&decisions)
                    .filter(|(_, decision)| **decision == Decision::Admit).map(|(request, _)| *request).collect();
                for (i, &(from, _)) in admitted.iter().enumerate() {
                    let within = |end: u64| admitted[i..].iter().filter(|(at, _)| *at < end).map(|(_, cost)| cost).sum::<u64>();
                    match mode {
                        LimitMode::FixedWindow => {
                            let start = from / 1000 * 1000;
                            let sum: u64 = admitted.iter().filter(|(at, _)| (start..start + 1000).contains(at)).map(|(_, c)| c).sum();
                            prop_assert!(sum <= limit);
                        }
                        LimitMode::SlidingWindow => prop_assert!(within(from + 1000) <= limit),
                        // A bucket admits at most its size plus what flows in.
                        LimitMode::TokenBucket => for &(to, _) in &admitted[i..] {
                            let sum: u64 = admitted[i..].iter().filter(|(at, _)| *at <= to).map(|(_, cost)| cost).sum();
                            prop_assert!(sum * 1000 <= limit * 1000 + limit * (to - from));
                        },
                    }
                }
            }
        }

        /// `Retry-After` is honest: not a nanosecond too early, and never longer than needed.
        #[test]
        fn a_request_that_waits_as_told_is_admitted_and_not_before(requests in requests(), limit in 1u64..20, cost in 1u64..8) {
            for mode in [LimitMode::FixedWindow, LimitMode::SlidingWindow, LimitMode::TokenBucket] {
                let mut limiter = Limiter::new(mode, limit, ms(1000), None);
                let mut now = Duration::ZERO;
                for &(at, cost) in &requests {
                    now = ms(at);
                    if limiter.check(now, cost) == Decision::Admit {
                        limiter.charge(now, cost);
                    }
                }
                if let Decision::RetryAfter(wait) = limiter.check(now, cost) {
                    let just_before = now + wait - Duration::from_nanos(1);
                    prop_assert_ne!(limiter.clone().check(just_before, cost), Decision::Admit);
                    prop_assert_eq!(limiter.check(now + wait, cost), Decision::Admit);
                }
            }
        }
    }
}
