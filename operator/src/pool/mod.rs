//! AgentPools: revisions, their release, and the pods and Services they need.
//!
//! | step | module | client |
//! |---|---|---|
//! | what there is | [`dereference`] | only for ConfigMaps whose bytes have changed ([`sources`]) |
//! | what the spec asks for | [`validate`] | no: pure |
//! | where the release stands and what is next | [`flotilla_core::rollout`], [`plan`] | no: pure |
//! | the objects for it | `draft`, [`build`] | no: pure |
//! | carried out | [`Visit::execute`](crate::runtime::Visit::execute) | yes |
//! | whether a candidate may go on | [`judge`]: by evidence; [`trial`]: by tests | a checkpoint; the candidate itself; [`figures`] |
//! | told | [`status`] | pure; written on change |
//!
//! The truth about a pool's releases is in the labels of its ControllerRevisions, its ReplicaSets and the weights in
//! `status.traffic`; [`memory`] only saves time. So a crash between any two writes, a lost status and a second leader
//! end in the same place.

pub mod build;
pub mod dereference;
mod draft;
pub mod figures;
pub mod forecast;
pub mod gate;
pub mod gateways;
pub mod judge;
pub mod memory;
pub mod metrics;
pub mod plan;
pub mod ports;
pub mod prune;
pub mod routing;
pub mod sources;
pub mod status;
pub mod transitions;
pub mod trial;
pub mod trouble;
pub mod validate;
pub mod victims;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use flotilla_core::release;
use flotilla_core::rollout::{Reason, Standing};
use flotilla_crds::agent_pool::Model;
use flotilla_crds::common::{condition, is_true};
use flotilla_crds::{AgentPool, ModelProvider, names};
use jiff::SignedDuration;
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::api::ListParams;
use kube::{Api, ResourceExt as _};
use tracing::warn;

use crate::caches::{Caches, ConfigMapMeta};
use crate::gateway::GatewayHealth;
use crate::runtime::visit::DryRun;
use crate::runtime::{
    Blame, Controller, Error, Failure, Key, Manager, Next, Note, Reconciler, Trigger, Visit, key_of, uid_of,
};
use crate::scrape::{PROVIDER_PREFIX, Scraper};
use dereference::{Observed, dereference};
use figures::Figures;
use judge::Court;
use memory::{Memories, Memory, Standpoint, Standpoints, StepPoint};
use plan::{Plan, plan};
use ports::Ports;
use sources::SourceReader;
use trial::Trials;
use trial::ask::Ask;
use trial::runner::Runner;
use trial::sitting::{TEST_UNDECIDED, TESTING};
use validate::{INVALID_POD_TEMPLATE, Problem, Wanted, validate};

/// After this long the API server is asked again about pods it refused: its policies may have changed.
const ASK_AGAIN: SignedDuration = SignedDuration::from_secs(30);

/// Pause before a look at something that has just changed.
const AGAIN: Duration = Duration::from_millis(200);
/// What somebody has to mend is tried again this often: no watch tells when a foreign object is gone or a policy
/// has changed.
const TRY_AGAIN: Duration = Duration::from_secs(10);

/// The name of the controller.
pub const CONTROLLER: &str = "agentpool";

/// Keeps AgentPools.
pub struct PoolReconciler {
    caches: Caches,
    scraper: Scraper,
    health: GatewayHealth,
    sources: SourceReader,
    ports: Ports,
    memories: Memories,
    standpoints: Standpoints,
    court: Court,
    trials: Trials,
}

/// How candidates and sources are asked. Replaced in tests.
pub struct Questions {
    /// Probes of candidates.
    pub ask: Arc<dyn Ask>,
    /// Numbers from other sources than the gateways.
    pub figures: Figures,
}

