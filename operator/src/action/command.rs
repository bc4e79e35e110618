//! What a command does, and whether it may. Pure.
//!
//! | type | may be when | changes |
//! |---|---|---|
//! | Restart | nothing is being released | the stable record: pods older than the command are replaced |
//! | Abort | the expected revision is the candidate | its record: rejected, reason `Aborted` |
//! | Retry | the expected revision is rejected and what the spec asks for | its record: candidate, attempt + 1 |
//! | Promote | it is at the expected step, which waits for a person | its record: the step is passed |
//! | SkipStep | it is at the expected step | its record: the step is passed |
//! | PromoteFull | the expected revision is the candidate | its record: all steps are passed |
//!
//! `expect` guards against a late command: one that was meant for another release is refused, never reinterpreted. One that is
//! early, because its step is not reached or its evidence not in, is held for a moment.

use flotilla_core::rollout::{Reason, Standing};
use flotilla_core::seeded::{self, Bug};
use flotilla_crds::RolloutAction;
use flotilla_crds::rollout_action::ActionType;
use jiff::Timestamp;
use kube::ResourceExt as _;
use serde_json::{Value, json};

use crate::pool::build::controller_revision::{self, ATTEMPT, LAST_ACTION, RESTARTED_AT, Record, change};
use crate::pool::dereference::Revision;
use crate::pool::memory::Standpoint;
use crate::runtime::uid_of;

/// The answer to a command.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// Patch this revision's record.
    Apply {
        /// Which.
        revision: String,
        /// The merge patch; it carries the command's UID.
        patch: Value,
        /// What it does, in one sentence.
        message: String,
    },
    /// It cannot be yet, but may in a moment; a sentence.
    Hold(String),
    /// It cannot be; a sentence.
    Reject(String),
}

/// Why a command is not carried out.
#[derive(Clone, Debug, PartialEq)]
enum Refusal {
    /// For now.
    Early(String),
    /// For good.
    Final(String),
}

impl From<String> for Refusal {
    fn from(sentence: String) -> Self {
        Self::Final(sentence)
    }
}

impl From<&str> for Refusal {
    fn from(sentence: &str) -> Self {
        Self::Final(sentence.to_owned())
    }
}

/// Judges a command by the pool's records and what the pool controller last said about it.
pub fn decide(
    action: &RolloutAction,
    standpoint: &Standpoint,
    records: &[Revision],
    now: Timestamp,
) -> Verdict {
    let judged = match action.spec.type_ {
        ActionType::Restart => restart(action, standpoint, records),
        ActionType::Abort => abort(action, standpoint, records, now),
        ActionType::Retry => retry(action, standpoint, records, now),
        ActionType::Promote | ActionType::SkipStep | ActionType::PromoteFull => {
            pass(action, standpoint, records)
        }
    };
    match judged {
        Ok((revision, mut patch, message)) => {
            if let Some(metadata) = patch.get_mut("metadata").and_then(Value::as_object_mut) {
                let annotations = metadata.entry("annotations").or_insert_with(|| json!({}));
                if let Some(annotations) = annotations
                    .as_object_mut()
                    .filter(|_| !seeded::has(Bug::NoCommandMark))
                {
                    annotations.insert(LAST_ACTION.into(), json!(uid_of(action)));
                }
            }
            Verdict::Apply {
                revision,
                patch,
                message,
            }
        }
        Err(Refusal::Early(sentence)) => Verdict::Hold(sentence),
        Err(Refusal::Final(sentence)) => Verdict::Reject(sentence),
    }
}

type Judged = Result<(String, Value, String), Refusal>;

fn restart(action: &RolloutAction, standpoint: &Standpoint, records: &[Revision]) -> Judged {
    let stable = standpoint
        .stable
        .as_deref()
        .ok_or("nothing serves yet, so there is nothing to restart")?;
    if let Some(candidate) = &standpoint.candidate {
        return Err(Refusal::Final(format!(
            "{candidate} is being released or led back from; restart when that has ended"
        )));
    }
    let known = expected(action, records, Some(stable))?;
    if known.record.revision != stable {
        return Err(Refusal::Final(format!(
            "{} does not serve; {stable} does",
            known.record.revision
        )));
    }
    let made = action.creation_timestamp().map(|time| time.0).unwrap_or_default();
    let before = known.record.restarted_at.map_or(made, |before| before.max(made));
    let patch = json!({"metadata": {"annotations": {RESTARTED_AT: before.to_string()}}});
    let after = Record {
        restarted_at: Some(before),
        ..known.record.clone()
    };
    Ok((stable.to_owned(), patch, carried_out(ActionType::Restart, &after)))
}

