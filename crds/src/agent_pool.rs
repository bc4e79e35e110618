//! `AgentPool`: what runs, how many, how traffic reaches it, and how a new revision is released.

use crate::common::{ConfigMapKeyRef, LocalRef};
pub use crate::plan::*;
use crate::release_test::TestStatus;
pub use crate::rollout::*;
pub use crate::traffic::*;
use crate::{names, rules};
use k8s_openapi::api::core::v1::{EnvFromSource, EnvVar, Probe, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A fleet of replicas of one agent image behind one Service, released revision by revision.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "flotilla.dev",
    version = "v1alpha1",
    kind = "AgentPool",
    plural = "agentpools",
    shortname = "apool",
    category = "flotilla",
    namespaced,
    status = "AgentPoolStatus",
    derive = "PartialEq",
    doc = "AgentPool is a fleet of replicas of one agent image behind one Service, released revision by revision.",
    scale(
        spec_replicas_path = ".spec.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    printcolumn(name = "State", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.ready"),
    printcolumn(name = "Revision", type_ = "string", json_path = ".status.stable.revision"),
    printcolumn(name = "Candidate", type_ = "string", json_path = ".status.candidate.revision"),
    printcolumn(name = "Weight", type_ = "integer", json_path = ".status.candidate.weight"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Step", type_ = "integer", json_path = ".status.rollout.step.index", priority = 1),
    printcolumn(name = "Waiting", type_ = "string", json_path = ".status.rollout.waitingFor.message", priority = 1),
    printcolumn(name = "Image", type_ = "string", json_path = ".spec.agent.image", priority = 1),
    validation = rules::object_name("names of revisions and Services are made from it"),
    validation = Rule::new("self.metadata.name != 'flotilla-gateway'")
        .message("metadata.name: flotilla-gateway is the name of the gateway's own objects; choose another name"),
    validation = Rule::new("!has(self.spec.sessions) || !has(self.spec.sessions.key) || self.spec.sessions.key.type != 'A2AContext' || self.spec.agent.protocol == 'A2A'")
        .message("spec.sessions.key.type A2AContext needs an agent that speaks A2A; set spec.agent.protocol: A2A or choose Header or Cookie"),
    validation = Rule::new("!has(self.spec.traffic) || self.spec.traffic.balancing != 'ConsistentHash' || (has(self.spec.sessions) && has(self.spec.sessions.key) && self.spec.sessions.key.type != 'None')")
        .message("spec.traffic.balancing ConsistentHash goes by the conversation; set spec.sessions.key.type or choose another balancing"),
    validation = Rule::new("!has(self.spec.traffic) || self.spec.traffic.type == 'Gateway' || !has(self.spec.sessions) || !has(self.spec.sessions.key) || self.spec.sessions.key.type == 'None'")
        .message("spec.sessions are kept by the gateway; leave them out or set spec.traffic.type: Gateway"),
    validation = Rule::new("!has(self.spec.traffic) || self.spec.traffic.type != 'ReplicaRatio' || !has(self.spec.rollout) || self.spec.rollout.type != 'BlueGreen'")
        .message("spec.rollout.type BlueGreen needs replicas that can be held back, and with spec.traffic.type ReplicaRatio each ready one works; choose Canary or RollingUpdate"),
    validation = Rule::new("!has(self.spec.traffic) || self.spec.traffic.type != 'ReplicaRatio' || !has(self.spec.rollout) || !has(self.spec.rollout.smokeTests) || self.spec.rollout.smokeTests.all(t, t.when == 'AfterPromotion')")
        .message("spec.rollout.smokeTests: with spec.traffic.type ReplicaRatio each ready replica works, so nothing is tested before traffic; write when: AfterPromotion"),
    validation = Rule::new("!has(self.spec.traffic) || self.spec.traffic.type != 'ReplicaRatio' || !has(self.spec.rollout) || !has(self.spec.rollout.preview)")
        .message("spec.rollout.preview goes by a request's header, and with spec.traffic.type ReplicaRatio nobody sees requests; leave it out or set spec.traffic.type: Gateway"),
    validation = Rule::new("!has(self.spec.traffic) || self.spec.traffic.type == 'Gateway' || !has(self.spec.rollout) || !has(self.spec.rollout.analysis) || !has(self.spec.rollout.analysis.latency)")
        .message("spec.rollout.analysis.latency is counted in the gateway; leave it out or set spec.traffic.type: Gateway"),
    validation = Rule::new("!has(self.spec.rollout) || !has(self.spec.rollout.pinnedRevision) || self.spec.rollout.pinnedRevision == '' || self.spec.rollout.pinnedRevision.startsWith(self.metadata.name + '-')")
        .message("spec.rollout.pinnedRevision must be a revision of this pool, written as status shows it: <pool>-<hash>")
)]
#[serde(rename_all = "camelCase")]
pub struct AgentPoolSpec {
    /// replicas is how many agent pods serve. Default 1. `kubectl scale` and a HorizontalPodAutoscaler write it.
    #[serde(default = "one")]
    #[schemars(range(min = 0, max = 10000))]
    pub replicas: i32,
    /// stopped is the kill switch: true means that no agent pod runs, and requests are answered with 503. Default
    /// false.
    #[serde(default)]
    pub stopped: bool,
    /// revisionHistoryLimit is how many revisions that no longer serve are kept for a return. Default 5.
    #[serde(default = "five")]
    #[schemars(range(min = 0, max = 50))]
    pub revision_history_limit: i32,
    /// agent is what runs. All of it, and the bytes of the ConfigMaps it refers to, is one revision.
    pub agent: Agent,
    /// sessions says how conversations are known, each of which stays on its revision. Default: none are kept.
    #[serde(default)]
    pub sessions: Sessions,
    /// traffic says how requests reach the replicas.
    #[serde(default)]
    pub traffic: Traffic,
    /// disruption limits what voluntary disruptions (node drains) may take away at once.
    #[serde(default)]
    pub disruption: Disruption,
    /// rollout says how a new revision replaces the one that serves.
    #[serde(default)]
    pub rollout: Rollout,
}

