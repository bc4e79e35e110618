//! One gateway's part in one shard of a pool's sessions: a state machine that is told what happens and says what to do.
//!
//! The caller has one [`Shard`] per pool and shard number behind a short lock. It calls in with a key, a message, a tick or a
//! change of members or route, and carries out the [`Output`]s: send an envelope, let a request go, let its first byte out. The
//! argument why conversations stay where they are is in [`super`].
//!
//! # Cost
//!
//! [`Shard::lookup`], the only call on most requests, is two probes of a hash map, integer comparisons and a few links: no
//! allocation, no message. Work over the whole table (after a change of members or of the route) is cut into chunks of
//! [`CHUNK`] slots per call of [`Shard::tick`], so that nobody holds the lock for long; it goes on at the next tick, for which
//! [`Shard::next_tick`] then asks at once.

mod assign;
mod peers;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use super::key::SessionKey;
use super::members::{Homes, MemberId, View, homes};
use super::route::{MoveReason, Route};
use super::table::{Entry, Removed, Replica, Table};
use super::wire::{Envelope, Floor, Message, Record, VERSION};
use assign::{Pending, Waiter};
use peers::Peer;

/// Slots of the table that one tick looks at.
pub const CHUNK: usize = 256;
/// Conversations that may be undecided at once; more are decided on the spot, unprotected.
pub const MAX_PENDING: usize = 4096;

/// Times, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// An unanswered message is repeated after this long.
    pub retry: u64,
    /// Who owes an answer for this long is silent: nobody waits for it until it is heard again.
    pub silence: u64,
    /// A silent gateway is looked for this often.
    pub ping: u64,
    /// The first byte of a response waits at most this long for its entry to be copied.
    pub patience: u64,
    /// A gateway that is in no view of ours is remembered for this long after it was heard.
    pub stranger: u64,
}

impl Default for Timing {
    /// For gateways in one cluster, where a round trip takes about a millisecond.
    fn default() -> Self {
        Self {
            retry: 25,
            silence: 500,
            ping: 500,
            patience: 2000,
            stranger: 10_000,
        }
    }
}

/// What a shard is told once.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// [`super::Keyer::pool`].
    pub pool: u64,
    /// Its number, below [`super::SHARDS`].
    pub shard: u8,
    /// This gateway.
    pub me: MemberId,
    /// Entries at most.
    pub max_entries: usize,
    /// `sessions.idleSeconds` in milliseconds; an entry is forgotten between this long and 1.25 times as long after its last use.
    pub idle: u64,
    /// Random, and unknown to clients.
    pub seed: u64,
    /// Times.
    pub timing: Timing,
}

/// Where a conversation goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// The revision.
    pub revision: Arc<str>,
    /// The replica, if one was pinned. It may be gone: then choose another and [`Shard::pin`] that.
    pub replica: Option<SocketAddr>,
    /// The generation under which the conversation was assigned; for statistics see [`super::evidence_epoch`].
    pub epoch: i64,
    /// The conversation that it belongs to (of a task: not the key that was asked for).
    pub root: SessionKey,
}

/// A request that waits; chosen by the caller.
pub type Ticket = u64;

/// What the caller is to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// Send this to `envelope.to`. It may be lost.
    Send(Envelope),
    /// The request goes here. Its response must wait for [`Output::Released`] before the first byte.
    Assigned {
        /// Whose.
        ticket: Ticket,
        /// Where to.
        assignment: Assignment,
    },
    /// The response may go out.
    Released {
        /// Whose.
        ticket: Ticket,
        /// At least one other gateway has the entry, or there is no other. False is counted as unprotected.
        protected: bool,
    },
    /// No revision serves, as far as is known here: go on without a session. Nothing else follows.
    Unrouted {
        /// Whose.
        ticket: Ticket,
    },
}

/// Since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Conversations and tasks that were given a revision here, for all gateways.
    pub assigned: u64,
    /// Those that had to leave their revision, by reason. Each is counted where it was decided, so the sum over gateways counts
    /// each once, but for gateways that cannot reach each other.
    pub moved: BTreeMap<MoveReason, u64>,
    /// Changes of a pinned replica within a revision.
    pub repinned: u64,
    /// Responses let go without a second copy.
    pub unprotected: u64,
    /// Requests that had been sent to one revision when the homes agreed on another: two gateways that could not reach each
    /// other decided differently about two first requests of one conversation.
    pub split: u64,
    /// Messages of an unknown version or for another process.
    pub refused: u64,
    /// Entries removed, by cause.
    pub removed: Removed,
}