fn abort(action: &RolloutAction, standpoint: &Standpoint, records: &[Revision], now: Timestamp) -> Judged {
    let known = expected(action, records, None)?;
    let name = &known.record.revision;
    if known.record.standing != Standing::Candidate {
        let stable = standpoint.stable.as_deref().unwrap_or("nothing");
        return Err(Refusal::Final(format!(
            "{name} is not being released; {stable} serves"
        )));
    }
    let why = action.spec.reason.as_deref().filter(|reason| !reason.is_empty());
    let message = match why {
        Some(why) => format!("RolloutAction {}: {why}", action.name_any()),
        None => format!("RolloutAction {}", action.name_any()),
    };
    let patch = change(
        Standing::Rejected,
        Some(&Reason::new("Aborted", message)),
        None,
        now,
    );
    Ok((name.clone(), patch, carried_out(ActionType::Abort, &known.record)))
}

fn retry(action: &RolloutAction, standpoint: &Standpoint, records: &[Revision], now: Timestamp) -> Judged {
    let known = expected(action, records, None)?;
    let name = &known.record.revision;
    if known.record.standing != Standing::Rejected {
        return Err(Refusal::Final(format!(
            "{name} is not rejected, so there is nothing to retry"
        )));
    }
    match &standpoint.target {
        Some(target) if target == name => {}
        Some(target) => {
            return Err(Refusal::Final(format!(
                "{name} is not what the spec asks for; that is {target}"
            )));
        }
        None => {
            return Err(Refusal::Final(format!(
                "the spec asks for nothing that can run now, so not for {name}"
            )));
        }
    }
    let order = records
        .iter()
        .map(|known| known.record.order)
        .max()
        .unwrap_or_default()
        + 1;
    let attempt = known.record.attempt.saturating_add(1);
    let mut patch = change(Standing::Candidate, None, Some(order), now);
    patch["metadata"]["annotations"][ATTEMPT] = json!(attempt.to_string());
    let after = Record {
        attempt,
        ..known.record.clone()
    };
    Ok((name.clone(), patch, carried_out(ActionType::Retry, &after)))
}

fn pass(action: &RolloutAction, standpoint: &Standpoint, records: &[Revision]) -> Judged {
    let known = expected(action, records, None)?;
    let name = &known.record.revision;
    if known.record.standing != Standing::Candidate || standpoint.candidate.as_ref() != Some(name) {
        let stable = standpoint.stable.as_deref().unwrap_or("nothing");
        return Err(Refusal::Final(format!(
            "{name} is not being released; {stable} serves"
        )));
    }
    let meant = action.spec.expect.as_ref().and_then(|expect| expect.step);
    if action.spec.type_ == ActionType::PromoteFull && meant.is_none() {
        return Ok((
            name.clone(),
            controller_revision::pass(100),
            carried_out(ActionType::PromoteFull, &known.record),
        ));
    }
    // An operator that has just started finds out again where a release is; who gave the command had seen it there.
    let step = standpoint.step.ok_or_else(|| {
        Refusal::Early(format!(
            "{name} is on its way to the next step; give the command when it is there"
        ))
    })?;
    if meant.and_then(|meant| usize::try_from(meant).ok()) != Some(step.index) {
        return Err(Refusal::Final(format!(
            "{name} is at step {}, not {}: the command was meant for another one",
            step.index,
            meant.unwrap_or_default()
        )));
    }
    // The record is newer than where the pool was last seen to be: another command has passed this step.
    if let Some(passed) = known
        .record
        .passed
        .filter(|passed| step.weight < 100 && *passed >= step.weight)
    {
        return Err(Refusal::Final(format!(
            "step {} has been passed already, {name} goes on from {passed} %: the command was meant for that step",
            step.index
        )));
    }
    let weight = match action.spec.type_ {
        ActionType::PromoteFull => 100,
        _ if step.weight >= 100 && !step.awaits_tests => {
            return Err(Refusal::Final(format!(
                "{name} has all the traffic already; Abort leads it back"
            )));
        }
        ActionType::Promote if !step.awaits_person => {
            return Err(Refusal::Early(format!(
                "{name} waits for evidence at step {}, not for a person; SkipStep passes the step without it",
                step.index
            )));
        }
        _ => step.weight,
    };
    let after = Record {
        passed: Some(weight),
        ..known.record.clone()
    };
    Ok((
        name.clone(),
        controller_revision::pass(weight),
        carried_out(action.spec.type_, &after),
    ))
}

