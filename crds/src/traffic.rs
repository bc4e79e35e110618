//! The ways on which work reaches a pool's replicas: members of the union `spec.traffic`.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::agent_pool::Traffic;
use crate::rules;

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
