//! The ReplicaSet controller.

use std::time::Duration;

use http::Method;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{
    Controller, Found, all, condition, conditioned, delete, is_controlled_by, is_over, is_ready, number,
    pod_from, request, write_status,
};
use crate::cluster::{Cluster, seconds};

/// How soon it tries again to make pods that were refused.
const RETRY: Duration = Duration::from_secs(5);

/// Keeps as many pods as each ReplicaSet wants.
pub(super) struct ReplicaSets;

impl Controller for ReplicaSets {
    fn kinds(&self) -> &'static [&'static str] {
        &["/apis/apps/v1/replicasets", "/api/v1/pods"]
    }

    fn pass(&mut self, cluster: &Cluster) -> Option<Instant> {
        let pods = all(cluster, "/api/v1/pods");
        let mut again = None;
        for set in all(cluster, "/apis/apps/v1/replicasets") {
            let own: Vec<&Found> = pods
                .iter()
                .filter(|pod| pod.key.namespace == set.key.namespace)
                .filter(|pod| is_controlled_by(&pod.object, &set))
                .collect();
            if let Some(due) = reconcile(cluster, &set, own) {
                again = Some(again.map_or(due, |earlier: Instant| earlier.min(due)));
            }
        }
        again
    }
}

fn reconcile(cluster: &Cluster, set: &Found, mut pods: Vec<&Found>) -> Option<Instant> {
    pods.retain(|pod| !is_over(&pod.object) && !pod.is_deleting());
    let wanted = usize::try_from(number(&set.object, "/spec/replicas")).unwrap_or_default();
    let mut refusal = None;
    if !set.is_deleting() {
        for _ in pods.len()..wanted {
            let path = set.sibling("/api/v1", "pods");
            let pod = pod_from(set, &set.object["spec"]["template"]);
            if let Err(failure) = request(cluster, Method::POST, &path, pod) {
                refusal = Some(failure.message);
                break;
            }
        }
        if pods.len() > wanted {
            let mut ranked = pods.clone();
            ranked.sort_by_key(|pod| rank(&pod.object));
            for pod in ranked.iter().take(pods.len() - wanted) {
                delete(cluster, pod, None);
            }
        }
    }
    let ready = pods.iter().filter(|pod| is_ready(&pod.object)).count();
    let mut status = json!({
        "replicas": pods.len(), "observedGeneration": set.object["metadata"]["generation"],
    });
    if !pods.is_empty() {
        status["fullyLabeledReplicas"] = json!(pods.len());
    }
    if ready > 0 {
        status["readyReplicas"] = json!(ready);
        status["availableReplicas"] = json!(ready);
    }
    let now = seconds(cluster.now());
    if let Some(message) = &refusal {
        let before = condition(&set.object, "ReplicaFailure");
        // The sentence names another pod at each try; the first one stays.
        let said = before
            .and_then(|before| before["message"].as_str())
            .unwrap_or(message);
        status["conditions"] = json!([conditioned(
            before,
            "ReplicaFailure",
            "True",
            "FailedCreate",
            said,
            &now
        )]);
    }
    write_status(cluster, set, status);
    refusal.map(|_| Instant::now() + RETRY)
}

/// Who goes first: not bound, then not ready, then cheap, then young.
fn rank(pod: &Value) -> (bool, bool, i64, std::cmp::Reverse<String>, String) {
    let annotation = pod["metadata"]["annotations"]["controller.kubernetes.io/pod-deletion-cost"].as_str();
    let text = |field: &str| pod["metadata"][field].as_str().unwrap_or_default().to_owned();
    (
        pod["spec"]["nodeName"].is_string(),
        is_ready(pod),
        annotation.and_then(|cost| cost.parse().ok()).unwrap_or_default(),
        std::cmp::Reverse(text("creationTimestamp")),
        text("name"),
    )
}
