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
    printcolumn(name = "Budget", type_ = "integer", json_path = ".status.budget.percent"),
    printcolumn(name = "Exhausted", type_ = "string", json_path = ".status.conditions[?(@.type==\"QuotaExhausted\")].status"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Endpoint", type_ = "string", json_path = ".spec.endpoint", priority = 1),
    validation = Rule::new("self.metadata.name.size() <= 63 && self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')")
        .message("metadata.name must be at most 63 characters of a-z, 0-9 and '-', and begin and end with a letter or digit: it is part of a path in the gateway; choose another name"),
    validation = Rule::new("!has(self.spec.budget) || !has(self.spec.models) || self.spec.models.all(m, !has(m.price) || m.price.currency == self.spec.budget.currency)")
        .message("budget.currency must be that of every price in models: amounts are not converted; write all of them in one currency"),
    validation = Rule::new("!has(self.spec.budget) || self.spec.budget.currency == 'USD' || (has(self.spec.models) && self.spec.models.size() > 0 && self.spec.models.all(m, has(m.price)))")
        .message("budget: built-in prices are in USD; for another currency list the models and give each a price"),
    validation = Rule::new("!has(self.spec.quotaGroup) || has(self.spec.quotas) && self.spec.quotas.size() > 0 && self.spec.quotas.all(q, q.floor == 0)")
        .message("quotaGroup: write the quotas that the group shares, each without floor: in another cluster a gateway that is cut off cannot be told from one that has ended")
)]
#[serde(rename_all = "camelCase")]
pub struct ModelProviderSpec {
    /// type is the wire protocol: OpenAI (chat completions, responses and embeddings; also spoken by most other providers
    /// and servers) or Anthropic (messages). Default OpenAI.
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
    /// budget limits what is spent at this provider. Default: none. Spend is counted from the provider's usage by
    /// `models[].price`, else by built-in list prices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<Budget>,
    /// quotas are the provider's limits for this key. All gateways of the namespace hold them together, exactly: a request
    /// that would exceed one waits in the gateway for its turn, fairly between pools, and is answered with 429 only when its
    /// time is over. Default: none. Other users of the same key are not known, but the provider's rate-limit headers are
    /// heeded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub quotas: Vec<Quota>,
    /// quotaGroup shares the quotas with every ModelProvider, in this and other namespaces and clusters, that names the same
    /// group: all their gateways hold them together, in the Redis or Valkey of the chart's value `gateway.quotaRedis`. Give
    /// each of them the same quotas, because those of whichever gateway deals out count. Whoever has the password of that
    /// Redis can use up the group's quotas. Budgets are not shared. Default: none, the quotas are those of this namespace.
    /// Example: openai-prod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", length(min = 1, max = 63))]
    #[x_kube(validation = rules::entry_name())]
    pub quota_group: Option<String>,
}

/// Wire protocol of a provider.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ProviderType {
    /// The OpenAI API, also spoken by most other providers and servers.
    #[default]
    OpenAI,
    /// The Anthropic API: `/messages`, with the key as `x-api-key`.
    Anthropic,
}

/// How the gateway proves itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[x_kube(
    validation = Rule::new("self.type == 'APIKey' ? has(self.apiKey) : !has(self.apiKey)")
        .message("auth: write type: APIKey together with apiKey, or type: None (the default) without it")
)]
#[serde(rename_all = "camelCase")]
pub struct Auth {
    /// type of proof: APIKey (sent as a bearer token, to type Anthropic as `x-api-key`) or None. Default None.
    #[serde(default, rename = "type")]
    pub type_: AuthType,
    /// apiKey holds the settings of type APIKey.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_key: Option<ApiKey>,
}

/// Types of proof.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum AuthType {
    /// A key, sent as a bearer token or as `x-api-key`.
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

