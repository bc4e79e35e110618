//! The Job and the pods of a LoadTest, reduced to what decisions need.

use flotilla_core::load::wire::WorkerResult;
use flotilla_crds::names;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;

use super::build::{LOAD_TEST_UID, WORKLOAD};
use crate::waiting::{Trouble, pod_trouble};

/// Label with the worker's index, set by the Job controller.
const INDEX: &str = "batch.kubernetes.io/job-completion-index";
/// How long after its grace period a pod that is being deleted is still expected to end: after that its node is gone.
const GIVE_UP: SignedDuration = SignedDuration::from_secs(30);

/// A Job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobView {
    /// When it was made.
    pub created: Timestamp,
    /// `spec.activeDeadlineSeconds`.
    pub active_deadline: SignedDuration,
    /// `spec.suspend`.
    pub suspended: bool,
    /// Whether it is being deleted.
    pub deleting: bool,
    /// When it became Complete or Failed.
    pub ended: Option<Timestamp>,
    /// Whether it has decided to end and waits for its pods.
    pub ending: bool,
    /// Why it failed, in the Job controller's words.
    pub failure: Option<String>,
    /// The workload of its plan.
    pub workload: Option<String>,
}

impl JobView {
    /// Reads a Job.
    pub fn of(job: &Job) -> Self {
        let spec = job.spec.clone().unwrap_or_default();
        let conditions = job
            .status
            .as_ref()
            .and_then(|status| status.conditions.as_deref())
            .unwrap_or_default();
        let condition = |types: &[&str]| {
            conditions
                .iter()
                .find(|condition| types.contains(&&*condition.type_) && condition.status == "True")
        };
        let over = condition(&["Complete", "Failed"]);
        let failure = condition(&["Failed", "FailureTarget"]).map(|condition| {
            let reason = condition.reason.as_deref().unwrap_or("Failed");
            match condition.message.as_deref() {
                Some(message) if !message.is_empty() => format!("{reason}: {message}"),
                _ => reason.to_owned(),
            }
        });
        let created = job
            .creation_timestamp()
            .map_or(Timestamp::UNIX_EPOCH, |time| time.0);
        Self {
            created,
            active_deadline: SignedDuration::from_secs(spec.active_deadline_seconds.unwrap_or_default()),
            suspended: spec.suspend == Some(true),
            deleting: job.metadata.deletion_timestamp.is_some(),
            ended: over.map(|condition| {
                condition
                    .last_transition_time
                    .as_ref()
                    .map_or(created, |time| time.0)
            }),
            ending: condition(&["FailureTarget", "SuccessCriteriaMet"]).is_some(),
            failure,
            workload: job.annotations().get(WORKLOAD).cloned(),
        }
    }
}

/// How a worker's container ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Its exit code.
    pub exit_code: i32,
    /// Kubelet's word, such as `OOMKilled`.
    pub reason: String,
    /// Its termination message.
    pub message: String,
}

impl Ended {
    /// Whether its message is a result that can be read.
    pub fn has_result(&self) -> bool {
        WorkerResult::from_message(&self.message).is_ok()
    }
}

/// A pod of the Job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodView {
    /// Its name.
    pub name: String,
    /// The worker it is; `None` when the Job controller's label is missing.
    pub index: Option<u32>,
    /// Its address.
    pub address: Option<String>,
    /// Whether its container runs.
    pub up: bool,
    /// How its container ended, or the pod without one (evicted, its node lost).
    pub ended: Option<Ended>,
    /// When it is to be gone, if it is being deleted.
    pub deletion: Option<Timestamp>,
    /// Why it does not run.
    pub trouble: Option<Trouble>,
}

impl PodView {
    /// Reads a pod.
    pub fn of(pod: &Pod) -> Self {
        let status = pod.status.clone().unwrap_or_default();
        let container = status
            .container_statuses
            .iter()
            .flatten()
            .find(|status| status.name == names::WORKER_CONTAINER);
        let state = container.and_then(|container| container.state.as_ref());
        let terminated = state
            .and_then(|state| state.terminated.as_ref())
            .map(|terminated| Ended {
                exit_code: terminated.exit_code,
                reason: terminated.reason.clone().unwrap_or_default(),
                message: terminated.message.clone().unwrap_or_default(),
            });
        // A pod whose node is gone ends in its phase alone.
        let is_over = matches!(status.phase.as_deref(), Some("Failed" | "Succeeded"));
        let by_phase = || Ended {
            exit_code: -1,
            reason: status.reason.clone().unwrap_or_default(),
            message: status.message.clone().unwrap_or_default(),
        };
        Self {
            name: pod.name_any(),
            index: pod.labels().get(INDEX).and_then(|index| index.parse().ok()),
            address: status.pod_ip.clone().filter(|address| !address.is_empty()),
            up: state.is_some_and(|state| state.running.is_some()),
            ended: terminated.or_else(|| is_over.then(by_phase)),
            deletion: pod.metadata.deletion_timestamp.as_ref().map(|time| time.0),
            trouble: pod_trouble(pod),
        }
    }

    /// Whether its container runs.
    pub fn is_up(&self) -> bool {
        self.up
    }

    /// Whether it is being deleted and has not ended although it should have.
    pub fn is_given_up(&self, now: Timestamp) -> bool {
        self.deletion
            .is_some_and(|deletion| now.duration_since(deletion) > GIVE_UP)
    }

    /// Whether it may still leave a result.
    pub fn is_running(&self, now: Timestamp) -> bool {
        self.ended.is_none() && !self.is_given_up(now)
    }

