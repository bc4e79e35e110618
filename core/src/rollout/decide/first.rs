//! A pool of which nothing has ever served.

use super::super::{Opinion, Reached};
use super::climb::said;
use super::{Decision, Member, Round, Situation, Standing, State, Verdict, empty, still_needed, wait};

impl Round<'_> {
    /// The first revision is stable from the start, since there is nothing to protect from it; unless it has tests to pass, and
    /// then it gets its pods, but nobody's traffic before.
    pub(super) fn begin(&self, target: Option<&str>) -> Verdict {
        let is_tested = self
            .situation
            .ladder
            .as_ref()
            .is_some_and(|ladder| ladder.tests_first);
        let is_held = self.situation.paused || self.situation.stopped;
        let candidates = self
            .members
            .iter()
            .filter(|member| member.standing == Standing::Candidate);
        if let Some(candidate) = candidates.max_by_key(|member| member.order).filter(|_| is_tested) {
            let is_wanted = target.is_none_or(|target| target == candidate.revision);
            return match is_wanted || is_held {
                true => self.try_out(candidate),
                false => Verdict::change(&candidate.revision, Standing::Unproved, None),
            };
        }
        let Some(first) = target else {
            return empty().into();
        };
        if !is_tested {
            return Verdict::change(first, Standing::Stable, None);
        }
        let known = self.members.iter().find(|member| member.revision == first);
        match known.filter(|member| member.standing == Standing::Rejected) {
            Some(rejected) => self.nothing_serves(rejected).into(),
            None => Verdict::change(first, Standing::Candidate, None),
        }
    }

    /// All its pods, and its tests once they are available.
    fn try_out(&self, candidate: &Member) -> Verdict {
        let Situation {
            now,
            replicas,
            stopped,
            paused,
            ..
        } = *self.situation;
        let name = &candidate.revision;
        let mut decision = Decision {
            candidate: Some(name.clone()),
            scale: vec![(name.clone(), replicas)],
            ..empty()
        };
        self.retire(&[candidate], &mut decision);
        if stopped {
            decision.progress = Some(self.suspended(self.release_of(candidate)));
            let stopping =
                (candidate.arm.existing > 0).then(|| wait("PodsStop", "the last pods are stopping", None));
            self.finish(&mut decision, State::Stopped, stopping, None);
            return decision.into();
        }
        if paused {
            self.pause(candidate, &mut decision);
            return decision.into();
        }
        if candidate.arm.available < replicas {
            let has_moved = candidate.arm.wanted != replicas;
            let progress = self.progress(self.release_of(candidate), candidate.arm.available, has_moved);
            decision.progress = Some(progress);
            let message = still_needed(replicas, name);
            let trouble = candidate.trouble.as_ref().map(|trouble| &trouble.reason);
            self.finish(
                &mut decision,
                State::Starting,
                Some(wait("ReplicasAvailable", message, None)),
                trouble,
            );
            return decision.into();
        }
        let reached = self.reached(candidate, 0).cloned().unwrap_or_else(|| Reached {
            revision: name.clone(),
            attempt: self.situation.attempt,
            weight: 0,
            since: now,
        });
        let waiting = match self.gate(&reached) {
            Some(gate) => match gate.opinion {
                Opinion::RollBack => {
                    return Verdict::change(name, Standing::Rejected, Some(gate.reason.clone()));
                }
                Opinion::Advance => return Verdict::change(name, Standing::Stable, None),
                Opinion::Continue | Opinion::Hold | Opinion::Undecided => said(gate),
            },
            None => wait("Testing", format!("{name} is tested before it serves"), None),
        };
        self.look_on(State::Judging, waiting, reached, candidate, decision)
    }

    /// The first revision has failed its tests.
    fn nothing_serves(&self, rejected: &Member) -> Decision {
        let mut decision = empty();
        self.retire(&[], &mut decision);
        let reason = rejected.rejected.clone().unwrap_or_default();
        self.finish(&mut decision, State::Rejected(reason), None, None);
        decision
    }
}
