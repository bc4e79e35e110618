//! Whether a gateway replica may send another request under a budget, without asking anybody.
//!
//! The operator writes what all replicas have spent, and how much of each replica's own spend is in that sum
//! ([`super::ledger`]); every replica reads it as it is written. What the others have spent since is unknown, so a replica
//! takes for itself only its *share* of what was left: with `G` replicas, `left / G`. Own spend that is not yet in the
//! written sum, and the estimates of requests in flight, fill the share; when it is full the replica waits for the next
//! writing.
//!
//! # The bound
//!
//! Let the operator have seen all replicas, with `left` to spend. Then all together spend at most `G · left / G = left`
//! until it writes again, and each at most one request more (the one that filled its share), plus what estimates of
//! requests in flight were too low by. Beyond the limit goes only
//!
//! * that;
//! * what a replica spends between its report and the next writing, because the others take their share of a sum that
//!   lacks it: the looks are a second apart while a budget is likely to be used up within two minutes, else 15 s;
//! * if some replicas cannot be seen for long, what those spend: at most their shares of what was left when they were
//!   last seen, `(G - 1) / G` of it in all.
//!
//! The operator may be away: shares are used up, then nothing more is sent. A process that dies takes along what it has
//! not told, at most what it spent between two looks.
//!
//! With `Allow` nothing is refused, and none of this matters.

use jiff::Timestamp;

use super::Money;
use super::budget::Window;
use super::ledger::Policy;

/// What the operator has written, as one replica reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// Start of the window that it is about.
    pub window_start: Timestamp,
    /// Spend of all replicas in that window.
    pub spent: Money,
    /// As much of this process's spend, since its start, is in the sum.
    pub counted: Money,
}

/// What the process itself knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Own {
    /// Spent since its start, in the budget's currency.
    pub spent: Money,
    /// Estimated for requests in flight.
    pub reserved: Money,
}

/// Whether a request may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It may.
    Admit,
    /// The budget of the window is used up.
    Exhausted,
    /// This replica's share is used up; more is known with the operator's next writing.
    ShareUsed,
}

/// What a replica remembers between two requests.
#[derive(Clone, Copy, Debug, Default)]
pub struct Gate {
    window: Option<Window>,
    /// The start of a window that the operator has not written of yet, and what the process had spent when it saw that.
    begun: Option<(Timestamp, Money)>,
}

impl Gate {
    /// The window that `now` is in; computed once in each.
    ///
    /// # Errors
    /// At the ends of the calendar.
    pub fn window(&mut self, policy: &Policy, now: Timestamp) -> Result<Window, jiff::Error> {
        match self.window {
            Some(window) if window.start <= now && now < window.end => Ok(window),
            _ => {
                let window = policy.window(now)?;
                self.window = Some(window);
                Ok(window)
            }
        }
    }

    /// Judges a request that comes in `window`. `replicas` is the number of gateways, at least 1.
    pub fn judge(
        &mut self,
        policy: &Policy,
        written: Option<&Written>,
        own: &Own,
        replicas: u32,
        window: &Window,
    ) -> Verdict {
        if !policy.blocks {
            return Verdict::Admit;
        }
        let (known, untold) = match written {
            Some(written) if written.window_start >= window.start => {
                self.begun = None;
                (written.spent, own.spent.less(written.counted))
            }
            // A new window, or a budget that the operator has not looked at: what others spend in it is unknown.
            _ => {
                let begun = self.begun.filter(|(start, _)| *start == window.start);
                let (_, before) = *self.begun.insert(begun.unwrap_or((window.start, own.spent)));
                (Money::ZERO, own.spent.less(before))
            }
        };
        let left = policy.limit.less(known);
        let used = untold + own.reserved;
        if left == Money::ZERO || untold >= left {
            Verdict::Exhausted
        } else if used >= left.shared_by(replicas) {
            Verdict::ShareUsed
        } else {
            Verdict::Admit
        }
    }
}

#[cfg(test)]
mod tests {
    use jiff::ToSpan;
    use proptest::prelude::*;

    use super::*;
    use crate::price::Currency;
    use crate::price::budget::Calendar;

    fn policy(limit: u64) -> Policy {
        Policy {
            limit: cents(limit),
            currency: Currency::USD,
            calendar: Calendar::Day,
            blocks: true,
        }
    }

    fn cents(count: u64) -> Money {
        Money::of_tokens(count * 10_000, "1".parse().unwrap())
    }

    fn day(number: i64) -> Timestamp {
        Timestamp::UNIX_EPOCH + (number * 24).hours()
    }

