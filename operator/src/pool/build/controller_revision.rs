//! The record of a revision: its content, its standing, and what was commanded about it.
//!
//! `data` can never change. The standing is a label and `revision` the order in which revisions became candidates:
//! together they are the truth about a pool's releases, of which status is a copy.
//!
//! The API server compares `data` byte by byte, and each patch of a label has it written anew by a JSON encoder that escapes
//! `<`, `>`, `&`, U+2028 and U+2029: a prompt with one of them would make the record unchangeable. So the content is one
//! string of JSON in which they are escaped already.

use flotilla_core::revision::Content;
use flotilla_core::rollout::{Reason, Standing};
use flotilla_crds::{AgentPool, names};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use kube::ResourceExt as _;
use serde_json::{Value, json};

use super::child_meta;

/// Annotation: how often this revision was released; a Retry makes it one more.
pub const ATTEMPT: &str = "flotilla.dev/attempt";
/// Annotation: when its last release began.
pub const STARTED_AT: &str = "flotilla.dev/release-started-at";
/// Annotation: when that release ended, whatever came of it.
pub const ENDED_AT: &str = "flotilla.dev/release-ended-at";
/// Annotation: when it was rejected.
pub const REJECTED_AT: &str = "flotilla.dev/rejected-at";
/// Annotation: UID of the last RolloutAction that changed it, so that none is carried out twice.
pub const LAST_ACTION: &str = "flotilla.dev/last-action";
/// Annotation: pods made before this time are replaced.
pub const RESTARTED_AT: &str = "flotilla.dev/restarted-at";

/// Annotation: the highest weight of its ladder whose question this release of it has answered.
pub const PASSED: &str = "flotilla.dev/passed-weight";
/// Annotation: it served not long before this release, so it is not judged again.
pub const TRUSTED: &str = "flotilla.dev/trusted";

/// Field of `data`: the content as JSON text.
const CONTENT: &str = "content";

/// A revision as recorded.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// Its name.
    pub revision: String,
    /// Its content; none when this version of Flotilla cannot read it.
    pub content: Option<Content>,
    /// Its standing.
    pub standing: Standing,
    /// Its place in the order.
    pub order: i64,
    /// How often it was released, from 1.
    pub attempt: i32,
    /// Why it was rejected, and when.
    pub rejected: Option<(Reason, Option<Timestamp>)>,
    /// When its last release began, if it had one.
    pub started_at: Option<Timestamp>,
    /// When that ended; none while it is under way.
    pub ended_at: Option<Timestamp>,
    /// Pods made before this are to be replaced.
    pub restarted_at: Option<Timestamp>,
    /// The highest weight that this release of it has passed.
    pub passed: Option<i32>,
    /// It is not judged again.
    pub is_trusted: bool,
}

/// A new record.
pub fn build(
    pool: &AgentPool,
    revision: &str,
    content: &Content,
    standing: Standing,
    order: i64,
    now: Timestamp,
) -> ControllerRevision {
    let mut metadata = child_meta(pool, revision, Some(revision));
    let label = standing
        .label()
        .map(|label| (names::REVISION_STATE.to_owned(), label.to_owned()));
    metadata.labels.get_or_insert_default().extend(label);
    if standing == Standing::Candidate {
        let annotations = metadata.annotations.get_or_insert_default();
        annotations.insert(STARTED_AT.to_owned(), now.to_string());
    }
    ControllerRevision {
        metadata,
        data: Some(RawExtension(json!({CONTENT: escaped(content)}))),
        revision: order,
    }
}

/// The content as JSON without the characters that the API server's encoder escapes.
fn escaped(content: &Content) -> String {
    let text = serde_json::to_string(content).unwrap_or_default();
    let mut escaped = String::with_capacity(text.len());
    for char in text.chars() {
        match char {
            // They occur in strings only, where an escape stands for the same.
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                escaped.push_str(&format!("\\u{:04x}", u32::from(char)));
            }
            char => escaped.push(char),
        }
    }
    escaped
}

/// What a record says. Anything that is missing or malformed has its default.
pub fn read(record: &ControllerRevision) -> Record {
    let content = record
        .data
        .as_ref()
        .and_then(|data| serde_json::from_str(data.0.get(CONTENT)?.as_str()?).ok());
    let standing = Standing::from_label(record.labels().get(names::REVISION_STATE).map(String::as_str));
    let annotation = |name| record.annotations().get(name).map(String::as_str);
    let time = |name| annotation(name).and_then(|text| text.parse::<Timestamp>().ok());
    let rejected = (standing == Standing::Rejected).then(|| {
        let text = annotation(names::REJECTED_REASON).unwrap_or("Rejected: it was rejected");
        let (word, message) = text.split_once(": ").unwrap_or((text, ""));
        (Reason::new(word, message), time(REJECTED_AT))
    });
    Record {
        revision: record.name_any(),
        content,
        standing,
        order: record.revision,
        attempt: annotation(ATTEMPT)
            .and_then(|text| text.parse().ok())
            .unwrap_or(1)
            .max(1),
        rejected,
        started_at: time(STARTED_AT),
        ended_at: time(ENDED_AT),
        restarted_at: time(RESTARTED_AT),
        passed: annotation(PASSED).and_then(|text| text.parse().ok()),
        is_trusted: annotation(TRUSTED) == Some("true"),
    }
}

