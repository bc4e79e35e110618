//! One gateway per namespace that has an AgentPool.
//!
//! A gateway belongs to a namespace, not to a pool, and there is no object of ours that stands for it. So the visits go to
//! pools: the first live pool by name speaks for its namespace ([`speaker`]), every change that concerns the gateway leads
//! to it, and visits to the others end at once. When the speaker goes, the deletion itself leads to the next one. Two
//! speakers at work at the same moment do the same thing twice, which costs a request and nothing else.
//!
//! Every object carries an owner reference to the pools ([`plan::owners`]), none of them the controller, so the garbage
//! collector removes the gateway after the last pool, also while no operator runs.
//!
//! | step | module | client |
//! |---|---|---|
//! | what there is | [`Reconciler::reconcile`](crate::runtime::Reconciler::reconcile) | no: caches |
//! | when to change it | [`plan`] | no: pure |
//! | what it should be | [`build`] | no: pure |
//! | who may roll now | [`turns`] | no |
//! | change it | [`Visit::execute`](crate::runtime::Visit::execute) | yes |
//! | what is wrong with it | [`health`] | no |

pub mod build;
pub mod health;
pub mod plan;
pub mod turns;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use flotilla_crds::{AgentPool, ModelProvider, names};
use k8s_openapi::api::apps::v1::Deployment;
use kube::{Resource, ResourceExt as _};
use parking_lot::Mutex;

use crate::caches::Caches;
use crate::runtime::{
    Action, Controller, Error, Key, Manager, Next, Reconciler, Trigger, Visit, key_of, uid_of,
};

pub use health::{GatewayHealth, Problem};

/// How gateways are run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Image of the gateway.
    pub image: String,
    /// Gateway pods per namespace.
    pub replicas: i32,
    /// Further environment variables: name and value.
    pub env: Vec<(String, String)>,
    /// Namespaces whose gateways are replaced at the same time when the operator or the gateway's image is new.
    pub upgrade_parallelism: usize,
}

impl Settings {
    /// Whether gateways are told of a place where they share quotas with other namespaces.
    pub fn shares_quotas(&self) -> bool {
        let mut env = self.env.iter();
        env.any(|(name, value)| name == names::QUOTA_REDIS_VARIABLE && !value.is_empty())
    }
}

/// How soon a namespace that waits for its turn looks again. Nothing is asked of the API server for it.
const TURN_PAUSE: Duration = Duration::from_secs(3);
/// How soon the health of a gateway that is not settled is looked at again: its pods tell why, and this controller does not
/// watch them.
const HEALTH_PAUSE: Duration = Duration::from_secs(5);

/// Keeps one gateway per namespace with pools.
pub struct GatewayReconciler {
    caches: Caches,
    settings: Settings,
    health: GatewayHealth,
    turns: Mutex<turns::Turns>,
    pending: Mutex<HashMap<String, plan::Pending>>,
}

/// Makes the controller. `health` is where it reports what is wrong with each namespace's gateway.
pub fn register(
    manager: &mut Manager,
    caches: &Caches,
    settings: Settings,
    health: GatewayHealth,
) -> Trigger {
    let speaks = |caches: &Caches| {
        let caches = caches.clone();
        move |namespace: &str| speaker(&caches.pools.in_namespace(namespace)).map(|pool| key_of(&*pool))
    };
    let turns = turns::Turns::new(settings.upgrade_parallelism);
    Controller::new("gateway", &caches.pools)
        .watches(&caches.pools, of_namespace::<AgentPool>(speaks(caches)))
        .watches(&caches.providers, of_namespace::<ModelProvider>(speaks(caches)))
        .watches(&caches.deployments, of_gateway(speaks(caches)))
        .watches(&caches.services, of_gateway(speaks(caches)))
        .watches(&caches.service_accounts, of_gateway(speaks(caches)))
        .watches(&caches.role_bindings, of_gateway(speaks(caches)))
        .watches(&caches.disruption_budgets, of_gateway(speaks(caches)))
        .register(
            manager,
            GatewayReconciler {
                caches: caches.clone(),
                settings,
                health,
                turns: Mutex::new(turns),
                pending: Mutex::default(),
            },
        )
}

/// Every object of a namespace leads to its speaker.
fn of_namespace<K: Resource>(
    speaker: impl Fn(&str) -> Option<Key> + Send + Sync + 'static,
) -> impl Fn(&K) -> Vec<Key> + Send + Sync + 'static {
    move |object| {
        speaker(object.meta().namespace.as_deref().unwrap_or_default())
            .into_iter()
            .collect()
    }
}

/// The gateway's own objects lead to the speaker of their namespace.
fn of_gateway<K: Resource>(
    speaker: impl Fn(&str) -> Option<Key> + Send + Sync + 'static,
) -> impl Fn(&K) -> Vec<Key> + Send + Sync + 'static {
    let of_namespace = of_namespace(speaker);
    move |object| {
        if object.meta().name.as_deref() == Some(names::GATEWAY) {
            of_namespace(object)
        } else {
            Vec::new()
        }
    }
}

/// The pool whose visits keep the gateway: the first by name that is not being deleted.
pub fn speaker(pools: &[Arc<AgentPool>]) -> Option<Arc<AgentPool>> {
    pools.iter().find(|pool| is_live(&***pool)).cloned()
}

fn is_live<K: Resource>(object: &K) -> bool {
    object.meta().deletion_timestamp.is_none()
}

impl Reconciler for GatewayReconciler {
    type Kind = AgentPool;
    type Error = Error;

