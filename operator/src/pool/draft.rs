//! The writes of a plan, in an order in which a crash between any two does no harm: what pods need, the record of the
//! revision, its pods, its Services, what goes. Pure.

use std::sync::Arc;

use flotilla_core::evidence::eta::duration;
use flotilla_core::revision::Content;
use flotilla_core::rollout::{Decision, Restart, Standing, shift};
use flotilla_core::seeded::{self, Bug};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;

use super::build::{
    controller_revision, disruption_budget, http_route, pod, replica_set, service, service_account, snapshot,
};
use super::dereference::{Observed, is_ready};
use super::gateways::Reports;
use super::memory::Memory;
use super::plan::Restarting;
use super::validate::{Wanted, overlay_of};
use super::{prune, transitions, victims};
use crate::runtime::{Action, Note, Presence};

/// A plan being written.
pub(super) struct Draft<'a> {
    pub(super) observed: &'a Observed,
    pub(super) wanted: Option<&'a Wanted>,
    pub(super) decision: &'a Decision,
    /// Where a candidate begins and why, see [`super::judge::start`].
    pub(super) start: Option<(i32, String)>,
    pub(super) now: Timestamp,
    pub(super) actions: Vec<Action>,
    pub(super) check: Option<(String, Pod)>,
    pub(super) lacks_bytes: bool,
    /// A scale-down waits for a report or for a mark to be seen.
    pub(super) held: bool,
}

