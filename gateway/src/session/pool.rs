//! The conversations of one pool in this gateway: the shards of [`flotilla_core::session`], each behind a short lock, their
//! clock, and the requests that wait for an answer.
//!
//! A request whose conversation is known costs one lock (one of [`SHARDS`], held for two probes of a hash map) and no message.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use flotilla_core::session::wire::Envelope;
use flotilla_core::session::{
    Assignment, Counts, Keyer, MemberId, Output, Route, SHARDS, SessionKey, Settings, Shard, Ticket, Timing,
    evidence_epoch,
};
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::config::{KeySource, SessionsConfig};
use super::network::Network;

/// Conversations and tasks that one pool may have here, at most 200 bytes each. The idlest go first.
const MAX_ENTRIES: usize = 1 << 18;
/// Longer than the core's defaults: who is dead is mostly known at once, because its address refuses connections. Silence is for
/// lost nodes and cut networks, and one that only has no processor for a moment should not be passed over. Nor is a message lost
/// but with its connection, so a repetition after a short time would only be work for one who is busy.
const TIMING: Timing = Timing {
    retry: 200,
    silence: 1000,
    ping: 500,
    patience: 3000,
    stranger: 10_000,
};
/// An answer comes within the shard's patience; after this the request goes on without.
const GIVE_UP: Duration = Duration::from_millis(TIMING.patience + 500);

/// The conversations of one pool.
pub struct PoolSessions {
    keyer: Keyer,
    key: ArcSwap<KeySource>,
    /// What was applied last.
    applied: Mutex<Option<(SessionsConfig, Route)>>,
    /// See [`Route::since`].
    since: AtomicI64,
    shelves: Box<[Mutex<Shelf>]>,
    network: Arc<Network>,
    tickets: AtomicU64,
    wake: Arc<Notify>,
    /// The clock comes soon anyway.
    hurried: AtomicBool,
    unanswered: AtomicU64,
}

struct Shelf {
    shard: Shard,
    waiting: HashMap<Ticket, Waiting>,
}

struct Waiting {
    assigned: Option<oneshot::Sender<Assignment>>,
    released: oneshot::Sender<bool>,
}

/// Where a conversation goes, and when its response may.
pub struct Answer {
    /// Where it goes.
    pub assignment: Assignment,
    /// Told once the entry is copied; none when that was so before.
    pub released: Option<oneshot::Receiver<bool>>,
}

/// What a pool's shards have and did, together.
#[derive(Clone, Debug, Default)]
pub struct Totals {
    /// Entries that this gateway is a home of.
    pub homes: u64,
    /// Entries that it remembers from asking.
    pub remembered: u64,
    /// Conversations that somebody waits for.
    pub waiting: u64,
    /// Since the start.
    pub counts: Counts,
    /// Requests whose revision was guessed, or whose response began too early, because no answer came in time.
    pub unanswered: u64,
}

impl PoolSessions {
    /// None known yet, alone among `members`.
    pub(super) fn new(
        uid: &str,
        config: &SessionsConfig,
        me: MemberId,
        members: &[MemberId],
        network: &Arc<Network>,
    ) -> Arc<Self> {
        let keyer = Keyer::new(uid);
        let shelf = |number: u8| {
            Mutex::new(Shelf {
                shard: Shard::new(Settings {
                    pool: keyer.pool(),
                    shard: number,
                    me,
                    max_entries: MAX_ENTRIES / usize::from(SHARDS),
                    idle: milliseconds(config.idle),
                    seed: rand::random(),
                    timing: TIMING,
                }),
                waiting: HashMap::new(),
            })
        };
        let sessions = Arc::new(Self {
            shelves: (0..SHARDS).map(shelf).collect(),
            keyer,
            key: ArcSwap::from_pointee(config.key.clone()),
            applied: Mutex::default(),
            since: AtomicI64::new(0),
            network: network.clone(),
            tickets: AtomicU64::new(0),
            wake: Arc::default(),
            hurried: AtomicBool::new(false),
            unanswered: AtomicU64::new(0),
        });
        sessions.set_members(members);
        tokio::spawn(keep_time(Arc::downgrade(&sessions), sessions.wake.clone()));
        sessions
    }

    /// Makes keys of this pool.
    pub fn keyer(&self) -> &Keyer {
        &self.keyer
    }

    /// Where requests name their conversation.
    pub(super) fn key(&self) -> Arc<KeySource> {
        self.key.load_full()
    }

    /// The epoch under which a request of a conversation counts that was assigned under the generation `assigned`.
    pub fn epoch(&self, assigned: i64) -> i64 {
        evidence_epoch(assigned, self.since.load(Ordering::Relaxed))
    }

    /// See [`Route::since`].
    pub fn since(&self) -> i64 {
        self.since.load(Ordering::Relaxed)
    }

