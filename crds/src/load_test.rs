//! `LoadTest`: a schedule of requests, thresholds, and a verdict.

use crate::common::{ConfigMapKeyRef, LocalRef};
pub use crate::load_status::*;
use crate::rules;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A load test: one seeded schedule of requests, run once by a Job, judged against thresholds.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "flotilla.dev",
    version = "v1alpha1",
    kind = "LoadTest",
    plural = "loadtests",
    shortname = "ltest",
    category = "flotilla",
    namespaced,
    status = "LoadTestStatus",
    derive = "PartialEq",
    doc = "LoadTest is one seeded schedule of requests, run once by a Job and judged against thresholds.",
    printcolumn(name = "State", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason"),
    printcolumn(name = "Verdict", type_ = "string", json_path = ".status.verdict"),
    printcolumn(name = "Stage", type_ = "string", json_path = ".status.progress.stage"),
    printcolumn(name = "Progress", type_ = "integer", json_path = ".status.progress.percent"),
    printcolumn(name = "RPS", type_ = "string", json_path = ".status.progress.perSecond"),
    printcolumn(name = "P95", type_ = "integer", json_path = ".status.summary.latency.p95Milliseconds"),
    printcolumn(name = "Failed", type_ = "integer", json_path = ".status.summary.requests.failed"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = rules::object_name("names of the Job and its Service are made from it")
)]
#[x_kube(
    validation = Rule::new("has(self.target.poolRef) || has(self.protocol)")
        .message("protocol: write HTTP, OpenAIChat or A2A; only a target with poolRef has a default, the pool's own"),
    validation = rules::immutable(
        &["target", "protocol", "seed", "workers", "requests", "scenarios", "warmup", "stages", "thresholds", "onInconclusive"],
        "a LoadTest cannot be changed, only suspended or given another ttlSecondsAfterFinished; create a new LoadTest (metadata.generateName helps)",
    ),
    validation = Rule::new("!has(self.protocol) || self.protocol != 'HTTP' || !self.requests.stream")
        .message("requests.stream: only the protocols OpenAIChat and A2A stream; leave it out with protocol HTTP"),
    validation = Rule::new("!has(self.requests.model) || (has(self.protocol) && self.protocol == 'OpenAIChat')")
        .message("requests.model is only sent with protocol OpenAIChat; leave it out, or write protocol: OpenAIChat"),
    validation = Rule::new("!has(self.protocol) || self.protocol == 'HTTP' || (self.requests.method == 'POST' && !has(self.requests.contentType))")
        .message("requests.method and requests.contentType belong to protocol HTTP; leave them out"),
    validation = Rule::new("self.stages.all(s, self.stages.exists_one(t, t.name == s.name))")
        .message("stages: two stages have the same name; give each its own"),
    validation = Rule::new("self.stages.all(s, !has(s.constantRate) || s.constantRate.maxInFlight >= self.workers.count)")
        .message("stages: constantRate.maxInFlight is shared by the workers, so it must be at least workers.count; raise it or lower workers.count"),
    validation = Rule::new(rules::TOTAL_SECONDS)
        .message("stages: all stages together may last 604,800 seconds (7 days) at most; shorten them"),
    validation = Rule::new(rules::TOTAL_REQUESTS)
        .message("stages: all stages together may send 50,000,000 requests at most; lower perSecond, seconds or batch.requests"),
    validation = Rule::new("self.requests.stream || !has(self.thresholds) || !has(self.thresholds.custom) || self.thresholds.custom.all(t, t.metric == 'Latency')")
        .message("thresholds.custom: FirstToken and InterTokenGap are only measured on streams; write requests.stream: true, or judge Latency")
)]
#[serde(rename_all = "camelCase")]
pub struct LoadTestSpec {
    /// target of the requests: exactly one of poolRef, serviceRef and url.
    pub target: Target,
    /// protocol of the requests: HTTP (the rendered prompt is the body), OpenAIChat (chat completions) or A2A
    /// (Agent2Agent 1.0). Default for a pool: A2A when the pool speaks it, else HTTP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "LoadProtocol")]
    pub protocol: Option<LoadProtocol>,
    /// seed of the schedule and of everything random in the requests; the same seed sends the same requests. Default 1.
    #[serde(default = "one_i64")]
    #[schemars(range(min = 0, max = 9007199254740991i64))]
    pub seed: i64,
    /// workers that share the schedule.
    #[serde(default)]
    pub workers: Workers,
    /// requests says how each request is sent.
    #[serde(default)]
    pub requests: Requests,
    /// scenarios are what the requests say, drawn by weight.
    #[schemars(length(min = 1, max = 32))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub scenarios: Vec<Scenario>,
    /// warmup is sent first and counted nowhere. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warmup: Option<Warmup>,
    /// stages of the test, one after the other.
    #[schemars(length(min = 1, max = 32))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub stages: Vec<Stage>,
    /// thresholds the result is judged by. Default: none; then only failures are judged, see `failedPercent`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thresholds: Option<Thresholds>,
    /// onInconclusive is what condition Succeeded says when there were too few samples to judge: Fail or Pass.
    /// Default Fail.
    #[serde(default)]
    pub on_inconclusive: OnInconclusive,
    /// suspend before the start makes the test wait; set while it runs it stops the test for good, with verdict
    /// Invalid. Default false.
    #[serde(default)]
    pub suspend: bool,
    /// ttlSecondsAfterFinished after which the finished test is deleted. Default: never (GitOps would create it again).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 31536000))]
    pub ttl_seconds_after_finished: Option<i32>,
}

