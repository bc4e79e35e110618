//! `status` of an AgentPool.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use crate::common::LocalRef;
use crate::plan::ReleasePlan;
use crate::release_test::TestStatus;

/// What is observed of an AgentPool.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct AgentPoolStatus {
    /// conditions: Ready (the spec is fully in force), Available (what serves has its capacity), Reconciling, Stalled,
    /// Baking (a new revision has all the traffic and is still judged).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "crate::schema::conditions")]
    pub conditions: Vec<Condition>,
    /// observedGeneration is the generation of the spec this status speaks of; -1 before the first visit.
    #[serde(default = "unseen")]
    #[schemars(range(min = -1))]
    pub observed_generation: i64,
    /// replicas of the stable revision that exist.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub replicas: Option<i32>,
    /// selector of the stable revision's pods, for a HorizontalPodAutoscaler.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub selector: Option<String>,
    /// ready replicas of those wanted, for example `4/4`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub ready: Option<String>,
    /// stable is the revision that serves and to which a stopped release returns.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stable: Option<StableStatus>,
    /// candidate is the revision being released, while there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub candidate: Option<CandidateStatus>,
    /// gatewayPort is the port of the gateway pods on which this pool is served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub gateway_port: Option<i32>,
    /// trafficGeneration counts the changes of `traffic`; gateways report which one they have applied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub traffic_generation: Option<i64>,
    /// traffic is the share of new requests each revision gets, in percent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["revision".into()]))]
    pub traffic: Vec<TrafficShare>,
    /// rollout tells where a release stands and what it waits for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<RolloutStatus>,
    /// rejected are revisions that were stopped, newest first; they are not released again without a Retry.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["revision".into()]))]
    pub rejected: Vec<RejectedRevision>,
    /// lastRelease is the newest release that has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_release: Option<LastRelease>,
    /// lastAction is the newest RolloutAction and its result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_action: Option<LastAction>,
    /// plan is what the release of a changed spec would do, while the annotation `flotilla.dev/dry-run: "true"` holds it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<ReleasePlan>,
    /// restart is a rolling replacement of the stable revision's pods, while one is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart: Option<RestartStatus>,
}

/// The revision that serves.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct StableStatus {
    /// revision is its name, `<pool>-<hash>`.
    #[schemars(length(min = 1, max = 63))]
    pub revision: String,
    /// replicas that exist.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub replicas: i32,
    /// readyReplicas that pass their readiness probe.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub ready_replicas: i32,
}

/// The revision being released.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct CandidateStatus {
    /// revision is its name, `<pool>-<hash>`.
    #[schemars(length(min = 1, max = 63))]
    pub revision: String,
    /// attempt counts the releases of this revision; a Retry makes it one more.
    #[serde(default = "one")]
    #[schemars(range(min = 1))]
    pub attempt: i32,
    /// weight is the share of new requests it gets, in percent.
    #[serde(default)]
    #[schemars(range(min = 0, max = 100))]
    pub weight: i32,
    /// replicas that exist.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub replicas: i32,
    /// readyReplicas that pass their readiness probe.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub ready_replicas: i32,
}

/// One revision's share of new requests.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct TrafficShare {
    /// revision is its name, `<pool>-<hash>`.
    #[schemars(length(min = 1, max = 63))]
    pub revision: String,
    /// weight in percent; the weights of a pool add up to 100. A revision that is listed at 0 keeps the conversations it
    /// has; those of one that is not listed move to another.
    #[schemars(range(min = 0, max = 100))]
    pub weight: i32,
    /// sinceGeneration is the trafficGeneration with which it got its first weight since it is listed. Conversations from
    /// before are of an earlier attempt and move; on a candidate it tells from when on conversations are compared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub since_generation: Option<i64>,
    /// preview is true on the revision that gets the requests of `rollout.preview`, whatever its weight.
    #[serde(default, skip_serializing_if = "is_false")]
    pub preview: bool,
    /// drainDeadlineTime is when the conversations of a revision that is listed at 0 only for them move at the latest
    /// (`sessions.maxDrainSeconds`). It goes earlier when the last of them has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain_deadline_time: Option<Time>,
}

