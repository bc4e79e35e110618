//! What a pool's status says: weights, generations, ports, conditions.

use serde_json::Value;

use super::{Replay, condition, is_current, weights};
use crate::store::Change;

const PASSED: &str = "flotilla.dev/passed-weight";
const TRUSTED: &str = "flotilla.dev/trusted";

impl Replay<'_> {
    pub(super) fn pool(&mut self, change: &Change) {
        let Some(new) = &change.new else { return };
        let old = change.old.as_deref().cloned().unwrap_or_default();
        if new["status"] == old["status"] {
            return;
        }
        self.traffic(change, &old, new);
        self.conditions(change, new);
        let port = &new["status"]["gatewayPort"];
        let pools = self.of_kind(self.kinds.pools, &change.key.namespace);
        let twin = pools
            .filter(|(key, _)| key.name != change.key.name && port.is_number())
            .find(|(_, other)| other["status"]["gatewayPort"] == *port);
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
        let available = self.believed_pods(change.revision, &namespace, &name, revision);
        let others =
            self.ready_pods(&namespace, &name, None) - self.ready_pods(&namespace, &name, Some(revision));
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
        // Steps may be edited: it goes on at the first one that is not below the weight in force.
        let most = ladder
            .into_iter()
            .find(|step| *step > passed && *step >= was)
            .unwrap_or(100);
        // Where nothing else serves it may be the fix.
        if weight > most && others > 0 {
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
}
