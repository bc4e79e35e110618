//! `PUT`, and what every change of an object goes through.

use std::sync::Arc;

use serde_json::{Value, json};

use super::failure::{Cause, Failure};
use super::{Answer, Call, Part, create};
use crate::apply::managed::{Managed, is_same, members_without};
use crate::kinds::{Generation, Kind};
use crate::schema::{Type, admission};
use crate::state::State;

/// Replaces an object, or the part of it that the path names.
///
/// # Errors
/// What the server refuses.
pub fn replace(
    state: &mut State,
    call: &Call<'_>,
    name: &str,
    part: Part,
    body: Value,
) -> Result<Answer, Failure> {
    create::check_body(call, &body)?;
    let kind = call.kind;
    let text = |pointer: &str| body.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let named = text("/metadata/name");
    if named != name {
        return Err(Failure::bad_request(format!(
            "the name of the object ({named}) does not match the name on the URL ({name})"
        )));
    }
    let Some(live) = state.store.get(&call.key(name)).cloned() else {
        if !kind.create_on_update || part == Part::Status {
            return Err(Failure::not_found(kind, name));
        }
        if !text("/metadata/uid").is_empty() {
            return Err(Failure::precondition(
                kind,
                name,
                "UID",
                text("/metadata/uid"),
                "",
            ));
        }
        let created = create::insert(state, call, body, None)?;
        return Ok(Answer::Whole {
            code: 201,
            body: created,
        });
    };
    let uid = live["metadata"]["uid"].as_str().unwrap_or_default();
    let wanted = text("/metadata/uid");
    if !wanted.is_empty() && wanted != uid {
        return Err(Failure::precondition(kind, name, "UID", wanted, uid));
    }
    if text("/metadata/resourceVersion").is_empty() && !kind.unconditional_update {
        let cause = Cause::invalid(
            "metadata.resourceVersion",
            &json!(0),
            "must be specified for an update",
        );
        return Err(Failure::invalid(kind, name, &[cause]));
    }
    let updated = change(state, call, &live, body, part, None)?;
    Ok(Answer::Whole {
        code: 200,
        body: updated,
    })
}

/// The fields a write to this part cannot own.
pub(super) fn reset_fields(kind: &Kind, part: Part) -> &'static [&'static str] {
    match part {
        Part::Status => &["spec", "metadata"],
        Part::Main if kind.status => &["status"],
        Part::Main => &[],
    }
}

/// Makes `new` of `live`: keeps what cannot change, checks, counts the generation, notes the owners of fields, and
/// finishes a deletion that waited for finalizers. What changes nothing is not written.
///
/// # Errors
/// 409 for an old version, 422.
pub(super) fn change(
    state: &mut State,
    call: &Call<'_>,
    live: &Arc<Value>,
    mut new: Value,
    part: Part,
    managed: Option<Managed>,
) -> Result<Arc<Value>, Failure> {
    let kind = call.kind;
    let name = live["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    if !new["metadata"].is_object() {
        new["metadata"] = json!({});
    }
    let version = new["metadata"]["resourceVersion"].as_str().unwrap_or_default();
    if !version.is_empty() && live["metadata"]["resourceVersion"] != version {
        return Err(Failure::modified(kind, &name));
    }
    keep_metadata(kind, live, &mut new, &name)?;
    match part {
        Part::Main => {
            if kind.status {
                copy(live, &mut new, "status");
            }
            admission::normalise(kind, &mut new)?;
        }
        Part::Status => {
            // All else was normalised when it was written.
            let mut said = json!({"metadata": {}});
            copy(&new, &mut said, "status");
            admission::normalise(kind, &mut said)?;
            new = (**live).clone();
            copy(&said, &mut new, "status");
        }
    }
    allocated(kind, live, &mut new);
    let mut causes = finalizers_added(live, &new);
    causes.extend(admission::check(kind, &new, Some(live)));
    if !causes.is_empty() {
        return Err(Failure::invalid(kind, &name, &causes));
    }
    if part == Part::Main && is_new_content(kind, live, &new) {
        let generation = live["metadata"]["generation"].as_i64().unwrap_or_default();
        new["metadata"]["generation"] = json!(generation + 1);
    }
    let managed = managed.unwrap_or_else(|| {
        Managed::of(live).update(
            (live, &new),
            &call.writer,
            reset_fields(kind, part),
            Type::of(kind),
            call.now,
        )
    });
    managed.store(&mut new);
    new["metadata"]["resourceVersion"] = live["metadata"]["resourceVersion"].clone();
    // The real server stores a new object of a custom kind in other bytes than a later write: the first one that follows is
    // carried out even if it changes nothing.
    let is_rewritten = kind.custom.is_some() && state.store.is_new(&call.key(&name));
    if is_same(live, &new) && !is_rewritten {
        return Ok(Arc::clone(live));
    }
    call.stamp(state, &mut new);
    if is_finished(&new) {
        let last = Arc::new(new);
        if !call.dry_run {
            state.store.commit(call.key(&name), None);
        }
        return Ok(last);
    }
    Ok(call.commit(state, &name, new))
}

