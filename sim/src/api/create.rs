//! `POST`, and the creation of what an apply does not find.

use std::sync::Arc;

use serde_json::{Value, json};

use super::failure::Failure;
use super::{Call, update};
use crate::apply::managed::Managed;
use crate::cluster::seconds;
use crate::kinds::Generation;
use crate::schema::{Type, admission};
use crate::state::State;
use crate::store::Key;

/// Creates an object as a `POST` does.
///
/// # Errors
/// What the server refuses: 400, 403, 404 for the namespace, 409, 422.
pub fn create(state: &mut State, call: &Call<'_>, object: Value) -> Result<Arc<Value>, Failure> {
    check_body(call, &object)?;
    if object
        .pointer("/metadata/resourceVersion")
        .is_some_and(|version| version.as_str() != Some(""))
    {
        return Err(Failure::new(
            500,
            "InternalError",
            "resourceVersion should not be set on objects to be created",
        ));
    }
    insert(state, call, object, None)
}

/// The body must be an object of the kind and namespace of the path.
pub(super) fn check_body(call: &Call<'_>, object: &Value) -> Result<(), Failure> {
    let kind = call.kind;
    let text = |pointer: &str| {
        object
            .pointer(pointer)
            .and_then(Value::as_str)
            .unwrap_or_default()
    };
    if !object.is_object() {
        return Err(Failure::bad_request("the object provided is unrecognized"));
    }
    let (api_version, name) = (text("/apiVersion"), text("/kind"));
    if (!api_version.is_empty() && api_version != kind.api_version())
        || (!name.is_empty() && name != kind.kind)
    {
        return Err(Failure::bad_request(format!(
            "{name} in version {api_version:?} cannot be handled as a {}: converting ({name}.{api_version}) to ({}.{}): unknown conversion",
            kind.kind, kind.kind, kind.version
        )));
    }
    let namespace = text("/metadata/namespace");
    if !namespace.is_empty() && namespace != call.namespace {
        return Err(Failure::bad_request(format!(
            "the namespace of the provided object does not match the namespace sent on the request ({namespace} != {})",
            call.namespace
        )));
    }
    Ok(())
}

/// Creates an object whose fields belong to `managed`, or else to the caller by update.
pub(super) fn insert(
    state: &mut State,
    call: &Call<'_>,
    mut object: Value,
    managed: Option<Managed>,
) -> Result<Arc<Value>, Failure> {
    let kind = call.kind;
    if !object["metadata"].is_object() {
        object["metadata"] = json!({});
    }
    object["apiVersion"] = json!(kind.api_version());
    object["kind"] = json!(kind.kind);
    let generated = object["metadata"]["generateName"].as_str().map(str::to_owned);
    if object["metadata"]["name"].as_str().unwrap_or_default().is_empty()
        && let Some(prefix) = generated.filter(|prefix| !prefix.is_empty())
    {
        // Cut so that the suffix fits.
        let prefix: String = prefix.chars().take(58).collect();
        object["metadata"]["name"] = json!(format!("{prefix}{}", state.suffix()));
    }
    let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let metadata = &mut object["metadata"];
    if let Some(fields) = metadata.as_object_mut() {
        for field in [
            "deletionTimestamp",
            "deletionGracePeriodSeconds",
            "generation",
            "resourceVersion",
            "selfLink",
            "managedFields",
        ] {
            fields.remove(field);
        }
        fields.retain(|_, value| !value.is_null());
    }
    metadata["uid"] = json!(state.uid(&call.key(&name)));
    metadata["creationTimestamp"] = json!(seconds(call.now));
    if kind.namespaced {
        metadata["namespace"] = json!(call.namespace);
        check_namespace(state, call, &name)?;
    }
    if kind.status
        && let Some(fields) = object.as_object_mut()
    {
        fields.remove("status");
    }
    admission::normalise(kind, &mut object)?;
    if kind.generation != Generation::None {
        object["metadata"]["generation"] = json!(1);
    }
    allocate(state, call, &mut object);
    let causes = admission::check(kind, &object, None);
    if !causes.is_empty() {
        return Err(Failure::invalid(kind, &name, &causes));
    }
    if let Some(sentence) = state.refusal(call.id, &object) {
        return Err(Failure::forbidden(kind, &name, &sentence));
    }
    if state.store.get(&call.key(&name)).is_some() {
        return Err(Failure::already_exists(kind, &name));
    }
    let reset = update::reset_fields(kind, super::Part::Main);
    let mut nothing = json!({"apiVersion": kind.api_version(), "kind": kind.kind});
    // Its Go type has this even when nobody has said anything.
    if kind.is("apps", "ControllerRevision") {
        nothing["revision"] = json!(0);
    }
    let managed = match managed {
        Some(managed) => managed,
        None => Managed::default().update((&nothing, &object), &call.writer, reset, Type::of(kind), call.now),
    };
    managed.store(&mut object);
    call.stamp(state, &mut object);
    Ok(call.commit(state, &name, object))
}

fn check_namespace(state: &State, call: &Call<'_>, name: &str) -> Result<(), Failure> {
    let registry = state.registry.clone();
    let Some(id) = registry.by_plural("", "v1", "namespaces") else {
        return Ok(());
    };
    let key = Key {
        kind: id,
        namespace: String::new(),
        name: call.namespace.clone(),
    };
    match state.store.get(&key) {
        None => Err(Failure::not_found(registry.get(id), &call.namespace)),
        Some(namespace) if namespace["metadata"]["deletionTimestamp"].is_string() => {
            Err(Failure::terminating(call.kind, name, &call.namespace))
        }
        Some(_) => Ok(()),
    }
}

/// What the server chooses for new objects.
fn allocate(state: &mut State, call: &Call<'_>, object: &mut Value) {
    if call.kind.is("", "Service") && object["spec"]["type"] != "ExternalName" {
        if object["spec"]["clusterIP"]
            .as_str()
            .unwrap_or_default()
            .is_empty()
        {
            object["spec"]["clusterIP"] = json!(state.address());
        }
        let address = object["spec"]["clusterIP"].clone();
        object["spec"]["clusterIPs"] = json!([address]);
    }
    if call.kind.is("", "Pod") {
        object["status"] = json!({"phase": "Pending", "qosClass": "Burstable"});
        if object["spec"]["serviceAccountName"].is_null() {
            object["spec"]["serviceAccountName"] = json!("default");
            object["spec"]["serviceAccount"] = json!("default");
        }
    }
}