/// Where the requests go: exactly one member.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[x_kube(
    validation = rules::one_of("target", &["poolRef", "serviceRef", "url"])
)]
#[serde(rename_all = "camelCase")]
pub struct Target {
    /// poolRef names an AgentPool in this namespace; requests go to its front Service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool_ref: Option<LocalRef>,
    /// serviceRef names a Service in this namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_ref: Option<ServiceRef>,
    /// url inside this cluster, for example `http://support.team-a.svc/chat`. Only http.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2048))]
    #[x_kube(validation = Rule::new("self.matches('^http://[^ /?#@]+(/[^ #]*)?$')").message("target.url must be an http address inside this cluster, without user and fragment, for example http://support.team-a.svc/chat"))]
    pub url: Option<String>,
}

/// A Service and its port.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServiceRef {
    /// name of the Service in this namespace.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// port of the Service. Default 80.
    #[serde(default = "eighty")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: i32,
}

/// Wire protocol of the requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum LoadProtocol {
    /// The rendered prompt is the request's body.
    HTTP,
    /// OpenAI chat completions.
    OpenAIChat,
    /// Agent2Agent 1.0 over JSON-RPC.
    A2A,
}

/// The worker pods.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Workers {
    /// count of worker pods. Default 1.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 200))]
    pub count: i32,
    /// minCoveragePercent of the planned requests that must have been started; below it the verdict is Invalid.
    /// Default 99.
    #[serde(default = "ninety_nine")]
    #[schemars(range(min = 1, max = 100))]
    pub min_coverage_percent: i32,
    /// startDeadlineSeconds within which all workers must be there. Default 180.
    #[serde(default = "three_minutes")]
    #[schemars(range(min = 5, max = 3600))]
    pub start_deadline_seconds: i32,
}

impl Default for Workers {
    fn default() -> Self {
        Self {
            count: 1,
            min_coverage_percent: 99,
            start_deadline_seconds: 180,
        }
    }
}

/// How each request is sent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Requests {
    /// timeoutMilliseconds from the intended start of a request to the last byte of its response. Default 30000.
    #[serde(default = "thirty_seconds")]
    #[schemars(range(min = 1, max = 3600000))]
    pub timeout_milliseconds: i32,
    /// maxAttempts per request; a further attempt follows a failed connection or a 429 or 503, inside the same timeout.
    /// Default 1.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 10))]
    pub max_attempts: i32,
    /// stream asks for a streamed response (protocols OpenAIChat and A2A) and measures the first token and the gaps.
    /// Default false.
    #[serde(default)]
    pub stream: bool,
    /// model named in OpenAIChat requests. Default `default`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub model: Option<String>,
    /// method of HTTP requests: POST and PUT send the rendered prompt as body, GET sends none (the scenarios are then
    /// only names in the result). Default POST.
    #[serde(default)]
    pub method: HttpMethod,
    /// path of the requests. Default: the url's path, else `/chat` for HTTP, `/v1/chat/completions` for OpenAIChat and
    /// `/` for A2A.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2048), regex(pattern = "^/[^ ]*$"))]
    pub path: Option<String>,
    /// contentType of HTTP requests. Default `text/plain; charset=utf-8`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub content_type: Option<String>,
}

