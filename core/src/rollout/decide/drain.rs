//! Former revisions that are kept for their conversations.
//!
//! A revision that has lost its weight stays listed at 0, with the pods it has, while gateways know conversations of it: a
//! gateway leads those to any listed revision. It goes when the last one has ended, or `maxDrainSeconds` after it lost its weight:
//! first from the list, so that gateways move what is left, then, once they have confirmed that, its pods. The release
//! itself does not wait for it.

use jiff::Timestamp;

use super::{Decision, Member, Round, Standing, deadline};

/// Revisions kept at once, the newest. With more releases within one drain the conversations of older ones move.
const MAX_DRAINING: usize = 2;

impl Round<'_> {
    /// Whether `member` is kept for its conversations. Of one that still has a weight: whether it would be without.
    pub(super) fn drains(&self, member: &Member) -> bool {
        let newer = |other: &&Member| other.order > member.order && self.may_drain(other);
        self.may_drain(member)
            && self
                .members
                .iter()
                .filter(|other| other.weight == Some(0))
                .filter(newer)
                .count()
                < MAX_DRAINING
    }

    fn may_drain(&self, member: &Member) -> bool {
        let has_served = matches!(member.standing, Standing::Stable | Standing::Verified);
        has_served
            && !self.situation.stopped
            && member.weight.is_some()
            && member.arm.wanted > 0
            && member.has_conversations
            && self
                .drained_by(member)
                .is_some_and(|until| self.situation.now < until)
    }

    /// When its conversations have to move at the latest; none where none are kept.
    fn drained_by(&self, member: &Member) -> Option<Timestamp> {
        let longest = self.situation.max_drain?;
        let from_now = deadline(self.situation.now, longest);
        Some(member.drain_until.map_or(from_now, |until| until.min(from_now)))
    }

    /// Lists those that drain beside the weights decided.
    pub(super) fn list_draining(&self, decision: &mut Decision) {
        if decision.traffic.is_empty() {
            return;
        }
        for member in self.members.iter().filter(|member| self.drains(member)) {
            let listed = decision
                .traffic
                .iter()
                .find(|(revision, _)| *revision == member.revision);
            // One that a release may still give a weight again does not drain yet.
            let waits = listed.is_some() || decision.candidate.as_ref() == Some(&member.revision);
            if let (false, Some(until)) = (waits, self.drained_by(member)) {
                decision.traffic.push((member.revision.clone(), 0));
                decision.draining.push((member.revision.clone(), until));
            }
        }
    }
}
