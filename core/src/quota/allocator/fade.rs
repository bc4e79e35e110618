//! When units that a holder has in use will be free, though it says nothing any more.
//!
//! A holder has at most its share in use when its lease ends, at `L`. Units that it reported, that nothing gives back early, and
//! that are given back after `L` are among them; the moment they are given back, the most that it can have in use is less by
//! them. What was given back before `L` may have been used again at `L`, so nothing is known of that.
//!
//! The report was on its way for an unknown time. So its instants are taken from both ends: not earlier than if it had been
//! made with the newest grant that its maker knew, and not later than if it had been made when it came.

use crate::quota::{Fade, MILLISECOND, Nanos, Terms};

/// Units in use, on the allocator's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fading {
    /// None is given back earlier.
    pub(super) from: Nanos,
    /// All are given back by then.
    pub(super) until: Nanos,
    pub(super) units: u64,
}

impl Fading {
    /// From a report that came `now` and whose maker knew a grant of `heard`.
    pub(super) fn reported(fades: &[Fade], heard: Option<Nanos>, now: Nanos, terms: &Terms) -> Vec<Self> {
        let Some(heard) = heard.filter(|heard| *heard <= now) else {
            return Vec::new();
        };
        let length = |ms: u64| ms.saturating_mul(MILLISECOND);
        let fade = |fade: &Fade| Self {
            from: heard.saturating_add(terms.shrink(length(fade.from_ms))),
            until: now.saturating_add(terms.stretch(length(fade.until_ms))),
            units: fade.units,
        };
        fades.iter().map(fade).collect()
    }

    /// From a report that came `now` and whose maker has no lease since.
    pub(super) fn last(fades: &[Fade], now: Nanos, terms: &Terms) -> Vec<Self> {
        let fade = |fade: &Fade| Self {
            from: now,
            until: now.saturating_add(terms.stretch(fade.until_ms.saturating_mul(MILLISECOND))),
            units: fade.units,
        };
        fades.iter().map(fade).collect()
    }

    /// From a record that was seen at `seen`; it holds only what outlasts the lease, which ends at `expires`.
    pub(super) fn recorded(fades: &[[u64; 2]], seen: Nanos, expires: Nanos, terms: &Terms) -> Vec<Self> {
        let fade = |[until_ms, units]: &[u64; 2]| Self {
            from: expires,
            until: seen.saturating_add(terms.stretch(until_ms.saturating_mul(MILLISECOND))),
            units: *units,
        };
        fades.iter().map(fade).collect()
    }

    /// As it is recorded at `now` beside a lease that ends at `expires`, in at most `most` entries.
    pub(super) fn to_record(fades: &[Self], expires: Nanos, now: Nanos, most: usize) -> Vec<[u64; 2]> {
        let lasting: Vec<&Self> = fades.iter().filter(|fade| fade.from >= expires).collect();
        if most == 0 || lasting.is_empty() {
            return Vec::new();
        }
        let of = |group: &[&Self]| {
            let until = group.iter().map(|fade| fade.until).max().unwrap_or(now);
            let units = group.iter().map(|fade| fade.units).fold(0, u64::saturating_add);
            [until.saturating_sub(now).div_ceil(MILLISECOND), units]
        };
        lasting.chunks(lasting.len().div_ceil(most)).map(of).collect()
    }

    /// Takes those that are over out of `fades`; gives how many units a holder has less whose lease has ended at `expires`.
    pub(super) fn freed(fades: &mut Vec<Self>, expires: Nanos, now: Nanos) -> u64 {
        let mut freed = 0u64;
        fades.retain(|fade| {
            let over = fade.until <= now;
            if over && fade.from >= expires {
                freed = freed.saturating_add(fade.units);
            }
            !over
        });
        freed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quota::SECOND;

    const TERMS: Terms = Terms {
        lease: 10 * SECOND,
        shortest_lease: SECOND,
        report_every: SECOND,
        drift_ppm: 0,
        calendar_margin_ms: 0,
    };

    fn fade(from: u64, until: u64, units: u64) -> Fade {
        Fade {
            from_ms: from * 1_000,
            until_ms: until * 1_000,
            units,
        }
    }

    #[test]
    fn only_what_outlasts_the_lease_is_free_early() {
        let fades = [fade(2, 3, 1), fade(4, 5, 2), fade(8, 9, 4)];
        assert_eq!(Fading::reported(&fades, None, 100 * SECOND, &TERMS), []);
        // Made somewhere between 99 and 100.
        let mut known = Fading::reported(&fades, Some(99 * SECOND), 100 * SECOND, &TERMS);
        let expires = 102 * SECOND;
        // Lengths are stretched by a nanosecond at least.
        let at = |known: &mut Vec<Fading>, second: u64| {
            Fading::freed(known, expires, second * SECOND + MILLISECOND)
        };
        assert_eq!(at(&mut known, 104), 0, "it may have been used again");
        assert_eq!(at(&mut known, 105), 2);
        assert_eq!(at(&mut known, 105), 0, "once");
        assert_eq!(at(&mut known, 108), 0);
        assert_eq!(at(&mut known, 109), 4);
        assert_eq!(known, []);
    }

    #[test]
    fn a_record_keeps_what_outlasts_its_lease_in_few_entries() {
        let fades: Vec<Fade> = (0..10).map(|n| fade(n, n + 1, 1 << n)).collect();
        let known = Fading::reported(&fades, Some(0), 0, &TERMS);
        let record = |most| Fading::to_record(&known, 4 * SECOND - MILLISECOND, SECOND, most);
        assert_eq!(record(0), Vec::<[u64; 2]>::new());
        assert_eq!(record(2), [[6_001, 16 + 32 + 64], [9_001, 128 + 256 + 512]]);
        assert_eq!(record(99).len(), 6);
        let read = Fading::recorded(&record(2), 50 * SECOND, 53 * SECOND, &TERMS);
        let units: Vec<_> = read.iter().map(|fade| (fade.from, fade.units)).collect();
        assert_eq!(units, [(53 * SECOND, 112), (53 * SECOND, 896)]);
    }
}