impl Default for Requests {
    fn default() -> Self {
        Self {
            timeout_milliseconds: 30000,
            max_attempts: 1,
            stream: false,
            model: None,
            method: HttpMethod::default(),
            path: None,
            content_type: None,
        }
    }
}

/// Method of an HTTP request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum HttpMethod {
    /// Without a body.
    GET,
    /// With the rendered prompt as body.
    #[default]
    POST,
    /// With the rendered prompt as body.
    PUT,
}

/// What a request says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Scenario {
    /// name of the scenario, for example `billing-inquiry`.
    #[schemars(length(min = 1, max = 40))]
    #[x_kube(validation = rules::entry_name())]
    pub name: String,
    /// weight against the other scenarios. Default 1.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 1000))]
    pub weight: i32,
    /// prompt of the request; `{{slots}}` in it are filled from the seed.
    pub prompt: ScenarioPrompt,
}

/// The text of a scenario: exactly one of `text` and `configMapKeyRef`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[x_kube(
    validation = rules::one_of("prompt", &["text", "configMapKeyRef"])
)]
#[serde(rename_all = "camelCase")]
pub struct ScenarioPrompt {
    /// text in place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 16384))]
    pub text: Option<String>,
    /// configMapKeyRef names the ConfigMap key that holds the text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_map_key_ref: Option<ConfigMapKeyRef>,
}

/// What is sent before anything is counted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Warmup {
    /// requests to send, all workers together.
    #[schemars(range(min = 1, max = 100000))]
    pub requests: i32,
}

/// One stage of a test.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[x_kube(
    validation = Rule::new("self.type != 'ConstantRate' || (has(self.constantRate) && !has(self.batch))")
        .message("a stage of type ConstantRate has the member constantRate and no other; write constantRate: {perSecond: \"25\", seconds: 120}"),
    validation = Rule::new("self.type != 'Batch' || (has(self.batch) && !has(self.constantRate))")
        .message("a stage of type Batch has the member batch and no other; write batch: {size: 5, requests: 10}")
)]
#[serde(rename_all = "camelCase")]
pub struct Stage {
    /// name of the stage, for example `steady`.
    #[schemars(length(min = 1, max = 40))]
    #[x_kube(validation = rules::entry_name())]
    pub name: String,
    /// type of the stage: ConstantRate starts requests at a fixed rate whether or not earlier ones have ended, Batch
    /// starts groups at once with a pause between.
    #[serde(rename = "type")]
    pub type_: StageType,
    /// constantRate holds the settings of type ConstantRate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub constant_rate: Option<ConstantRate>,
    /// batch holds the settings of type Batch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch: Option<Batch>,
}

/// The types of stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum StageType {
    /// Requests at a fixed rate.
    ConstantRate,
    /// Groups of requests.
    Batch,
}

/// Requests at a fixed rate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ConstantRate {
    /// perSecond is the rate of all workers together, as a decimal string, for example `"25"` or `"0.5"`.
    #[schemars(length(min = 1, max = 16))]
    #[x_kube(validation = Rule::new(rules::RATE).message("constantRate.perSecond must be a decimal string from \"0.001\" to \"100000\", for example \"25\" or \"0.5\""))]
    pub per_second: String,
    /// seconds the stage lasts.
    #[schemars(range(min = 1, max = 86400))]
    pub seconds: i32,
    /// arrival of the requests: Uniform (equal distances) or Poisson (as independent users arrive). Default Poisson.
    #[serde(default)]
    pub arrival: Arrival,
    /// maxInFlight requests at once, all workers together; a start beyond it waits, and the wait counts in its
    /// latency. Default 1000.
    #[serde(default = "thousand")]
    #[schemars(range(min = 1, max = 100000))]
    pub max_in_flight: i32,
}

/// How arrivals are spaced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Arrival {
    /// At equal distances.
    Uniform,
    /// As independent users arrive.
    #[default]
    Poisson,
}

/// Groups of requests.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Batch {
    /// size of a group: so many requests start at once.
    #[schemars(range(min = 1, max = 100000))]
    pub size: i32,
    /// delaySeconds from the start of one group to the start of the next, and from the last one to the next stage.
    /// Default 1.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 3600))]
    pub delay_seconds: i32,
    /// requests in all.
    #[schemars(range(min = 1, max = 10000000))]
    pub requests: i32,
}

