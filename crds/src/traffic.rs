//! The ways on which work reaches a pool's replicas: members of the union `spec.traffic`.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::agent_pool::Traffic;

/// The types of traffic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TrafficType {
    /// Through Flotilla's gateway, which weighs and counts.
    #[default]
    Gateway,
    /// By the numbers of replicas.
    ReplicaRatio,
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

impl Traffic {
    /// Whether the numbers of replicas are the weights: nobody sends requests by weights, and nobody counts them.
    pub fn is_by_number(&self) -> bool {
        self.type_ == TrafficType::ReplicaRatio
    }

    /// Whether every request passes the gateway, so that its counts are evidence.
    pub fn is_counted(&self) -> bool {
        self.type_ == TrafficType::Gateway
    }

    /// Whether clients have a front Service.
    pub fn has_front(&self) -> bool {
        !self.is_by_number() || self.replica_ratio.clone().unwrap_or_default().service == RatioService::Pods
    }
}
