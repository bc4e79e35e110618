//! LoadTests: planned, run as a Job, harvested, judged, cleaned up.
//!
//! | step | module | client |
//! |---|---|---|
//! | what there is | [`observe`] | no: caches |
//! | what comes next | [`state`] | no: pure |
//! | where to, with what | `start`, with [`target`] and [`plan`] | the bytes of prompts, a Service of somebody else |
//! | the objects | [`build`] | no: pure |
//! | how it goes | `run`, with [`progress`] | worker 0; the API server only when pods are missing |
//! | what was shown | `finish`, with [`report`] | the messages that were kept |
//! | status | [`status`] | yes, on change; progress every 10 s |
//!
//! The life of a test and what makes it safe against kills is in [`state`].

pub mod build;
mod finish;
pub mod observe;
pub mod plan;
pub mod progress;
pub mod report;
mod run;
mod start;
pub mod state;
pub mod status;
pub mod target;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use flotilla_crds::common::find;
use flotilla_crds::{AgentPool, LoadTest, names};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::ResourceExt as _;
use parking_lot::Mutex;
use serde_json::json;

use crate::caches::{BY_LOAD_TEST, Caches, ConfigMapMeta};
use crate::runtime::{
    Action, Controller, Error, Failure as _, Key, Manager, Next, Note, Reconciler, StatusWrite, Trigger,
    Visit, uid_of,
};
use crate::waiting::Trouble;
use build::config_map;
use observe::{JobView, PodView};
use progress::{Ask, Board};
use state::{Observed, Step};
use status::{Mood, Say};

/// How load generators are run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Image of the load generator.
    pub image: String,
}

/// How soon to come back to what the next step needs the caches for.
const SOON: Duration = Duration::from_millis(200);

/// Runs LoadTests.
pub struct LoadTestReconciler {
    caches: Caches,
    settings: Settings,
    board: Board,
    /// What the API server said of worker pods that do not appear, and when.
    refusals: Mutex<HashMap<Key, (Timestamp, Option<Trouble>)>>,
}

/// Makes the controller and the leader's task that follows live progress, as `workers` tell it.
pub fn register(
    manager: &mut Manager,
    caches: &Caches,
    settings: Settings,
    workers: Arc<dyn Ask>,
) -> Trigger {
    let board = Board::default();
    let unfinished = |caches: &Caches| {
        let tests = caches.load_tests.clone();
        move |namespace: &str, concerns: &dyn Fn(&LoadTest) -> bool| -> Vec<Key> {
            let tests = tests.in_namespace(namespace);
            let concerned = tests.iter().filter(|test| !is_judged(test) && concerns(test));
            concerned
                .map(|test| Key::new(namespace, test.name_any()))
                .collect()
        }
    };
    let (by_pool, by_config_map) = (unfinished(caches), unfinished(caches));
    let trigger = Controller::new("loadtest", &caches.load_tests)
        .owns(&caches.jobs)
        .owns(&caches.services)
        .owns(&caches.config_maps)
        .watches(&caches.pods, |pod: &Pod| {
            let test = pod.labels().get(names::LOAD_TEST);
            test.map(|test| Key::new(pod.namespace().unwrap_or_default(), test))
                .into_iter()
                .collect()
        })
        .watches(&caches.pools, move |pool: &AgentPool| {
            let name = pool.name_any();
            by_pool(&pool.namespace().unwrap_or_default(), &|test| {
                test.spec
                    .target
                    .pool_ref
                    .as_ref()
                    .is_some_and(|target| target.name == name)
            })
        })
        .watches(&caches.config_maps, move |config_map: &ConfigMapMeta| {
            let name = config_map.name_any();
            by_config_map(&config_map.namespace().unwrap_or_default(), &|test| {
                plan::references(&test.spec).any(|reference| reference.name == name)
            })
        })
        .register(
            manager,
            LoadTestReconciler {
                caches: caches.clone(),
                settings,
                board: board.clone(),
                refusals: Mutex::default(),
            },
        );
    let news = trigger.clone();
    manager.leader_task("load test progress", move |_| {
        progress::poll(board.clone(), news.clone(), Arc::clone(&workers))
    });
    trigger
}

fn is_judged(test: &LoadTest) -> bool {
    test.status
        .as_ref()
        .is_some_and(|status| status.verdict.is_some())
}

/// What there is of one test.
struct Scene {
    job: Option<Arc<Job>>,
    job_view: Option<JobView>,
    pods: Vec<PodView>,
    record: Option<Arc<ConfigMapMeta>>,
    plan: Option<Arc<ConfigMapMeta>>,
    coordinator: Option<Arc<Service>>,
    /// Workers whose results are in the record.
    harvested: BTreeSet<u32>,
    /// Results that are in pods only.
    fresh: BTreeMap<u32, String>,
}

impl Reconciler for LoadTestReconciler {
    type Kind = LoadTest;
    type Error = Error;

    async fn reconcile(&self, test: Arc<LoadTest>, visit: &Visit) -> Result<Next, Error> {
        // Everything of a deleted test goes with it.
        if test.metadata.deletion_timestamp.is_some() {
            self.forget(visit.key());
            return Ok(Next::on_change());
        }
        match Box::pin(self.advance(&test, visit)).await {
            // What a person has to mend is said in the status too.
            Err(error @ (Error::NameTaken { .. } | Error::Refused { .. })) if !is_judged(&test) => {
                let say = Say::new(Mood::Waiting, error.category(), error.to_string());
                let status = status::unfinished(&test, &say, visit.now());
                visit
                    .write_status(&*test, &status, StatusWrite::default())
                    .await?;
                Err(error)
            }
            result => result,
        }
    }

    fn forget(&self, key: &Key) {
        self.board.follow(key, None);
        self.refusals.lock().remove(key);
    }
}

