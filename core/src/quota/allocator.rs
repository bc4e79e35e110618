//! The replica that deals out shares, and what it must have written before it does.
//!
//! For each holder and limit it keeps `granted`: the most units that holder can have in use until it reports again. The
//! rule of the whole module is that a share is raised only while all `granted` together stay within the limit, and only
//! after the ConfigMap says so. What the ConfigMap says is kept as `written`: renewals that stay below it need no write,
//! so a steady state writes once in half a lease, and nothing while all rest.
//!
//! A holder that is silent keeps what it was granted until its lease is over, and then for as long as a request admitted
//! at the very end may count: until it must have been counted, and a window. In a calendar window it keeps it until
//! that window is over.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::share::{Demand, split};
use super::slope::Ramp;
use super::{Claim, Epoch, Grant, Limit, MILLISECOND, Nanos, Now, Reply, Report, Seen, Share, Terms, Window};

/// Holders recorded at once, the silent ones among them; more silent ones are added up under one name.
pub const MAX_HOLDERS: usize = 64;
/// The name under which silent holders are added up.
const OTHERS: &str = "*";
/// The version of [`Checkpoint`].
const VERSION: u32 = 1;

/// What the caller has to do, in order.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Write this over the version that was last read or written (compare-and-swap), and then call
    /// [`Allocator::written`]; or [`Allocator::not_written`] if it is unknown whether it was. If another allocator has
    /// written meanwhile, drop this one.
    Write(Checkpoint),
    /// Send this to the holder.
    Send(String, Reply),
    /// There is an allocator of this newer term: drop this one. A later one must be told ([`Allocator::after`]), in case the
    /// checkpoint was lost.
    StepDown(u64),
}

/// What survives all processes: small, and complete at every moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Checkpoint {
    /// The version of this format, 1.
    pub version: u32,
    /// Counts allocators.
    pub term: u64,
    /// By holder.
    pub holders: BTreeMap<String, Recorded>,
    /// The start of each calendar window, by limit, in milliseconds since 1970.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub epochs: BTreeMap<String, i64>,
    /// The recent maximum of each limit with a slope.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub recent: BTreeMap<String, u64>,
}

/// Why a checkpoint cannot be used. It must not be overwritten before the longest window has passed.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// It is not what this module writes.
    #[error("failed to read the quota's checkpoint: {0}")]
    Malformed(#[from] serde_json::Error),
    /// A later release has written it.
    #[error(
        "failed to read the quota's checkpoint: it has version {0}, and this release knows version {VERSION}"
    )]
    Version(u32),
}

impl Checkpoint {
    /// Reads what [`Checkpoint::to_json`] wrote.
    pub fn from_json(text: &str) -> Result<Self, CheckpointError> {
        let checkpoint: Self = serde_json::from_str(text)?;
        if checkpoint.version == VERSION {
            Ok(checkpoint)
        } else {
            Err(CheckpointError::Version(checkpoint.version))
        }
    }

    /// About 100 bytes and 30 for each limit, for each holder.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("maps of strings and integers are JSON")
    }
}

/// What is recorded of one holder.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Recorded {
    /// The end of any lease it may have, in milliseconds from this write; in the past if negative.
    pub expires_in_ms: i64,
    /// The same in milliseconds since 1970, for calendar windows.
    pub expires_unix_ms: i64,
    /// It may fall back to its floors.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub floored: bool,
    /// The most units it may have in use, by limit.
    pub granted: BTreeMap<String, u64>,
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

#[derive(Clone, Copy, Debug, Default)]
struct Part {
    granted: u64,
    written: u64,
    claim: Claim,
}

