//! Tests of a candidate at the rung it has reached: `smokeTests` before it gets traffic and when it has all of it, and the
//! load test that a step waits for. They are hard signals: one that fails needs no statistics.
//!
//! | step | module | client |
//! |---|---|---|
//! | which tests a rung has | [`list`] | no: pure |
//! | what has come of them, and the gate that follows | [`sitting`] | no: pure |
//! | requests, connections and names | [`runner`], [`ask`], [`answer`] | the candidate's Service; never the API server |
//! | Jobs and LoadTests | [`child`], [`top_up`] | no: objects out of values, carried out with the pool's plan |
//!
//! What a test has come to is kept in memory and in `status.rollout.tests`; that all are passed, with the candidate's record
//! (as any rung). A restarted operator begins again what was under way, and repeats nothing that has ended. Jobs and
//! LoadTests have names made from what they test, so they are found again.

pub mod answer;
pub mod ask;
pub mod child;
pub mod list;
pub mod runner;
pub mod sitting;
pub mod top_up;

use std::sync::Arc;
use std::time::Duration;

use flotilla_core::rollout::{Reached, Standing};
use flotilla_crds::names;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;

use super::dereference::{Observed, is_ready, ready_since};
use super::judge;
use super::memory::Memory;
use crate::caches::Caches;
use crate::metrics::Metrics;
use crate::runtime::{Action, Key, Note, uid_of};
use ask::Target;
use child::Whose;
use list::{Check, Test};
use runner::{Runner, SETTLES, Ticket};
use sitting::{Outcome, Sitting, State};

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Labels {
    r#type: &'static str,
    result: &'static str,
}

/// Holds the tests of all pools.
#[derive(Debug)]
pub struct Trials {
    runner: Runner,
    ended: Family<Labels, Counter>,
}

/// What a visit is to do about tests.
#[derive(Debug, Default)]
pub struct Errands {
    /// Jobs and LoadTests to create or to delete, after everything else.
    pub actions: Vec<Action>,
    /// What has happened.
    pub notes: Vec<Note>,
}

impl Trials {
    /// Tests carried out by `runner`, counted in `metrics`.
    pub fn new(runner: Runner, metrics: &Metrics) -> Self {
        let ended = Family::<Labels, Counter>::default();
        metrics.register(|registry| {
            registry.register(
                "release_tests",
                "Tests of candidates that have ended",
                ended.clone(),
            );
        });
        Self { runner, ended }
    }

    /// Looks at the tests of the rung that is reached: begins what can begin, takes in what has ended. The sitting in
    /// `memory` is then what is known of them; none where the rung has none.
    pub fn look(
        &self,
        key: &Key,
        observed: &Observed,
        memory: &mut Memory,
        caches: &Caches,
        now: Timestamp,
    ) -> Errands {
        let mut errands = Errands {
            actions: sweep(observed, caches),
            ..Errands::default()
        };
        self.top_up(key, observed, memory, caches, now, &mut errands);
        let spec = &observed.pool.spec;
        let reached = memory.reached.clone();
        let checks = reached
            .as_ref()
            .map(|reached| list::checks(spec, reached.weight))
            .unwrap_or_default();
        let Some(reached) = reached.filter(|_| !checks.is_empty()) else {
            memory.sitting = None;
            self.runner.keep(key, &[]);
            return errands;
        };
        if spec.rollout.paused || spec.stopped {
            return errands;
        }
        let before = memory.sitting.take().filter(|sitting| sitting.is_of(&reached));
        let mut sitting = before
            .as_deref()
            .cloned()
            .unwrap_or_else(|| Sitting::new(&reached));
        let bench = Bench {
            trials: self,
            key,
            observed,
            caches,
            reached: &reached,
            now,
        };
        let mut tickets = Vec::new();
        sitting.advance(&checks, |check, before| {
            let (outcome, child) = bench.hold(check, before, &mut tickets);
            errands.actions.extend(child);
            outcome
        });
        self.runner.keep(key, &tickets);
        self.tell(before.as_deref(), &sitting, &mut errands.notes);
        memory.sitting = Some(Arc::new(sitting));
        errands
    }

