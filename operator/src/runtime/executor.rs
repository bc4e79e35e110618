//! Carries [`Action`]s out: in order, on the leader only, and only what differs.

use flotilla_core::seeded::{self, Bug};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::{DeleteParams, DynamicObject, Patch, PatchParams, PostParams, Preconditions};
use kube::core::ApiResource;
use kube::{Api, Client};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tracing::info;

use super::action::{Action, Applied, Child, Outcome, Ownership, Target, field_manager};
use super::cache::Cached;
use super::client::CALL_TIMEOUT;
use super::errors::Error;
use super::gate::{Mark, ResourceVersion};
use super::key::Key;
use super::subset::is_subset;
use super::visit::Visit;

/// Annotation with a hash of what was applied last: a field that is wanted no more makes it differ.
pub const APPLIED_HASH: &str = "flotilla.dev/applied-hash";
const MANAGED_BY: &str = "app.kubernetes.io/managed-by";

/// An API for one kind where the object lives.
pub(super) fn dynamic_api(client: &Client, resource: &ApiResource, key: &Key) -> Api<DynamicObject> {
    if key.namespace.is_empty() {
        Api::all_with(client.clone(), resource)
    } else {
        Api::namespaced_with(client.clone(), &key.namespace, resource)
    }
}

/// The child as kube's untyped object.
pub(super) fn dynamic_object(child: &Child) -> Result<DynamicObject, Error> {
    serde_json::from_value(child.object.clone()).map_err(|error| {
        Error::Bug(format!(
            "{} {} is no object: {error}",
            child.resource.kind, child.key
        ))
    })
}

pub(super) async fn execute(visit: &Visit, actions: Vec<Action>) -> Result<Applied, Error> {
    let mut outcomes = Vec::with_capacity(actions.len());
    for action in actions {
        let outcome = match action {
            Action::Apply(child) => apply(visit, &child).await?,
            Action::Create(child) => create(visit, &child).await?,
            Action::Scale { target, replicas } => {
                merge(visit, &target, json!({"spec": {"replicas": replicas}}), true).await?
            }
            Action::Patch {
                target,
                patch,
                precondition,
            } => merge(visit, &target, patch, precondition).await?,
            Action::Delete { target, precondition } => delete(visit, &target, precondition).await?,
            Action::Event(note) => {
                visit.note(note);
                Outcome::Noted
            }
        };
        outcomes.push(outcome);
    }
    Ok(Applied(outcomes))
}

async fn apply(visit: &Visit, child: &Child) -> Result<Outcome, Error> {
    let cache = cache_of(visit, &child.resource)?;
    let mut desired = with_hash(child);
    match cache.cached(&child.key) {
        Some(cached) => {
            check_ours(child, &cached.metadata)?;
            if is_subset(&desired, &cached.value) && !seeded::has(Bug::AlwaysApply) {
                return Ok(Outcome::Unchanged);
            }
            // Never bring a deleted object back to life: without the object, a UID makes the server refuse.
            set(&mut desired, &["metadata", "uid"], json!(cached.metadata.uid));
        }
        None => {
            // The cache may select by labels, so "absent" can mean "somebody else's". Force would take it over.
            if let Some(metadata) = live_metadata(visit, &child.resource, &child.key).await? {
                check_ours(child, &metadata)?;
            }
        }
    }
    visit.context.leadership.permit(CALL_TIMEOUT)?;
    let params = PatchParams::apply(&child.field_manager()).force();
    let action = || format!("apply {} {}", child.resource.kind, child.key);
    let answer = dynamic_api(&visit.context.client, &child.resource, &child.key)
        .patch_metadata(&child.key.name, &params, &Patch::Apply(&desired))
        .await
        .map_err(|error| Error::from_kube(action(), error))?;
    info!(kind = child.resource.kind, object = %child.key, "applied");
    Ok(written(visit, &child.resource, &child.key, answer.metadata))
}

