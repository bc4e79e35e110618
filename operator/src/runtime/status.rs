//! Status writes: only what differs, at the right pace, on the version they were decided on.
//!
//! The difference is sent as a JSON merge patch of `/status` with the object's resourceVersion, so a decision taken on
//! an old object is refused rather than applied. Transition times do not count as a difference (and [`Conditions`]
//! moves them only with their status). A change goes out at most once a second per object; counters, named as *lazy*,
//! cause a write of their own only every 30 s but ride along with every other.
//!
//! [`Conditions`]: super::Conditions

use std::collections::HashMap;
use std::time::Duration;

use flotilla_core::seeded::{self, Bug};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use kube::api::{Patch, PatchParams};
use kube::core::ApiResource;
use parking_lot::Mutex;
use serde::Serialize;
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use super::action::field_manager;
use super::client::CALL_TIMEOUT;
use super::conditions::truncate;
use super::errors::Error;
use super::executor::{dynamic_api, record};
use super::gate::{Mark, ResourceVersion};
use super::key::{Key, key_of, uid_of};
use super::manager::Context;
use super::visit::Visit;

/// Shortest time between two writes of one object's status.
const PACE: Duration = Duration::from_secs(1);

/// How to write a status.
#[derive(Clone, Copy, Debug)]
pub struct StatusWrite {
    /// Write a difference at once, whatever the pace (a new `trafficGeneration`).
    pub urgent: bool,
    /// JSON pointers into the status (`/summary/requests`) whose change alone waits for [`StatusWrite::lazy_every`].
    pub lazy: &'static [&'static str],
    /// Shortest time between writes for lazy fields alone.
    pub lazy_every: Duration,
}

impl Default for StatusWrite {
    fn default() -> Self {
        Self {
            urgent: false,
            lazy: &[],
            lazy_every: Duration::from_secs(30),
        }
    }
}

impl StatusWrite {
    /// At once.
    pub fn urgent() -> Self {
        Self {
            urgent: true,
            ..Self::default()
        }
    }
}

/// What became of a status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatusOutcome {
    /// It is so already.
    Unchanged,
    /// It was written.
    Written,
    /// It differs, but the last write is too recent; the object is visited again after this pause.
    Deferred(Duration),
}

/// When each object's status was last written.
#[derive(Default)]
pub(super) struct StatusPacer {
    last: Mutex<HashMap<(String, Key), Instant>>,
}

impl StatusPacer {
    pub(super) fn forget(&self, resource: &ApiResource, key: &Key) {
        self.last.lock().remove(&(resource.kind.clone(), key.clone()));
    }

    fn last(&self, resource: &ApiResource, key: &Key) -> Option<Instant> {
        self.last
            .lock()
            .get(&(resource.kind.clone(), key.clone()))
            .copied()
    }

    fn written(&self, resource: &ApiResource, key: &Key, at: Instant) {
        self.last.lock().insert((resource.kind.clone(), key.clone()), at);
    }
}

pub(super) async fn write<K, S>(
    visit: &Visit,
    object: &K,
    desired: &S,
    how: StatusWrite,
) -> Result<StatusOutcome, Error>
where
    K: Resource<DynamicType = ()> + Serialize,
    S: Serialize,
{
    let resource = ApiResource::erase::<K>(&());
    let key = key_of(object);
    let action = format!("update the status of {} {key}", resource.kind);
    let bug = |error| Error::Bug(format!("failed to {action}: {error}"));
    let mut whole = serde_json::to_value(object).map_err(bug)?;
    let observed = whole.get_mut("status").map(Value::take).unwrap_or_default();
    let desired = serde_json::to_value(desired).map_err(bug)?;

    let pause = match difference(&observed, &desired, how.lazy) {
        Difference::None => return Ok(StatusOutcome::Unchanged),
        Difference::Lazy => how.lazy_every,
        Difference::Real if how.urgent => Duration::ZERO,
        Difference::Real => PACE,
    };
    let now = Instant::now();
    let pacer = &visit.context.status;
    if let Some(last) = pacer.last(&resource, &key)
        && let Some(left) = (last + pause)
            .checked_duration_since(now)
            .filter(|left| !left.is_zero())
    {
        return Ok(StatusOutcome::Deferred(left));
    }

    visit.context.leadership.permit(CALL_TIMEOUT)?;
    let patch = json!({
        "metadata": {"uid": uid_of(object), "resourceVersion": object.meta().resource_version},
        "status": merge_patch(&observed, &desired),
    });
    let params = PatchParams {
        field_manager: Some(field_manager(&resource)),
        ..PatchParams::default()
    };
    let answer = dynamic_api(&visit.context.client, &resource, &key)
        .patch_status(&key.name, &params, &Patch::Merge(&patch))
        .await
        .map_err(|error| match Error::from_kube(action.clone(), error) {
            // Deleted meanwhile.
            Error::Refused {
                action, code: 404, ..
            } => Error::Conflict { action },
            error => error,
        })?;
    pacer.written(&resource, &key, now);
    record(
        visit,
        &resource,
        &key,
        Mark::Written {
            version: ResourceVersion::of(&answer.metadata),
        },
    );
    Ok(StatusOutcome::Written)
}