/// What runs: image, model, prompt, parameters and configuration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[x_kube(
    validation = Rule::new("!has(self.files) || self.files.all(f, self.files.all(g, f.name == g.name || !(g.mountPath + '/').startsWith(f.mountPath + '/')))")
        .message("files: two entries have the same mountPath, or one lies inside the other; give each a folder of its own"),
    validation = Rule::new("!has(self.files) || !has(self.prompt) || self.files.all(f, !(self.prompt.mountPath + '/').startsWith(f.mountPath + '/') && !f.mountPath.startsWith(self.prompt.mountPath + '/'))")
        .message("files: an entry's mountPath would hide the prompt; move the entry or set prompt.mountPath"),
    validation = Rule::new("!has(self.env) || self.env.all(e, !(e.name in ['PORT', 'POD_NAME', 'POD_NAMESPACE']) && !e.name.startsWith('FLOTILLA_'))")
        .message("env: PORT, POD_NAME, POD_NAMESPACE and names that begin with FLOTILLA_ are set by Flotilla; read the variable that is set, or choose another name"),
    validation = Rule::new("!has(self.env) || !has(self.models) || self.models.size() == 0 || self.env.all(e, !(e.name in ['OPENAI_BASE_URL', 'OPENAI_API_KEY']))")
        .message("env: where agent.models is used, OPENAI_BASE_URL and OPENAI_API_KEY lead to the gateway; write address and key into the ModelProvider, or leave out agent.models")
)]
#[serde(rename_all = "camelCase")]
pub struct Agent {
    /// image of the agent, for example `registry.example.com/support-agent:1.4.2`. It serves HTTP or A2A on `port`.
    #[schemars(length(min = 1, max = 1024))]
    #[x_kube(validation = Rule::new("self.matches('^\\\\S+$')").message("image must not contain spaces or line breaks, for example registry.example.com/support-agent:1.4.2"))]
    pub image: String,
    /// imagePullPolicy is Always, IfNotPresent or Never, as for any container. Default IfNotPresent.
    #[serde(default)]
    pub image_pull_policy: ImagePullPolicy,
    /// command replaces the image's entry point. Default: the image's own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 4096)))]
    pub command: Vec<String>,
    /// args are the arguments of the entry point. Default: the image's own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 4096)))]
    pub args: Vec<String>,
    /// port on which the agent serves; it finds it in `$PORT`. Default 8080.
    #[serde(default = "port")]
    #[schemars(range(min = 1024, max = 65535))]
    pub port: i32,
    /// protocol the agent speaks on `port`: HTTP (any HTTP API) or A2A (Agent2Agent 1.0 over JSON-RPC). Default HTTP.
    #[serde(default)]
    pub protocol: Protocol,
    /// appProtocol is the version of HTTP that the agent takes on `port`, as in a Service's port: HTTP1 (HTTP/1.1), or
    /// H2C (HTTP/2 without TLS, `kubernetes.io/h2c`; needed for gRPC). Clients may use either in both cases; WebSockets
    /// always reach the agent over HTTP/1.1. Default HTTP1.
    #[serde(default)]
    pub app_protocol: AppProtocol,
    /// concurrency is how many requests one replica works on at once (its slots); further ones wait in the gateway.
    /// Default 8.
    #[serde(default = "eight")]
    #[schemars(range(min = 1, max = 10000))]
    pub concurrency: i32,
    /// models the agent uses. Each is reached through the gateway: `FLOTILLA_MODEL_<NAME>` holds the model's name,
    /// `FLOTILLA_MODEL_<NAME>_BASE_URL` its address; the entry named `default`, else the first, is also in
    /// `OPENAI_BASE_URL`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub models: Vec<Model>,
    /// prompt of the agent, mounted as a file whose path is in `FLOTILLA_PROMPT_FILE`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt: Option<Prompt>,
    /// files are ConfigMaps mounted as folders, for example tool definitions. A change of their content is a new
    /// revision.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 7))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub files: Vec<File>,
    /// env are further environment variables, as in a container. Secrets are referenced, never read by Flotilla.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "crate::schema::env")]
    pub env: Vec<EnvVar>,
    /// envFrom are sources of further environment variables, as in a container. A change of their content is no new
    /// revision.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "crate::schema::env_from")]
    pub env_from: Vec<EnvFromSource>,
    /// resources of the agent container, as in a container. Default: none requested, none limited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::resources")]
    pub resources: Option<ResourceRequirements>,
    /// probes of the agent container. Default: readiness by a TCP connect to `port`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probes: Option<Probes>,
    /// serviceAccountName the pods run as. Default: one made for the pool, without rights and without a token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub service_account_name: Option<String>,
    /// egressIdentity is how the gateway knows these pods when they ask for a model: Address (by their pod's address) or
    /// Token (by a token that kubelet mounts and renews; the agent reads the file that `FLOTILLA_EGRESS_TOKEN_FILE` names and
    /// sends its content in the place of the API key). Token is for networks where an address proves nothing: a mesh that
    /// replaces it, or pods that may forge it. Default Address.
    #[serde(default)]
    pub egress_identity: EgressIdentity,
    /// podTemplate is merged over the pod template that Flotilla makes (lists by key; the container `agent` is the
    /// main one): sidecars, volumes, pull secrets, topology, anything a pod can say. The API server checks the result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::any_object")]
    pub pod_template: Option<serde_json::Value>,
}

