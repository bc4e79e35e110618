//! The replica that deals out shares, and what it must have written before it does.
//!
//! For each holder and limit it keeps `granted`: the most units that holder can have in use until it reports again. The
//! rule of the whole module is that a share is raised only while all `granted` together stay within the limit, and only
//! after the ConfigMap says so. What the ConfigMap says is kept as `written`: renewals that stay below it need no write,
//! so a steady state writes once in half a lease, and nothing while all rest.
//!
//! A holder that is silent keeps what it was granted until its lease is over. Of that, what it had in use and could not have
//! given back before, is free when it said ([`fade`]); the rest when a request admitted at the very end counts no more: it
//! must have been counted, and a window has passed. In a calendar window it keeps all until that window is over.

use std::collections::{BTreeMap, BTreeSet};

use super::slope::Ramp;
use super::{Claim, Grant, Limit, MILLISECOND, Nanos, Now, Reply, Report, Terms, Vouch, Window};

mod checkpoint;
mod deal;
mod fade;
mod lapse;
mod witness;

pub use checkpoint::{Checkpoint, CheckpointError, Recorded};
pub use witness::Witness;

use fade::Fading;
use witness::Witnessing;

/// Holders recorded at once, the silent ones among them; more silent ones are added up under one name.
pub const MAX_HOLDERS: usize = 64;
/// The name under which silent holders are added up.
const OTHERS: &str = "*";

/// What the caller has to do, in order.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Write this over the version that was last read or written (compare-and-swap), and then call
    /// [`Allocator::written`]; or [`Allocator::not_written`] if it is unknown whether it was. If another allocator has
    /// written meanwhile, drop this one.
    Write(Checkpoint),
    /// Send this to the holder.
    Send(String, Reply),
    /// Tell this to the holder that is named first, the witness ([`super::Holder::vouch`]). Then call [`Allocator::vouched`] if it
    /// agreed, else, or when it could not be asked, [`Allocator::not_vouched`].
    Vouch(String, Vouch),
    /// There is an allocator of this newer term: drop this one. A later one must be told ([`Allocator::after`]), in case the
    /// checkpoint was lost.
    StepDown(u64),
}

#[derive(Debug)]
struct Rule {
    limit: Limit,
    key: String,
    /// Start of the calendar window, in milliseconds since 1970.
    epoch: Option<i64>,
    ramp: Option<Ramp>,
    /// What the provider's headers lowered it to, and until when.
    correction: Option<(u64, Nanos)>,
}

#[derive(Clone, Debug, Default)]
struct Part {
    granted: u64,
    written: u64,
    claim: Claim,
    /// Of what it has in use, what will be free when.
    fades: Vec<Fading>,
}

#[derive(Debug)]
struct Entry {
    /// The newest report of this term, and when it came.
    seq: Option<u64>,
    heard_at: Nanos,
    weight: u64,
    /// Its wall clock less ours.
    clock_ahead_ms: i64,
    expires: Nanos,
    expires_unix_ms: i64,
    /// The end of its lease that is written.
    expires_written: Nanos,
    floored: bool,
    floored_written: bool,
    /// It had floors when it ended, and may have gone on with them until then, whatever a witness knows of its leases.
    outlived_lease: bool,
    released: bool,
    parts: Vec<Part>,
}

impl Entry {
    /// Whether it has spoken to this allocator and goes on.
    fn speaks(&self) -> bool {
        self.seq.is_some() && !self.released
    }
}

/// What an allocator knows of one limit, in its units.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// In use: as last reported, and of those that have not reported to this allocator all that they may have.
    pub used: u64,
    /// What may be in use.
    pub outstanding: u64,
    /// What there is now: the limit, or less by the provider's headers or the slope.
    pub capacity: u64,
}

/// Deals out a provider's quota.
#[derive(Debug)]
pub struct Allocator {
    rules: Vec<Rule>,
    terms: Terms,
    term: u64,
    entries: BTreeMap<String, Entry>,
    /// Whose newest report is not answered yet.
    due: BTreeSet<String>,
    /// The answers that wait for the write under way.
    writing: Option<Vec<(String, u64, Grant)>>,
    must_write: bool,
    /// When the write under way was asked for, and how long writes have taken of late.
    write_began: Nanos,
    write_took: Nanos,
    witnessing: Witnessing,
    #[cfg(test)]
    pub(super) fault: Option<crate::quota::simulation::Fault>,
}

