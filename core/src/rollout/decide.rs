//! Choosing the state of a release and what it does next.

mod climb;
mod drain;
mod first;
mod roll;
mod serve;

use jiff::{SignedDuration, Timestamp};

use super::shift::{Wait, surge};
use super::{
    Arm, Change, Decision, Gateways, Ladder, Member, Progress, Reason, Situation, Standing, State, Subject,
    Target, Trouble, Waiting,
};
use crate::seeded::{self, Bug};

/// What to do now. A pure function; called again at every change and at every deadline. Carrying out any part of the
/// answer, in the order changes → scale → traffic, and asking again leads to the same end.
pub fn decide(situation: &Situation) -> Decision {
    let mut members = situation.members.clone();
    let mut changes = Vec::new();
    let mut passed = None;
    let mut left_out = false;
    let rungs = situation.ladder.as_ref().map_or(0, |ladder| ladder.rungs.len());
    // Each round settles one change of standing, of which there are fewer than revisions, or one rung, or where to begin.
    for _ in 0..=situation.members.len() + rungs + 3 {
        match Round::new(situation, &members).run() {
            Verdict::Done(mut decision) => {
                Round::new(situation, &members).list_draining(&mut decision);
                if seeded::has(Bug::PromoteBackwards) {
                    changes.reverse();
                }
                decision.changes = changes;
                // Of a revision that is no candidate any more nothing is remembered.
                decision.passed =
                    passed.filter(|(revision, _)| decision.candidate.as_ref() == Some(revision));
                decision.left_out = left_out && decision.passed.is_some();
                return *decision;
            }
            Verdict::Pass {
                revision,
                weight,
                is_left_out,
            } => {
                left_out |= is_left_out;
                for member in members.iter_mut().filter(|member| member.revision == revision) {
                    member.passed = Some(weight);
                }
                passed = Some((revision, weight));
            }
            Verdict::Change(change) => {
                apply(&mut members, &change);
                changes.push(change);
            }
        }
    }
    Decision { changes, ..empty() }
}

fn apply(members: &mut Vec<Member>, change: &Change) {
    let last = members
        .iter()
        .map(|member| member.order)
        .max()
        .unwrap_or_default();
    let position = members
        .iter()
        .position(|member| member.revision == change.revision);
    let member = match position.and_then(|at| members.get_mut(at)) {
        Some(member) => member,
        None => {
            members.push(Member {
                revision: change.revision.clone(),
                ..Member::default()
            });
            let Some(member) = members.last_mut() else { return };
            member
        }
    };
    if change.standing == Standing::Candidate {
        member.order = last + 1;
        member.passed = None;
    }
    member.standing = change.standing;
    member.rejected = change.reason.clone();
}

fn empty() -> Decision {
    Decision {
        stable: None,
        candidate: None,
        changes: Vec::new(),
        passed: None,
        left_out: false,
        scale: Vec::new(),
        traffic: Vec::new(),
        draining: Vec::new(),
        state: State::Empty,
        waiting: None,
        stalled: None,
        progress: None,
        reached: None,
    }
}

enum Verdict {
    Change(Change),
    /// A candidate is through with the rungs up to this weight.
    Pass {
        revision: String,
        weight: i32,
        /// It has not answered their questions; its traffic cannot.
        is_left_out: bool,
    },
    Done(Box<Decision>),
}

impl Verdict {
    fn change(revision: &str, standing: Standing, reason: Option<Reason>) -> Self {
        Self::Change(Change {
            revision: revision.to_owned(),
            standing,
            reason,
        })
    }
}

impl From<Decision> for Verdict {
    fn from(decision: Decision) -> Self {
        Self::Done(Box::new(decision))
    }
}

/// How long nothing of stable serves before a candidate takes over unjudged.
const DOWN_PATIENCE: SignedDuration = SignedDuration::from_mins(1);