/// How the gateway knows an agent's pods.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum EgressIdentity {
    /// By the pod's address.
    #[default]
    Address,
    /// By a token of audience `flotilla-gateway`, bound to the pod.
    Token,
}

/// When the image is pulled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ImagePullPolicy {
    /// At each start of a pod.
    Always,
    /// Only where the node does not have it.
    #[default]
    IfNotPresent,
    /// Never: the node must have it.
    Never,
}

impl ImagePullPolicy {
    /// The value as a container spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Always => "Always",
            Self::IfNotPresent => "IfNotPresent",
            Self::Never => "Never",
        }
    }
}

/// What an agent speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Protocol {
    /// Any HTTP API.
    #[default]
    HTTP,
    /// Agent2Agent 1.0 over JSON-RPC.
    A2A,
}

/// The version of HTTP that an agent takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum AppProtocol {
    /// HTTP/1.1.
    #[default]
    HTTP1,
    /// HTTP/2 without TLS, with prior knowledge.
    H2C,
}

impl AppProtocol {
    /// The value as a Service's port spells it; none for the default of every Service.
    pub fn of_service(self) -> Option<&'static str> {
        match self {
            Self::HTTP1 => None,
            Self::H2C => Some(names::H2C),
        }
    }
}

/// A model the agent uses.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[x_kube(
    validation = Rule::new("!has(self.fallbacks) || self.fallbacks.all(f, (f.providerRef.name != self.providerRef.name || f.model != self.model) && self.fallbacks.exists_one(g, g.providerRef.name == f.providerRef.name && g.model == f.model))")
        .message("fallbacks: an entry is the model itself or stands there twice; name each provider and model once")
)]
#[serde(rename_all = "camelCase")]
pub struct Model {
    /// name by which the agent knows this entry, for example `default`; it becomes part of a variable's name.
    #[schemars(length(min = 1, max = 40))]
    #[x_kube(
        validation = rules::entry_name(),
        validation = Rule::new("!self.endsWith('-base-url') && !self.endsWith('-parameters')")
            .message("a model's name must not end with -base-url or -parameters: FLOTILLA_MODEL_<NAME>_BASE_URL and FLOTILLA_MODEL_<NAME>_PARAMETERS belong to another entry; choose another name")
    )]
    pub name: String,
    /// providerRef names the ModelProvider in this namespace.
    pub provider_ref: LocalRef,
    /// model is the provider's own name of the model, for example `gpt-5-mini`.
    #[schemars(length(min = 1, max = 253))]
    pub model: String,
    /// parameters for the model as the agent understands them, handed over as JSON in
    /// `FLOTILLA_MODEL_<NAME>_PARAMETERS`, for example `{temperature: "0.2"}`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "crate::schema::string_map")]
    pub parameters: BTreeMap<String, String>,
    /// fallbacks are tried in this order when the model's provider has used up its budget or its quota, answers 429 or
    /// 5xx, cannot be reached, or has failed so often that its circuit breaker is open; never after a byte of an answer
    /// has come. Their providers must be of the same type. Default: none. The answer's headers `x-flotilla-provider`,
    /// `x-flotilla-model` and `x-flotilla-fallback` tell who has answered.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 4))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub fallbacks: Vec<Fallback>,
}

