//! `AgentPool`: what runs, how many, how traffic reaches it, and how a new revision is released.

use crate::common::{ConfigMapKeyRef, LocalRef};
use crate::rules;
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
    printcolumn(name = "Waiting", type_ = "string", json_path = ".status.rollout.waitingFor.message", priority = 1),
    printcolumn(name = "Image", type_ = "string", json_path = ".spec.agent.image", priority = 1),
    validation = rules::object_name("names of revisions and Services are made from it"),
    validation = Rule::new("self.metadata.name != 'flotilla-gateway'")
        .message("metadata.name: flotilla-gateway is the name of the gateway's own objects; choose another name"),
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
    /// podTemplate is merged over the pod template that Flotilla makes (lists by key; the container `agent` is the
    /// main one): sidecars, volumes, pull secrets, topology, anything a pod can say. The API server checks the result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::any_object")]
    pub pod_template: Option<serde_json::Value>,
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
#[serde(rename_all = "camelCase")]
pub struct Traffic {
    /// serviceName of the front Service that clients use, on port 80. Default: the pool's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    #[x_kube(
        validation = rules::entry_name(),
        validation = Rule::new("self != 'flotilla-gateway'")
            .message("flotilla-gateway is the gateway's own Service; choose another name")
    )]
    pub service_name: Option<String>,
    /// balancing chooses the replica for a request: RoundRobin takes them in turn, LeastLoaded the less busy of two
    /// picked at random. Default LeastLoaded.
    #[serde(default)]
    pub balancing: Balancing,
    /// requestTimeoutSeconds is how long a request may take from its arrival at the gateway to the last byte of the
    /// response. Default 120.
    #[serde(default = "two_minutes")]
    #[schemars(range(min = 1, max = 86400))]
    pub request_timeout_seconds: i32,
    /// queue bounds the requests that wait in a gateway while every slot is taken.
    #[serde(default)]
    pub queue: Queue,
}

impl Default for Traffic {
    fn default() -> Self {
        Self {
            service_name: None,
            balancing: Balancing::default(),
            request_timeout_seconds: 120,
            queue: Queue::default(),
        }
    }
}

/// How a replica is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Balancing {
    /// In turn.
    RoundRobin,
    /// The less busy of two picked at random.
    #[default]
    LeastLoaded,
}

/// The bounded queue of a gateway.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Queue {
    /// maxRequests that wait at once in one gateway replica; further ones get 503 with Retry-After. Default 100.
    #[serde(default = "hundred")]
    #[schemars(range(min = 0, max = 100000))]
    pub max_requests: i32,
    /// maxWaitSeconds a request waits for a slot before it gets 503. Default 30.
    #[serde(default = "thirty")]
    #[schemars(range(min = 1, max = 3600))]
    pub max_wait_seconds: i32,
}

impl Default for Queue {
    fn default() -> Self {
        Self {
            max_requests: 100,
            max_wait_seconds: 30,
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

/// How a new revision replaces the one that serves.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Rollout {
    /// type of release: RollingUpdate replaces replicas in batches, the traffic following the available share.
    /// Default RollingUpdate.
    #[serde(default, rename = "type")]
    pub type_: RolloutType,
    /// rollingUpdate holds the settings of type RollingUpdate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rolling_update: Option<RollingUpdate>,
    /// paused stops a release where it stands; what serves goes on serving. Default false.
    #[serde(default)]
    pub paused: bool,
    /// pinnedRevision goes (back) to this revision whatever `spec.agent` says, for example `support-6f9c4d`. It must
    /// be in the history. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub pinned_revision: Option<String>,
    /// settleSeconds that the spec and the ConfigMaps it refers to must rest before a release starts, so that one
    /// sync of many objects is one revision. Default 5.
    #[serde(default = "five")]
    #[schemars(range(min = 0, max = 3600))]
    pub settle_seconds: i32,
    /// progressDeadlineSeconds a release may go without progress before it is stopped (`Stalled`); what serves goes on
    /// serving. Default 600.
    #[serde(default = "ten_minutes")]
    #[schemars(range(min = 10, max = 86400))]
    pub progress_deadline_seconds: i32,
}

impl Default for Rollout {
    fn default() -> Self {
        Self {
            type_: RolloutType::default(),
            rolling_update: None,
            paused: false,
            pinned_revision: None,
            settle_seconds: 5,
            progress_deadline_seconds: 600,
        }
    }
}

/// The types of release.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RolloutType {
    /// In batches; the traffic follows the available share.
    #[default]
    RollingUpdate,
}

/// Settings of a rolling update.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct RollingUpdate {
    /// maxSurgePercent of `replicas` that may run in addition, rounded up: the size of a batch. Default 25.
    #[serde(default = "quarter")]
    #[schemars(range(min = 1, max = 100))]
    pub max_surge_percent: i32,
}

impl Default for RollingUpdate {
    fn default() -> Self {
        Self {
            max_surge_percent: 25,
        }
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
    /// conditions: Ready (the spec is fully in force), Available (what serves has its capacity), Reconciling, Stalled.
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
    /// weight in percent; the weights of a pool add up to 100.
    #[schemars(range(min = 0, max = 100))]
    pub weight: i32,
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
    /// deadlineTime after which the release is stopped; absent when it waits for ever.
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

fn one() -> i32 {
    1
}
fn five() -> i32 {
    5
}
fn eight() -> i32 {
    8
}
fn thirty() -> i32 {
    30
}
fn hundred() -> i32 {
    100
}
fn quarter() -> i32 {
    25
}
fn two_minutes() -> i32 {
    120
}
fn ten_minutes() -> i32 {
    600
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