#[derive(Debug)]
struct Entry {
    /// The newest report of this term.
    seq: Option<u64>,
    weight: u64,
    /// Its wall clock less ours.
    clock_ahead_ms: i64,
    expires: Nanos,
    expires_unix_ms: i64,
    /// The end of its lease that is written.
    expires_written: Nanos,
    floored: bool,
    floored_written: bool,
    released: bool,
    parts: Vec<Part>,
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
    #[cfg(test)]
    pub(super) fault: Option<super::simulation::Fault>,
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
        let entry = |recorded: &Recorded| {
            let length = terms.stretch(recorded.expires_in_ms.unsigned_abs().saturating_mul(MILLISECOND));
            let expires = if recorded.expires_in_ms >= 0 {
                seen.saturating_add(length)
            } else {
                seen.saturating_sub(
                    terms.shrink(recorded.expires_in_ms.unsigned_abs().saturating_mul(MILLISECOND)),
                )
            };
            let part = |rule: &Rule| {
                let granted = recorded.granted.get(&rule.key).copied().unwrap_or(0);
                Part {
                    granted,
                    written: granted,
                    claim: Claim::default(),
                }
            };
            Entry {
                seq: None,
                weight: 1,
                clock_ahead_ms: 0,
                expires,
                expires_unix_ms: recorded.expires_unix_ms,
                expires_written: expires,
                floored: recorded.floored,
                floored_written: recorded.floored,
                released: false,
                parts: rules.iter().map(part).collect(),
            }
        };
        let entries = before
            .holders
            .iter()
            .map(|(id, recorded)| (id.clone(), entry(recorded)))
            .collect();
        Self {
            rules,
            terms,
            term: before.term + 1,
            entries,
            due: BTreeSet::new(),
            writing: None,
            must_write: true,
            #[cfg(test)]
            fault: None,
        }
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
        if report.term < self.term {
            // Grants of an earlier term may still reach this holder; once it speaks to this one, they cannot.
            return if report.released && !self.entries.contains_key(&report.holder) {
                Vec::new()
            } else {
                vec![Action::Send(report.holder.clone(), Reply::Term(self.term))]
            };
        }
        let fits = self.entries.contains_key(&report.holder) || self.make_room(now);
        if !fits || report.holder == OTHERS {
            return Vec::new();
        }
        let count = self.rules.len();
        let entry = self
            .entries
            .entry(report.holder.clone())
            .or_insert_with(|| Entry {
                seq: None,
                weight: 1,
                clock_ahead_ms: 0,
                expires: now.nanos,
                expires_unix_ms: now.unix_ms,
                expires_written: 0,
                floored: false,
                floored_written: false,
                released: false,
                parts: vec![Part::default(); count],
            });
        if entry.seq.is_some_and(|seq| report.seq <= seq) {
            return Vec::new();
        }
        let is_first = entry.seq.is_none();
        entry.seq = Some(report.seq);
        entry.weight = u64::from(report.weight.max(1));
        entry.released = report.released;
        entry.floored = report.floored;
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
        let mut actions = self.answer();
        actions.extend(self.proceed(now));
        actions
    }

    /// It is unknown whether the write under way is done. The next call writes again.
    pub fn not_written(&mut self) {
        let answers = self.writing.take().unwrap_or_default();
        self.due.extend(answers.into_iter().map(|(id, ..)| id));
        self.must_write = true;
    }

    /// This holder's process has ended (its container was replaced, its pod is gone): its lease ends now, and its floors.
    pub fn gone(&mut self, holder: &str, now: Now) {
        if let Some(entry) = self.entries.get_mut(holder) {
            entry.floored = false;
            entry.released = true;
            if now.nanos < entry.expires {
                entry.expires = now.nanos;
                entry.expires_unix_ms = now.unix_ms;
            }
            self.due.remove(holder);
            self.must_write = true;
        }
    }

    /// Per limit, by [`Limit::key`]: units in use as last reported, units that may be in use, and the units there are now.
    pub fn usage(&self, now: Now) -> BTreeMap<String, (u64, u64, u64)> {
        let sums = |(index, rule): (usize, &Rule)| {
            let parts = || self.entries.values().map(|entry| entry.parts[index]);
            let held = parts().map(|part| part.claim.held).fold(0, u64::saturating_add);
            (
                rule.key.clone(),
                (
                    held,
                    self.outstanding(index, None),
                    self.capacity(index, now.nanos),
                ),
            )
        };
        self.rules.iter().enumerate().map(sums).collect()
    }

    fn answer(&mut self) -> Vec<Action> {
        let answers = self.writing.take().unwrap_or_default();
        let entries = &self.entries;
        answers
            .into_iter()
            // A newer report makes an answer to an older one useless, and what it granted was taken back with it.
            .filter(|(id, seq, _)| entries.get(id).is_some_and(|entry| entry.seq == Some(*seq)))
            .map(|(id, _, grant)| Action::Send(id, Reply::Grant(grant)))
            .collect()
    }

    fn proceed(&mut self, now: Now) -> Vec<Action> {
        if self.writing.is_some() {
            // The version that will be in force is not known: nothing may be granted under either.
            return Vec::new();
        }
        self.lapse(now);
        self.roll(now);
        let mut answers = Vec::new();
        for id in std::mem::take(&mut self.due) {
            if let Some((seq, grant)) = self.grant(&id, now) {
                answers.push((id, seq, grant));
            }
        }
        if !self.must_write && self.entries.values().all(is_written) {
            self.writing = Some(answers);
            return self.answer();
        }
        self.must_write = false;
        let horizon = self.terms.stretch(self.terms.lease / 2);
        for entry in self.entries.values_mut() {
            let live = entry.seq.is_some() && !entry.released && now.nanos < entry.expires;
            entry.expires_written = if live {
                entry.expires.saturating_add(horizon)
            } else {
                entry.expires
            };
            entry.floored_written = entry.floored;
            for part in &mut entry.parts {
                part.written = part.granted;
            }
        }
        let checkpoint = self.checkpoint(now);
        self.writing = Some(answers);
        #[cfg(test)]
        if self.fault == Some(super::simulation::Fault::SendBeforeWrite) {
            let mut actions = self.answer();
            self.writing = Some(Vec::new());
            actions.push(Action::Write(checkpoint));
            return actions;
        }
        vec![Action::Write(checkpoint)]
    }

    fn checkpoint(&self, now: Now) -> Checkpoint {
        let recorded = |entry: &Entry| {
            let ms = |length: Nanos| i64::try_from(length.div_ceil(MILLISECOND)).unwrap_or(i64::MAX);
            let expires_in_ms = match entry.expires_written.checked_sub(now.nanos) {
                Some(left) => ms(left),
                // Rounded up: towards now.
                None => -i64::try_from((now.nanos - entry.expires_written) / MILLISECOND).unwrap_or(i64::MAX),
            };
            let later_ms = ms(entry.expires_written.saturating_sub(entry.expires));
            Recorded {
                expires_in_ms,
                expires_unix_ms: entry.expires_unix_ms.saturating_add(later_ms),
                floored: entry.floored,
                granted: self
                    .rules
                    .iter()
                    .zip(&entry.parts)
                    .filter(|(_, part)| part.granted > 0)
                    .map(|(rule, part)| (rule.key.clone(), part.granted))
                    .collect(),
            }
        };
        let rules = || self.rules.iter();
        Checkpoint {
            version: VERSION,
            term: self.term,
            holders: self
                .entries
                .iter()
                .map(|(id, entry)| (id.clone(), recorded(entry)))
                .collect(),
            epochs: rules()
                .filter_map(|rule| Some((rule.key.clone(), rule.epoch?)))
                .collect(),
            recent: rules()
                .filter_map(|rule| Some((rule.key.clone(), rule.ramp.as_ref()?.recent())))
                .collect(),
        }
    }

    /// Forgets what silent holders can no longer have in use.
    fn lapse(&mut self, now: Now) {
        #[cfg(test)]
        let forgets = self.fault == Some(super::simulation::Fault::ForgetSilent);
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
                let after = self.terms.stretch(rule.limit.within.saturating_add(window));
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

    /// Begins calendar windows.
    fn roll(&mut self, now: Now) {
        // A clock that runs ahead must not be believed alone: wait for those that may still speak.
        if self
            .entries
            .values()
            .any(|entry| entry.seq.is_none() && now.nanos < entry.expires)
        {
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
            let within = self.terms.stretch(rule.limit.within).div_ceil(MILLISECOND);
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
    fn agreed(&self, now: Now) -> i64 {
        let live = self
            .entries
            .values()
            .filter(|entry| entry.seq.is_some() && now.nanos < entry.expires);
        let mut ahead: Vec<i64> = live.map(|entry| entry.clock_ahead_ms).collect();
        ahead.sort_unstable();
        let median = ahead.get(ahead.len().saturating_sub(1) / 2).copied().unwrap_or(0);
        now.unix_ms.saturating_add(median)
    }

    /// Units that may be in use, all together or without one holder.
    fn outstanding(&self, index: usize, but: Option<&str>) -> u64 {
        let others = self.entries.iter().filter(|(id, _)| Some(id.as_str()) != but);
        #[cfg(test)]
        let others = others.filter(|(_, entry)| {
            self.fault != Some(super::simulation::Fault::IgnoreRecorded) || entry.seq.is_some()
        });
        others
            .map(|(_, entry)| entry.parts[index].granted)
            .fold(0, u64::saturating_add)
    }

    /// The units there are now.
    fn capacity(&self, index: usize, now: Nanos) -> u64 {
        let rule = &self.rules[index];
        let corrected = match rule.correction {
            Some((units, until)) if now < until => units,
            _ => u64::MAX,
        };
        let slope = rule.ramp.as_ref().map_or(u64::MAX, Ramp::capacity);
        rule.limit.limit.min(corrected).min(slope)
    }

    /// What the provider says is left can be less than we know of only if somebody else uses the same quota.
    fn correct(&mut self, index: usize, seen: Seen, now: Nanos) {
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
    fn grant(&mut self, id: &str, now: Now) -> Option<(u64, Grant)> {
        let mut limits = BTreeMap::new();
        let mut shares = Vec::with_capacity(self.rules.len());
        for index in 0..self.rules.len() {
            let held = self.entries.values().map(|entry| entry.parts[index].claim.held);
            let held = held.fold(0, u64::saturating_add);
            if let Some(ramp) = &mut self.rules[index].ramp {
                ramp.observe(held, now.nanos);
            }
            let capacity = self.capacity(index, now.nanos);
            let free = capacity.saturating_sub(self.outstanding(index, Some(id)));
            let target = self.target(index, id, capacity, now);
            shares.push((target.min(free), free));
        }
        // A floor is given for all limits or for none, and only where it fits beside everybody's share.
        let wants_floor = self.rules.iter().any(|rule| rule.limit.floor > 0);
        let fits = self
            .rules
            .iter()
            .zip(&shares)
            .all(|(rule, (_, free))| rule.limit.floor <= *free);
        let unix_ms = self.agreed(now);
        let entry = self.entries.get_mut(id)?;
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
        entry.expires = now.nanos.saturating_add(self.terms.stretch(self.terms.lease));
        let lease_ms = self.terms.lease / MILLISECOND;
        let stretched_ms = self.terms.stretch(self.terms.lease).div_ceil(MILLISECOND);
        entry.expires_unix_ms = unix_ms.saturating_add(i64::try_from(stretched_ms).unwrap_or(i64::MAX));
        let (seq, floored) = (entry.seq?, entry.floored);
        Some((
            seq,
            Grant {
                term: self.term,
                seq,
                lease_ms,
                floored,
                limits,
            },
        ))
    }

    /// What `id` should have of a limit, by everybody's demand.
    fn target(&self, index: usize, id: &str, capacity: u64, now: Now) -> u64 {
        let rule = &self.rules[index];
        let (mut fixed, mut mine, mut demands) = (0u64, 0, Vec::new());
        // Wishes come in coarse steps, so that they seldom change and seldom need a write.
        let step = (rule.limit.limit / 128).max(1);
        for (other, entry) in &self.entries {
            let part = &entry.parts[index];
            let speaks = entry.seq.is_some() && !entry.released;
            if other != id && !(speaks && now.nanos < entry.expires) {
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
            demands.push(Demand {
                weight: entry.weight,
                wanted: held.saturating_add(more).min(rule.limit.limit).max(floor),
                need: part.claim.need,
                since: u64::MAX - part.claim.age_ms,
                claim: part.claim.share,
            });
        }
        let slack = if rule.limit.window.is_long() {
            rule.limit.limit / 128
        } else {
            u64::MAX
        };
        let shares = split(capacity.saturating_sub(fixed), &demands, slack);
        shares.get(mine).copied().unwrap_or(0)
    }

    /// Whether one more holder can be recorded; adds silent ones up if they are too many.
    fn make_room(&mut self, now: Now) -> bool {
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
                    self.entries.insert(
                        OTHERS.to_owned(),
                        Entry {
                            released: true,
                            ..gone
                        },
                    );
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

/// Whether everything this holder may have is written.
fn is_written(entry: &Entry) -> bool {
    entry.expires <= entry.expires_written
        && (entry.floored_written || !entry.floored)
        && entry.parts.iter().all(|part| part.granted <= part.written)
}
