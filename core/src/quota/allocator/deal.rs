//! Who gets how much now.

use std::collections::BTreeMap;

use super::{Allocator, ms_until};
use crate::quota::share::{Demand, split};
use crate::quota::slope::Ramp;
use crate::quota::{Epoch, Grant, MILLISECOND, Nanos, Now, Seen, Share, Window};

/// What a holder that is lost may use unseen, in its last lease, is about one part in so many of a window.
const BRIEF: u64 = 150;
/// The same for a holder for which only the record speaks: at first, and when it has been so for long.
const ALONE: [u64; 2] = [75, 8];
/// What has gone well for so many times the length of a lease will go well for another one.
const PROVEN: u64 = 64;

/// What a holder should have of a limit.
struct Target {
    share: u64,
    /// Units that others lack who have waited longer and should have more than they have: whoever gives any back first must not
    /// use them again, or those whose turn it is would wait for the one that gives back last, again and again.
    yielded: u64,
    /// Brief where too little would be left for all if it was lost with its share.
    lease: Nanos,
}

impl Allocator {
    /// Units that may be in use, all together or without one holder.
    pub(super) fn outstanding(&self, index: usize, but: Option<&str>) -> u64 {
        let others = self.entries.iter().filter(|(id, _)| Some(id.as_str()) != but);
        #[cfg(test)]
        let others = others.filter(|(_, entry)| {
            self.fault != Some(crate::quota::simulation::Fault::IgnoreRecorded) || entry.seq.is_some()
        });
        others
            .map(|(_, entry)| entry.parts[index].granted)
            .fold(0, u64::saturating_add)
    }

    /// The units there are now.
    pub(super) fn capacity(&self, index: usize, now: Nanos) -> u64 {
        let rule = &self.rules[index];
        let corrected = match rule.correction {
            Some((units, until)) if now < until => units,
            _ => u64::MAX,
        };
        let slope = rule.ramp.as_ref().map_or(u64::MAX, Ramp::capacity);
        rule.limit.limit.min(corrected).min(slope)
    }

    /// What the provider says is left can be less than we know of only if somebody else uses the same quota.
    pub(super) fn correct(&mut self, index: usize, seen: Seen, now: Nanos) {
        let ours = self.outstanding(index, None);
        let rule = &mut self.rules[index];
        let limit = rule.limit.limit.min(seen.limit.unwrap_or(u64::MAX));
        let foreign = match seen.remaining {
            Some(remaining) => limit.saturating_sub(remaining).saturating_sub(ours),
            None => 0,
        };
        let units = limit - foreign;
        let until = now.saturating_add(seen.reset_ms.saturating_mul(MILLISECOND));
        let lower = match rule.correction {
            Some((known, known_until)) if now < known_until => units <= known,
            _ => units < rule.limit.limit,
        };
        if lower {
            rule.correction = Some((units, until));
        }
    }

    /// Shares for `id`, whose newest report is not answered; `granted` is raised to them.
    pub(super) fn grant(&mut self, id: &str, now: Now) -> Option<(u64, Grant)> {
        let mut limits = BTreeMap::new();
        let mut shares = Vec::with_capacity(self.rules.len());
        let mut lease = self.terms.lease;
        for index in 0..self.rules.len() {
            let held = self.entries.values().map(|entry| entry.parts[index].claim.held);
            let held = held.fold(0, u64::saturating_add);
            if let Some(ramp) = &mut self.rules[index].ramp {
                ramp.observe(held, now.nanos);
            }
            let capacity = self.capacity(index, now.nanos);
            let free = capacity.saturating_sub(self.outstanding(index, Some(id)));
            let target = self.target(index, id, capacity, now);
            lease = lease.min(target.lease);
            shares.push((target.share.min(free.saturating_sub(target.yielded)), free));
        }
        // A floor is given for all limits or for none, and only where it fits beside everybody's share.
        let wants_floor = self.rules.iter().any(|rule| rule.limit.floor > 0);
        let fits = self
            .rules
            .iter()
            .zip(&shares)
            .all(|(rule, (_, free))| rule.limit.floor <= *free);
        let unix_ms = self.agreed(now);
        // Time for some reports, and for the one that is under way while the record is written.
        let report_every = (lease / 4).min(self.terms.report_every);
        let lease = lease.max(self.write_took.saturating_mul(3)).min(self.terms.lease);
        let alone = self.witnessing.is_alone(id);
        let entry = self.entries.get_mut(id)?;
        // What is written already is enough for a while: each new end is a write where only the record speaks.
        let written = self.terms.shrink(entry.expires_written.saturating_sub(now.nanos));
        let lease = if alone && lease < self.terms.lease && written >= lease / 2 {
            written.min(lease)
        } else {
            lease
        };
        entry.floored |= wants_floor && fits;
        for ((rule, part), (share, _)) in self.rules.iter().zip(&mut entry.parts).zip(shares) {
            let share = if entry.floored {
                share.max(rule.limit.floor)
            } else {
                share
            };
            part.granted = part.granted.max(share);
            let epoch = match (&rule.limit.window, rule.epoch) {
                (Window::Calendar(calendar), Some(start)) => {
                    let next = calendar
                        .around(start)
                        .1
                        .saturating_sub(self.terms.calendar_margin_ms);
                    let next_in_ms = u64::try_from(next.saturating_sub(unix_ms)).unwrap_or(0);
                    Some(Epoch { start, next_in_ms })
                }
                _ => None,
            };
            limits.insert(rule.key.clone(), Share { share, epoch });
        }
        // Until the answer is taken the lease before it is in force.
        entry.expires = entry
            .expires
            .max(now.nanos.saturating_add(self.terms.stretch(lease)));
        entry.expires_unix_ms = unix_ms.saturating_add(ms_until(entry.expires, now.nanos));
        let (seq, floored) = (entry.seq?, entry.floored);
        Some((
            seq,
            Grant {
                term: self.term,
                seq,
                lease_ms: lease / MILLISECOND,
                at: now.nanos,
                report_ms: report_every / MILLISECOND,
                floored,
                limits,
            },
        ))
    }