/// The merge patch that gives a record another standing. `order` is for one that becomes candidate or stable.
pub fn change(standing: Standing, reason: Option<&Reason>, order: Option<i64>, now: Timestamp) -> Value {
    let text = reason.map(|reason| format!("{}: {}", reason.word, reason.message));
    let mut patch = json!({"metadata": {
        "labels": {names::REVISION_STATE: standing.label()},
        "annotations": {
            names::REJECTED_REASON: text,
            REJECTED_AT: reason.map(|_| now.to_string()),
        },
    }});
    let annotations = &mut patch["metadata"]["annotations"];
    match (standing, order) {
        (Standing::Candidate, _) => {
            annotations[STARTED_AT] = json!(now.to_string());
            annotations[ENDED_AT] = Value::Null;
        }
        // Stable without having been a candidate: there was no release. What served has long been released.
        (Standing::Stable, Some(_)) | (Standing::Verified, _) => {}
        (Standing::Stable | Standing::Rejected | Standing::Unproved, _) => {
            annotations[ENDED_AT] = json!(now.to_string());
        }
    }
    if let Some(order) = order {
        patch["revision"] = json!(order);
        // Another release: nothing is answered yet.
        patch["metadata"]["annotations"][PASSED] = Value::Null;
        patch["metadata"]["annotations"][TRUSTED] = Value::Null;
    }
    patch
}

/// The merge patch that records the highest weight passed.
pub fn pass(weight: i32) -> Value {
    json!({"metadata": {"annotations": {PASSED: weight.to_string()}}})
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{content, pool};
    use super::*;

    #[test]
    fn a_record_keeps_the_content_and_reads_back() {
        let pool = pool(json!({"agent": {"concurrency": 3}}));
        let content = content(&pool, &[("prompt", "ab")]);
        let record = build(
            &pool,
            "support-1",
            &content,
            Standing::Candidate,
            4,
            Timestamp::UNIX_EPOCH,
        );
        let read = read(&record);
        assert_eq!(
            (read.content, read.standing, read.order, read.attempt),
            (Some(content), Standing::Candidate, 4, 1)
        );
    }

    #[test]
    fn no_byte_of_the_data_is_written_otherwise_by_the_api_server() {
        let prompt = "<!-- if a < b && b > c -->\u{2028}\u{2029} \\u003c \"quoted\" ä";
        let pool = pool(json!({"agent": {"prompt": {"text": prompt}}}));
        let content = content(&pool, &[]);
        let record = build(
            &pool,
            "support-1",
            &content,
            Standing::Candidate,
            1,
            Timestamp::UNIX_EPOCH,
        );
        let data = serde_json::to_string(&record.data).unwrap();
        assert!(!data.contains(['<', '>', '&', '\u{2028}', '\u{2029}']), "{data}");
        assert_eq!(read(&record).content, Some(content));
    }

    #[test]
    fn a_rejection_survives_in_annotations() {
        let pool = pool(json!({}));
        let now = Timestamp::from_second(1_700_000_000).unwrap();
        let content = content(&pool, &[]);
        let mut record = build(&pool, "support-1", &content, Standing::Rejected, 2, now);
        let patch = change(
            Standing::Rejected,
            Some(&Reason::new("CrashLoop", "exit code 1: no")),
            None,
            now,
        );
        let annotations = serde_json::from_value(patch["metadata"]["annotations"].clone()).unwrap();
        record.metadata.annotations = Some(annotations);
        assert_eq!(
            read(&record).rejected,
            Some((Reason::new("CrashLoop", "exit code 1: no"), Some(now)))
        );
    }

    #[test]
    fn a_release_has_a_begin_and_an_end() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let annotations = |standing, order, second| {
            let patch = change(standing, None, order, at(second));
            patch["metadata"]["annotations"].clone()
        };
        let begun = annotations(Standing::Candidate, Some(4), 10);
        assert_eq!(
            (&begun[STARTED_AT], &begun[ENDED_AT]),
            (&json!(at(10).to_string()), &Value::Null)
        );
        for standing in [Standing::Stable, Standing::Rejected, Standing::Unproved] {
            let ended = annotations(standing, None, 70);
            assert!(ended.get(STARTED_AT).is_none(), "{standing:?}");
            assert_eq!(ended[ENDED_AT], at(70).to_string(), "{standing:?}");
        }
        for (standing, order) in [(Standing::Verified, None), (Standing::Stable, Some(1))] {
            assert!(
                annotations(standing, order, 90).get(ENDED_AT).is_none(),
                "{standing:?}"
            );
        }
        let pool = pool(json!({}));
        let made = build(
            &pool,
            "support-1",
            &content(&pool, &[]),
            Standing::Candidate,
            1,
            at(10),
        );
        assert_eq!(
            (read(&made).started_at, read(&made).ended_at),
            (Some(at(10)), None)
        );
    }

    #[test]
    fn nonsense_has_defaults() {
        let mut record = ControllerRevision {
            data: Some(RawExtension(json!({"agent": 7}))),
            ..Default::default()
        };
        record.metadata.annotations = Some([(ATTEMPT.to_owned(), "-3".to_owned())].into());
        let read = read(&record);
        assert_eq!(
            (read.content, read.standing, read.attempt),
            (None, Standing::Unproved, 1)
        );
    }

    #[test]
    fn another_standing_clears_the_reason() {
        let patch = change(Standing::Candidate, None, Some(9), Timestamp::UNIX_EPOCH);
        assert!(patch["metadata"]["annotations"][names::REJECTED_REASON].is_null());
        assert_eq!(patch["revision"], 9);
    }
}