/// Nothing of it serves, for a reason that its pods name, and not only for a moment: there is nothing to protect, and nothing to
/// compare with.
fn is_down(stable: &Member, now: Timestamp) -> bool {
    let is_lasting = |since| now.duration_since(since) >= DOWN_PATIENCE;
    stable.arm.wanted > 0
        && stable.arm.available == 0
        && stable.trouble.is_some()
        && stable.down_since.is_some_and(is_lasting)
}

/// One look at the members under the standings decided so far.
struct Round<'a> {
    situation: &'a Situation,
    members: &'a [Member],
    surge: i32,
}

impl<'a> Round<'a> {
    fn new(situation: &'a Situation, members: &'a [Member]) -> Self {
        Self {
            situation,
            members,
            surge: surge(situation.replicas, situation.surge_percent),
        }
    }

    fn run(&self) -> Verdict {
        let target = match &self.situation.target {
            Target::Revision { revision, .. } => Some(revision.as_str()),
            Target::Unknown => None,
        };
        let newest = |standing| {
            let with = self
                .members
                .iter()
                .filter(move |member| member.standing == standing);
            with.max_by_key(|member| member.order)
        };
        let Some(stable) = newest(Standing::Stable) else {
            return self.begin(target);
        };
        // A promotion that was cut short between its two writes.
        let stale =
            |member: &&Member| member.standing == Standing::Stable && member.revision != stable.revision;
        if let Some(former) = self.members.iter().find(stale) {
            return Verdict::change(&former.revision, Standing::Verified, None);
        }

        let candidate = newest(Standing::Candidate);
        let is_held = self.situation.paused || self.situation.stopped;
        if let Some(candidate) = candidate {
            // While nothing may move, a candidate that is not wanted any more is not moved either. An unknown target
            // asks for nothing new, so the release in hand goes on.
            if target.is_none_or(|target| target == candidate.revision) || is_held {
                return self.release(stable, candidate);
            }
        }
        if let Some(superseded) = self
            .members
            .iter()
            .find(|member| member.standing == Standing::Candidate)
        {
            return Verdict::change(&superseded.revision, Standing::Unproved, None);
        }
        let leaving = self
            .members
            .iter()
            .filter(|member| member.revision != stable.revision);
        let carrying = leaving.max_by_key(|member| member.weight.unwrap_or_default());
        let carrying = carrying.filter(|_| !seeded::has(Bug::SupersedeDirectly));
        if let Some(leaving) = carrying.filter(|member| member.weight.unwrap_or_default() > 0) {
            return self.back(stable, leaving).into();
        }
        self.serve(stable, target)
    }

    /// A candidate takes over.
    fn release(&self, stable: &Member, candidate: &Member) -> Verdict {
        let mut decision = Decision {
            stable: Some(stable.revision.clone()),
            candidate: Some(candidate.revision.clone()),
            ..empty()
        };
        self.retire(&[stable, candidate], &mut decision);
        if self.situation.stopped {
            decision
                .scale
                .extend([(candidate.revision.clone(), 0), (stable.revision.clone(), 0)]);
            decision.traffic = split(stable, candidate, candidate.weight.unwrap_or_default(), false);
            decision.progress = Some(self.suspended(self.release_of(candidate)));
            let is_gone = stable.arm.existing == 0 && candidate.arm.existing == 0;
            let stopping = (!is_gone).then(|| wait("PodsStop", "the last pods are stopping", None));
            self.finish(&mut decision, State::Stopped, stopping, None);
            return decision.into();
        }
        match &self.situation.ladder {
            Some(ladder)
                if !candidate.is_trusted && !rolls(ladder, stable, candidate, self.situation.now) =>
            {
                self.climb(ladder, stable, candidate, decision)
            }
            _ => self.roll(stable, candidate, decision),
        }
    }

    fn release_of(&self, candidate: &Member) -> Subject {
        Subject::Release {
            revision: candidate.revision.clone(),
            attempt: self.situation.attempt,
        }
    }