/// A model that is used instead of another.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Fallback {
    /// providerRef names the ModelProvider in this namespace.
    pub provider_ref: LocalRef,
    /// model is that provider's own name of the model, for example `gpt-5-nano`; it is put into the request in place of
    /// the other.
    #[schemars(length(min = 1, max = 253))]
    pub model: String,
}

impl Model {
    /// Providers and their models that this entry may use: its own, then the fallbacks in order.
    pub fn choices(&self) -> impl Iterator<Item = (&str, &str)> {
        let own = (self.provider_ref.name.as_str(), self.model.as_str());
        let fallbacks = self.fallbacks.iter();
        std::iter::once(own)
            .chain(fallbacks.map(|other| (other.provider_ref.name.as_str(), other.model.as_str())))
    }
}

/// The agent's prompt: exactly one of `text` and `configMapKeyRef`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[x_kube(validation = rules::one_of("prompt", &["text", "configMapKeyRef"]))]
#[serde(rename_all = "camelCase")]
pub struct Prompt {
    /// text of the prompt, in place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 65536))]
    pub text: Option<String>,
    /// configMapKeyRef names the ConfigMap key that holds the prompt; a change of its content is a new revision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_map_key_ref: Option<ConfigMapKeyRef>,
    /// mountPath of the file inside the agent's container. Default `/etc/agent/prompt/prompt.md`.
    #[serde(default = "prompt_path")]
    #[schemars(length(min = 2, max = 1024))]
    #[x_kube(validation = rules::mount_path())]
    pub mount_path: String,
}

/// A ConfigMap mounted as a folder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct File {
    /// name of this entry, for example `tools`.
    #[schemars(length(min = 1, max = 40))]
    #[x_kube(validation = rules::entry_name())]
    pub name: String,
    /// configMapRef names the ConfigMap; each of its keys is a file.
    pub config_map_ref: LocalRef,
    /// mountPath of the folder, for example `/etc/agent/tools`.
    #[schemars(length(min = 2, max = 1024))]
    #[x_kube(validation = rules::mount_path())]
    pub mount_path: String,
}

