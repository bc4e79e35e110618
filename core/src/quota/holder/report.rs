//! What a holder tells the allocator, and what it takes from the answer.

use std::collections::BTreeMap;

use super::{Holder, Waiting};
use crate::quota::window::Held;
use crate::quota::{Claim, MILLISECOND, Nanos, Reply, Report, Resource};

/// Entries of a report about what is given back when, in all; some 20 bytes each. What is in one entry is free when the last of it
/// is, so fewer cost utilisation after a loss.
const MAX_FADES: usize = 1_024;

impl Holder {
    /// When the next report is due; none: when somebody was refused.
    pub fn next_report(&self) -> Option<Nanos> {
        self.next_report
    }

    /// The report that is due, with the requests that wait. Sent after it was made, and to the allocator.
    pub fn report(&mut self, now: Nanos, unix_ms: i64, waiting: &[Waiting]) -> Report {
        let idle = self.leaving
            || waiting.iter().all(|waiting| waiting.requests == 0)
                && self.limits.iter().all(|local| local.in_flight == 0)
                && now.saturating_sub(self.asked_at) > self.terms.lease;
        self.make_report(now, unix_ms, waiting, idle)
    }

    /// Another allocator is elected: one that rests says that it is there, and can be a witness.
    pub fn greet(&mut self, now: Nanos) {
        if self.resting && !self.leaving {
            self.next_report = Some(now);
        }
    }

    /// From now on nothing is admitted, and reports say so; this is the first.
    pub fn leave(&mut self, now: Nanos, unix_ms: i64) -> Report {
        self.leaving = true;
        self.make_report(now, unix_ms, &[], true)
    }

    fn make_report(&mut self, now: Nanos, unix_ms: i64, waiting: &[Waiting], released: bool) -> Report {
        if released {
            self.lease_until = 0;
        }
        let leased = now < self.lease_until;
        let leased_ms = self.lease_until.saturating_sub(now).div_ceil(MILLISECOND);
        let elapsed = now.saturating_sub(self.interval_at);
        let full = elapsed >= self.terms.report_every / 2;
        let (mut limits, mut fades) = (BTreeMap::new(), BTreeMap::new());
        let most_fades = MAX_FADES / self.limits.len().max(1);
        for (i, local) in self.limits.iter_mut().enumerate() {
            local.held.advance(now);
            // What the lease gave is void without it.
            if !leased {
                local.share = if released { 0 } else { local.fallback(self.floored) };
            }
            if full {
                let intervals = u128::from(local.admitted) * u128::from(self.terms.report_every);
                let pace = u64::try_from(intervals / u128::from(elapsed.max(1))).unwrap_or(u64::MAX);
                local.pace = pace.max(local.pace / 2);
                local.admitted = 0;
                local.largest -= local.largest / 8;
            }
            if local.pace == 0 && local.admitted == 0 {
                local.largest = 0;
            }
            let used = local.in_use();
            let mut claim = Claim {
                share: local.share.max(used),
                held: used,
                epoch: match &local.held {
                    Held::Calendar(tally) => tally.epoch,
                    _ => None,
                },
                seen: local.seen.take(),
                ..Claim::default()
            };
            if !released {
                let pace = local.pace.max(local.admitted).saturating_mul(2);
                // What is lost with this process stays lost for long in a long window: little more than what goes until the
                // next grant, though much may wait for another limit.
                let (slack, most) = if local.limit.window.is_long() {
                    let part = local.limit.limit / 128;
                    (part, part.max(pace.saturating_mul(2)))
                } else {
                    (u64::MAX, u64::MAX)
                };
                claim.more = pace.min(used / 16).min(slack).saturating_add(local.largest);
                for waiting in waiting.iter().filter(|waiting| waiting.requests > 0) {
                    if waiting.class.0 & (1 << i) != 0 {
                        let (total, largest) = match local.limit.resource {
                            Resource::Requests | Resource::Concurrency => (waiting.requests, 1),
                            resource => (resource.units(&waiting.total), resource.units(&waiting.largest)),
                        };
                        claim.more = claim.more.saturating_add(total);
                        claim.need = claim.need.max(largest);
                        claim.age_ms = claim.age_ms.max(waiting.oldest / MILLISECOND);
                    }
                }
                claim.more = claim.more.min(most.max(claim.need).saturating_add(local.largest));
            }
            limits.insert(local.key.clone(), claim);
            let fading = local.held.fades(now, most_fades);
            if !fading.is_empty() {
                fades.insert(local.key.clone(), fading);
            }
        }
        if full {
            self.interval_at = now;
        }
        self.wanting = waiting.iter().any(|waiting| waiting.requests > 0);
        self.resting = released;
        self.floored &= !released;
        self.seq += 1;
        self.sent_at = now;
        self.answered = false;
        self.next_report = (!released).then(|| now.saturating_add(self.spacing()));
        Report {
            holder: self.id.clone(),
            term: self.term,
            seq: self.seq,
            weight: self.weight,
            unix_ms,
            released,
            leaving: self.leaving,
            floored: self.floored,
            leased_ms: Some(leased_ms),
            heard: self.heard,
            limits,
            fades,
            testimony: self
                .testimony
                .as_ref()
                .and_then(|known| known.told(self.term, now, &self.terms)),
        }
    }

