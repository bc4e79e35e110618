//! `AgentPool`: what runs, how many, how traffic reaches it, and how a new revision is released.

pub use crate::agent::*;
pub use crate::plan::*;
pub use crate::pool_status::*;
pub use crate::resilience::*;
pub use crate::rollout::*;
use crate::rules;
pub use crate::sessions::*;
pub use crate::traffic::*;
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

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
    validation = Rule::new("!has(self.spec.traffic) || self.spec.traffic.type == 'Gateway' || !has(self.spec.rollout) || !has(self.spec.rollout.analysis) || !(has(self.spec.rollout.analysis.latency) || has(self.spec.rollout.analysis.firstByte))")
        .message("spec.rollout.analysis.latency and firstByte are counted in the gateway; leave them out or set spec.traffic.type: Gateway"),
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

fn one() -> i32 {
    1
}

fn five() -> i32 {
    5
}
