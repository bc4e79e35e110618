//! The other gateways: who answers, who has what, and what is still owed to whom.
//!
//! Copies, moves, handover at a change of members, handover on exit and the signs of life of conversations all use one channel per
//! gateway: a queue of keys, sent in batches of which one at a time is on its way, repeated until acknowledged. What is new
//! while a batch is on its way goes into the next (group commit), so a copy costs at most two round trips under any load, and
//! a key is never sent to one who has it.
//!
//! Whoever has sent everything that a change of members makes it owe to another says `done`, with the view it was done
//! for. A home that has `done` from all others for its own view knows all there is to know about its keys, and decides
//! alone. Until then it asks.

use std::collections::VecDeque;

use super::super::key::SessionKey;
use super::super::members::{Homes, MemberId, View};
use super::super::wire::{Envelope, Floor, MAX_RECORDS, Message, Record};
use super::{CHUNK, Output, Shard};

/// Messages owed to one gateway beyond this are forgotten, and the whole table is gone through instead.
const QUEUE_PER_ENTRY: usize = 2;

/// Another gateway.
#[derive(Debug, Default)]
pub(super) struct Peer {
    /// It is in our view.
    pub in_view: bool,
    /// It was, and is gone without having said goodbye.
    lost: bool,
    /// No connection could be made.
    pub unreachable: bool,
    /// Its view when last heard.
    view: u64,
    /// Its changes of view when last heard.
    sequence: u64,
    /// The view for which it has sent all it owes us.
    done: Option<u64>,
    heard: u64,
    /// Since when it owes an answer.
    awaited: Option<u64>,
    /// The version of our floors that it knows.
    pub floors_known: u64,
    queue: VecDeque<SessionKey>,
    enqueued: u64,
    taken: u64,
    /// What was enqueued when the table had been gone through for our present view.
    boundary: Option<u64>,
    /// Our change of view for which it has acknowledged that we are done.
    told: Option<u64>,
    in_flight: Option<Batch>,
    next_batch: u64,
}

#[derive(Debug)]
struct Batch {
    number: u64,
    keys: Vec<(SessionKey, u32)>,
    records: Vec<Record>,
    done: bool,
    floors: Vec<Floor>,
    floors_version: u64,
    sequence: u64,
    sent: u64,
}

impl Peer {
    pub fn is_silent(&self, now: u64, silence: u64) -> bool {
        self.unreachable
            || self
                .awaited
                .is_some_and(|since| now.saturating_sub(since) >= silence)
    }

    /// It may know of entries that it has not told us, although we are their home in the view `view`.
    pub fn may_owe(&self, view: u64) -> bool {
        !self.lost && (self.done != Some(view) || self.view != view)
    }

    pub fn is_told(&self, sequence: u64) -> bool {
        self.told == Some(sequence)
    }

    /// Something may have to be repeated to it.
    pub fn is_awaited(&self) -> bool {
        self.in_view && (self.in_flight.is_some() || self.awaited.is_some() || !self.queue.is_empty())
    }

    fn clear(&mut self) {
        self.queue.clear();
        self.taken = self.enqueued;
        self.in_flight = None;
    }
}

impl Shard {
    pub(super) fn is_silent(&self, member: MemberId, now: u64) -> bool {
        let peer = self.peers.get(&member);
        peer.is_some_and(|peer| peer.is_silent(now, self.settings.timing.silence))
    }

    /// An answer is owed from now on.
    pub(super) fn expect(&mut self, now: u64, member: MemberId) {
        if let Some(peer) = self.peers.get_mut(&member) {
            peer.awaited.get_or_insert(now);
        }
    }

    /// Whoever says anything is alive.
    pub(super) fn heard(&mut self, now: u64, envelope: &Envelope) {
        let peer = self.peers.entry(envelope.from).or_default();
        peer.heard = now;
        peer.awaited = None;
        peer.unreachable = false;
        if envelope.sequence >= peer.sequence {
            (peer.sequence, peer.view) = (envelope.sequence, envelope.view);
        }
        if envelope.leaving && !self.departed.contains(&envelope.from) {
            self.departed.push(envelope.from);
            let stays = |member: &MemberId| *member != envelope.from;
            self.change_view(View::new(self.view.members().iter().copied().filter(stays)));
            if let Some(peer) = self.peers.get_mut(&envelope.from) {
                peer.lost = false;
            }
        }
    }

    pub(super) fn complete(&mut self, from: MemberId, view: u64, sequence: u64) {
        if let Some(peer) = self.peers.get_mut(&from)
            && sequence >= peer.sequence
        {
            peer.done = Some(view);
        }
    }

