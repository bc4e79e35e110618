//! Members of `spec.traffic` of an AgentPool: how requests are spread, retried, kept from failing replicas, and queued.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::rules;

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

fn connect_failure() -> Vec<RetryOn> {
    vec![RetryOn::ConnectFailure]
}

fn thirty() -> i32 {
    30
}

fn hundred() -> i32 {
    100
}