/// What a command has done, in one sentence, out of the record where it took effect: an operator that finds a mark of one that
/// died before it answered says the same.
pub fn carried_out(type_: ActionType, record: &Record) -> String {
    let name = &record.revision;
    match type_ {
        ActionType::Restart => {
            let before = record.restarted_at.unwrap_or_default();
            format!("pods of {name} made before {before} are replaced")
        }
        ActionType::Abort => format!("the release of {name} is stopped"),
        ActionType::Retry => format!("{name} is released again, attempt {}", record.attempt),
        ActionType::PromoteFull => format!("{name} gets all the traffic as soon as it has the replicas"),
        ActionType::Promote | ActionType::SkipStep => {
            format!("{name} goes on from {} %", record.passed.unwrap_or_default())
        }
    }
}

/// The record of the revision that is expected, or of `default` when nothing is.
fn expected<'a>(
    action: &RolloutAction,
    records: &'a [Revision],
    default: Option<&str>,
) -> Result<&'a Revision, String> {
    let expect = action.spec.expect.as_ref();
    let name = expect.map(|expect| expect.revision.as_str()).or(default);
    let name = name.ok_or("spec.expect must say which revision is meant")?;
    let known = records.iter().find(|known| known.record.revision == name);
    let known = known.ok_or_else(|| format!("{name} is no revision of this pool"))?;
    match expect.and_then(|expect| expect.attempt) {
        Some(attempt) if attempt != known.record.attempt => Err(format!(
            "{name} is at attempt {}, not {attempt}: the command was meant for another release",
            known.record.attempt
        )),
        _ => Ok(known),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::build::controller_revision::{build, read};
    use crate::pool::build::fixtures::{content, pool};
    use crate::pool::memory::StepPoint;
    use flotilla_crds::names;
    use std::sync::Arc;

    fn record(name: &str, standing: Standing, order: i64) -> Revision {
        let pool = pool(json!({}));
        let object = build(
            &pool,
            name,
            &content(&pool, &[]),
            standing,
            order,
            Timestamp::UNIX_EPOCH,
        );
        Revision {
            record: read(&object),
            object: Arc::new(object),
        }
    }

    fn command(type_: &str, revision: Option<&str>, attempt: Option<i32>) -> RolloutAction {
        let expect = revision.map(|revision| json!({"revision": revision, "attempt": attempt}));
        serde_json::from_value(json!({
            "apiVersion": "flotilla.dev/v1alpha1", "kind": "RolloutAction",
            "metadata": {"name": "stop-it", "uid": "u-9", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"poolRef": {"name": "support"}, "type": type_, "expect": expect, "reason": "on-call"},
        }))
        .unwrap()
    }

    fn judge(action: &RolloutAction, candidate: Option<&str>, target: &str) -> Verdict {
        let standpoint = Standpoint {
            stable: Some("s-1".into()),
            candidate: candidate.map(str::to_owned),
            target: Some(target.into()),
            ..Standpoint::default()
        };
        let records = [
            record("s-1", Standing::Stable, 1),
            record("s-2", Standing::Rejected, 2),
            record(
                "s-3",
                if candidate.is_some() {
                    Standing::Candidate
                } else {
                    Standing::Unproved
                },
                3,
            ),
        ];
        decide(action, &standpoint, &records, Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn stale_commands_are_refused_with_a_sentence() {
        for (type_, revision, attempt, candidate, expected) in [
            (
                "Abort",
                Some("s-3"),
                None,
                None,
                "s-3 is not being released; s-1 serves",
            ),
            (
                "Abort",
                Some("s-1"),
                None,
                Some("s-3"),
                "s-1 is not being released",
            ),
            ("Abort", Some("s-9"), None, Some("s-3"), "s-9 is no revision"),
            ("Abort", Some("s-3"), Some(2), Some("s-3"), "at attempt 1, not 2"),
            ("Abort", None, None, Some("s-3"), "must say which"),
            ("Retry", Some("s-1"), None, None, "s-1 is not rejected"),
            (
                "Retry",
                Some("s-2"),
                None,
                None,
                "s-2 is not what the spec asks for; that is s-3",
            ),
            ("Restart", None, None, Some("s-3"), "s-3 is being released"),
            ("Restart", Some("s-2"), None, None, "s-2 does not serve; s-1 does"),
        ] {
            match judge(&command(type_, revision, attempt), candidate, "s-3") {
                Verdict::Reject(sentence) => assert!(sentence.contains(expected), "{sentence}"),
                other => panic!("{type_} {revision:?}: {other:?}"),
            }
        }
    }

    #[test]
    fn each_command_changes_one_record_and_leaves_its_mark() {
        let applied = |action: &RolloutAction, candidate, target| match judge(action, candidate, target) {
            Verdict::Apply { revision, patch, .. } => {
                assert_eq!(patch["metadata"]["annotations"][LAST_ACTION], "u-9");
                (revision, patch)
            }
            Verdict::Hold(sentence) | Verdict::Reject(sentence) => panic!("{sentence}"),
        };
        let (revision, patch) = applied(&command("Abort", Some("s-3"), Some(1)), Some("s-3"), "s-3");
        assert_eq!(
            (
                revision.as_str(),
                &patch["metadata"]["labels"][names::REVISION_STATE]
            ),
            ("s-3", &json!("rejected"))
        );
        let reason = patch["metadata"]["annotations"][names::REJECTED_REASON]
            .as_str()
            .unwrap();
        assert_eq!(reason, "Aborted: RolloutAction stop-it: on-call");

        let (revision, patch) = applied(&command("Retry", Some("s-2"), None), None, "s-2");
        assert_eq!((revision.as_str(), &patch["revision"]), ("s-2", &json!(4)));
        assert_eq!(patch["metadata"]["annotations"][ATTEMPT], "2");

        let (revision, patch) = applied(&command("Restart", None, None), None, "s-1");
        assert_eq!(revision, "s-1");
        assert_eq!(
            patch["metadata"]["annotations"][RESTARTED_AT],
            "2026-01-01T00:00:00Z"
        );
    }

    #[test]
    fn a_command_that_is_early_is_held_and_one_for_another_step_is_not() {
        let at = |step| Standpoint {
            stable: Some("s-1".into()),
            candidate: Some("s-3".into()),
            target: Some("s-3".into()),
            step,
            ..Standpoint::default()
        };
        let judged = |index, awaits_person| {
            at(Some(StepPoint {
                index,
                weight: 25,
                awaits_person,
                awaits_tests: false,
            }))
        };
        let mut action = command("Promote", Some("s-3"), None);
        if let Some(expect) = &mut action.spec.expect {
            expect.step = Some(0);
        }
        let records = [record("s-3", Standing::Candidate, 3)];
        let decided = |standpoint| decide(&action, &standpoint, &records, Timestamp::UNIX_EPOCH);
        assert!(matches!(decided(at(None)), Verdict::Hold(_)));
        assert!(matches!(decided(judged(0, false)), Verdict::Hold(_)));
        assert!(matches!(decided(judged(0, true)), Verdict::Apply { .. }));
        assert!(matches!(decided(judged(1, true)), Verdict::Reject(_)));

        // The pool has not been visited since another command has passed the step.
        let mut passed = record("s-3", Standing::Candidate, 3);
        passed.record.passed = Some(25);
        let again = decide(&action, &judged(0, true), &[passed], Timestamp::UNIX_EPOCH);
        assert!(
            matches!(&again, Verdict::Reject(why) if why.contains("already")),
            "{again:?}"
        );
    }

    #[test]
    fn an_answer_that_was_lost_is_given_again_in_the_same_words() {
        for (type_, revision, candidate, target) in [
            ("Restart", None, None, "s-1"),
            ("Abort", Some("s-3"), Some("s-3"), "s-3"),
            ("Retry", Some("s-2"), None, "s-2"),
            ("PromoteFull", Some("s-3"), Some("s-3"), "s-3"),
        ] {
            let action = command(type_, revision, None);
            let Verdict::Apply {
                revision,
                patch,
                message,
            } = judge(&action, candidate, target)
            else {
                panic!("{type_} is rejected");
            };
            let before = record(&revision, Standing::Candidate, 1);
            let mut object = serde_json::to_value(&*before.object).unwrap();
            for (name, value) in patch["metadata"]["annotations"].as_object().unwrap() {
                if value.is_string() {
                    object["metadata"]["annotations"][name] = value.clone();
                }
            }
            let after = read(&serde_json::from_value(object).unwrap());
            assert_eq!(carried_out(action.spec.type_, &after), message);
        }
    }
}