/// Makes the controller. `health` is what the gateway controller found; `standpoints` is where it tells other controllers which
/// revisions each pool is about.
pub fn register(
    manager: &mut Manager,
    caches: &Caches,
    scraper: &Scraper,
    health: GatewayHealth,
    standpoints: Standpoints,
    questions: Questions,
) -> Trigger {
    let Questions { ask, figures } = questions;
    let runner = Runner::new(ask);
    let trials = Trials::new(runner.clone(), manager.metrics());
    let of_namespace = |caches: &Caches| {
        let pools = caches.pools.clone();
        move |namespace: &str, uses: &dyn Fn(&AgentPool) -> bool| -> Vec<Key> {
            let pools = pools.in_namespace(namespace);
            pools
                .iter()
                .filter(|pool| uses(pool))
                .map(|pool| key_of(&**pool))
                .collect()
        }
    };
    let (by_config_map, by_provider, by_health) =
        (of_namespace(caches), of_namespace(caches), of_namespace(caches));
    let trigger = Controller::new(CONTROLLER, &caches.pools)
        .owns(&caches.replica_sets)
        .owns(&caches.controller_revisions)
        .owns(&caches.services)
        .owns(&caches.service_accounts)
        .owns(&caches.disruption_budgets)
        .owns(&caches.jobs)
        .owns(&caches.load_tests)
        .owns(&caches.routes.cache)
        .watches(&caches.pods, of_pod)
        .watches(&caches.actions, |action| {
            vec![Key::new(
                action.namespace().unwrap_or_default(),
                &action.spec.pool_ref.name,
            )]
        })
        .watches(&caches.config_maps, move |config_map: &ConfigMapMeta| {
            let (namespace, name) = (config_map.namespace().unwrap_or_default(), config_map.name_any());
            let owner = config_map
                .owner_references()
                .iter()
                .find(|owner| owner.kind == "AgentPool");
            match owner.filter(|_| config_map.labels().contains_key(names::CONTENT_HASH)) {
                Some(pool) => vec![Key::new(namespace, &pool.name)],
                None => by_config_map(&namespace, &|pool| {
                    sources::config_maps(&pool.spec.agent).any(|used| used == name)
                }),
            }
        })
        .watches(&caches.providers, move |provider: &ModelProvider| {
            let name = provider.name_any();
            by_provider(&provider.namespace().unwrap_or_default(), &|pool| {
                let mut choices = pool.spec.agent.models.iter().flat_map(Model::choices);
                choices.any(|(provider, _)| provider == name)
            })
        })
        .register(
            manager,
            PoolReconciler {
                caches: caches.clone(),
                scraper: scraper.clone(),
                health: health.clone(),
                sources: SourceReader::default(),
                ports: Ports::default(),
                memories: Memories::default(),
                court: Court::new(figures.clone()),
                trials,
                standpoints,
            },
        );
    runner.tell(trigger.clone());
    manager.leader_task("release tests", move |_| runner.clone().run());
    manager.leader_task("metric sources", move |context| {
        figures.clone().run(context.clock.clone())
    });
    manager
        .metrics()
        .register_collector(Box::new(metrics::PoolMetrics {
            pools: caches.pools.clone(),
            context: Arc::downgrade(manager.context()),
        }));
    let told = trigger.clone();
    scraper.on_report(move |key| {
        if !key.name.starts_with(PROVIDER_PREFIX) {
            told.now(key);
        }
    });
    let told = trigger.clone();
    // Only a pool that is not Ready waits for its gateways.
    health.on_change(move |namespace| {
        by_health(namespace, &|pool| !is_ready(pool))
            .into_iter()
            .for_each(|key| told.now(key));
    });
    trigger
}

fn is_ready(pool: &AgentPool) -> bool {
    let conditions = pool.status.as_ref().map(|status| &status.conditions);
    conditions.is_some_and(|conditions| is_true(conditions, condition::READY))
}

/// The pool an agent pod belongs to.
fn of_pod(pod: &Pod) -> Vec<Key> {
    let is_agent = pod.labels().contains_key(names::REVISION);
    let pool = pod.labels().get(names::POOL).filter(|_| is_agent);
    pool.map(|pool| Key::new(pod.namespace().unwrap_or_default(), pool))
        .into_iter()
        .collect()
}

/// Why a pool could not be kept.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    /// The runtime could not carry it out.
    #[error(transparent)]
    Runtime(#[from] Error),
}

impl Failure for PoolError {
    fn category(&self) -> &'static str {
        let Self::Runtime(error) = self;
        error.category()
    }

    fn blame(&self) -> Blame {
        let Self::Runtime(error) = self;
        error.blame()
    }

    fn backoff_cap(&self) -> Duration {
        let Self::Runtime(error) = self;
        error.backoff_cap()
    }

    fn is_notable(&self) -> bool {
        let Self::Runtime(error) = self;
        error.is_notable()
    }
}

impl Reconciler for PoolReconciler {
    type Kind = AgentPool;
    type Error = PoolError;

