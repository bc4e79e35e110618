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
//! | `ladder` | a canary's weight is at most that of the first step whose question is not answered |
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

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use flotilla_crds::names;
use serde_json::Value;

use crate::cluster::Cluster;
use crate::gateways::Applied;
use crate::kinds::{KindId, Registry};
use crate::store::{Change, Key, OLDEST};

const PASSED: &str = "flotilla.dev/passed-weight";
const TRUSTED: &str = "flotilla.dev/trusted";

/// What was broken, a line each: the rule, the version it was broken at, and how.
pub fn violations(cluster: &Cluster, applied: &[Applied]) -> Vec<String> {
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
        reached: 0,
        in_force: BTreeMap::new(),
        generations: BTreeMap::new(),
        counted: BTreeMap::new(),
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
    /// How much of `applied` has happened.
    reached: usize,
    /// Weights by gateway and pool.
    in_force: BTreeMap<(String, String), BTreeMap<String, i32>>,
    /// The highest generation of each pool's traffic so far, by UID.
    generations: BTreeMap<String, i64>,
    /// Requests counted by checkpoint and release.
    counted: BTreeMap<(Key, String), i64>,
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
        let ours = self.objects.iter().filter(|(key, object)| {
            Some(key.kind) == kind && key.namespace == namespace && label(object, names::POOL) == pool
        });
        ours.map(|(_, object)| Arc::clone(object)).collect()
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

    fn standing(&self, namespace: &str, revision: &str) -> Option<String> {
        let record = self.find(self.kinds.records, namespace, revision)?;
        Some(label(&record, names::REVISION_STATE).to_owned())
    }

    // === pools ===

    fn pool(&mut self, change: &Change) {
        let Some(new) = &change.new else { return };
        let old = change.old.as_deref().cloned().unwrap_or_default();
        if new["status"] == old["status"] {
            return;
        }
        self.traffic(change, &old, new);
        self.conditions(change, new);
        let port = &new["status"]["gatewayPort"];
        let twin = self.objects.iter().find(|(key, other)| {
            Some(key.kind) == self.kinds.pools
                && key.namespace == change.key.namespace
                && key.name != change.key.name
                && port.is_number()
                && other["status"]["gatewayPort"] == *port
        });
        if let Some(name) = twin.map(|(key, _)| key.name.clone()) {
            self.broken("ports", change, format!("{name} has port {port}, too"));
        }
    }

    fn traffic(&mut self, change: &Change, old: &Value, new: &Value) {
        let (before, after) = (weights(old), weights(new));
        let generation = |pool: &Value| pool["status"]["trafficGeneration"].as_i64();
        match (generation(old), generation(new)) {
            (Some(was), Some(is)) if (before == after) != (was == is) || is < was => {
                self.broken(
                    "generation",
                    change,
                    format!("{was} became {is}: {before:?} to {after:?}"),
                );
            }
            _ => {}
        }
        if let Some(is) = generation(new) {
            let uid = new["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
            let highest = self.generations.get(&uid).copied().unwrap_or_default();
            if is < highest {
                self.broken("generation", change, format!("{is} comes after {highest}"));
            }
            self.generations.insert(uid, is.max(highest));
        }
        if after.is_empty() || before == after {
            return;
        }
        let sum: i64 = after.values().sum();
        let serving = after.values().filter(|weight| **weight > 0).count();
        if sum != 100 || serving > 2 || after.values().any(|weight| *weight < 0) {
            self.broken("weights", change, format!("{after:?}"));
        }
        let namespace = change.key.namespace.as_str();
        let unproved: Vec<&String> = after
            .iter()
            .filter(|(revision, weight)| {
                **weight > 0
                    && self
                        .standing(namespace, revision)
                        .is_some_and(|state| state != "stable")
            })
            .map(|(revision, _)| revision)
            .collect();
        if unproved.len() > 1 {
            self.broken("one candidate", change, format!("{unproved:?} have traffic"));
        }
        // The first weights, and those after a lost status, are where pods are or will be.
        if before.is_empty() || new["spec"]["stopped"] == true {
            return;
        }
        for (revision, weight) in &after {
            let was = before.get(revision).copied().unwrap_or_default();
            if *weight > was {
                self.rise(change, new, revision, *weight, was);
            }
        }
    }

    fn rise(&mut self, change: &Change, pool: &Value, revision: &str, weight: i64, was: i64) {
        let (namespace, name) = (change.key.namespace.clone(), change.key.name.clone());
        let state = self.standing(&namespace, revision);
        if state.as_deref() == Some("rejected") {
            self.broken(
                "rejected",
                change,
                format!("{revision} rises from {was} to {weight}"),
            );
        }
        let replicas = pool["spec"]["replicas"].as_i64().unwrap_or_default();
        let available = self.ready_pods(&namespace, &name, Some(revision));
        let others = self.ready_pods(&namespace, &name, None) - available;
        let needed = weight * replicas / 100;
        let others_carry = others * 100 >= (100 - was) * replicas;
        if is_current(pool) && available < needed && others_carry {
            let how = format!("{revision} rises to {weight} with {available} of {needed} pods");
            self.broken("capacity", change, how);
        }
        let Some(record) = self.find(self.kinds.records, &namespace, revision) else {
            self.broken(
                "standing",
                change,
                format!("{revision} gets traffic and has no record"),
            );
            return;
        };
        let annotation = |name: &str| {
            record["metadata"]["annotations"][name]
                .as_str()
                .map(str::to_owned)
        };
        if !is_current(pool)
            || pool["spec"]["rollout"]["type"] != "Canary"
            || state.as_deref() != Some("candidate")
            || annotation(TRUSTED).as_deref() == Some("true")
        {
            return;
        }
        let passed: i64 = annotation(PASSED)
            .and_then(|passed| passed.parse().ok())
            .unwrap_or(-1);
        let steps = pool["spec"]["rollout"]["canary"]["steps"].as_array();
        let own: Vec<i64> = steps
            .into_iter()
            .flatten()
            .filter_map(|step| step["weight"].as_i64())
            .collect();
        let ladder = if own.is_empty() { vec![1, 10, 25, 50] } else { own };
        let most = ladder.into_iter().find(|step| *step > passed).unwrap_or(100);
        if weight > most {
            let how = format!("{revision} rises to {weight} and has passed {passed} only");
            self.broken("ladder", change, how);
        }
    }

    fn conditions(&mut self, change: &Change, pool: &Value) {
        if !is_current(pool) {
            return;
        }
        let state = |type_: &str| condition(pool, type_).map(|condition| condition["status"] == "True");
        let (Some(ready), Some(reconciling), Some(stalled)) =
            (state("Ready"), state("Reconciling"), state("Stalled"))
        else {
            self.broken(
                "conditions",
                change,
                "one of Ready, Reconciling and Stalled is missing",
            );
            return;
        };
        if ready && (reconciling || stalled) {
            self.broken("conditions", change, "Ready, and Reconciling or Stalled as well");
        }
        if !ready && !reconciling && !stalled {
            self.broken(
                "conditions",
                change,
                "not Ready, and neither Reconciling nor Stalled",
            );
        }
        let reason = condition(pool, "Ready").cloned().unwrap_or_default();
        let is_silent = |field: &str| reason[field].as_str().is_none_or(str::is_empty);
        if is_silent("reason") || is_silent("message") {
            self.broken("conditions", change, format!("Ready says nothing: {reason}"));
        }
    }

    // === ReplicaSets and pods ===

    fn set(&mut self, change: &Change) {
        let namespace = change.key.namespace.clone();
        let size = |object: &Option<Arc<Value>>| {
            object
                .as_deref()
                .and_then(|set| set["spec"]["replicas"].as_i64())
                .unwrap_or_default()
        };
        let (was, is) = (size(&change.old), size(&change.new));
        let Some(set) = change.new.clone().or_else(|| change.old.clone()) else {
            return;
        };
        let revision = label(&set, names::REVISION).to_owned();
        if was == is || revision.is_empty() {
            return;
        }
        let Some(pool) = self.settled_pool(&set, &namespace) else {
            return;
        };
        let name = label(&set, names::POOL).to_owned();
        if is > was {
            self.room(change, &pool, is - was);
            return;
        }
        let replicas = pool["spec"]["replicas"].as_i64().unwrap_or_default();
        let weight = weights(&pool).get(&revision).copied().unwrap_or_default();
        let available = self.ready_pods(&namespace, &name, Some(&revision));
        if available == 0 {
            return;
        }
        if is < weight * replicas / 100 {
            let how =
                format!("{revision} shrinks from {was} to {is} with weight {weight} of {replicas} replicas");
            self.broken("drain", change, how);
        }
        if is == 0
            && let Some(weight) = self.still_sent(&namespace, &name, &revision)
        {
            let how = format!("{revision} goes, and a gateway still sends it {weight} %");
            self.broken("drain", change, how);
        }
    }

    /// The weight that a ready gateway still gives a revision.
    fn still_sent(&self, namespace: &str, pool: &str, revision: &str) -> Option<i32> {
        let pods = self.objects.iter().filter(|(key, pod)| {
            Some(key.kind) == self.kinds.pods
                && key.namespace == namespace
                && label(pod, names::APP_NAME) == names::GATEWAY
                && is_ready(pod)
                && !is_deleting(pod)
        });
        let place = format!("{namespace}/{pool}");
        pods.filter_map(|(_, pod)| {
            let uid = pod["metadata"]["uid"].as_str()?.to_owned();
            let weights = self.in_force.get(&(uid, place.clone()))?;
            weights.get(revision).copied().filter(|weight| *weight > 0)
        })
        .max()
    }

    fn room(&mut self, change: &Change, pool: &Value, more: i64) {
        let namespace = change.key.namespace.clone();
        let sets = self.of_pool(
            self.kinds.sets,
            &namespace,
            pool["metadata"]["name"].as_str().unwrap_or_default(),
        );
        let total: i64 = sets
            .iter()
            .filter_map(|set| set["spec"]["replicas"].as_i64())
            .sum();
        let replicas = pool["spec"]["replicas"].as_i64().unwrap_or_default();
        let rollout = &pool["spec"]["rollout"];
        let percent = rollout["rollingUpdate"]["maxSurgePercent"].as_i64().unwrap_or(25);
        let surge = (replicas * percent + 99) / 100;
        let most = match rollout["type"].as_str() {
            Some("Canary" | "BlueGreen") => 2 * replicas + surge,
            _ => replicas + surge,
        };
        if total > most {
            let how = format!("{more} more make {total} pods; {replicas} replicas may use {most}");
            self.broken("room", change, how);
        }
    }

    fn pod(&mut self, change: &Change) {
        let was_serving = change
            .old
            .as_deref()
            .is_some_and(|pod| is_ready(pod) && !is_deleting(pod));
        let is_going = change.new.as_deref().is_none_or(is_deleting);
        let Some(pod) = change.old.clone().filter(|_| was_serving && is_going) else {
            return;
        };
        let namespace = change.key.namespace.clone();
        let revision = label(&pod, names::REVISION).to_owned();
        let name = label(&pod, names::POOL).to_owned();
        let Some(pool) = self
            .find(self.kinds.pools, &namespace, &name)
            .filter(|_| !revision.is_empty())
        else {
            return;
        };
        if !is_current(&pool) || is_deleting(&pool) || pool["spec"]["stopped"] == true {
            return;
        }
        let weight = weights(&pool).get(&revision).copied().unwrap_or_default();
        let replicas = pool["spec"]["replicas"].as_i64().unwrap_or_default();
        let left = self.ready_pods(&namespace, &name, None);
        if weight > 0 && left < replicas {
            let how = format!("it has traffic ({weight} %) and leaves {left} of {replicas} replicas");
            self.broken("drain", change, how);
        }
    }

    // === records and evidence ===

    fn record(&mut self, change: &Change) {
        let Some(record) = change.new.clone().or_else(|| change.old.clone()) else {
            return;
        };
        let namespace = change.key.namespace.clone();
        let name = label(&record, names::POOL).to_owned();
        let Some(pool) = self
            .find(self.kinds.pools, &namespace, &name)
            .filter(|pool| !is_deleting(pool))
        else {
            return;
        };
        // Records of a former pool of this name are being collected.
        let owner = &record["metadata"]["ownerReferences"][0]["uid"];
        if *owner != pool["metadata"]["uid"] {
            return;
        }
        let state = label(&record, names::REVISION_STATE);
        if change.new.is_none() && matches!(state, "stable" | "candidate") {
            self.broken(
                "history",
                change,
                format!("the record of the {state} revision goes"),
            );
        }
        let records = self.of_pool(self.kinds.records, &namespace, &name);
        let count = |state: &str| {
            let such = records.iter().filter(|record| {
                label(record, names::REVISION_STATE) == state
                    && record["metadata"]["ownerReferences"][0]["uid"] == *owner
            });
            such.count()
        };
        let (stable, candidates) = (count("stable"), count("candidate"));
        if !(1..=2).contains(&stable) || candidates > 1 {
            self.broken(
                "standing",
                change,
                format!("{stable} stable, {candidates} candidates"),
            );
        }
    }

    fn checkpoint(&mut self, change: &Change) {
        let Some(object) = change.new.clone() else {
            self.counted.retain(|(key, _), _| *key != change.key);
            return;
        };
        let text = object["data"]["checkpoint.json"].as_str().unwrap_or_default();
        let Ok(case) = serde_json::from_str::<Value>(text) else {
            return;
        };
        let evidence = case["evidence"].as_str().unwrap_or_default();
        let Ok(evidence) = serde_json::from_str::<Value>(evidence) else {
            return;
        };
        let whose = &evidence["key"];
        let candidate = whose["candidate"].as_str().unwrap_or_default();
        let known: BTreeSet<&str> = ["candidate", "stable", "rejected"].into();
        let state = self
            .standing(&change.key.namespace, candidate)
            .unwrap_or_default();
        if !known.contains(state.as_str()) {
            self.broken(
                "evidence",
                change,
                format!("it is about {candidate}, which is {state:?}"),
            );
        }
        let metrics = evidence["metrics"].as_object();
        let requests = |arm: &str| -> i64 {
            let metrics = metrics.into_iter().flatten();
            metrics
                .filter_map(|(_, metric)| metric["release"][arm]["requests"].as_i64())
                .sum()
        };
        let now = requests("candidate") + requests("stable");
        // Another way of judging begins anew.
        let judged: Vec<&Value> = metrics
            .into_iter()
            .flatten()
            .map(|(_, metric)| &metric["definition"])
            .collect();
        let place = (change.key.clone(), format!("{whose} {judged:?}"));
        let before = self.counted.insert(place, now).unwrap_or_default();
        if now < before {
            self.broken(
                "evidence",
                change,
                format!("{before} requests of {whose} became {now}"),
            );
        }
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
mod tests {
    use http::Method;
    use serde_json::json;

    use super::*;

    const POOLS: &str = "/apis/flotilla.dev/v1alpha1/namespaces/default/agentpools";

    fn pool() -> Cluster {
        let cluster = Cluster::new(1);
        let spec = json!({"replicas": 2, "agent": {"image": "a"}});
        cluster
            .create(POOLS, &json!({"metadata": {"name": "p"}, "spec": spec}))
            .unwrap();
        cluster
    }

    fn say(cluster: &Cluster, generation: i64, traffic: Value) {
        let condition = |type_: &str, status: &str| json!({"type": type_, "status": status, "reason": "R", "message": "m", "lastTransitionTime": "2027-01-15T08:00:00Z"});
        let status = json!({
            "observedGeneration": 1, "trafficGeneration": generation, "traffic": traffic,
            "conditions": [condition("Ready", "True"), condition("Reconciling", "False"), condition("Stalled", "False")],
        });
        let path = format!("{POOLS}/p/status");
        cluster
            .request(Method::PATCH, &path, json!({"status": status}))
            .unwrap();
    }

    fn record(cluster: &Cluster, name: &str, state: &str) {
        let uid = cluster.get(&format!("{POOLS}/p")).unwrap()["metadata"]["uid"].clone();
        let owner = json!({"apiVersion": "flotilla.dev/v1alpha1", "kind": "AgentPool", "name": "p", "uid": uid, "controller": true});
        let record = json!({
            "metadata": {
                "name": name, "ownerReferences": [owner],
                "labels": {names::POOL: "p", names::REVISION_STATE: state},
            },
            "revision": 1,
        });
        cluster
            .create("/apis/apps/v1/namespaces/default/controllerrevisions", &record)
            .unwrap();
    }

    fn rules(cluster: &Cluster) -> Vec<String> {
        let found = violations(cluster, &[]);
        found
            .iter()
            .filter_map(|line| line.split_once(':'))
            .map(|(rule, _)| rule.to_owned())
            .collect()
    }

    fn share(revision: &str, weight: i64) -> Value {
        json!({"revision": revision, "weight": weight})
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_right_is_not_reported() {
        let cluster = pool();
        record(&cluster, "p-1", "stable");
        say(&cluster, 1, json!([share("p-1", 100)]));
        assert_eq!(rules(&cluster), [""; 0]);
    }

    #[tokio::test(start_paused = true)]
    async fn weights_capacity_and_generation_are_watched() {
        let cluster = pool();
        record(&cluster, "p-1", "stable");
        record(&cluster, "p-2", "rejected");
        say(&cluster, 1, json!([share("p-1", 100)]));
        say(&cluster, 1, json!([share("p-1", 60), share("p-2", 50)]));
        // No pod runs, so nobody could carry it better: no word about capacity.
        assert_eq!(rules(&cluster), ["generation", "weights", "rejected"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_pool_never_loses_its_stable_revision() {
        let cluster = pool();
        record(&cluster, "p-1", "stable");
        let path = "/apis/apps/v1/namespaces/default/controllerrevisions/p-1";
        let verified = json!({"metadata": {"labels": {names::REVISION_STATE: "verified"}}});
        cluster.patch(path, verified).unwrap();
        assert_eq!(rules(&cluster), ["standing"]);
    }

    #[tokio::test(start_paused = true)]
    async fn evidence_belongs_to_one_release_and_only_grows() {
        let cluster = pool();
        record(&cluster, "p-1", "stable");
        record(&cluster, "p-2", "candidate");
        let keep = |candidate: &str, requests: i64| {
            let release = json!({"candidate": {"requests": requests}, "stable": {"requests": 1}});
            let evidence = json!({
                "key": {"stable": "p-1", "candidate": candidate, "attempt": 1}, "metrics": {"errors": {"release": release}},
            });
            let case = json!({"firstEpoch": 1, "evidence": evidence.to_string()});
            json!({"metadata": {"name": "p-evidence"}, "data": {"checkpoint.json": case.to_string()}})
        };
        let maps = "/api/v1/namespaces/default/configmaps";
        cluster.create(maps, &keep("p-2", 5)).unwrap();
        cluster
            .patch(&format!("{maps}/p-evidence"), keep("p-2", 4))
            .unwrap();
        cluster
            .patch(&format!("{maps}/p-evidence"), keep("p-9", 4))
            .unwrap();
        assert_eq!(rules(&cluster), ["evidence", "evidence"]);
    }
}