    /// Synthetic load while a step of a canary is judged.
    fn top_up(
        &self,
        key: &Key,
        observed: &Observed,
        memory: &mut Memory,
        caches: &Caches,
        now: Timestamp,
        errands: &mut Errands,
    ) {
        let spec = &observed.pool.spec;
        let wanted = spec.rollout.canary().and(spec.rollout.analysis().top_up);
        let reached = memory.reached.clone();
        let is_step = |reached: &Reached| (1..100).contains(&reached.weight);
        let may_run = !spec.rollout.paused && !spec.stopped;
        let step = wanted.zip(reached.filter(|reached| is_step(reached) && may_run));
        let whose = step.as_ref().map(|(_, reached)| Whose {
            pool: &observed.pool,
            revision: &reached.revision,
            attempt: reached.attempt,
            weight: reached.weight,
        });
        let owned = caches.load_tests.owned_by(&uid_of(&*observed.pool));
        let stale = owned.iter().filter(|test| top_up::is_stale(test, whose));
        errands.actions.extend(stale.map(|test| Action::delete(&**test)));
        memory.top_up = None;
        let Some(((wanted, reached), whose)) = step.as_ref().zip(whose) else {
            return;
        };
        let template = caches
            .load_tests
            .get(&Key::new(&key.namespace, &wanted.template_ref.name));
        let name = observed.name();
        let records = observed.revisions.iter().map(|known| &known.record);
        let arms = records
            .filter(|record| record.standing == Standing::Stable || record.revision == reached.revision)
            .filter_map(|record| judge::traffic(&observed.gateways, &name, &record.revision));
        // While a gateway has not spoken, little traffic is only little that is known.
        let is_known = observed.gateways.iter().all(|view| !view.ready || view.fresh);
        let rate = match is_known {
            true => arms.map(|arm| arm.requests_per_second).sum(),
            false => f64::INFINITY,
        };
        let found = top_up::decide(whose, wanted, &owned, template.as_deref(), rate, now);
        if found.begins {
            let text = format!(
                "{} has {rate:.2} requests per second at {} %, less than {}: synthetic load begins",
                reached.revision, reached.weight, wanted.min_requests_per_second
            );
            errands.notes.push(Note::normal("TopUpStarted", text));
        }
        errands.actions.extend(found.actions);
        memory.top_up = found.running;
    }

    /// The pool is gone.
    pub fn forget(&self, key: &Key) {
        self.runner.keep(key, &[]);
    }

    /// Counts a test of this type that has ended.
    pub(super) fn count(&self, r#type: &'static str, state: State) {
        let labels = Labels {
            r#type,
            result: state.word(),
        };
        self.ended.get_or_create(&labels).inc();
    }

    /// Counts and reports what has ended since the last look.
    fn tell(&self, before: Option<&Sitting>, sitting: &Sitting, notes: &mut Vec<Note>) {
        let Sitting { revision, weight, .. } = sitting;
        for check in &sitting.checks {
            let outcome = sitting.outcome(&check.name);
            let was = before
                .map(|before| before.outcome(&check.name).state)
                .unwrap_or_default();
            if was == outcome.state || !outcome.state.is_final() {
                continue;
            }
            self.count(check.test.word(), outcome.state);
            let (name, message) = (&check.name, &outcome.message);
            match outcome.state {
                State::Failed => notes.push(Note::warning(
                    "TestFailed",
                    format!("{revision} has failed test {name}: {message}"),
                )),
                State::Undecided => notes.push(Note::warning(
                    "TestUndecided",
                    format!("test {name} of {revision} came to no verdict: {message}"),
                )),
                State::Passed | State::Waiting | State::Running => {}
            }
        }
        if sitting.is_passed() && !before.is_some_and(Sitting::is_passed) {
            let count = sitting.checks.len();
            let tests = if count == 1 { "test" } else { "tests" };
            notes.push(Note::normal(
                "TestsPassed",
                format!("{revision} has passed {count} {tests} at {weight} %"),
            ));
        }
    }
}

/// One look at the tests of one candidate.
struct Bench<'a> {
    trials: &'a Trials,
    key: &'a Key,
    observed: &'a Observed,
    caches: &'a Caches,
    reached: &'a Reached,
    now: Timestamp,
}

