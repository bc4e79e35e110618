//! A namespace in miniature: what plans write is stored as JSON, a ReplicaSet controller makes pods, gateways follow
//! the status. Time stands still unless a test moves it.

use std::collections::BTreeMap;
use std::sync::Arc;

use flotilla_core::revision::hash_source;
use flotilla_core::stats::{PoolStats, RevisionStats, Stats};
use flotilla_crds::common::find;
use flotilla_crds::{AgentPool, AgentPoolStatus, RolloutAction, names};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{ControllerRevision, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::pool::build::controller_revision::read;
use crate::pool::build::{pod as build_pod, service};
use crate::pool::dereference::{Observed, Revision};
use crate::pool::memory::Memory;
use crate::pool::plan::{Plan, plan};
use crate::pool::sources::{Files, Sources};
use crate::pool::status;
use crate::pool::validate::validate;
use crate::pool::victims::DELETION_COST;
use crate::runtime::{Action, Presence};
use crate::scrape::View;

/// What happens to the pods of an image.
#[derive(Clone, Debug, PartialEq)]
pub enum Fate {
    /// They become ready at once.
    Ready,
    /// They do not, with this container status.
    Stuck(Value),
    /// None can be made, with this message.
    Refused(String),
}

pub struct World {
    pub pool: Value,
    pub store: BTreeMap<(String, String), Value>,
    pub now: Timestamp,
    pub memory: Memory,
    /// By image; others are ready.
    pub fates: BTreeMap<String, Fate>,
    /// The bytes of the ConfigMap `prompts`, key `p`, if there is one.
    pub prompt: Option<String>,
    /// Whether gateways answer and follow.
    pub gateways: bool,
    /// Whether the cluster has HTTPRoutes.
    pub routing: Presence,
    /// Whether they know conversations of every revision.
    pub conversations: bool,
    /// Writes to the API server, status among them.
    pub writes: usize,
    /// The operator dies before this write.
    pub dies_before: Option<usize>,
    next: u64,
}

/// The pool `support` with four replicas of `agent:1`, reading like a sentence.
pub fn pool() -> World {
    World {
        pool: json!({
            "apiVersion": "flotilla.dev/v1alpha1", "kind": "AgentPool",
            "metadata": {"name": "support", "namespace": "shop", "uid": "u-1", "generation": 1},
            "spec": {"replicas": 4, "agent": {"image": "agent:1"}},
        }),
        store: BTreeMap::new(),
        now: Timestamp::from_second(1_700_000_000).unwrap(),
        memory: Memory::default(),
        fates: BTreeMap::new(),
        prompt: None,
        gateways: true,
        routing: Presence::Absent,
        conversations: false,
        writes: 0,
        dies_before: None,
        next: 0,
    }
}

/// The image in a ControllerRevision.
pub fn image_of(record: &Value) -> String {
    let content: Value = serde_json::from_str(record["data"]["content"].as_str().unwrap()).unwrap();
    content["agent"]["image"].as_str().unwrap().to_owned()
}

impl World {
    pub fn with(mut self, spec: Value) -> Self {
        self.change(spec);
        self
    }

    pub fn whose_image(mut self, image: &str, fate: Fate) -> Self {
        self.fates.insert(image.into(), fate);
        self
    }

    /// Merges into spec, as a user's apply would.
    pub fn change(&mut self, spec: Value) {
        merge(&mut self.pool["spec"], spec);
        let generation = self.pool["metadata"]["generation"].as_i64().unwrap();
        self.pool["metadata"]["generation"] = json!(generation + 1);
    }

    pub fn pass(&mut self, seconds: i64) {
        self.now = self.now.checked_add(SignedDuration::from_secs(seconds)).unwrap();
    }

    pub fn status(&self) -> AgentPoolStatus {
        serde_json::from_value(self.pool["status"].clone()).unwrap_or_default()
    }

    /// Reason of `Ready`, and the status of Ready, Available, Reconciling and Stalled as one letter each.
    pub fn state(&self) -> (String, String) {
        let conditions = self.status().conditions;
        let letter = |type_| {
            find(&conditions, type_)
                .map_or("?", |c| &c.status[..1])
                .to_owned()
        };
        let letters = ["Ready", "Available", "Reconciling", "Stalled"]
            .map(letter)
            .concat();
        (
            find(&conditions, "Ready")
                .map(|c| c.reason.clone())
                .unwrap_or_default(),
            letters,
        )
    }

    pub fn sentence(&self) -> String {
        find(&self.status().conditions, "Ready")
            .map(|c| c.message.clone())
            .unwrap_or_default()
    }

    pub fn all<K: DeserializeOwned>(&self, kind: &str) -> Vec<Arc<K>> {
        let of_kind = self.store.iter().filter(|((of, _), _)| of == kind);
        of_kind
            .map(|(_, value)| Arc::new(serde_json::from_value(value.clone()).unwrap()))
            .collect()
    }

    pub fn names(&self, kind: &str) -> Vec<String> {
        self.store
            .keys()
            .filter(|(of, _)| of == kind)
            .map(|(_, name)| name.clone())
            .collect()
    }

    /// `spec.replicas` of each revision by image.
    pub fn sizes(&self) -> BTreeMap<String, i64> {
        let sets = self.store.iter().filter(|((kind, _), _)| kind == "ReplicaSet");
        sets.map(|(_, set)| (image(set), set["spec"]["replicas"].as_i64().unwrap_or_default()))
            .collect()
    }

    /// Labels of standing by image.
    pub fn standings(&self) -> BTreeMap<String, String> {
        let records = self
            .store
            .iter()
            .filter(|((kind, _), _)| kind == "ControllerRevision");
        let standing = |record: &Value| {
            record["metadata"]["labels"][names::REVISION_STATE]
                .as_str()
                .unwrap_or("")
                .to_owned()
        };
        records.map(|(_, r)| (image_of(r), standing(r))).collect()
    }

    pub fn weights(&self) -> Vec<i32> {
        self.status().traffic.iter().map(|share| share.weight).collect()
    }

    pub fn revision_of(&self, image: &str) -> String {
        let records = self.all::<ControllerRevision>("ControllerRevision");
        let of_image = |record: &&Arc<ControllerRevision>| read(record).content.unwrap().agent.image == image;
        records
            .iter()
            .find(of_image)
            .map(|record| record.name_any())
            .unwrap()
    }

    pub fn ready_pods(&self) -> usize {
        let pods = self.all::<Pod>("Pod");
        pods.iter()
            .filter(|pod| crate::pool::dereference::is_ready(pod))
            .count()
    }

    pub fn observe(&self) -> Observed {
        let pool: AgentPool = serde_json::from_value(self.pool.clone()).unwrap();
        let records = self.all::<ControllerRevision>("ControllerRevision");
        let mut pods: BTreeMap<String, Vec<Arc<Pod>>> = BTreeMap::new();
        for pod in self.all::<Pod>("Pod") {
            pods.entry(pod.labels()[names::REVISION].clone())
                .or_default()
                .push(pod);
        }
        let services = self.all("Service");
        let snapshots: Vec<Arc<crate::caches::ConfigMapMeta>> = self.all("ConfigMap");
        let port = services.iter().find_map(|service| service::gateway_port(service));
        let mut sources = Sources::default();
        if let Some(prompt) = &pool.spec.agent.prompt {
            match (&prompt.text, &self.prompt) {
                (Some(bytes), _) | (None, Some(bytes)) => {
                    let files = Files::from([("prompt".to_owned(), bytes.clone().into_bytes())]);
                    let hash = hash_source(
                        files
                            .iter()
                            .map(|(name, bytes)| (name.as_str(), bytes.as_slice())),
                    );
                    sources.bytes = bytes.len();
                    sources.hashes.insert(build_pod::PROMPT.into(), hash);
                    sources.files.insert(build_pod::PROMPT.into(), files);
                }
                (None, None) => sources
                    .missing
                    .push("ConfigMap prompts does not exist; create it".into()),
            }
        }
        let status = pool.status.clone().unwrap_or_default();
        let sets = self.all::<ReplicaSet>("ReplicaSet");
        Observed {
            gateways: self.views(&status, &pods),
            gateway_problem: None,
            revisions: records
                .into_iter()
                .map(|object| Revision {
                    record: read(&object),
                    object,
                })
                .collect(),
            sets: sets.into_iter().map(|set| (set.name_any(), set)).collect(),
            actions: self.all::<RolloutAction>("RolloutAction"),
            port: (!pool.spec.traffic.is_by_number()).then(|| status.gateway_port.or(port).unwrap_or(20_417)),
            routes: self.all("HTTPRoute"),
            routing: self.routing,
            providers: self
                .all::<flotilla_crds::ModelProvider>("ModelProvider")
                .into_iter()
                .map(|provider| (provider.name_any(), provider))
                .collect(),
            pool: Arc::new(pool),
            status,
            pods,
            services,
            snapshots,
            sources,
        }
    }

    fn views(&self, status: &AgentPoolStatus, pods: &BTreeMap<String, Vec<Arc<Pod>>>) -> Vec<View> {
        let Some(generation) = status.traffic_generation.filter(|_| self.gateways) else {
            return Vec::new();
        };
        let revision = |name: &String| {
            let endpoints = pods.get(name).into_iter().flatten();
            let endpoints = endpoints.filter(|pod| crate::pool::dereference::is_ready(pod));
            let addresses =
                endpoints.filter_map(|pod| crate::pool::dereference::address(pod).map(str::to_owned));
            RevisionStats {
                endpoints: addresses.collect(),
                sessions: u64::from(self.conversations),
                ..RevisionStats::default()
            }
        };
        let pool = PoolStats {
            traffic_generation: generation,
            port: status.gateway_port,
            revisions: status
                .traffic
                .iter()
                .map(|share| (share.revision.clone(), revision(&share.revision)))
                .collect(),
            ..PoolStats::default()
        };
        let stats = Stats {
            pools: [("support".to_owned(), pool)].into(),
            ..Stats::default()
        };
        let view = View {
            pod: "g-1".into(),
            ready: true,
            stats: Some(Arc::new(stats)),
            fresh: true,
            problem: None,
        };
        vec![view]
    }

    /// One visit: plan, writes, status. Returns whether anything was written.
    pub fn visit(&mut self) -> bool {
        let before = self.writes;
        let observed = self.observe();
        let wanted = validate(&observed);
        let mut made = plan(&observed, &wanted, &self.memory, self.now);
        if let Some((revision, _)) = made.check.clone() {
            self.memory.accepted = Some(revision);
            made = plan(&observed, &wanted, &self.memory, self.now);
        }
        self.memory = made.memory.clone();
        for action in std::mem::take(&mut made.actions) {
            if self.dies() {
                self.memory = Memory::default();
                return true;
            }
            self.carry_out(action);
        }
        let (status, _) = status::build(&observed, &made, None, self.now);
        let status = serde_json::to_value(status).unwrap();
        if self.pool["status"] != status {
            if self.dies() {
                self.memory = Memory::default();
                return true;
            }
            self.pool["status"] = status;
            self.writes += 1;
        }
        self.writes != before
    }

    fn dies(&mut self) -> bool {
        let dies = self.dies_before == Some(0);
        self.dies_before = self.dies_before.and_then(|left| left.checked_sub(1));
        dies
    }

    /// The plan for what there is, without carrying it out.
    pub fn peek(&self) -> Plan {
        let observed = self.observe();
        plan(&observed, &validate(&observed), &self.memory, self.now)
    }

    fn carry_out(&mut self, action: Action) {
        match action {
            Action::Create(child) | Action::Apply(child) => {
                let id = (child.resource.kind.clone(), child.key.name.clone());
                let existing = self.store.get(&id).cloned();
                let mut object = existing.clone().unwrap_or_else(|| json!({}));
                merge(&mut object, child.object);
                if existing.is_none() {
                    self.next += 1;
                    object["metadata"]["uid"] = json!(format!("uid-{}", self.next));
                    object["metadata"]["creationTimestamp"] = json!(self.now.to_string());
                }
                if existing.as_ref() != Some(&object) {
                    self.writes += 1;
                    self.store.insert(id, object);
                }
            }
            Action::Scale { target, replicas } => {
                self.patch(
                    &target.resource.kind,
                    &target.key.name,
                    json!({"spec": {"replicas": replicas}}),
                );
            }
            Action::Patch { target, patch, .. } => self.patch(&target.resource.kind, &target.key.name, patch),
            Action::Delete { target, .. } => {
                self.writes += 1;
                self.store.remove(&(target.resource.kind, target.key.name));
            }
            Action::Event(_) => {}
        }
    }

    fn patch(&mut self, kind: &str, name: &str, patch: Value) {
        let object = self.store.get_mut(&(kind.to_owned(), name.to_owned())).unwrap();
        let before = object.clone();
        merge(object, patch);
        if *object != before {
            self.writes += 1;
        }
    }

    /// The ReplicaSet controller and kubelet.
    pub fn cluster(&mut self) {
        for set in self.all::<ReplicaSet>("ReplicaSet") {
            let name = set.name_any();
            let value = self.store[&("ReplicaSet".to_owned(), name.clone())].clone();
            let fate = self.fates.get(&image(&value)).cloned().unwrap_or(Fate::Ready);
            let wanted = value["spec"]["replicas"].as_u64().unwrap_or_default() as usize;
            let id = ("ReplicaSet".to_owned(), name.clone());
            if let Fate::Refused(message) = &fate {
                let failure = json!([{"type": "ReplicaFailure", "status": "True", "message": message}]);
                self.store.get_mut(&id).unwrap()["status"] = json!({"replicas": 0, "conditions": failure});
                continue;
            }
            let mut pods: Vec<Value> = self
                .store
                .iter()
                .filter(|((kind, _), pod)| {
                    kind == "Pod" && pod["metadata"]["labels"][names::REVISION] == name.as_str()
                })
                .map(|(_, pod)| pod.clone())
                .collect();
            pods.sort_by_key(|pod| {
                let ready = pod["status"]["conditions"][0]["status"] == "True";
                let cost = pod["metadata"]["annotations"][DELETION_COST]
                    .as_str()
                    .map_or(0, |c| c.parse().unwrap());
                (
                    ready,
                    cost,
                    std::cmp::Reverse(pod["metadata"]["name"].as_str().unwrap().to_owned()),
                )
            });
            for pod in pods.iter().take(pods.len().saturating_sub(wanted)) {
                self.store
                    .remove(&("Pod".into(), pod["metadata"]["name"].as_str().unwrap().to_owned()));
            }
            for _ in pods.len()..wanted {
                self.next += 1;
                let (pod_name, address) = (
                    format!("{name}-{:04}", self.next),
                    format!("10.0.0.{}", self.next),
                );
                self.store.insert(
                    ("Pod".into(), pod_name.clone()),
                    json!({
                        "metadata": {
                            "name": pod_name, "namespace": "shop", "uid": pod_name,
                            "labels": value["spec"]["template"]["metadata"]["labels"],
                            "creationTimestamp": self.now.to_string(),
                        },
                        "status": {"podIP": address},
                    }),
                );
            }
            for ((kind, _), pod) in &mut self.store {
                if kind == "Pod" && pod["metadata"]["labels"][names::REVISION] == name.as_str() {
                    let (ready, containers) = match &fate {
                        Fate::Stuck(container) => ("False", json!([container])),
                        _ => ("True", json!([])),
                    };
                    pod["status"]["conditions"] = json!([{"type": "Ready", "status": ready}]);
                    pod["status"]["containerStatuses"] = containers;
                }
            }
            let ready = if matches!(fate, Fate::Stuck(_)) { 0 } else { wanted };
            self.store.get_mut(&id).unwrap()["status"] = json!({"replicas": wanted, "readyReplicas": ready});
        }
    }

    /// Visits and lets the cluster follow until nothing changes; checks the floor of ready pods at each turn.
    pub fn settle(&mut self, floor: usize) {
        for _ in 0..400 {
            let wrote = self.visit();
            let before = self.store.clone();
            self.cluster();
            assert!(
                self.ready_pods() >= floor,
                "{} ready, {floor} are needed",
                self.ready_pods()
            );
            if !wrote && self.store == before {
                return;
            }
        }
        panic!("it does not come to rest: {:#?}", self.pool["status"]);
    }
}

fn image(set: &Value) -> String {
    let containers = set["spec"]["template"]["spec"]["containers"].as_array().unwrap();
    containers.iter().find(|c| c["name"] == "agent").unwrap()["image"]
        .as_str()
        .unwrap()
        .to_owned()
}

/// A JSON merge patch.
fn merge(value: &mut Value, patch: Value) {
    match (value, patch) {
        (Value::Object(fields), Value::Object(patch)) => {
            for (key, member) in patch {
                if member.is_null() {
                    fields.remove(&key);
                } else {
                    merge(fields.entry(key).or_insert(Value::Null), member);
                }
            }
        }
        (value, Value::Object(patch)) => {
            *value = json!({});
            merge(value, Value::Object(patch));
        }
        (value, patch) => *value = patch,
    }
}