impl LoadTestReconciler {
    async fn advance(&self, test: &LoadTest, visit: &Visit) -> Result<Next, Error> {
        let now = visit.now();
        let mut scene = self.observe(test, visit.key());
        let before = test.status.clone().unwrap_or_default();
        let job_workload = scene.job_view.as_ref().and_then(|job| job.workload.clone());
        let record_workload = scene
            .record
            .as_ref()
            .and_then(|record| record.annotations().get(build::WORKLOAD).cloned());
        let started = before.workload.is_some() || scene.job.is_some() || !scene.harvested.is_empty();
        let workload = job_workload
            .or(before.workload.clone())
            .or(record_workload)
            .unwrap_or_default();

        if started && !is_judged(test) && !scene.fresh.is_empty() {
            let Some(record) = &scene.record else {
                visit
                    .execute(vec![Action::create(&config_map::result(test, &workload))])
                    .await?;
                return Ok(Next::after(SOON));
            };
            let patch = config_map::harvest_patch(&scene.harvested, &scene.fresh);
            visit
                .execute(vec![Action::patch_exactly(&**record, patch)])
                .await?;
            scene.harvested.extend(scene.fresh.keys());
        }

        let observed = Observed {
            suspend: test.spec.suspend,
            judged: is_judged(test),
            started,
            start_known: before.start_time.is_some(),
            workers: u32::try_from(test.spec.workers.count).unwrap_or_default(),
            start_deadline: SignedDuration::from_secs(test.spec.workers.start_deadline_seconds.into()),
            job: scene.job_view.as_ref(),
            pods: &scene.pods,
            harvested: &scene.harvested,
        };
        let step = state::decide(&observed, now);
        if step != Step::Watch {
            self.board.follow(visit.key(), None);
        }
        match step {
            Step::Finished => self.clean_up(test, &scene, visit).await,
            Step::Suspended => {
                let say = Say::new(
                    Mood::Idle,
                    "Suspended",
                    "suspend is true; set it to false to start the test",
                );
                self.say(test, &say, visit).await?;
                Ok(Next::on_change())
            }
            Step::Prepare => self.prepare(test, &scene, visit).await,
            Step::Watch => {
                let deadline = state::next_deadline(&observed, now);
                let pause = self.watch(test, &scene, &workload, visit).await?;
                Ok(deadline
                    .into_iter()
                    .chain(pause)
                    .min()
                    .map_or(Next::on_change(), Next::after))
            }
            Step::Halt => {
                if let Some(job) = &scene.job {
                    visit
                        .execute(vec![Action::patch(&**job, json!({"spec": {"suspend": true}}))])
                        .await?;
                }
                self.say(
                    test,
                    &Say::new(Mood::Working, "Stopping", "the workers are told to stop"),
                    visit,
                )
                .await?;
                Ok(Next::after(SOON))
            }
            Step::Harvest(pause) => {
                let say = Say::new(
                    Mood::Working,
                    "Harvesting",
                    format!(
                        "{} of {} workers' results are safe",
                        scene.harvested.len(),
                        test.spec.workers.count
                    ),
                );
                self.say(test, &say, visit).await?;
                Ok(Next::after(pause))
            }
            Step::Judge(ending) => self.judge(test, &scene, &workload, ending, visit).await,
        }
    }

    fn observe(&self, test: &LoadTest, key: &Key) -> Scene {
        let Key { namespace, name } = key;
        let uid = uid_of(test);
        let is_ours = |owners: &[OwnerReference]| owners.iter().any(|owner| owner.uid == uid);
        let at = |name: String| Key::new(namespace, name);
        let job = self.caches.jobs.get(&at(build::job_name(name)));
        let job = job.filter(|job| is_ours(job.owner_references()));
        let map = |name: String| {
            let map = self.caches.config_maps.get(&at(name));
            map.filter(|map| is_ours(map.owner_references()))
        };
        let (record, plan) = (map(build::result_name(name)), map(build::plan_name(name)));
        let coordinator = self.caches.services.get(&at(build::coordinator_name(name)));
        let coordinator = coordinator.filter(|service| is_ours(service.owner_references()));
        let pods = self
            .caches
            .pods
            .by_index(BY_LOAD_TEST, &format!("{namespace}/{name}"));
        let pods: Vec<PodView> = pods
            .iter()
            .filter(|pod| observe::is_of(pod, &uid))
            .map(|pod| PodView::of(pod))
            .collect();

        let harvested = record
            .as_ref()
            .map(|record| config_map::harvested(&record.metadata))
            .unwrap_or_default();
        let workers = u32::try_from(test.spec.workers.count).unwrap_or_default();
        let fresh = pods.iter().filter_map(|pod| {
            let index = pod
                .index
                .filter(|index| *index < workers && !harvested.contains(index))?;
            let ended = pod.ended.as_ref().filter(|ended| ended.has_result())?;
            Some((index, ended.message.trim().to_owned()))
        });
        let fresh = fresh.collect();
        let job_view = job.as_deref().map(JobView::of);
        Scene {
            job,
            job_view,
            pods,
            record,
            plan,
            coordinator,
            harvested,
            fresh,
        }
    }

    /// Writes conditions, and nothing else that is new. A wait that has just become too long is worth an event.
    async fn say(&self, test: &LoadTest, say: &Say, visit: &Visit) -> Result<(), Error> {
        let status = status::unfinished(test, say, visit.now());
        let ready = test
            .status
            .as_ref()
            .and_then(|status| find(&status.conditions, "Ready"));
        if say.mood == Mood::Waiting && ready.is_none_or(|ready| ready.reason != say.reason) {
            visit.note(Note::warning("Waiting", say.message.clone()));
        }
        visit.write_status(test, &status, StatusWrite::default()).await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