/// Where a release stands.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct RolloutStatus {
    /// startTime of this attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_time: Option<Time>,
    /// progressTime is when the release last moved on; `progressDeadlineSeconds` counts from here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress_time: Option<Time>,
    /// waitingFor says what has to happen next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting_for: Option<WaitingFor>,
    /// step is the one the new revision has reached; absent on the way to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<StepStatus>,
    /// measuredWeightPercent is the new revision's share of the requests that were counted at this step; with traffic.type
    /// ReplicaRatio, of the ready replicas: the weight that it has in truth.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 8))]
    pub measured_weight_percent: Option<String>,
    /// topUpRef names the LoadTest that sends synthetic requests, while one does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_up_ref: Option<LocalRef>,
    /// tests of the new revision at this step, in the order of `smokeTests`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub tests: Vec<TestStatus>,
    /// metrics by which the new revision is judged at this step.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub metrics: Vec<MetricStatus>,
}

/// The step a new revision has reached.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct StepStatus {
    /// index of the step, from 0; the number of steps once all the traffic is there.
    #[schemars(range(min = 0))]
    pub index: i32,
    /// weight of the step, in percent.
    #[schemars(range(min = 0, max = 100))]
    pub weight: i32,
    /// startTime is when every gateway had applied the weight.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_time: Option<Time>,
}

/// One metric of a release.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct MetricStatus {
    /// name of the metric, for example `errors`.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// verdict: Advance, Continue, Rollback, NoData or CommonMode (the old revision fails, too).
    #[schemars(length(min = 1, max = 32))]
    pub verdict: String,
    /// advancePercent is the evidence for going on, of what is needed.
    #[schemars(range(min = 0, max = 100))]
    pub advance_percent: i32,
    /// rollbackPercent is the evidence of harm, of what leads back.
    #[schemars(range(min = 0, max = 100))]
    pub rollback_percent: i32,
    /// candidate has the new revision's counts at this step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub candidate: Option<CountStatus>,
    /// stable has the old revision's counts at this step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stable: Option<CountStatus>,
}

/// Counts of one revision.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct CountStatus {
    /// requests that were counted.
    #[schemars(range(min = 0))]
    pub requests: i64,
    /// events among them: failed requests, or those above the lowest threshold.
    #[schemars(range(min = 0))]
    pub events: i64,
}

/// What a release waits for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct WaitingFor {
    /// reason in one word, for example `CandidateAvailable`.
    #[schemars(length(min = 1, max = 64))]
    pub reason: String,
    /// message in one sentence.
    #[serde(default)]
    #[schemars(length(max = 1024))]
    pub message: String,
    /// deadlineTime when the wait ends by itself, or is given up or reported as stalled; absent when it waits for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_time: Option<Time>,
}

/// A revision that was stopped.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct RejectedRevision {
    /// revision is its name, `<pool>-<hash>`.
    #[schemars(length(min = 1, max = 63))]
    pub revision: String,
    /// reason in one word, for example `CrashLoop`.
    #[schemars(length(min = 1, max = 64))]
    pub reason: String,
    /// message in one sentence.
    #[serde(default)]
    #[schemars(length(max = 1024))]
    pub message: String,
    /// time at which it was stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<Time>,
}

/// A release that has ended.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct LastRelease {
    /// revision that was released.
    #[schemars(length(min = 1, max = 63))]
    pub revision: String,
    /// attempt to release it, from 1.
    #[serde(default = "one")]
    #[schemars(range(min = 1))]
    pub attempt: i32,
    /// result is Promoted (it serves), Stopped (see `rejected`) or Superseded (the spec named another revision meanwhile).
    #[schemars(length(min = 1, max = 32))]
    pub result: String,
    /// startTime is when it became the candidate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_time: Option<Time>,
    /// completionTime is when that ended; what lies between includes pauses and approvals.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completion_time: Option<Time>,
}

/// The newest command to this pool.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct LastAction {
    /// name of the RolloutAction.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// type of the RolloutAction, for example `Restart`.
    #[serde(rename = "type")]
    #[schemars(length(min = 1, max = 32))]
    pub type_: String,
    /// result is Applied or Rejected.
    #[schemars(length(min = 1, max = 32))]
    pub result: String,
    /// time at which it was decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<Time>,
}

/// A rolling replacement of pods.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct RestartStatus {
    /// time of the command: pods made before it are replaced.
    pub time: Option<Time>,
    /// replaced pods so far, of those that existed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub replaced: Option<String>,
}

fn is_false(value: &bool) -> bool {
    !value
}

fn one() -> i32 {
    1
}

fn unseen() -> i64 {
    -1
}