    pub(super) fn change_view(&mut self, view: View) {
        if view == self.view {
            return;
        }
        self.view = view;
        self.sequence += 1;
        for member in self.view.members() {
            if *member != self.settings.me {
                self.peers.entry(*member).or_default();
            }
        }
        for (member, peer) in &mut self.peers {
            let was = std::mem::replace(&mut peer.in_view, self.view.contains(*member));
            peer.lost = !peer.in_view && (peer.lost || was);
            if !peer.in_view {
                peer.clear();
            }
            (peer.boundary, peer.told) = (None, None);
            if let Some(batch) = &mut peer.in_flight {
                batch.done = false;
            }
        }
        self.scan = Some(0);
    }

    /// Goes on with the walk over the table after a change of members: what changes homes is told to its new ones.
    pub(super) fn continue_scan(&mut self, now: u64) {
        let Some(start) = self.scan else { return };
        let end = (start + CHUNK).min(self.table.slots());
        let me = self.settings.me;
        for slot in start..end {
            let Some(entry) = self.table.at(slot) else {
                continue;
            };
            let (key, was_home) = (entry.key, entry.home);
            let in_good_hands = entry
                .holders
                .iter()
                .flatten()
                .any(|holder| self.view.contains(*holder));
            self.table.set_home(key, self.view.homes(key).contains(me));
            // One who only remembers it speaks up when nobody is left whose task that is.
            if was_home || !in_good_hands {
                self.push(key, now);
            }
        }
        self.scan = (end < self.table.slots()).then_some(end);
        if self.scan.is_none() {
            for peer in self.peers.values_mut().filter(|peer| peer.in_view) {
                peer.boundary = Some(peer.enqueued);
            }
        }
    }

    /// Goes on with the walk over the table after entries have died: their first homes move them, others forget them.
    pub(super) fn continue_sweep(&mut self, now: u64) {
        let Some(start) = self.sweep else { return };
        let end = (start + CHUNK).min(self.table.slots());
        for slot in start..end {
            let Some(entry) = self.table.at(slot) else {
                continue;
            };
            if self.table.revisions.keeps(entry.revision, entry.epoch) {
                continue;
            }
            let (key, home) = (entry.key, entry.home);
            if self.view.homes(key).first == Some(self.settings.me) {
                self.reassign(now, key);
            } else if !home && !self.pending.contains_key(&key) {
                self.table.remove(key);
            }
        }
        self.sweep = (end < self.table.slots()).then_some(end);
    }

    /// Has the homes of `key` told of it: those it should have, and those that answer.
    pub(super) fn push(&mut self, key: SessionKey, now: u64) -> Homes {
        let reachable = self.reachable_homes(key, now);
        let Some(entry) = self.table.get(key) else {
            return reachable;
        };
        let holders = entry.holders;
        let limit = self.settings.max_entries.saturating_mul(QUEUE_PER_ENTRY) + MAX_RECORDS;
        let mut overflow = false;
        let targets = self.view.homes(key);
        let more = reachable.iter().filter(|member| !targets.contains(*member));
        for member in targets.iter().chain(more) {
            if holders.contains(&Some(member)) {
                continue;
            }
            if let Some(peer) = self.peers.get_mut(&member).filter(|peer| peer.in_view) {
                peer.queue.push_back(key);
                peer.enqueued += 1;
                if peer.queue.len() > limit {
                    peer.clear();
                    peer.told = None;
                    overflow = true;
                }
            }
        }
        if overflow {
            self.scan = Some(0);
            self.peers.values_mut().for_each(|peer| peer.boundary = None);
        }
        reachable
    }

    /// `member` has the entry as it is here.
    pub(super) fn hold(&mut self, key: SessionKey, member: MemberId) {
        let homes = self.view.homes(key);
        let Some(entry) = self.table.get_mut(key) else {
            return;
        };
        if entry.is_held_by(member) {
            return;
        }
        let useless = |holder: &Option<MemberId>| holder.is_none_or(|holder| !homes.contains(holder));
        let place = entry.holders.iter().position(useless);
        if let Some(holder) = entry.holders.get_mut(place.unwrap_or(0)) {
            *holder = Some(member);
        }
    }

    /// All floors, unless `member` is known to know them.
    pub(super) fn floors_unknown_to(&self, member: MemberId) -> Vec<Floor> {
        let version = self.table.revisions.floors_version();
        if self
            .peers
            .get(&member)
            .is_some_and(|peer| peer.floors_known == version)
        {
            return Vec::new();
        }
        self.floors()
    }

    fn floors(&self) -> Vec<Floor> {
        let floor = |(name, floor): (&std::sync::Arc<str>, i64)| Floor {
            revision: Box::from(&**name),
            floor,
        };
        self.table.revisions.floors().map(floor).collect()
    }

