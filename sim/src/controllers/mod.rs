//! What else runs in a cluster: the controllers that the operator relies on, and kubelet, on virtual time.
//!
//! One task looks at the cluster after each change, a little later, as real controllers do, and lets each controller
//! whose kinds have changed do what it would do. They read the server's own state, not a cache: what late or
//! wrong caches do is tested on the operator, not on them. None of their requests meets a planned fault.

pub mod deployment;
pub mod endpoint_slice;
pub mod garbage;
pub mod job;
pub mod kubelet;
pub mod namespace;
pub mod replica_set;

use std::sync::Arc;
use std::time::Duration;

use http::Method;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, sleep_until};

use crate::api::failure::Failure;
use crate::cluster::{Cluster, path_of};
use crate::store::Key;
pub use kubelet::{Fate, Fates};

/// How long a controller takes to notice a change.
const PACE: Duration = Duration::from_millis(10);
/// When a controller looks again that has nothing to wait for.
const LONG: Duration = Duration::from_secs(3600);

/// Something that keeps the cluster going.
trait Controller: Send {
    /// The kinds whose changes concern it, as paths of collections.
    fn kinds(&self) -> &'static [&'static str];

    /// Does what is to be done now; gives when to look again even if nothing changes.
    fn pass(&mut self, cluster: &Cluster) -> Option<Instant>;
}

/// The controllers of a cluster; they end when it is dropped.
#[derive(Debug)]
pub struct Controllers(tokio::task::JoinHandle<()>);

impl Controllers {
    /// Starts all of them. `fates` says what becomes of each pod.
    pub fn start(cluster: &Cluster, fates: Fates) -> Self {
        let controllers: Vec<Box<dyn Controller>> = vec![
            Box::new(namespace::Namespaces),
            Box::new(garbage::Collector::default()),
            Box::new(deployment::Deployments),
            Box::new(replica_set::ReplicaSets),
            Box::new(job::Jobs),
            Box::new(kubelet::Kubelet::new(fates)),
            Box::new(endpoint_slice::EndpointSlices),
        ];
        Self(tokio::spawn(run(cluster.clone(), controllers)))
    }
}

impl Drop for Controllers {
    fn drop(&mut self) {
        self.0.abort();
    }
}

struct Running {
    controller: Box<dyn Controller>,
    seen: u64,
    due: Option<Instant>,
}

async fn run(cluster: Cluster, controllers: Vec<Box<dyn Controller>>) {
    let mut changes = cluster.changes();
    let mut running: Vec<Running> = controllers
        .into_iter()
        .map(|controller| Running {
            controller,
            seen: 0,
            due: Some(Instant::now()),
        })
        .collect();
    loop {
        changes.mark_seen();
        for one in &mut running {
            let newest = newest_change(&cluster, one.controller.kinds());
            if newest > one.seen || one.due.is_some_and(|due| due <= Instant::now()) {
                one.seen = newest;
                one.due = one.controller.pass(&cluster);
            }
        }
        let next = running.iter().filter_map(|one| one.due).min();
        let next = next.unwrap_or_else(|| Instant::now() + LONG);
        tokio::select! {
            biased;
            () = changes.changed() => sleep(PACE).await,
            () = sleep_until(next) => {}
        }
    }
}

fn newest_change(cluster: &Cluster, kinds: &[&str]) -> u64 {
    cluster.with(|state| {
        if kinds.is_empty() {
            return state.store.revision();
        }
        let ids = kinds.iter().filter_map(|path| kind_id(state, path));
        ids.map(|id| state.store.changed(id)).max().unwrap_or_default()
    })
}

fn kind_id(state: &crate::state::State, path: &str) -> Option<crate::kinds::KindId> {
    let path = crate::api::request::Path::parse(path).ok()?;
    state.registry.by_plural(&path.group, &path.version, &path.plural)
}

// === what controllers share ===

/// An object and where it lives.
#[derive(Clone, Debug)]
struct Found {
    path: String,
    key: Key,
    object: Arc<Value>,
}

impl Found {
    fn name(&self) -> &str {
        &self.key.name
    }

    fn uid(&self) -> &str {
        self.object["metadata"]["uid"].as_str().unwrap_or_default()
    }

