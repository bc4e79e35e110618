//! The namespace controller: what each namespace begins with, and its end.

use http::Method;
use serde_json::json;
use tokio::time::Instant;

use super::{Controller, all, request};
use crate::cluster::{Cluster, path_of};

/// Keeps namespaces.
pub(super) struct Namespaces;

impl Controller for Namespaces {
    fn kinds(&self) -> &'static [&'static str] {
        &[]
    }

    fn pass(&mut self, cluster: &Cluster) -> Option<Instant> {
        for namespace in all(cluster, "/api/v1/namespaces") {
            if namespace.is_deleting() {
                empty(cluster, namespace.name());
            } else {
                furnish(cluster, namespace.name());
            }
        }
        None
    }
}

fn furnish(cluster: &Cluster, namespace: &str) {
    let account = format!("/api/v1/namespaces/{namespace}/serviceaccounts");
    let authority = format!("/api/v1/namespaces/{namespace}/configmaps");
    for (collection, name, more) in [
        (account, "default", json!({})),
        (authority, "kube-root-ca.crt", json!({"ca.crt": "-"})),
    ] {
        if cluster.object(&format!("{collection}/{name}")).is_some() {
            continue;
        }
        let mut object = json!({"metadata": {"name": name}});
        if more.as_object().is_some_and(|more| !more.is_empty()) {
            object["data"] = more;
        }
        // The namespace may be on its way out.
        let _ = request(cluster, Method::POST, &collection, object);
    }
}

/// Deletes what is in a namespace, and then the namespace.
fn empty(cluster: &Cluster, namespace: &str) {
    let paths: Vec<(String, bool)> = cluster.with(|state| {
        let registry = state.registry.clone();
        let inside = state.store.iter().filter(|(key, _)| key.namespace == namespace);
        inside
            .map(|(key, object)| {
                let marked = object["metadata"]["deletionTimestamp"].is_string();
                (path_of(&registry, key), marked)
            })
            .collect()
    });
    for (path, _) in paths.iter().filter(|(_, marked)| !marked) {
        // It may be gone by now.
        let _ = request(
            cluster,
            Method::DELETE,
            path,
            json!({"propagationPolicy": "Background"}),
        );
    }
    cluster.with(|state| {
        if state.store.iter().any(|(key, _)| key.namespace == namespace) {
            return;
        }
        let found = state.store.iter().find(|(key, object)| {
            key.name == namespace && key.namespace.is_empty() && object["kind"] == "Namespace"
        });
        if let Some(key) = found.map(|(key, _)| key.clone()) {
            state.store.commit(key, None);
        }
    });
}