async fn create(visit: &Visit, child: &Child) -> Result<Outcome, Error> {
    let cache = cache_of(visit, &child.resource)?;
    if let Some(metadata) = cache.metadata(&child.key) {
        check_ours(child, &metadata)?;
        return Ok(Outcome::Unchanged);
    }
    visit.context.leadership.permit(CALL_TIMEOUT)?;
    let params = PostParams {
        dry_run: false,
        field_manager: Some(child.field_manager()),
    };
    let api = dynamic_api(&visit.context.client, &child.resource, &child.key);
    let action = || format!("create {} {}", child.resource.kind, child.key);
    match api
        .create(&params, &dynamic_object(child)?)
        .await
        .map_err(|error| Error::from_kube(action(), error))
    {
        Ok(object) => {
            info!(kind = child.resource.kind, object = %child.key, "created");
            Ok(written(visit, &child.resource, &child.key, object.metadata))
        }
        // An earlier try whose answer was lost, or somebody else's.
        Err(Error::Refused { code: 409, .. }) => {
            match live_metadata(visit, &child.resource, &child.key).await? {
                Some(metadata) => {
                    check_ours(child, &metadata)?;
                    Ok(written(visit, &child.resource, &child.key, metadata))
                }
                None => Err(Error::Conflict { action: action() }),
            }
        }
        Err(error) => Err(error),
    }
}

async fn merge(visit: &Visit, target: &Target, patch: Value, precondition: bool) -> Result<Outcome, Error> {
    let cache = cache_of(visit, &target.resource)?;
    let action = || format!("update {} {}", target.resource.kind, target.key);
    match cache.cached(&target.key) {
        Some(Cached { metadata, value }) if metadata.uid.as_ref() == Some(&target.uid) => {
            let mut merged = value.clone();
            json_merge(&mut merged, &patch);
            if merged == value {
                return Ok(Outcome::Unchanged);
            }
        }
        _ => return Err(Error::Conflict { action: action() }),
    }
    visit.context.leadership.permit(CALL_TIMEOUT)?;
    let mut body = patch;
    set(&mut body, &["metadata", "uid"], json!(target.uid));
    if precondition {
        set(
            &mut body,
            &["metadata", "resourceVersion"],
            json!(target.resource_version),
        );
    }
    let params = PatchParams {
        field_manager: Some(field_manager(&target.resource)),
        ..PatchParams::default()
    };
    let answer = dynamic_api(&visit.context.client, &target.resource, &target.key)
        .patch_metadata(&target.key.name, &params, &Patch::Merge(&body))
        .await
        .map_err(|error| match Error::from_kube(action(), error) {
            // It went away since the plan was made.
            Error::Refused {
                action, code: 404, ..
            } => Error::Conflict { action },
            error => error,
        })?;
    info!(kind = target.resource.kind, object = %target.key, "updated");
    Ok(written(visit, &target.resource, &target.key, answer.metadata))
}

async fn delete(visit: &Visit, target: &Target, precondition: bool) -> Result<Outcome, Error> {
    let cache = cache_of(visit, &target.resource)?;
    let seen = cache
        .metadata(&target.key)
        .filter(|metadata| metadata.uid.as_ref() == Some(&target.uid));
    if seen.is_none_or(|metadata| metadata.deletion_timestamp.is_some()) {
        return Ok(Outcome::Unchanged);
    }
    visit.context.leadership.permit(CALL_TIMEOUT)?;
    let params = DeleteParams::background().preconditions(Preconditions {
        uid: Some(target.uid.clone()),
        resource_version: precondition.then(|| target.resource_version.clone()),
    });
    let action = || format!("delete {} {}", target.resource.kind, target.key);
    let api = dynamic_api(&visit.context.client, &target.resource, &target.key);
    match api
        .delete(&target.key.name, &params)
        .await
        .map_err(|error| Error::from_kube(action(), error))
    {
        Ok(_) => info!(kind = target.resource.kind, object = %target.key, "deleted"),
        Err(error) if error.is_not_found() => {}
        Err(error) => return Err(error),
    }
    record(
        visit,
        &target.resource,
        &target.key,
        Mark::Deleted {
            uid: target.uid.clone(),
        },
    );
    Ok(Outcome::Deleted)
}

// === helpers ===

fn cache_of(
    visit: &Visit,
    resource: &ApiResource,
) -> Result<std::sync::Arc<dyn super::cache::AnyCache>, Error> {
    let cache = visit.context.gate.cache(resource);
    cache.ok_or_else(|| {
        Error::Bug(format!(
            "{} is written but not watched: add its cache",
            resource.kind
        ))
    })
}

