//! What there is: the pool's children, what it refers to, and what its gateways say. Caches only, but for ConfigMaps
//! whose bytes have changed.

use std::collections::BTreeMap;
use std::sync::Arc;

use flotilla_crds::agent_pool::Model;
use flotilla_crds::{AgentPool, AgentPoolStatus, ModelProvider, RolloutAction, names};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ControllerRevision, ReplicaSet};
use k8s_openapi::api::core::v1::{Pod, PodCondition, Service};
use kube::{Resource, ResourceExt as _};

use super::build::controller_revision::{Record, read};
use super::build::service;
use super::ports::Ports;
use super::sources::{SourceReader, Sources};
use crate::caches::{BY_POOL, Caches, ConfigMapMeta};
use crate::gateway::GatewayHealth;
use crate::gateway_api::HTTPRoute;
use crate::runtime::{Error, Key, Presence, Visit, uid_of};
use crate::scrape::{Scraper, View};

/// A revision and the object it was read from.
#[derive(Clone, Debug)]
pub struct Revision {
    /// What it says.
    pub record: Record,
    /// The object.
    pub object: Arc<ControllerRevision>,
}

/// Everything a plan is made from, but for memory and time.
#[derive(Clone, Debug)]
pub struct Observed {
    /// The pool.
    pub pool: Arc<AgentPool>,
    /// Its status; the default when it has none.
    pub status: AgentPoolStatus,
    /// Its recorded revisions.
    pub revisions: Vec<Revision>,
    /// Its ReplicaSets by revision.
    pub sets: BTreeMap<String, Arc<ReplicaSet>>,
    /// Pods of these sets by revision, ordered by name, without those that have ended or are being deleted.
    pub pods: BTreeMap<String, Vec<Arc<Pod>>>,
    /// Its Services, of revisions and the front one.
    pub services: Vec<Arc<Service>>,
    /// Its HTTPRoutes: that of its name, while `traffic.type` is HTTPRoute.
    pub routes: Vec<Arc<HTTPRoute>>,
    /// Whether the cluster has HTTPRoutes at all.
    pub routing: Presence,
    /// Its snapshots.
    pub snapshots: Vec<Arc<ConfigMapMeta>>,
    /// The ModelProviders of the namespace that it names, by name.
    pub providers: BTreeMap<String, Arc<ModelProvider>>,
    /// The commands given to it.
    pub actions: Vec<Arc<RolloutAction>>,
    /// The gateways of the namespace.
    pub gateways: Vec<View>,
    /// What is wrong with them, where it is known: the reason and its sentence.
    pub gateway_problem: Option<String>,
    /// What its agent refers to.
    pub sources: Sources,
    /// Its port on the gateways; none when all are taken, or when they have no part in its traffic.
    pub port: Option<i32>,
}

/// Gathers what there is; `with_bytes` as for [`SourceReader::read`].
///
/// # Errors
/// When a changed ConfigMap cannot be read, the first time.
pub async fn dereference(
    pool: Arc<AgentPool>,
    visit: &Visit,
    caches: &Caches,
    (scraper, health): (&Scraper, &GatewayHealth),
    reader: &SourceReader,
    ports: &Ports,
    with_bytes: bool,
) -> Result<Observed, Error> {
    let key = visit.key();
    let uid = uid_of(&*pool);
    let sources = reader
        .read(visit, &pool.spec.agent, &caches.config_maps, with_bytes)
        .await?;

    let revisions = caches.controller_revisions.owned_by(&uid);
    let revisions = revisions
        .into_iter()
        .map(|object| Revision {
            record: read(&object),
            object,
        })
        .collect();
    let sets: BTreeMap<_, _> = caches
        .replica_sets
        .owned_by(&uid)
        .into_iter()
        .filter(is_there)
        .map(|set| (set.name_any(), set))
        .collect();
    let mut pods: BTreeMap<String, Vec<Arc<Pod>>> = BTreeMap::new();
    for pod in caches
        .pods
        .by_index(BY_POOL, &format!("{}/{}", key.namespace, key.name))
    {
        let revision = pod.labels().get(names::REVISION);
        if let Some((revision, set)) = revision.and_then(|revision| sets.get_key_value(revision))
            && pod
                .owner_references()
                .iter()
                .any(|owner| owner.uid == uid_of(&**set))
            && is_there(&pod)
            && !has_ended(&pod)
        {
            pods.entry(revision.clone()).or_default().push(pod);
        }
    }
    let services: Vec<_> = caches
        .services
        .owned_by(&uid)
        .into_iter()
        // The gateway's Service is owned by every pool of the namespace, and is none of this pool's.
        .filter(|service| service.labels().contains_key(names::POOL) && is_there(service))
        .collect();
    if pool.spec.traffic.is_routed() {
        caches.routes.want();
    }
    let routes = caches.routes.cache.owned_by(&uid);
    let routes = routes.into_iter().filter(is_there).collect();
    let snapshots = caches.config_maps.owned_by(&uid);
    let snapshots = snapshots
        .into_iter()
        .filter(|meta| meta.labels().contains_key(names::CONTENT_HASH))
        .collect();
    let choices = pool.spec.agent.models.iter().flat_map(Model::choices);
    let providers = choices.filter_map(|(name, _)| {
        let provider = caches.providers.get(&Key::new(&key.namespace, name))?;
        Some((name.to_owned(), provider))
    });
    let recovered = services.iter().find_map(|service| service::gateway_port(service));
    let neighbours = caches.pools.in_namespace(&key.namespace);
    let port = if pool.spec.traffic.is_by_number() {
        ports.forget(key);
        None
    } else {
        ports.assign(&pool, recovered, neighbours.iter().map(|pool| &**pool))
    };
    Ok(Observed {
        status: pool.status.clone().unwrap_or_default(),
        providers: providers.collect(),
        actions: caches
            .actions
            .by_index(BY_POOL, &format!("{}/{}", key.namespace, key.name)),
        gateways: scraper.views(&key.namespace),
        gateway_problem: health
            .get(&key.namespace)
            .map(|problem| format!("{}: {}", problem.reason, problem.message)),
        pool,
        revisions,
        sets,
        pods,
        services,
        routes,
        routing: caches.routes.presence(),
        snapshots,
        sources,
        port,
    })
}

impl Observed {
    /// The pool's name.
    pub fn name(&self) -> String {
        self.pool.name_any()
    }

    /// What is recorded of a revision.
    pub fn record(&self, revision: &str) -> Option<&Record> {
        self.revisions
            .iter()
            .map(|known| &known.record)
            .find(|record| record.revision == revision)
    }

    /// The pods of a revision.
    pub fn pods_of(&self, revision: &str) -> &[Arc<Pod>] {
        self.pods.get(revision).map(Vec::as_slice).unwrap_or_default()
    }
}

/// Whether a pod is ready for requests.
pub fn is_ready(pod: &Pod) -> bool {
    readiness(pod).is_some()
}

/// Since when a pod is ready for requests, by its kubelet's clock; none if it is not, or if that is not told.
pub fn ready_since(pod: &Pod) -> Option<Timestamp> {
    Some(readiness(pod)?.last_transition_time.as_ref()?.0)
}

fn readiness(pod: &Pod) -> Option<&PodCondition> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    conditions
        .iter()
        .find(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// The address of a pod.
pub fn address(pod: &Pod) -> Option<&str> {
    pod.status.as_ref()?.pod_ip.as_deref()
}

fn is_there<K: Resource>(object: &Arc<K>) -> bool {
    object.meta().deletion_timestamp.is_none()
}

fn has_ended(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}
