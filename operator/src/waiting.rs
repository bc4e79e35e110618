//! What several controllers say about waiting: since when, whether too long, and what a pod waits for.

use flotilla_crds::common::{condition, find, is_true};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

/// How long something may be waited for before the condition `Stalled` asks for a person. Helm and Argo CD give up on
/// Stalled, and a reference may well come minutes late.
pub const DEADLINE: SignedDuration = SignedDuration::from_secs(600);

/// A wait, judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// It may go on until then.
    Until(Timestamp),
    /// It has lasted too long. It still ends by itself when what is waited for comes.
    TooLong,
}

/// Judges a wait by the conditions that were written last: it began when `Reconciling` became True, and once `Stalled`
/// is True it is too long until it is over. So a restarted operator counts on, and an object whose status was lost
/// waits anew.
pub fn judge(conditions: &[Condition], now: Timestamp) -> Wait {
    if is_true(conditions, condition::STALLED) {
        return Wait::TooLong;
    }
    let began = find(conditions, condition::RECONCILING)
        .filter(|condition| condition.status == "True")
        .map_or(now, |condition| condition.last_transition_time.0);
    match began.checked_add(DEADLINE) {
        Ok(until) if until > now => Wait::Until(until),
        _ => Wait::TooLong,
    }
}

/// Why a pod does not run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// Stable PascalCase word: ImagePull, ConfigError, CrashLoop or Unschedulable.
    pub reason: &'static str,
    /// The cluster's own words.
    pub message: String,
}

/// What keeps a pod from running, if it is something that a person should know.
pub fn pod_trouble(pod: &Pod) -> Option<Trouble> {
    let status = pod.status.as_ref()?;
    let containers = status
        .init_container_statuses
        .iter()
        .chain(&status.container_statuses)
        .flatten();
    let waiting = containers.filter_map(|container| {
        let waiting = container.state.as_ref()?.waiting.as_ref()?;
        let said = waiting.reason.as_deref().unwrap_or_default();
        let reason = match said {
            "ImagePullBackOff"
            | "ErrImagePull"
            | "InvalidImageName"
            | "ErrImageNeverPull"
            | "RegistryUnavailable" => "ImagePull",
            "CreateContainerConfigError" | "CreateContainerError" | "RunContainerError" => "ConfigError",
            "CrashLoopBackOff" => "CrashLoop",
            _ => return None,
        };
        let image = container.image.as_str();
        let detail = waiting.message.as_deref().unwrap_or("no message");
        let message = match reason {
            "ImagePull" => format!("image {image}: {detail}"),
            _ => format!("{said}: {detail}"),
        };
        Some(Trouble { reason, message })
    });
    let unschedulable = || {
        let conditions = status.conditions.as_deref().unwrap_or_default();
        let condition = conditions.iter().find(|condition| {
            condition.type_ == "PodScheduled"
                && condition.status == "False"
                && condition.reason.as_deref() == Some("Unschedulable")
        })?;
        let message = condition
            .message
            .clone()
            .unwrap_or_else(|| "no node fits".to_owned());
        Some(Trouble {
            reason: "Unschedulable",
            message,
        })
    };
    waiting.into_iter().next().or_else(unschedulable)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use serde_json::{Value, json};

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn written(type_: &str, status: &str, since: i64) -> Condition {
        Condition {
            type_: type_.into(),
            status: status.into(),
            reason: "Test".into(),
            message: String::new(),
            observed_generation: None,
            last_transition_time: Time(at(since)),
        }
    }

    #[test]
    fn waits_count_from_the_condition_and_stay_too_long() {
        let waiting = [written("Reconciling", "True", 100)];
        let idle = [written("Reconciling", "False", 100)];
        let stalled = [
            written("Reconciling", "False", 900),
            written("Stalled", "True", 900),
        ];
        for (what, conditions, now, expected) in [
            ("never written", &[][..], 5000, Wait::Until(at(5600))),
            ("began", &waiting[..], 100, Wait::Until(at(700))),
            ("goes on", &waiting[..], 699, Wait::Until(at(700))),
            ("is over", &waiting[..], 700, Wait::TooLong),
            ("was idle before", &idle[..], 5000, Wait::Until(at(5600))),
            ("stays", &stalled[..], 901, Wait::TooLong),
        ] {
            assert_eq!(judge(conditions, at(now)), expected, "{what}");
        }
    }

    #[test]
    fn pods_say_why_they_do_not_run() {
        let container = |waiting: Value| json!({"containerStatuses": [{"name": "c", "image": "x:1", "imageID": "", "ready": false, "restartCount": 0, "state": {"waiting": waiting}}]});
        let unschedulable = json!({"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes"}]});
        for (status, expected) in [
            (container(json!({"reason": "ContainerCreating"})), None),
            (
                container(json!({"reason": "ErrImagePull", "message": "not found"})),
                Some(("ImagePull", "image x:1: not found")),
            ),
            (
                container(
                    json!({"reason": "CreateContainerConfigError", "message": "secret \"crm\" not found"}),
                ),
                Some((
                    "ConfigError",
                    "CreateContainerConfigError: secret \"crm\" not found",
                )),
            ),
            (
                container(json!({"reason": "CrashLoopBackOff"})),
                Some(("CrashLoop", "CrashLoopBackOff: no message")),
            ),
            (unschedulable, Some(("Unschedulable", "0/3 nodes"))),
            (json!({}), None),
        ] {
            let pod: Pod = serde_json::from_value(json!({"status": status})).unwrap();
            let found = pod_trouble(&pod);
            let found = found
                .as_ref()
                .map(|trouble| (trouble.reason, trouble.message.as_str()));
            assert_eq!(found, expected, "{status}");
        }
    }
}
