//! `spec.agent` of an AgentPool: what runs.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{EnvFromSource, EnvVar, Probe, ResourceRequirements};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::common::{ConfigMapKeyRef, LocalRef};
use crate::{names, rules};

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

fn eight() -> i32 {
    8
}

fn port() -> i32 {
    8080
}

fn prompt_path() -> String {
    crate::names::PROMPT_PATH.into()
}