/// One gateway's part in one shard.
#[derive(Debug)]
pub struct Shard {
    settings: Settings,
    table: Table,
    view: View,
    /// Changes of `view`.
    sequence: u64,
    leaving: bool,
    /// Those that said they leave: whoever still lists them is behind.
    departed: Vec<MemberId>,
    peers: BTreeMap<MemberId, Peer>,
    pending: BTreeMap<SessionKey, Pending>,
    nonce: u64,
    /// The next slot to look at after a change of members.
    scan: Option<usize>,
    /// The next slot to look at after entries have died.
    sweep: Option<usize>,
    /// Used for a quarter of the idle time without a word to the homes.
    stale: Vec<SessionKey>,
    counts: Counts,
}

impl Shard {
    /// An empty one, alone in the world and without a route.
    pub fn new(settings: Settings) -> Self {
        Self {
            table: Table::new(settings.max_entries, settings.idle, settings.seed),
            view: View::new([settings.me]),
            sequence: 0,
            leaving: false,
            departed: Vec::new(),
            peers: BTreeMap::new(),
            pending: BTreeMap::new(),
            nonce: settings.seed,
            scan: None,
            sweep: None,
            stale: Vec::new(),
            counts: Counts::default(),
            settings,
        }
    }

    /// The fast path: where a conversation goes that is known here, serves, and has its copy. Else [`Shard::open`].
    pub fn lookup(&mut self, key: SessionKey, now: u64) -> Option<Assignment> {
        let quarter = self.table.idle() / 4;
        let entry = self.table.touch(key, now)?;
        if !entry.safe {
            return None;
        }
        if now.saturating_sub(entry.announced) >= quarter {
            entry.announced = now;
            self.stale.push(key);
        }
        self.assignment(key)
    }

    /// A request of a conversation that [`Shard::lookup`] does not know. Answered by [`Output::Assigned`] and
    /// [`Output::Released`] (both at once or later), or [`Output::Unrouted`].
    ///
    /// A request whose client has gone needs no call: its outputs are ignored.
    pub fn open(&mut self, now: u64, ticket: Ticket, key: SessionKey, out: &mut Vec<Output>) {
        let root = self.table.get(key).map_or(key, |entry| entry.root);
        let Some(revision) = self
            .table
            .revisions
            .choose(root)
            .or_else(|| self.alive_revision(key, now))
        else {
            out.push(Output::Unrouted { ticket });
            return;
        };
        let dead = self
            .table
            .get(key)
            .filter(|entry| !self.table.revisions.keeps(entry.revision, entry.epoch));
        let number = dead.map_or(1, |entry| entry.number.saturating_add(1));
        let proposal = Record {
            key,
            root: (root != key).then_some(root),
            replica: None,
            revision: Box::from(&*revision),
            epoch: self.table.revisions.generation(),
            number,
            age: 0,
        };
        self.enter(now, Waiter::local(ticket), proposal, false, out);
        self.flush(now, out);
    }

    /// Where the conversation of `key` most probably is, for one who can wait no longer for the answer to [`Shard::open`]: what is known
    /// here, else what everybody would choose under the present weights. Nothing is assigned by it.
    pub fn guess(&self, key: SessionKey, now: u64) -> Option<Assignment> {
        if self.table.alive(key, now).is_some() {
            return self.assignment(key);
        }
        Some(Assignment {
            revision: self.table.revisions.choose(key)?,
            replica: None,
            epoch: self.table.revisions.generation(),
            root: key,
        })
    }

    /// A response has told the name of the conversation that its request belongs to (`key` = `root`), or of one of its tasks
    /// (`key` is the task's): the request had this assignment. Answered as [`Shard::open`] is; the assignment that comes
    /// back is another one only if the name was taken already.
    pub fn learn(
        &mut self,
        now: u64,
        ticket: Ticket,
        key: SessionKey,
        assignment: &Assignment,
        out: &mut Vec<Output>,
    ) {
        let record = Record {
            key,
            root: (assignment.root != key).then_some(assignment.root),
            revision: Box::from(&*assignment.revision),
            replica: assignment.replica,
            epoch: assignment.epoch,
            number: 1,
            age: 0,
        };
        if self.table.alive(key, now).is_none()
            && self.table.revisions.keeps_name(&record.revision, record.epoch)
        {
            self.table.put(&record, self.is_home(key), now);
            self.count_assigned(&record);
            self.push(key, now);
        }
        self.enter(now, Waiter::local(ticket), record, true, out);
        self.flush(now, out);
    }

    /// Pins a conversation to a replica of its revision: its first one, or another because that one is gone.
    pub fn pin(&mut self, now: u64, key: SessionKey, replica: SocketAddr, out: &mut Vec<Output>) {
        let Some(entry) = self.table.touch(key, now) else {
            return;
        };
        if entry.replica.map(Replica::address) == Some(replica) {
            return;
        }
        let repinned = entry.replica.is_some();
        entry.replica = Replica::new(replica);
        entry.number = entry.number.saturating_add(1);
        entry.holders = [None; 2];
        self.counts.repinned += u64::from(repinned);
        self.push(key, now);
        self.flush(now, out);
    }