    fn spacing(&self) -> Nanos {
        let own = self.terms.report_every / if self.wanting { 4 } else { 1 };
        match self.report_every {
            0 => own,
            wished => own.min(wished.max(self.terms.report_every / 16)),
        }
    }

    /// Somebody was refused: report soon.
    pub(super) fn want(&mut self, now: Nanos) {
        if self.leaving {
            return;
        }
        let at = if self.resting {
            now
        } else {
            self.sent_at.saturating_add(self.terms.report_every / 4)
        };
        self.resting = false;
        self.next_report = Some(self.next_report.map_or(at, |known| known.min(at)));
    }

    /// Takes the allocator's answer. True if requests that wait should be tried again.
    pub fn on_reply(&mut self, reply: &Reply, now: Nanos) -> bool {
        let grant = match reply {
            Reply::Term(term) => {
                if *term > self.term {
                    self.term = *term;
                    self.heard = None;
                    self.answered = true;
                    self.next_report = Some(now);
                }
                return false;
            }
            Reply::Grant(grant) => grant,
        };
        #[allow(unused_mut)]
        let (mut newest, mut start) = (
            grant.term == self.term && grant.seq == self.seq && !self.answered && !self.resting,
            self.sent_at,
        );
        #[cfg(test)]
        match self.fault {
            Some(crate::quota::simulation::Fault::AnyGrant) => newest = !self.resting,
            Some(crate::quota::simulation::Fault::LeaseFromReceipt) => start = now,
            _ => {}
        }
        let lease_until = start.saturating_add(grant.lease_ms.saturating_mul(MILLISECOND));
        if !newest || lease_until <= now {
            return false;
        }
        self.answered = true;
        self.lease_until = lease_until;
        self.heard = Some(grant.at);
        self.report_every = grant.report_ms.saturating_mul(MILLISECOND);
        let due = self.sent_at.saturating_add(self.spacing());
        self.next_report = self.next_report.map(|next| next.min(due));
        if self
            .testimony
            .as_ref()
            .is_some_and(|known| known.is_before(self.term))
        {
            // This allocator has heard it.
            self.testimony = None;
        }
        self.floored |= grant.floored;
        let mut grew = false;
        for local in &mut self.limits {
            let share = grant.limits.get(&local.key).copied().unwrap_or_default();
            if let (Held::Calendar(tally), Some(epoch)) = (&mut local.held, share.epoch) {
                let length = epoch.next_in_ms.saturating_mul(MILLISECOND);
                let next = start.saturating_add(self.terms.shrink(length));
                if tally.roll(epoch.start, next, now) {
                    grew = true;
                    self.next_report = Some(now);
                }
            }
            grew |= share.share > local.share;
            local.share = share.share;
        }
        grew
    }
}
