//! Events of a release that are no change of standing: a step is reached, the bake begins, a gate holds, the traffic is back. Pure.
//!
//! They follow from the difference between status as it was written and the decision. So a restarted operator does not repeat them,
//! and one whose last status was not written sends one twice at most, which the publisher counts up.

use flotilla_core::rollout::{Decision, State};
use flotilla_crds::AgentPoolStatus;

use super::gate::WEIGHT_NOT_MEASURED;
use super::routing::{GATEWAY_API_MISSING, ROUTE_NOT_ACCEPTED};
use crate::runtime::Note;

/// What a release waits for that somebody should know of: it will not pass, or not soon, by itself.
const HOLDS: [&str; 11] = [
    "ApprovalNeeded",
    "Undecided",
    "NoData",
    "StableDegraded",
    "RollbackStorm",
    "GatewayUnconfirmed",
    WEIGHT_NOT_MEASURED,
    GATEWAY_API_MISSING,
    ROUTE_NOT_ACCEPTED,
    // The evidence can be neither read nor saved.
    "NameTaken",
    "Refused",
];

/// The events of this decision, after `before`.
pub fn notes(before: &AgentPoolStatus, decision: &Decision) -> Vec<Note> {
    let mut notes = Vec::new();
    let rollout = before.rollout.clone().unwrap_or_default();
    let name = decision.candidate.as_deref().unwrap_or_default();
    if let Some(reached) = &decision.reached {
        // A time in status has whole seconds.
        let was = rollout.step.as_ref().and_then(|step| {
            let start = step.start_time.as_ref()?;
            Some((step.weight, start.0.as_second()))
        });
        let is_new = was != Some((reached.weight, reached.since.as_second()));
        match reached.weight {
            _ if !is_new => {}
            100 => notes.push(Note::normal(
                "ReleaseBaking",
                format!("{name} has all the traffic; it is still judged and can be led back"),
            )),
            0 => notes.push(Note::normal(
                "StepReached",
                format!("the replicas of {name} are there, without traffic"),
            )),
            weight => notes.push(Note::normal(
                "StepReached",
                format!("{name} has {weight} % of the traffic; from now on it is judged at this step"),
            )),
        }
    }
    let was = rollout
        .waiting_for
        .map(|waiting| waiting.reason)
        .unwrap_or_default();
    let is_released = matches!(decision.state, State::Releasing | State::Judging | State::Baking);
    if let Some(waiting) = decision.waiting.as_ref().filter(|_| is_released) {
        let word = waiting.reason.word.as_str();
        if HOLDS.contains(&word) && was != word {
            let text = format!("{name} waits: {word}: {}", waiting.reason.message);
            notes.push(Note::warning("ReleaseHeld", text));
        }
    }
    // One that is stable by now was promoted, even where the status of that visit is not known yet.
    let stable = decision.stable.as_deref().unwrap_or_default();
    let left = before.candidate.as_ref().filter(|left| left.revision != stable);
    if left.is_some() && !stable.is_empty() && decision.candidate.is_none() && decision.changes.is_empty() {
        notes.push(Note::normal(
            "TrafficReturned",
            format!("traffic and capacity are back at {stable}"),
        ));
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;
    use flotilla_core::rollout::{Reached, Reason, Waiting};
    use jiff::Timestamp;
    use serde_json::{Value, json};

    fn status(status: Value) -> AgentPoolStatus {
        let mut all = json!({"observedGeneration": 1});
        for (key, value) in status.as_object().unwrap() {
            all[key] = value.clone();
        }
        serde_json::from_value(all).unwrap()
    }

    fn decision(state: State, waiting: &str, weight: Option<i32>) -> Decision {
        let since = Timestamp::new(100, 700_000_000).unwrap();
        Decision {
            stable: Some("p-1".into()),
            candidate: Some("p-2".into()),
            changes: Vec::new(),
            passed: None,
            left_out: false,
            draining: Vec::new(),
            scale: Vec::new(),
            traffic: Vec::new(),
            state,
            waiting: Some(Waiting {
                reason: Reason::new(waiting, "why"),
                deadline: None,
            }),
            stalled: None,
            progress: None,
            reached: weight.map(|weight| Reached {
                revision: "p-2".into(),
                attempt: 1,
                weight,
                since,
            }),
        }
    }

    fn reasons(before: Value, decision: &Decision) -> Vec<String> {
        notes(&status(before), decision)
            .into_iter()
            .map(|note| note.reason.to_string())
            .collect()
    }

    #[test]
    fn each_transition_is_told_once() {
        let at = |weight: i32, waiting: &str| {
            json!({"rollout": {
                "step": {"index": 0, "weight": weight, "startTime": "1970-01-01T00:01:40Z"},
                "waitingFor": {"reason": waiting},
            }})
        };
        for (before, decision, expected) in [
            (
                json!({}),
                decision(State::Judging, "Judging", Some(10)),
                vec!["StepReached"],
            ),
            (
                at(10, "Judging"),
                decision(State::Judging, "EvidenceContinues", Some(10)),
                vec![],
            ),
            (
                at(10, "EvidenceContinues"),
                decision(State::Judging, "NoData", Some(10)),
                vec!["ReleaseHeld"],
            ),
            (
                at(10, "NoData"),
                decision(State::Judging, "NoData", Some(10)),
                vec![],
            ),
            (
                at(10, "NoData"),
                decision(State::Baking, "Baking", Some(100)),
                vec!["ReleaseBaking"],
            ),
            (
                json!({}),
                decision(State::Judging, "Judging", Some(0)),
                vec!["StepReached"],
            ),
            (
                json!({}),
                decision(State::Starting, "GatewayUnconfirmed", None),
                vec![],
            ),
            (
                json!({}),
                decision(State::Releasing, "GatewayUnconfirmed", None),
                vec!["ReleaseHeld"],
            ),
        ] {
            assert_eq!(
                reasons(before.clone(), &decision),
                expected,
                "{before} {decision:?}"
            );
        }
        let served = Decision {
            candidate: None,
            ..decision(State::Ready, "", None)
        };
        let returning = json!({"candidate": {"revision": "p-2"}});
        assert_eq!(reasons(returning, &served), ["TrafficReturned"]);
    }
}
