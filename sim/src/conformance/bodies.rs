//! Bodies of requests, by lot: a few fields of a few values each, so that writers meet on the same fields.

use rand::{Rng as _, rngs::StdRng, seq::IndexedRandom as _};
use serde_json::{Value, json};

use super::GROUP;

/// A kind that sequences use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Subject {
    pub(super) api_version: &'static str,
    pub(super) kind: &'static str,
    pub(super) plural: &'static str,
    pub(super) status: bool,
    pub(super) scale: bool,
    /// Whether a controller of the real cluster writes to its objects, so that versions move by themselves.
    pub(super) busy: bool,
}

const fn subject(api_version: &'static str, kind: &'static str, plural: &'static str) -> Subject {
    Subject {
        api_version,
        kind,
        plural,
        status: false,
        scale: false,
        busy: false,
    }
}

const POOL_VERSION: &str = "conformance.flotilla.dev/v1alpha1";

pub(super) const SUBJECTS: [Subject; 6] = [
    subject("v1", "ConfigMap", "configmaps"),
    subject("v1", "Service", "services"),
    subject("coordination.k8s.io/v1", "Lease", "leases"),
    subject("apps/v1", "ControllerRevision", "controllerrevisions"),
    Subject {
        status: true,
        scale: true,
        ..subject(POOL_VERSION, "AgentPool", "agentpools")
    },
    Subject {
        scale: true,
        busy: true,
        ..subject("apps/v1", "ReplicaSet", "replicasets")
    },
];

impl Subject {
    /// The path of its collection.
    pub(super) fn collection(&self, namespace: &str) -> String {
        let prefix = if self.api_version.contains('/') {
            format!("/apis/{}", self.api_version)
        } else {
            format!("/api/{}", self.api_version)
        };
        debug_assert!(POOL_VERSION.starts_with(GROUP));
        format!("{prefix}/namespaces/{namespace}/{}", self.plural)
    }

    /// An object, whole, as a create or a replacement has it.
    pub(super) fn object(&self, name: &str, random: &mut StdRng) -> Value {
        let mut object =
            json!({"apiVersion": self.api_version, "kind": self.kind, "metadata": metadata(random)});
        object["metadata"]["name"] = json!(name);
        for (field, value) in self.content(name, random).as_object().into_iter().flatten() {
            object[field] = value.clone();
        }
        object
    }

    /// A part of an object, as an apply or a patch has it.
    pub(super) fn part(&self, random: &mut StdRng, with_nulls: bool) -> Value {
        let mut part = match self.kind {
            "ConfigMap" => json!({"data": data(random)}),
            "Service" => match random.random_range(0..3) {
                0 => json!({"spec": {"selector": labels(random)}}),
                1 => json!({"spec": {"sessionAffinity": pick(random, &["None", "ClientIP"])}}),
                _ => json!({"spec": {"publishNotReadyAddresses": random.random_bool(0.5)}}),
            },
            "Lease" => json!({"spec": {"holderIdentity": pick(random, &["a", "b"])}}),
            "ControllerRevision" => json!({"revision": random.random_range(0..4)}),
            "AgentPool" => match random.random_range(0..4) {
                0 => json!({"spec": {"replicas": random.random_range(-1..4)}}),
                1 => json!({"spec": {"agent": {"env": env(random)}}}),
                2 => json!({"spec": {"rollout": {"settleSeconds": random.random_range(-1..5)}}}),
                _ => json!({"spec": {"agent": {"image": pick(random, &["a:1", "a:2", ""])}}}),
            },
            _ => json!({"spec": {"minReadySeconds": random.random_range(-1..4)}}),
        };
        if random.random_bool(0.5) {
            part["metadata"] = metadata(random);
        }
        if with_nulls && random.random_bool(0.3) {
            part["metadata"]["labels"] = json!({"a": null, "c": "d"});
        }
        part
    }

    fn content(&self, name: &str, random: &mut StdRng) -> Value {
        match self.kind {
            "ConfigMap" => {
                let mut content = json!({"data": data(random)});
                if random.random_bool(0.15) {
                    content["immutable"] = json!(true);
                }
                content
            }
            "Service" => json!({"spec": {"selector": labels(random), "ports": ports(random)}}),
            "Lease" => {
                json!({"spec": {"holderIdentity": "a", "leaseDurationSeconds": random.random_range(0..20)}})
            }
            "ControllerRevision" => {
                json!({"revision": random.random_range(0..3), "data": {"x": random.random_range(0..2)}})
            }
            "AgentPool" => {
                let mut spec = json!({"agent": {"image": pick(random, &["a:1", "a:2"]), "env": env(random)}});
                if random.random_bool(0.5) {
                    spec["replicas"] = json!(random.random_range(-1..5));
                }
                if random.random_bool(0.2) {
                    spec["unknown"] = json!({"x": 1});
                }
                if random.random_bool(0.1) {
                    spec["agent"] = json!({});
                }
                json!({"spec": spec})
            }
            _ => json!({"spec": {
                "replicas": 0, "selector": {"matchLabels": {"of": name}},
                "template": {
                    "metadata": {"labels": {"of": if random.random_bool(0.9) { name } else { "other" }}},
                    "spec": {"containers": [{"name": "c", "image": pick(random, &["i:1", "i"])}]},
                },
            }}),
        }
    }

    /// A status, for those that have one.
    pub(super) fn status(&self, random: &mut StdRng) -> Value {
        json!({"replicas": random.random_range(0..4), "ready": pick(random, &["1/2", "2/2"])})
    }
}

pub(super) fn pick<'a>(random: &mut StdRng, from: &[&'a str]) -> &'a str {
    from.choose(random).copied().unwrap_or_default()
}

fn metadata(random: &mut StdRng) -> Value {
    let mut metadata = json!({"labels": labels(random)});
    if random.random_bool(0.3) {
        metadata["annotations"] = json!({"note": pick(random, &["x", "y"])});
    }
    if random.random_bool(0.1) {
        metadata["finalizers"] = json!([pick(random, &["x.y/z", "p.q/r"])]);
    }
    if random.random_bool(0.05) {
        metadata["labels"] = json!({"not a label": "x"});
    }
    metadata
}

fn labels(random: &mut StdRng) -> Value {
    json!({"a": pick(random, &["1", "2"]), pick(random, &["b", "c"]): pick(random, &["1", "2"])})
}

fn data(random: &mut StdRng) -> Value {
    json!({pick(random, &["k", "l"]): pick(random, &["1", "2"]), "m": pick(random, &["1", "2"])})
}

fn env(random: &mut StdRng) -> Value {
    let names: &[&str] = match random.random_range(0..4) {
        0 => &["A"],
        1 => &["A", "B"],
        2 => &["B", "A"],
        _ => &["C"],
    };
    let variables: Vec<Value> = names
        .iter()
        .map(|name| json!({"name": name, "value": pick(random, &["1", "2"])}))
        .collect();
    json!(variables)
}

fn ports(random: &mut StdRng) -> Value {
    let ports: &[(i64, &str)] = match random.random_range(0..4) {
        0 => &[(80, "http")],
        1 => &[(80, "http"), (443, "https")],
        2 => &[(443, "https"), (80, "http")],
        _ => &[(80, "http"), (80, "again")],
    };
    let ports: Vec<Value> = ports
        .iter()
        .map(|(port, name)| json!({"name": name, "port": port}))
        .collect();
    json!(ports)
}
