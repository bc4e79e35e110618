//! ModelProviders: checked, reported, and their use summed up.
//!
//! The operator never reads a Secret. Whether a key is there is learnt from the gateways, which have it mounted and say so
//! in `/stats`; and use is what they counted. So a provider is judged by what its namespace's gateways report, and without
//! a pool, hence without a gateway, there is nothing to judge.
//!
//! | step | module | client |
//! |---|---|---|
//! | what there is | [`Reconciler::reconcile`](crate::runtime::Reconciler::reconcile) | no: caches, scraped reports |
//! | is the spec possible | [`validate`] | no: pure |
//! | what do the gateways say | [`assess`] | no: pure |
//! | what was used | [`flotilla_core::usage`], [`ledger`] | no: pure |
//! | how much of the budget is spent | [`flotilla_core::price::ledger`], [`budget`] | no: pure |
//! | how much of its quotas is used | [`quota`] | no: pure |
//! | status | [`Visit::write_status`](crate::runtime::Visit::write_status) | yes, on change; counters every 30 s, every second near a budget's end |

pub mod assess;
pub mod budget;
pub mod ledger;
pub mod quota;
pub mod validate;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use flotilla_core::stats::Stats;
use flotilla_core::usage::accumulate;
use flotilla_crds::common::condition;
use flotilla_crds::{ModelProvider, ModelProviderStatus, names};
use kube::{Resource as _, ResourceExt as _};

use crate::caches::Caches;
use crate::gateway::{GatewayHealth, build};
use crate::runtime::{
    Conditions, Controller, Error, EventKind, Key, Manager, Next, Note, Reconciler, StatusOutcome,
    StatusWrite, Trigger, Visit, key_of,
};
use crate::waiting::{self, Wait};
use assess::{Assessment, Gateways, State};
use budget::{Look, Paces};
use ledger::Ledger;

/// How often the reports are looked at while a provider is not ready. They are in memory: no request is made for it.
const UNREADY_PAUSE: Duration = Duration::from_secs(2);
/// How often they are looked at otherwise; counters are written every 30 s at most.
const READY_PAUSE: Duration = Duration::from_secs(10);
/// The longest pause of a provider that nobody uses, but whose budget begins anew some day.
const LONGEST_PAUSE: Duration = Duration::from_secs(3600);
/// How often they are looked at, and counters are written, near a budget's end.
const CLOSE_PAUSE: Duration = Duration::from_secs(1);

/// The newest `/stats` of gateways, by namespace.
pub trait Reports: Send + Sync + 'static {
    /// The newest report of each gateway pod of a namespace; pods that have never answered are left out.
    fn of_namespace(&self, namespace: &str) -> Vec<Arc<Stats>>;
    /// Says whether `provider` needs the reports of its namespace every second.
    fn set_eager(&self, provider: &Key, eager: bool);
}

/// Keeps the status of ModelProviders.
pub struct ProviderReconciler<R> {
    caches: Caches,
    reports: R,
    health: GatewayHealth,
    ledger: Ledger,
    paces: Paces,
    shares_quotas: bool,
}

/// Makes the controller. `reports` is what the scraper keeps, `health` what the gateway controller found, and
/// `shares_quotas` whether gateways have a place where they share quotas with other namespaces.
pub fn register<R: Reports>(
    manager: &mut Manager,
    caches: &Caches,
    reports: R,
    health: GatewayHealth,
    shares_quotas: bool,
) -> Trigger {
    let of_namespace = |caches: &Caches| {
        let providers = caches.providers.clone();
        move |namespace: &str| -> Vec<Key> {
            providers
                .in_namespace(namespace)
                .iter()
                .map(|provider| key_of(&**provider))
                .collect()
        }
    };
    let (by_pool, by_deployment, by_health) =
        (of_namespace(caches), of_namespace(caches), of_namespace(caches));
    // Only the first and the last pool of a namespace change anything for its providers, and a pool's status changes
    // often: so its own generation decides, and a pool that goes is seen by its gateway's going.
    let trigger = Controller::new("modelprovider", &caches.providers)
        .watches(&caches.pools, move |pool: &flotilla_crds::AgentPool| {
            let is_new = pool
                .status
                .as_ref()
                .is_none_or(|status| status.conditions.is_empty());
            let goes = pool.meta().deletion_timestamp.is_some();
            if is_new || goes {
                by_pool(&pool.namespace().unwrap_or_default())
            } else {
                Vec::new()
            }
        })
        .watches(
            &caches.deployments,
            move |deployment: &k8s_openapi::api::apps::v1::Deployment| {
                if build::is_gateway(&deployment.metadata) {
                    by_deployment(&deployment.namespace().unwrap_or_default())
                } else {
                    Vec::new()
                }
            },
        )
        .register(
            manager,
            ProviderReconciler {
                caches: caches.clone(),
                reports,
                health: health.clone(),
                ledger: Ledger::default(),
                paces: Paces::default(),
                shares_quotas,
            },
        );
    let triggered = trigger.clone();
    health.on_change(move |namespace| {
        by_health(namespace)
            .into_iter()
            .for_each(|key| triggered.now(key))
    });
    trigger
}

