//! What is observed of a [`LoadTest`](crate::LoadTest).

use crate::common::LocalRef;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What is observed of a LoadTest.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct LoadTestStatus {
    /// conditions: Ready, Reconciling, Stalled, Complete (ended, whatever the verdict), Succeeded (the verdict as a gate).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "crate::schema::conditions")]
    pub conditions: Vec<Condition>,
    /// observedGeneration is the generation of the spec this status speaks of; -1 before the first visit.
    #[serde(default = "unseen")]
    #[schemars(range(min = -1))]
    pub observed_generation: i64,
    /// verdict: Passed, Failed, Inconclusive (too few samples to say) or Invalid (the measurement itself cannot be
    /// trusted).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Verdict")]
    pub verdict: Option<Verdict>,
    /// startTime of the schedule, common to all workers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_time: Option<Time>,
    /// completionTime at which the result was judged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completion_time: Option<Time>,
    /// workload is the hash of everything that determines the requests; equal hashes mean comparable runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub workload: Option<String>,
    /// workers and what they covered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workers: Option<WorkersStatus>,
    /// progress of the run, refreshed at most every 10 seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<ProgressStatus>,
    /// summary of the merged result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub summary: Option<Summary>,
    /// thresholds and how each was judged.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub thresholds: Vec<ThresholdStatus>,
    /// resultRef names the ConfigMap with the mergeable histograms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result_ref: Option<LocalRef>,
}

/// A verdict on a run or a threshold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Verdict {
    /// Every threshold holds.
    Passed,
    /// A threshold does not hold.
    Failed,
    /// Too few samples to say.
    Inconclusive,
    /// The measurement itself cannot be trusted.
    Invalid,
}

/// The workers of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct WorkersStatus {
    /// desired worker pods.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub desired: i32,
    /// ready worker pods.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub ready: i32,
    /// succeeded worker pods: they left a result.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub succeeded: i32,
    /// startSkewMilliseconds is how far the workers' first starts were apart at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub start_skew_milliseconds: Option<i64>,
    /// coveragePercent of the planned requests that were started, as a decimal string.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    pub coverage_percent: Option<String>,
}

/// How far a run is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ProgressStatus {
    /// stage that runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 40))]
    pub stage: Option<String>,
    /// percent of the planned requests that have ended.
    #[serde(default)]
    #[schemars(range(min = 0, max = 100))]
    pub percent: i32,
    /// planned requests.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub planned: i64,
    /// started requests.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub started: i64,
    /// done requests, failed ones among them.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub done: i64,
    /// failed requests.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub failed: i64,
    /// inFlight requests at the last report.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub in_flight: i64,
    /// perSecond is the rate of starts since the last report, as a decimal string.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    pub per_second: Option<String>,
}

/// The merged result.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    /// requests counted; warm-up is not among them.
    #[serde(default)]
    pub requests: RequestCounts,
    /// errors by category.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["category".into()]))]
    pub errors: Vec<ErrorCount>,
    /// latency from the intended start of a request to its end; failed requests are in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency: Option<LatencySummary>,
    /// serviceTime from the sending of a request to its end: what the target took, without any queueing in front.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_time: Option<LatencySummary>,
    /// firstToken from the intended start to the first token (streams).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_token: Option<LatencySummary>,
    /// interTokenGap between two tokens (streams).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inter_token_gap: Option<LatencySummary>,
    /// tokens as reported by the target.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<TokenCounts>,
    /// cost of the tokens by the ModelProvider's prices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost: Option<Cost>,
}

/// Requests by outcome.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct RequestCounts {
    /// total requests started.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub total: i64,
    /// succeeded requests.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub succeeded: i64,
    /// failed requests.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub failed: i64,
}

/// Errors of one category.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ErrorCount {
    /// category of the error, for example `Timeout`.
    #[schemars(length(min = 1, max = 32))]
    pub category: String,
    /// count of such errors.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub count: i64,
}

/// Percentiles of one series, in milliseconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct LatencySummary {
    /// p50Milliseconds is the median.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub p50_milliseconds: i64,
    /// p90Milliseconds is the 90th percentile.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub p90_milliseconds: i64,
    /// p95Milliseconds is the 95th percentile.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub p95_milliseconds: i64,
    /// p99Milliseconds is the 99th percentile.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub p99_milliseconds: i64,
    /// maxMilliseconds is the largest value.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub max_milliseconds: i64,
}

/// Tokens used.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct TokenCounts {
    /// input tokens.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub input: i64,
    /// output tokens.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub output: i64,
}

/// Money spent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Cost {
    /// total as a decimal string, for example `"1.92"`.
    #[schemars(length(min = 1, max = 32))]
    pub total: String,
    /// currency of the total, for example `USD`.
    #[schemars(length(min = 3, max = 3))]
    pub currency: String,
}

/// One threshold, judged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ThresholdStatus {
    /// name of the threshold, for example `p95`.
    #[schemars(length(min = 1, max = 40))]
    pub name: String,
    /// verdict on this threshold.
    pub verdict: Verdict,
    /// observed value with its unit, for example `2480 ms`.
    #[serde(default)]
    #[schemars(length(max = 64))]
    pub observed: String,
    /// limit with its unit.
    #[serde(default)]
    #[schemars(length(max = 64))]
    pub limit: String,
    /// misses are samples on the wrong side of the limit.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub misses: i64,
    /// samples judged.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub samples: i64,
    /// message in one sentence; for Inconclusive it says how many further samples are needed.
    #[serde(default)]
    #[schemars(length(max = 1024))]
    pub message: String,
}

fn unseen() -> i64 {
    -1
}
