//! One write to the API server, as data.
//!
//! A plan is a list of these. They are compared in tests, printed in logs, and carried out by
//! [`Visit::execute`](super::Visit::execute), which alone talks to the API server.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::{Resource, ResourceExt, core::ApiResource};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::events::Note;
use super::key::{Key, key_of, uid_of};

/// Prefix of our field managers; one manager per child kind, so that no two writers share fields.
pub const FIELD_MANAGER: &str = "flotilla";

/// How the executor knows that an existing object is ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ownership {
    /// Its controller owner reference is the desired one (same UID). The rule for everything that belongs to one
    /// object of ours.
    Controller,
    /// Its label `app.kubernetes.io/managed-by` is `flotilla`. The rule for objects several pools share (the gateway).
    Shared,
}

/// A child as it should be.
#[derive(Clone, Debug, PartialEq)]
pub struct Child {
    /// What kind it is.
    pub resource: ApiResource,
    /// Where it lives.
    pub key: Key,
    /// How to recognise it as ours.
    pub ownership: Ownership,
    /// The whole desired object as JSON, with `apiVersion` and `kind`.
    pub object: Value,
}

/// An existing object.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    /// What kind it is.
    pub resource: ApiResource,
    /// Where it lives.
    pub key: Key,
    /// Its UID: a later object of the same name is never touched.
    pub uid: String,
    /// The version the decision was taken on.
    pub resource_version: String,
}

/// One write.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Server-side apply, unless the cached object already has every desired field.
    Apply(Child),
    /// Create; an object of ours that is already there is left as it is.
    Create(Child),
    /// Sets `spec.replicas`, on the resourceVersion seen.
    Scale {
        /// What to scale.
        target: Target,
        /// The new size.
        replicas: i32,
    },
    /// JSON merge patch of single fields (labels, annotations, `spec.suspend` …), unless they are already so.
    Patch {
        /// What to patch.
        target: Target,
        /// The merge patch; `null` removes.
        patch: Value,
        /// Refuse when the object has changed since it was seen. Off for metadata nobody else writes.
        precondition: bool,
    },
    /// Deletes exactly the object seen (by UID), its dependents in the background.
    Delete {
        /// What to delete.
        target: Target,
        /// Refuse when the object has changed since it was seen.
        precondition: bool,
    },
    /// A Kubernetes Event on the visited object; sent only when all actions before it went through.
    Event(Note),
}

/// What became of one action.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// It was already so; nothing was sent.
    Unchanged,
    /// The object was made or changed, and is now at this resourceVersion.
    Written {
        /// `metadata.resourceVersion` of the answer.
        resource_version: String,
    },
    /// The object is gone, or will be when its finalizers are done.
    Deleted,
    /// The event was handed to the publisher.
    Noted,
}

/// The outcomes of a list of actions, in their order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Applied(pub Vec<Outcome>);

impl Applied {
    /// Whether anything was sent to the API server.
    pub fn changed(&self) -> bool {
        self.0
            .iter()
            .any(|outcome| matches!(outcome, Outcome::Written { .. } | Outcome::Deleted))
    }
}

impl Action {
    /// Applies a child that has one owner of ours. `object` is built from scratch, never from one that was read.
    pub fn apply<K: Resource<DynamicType = ()> + Serialize>(object: &K) -> Self {
        Self::Apply(Child::new(object, Ownership::Controller))
    }

    /// Applies an object that several of ours share.
    pub fn apply_shared<K: Resource<DynamicType = ()> + Serialize>(object: &K) -> Self {
        Self::Apply(Child::new(object, Ownership::Shared))
    }

    /// Creates a child that never changes, or whose only change is [`Action::scale`] or [`Action::patch`].
    pub fn create<K: Resource<DynamicType = ()> + Serialize>(object: &K) -> Self {
        Self::Create(Child::new(object, Ownership::Controller))
    }

    /// Sets `spec.replicas` of an object from a cache.
    pub fn scale<K: Resource<DynamicType = ()>>(seen: &K, replicas: i32) -> Self {
        Self::Scale {
            target: Target::of(seen),
            replicas,
        }
    }

