//! What must hold at every event of a run, whatever went wrong between the operator and the server.
//!
//! The store keeps every change, so a finished run is played again, change by change, and each one is checked against the
//! state it was made in. That sees states which last a millisecond, and costs a run nothing.
//!
//! | name | rule |
//! |---|---|
//! | `weights` | the weights of a pool add up to 100, and at most two revisions have one |
//! | `one candidate` | at most one revision with traffic does not stand as stable |
//! | `generation` | `trafficGeneration` rises exactly when the traffic changes, and never falls, even if status was lost |
//! | `capacity` | a weight rises only to what the revision's available pods carry, unless nobody else can |
//! | `ladder` | a canary's weight is at most that of the first step whose question is not answered, while stable serves |
//! | `rejected` | a rejected revision's weight never rises |
//! | `drain` | pods with traffic go only when what is left carries it; the last ones once no gateway sends any |
//! | `room` | a set grows only while all pods together stay within what the type of release may use |
//! | `standing` | once there is a stable revision there is always one, and at most one candidate |
//! | `history` | no record of a revision in force is deleted |
//! | `evidence` | a checkpoint is about the revision in force, and its counts never fall |
//! | `ports` | no two pools of a namespace have one gateway port |
//! | `conditions` | each status has its conditions, and what is not Ready says in a sentence why |
//!
//! A rule that speaks of `spec` is silent while status is about an older generation: nobody can know better yet.

mod pools;
mod records;
mod sets;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use flotilla_crds::names;
use serde_json::Value;

use crate::cluster::Cluster;
use crate::gateways::Applied;
use crate::kinds::{KindId, Registry};
use crate::store::{Change, Key, OLDEST};

/// What was broken, a line each: the rule, the version it was broken at, and how. `stale` is how many versions old the lists are
/// that the operator was given: of pods it may know no more than that.
pub fn violations(cluster: &Cluster, applied: &[Applied], stale: u64) -> Vec<String> {
    let (registry, changes) = cluster.with(|state| {
        let changes: Vec<Change> = match state.store.since(OLDEST) {
            Ok(changes) => changes.cloned().collect(),
            // History was forgotten by a test; what is left has no beginning to be checked from.
            Err(_) => Vec::new(),
        };
        (state.registry.clone(), changes)
    });
    let mut replay = Replay {
        kinds: Kinds::of(&registry),
        objects: BTreeMap::new(),
        applied,
        stale,
        ready: BTreeMap::new(),
        reached: 0,
        in_force: BTreeMap::new(),
        generations: BTreeMap::new(),
        counted: BTreeMap::new(),
        served: BTreeSet::new(),
        found: Vec::new(),
    };
    for change in &changes {
        replay.take(change);
    }
    replay.found
}

struct Kinds {
    pools: Option<KindId>,
    sets: Option<KindId>,
    records: Option<KindId>,
    pods: Option<KindId>,
    config_maps: Option<KindId>,
}

impl Kinds {
    fn of(registry: &Registry) -> Self {
        Self {
            pools: registry.by_kind("flotilla.dev/v1alpha1", "AgentPool"),
            sets: registry.by_kind("apps/v1", "ReplicaSet"),
            records: registry.by_kind("apps/v1", "ControllerRevision"),
            pods: registry.by_kind("v1", "Pod"),
            config_maps: registry.by_kind("v1", "ConfigMap"),
        }
    }
}

struct Replay<'a> {
    kinds: Kinds,
    objects: BTreeMap<Key, Arc<Value>>,
    applied: &'a [Applied],
    /// See [`violations`].
    stale: u64,
    /// How many pods of each pool and revision were ready since which version.
    ready: BTreeMap<(String, String, String), Vec<(u64, i64)>>,
    /// How much of `applied` has happened.
    reached: usize,
    /// Weights by gateway and pool.
    in_force: BTreeMap<(String, String), BTreeMap<String, i32>>,
    /// The highest generation of each pool's traffic so far, by UID.
    generations: BTreeMap<String, i64>,
    /// Requests counted by checkpoint and release.
    counted: BTreeMap<(Key, String), i64>,
    /// UIDs of pools that have had a stable revision.
    served: BTreeSet<String>,
    found: Vec<String>,
}