    /// One caller at a time. Without a route what was applied last stays in force.
    pub(super) fn apply(&self, config: &SessionsConfig, route: Option<Route>) {
        let mut applied = self.applied.lock();
        let Some(route) = route.or_else(|| applied.take().map(|(_, route)| route)) else {
            return;
        };
        let wanted = (config.clone(), route);
        if applied.as_ref() == Some(&wanted) {
            return;
        }
        let (config, route) = &*applied.insert(wanted);
        self.key.store(Arc::new(config.key.clone()));
        self.since.store(route.since(), Ordering::Relaxed);
        for index in 0..SHARDS {
            self.turn(index, |shard, now, out| {
                shard.set_idle(milliseconds(config.idle));
                shard.set_route(now, route, out);
            });
        }
    }

    pub(super) fn set_members(&self, members: &[MemberId]) {
        for index in 0..SHARDS {
            self.turn(index, |shard, now, out| {
                shard.set_members(now, members.iter().copied(), out);
            });
        }
    }

    pub(super) fn unreachable(&self, member: MemberId) {
        for index in 0..SHARDS {
            self.turn(index, |shard, now, out| shard.unreachable(now, member, out));
        }
    }

    pub(super) fn leave(&self) {
        for index in 0..SHARDS {
            self.turn(index, Shard::leave);
        }
    }

    pub(super) fn is_drained(&self) -> bool {
        let now = self.network.now();
        self.shelves
            .iter()
            .all(|shelf| shelf.lock().shard.is_drained(now))
    }

    /// A message of another gateway. What is to be said to that one goes into `replies`.
    pub(super) fn receive(&self, envelope: Envelope, replies: &mut Vec<Envelope>) {
        let (index, from) = (envelope.shard, envelope.from);
        let reply = |envelope: Envelope| {
            if envelope.to == from {
                replies.push(envelope);
            } else {
                self.network.send(envelope);
            }
        };
        self.carry_out(
            index,
            |shelf, now, out| shelf.shard.handle(now, envelope, out),
            reply,
        );
    }

    /// Where the conversation of `key` goes: at once where that is known, else after a question to its home; where no answer
    /// comes it is guessed. None when no revision serves.
    pub async fn resolve(&self, key: SessionKey) -> Option<Answer> {
        let known = self.with(key.shard(), |shelf| {
            let now = self.network.now();
            shelf.shard.lookup(key, now)
        });
        if let Some(assignment) = known.flatten() {
            return Some(Answer {
                assignment,
                released: None,
            });
        }
        let open = |shard: &mut Shard, now, ticket, out: &mut Vec<Output>| shard.open(now, ticket, key, out);
        self.wait(key, open).await
    }

    /// A response has told that `key` is the name of the conversation or of a task that `assignment` served; see
    /// [`Shard::learn`].
    pub async fn learn(&self, key: SessionKey, assignment: &Assignment) {
        let answer = self
            .wait(key, |shard, now, ticket, out| {
                shard.learn(now, ticket, key, assignment, out);
            })
            .await;
        if let Some(answer) = answer {
            self.released(answer.released).await;
        }
    }

    /// Pins a conversation to a replica; see [`Shard::pin`].
    pub fn pin(&self, key: SessionKey, replica: SocketAddr) {
        self.turn(key.shard(), |shard, now, out| shard.pin(now, key, replica, out));
    }

    /// Waits until the response may go out.
    pub async fn released(&self, released: Option<oneshot::Receiver<bool>>) {
        let Some(released) = released else { return };
        if tokio::time::timeout(GIVE_UP, released).await.is_err() {
            self.unanswered.fetch_add(1, Ordering::Relaxed);
        }
    }

    async fn wait(
        &self,
        key: SessionKey,
        act: impl FnOnce(&mut Shard, u64, Ticket, &mut Vec<Output>),
    ) -> Option<Answer> {
        let ticket = self.tickets.fetch_add(1, Ordering::Relaxed);
        let (assigned, told) = oneshot::channel();
        let (released, release) = oneshot::channel();
        let waiting = Waiting {
            assigned: Some(assigned),
            released,
        };
        self.carry_out(
            key.shard(),
            |shelf, now, out| {
                shelf.waiting.insert(ticket, waiting);
                act(&mut shelf.shard, now, ticket, out);
            },
            |envelope| self.network.send(envelope),
        );
        match tokio::time::timeout(GIVE_UP, told).await {
            Ok(Ok(assignment)) => Some(Answer {
                assignment,
                released: Some(release),
            }),
            // Nothing serves.
            Ok(Err(_)) => None,
            Err(_) => {
                self.unanswered.fetch_add(1, Ordering::Relaxed);
                let now = self.network.now();
                let guess = self.with(key.shard(), |shelf| shelf.shard.guess(key, now));
                guess.flatten().map(|assignment| Answer {
                    assignment,
                    released: None,
                })
            }
        }
    }

    fn with<R>(&self, index: u8, look: impl FnOnce(&mut Shelf) -> R) -> Option<R> {
        Some(look(&mut self.shelves.get(usize::from(index))?.lock()))
    }