    /// What `id` should have of a limit, by everybody's demand.
    fn target(&self, index: usize, id: &str, capacity: u64, now: Now) -> Target {
        let rule = &self.rules[index];
        let (mut fixed, mut mine, mut demands, mut asked) = (0u64, 0, Vec::new(), 0u64);
        let mut parts = Vec::new();
        // Wishes come in coarse steps, so that they seldom change and seldom need a write.
        let step = (rule.limit.limit / 128).max(1);
        for (other, entry) in &self.entries {
            let part = &entry.parts[index];
            if other != id
                && !(entry.speaks() && now.nanos < entry.expires.saturating_add(self.terms.report_every))
            {
                fixed = fixed.saturating_add(part.granted);
                continue;
            }
            if other == id {
                mine = demands.len();
            }
            // What was used in an earlier calendar window says nothing of this one.
            let held = if part.claim.epoch == rule.epoch {
                part.claim.held
            } else {
                0
            };
            let floor = if entry.floored { rule.limit.floor } else { 0 };
            let more = part.claim.more.div_ceil(step).saturating_mul(step);
            asked = asked.saturating_add(held.saturating_add(part.claim.more));
            parts.push((part.granted, part.granted.saturating_sub(held) < part.claim.need));
            demands.push(Demand {
                weight: entry.weight,
                wanted: held.saturating_add(more).min(rule.limit.limit).max(floor),
                need: part.claim.need,
                since: entry
                    .heard_at
                    .saturating_sub(part.claim.age_ms.saturating_mul(MILLISECOND)),
                claim: part.claim.share,
            });
        }
        let slack = if rule.limit.window.is_long() {
            rule.limit.limit / 128
        } else {
            u64::MAX
        };
        let capacity = capacity.saturating_sub(fixed);
        let shares = split(capacity, &demands, slack);
        let share = shares.get(mine).copied().unwrap_or(0);
        let since = demands.get(mine).map_or(0, |demand| demand.since);
        let starved = demands.iter().zip(&shares).zip(&parts);
        let starved = starved
            .filter(|((demand, share), (granted, lacks))| *lacks && demand.since < since && granted < share);
        let yielded = starved.map(|((demand, _), _)| demand.need);
        let yielded = yielded.fold(0, u64::saturating_add);
        // Also where nobody waits: with its share others, or its successor, may have too little.
        let lease = match rule.limit.window {
            Window::Rolling(window)
                if !rule.limit.window.is_long() && asked > capacity.saturating_sub(share) =>
            {
                self.terms.shortest_lease.max(self.brief(id, window, now.nanos))
            }
            _ => self.terms.lease,
        };
        Target {
            share,
            yielded,
            lease,
        }
    }
    /// What `id` may use unseen is to be no more than what is used in this time.
    fn brief(&self, id: &str, window: Nanos, now: Nanos) -> Nanos {
        if !self.witnessing.is_alone(id) {
            return window / BRIEF;
        }
        // Each of its leases is a write. One that has lived for long may lose more at its end, and the same part of what it used.
        let [at_first, at_last] = ALONE.map(|part| window / part);
        (self.witnessing.alone_for(now) / PROVEN).clamp(at_first, at_last)
    }
}