impl Allocator {
    /// Takes over from `checkpoint`, the newest version there is; none if there never was one. `seen` is when this process
    /// first saw that version, now if it has just read it: a standby that watches knows more about ages. It answers
    /// nobody before it has written.
    pub fn new(
        limits: &[Limit],
        terms: Terms,
        checkpoint: Option<&Checkpoint>,
        seen: Nanos,
        now: Now,
    ) -> Self {
        let nothing = Checkpoint::default();
        let before = checkpoint.unwrap_or(&nothing);
        let rule = |limit: &Limit| {
            let key = limit.key();
            let recent = before.recent.get(&key).copied().unwrap_or(0);
            Rule {
                epoch: match &limit.window {
                    Window::Calendar(calendar) => {
                        Some(before.epochs.get(&key).copied().unwrap_or_else(|| {
                            calendar
                                .around(now.unix_ms.saturating_sub(terms.calendar_margin_ms))
                                .0
                        }))
                    }
                    _ => None,
                },
                ramp: match (limit.slope, &limit.window) {
                    (Some(slope), Window::Rolling(window)) => {
                        Some(Ramp::new(slope, *window, recent, now.nanos))
                    }
                    _ => None,
                },
                correction: None,
                limit: limit.clone(),
                key,
            }
        };
        let rules: Vec<Rule> = limits.iter().take(super::holder::MAX_LIMITS).map(rule).collect();
        let entries = before
            .holders
            .iter()
            .map(|(id, recorded)| (id.clone(), Entry::recorded(recorded, &rules, &terms, seen)))
            .collect();
        Self {
            rules,
            terms,
            term: before.term + 1,
            entries,
            due: BTreeSet::new(),
            writing: None,
            must_write: true,
            write_began: now.nanos,
            write_took: 0,
            witnessing: Witnessing::after(before, now.nanos),
            #[cfg(test)]
            fault: None,
        }
    }

    /// The ids of holders in the allocator's own process begin with `process`: they are lost with it, so they need a witness.
    #[must_use]
    pub fn beside(mut self, process: impl Into<String>) -> Self {
        self.witnessing.process = Some(process.into());
        self
    }

    /// Takes a term later than `term`, which a holder was heard to speak to.
    #[must_use]
    pub fn after(mut self, term: u64) -> Self {
        self.term = self.term.max(term.saturating_add(1));
        self
    }

    /// Its term. Terms only grow.
    pub fn term(&self) -> u64 {
        self.term
    }

