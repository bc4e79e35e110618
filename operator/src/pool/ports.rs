//! The port each pool has on its namespace's gateways.
//!
//! Pools are visited at the same time, and a cache shows a port only after its pool's status was written, so what was
//! given is also remembered here until the cache shows it. A port is kept once given; if two pools ever hold the same
//! one (two leaders in quick succession), the younger pool moves.

use std::collections::{BTreeMap, HashMap};

use flotilla_core::revision::spread;
use flotilla_crds::AgentPool;
use flotilla_crds::names::{POOL_PORT_MAX, POOL_PORT_MIN};
use jiff::Timestamp;
use kube::ResourceExt as _;
use parking_lot::Mutex;

use crate::runtime::{Key, key_of, uid_of};

/// What was given, by pool.
#[derive(Debug, Default)]
pub struct Ports {
    given: Mutex<HashMap<Key, (String, i32)>>,
}

/// Who holds a port, and since when that pool exists.
type Holder = (Option<Timestamp>, String);

impl Ports {
    /// The port of `pool` among `pools`, all of its namespace. `recovered` is what its front Service says, for a pool
    /// whose status was lost. None when every port is taken.
    pub fn assign<'a>(
        &self,
        pool: &AgentPool,
        recovered: Option<i32>,
        pools: impl Iterator<Item = &'a AgentPool>,
    ) -> Option<i32> {
        let mut given = self.given.lock();
        let mut taken: BTreeMap<i32, Holder> = BTreeMap::new();
        for other in pools.filter(|other| uid_of(*other) != uid_of(pool)) {
            let remembered = given.get(&key_of(other)).filter(|(uid, _)| *uid == uid_of(other));
            if let Some(port) = held(other).or(remembered.map(|(_, port)| *port)) {
                let holder = holder(other);
                let oldest = taken
                    .remove(&port)
                    .map_or(holder.clone(), |first| first.min(holder));
                taken.insert(port, oldest);
            }
        }
        let remembered = given
            .get(&key_of(pool))
            .filter(|(uid, _)| *uid == uid_of(pool))
            .map(|(_, port)| *port);
        let ours = held(pool).or(remembered).or(recovered);
        let port = choose(&pool.name_any(), ours, &holder(pool), &taken)?;
        given.insert(key_of(pool), (uid_of(pool), port));
        Some(port)
    }

    /// Drops what is remembered of a pool that is gone.
    pub fn forget(&self, pool: &Key) {
        self.given.lock().remove(pool);
    }
}

fn held(pool: &AgentPool) -> Option<i32> {
    pool.status.as_ref().and_then(|status| status.gateway_port)
}

fn holder(pool: &AgentPool) -> Holder {
    (pool.creation_timestamp().map(|time| time.0), pool.name_any())
}

/// Keeps `ours` unless an older pool has it; else the first free port from where the name's hash points.
fn choose(name: &str, ours: Option<i32>, us: &Holder, taken: &BTreeMap<i32, Holder>) -> Option<i32> {
    let is_ours = |port: &i32| (POOL_PORT_MIN..=POOL_PORT_MAX).contains(port);
    if let Some(port) = ours
        .filter(is_ours)
        .filter(|port| taken.get(port).is_none_or(|other| us < other))
    {
        return Some(port);
    }
    let count = POOL_PORT_MAX - POOL_PORT_MIN + 1;
    let start = i32::try_from(spread(name) % u64::from(count.unsigned_abs())).unwrap_or_default();
    (0..count)
        .map(|step| POOL_PORT_MIN + (start + step) % count)
        .find(|port| !taken.contains_key(port))
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
        let taken = (POOL_PORT_MIN..=POOL_PORT_MAX)
            .map(|port| (port, (None, String::new())))
            .collect();
        assert_eq!(choose("support", None, &(None, "support".into()), &taken), None);
    }
}
