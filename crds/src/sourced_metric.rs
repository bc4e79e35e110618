//! `spec.rollout.analysis.metrics` of an AgentPool: metrics whose numbers come from elsewhere than the gateways.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::rollout::AnalysisMode;
use crate::rules;

/// A metric whose numbers come from another source than the gateways.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[x_kube(
    validation = rules::one_of("metrics", &["counts", "threshold"])
)]
#[serde(rename_all = "camelCase")]
pub struct SourcedMetric {
    /// name of the metric, for example `checkouts`.
    #[schemars(length(min = 1, max = 40))]
    #[x_kube(
        validation = rules::entry_name(),
        validation = Rule::new("!(self in ['errors', 'latency', 'firstByte'])")
            .message("errors, latency and firstByte are what the gateways count; choose another name")
    )]
    pub name: String,
    /// mode is Enforce, or Observe: then the metric is judged and shown, and decides nothing. Default Enforce.
    #[serde(default)]
    pub mode: AnalysisMode,
    /// source of the numbers.
    pub source: MetricSource,
    /// counts of both revisions that are compared, as the gateways' own are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counts: Option<CountedMetric>,
    /// threshold that one value must keep. It knows no sample size and gives no guarantee: of good releases some are led back,
    /// of bad ones some pass.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threshold: Option<ThresholdMetric>,
}

/// Where numbers come from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct MetricSource {
    /// type of source: Prometheus is asked by its query API, JSON by an address that answers with a JSON document.
    #[serde(rename = "type")]
    pub type_: SourceType,
    /// name of the source, one of those that whoever runs the operator has allowed (`--metric-source`), for example `main`.
    #[schemars(length(min = 1, max = 40))]
    #[x_kube(validation = rules::entry_name())]
    pub name: String,
}

/// The types of source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum SourceType {
    /// Prometheus' query API.
    Prometheus,
    /// A JSON document.
    JSON,
}

/// Counters of both revisions. Each text is asked once per revision and 15 seconds, `{{revision}}` in it being the revision's
/// name, `{{pool}}` and `{{namespace}}` the pool's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[x_kube(
    validation = Rule::new("self.requests.contains('{{revision}}') && self.events.contains('{{revision}}')")
        .message("counts: requests and events must contain {{revision}}, or both revisions would have the same numbers"),
    validation = Rule::new("self.events.contains('{{threshold}}') == has(self.thresholds) && !self.requests.contains('{{threshold}}')")
        .message("counts: with thresholds, events (and not requests) must contain {{threshold}}; without, neither may")
)]
#[serde(rename_all = "camelCase")]
pub struct CountedMetric {
    /// requests is what asks for the number of requests or tasks so far, a counter that only rises; for Prometheus a query such
    /// as `sum(checkouts_total{revision="{{revision}}"})`, for JSON a path and a pointer such as
    /// `/stats/{{revision}}#/checkouts`.
    #[schemars(length(min = 1, max = 2048))]
    pub requests: String,
    /// events is what asks for the number of bad ones among them so far, such as
    /// `sum(checkout_failures_total{revision="{{revision}}"})`.
    #[schemars(length(min = 1, max = 2048))]
    pub events: String,
    /// thresholds above which requests or tasks are counted, as rising decimal strings, for example `["2000", "8000", "32000"]`
    /// tokens or `["0.05", "0.5"]` of cost: a few around what is usual, so that a shift of the body and one of the tail are both
    /// seen. events is asked once for each, `{{threshold}}` in it being the text as it stands here: for Prometheus
    /// `sum(task_tokens_count{revision="{{revision}}"}) - sum(task_tokens_bucket{revision="{{revision}}",le="{{threshold}}"})`,
    /// for JSON `/stats/{{revision}}#/tokens/above/{{threshold}}`. Default: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 8), inner(length(min = 1, max = 19)))]
    #[x_kube(
        merge_strategy = ListMerge::Atomic,
        validation = rules::thresholds()
    )]
    pub thresholds: Vec<String>,
    /// tolerateWorsePercent: a revision that is worse by so much than the old one is still good. Default 20; write 5 for
    /// thresholds that many exceed, as latency has it.
    #[serde(default = "twenty")]
    #[schemars(range(min = 0, max = 1000))]
    pub tolerate_worse_percent: i32,
    /// acceptablePercent of events (above each threshold) that is good enough whatever the old revision's is, for example `"1"`;
    /// `"0"` is none: then only the comparison counts, and where there are no events at all a step waits. Default `"1"`.
    #[serde(default = "one_percent")]
    #[schemars(length(min = 1, max = 10))]
    #[x_kube(validation = rules::percent())]
    pub acceptable_percent: String,
}

/// A value and its limits, read every 15 seconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[x_kube(
    validation = Rule::new("has(self.minimum) || has(self.maximum)")
        .message("threshold: write minimum, maximum or both")
)]
#[serde(rename_all = "camelCase")]
pub struct ThresholdMetric {
    /// value is what asks for the number, for example
    /// `histogram_quantile(0.95, sum by (le) (rate(answer_seconds_bucket{revision="{{revision}}"}[2m])))`; `{{revision}}` is the
    /// new revision's name, `{{stable}}` the old one's, `{{pool}}` and `{{namespace}}` the pool's.
    #[schemars(length(min = 1, max = 2048))]
    pub value: String,
    /// minimum that is still good, as a decimal string, for example `"0.95"`. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 20))]
    #[x_kube(validation = rules::decimal())]
    pub minimum: Option<String>,
    /// maximum that is still good, as a decimal string, for example `"4.5"`. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 20))]
    #[x_kube(validation = rules::decimal())]
    pub maximum: Option<String>,
    /// failureLimit of readings outside the limits, over the whole release; one more leads back. Default 3.
    #[serde(default = "three")]
    #[schemars(range(min = 0, max = 1000))]
    pub failure_limit: i32,
}

fn three() -> i32 {
    3
}
fn twenty() -> i32 {
    20
}
fn one_percent() -> String {
    "1".to_owned()
}
