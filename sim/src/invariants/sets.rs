//! ReplicaSets and pods: what goes, and what there is room for.

use std::sync::Arc;

use flotilla_crds::names;
use serde_json::Value;

use super::{Replay, is_current, is_deleting, is_ready, label, weights};
use crate::store::Change;

impl Replay<'_> {
    pub(super) fn set(&mut self, change: &Change) {
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
        let pods = self.of_kind(self.kinds.pods, namespace).filter(|(_, pod)| {
            label(pod, names::APP_NAME) == names::GATEWAY && is_ready(pod) && !is_deleting(pod)
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

    pub(super) fn pod(&mut self, change: &Change) {
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
}
