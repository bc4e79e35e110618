//! The scale subresource.

use http::Method;
use serde_json::{Value, json};

use super::failure::{Cause, Failure};
use super::request::{Path, Request};
use super::{Answer, Call, Part, patch, read, update};
use crate::apply::managed::Managed;
use crate::kinds::Scale;
use crate::state::State;

/// Reads or writes the scale of an object.
///
/// # Errors
/// What the server refuses.
pub fn serve(state: &mut State, request: &Request, path: &Path, call: &Call<'_>) -> Result<Answer, Failure> {
    let Some(scale) = call.kind.scale.as_ref() else {
        return Err(Failure::no_such_path());
    };
    let name = path.name.as_deref().unwrap_or_default();
    let live = read::get(state, call, name)?;
    let before = view(&live, scale);
    let mut after = before.clone();
    match request.method {
        Method::GET => return Ok(Answer::ok(before)),
        Method::PUT => after = request.body.clone(),
        Method::PATCH => patch::merge(&mut after, &request.body),
        _ => return Err(Failure::not_allowed()),
    }
    let replicas = after
        .pointer("/spec/replicas")
        .cloned()
        .unwrap_or_else(|| json!(0));
    if replicas.as_i64().is_none_or(|replicas| replicas < 0) {
        let cause = Cause::invalid("spec.replicas", &replicas, "must be greater than or equal to 0");
        return Err(Failure::invalid(call.kind, name, &[cause]));
    }
    let is_cleared = replicas == 0 && before.pointer("/spec/replicas").is_some();
    let mut new = (*live).clone();
    if let Some(version) = after
        .pointer("/metadata/resourceVersion")
        .filter(|version| version.is_string())
    {
        new["metadata"]["resourceVersion"] = version.clone();
    }
    if let Some(place) = new.pointer_mut(&scale.spec) {
        *place = replicas;
    } else {
        new["spec"]["replicas"] = replicas;
    }
    // A field that nobody owned is not owned by this; and a Scale does not tell 0 from nothing.
    let path: Vec<&str> = scale.spec.split('/').skip(1).collect();
    let managed = Managed::of(&live);
    let disowned = managed.clone().disowned(&path);
    let managed = (is_cleared || managed == disowned).then_some(disowned);
    let updated = update::change(state, call, &live, new, Part::Main, managed)?;
    Ok(Answer::ok(view(&updated, scale)))
}

fn view(object: &Value, scale: &Scale) -> Value {
    let number = |pointer: &str| {
        object
            .pointer(pointer)
            .and_then(Value::as_i64)
            .unwrap_or_default()
    };
    let selector = match object.pointer(&scale.selector) {
        Some(Value::String(text)) => text.clone(),
        Some(selector) => {
            let labels = selector.get("matchLabels").and_then(Value::as_object);
            let pairs: Vec<String> = labels
                .into_iter()
                .flatten()
                .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
                .collect();
            pairs.join(",")
        }
        None => String::new(),
    };
    let metadata = &object["metadata"];
    let mut view = json!({
        "kind": "Scale", "apiVersion": "autoscaling/v1",
        "metadata": {
            "name": metadata["name"], "namespace": metadata["namespace"], "uid": metadata["uid"],
            "resourceVersion": metadata["resourceVersion"], "creationTimestamp": metadata["creationTimestamp"],
        },
        "spec": {}, "status": {"replicas": number(&scale.status)},
    });
    let replicas = number(&scale.spec);
    if replicas != 0 {
        view["spec"]["replicas"] = json!(replicas);
    }
    if !selector.is_empty() {
        view["status"]["selector"] = json!(selector);
    }
    view
}
