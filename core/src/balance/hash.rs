//! The same replica for the same key, unless it has too much to do.
//!
//! Rendezvous hashing (Thaler, Ravishankar, "Using name-based mappings to increase hit rates", IEEE/ACM ToN 1998): each
//! replica gets a score from the key and its own name, and the best score wins. A replica that leaves takes only its
//! own keys with it, and one that comes takes only what it wins: 1/N of the keys on average. There is no ring to build,
//! so nothing has to be agreed upon: every gateway computes the same order of preference from the names alone.
//!
//! # Weights
//!
//! A score is an exponential variate of key and name divided by the weight (slots); the smallest wins, which happens in
//! exact proportion to the weights (Schindelhauer, Schomaker, "Weighted distributed hash tables", SPAA 2005: the
//! logarithmic method). The variate is [`Stream::exponential`], the same to the last bit on every platform.
//!
//! # Bounded load
//!
//! Keys are not equally busy. A replica is passed over while it has `⌈c·(m+1)·sᵢ/S⌉` or more of the `m` requests in
//! flight (`sᵢ` of the `S` slots; `c` = 1.25), as in Mirrokni, Thorup, Zadimoghaddam, "Consistent hashing with bounded
//! loads", SODA 2018. The bounds add up to more than `m`, so somebody is always below. A key that is turned away goes
//! to the next in *its own* order, so the excess of one replica spreads over all others instead of filling its
//! neighbour (the reason for random jumps in Chen, Coleman, Shrivastava, "Revisiting consistent hashing with bounded
//! loads", AAAI 2021).
//!
//! Loads are what this gateway sees; those of ejected replicas are left out.
//!
//! # What the bound costs
//!
//! A tight bound and a fixed home exclude each other where few requests are in flight, because arrivals vary by
//! `√mean`. Measured with random keys (`the_bounds_hold_under_load`; 2 to 50 replicas; keys that one replica's leaving
//! moves, above the 1/N that are its own):
//!
//! | requests per replica | bound | served away from home | moved above 1/N |
//! |---|---|---|---|
//! | 100 | 125 % | ≤ 0.2 % | ≤ 0.3 % |
//! | 32 | 125 % | ≤ 3.5 % | ≤ 1.7 % |
//! | 16 | 125 % | ≤ 10.2 % | ≤ 5.2 % |
//! | 16 | 150 % | ≤ 1.7 % | ≤ 0.8 % |
//! | 8 | 125 % | ≤ 22.4 % | ≤ 13.3 % |
//! | 8 | 200 % | ≤ 0.4 % | ≤ 0.3 % |

use super::candidates::{Candidates, Pick, Tier, survey};
use crate::load::random::Stream;

/// How far a replica's load may be above the mean, in percent of the mean.
pub const BALANCE_PERCENT: u32 = 125;

const KEYS: u64 = 0x006b_6579;

/// The replica that `key` prefers among those with a free slot and a load within `balance_percent` of the mean.
///
/// Costs the loads of all replicas twice and a logarithm (about 10 ns) for each one that could take it.
pub fn consistent_hash(candidates: &impl Candidates, key: u64, balance_percent: u32) -> Pick {
    let tier = match survey(candidates) {
        Ok((tier, _)) => tier,
        Err(pick) => return pick,
    };
    let (mut load, mut slots) = (0u64, 0u64);
    for index in (0..candidates.count()).filter(|index| tier.holds(candidates, *index)) {
        load += u64::from(candidates.in_flight(index));
        slots += u64::from(candidates.slots(index));
    }
    // In-flight below c(m+1)sᵢ/S is the same as below its ceiling.
    let budget = u128::from(balance_percent.max(100)) * u128::from(load + 1);
    let is_below_bound = |index: usize| {
        u128::from(candidates.in_flight(index)) * u128::from(slots) * 100
            < budget * u128::from(candidates.slots(index))
    };
    let stream = Stream::new(key, KEYS);
    // Without the bound only if loads have changed between two looks.
    best(candidates, tier, stream, is_below_bound)
        .or_else(|| best(candidates, tier, stream, |_| true))
        .map_or(Pick::AllFull, |index| tier.pick(index))
}

/// Of the usable replicas that `may_take` it, the one with the best score.
fn best(
    candidates: &impl Candidates,
    tier: Tier,
    stream: Stream,
    may_take: impl Fn(usize) -> bool,
) -> Option<usize> {
    (0..candidates.count())
        .filter(|index| tier.is_usable(candidates, *index) && may_take(*index))
        .map(|index| {
            (
                Score::new(stream, candidates.hash_id(index), candidates.slots(index)),
                index,
            )
        })
        .min_by(|(one, _), (other, _)| one.compare(other))
        .map(|(_, index)| index)
}

/// All of `members` (hash id and weight) in the order in which `key` prefers them; those of weight 0 last.
#[cfg(test)]
pub(super) fn preference(members: &[(u64, u32)], key: u64) -> Vec<usize> {
    let stream = Stream::new(key, KEYS);
    let mut order: Vec<(Score, usize)> = members
        .iter()
        .enumerate()
        .map(|(index, (id, weight))| (Score::new(stream, *id, *weight), index))
        .collect();
    order.sort_by(|(one, _), (other, _)| one.compare(other));
    order.into_iter().map(|(_, index)| index).collect()
}

/// Smaller is better; the id decides between equals.
struct Score {
    score: f64,
    id: u64,
}

impl Score {
    fn new(stream: Stream, id: u64, weight: u32) -> Self {
        Self {
            score: stream.exponential(id) / f64::from(weight),
            id,
        }
    }

    fn compare(&self, other: &Self) -> std::cmp::Ordering {
        self.score.total_cmp(&other.score).then(self.id.cmp(&other.id))
    }
}

/// 64 bits of any name or key, the same on every platform and in every release: FNV-1a, then mixed, because FNV's upper
/// bits hardly depend on the last bytes. Not for secrets, and no defence against keys that are made to collide: they
/// share a replica, within its bound.
pub fn hash_bytes(bytes: &[u8]) -> u64 {
    const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    let sum = bytes
        .iter()
        .fold(OFFSET, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(PRIME));
    Stream::new(sum, KEYS).at(0)
}