    /// All gateways that answer know what is dead.
    pub(super) fn floors_are_known(&self, now: u64) -> bool {
        let version = self.table.revisions.floors_version();
        let silence = self.settings.timing.silence;
        self.peers
            .values()
            .filter(|peer| peer.in_view && !peer.is_silent(now, silence))
            .all(|peer| peer.floors_known == version)
    }

    /// Starts a batch to everybody who is owed something and has none on its way.
    pub(super) fn flush(&mut self, now: u64, out: &mut Vec<Output>) {
        let version = self.table.revisions.floors_version();
        let ready = |(member, peer): (&MemberId, &Peer)| {
            let done = self.scan.is_none() && !peer.is_told(self.sequence);
            let owed = !peer.queue.is_empty() || done || peer.floors_known != version;
            (peer.in_view && peer.in_flight.is_none() && owed).then_some(*member)
        };
        let members: Vec<MemberId> = self.peers.iter().filter_map(ready).collect();
        for member in members {
            self.start_batch(now, member, out);
        }
    }

    fn start_batch(&mut self, now: u64, member: MemberId, out: &mut Vec<Output>) {
        let version = self.table.revisions.floors_version();
        let floors = match self.peers.get(&member) {
            Some(peer) if peer.floors_known != version => self.floors(),
            _ => Vec::new(),
        };
        let Some(peer) = self.peers.get_mut(&member) else {
            return;
        };
        let (mut keys, mut records) = (Vec::new(), Vec::new());
        while records.len() < MAX_RECORDS {
            let Some(key) = peer.queue.pop_front() else { break };
            peer.taken += 1;
            let alive = self
                .table
                .alive(key, now)
                .filter(|entry| !entry.is_held_by(member));
            if let Some(entry) = alive
                && !keys.contains(&(key, entry.number))
            {
                keys.push((key, entry.number));
                records.push(self.table.record(entry, now));
            }
        }
        let done = self.scan.is_none() && peer.boundary.is_some_and(|boundary| boundary <= peer.taken);
        peer.next_batch += 1;
        peer.in_flight = Some(Batch {
            number: peer.next_batch,
            keys,
            records,
            done,
            floors,
            floors_version: version,
            sequence: self.sequence,
            sent: now,
        });
        self.send_batch(now, member, out);
    }

    fn send_batch(&mut self, now: u64, member: MemberId, out: &mut Vec<Output>) {
        let batch = self
            .peers
            .get_mut(&member)
            .and_then(|peer| peer.in_flight.as_mut());
        let Some(batch) = batch else { return };
        batch.sent = now;
        let message = Message::Entries {
            batch: batch.number,
            records: batch.records.clone(),
            done: batch.done,
            floors: batch.floors.clone(),
        };
        self.expect(now, member);
        self.send(member, message, out);
    }

    /// [`Message::Ack`].
    pub(super) fn acknowledged(&mut self, now: u64, from: MemberId, number: u64, out: &mut Vec<Output>) {
        let Some(peer) = self.peers.get_mut(&from) else {
            return;
        };
        if peer.in_flight.as_ref().is_none_or(|batch| batch.number != number) {
            return;
        }
        let Some(batch) = peer.in_flight.take() else {
            return;
        };
        peer.floors_known = peer.floors_known.max(batch.floors_version);
        if batch.done && batch.sequence == self.sequence {
            peer.told = Some(self.sequence);
        }
        for (key, number) in batch.keys {
            if self.table.get(key).is_some_and(|entry| entry.number == number) {
                self.hold(key, from);
            }
            if self.pending.contains_key(&key) {
                self.progress(now, key, out);
            }
        }
    }

    /// Repeats what was not acknowledged, looks for the silent, and forgets those that are gone.
    pub(super) fn watch_peers(&mut self, now: u64, out: &mut Vec<Output>) {
        let timing = self.settings.timing;
        self.peers.retain(|_, peer| {
            let gone = peer.is_silent(now, timing.silence) && !peer.lost;
            peer.in_view || !(gone || now.saturating_sub(peer.heard) > timing.stranger)
        });
        let mut repeat = Vec::new();
        let mut look = Vec::new();
        for (member, peer) in self.peers.iter().filter(|(_, peer)| peer.in_view) {
            let silent = peer.is_silent(now, timing.silence);
            match &peer.in_flight {
                Some(batch) => {
                    let after = if silent { timing.ping } else { timing.retry };
                    if now >= batch.sent.saturating_add(after) {
                        repeat.push(*member);
                    }
                }
                None if silent => look.push(*member),
                None => {}
            }
        }
        for member in repeat {
            self.send_batch(now, member, out);
        }
        for member in look {
            self.start_batch(now, member, out);
        }
    }
}