    /// What to say of a pod that ended without a result.
    pub fn complaint(&self) -> Option<String> {
        let ended = self.ended.as_ref().filter(|ended| !ended.has_result())?;
        let worker = self
            .index
            .map_or_else(|| self.name.clone(), |index| format!("worker {index}"));
        let code = if ended.exit_code < 0 {
            String::new()
        } else {
            format!(" with exit code {}", ended.exit_code)
        };
        let why = match (ended.reason.as_str(), ended.message.trim()) {
            ("" | "Error" | "Completed", "") => String::new(),
            ("" | "Error" | "Completed", message) => format!(": {message}"),
            (reason, "") => format!(" ({reason})"),
            (reason, message) => format!(" ({reason}): {message}"),
        };
        Some(format!("{worker} ended{code} without a result{why}"))
    }
}

/// Whether a pod was made for this very LoadTest, and not for an earlier one of its name.
pub fn is_of(pod: &Pod, load_test_uid: &str) -> bool {
    pod.annotations()
        .get(LOAD_TEST_UID)
        .is_some_and(|uid| uid == load_test_uid)
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::{Value, json};

    use super::*;

    pub fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    /// A Job made at second 0 that runs, with 600 s to do so.
    pub fn job() -> JobView {
        JobView {
            created: at(0),
            active_deadline: SignedDuration::from_secs(600),
            suspended: false,
            deleting: false,
            ended: None,
            ending: false,
            failure: None,
            workload: Some("sha256:00".into()),
        }
    }

    /// A pod that runs.
    pub fn pod(index: u32) -> PodView {
        PodView {
            name: format!("steady-{index}-x"),
            index: Some(index),
            address: Some(format!("10.0.0.{index}")),
            up: true,
            ended: None,
            deletion: None,
            trouble: None,
        }
    }

    /// A pod that ended without a message.
    pub fn ended(index: u32, exit_code: i32) -> PodView {
        let ended = Ended {
            exit_code,
            reason: "Error".into(),
            message: String::new(),
        };
        PodView {
            up: false,
            ended: Some(ended),
            ..pod(index)
        }
    }

    fn view(status: Value) -> PodView {
        let labels = json!({INDEX: "3"});
        let object = json!({"metadata": {"name": "p", "labels": labels}, "status": status});
        PodView::of(&serde_json::from_value(object).unwrap())
    }

    fn container(state: Value) -> Value {
        json!({"podIP": "10.0.0.1", "containerStatuses": [
            {"name": "worker", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": state},
        ]})
    }

    #[test]
    fn pods() {
        let running = view(container(json!({"running": {}})));
        assert!(running.is_up() && running.is_running(at(0)) && running.index == Some(3));
        let done = view(container(
            json!({"terminated": {"exitCode": 137, "reason": "OOMKilled"}}),
        ));
        assert!(!done.is_running(at(0)));
        assert_eq!(
            done.complaint().unwrap(),
            "worker 3 ended with exit code 137 without a result (OOMKilled)"
        );
        let refused = view(container(
            json!({"terminated": {"exitCode": 64, "reason": "Error", "message": "the plan is not valid: x"}}),
        ));
        assert_eq!(
            refused.complaint().unwrap(),
            "worker 3 ended with exit code 64 without a result: the plan is not valid: x"
        );
        let evicted = view(json!({"phase": "Failed", "reason": "Evicted", "message": "node low on memory"}));
        assert_eq!(
            evicted.complaint().unwrap(),
            "worker 3 ended without a result (Evicted): node low on memory"
        );
        assert_eq!(
            view(container(json!({"waiting": {"reason": "ContainerCreating"}}))).complaint(),
            None
        );
    }

    #[test]
    fn results_are_no_complaints() {
        let message = WorkerResult {
            index: 3,
            workers: 4,
            ..WorkerResult::default()
        }
        .to_message();
        let pod = view(container(
            json!({"terminated": {"exitCode": 0, "message": message}}),
        ));
        assert!(pod.ended.as_ref().unwrap().has_result());
        assert_eq!(pod.complaint(), None);
    }

    #[test]
    fn a_pod_on_a_lost_node_is_given_up_after_its_grace() {
        let mut lost = pod(0);
        lost.deletion = Some(at(100));
        assert!(lost.is_running(at(130)) && !lost.is_running(at(131)));
    }

    #[test]
    fn jobs() {
        let object = |conditions: Value| -> Job {
            serde_json::from_value(json!({
                "metadata": {"name": "j", "creationTimestamp": at(5), "annotations": {WORKLOAD: "sha256:1"}},
                "spec": {"activeDeadlineSeconds": 60, "template": {}},
                "status": {"conditions": conditions},
            }))
            .unwrap()
        };
        let running = JobView::of(&object(json!([])));
        assert_eq!(
            (running.ended, running.ending, running.created),
            (None, false, at(5))
        );
        assert_eq!(running.active_deadline, SignedDuration::from_secs(60));
        let failing = JobView::of(&object(json!([
            {"type": "FailureTarget", "status": "True", "reason": "DeadlineExceeded", "message": "too slow"},
        ])));
        assert!(failing.ending && failing.ended.is_none());
        assert_eq!(failing.failure.as_deref(), Some("DeadlineExceeded: too slow"));
        let complete = JobView::of(&object(
            json!([{"type": "Complete", "status": "True", "lastTransitionTime": at(9)}]),
        ));
        assert_eq!((complete.ended, complete.failure), (Some(at(9)), None));
    }
}
