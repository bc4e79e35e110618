//! In turn: every replica alike, or in proportion to its slots.
//!
//! A request draws a turn from a shared counter, and the turn names a replica. If that one is full or ejected the
//! request draws *another turn* instead of trying its neighbour: a neighbour would get the missing one's share on top
//! of its own, while the sequence of turns without the missing replica still is the exact proportion of the rest. It
//! also needs no agreement between threads, because no turn is drawn twice. After a few turns in vain the replica is
//! drawn at random, by weight, from those that can take the request, which a full look at the list finds.
//!
//! # The order of weighted turns
//!
//! The usual smooth order (nginx) is laid out in an array, whose length is the sum of all slots, or kept by changing a
//! credit per replica under a lock. Here turn `t` of `T` (the sum of slots, divided by their common divisor) goes to
//! the replica that owns position `t·s mod T`, where each owns as many adjacent positions as it has slots. `s` is
//! coprime with `T`, so each cycle of `T` turns is exact; and near `T/φ`, so any stretch of turns spreads evenly (the
//! golden-ratio sequence, Knuth, TAOCP volume 3, section 6.4). How evenly depends on the partial quotients of the
//! continued fraction of `T/s`, the smaller the better (Niederreiter, "Random number generation and quasi-Monte Carlo
//! methods", theorem 3.4), so of the numbers around `T/φ` the one with the smallest is taken. Space is one number per
//! replica.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::candidates::{Candidates, Pick, Tier, survey};
use crate::load::random::Stream;

/// Turns drawn before the whole list is looked at.
const DRAWS: usize = 8;
/// Purpose of the random numbers that are made from a turn.
const DOMAIN: u64 = 0x7475_726e;

/// The next replica in turn. Costs one atomic addition, and the loads of one replica.
pub fn round_robin(candidates: &impl Candidates, turns: &AtomicU64) -> Pick {
    let count = candidates.count() as u64;
    let place = |turn: u64| turn.checked_rem(count).map(|place| place as usize);
    draw(candidates, turns, place, |_| 1)
}

/// The next replica in turn by slots; `wheel` was made of the same list. Costs one atomic addition, a binary search,
/// and the loads of one replica.
pub fn weighted(candidates: &impl Candidates, wheel: &Wheel, turns: &AtomicU64) -> Pick {
    let weight = |index| u64::from(candidates.slots(index));
    draw(candidates, turns, |turn| wheel.at(turn), weight)
}

fn draw(
    candidates: &impl Candidates,
    turns: &AtomicU64,
    place: impl Fn(u64) -> Option<usize>,
    weight: impl Fn(usize) -> u64,
) -> Pick {
    let mut turn = 0;
    for _ in 0..DRAWS.min(candidates.count()) {
        turn = turns.fetch_add(1, Relaxed);
        if let Some(index) = place(turn).filter(|index| Tier::Healthy.is_usable(candidates, *index)) {
            return Pick::Replica(index);
        }
    }
    let tier = match survey(candidates) {
        Ok((tier, _)) => tier,
        Err(pick) => return pick,
    };
    let usable = || (0..candidates.count()).filter(|index| tier.is_usable(candidates, *index));
    let total: u64 = usable().map(&weight).sum();
    let mut left = Stream::new(turn, DOMAIN).below(0, total);
    let mut chosen = None;
    for index in usable() {
        chosen = Some(index);
        match left.checked_sub(weight(index)) {
            Some(rest) => left = rest,
            None => break,
        }
    }
    // Others may have taken the last slot since the survey.
    chosen.map_or(Pick::AllFull, |index| tier.pick(index))
}

/// The order of turns by weight.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wheel {
    /// Where the positions of each replica end; those of the first begin at 0.
    ends: Box<[u64]>,
    step: u64,
}

impl Wheel {
    /// The order for replicas with this many slots each. One with none is never named.
    pub fn new(slots: impl IntoIterator<Item = u32>) -> Self {
        let mut ends: Box<[u64]> = slots.into_iter().map(u64::from).collect();
        let divisor = ends.iter().copied().fold(0, greatest_common_divisor).max(1);
        let mut total = 0;
        for end in &mut ends {
            total += *end / divisor;
            *end = total;
        }
        Self {
            step: step(total),
            ends,
        }
    }

    /// The replica of a turn; none if there are no slots at all.
    pub fn at(&self, turn: u64) -> Option<usize> {
        let total = self.ends.last().copied().filter(|total| *total > 0)?;
        let product = u128::from(turn % total) * u128::from(self.step);
        let position = (product % u128::from(total)) as u64;
        Some(self.ends.partition_point(|end| *end <= position))
    }

    /// Turns after which every replica has had exactly its share.
    #[cfg(test)]
    pub(super) fn cycle(&self) -> u64 {
        self.ends.last().copied().unwrap_or_default()
    }
}

/// How far from `total / φ` a step may be.
const NEAR: u64 = 64;

/// The step near `total / φ` that has no divisor in common with `total` and the smallest partial quotients.
fn step(total: u64) -> u64 {
    const INVERSE_GOLDEN: f64 = 0.618_033_988_749_894_9;
    let ideal = ((total as f64 * INVERSE_GOLDEN).round() as u64).max(1);
    let near = ideal.saturating_sub(NEAR).max(1)..=(ideal + NEAR).min(total.saturating_sub(1).max(1));
    near.filter(|step| greatest_common_divisor(*step, total) == 1)
        .min_by_key(|step| (largest_quotient(total, *step), step.abs_diff(ideal)))
        .unwrap_or(1)
}

/// The largest partial quotient of the continued fraction of `a / b`.
fn largest_quotient(mut a: u64, mut b: u64) -> u64 {
    let mut largest = 0;
    while b != 0 {
        largest = largest.max(a / b);
        (a, b) = (b, a % b);
    }
    largest
}

fn greatest_common_divisor(a: u64, b: u64) -> u64 {
    if b == 0 {
        a
    } else {
        greatest_common_divisor(b, a % b)
    }
}
