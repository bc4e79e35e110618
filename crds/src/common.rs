//! Pieces that several kinds share.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// Condition types, as kstatus reads them where it knows them.
pub mod condition {
    /// The spec is fully in force.
    pub const READY: &str = "Ready";
    /// What serves now has its capacity.
    pub const AVAILABLE: &str = "Available";
    /// Work towards the spec is under way.
    pub const RECONCILING: &str = "Reconciling";
    /// Work towards the spec has stopped and needs somebody.
    pub const STALLED: &str = "Stalled";
    /// Requests to a ModelProvider wait for one of its quotas.
    pub const QUOTA_EXHAUSTED: &str = "QuotaExhausted";
    /// A new revision has all the traffic and is still judged.
    pub const BAKING: &str = "Baking";
    /// 80, 90 or 100 % of a provider's budget are spent.
    pub const BUDGET_ALERT: &str = "BudgetAlert";
    /// A LoadTest has ended, whatever its verdict.
    pub const COMPLETE: &str = "Complete";
    /// A LoadTest's verdict as a gate.
    pub const SUCCEEDED: &str = "Succeeded";
}

/// A reference by name inside the same namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct LocalRef {
    /// name of the object in this namespace, for example `main`.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// One key of a ConfigMap in the same namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ConfigMapKeyRef {
    /// name of the ConfigMap in this namespace.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// key inside the ConfigMap, for example `prompt.md`.
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

/// One key of a Secret in the same namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretKeyRef {
    /// name of the Secret in this namespace.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// key inside the Secret, for example `api-key`.
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

/// The condition of `kind` in `conditions`, if it is there.
pub fn find<'a>(conditions: &'a [Condition], kind: &str) -> Option<&'a Condition> {
    conditions.iter().find(|c| c.type_ == kind)
}

/// True when the condition of `kind` is there with status `True`.
pub fn is_true(conditions: &[Condition], kind: &str) -> bool {
    find(conditions, kind).is_some_and(|c| c.status == "True")
}
