//! Why pods do not become available, as the cluster tells it.
//!
//! | word | seen in |
//! |---|---|
//! | `QuotaExceeded`, `PodsRefused` | the ReplicaSet's condition `ReplicaFailure`: no pod could be made |
//! | `Unschedulable` | the pod's condition `PodScheduled` |
//! | `ImagePull`, `ConfigError` | a container's waiting state |
//! | `CrashLoop` | restarts and the last termination; three restarts need no deadline |
//! | `ProbeFailing` | running, and unready for 30 s, or half the progress deadline |
//!
//! Sentences are made so that they stay the same while the trouble does (kubelet alternates between two states for
//! one image), because each other sentence would be a write of status.

use flotilla_core::rollout::{Reason, Trouble};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use kube::ResourceExt as _;

use super::dereference::is_ready;

/// Restarts after which a candidate is given up: kubelet has waited 10 s and 20 s by then.
const HOPELESS_RESTARTS: i32 = 3;
/// How long a running container may be unready before that is called trouble. Agents load models.
const PROBE_PATIENCE: SignedDuration = SignedDuration::from_secs(30);
/// Word for a probe that fails; its sentence is completed from an Event.
pub const PROBE_FAILING: &str = "ProbeFailing";

/// The trouble of one revision: the gravest of its pods', the first by name.
///
/// `deadline_seconds` is the pool's `progressDeadlineSeconds`: a probe that fails must be known before it passes.
pub fn find<'a>(
    set: Option<&ReplicaSet>,
    pods: impl Iterator<Item = &'a Pod>,
    deadline_seconds: i32,
    now: Timestamp,
) -> Option<Trouble> {
    let patience = PROBE_PATIENCE.min(SignedDuration::from_secs(i64::from(deadline_seconds) / 2));
    let mut found: Option<(u8, Trouble)> = None;
    for pod in pods {
        if let Some((grade, trouble)) = of_pod(pod, patience, now)
            && found.as_ref().is_none_or(|(gravest, _)| grade > *gravest)
        {
            found = Some((grade, trouble));
        }
    }
    found.map(|(_, trouble)| trouble).or_else(|| set.and_then(of_set))
}

/// A reason for a trouble that was seen before: the longer sentence of the same word stays.
pub fn steady(before: Option<&Reason>, now: Reason) -> Reason {
    match before {
        Some(before) if before.word == now.word && before.message.len() >= now.message.len() => {
            before.clone()
        }
        _ => now,
    }
}

/// Since when none of a revision's pods is ready: since the last of them was, or since there could be none.
pub fn down_since<'a>(set: Option<&ReplicaSet>, pods: impl Iterator<Item = &'a Pod>) -> Option<Timestamp> {
    let mut since = None;
    for pod in pods.filter(|pod| pod.metadata.deletion_timestamp.is_none()) {
        if is_ready(pod) {
            return None;
        }
        since = since.max(unready_since(pod));
    }
    since.or_else(|| Some(failure(set?)?.last_transition_time.as_ref()?.0))
}

/// Since when a pod is not ready; since it was made, where that is all that is known.
fn unready_since(pod: &Pod) -> Option<Timestamp> {
    let conditions = pod
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_deref());
    let mut conditions = conditions.unwrap_or_default().iter();
    let ready = conditions.find(|condition| condition.type_ == "Ready" && condition.status != "True");
    let changed = ready.and_then(|condition| condition.last_transition_time.as_ref());
    let made = pod.metadata.creation_timestamp.as_ref();
    changed.or(made).map(|time| time.0)
}

fn failure(set: &ReplicaSet) -> Option<&ReplicaSetCondition> {
    let conditions = set.status.as_ref()?.conditions.as_ref()?;
    conditions
        .iter()
        .find(|condition| condition.type_ == "ReplicaFailure" && condition.status == "True")
}

fn of_set(set: &ReplicaSet) -> Option<Trouble> {
    let failure = failure(set)?;
    let message = failure.message.as_deref().unwrap_or("pods cannot be created");
    // `pods "support-1a2b-x7k2p" is forbidden: …`: the name is another one at each try.
    let steady = message.split_once("\" is ").map_or(message, |(_, rest)| rest);
    let word = if message.contains("exceeded quota") {
        "QuotaExceeded"
    } else {
        "PodsRefused"
    };
    Some(Trouble {
        reason: Reason::new(word, format!("pods cannot be created: {steady}")),
        is_final: false,
    })
}