    fn is_deleting(&self) -> bool {
        self.object["metadata"]["deletionTimestamp"].is_string()
    }

    /// The path of a collection of another kind in the same namespace.
    fn sibling(&self, prefix: &str, plural: &str) -> String {
        format!("{prefix}/namespaces/{}/{plural}", self.key.namespace)
    }
}

/// Every object of a kind, in order.
fn all(cluster: &Cluster, path: &str) -> Vec<Found> {
    cluster.with(|state| {
        let Some(id) = kind_id(state, path) else {
            return Vec::new();
        };
        let registry = state.registry.clone();
        let objects = state.store.of_kind(id, None);
        objects
            .map(|(key, object)| Found {
                path: path_of(&registry, key),
                key: key.clone(),
                object: Arc::clone(object),
            })
            .collect()
    })
}

/// Whether `owner` is the controller of an object.
fn is_controlled_by(object: &Value, owner: &Found) -> bool {
    let owners = object["metadata"]["ownerReferences"].as_array();
    owners
        .into_iter()
        .flatten()
        .any(|reference| reference["controller"] == true && reference["uid"] == owner.uid())
}

fn controller_reference(owner: &Found) -> Value {
    json!({
        "apiVersion": owner.object["apiVersion"], "kind": owner.object["kind"], "name": owner.name(),
        "uid": owner.uid(), "controller": true, "blockOwnerDeletion": true,
    })
}

/// Writes a status unless it is so already.
fn write_status(cluster: &Cluster, found: &Found, status: Value) {
    if found.object.get("status") == Some(&status) {
        return;
    }
    let mut object = (*found.object).clone();
    object["status"] = status;
    if let Some(metadata) = object["metadata"].as_object_mut() {
        metadata.remove("resourceVersion");
    }
    // It may be gone by now.
    let _ = request(cluster, Method::PUT, &format!("{}/status", found.path), object);
}

fn request(cluster: &Cluster, method: Method, path: &str, body: Value) -> Result<Arc<Value>, Failure> {
    cluster.shared_request_as("kube-controller-manager", method, path, body)
}

fn delete(cluster: &Cluster, found: &Found, grace: Option<i64>) {
    let mut options = json!({"preconditions": {"uid": found.uid()}, "propagationPolicy": "Background"});
    if let Some(grace) = grace {
        options["gracePeriodSeconds"] = json!(grace);
    }
    // It may be gone by now.
    let _ = request(cluster, Method::DELETE, &found.path, options);
}

/// Whether a pod's condition `Ready` is True.
fn is_ready(pod: &Value) -> bool {
    condition(pod, "Ready").is_some_and(|condition| condition["status"] == "True")
}

fn condition<'a>(object: &'a Value, type_: &str) -> Option<&'a Value> {
    let conditions = object.pointer("/status/conditions")?.as_array()?;
    conditions.iter().find(|condition| condition["type"] == type_)
}

/// A condition; its time moves only when its status does.
fn conditioned(
    before: Option<&Value>,
    type_: &str,
    status: &str,
    reason: &str,
    message: &str,
    now: &str,
) -> Value {
    let since = before
        .filter(|before| before["status"] == status)
        .and_then(|before| before["lastTransitionTime"].as_str())
        .unwrap_or(now);
    let mut condition = json!({"type": type_, "status": status, "lastTransitionTime": since});
    for (field, text) in [("reason", reason), ("message", message)] {
        if !text.is_empty() {
            condition[field] = json!(text);
        }
    }
    condition
}

fn phase(pod: &Value) -> &str {
    pod.pointer("/status/phase")
        .and_then(Value::as_str)
        .unwrap_or("Pending")
}

fn is_over(pod: &Value) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

fn number(object: &Value, pointer: &str) -> i64 {
    object
        .pointer(pointer)
        .and_then(Value::as_i64)
        .unwrap_or_default()
}

/// A pod out of a template, owned by `owner`.
fn pod_from(owner: &Found, template: &Value) -> Value {
    let metadata = &template["metadata"];
    json!({
        "metadata": {
            "generateName": format!("{}-", owner.name()),
            "labels": metadata["labels"], "annotations": metadata["annotations"],
            "ownerReferences": [controller_reference(owner)],
        },
        "spec": template["spec"],
    })
}
