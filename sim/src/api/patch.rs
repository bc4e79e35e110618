//! `PATCH`: JSON patch, merge patch, strategic merge patch, server-side apply.

use json_patch::{AddOperation, PatchOperation};
use serde_json::{Value, json};

use super::failure::{Cause, Failure};
use super::request::Request;
use super::{Answer, Call, Part, create, strategic, update};
use crate::apply::managed::{Conflict, Managed};
use crate::apply::typed;
use crate::schema::Type;
use crate::state::State;

/// Patches an object.
///
/// # Errors
/// What the server refuses.
pub fn patch(
    state: &mut State,
    request: &Request,
    call: &Call<'_>,
    name: &str,
    part: Part,
) -> Result<Answer, Failure> {
    let media_type = request.content_type.split(';').next().unwrap_or_default().trim();
    if matches!(
        media_type,
        "application/apply-patch+yaml" | "application/apply-patch+json"
    ) {
        return apply(state, request, call, name, part);
    }
    let live = state
        .store
        .get(&call.key(name))
        .cloned()
        .ok_or_else(|| Failure::not_found(call.kind, name))?;
    let mut new = (*live).clone();
    match media_type {
        "application/merge-patch+json" => {
            if !request.body.is_object() {
                return Err(Failure::bad_request(
                    "error decoding patch: the body is no object",
                ));
            }
            merge(&mut new, &request.body);
        }
        "application/json-patch+json" => {
            let mut patch: json_patch::Patch = serde_json::from_value(request.body.clone())
                .map_err(|error| Failure::bad_request(format!("error decoding patch: {error}")))?;
            for operation in &mut patch.0 {
                replace_is_add(&new, operation);
                json_patch::patch(&mut new, std::slice::from_ref(operation)).map_err(|error| {
                    Failure::new(
                        422,
                        "Invalid",
                        format!("the server rejected our request due to an error in our request: {error}"),
                    )
                })?;
            }
        }
        "application/strategic-merge-patch+json" if call.kind.custom.is_none() => {
            new = strategic::merge(&new, &request.body, Type::of(call.kind));
        }
        other => return Err(Failure::media_type(other)),
    }
    check_name(&new, name)?;
    create::check_body(call, &new)?;
    let updated = update::change(state, call, &live, new, part, None)?;
    Ok(Answer::Whole {
        code: 200,
        body: updated,
    })
}

/// The real server replaces a member that is not there, too, as long as there is an object for it.
fn replace_is_add(object: &Value, operation: &mut PatchOperation) {
    let PatchOperation::Replace(replace) = operation else {
        return;
    };
    let Some((parent, _)) = replace.path.split_back() else {
        return;
    };
    let is_missing = object.pointer(replace.path.as_str()).is_none();
    if is_missing && object.pointer(parent.as_str()).is_some_and(Value::is_object) {
        *operation = PatchOperation::Add(AddOperation {
            path: replace.path.clone(),
            value: replace.value.take(),
        });
    }
}

fn check_name(new: &Value, name: &str) -> Result<(), Failure> {
    let named = new
        .pointer("/metadata/name")
        .and_then(Value::as_str)
        .unwrap_or_default();
    if named == name {
        return Ok(());
    }
    Err(Failure::bad_request(format!(
        "the name of the object ({named}) does not match the name on the URL ({name})"
    )))
}

