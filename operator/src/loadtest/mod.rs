//! LoadTests: planned, run as a Job, harvested, judged, cleaned up.
//!
//! | step | module | client |
//! |---|---|---|
//! | what there is | [`observe`] | no: caches |
//! | what comes next | [`state`] | no: pure |
//! | where to, with what | [`target`], [`plan`] | the bytes of prompts, a Service of somebody else |
//! | the objects | [`build`] | no: pure |
//! | live progress | [`progress`] | worker 0, never the API server |
//! | what was shown | [`report`] | no: pure |
//! | status | [`status`] | yes, on change; progress every 10 s |
//!
//! The life of a test and what makes it safe against kills is in [`state`].

pub mod build;
pub mod observe;
pub mod plan;
pub mod progress;
pub mod report;
pub mod state;
pub mod status;
pub mod target;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use flotilla_core::load::plan::LoadPlan;
use flotilla_crds::common::{LocalRef, find};
use flotilla_crds::load_test::Verdict;
use flotilla_crds::{AgentPool, LoadTest, LoadTestStatus, names};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Service};
use kube::ResourceExt as _;
use parking_lot::Mutex;
use serde_json::json;

use crate::caches::{BY_LOAD_TEST, Caches, ConfigMapMeta};
use crate::runtime::visit::DryRun;
use crate::runtime::{
    Action, Blame, Controller, Error, Failure, Key, Manager, Next, Note, Reconciler, StatusWrite, Trigger,
    Visit, uid_of,
};
use crate::waiting::Trouble;
use build::config_map;
use observe::{JobView, PodView};
use plan::{PlanError, Prompts};
use progress::Board;
use report::Evidence;
use state::{Ending, Observed, Step};
use status::{Mood, Say};
use target::{NotYet, Target};

/// How load generators are run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Image of the load generator.
    pub image: String,
}

/// How soon a test that waits for something not watched (a Service of somebody else) looks again.
const WAIT_PAUSE: Duration = Duration::from_secs(10);
/// How long a Job may be without pods before the API server is asked whether it would accept one.
const PODLESS: SignedDuration = SignedDuration::from_secs(3);
/// How long the API server's answer to that is good.
const REFUSAL_PAUSE: Duration = Duration::from_secs(15);
/// How soon to come back to what the next step needs the caches for.
const SOON: Duration = Duration::from_millis(200);
/// Shortest time between two writes of progress.
const PROGRESS_EVERY: Duration = Duration::from_secs(10);

/// Runs LoadTests.
pub struct LoadTestReconciler {
    caches: Caches,
    settings: Settings,
    board: Board,
    /// What the API server said of worker pods that do not appear, and when.
    refusals: Mutex<HashMap<Key, (Timestamp, Option<Trouble>)>>,
}

/// Makes the controller and the leader's task that follows live progress.
pub fn register(manager: &mut Manager, caches: &Caches, settings: Settings) -> Trigger {
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
        progress::poll(board.clone(), news.clone())
    });
    trigger
}

fn is_judged(test: &LoadTest) -> bool {
    test.status
        .as_ref()
        .is_some_and(|status| status.verdict.is_some())
}

/// Why a LoadTest could not be kept.
#[derive(Debug, thiserror::Error)]
pub enum LoadTestError {
    /// The runtime could not carry it out.
    #[error(transparent)]
    Runtime(#[from] Error),
}

impl Failure for LoadTestError {
    fn category(&self) -> &'static str {
        match self {
            Self::Runtime(error) => error.category(),
        }
    }

    fn blame(&self) -> Blame {
        match self {
            Self::Runtime(error) => error.blame(),
        }
    }

    fn backoff_cap(&self) -> Duration {
        match self {
            Self::Runtime(error) => error.backoff_cap(),
        }
    }

    fn is_notable(&self) -> bool {
        match self {
            Self::Runtime(error) => error.is_notable(),
        }
    }
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
    type Error = LoadTestError;