/// The three probes of a container, as core/v1 has them; a port that is left out is the agent's.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[x_kube(
    validation = Rule::new("(!has(self.startup) || !has(self.startup.successThreshold) || self.startup.successThreshold == 1) && (!has(self.liveness) || !has(self.liveness.successThreshold) || self.liveness.successThreshold == 1)")
        .message("probes: successThreshold of startup and liveness can only be 1; leave it out there"),
    validation = Rule::new("!has(self.readiness) || !has(self.readiness.terminationGracePeriodSeconds)")
        .message("probes: a readiness probe ends no container, so it has no terminationGracePeriodSeconds; leave it out there")
)]
#[serde(rename_all = "camelCase")]
pub struct Probes {
    /// startup probe: until it succeeds the other two do not run. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::probe")]
    pub startup: Option<Probe>,
    /// readiness probe: a replica gets requests while it succeeds. Default: a TCP connect to the agent's port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::probe")]
    pub readiness: Option<Probe>,
    /// liveness probe: a container whose probe fails is restarted. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::probe")]
    pub liveness: Option<Probe>,
}

/// How requests reach the replicas.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[x_kube(
    validation = Rule::new("!has(self.retries) || !has(self.retries.perTryTimeoutSeconds) || self.retries.perTryTimeoutSeconds < self.requestTimeoutSeconds")
        .message("retries.perTryTimeoutSeconds must be below requestTimeoutSeconds, or there is no time for a second try"),
    validation = Rule::new("!has(self.queue) || self.queue.maxRequests <= self.maxConcurrentRequests")
        .message("queue.maxRequests must not be above maxConcurrentRequests, which counts those that wait, too"),
    validation = Rule::new("self.type == 'HTTPRoute' || !has(self.httpRoute)")
        .message("httpRoute holds the settings of type HTTPRoute; remove it or write type: HTTPRoute"),
    validation = Rule::new("self.type != 'HTTPRoute' || has(self.httpRoute)")
        .message("type HTTPRoute needs httpRoute.parentRefs, the Gateways that take the requests; write for example httpRoute: {parentRefs: [{name: public, namespace: infra}]}"),
    validation = Rule::new("self.type == 'ReplicaRatio' || !has(self.replicaRatio)")
        .message("replicaRatio holds the settings of type ReplicaRatio; remove it or change type"),
    validation = Rule::new("self.type != 'ReplicaRatio' || !has(self.serviceName) || (has(self.replicaRatio) && self.replicaRatio.service == 'Pods')")
        .message("serviceName names the front Service, and type ReplicaRatio has none by default; set replicaRatio.service: Pods or leave serviceName out")
)]
#[serde(rename_all = "camelCase")]
pub struct Traffic {
    /// type of traffic. Gateway: requests go through Flotilla's gateway, which keeps the weights of a release exactly and counts
    /// what it is judged by. ReplicaRatio: for workers without HTTP; each ready replica takes its part of the work, so a weight is
    /// approximated by numbers of replicas (`status.rollout.measuredWeightPercent` shows the true one), and as nobody counts
    /// requests, a release goes on by time and approval; balancing, retries, ejection and queue have no part in it, and
    /// requestTimeoutSeconds is the time that a replica gets to end its work when it stops. HTTPRoute: a Gateway of the Gateway API
    /// sends requests straight to the replicas, by the weights of an HTTPRoute called like the pool that the operator owns; as
    /// they do not pass Flotilla's gateway they are not counted either, and balancing, timeouts and retries are that Gateway's;
    /// the front Service leads through Flotilla's gateway as ever. Default Gateway.
    #[serde(default, rename = "type")]
    pub type_: TrafficType,
    /// replicaRatio holds the settings of type ReplicaRatio.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replica_ratio: Option<ReplicaRatio>,
    /// httpRoute holds the settings of type HTTPRoute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http_route: Option<HTTPRouteTraffic>,
    /// serviceName of the front Service that clients use, on port 80. Default: the pool's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    #[x_kube(
        validation = rules::entry_name(),
        validation = Rule::new("self != 'flotilla-gateway'")
            .message("flotilla-gateway is the gateway's own Service; choose another name")
    )]
    pub service_name: Option<String>,
    /// balancing chooses the replica for a request among those with a free slot: RoundRobin takes them in turn; Weighted
    /// in turn, in proportion to the slots a gateway has at each; LeastLoaded the less busy of two picked at random;
    /// Adaptive the one of two whose recent latency times load is smaller; ConsistentHash the same replica for the same
    /// conversation, unless that one has more than 125 % of the mean load. Default LeastLoaded.
    #[serde(default)]
    pub balancing: Balancing,
    /// requestTimeoutSeconds is how long a request may take from its arrival at the gateway to the last byte of the
    /// response. Default 120.
    #[serde(default = "two_minutes")]
    #[schemars(range(min = 1, max = 86400))]
    pub request_timeout_seconds: i32,
    /// maxRequestBytes is the longest body of a request in bytes; a longer one is answered with 413. Bodies of unknown
    /// length are cut there. Default 33554432 (32 MiB).
    #[serde(default = "thirty_two_mebibytes")]
    #[schemars(range(min = 1024, max = 1_099_511_627_776i64))]
    pub max_request_bytes: i64,
    /// servedBy says when a response names the revision and the address of the replica it comes from, in the headers
    /// `x-flotilla-revision` and `x-flotilla-replica`: OnRequest where the request has a header `x-flotilla-served-by`,
    /// Always, or Never. Default OnRequest.
    #[serde(default)]
    pub served_by: ServedBy,
    /// maxConcurrentRequests of this pool that one gateway replica holds at once, from their arrival to the last byte of
    /// the response; further ones get 503 with Retry-After. It keeps one pool from using up the gateway. Default 10000.
    #[serde(default = "ten_thousand")]
    #[schemars(range(min = 1, max = 1000000))]
    pub max_concurrent_requests: i32,
    /// retries says which requests are tried again.
    #[serde(default)]
    pub retries: Retries,
    /// ejection says when a replica that fails gets no requests for a while.
    #[serde(default)]
    pub ejection: Ejection,
    /// queue bounds the requests that wait in a gateway while every slot is taken.
    #[serde(default)]
    pub queue: Queue,
}