    /// Takes a report.
    pub fn handle(&mut self, report: &Report, now: Now) -> Vec<Action> {
        if report.term > self.term {
            return vec![Action::StepDown(report.term)];
        }
        self.witnessing
            .rests(&report.holder, report.released && !report.leaving);
        if report.term < self.term && !report.leaving {
            // Grants of an earlier term may still reach this holder; once it speaks to this one, they cannot. One that leaves takes
            // none any more: what it says then is the last word, whoever it meant to tell.
            return if report.released && !self.entries.contains_key(&report.holder) {
                Vec::new()
            } else {
                vec![Action::Send(report.holder.clone(), Reply::Term(self.term))]
            };
        }
        if report.term < self.term && !self.entries.contains_key(&report.holder) {
            return Vec::new();
        }
        let fits = self.entries.contains_key(&report.holder) || self.make_room(now);
        if !fits || report.holder == OTHERS {
            return Vec::new();
        }
        if let Some(testimony) = &report.testimony {
            self.hear(&report.holder, testimony, now);
        }
        let count = self.rules.len();
        let unix_ms = self.agreed(now);
        let entry = self
            .entries
            .entry(report.holder.clone())
            .or_insert_with(|| Entry {
                seq: None,
                heard_at: now.nanos,
                weight: 1,
                clock_ahead_ms: 0,
                expires: now.nanos,
                expires_unix_ms: now.unix_ms,
                expires_written: 0,
                floored: false,
                floored_written: false,
                outlived_lease: false,
                released: false,
                parts: vec![Part::default(); count],
            });
        if entry.seq.is_some_and(|seq| report.seq <= seq) {
            return Vec::new();
        }
        let is_first = entry.seq.is_none();
        entry.seq = Some(report.seq);
        entry.heard_at = now.nanos;
        entry.weight = u64::from(report.weight.max(1));
        entry.released = report.released;
        entry.floored = report.floored;
        // What is written of it is what an earlier allocator knew: units that the record says to be free later may be free
        // already, and must not be used again under that record.
        self.must_write |= is_first;
        if let Some(left) = report.leased_ms {
            entry.expires = now
                .nanos
                .saturating_add(self.terms.stretch(left.saturating_mul(MILLISECOND)));
            entry.expires_unix_ms = unix_ms.saturating_add(ms_until(entry.expires, now.nanos));
        }
        let ahead = report.unix_ms.saturating_sub(now.unix_ms);
        // The report that was least delayed says most about its sender's clock.
        entry.clock_ahead_ms = if is_first {
            ahead
        } else {
            ahead.max(entry.clock_ahead_ms.saturating_sub(1))
        };
        for (rule, part) in self.rules.iter().zip(&mut entry.parts) {
            let claim = report.limits.get(&rule.key).copied().unwrap_or_default();
            // Earlier grants are dead: this is all it can have.
            part.granted = claim.share.max(claim.held);
            part.claim = claim;
            let fades = report.fades.get(&rule.key).map_or(&[][..], Vec::as_slice);
            part.fades = if report.released {
                // It uses nothing again, so the delay of its report does not matter.
                Fading::last(fades, now.nanos, &self.terms)
            } else {
                Fading::reported(fades, report.heard, now.nanos, &self.terms)
            };
        }
        if report.released {
            entry.expires = now.nanos;
            entry.expires_unix_ms = now.unix_ms;
            self.due.remove(&report.holder);
            self.must_write = true;
        } else {
            self.due.insert(report.holder.clone());
        }
        for index in 0..self.rules.len() {
            let seen = report
                .limits
                .get(&self.rules[index].key)
                .and_then(|claim| claim.seen);
            if let Some(seen) = seen {
                self.correct(index, seen, now.nanos);
            }
        }
        self.proceed(now)
    }

    /// Call it now and then (a report interval), so that what is due is written though nobody reports.
    pub fn tick(&mut self, now: Now) -> Vec<Action> {
        self.proceed(now)
    }

    /// The write under way is done.
    pub fn written(&mut self, now: Now) -> Vec<Action> {
        if self.writing.is_some() {
            let took = now.nanos.saturating_sub(self.write_began);
            self.write_took = took.max(self.write_took / 8 * 7);
            self.witnessing.written();
        }
        let mut actions = self.answer(now);
        actions.extend(self.proceed(now));
        actions
    }

    /// It is unknown whether the write under way is done. The next call writes again.
    pub fn not_written(&mut self) {
        let answers = self.writing.take().unwrap_or_default();
        self.due.extend(answers.into_iter().map(|(id, ..)| id));
        self.must_write = true;
    }

    /// This holder's process has ended, surely (its container was replaced): its lease ends now, and its floors.
    pub fn gone(&mut self, holder: &str, now: Now) {
        let Some(entry) = self.entries.get_mut(holder) else {
            return;
        };
        if !entry.floored && now.nanos >= entry.expires {
            return;
        }
        // With a floor it may have gone on until now, however long its lease has been over.
        entry.outlived_lease = entry.floored;
        entry.floored = false;
        entry.released = true;
        entry.expires = now.nanos;
        entry.expires_unix_ms = now.unix_ms;
        self.due.remove(holder);
        self.must_write = true;
    }

    /// This holder's pod is gone, as far as can be seen: if it is silent as well, its floors end.
    pub fn lost(&mut self, holder: &str, now: Now) {
        let silent = |entry: &Entry| !self.is_of_late(entry, now);
        if self.entries.get(holder).is_some_and(silent) {
            self.gone(holder, now);
        }
    }

