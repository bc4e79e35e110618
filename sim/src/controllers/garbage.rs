//! The garbage collector: dependents go with the last of their owners.

use std::collections::BTreeMap;

use http::Method;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{Controller, Found, request};
use crate::api::delete::{FOREGROUND, ORPHAN};
use crate::cluster::{Cluster, path_of};

/// Collects garbage.
#[derive(Debug, Default)]
pub(super) struct Collector {
    seen: u64,
}

/// How an owner stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Owner {
    There,
    /// It waits for its dependents.
    Waiting,
}

impl Controller for Collector {
    fn kinds(&self) -> &'static [&'static str] {
        &[]
    }

    fn pass(&mut self, cluster: &Cluster) -> Option<Instant> {
        let seen = self.seen;
        let (objects, turnover) = cluster.with(|state| {
            let registry = state.registry.clone();
            let counts = registry.iter().map(|(id, _)| state.store.counts(id));
            let turnover = counts.map(|(made, removed)| made + removed).sum::<u64>();
            let is_waiting = |object: &Value| {
                object["metadata"]["deletionTimestamp"].is_string()
                    && (has_finalizer(object, ORPHAN) || has_finalizer(object, FOREGROUND))
            };
            if turnover == seen && !state.store.iter().any(|(_, object)| is_waiting(object)) {
                return (Vec::new(), turnover);
            }
            let objects: Vec<Found> = state
                .store
                .iter()
                .map(|(key, object)| Found {
                    path: path_of(&registry, key),
                    key: key.clone(),
                    object: std::sync::Arc::clone(object),
                })
                .collect();
            (objects, turnover)
        });
        self.seen = turnover;
        let owners: BTreeMap<&str, Owner> = objects
            .iter()
            .map(|found| {
                let waiting = found.is_deleting() && has_finalizer(&found.object, FOREGROUND);
                (found.uid(), if waiting { Owner::Waiting } else { Owner::There })
            })
            .collect();
        for found in &objects {
            collect(cluster, found, &owners);
        }
        for owner in objects.iter().filter(|found| found.is_deleting()) {
            let dependents = objects.iter().filter(|found| {
                references(found)
                    .iter()
                    .any(|reference| reference["uid"] == owner.uid())
            });
            if has_finalizer(&owner.object, ORPHAN) {
                dependents.for_each(|dependent| release(cluster, dependent, &[owner.uid()]));
                unmark(cluster, owner, ORPHAN);
            } else if has_finalizer(&owner.object, FOREGROUND) {
                let blocks = |dependent: &Found| {
                    references(dependent).iter().any(|reference| {
                        reference["uid"] == owner.uid() && reference["blockOwnerDeletion"] == true
                    })
                };
                if !dependents.into_iter().any(blocks) {
                    unmark(cluster, owner, FOREGROUND);
                }
            }
        }
        None
    }
}

fn references(found: &Found) -> Vec<Value> {
    let owners = found.object["metadata"]["ownerReferences"].as_array();
    owners.cloned().unwrap_or_default()
}

fn has_finalizer(object: &Value, name: &str) -> bool {
    let finalizers = object["metadata"]["finalizers"].as_array();
    finalizers
        .into_iter()
        .flatten()
        .any(|finalizer| finalizer == name)
}

fn collect(cluster: &Cluster, found: &Found, owners: &BTreeMap<&str, Owner>) {
    let references = references(found);
    if references.is_empty() || found.is_deleting() {
        return;
    }
    let standing = |reference: &Value| owners.get(reference["uid"].as_str().unwrap_or_default());
    let lost: Vec<&str> = references
        .iter()
        .filter(|reference| standing(reference) != Some(&Owner::There))
        .filter_map(|reference| reference["uid"].as_str())
        .collect();
    if lost.is_empty() {
        return;
    }
    if lost.len() < references.len() {
        return release(cluster, found, &lost);
    }
    let waited_for = references
        .iter()
        .any(|reference| standing(reference) == Some(&Owner::Waiting));
    let policy = if has_finalizer(&found.object, ORPHAN) {
        "Orphan"
    } else if has_finalizer(&found.object, FOREGROUND) || waited_for {
        "Foreground"
    } else {
        "Background"
    };
    let options = json!({"preconditions": {"uid": found.uid()}, "propagationPolicy": policy});
    // It may be gone by now.
    let _ = request(cluster, Method::DELETE, &found.path, options);
}

/// Takes owners out of an object.
fn release(cluster: &Cluster, found: &Found, lost: &[&str]) {
    let kept: Vec<Value> = references(found)
        .into_iter()
        .filter(|reference| reference["uid"].as_str().is_none_or(|uid| !lost.contains(&uid)))
        .collect();
    let kept = if kept.is_empty() { Value::Null } else { json!(kept) };
    let patch = json!({"metadata": {"uid": found.uid(), "ownerReferences": kept}});
    // It may be gone by now.
    let _ = request(cluster, Method::PATCH, &found.path, patch);
}

fn unmark(cluster: &Cluster, found: &Found, finalizer: &str) {
    let finalizers = found.object["metadata"]["finalizers"].as_array();
    let kept: Vec<&Value> = finalizers
        .into_iter()
        .flatten()
        .filter(|other| *other != finalizer)
        .collect();
    let kept = if kept.is_empty() { Value::Null } else { json!(kept) };
    let patch = json!({"metadata": {"uid": found.uid(), "finalizers": kept}});
    // It may be gone by now.
    let _ = request(cluster, Method::PATCH, &found.path, patch);
}
