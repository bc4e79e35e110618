//! What is wrong with each namespace's gateway, for those who wait for it.
//!
//! Pools and providers say in their own conditions why they are not ready, and the reason is often the gateway's: its name
//! is taken, its image cannot be pulled, the quota allows no pod. It is known in one place only, so it is kept here, in
//! memory: a restarted operator finds it out anew with its first visits.

use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use parking_lot::{Mutex, RwLock};

use super::build;
use crate::runtime::Error;

/// What is wrong, for a condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Stable PascalCase word: NameTaken, Refused, PodsRefused, ImagePull, CrashLoop, ConfigError, Unschedulable or
    /// RolloutStuck.
    pub reason: &'static str,
    /// One sentence.
    pub message: String,
}

impl Problem {
    fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
        }
    }

    /// Only what a person has to mend; the rest mends itself and is not worth a condition.
    pub fn of_error(error: &Error) -> Option<Self> {
        match error {
            Error::NameTaken { .. } => Some(Self::new("NameTaken", error.to_string())),
            Error::Refused { .. } => Some(Self::new("Refused", error.to_string())),
            _ => None,
        }
    }
}

type Listener = Box<dyn Fn(&str) + Send + Sync>;

/// The problems of all namespaces. Cheap to clone; every clone shows the same.
#[derive(Clone, Default)]
pub struct GatewayHealth {
    problems: Arc<Mutex<HashMap<String, Problem>>>,
    listeners: Arc<RwLock<Vec<Listener>>>,
}

impl GatewayHealth {
    /// What is wrong with the gateway of a namespace; `None` when nothing is known to be.
    pub fn get(&self, namespace: &str) -> Option<Problem> {
        self.problems.lock().get(namespace).cloned()
    }

    /// Calls `listener` with the namespace whenever its answer has changed. It must be quick and must not block.
    pub fn on_change(&self, listener: impl Fn(&str) + Send + Sync + 'static) {
        self.listeners.write().push(Box::new(listener));
    }

    /// Replaces what is known of a namespace.
    pub(super) fn set(&self, namespace: &str, problem: Option<Problem>) {
        let changed = {
            let mut problems = self.problems.lock();
            let before = match &problem {
                Some(problem) => problems.insert(namespace.to_owned(), problem.clone()),
                None => problems.remove(namespace),
            };
            before != problem
        };
        if changed {
            self.listeners
                .read()
                .iter()
                .for_each(|listener| listener(namespace));
        }
    }
}

impl std::fmt::Debug for GatewayHealth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("GatewayHealth")
            .field(&*self.problems.lock())
            .finish()
    }
}

/// What keeps a gateway from being whole, the nearest cause first: a pod's own trouble, then the refusal to make pods,
/// then a rollout that has stopped for no reason that can be seen.
pub fn problem_of<'a>(deployment: &Deployment, pods: impl Iterator<Item = &'a Pod>) -> Option<Problem> {
    if build::is_settled(deployment) {
        return None;
    }
    let mut pods: Vec<&Pod> = pods
        .filter(|pod| pod.metadata.deletion_timestamp.is_none())
        .collect();
    pods.sort_by_key(|pod| pod.metadata.name.clone());
    if let Some(problem) = pods.into_iter().find_map(pod_problem) {
        return Some(problem);
    }
    let conditions = deployment
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_deref())
        .unwrap_or_default();
    let condition = |type_: &str, status: &str| {
        conditions
            .iter()
            .find(|condition| condition.type_ == type_ && condition.status == status)
    };
    let said = |message: &Option<String>| message.clone().unwrap_or_else(|| "no message".to_owned());
    if let Some(failure) = condition("ReplicaFailure", "True") {
        return Some(Problem::new(
            "PodsRefused",
            format!("gateway pods are refused: {}", said(&failure.message)),
        ));
    }
    condition("Progressing", "False").map(|stuck| {
        Problem::new(
            "RolloutStuck",
            format!("the gateway's rollout has stopped: {}", said(&stuck.message)),
        )
    })
}

fn pod_problem(pod: &Pod) -> Option<Problem> {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let trouble = crate::waiting::pod_trouble(pod)?;
    Some(Problem::new(
        trouble.reason,
        format!("gateway pod {name}: {}", trouble.message),
    ))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use serde_json::{Value, json};

    use super::*;

    fn deployment(status: Value) -> Deployment {
        let object = json!({"metadata": {"name": "flotilla-gateway", "generation": 2}, "spec": {"replicas": 2, "selector": {}, "template": {}}, "status": status});
        serde_json::from_value(object).unwrap()
    }

    fn pod(status: Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "flotilla-gateway-1"}, "status": status})).unwrap()
    }

    #[test]
    fn the_nearest_cause_is_named() {
        let settled =
            json!({"observedGeneration": 2, "replicas": 2, "updatedReplicas": 2, "availableReplicas": 2});
        let refused = json!({"observedGeneration": 2, "conditions": [
            {"type": "Progressing", "status": "False", "message": "deadline exceeded"},
            {"type": "ReplicaFailure", "status": "True", "message": "exceeded quota: none"},
        ]});
        let stuck = json!({"observedGeneration": 2, "conditions": [{"type": "Progressing", "status": "False", "message": "deadline exceeded"}]});
        let pulling = json!({"containerStatuses": [{"name": "gateway", "image": "", "imageID": "", "ready": false, "restartCount": 0,
            "state": {"waiting": {"reason": "ImagePullBackOff", "message": "Back-off pulling image"}}}]});
        for (what, status, pods, expected) in [
            ("whole", settled, vec![], None),
            (
                "on its way",
                json!({"observedGeneration": 2}),
                vec![pod(json!({}))],
                None,
            ),
            ("quota", refused.clone(), vec![], Some("PodsRefused")),
            ("no visible cause", stuck, vec![], Some("RolloutStuck")),
            ("image", refused, vec![pod(pulling)], Some("ImagePull")),
        ] {
            let problem = problem_of(&deployment(status), pods.iter());
            assert_eq!(problem.map(|problem| problem.reason), expected, "{what}");
        }
    }

    #[test]
    fn listeners_hear_of_changes_only() {
        let health = GatewayHealth::default();
        let calls = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&calls);
        health.on_change(move |namespace| {
            assert_eq!(namespace, "shop");
            counted.fetch_add(1, Ordering::Relaxed);
        });
        health.set("shop", None);
        health.set("shop", Some(Problem::new("Refused", "no")));
        health.set("shop", Some(Problem::new("Refused", "no")));
        assert_eq!(health.get("shop").unwrap().reason, "Refused");
        health.set("shop", None);
        assert_eq!((health.get("shop"), calls.load(Ordering::Relaxed)), (None, 2));
    }
}