    #[test]
    fn shares() {
        let policy = policy(100);
        for (what, written, own, reserved, replicas, expected) in [
            ("nothing known", None, 0, 0, 2, Verdict::Admit),
            ("half of it is one's own", None, 50, 0, 2, Verdict::ShareUsed),
            ("what is in flight counts", None, 30, 20, 2, Verdict::ShareUsed),
            ("all of it alone", None, 100, 0, 1, Verdict::Exhausted),
            (
                "told spend is not one's own any more",
                Some((60, 50)),
                50,
                0,
                2,
                Verdict::Admit,
            ),
            (
                "its share of the rest",
                Some((60, 50)),
                70,
                0,
                2,
                Verdict::ShareUsed,
            ),
            ("spent by all", Some((100, 10)), 10, 0, 2, Verdict::Exhausted),
            (
                "the last cent goes to somebody",
                Some((99, 0)),
                0,
                0,
                3,
                Verdict::Admit,
            ),
            ("a restarted process", Some((90, 0)), 4, 0, 2, Verdict::Admit),
        ] {
            let mut gate = Gate::default();
            let window = gate.window(&policy, day(0)).unwrap();
            let written = written.map(|(spent, counted)| Written {
                window_start: window.start,
                spent: cents(spent),
                counted: cents(counted),
            });
            // The window is seen before anything is spent in it.
            gate.judge(&policy, written.as_ref(), &Own::default(), replicas, &window);
            let own = Own {
                spent: cents(own),
                reserved: cents(reserved),
            };
            assert_eq!(
                gate.judge(&policy, written.as_ref(), &own, replicas, &window),
                expected,
                "{what}"
            );
        }
        let allows = Policy {
            blocks: false,
            ..policy
        };
        let own = Own {
            spent: cents(1000),
            reserved: Money::ZERO,
        };
        let mut gate = Gate::default();
        let window = gate.window(&allows, day(0)).unwrap();
        assert_eq!(gate.judge(&allows, None, &own, 1, &window), Verdict::Admit);
    }

    #[test]
    fn a_new_day_begins_with_nothing_though_the_operator_is_away() {
        let policy = policy(100);
        let mut gate = Gate::default();
        let first = gate.window(&policy, day(0)).unwrap();
        let written = Written {
            window_start: first.start,
            spent: cents(100),
            counted: cents(60),
        };
        let own = |spent| Own {
            spent: cents(spent),
            reserved: Money::ZERO,
        };
        assert_eq!(
            gate.judge(&policy, Some(&written), &own(60), 2, &first),
            Verdict::Exhausted
        );
        let second = gate.window(&policy, day(1)).unwrap();
        assert_eq!(
            gate.judge(&policy, Some(&written), &own(60), 2, &second),
            Verdict::Admit
        );
        assert_eq!(
            gate.judge(&policy, Some(&written), &own(109), 2, &second),
            Verdict::Admit
        );
        assert_eq!(
            gate.judge(&policy, Some(&written), &own(110), 2, &second),
            Verdict::ShareUsed
        );
        // The operator is back, and has counted all of it into the new day.
        let written = Written {
            window_start: second.start,
            spent: cents(50),
            counted: cents(110),
        };
        assert_eq!(
            gate.judge(&policy, Some(&written), &own(110), 2, &second),
            Verdict::Admit
        );
    }

    proptest! {
        /// Replicas spend in any order; the operator looks at all of them, or only at some, at any time, and some are
        /// restarted after a look.
        #[test]
        fn the_bound(
            replicas in 1u32..5,
            limit in 1u64..500,
            sees_all: bool,
            steps in prop::collection::vec((0usize..5, 1u64..20, 0u8..10), 1..300),
        ) {
            let policy = policy(limit);
            let count = replicas as usize;
            let (mut gates, mut own, mut counted) = (vec![Gate::default(); count], vec![0u64; count], vec![0u64; count]);
            let window = policy.window(day(0)).unwrap();
            let (mut sum, mut total, mut largest) = (0u64, 0u64, 1u64);
            for (which, cost, event) in steps {
                let which = which % count;
                let written = Written { window_start: window.start, spent: cents(sum), counted: cents(counted[which]) };
                match event {
                    0..=2 => for seen in (0..count).filter(|seen| sees_all || *seen == which) {
                        sum += own[seen] - counted[seen];
                        counted[seen] = own[seen];
                    },
                    3 if own[which] == counted[which] => {
                        (own[which], counted[which], gates[which]) = (0, 0, Gate::default());
                    }
                    _ => {
                        let mine = Own { spent: cents(own[which]), reserved: Money::ZERO };
                        if gates[which].judge(&policy, Some(&written), &mine, replicas, &window) == Verdict::Admit {
                            own[which] += cost;
                            total += cost;
                            largest = largest.max(cost);
                        }
                    }
                }
            }
            let unseen = if sees_all { 0 } else { limit * u64::from(replicas - 1) / u64::from(replicas) };
            prop_assert!(total <= limit + unseen + u64::from(replicas) * largest, "{total} of {limit}");
        }
    }
}
