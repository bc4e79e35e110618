//! `DELETE`, evictions, and the marks the garbage collector goes by.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::failure::Failure;
use super::request::{Path, Request};
use super::selector::Selector;
use super::{Answer, Call};
use crate::cluster::seconds;
use crate::kinds::Generation;
use crate::state::State;

/// Finalizer of a foreground deletion.
pub const FOREGROUND: &str = "foregroundDeletion";
/// Finalizer of a deletion that leaves the dependents.
pub const ORPHAN: &str = "orphan";

/// Deletes an object, or marks it when something has to come first.
///
/// # Errors
/// 404, 409 for preconditions.
pub fn delete(
    state: &mut State,
    call: &Call<'_>,
    name: &str,
    options: &Value,
    request: &Request,
) -> Result<Answer, Failure> {
    let kind = call.kind;
    let live = state
        .store
        .get(&call.key(name))
        .cloned()
        .ok_or_else(|| Failure::not_found(kind, name))?;
    let metadata = &live["metadata"];
    for (field, what) in [("uid", "UID"), ("resourceVersion", "ResourceVersion")] {
        let wanted = options
            .pointer(&format!("/preconditions/{field}"))
            .and_then(Value::as_str);
        let found = metadata[field].as_str().unwrap_or_default();
        if let Some(wanted) = wanted
            && wanted != found
        {
            return Err(Failure::precondition(kind, name, what, wanted, found));
        }
    }
    let policy = options["propagationPolicy"]
        .as_str()
        .or_else(|| request.query.get("propagationPolicy"))
        .map(str::to_owned);
    if let Some(policy) = &policy
        && !matches!(policy.as_str(), "Background" | "Foreground" | "Orphan")
    {
        return Err(Failure::new(
            422,
            "Invalid",
            format!(
                "DeleteOptions.meta.k8s.io \"\" is invalid: propagationPolicy: Unsupported value: {policy:?}"
            ),
        ));
    }
    let grace = options["gracePeriodSeconds"].as_i64().or_else(|| {
        request
            .query
            .get("gracePeriodSeconds")
            .and_then(|text| text.parse().ok())
    });
    let (gone, object) = mark(state, call, &live, policy.as_deref(), grace);
    if gone && !kind.deletion_returns_object {
        let mut details = json!({"name": name, "kind": kind.plural, "uid": live["metadata"]["uid"]});
        if !kind.group.is_empty() {
            details["group"] = json!(kind.group);
        }
        return Ok(Answer::ok(json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details,
        })));
    }
    Ok(Answer::ok(object))
}

/// The seconds a deletion of this object takes at least.
fn grace_of(call: &Call<'_>, live: &Value, asked: Option<i64>) -> i64 {
    if !call.kind.is("", "Pod") {
        return 0;
    }
    let phase = live["status"]["phase"].as_str().unwrap_or_default();
    if live["spec"]["nodeName"].is_null() || matches!(phase, "Succeeded" | "Failed") {
        return 0;
    }
    let own = live["spec"]["terminationGracePeriodSeconds"].as_i64();
    asked.or(own).unwrap_or(30).max(0)
}

/// Carries a deletion out as far as it can be now. Gives whether the object is gone, and its last state.
fn mark(
    state: &mut State,
    call: &Call<'_>,
    live: &Arc<Value>,
    policy: Option<&str>,
    grace: Option<i64>,
) -> (bool, Arc<Value>) {
    let name = live["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let mut object = (**live).clone();
    let mut finalizers = object["metadata"]["finalizers"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    // The policy of a Job that says nothing: its pods are kept, for the sake of old clients.
    let default = if call.kind.is("batch", "Job") {
        Some("Orphan")
    } else {
        None
    };
    let wanted = match policy.or(default) {
        Some("Foreground") => Some(FOREGROUND),
        Some("Orphan") => Some(ORPHAN),
        Some(_) => None,
        None => finalizers
            .iter()
            .filter_map(Value::as_str)
            .find_map(|finalizer| [FOREGROUND, ORPHAN].into_iter().find(|known| *known == finalizer)),
    };
    finalizers.retain(|finalizer| finalizer != FOREGROUND && finalizer != ORPHAN);
    if let Some(wanted) = wanted {
        finalizers.push(json!(wanted));
    }
    let has_finalizers = !finalizers.is_empty();
    let is_namespace = call.kind.is("", "Namespace");
    let grace = grace_of(call, live, grace);
    let was_marked = live["metadata"]["deletionTimestamp"].is_string();
    let left = live["metadata"]["deletionGracePeriodSeconds"].as_i64();
    if !has_finalizers && !is_namespace && grace == 0 {
        if !call.dry_run {
            state.store.commit(call.key(&name), None);
        }
        return (true, Arc::clone(live));
    }
    let metadata = &mut object["metadata"];
    if has_finalizers {
        metadata["finalizers"] = json!(finalizers);
    } else if let Some(fields) = metadata.as_object_mut() {
        fields.remove("finalizers");
    }
    // A second deletion may only shorten the first.
    if !was_marked || left.is_some_and(|left| grace < left) {
        let at = call
            .now
            .checked_add(Duration::from_secs(grace.unsigned_abs()))
            .unwrap_or(call.now);
        metadata["deletionTimestamp"] = json!(seconds(at));
        metadata["deletionGracePeriodSeconds"] = json!(grace);
        if call.kind.generation != Generation::None && !was_marked {
            let generation = metadata["generation"].as_i64().unwrap_or_default();
            metadata["generation"] = json!(generation + 1);
        }
    }
    if is_namespace {
        object["status"]["phase"] = json!("Terminating");
    }
    if object == **live {
        return (false, Arc::clone(live));
    }
    call.stamp(state, &mut object);
    (false, call.commit(state, &name, object))
}

/// Deletes everything that a list would give.
///
/// # Errors
/// Those of the selectors.
pub fn collection(
    state: &mut State,
    request: &Request,
    path: &Path,
    call: &Call<'_>,
) -> Result<Value, Failure> {
    let query = &request.query;
    let selector = Selector::parse(call.kind, query.get("labelSelector"), query.get("fieldSelector"))?;
    let selected: Vec<(String, Arc<Value>)> = state
        .store
        .of_kind(call.id, path.namespace.as_deref())
        .filter(|(_, object)| selector.matches(object))
        .map(|(key, object)| (key.namespace.clone(), Arc::clone(object)))
        .collect();
    let policy = request.body["propagationPolicy"].as_str().map(str::to_owned);
    let mut items = Vec::new();
    for (namespace, object) in selected {
        let call = Call {
            namespace,
            ..call.clone()
        };
        let grace = request.body["gracePeriodSeconds"].as_i64();
        let (_, last) = mark(state, &call, &object, policy.as_deref(), grace);
        items.push((*last).clone());
    }
    Ok(json!({
        "kind": format!("{}List", call.kind.kind), "apiVersion": call.kind.api_version(),
        "metadata": {"resourceVersion": state.store.revision().to_string()}, "items": items,
    }))
}

/// Evicts a pod. Disruption budgets are not counted: nothing of ours evicts.
///
/// # Errors
/// 404.
pub fn evict(state: &mut State, request: &Request, path: &Path, call: &Call<'_>) -> Result<Answer, Failure> {
    let name = path.name.as_deref().unwrap_or_default();
    let options = request.body.get("deleteOptions").cloned().unwrap_or_default();
    delete(state, call, name, &options, request)?;
    Ok(Answer::Whole {
        code: 201,
        body: json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201})
            .into(),
    })
}