impl Draft<'_> {
    /// Writes everything; a restart that is under way, if there is one.
    pub(super) fn write(&mut self, reports: &Reports<'_>, memory: &Memory) -> Option<Restarting> {
        self.supplies();
        self.standings();
        self.passed();
        let restarting = self.restart(reports);
        if restarting.is_none() {
            for (revision, replicas) in &self.decision.scale {
                self.scale(revision, *replicas, reports, memory);
            }
        }
        self.services();
        self.route();
        if self.decision.changes.is_empty() {
            self.actions
                .extend(prune::prune(self.observed, self.wanted, self.decision, self.now));
        }
        self.events();
        restarting
    }

    /// The content of a revision: as recorded, else as wanted.
    fn content(&self, revision: &str) -> Option<&Content> {
        let wanted = self
            .wanted
            .filter(|wanted| wanted.revision == revision)
            .map(|wanted| &wanted.content);
        wanted.or_else(|| {
            self.observed
                .record(revision)
                .and_then(|record| record.content.as_ref())
        })
    }

    fn live(&self) -> impl Iterator<Item = &String> {
        self.decision.stable.iter().chain(&self.decision.candidate)
    }

    /// What pods need before they start.
    fn supplies(&mut self) {
        let pool = &*self.observed.pool;
        let uses_ours = |revision: &String| {
            self.content(revision)
                .is_some_and(|content| content.agent.service_account_name.is_none())
        };
        let (mut actions, mut lacks_bytes) = (Vec::new(), false);
        if self.live().any(uses_ours) {
            actions.push(Action::apply(&service_account::build(pool)));
        }
        if let Some(wanted) = self
            .wanted
            .filter(|wanted| self.live().any(|live| *live == wanted.revision))
        {
            for (source, hash) in &wanted.content.sources {
                let name = snapshot::name(&self.observed.name(), source, hash);
                let is_there = self
                    .observed
                    .snapshots
                    .iter()
                    .any(|snapshot| snapshot.name_any() == name);
                // Another hash: an older revision is pinned, whose bytes are in its snapshot or nowhere.
                if is_there || self.observed.sources.hashes.get(source) != Some(hash) {
                    continue;
                }
                match self.observed.sources.files.get(source) {
                    Some(files) => actions.push(Action::create(&snapshot::build(pool, source, hash, files))),
                    None => lacks_bytes = true,
                }
            }
        }
        self.actions.extend(actions);
        self.lacks_bytes = lacks_bytes;
    }

    /// The records' changes. Only the last change of a revision is written.
    fn standings(&mut self) {
        let mut order = self
            .observed
            .revisions
            .iter()
            .map(|known| known.record.order)
            .max()
            .unwrap_or_default();
        for (position, change) in self.decision.changes.iter().enumerate() {
            let later = self.decision.changes.get(position + 1..).unwrap_or_default();
            if later.iter().any(|later| later.revision == change.revision) {
                continue;
            }
            let known = self
                .observed
                .revisions
                .iter()
                .find(|known| known.record.revision == change.revision);
            let is_rising = change.standing == Standing::Candidate
                || change.standing == Standing::Stable
                    && known.is_none_or(|known| known.record.standing != Standing::Candidate);
            if is_rising {
                order += 1;
            }
            match known {
                Some(known) => {
                    let order = is_rising.then_some(order);
                    let mut patch =
                        controller_revision::change(change.standing, change.reason.as_ref(), order, self.now);
                    if change.standing == Standing::Candidate && self.has_served_lately(&known.record) {
                        patch["metadata"]["annotations"][controller_revision::TRUSTED] = "true".into();
                    } else if change.standing == Standing::Candidate
                        && let Some(weight) = self.passed_by(&change.revision)
                    {
                        patch["metadata"]["annotations"][controller_revision::PASSED] =
                            weight.to_string().into();
                    }
                    self.actions.push(Action::patch_exactly(&*known.object, patch));
                }
                None => {
                    if let Some(content) = self.content(&change.revision) {
                        let pool = &*self.observed.pool;
                        let mut record = controller_revision::build(
                            pool,
                            &change.revision,
                            content,
                            change.standing,
                            order,
                            self.now,
                        );
                        if change.standing == Standing::Candidate
                            && let Some(weight) = self.passed_by(&change.revision)
                        {
                            record
                                .annotations_mut()
                                .insert(controller_revision::PASSED.into(), weight.to_string());
                        }
                        self.actions.push(Action::create(&record));
                    }
                }
            }
        }
    }

    /// The weight that a revision has just passed or left out.
    fn passed_by(&self, revision: &str) -> Option<i32> {
        let passed = self.decision.passed.as_ref();
        passed
            .filter(|(whose, _)| whose == revision)
            .map(|(_, weight)| *weight)
    }

    /// Why a candidate that begins now does not begin at the first step.
    fn why_left_out(&self) -> Option<&str> {
        let (_, why) = self.start.as_ref().filter(|_| self.decision.left_out)?;
        Some(why)
    }

    /// Whether a revision is among those that served last.
    fn has_served_lately(&self, record: &controller_revision::Record) -> bool {
        let window = self.observed.pool.spec.rollout.rollback_window_revisions;
        let verified = self.observed.revisions.iter().map(|known| &known.record);
        let later =
            verified.filter(|other| other.standing == Standing::Verified && other.order > record.order);
        record.standing == Standing::Verified && later.count() < usize::try_from(window).unwrap_or_default()
    }

    /// A weight whose question is answered, before what follows from it.
    fn passed(&mut self) {
        let passed = self.decision.passed.as_ref();
        let Some((revision, weight)) = passed.filter(|_| !seeded::has(Bug::PassedNotWritten)) else {
            return;
        };
        // With its standing it is written in one.
        if self
            .decision
            .changes
            .iter()
            .any(|change| change.revision == *revision)
        {
            return;
        }
        let known = self.observed.revisions.iter();
        if let Some(known) = known.into_iter().find(|known| known.record.revision == *revision) {
            self.actions.push(Action::patch_exactly(
                &*known.object,
                controller_revision::pass(*weight),
            ));
            let note = match self.why_left_out() {
                Some(why) => Note::normal("StepsLeftOut", format!("{revision} {why}")),
                None => Note::normal(
                    "StepPassed",
                    format!("{revision} has proved itself at {weight} % and goes on"),
                ),
            };
            self.actions.push(Action::event(note));
        }
    }

    fn scale(&mut self, revision: &str, replicas: i32, reports: &Reports<'_>, memory: &Memory) {
        let Some(set) = self.observed.sets.get(revision) else {
            if self.live().any(|live| live == revision) {
                self.create_set(revision, replicas, memory);
            }
            return;
        };
        let current = set
            .spec
            .as_ref()
            .and_then(|spec| spec.replicas)
            .unwrap_or_default();
        if current == replicas {
            return;
        }
        let pods = self.observed.pods_of(revision);
        let keep = usize::try_from(replicas).unwrap_or_default();
        if replicas < current && keep > 0 && keep < pods.len() {
            if reports.is_answer_coming() {
                self.held = true;
                return;
            }
            let marks = victims::mark(pods, keep, &reports.in_flight());
            if !marks.is_empty() {
                // The ReplicaSet controller has to see the marks first; their arrival is the next visit.
                self.actions.extend(marks);
                self.held = true;
                return;
            }
        }
        self.actions.push(Action::scale(&**set, replicas));
    }

    fn create_set(&mut self, revision: &str, replicas: i32, memory: &Memory) {
        let Some(content) = self.content(revision).cloned() else {
            return;
        };
        let pool = &*self.observed.pool;
        // It was decodable when the revision was made, or validation has said so already.
        let Ok(overlay) = overlay_of(content.agent.pod_template.as_ref()) else {
            return;
        };
        let has_overlay = content.agent.pod_template.is_some();
        if has_overlay && memory.accepted.as_deref() != Some(revision) {
            let template = pod::template(pool, revision, &content, overlay.clone());
            self.check = Some((revision.to_owned(), pod::sample(pool, revision, template)));
        }
        let set = replica_set::build(pool, revision, &content, overlay, replicas);
        self.actions.push(Action::create(&set));
    }

    fn services(&mut self) {
        let pool = &*self.observed.pool;
        let of_revisions: Vec<_> = self
            .live()
            .filter_map(|revision| {
                Some(service::of_revision(
                    pool,
                    revision,
                    &self.content(revision)?.agent,
                ))
            })
            .collect();
        if of_revisions.is_empty() {
            return;
        }
        self.actions.extend(of_revisions.iter().map(Action::apply));
        let front = match self.observed.port {
            Some(port) => Some(service::front(pool, port)),
            None if pool.spec.traffic.is_by_number() => pool
                .spec
                .traffic
                .has_front()
                .then(|| service::front_to_pods(pool)),
            None => None,
        };
        self.actions.extend(front.as_ref().map(Action::apply));
        self.actions.push(Action::apply(&disruption_budget::build(pool)));
    }

    /// The HTTPRoute with the weights decided: last of what carries traffic, because it may be refused.
    fn route(&mut self) {
        if self.observed.routing != Presence::Present {
            return;
        }
        let (traffic, _) = super::status::traffic(self.observed, self.decision, self.now);
        let route = http_route::build(&self.observed.pool, &traffic);
        self.actions.extend(route.as_ref().map(Action::apply));
    }

    /// Replaces old pods of the stable revision, when that was commanded and nothing is being released.
    fn restart(&mut self, reports: &Reports<'_>) -> Option<Restarting> {
        let decision = self.decision;
        let replicas = self.observed.pool.spec.effective_replicas();
        if decision.candidate.is_some() || !decision.changes.is_empty() || replicas == 0 {
            return None;
        }
        let stable = decision.stable.as_ref()?;
        let before = self.observed.record(stable)?.restarted_at?;
        let set = self.observed.sets.get(stable)?;
        let pods = self.observed.pods_of(stable);
        let is_old = |pod: &&Arc<Pod>| pod.creation_timestamp().is_some_and(|made| made.0 < before);
        let (old, new): (Vec<_>, Vec<_>) = pods.iter().partition(is_old);
        if old.is_empty() {
            return None;
        }
        let count =
            |pods: &mut dyn Iterator<Item = &Arc<Pod>>| i32::try_from(pods.count()).unwrap_or(i32::MAX);
        let (available, unavailable): (Vec<_>, Vec<_>) = old.into_iter().partition(|pod| is_ready(pod));
        let step = Restart {
            replicas,
            surge: shift::surge(
                replicas,
                self.observed.pool.spec.rolling_update().max_surge_percent,
            ),
            old_available: count(&mut available.iter().copied()),
            old_unavailable: count(&mut unavailable.iter().copied()),
            new_available: count(&mut new.iter().copied().filter(|pod| is_ready(pod))),
        }
        .step();
        if set.spec.as_ref().and_then(|spec| spec.replicas) != Some(step.replicas) {
            self.actions.push(Action::scale(&**set, step.replicas));
        }
        let in_flight = reports.in_flight();
        let number = |count: i32| usize::try_from(count).unwrap_or_default();
        let mut gone = victims::idlest(unavailable, number(step.delete_unavailable), &in_flight);
        gone.extend(victims::idlest(
            available,
            number(step.delete_available + i32::from(seeded::has(Bug::RestartTooMany))),
            &in_flight,
        ));
        self.actions
            .extend(gone.into_iter().map(|pod| Action::delete(&**pod)));
        Some(Restarting {
            before,
            replaced: count(&mut new.into_iter()).min(replicas),
            of: replicas,
        })
    }

    fn events(&mut self) {
        let is_first = !self
            .observed
            .revisions
            .iter()
            .any(|known| known.record.standing == Standing::Stable);
        for change in &self.decision.changes {
            let revision = &change.revision;
            let note = match (change.standing, &change.reason) {
                (Standing::Candidate, _) => {
                    let known = self.observed.record(revision);
                    let text = match self.why_left_out() {
                        _ if known.is_some_and(|known| self.has_served_lately(known)) => {
                            format!(
                                "{revision} served not long ago and takes over again without being judged"
                            )
                        }
                        Some(why) => format!("{revision} is being released; it {why}"),
                        None => format!("{revision} is being released"),
                    };
                    Note::normal("ReleaseStarted", text)
                }
                (Standing::Stable, _) if is_first => {
                    Note::normal("FirstRevision", format!("{revision} is the first revision"))
                }
                (Standing::Stable, _) => {
                    let start = self
                        .observed
                        .record(revision)
                        .and_then(|record| record.started_at);
                    let took = start.map_or(String::new(), |start| {
                        let seconds = self.now.duration_since(start).as_secs();
                        format!(", {} after its release began", duration(seconds))
                    });
                    Note::normal("ReleaseCompleted", format!("{revision} serves{took}"))
                }
                (Standing::Rejected, Some(reason)) => Note::warning(
                    "ReleaseStopped",
                    format!("{revision} was stopped: {}: {}", reason.word, reason.message),
                ),
                (Standing::Unproved, _) => Note::normal(
                    "ReleaseSuperseded",
                    format!("{revision} was superseded before it was released"),
                ),
                (Standing::Rejected | Standing::Verified, _) => continue,
            };
            self.actions.push(Action::event(note));
        }
        let others = transitions::notes(&self.observed.status, self.decision);
        self.actions.extend(others.into_iter().map(Action::event));
    }
}
