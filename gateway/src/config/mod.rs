//! What the gateway is told: pools, providers, endpoints, as plain values.
//!
//! The data plane knows nothing of Kubernetes. It follows a [`tokio::sync::watch`] channel of whole configurations:
//! [`watch`] fills it from the API server, tests fill it by hand. `None` means that nothing has been seen yet.

pub mod issuer;
mod resilience;
pub mod translate;
pub mod watch;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use flotilla_core::balance::{BudgetPolicy, EjectionPolicy, RetryPolicy};
use http::{HeaderName, HeaderValue};

pub use flotilla_crds::agent_pool::{AppProtocol, Balancing, ServedBy};
pub use flotilla_crds::model_provider::ProviderType;

use flotilla_core::price::gate::Written;
use flotilla_core::price::ledger::Policy;
use flotilla_core::price::{Money, Price};
pub use flotilla_crds::quota::Quota;
use jiff::Timestamp;

pub use crate::session::config::{KeySource, SessionsConfig};

/// Where configurations come from; the newest wins, older ones may be skipped.
pub type Source = tokio::sync::watch::Receiver<Option<Arc<Config>>>;

/// Everything the data plane follows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Config {
    /// By pool name.
    pub pools: BTreeMap<String, PoolConfig>,
    /// By ModelProvider name.
    pub providers: BTreeMap<String, ProviderConfig>,
    /// What is spent at providers with a budget, by name; apart from their specs, because it changes often.
    pub spends: BTreeMap<String, SpendConfig>,
    /// The same of models with a budget of their own, by provider and model.
    pub model_spends: BTreeMap<String, BTreeMap<String, SpendConfig>>,
    /// Ready gateways of the namespace, at least 1.
    pub ready_gateways: u32,
    /// Addresses of all agent pods of the namespace, ready or not: who may use the egress.
    pub agents: HashSet<IpAddr>,
    /// The pool of each of these.
    pub agent_pools: HashMap<IpAddr, Arc<str>>,
    /// Addresses of the gateway pods of the namespace by pod name, ready or not, this one among them.
    pub gateway_pods: BTreeMap<String, IpAddr>,
    /// Admin ports of the namespace's other gateways, ready or not.
    pub gateways: BTreeSet<SocketAddr>,
    /// The same pods, as far as tokens are about them.
    pub pods: AgentPods,
    /// Who signs their tokens; `None` while no pool needs it or nobody knows.
    pub issuer: Option<Arc<issuer::Issuer>>,
    /// True once this gateway's own endpoint is being terminated.
    pub terminating: bool,
}

/// Agent pods, as far as tokens are about them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AgentPods {
    /// Address by the pod's UID.
    pub addresses: HashMap<String, IpAddr>,
    /// Addresses of those that have to prove themselves by a token.
    pub proven: HashSet<IpAddr>,
}

/// One pool.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PoolConfig {
    /// `metadata.uid`: a pool of the same name with another one is another pool.
    pub uid: String,
    /// Name of the front Service.
    pub service: String,
    /// The pool's own port.
    pub port: Option<u16>,
    /// `status.trafficGeneration`; -1 before the operator has set one.
    pub generation: i64,
    /// `status.traffic`: revision and weight in percent.
    pub weights: Vec<(String, u32)>,
    /// How replicas are chosen.
    pub balancing: Balancing,
    /// From arrival to the last byte of the response.
    pub request_timeout: Duration,
    /// Requests held at once, from arrival to the last byte.
    pub max_requests: usize,
    /// What is tried again.
    pub retries: RetryConfig,
    /// When a replica is left alone for a while.
    pub ejection: EjectionPolicy,
    /// Requests that may wait at once.
    pub queue_requests: usize,
    /// How long one may wait.
    pub queue_wait: Duration,
    /// Limits and manners of HTTP.
    pub http: HttpConfig,
    /// The header that names the tenant, for fairness in the queue.
    pub tenant_header: Option<HeaderName>,
    /// The header that names the class, for the order in the queue.
    pub priority_header: Option<HeaderName>,
    /// The kill switch.
    pub stopped: bool,
    /// How its conversations are known and kept, if they are.
    pub sessions: Option<SessionsConfig>,
    /// Which requests are testers'.
    pub preview: Option<PreviewConfig>,
    /// By revision name: those with weight and those with endpoints.
    pub revisions: BTreeMap<String, RevisionConfig>,
}

/// How a pool's requests are treated as HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HttpConfig {
    /// Longest body of a request.
    pub max_request_bytes: u64,
    /// When a response names its revision and replica.
    pub served_by: ServedBy,
}

impl Default for HttpConfig {
    /// As in the API.
    fn default() -> Self {
        Self {
            max_request_bytes: 32 * 1024 * 1024,
            served_by: ServedBy::default(),
        }
    }
}

/// Requests of testers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PreviewConfig {
    /// They have this header,
    pub header: HeaderName,
    /// with exactly this value.
    pub value: HeaderValue,
    /// The revision they go to; none while there is nothing to test: then they go by weight.
    pub revision: Option<String>,
}

/// What is tried again.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RetryConfig {
    /// Which failures, how often.
    pub policy: RetryPolicy,
    /// How many the pool can afford.
    pub budget: BudgetPolicy,
    /// For the response's head, at one replica.
    pub try_timeout: Option<Duration>,
}

/// One revision.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RevisionConfig {
    /// Requests that this gateway may have in flight at one replica.
    pub slots: u32,
    /// The version of HTTP that its replicas take.
    pub app_protocol: AppProtocol,
    /// By address.
    pub endpoints: BTreeMap<SocketAddr, EndpointConfig>,
}

/// One agent pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EndpointConfig {
    /// UID of the pod, empty where unknown. A new pod at an old address is another endpoint.
    pub uid: String,
    /// Takes new requests.
    pub ready: bool,
    /// Requests that this gateway may have in flight there; the revision's where absent.
    pub slots: Option<u32>,
}

/// One ModelProvider.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProviderConfig {
    /// `metadata.generation`.
    pub generation: i64,
    /// Base address, ending in the version.
    pub endpoint: String,
    /// The Secret's name and key where the provider wants a key, for messages.
    pub secret: Option<(String, String)>,
    /// The protocol it speaks.
    pub type_: ProviderType,
    /// Prices by model, before the built-in ones.
    pub prices: BTreeMap<String, Price>,
    /// What may be spent.
    pub budget: Option<Policy>,
    /// What may be spent on a model, by its name.
    pub model_budgets: BTreeMap<String, Policy>,
    /// Limits that all gateways hold together.
    pub quotas: Vec<Quota>,
    /// The group whose gateways hold them, where these are not just the gateways of the namespace.
    pub quota_group: Option<String>,
}

/// What the operator has written of a provider's budget, or of a model's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpendConfig {
    /// Start of the window that `spent` is about.
    pub window_start: Timestamp,
    /// Spend of all gateways in that window.
    pub spent: Money,
    /// As much of each process's spend is in that, by instance.
    pub counted: BTreeMap<String, Money>,
}

impl SpendConfig {
    /// As the process `instance` reads it.
    pub fn of(&self, instance: &str) -> Written {
        Written {
            window_start: self.window_start,
            spent: self.spent,
            counted: self.counted.get(instance).copied().unwrap_or_default(),
        }
    }
}