impl<R: Reports> Reconciler for ProviderReconciler<R> {
    type Kind = ModelProvider;
    type Error = Error;

    async fn reconcile(&self, provider: Arc<ModelProvider>, visit: &Visit) -> Result<Next, Error> {
        let (key, now) = (visit.key(), visit.now());
        let name = key.name.as_str();
        let status = provider.status.clone().unwrap_or_default();

        let pods = self.caches.pods.in_namespace(&key.namespace);
        let pods: BTreeSet<String> = pods
            .iter()
            .filter(|pod| build::is_gateway(&pod.metadata))
            .map(|pod| pod.name_any())
            .collect();
        let reports = self.reports.of_namespace(&key.namespace);

        let assessment = match validate::validate(&provider.spec, self.shares_quotas) {
            Err(sentence) => Assessment::new(State::Invalid, "InvalidSpec", sentence),
            Ok(()) => {
                let deployment = self
                    .caches
                    .deployments
                    .get(&Key::new(&key.namespace, names::GATEWAY));
                let live = reports
                    .iter()
                    .filter(|stats| pods.contains(&stats.pod) && !stats.draining);
                let seen = live.map(|stats| {
                    let known = stats.providers.get(name);
                    known.map(|known| assess::Seen {
                        generation: known.generation,
                        credential: known.credential,
                    })
                });
                assess::assess(
                    &provider.spec,
                    provider.metadata.generation.unwrap_or_default(),
                    &Gateways {
                        wanted: !self.caches.pools.in_namespace(&key.namespace).is_empty(),
                        seen: seen.collect(),
                        settled: deployment.is_some_and(|deployment| build::is_settled(&deployment)),
                        problem: self.health.get(&key.namespace),
                    },
                )
            }
        };

        let used = self.ledger.take_in(key, &reports, &pods, status.usage.as_ref());
        let before = status.usage.as_ref();
        let usage = accumulate(before, &used, &pods, now);
        let looks = budget::look(&provider.spec, &status, usage.as_ref(), now);
        let is_close = self.paces.is_close(key, &looks, now);
        self.reports.set_eager(key, is_close);
        let quotas = quota::quotas(name, &provider.spec, &reports);
        let (mut conditions, wait) = conditions(&provider, &status, &assessment, &looks, now);
        note_quotas(visit, &provider, &mut conditions, &quotas, now);
        let desired = ModelProviderStatus {
            conditions,
            observed_generation: provider.metadata.generation.unwrap_or_default(),
            usage,
            quotas: quotas.list,
            budget: budget::of_provider(&looks),
            model_budgets: budget::of_models(&looks),
        };
        note_transition(visit, &status, &assessment, wait);
        let mut how = StatusWrite {
            lazy: &["/usage", "/budget", "/modelBudgets", "/quotas"],
            ..StatusWrite::default()
        };
        if is_close {
            how.lazy_every = CLOSE_PAUSE;
        }
        let outcome = visit.write_status(&*provider, &desired, how).await?;
        // Only what is written has been said: see `flotilla_core::price::budget`.
        if outcome == StatusOutcome::Written {
            for look in &looks {
                for threshold in &look.news {
                    visit.note(budget::note(look, *threshold));
                }
            }
        }

        Ok(match assessment.state {
            State::Ready if pods.is_empty() && look_again(&desired, now).is_none() => Next::on_change(),
            State::Ready if is_close => Next::after(CLOSE_PAUSE),
            State::Ready if pods.is_empty() => Next::after(look_again(&desired, now).unwrap_or(READY_PAUSE)),
            State::Ready => Next::after(READY_PAUSE),
            State::Waiting => Next::after(UNREADY_PAUSE),
            State::Invalid => Next::on_change(),
        })
    }

    fn forget(&self, key: &Key) {
        self.ledger.forget(key);
        self.paces.forget(key);
        self.reports.set_eager(key, false);
    }
}

/// How long it is until the next window of a budget begins; none without one.
fn look_again(status: &ModelProviderStatus, now: jiff::Timestamp) -> Option<Duration> {
    let models = status.model_budgets.iter().map(|model| &model.budget);
    let end = status
        .budget
        .iter()
        .chain(models)
        .map(|budget| budget.end_time.0)
        .min()?;
    let left = Duration::try_from(end.duration_since(now)).unwrap_or_default();
    Some(left.clamp(READY_PAUSE, LONGEST_PAUSE))
}

