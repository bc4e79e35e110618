//! `spec.rollout.smokeTests` and `steps[].loadTest` of an AgentPool: tests that a new revision must pass, whatever its
//! traffic shows.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::common::LocalRef;
use crate::load_test::LoadProtocol;
use crate::rules;

/// One test of a new revision.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[x_kube(
    validation = rules::union_member("HTTP", "http"),
    validation = rules::union_member("Agent", "agent"),
    validation = rules::union_member("TCP", "tcp"),
    validation = rules::union_member("DNS", "dns"),
    validation = rules::union_member("Job", "job"),
    validation = rules::union_member("LoadTest", "loadTest"),
    validation = Rule::new("self.type != 'Agent' || has(self.agent)")
        .message("a test of type Agent needs the member agent; write for example agent: {prompt: \"Say pong.\", expectContains: pong}"),
    validation = Rule::new("self.type != 'DNS' || has(self.dns)")
        .message("a test of type DNS needs the member dns; write for example dns: {host: db.example.com}"),
    validation = Rule::new("self.type != 'Job' || has(self.job)")
        .message("a test of type Job needs the member job; write for example job: {command: [python, /app/smoke.py]}"),
    validation = Rule::new("self.type != 'LoadTest' || has(self.loadTest)")
        .message("a test of type LoadTest needs the member loadTest; write for example loadTest: {templateRef: {name: smoke-load}}")
)]
#[serde(rename_all = "camelCase")]
pub struct SmokeTest {
    /// name of the test, for example `health`.
    #[schemars(length(min = 1, max = 40))]
    #[x_kube(validation = rules::entry_name())]
    pub name: String,
    /// type of test. HTTP sends one request to the new revision and looks at the answer; Agent sends it a prompt and looks
    /// at what it says; TCP opens a connection; DNS looks a name up; Job runs a command in a pod like the revision's own;
    /// LoadTest runs a load test against the revision and takes its verdict.
    #[serde(rename = "type")]
    pub type_: SmokeTestType,
    /// when the test runs: BeforeTraffic, once the new revision's first replicas are ready and before any request reaches
    /// them; AfterPromotion, when it has all the traffic and can still be led back; BeforeAndAfter, both. Default
    /// BeforeTraffic.
    #[serde(default)]
    pub when: SmokeTestTime,
    /// http holds the settings of type HTTP. Default: `GET /` is answered with 200.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpTest>,
    /// agent holds the settings of type Agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<AgentTest>,
    /// tcp holds the settings of type TCP. Default: the new revision's own Service takes a connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp: Option<TcpTest>,
    /// dns holds the settings of type DNS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns: Option<DnsTest>,
    /// job holds the settings of type Job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<JobTest>,
    /// loadTest holds the settings of type LoadTest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load_test: Option<LoadTestGate>,
    /// timeoutSeconds of one attempt; of a LoadTest: until its verdict. Default: 10; 60 for Agent, 600 for Job, 3600 for
    /// LoadTest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 86400))]
    pub timeout_seconds: Option<i32>,
    /// attempts until the test counts as failed; of a LoadTest, those whose verdict is Inconclusive or Invalid are repeated
    /// so often, one that has Failed is not. Default 3.
    #[serde(default = "three")]
    #[schemars(range(min = 1, max = 10))]
    pub attempts: i32,
    /// dependsOn names tests further up in the list that must have passed before this one starts. Default: none; tests
    /// that do not depend on each other run at the same time.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), inner(length(min = 1, max = 40)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub depends_on: Vec<String>,
}

/// The types of smoke test.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum SmokeTestType {
    /// A request and its answer.
    HTTP,
    /// A prompt and what the agent says.
    Agent,
    /// A connection.
    TCP,
    /// A name.
    DNS,
    /// A command in a pod.
    Job,
    /// A load test's verdict.
    LoadTest,
}

/// When a smoke test runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum SmokeTestTime {
    /// Before any request reaches the new revision.
    #[default]
    BeforeTraffic,
    /// When it has all the traffic.
    AfterPromotion,
    /// Both.
    BeforeAndAfter,
}

/// A request to the new revision's own Service, and what its answer must be. Redirects are not followed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[x_kube(
    validation = Rule::new("!has(self.body) || self.method != 'GET'")
        .message("http.body is not sent with GET; write method: POST, or leave body out")
)]
#[serde(rename_all = "camelCase")]
pub struct HttpTest {
    /// method of the request: GET, POST, PUT or DELETE. Default GET.
    #[serde(default)]
    pub method: HttpTestMethod,
    /// path of the request, for example `/healthz`. Default `/`.
    #[serde(default = "root")]
    #[schemars(length(min = 1, max = 2048), regex(pattern = "^/[^ ]*$"))]
    pub path: String,
    /// headers of the request. They are no secrets: who may read the pool reads them. Default: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub headers: Vec<HttpTestHeader>,
    /// body of the request. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 16384))]
    pub body: Option<String>,
    /// expectStatus is the status that the answer must have, for example 401 for a request without credentials. Default 200.
    #[serde(default = "ok")]
    #[schemars(range(min = 100, max = 599))]
    pub expect_status: i32,
    /// expectContains is a text that the first 64 KiB of the answer must contain. Default: any answer is good.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub expect_contains: Option<String>,
}

impl Default for HttpTest {
    fn default() -> Self {
        Self {
            method: HttpTestMethod::default(),
            path: root(),
            headers: Vec::new(),
            body: None,
            expect_status: ok(),
            expect_contains: None,
        }
    }
}

/// Method of a test's request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum HttpTestMethod {
    /// Reads.
    #[default]
    GET,
    /// Sends the body.
    POST,
    /// Sends the body.
    PUT,
    /// Deletes.
    DELETE,
}

