//! Every kind the operator watches, once.
//!
//! One watch per kind and replica is all the API server sees of us in steady state. Children are selected by our
//! label, so that a cluster full of other people's pods costs nothing. ConfigMaps are the exception: users refer to
//! their own, so all are watched, but only their metadata; the bytes are read when the resourceVersion moves.

use flotilla_crds::{AgentPool, LoadTest, ModelProvider, RolloutAction, names};
use k8s_openapi::api::apps::v1::{ControllerRevision, Deployment, ReplicaSet};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, PodSpec, Service, ServiceAccount};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::RoleBinding;
use kube::core::PartialObjectMeta;
use kube::{Resource, ResourceExt as _};
use serde::{Serialize, de::DeserializeOwned};

use crate::gateway_api::HTTPRoute;
use crate::runtime::{Cache, Manager, Optional, Watch};

/// Metadata of a ConfigMap.
pub type ConfigMapMeta = PartialObjectMeta<ConfigMap>;

/// Index of objects by the label `flotilla.dev/pool`, as `<namespace>/<pool>`.
pub const BY_POOL: &str = "pool";
/// Index of objects by the label `flotilla.dev/revision`, as `<namespace>/<revision>`.
pub const BY_REVISION: &str = "revision";
/// Index of objects by the label `flotilla.dev/loadtest`, as `<namespace>/<loadtest>`.
pub const BY_LOAD_TEST: &str = "loadtest";

/// All caches. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Caches {
    /// Our kinds.
    pub pools: Cache<AgentPool>,
    /// Our kinds.
    pub load_tests: Cache<LoadTest>,
    /// Our kinds.
    pub providers: Cache<ModelProvider>,
    /// Our kinds; indexed [`BY_POOL`] by `spec.poolRef`.
    pub actions: Cache<RolloutAction>,
    /// Ours, indexed [`BY_POOL`].
    pub replica_sets: Cache<ReplicaSet>,
    /// Ours, indexed [`BY_POOL`].
    pub controller_revisions: Cache<ControllerRevision>,
    /// Ours, indexed [`BY_POOL`] and [`BY_LOAD_TEST`].
    pub services: Cache<Service>,
    /// Ours.
    pub service_accounts: Cache<ServiceAccount>,
    /// Ours.
    pub disruption_budgets: Cache<PodDisruptionBudget>,
    /// Ours: the gateways.
    pub deployments: Cache<Deployment>,
    /// Ours.
    pub role_bindings: Cache<RoleBinding>,
    /// Ours, indexed [`BY_LOAD_TEST`].
    pub jobs: Cache<Job>,
    /// Ours: agents, gateways, load generators; indexed [`BY_POOL`], [`BY_REVISION`] and [`BY_LOAD_TEST`].
    pub pods: Cache<Pod>,
    /// Metadata of every ConfigMap.
    pub config_maps: Cache<ConfigMapMeta>,
    /// Ours, where the cluster has the Gateway API.
    pub routes: Optional<HTTPRoute>,
}

impl Caches {
    /// Makes all caches; they fill once the manager runs.
    pub fn new(manager: &mut Manager) -> Self {
        Self {
            pools: manager.guarded_cache(Watch::all()),
            load_tests: manager.guarded_cache(Watch::all()),
            providers: manager.guarded_cache(Watch::all()),
            actions: manager.guarded_cache(Watch::all().index(BY_POOL, |action: &RolloutAction| {
                vec![format!(
                    "{}/{}",
                    action.namespace().unwrap_or_default(),
                    action.spec.pool_ref.name
                )]
            })),
            replica_sets: manager.cache(
                ours()
                    .index(BY_POOL, by_label(names::POOL))
                    .trim(trim_replica_set),
            ),
            controller_revisions: manager.cache(ours().index(BY_POOL, by_label(names::POOL))),
            services: manager.cache(
                ours()
                    .index(BY_POOL, by_label(names::POOL))
                    .index(BY_LOAD_TEST, by_label(names::LOAD_TEST)),
            ),
            service_accounts: manager.cache(ours()),
            disruption_budgets: manager.cache(ours()),
            deployments: manager.cache(ours()),
            role_bindings: manager.cache(ours()),
            jobs: manager.cache(ours().index(BY_LOAD_TEST, by_label(names::LOAD_TEST))),
            pods: manager.cache(
                ours()
                    .index(BY_POOL, by_label(names::POOL))
                    .index(BY_REVISION, by_label(names::REVISION))
                    .index(BY_LOAD_TEST, by_label(names::LOAD_TEST))
                    .trim(trim_pod),
            ),
            config_maps: manager.cache(Watch::all().packed()),
            routes: manager.optional_cache(ours()),
        }
    }
}

/// Everything with our label: thousands of objects, of which a visit reads a handful.
fn ours<K: Serialize + DeserializeOwned>() -> Watch<K> {
    Watch::all()
        .labels(format!("{}={}", names::MANAGED_BY, names::MANAGER))
        .packed()
}

/// Index values: `<namespace>/<value of the label>`.
fn by_label<K: Resource>(label: &'static str) -> impl Fn(&K) -> Vec<String> + Send + Sync + 'static {
    move |object| {
        let meta = object.meta();
        let value = meta.labels.as_ref().and_then(|labels| labels.get(label));
        let namespace = meta.namespace.as_deref().unwrap_or_default();
        value
            .map(|value| format!("{namespace}/{value}"))
            .into_iter()
            .collect()
    }
}

/// A pod is read for its metadata, its node and its status; the rest of its spec is bulk.
fn trim_pod(pod: &mut Pod) {
    if let Some(spec) = &mut pod.spec {
        let node_name = spec.node_name.take();
        *spec = PodSpec {
            node_name,
            ..PodSpec::default()
        };
    }
}

/// A ReplicaSet's template is written once and never compared.
fn trim_replica_set(set: &mut ReplicaSet) {
    if let Some(spec) = &mut set.spec {
        spec.template = None;
    }
}