    async fn reconcile(&self, pool: Arc<AgentPool>, visit: &Visit) -> Result<Next, Error> {
        let namespace = visit.key().namespace.clone();
        let pools = self.caches.pools.in_namespace(&namespace);
        if speaker(&pools).is_none_or(|speaker| key_of(&*speaker) != key_of(&*pool)) {
            return Ok(Next::on_change());
        }
        let deployment = self.caches.deployments.get(&Key::new(&namespace, names::GATEWAY));
        // It had one: its pool may be gone with it, and whatever is made for that is collected at once.
        let is_known = |pool: &AgentPool| pool.status.as_ref().is_some_and(|status| status.stable.is_some());
        if deployment.is_none() && is_known(&pool) {
            let live = visit.read::<AgentPool>(visit.key()).await?;
            if live.is_none_or(|live| live.metadata.uid != pool.metadata.uid) {
                return Ok(Next::on_change());
            }
        }
        let providers = self.caches.providers.in_namespace(&namespace);
        let desired = self.desired(&namespace, deployment.as_deref(), &pools, &providers);

        let (decision, pending) = {
            let remembered = self.pending.lock().get(&namespace).cloned();
            let observed = plan::Observed {
                deployment: deployment.as_deref(),
                live_pools: &pools
                    .iter()
                    .filter(|pool| is_live(&***pool))
                    .map(|pool| uid_of(&**pool))
                    .collect(),
                awaited: plan::awaits_a_provider(&pools, &providers),
                oldest_pool: pools
                    .iter()
                    .filter_map(|pool| pool.creation_timestamp())
                    .map(|time| time.0)
                    .min(),
            };
            let mut turn = || {
                let rolling = self.rolling_elsewhere(&namespace);
                self.turns.lock().take(&namespace, &rolling, visit.now())
            };
            plan::decide(&observed, &desired, remembered, &mut turn, visit.now())
        };
        match pending {
            Some(pending) => drop(self.pending.lock().insert(namespace.clone(), pending)),
            None => drop(self.pending.lock().remove(&namespace)),
        }

        let (actions, pause) = match decision {
            plan::Decision::ApplyAll => (desired.everything(), None),
            plan::Decision::WaitForTurn => (desired.all_but_the_deployment(), Some(TURN_PAUSE)),
            plan::Decision::Rest(pause) => (Vec::new(), Some(pause)),
        };
        let outcome = visit.execute(actions).await;
        let problem = match &outcome {
            Ok(_) => deployment.as_deref().and_then(|deployment| {
                let pods = self.caches.pods.in_namespace(&namespace);
                let pods = pods.iter().filter(|pod| build::is_gateway(&pod.metadata));
                health::problem_of(deployment, pods.map(|pod| &**pod))
            }),
            Err(error) => Problem::of_error(error).or_else(|| self.health.get(&namespace)),
        };
        self.health.set(&namespace, problem);
        outcome?;
        let unsettled = deployment
            .as_deref()
            .is_none_or(|deployment| !build::is_settled(deployment));
        Ok(match (pause, unsettled) {
            (Some(pause), _) => Next::after(pause),
            (None, true) => Next::after(HEALTH_PAUSE),
            (None, false) => Next::on_change(),
        })
    }

    fn forget(&self, key: &Key) {
        if speaker(&self.caches.pools.in_namespace(&key.namespace)).is_none() {
            self.pending.lock().remove(&key.namespace);
            self.turns.lock().forget(&key.namespace);
            self.health.set(&key.namespace, None);
        }
    }
}

impl GatewayReconciler {
    fn desired(
        &self,
        namespace: &str,
        deployment: Option<&Deployment>,
        pools: &[Arc<AgentPool>],
        providers: &[Arc<ModelProvider>],
    ) -> Desired {
        let recorded = deployment.and_then(|deployment| deployment.metadata.owner_references.as_deref());
        let pools: Vec<&AgentPool> = pools
            .iter()
            .map(|pool| &**pool)
            .filter(|pool| is_live(*pool))
            .collect();
        let owners = plan::owners(recorded.unwrap_or_default(), &pools);
        let providers: Vec<&ModelProvider> = providers
            .iter()
            .map(|provider| &**provider)
            .filter(|provider| is_live(*provider))
            .collect();
        let credentials = build::credentials(&providers);
        let shared = build::Shared {
            namespace,
            owners: &owners,
        };
        Desired {
            deployment: build::deployment::build(&shared, &self.settings, &credentials),
            others: vec![
                Action::apply_shared(&build::service_account::build(&shared)),
                Action::apply_shared(&build::role_binding::build(&shared)),
                Action::apply_shared(&build::service::build(&shared)),
                Action::apply_shared(&build::disruption_budget::build(&shared)),
            ],
        }
    }

    /// Other namespaces whose gateway pods are being replaced at the moment.
    fn rolling_elsewhere(&self, namespace: &str) -> BTreeSet<String> {
        let deployments = self.caches.deployments.list();
        let gateways = deployments
            .iter()
            .filter(|deployment| build::is_gateway(&deployment.metadata));
        gateways
            .filter(|deployment| build::is_rolling(deployment))
            .filter_map(|deployment| deployment.namespace())
            .filter(|other| other != namespace)
            .collect()
    }
}

/// The gateway of one namespace as it should be.
pub struct Desired {
    /// The Deployment, with the marks that [`plan`] compares.
    pub deployment: Deployment,
    /// All else; none of it disturbs a running pod.
    pub others: Vec<Action>,
}

impl Desired {
    /// The Deployment last: its pods need the ServiceAccount and its rights.
    fn everything(self) -> Vec<Action> {
        let deployment = Action::apply_shared(&self.deployment);
        self.others.into_iter().chain([deployment]).collect()
    }

    fn all_but_the_deployment(self) -> Vec<Action> {
        self.others
    }
}

#[cfg(test)]
mod tests;
