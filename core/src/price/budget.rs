//! Budgets: the window a spend belongs to, and the thresholds it has newly crossed.
//!
//! An alert is a condition (which says how things are, and is written again as often as need be), an event and a
//! metric (which say that something has happened, and must say it once). What has been said is [`Alerted`], kept in
//! the object's status. Write it *before* the events are sent: a crash between the two loses an event whose condition
//! stands, whereas the other order repeats it. With it
//!
//! * a restart, another leader or a second look at the same numbers says nothing again;
//! * a jump over several thresholds names each of them;
//! * spend that sinks (an estimate was settled lower) and rises again says nothing again in the same window;
//! * a new window, or a limit that was changed, begins anew from what is true then. Raising the limit so takes back a
//!   threshold that is not reached any more, and it is announced again when it is;
//! * a clock that went back into an earlier window changes nothing.

use jiff::civil::{Date, Weekday};
use jiff::tz::TimeZone;
use jiff::{Error, Timestamp, ToSpan, Zoned};
use serde::{Deserialize, Serialize};

use super::Money;

/// A part of the budget that is worth telling.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Threshold {
    /// 80 %.
    Eighty,
    /// 90 %.
    Ninety,
    /// 100 %: the budget is exhausted.
    Exhausted,
}

impl Threshold {
    /// All, from the lowest.
    pub const ALL: [Self; 3] = [Self::Eighty, Self::Ninety, Self::Exhausted];

    /// In percent.
    pub fn percent(self) -> u8 {
        match self {
            Self::Eighty => 80,
            Self::Ninety => 90,
            Self::Exhausted => 100,
        }
    }

    /// The highest threshold that `spent` has reached. A budget of nothing is exhausted from the start.
    pub fn reached(spent: Money, limit: Money) -> Option<Self> {
        let spent = spent.picos().saturating_mul(100);
        let reached =
            |threshold: &Self| spent >= limit.picos().saturating_mul(u128::from(threshold.percent()));
        Self::ALL.into_iter().rev().find(reached)
    }
}

/// Spend in whole percent of the limit, rounded down, so that 100 means exhausted; at most 999, and 100 of a limit of 0.
pub fn percent(spent: Money, limit: Money) -> u16 {
    let percent = spent.picos().saturating_mul(100).checked_div(limit.picos());
    u16::try_from(percent.unwrap_or(100)).unwrap_or(999).min(999)
}

/// The thresholds above `previous` that are reached now, lowest first.
pub fn crossed(previous: Option<Threshold>, spent: Money, limit: Money) -> impl Iterator<Item = Threshold> {
    let now = Threshold::reached(spent, limit);
    Threshold::ALL
        .into_iter()
        .filter(move |threshold| Some(*threshold) > previous && Some(*threshold) <= now)
}

/// What has been announced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Alerted {
    /// Start of the window it was in.
    pub window_start: Timestamp,
    /// The limit it was about.
    pub limit: Money,
    /// The highest threshold announced; none yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threshold: Option<Threshold>,
}

/// What to remember from now on, and the thresholds to announce, lowest first.
///
/// `before` is what was remembered last, from the status. `spent` is the spend of `window`.
pub fn alert(
    before: Option<&Alerted>,
    window: &Window,
    spent: Money,
    limit: Money,
) -> (Alerted, Vec<Threshold>) {
    let reached = Threshold::reached(spent, limit);
    let announced = match before {
        Some(before) if before.window_start > window.start => return (*before, Vec::new()),
        Some(before) if before.window_start == window.start && before.limit == limit => before.threshold,
        Some(before) if before.window_start == window.start => before.threshold.min(reached),
        _ => None,
    };
    let after = Alerted {
        window_start: window.start,
        limit,
        threshold: announced.max(reached),
    };
    (after, crossed(announced, spent, limit).collect())
}

/// How long a budget or a quota lasts before it begins anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Calendar {
    /// From midnight.
    Day,
    /// From midnight before Monday.
    Week,
    /// From midnight before the first.
    Month,
    /// From midnight before 1 January.
    Year,
}

/// A window, in absolute time: its days are those of a time zone, so one with a change of the clocks is shorter or
/// longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Its first moment.
    pub start: Timestamp,
    /// The first moment of the next one.
    pub end: Timestamp,
}

