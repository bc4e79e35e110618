//! Events of `events.k8s.io`: the same objects as those of the core group, in other words.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::failure::Failure;
use super::request::{Path, Request};
use super::{Answer, serve as serve_core};
use crate::state::State;

/// The other group.
pub const GROUP: &str = "events.k8s.io";

const WORDS: [(&str, &str); 4] = [
    ("regarding", "involvedObject"),
    ("note", "message"),
    ("reportingController", "reportingComponent"),
    ("deprecatedCount", "count"),
];

/// Answers in the words of [`GROUP`]. Watches of this group are not served: nothing here asks for them.
///
/// # Errors
/// As for the core group.
pub fn serve(state: &mut State, request: &Request, path: &Path, now: Timestamp) -> Result<Answer, Failure> {
    if request.is_watch() || path.version != "v1" {
        return Err(Failure::no_such_path());
    }
    let mut inner = request.clone();
    inner.path = request.path.replacen(&format!("/apis/{GROUP}/v1"), "/api/v1", 1);
    inner.body = translated(&request.body, true);
    match serve_core(state, &inner, now)? {
        Answer::Whole { code, body } => {
            let body = match body.get("items").and_then(Value::as_array) {
                Some(items) => json!({
                    "kind": "EventList", "apiVersion": format!("{GROUP}/v1"), "metadata": body["metadata"],
                    "items": items.iter().map(|item| translated(item, false)).collect::<Vec<_>>(),
                }),
                None => translated(&body, false),
            };
            Ok(Answer::Whole {
                code,
                body: body.into(),
            })
        }
        watch => Ok(watch),
    }
}

fn translated(object: &Value, to_core: bool) -> Value {
    let mut object = object.clone();
    let Some(fields) = object.as_object_mut() else {
        return object;
    };
    if fields.get("kind").and_then(Value::as_str) != Some("Event") {
        return object;
    }
    for (theirs, core) in WORDS {
        let (from, to) = if to_core { (theirs, core) } else { (core, theirs) };
        if let Some(value) = fields.remove(from) {
            fields.insert(to.to_owned(), value);
        }
    }
    let api_version = if to_core {
        "v1".to_owned()
    } else {
        format!("{GROUP}/v1")
    };
    fields.insert("apiVersion".to_owned(), json!(api_version));
    object
}
