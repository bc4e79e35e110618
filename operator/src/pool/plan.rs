//! What to write for a pool, as data. Pure: what there is, what was remembered and the time in; actions, the decision
//! and what to remember out.
//!
//! The decision is [`flotilla_core::rollout::decide`]'s. Here its words become objects, in an order in which a crash
//! between any two writes does no harm: what pods need, the record of the revision, its pods, its Services, what goes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use flotilla_core::revision::Content;
use flotilla_core::rollout::{
    Arm, Decision, Gateways, Member, Restart, Situation, Standing, State, Target, decide, shift,
};
use flotilla_crds::common::{condition, is_true};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;

use super::build::{
    controller_revision, disruption_budget, pod, replica_set, service, service_account, snapshot,
};
use super::dereference::{Observed, is_ready};
use super::gateways::Reports;
use super::memory::Memory;
use super::validate::{INVALID_POD_TEMPLATE, Problem, Wanted, overlay_of};
use super::{prune, trouble, victims};
use crate::runtime::{Action, Note};

/// While pods are waited for, troubles that show only by their age are looked for this often.
const LOOK_FOR_TROUBLE: Duration = Duration::from_secs(10);
/// A scale-down waits this long for gateways to say what is in flight; their answer comes earlier.
const AWAIT_REPORT: Duration = Duration::from_secs(1);

/// A restart of the stable revision's pods that is under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restarting {
    /// Pods made before this are replaced.
    pub before: Timestamp,
    /// Pods replaced so far.
    pub replaced: i32,
    /// Pods there will be.
    pub of: i32,
}

/// What to do for a pool.
#[derive(Debug)]
pub struct Plan {
    /// The writes, in order.
    pub actions: Vec<Action>,
    /// What was decided.
    pub decision: Decision,
    /// Why the spec cannot be followed, if so.
    pub problem: Option<Problem>,
    /// The members the decision was made on, for status.
    pub members: Vec<Member>,
    /// A restart under way.
    pub restarting: Option<Restarting>,
    /// The plan needs the bytes of a source that was not read: it must be made again with them before it is carried out.
    pub lacks_bytes: bool,
    /// A pod to dry-run before the actions, with the revision it is of.
    pub check: Option<(String, Pod)>,
    /// Whether gateways are to be asked every second.
    pub eager: bool,
    /// The latest time of the next visit.
    pub look_again: Option<Duration>,
    /// What to remember.
    pub memory: Memory,
}

/// Makes the plan.
pub fn plan(observed: &Observed, wanted: &Result<Wanted, Problem>, memory: &Memory, now: Timestamp) -> Plan {
    let mut memory = memory.clone();
    let (wanted, problem) = accepted(wanted, &memory, now);
    memory.waiting_since = match &problem {
        Some(problem) if problem.may_mend => Some(memory.waiting_since.unwrap_or(now)),
        _ => None,
    };
    let name = observed.name();
    let reports = Reports {
        pool: &name,
        views: &observed.gateways,
    };
    let members = members(observed, &reports, &mut memory, now);
    let target = target(observed, wanted, &mut memory, now);
    let gateways = gateways(observed, &reports, &members, &memory);
    let spec = &observed.pool.spec;
    let attempt = wanted
        .and_then(|wanted| observed.record(&wanted.revision))
        .map_or(1, |record| record.attempt);
    let decision = decide(&Situation {
        now,
        replicas: spec.effective_replicas(),
        surge_percent: spec.rolling_update().max_surge_percent,
        paused: spec.rollout.paused,
        stopped: spec.stopped,
        deadline: deadline(observed),
        target,
        attempt,
        members: members.clone(),
        gateways: gateways.clone(),
        progress: memory.progress.clone(),
    });
    memory.progress.clone_from(&decision.progress);
    let is_alone = decision.candidate.is_none();
    if is_alone && gateways == Gateways::Confirmed {
        memory.confirmed = observed.status.traffic_generation;
    }

    let mut draft = Draft {
        observed,
        wanted,
        decision: &decision,
        now,
        actions: Vec::new(),
        check: None,
        lacks_bytes: false,
        held: false,
    };
    let restarting = draft.write(&reports, &memory);
    let Draft {
        actions,
        check,
        lacks_bytes,
        held,
        ..
    } = draft;

    let is_retiring = members.iter().any(|member| {
        member.arm.wanted > 0
            && decision.stable.as_ref() != Some(&member.revision)
            && decision.candidate.as_ref() != Some(&member.revision)
    });
    let is_moving = (decision.candidate.is_some() || is_retiring || gateways != Gateways::Confirmed)
        && !matches!(decision.state, State::Paused | State::Stopped | State::Empty);
    let look_again = look_again(
        &decision,
        problem.as_ref(),
        &memory,
        held,
        now,
        deadline(observed),
    );
    Plan {
        actions,
        eager: is_moving || held || restarting.is_some(),
        decision,
        problem,
        members,
        restarting,
        check,
        lacks_bytes,
        look_again,
        memory,
    }
}

