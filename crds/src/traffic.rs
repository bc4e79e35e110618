//! `spec.traffic` of an AgentPool: the ways on which work reaches its replicas.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::resilience::{Balancing, Ejection, Queue, Retries};
use crate::rules;

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

fn ten_thousand() -> i32 {
    10_000
}

fn thirty_two_mebibytes() -> i64 {
    32 * 1024 * 1024
}

fn two_minutes() -> i32 {
    120
}

/// The types of traffic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TrafficType {
    /// Through Flotilla's gateway, which weighs and counts.
    #[default]
    Gateway,
    /// By the numbers of replicas.
    ReplicaRatio,
    /// Through a Gateway of the Gateway API.
    HTTPRoute,
}

/// Settings of pools whose weights are numbers of replicas.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReplicaRatio {
    /// service says whether there is a front Service. None: there is none, for workers that fetch their work from a queue; a
    /// replica without a readiness probe of its own counts as ready once it runs. Pods: it leads straight to all ready replicas, of
    /// the old and the new revision alike, past the gateway. Default None.
    #[serde(default)]
    pub service: RatioService,
}

/// The front Service of a pool whose weights are numbers of replicas.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RatioService {
    /// There is none.
    #[default]
    None,
    /// It leads straight to all ready replicas.
    Pods,
}

/// Settings of pools that a Gateway of the Gateway API serves.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct HTTPRouteTraffic {
    /// parentRefs are the Gateways that take this pool's requests, as in an HTTPRoute, for example
    /// `[{name: public, namespace: infra}]`. One in another namespace must allow routes from this one (`allowedRoutes`).
    #[schemars(length(min = 1, max = 32))]
    pub parent_refs: Vec<ParentRef>,
    /// hostnames that are led to this pool, for example `[support.example.com]`; `*.example.com` takes all below. Default: every
    /// host of the Gateway.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 253)))]
    #[x_kube(
        merge_strategy = ListMerge::Set,
        validation = Rule::new("self.all(h, h.matches('^([*][.])?[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$'))")
            .message("hostnames consist of a-z, 0-9, '-' and '.', and may begin with '*.'; write for example support.example.com")
    )]
    pub hostnames: Vec<String>,
    /// pathPrefix of the requests that are led to this pool, for example `/support`; it stays in the path. Default `/`: all.
    #[serde(default = "slash")]
    #[schemars(length(min = 1, max = 1024))]
    #[x_kube(validation = Rule::new("self.matches('^/[-A-Za-z0-9/._~!$&()*+,;=:@%]*$') && !self.contains('//') && !(self + '/').contains('/./') && !(self + '/').contains('/../')")
        .message("pathPrefix begins with '/' and holds no '//', '/./' or '/../'; write for example /support"))]
    pub path_prefix: String,
}

/// A Gateway, as an HTTPRoute names it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ParentRef {
    /// group of the parent. Default gateway.networking.k8s.io.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub group: Option<String>,
    /// kind of the parent. Default Gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub kind: Option<String>,
    /// namespace of the parent. Default: the pool's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub namespace: Option<String>,
    /// name of the parent.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// sectionName is the listener of the Gateway. Default: all that fit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub section_name: Option<String>,
    /// port of the Gateway's listener. Default: all that fit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: Option<i32>,
}

/// Which requests go to the new revision whatever its weight.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Preview {
    /// header of the requests that go to the new revision, for example `X-Preview`.
    #[schemars(length(min = 1, max = 64))]
    #[x_kube(validation = rules::header_name())]
    pub header: String,
    /// value that the header must have, exactly, for example `candidate`. Whoever knows it may try what is not released yet:
    /// choose one that is hard to guess, or let something you trust set the header.
    #[schemars(length(min = 1, max = 256))]
    #[x_kube(validation = Rule::new("self.matches('^[!-~]([ -~]*[!-~])?$')")
        .message("a header's value consists of printable ASCII characters and neither begins nor ends with a space; write for example candidate"))]
    pub value: String,
}

fn slash() -> String {
    "/".to_owned()
}

impl Traffic {
    /// Whether the numbers of replicas are the weights: nobody sends requests by weights, and nobody counts them.
    pub fn is_by_number(&self) -> bool {
        self.type_ == TrafficType::ReplicaRatio
    }

    /// Whether every request passes the gateway, so that its counts are evidence.
    pub fn is_counted(&self) -> bool {
        self.type_ == TrafficType::Gateway
    }

    /// Whether an HTTPRoute carries the traffic.
    pub fn is_routed(&self) -> bool {
        self.type_ == TrafficType::HTTPRoute
    }

    /// Whether clients have a front Service.
    pub fn has_front(&self) -> bool {
        !self.is_by_number() || self.replica_ratio.clone().unwrap_or_default().service == RatioService::Pods
    }
}
