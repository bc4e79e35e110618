//! What happens to an object between the wire and the store: typing, pruning, defaults, checks.

use k8s_openapi::api::apps::v1::{ControllerRevision, Deployment, ReplicaSet};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Event, Namespace, Pod, Secret, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use super::{defaults, immutable, names};
use crate::api::failure::{Cause, Failure};
use crate::kinds::Kind;

/// Types an object, drops what its kind does not know, and fills defaults in.
///
/// # Errors
/// 400 for a member of the wrong type.
pub fn normalise(kind: &Kind, object: &mut Value) -> Result<(), Failure> {
    let mistyped = |error: serde_json::Error| {
        Failure::bad_request(format!(
            "{} in version {:?} cannot be handled as a {}: json: {error}",
            kind.kind, kind.version, kind.kind
        ))
    };
    match &kind.custom {
        Some(custom) => {
            let metadata = object
                .get("metadata")
                .cloned()
                .unwrap_or_else(|| Value::Object(serde_json::Map::new()));
            object["metadata"] = retype::<ObjectMeta>(&metadata).map_err(mistyped)?;
            custom.normalise(object);
        }
        None => {
            *object = typed(kind, object).map_err(mistyped)?;
            defaults::fill(kind, object);
        }
    }
    Ok(())
}

/// What is wrong with an object that is new or replaces `old`.
pub fn check(kind: &Kind, object: &Value, old: Option<&Value>) -> Vec<Cause> {
    let mut causes = if old.is_none() {
        names::check(kind, object)
    } else {
        let mut causes = names::check(kind, object);
        causes.retain(|cause| cause.field != "metadata.name");
        causes
    };
    match &kind.custom {
        Some(custom) => causes.extend(custom.check(object, old)),
        None => causes.extend(immutable::check(kind, object, old)),
    }
    causes
}

fn retype<T: Serialize + DeserializeOwned>(object: &Value) -> Result<Value, serde_json::Error> {
    serde_json::to_value(T::deserialize(object)?)
}

/// An object without what its kind does not know.
fn typed(kind: &Kind, object: &Value) -> Result<Value, serde_json::Error> {
    match (kind.group.as_str(), kind.kind.as_str()) {
        ("", "Namespace") => retype::<Namespace>(object),
        ("", "Pod") => retype::<Pod>(object),
        ("", "Service") => retype::<Service>(object),
        ("", "ConfigMap") => retype::<ConfigMap>(object),
        ("", "Secret") => retype::<Secret>(object),
        ("", "ServiceAccount") => retype::<ServiceAccount>(object),
        ("", "Event") => retype::<Event>(object),
        ("apps", "ReplicaSet") => retype::<ReplicaSet>(object),
        ("apps", "Deployment") => retype::<Deployment>(object),
        ("apps", "ControllerRevision") => retype::<ControllerRevision>(object),
        ("batch", "Job") => retype::<Job>(object),
        ("policy", _) => retype::<PodDisruptionBudget>(object),
        ("rbac.authorization.k8s.io", "Role") => retype::<Role>(object),
        ("rbac.authorization.k8s.io", _) => retype::<RoleBinding>(object),
        ("coordination.k8s.io", _) => retype::<Lease>(object),
        ("discovery.k8s.io", _) => retype::<EndpointSlice>(object),
        _ => Ok(object.clone()),
    }
}