    fn turn(&self, index: u8, act: impl FnOnce(&mut Shard, u64, &mut Vec<Output>)) {
        let act = |shelf: &mut Shelf, now, out: &mut Vec<Output>| act(&mut shelf.shard, now, out);
        self.carry_out(index, act, |envelope| self.network.send(envelope));
    }

    fn carry_out(
        &self,
        index: u8,
        act: impl FnOnce(&mut Shelf, u64, &mut Vec<Output>),
        mut send: impl FnMut(Envelope),
    ) {
        let mut out = Vec::new();
        let soon = self.with(index, |shelf| {
            let now = self.network.now();
            act(shelf, now, &mut out);
            for output in &out {
                shelf.tell(output);
            }
            shelf.shard.next_tick(now) < TIMING.ping
        });
        for output in out {
            if let Output::Send(envelope) = output {
                send(envelope);
            }
        }
        if soon == Some(true) && !self.hurried.load(Ordering::SeqCst) {
            self.wake.notify_one();
        }
    }

    /// Ticks all shards; gives the time until the next tick.
    fn tick(&self) -> Duration {
        // Whoever makes work from here on need not wake the clock: it looks at what there is at the end.
        self.hurried.store(true, Ordering::SeqCst);
        for index in 0..SHARDS {
            self.turn(index, Shard::tick);
        }
        let next = self.next_tick();
        if next < TIMING.ping {
            return Duration::from_millis(next);
        }
        self.hurried.store(false, Ordering::SeqCst);
        // What came between the look and the store.
        Duration::from_millis(self.next_tick())
    }

    fn next_tick(&self) -> u64 {
        let now = self.network.now();
        let next = |shelf: &Mutex<Shelf>| shelf.lock().shard.next_tick(now);
        self.shelves.iter().map(next).min().unwrap_or(TIMING.ping)
    }

    /// Entries of `revision` that this gateway knows, tasks included.
    pub fn sessions(&self, revision: &str) -> u64 {
        let of = |shelf: &Mutex<Shelf>| u64::from(shelf.lock().shard.sessions(revision));
        self.shelves.iter().map(of).sum()
    }

    /// See [`Shard::assigned`].
    pub fn assigned(&self, revision: &str) -> u64 {
        let of = |shelf: &Mutex<Shelf>| shelf.lock().shard.assigned(revision);
        self.shelves.iter().map(of).sum()
    }

    /// All of it, for metrics.
    pub fn totals(&self) -> Totals {
        let mut totals = Totals {
            unanswered: self.unanswered.load(Ordering::Relaxed),
            ..Totals::default()
        };
        for shelf in &self.shelves {
            let shelf = shelf.lock();
            totals.homes += shelf.shard.homes() as u64;
            totals.remembered += shelf.shard.len().saturating_sub(shelf.shard.homes()) as u64;
            totals.waiting += shelf.shard.waiting() as u64;
            add(&mut totals.counts, &shelf.shard.counts());
        }
        totals
    }
}

impl Shelf {
    /// Tells whoever waits here; one that has gone needs no telling.
    fn tell(&mut self, output: &Output) {
        match output {
            Output::Send(_) => {}
            Output::Assigned { ticket, assignment } => {
                let waiting = self.waiting.get_mut(ticket);
                if let Some(assigned) = waiting.and_then(|waiting| waiting.assigned.take()) {
                    let _ = assigned.send(assignment.clone());
                }
            }
            Output::Released { ticket, protected } => {
                if let Some(waiting) = self.waiting.remove(ticket) {
                    let _ = waiting.released.send(*protected);
                }
            }
            Output::Unrouted { ticket } => drop(self.waiting.remove(ticket)),
        }
    }
}

/// Counts that are added must all be named here.
fn add(sum: &mut Counts, more: &Counts) {
    let Counts {
        assigned,
        moved,
        repinned,
        unprotected,
        split,
        refused,
        removed,
    } = more;
    sum.assigned += assigned;
    let mut all: BTreeMap<_, _> = std::mem::take(&mut sum.moved);
    for (reason, count) in moved {
        *all.entry(*reason).or_default() += count;
    }
    sum.moved = all;
    sum.repinned += repinned;
    sum.unprotected += unprotected;
    sum.split += split;
    sum.refused += refused;
    sum.removed.idle += removed.idle;
    sum.removed.remembered += removed.remembered;
    sum.removed.homes += removed.homes;
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX / 4)
}

async fn keep_time(sessions: Weak<PoolSessions>, wake: Arc<Notify>) {
    loop {
        let Some(pause) = sessions.upgrade().map(|sessions| sessions.tick()) else {
            return;
        };
        if pause.is_zero() {
            tokio::task::yield_now().await;
            continue;
        }
        let next = Instant::now() + pause;
        tokio::select! {
            () = tokio::time::sleep_until(next) => {}
            () = wake.notified() => {}
        }
    }
}
