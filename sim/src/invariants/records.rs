//! Records of revisions, and evidence.

use std::collections::BTreeSet;

use flotilla_crds::names;
use serde_json::Value;

use super::{Replay, is_deleting, label};
use crate::store::Change;

impl Replay<'_> {
    pub(super) fn record(&mut self, change: &Change) {
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
        // A first revision that is tested is no stable one before it has passed.
        if stable > 0 {
            self.served.insert(owner.to_string());
        }
        let least = usize::from(self.served.contains(&owner.to_string()));
        if !(least..=2).contains(&stable) || candidates > 1 {
            self.broken(
                "standing",
                change,
                format!("{stable} stable, {candidates} candidates"),
            );
        }
    }

    pub(super) fn checkpoint(&mut self, change: &Change) {
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
