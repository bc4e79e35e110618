//! How a conversation gets its revision: asking its home, deciding as its home, and holding the first byte until the
//! entry has its copy.
//!
//! ```text
//!             known and alive ───────────────────────────────────────────► Holding ──► released
//!    open ──►                                                                ▲
//!             another is the home ──► Asking ──── answer ────────────────────┤
//!                                       │ all homes before us are silent     │
//!             we are the home ──────────┴──► Consulting ── nobody knows it ──┘
//! ```
//!
//! All steps are in [`Shard::progress`], which looks at what is known now and may be called at any time and any number of
//! times: that is what makes lost, repeated and late messages harmless.

use std::sync::Arc;

use super::super::key::SessionKey;
use super::super::members::{Homes, MemberId, outranks};
use super::super::route::MoveReason;
use super::super::table::Merged;
use super::super::wire::{Message, Record};
use super::{MAX_PENDING, Output, Shard, Ticket};

/// Somebody who wants to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Waiter {
    /// A request here, and the revision that it was sent to, with the number that its entry had then.
    Local {
        ticket: Ticket,
        sent: Option<(Arc<str>, u32)>,
    },
    /// Another gateway.
    Remote {
        member: MemberId,
        nonce: u64,
        told: bool,
    },
}

impl Waiter {
    pub fn local(ticket: Ticket) -> Self {
        Self::Local { ticket, sent: None }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Phase {
    /// The home decides.
    Asking,
    /// We decide, once these have said that they do not know it.
    Consulting(Vec<MemberId>),
    /// It is decided. The first byte waits.
    Holding,
}

/// A conversation that somebody waits for.
#[derive(Debug)]
pub(super) struct Pending {
    waiters: Vec<Waiter>,
    proposal: Record,
    phase: Phase,
    nonce: u64,
    since: u64,
    /// When and whom we last asked.
    asked: Option<(u64, MemberId)>,
    /// Who was to have a copy when that was last looked at.
    copies: Homes,
}

impl Shard {
    /// Somebody wants `proposal.key`. With `held` the proposal is in use and in the table already.
    pub(super) fn enter(
        &mut self,
        now: u64,
        waiter: Waiter,
        proposal: Record,
        held: bool,
        out: &mut Vec<Output>,
    ) {
        let key = proposal.key;
        let remote = matches!(waiter, Waiter::Remote { .. });
        if let Some(pending) = self.pending.get_mut(&key) {
            let same = |other: &Waiter| match (other, &waiter) {
                (
                    Waiter::Remote { member, nonce, .. },
                    Waiter::Remote {
                        member: m, nonce: n, ..
                    },
                ) => (member, nonce) == (m, n),
                _ => false,
            };
            match pending.waiters.iter_mut().find(|other| same(other)) {
                // The answer to the first question may have been lost.
                Some(asker) => *asker = waiter,
                None => pending.waiters.push(waiter),
            }
            if remote && pending.phase == Phase::Asking && self.table.alive(key, now).is_none() {
                // Two that take each other for the home must not wait for each other.
                self.consult(now, key, out);
            }
        } else {
            let full = self.pending.len() >= MAX_PENDING;
            if full && remote {
                return;
            }
            self.nonce = self.nonce.wrapping_add(1);
            let pending = Pending {
                waiters: vec![waiter],
                proposal,
                phase: if held { Phase::Holding } else { Phase::Asking },
                nonce: self.nonce,
                since: if full {
                    now.saturating_sub(self.settings.timing.patience)
                } else {
                    now
                },
                asked: None,
                copies: Homes::default(),
            };
            self.pending.insert(key, pending);
            if remote && !full && self.table.alive(key, now).is_none() {
                self.consult(now, key, out);
            }
        }
        self.progress(now, key, out);
    }

    /// Does whatever can be done for `key` now.
    pub(super) fn progress(&mut self, now: u64, key: SessionKey, out: &mut Vec<Output>) {
        let timing = self.settings.timing;
        let Some(pending) = self.pending.get(&key) else {
            return;
        };
        let patient = now.saturating_sub(pending.since) < timing.patience;
        if self.table.alive(key, now).is_none() {
            match &pending.phase {
                _ if !patient => self.settle(now, key),
                Phase::Asking | Phase::Holding => match self.reachable_homes(key, now).first {
                    Some(home) if home != self.settings.me => return self.ask(now, key, home, out),
                    _ => self.consult(now, key, out),
                },
                Phase::Consulting(_) => {}
            }
            if self.is_consulting(now, key, out) {
                return;
            }
        }
        self.announce(now, key, out);
        let Some(entry) = self.table.alive(key, now) else {
            return self.abandon(key, out);
        };
        let safe = entry.safe || self.is_safe(entry, now);
        if safe || !patient {
            return self.release(now, key, safe, out);
        }
        let homes = self.reachable_homes(key, now);
        let Some(pending) = self.pending.get_mut(&key) else {
            return;
        };
        pending.phase = Phase::Holding;
        let others = std::mem::replace(&mut pending.copies, homes) != homes;
        match homes.first {
            // The homes copy among themselves; we hear of it by asking again.
            Some(home) if !homes.contains(self.settings.me) => self.ask(now, key, home, out),
            _ if others => {
                self.push(key, now);
            }
            _ => {}
        }
    }

    /// Asks `home`, unless that was done a moment ago.
    fn ask(&mut self, now: u64, key: SessionKey, home: MemberId, out: &mut Vec<Output>) {
        let retry = self.settings.timing.retry;
        let alive = self
            .table
            .alive(key, now)
            .map(|entry| self.table.record(entry, now));
        let floors = self.floors_unknown_to(home);
        let Some(pending) = self.pending.get_mut(&key) else {
            return;
        };
        if pending
            .asked
            .is_some_and(|(at, whom)| whom == home && now < at.saturating_add(retry))
        {
            return;
        }
        pending.asked = Some((now, home));
        let held = alive.is_some();
        let record = alive.unwrap_or_else(|| pending.proposal.clone());
        let nonce = pending.nonce;
        self.expect(now, home);
        self.send(
            home,
            Message::Ask {
                nonce,
                record,
                held,
                floors,
            },
            out,
        );
    }

    /// Becomes the one who decides: whoever may know the key is asked first.
    fn consult(&mut self, now: u64, key: SessionKey, out: &mut Vec<Output>) {
        let me = self.settings.me;
        let may_know = |(member, peer): (&MemberId, &super::Peer)| {
            let ranks_higher = peer.in_view && (self.leaving || outranks(*member, me, key));
            let open = !peer.is_silent(now, self.settings.timing.silence);
            (open && (ranks_higher || peer.may_owe(self.view.id()))).then_some(*member)
        };
        let others: Vec<MemberId> = self.peers.iter().filter_map(may_know).collect();
        self.nonce = self.nonce.wrapping_add(1);
        let nonce = self.nonce;
        let Some(pending) = self.pending.get_mut(&key) else {
            return;
        };
        pending.nonce = nonce;
        pending.asked = Some((now, me));
        pending.phase = Phase::Consulting(others.clone());
        for member in others {
            self.expect(now, member);
            self.send(member, Message::Query { nonce, key }, out);
        }
    }

    /// True while answers are waited for. Once there is nobody left to wait for, the key is settled.
    fn is_consulting(&mut self, now: u64, key: SessionKey, out: &mut Vec<Output>) -> bool {
        let (retry, silence) = (self.settings.timing.retry, self.settings.timing.silence);
        let peers = &self.peers;
        let Some(pending) = self.pending.get_mut(&key) else {
            return false;
        };
        let Phase::Consulting(others) = &mut pending.phase else {
            return false;
        };
        others.retain(|member| {
            peers
                .get(member)
                .is_some_and(|peer| !peer.is_silent(now, silence))
        });
        if others.is_empty() {
            self.settle(now, key);
            return false;
        }
        if pending
            .asked
            .is_none_or(|(at, _)| now >= at.saturating_add(retry))
        {
            let (others, nonce) = (others.clone(), pending.nonce);
            pending.asked = Some((now, self.settings.me));
            for member in others {
                self.expect(now, member);
                self.send(member, Message::Query { nonce, key }, out);
            }
        }
        true
    }

    /// Decides: nobody who can be reached knows the key, or only as dead.
    fn settle(&mut self, now: u64, key: SessionKey) {
        let Some(pending) = self.pending.get_mut(&key) else {
            return;
        };
        pending.phase = Phase::Holding;
        let mut record = Record {
            age: 0,
            ..pending.proposal.clone()
        };
        let dead = self
            .table
            .get(key)
            .filter(|entry| !self.table.revisions.keeps(entry.revision, entry.epoch));
        let mut own_choice = !self.table.revisions.keeps_name(&record.revision, record.epoch);
        let reason = dead.map(|entry| self.table.revisions.reason(entry.revision));
        if let Some(entry) = dead {
            record.number = record.number.max(entry.number.saturating_add(1));
            if entry.root != record.root() {
                // The asker knows a task only by its own name; it moves with its conversation.
                record.root = (entry.root != key).then_some(entry.root);
                own_choice = true;
            }
        }
        if own_choice && let Some(revision) = self.table.revisions.choose(record.root()) {
            record.revision = Box::from(&*revision);
            record.epoch = self.table.revisions.generation();
            record.replica = None;
        }
        if !self.table.revisions.keeps_name(&record.revision, record.epoch) {
            return;
        }
        // The asker may know of an entry that is lost here.
        let reason = reason.or((record.number > 1).then_some(MoveReason::Gone));
        match reason {
            Some(reason) => *self.counts.moved.entry(reason).or_default() += 1,
            None => self.count_assigned(&record),
        }
        self.table.put(&record, self.is_home(key), now);
        self.push(key, now);
    }

    /// Moves an entry that has died while nobody asked for it. Only its first home does.
    pub(super) fn reassign(&mut self, now: u64, key: SessionKey) {
        let Some(entry) = self.table.get(key) else { return };
        let Some(revision) = self.table.revisions.choose(entry.root) else {
            return;
        };
        let record = Record {
            revision: Box::from(&*revision),
            replica: None,
            epoch: self.table.revisions.generation(),
            number: entry.number.saturating_add(1),
            ..self.table.record(entry, now)
        };
        let reason = self.table.revisions.reason(entry.revision);
        *self.counts.moved.entry(reason).or_default() += 1;
        self.table.put(&record, self.is_home(key), now);
        self.push(key, now);
    }

    /// Tells everybody who waits and does not know yet.
    fn announce(&mut self, now: u64, key: SessionKey, out: &mut Vec<Output>) {
        if self.table.alive(key, now).is_none() {
            return;
        }
        let Some(assignment) = self.assignment(key) else {
            return;
        };
        let number = self.table.get(key).map_or(1, |entry| entry.number);
        let Some(pending) = self.pending.get_mut(&key) else {
            return;
        };
        let mut askers = Vec::new();
        for waiter in &mut pending.waiters {
            match waiter {
                Waiter::Local { ticket, sent } if sent.is_none() => {
                    *sent = Some((assignment.revision.clone(), number));
                    let (ticket, assignment) = (*ticket, assignment.clone());
                    out.push(Output::Assigned { ticket, assignment });
                }
                Waiter::Remote { member, nonce, told } if !*told => {
                    *told = true;
                    askers.push((*member, *nonce));
                }
                Waiter::Local { .. } | Waiter::Remote { .. } => {}
            }
        }
        self.answer(now, key, askers, out);
    }

    fn answer(&mut self, now: u64, key: SessionKey, askers: Vec<(MemberId, u64)>, out: &mut Vec<Output>) {
        let Some(entry) = self.table.get(key) else { return };
        let copied = entry.safe || self.is_safe(entry, now);
        let record = self.table.record(entry, now);
        for (member, nonce) in askers {
            let (record, floors) = (record.clone(), self.floors_unknown_to(member));
            self.send(
                member,
                Message::Answer {
                    nonce,
                    record,
                    copied,
                    floors,
                },
                out,
            );
        }
    }

    /// Lets the first bytes out.
    fn release(&mut self, now: u64, key: SessionKey, safe: bool, out: &mut Vec<Output>) {
        let Some(pending) = self.pending.remove(&key) else {
            return;
        };
        let Some(entry) = self.table.get_mut(key) else {
            return;
        };
        // After the patience is over nobody waits a second time.
        entry.safe = true;
        let (held, number) = (entry.holders != [None; 2], entry.number);
        let protected = safe && (held || self.view.members().len() < 2);
        let revision = self.alive_revision(key, now);
        let mut askers = Vec::new();
        for waiter in pending.waiters {
            match waiter {
                Waiter::Local { ticket, sent } => {
                    // One that was moved on its way, by an abort, has a higher number.
                    let split =
                        sent.is_some_and(|(sent, was)| was == number && Some(&sent) != revision.as_ref());
                    self.counts.split += u64::from(split);
                    self.counts.unprotected += u64::from(!protected);
                    out.push(Output::Released { ticket, protected });
                }
                Waiter::Remote { member, nonce, .. } => askers.push((member, nonce)),
            }
        }
        if safe {
            self.answer(now, key, askers, out);
        }
    }

    /// Nothing serves.
    fn abandon(&mut self, key: SessionKey, out: &mut Vec<Output>) {
        let Some(pending) = self.pending.remove(&key) else {
            return;
        };
        for waiter in pending.waiters {
            if let Waiter::Local { ticket, sent } = waiter {
                out.push(match sent {
                    None => Output::Unrouted { ticket },
                    Some(_) => Output::Released {
                        ticket,
                        protected: false,
                    },
                });
            }
        }
    }

    /// [`Message::Ask`].
    pub(super) fn asked(
        &mut self,
        now: u64,
        from: MemberId,
        nonce: u64,
        record: Record,
        held: bool,
        out: &mut Vec<Output>,
    ) {
        let key = record.key;
        let known = self.table.touch(key, now).is_some();
        if held {
            // What is better here goes back with the answer.
            self.merge(now, from, &record, out);
            if !known {
                self.push(key, now);
            }
        }
        if self.table.alive(key, now).is_some() {
            let safe = self
                .table
                .get(key)
                .is_some_and(|entry| entry.safe || self.is_safe(entry, now));
            if safe && !self.pending.contains_key(&key) {
                if let Some(entry) = self.table.get_mut(key) {
                    entry.safe = true;
                }
                return self.answer(now, key, vec![(from, nonce)], out);
            }
        }
        let waiter = Waiter::Remote {
            member: from,
            nonce,
            told: false,
        };
        self.enter(now, waiter, record, false, out);
    }

    /// [`Message::Answer`].
    pub(super) fn answered(
        &mut self,
        now: u64,
        from: MemberId,
        nonce: u64,
        record: Record,
        copied: bool,
        out: &mut Vec<Output>,
    ) {
        let key = record.key;
        if self
            .pending
            .get(&key)
            .is_none_or(|pending| pending.nonce != nonce)
        {
            return;
        }
        let better = self.merge(now, from, &record, out);
        let same = better.is_none()
            && self
                .table
                .alive(key, now)
                .is_some_and(|entry| entry.number == record.number);
        if same {
            if let Some(entry) = self.table.get_mut(key) {
                entry.safe |= copied;
            }
        } else if better.is_none()
            && let Some(pending) = self.pending.get_mut(&key)
            && record.number >= pending.proposal.number
        {
            // Dead as far as we know: the home has not heard of that yet.
            pending.proposal.number = record.number.saturating_add(1);
            pending.asked = None;
        }
        self.progress(now, key, out);
    }

    /// [`Message::Known`].
    pub(super) fn told(
        &mut self,
        now: u64,
        from: MemberId,
        nonce: u64,
        key: SessionKey,
        record: Option<Record>,
        out: &mut Vec<Output>,
    ) {
        let Some(pending) = self.pending.get_mut(&key) else {
            return;
        };
        if pending.nonce != nonce {
            return;
        }
        if let Phase::Consulting(others) = &mut pending.phase {
            others.retain(|member| *member != from);
        }
        match record {
            Some(record) if record.key == key => {
                self.merge(now, from, &record, out);
                self.push(key, now);
            }
            _ => {}
        }
        self.progress(now, key, out);
    }

    /// Takes over what `from` has. Returns what is better here.
    pub(super) fn merge(
        &mut self,
        now: u64,
        from: MemberId,
        record: &Record,
        out: &mut Vec<Output>,
    ) -> Option<Record> {
        let key = record.key;
        let home = self.is_home(key);
        let merged = self.table.merge(record, home, now);
        match merged {
            Merged::Taken | Merged::Same => {
                self.hold(key, from);
                if merged == Merged::Taken && !home && !self.view.homes(key).contains(from) {
                    // It was meant for a home, by one who sees other members than we do.
                    self.push(key, now);
                }
            }
            Merged::Kept => {
                let entry = self.table.get(key)?;
                return Some(self.table.record(entry, now));
            }
            Merged::Refused => return None,
        }
        if self.pending.contains_key(&key) {
            self.progress(now, key, out);
        }
        None
    }
}