/// `progressDeadlineSeconds`.
pub fn deadline(observed: &Observed) -> SignedDuration {
    SignedDuration::from_secs(observed.pool.spec.rollout.progress_deadline_seconds.into())
}

/// What is wanted, unless the API server has just refused its pods.
fn accepted<'a>(
    wanted: &'a Result<Wanted, Problem>,
    memory: &Memory,
    now: Timestamp,
) -> (Option<&'a Wanted>, Option<Problem>) {
    match (wanted, &memory.refused) {
        (Err(problem), _) => (None, Some(problem.clone())),
        (Ok(wanted), Some((revision, sentence, until))) if *revision == wanted.revision && now < *until => (
            None,
            Some(Problem::invalid(INVALID_POD_TEMPLATE, sentence.clone())),
        ),
        (Ok(wanted), _) => (Some(wanted), None),
    }
}

fn members(observed: &Observed, reports: &Reports<'_>, memory: &mut Memory, now: Timestamp) -> Vec<Member> {
    let recorded = observed
        .revisions
        .iter()
        .map(|known| known.record.revision.as_str());
    let names: BTreeSet<&str> = recorded.chain(observed.sets.keys().map(String::as_str)).collect();
    let before = std::mem::take(&mut memory.troubles);
    let members = names.into_iter().map(|revision| {
        let record = observed.record(revision);
        let set = observed.sets.get(revision);
        let pods = observed.pods_of(revision);
        let count = |number: usize| i32::try_from(number).unwrap_or(i32::MAX);
        let wanted = set
            .and_then(|set| set.spec.as_ref())
            .and_then(|spec| spec.replicas)
            .unwrap_or_default();
        let available = pods.iter().filter(|pod| is_ready(pod)).count();
        let trouble = (count(available) < wanted)
            .then(|| {
                let deadline = observed.pool.spec.rollout.progress_deadline_seconds;
                trouble::find(
                    set.map(|set| &**set),
                    pods.iter().map(|pod| &**pod),
                    deadline,
                    now,
                )
            })
            .flatten()
            .map(|mut trouble| {
                trouble.reason = trouble::steady(before.get(revision), trouble.reason);
                memory
                    .troubles
                    .insert(revision.to_owned(), trouble.reason.clone());
                trouble
            });
        let share = observed
            .status
            .traffic
            .iter()
            .find(|share| share.revision == revision);
        Member {
            revision: revision.to_owned(),
            standing: record.map(|record| record.standing).unwrap_or_default(),
            order: record.map(|record| record.order).unwrap_or_default(),
            arm: Arm {
                wanted,
                existing: count(pods.len()),
                available: count(available),
                seen: count(reports.seen(revision, pods)),
            },
            weight: share.map(|share| share.weight),
            trouble,
            rejected: record
                .and_then(|record| record.rejected.clone())
                .map(|(reason, _)| reason),
        }
    });
    members.collect()
}

/// The target for the decision, and since when it rests.
fn target(observed: &Observed, wanted: Option<&Wanted>, memory: &mut Memory, now: Timestamp) -> Target {
    let Some(wanted) = wanted else {
        return Target::Unknown;
    };
    let revision = wanted.revision.clone();
    let is_in_force = observed
        .record(&revision)
        .is_some_and(|record| matches!(record.standing, Standing::Stable | Standing::Candidate));
    let is_first = !observed
        .revisions
        .iter()
        .any(|known| known.record.standing == Standing::Stable);
    if is_in_force || is_first || wanted.is_pinned {
        memory.resting = None;
        return Target::Revision {
            revision,
            settles: None,
        };
    }
    let since = match &memory.resting {
        Some((resting, since)) if *resting == revision => *since,
        _ => now,
    };
    memory.resting = Some((revision.clone(), since));
    let rest = SignedDuration::from_secs(observed.pool.spec.rollout.settle_seconds.into());
    Target::Revision {
        revision,
        settles: Some(since.checked_add(rest).unwrap_or(now)),
    }
}

