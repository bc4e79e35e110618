//! The port each pool has on its namespace's gateways.
//!
//! Pools are visited at the same time, and a cache shows a port only after its pool's status was written, so what was
//! given is also remembered here until the cache shows it. A port is kept once given; if two pools ever hold the same
//! one (two leaders in quick succession), the younger pool moves.

use std::collections::{BTreeSet, HashMap};

use flotilla_core::revision::spread;
use flotilla_core::seeded::{self, Bug};
use flotilla_crds::AgentPool;
use flotilla_crds::names::{POOL_PORT_MAX, POOL_PORT_MIN};
use jiff::Timestamp;
use kube::ResourceExt as _;
use parking_lot::Mutex;

use crate::runtime::{Key, uid_of};

/// What was given, by namespace and pool.
#[derive(Debug, Default)]
pub struct Ports {
    given: Mutex<HashMap<String, HashMap<String, Given>>>,
}

#[derive(Debug)]
struct Given {
    uid: String,
    port: i32,
}

impl Ports {
    /// The port of `pool` among `pools`, all of its namespace. `recovered` is what its front Service says, for a pool
    /// whose status was lost. None when every port is taken. A namespace of a thousand pools is walked once for each
    /// visit of each of them, so a pool that keeps its port costs a comparison for each neighbour and no more.
    pub fn assign<'a>(
        &self,
        pool: &AgentPool,
        recovered: Option<i32>,
        pools: impl Iterator<Item = &'a AgentPool> + Clone,
    ) -> Option<i32> {
        if seeded::has(Bug::PortReused) {
            return Some(POOL_PORT_MIN);
        }
        let mut all = self.given.lock();
        let given = all.entry(pool.namespace().unwrap_or_default()).or_default();
        let port_of = |pool: &AgentPool| {
            let remembered = |pool: &AgentPool| {
                let given = given.get(name(pool))?;
                (Some(given.uid.as_str()) == pool.metadata.uid.as_deref()).then_some(given.port)
            };
            held(pool).or_else(|| remembered(pool))
        };
        let others = pools.filter(|other| name(other) != name(pool));
        let is_free = |port: i32| {
            (POOL_PORT_MIN..=POOL_PORT_MAX).contains(&port)
                && !others
                    .clone()
                    .any(|other| port_of(other) == Some(port) && age(other) < age(pool))
        };
        let port = match port_of(pool).or(recovered).filter(|port| is_free(*port)) {
            Some(port) => port,
            None => choose(name(pool), &others.filter_map(port_of).collect())?,
        };
        let uid = uid_of(pool);
        given.insert(name(pool).to_owned(), Given { uid, port });
        Some(port)
    }

    /// Drops what is remembered of a pool that is gone.
    pub fn forget(&self, pool: &Key) {
        let mut all = self.given.lock();
        if let Some(given) = all.get_mut(&pool.namespace) {
            given.remove(&pool.name);
            if given.is_empty() {
                all.remove(&pool.namespace);
            }
        }
    }
}

fn name(pool: &AgentPool) -> &str {
    pool.metadata.name.as_deref().unwrap_or_default()
}

fn held(pool: &AgentPool) -> Option<i32> {
    pool.status.as_ref().and_then(|status| status.gateway_port)
}

/// Orders pools: the older first, then by name.
fn age(pool: &AgentPool) -> (Option<Timestamp>, &str) {
    let created = pool.metadata.creation_timestamp.as_ref();
    (created.map(|time| time.0), name(pool))
}

/// The first free port from where the name's hash points.
fn choose(name: &str, taken: &BTreeSet<i32>) -> Option<i32> {
    let count = POOL_PORT_MAX - POOL_PORT_MIN + 1;
    let start = i32::try_from(spread(name) % u64::from(count.unsigned_abs())).unwrap_or_default();
    (0..count)
        .map(|step| POOL_PORT_MIN + (start + step) % count)
        .find(|port| !taken.contains(port))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pool(name: &str, age: i64, port: Option<i32>) -> AgentPool {
        serde_json::from_value(json!({
            "apiVersion": "flotilla.dev/v1alpha1", "kind": "AgentPool",
            "metadata": {
                "namespace": "shop", "name": name, "uid": name,
                "creationTimestamp": Timestamp::from_second(1000 - age).unwrap().to_string(),
            },
            "spec": {"agent": {"image": "a"}},
            "status": {"observedGeneration": 1, "gatewayPort": port},
        }))
        .unwrap()
    }

    fn first(name: &str) -> i32 {
        Ports::default()
            .assign(&pool(name, 0, None), None, [].into_iter())
            .unwrap()
    }

    #[test]
    fn the_name_says_where_to_begin_and_what_is_taken_is_left_out() {
        let start = first("support");
        assert!((POOL_PORT_MIN..=POOL_PORT_MAX).contains(&start));
        let other = pool("other", 5, Some(start));
        let moved = Ports::default()
            .assign(&pool("support", 0, None), None, [&other].into_iter())
            .unwrap();
        assert_ne!(moved, start);
    }

    #[test]
    fn a_port_is_kept_and_recovered() {
        let kept = Ports::default().assign(&pool("support", 0, Some(20_001)), None, [].into_iter());
        let recovered = Ports::default().assign(&pool("support", 0, None), Some(20_002), [].into_iter());
        let nonsense = Ports::default().assign(&pool("support", 0, None), Some(80), [].into_iter());
        assert_eq!(
            (kept, recovered, nonsense),
            (Some(20_001), Some(20_002), Some(first("support")))
        );
    }

    #[test]
    fn the_younger_of_two_moves() {
        let (old, young) = (pool("old", 9, Some(20_001)), pool("young", 1, Some(20_001)));
        let ports = Ports::default();
        assert_eq!(ports.assign(&old, None, [&old, &young].into_iter()), Some(20_001));
        assert_ne!(
            ports.assign(&young, None, [&old, &young].into_iter()),
            Some(20_001)
        );
    }

    #[test]
    fn two_pools_visited_before_any_status_is_written_differ() {
        let (a, b) = (pool("a", 1, None), pool("b", 1, None));
        let ports = Ports::default();
        let port = ports.assign(&a, None, [&a, &b].into_iter()).unwrap();
        assert_ne!(ports.assign(&b, Some(port), [&a, &b].into_iter()), Some(port));
        assert_eq!(ports.assign(&a, None, [&a, &b].into_iter()), Some(port));
    }

    #[test]
    fn a_full_range_has_no_port() {
        let taken = (POOL_PORT_MIN..=POOL_PORT_MAX).collect();
        assert_eq!(choose("support", &taken), None);
    }
}
