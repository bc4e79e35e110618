//! What the pickers see of the replicas of one revision, and what they answer.
//!
//! The view is one object with an index instead of a slice of replicas, because slots and the list of addresses to
//! avoid belong to the revision and to the request: a gateway implements it on a struct of references, and nothing is
//! copied for a request.
//!
//! # Three tiers
//!
//! A *cordoned* replica is about to go and gets nothing. An *ejected* one is passed over while any other exists: if the
//! others are full, the request waits for them rather than going where it is expected to fail. If *all* are ejected the
//! suspicion is worth nothing (a failing dependency, a cut-off gateway), and they serve like healthy ones.

/// The replicas of one revision, `0..count()`. Implementations read atomics: two calls may differ.
///
/// A gateway that queues requests must load `in_flight` sequentially consistent, as it frees slots.
pub trait Candidates {
    /// How many there are; constant for the life of the view.
    fn count(&self) -> usize;
    /// Slots in use.
    fn in_flight(&self, index: usize) -> u32;
    /// Slots in all; its weight among the replicas.
    fn slots(&self, index: usize) -> u32;
    /// Names the replica to every gateway alike, for example [`super::hash_bytes`] of the pod's UID.
    fn hash_id(&self, index: usize) -> u64;
    /// It takes no new requests, whatever happens to the others; or this request has failed there before and there are
    /// others.
    fn is_cordoned(&self, index: usize) -> bool;
    /// Its breaker refuses requests now ([`super::Health::is_ejected`]).
    fn is_ejected(&self, index: usize) -> bool;
    /// Expected latency ([`super::PeakEwma::estimate_nanos`]); none while unmeasured. Only [`super::Adaptive`] asks.
    fn latency_nanos(&self, _index: usize) -> Option<u64> {
        None
    }
    /// Time since it became ready. Only [`super::Adaptive`] asks.
    fn age_nanos(&self, _index: usize) -> u64 {
        u64::MAX
    }
}

/// The answer of a picker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pick {
    /// This one: it had a free slot when it was looked at.
    Replica(usize),
    /// All are ejected; this one has a free slot.
    Ejected(usize),
    /// Every slot that may be used is taken.
    AllFull,
    /// There is none, or all are cordoned.
    NoReplica,
}

impl Pick {
    /// The replica, ejected or not.
    pub fn index(self) -> Option<usize> {
        match self {
            Self::Replica(index) | Self::Ejected(index) => Some(index),
            Self::AllFull | Self::NoReplica => None,
        }
    }
}

/// Which replicas may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tier {
    /// Those that are neither cordoned nor ejected.
    Healthy,
    /// There are no healthy ones: all that are not cordoned.
    Ejected,
}

impl Tier {
    pub(super) fn holds(self, candidates: &impl Candidates, index: usize) -> bool {
        !candidates.is_cordoned(index) && (self == Self::Ejected || !candidates.is_ejected(index))
    }

    /// In this tier, with a free slot.
    pub(super) fn is_usable(self, candidates: &impl Candidates, index: usize) -> bool {
        index < candidates.count()
            && candidates.in_flight(index) < candidates.slots(index)
            && self.holds(candidates, index)
    }

    pub(super) fn pick(self, index: usize) -> Pick {
        match self {
            Self::Healthy => Pick::Replica(index),
            Self::Ejected => Pick::Ejected(index),
        }
    }
}

/// The tier to pick from and how many of its replicas have a free slot, at least one; otherwise the pick it amounts to.
/// Looks at every replica once.
pub(super) fn survey(candidates: &impl Candidates) -> Result<(Tier, usize), Pick> {
    let (mut any, mut any_free, mut healthy, mut healthy_free) = (0, 0, 0, 0);
    for index in (0..candidates.count()).filter(|index| !candidates.is_cordoned(*index)) {
        let free = usize::from(candidates.in_flight(index) < candidates.slots(index));
        any += 1;
        any_free += free;
        if !candidates.is_ejected(index) {
            healthy += 1;
            healthy_free += free;
        }
    }
    let (tier, free) = if healthy > 0 {
        (Tier::Healthy, healthy_free)
    } else {
        (Tier::Ejected, any_free)
    };
    match (any, free) {
        (0, _) => Err(Pick::NoReplica),
        (_, 0) => Err(Pick::AllFull),
        (_, free) => Ok((tier, free)),
    }
}