impl Default for Traffic {
    fn default() -> Self {
        Self {
            type_: TrafficType::default(),
            replica_ratio: None,
            http_route: None,
            service_name: None,
            balancing: Balancing::default(),
            request_timeout_seconds: 120,
            max_request_bytes: thirty_two_mebibytes(),
            served_by: ServedBy::default(),
            max_concurrent_requests: 10_000,
            retries: Retries::default(),
            ejection: Ejection::default(),
            queue: Queue::default(),
        }
    }
}

/// When a response names its revision and replica.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ServedBy {
    /// Where the request asks for it.
    #[default]
    OnRequest,
    /// In every response of a replica.
    Always,
    /// In none.
    Never,
}

/// How conversations are known and kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Sessions {
    /// key says where a request names its conversation.
    #[serde(default)]
    pub key: SessionKey,
    /// idleSeconds after its last request a conversation is forgotten (at the earliest; at the latest a quarter later). Its
    /// next request is then like that of a new one. Default 1800.
    #[serde(default = "half_an_hour")]
    #[schemars(range(min = 1, max = 604800))]
    pub idle_seconds: i32,
    /// maxDrainSeconds for which a revision that was replaced keeps running for the conversations it has, counted from when it lost its
    /// weight; they end earlier by idleSeconds without a request, and with the last one its pods go. What is left then moves to the
    /// revision that serves, and is counted in `flotilla_gateway_sessions_moved_total`. Those pods run beside the new ones meanwhile,
    /// so the cluster needs room for both. A batch-by-batch release keeps its last batch. 0: conversations move with the weight.
    /// Default 3600.
    #[serde(default = "an_hour")]
    #[schemars(range(min = 0, max = 604800))]
    pub max_drain_seconds: i32,
}

impl Default for Sessions {
    fn default() -> Self {
        Self {
            key: SessionKey::default(),
            idle_seconds: 1800,
            max_drain_seconds: 3600,
        }
    }
}