/// What the gateways have applied. While only one revision has ever been in question since they last confirmed, they
/// need not be asked again: neither a scale-up nor a restart of the operator wakes them.
fn gateways(observed: &Observed, reports: &Reports<'_>, members: &[Member], memory: &Memory) -> Gateways {
    let Some(generation) = observed.status.traffic_generation else {
        return if reports.views.iter().any(|view| view.ready) {
            Gateways::Pending
        } else {
            reports.confirmation(-1, None)
        };
    };
    let is_alone = observed.status.traffic.len() == 1
        && members.iter().filter(|member| member.arm.wanted > 0).count() <= 1
        && !members
            .iter()
            .any(|member| member.standing == Standing::Candidate);
    let was_ready = is_true(&observed.status.conditions, condition::READY);
    if is_alone && (was_ready || memory.confirmed == Some(generation)) {
        return Gateways::Confirmed;
    }
    reports.confirmation(generation, observed.port)
}

fn look_again(
    decision: &Decision,
    problem: Option<&Problem>,
    memory: &Memory,
    held: bool,
    now: Timestamp,
    deadline: SignedDuration,
) -> Option<Duration> {
    let until = |time: Timestamp| Duration::try_from(time.duration_since(now)).unwrap_or_default();
    let of_wait = decision.waiting.as_ref().and_then(|waiting| waiting.deadline);
    let of_problem = memory
        .waiting_since
        .and_then(|since| since.checked_add(deadline).ok());
    let of_refusal = memory
        .refused
        .as_ref()
        .filter(|_| problem.is_some())
        .map(|(_, _, until)| *until);
    let times = [of_wait, of_problem, of_refusal]
        .into_iter()
        .flatten()
        .filter(|time| *time > now)
        .map(until);
    let is_waiting_for_pods = decision
        .progress
        .as_ref()
        .is_some_and(|progress| progress.moved.is_some());
    times
        .chain(is_waiting_for_pods.then_some(LOOK_FOR_TROUBLE))
        .chain(held.then_some(AWAIT_REPORT))
        .min()
}

/// A plan being written.
struct Draft<'a> {
    observed: &'a Observed,
    wanted: Option<&'a Wanted>,
    decision: &'a Decision,
    now: Timestamp,
    actions: Vec<Action>,
    check: Option<(String, Pod)>,
    lacks_bytes: bool,
    /// A scale-down waits for a report or for a mark to be seen.
    held: bool,
}

impl Draft<'_> {
    fn write(&mut self, reports: &Reports<'_>, memory: &Memory) -> Option<Restarting> {
        self.supplies();
        self.standings();
        let restarting = self.restart(reports);
        if restarting.is_none() {
            for (revision, replicas) in &self.decision.scale {
                self.scale(revision, *replicas, reports, memory);
            }
        }
        self.services();
        if self.decision.changes.is_empty() {
            self.actions
                .extend(prune::prune(self.observed, self.wanted, self.decision));
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
                    let patch =
                        controller_revision::change(change.standing, change.reason.as_ref(), order, self.now);
                    self.actions.push(Action::patch_exactly(&*known.object, patch));
                }
                None => {
                    if let Some(content) = self.content(&change.revision) {
                        let pool = &*self.observed.pool;
                        let record = controller_revision::build(
                            pool,
                            &change.revision,
                            content,
                            change.standing,
                            order,
                        );
                        self.actions.push(Action::create(&record));
                    }
                }
            }
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
                    self.content(revision)?.agent.port,
                ))
            })
            .collect();
        if of_revisions.is_empty() {
            return;
        }
        self.actions.extend(of_revisions.iter().map(Action::apply));
        if let Some(port) = self.observed.port {
            self.actions.push(Action::apply(&service::front(pool, port)));
        }
        self.actions.push(Action::apply(&disruption_budget::build(pool)));
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
            number(step.delete_available),
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
                    Note::normal("ReleaseStarted", format!("{revision} is being released"))
                }
                (Standing::Stable, _) if is_first => {
                    Note::normal("FirstRevision", format!("{revision} is the first revision"))
                }
                (Standing::Stable, _) => Note::normal("ReleaseCompleted", format!("{revision} serves")),
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
    }
}

/// The weights of a decision by revision.
pub fn weights(decision: &Decision) -> BTreeMap<&str, i32> {
    decision
        .traffic
        .iter()
        .map(|(revision, weight)| (revision.as_str(), *weight))
        .collect()
}