/// What the result is judged by. A threshold that is left out is not judged.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[x_kube(
    validation = Rule::new("has(self.p50Milliseconds) || has(self.p90Milliseconds) || has(self.p95Milliseconds) || has(self.p99Milliseconds) || has(self.failedPercent) || (has(self.custom) && self.custom.size() > 0)")
        .message("thresholds: write at least one of p50Milliseconds, p90Milliseconds, p95Milliseconds, p99Milliseconds, failedPercent and custom, or leave thresholds out"),
    validation = rules::ascending(&["p50Milliseconds", "p90Milliseconds", "p95Milliseconds", "p99Milliseconds"])
        .message("thresholds: a higher percentile is never below a lower one, so its limit must not be lower; write p50Milliseconds <= p90Milliseconds <= p95Milliseconds <= p99Milliseconds")
)]
#[serde(rename_all = "camelCase")]
pub struct Thresholds {
    /// p50Milliseconds that half of the requests may take at most, from their intended start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 3600000))]
    pub p50_milliseconds: Option<i32>,
    /// p90Milliseconds that 90 % of the requests may take at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 3600000))]
    pub p90_milliseconds: Option<i32>,
    /// p95Milliseconds that 95 % of the requests may take at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 3600000))]
    pub p95_milliseconds: Option<i32>,
    /// p99Milliseconds that 99 % of the requests may take at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 3600000))]
    pub p99_milliseconds: Option<i32>,
    /// failedPercent of the requests that may fail at most, as a decimal string, for example `"1"` or `"0.5"`; `"0"`
    /// allows none, `"100"` any. Default: a run whose failures are shown to be above 1 % has Failed, but none has to be
    /// shown to be below.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 8))]
    #[x_kube(validation = Rule::new("self.matches('^([0-9]{1,2}([.][0-9]{1,4})?|100)$')").message("thresholds.failedPercent must be a decimal string from \"0\" to \"100\", for example \"1\" or \"0.5\""))]
    pub failed_percent: Option<String>,
    /// confidencePercent with which a threshold must be known to hold, or not to hold; between the two the verdict is
    /// Inconclusive. Default 95.
    #[serde(default = "ninety_five")]
    #[schemars(range(min = 50, max = 99))]
    pub confidence_percent: i32,
    /// custom thresholds on other series.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub custom: Vec<CustomThreshold>,
}

/// A threshold on one statistic of one series.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct CustomThreshold {
    /// name of the threshold, for example `gaps`.
    #[schemars(length(min = 1, max = 40))]
    #[x_kube(
        validation = rules::entry_name(),
        validation = Rule::new("!(self in ['p50', 'p90', 'p95', 'p99', 'failed'])")
            .message("p50, p90, p95, p99 and failed name the thresholds that are fields; choose another name for a custom one")
    )]
    pub name: String,
    /// metric judged: Latency, FirstToken or InterTokenGap (the last two need requests.stream).
    pub metric: Metric,
    /// stat of the metric: P50, P90, P95 or P99.
    pub stat: Stat,
    /// maxMilliseconds the statistic may reach.
    #[schemars(range(min = 1, max = 3600000))]
    pub max_milliseconds: i32,
}

/// A measured series.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Metric {
    /// From the intended start to the end of the response.
    Latency,
    /// From the intended start to the first token of a stream.
    FirstToken,
    /// Between two tokens of a stream.
    InterTokenGap,
}

/// A statistic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Stat {
    /// The median.
    P50,
    /// The 90th percentile.
    P90,
    /// The 95th percentile.
    P95,
    /// The 99th percentile.
    P99,
}

/// What an inconclusive run counts as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum OnInconclusive {
    /// Condition Succeeded is False.
    #[default]
    Fail,
    /// Condition Succeeded is True.
    Pass,
}

fn one() -> i32 {
    1
}
fn one_i64() -> i64 {
    1
}
fn eighty() -> i32 {
    80
}
fn ninety_nine() -> i32 {
    99
}
fn ninety_five() -> i32 {
    95
}
fn three_minutes() -> i32 {
    180
}
fn thirty_seconds() -> i32 {
    30000
}
fn thousand() -> i32 {
    1000
}
