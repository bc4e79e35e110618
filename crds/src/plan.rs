//! `status.plan` of an AgentPool: what a release would do, while the annotation `flotilla.dev/dry-run` holds it.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// What a release would do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReleasePlan {
    /// revision that would be released, `<pool>-<hash>`.
    #[schemars(length(min = 1, max = 63))]
    pub revision: String,
    /// from is the revision that serves; absent for the first one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub from: Option<String>,
    /// changes are the fields that differ between the two, for example `spec.agent.image`; `content of prompt` means the bytes
    /// of a ConfigMap that is referred to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 256)))]
    pub changes: Vec<String>,
    /// objects that would be created at its begin, as `<Kind> <name>`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(max = 320)))]
    pub objects: Vec<String>,
    /// steps of the release in their order; the last one has all the traffic.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 24))]
    pub steps: Vec<PlannedStep>,
    /// message sums it up in one sentence.
    #[serde(default)]
    #[schemars(length(max = 1024))]
    pub message: String,
}

/// One step of a release to come.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct PlannedStep {
    /// weight asked for, in percent; 0 for a blue-green release's replicas before the swap.
    #[schemars(range(min = 0, max = 100))]
    pub weight: i32,
    /// trueWeightPercent that the new revision has then: with traffic.type ReplicaRatio its part of the replicas.
    #[schemars(length(min = 1, max = 8))]
    pub true_weight_percent: String,
    /// candidateReplicas of the new revision.
    #[schemars(range(min = 0))]
    pub candidate_replicas: i32,
    /// stableReplicas of the old revision.
    #[schemars(range(min = 0))]
    pub stable_replicas: i32,
    /// expectedSeconds until the step is decided for a revision as good as the old one, at the traffic of now, or the least that
    /// it lasts; half of the releases take longer. Absent where no decision is in sight, or the traffic is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub expected_seconds: Option<i64>,
    /// approval is Manual where a person has to agree before the next step; absent otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    pub approval: Option<String>,
}
