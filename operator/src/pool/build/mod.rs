//! The Kubernetes objects of a pool, one module per kind. Pure: objects out of values, no client.
//!
//! | object | name | written by |
//! |---|---|---|
//! | ServiceAccount | `<pool>-agent` | apply |
//! | snapshot ConfigMaps | `<pool>-<source>-<hash>` | create |
//! | ControllerRevision | `<pool>-<hash>`, the revision's name | create, then only its standing |
//! | ReplicaSet | the revision's name | create, then only `replicas` |
//! | Service of a revision | the revision's name | apply |
//! | front Service | `spec.traffic.serviceName`, else the pool's | apply |
//! | HTTPRoute, where `traffic.type` says so | the pool's | apply |
//! | PodDisruptionBudget | the pool's | apply |
//!
//! What the operator injects into pods is not part of a revision, and a ReplicaSet's template is never patched: so an
//! upgrade of Flotilla changes the pods of the next release, never those that run.

pub mod controller_revision;
pub mod disruption_budget;
pub mod http_route;
pub mod overlay;
pub mod pod;
pub mod replica_set;
pub mod service;
pub mod service_account;
pub mod snapshot;

use std::collections::BTreeMap;

use flotilla_crds::{AgentPool, names};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt as _;

use crate::runtime::owned_by;

/// `app.kubernetes.io/name` of everything that belongs to agents.
pub const AGENT: &str = "flotilla-agent";

/// Metadata of a child of a pool, with our labels and the pool as its controller.
pub(super) fn child_meta(pool: &AgentPool, name: impl Into<String>, revision: Option<&str>) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.into()),
        namespace: pool.namespace(),
        labels: Some(labels(&pool.name_any(), revision)),
        owner_references: Some(vec![owned_by(pool)]),
        ..ObjectMeta::default()
    }
}

/// Our labels on an object of a pool.
pub fn labels(pool: &str, revision: Option<&str>) -> BTreeMap<String, String> {
    let mut labels = selector(pool, revision);
    labels.insert(names::MANAGED_BY.into(), names::MANAGER.into());
    labels.insert(names::APP_NAME.into(), AGENT.into());
    labels
}

/// The labels that select the pods of a pool, or of one of its revisions.
pub fn selector(pool: &str, revision: Option<&str>) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::from([(names::POOL.to_owned(), pool.to_owned())]);
    labels.extend(revision.map(|revision| (names::REVISION.to_owned(), revision.to_owned())));
    labels
}

#[cfg(test)]
pub(crate) mod fixtures {
    //! A pool and its parts for tests of builders.

    use flotilla_core::revision::Content;
    use flotilla_crds::AgentPool;
    use serde_json::{Value, json};

    /// The pool `support` in namespace `shop` with these fields in `spec`.
    pub fn pool(spec: Value) -> AgentPool {
        let mut object = json!({
            "apiVersion": "flotilla.dev/v1alpha1",
            "kind": "AgentPool",
            "metadata": {"name": "support", "namespace": "shop", "uid": "u-1", "generation": 1},
            "spec": {"agent": {"image": "agent:1"}},
        });
        merge(&mut object["spec"], spec);
        serde_json::from_value(object).unwrap()
    }

    /// The content of [`pool`]'s agent with these source hashes.
    pub fn content(pool: &AgentPool, sources: &[(&str, &str)]) -> Content {
        let sources = sources
            .iter()
            .map(|(name, hash)| ((*name).to_owned(), (*hash).to_owned()))
            .collect();
        Content {
            agent: pool.spec.agent.clone(),
            sources,
        }
    }

    fn merge(value: &mut Value, other: Value) {
        match (value, other) {
            (Value::Object(fields), Value::Object(others)) => {
                others
                    .into_iter()
                    .for_each(|(key, other)| merge(fields.entry(key).or_insert(Value::Null), other));
            }
            (value, other) => *value = other,
        }
    }
}