impl Replay<'_> {
    fn take(&mut self, change: &Change) {
        while let Some(applied) = self
            .applied
            .get(self.reached)
            .filter(|applied| applied.at < change.revision)
        {
            let place = (applied.gateway.clone(), applied.pool.clone());
            self.in_force.insert(place, applied.weights.clone());
            self.reached += 1;
        }
        match &change.new {
            Some(object) => drop(self.objects.insert(change.key.clone(), Arc::clone(object))),
            None => drop(self.objects.remove(&change.key)),
        }
        let kind = Some(change.key.kind);
        if kind == self.kinds.pods && self.stale > 0 {
            self.count(change);
        }
        if kind == self.kinds.pools {
            self.pool(change);
        } else if kind == self.kinds.sets {
            self.set(change);
        } else if kind == self.kinds.records {
            self.record(change);
        } else if kind == self.kinds.pods {
            self.pod(change);
        } else if kind == self.kinds.config_maps {
            self.checkpoint(change);
        }
    }

    fn broken(&mut self, rule: &str, change: &Change, how: impl std::fmt::Display) {
        let Key { namespace, name, .. } = &change.key;
        self.found.push(format!(
            "{rule}: at {} {namespace}/{name}: {how}",
            change.revision
        ));
    }

    // === what there is ===

    fn find(&self, kind: Option<KindId>, namespace: &str, name: &str) -> Option<Arc<Value>> {
        let key = Key {
            kind: kind?,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        };
        self.objects.get(&key).cloned()
    }

    fn of_pool(&self, kind: Option<KindId>, namespace: &str, pool: &str) -> Vec<Arc<Value>> {
        let ours = self.of_kind(kind, namespace);
        ours.filter(|(_, object)| label(object, names::POOL) == pool)
            .map(|(_, object)| Arc::clone(object))
            .collect()
    }

    fn of_kind(
        &self,
        kind: Option<KindId>,
        namespace: &str,
    ) -> impl Iterator<Item = (&'_ Key, &'_ Arc<Value>)> {
        let first = kind.map(|kind| Key {
            kind,
            namespace: namespace.to_owned(),
            name: String::new(),
        });
        first.into_iter().flat_map(|first| {
            let all = self.objects.range(first.clone()..);
            all.take_while(move |(key, _)| key.kind == first.kind && key.namespace == first.namespace)
        })
    }

    /// The pool of a child, if it lives and its present spec was seen.
    fn settled_pool(&self, child: &Value, namespace: &str) -> Option<Arc<Value>> {
        let pool = self.find(self.kinds.pools, namespace, label(child, names::POOL))?;
        let is_owner = child["metadata"]["ownerReferences"]
            .as_array()
            .into_iter()
            .flatten()
            .any(|owner| owner["kind"] != "AgentPool" || owner["uid"] == pool["metadata"]["uid"]);
        (is_owner && is_current(&pool) && !is_deleting(&pool) && pool["spec"]["stopped"] != true)
            .then_some(pool)
    }

    fn ready_pods(&self, namespace: &str, pool: &str, revision: Option<&str>) -> i64 {
        let pods = self.of_pool(self.kinds.pods, namespace, pool);
        let ready = pods.iter().filter(|pod| {
            let of = label(pod, names::REVISION);
            !of.is_empty()
                && revision.is_none_or(|revision| of == revision)
                && is_ready(pod)
                && !is_deleting(pod)
        });
        i64::try_from(ready.count()).unwrap_or(i64::MAX)
    }

    /// Notes how many pods there are for who reads of them later.
    fn count(&mut self, change: &Change) {
        let Some(pod) = change.new.as_ref().or(change.old.as_ref()) else {
            return;
        };
        let (pool, revision) = (label(pod, names::POOL), label(pod, names::REVISION));
        let count = self.ready_pods(&change.key.namespace, pool, Some(revision));
        let place = (change.key.namespace.clone(), pool.to_owned(), revision.to_owned());
        self.ready
            .entry(place)
            .or_default()
            .push((change.revision, count));
    }

    /// The most pods that the operator may believe in: as many as there were at any version from the oldest that it may have read.
    fn believed_pods(&self, at: u64, namespace: &str, pool: &str, revision: &str) -> i64 {
        let now = self.ready_pods(namespace, pool, Some(revision));
        let place = (namespace.to_owned(), pool.to_owned(), revision.to_owned());
        let counts = self.ready.get(&place).map(Vec::as_slice).unwrap_or_default();
        let oldest = at.saturating_sub(self.stale);
        let first = counts
            .partition_point(|(since, _)| *since <= oldest)
            .saturating_sub(1);
        let counts = counts.iter().skip(first).map(|(_, count)| *count);
        counts.chain([now]).max().unwrap_or_default()
    }

    fn standing(&self, namespace: &str, revision: &str) -> Option<String> {
        let record = self.find(self.kinds.records, namespace, revision)?;
        Some(label(&record, names::REVISION_STATE).to_owned())
    }
}

fn label<'a>(object: &'a Value, name: &str) -> &'a str {
    object["metadata"]["labels"][name].as_str().unwrap_or_default()
}

fn is_deleting(object: &Value) -> bool {
    object["metadata"]["deletionTimestamp"].is_string()
}

fn is_ready(pod: &Value) -> bool {
    condition(pod, "Ready").is_some_and(|condition| condition["status"] == "True")
}

/// Whether status is about the present spec.
fn is_current(pool: &Value) -> bool {
    pool["status"]["observedGeneration"] == pool["metadata"]["generation"]
}

fn condition<'a>(object: &'a Value, type_: &str) -> Option<&'a Value> {
    let conditions = object["status"]["conditions"].as_array()?;
    conditions.iter().find(|condition| condition["type"] == type_)
}

fn weights(pool: &Value) -> BTreeMap<String, i64> {
    let shares = pool["status"]["traffic"].as_array().into_iter().flatten();
    shares
        .filter_map(|share| Some((share["revision"].as_str()?.to_owned(), share["weight"].as_i64()?)))
        .collect()
}

#[cfg(test)]
mod tests;