    /// A message has come in.
    pub fn handle(&mut self, now: u64, envelope: Envelope, out: &mut Vec<Output>) {
        let mine = (self.settings.pool, self.settings.shard, self.settings.me);
        let from = envelope.from;
        if envelope.version != VERSION
            || (envelope.pool, envelope.shard, envelope.to) != mine
            || from == mine.2
        {
            self.counts.refused += 1;
            return;
        }
        self.heard(now, &envelope);
        match envelope.message {
            Message::Ask {
                nonce,
                record,
                held,
                floors,
            } => {
                self.raise(&floors);
                self.asked(now, from, nonce, record, held, out);
            }
            Message::Answer {
                nonce,
                record,
                copied,
                floors,
            } => {
                self.raise(&floors);
                self.answered(now, from, nonce, record, copied, out);
            }
            Message::Query { nonce, key } => {
                let entry = self.table.alive(key, now);
                let record = entry.map(|entry| self.table.record(entry, now));
                let floors = self.floors_unknown_to(from);
                self.send(
                    from,
                    Message::Known {
                        nonce,
                        key,
                        record,
                        floors,
                    },
                    out,
                );
            }
            Message::Known {
                nonce,
                key,
                record,
                floors,
            } => {
                self.raise(&floors);
                self.told(now, from, nonce, key, record, out);
            }
            Message::Entries {
                batch,
                records,
                done,
                floors,
            } => {
                self.raise(&floors);
                let better = records
                    .iter()
                    .filter_map(|record| self.merge(now, from, record, out))
                    .collect();
                if done {
                    self.complete(from, envelope.view, envelope.sequence);
                }
                self.send(from, Message::Ack { batch, better }, out);
            }
            Message::Ack { batch, better } => {
                for record in &better {
                    // The sender merges with us in turn; there is nothing to tell it again.
                    self.merge(now, from, record, out);
                }
                self.acknowledged(now, from, batch, out);
            }
            Message::Unknown => self.counts.refused += 1,
        }
        self.flush(now, out);
    }

    /// Time has passed: repeats, gives up waiting, forgets, and goes on with work over the table.
    pub fn tick(&mut self, now: u64, out: &mut Vec<Output>) {
        self.continue_scan(now);
        self.continue_sweep(now);
        for key in std::mem::take(&mut self.stale) {
            if let Some(entry) = self.table.get_mut(key) {
                entry.holders = [None; 2];
                self.push(key, now);
            }
        }
        let keys: Vec<SessionKey> = self.pending.keys().copied().collect();
        for key in keys {
            self.progress(now, key, out);
        }
        self.table.expire(now, CHUNK);
        self.watch_peers(now, out);
        self.flush(now, out);
    }

    /// In how many milliseconds [`Shard::tick`] should come, at the latest.
    pub fn next_tick(&self, now: u64) -> u64 {
        let busy = self.scan.is_some() || self.sweep.is_some() || !self.stale.is_empty();
        let silence = self.settings.timing.silence;
        let awaited = |peer: &Peer| peer.is_awaited() && !peer.is_silent(now, silence);
        let waiting = !self.pending.is_empty() || self.peers.values().any(awaited);
        match (busy, waiting) {
            (true, _) => 0,
            (false, true) => self.settings.timing.retry,
            (false, false) => self.settings.timing.ping,
        }
    }

    /// The gateways there are now, this one among them. An instance that has gone never comes back under the same id.
    pub fn set_members(
        &mut self,
        now: u64,
        members: impl IntoIterator<Item = MemberId>,
        out: &mut Vec<Output>,
    ) {
        let me = self.settings.me;
        let listed: Vec<MemberId> = members.into_iter().collect();
        self.departed.retain(|member| listed.contains(member));
        let others = listed
            .into_iter()
            .filter(|member| *member != me && !self.departed.contains(member));
        let view = View::new(others.chain((!self.leaving).then_some(me)));
        self.change_view(view);
        self.tick(now, out);
    }

    /// The route has changed.
    pub fn set_route(&mut self, now: u64, route: &Route, out: &mut Vec<Output>) {
        if route.generation < self.table.revisions.generation() {
            self.table.rebase(route.generation);
        }
        if self.table.revisions.apply(route) {
            self.sweep = Some(0);
        }
        self.tick(now, out);
    }

