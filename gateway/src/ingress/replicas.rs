//! The replicas of one revision that take new requests: which one is next, and what its answer does to it.
//!
//! The list is replaced as a whole and never changed; requests hold a snapshot of it. Strategies, health and ejection are
//! [`flotilla_core::balance`]; here they meet slots and sockets.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use flotilla_core::balance::breaker::State;
use flotilla_core::balance::{
    Balancer, Candidates, Census, Change, Draw, EjectionPolicy, Ejector, Health, Outcome, Strategy, Ticket,
};

use super::endpoint::Endpoint;

/// One replica with the slots that this gateway may use there.
pub(super) struct Replica {
    pub(super) endpoint: Arc<Endpoint>,
    pub(super) slots: u32,
}

/// What takes new requests.
pub(super) struct Replicas {
    list: Vec<Replica>,
    balancer: Balancer,
    ejector: Ejector,
}

/// Replicas by the state of their breakers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Breakers {
    /// Take requests like any other.
    pub closed: u64,
    /// Take none.
    pub open: u64,
    /// Take probes.
    pub half_open: u64,
}

impl Default for Replicas {
    fn default() -> Self {
        Self::new(Vec::new(), Strategy::default(), EjectionPolicy::off())
    }
}

impl Replicas {
    pub(super) fn new(list: Vec<Replica>, strategy: Strategy, ejection: EjectionPolicy) -> Self {
        let slots = list.iter().map(|replica| replica.slots);
        Self {
            // Gateways that start together must not all begin with the same replica.
            balancer: Balancer::new(strategy, slots, rand::random()),
            ejector: Ejector::new(ejection),
            list,
        }
    }

    pub(super) fn endpoints(&self) -> impl Iterator<Item = &Arc<Endpoint>> {
        self.list.iter().map(|replica| &replica.endpoint)
    }

    /// Whether the choice needs [`Endpoint::latency`].
    pub(super) fn measures_latency(&self) -> bool {
        self.balancer.strategy() == Strategy::Adaptive
    }

    /// Takes a slot, at a replica that `avoid` does not name if there is any other.
    pub(super) fn claim(
        &self,
        avoid: &[SocketAddr],
        key: Option<u64>,
        now_nanos: u64,
    ) -> Option<(Arc<Endpoint>, Ticket)> {
        let policy = self.ejector.policy();
        let is_named = |replica: &Replica| avoid.contains(&replica.endpoint.address);
        let view = View {
            list: &self.list,
            policy,
            // Of the replicas that this request has failed at, the last resort is better than none.
            avoid: if !avoid.is_empty() && self.list.iter().all(is_named) {
                &[]
            } else {
                avoid
            },
            now_nanos,
        };
        let draw = Draw {
            random: rand::random(),
            key,
            now_nanos,
        };
        let mut ticket = None;
        let pick = self.balancer.claim(&view, draw, |index, is_ejected| {
            let Some(Replica { endpoint, slots }) = self.list.get(index) else {
                return false;
            };
            if !endpoint.take(*slots) {
                return false;
            }
            ticket = endpoint.health.begin(is_ejected, now_nanos, policy);
            if ticket.is_none() {
                // The last place for a probe has gone, so nobody who waits could use this slot either.
                endpoint.give_back();
            }
            ticket.is_some()
        });
        let replica = self.list.get(pick.index()?)?;
        Some((replica.endpoint.clone(), ticket?))
    }

    /// Takes a slot of the replica at `address`, unless it is ejected; with `beyond_slots` in any case.
    pub(super) fn claim_at(
        &self,
        address: SocketAddr,
        beyond_slots: bool,
        now_nanos: u64,
    ) -> Option<(Arc<Endpoint>, Ticket)> {
        let replica = self
            .list
            .iter()
            .find(|replica| replica.endpoint.address == address)?;
        let endpoint = &replica.endpoint;
        let slots = if beyond_slots { u32::MAX } else { replica.slots };
        if !endpoint.take(slots) {
            return None;
        }
        let ticket = endpoint
            .health
            .begin(beyond_slots, now_nanos, self.ejector.policy());
        if ticket.is_none() {
            endpoint.give_back();
        }
        Some((endpoint.clone(), ticket?))
    }

    /// A request to `endpoint` has ended.
    pub(super) fn ended(
        &self,
        endpoint: &Endpoint,
        ticket: Ticket,
        outcome: Outcome,
        retry_after: Option<Duration>,
        now_nanos: u64,
    ) -> Option<Change> {
        let census = || Census::of(self.list.iter().map(|replica| &replica.endpoint.health));
        self.ejector
            .end(&endpoint.health, ticket, outcome, retry_after, now_nanos, census)
    }

    /// A request to `endpoint` was answered after `latency_nanos`.
    pub(super) fn answered_after(&self, endpoint: &Endpoint, latency_nanos: u64, now_nanos: u64) {
        self.seed(endpoint, now_nanos);
        endpoint.latency.observe(latency_nanos, now_nanos);
    }

    /// Nobody waited longer than `elapsed_nanos` for `endpoint`'s answer.
    pub(super) fn unanswered_after(&self, endpoint: &Endpoint, elapsed_nanos: u64, now_nanos: u64) {
        self.seed(endpoint, now_nanos);
        endpoint.latency.observe_at_least(elapsed_nanos, now_nanos);
    }

    /// One quick answer of a new replica does not make it a quick one.
    fn seed(&self, endpoint: &Endpoint, now_nanos: u64) {
        if let Some(typical) = self.balancer.typical_nanos() {
            endpoint.latency.seed(typical, now_nanos);
        }
    }

