//! The allocator's side of the witness ([`crate::quota::vouch`]): who it is, what it is told, and what is learnt from an earlier one's.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{Action, Allocator, Checkpoint, Entry, MAX_HOLDERS, OTHERS};
use crate::quota::{Grant, Nanos, Now, Reply, Vouch};

/// Failures in a row after which another witness is chosen.
const MAX_FAILURES: u32 = 2;

/// Who knows of whom, as it is recorded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Witness {
    /// The holder beside the allocator.
    pub holder: String,
    /// Its witness.
    pub by: String,
    /// The first report of the holder whose answer may be told to this witness: what it knows of an earlier one is from a time
    /// after which others, or nobody, were told.
    pub since: u64,
}

#[derive(Debug)]
pub(super) struct Witnessing {
    /// What ids of holders in this process begin with.
    pub(super) process: Option<String>,
    /// The witness from the next write on.
    pub(super) chosen: Option<Witness>,
    /// The witness by the write under way.
    being_written: Option<Witness>,
    /// The witness by the record.
    in_force: Option<Witness>,
    /// A grant that waits for the witness's word.
    asked: Option<(String, u64, Grant)>,
    failures: u32,
    /// When there was a witness last, or the allocator began.
    witnessed_at: Nanos,
    /// Holders that use nothing and say nothing, but can be asked.
    resting: BTreeSet<String>,
    /// Who could not be asked, and until when it is passed over.
    shunned: Option<(String, Nanos)>,
    /// The witness of the allocator before this one, and that one's term.
    inherited: Option<(Witness, u64)>,
}

impl Witnessing {
    pub(super) fn after(before: &Checkpoint, now: Nanos) -> Self {
        Self {
            witnessed_at: now,
            process: None,
            chosen: None,
            being_written: None,
            in_force: None,
            asked: None,
            failures: 0,
            resting: BTreeSet::new(),
            shunned: None,
            inherited: before.witness.clone().map(|witness| (witness, before.term)),
        }
    }

    /// The record is written with whom is chosen now.
    pub(super) fn write(&mut self) -> Option<Witness> {
        self.being_written.clone_from(&self.chosen);
        self.chosen.clone()
    }

    /// The record has landed.
    pub(super) fn written(&mut self) {
        self.in_force = self.being_written.take();
    }

    /// Whether this holder rests from now on.
    pub(super) fn rests(&mut self, id: &str, rests: bool) {
        if !rests {
            self.resting.remove(id);
        } else if self.resting.len() < MAX_HOLDERS && id != OTHERS && !self.is_own(id) {
            self.resting.insert(id.to_owned());
        }
    }

    fn is_own(&self, id: &str) -> bool {
        self.process
            .as_deref()
            .is_some_and(|process| id.starts_with(process))
    }

    /// How long only the record has spoken for the holders in this process.
    pub(super) fn alone_for(&self, now: Nanos) -> Nanos {
        now.saturating_sub(self.witnessed_at)
    }

    /// Whether nobody but the record will speak for this holder when this process has ended.
    pub(super) fn is_alone(&self, id: &str) -> bool {
        self.is_own(id) && self.chosen.as_ref().is_none_or(|chosen| chosen.holder != id)
    }
}

impl Allocator {
    /// The witness's word was given for this report of this holder.
    pub fn vouched(&mut self, holder: &str, seq: u64) -> Vec<Action> {
        match self.witnessing.asked.take() {
            Some((id, asked, grant)) if id == holder && asked == seq => {
                self.witnessing.failures = 0;
                let newest = self.entries.get(&id).is_some_and(|entry| entry.seq == Some(seq));
                let send = newest.then_some(Action::Send(id, Reply::Grant(grant)));
                send.into_iter().collect()
            }
            other => {
                self.witnessing.asked = other;
                Vec::new()
            }
        }
    }