/// Whether nothing keeps an object that is being deleted.
fn is_finished(object: &Value) -> bool {
    let metadata = &object["metadata"];
    let is_free = metadata["finalizers"].as_array().is_none_or(Vec::is_empty);
    metadata["deletionTimestamp"].is_string()
        && is_free
        && metadata["deletionGracePeriodSeconds"]
            .as_i64()
            .unwrap_or_default()
            == 0
        && object
            .pointer("/spec/finalizers")
            .and_then(Value::as_array)
            .is_none_or(Vec::is_empty)
}

fn copy(from: &Value, to: &mut Value, field: &str) {
    let Some(fields) = to.as_object_mut() else { return };
    match from.get(field) {
        Some(value) => drop(fields.insert(field.to_owned(), value.clone())),
        None => drop(fields.remove(field)),
    }
}

fn keep_metadata(kind: &Kind, live: &Value, new: &mut Value, name: &str) -> Result<(), Failure> {
    let uid = &new["metadata"]["uid"];
    if uid.as_str().is_some_and(|uid| !uid.is_empty()) && *uid != live["metadata"]["uid"] {
        let cause = Cause::invalid("metadata.uid", uid, "field is immutable");
        return Err(Failure::invalid(kind, name, &[cause]));
    }
    new["apiVersion"] = json!(kind.api_version());
    new["kind"] = json!(kind.kind);
    for field in [
        "name",
        "namespace",
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
        "generateName",
    ] {
        copy(&live["metadata"], &mut new["metadata"], field);
    }
    if let Some(metadata) = new["metadata"].as_object_mut() {
        metadata.retain(|_, value| !value.is_null());
    }
    Ok(())
}

/// What was chosen at the creation stays when a replacement leaves it out.
fn allocated(kind: &Kind, live: &Value, new: &mut Value) {
    if kind.is("", "Service") && new["spec"]["type"] != "ExternalName" {
        for field in ["clusterIP", "clusterIPs"] {
            if new["spec"][field].is_null() {
                copy(&live["spec"], &mut new["spec"], field);
            }
        }
        if let Some(spec) = new["spec"].as_object_mut() {
            spec.retain(|_, value| !value.is_null());
        }
    }
    if kind.is("batch", "Job") && new["spec"]["selector"].is_null() {
        copy(&live["spec"], &mut new["spec"], "selector");
    }
}

fn finalizers_added(live: &Value, new: &Value) -> Vec<Cause> {
    if !live["metadata"]["deletionTimestamp"].is_string() {
        return Vec::new();
    }
    let before = live["metadata"]["finalizers"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let after = new["metadata"]["finalizers"].as_array();
    let added: Vec<String> = after
        .into_iter()
        .flatten()
        .filter(|finalizer| !before.contains(finalizer))
        .map(ToString::to_string)
        .collect();
    if added.is_empty() {
        return Vec::new();
    }
    let why = format!(
        "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
        added.join(", ")
    );
    vec![Cause::forbidden("metadata.finalizers", &why)]
}

fn is_new_content(kind: &Kind, live: &Value, new: &Value) -> bool {
    match kind.generation {
        Generation::None => false,
        Generation::Spec => live.get("spec") != new.get("spec"),
        Generation::Content => {
            let but: &[&str] = if kind.status {
                &["metadata", "status"]
            } else {
                &["metadata"]
            };
            members_without(live, but).ne(members_without(new, but))
        }
    }
}
