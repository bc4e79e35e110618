//! A candidate on its ladder: canary and blue-green.

use super::super::ladder::{Climb, Ladder, OnUndecided};
use super::super::{Gate, Opinion, Reached};
use super::{
    Decision, Member, Reason, Round, Situation, Standing, State, Timestamp, Trouble, Verdict, Wait, Waiting,
    deadline, split, wait,
};

impl Round<'_> {
    /// Rung by rung. `decision` has what does not depend on the way.
    pub(super) fn climb(
        &self,
        ladder: &Ladder,
        stable: &Member,
        candidate: &Member,
        mut decision: Decision,
    ) -> Verdict {
        let Situation {
            now,
            paused,
            replicas,
            ..
        } = *self.situation;
        // A crash loop needs no statistics; unless stable suffers from the same.
        let hard = candidate.trouble.as_ref().filter(|trouble| trouble.is_final);
        let is_shared = |trouble: &&Trouble| {
            let word = &trouble.reason.word;
            stable
                .trouble
                .as_ref()
                .is_some_and(|stable| stable.reason.word == *word)
        };
        if let Some(trouble) = hard.filter(|trouble| !paused && !is_shared(trouble)) {
            let reason = Some(trouble.reason.clone());
            return Verdict::change(&candidate.revision, Standing::Rejected, reason);
        }

        let weight = candidate.weight.unwrap_or_default();
        let left_out = ladder.left_out(candidate.passed);
        if let Some(left_out) = left_out.filter(|_| weight == 0 && !paused) {
            return Verdict::Pass {
                revision: candidate.revision.clone(),
                weight: left_out,
                is_left_out: true,
            };
        }
        let rung = ladder.rung(candidate.passed, weight);
        let goal = rung.map_or(100, |rung| rung.weight);
        let known = self.reached(candidate, goal).filter(|_| weight == goal);
        let awaits_tests = rung.is_none()
            && ladder.tested_after
            && known.is_none_or(|reached| !self.is_tested(candidate, reached));
        let stays_until = known.map(|reached| deadline(reached.since, ladder.scale_down_delay));
        let climb = Climb {
            ladder,
            replicas,
            incoming: candidate.arm,
            outgoing: stable.arm,
            weight,
            rung,
            confirmed: self.is_confirmed(),
            hold: paused,
            keeps_outgoing: awaits_tests || stays_until.is_none_or(|until| now < until),
            others: self.others(&[stable, candidate]),
            surge: self.surge,
        };
        let mut step = climb.step();
        if weight == 100 && self.drains(stable) {
            step.outgoing = step.outgoing.max(stable.arm.wanted);
        }
        decision.scale.extend([
            (candidate.revision.clone(), step.incoming),
            (stable.revision.clone(), step.outgoing),
        ]);
        decision.traffic = split(stable, candidate, step.weight, false);
        if paused {
            decision.reached = known.cloned();
            self.pause(candidate, &mut decision);
            return decision.into();
        }
        if step.wait == Wait::Nothing {
            let reached = known.cloned().unwrap_or_else(|| Reached {
                revision: candidate.revision.clone(),
                attempt: self.situation.attempt,
                weight: goal,
                since: now,
            });
            return match rung {
                Some(rung) => self.judge(ladder, rung.needs_approval, reached, candidate, decision),
                None => self.bake(ladder, reached, candidate, decision),
            };
        }
        // Gateways that come and go do not begin the rung anew.
        decision.reached = known.cloned().filter(|_| step.weight == goal);
        let has_moved = step.incoming != candidate.arm.wanted
            || step.outgoing != stable.arm.wanted
            || step.weight != weight
            || candidate.weight.is_none();
        let progress = self.progress(self.release_of(candidate), candidate.arm.available, has_moved);
        let waits_for_itself = matches!(step.wait, Wait::Available { .. });
        if waits_for_itself
            && hard.is_none()
            && let Some(rejection) = self.rejection(candidate, &progress)
        {
            return rejection;
        }
        decision.progress = Some(progress);
        let trouble = candidate.trouble.as_ref().map(|trouble| &trouble.reason);
        self.finish(
            &mut decision,
            State::Releasing,
            Some(self.waiting(step.wait, candidate)),
            trouble.filter(|_| waits_for_itself),
        );
        decision.into()
    }

    /// What is known of the candidate's rung of this weight.
    pub(super) fn reached(&self, candidate: &Member, goal: i32) -> Option<&Reached> {
        self.situation.reached.as_ref().filter(|reached| {
            reached.revision == candidate.revision
                && reached.attempt == self.situation.attempt
                && reached.weight == goal
        })
    }

    pub(super) fn gate(&self, reached: &Reached) -> Option<&Gate> {
        // An opinion about a rung that was not known to be reached is about another time.
        let is_known = self.situation.reached.as_ref() == Some(reached);
        let gate = self.situation.gate.as_ref().filter(|_| is_known);
        gate.filter(|gate| gate.weight == reached.weight)
    }

    /// Whether the tests on all the traffic are passed, and what is said comes from the evidence alone; or somebody has
    /// decided not to wait for them.
    fn is_tested(&self, candidate: &Member, reached: &Reached) -> bool {
        candidate.passed.is_some_and(|passed| passed >= 100)
            || self.gate(reached).is_some_and(|gate| !gate.by_test)
    }

    /// The rung is reached: what is said about it?
    fn judge(
        &self,
        ladder: &Ladder,
        needs_approval: bool,
        reached: Reached,
        candidate: &Member,
        decision: Decision,
    ) -> Verdict {
        let name = &candidate.revision;
        let goal = reached.weight;
        let Some(gate) = self.gate(&reached) else {
            let message = format!("{name} has reached {goal} % and is being judged");
            return self.look_on(
                State::Judging,
                wait("Judging", message, None),
                reached,
                candidate,
                decision,
            );
        };
        let reject = |reason: Reason| Verdict::change(name, Standing::Rejected, Some(reason));
        let waiting = match (gate.opinion, ladder.on_undecided) {
            (Opinion::RollBack, _) => return reject(gate.reason.clone()),
            (Opinion::Undecided, OnUndecided::Abort) => return reject(gate.reason.clone()),
            (Opinion::Advance, _) | (Opinion::Undecided, OnUndecided::Promote) if !needs_approval => {
                return Verdict::Pass {
                    revision: name.clone(),
                    weight: goal,
                    is_left_out: false,
                };
            }
            (Opinion::Advance, _) | (Opinion::Undecided, OnUndecided::Promote) => {
                let message = format!(
                    "{name} may go on from {goal} % once somebody agrees: create a RolloutAction of type Promote; {}",
                    gate.reason.message
                );
                wait("ApprovalNeeded", message, None)
            }
            (Opinion::Undecided, OnUndecided::Hold) => {
                let message = format!(
                    "{}; create a RolloutAction of type Promote or Abort, or wait on",
                    gate.reason.message
                );
                wait(&gate.reason.word, message, None)
            }
            (Opinion::Continue | Opinion::Hold, _) => said(gate),
        };
        self.look_on(State::Judging, waiting, reached, candidate, decision)
    }

    /// All the traffic is there. Without a bake, a delay and tests that is all.
    fn bake(&self, ladder: &Ladder, reached: Reached, candidate: &Member, decision: Decision) -> Verdict {
        let now = self.situation.now;
        let name = &candidate.revision;
        let baked = deadline(reached.since, ladder.bake);
        let is_tested = !ladder.tested_after || self.is_tested(candidate, &reached);
        let gate = self
            .gate(&reached)
            .filter(|gate| gate.by_test || !ladder.bake.is_zero());
        let is_held = match gate {
            Some(gate) if gate.opinion == Opinion::RollBack => {
                return Verdict::change(name, Standing::Rejected, Some(gate.reason.clone()));
            }
            // Without data the bake would be none; but neither is it an accusation, so it ends at its time.
            Some(gate) => gate.opinion == Opinion::Hold && now < baked,
            None => false,
        };
        let end: Timestamp = baked.max(deadline(reached.since, ladder.scale_down_delay));
        if now >= end && is_tested {
            return Verdict::change(name, Standing::Stable, None);
        }
        let waiting = match gate {
            Some(gate) if gate.by_test && !is_tested => said(gate),
            Some(gate) if is_held => Waiting {
                deadline: Some(baked),
                ..said(gate)
            },
            None if !is_tested => {
                let message = format!("{name} has all the traffic and is being tested");
                wait("Testing", message, None)
            }
            _ if now < baked => {
                let message = format!("{name} serves, is still judged, and can be led back");
                wait("Baking", message, Some(baked))
            }
            _ => {
                let message = format!("{name} serves; the pods of the former revision are kept");
                wait("ScaleDownDelay", message, Some(end))
            }
        };
        self.look_on(State::Baking, waiting, reached, candidate, decision)
    }

    /// Nothing moves; no deadline for progress runs.
    pub(super) fn look_on(
        &self,
        state: State,
        waiting: Waiting,
        reached: Reached,
        candidate: &Member,
        mut decision: Decision,
    ) -> Verdict {
        decision.progress = Some(self.suspended(self.release_of(candidate)));
        decision.reached = Some(reached);
        self.finish(&mut decision, state, Some(waiting), None);
        decision.into()
    }
}

pub(super) fn said(gate: &Gate) -> Waiting {
    Waiting {
        reason: gate.reason.clone(),
        deadline: gate.deadline,
    }
}