    /// The witness could not be asked, or is none.
    pub fn not_vouched(&mut self, holder: &str, seq: u64, now: Now) -> Vec<Action> {
        let witnessing = &mut self.witnessing;
        let asked = witnessing
            .asked
            .take_if(|(id, asked, _)| id == holder && *asked == seq);
        if asked.is_none() {
            return Vec::new();
        }
        witnessing.failures += 1;
        if witnessing.failures >= MAX_FAILURES
            && let Some(witness) = witnessing.chosen.take()
        {
            witnessing.failures = 0;
            witnessing.resting.remove(&witness.by);
            witnessing.shunned = Some((witness.by, now.nanos.saturating_add(self.terms.lease)));
        }
        self.proceed(now)
    }

    /// The answer to a report as it is given: by way of the witness where there is one.
    pub(super) fn send(&mut self, id: String, seq: u64, grant: Grant, now: Now) -> Action {
        let witness = self.witnessing.in_force.as_ref();
        let witness = witness.filter(|witness| witness.holder == id);
        let (Some(witness), Some(entry)) = (witness, self.entries.get(&id)) else {
            return Action::Send(id, Reply::Grant(grant));
        };
        let vouch = Vouch {
            term: self.term,
            holder: id.clone(),
            seq,
            state: self.record_of(entry, entry.expires, usize::MAX, now.nanos),
        };
        let by = witness.by.clone();
        self.witnessing.asked = Some((id, seq, grant));
        Action::Vouch(by, vouch)
    }

    /// Chooses the witness of the holder in this process. It stays as long as it speaks, or rests: another one costs a write.
    pub(super) fn choose_witness(&mut self, now: Now) {
        let Witnessing {
            process,
            chosen,
            in_force,
            resting,
            shunned,
            ..
        } = &self.witnessing;
        let Some(process) = process else { return };
        let is_own = |id: &str| id.starts_with(process.as_str());
        // A newer list of limits has a newer holder.
        let own = self
            .entries
            .iter()
            .filter(|(id, entry)| is_own(id) && entry.speaks())
            .max_by_key(|(_, entry)| entry.expires)
            .and_then(|(id, entry)| Some((id, entry.seq?)));
        let Some((own, since)) = own else { return };
        let shunned = shunned.as_ref().filter(|(_, until)| now.nanos < *until);
        let fit = |id: &str, patience: Nanos| {
            let speaks = |entry: &Entry| entry.speaks() && now.nanos < entry.expires.saturating_add(patience);
            shunned.is_none_or(|(shunned, _)| shunned != id)
                && (resting.contains(id) || self.entries.get(id).is_some_and(speaks))
        };
        let stays = chosen
            .as_ref()
            .filter(|chosen| chosen.holder == *own && fit(&chosen.by, self.terms.report_every * 2));
        let witness = stays.cloned().or_else(|| {
            let mut others = self.entries.keys().chain(resting);
            let by = others.find(|id| !is_own(id) && id.as_str() != OTHERS && fit(id, 0))?;
            Some(Witness {
                holder: own.clone(),
                by: by.clone(),
                since,
            })
        });
        if witness != *in_force {
            self.must_write = true;
        }
        if witness.is_some() {
            self.witnessing.witnessed_at = now.nanos;
        }
        self.witnessing.chosen = witness;
    }

    /// A witness tells what it knows of the holder beside the allocator before this one.
    pub(super) fn hear(&mut self, by: &str, said: &Vouch, now: Now) {
        let inherited = self.witnessing.inherited.as_ref();
        let believed = inherited.is_some_and(|(witness, term)| {
            witness.by == by
                && witness.holder == said.holder
                && *term == said.term
                && said.seq >= witness.since
        });
        if !believed {
            return;
        }
        let Some(entry) = self
            .entries
            .get_mut(&said.holder)
            .filter(|entry| entry.seq.is_none() && !entry.outlived_lease)
        else {
            return;
        };
        let known = Entry::recorded(&said.state, &self.rules, &self.terms, now.nanos);
        if known.expires >= entry.expires {
            return;
        }
        entry.expires = known.expires;
        entry.expires_unix_ms = entry.expires_unix_ms.min(known.expires_unix_ms);
        for (part, known) in entry.parts.iter_mut().zip(known.parts) {
            part.granted = known.granted;
            part.fades = known.fades;
        }
        self.must_write = true;
    }
}