/// A model, its price and its budget.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[x_kube(
    validation = Rule::new("!has(self.budget) || (has(self.price) ? self.price.currency : 'USD') == self.budget.currency")
        .message("models: budget.currency must be that of the model's price, or USD where it has none, as built-in prices are in USD; amounts are not converted")
)]
#[serde(rename_all = "camelCase")]
pub struct OfferedModel {
    /// name of the model at the provider, for example `gpt-5-mini`.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// price of its tokens, for the budget and for the cost that LoadTests report. Default: the public list price of a
    /// common model, as built in; else unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub price: Option<Price>,
    /// budget limits what is spent on this model, within the provider's budget if there is one too: a request has to fit
    /// both. Default: none. Example: `{limit: "50.00", window: Day}`. The name of a request counts as the agent writes it: an alias of
    /// the provider for the same model is another model, list it with a budget of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<Budget>,
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

/// What may be spent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Budget {
    /// limit of the spend in one window, as a decimal string, for example `"500.00"`.
    #[schemars(length(min = 1, max = 16))]
    #[x_kube(validation = Rule::new("self.matches('^[0-9]{1,9}([.][0-9]{1,6})?$')").message("budget.limit must be a decimal string, for example \"500.00\""))]
    pub limit: String,
    /// currency in three capital letters, that of the prices. Default USD, as the built-in prices are.
    #[serde(default = "usd")]
    #[schemars(length(min = 3, max = 3))]
    #[x_kube(validation = Rule::new("self.matches('^[A-Z]{3}$')").message("budget.currency must be three capital letters, for example USD"))]
    pub currency: String,
    /// window after which the spend begins anew, at midnight UTC: Day, Week (on Mondays), Month (on the first) or Year.
    /// Default Month.
    #[serde(default)]
    pub window: BudgetWindow,
    /// onExhausted says what happens to requests when the limit is reached: Block refuses them with 429 and the code
    /// BudgetExhausted (and those for models without a known price, whose spend nobody could count), or sends them to the
    /// next of `agent.models[].fallbacks`; Allow lets them pass and only alerts. Default Block.
    #[serde(default)]
    pub on_exhausted: OnExhausted,
}

/// How long a budget lasts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum BudgetWindow {
    /// From midnight UTC.
    Day,
    /// From midnight UTC before Monday.
    Week,
    /// From midnight UTC before the first.
    #[default]
    Month,
    /// From midnight UTC before 1 January.
    Year,
}

/// What happens at a budget's end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum OnExhausted {
    /// Requests are refused, or sent to a fallback.
    #[default]
    Block,
    /// Requests pass; only alerts are given.
    Allow,
}

/// What is observed of a ModelProvider.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ModelProviderStatus {
    /// conditions: Ready (the gateways can use it), Reconciling, Stalled, QuotaExhausted (requests wait for a quota),
    /// BudgetAlert (80, 90 or 100 % of a budget are spent).
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
    /// budget is how much of `spec.budget` is spent, refreshed at most every 30 seconds, every second near its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<BudgetStatus>,
    /// modelBudgets is how much of each `spec.models[].budget` is spent, refreshed as budget is.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 128))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub model_budgets: Vec<ModelBudgetStatus>,
}

/// How much of one model's budget is spent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ModelBudgetStatus {
    /// name of the model.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// budget is how much of its budget is spent.
    pub budget: BudgetStatus,
}

/// How much of a budget is spent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct BudgetStatus {
    /// spent in this window, as a decimal string, exactly.
    #[schemars(length(min = 1, max = 32))]
    pub spent: String,
    /// percent of the limit, rounded down: 100 means exhausted; at most 999.
    #[schemars(range(min = 0, max = 999))]
    pub percent: i32,
    /// limit that was judged.
    #[schemars(length(min = 1, max = 32))]
    pub limit: String,
    /// currency of the amounts.
    #[schemars(length(min = 3, max = 3))]
    pub currency: String,
    /// startTime is when this window began.
    pub start_time: Time,
    /// endTime is when the next one begins.
    pub end_time: Time,
    /// base is what `usage.spend` was when the window began; `spent` is what has been added since.
    #[schemars(length(min = 1, max = 32))]
    pub base: String,
    /// alertedPercent is the highest threshold that was announced in this window: 0, 80, 90 or 100.
    #[serde(default)]
    #[schemars(range(min = 0, max = 100))]
    pub alerted_percent: i32,
}

/// An amount of money.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Spend {
    /// currency in three capital letters.
    #[schemars(length(min = 3, max = 3))]
    pub currency: String,
    /// amount as a decimal string, exactly.
    #[schemars(length(min = 1, max = 32))]
    pub amount: String,
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
    /// spend by the prices of `spec.models` and the built-in ones, by currency.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["currency".into()]))]
    pub spend: Vec<Spend>,
    /// unpricedRequests were answered with tokens by models without a known price; they are in no spend.
    #[serde(default, skip_serializing_if = "is_zero")]
    #[schemars(range(min = 0))]
    pub unpriced_requests: i64,
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
    /// spend on this model, by currency.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["currency".into()]))]
    pub spend: Vec<Spend>,
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
    /// spend is its own spend when it was last added.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["currency".into()]))]
    pub spend: Vec<Spend>,
    /// unpricedRequests are its own when they were last added.
    #[serde(default, skip_serializing_if = "is_zero")]
    #[schemars(range(min = 0))]
    pub unpriced_requests: i64,
}

fn is_zero(count: &i64) -> bool {
    *count == 0
}

fn usd() -> String {
    "USD".into()
}
fn unseen() -> i64 {
    -1
}