    /// Merges `patch` into an object from a cache, whatever its version now.
    pub fn patch<K: Resource<DynamicType = ()>>(seen: &K, patch: Value) -> Self {
        Self::Patch {
            target: Target::of(seen),
            patch,
            precondition: false,
        }
    }

    /// Merges `patch` into an object from a cache, unless it has changed meanwhile.
    pub fn patch_exactly<K: Resource<DynamicType = ()>>(seen: &K, patch: Value) -> Self {
        Self::Patch {
            target: Target::of(seen),
            patch,
            precondition: true,
        }
    }

    /// Sets labels and annotations (a `None` removes) of an object from a cache.
    pub fn label<K: Resource<DynamicType = ()>>(
        seen: &K,
        labels: &[(&str, Option<&str>)],
        annotations: &[(&str, Option<&str>)],
    ) -> Self {
        let map = |pairs: &[(&str, Option<&str>)]| {
            pairs
                .iter()
                .map(|(key, value)| ((*key).to_owned(), json!(value)))
                .collect::<Map<_, _>>()
        };
        Self::patch(
            seen,
            json!({"metadata": {"labels": map(labels), "annotations": map(annotations)}}),
        )
    }

    /// Deletes an object from a cache.
    pub fn delete<K: Resource<DynamicType = ()>>(seen: &K) -> Self {
        Self::Delete {
            target: Target::of(seen),
            precondition: false,
        }
    }

    /// Deletes an object from a cache, unless it has changed meanwhile.
    pub fn delete_exactly<K: Resource<DynamicType = ()>>(seen: &K) -> Self {
        Self::Delete {
            target: Target::of(seen),
            precondition: true,
        }
    }

    /// An Event on the visited object.
    pub fn event(note: Note) -> Self {
        Self::Event(note)
    }
}

impl Child {
    /// The desired state of a typed object. Fields that only a server sets are left out.
    pub fn new<K: Resource<DynamicType = ()> + Serialize>(object: &K, ownership: Ownership) -> Self {
        let resource = ApiResource::erase::<K>(&());
        let mut value = serde_json::to_value(object).unwrap_or_default();
        if let Value::Object(fields) = &mut value {
            fields.insert("apiVersion".into(), json!(resource.api_version));
            fields.insert("kind".into(), json!(resource.kind));
            fields.remove("status");
            if let Some(Value::Object(metadata)) = fields.get_mut("metadata") {
                for server_set in [
                    "creationTimestamp",
                    "managedFields",
                    "resourceVersion",
                    "uid",
                    "generation",
                ] {
                    metadata.remove(server_set);
                }
            }
        }
        Self {
            resource,
            key: key_of(object),
            ownership,
            object: value,
        }
    }

    /// Our field manager for this kind, `flotilla/<kind in lower case>`.
    pub fn field_manager(&self) -> String {
        field_manager(&self.resource)
    }
}

impl Target {
    /// The identity of an object that came from the API server.
    pub fn of<K: Resource<DynamicType = ()>>(seen: &K) -> Self {
        Self {
            resource: ApiResource::erase::<K>(&()),
            key: key_of(seen),
            uid: uid_of(seen),
            resource_version: seen.resource_version().unwrap_or_default(),
        }
    }
}

/// Our field manager for a kind, `flotilla/<kind in lower case>`.
pub fn field_manager(resource: &ApiResource) -> String {
    format!("{FIELD_MANAGER}/{}", resource.kind.to_lowercase())
}

/// A controller owner reference to an object from the API server. `blockOwnerDeletion` is left out: it would need
/// the permission to update the owner's finalizers, and nothing here deletes in the foreground.
pub fn owned_by<K: Resource<DynamicType = ()>>(owner: &K) -> OwnerReference {
    OwnerReference {
        api_version: K::api_version(&()).into_owned(),
        kind: K::kind(&()).into_owned(),
        name: owner.name_any(),
        uid: uid_of(owner),
        controller: Some(true),
        block_owner_deletion: None,
    }
}