impl Bench<'_> {
    /// What has come of a test that may run, and the object to create for it.
    fn hold(&self, check: &Check, before: &Outcome, tickets: &mut Vec<Ticket>) -> (Outcome, Option<Action>) {
        // Scaled to none, or just grown: a test would blame the revision for it. What is under way begins again.
        let pods = self.observed.pods_of(&self.reached.revision);
        if !pods.iter().any(|pod| is_ready(pod)) {
            return (Outcome::waiting("no replica is ready to be tested"), None);
        }
        match &check.test {
            Test::Probe(_) => {
                let ticket = Ticket {
                    pool: uid_of(&*self.observed.pool),
                    revision: self.reached.revision.clone(),
                    attempt: self.reached.attempt,
                    weight: self.reached.weight,
                    check: check.clone(),
                };
                let target = || (self.target(), self.settles(pods));
                let outcome = self.trials.runner.outcome(self.key, &ticket, target);
                tickets.push(ticket);
                let under_way = || Outcome::running().by(before.until.or_else(|| self.after(check)));
                (outcome.unwrap_or_else(under_way), None)
            }
            Test::Job(_) => self.job(check),
            Test::LoadTest(template) => self.load_test(check, template, before),
        }
    }

    fn whose(&self) -> Whose<'_> {
        Whose {
            pool: &self.observed.pool,
            revision: &self.reached.revision,
            attempt: self.reached.attempt,
            weight: self.reached.weight,
        }
    }

    /// The candidate's own Service.
    fn target(&self) -> Target {
        let revision = &self.reached.revision;
        let services = self.observed.services.iter();
        let address = services
            .filter(|service| service.name_any() == *revision)
            .find_map(|service| service.spec.as_ref()?.cluster_ip.clone());
        let agent = self.agent();
        Target::of_revision(&self.key.namespace, revision, address.as_deref(), agent)
    }

    /// How much longer a node may not know the endpoint of the replica that was ready first. Clocks of nodes may differ.
    fn settles(&self, pods: &[Arc<Pod>]) -> Duration {
        let first = pods.iter().filter_map(|pod| ready_since(pod)).min();
        let age = first.map(|first| self.now.duration_since(first));
        let age = age.and_then(|age| Duration::try_from(age).ok());
        SETTLES.saturating_sub(age.unwrap_or_default())
    }

    /// By when a test has ended that begins now.
    fn after(&self, check: &Check) -> Option<Timestamp> {
        let longest = SignedDuration::from_secs(check.longest_seconds());
        self.now.checked_add(longest).ok()
    }

    fn agent(&self) -> &flotilla_crds::agent_pool::Agent {
        let record = self.observed.record(&self.reached.revision);
        let content = record.and_then(|record| record.content.as_ref());
        content.map_or(&self.observed.pool.spec.agent, |content| &content.agent)
    }

    fn job(&self, check: &Check) -> (Outcome, Option<Action>) {
        let name = child::name(self.whose(), check, 1);
        let uid = uid_of(&*self.observed.pool);
        let job = self.caches.jobs.get(&Key::new(&self.key.namespace, &name));
        match job.filter(|job| child::is_owned(&**job, &uid)) {
            Some(job) => {
                let pods = || self.caches.pods.owned_by(&uid_of(&*job));
                let until = child::until(&*job, check.longest_seconds());
                (child::outcome_of_job(&job, pods).by(until), None)
            }
            None => {
                let record = self.observed.record(&self.reached.revision);
                let content = record.and_then(|record| record.content.as_ref());
                match content.map(|content| child::job(self.whose(), check, &name, content)) {
                    Some(Ok(job)) => (
                        Outcome::running().by(self.after(check)),
                        Some(Action::create(&job)),
                    ),
                    Some(Err(sentence)) => (Outcome::undecided(0, sentence), None),
                    None => (
                        Outcome::undecided(0, "this version of Flotilla cannot read the revision's record"),
                        None,
                    ),
                }
            }
        }
    }

    fn load_test(&self, check: &Check, template: &str, before: &Outcome) -> (Outcome, Option<Action>) {
        let mut run = before.attempts.max(1);
        let namespace = &self.key.namespace;
        let uid = uid_of(&*self.observed.pool);
        loop {
            let name = child::name(self.whose(), check, run);
            let test = self.caches.load_tests.get(&Key::new(namespace, &name));
            if let Some(test) = test.filter(|test| child::is_owned(&**test, &uid)) {
                let outcome = child::outcome_of_load_test(&test, check.seconds, run, self.now);
                // Another try, unless this was the last one.
                if outcome.state == State::Undecided && child::has_verdict(&test) && run < check.attempts {
                    run += 1;
                    continue;
                }
                let left = i64::from(check.attempts - run + 1) * check.seconds;
                return (outcome.by(child::until(&*test, left)), None);
            }
            let Some(template) = self.caches.load_tests.get(&Key::new(namespace, template)) else {
                let message = format!(
                    "LoadTest {template} does not exist in this namespace; create it with suspend: true, or name another one"
                );
                return (Outcome::waiting(message), None);
            };
            let protocol = self.agent().protocol;
            let test = child::load_test(self.whose(), check, &name, &template, protocol);
            let outcome = Outcome {
                attempts: run,
                ..Outcome::running().by(self.after(check))
            };
            return (outcome, Some(Action::create(&test)));
        }
    }
}

/// Deletes Jobs and LoadTests of earlier releases: those that still run at once, the others when the next release begins,
/// so that a failed one can be looked at.
fn sweep(observed: &Observed, caches: &Caches) -> Vec<Action> {
    let records = observed.revisions.iter().map(|known| &known.record);
    let candidate = records
        .filter(|record| record.standing == Standing::Candidate)
        .max_by_key(|record| record.order)
        .map(|record| child::release(&record.revision, record.attempt));
    let goes = |of: Option<&String>, is_over: bool| match (of, &candidate) {
        (None, _) => false,
        (Some(of), Some(candidate)) => of != candidate,
        (Some(_), None) => !is_over,
    };
    let uid = uid_of(&*observed.pool);
    let jobs = caches.jobs.owned_by(&uid);
    let jobs = jobs
        .iter()
        .filter(|job: &&Arc<Job>| {
            goes(
                job.annotations().get(names::TESTED_RELEASE),
                child::is_job_over(job),
            )
        })
        .map(|job| Action::delete(&**job));
    let tests = caches.load_tests.owned_by(&uid);
    let tests = tests
        .iter()
        .filter(|test| !top_up::is_stale(test, None))
        .filter(|test| {
            goes(
                test.annotations().get(names::TESTED_RELEASE),
                child::has_verdict(test),
            )
        })
        .map(|test| Action::delete(&**test));
    jobs.chain(tests).collect()
}