/// One header of a test's request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct HttpTestHeader {
    /// name of the header, for example `Authorization`.
    #[schemars(length(min = 1, max = 64))]
    #[x_kube(validation = rules::header_name())]
    pub name: String,
    /// value of the header.
    #[schemars(length(min = 1, max = 1024))]
    pub value: String,
}

/// A prompt to the new revision, and what it must answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct AgentTest {
    /// prompt sent to the agent, for example `Say pong.`; with protocol HTTP it is the request's body, sent as JSON when it is
    /// JSON.
    #[schemars(length(min = 1, max = 16384))]
    pub prompt: String,
    /// protocol of the call: HTTP (the prompt is the body), OpenAIChat (chat completions) or A2A (Agent2Agent 1.0).
    /// Default: A2A when the pool speaks it, else HTTP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "LoadProtocol")]
    pub protocol: Option<LoadProtocol>,
    /// path of the call. Default: `/chat` for HTTP, `/v1/chat/completions` for OpenAIChat and `/` for A2A.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2048), regex(pattern = "^/[^ ]*$"))]
    pub path: Option<String>,
    /// expectContains is a text that the answer must contain, upper and lower case being the same. Default: any answer that
    /// is not empty is good.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub expect_contains: Option<String>,
    /// expectWithout is a text that the answer must not contain, upper and lower case being the same. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub expect_without: Option<String>,
    /// maxMilliseconds that the answer may take. Default: as long as `timeoutSeconds`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 3600000))]
    pub max_milliseconds: Option<i32>,
}

/// A connection that must open.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct TcpTest {
    /// serviceName is a Service of this namespace, for example `database`; for anything outside use type Job, which connects
    /// from where the agent does. Default: the new revision's own Service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    #[x_kube(validation = rules::entry_name())]
    pub service_name: Option<String>,
    /// port of the Service, for example 5432. Default 80, the revision's own.
    #[serde(default = "eighty")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: i32,
}

impl Default for TcpTest {
    fn default() -> Self {
        Self {
            service_name: None,
            port: eighty(),
        }
    }
}

/// A name that must have an address.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct DnsTest {
    /// host that is looked up, for example `db.example.com`; one without a dot is a Service of this namespace.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = rules::host_name())]
    pub host: String,
}

/// A command that must exit with 0, in a pod like the new revision's own: its image, environment, files, ServiceAccount and
/// pod template. No request is sent to that pod.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct JobTest {
    /// command to run in place of the agent's, for example `[python, /app/smoke.py]`.
    #[schemars(length(min = 1, max = 64), inner(length(min = 1, max = 4096)))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub command: Vec<String>,
    /// args of the command. Default: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 4096)))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub args: Vec<String>,
    /// image to run it in. Default: the agent's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    #[x_kube(validation = Rule::new("self.matches('^\\\\S+$')").message("image must not contain spaces or line breaks, for example registry.example.com/smoke:1.4.2"))]
    pub image: Option<String>,
}

/// A load test against the new revision, past the gateway.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct LoadTestGate {
    /// templateRef names a LoadTest of this namespace that is copied, with the new revision's own Service as its target. One
    /// with `suspend: true` never runs itself.
    pub template_ref: LocalRef,
}

/// A load test that a step of a canary waits for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct StepLoadTest {
    /// templateRef names a LoadTest of this namespace that is copied, with the new revision's own Service as its target. One
    /// with `suspend: true` never runs itself.
    pub template_ref: LocalRef,
    /// attempts: a run whose verdict is Inconclusive or Invalid is repeated so often; then a person decides. One that has
    /// Failed leads back at once. Default 2.
    #[serde(default = "two")]
    #[schemars(range(min = 1, max = 10))]
    pub attempts: i32,
    /// timeoutSeconds until the verdict of one run; after it a person decides. Default 3600.
    #[serde(default = "hour")]
    #[schemars(range(min = 1, max = 86400))]
    pub timeout_seconds: i32,
}

/// How one test of a new revision went.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct TestStatus {
    /// name of the test, as in `smokeTests`; `step-load-test` for the one of a step.
    #[schemars(length(min = 1, max = 40))]
    pub name: String,
    /// result: Waiting, Running, Passed, Failed, or Undecided (a person has to decide).
    #[schemars(length(min = 1, max = 32))]
    pub result: String,
    /// attempts so far, once it has ended or, of a LoadTest, begun.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub attempts: i32,
    /// message in one sentence.
    #[serde(default)]
    #[schemars(length(max = 1024))]
    pub message: String,
}

impl SmokeTest {
    /// Seconds that one attempt may take.
    pub fn seconds(&self) -> i32 {
        self.timeout_seconds.unwrap_or(match self.type_ {
            SmokeTestType::HTTP | SmokeTestType::TCP | SmokeTestType::DNS => 10,
            SmokeTestType::Agent => 60,
            SmokeTestType::Job => 600,
            SmokeTestType::LoadTest => 3600,
        })
    }

    /// Whether it runs before the new revision gets traffic.
    pub fn runs_before(&self) -> bool {
        self.when != SmokeTestTime::AfterPromotion
    }

    /// Whether it runs when the new revision has all the traffic.
    pub fn runs_after(&self) -> bool {
        self.when != SmokeTestTime::BeforeTraffic
    }
}

fn root() -> String {
    "/".to_owned()
}
fn ok() -> i32 {
    200
}
fn two() -> i32 {
    2
}
fn three() -> i32 {
    3
}
fn eighty() -> i32 {
    80
}
fn hour() -> i32 {
    3600
}
