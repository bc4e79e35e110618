//! The cheaper of two picked at random.
//!
//! Two choices are exponentially better than one (Mitzenmacher, "The power of two choices in randomized load
//! balancing", IEEE TPDS 2001) and better than the best of all where several gateways each see only their own requests:
//! those would all run to the same replica at once.
//!
//! When one of the two is full or ejected, two of *those that can take the request* are compared. One look at the list
//! counts them, another finds the two. So a free slot is found wherever it is, and losing replicas does not turn two
//! choices into one.

use super::candidates::{Candidates, Pick, Tier, survey};
use crate::load::random::Stream;

const DOMAIN: u64 = 0x7061_6972;

/// The one of two that would be filled to the smaller part of its slots by this request.
///
/// Costs the loads of two replicas; of all, twice, when one of the two cannot take it.
pub fn least_loaded(candidates: &impl Candidates, random: u64) -> Pick {
    two_choices(candidates, random, |index| load(candidates, index))
}

/// In-flight after one more, as a part of the slots.
pub(super) fn load(candidates: &impl Candidates, index: usize) -> f64 {
    (f64::from(candidates.in_flight(index)) + 1.0) / f64::from(candidates.slots(index))
}

/// The one of two for which `cost` is smaller; the first when they are equal.
pub(super) fn two_choices<T: PartialOrd>(
    candidates: &impl Candidates,
    random: u64,
    cost: impl Fn(usize) -> T,
) -> Pick {
    let cheaper = |first, second| {
        if first != second && cost(second) < cost(first) {
            second
        } else {
            first
        }
    };
    let Some((first, second)) = pair(candidates.count(), random) else {
        return Pick::NoReplica;
    };
    let is_usable = |index| Tier::Healthy.is_usable(candidates, index);
    if is_usable(first) && is_usable(second) {
        return Pick::Replica(cheaper(first, second));
    }
    let (tier, free) = match survey(candidates) {
        Ok(found) => found,
        Err(pick) => return pick,
    };
    let ranks = pair(free, Stream::new(random, DOMAIN).at(0));
    let (mut one, mut other, mut last) = (None, None, None);
    let usable = (0..candidates.count()).filter(|index| tier.is_usable(candidates, *index));
    for (rank, index) in usable.enumerate() {
        last = Some(index);
        if let Some((first, second)) = ranks {
            one = one.or((rank == first).then_some(index));
            other = other.or((rank == second).then_some(index));
        }
    }
    // Slots may have gone since the survey: fewer than counted, or none.
    match (one.or(last), other.or(last)) {
        (Some(one), Some(other)) => tier.pick(cheaper(one, other)),
        _ => Pick::AllFull,
    }
}

/// Two different numbers below `count` in random order; the same one twice if there is only one.
pub(super) fn pair(count: usize, random: u64) -> Option<(usize, usize)> {
    let first = scale(random as u32, count)?;
    let offset = scale((random >> 32) as u32, count - 1).map_or(0, |offset| offset + 1);
    Some((first, (first + offset) % count))
}

/// Maps a uniform `u32` to `0..below`.
fn scale(random: u32, below: usize) -> Option<usize> {
    (below > 0).then(|| ((u64::from(random) * below as u64) >> 32) as usize)
}
