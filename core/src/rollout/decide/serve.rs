//! The stable revision alone.

use super::{
    Decision, Member, Round, Situation, Standing, State, Subject, Target, Verdict, Waiting, empty,
    still_needed, wait,
};
use crate::seeded::{self, Bug};

impl Round<'_> {
    /// The stable revision alone; perhaps the begin of a release.
    pub(super) fn serve(&self, stable: &Member, target: Option<&str>) -> Verdict {
        let Situation {
            replicas,
            now,
            stopped,
            paused,
            ..
        } = *self.situation;
        let others = self.others(&[stable]);
        let mut decision = Decision {
            stable: Some(stable.revision.clone()),
            scale: vec![(stable.revision.clone(), replicas)],
            traffic: vec![(stable.revision.clone(), 100)],
            ..empty()
        };
        self.retire(&[stable], &mut decision);
        let settles = match &self.situation.target {
            Target::Revision { settles, .. } => settles.filter(|until| *until > now),
            Target::Unknown => None,
        };
        let next = target.filter(|target| *target != stable.revision);
        let rejected = next
            .filter(|_| !seeded::has(Bug::RejectedAgain))
            .and_then(|next| {
                let member = self.members.iter().find(|member| member.revision == next)?;
                (member.standing == Standing::Rejected).then(|| member.rejected.clone().unwrap_or_default())
            });
        let is_blocked = stopped || paused || rejected.is_some() || settles.is_some();
        if let Some(next) = next.filter(|_| !is_blocked) {
            return Verdict::change(next, Standing::Candidate, None);
        }

        let is_gone = stable.arm.existing == 0 && others == 0;
        let (state, waiting) = match (stopped, rejected, next) {
            (true, ..) if is_gone => (State::Stopped, None),
            (true, ..) => (
                State::Stopped,
                Some(wait("PodsStop", "the last pods are stopping", None)),
            ),
            (false, Some(reason), _) => (State::Rejected(reason), None),
            (false, None, Some(next)) if paused => {
                let message = format!("{next} is released when spec.rollout.paused is false");
                (State::Paused, Some(wait("Paused", message, None)))
            }
            (false, None, Some(next)) => {
                let message = format!("{next} is released once the spec and its ConfigMaps have rested");
                (State::Settling, Some(wait("Settling", message, settles)))
            }
            (false, None, None) => self.capacity(stable, others),
        };
        decision.progress = match state {
            State::Starting => Some(self.progress(Subject::Serving, stable.arm.available, false)),
            _ => None,
        };
        self.finish(
            &mut decision,
            state,
            waiting,
            stable.trouble.as_ref().map(|trouble| &trouble.reason),
        );
        decision.into()
    }

    fn capacity(&self, stable: &Member, others: i32) -> (State, Option<Waiting>) {
        let Situation { replicas, .. } = *self.situation;
        let arm = stable.arm;
        if arm.available < replicas {
            let message = still_needed(replicas, &stable.revision);
            (State::Starting, Some(wait("ReplicasAvailable", message, None)))
        } else if let Some(unconfirmed) = self.unconfirmed() {
            (State::Starting, Some(unconfirmed))
        } else if arm.existing > replicas || others > 0 {
            (
                State::Shrinking,
                Some(wait(
                    "PodsStop",
                    "pods that are not needed any more are stopping",
                    None,
                )),
            )
        } else {
            (State::Ready, None)
        }
    }
}