fn of_pod(pod: &Pod, patience: SignedDuration, now: Timestamp) -> Option<(u8, Trouble)> {
    let status = pod.status.as_ref()?;
    let trouble = |grade, word: &str, message: String, is_final| {
        Some((
            grade,
            Trouble {
                reason: Reason::new(word, message),
                is_final,
            },
        ))
    };
    if pod.metadata.deletion_timestamp.is_some() {
        return None;
    }
    for container in status
        .init_container_statuses
        .iter()
        .chain(&status.container_statuses)
        .flatten()
    {
        if container.ready {
            continue;
        }
        let name = &container.name;
        if let Some((reason, message)) = waiting(container) {
            match reason {
                "ErrImagePull"
                | "ImagePullBackOff"
                | "InvalidImageName"
                | "ErrImageNeverPull"
                | "RegistryUnavailable" => {
                    let image = &container.image;
                    return trouble(
                        4,
                        "ImagePull",
                        format!("image {image} cannot be pulled: {message}"),
                        false,
                    );
                }
                "CreateContainerConfigError" | "CreateContainerError" | "RunContainerError" => {
                    return trouble(
                        4,
                        "ConfigError",
                        format!("container {name} cannot be made: {message}"),
                        false,
                    );
                }
                _ => {}
            }
        }
        if container.restart_count > 0
            && let Some(last) = last_words(container)
        {
            let is_final = container.restart_count >= HOPELESS_RESTARTS;
            return trouble(
                if is_final { 5 } else { 3 },
                "CrashLoop",
                format!("container {name} ends: {last}"),
                is_final,
            );
        }
        let running = container.state.as_ref().and_then(|state| state.running.as_ref());
        // One that was ready is unready since then.
        let since = running
            .and_then(|running| running.started_at.as_ref())
            .map(|time| time.0.max(unready_since(pod).unwrap_or(time.0)));
        if since.is_some_and(|since| now.duration_since(since) >= patience) {
            let message = format!("container {name} runs, but its readiness probe does not succeed");
            return trouble(1, PROBE_FAILING, message, false);
        }
    }
    let conditions = status.conditions.as_deref().unwrap_or_default();
    let unscheduled = conditions.iter().find(|condition| {
        condition.type_ == "PodScheduled"
            && condition.status == "False"
            && condition.reason.as_deref() == Some("Unschedulable")
    })?;
    let message = unscheduled
        .message
        .clone()
        .unwrap_or_else(|| "no node fits".into());
    trouble(2, "Unschedulable", message, false)
}

fn waiting(container: &ContainerStatus) -> Option<(&str, &str)> {
    let waiting = container.state.as_ref()?.waiting.as_ref()?;
    Some((
        waiting.reason.as_deref()?,
        waiting.message.as_deref().unwrap_or("kubelet gives no reason"),
    ))
}

/// How the container ended the last time.
fn last_words(container: &ContainerStatus) -> Option<String> {
    let ended = |state: &Option<k8s_openapi::api::core::v1::ContainerState>| {
        state.as_ref().and_then(|state| state.terminated.clone())
    };
    let ended = ended(&container.state).or_else(|| ended(&container.last_state))?;
    let said = ended.message.as_deref().unwrap_or_default().trim();
    let reason = ended
        .reason
        .as_deref()
        .filter(|reason| *reason != "Error")
        .unwrap_or("exit");
    let code = ended.exit_code;
    Some(if said.is_empty() {
        format!("{reason} code {code}")
    } else {
        format!("{reason} code {code}: {said}")
    })
}