impl Calendar {
    /// The window that `now` is in. Where a change of the clocks leaves out midnight, a day begins when the clocks go
    /// on.
    ///
    /// # Errors
    /// At the ends of the calendar (years −9999 and 9999).
    pub fn window(self, now: Timestamp, zone: &TimeZone) -> Result<Window, Error> {
        let today = Zoned::new(now, zone.clone()).date();
        let (first, next) = match self {
            Self::Day => (today, today.tomorrow()?),
            Self::Week => {
                let since_monday = today.weekday().since(Weekday::Monday);
                let monday = today.checked_sub(since_monday.days())?;
                (monday, monday.checked_add(1.week())?)
            }
            Self::Month => (today.first_of_month(), today.last_of_month().tomorrow()?),
            Self::Year => (today.first_of_year(), today.last_of_year().tomorrow()?),
        };
        let midnight = |date: Date| Ok::<_, Error>(date.to_zoned(zone.clone())?.timestamp());
        Ok(Window {
            start: midnight(first)?,
            end: midnight(next)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn money(text: &str) -> Money {
        text.parse().unwrap()
    }

    fn window(start: i64) -> Window {
        Window {
            start: Timestamp::from_second(start).unwrap(),
            end: Timestamp::from_second(start + 100).unwrap(),
        }
    }

    use Threshold::{Eighty, Exhausted, Ninety};

    #[test]
    fn thresholds_are_reached_exactly() {
        for (spent, limit, threshold, shown) in [
            ("0", "500", None, 0),
            ("399.999999999999", "500", None, 79),
            ("400", "500", Some(Eighty), 80),
            ("449.999999999999", "500", Some(Eighty), 89),
            ("450", "500", Some(Ninety), 90),
            ("499.999999999999", "500", Some(Ninety), 99),
            ("500", "500", Some(Exhausted), 100),
            ("1000000", "0.000001", Some(Exhausted), 999),
            ("0", "0", Some(Exhausted), 100),
        ] {
            let (spent, limit) = (money(spent), money(limit));
            assert_eq!(
                (Threshold::reached(spent, limit), percent(spent, limit)),
                (threshold, shown),
                "{spent} of {limit}"
            );
        }
    }

    /// A month of looks: window, spent, limit, what is announced.
    #[test]
    fn announces_each_crossing_once() {
        let mut alerted = None;
        for (start, spent, limit, announced) in [
            (0, "10", "100", vec![]),
            (0, "80", "100", vec![Eighty]),
            (0, "80", "100", vec![]),
            // An estimate was settled lower.
            (0, "79", "100", vec![]),
            (0, "85", "100", vec![]),
            // Past two at once.
            (0, "120", "100", vec![Ninety, Exhausted]),
            // The limit is raised: 60 %, and later 80 % again.
            (0, "120", "200", vec![]),
            (0, "160", "200", vec![Eighty]),
            // And lowered.
            (0, "160", "170", vec![Ninety]),
            // The next window begins with nothing.
            (100, "5", "170", vec![]),
            // A clock that went back.
            (0, "170", "170", vec![]),
            (100, "170", "170", vec![Eighty, Ninety, Exhausted]),
            (200, "170", "170", vec![Eighty, Ninety, Exhausted]),
        ] {
            let (after, now) = alert(alerted.as_ref(), &window(start), money(spent), money(limit));
            assert_eq!(now, announced, "{spent} of {limit}");
            // A restart reads what was written and looks again.
            let written = serde_json::to_string(&after).unwrap();
            let read: Alerted = serde_json::from_str(&written).unwrap();
            assert_eq!(read, after);
            assert_eq!(
                alert(Some(&read), &window(start), money(spent), money(limit)),
                (after, vec![])
            );
            alerted = Some(read);
        }
    }

    proptest! {
        /// Whatever is looked at when, by whomever: in one window and for one limit each threshold is announced at most
        /// once, and exactly those that were ever reached.
        #[test]
        fn once_each_and_none_missing(spends in prop::collection::vec(0u64..150, 1..40), restarts in prop::collection::vec(any::<bool>(), 40)) {
            let limit = money("100");
            let mut alerted: Option<Alerted> = None;
            let mut announced = Vec::new();
            for (spent, lost) in spends.iter().zip(restarts) {
                let (after, now) = alert(alerted.as_ref(), &window(0), money(&spent.to_string()), limit);
                // The write failed: nothing may be said.
                if lost {
                    continue;
                }
                announced.extend(now);
                alerted = Some(after);
            }
            let mut once = announced.clone();
            once.dedup();
            prop_assert_eq!(&once, &announced);
            prop_assert_eq!(announced.last().copied(), alerted.and_then(|alerted| alerted.threshold));
            prop_assert!(announced.is_sorted());
            prop_assert_eq!(announced.first().copied(), announced.first().map(|_| Eighty));
        }
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn windows_are_those_of_the_zone() {
        let berlin = TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap();
        let kolkata = TimeZone::posix("IST-5:30").unwrap();
        // Santiago's clocks go on at midnight: that day begins at one.
        let santiago = TimeZone::posix("<-04>4<-03>,M9.1.6/24,M4.1.6/24").unwrap();
        for (calendar, zone, now, start, end) in [
            (
                Calendar::Day,
                &TimeZone::UTC,
                "2026-11-21T15:00:00Z",
                "2026-11-21T00:00:00Z",
                "2026-11-22T00:00:00Z",
            ),
            (
                Calendar::Day,
                &TimeZone::UTC,
                "2026-11-21T00:00:00Z",
                "2026-11-21T00:00:00Z",
                "2026-11-22T00:00:00Z",
            ),
            (
                Calendar::Day,
                &berlin,
                "2026-11-20T23:00:00Z",
                "2026-11-20T23:00:00Z",
                "2026-11-21T23:00:00Z",
            ),
            // 23 and 25 hours.
            (
                Calendar::Day,
                &berlin,
                "2026-03-29T12:00:00Z",
                "2026-03-28T23:00:00Z",
                "2026-03-29T22:00:00Z",
            ),
            (
                Calendar::Day,
                &berlin,
                "2026-10-25T12:00:00Z",
                "2026-10-24T22:00:00Z",
                "2026-10-25T23:00:00Z",
            ),
            (
                Calendar::Day,
                &kolkata,
                "2026-11-21T18:29:59Z",
                "2026-11-20T18:30:00Z",
                "2026-11-21T18:30:00Z",
            ),
            (
                Calendar::Day,
                &santiago,
                "2026-09-06T12:00:00Z",
                "2026-09-06T04:00:00Z",
                "2026-09-07T03:00:00Z",
            ),
            (
                Calendar::Week,
                &TimeZone::UTC,
                "2026-11-22T23:59:59Z",
                "2026-11-16T00:00:00Z",
                "2026-11-23T00:00:00Z",
            ),
            (
                Calendar::Week,
                &TimeZone::UTC,
                "2026-11-23T00:00:00Z",
                "2026-11-23T00:00:00Z",
                "2026-11-30T00:00:00Z",
            ),
            (
                Calendar::Month,
                &TimeZone::UTC,
                "2026-02-28T23:59:59Z",
                "2026-02-01T00:00:00Z",
                "2026-03-01T00:00:00Z",
            ),
            (
                Calendar::Month,
                &TimeZone::UTC,
                "2028-02-29T12:00:00Z",
                "2028-02-01T00:00:00Z",
                "2028-03-01T00:00:00Z",
            ),
            (
                Calendar::Month,
                &berlin,
                "2026-10-31T12:00:00Z",
                "2026-09-30T22:00:00Z",
                "2026-10-31T23:00:00Z",
            ),
            (
                Calendar::Year,
                &berlin,
                "2026-12-31T23:30:00Z",
                "2026-12-31T23:00:00Z",
                "2027-12-31T23:00:00Z",
            ),
        ] {
            let window = calendar.window(at(now), zone).unwrap();
            assert_eq!(
                window,
                Window {
                    start: at(start),
                    end: at(end)
                },
                "{calendar:?} {now}"
            );
        }
        assert!(Calendar::Year.window(Timestamp::MAX, &TimeZone::UTC).is_err());
    }

    proptest! {
        /// Windows follow each other without gap or overlap, and every moment is in its own.
        #[test]
        fn windows_tile_time(second in 0i64..4_000_000_000, which in 0usize..4, zone in 0usize..3) {
            let zones = ["CET-1CEST,M3.5.0,M10.5.0/3", "<-04>4<-03>,M9.1.6/24,M4.1.6/24", "IST-5:30"];
            let zone = TimeZone::posix(zones[zone]).unwrap();
            let calendar = [Calendar::Day, Calendar::Week, Calendar::Month, Calendar::Year][which];
            let now = Timestamp::from_second(second).unwrap();
            let window = calendar.window(now, &zone).unwrap();
            prop_assert!(window.start <= now && now < window.end);
            prop_assert_eq!(calendar.window(window.start, &zone).unwrap(), window);
            prop_assert_eq!(calendar.window(window.end, &zone).unwrap().start, window.end);
        }
    }
}
