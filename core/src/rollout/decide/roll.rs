//! Two revisions, batch by batch: a candidate that takes over, and the way back to stable.

use super::super::shift::Shift;
use super::{
    Decision, Member, Round, Situation, Standing, State, Subject, Verdict, Wait, empty, split, still_needed,
    wait,
};
use crate::seeded::{self, Bug};

impl Round<'_> {
    /// Batch by batch. `decision` has what does not depend on the way.
    pub(super) fn roll(&self, stable: &Member, candidate: &Member, mut decision: Decision) -> Verdict {
        let Situation { paused, replicas, .. } = *self.situation;
        let weight = candidate.weight.unwrap_or_default();
        let subject = self.release_of(candidate);
        let shift = Shift {
            replicas,
            surge: self.surge,
            incoming: candidate.arm,
            outgoing: stable.arm,
            others: self.others(&[stable, candidate]),
            weight,
            confirmed: self.is_confirmed(),
            hold: paused,
            urgent: false,
        };
        let step = shift.step();
        // The last batch stays for its conversations, but the release does not wait for them.
        let is_carried = weight == 100 && shift.confirmed && candidate.arm.available >= replicas;
        if !paused && (step.wait == Wait::Nothing || is_carried && self.drains(stable)) {
            return Verdict::change(&candidate.revision, Standing::Stable, None);
        }
        decision.scale.extend([
            (candidate.revision.clone(), step.incoming),
            (stable.revision.clone(), step.outgoing),
        ]);
        decision.traffic = split(stable, candidate, step.weight, false);
        if paused {
            self.pause(candidate, &mut decision);
            return decision.into();
        }
        let has_moved = step.incoming != candidate.arm.wanted
            || step.outgoing != stable.arm.wanted
            || step.weight != weight
            || candidate.weight.is_none();
        let progress = self.progress(subject, candidate.arm.available, has_moved);
        let waits_for_itself = matches!(step.wait, Wait::Available { .. });
        if waits_for_itself && let Some(rejection) = self.rejection(candidate, &progress) {
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

    /// Capacity and traffic go back to stable.
    pub(super) fn back(&self, stable: &Member, leaving: &Member) -> Decision {
        let Situation {
            stopped, replicas, ..
        } = *self.situation;
        let weight = leaving.weight.unwrap_or_default();
        let mut decision = Decision {
            stable: Some(stable.revision.clone()),
            candidate: Some(leaving.revision.clone()),
            ..empty()
        };
        self.retire(&[stable, leaving], &mut decision);
        if stopped {
            // Nothing runs: the weights can go back at once.
            decision
                .scale
                .extend([(stable.revision.clone(), 0), (leaving.revision.clone(), 0)]);
            decision.traffic = vec![(stable.revision.clone(), 100)];
            self.finish(&mut decision, State::Stopped, None, None);
            return decision;
        }
        let shift = Shift {
            replicas,
            surge: self.surge,
            incoming: stable.arm,
            outgoing: leaving.arm,
            others: self.others(&[stable, leaving]),
            weight: 100 - weight,
            confirmed: self.is_confirmed(),
            hold: false,
            urgent: true,
        };
        let mut step = shift.step();
        if seeded::has(Bug::DropWeightAtOnce) {
            step.weight = 100;
        }
        decision.scale.extend([
            (stable.revision.clone(), step.incoming),
            (leaving.revision.clone(), step.outgoing),
        ]);
        decision.traffic = split(stable, leaving, 100 - step.weight, true);
        let has_moved = step.weight != shift.weight
            || step.incoming != stable.arm.wanted
            || step.outgoing != leaving.arm.wanted;
        decision.progress = Some(self.progress(Subject::Returning, stable.arm.available, has_moved));
        let waiting = match step.wait {
            Wait::Available { want, .. } => {
                let message = still_needed(want, &stable.revision);
                wait("ReplicasAvailable", message, None)
            }
            _ => self.unconfirmed().unwrap_or_else(|| {
                wait(
                    "TrafficReturns",
                    format!("traffic and capacity go back to {}", stable.revision),
                    None,
                )
            }),
        };
        self.finish(
            &mut decision,
            State::Returning,
            Some(waiting),
            stable.trouble.as_ref().map(|t| &t.reason),
        );
        decision
    }
}