    async fn reconcile(&self, test: Arc<LoadTest>, visit: &Visit) -> Result<Next, LoadTestError> {
        // Everything of a deleted test goes with it.
        if test.metadata.deletion_timestamp.is_some() {
            self.forget(visit.key());
            return Ok(Next::on_change());
        }
        match Box::pin(self.advance(&test, visit)).await {
            Err(error @ (Error::NameTaken { .. } | Error::Refused { .. })) if !is_judged(&test) => {
                let say = Say::new(Mood::Waiting, error.category(), error.to_string());
                let status = status::unfinished(&test, &say, visit.now());
                visit
                    .write_status(&*test, &status, StatusWrite::default())
                    .await?;
                Err(error.into())
            }
            result => Ok(result?),
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
        let is_ours = |object: &dyn Fn() -> Vec<String>| object().contains(&uid);
        let owners = |owners: &[k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference]| {
            owners.iter().map(|owner| owner.uid.clone()).collect::<Vec<_>>()
        };
        let at = |name: String| Key::new(namespace, name);
        let job = self.caches.jobs.get(&at(build::job_name(name)));
        let job = job.filter(|job| is_ours(&|| owners(job.owner_references())));
        let meta = |name: String| {
            self.caches
                .config_maps
                .get(&at(name))
                .filter(|map| is_ours(&|| owners(map.owner_references())))
        };
        let (record, plan) = (meta(build::result_name(name)), meta(build::plan_name(name)));
        let coordinator = self.caches.services.get(&at(build::coordinator_name(name)));
        let coordinator = coordinator.filter(|service| is_ours(&|| owners(service.owner_references())));
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

    // === before the start ===

    async fn prepare(&self, test: &LoadTest, scene: &Scene, visit: &Visit) -> Result<Next, Error> {
        let target = match self.target(test, visit).await? {
            Ok(target) => target,
            Err(wait) => return self.wait(test, wait, visit).await,
        };
        let prompts = self.prompts(test, visit).await?;
        let plan = match plan::build(&test.name_any(), &test.spec, &target, &prompts) {
            Ok(plan) => plan,
            Err(PlanError::NotYet(wait)) => return self.wait(test, wait, visit).await,
            Err(PlanError::Impossible(sentence)) => return self.refuse(test, &sentence, visit).await,
        };
        let plan_map = match config_map::plan(test, &plan) {
            Ok(plan_map) => plan_map,
            Err(sentence) => return self.refuse(test, &sentence, visit).await,
        };
        let workload = plan.workload_hash();

        // Left by an operator that was killed between two writes, before a prompt was changed.
        let leftovers: Vec<Action> = [&scene.record, &scene.plan]
            .into_iter()
            .flatten()
            .filter(|map| map.annotations().get(build::WORKLOAD) != Some(&workload))
            .map(|map| Action::delete(&**map))
            .collect();
        if !leftovers.is_empty() {
            visit.execute(leftovers).await?;
            return Ok(Next::after(SOON));
        }

        let job = build::job::build(test, &plan, &self.settings.image);
        visit
            .execute(vec![
                // First, so that a name that is taken stops the test and not its end.
                Action::create(&config_map::result(test, &workload)),
                Action::create(&plan_map),
                Action::create(&build::service::build(test, &workload)),
                Action::create(&job),
                Action::event(Note::normal("Started", started_note(&plan))),
            ])
            .await?;
        let desired = test.spec.workers.count;
        let say = status::running(0, desired, None, false, None);
        let status = LoadTestStatus {
            workload: Some(workload),
            workers: Some(status::workers(desired, 0, 0)),
            ..status::unfinished(test, &say, visit.now())
        };
        visit.write_status(test, &status, StatusWrite::default()).await?;
        Ok(Next::on_change())
    }

    async fn target(&self, test: &LoadTest, visit: &Visit) -> Result<Result<Target, NotYet>, Error> {
        let namespace = &visit.key().namespace;
        let (target, protocol) = (&test.spec.target, test.spec.protocol);
        if let Some(reference) = &target.pool_ref {
            let pool = self.caches.pools.get(&Key::new(namespace, &reference.name));
            return Ok(target::of_pool(&reference.name, pool.as_deref(), protocol));
        }
        let spoken = protocol.unwrap_or(flotilla_crds::load_test::LoadProtocol::HTTP);
        if let Some(reference) = &target.service_ref {
            // Services of others are not watched.
            let service = visit
                .read::<Service>(&Key::new(namespace, &reference.name))
                .await?;
            return Ok(target::of_service(reference, namespace, service.as_ref(), spoken));
        }
        let url = target.url.clone().unwrap_or_default();
        Ok(Ok(Target {
            url,
            protocol: target::protocol_of(spoken),
        }))
    }

    /// The texts of prompts that ConfigMaps hold; what is not there is left out.
    async fn prompts(&self, test: &LoadTest, visit: &Visit) -> Result<Prompts, Error> {
        let namespace = &visit.key().namespace;
        let mut prompts = Prompts::new();
        let names: BTreeSet<&str> = plan::references(&test.spec)
            .map(|reference| reference.name.as_str())
            .collect();
        for name in names {
            let key = Key::new(namespace, name);
            if self.caches.config_maps.get(&key).is_none() {
                continue;
            }
            let data = visit
                .read::<ConfigMap>(&key)
                .await?
                .and_then(|map| map.data)
                .unwrap_or_default();
            prompts.extend(data.into_iter().map(|(key, text)| ((name.to_owned(), key), text)));
        }
        Ok(prompts)
    }

    async fn wait(&self, test: &LoadTest, wait: NotYet, visit: &Visit) -> Result<Next, Error> {
        self.say(test, &Say::new(Mood::Waiting, wait.reason, wait.message), visit)
            .await?;
        // Pools and ConfigMaps are watched; other Services are not, and neither is the clock that makes it Stalled.
        Ok(Next::after(WAIT_PAUSE))
    }

    /// The test can never run: it cannot be changed.
    async fn refuse(&self, test: &LoadTest, sentence: &str, visit: &Visit) -> Result<Next, Error> {
        let message = format!("{sentence}; a LoadTest cannot be changed, so create a new one");
        let say = Say::new(Mood::Failed, "InvalidSpec", &message);
        let status = status::finished(
            test,
            &say,
            Verdict::Invalid,
            ("InvalidSpec", &message),
            visit.now(),
        );
        visit.write_status(test, &status, StatusWrite::urgent()).await?;
        visit.note(Note::warning("InvalidSpec", message));
        Ok(Next::on_change())
    }

    // === while it runs ===

    async fn watch(
        &self,
        test: &LoadTest,
        scene: &Scene,
        workload: &str,
        visit: &Visit,
    ) -> Result<Option<Duration>, Error> {
        let leader = scene.pods.iter().find(|pod| pod.index == Some(0) && pod.is_up());
        self.board
            .follow(visit.key(), leader.and_then(|pod| pod.address.as_deref()));
        let progress = self.board.newest(visit.key());
        let (refused, pause) = self.refusal(test, scene, visit).await?;

        let desired = test.spec.workers.count;
        let up = i32::try_from(scene.pods.iter().filter(|pod| pod.is_up()).count()).unwrap_or(i32::MAX);
        let trouble = scene
            .pods
            .iter()
            .find_map(|pod| pod.trouble.as_ref())
            .or(refused.as_ref());
        let complaint = scene.pods.iter().find_map(PodView::complaint);
        let trouble = trouble.map(|trouble| trouble.message.clone()).or(complaint);
        let start_known = test
            .status
            .as_ref()
            .is_some_and(|status| status.start_time.is_some());
        let say = status::running(up, desired, progress.as_ref(), start_known, trouble.as_deref());

        let mut status = status::unfinished(test, &say, visit.now());
        status.workload = Some(workload.to_owned());
        status.workers = Some(status::workers(desired, up, scene.harvested.len()));
        if let Some(progress) = &progress {
            status = status::with_progress(status, progress);
        }
        let how = StatusWrite {
            lazy: &["/progress"],
            lazy_every: PROGRESS_EVERY,
            ..StatusWrite::default()
        };
        visit.write_status(test, &status, how).await?;
        Ok(pause)
    }

    /// Why the Job has no pods, and when to ask again. A quota or a policy that refuses pods shows nowhere but in
    /// events, so the API server is asked whether it would take one.
    async fn refusal(
        &self,
        test: &LoadTest,
        scene: &Scene,
        visit: &Visit,
    ) -> Result<(Option<Trouble>, Option<Duration>), Error> {
        let (Some(job), Some(view)) = (&scene.job, &scene.job_view) else {
            return Ok((None, None));
        };
        if !scene.pods.is_empty() || !scene.harvested.is_empty() {
            self.refusals.lock().remove(visit.key());
            return Ok((None, None));
        }
        let (now, key) = (visit.now(), visit.key());
        if now.duration_since(view.created) < PODLESS {
            return Ok((None, Some(Duration::from_secs(3))));
        }
        let remembered = self.refusals.lock().get(key).cloned();
        if let Some((asked, answer)) = remembered
            && now.duration_since(asked)
                < SignedDuration::try_from(REFUSAL_PAUSE).unwrap_or(SignedDuration::MAX)
        {
            return Ok((answer, Some(REFUSAL_PAUSE)));
        }
        let Some(template) = job.spec.as_ref().map(|spec| spec.template.clone()) else {
            return Ok((None, None));
        };
        let answer = match visit.dry_run(&build::job::worker_pod(test, template)).await? {
            DryRun::Accepted => None,
            DryRun::Rejected { message, .. } => {
                let reason = if message.contains("exceeded quota") {
                    "QuotaExceeded"
                } else {
                    "PodsRefused"
                };
                Some(Trouble {
                    reason,
                    message: format!("worker pods are refused: {message}"),
                })
            }
        };
        self.refusals.lock().insert(key.clone(), (now, answer.clone()));
        Ok((answer, Some(REFUSAL_PAUSE)))
    }

    // === after the end ===

    async fn judge(
        &self,
        test: &LoadTest,
        scene: &Scene,
        workload: &str,
        ending: Ending,
        visit: &Visit,
    ) -> Result<Next, Error> {
        let Key { namespace, name } = visit.key();
        // Right after a change of the leader this replica's cache may not have the Job yet.
        if ending == Ending::JobDeleted && scene.job.is_none() {
            let live = visit
                .read::<Job>(&Key::new(namespace, build::job_name(name)))
                .await?;
            if live.is_some_and(|job| {
                job.owner_references()
                    .iter()
                    .any(|owner| owner.uid == uid_of(test))
            }) {
                return Ok(Next::after(Duration::from_secs(1)));
            }
        }
        let Some(record) = &scene.record else {
            visit
                .execute(vec![Action::create(&config_map::result(test, workload))])
                .await?;
            return Ok(Next::after(SOON));
        };
        let stored = visit
            .read::<ConfigMap>(&Key::new(namespace, build::result_name(name)))
            .await?;
        let mut messages = stored.as_ref().map(config_map::messages).unwrap_or_default();
        messages.extend(scene.fresh.clone());
        let price = test.spec.target.pool_ref.as_ref().and_then(|reference| {
            let pool = self.caches.pools.get(&Key::new(namespace, &reference.name))?;
            target::price(&pool, &self.caches.providers.in_namespace(namespace))
        });
        let refused = self
            .refusals
            .lock()
            .get(visit.key())
            .and_then(|(_, answer)| answer.clone());
        let report = report::report(&Evidence {
            spec: &test.spec,
            workload,
            messages: &messages,
            ending,
            job: scene.job_view.as_ref(),
            pods: &scene.pods,
            refused: refused.as_ref(),
            price: price.as_ref(),
        });
        if !config_map::is_judged(&record.metadata) {
            let patch = config_map::judged_patch(
                &format!("{:?}", report.verdict()),
                &report.result(&test.spec, workload),
            );
            visit
                .execute(vec![Action::patch_exactly(&**record, patch)])
                .await?;
        }

        let (reason, message) = (
            report.judgement.reason.as_str(),
            report.judgement.message.as_str(),
        );
        let say = match ending {
            Ending::NotStarted => Say::new(Mood::Failed, reason, message),
            Ending::Stopped => Say::new(Mood::Done, "Stopped", message),
            Ending::Ended | Ending::JobDeleted | Ending::Overdue => Say::new(Mood::Done, "Complete", message),
        };
        let verdict = report.verdict();
        let status = LoadTestStatus {
            workload: Some(workload.to_owned()),
            workers: Some(report.workers(&test.spec)),
            progress: Some(report.progress(&test.spec)),
            summary: report.summary(),
            thresholds: report.thresholds(),
            result_ref: Some(LocalRef {
                name: build::result_name(name),
            }),
            ..status::finished(test, &say, verdict, (reason, message), visit.now())
        };
        visit.write_status(test, &status, StatusWrite::urgent()).await?;
        let note = format!("{verdict:?}: {message}");
        visit.note(match verdict {
            Verdict::Passed => Note::normal("Completed", note),
            Verdict::Failed | Verdict::Inconclusive | Verdict::Invalid => Note::warning("Completed", note),
        });
        Ok(Next::on_change())
    }

    async fn clean_up(&self, test: &LoadTest, scene: &Scene, visit: &Visit) -> Result<Next, Error> {
        self.refusals.lock().remove(visit.key());
        let job = scene.job.iter().map(|job| Action::delete(&**job));
        let plan = scene.plan.iter().map(|plan| Action::delete(&**plan));
        let coordinator = scene.coordinator.iter().map(|service| Action::delete(&**service));
        visit
            .execute(job.chain(plan).chain(coordinator).collect())
            .await?;

        visit
            .write_status(test, &status::still_finished(test), StatusWrite::default())
            .await?;
        let completed = test
            .status
            .as_ref()
            .and_then(|status| status.completion_time.as_ref());
        let (Some(seconds), Some(completed)) = (test.spec.ttl_seconds_after_finished, completed) else {
            return Ok(Next::on_change());
        };
        let age = visit.now().duration_since(completed.0);
        match Duration::try_from(SignedDuration::from_secs(seconds.into()) - age) {
            Ok(left) if !left.is_zero() => Ok(Next::after(left)),
            _ => {
                visit.execute(vec![Action::delete(test)]).await?;
                Ok(Next::on_change())
            }
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

fn started_note(plan: &LoadPlan) -> String {
    let count = plan.workers.count;
    let workers = if count == 1 {
        "1 worker".to_owned()
    } else {
        format!("{count} workers")
    };
    format!(
        "{workers} will send {} requests in {} s to {}",
        plan.requests(),
        plan.seconds(),
        plan.target.url
    )
}

#[cfg(test)]
mod tests;