/// Says in an object's status that this operator cannot read it. Server-side apply, because what else is in the
/// status is unknown.
pub(super) async fn mark_undecodable(
    context: &Context,
    resource: &ApiResource,
    key: &Key,
    metadata: &ObjectMeta,
    message: &str,
) -> Result<(), Error> {
    context.leadership.permit(CALL_TIMEOUT)?;
    let body = undecodable_status(resource, metadata, message, context.clock.now());
    dynamic_api(&context.client, resource, key)
        .patch_status(
            &key.name,
            &PatchParams::apply("flotilla/guard").force(),
            &Patch::Apply(&body),
        )
        .await
        .map(|_| ())
        .map_err(|error| Error::from_kube(format!("mark {} {key}", resource.kind), error))
}

fn undecodable_status(resource: &ApiResource, metadata: &ObjectMeta, message: &str, now: Timestamp) -> Value {
    json!({
        "apiVersion": resource.api_version,
        "kind": resource.kind,
        "metadata": {"name": metadata.name, "namespace": metadata.namespace, "uid": metadata.uid},
        "status": {"conditions": [{
            "type": "Stalled",
            "status": "True",
            "reason": "Undecodable",
            "message": truncate(message, 1024),
            "observedGeneration": metadata.generation.unwrap_or_default(),
            "lastTransitionTime": now,
        }]},
    })
}

#[derive(Debug, PartialEq, Eq)]
enum Difference {
    None,
    Lazy,
    Real,
}

fn difference(observed: &Value, desired: &Value, lazy: &[&str]) -> Difference {
    // No status at all is an empty one.
    let whole = |value: &Value| if value.is_null() { json!({}) } else { bare(value) };
    let (mut before, mut after) = (whole(observed), whole(desired));
    if before == after && !seeded::has(Bug::NoisyStatus) {
        return Difference::None;
    }
    for pointer in lazy {
        remove(&mut before, pointer);
        remove(&mut after, pointer);
    }
    if before == after {
        Difference::Lazy
    } else {
        Difference::Real
    }
}

/// Without transition times and members that are null.
fn bare(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let kept = fields
                .iter()
                .filter(|(key, value)| *key != "lastTransitionTime" && !value.is_null());
            Value::Object(kept.map(|(key, value)| (key.clone(), bare(value))).collect())
        }
        Value::Array(list) => Value::Array(list.iter().map(bare).collect()),
        other => other.clone(),
    }
}

fn remove(value: &mut Value, pointer: &str) {
    let Some((parent, member)) = pointer.rsplit_once('/') else {
        return;
    };
    if let Some(Value::Object(fields)) = value.pointer_mut(parent) {
        fields.remove(member);
    }
}

/// The RFC 7396 patch that turns `observed` into `desired`.
fn merge_patch(observed: &Value, desired: &Value) -> Value {
    let (Value::Object(before), Value::Object(after)) = (observed, desired) else {
        return desired.clone();
    };
    let mut patch = Map::new();
    for (key, value) in after.iter().filter(|(_, value)| !value.is_null()) {
        match before.get(key) {
            Some(old) if old == value => {}
            Some(old) => {
                patch.insert(key.clone(), merge_patch(old, value));
            }
            None => {
                patch.insert(key.clone(), value.clone());
            }
        }
    }
    for key in before
        .keys()
        .filter(|key| after.get(*key).is_none_or(Value::is_null))
    {
        patch.insert(key.clone(), Value::Null);
    }
    Value::Object(patch)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences() {
        let condition =
            |status: &str, time: &str| json!({"type": "Ready", "status": status, "lastTransitionTime": time});
        let lazy = &["/requests/total"];
        for (what, observed, desired, expected) in [
            ("same", json!({"a": 1}), json!({"a": 1}), Difference::None),
            ("nothing and nothing", Value::Null, Value::Null, Difference::None),
            (
                "null is absent",
                json!({"a": 1}),
                json!({"a": 1, "b": null}),
                Difference::None,
            ),
            (
                "only a time",
                json!({"conditions": [condition("True", "1")]}),
                json!({"conditions": [condition("True", "2")]}),
                Difference::None,
            ),
            (
                "a condition",
                json!({"conditions": [condition("True", "1")]}),
                json!({"conditions": [condition("False", "2")]}),
                Difference::Real,
            ),
            (
                "a counter",
                json!({"requests": {"total": 1}}),
                json!({"requests": {"total": 2}}),
                Difference::Lazy,
            ),
            (
                "a counter and more",
                json!({"requests": {"total": 1}, "a": 1}),
                json!({"requests": {"total": 2}, "a": 2}),
                Difference::Real,
            ),
            ("first", Value::Null, json!({"a": 1}), Difference::Real),
            ("removed", json!({"a": 1}), json!({}), Difference::Real),
        ] {
            assert_eq!(difference(&observed, &desired, lazy), expected, "{what}");
        }
    }

    #[test]
    fn patches() {
        for (observed, desired, patch) in [
            (Value::Null, json!({"a": 1}), json!({"a": 1})),
            (json!({"a": 1, "b": 2}), json!({"a": 1}), json!({"b": null})),
            (
                json!({"a": {"b": 1, "c": 2}}),
                json!({"a": {"b": 1, "c": 3}}),
                json!({"a": {"c": 3}}),
            ),
            (json!({"a": [1, 2]}), json!({"a": [1]}), json!({"a": [1]})),
            (json!({"a": 1}), json!({"a": null}), json!({"a": null})),
        ] {
            assert_eq!(merge_patch(&observed, &desired), patch);
        }
    }
}
