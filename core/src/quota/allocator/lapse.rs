//! What time does to an allocator's records: silent holders lose what they had, calendar windows begin.

use super::{Allocator, Entry, Fading, MAX_HOLDERS, OTHERS};
use crate::quota::{MILLISECOND, Nanos, Now, Window};

impl Allocator {
    /// Forgets what silent holders can no longer have in use.
    pub(super) fn lapse(&mut self, now: Now) {
        #[cfg(test)]
        let forgets = self.fault == Some(crate::quota::simulation::Fault::ForgetSilent);
        #[cfg(not(test))]
        let forgets = false;
        for entry in self.entries.values_mut() {
            if now.nanos < entry.expires {
                continue;
            }
            for (rule, part) in self.rules.iter().zip(&mut entry.parts) {
                let window = match rule.limit.window {
                    Window::Rolling(window) => window,
                    Window::None => 0,
                    Window::Calendar(_) => continue,
                };
                #[allow(unused_mut)]
                let mut expires = entry.expires;
                #[cfg(test)]
                if self.fault == Some(crate::quota::simulation::Fault::TrustFades) {
                    expires = 0;
                }
                let freed = Fading::freed(&mut part.fades, expires, now.nanos);
                if freed > 0 {
                    let floor = if entry.floored { rule.limit.floor } else { 0 };
                    part.granted = part.granted.saturating_sub(freed).max(floor.min(part.granted));
                    part.claim.held = part.claim.held.min(part.granted);
                }
                let after = self
                    .terms
                    .stretch(rule.limit.within_lost().saturating_add(window));
                if forgets || now.nanos >= entry.expires.saturating_add(after) {
                    part.granted = if entry.floored {
                        part.granted.min(rule.limit.floor)
                    } else {
                        0
                    };
                    part.claim.held = part.claim.held.min(part.granted);
                }
            }
        }
        let due = &self.due;
        self.entries.retain(|id, entry| {
            let kept = now.nanos < entry.expires || entry.floored || due.contains(id);
            kept || entry.parts.iter().any(|part| part.granted > 0)
        });
    }

    /// Whether the record is so old that its reader would begin much too late to count the time of silent holders: it counts from when it
    /// reads it. Otherwise allocators that end again and again would never set anything free.
    pub(super) fn is_stale(&self, now: Nanos) -> bool {
        let age = now.saturating_sub(self.write_began);
        self.entries
            .values()
            .filter(|entry| now >= entry.expires)
            .any(|entry| {
                self.rules.iter().zip(&entry.parts).any(|(rule, part)| {
                    let window = match rule.limit.window {
                        Window::Rolling(window) => window,
                        Window::None => rule.limit.within_lost(),
                        Window::Calendar(_) => return false,
                    };
                    part.granted > 0 && age >= (window / 32).max(self.terms.report_every)
                })
            })
    }

    /// Begins calendar windows.
    pub(super) fn roll(&mut self, now: Now) {
        // A clock that runs ahead must not be believed alone: wait for those that may still speak.
        let mut all = self.entries.values();
        if all.any(|entry| entry.seq.is_none() && self.is_of_late(entry, now)) {
            return;
        }
        let unix_ms = self.agreed(now);
        let margin = self.terms.calendar_margin_ms;
        for (index, rule) in self.rules.iter_mut().enumerate() {
            let (Window::Calendar(calendar), Some(epoch)) = (&rule.limit.window, rule.epoch) else {
                continue;
            };
            let start = calendar.around(unix_ms.saturating_sub(margin)).0;
            if start <= epoch {
                continue;
            }
            rule.epoch = Some(start);
            self.must_write = true;
            let within = self.terms.stretch(rule.limit.within_lost()).div_ceil(MILLISECOND);
            let within = i64::try_from(within).unwrap_or(i64::MAX);
            for entry in self.entries.values_mut() {
                // Those that live say themselves what they still hold in the new window.
                let last = entry
                    .expires_unix_ms
                    .saturating_add(within)
                    .saturating_add(margin);
                if !entry.floored && now.nanos >= entry.expires && last < start {
                    entry.parts[index].granted = 0;
                }
            }
        }
    }

    /// The lower median of the clocks of those that report: a minority may be wrong, and of two the one that is behind is
    /// believed, because a window that begins late harms nobody.
    pub(super) fn agreed(&self, now: Now) -> i64 {
        let live = self
            .entries
            .values()
            .filter(|entry| entry.speaks() && self.is_of_late(entry, now));
        let mut ahead: Vec<i64> = live.map(|entry| entry.clock_ahead_ms).collect();
        ahead.sort_unstable();
        let median = ahead.get(ahead.len().saturating_sub(1) / 2).copied().unwrap_or(0);
        now.unix_ms.saturating_add(median)
    }

    /// Whether this holder's lease is in force, or ended so lately that it may only be slow: a lease may be very short.
    pub(super) fn is_of_late(&self, entry: &Entry, now: Now) -> bool {
        now.nanos < entry.expires.saturating_add(self.terms.lease)
    }

    /// Whether one more holder can be recorded; adds silent ones up if they are too many.
    pub(super) fn make_room(&mut self, now: Now) -> bool {
        while self.entries.len() >= MAX_HOLDERS {
            let silent = |(id, entry): &(&String, &Entry)| {
                id.as_str() != OTHERS
                    && now.nanos >= entry.expires
                    && !self.due.contains(*id)
                    && !entry.floored
            };
            let Some(id) = self
                .entries
                .iter()
                .filter(silent)
                .min_by_key(|(_, entry)| entry.expires)
                .map(|(id, _)| id.clone())
            else {
                return false;
            };
            let Some(gone) = self.entries.remove(&id) else {
                return false;
            };
            match self.entries.get_mut(OTHERS) {
                None => {
                    let mut others = Entry {
                        released: true,
                        ..gone
                    };
                    others.parts.iter_mut().for_each(|part| part.fades.clear());
                    self.entries.insert(OTHERS.to_owned(), others);
                }
                Some(others) => {
                    others.expires = others.expires.max(gone.expires);
                    others.expires_unix_ms = others.expires_unix_ms.max(gone.expires_unix_ms);
                    for (sum, part) in others.parts.iter_mut().zip(gone.parts) {
                        sum.granted = sum.granted.saturating_add(part.granted);
                    }
                }
            }
            self.must_write = true;
        }
        true
    }
}