    async fn reconcile(&self, pool: Arc<AgentPool>, visit: &Visit) -> Result<Next, PoolError> {
        if pool.metadata.deletion_timestamp.is_some() {
            return Ok(Next::on_change());
        }
        let (key, now) = (visit.key(), visit.now());
        let uid = uid_of(&*pool);
        let mut observed = self.look(&pool, visit, false).await?;
        // A process that has just started may have been told the past, and what it says of the traffic is what capacity follows. Or
        // nothing is left of what the pool had: it may be gone, too, and whatever is made for it is collected at once.
        let served = observed.status.stable.is_some();
        if served && (observed.revisions.is_empty() || !self.memories.know(key, &uid)) {
            match visit.read::<AgentPool>(key).await? {
                Some(live) if live.metadata.uid == pool.metadata.uid => {
                    if live.metadata.resource_version != pool.metadata.resource_version {
                        return Ok(Next::after(AGAIN));
                    }
                }
                _ => return Ok(Next::on_change()),
            }
        }
        let mut wanted = validate(&observed);
        let mut memory = self.memories.recall(key, &uid, &observed.status);
        memory.heard = self.court.hear(visit, &observed, &memory, now).await;
        let errands = self.trials.look(key, &observed, &mut memory, &self.caches, now);
        errands.notes.into_iter().for_each(|note| visit.note(note));
        let mut made = plan(&observed, &wanted, &memory, now);
        if made.lacks_bytes {
            observed = self.look(&pool, visit, true).await?;
            wanted = validate(&observed);
            made = plan(&observed, &wanted, &memory, now);
            if made.lacks_bytes {
                // The source changed between the two looks; its watch will say so as well.
                return Ok(Next::after(AGAIN));
            }
        }
        if self.learn(visit, &observed, &made, &mut memory).await? {
            made = plan(&observed, &wanted, &memory, now);
        }
        self.memories.keep(key, made.memory.clone());
        if let Some(reached) = memory.reached.filter(|_| made.memory.reached.is_none()) {
            self.court.close(key, &reached);
        }
        self.tell_standpoint(&observed, &wanted, &made, key);
        self.scraper.set_eager(key, made.eager);

        made.actions.extend(errands.actions);
        let blocked = match visit.execute(std::mem::take(&mut made.actions)).await {
            Ok(_) => None,
            Err(error) => match blocking(&error) {
                Some(problem) => Some((problem, error)),
                None => return Err(error.into()),
            },
        };
        made.memory.blocked_since = blocked.as_ref().map(|_| memory.blocked_since.unwrap_or(now));
        self.memories.keep(key, made.memory.clone());
        let (status, how) = status::build(
            &observed,
            &made,
            blocked.as_ref().map(|(problem, _)| problem),
            now,
        );
        visit.write_status(&*observed.pool, &status, how).await?;
        if let Some((problem, error)) = blocked {
            visit.note(Note::warning(problem.word, problem.sentence));
            warn!(error = %error, "blocked");
            return Ok(Next::after(
                made.look_again.map_or(TRY_AGAIN, |pause| pause.min(TRY_AGAIN)),
            ));
        }
        Ok(made.look_again.map_or(Next::on_change(), |pause| {
            Next::after(pause.max(Duration::from_millis(100)))
        }))
    }

    fn forget(&self, key: &Key) {
        self.sources.forget(key);
        self.ports.forget(key);
        self.memories.forget(key);
        self.court.forget(key);
        self.trials.forget(key);
        self.standpoints.forget(key);
        self.scraper.set_eager(key, false);
    }
}

impl PoolReconciler {
    async fn look(&self, pool: &Arc<AgentPool>, visit: &Visit, with_bytes: bool) -> Result<Observed, Error> {
        let Self {
            caches,
            scraper,
            health,
            sources,
            ports,
            ..
        } = self;
        dereference(
            Arc::clone(pool),
            visit,
            caches,
            (scraper, health),
            sources,
            ports,
            with_bytes,
        )
        .await
    }

    /// Asks the API server what a plan cannot know: whether it accepts the pods, and what a failing probe said. Returns
    /// whether something was learnt that makes another plan.
    async fn learn(
        &self,
        visit: &Visit,
        observed: &Observed,
        made: &Plan,
        memory: &mut Memory,
    ) -> Result<bool, PoolError> {
        if let Some((revision, pod)) = &made.check {
            match visit.dry_run(pod).await? {
                DryRun::Rejected { code, message } if !may_mend(code, &message) => {
                    let sentence =
                        format!("spec.agent.podTemplate: the API server refuses the pod: {message}");
                    let until = visit.now().checked_add(ASK_AGAIN).unwrap_or(visit.now());
                    memory.refused = Some((revision.clone(), sentence, until));
                }
                DryRun::Accepted | DryRun::Rejected { .. } => {
                    memory.accepted = Some(revision.clone());
                    memory.refused = None;
                }
            }
            return Ok(true);
        }
        let Some((revision, reason)) = failing_probe(observed, made) else {
            return Ok(false);
        };
        let Some(pod) = trouble::unready_pod(observed.pods_of(&revision).iter().map(|pod| &**pod)) else {
            return Ok(false);
        };
        let Some(said) = probe_event(visit, &pod).await else {
            return Ok(false);
        };
        if reason.message.contains(&said) {
            return Ok(false);
        }
        memory.troubles.insert(
            revision,
            Reason::new(reason.word, format!("{}: {said}", reason.message)),
        );
        Ok(true)
    }

