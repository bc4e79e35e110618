//! One list of replicas with its strategy and what that needs to remember.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use flotilla_crds::agent_pool::Balancing;

use super::adaptive::Adaptive;
use super::candidates::{Candidates, Pick, survey};
use super::choices::least_loaded;
use super::hash::{BALANCE_PERCENT, consistent_hash};
use super::turns::{Wheel, round_robin, weighted};
use crate::load::random::Stream;

/// Slots lost to other requests before all are tried in turn.
const LOST_RACES: u64 = 8;
const DOMAIN: u64 = 0x7261_6365;

/// How a replica is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Strategy {
    /// In turn.
    RoundRobin,
    /// In turn, in proportion to slots.
    Weighted,
    /// The less loaded of two, relative to slots.
    #[default]
    LeastLoaded,
    /// The one of two that is cheaper by latency and load.
    Adaptive,
    /// By the request's key, with bounded load; requests without a key as [`Strategy::LeastLoaded`].
    ConsistentHash,
}

impl From<Balancing> for Strategy {
    fn from(balancing: Balancing) -> Self {
        match balancing {
            Balancing::RoundRobin => Self::RoundRobin,
            Balancing::Weighted => Self::Weighted,
            Balancing::LeastLoaded => Self::LeastLoaded,
            Balancing::Adaptive => Self::Adaptive,
            Balancing::ConsistentHash => Self::ConsistentHash,
        }
    }
}

/// What a choice depends on besides the replicas.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Draw {
    /// 64 uniform bits.
    pub random: u64,
    /// The request's key, for [`Strategy::ConsistentHash`].
    pub key: Option<u64>,
    /// The time.
    pub now_nanos: u64,
}

/// The balancing of one list of replicas: made anew with the list.
#[derive(Debug)]
pub struct Balancer {
    strategy: Strategy,
    turns: AtomicU64,
    wheel: Wheel,
    adaptive: Adaptive,
    balance_percent: u32,
}

impl Balancer {
    /// For a list of replicas with this many `slots` each. `start` is any number, random so that lists that change
    /// often, and gateways that start together, do not all begin with the first replica.
    pub fn new(strategy: Strategy, slots: impl IntoIterator<Item = u32>, start: u64) -> Self {
        let wheel = match strategy {
            Strategy::Weighted => Wheel::new(slots),
            _ => Wheel::default(),
        };
        Self {
            strategy,
            turns: AtomicU64::new(start),
            wheel,
            adaptive: Adaptive::default(),
            balance_percent: BALANCE_PERCENT,
        }
    }

    /// With another bound for [`Strategy::ConsistentHash`], from 100: see [`super::hash`] for what it costs.
    #[cfg(test)]
    #[must_use]
    pub(super) fn with_balance_percent(self, balance_percent: u32) -> Self {
        Self {
            balance_percent,
            ..self
        }
    }

    /// Its strategy.
    pub fn strategy(&self) -> Strategy {
        self.strategy
    }

    /// The pool's typical latency, once [`Strategy::Adaptive`] has measured one.
    pub fn typical_nanos(&self) -> Option<u64> {
        self.adaptive.typical_nanos()
    }

    /// Chooses a replica with a free slot. Somebody else may take the slot before the caller does.
    pub fn pick(&self, candidates: &impl Candidates, draw: Draw) -> Pick {
        match (self.strategy, draw.key) {
            (Strategy::RoundRobin, _) => round_robin(candidates, &self.turns),
            (Strategy::Weighted, _) => weighted(candidates, &self.wheel, &self.turns),
            (Strategy::Adaptive, _) => self.adaptive.pick(candidates, draw.random, draw.now_nanos),
            (Strategy::ConsistentHash, Some(key)) => consistent_hash(candidates, key, self.balance_percent),
            (Strategy::ConsistentHash, None) | (Strategy::LeastLoaded, _) => {
                least_loaded(candidates, draw.random)
            }
        }
    }

    /// Chooses until `take(index, is_ejected)` has got a slot; the answer names the replica that was taken.
    ///
    /// `take` says no when the slot, or the place for a probe, has gone to another request meanwhile. After some such
    /// losses all usable replicas are tried in turn, so [`Pick::AllFull`] means that each of them has said no.
    pub fn claim(
        &self,
        candidates: &impl Candidates,
        draw: Draw,
        mut take: impl FnMut(usize, bool) -> bool,
    ) -> Pick {
        let mut taken = |pick: Pick| match pick {
            Pick::Replica(index) => take(index, false),
            Pick::Ejected(index) => take(index, true),
            Pick::AllFull | Pick::NoReplica => true,
        };
        let mut again = draw;
        for loss in 0..LOST_RACES {
            let pick = self.pick(candidates, again);
            if taken(pick) {
                return pick;
            }
            again.random = Stream::new(draw.random, DOMAIN).at(loss);
        }
        let tier = match survey(candidates) {
            Ok((tier, _)) => tier,
            Err(pick) => return pick,
        };
        let start =
            usize::try_from(self.turns.fetch_add(1, Relaxed) % candidates.count() as u64).unwrap_or(0);
        (start..candidates.count())
            .chain(0..start)
            .filter(|index| tier.is_usable(candidates, *index))
            .map(|index| tier.pick(index))
            .find(|pick| taken(*pick))
            .unwrap_or(Pick::AllFull)
    }
}