/// The conditions for an assessment, and how long it may still wait.
fn conditions(
    provider: &ModelProvider,
    status: &ModelProviderStatus,
    assessment: &Assessment,
    looks: &[Look],
    now: jiff::Timestamp,
) -> (
    Vec<k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition>,
    Wait,
) {
    let Assessment {
        state,
        reason,
        message,
    } = assessment;
    let wait = waiting::judge(&status.conditions, now);
    let mut conditions = Conditions::new(&status.conditions, provider.metadata.generation, now);
    let (reconciling, stalled) = match (state, wait) {
        (State::Ready, _) => (false, false),
        (State::Invalid, _) | (State::Waiting, Wait::TooLong) => (false, true),
        (State::Waiting, Wait::Until(_)) => (true, false),
    };
    conditions.set(condition::READY, *state == State::Ready, reason, message);
    conditions.set(
        condition::RECONCILING,
        reconciling,
        reason,
        if reconciling { message } else { "" },
    );
    conditions.set(
        condition::STALLED,
        stalled,
        reason,
        if stalled { message } else { "" },
    );
    budget::set_condition(&mut conditions, looks);
    (conditions.into_vec(), wait)
}

/// Sets the condition of the quotas, and says on the object when one begins to hold requests back.
fn note_quotas(
    visit: &Visit,
    provider: &ModelProvider,
    conditions: &mut Vec<k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition>,
    quotas: &quota::Quotas,
    now: jiff::Timestamp,
) {
    let (exhausted, reason, message) = quotas.condition(&provider.spec);
    let before = conditions
        .iter()
        .any(|condition| condition.type_ == condition::QUOTA_EXHAUSTED && condition.status == "True");
    if exhausted && !before {
        visit.note(Note::warning(reason, message.clone()));
    }
    let mut list = Conditions::new(conditions, provider.metadata.generation, now);
    list.set(condition::QUOTA_EXHAUSTED, exhausted, reason, message);
    *conditions = list.into_vec();
}

/// Says on the object what has changed, once.
fn note_transition(visit: &Visit, status: &ModelProviderStatus, assessment: &Assessment, wait: Wait) {
    let before = status
        .conditions
        .iter()
        .find(|condition| condition.type_ == condition::READY);
    if before.is_some_and(|before| before.reason == assessment.reason) && wait != Wait::TooLong {
        return;
    }
    let kind = match assessment.state {
        State::Ready => EventKind::Normal,
        State::Waiting if wait != Wait::TooLong && assessment.reason != assess::WAITING_FOR_REFERENCE => {
            return;
        }
        State::Waiting | State::Invalid => EventKind::Warning,
    };
    // The publisher drops what it has said lately.
    visit.note(match kind {
        EventKind::Normal => Note::normal(assessment.reason, assessment.message.clone()),
        EventKind::Warning => Note::warning(assessment.reason, assessment.message.clone()),
    });
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod condition_tests {
    use flotilla_crds::common::{find, is_true};
    use jiff::Timestamp;
    use serde_json::json;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn provider() -> ModelProvider {
        serde_json::from_value(json!({
            "metadata": {"name": "main", "namespace": "shop", "generation": 3},
            "spec": {"endpoint": "https://api.example.com/v1"},
        }))
        .unwrap()
    }

    #[test]
    fn a_missing_key_is_waited_for_then_stalls_and_recovers() {
        let missing = Assessment::new(State::Waiting, "WaitingForReference", "Secret s has no key k");
        let ready = Assessment::new(State::Ready, "Ready", "2 gateways use it");
        let provider = provider();
        let mut status = ModelProviderStatus::default();
        let mut look = |assessment: &Assessment, now: i64| {
            status.conditions = conditions(&provider, &status, assessment, &[], at(now)).0;
            let is = |type_| is_true(&status.conditions, type_);
            (is("Ready"), is("Reconciling"), is("Stalled"))
        };
        assert_eq!(look(&missing, 0), (false, true, false));
        assert_eq!(look(&missing, 599), (false, true, false));
        assert_eq!(look(&missing, 600), (false, false, true));
        assert_eq!(look(&missing, 5000), (false, false, true));
        assert_eq!(look(&ready, 5001), (true, false, false));
        assert_eq!(
            look(&missing, 6000),
            (false, true, false),
            "the next wait begins anew"
        );
    }

    #[test]
    fn an_impossible_spec_is_stalled_at_once() {
        let invalid = Assessment::new(State::Invalid, "InvalidSpec", "endpoint: …");
        let (conditions, _) = conditions(&provider(), &ModelProviderStatus::default(), &invalid, &[], at(0));
        assert!(is_true(&conditions, "Stalled"));
        let ready = find(&conditions, "Ready").unwrap();
        assert_eq!(
            (
                ready.status.as_str(),
                ready.reason.as_str(),
                ready.observed_generation
            ),
            ("False", "InvalidSpec", Some(3))
        );
    }
}