/// Where a request names its conversation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[x_kube(
    validation = Rule::new("!has(self.header) || self.type == 'Header'")
        .message("sessions.key.header belongs to type Header; set type: Header or leave header out"),
    validation = Rule::new("!has(self.cookie) || self.type == 'Cookie'")
        .message("sessions.key.cookie belongs to type Cookie; set type: Cookie or leave cookie out")
)]
#[serde(rename_all = "camelCase")]
pub struct SessionKey {
    /// type is Header (the value of a header, sent by the client or first given by the agent in a response; a request
    /// without it goes by weight), Cookie (the
    /// value of a cookie, which the gateway sets where it is missing), A2AContext (the contextId of an A2A message;
    /// requests about a task follow it, and both go to the replica that has them) or None (no conversations are kept:
    /// each request goes by weight). Default None.
    #[serde(default, rename = "type")]
    pub type_: SessionKeyType,
    /// header whose value names the conversation, for example `X-Session-Id`, which is the default of type Header.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128))]
    #[x_kube(validation = Rule::new("self.matches('^[A-Za-z0-9_-]+$')")
        .message("a header's name consists of letters, digits, '-' and '_'; write for example X-Session-Id"))]
    pub header: Option<String>,
    /// cookie whose value names the conversation, for example `flotilla-session`, which is the default of type Cookie.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128))]
    #[x_kube(validation = Rule::new("self.matches('^[A-Za-z0-9_-]+$')")
        .message("a cookie's name consists of letters, digits, '-' and '_'; write for example flotilla-session"))]
    pub cookie: Option<String>,
}

impl SessionKey {
    /// The header of type Header.
    pub fn header_name(&self) -> &str {
        self.header.as_deref().unwrap_or("X-Session-Id")
    }

    /// The cookie of type Cookie.
    pub fn cookie_name(&self) -> &str {
        self.cookie.as_deref().unwrap_or("flotilla-session")
    }
}

/// How a conversation is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum SessionKeyType {
    /// By a header's value.
    Header,
    /// By a cookie's value.
    Cookie,
    /// By an A2A contextId.
    A2AContext,
    /// Not at all.
    #[default]
    None,
}

/// How a replica is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Balancing {
    /// In turn.
    RoundRobin,
    /// In turn, in proportion to slots.
    Weighted,
    /// The less busy of two picked at random.
    #[default]
    LeastLoaded,
    /// The one of two picked at random whose recent latency times load is smaller.
    Adaptive,
    /// The same replica for the same conversation, with bounded load.
    ConsistentHash,
}

/// What is tried again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Retries {
    /// attempts after the first one that a request may have, at other replicas where there are any. Default 3.
    #[serde(default = "three")]
    #[schemars(range(min = 0, max = 10))]
    pub attempts: i32,
    /// retryOn names what is tried again. ConnectFailure: nobody has worked on the request (no connection, or it was
    /// closed before the request was read), or its method is idempotent. Unavailable: also where somebody may have worked
    /// on it (status 503, closed without an answer, the time for one try over), so side effects may happen twice.
    /// Default `["ConnectFailure"]`.
    #[serde(default = "connect_failure")]
    #[schemars(length(max = 2))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub retry_on: Vec<RetryOn>,
    /// budgetPercent of the requests that may be tried again, so that retries do not finish off a pool that is in trouble;
    /// ten a second always may, and a hundred in a burst. Default 20.
    #[serde(default = "twenty")]
    #[schemars(range(min = 0, max = 100))]
    pub budget_percent: i32,
    /// perTryTimeoutSeconds after which a replica that has not begun to answer is given up; the request is tried again if
    /// `retryOn` has Unavailable, else it gets 504. Default: requestTimeoutSeconds alone counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 86400))]
    pub per_try_timeout_seconds: Option<i32>,
}

impl Default for Retries {
    fn default() -> Self {
        Self {
            attempts: 3,
            retry_on: connect_failure(),
            budget_percent: 20,
            per_try_timeout_seconds: None,
        }
    }
}

/// What is tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RetryOn {
    /// Nobody has worked on the request.
    ConnectFailure,
    /// Somebody may have worked on it.
    Unavailable,
}

/// When a replica that fails gets no requests for a while.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Ejection {
    /// type of ejection. Passive judges by the answers to real requests: a replica is ejected when it cannot be connected
    /// to, after `consecutiveFailures`, or when it fails far more often than the others. None ejects nobody. Default
    /// Passive.
    #[serde(default, rename = "type")]
    pub type_: EjectionType,
    /// consecutiveFailures in a row after which a replica is ejected: status 502, 503 or 504, a connection that breaks
    /// off, a timeout. Default 5.
    #[serde(default = "five")]
    #[schemars(range(min = 1, max = 100))]
    pub consecutive_failures: i32,
    /// openSeconds for which an ejected replica gets nothing; then single requests are tried there, and two that succeed
    /// bring it back. Doubled each time in a row, up to 300 s or what is written here. Default 10.
    #[serde(default = "ten")]
    #[schemars(range(min = 1, max = 3600))]
    pub open_seconds: i32,
    /// maxPercent of a revision's replicas that may be ejected at once, though of two or more one always may; those that
    /// cannot be connected to always are. If all are ejected, all serve. Default 30.
    #[serde(default = "thirty")]
    #[schemars(range(min = 1, max = 100))]
    pub max_percent: i32,
}

