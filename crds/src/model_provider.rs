//! `ModelProvider`: where models are reached, with which credentials, and what was used.

use crate::common::SecretKeyRef;
use crate::quota::{Quota, QuotaStatus};
use crate::rules;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A provider of models that agents reach through the gateway, which adds the key and counts the use.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "flotilla.dev",
    version = "v1alpha1",
    kind = "ModelProvider",
    plural = "modelproviders",
    shortname = "mprov",
    category = "flotilla",
    namespaced,
    status = "ModelProviderStatus",
    derive = "PartialEq",
    doc = "ModelProvider is a provider of models that agents reach through the gateway, which adds the key and counts the use.",
    printcolumn(name = "State", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason"),
    printcolumn(name = "Requests", type_ = "integer", json_path = ".status.usage.requests"),
    printcolumn(name = "Input", type_ = "integer", json_path = ".status.usage.inputTokens"),
    printcolumn(name = "Output", type_ = "integer", json_path = ".status.usage.outputTokens"),
    printcolumn(name = "Exhausted", type_ = "string", json_path = ".status.conditions[?(@.type==\"QuotaExhausted\")].status"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Endpoint", type_ = "string", json_path = ".spec.endpoint", priority = 1),
    validation = Rule::new("self.metadata.name.size() <= 63 && self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')")
        .message("metadata.name must be at most 63 characters of a-z, 0-9 and '-', and begin and end with a letter or digit: it is part of a path in the gateway; choose another name")
)]
#[serde(rename_all = "camelCase")]
pub struct ModelProviderSpec {
    /// type is the wire protocol: OpenAI (also spoken by most other providers and servers). Default OpenAI.
    #[serde(default, rename = "type")]
    pub type_: ProviderType,
    /// endpoint is the base address, with the version, for example `https://api.example.com/v1`.
    #[schemars(length(min = 1, max = 2048))]
    #[x_kube(validation = Rule::new("self.matches('^https?://[^ /?#@]+(/[^ ?#]*[^ /?#])?$')").message("endpoint must be an http or https address with the API's version, without user, query and a '/' at the end, for example https://api.example.com/v1"))]
    pub endpoint: String,
    /// auth is how the gateway proves itself to the provider. Default: type None.
    #[serde(default)]
    pub auth: Auth,
    /// models offered. Default: any; a pool that names a model outside this list is refused with a condition.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 128))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub models: Vec<OfferedModel>,
    /// quotas are the provider's limits for this key. All gateways of the namespace hold them together, exactly: a request
    /// that would exceed one waits in the gateway for its turn, fairly between pools, and is answered with 429 only when its
    /// time is over. Default: none. Other users of the same key are not known, but the provider's rate-limit headers are
    /// heeded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub quotas: Vec<Quota>,
}

/// Wire protocol of a provider.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ProviderType {
    /// The OpenAI API, also spoken by most other providers and servers.
    #[default]
    OpenAI,
}

/// How the gateway proves itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[x_kube(
    validation = Rule::new("self.type == 'APIKey' ? has(self.apiKey) : !has(self.apiKey)")
        .message("auth: write type: APIKey together with apiKey, or type: None (the default) without it")
)]
#[serde(rename_all = "camelCase")]
pub struct Auth {
    /// type of proof: APIKey (sent as a bearer token) or None. Default None.
    #[serde(default, rename = "type")]
    pub type_: AuthType,
    /// apiKey holds the settings of type APIKey.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_key: Option<ApiKey>,
}

/// Types of proof.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum AuthType {
    /// A key, sent as a bearer token.
    APIKey,
    /// No proof.
    #[default]
    None,
}

/// Where the key is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ApiKey {
    /// secretKeyRef names the Secret key that holds the key. The gateway mounts it; the operator never reads it.
    pub secret_key_ref: SecretKeyRef,
}

/// A model and its price.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct OfferedModel {
    /// name of the model at the provider, for example `gpt-5-mini`.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// price of its tokens; LoadTests report cost by it. Default: unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub price: Option<Price>,
}

/// A price per million tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Price {
    /// currency in three capital letters. Default USD.
    #[serde(default = "usd")]
    #[schemars(length(min = 3, max = 3))]
    #[x_kube(validation = Rule::new("self.matches('^[A-Z]{3}$')").message("price.currency must be three capital letters, for example USD"))]
    pub currency: String,
    /// inputPerMillion tokens, as a decimal string, for example `"0.25"`.
    #[schemars(length(min = 1, max = 16))]
    #[x_kube(validation = rules::money())]
    pub input_per_million: String,
    /// outputPerMillion tokens, as a decimal string, for example `"2.00"`.
    #[schemars(length(min = 1, max = 16))]
    #[x_kube(validation = rules::money())]
    pub output_per_million: String,
}

/// What is observed of a ModelProvider.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ModelProviderStatus {
    /// conditions: Ready (the gateways can use it), Reconciling, Stalled, QuotaExhausted (requests wait for a quota).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "crate::schema::conditions")]
    pub conditions: Vec<Condition>,
    /// observedGeneration is the generation of the spec this status speaks of; -1 before the first visit.
    #[serde(default = "unseen")]
    #[schemars(range(min = -1))]
    pub observed_generation: i64,
    /// usage counted by the gateways, refreshed at most every 30 seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// quotas lists how much of each is used, refreshed at most every 30 seconds.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub quotas: Vec<QuotaStatus>,
}

/// What was used since the object was made.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Usage {
    /// requests sent to the provider.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub requests: i64,
    /// failed requests among them: no response, or a status of 400 and above.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub failed: i64,
    /// inputTokens as the provider reported them.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub input_tokens: i64,
    /// outputTokens as the provider reported them.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub output_tokens: i64,
    /// time of the newest count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<Time>,
    /// models lists the use by model.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 128))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub models: Vec<ModelUsage>,
    /// counted holds how much of each gateway process's counters is in the sums above, so that a restarted operator
    /// adds only what is new. A process's entry goes with its pod.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["instance".into()]))]
    pub counted: Vec<CountedSource>,
}

/// What was used of one model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ModelUsage {
    /// name of the model at the provider.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// requests sent for this model.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub requests: i64,
    /// failed requests among them: no response, or a status of 400 and above.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub failed: i64,
    /// inputTokens as the provider reported them.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub input_tokens: i64,
    /// outputTokens as the provider reported them.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub output_tokens: i64,
}

/// What is already counted of one gateway process.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct CountedSource {
    /// instance is the gateway process, as it names itself.
    #[schemars(length(min = 1, max = 128))]
    pub instance: String,
    /// pod the process runs in.
    #[serde(default)]
    #[schemars(length(max = 253))]
    pub pod: String,
    /// models lists its counters when they were last added.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 129))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub models: Vec<ModelUsage>,
}

fn usd() -> String {
    "USD".into()
}
fn unseen() -> i64 {
    -1
}