    /// What is known of each limit, by [`Limit::key`].
    pub fn usage(&self, now: Now) -> BTreeMap<String, Usage> {
        let of = |(index, rule): (usize, &Rule)| {
            let used = |entry: &Entry| {
                let part = &entry.parts[index];
                if entry.seq.is_some() {
                    part.claim.held
                } else {
                    part.granted
                }
            };
            let usage = Usage {
                used: self.entries.values().map(used).fold(0, u64::saturating_add),
                outstanding: self.outstanding(index, None),
                capacity: self.capacity(index, now.nanos),
            };
            (rule.key.clone(), usage)
        };
        self.rules.iter().enumerate().map(of).collect()
    }

    /// The holders it has records of, those included that are silent; not the ones that were added up.
    pub fn holders(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str).filter(|id| *id != OTHERS)
    }

    /// Whether nothing may be in use and nobody waits for an answer.
    pub fn is_idle(&self) -> bool {
        let unused = |entry: &Entry| entry.parts.iter().all(|part| part.granted == 0);
        self.due.is_empty() && self.writing.is_none() && !self.must_write && self.entries.values().all(unused)
    }

    fn answer(&mut self, now: Now) -> Vec<Action> {
        let answers = self.writing.take().unwrap_or_default();
        // A newer report makes an answer to an older one useless, and what it granted was taken back with it.
        let newest = |(id, seq, _): &(String, u64, Grant)| {
            let entry = self.entries.get(id);
            entry.is_some_and(|entry| entry.seq == Some(*seq))
        };
        let answers: Vec<_> = answers.into_iter().filter(newest).collect();
        answers
            .into_iter()
            .map(|(id, seq, grant)| self.send(id, seq, grant, now))
            .collect()
    }

    fn proceed(&mut self, now: Now) -> Vec<Action> {
        if self.writing.is_some() {
            // The version that will be in force is not known: nothing may be granted under either.
            return Vec::new();
        }
        self.lapse(now);
        self.roll(now);
        self.choose_witness(now);
        let mut answers = Vec::new();
        for id in std::mem::take(&mut self.due) {
            if let Some((seq, grant)) = self.grant(&id, now) {
                answers.push((id, seq, grant));
            }
        }
        self.must_write |= !answers.is_empty() && self.is_stale(now.nanos);
        if !self.must_write && self.entries.values().all(is_written) {
            self.writing = Some(answers);
            return self.answer(now);
        }
        self.must_write = false;
        self.write_began = now.nanos;
        let horizon = self.terms.stretch(self.terms.lease / 2);
        for (id, entry) in &mut self.entries {
            let left = entry.expires.saturating_sub(now.nanos);
            entry.expires_written = if !entry.speaks() || left == 0 {
                entry.expires
            } else if self.witnessing.is_alone(id) {
                // Nobody but the record will speak for it.
                entry.expires.saturating_add(horizon.min(left / 2))
            } else {
                entry.expires.saturating_add(horizon)
            };
            entry.floored_written = entry.floored;
            for part in &mut entry.parts {
                part.written = part.granted;
            }
        }
        let checkpoint = self.checkpoint(now);
        self.writing = Some(answers);
        #[cfg(test)]
        if self.fault == Some(crate::quota::simulation::Fault::SendBeforeWrite) {
            let mut actions = self.answer(now);
            self.writing = Some(Vec::new());
            actions.push(Action::Write(checkpoint));
            return actions;
        }
        vec![Action::Write(checkpoint)]
    }
}

/// Milliseconds from `now` to `later`, rounded up.
fn ms_until(later: Nanos, now: Nanos) -> i64 {
    i64::try_from(later.saturating_sub(now).div_ceil(MILLISECOND)).unwrap_or(i64::MAX)
}

/// Whether everything this holder may have is written.
fn is_written(entry: &Entry) -> bool {
    entry.expires <= entry.expires_written
        && (entry.floored_written || !entry.floored)
        && entry.parts.iter().all(|part| part.granted <= part.written)
}