    /// Compares the replicas' success rates. To be called every 10 s or so.
    pub(super) fn sweep(&self, now_nanos: u64) -> Vec<(&Arc<Endpoint>, Change)> {
        let health: Vec<&Health> = self.list.iter().map(|replica| &replica.endpoint.health).collect();
        let changes = self.ejector.sweep(&health, now_nanos);
        changes
            .into_iter()
            .filter_map(|(index, change)| Some((&self.list.get(index)?.endpoint, change)))
            .collect()
    }

    pub(super) fn breakers(&self, now_nanos: u64) -> Breakers {
        let mut breakers = Breakers::default();
        for endpoint in self.endpoints() {
            match endpoint.health.state(now_nanos) {
                State::Closed { .. } => breakers.closed += 1,
                State::Open { .. } => breakers.open += 1,
                State::HalfOpen { .. } => breakers.half_open += 1,
            }
        }
        breakers
    }
}

/// The replicas as one request sees them.
struct View<'a> {
    list: &'a [Replica],
    policy: &'a EjectionPolicy,
    avoid: &'a [SocketAddr],
    now_nanos: u64,
}

impl View<'_> {
    /// The pickers ask for indices below [`Candidates::count`] only.
    fn at<T>(&self, index: usize, otherwise: T, read: impl FnOnce(&Replica) -> T) -> T {
        self.list.get(index).map_or(otherwise, read)
    }
}

impl Candidates for View<'_> {
    fn count(&self) -> usize {
        self.list.len()
    }

    fn in_flight(&self, index: usize) -> u32 {
        self.at(index, u32::MAX, |replica| replica.endpoint.in_flight())
    }

    fn slots(&self, index: usize) -> u32 {
        self.at(index, 0, |replica| replica.slots)
    }

    fn hash_id(&self, index: usize) -> u64 {
        self.at(index, 0, |replica| replica.endpoint.hash_id)
    }

    fn is_cordoned(&self, index: usize) -> bool {
        self.at(index, true, |Replica { endpoint, .. }| {
            endpoint.is_leaving() || self.avoid.contains(&endpoint.address)
        })
    }

    fn is_ejected(&self, index: usize) -> bool {
        self.at(index, true, |Replica { endpoint, .. }| {
            endpoint.health.is_ejected(self.now_nanos, self.policy)
        })
    }

    fn latency_nanos(&self, index: usize) -> Option<u64> {
        self.at(index, None, |Replica { endpoint, .. }| {
            endpoint
                .latency
                .estimate_nanos(self.now_nanos, endpoint.in_flight() > 0)
        })
    }

    fn age_nanos(&self, index: usize) -> u64 {
        self.at(index, 0, |replica| replica.endpoint.age_nanos(self.now_nanos))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::Limits;

    fn replicas(count: u8, slots: u32, strategy: Strategy) -> Replicas {
        let limits = Limits {
            connect: Duration::from_secs(1),
            idle: Duration::from_secs(1),
        };
        let replica = |n| Replica {
            endpoint: Arc::new(Endpoint::new(address(n), &format!("uid-{n}"), limits)),
            slots,
        };
        Replicas::new(
            (0..count).map(replica).collect(),
            strategy,
            EjectionPolicy::default(),
        )
    }

    fn address(n: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, n], 8080))
    }

    /// A request that ends at once, and where it went.
    fn request(replicas: &Replicas, avoid: &[SocketAddr], key: Option<u64>, outcome: Outcome) -> SocketAddr {
        let (endpoint, ticket) = replicas.claim(avoid, key, 0).expect("a free slot");
        endpoint.give_back();
        replicas.ended(&endpoint, ticket, outcome, None, 0);
        endpoint.address
    }

    #[test]
    fn a_key_has_one_replica_and_keys_are_spread() {
        let replicas = replicas(4, 8, Strategy::ConsistentHash);
        let home = |key| request(&replicas, &[], Some(key), Outcome::Answered(200));
        let homes: std::collections::HashSet<_> = (0..64).map(home).collect();
        assert_eq!(homes.len(), 4);
        for key in 0..64 {
            assert_eq!(home(key), home(key));
        }
    }

    #[test]
    fn where_a_request_has_failed_it_goes_again_only_if_there_is_no_other() {
        for strategy in [
            Strategy::RoundRobin,
            Strategy::LeastLoaded,
            Strategy::ConsistentHash,
        ] {
            let replicas = replicas(3, 8, strategy);
            let mut avoid = Vec::new();
            for _ in 0..3 {
                let seen = request(&replicas, &avoid, Some(7), Outcome::ConnectFailed);
                assert!(!avoid.contains(&seen), "{strategy:?}");
                avoid.push(seen);
            }
            assert_eq!(
                replicas.breakers(0),
                Breakers {
                    open: 3,
                    ..Breakers::default()
                }
            );
            assert!(avoid.contains(&request(&replicas, &avoid, Some(7), Outcome::Answered(200))));
        }
    }

    #[test]
    fn one_waits_for_the_healthy_rather_than_go_to_an_ejected_one() {
        let replicas = replicas(2, 1, Strategy::LeastLoaded);
        let dead = request(&replicas, &[], None, Outcome::ConnectFailed);
        let (alive, ticket) = replicas.claim(&[], None, 0).expect("a free slot");
        assert_ne!(alive.address, dead);
        assert!(replicas.claim(&[], None, 0).is_none());
        // And for the only one that it has not failed at.
        assert!(replicas.claim(&[dead], None, 0).is_none());
        replicas.ended(&alive, ticket, Outcome::Cancelled, None, 0);
    }
}