/// The pod whose readiness probe is failing, for a look at its Events.
pub fn unready_pod<'a>(mut pods: impl Iterator<Item = &'a Pod>) -> Option<String> {
    let is_unready = |pod: &&Pod| {
        let statuses = pod
            .status
            .as_ref()
            .and_then(|status| status.container_statuses.as_deref())
            .unwrap_or_default();
        pod.metadata.deletion_timestamp.is_none() && statuses.iter().any(|container| !container.ready)
    };
    pods.find(is_unready).map(|pod| pod.name_any())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const NOW: i64 = 1_700_000_000;

    fn pod(name: &str, status: Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": name}, "status": status})).unwrap()
    }

    fn container(state: Value, restarts: i32, last: Value) -> Value {
        json!({"containerStatuses": [{
            "name": "agent", "image": "a:1", "imageID": "", "ready": false, "restartCount": restarts,
            "state": state, "lastState": last,
        }]})
    }

    fn seen(status: Value) -> Option<(String, String, bool)> {
        let now = Timestamp::from_second(NOW).unwrap();
        let trouble = find(None, [pod("p", status)].iter(), 600, now)?;
        Some((trouble.reason.word, trouble.reason.message, trouble.is_final))
    }

    fn ago(seconds: i64) -> Timestamp {
        Timestamp::from_second(NOW - seconds).unwrap()
    }

    /// A pod that runs for an hour and is unready since then.
    fn unready(seconds: i64) -> Value {
        let mut status = container(json!({"running": {"startedAt": ago(3_600)}}), 0, json!({}));
        status["conditions"] =
            json!([{"type": "Ready", "status": "False", "lastTransitionTime": ago(seconds)}]);
        status
    }

    #[test]
    fn a_probe_that_was_late_is_no_trouble() {
        assert_eq!(seen(unready(29)), None);
        assert_eq!(seen(unready(30)).unwrap().0, PROBE_FAILING);
    }

    #[test]
    fn a_revision_is_down_since_the_last_of_its_pods_was_ready() {
        let ready =
            json!({"conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": ago(50)}]});
        let mut leaving = pod("l", ready.clone());
        leaving.metadata.deletion_timestamp =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(ago(5)));
        let mut young = pod("y", json!({}));
        young.metadata.creation_timestamp = leaving.metadata.deletion_timestamp.clone();
        let first = pod("a", unready(90));
        for (pods, since) in [
            (vec![&first], Some(90)),
            (vec![&first, &leaving], Some(90)),
            (vec![&first, &young], Some(5)),
            (vec![&first, &pod("r", ready)], None),
            (vec![], None),
        ] {
            assert_eq!(down_since(None, pods.into_iter()), since.map(ago));
        }
        let set = serde_json::from_value(json!({"status": {"replicas": 0, "conditions": [
            {"type": "ReplicaFailure", "status": "True", "lastTransitionTime": ago(70)}
        ]}}))
        .unwrap();
        assert_eq!(down_since(Some(&set), std::iter::empty()), Some(ago(70)));
    }

    #[test]
    fn each_state_has_its_word_and_sentence() {
        let waiting =
            |reason: &str, message: &str| json!({"waiting": {"reason": reason, "message": message}});
        let ended = json!({"terminated": {"exitCode": 3, "reason": "Error", "message": "no prompt\n"}});
        let killed = json!({"terminated": {"exitCode": 137, "reason": "OOMKilled"}});
        let running = |ago: i64| json!({"running": {"startedAt": Timestamp::from_second(NOW - ago).unwrap().to_string()}});
        let unscheduled = json!({"conditions": [
            {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes"}
        ]});
        for (what, status, expected) in [
            (
                "pull",
                container(waiting("ErrImagePull", "not found"), 0, json!({})),
                Some(("ImagePull", "image a:1 cannot be pulled: not found", false)),
            ),
            (
                "secret",
                container(
                    waiting("CreateContainerConfigError", "secret \"crm\" not found"),
                    0,
                    json!({}),
                ),
                Some((
                    "ConfigError",
                    "container agent cannot be made: secret \"crm\" not found",
                    false,
                )),
            ),
            (
                "crashed once",
                container(running(1), 1, ended.clone()),
                Some(("CrashLoop", "container agent ends: exit code 3: no prompt", false)),
            ),
            (
                "crashes",
                container(waiting("CrashLoopBackOff", "back-off 40s"), 3, ended),
                Some(("CrashLoop", "container agent ends: exit code 3: no prompt", true)),
            ),
            (
                "out of memory",
                container(running(1), 1, killed),
                Some(("CrashLoop", "container agent ends: OOMKilled code 137", false)),
            ),
            ("starts", container(running(29), 0, json!({})), None),
            (
                "probe",
                container(running(30), 0, json!({})),
                Some((
                    "ProbeFailing",
                    "container agent runs, but its readiness probe does not succeed",
                    false,
                )),
            ),
            (
                "no node",
                unscheduled,
                Some(("Unschedulable", "0/3 nodes", false)),
            ),
            (
                "creating",
                container(waiting("ContainerCreating", ""), 0, json!({})),
                None,
            ),
            ("nothing", json!({}), None),
        ] {
            let expected =
                expected.map(|(word, message, is_final)| (word.to_owned(), message.to_owned(), is_final));
            assert_eq!(seen(status), expected, "{what}");
        }
    }

    #[test]
    fn pods_that_cannot_be_made_speak_through_their_set() {
        for (message, word, sentence) in [
            (
                "pods \"s-1-x7k2p\" is forbidden: exceeded quota: none, requested: pods=1, used: pods=0, limited: pods=0",
                "QuotaExceeded",
                "pods cannot be created: forbidden: exceeded quota: none, requested: pods=1, used: pods=0, limited: pods=0",
            ),
            (
                "violates PodSecurity \"restricted\"",
                "PodsRefused",
                "pods cannot be created: violates PodSecurity \"restricted\"",
            ),
        ] {
            let set: ReplicaSet = serde_json::from_value(json!({
                "metadata": {"name": "s-1"},
                "status": {"replicas": 0, "conditions": [
                    {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": message}
                ]},
            }))
            .unwrap();
            let trouble = find(Some(&set), [].into_iter(), 600, Timestamp::UNIX_EPOCH).unwrap();
            assert_eq!(
                (trouble.reason.word.as_str(), trouble.reason.message.as_str()),
                (word, sentence)
            );
        }
    }

    #[test]
    fn a_sentence_changes_only_to_say_more() {
        let long = Reason::new("ImagePull", "not found in registry");
        assert_eq!(steady(Some(&long), Reason::new("ImagePull", "back-off")), long);
        assert_eq!(steady(None, long.clone()), long);
        let other = Reason::new("CrashLoop", "x");
        assert_eq!(steady(Some(&long), other.clone()), other);
    }
}