fn apply(
    state: &mut State,
    request: &Request,
    call: &Call<'_>,
    name: &str,
    part: Part,
) -> Result<Answer, Failure> {
    let kind = call.kind;
    let mut config = request.body.clone();
    if request
        .query
        .get("fieldManager")
        .is_none_or(|manager| manager.is_empty())
    {
        let cause = Cause::required("fieldManager", "is required for apply patch");
        let mut failure = Failure::invalid(kind, "", &[cause]);
        failure.message =
            "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is required for apply patch"
                .to_owned();
        return Err(failure);
    }
    create::check_body(call, &config)?;
    if config["kind"].is_null() || config["apiVersion"].is_null() {
        return Err(Failure::bad_request(
            "invalid object type: /, Kind=: kind and apiVersion must be set",
        ));
    }
    if config
        .pointer("/metadata/managedFields")
        .is_some_and(|fields| !fields.is_null())
    {
        return Err(Failure::bad_request("metadata.managedFields must be nil"));
    }
    if config["metadata"]["name"].is_null() {
        config["metadata"]["name"] = json!(name);
    }
    check_name(&config, name)?;
    let live = state.store.get(&call.key(name)).cloned();
    let reset = update::reset_fields(kind, part);
    let shape = Type::of(kind);
    if let Some(wrong) = typed::mistake(&config, shape) {
        let what = format!("/{name}; {}/{}, Kind={}", kind.group, kind.version, kind.kind);
        return Err(Failure::new(
            500,
            "",
            format!("failed to create typed patch object ({what}): {wrong}"),
        ));
    }
    let Some(live) = live else {
        if part == Part::Status {
            return Err(Failure::not_found(kind, name));
        }
        if let Some(uid) = config["metadata"]["uid"].as_str().filter(|uid| !uid.is_empty()) {
            let cause = format!(
                "uid mismatch: the provided object specified uid {uid}, and no existing object was found"
            );
            return Err(Failure::conflict(kind, name, &cause));
        }
        let nothing = json!({});
        let (object, managed) = Managed::default()
            .apply((&nothing, &config), (&call.writer, true), reset, shape, call.now)
            .map_err(|_| Failure::modified(kind, name))?;
        let created = create::insert(state, call, object, Some(managed))?;
        return Ok(Answer::Whole {
            code: 201,
            body: created,
        });
    };
    let force = request.query.flag("force");
    let version = config["metadata"]["resourceVersion"].clone();
    if let Some(metadata) = config["metadata"].as_object_mut() {
        metadata.remove("resourceVersion");
    }
    if version.as_str().is_some_and(|version| !version.is_empty())
        && version != live["metadata"]["resourceVersion"]
    {
        return Err(Failure::modified(kind, name));
    }
    let (new, managed) = Managed::of(&live)
        .apply((&live, &config), (&call.writer, force), reset, shape, call.now)
        .map_err(|conflicts| refused(&conflicts))?;
    let emptied = kind.custom.as_ref().map(|custom| custom.emptied(&new));
    if let Some(causes) = emptied.filter(|causes| !causes.is_empty()) {
        return Err(Failure::invalid(kind, name, &causes));
    }
    let updated = update::change(state, call, &live, new, part, Some(managed))?;
    Ok(Answer::Whole {
        code: 200,
        body: updated,
    })
}

fn refused(conflicts: &[Conflict]) -> Failure {
    let mut causes = Vec::new();
    for conflict in conflicts {
        let message = format!(
            "conflict with {:?} using {}",
            conflict.manager, conflict.api_version
        );
        for path in &conflict.paths {
            causes.push(json!({"reason": "FieldManagerConflict", "message": message, "field": path}));
        }
    }
    let count = causes.len();
    let plural = if count == 1 { "" } else { "s" };
    let first = causes
        .first()
        .and_then(|cause| Some((cause["message"].as_str()?, cause["field"].as_str()?)));
    let about = match first {
        Some((message, field)) if count == 1 => format!("{message}: {field}"),
        _ => conflicts
            .iter()
            .map(|conflict| {
                format!(
                    "conflicts with {:?} using {}:\n- {}",
                    conflict.manager,
                    conflict.api_version,
                    conflict.paths.join("\n- ")
                )
            })
            .collect::<Vec<_>>()
            .join("\n"),
    };
    let mut failure = Failure::new(
        409,
        "Conflict",
        format!("Apply failed with {count} conflict{plural}: {about}"),
    );
    failure.details = json!({"causes": causes});
    failure
}

/// RFC 7396.
pub fn merge(value: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *value = patch.clone();
        return;
    };
    if !value.is_object() {
        *value = json!({});
    }
    let Value::Object(fields) = value else { return };
    for (key, member) in patch {
        if member.is_null() {
            fields.remove(key);
        } else {
            merge(fields.entry(key.clone()).or_insert(Value::Null), member);
        }
    }
}