    /// This gateway is about to stop: it is no home from now on and hands over what it has. [`Shard::is_drained`] says when
    /// it may go. Requests are still answered.
    pub fn leave(&mut self, now: u64, out: &mut Vec<Output>) {
        if !std::mem::replace(&mut self.leaving, true) {
            let me = self.settings.me;
            let others: Vec<MemberId> = self
                .view
                .members()
                .iter()
                .copied()
                .filter(|member| *member != me)
                .collect();
            self.change_view(View::new(others));
            self.tick(now, out);
        }
    }

    /// After [`Shard::leave`]: everybody who can be reached has all that this gateway had.
    pub fn is_drained(&self, now: u64) -> bool {
        let told = |member: &MemberId| {
            let peer = self.peers.get(member);
            peer.is_none_or(|peer| {
                peer.is_told(self.sequence) || peer.is_silent(now, self.settings.timing.silence)
            })
        };
        self.leaving && self.scan.is_none() && self.view.members().iter().all(told)
    }

    /// No connection to `member` can be made: nobody needs to wait for it until it is heard again.
    pub fn unreachable(&mut self, now: u64, member: MemberId, out: &mut Vec<Output>) {
        if let Some(peer) = self.peers.get_mut(&member) {
            peer.unreachable = true;
            self.tick(now, out);
        }
    }

    /// What happened here since the start.
    pub fn counts(&self) -> Counts {
        Counts {
            removed: self.table.removed,
            ..self.counts.clone()
        }
    }

    /// Entries, those merely remembered from asking among them.
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.table.len() == 0
    }

    /// Entries that this gateway is a home of.
    pub fn homes(&self) -> usize {
        self.table.homes()
    }

    /// Entries of `revision` here, in O(revisions). At 0 on every gateway a drained revision has no conversation left.
    pub fn sessions(&self, revision: &str) -> u32 {
        self.table.revisions.entries(revision)
    }

    /// Conversations (not their tasks) that were given `revision` here, for all gateways, since the route's newest
    /// [`super::Share::since`]: the sum over gateways is the number of sessions that are evidence.
    pub fn assigned(&self, revision: &str) -> u64 {
        self.table.revisions.assigned(revision)
    }

    /// `sessions.idleSeconds` has changed; in milliseconds.
    pub fn set_idle(&mut self, idle: u64) {
        self.table.set_idle(idle);
    }

    /// Conversations and tasks that somebody waits for.
    pub fn waiting(&self) -> usize {
        self.pending.len()
    }

    /// What is known of a key: alive or not, and without counting as use.
    #[cfg(test)]
    pub(super) fn peek(&self, key: SessionKey) -> Option<Assignment> {
        self.assignment(key)
    }

    fn assignment(&self, key: SessionKey) -> Option<Assignment> {
        let entry = self.table.get(key)?;
        Some(Assignment {
            revision: self.table.revisions.name(entry.revision),
            replica: entry.replica.map(Replica::address),
            epoch: entry.epoch,
            root: entry.root,
        })
    }

    fn alive_revision(&self, key: SessionKey, now: u64) -> Option<Arc<str>> {
        let entry = self.table.alive(key, now)?;
        Some(self.table.revisions.name(entry.revision))
    }

    fn count_assigned(&mut self, record: &Record) {
        self.counts.assigned += 1;
        if record.root() == record.key {
            self.table
                .revisions
                .count_assigned(&record.revision, record.epoch);
        }
    }

    fn is_home(&self, key: SessionKey) -> bool {
        self.view.homes(key).contains(self.settings.me)
    }

    /// The homes among those that answer.
    fn reachable_homes(&self, key: SessionKey, now: u64) -> Homes {
        let answers = |member: &MemberId| *member == self.settings.me || !self.is_silent(*member, now);
        homes(self.view.members().iter().copied().filter(answers), key)
    }

    /// Whether enough gateways have the entry: its homes that answer, and all of them know that what it moved away from is dead.
    fn is_safe(&self, entry: &Entry, now: u64) -> bool {
        let me = self.settings.me;
        let homes = self.reachable_homes(entry.key, now);
        let held = |member: MemberId| member == me || entry.is_held_by(member);
        // One that is leaving is no home, and may be alone with what it has.
        homes.iter().all(held) && (entry.number == 1 || self.floors_are_known(now))
    }

    /// Raises floors that somebody else told.
    fn raise(&mut self, floors: &[Floor]) {
        for floor in floors {
            if self.table.revisions.raise_floor(&floor.revision, floor.floor) {
                self.sweep = Some(0);
            }
        }
    }

    fn send(&mut self, to: MemberId, message: Message, out: &mut Vec<Output>) {
        out.push(Output::Send(Envelope {
            version: VERSION,
            pool: self.settings.pool,
            shard: self.settings.shard,
            from: self.settings.me,
            to,
            view: self.view.id(),
            sequence: self.sequence,
            leaving: self.leaving,
            message,
        }));
    }
}