async fn live_metadata(
    visit: &Visit,
    resource: &ApiResource,
    key: &Key,
) -> Result<Option<ObjectMeta>, Error> {
    let read = dynamic_api(&visit.context.client, resource, key)
        .get_metadata_opt(&key.name)
        .await;
    let read = read.map_err(|error| Error::from_kube(format!("read {} {key}", resource.kind), error))?;
    Ok(read.map(|object| object.metadata))
}

/// Whether an existing object is the child we mean.
///
/// # Errors
/// [`Error::NameTaken`], [`Error::BeingCollected`]; [`Error::Bug`] when the child names no controller.
pub(super) fn check_ours(child: &Child, existing: &ObjectMeta) -> Result<(), Error> {
    let kind = || child.resource.kind.clone();
    let name = || child.key.name.clone();
    let being_collected = || Error::BeingCollected {
        kind: kind(),
        name: name(),
    };
    let controller = controller_of(existing.owner_references.as_deref().unwrap_or_default());
    let taken = || Error::NameTaken {
        kind: kind(),
        name: name(),
        owner: controller.map_or("nobody".into(), |owner| format!("{} {}", owner.kind, owner.name)),
    };
    match child.ownership {
        Ownership::Shared => {
            let labels = existing.labels.as_ref();
            if labels
                .and_then(|labels| labels.get(MANAGED_BY))
                .is_none_or(|manager| manager != "flotilla")
            {
                return Err(taken());
            }
        }
        Ownership::Controller => {
            let wanted = wanted_controller(child)?;
            match controller {
                Some(found) if found.uid == wanted.uid => {}
                Some(found) if found.kind == wanted.kind && found.name == wanted.name => {
                    return Err(being_collected());
                }
                _ => return Err(taken()),
            }
        }
    }
    if existing.deletion_timestamp.is_some() {
        Err(being_collected())
    } else {
        Ok(())
    }
}

fn controller_of(owners: &[OwnerReference]) -> Option<&OwnerReference> {
    owners.iter().find(|owner| owner.controller == Some(true))
}

fn wanted_controller(child: &Child) -> Result<OwnerReference, Error> {
    let owners = child
        .object
        .pointer("/metadata/ownerReferences")
        .cloned()
        .unwrap_or_default();
    let owners: Vec<OwnerReference> = serde_json::from_value(owners).unwrap_or_default();
    controller_of(&owners).cloned().ok_or_else(|| {
        Error::Bug(format!(
            "{} {} is written without a controller reference",
            child.resource.kind, child.key
        ))
    })
}

fn written(visit: &Visit, resource: &ApiResource, key: &Key, metadata: ObjectMeta) -> Outcome {
    record(
        visit,
        resource,
        key,
        Mark::Written {
            version: ResourceVersion::of(&metadata),
        },
    );
    Outcome::Written {
        resource_version: metadata.resource_version.unwrap_or_default(),
    }
}

pub(super) fn record(visit: &Visit, resource: &ApiResource, key: &Key, mark: Mark) {
    visit
        .context
        .gate
        .record((visit.controller, &visit.key), resource, key, mark);
}

/// The desired object with the hash of itself.
fn with_hash(child: &Child) -> Value {
    // serde_json's maps are sorted, so equal objects have equal text.
    let digest = Sha256::digest(child.object.to_string());
    let hash = digest
        .iter()
        .take(8)
        .map(|byte| format!("{byte:02x}"))
        .collect::<String>();
    let mut desired = child.object.clone();
    set(
        &mut desired,
        &["metadata", "annotations", APPLIED_HASH],
        json!(hash),
    );
    desired
}

/// Sets a member, making the objects on the way.
fn set(value: &mut Value, path: &[&str], member: Value) {
    let Some((first, rest)) = path.split_first() else {
        *value = member;
        return;
    };
    if !value.is_object() {
        *value = json!({});
    }
    if let Value::Object(fields) = value {
        set(fields.entry(*first).or_insert(Value::Null), rest, member);
    }
}

/// RFC 7396, except that a patch never leaves an empty object behind where there was nothing.
fn json_merge(value: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *value = patch.clone();
        return;
    };
    if !value.is_object() {
        *value = json!({});
    }
    let Value::Object(fields) = value else { return };
    for (key, member) in patch {
        match member {
            Value::Null => {
                fields.remove(key);
            }
            Value::Object(inner) if !fields.contains_key(key) && inner.values().all(Value::is_null) => {}
            member => json_merge(fields.entry(key.clone()).or_insert(Value::Null), member),
        }
    }
}

#[cfg(test)]
mod tests;