    fn pause(&self, candidate: &Member, decision: &mut Decision) {
        decision.progress = Some(self.suspended(self.release_of(candidate)));
        let message = format!("{} goes on when spec.rollout.paused is false", candidate.revision);
        self.finish(decision, State::Paused, Some(wait("Paused", message, None)), None);
    }

    /// Why a candidate that waits for its own pods is given up, if it is.
    fn rejection(&self, candidate: &Member, progress: &Progress) -> Option<Verdict> {
        let is_late = progress
            .moved
            .is_some_and(|moved| self.situation.now >= deadline(moved, self.situation.deadline));
        let late = || {
            let message = "its replicas did not become available within progressDeadlineSeconds";
            Reason::new("ProgressDeadlineExceeded", message)
        };
        let reason = match &candidate.trouble {
            Some(trouble) if trouble.is_final || is_late => trouble.reason.clone(),
            None if is_late => late(),
            _ => return None,
        };
        Some(Verdict::change(
            &candidate.revision,
            Standing::Rejected,
            Some(reason),
        ))
    }

    /// What a candidate on its way waits for.
    fn waiting(&self, on: Wait, candidate: &Member) -> Waiting {
        match on {
            Wait::Available { want, .. } => {
                let message = still_needed(want, &candidate.revision);
                wait("CandidateAvailable", message, None)
            }
            Wait::Nothing | Wait::Room => wait("PodsStop", "old pods are stopping to make room", None),
            Wait::Seen { .. } => self.unreachable().unwrap_or_else(|| {
                wait(
                    "GatewayEndpoints",
                    "every gateway has to see the new replicas' endpoints",
                    None,
                )
            }),
            Wait::Confirmation => self.unconfirmed().unwrap_or_else(|| {
                wait(
                    "TrafficConfirmed",
                    "every gateway has to apply the new weights",
                    None,
                )
            }),
        }
    }

    /// Pods of every other revision, those that still exist. What is kept for conversations takes nobody's place.
    fn others(&self, known: &[&Member]) -> i32 {
        let others = self.rest(known).filter(|member| !self.drains(member));
        others.map(|member| member.arm.existing).sum()
    }

    fn rest<'m>(&'m self, known: &'m [&Member]) -> impl Iterator<Item = &'m Member> {
        self.members
            .iter()
            .filter(|member| known.iter().all(|other| other.revision != member.revision))
    }

    /// Scales to zero what has no traffic in any gateway.
    fn retire(&self, known: &[&Member], decision: &mut Decision) {
        let is_safe = self.is_confirmed() || self.situation.stopped;
        for member in self.rest(known).filter(|member| member.arm.wanted > 0) {
            // Its conversations move when it is not listed any more, and its pods go when every gateway knows.
            let is_listed = member.weight.is_some() && self.situation.max_drain.is_some();
            if self.drains(member) || is_listed && !self.situation.stopped && member.arm.available > 0 {
                continue;
            }
            // One without available pods has no requests to lose, whatever a gateway still believes.
            if is_safe || member.arm.available == 0 {
                decision.scale.push((member.revision.clone(), 0));
            }
        }
    }

    /// The count for a subject, moved on if there was progress.
    fn progress(&self, subject: Subject, available: i32, has_moved: bool) -> Progress {
        let now = self.situation.now;
        match &self.situation.progress {
            Some(seen) if seen.subject == subject => {
                let moved = if has_moved || available > seen.best {
                    None
                } else {
                    seen.moved
                };
                Progress {
                    subject,
                    start: seen.start,
                    moved: Some(moved.unwrap_or(now)),
                    best: available.max(seen.best),
                }
            }
            _ => Progress {
                subject,
                start: now,
                moved: Some(now),
                best: available,
            },
        }
    }

    fn suspended(&self, subject: Subject) -> Progress {
        Progress {
            moved: None,
            ..self.progress(subject, 0, false)
        }
    }

    fn is_confirmed(&self) -> bool {
        self.situation.gateways == Gateways::Confirmed || seeded::has(Bug::ScaleBeforeConfirmation)
    }