impl Default for Ejection {
    fn default() -> Self {
        Self {
            type_: EjectionType::default(),
            consecutive_failures: 5,
            open_seconds: 10,
            max_percent: 30,
        }
    }
}

/// How failing replicas are found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum EjectionType {
    /// By the answers to real requests.
    #[default]
    Passive,
    /// Not at all.
    None,
}

/// The bounded queue of a gateway.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Queue {
    /// maxRequests that wait at once in one gateway replica; further ones get 503 with Retry-After. Default 100.
    #[serde(default = "hundred")]
    #[schemars(range(min = 0, max = 100000))]
    pub max_requests: i32,
    /// maxWaitSeconds a request waits for a slot before it gets 503; one that is predicted to wait longer, or longer than
    /// its client says it will, gets it at once. Default 30.
    #[serde(default = "thirty")]
    #[schemars(range(min = 1, max = 3600))]
    pub max_wait_seconds: i32,
    /// tenantHeader is the request header whose value names the tenant, for example `X-Tenant`: tenants share the slots
    /// fairly while requests wait. Let something you trust set it. Default: all requests are one tenant's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    #[x_kube(validation = rules::header_name())]
    pub tenant_header: Option<String>,
    /// priorityHeader is the request header that holds Low, Normal, High or Critical, for example `X-Priority`: among the
    /// waiting requests of one tenant higher ones go first, and each rises by a class every sixth of maxWaitSeconds, so
    /// that Low is served, too. Anything else is Normal. Default: all requests are Normal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    #[x_kube(validation = rules::header_name())]
    pub priority_header: Option<String>,
}

impl Default for Queue {
    fn default() -> Self {
        Self {
            max_requests: 100,
            max_wait_seconds: 30,
            tenant_header: None,
            priority_header: None,
        }
    }
}

/// What voluntary disruptions may take.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Disruption {
    /// maxUnavailable pods that a node drain may take at once (PodDisruptionBudget). Default 1.
    #[serde(default = "one")]
    #[schemars(range(min = 0, max = 10000))]
    pub max_unavailable: i32,
}

impl Default for Disruption {
    fn default() -> Self {
        Self { max_unavailable: 1 }
    }
}

impl AgentPoolSpec {
    /// The front Service's name of a pool called `pool`.
    pub fn front_service<'a>(&'a self, pool: &'a str) -> &'a str {
        self.traffic.service_name.as_deref().unwrap_or(pool)
    }

    /// The pinned revision, where one is named; an empty string counts as none.
    pub fn pinned_revision(&self) -> Option<&str> {
        self.rollout
            .pinned_revision
            .as_deref()
            .filter(|name| !name.is_empty())
    }

    /// Replicas that should serve: none while stopped.
    pub fn effective_replicas(&self) -> i32 {
        if self.stopped { 0 } else { self.replicas }
    }

    /// The settings of a rolling update, with their defaults when the member is absent.
    pub fn rolling_update(&self) -> RollingUpdate {
        self.rollout.rolling_update.clone().unwrap_or_default()
    }
}

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
fn three() -> i32 {
    3
}
fn five() -> i32 {
    5
}
fn ten() -> i32 {
    10
}
fn twenty() -> i32 {
    20
}
fn ten_thousand() -> i32 {
    10_000
}
fn connect_failure() -> Vec<RetryOn> {
    vec![RetryOn::ConnectFailure]
}
fn eight() -> i32 {
    8
}
fn an_hour() -> i32 {
    3600
}
fn half_an_hour() -> i32 {
    1800
}
fn thirty() -> i32 {
    30
}
fn hundred() -> i32 {
    100
}
fn thirty_two_mebibytes() -> i64 {
    32 * 1024 * 1024
}
fn two_minutes() -> i32 {
    120
}
fn port() -> i32 {
    8080
}
fn unseen() -> i64 {
    -1
}
fn prompt_path() -> String {
    crate::names::PROMPT_PATH.into()
}