    fn tell_standpoint(&self, observed: &Observed, wanted: &Result<Wanted, Problem>, made: &Plan, key: &Key) {
        let standpoint = Standpoint {
            uid: uid_of(&*observed.pool),
            generation: observed.pool.metadata.generation.unwrap_or_default(),
            target: wanted.as_ref().ok().map(|wanted| wanted.revision.clone()),
            stable: made.decision.stable.clone(),
            candidate: made.decision.candidate.clone(),
            step: step_point(observed, made),
        };
        self.standpoints.set(key, standpoint);
    }
}

fn step_point(observed: &Observed, made: &Plan) -> Option<StepPoint> {
    let reached = made.decision.reached.as_ref()?;
    let ladder = release::ladder(&observed.pool.spec)?;
    let waiting = made
        .decision
        .waiting
        .as_ref()
        .map(|waiting| waiting.reason.word.as_str());
    Some(StepPoint {
        index: ladder.index(reached.weight),
        weight: reached.weight,
        awaits_person: !matches!(
            waiting,
            Some(judge::EVIDENCE_CONTINUES | judge::STEP_LASTS | gate::COUNTING_STABLE | "Judging" | TESTING)
                | None
        ),
        awaits_tests: matches!(waiting, Some(TESTING | TEST_UNDECIDED)),
    })
}

/// The revision that this plan gives up, or stalls on, because of a failing probe.
fn failing_probe(observed: &Observed, made: &Plan) -> Option<(String, Reason)> {
    let is_probe = |reason: &Reason| reason.word == trouble::PROBE_FAILING;
    let given_up = made
        .decision
        .changes
        .iter()
        .find(|change| change.standing == Standing::Rejected);
    if let Some(change) = given_up {
        return change
            .reason
            .clone()
            .filter(is_probe)
            .map(|reason| (change.revision.clone(), reason));
    }
    let was_stalled = is_true(&observed.status.conditions, condition::STALLED);
    let stalled = made
        .decision
        .stalled
        .clone()
        .filter(|_| !was_stalled && made.decision.candidate.is_none());
    Some((made.decision.stable.clone()?, stalled.filter(is_probe)?))
}

/// What kubelet last said about a pod's probe. Best effort: without it the sentence is shorter.
async fn probe_event(visit: &Visit, pod: &str) -> Option<String> {
    let api = Api::<Event>::namespaced(visit.context().client.clone(), &visit.key().namespace);
    let fields = format!("involvedObject.kind=Pod,involvedObject.name={pod},reason=Unhealthy");
    let events = api
        .list(&ListParams::default().fields(&fields).limit(20))
        .await
        .ok()?;
    let time = |event: &Event| {
        let seen = event.last_timestamp.as_ref().map(|time| time.0);
        seen.or_else(|| event.metadata.creation_timestamp.as_ref().map(|time| time.0))
    };
    events
        .items
        .iter()
        .max_by_key(|event| time(event))?
        .message
        .clone()
}

/// Whether a refusal of pods may end by itself: a quota that is raised. The ReplicaSet reports it better.
fn may_mend(code: u16, message: &str) -> bool {
    code == 403 && message.contains("exceeded quota")
}

/// The problem an error of a write stands for, if the pool's author can do something about it.
fn blocking(error: &Error) -> Option<Problem> {
    match error {
        Error::NameTaken { .. } => Some(Problem::invalid("NameTaken", error.to_string())),
        // What a ReplicaSet is made of is the pods' template and our own fields.
        Error::Refused {
            code: 422,
            message,
            action,
        } if action.contains(" HTTPRoute ") => Some(Problem::invalid(
            "InvalidRoute",
            format!("spec.traffic.httpRoute: the API server refuses the HTTPRoute: {message}"),
        )),
        Error::Refused {
            code: 422, message, ..
        } if error.is_refusal_of("ReplicaSet") => Some(Problem::invalid(
            INVALID_POD_TEMPLATE,
            format!("the API server refuses the pods: {message}"),
        )),
        Error::Refused { code: 422, .. } => Some(Problem::invalid("Refused", error.to_string())),
        Error::Refused {
            code: 403, message, ..
        } if message.contains("exceeded quota") => Some(Problem::waiting("QuotaExceeded", message.clone())),
        Error::Refused { .. } => Some(Problem::waiting("Refused", error.to_string())),
        _ => None,
    }
}