    fn unreachable(&self) -> Option<Waiting> {
        match &self.situation.gateways {
            Gateways::Unreachable(message) => Some(wait("GatewayUnconfirmed", message.clone(), None)),
            Gateways::Unrouted(reason) => Some(Waiting {
                reason: reason.clone(),
                deadline: None,
            }),
            Gateways::Confirmed | Gateways::Pending => None,
        }
    }

    fn unconfirmed(&self) -> Option<Waiting> {
        match &self.situation.gateways {
            Gateways::Confirmed => None,
            Gateways::Pending => Some(wait(
                "TrafficConfirmed",
                "every gateway has to apply the weights in force",
                None,
            )),
            Gateways::Unreachable(_) | Gateways::Unrouted(_) => self.unreachable(),
        }
    }

    /// Adds the deadline and, once it has passed, what it stalls on.
    fn finish(
        &self,
        decision: &mut Decision,
        state: State,
        waiting: Option<Waiting>,
        trouble: Option<&Reason>,
    ) {
        let until = decision.progress.as_ref().and_then(|progress| progress.moved);
        let until = until.map(|moved| deadline(moved, self.situation.deadline));
        decision.waiting = waiting.map(|mut waiting| {
            if let Some(trouble) = trouble {
                waiting.reason.message = format!(
                    "{}; {}: {}",
                    waiting.reason.message, trouble.word, trouble.message
                );
            }
            waiting.deadline = waiting.deadline.or(until);
            waiting
        });
        decision.stalled = match &state {
            State::Rejected(reason) => Some(reason.clone()),
            _ if until.is_some_and(|until| self.situation.now >= until) => {
                let waited = || decision.waiting.as_ref().map(|waiting| waiting.reason.clone());
                trouble.cloned().or_else(waited)
            }
            _ => None,
        };
        decision.state = state;
    }
}

/// Whether a candidate has left its ladder, or needs none, and goes on batch by batch. A rung of weight 0 comes first in any
/// case.
fn rolls(ladder: &Ladder, stable: &Member, candidate: &Member, now: Timestamp) -> bool {
    let has_begun = candidate.passed.is_some() || candidate.weight.unwrap_or_default() > 0;
    let begins_without = ladder.rungs.first().is_some_and(|rung| rung.weight == 0);
    (ladder.rolls && has_begun) || (is_down(stable, now) && (has_begun || !begins_without))
}

/// The weights of two revisions. Both are named as long as both matter, so that gateways know the endpoints of the
/// one before it gets its first request; at the end only one is left, which a gateway cannot misread.
fn split(stable: &Member, other: &Member, weight: i32, is_returning: bool) -> Vec<(String, i32)> {
    let both = vec![
        (stable.revision.clone(), 100 - weight),
        (other.revision.clone(), weight),
    ];
    match weight {
        100 if !is_returning => vec![(other.revision.clone(), 100)],
        0 if is_returning => vec![(stable.revision.clone(), 100)],
        _ => both,
    }
}

fn still_needed(replicas: i32, revision: &str) -> String {
    match replicas {
        1 => format!("1 replica of {revision} has to become available"),
        _ => format!("{replicas} replicas of {revision} have to become available"),
    }
}

fn wait(word: &str, message: impl Into<String>, deadline: Option<Timestamp>) -> Waiting {
    Waiting {
        reason: Reason::new(word, message),
        deadline,
    }
}

fn deadline(moved: Timestamp, after: jiff::SignedDuration) -> Timestamp {
    moved.checked_add(after).unwrap_or(Timestamp::MAX)
}

/// A revision without pods.
impl Member {
    /// A revision of that name and standing, without pods or traffic.
    pub fn new(revision: impl Into<String>, standing: Standing) -> Self {
        Self {
            revision: revision.into(),
            standing,
            arm: Arm::default(),
            ..Self::default()
        }
    }
}
