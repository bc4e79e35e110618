//! Deals out quotas while this gateway is elected: one [`Allocator`] per provider, all in one record.
//!
//! What is granted is written before it is sent. One write is under way at a time and carries what all allocators have to
//! say by then, so any number of providers costs one write per round trip. Whether a write whose answer got lost was done,
//! and whether another gateway writes, is told by what is found ([`Record`]).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use flotilla_core::quota::{
    Action, Allocator, Checkpoint, Found, Limit, Nanos, Record, Reply, Report, Terms, Usage,
};
use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior};
use tracing::{error, info, warn};

use super::clock::Clock;
use super::election::{Leader, Look};
use super::link::Transport;
use super::store::{Contents, Store, StoreError, Version};
use crate::peers::Peers;

mod names;
mod witness;

use names::{is_replaced, pod_of, process_of};
use witness::Said;

/// Pause after a failed read.
const RETRY: Duration = Duration::from_millis(300);
/// How often allocators are asked whether something is due by itself.
const TICK: Duration = Duration::from_millis(500);
/// Entries of providers that are gone are kept in case these come back, unless the record is longer than this; an object
/// may have 1 MiB.
const MAX_BYTES: usize = 512 * 1024;
/// Processes that are remembered as ended.
const MAX_ENDED: usize = 1_024;
/// A record that cannot be read is not overwritten before the longest month has passed where a limit is for a day or
/// more.
const LONG: Duration = Duration::from_secs(31 * 86_400);

/// By provider, its limits.
pub(super) type Limits = BTreeMap<String, Vec<Limit>>;

/// A report that is to be answered.
pub(super) struct Asked {
    pub(super) provider: String,
    pub(super) report: Report,
    /// Dropped where there is no answer.
    pub(super) answer: oneshot::Sender<Reply>,
}

/// An allocator's term, and what it knows of each limit by its name.
type Knowledge = (u64, BTreeMap<String, Usage>);

/// What the allocators know, by provider; empty where this gateway is not elected.
#[derive(Debug, Default)]
pub(super) struct Known(Mutex<BTreeMap<String, Knowledge>>);

impl Known {
    /// The allocator's term and what it knows of each limit.
    pub(super) fn of(&self, provider: &str) -> Option<Knowledge> {
        self.0.lock().get(provider).cloned()
    }
}

/// What it takes to deal out quotas.
pub(super) struct Office {
    pub(super) store: Arc<dyn Store>,
    pub(super) clock: Clock,
    pub(super) terms: Terms,
    pub(super) limits: watch::Receiver<Limits>,
    pub(super) leader: watch::Receiver<Leader>,
    pub(super) look: Arc<Look>,
    pub(super) asked: mpsc::Receiver<Asked>,
    pub(super) peers: Arc<Peers>,
    pub(super) known: Arc<Known>,
    pub(super) transport: Arc<dyn Transport>,
    /// What ids of this process's holders begin with.
    pub(super) process: String,
    /// Terms that were heard of, by provider.
    pub(super) heard: BTreeMap<String, u64>,
}

/// One provider's allocator, and who waits for its answers.
struct Desk {
    limits: Vec<Limit>,
    allocator: Allocator,
    waiting: BTreeMap<String, oneshot::Sender<Reply>>,
}

/// What became of a write.
enum Outcome {
    Written(Version),
    /// This was found after a write whose fate is unknown, or that met another version.
    Unclear(Version, Contents),
}

/// Why the office closed.
enum Closed {
    /// Everything ends.
    Stopped,
    /// Another gateway was elected, or nobody.
    NotElected,
    /// Another gateway has written: what is known here is worth nothing.
    Overtaken,
}

impl Office {
    /// Until the senders are gone.
    pub(super) async fn run(mut self) {
        loop {
            let leader = &mut self.leader;
            let elected = async { leader.wait_for(|leader| *leader == Leader::Me).await.is_ok() };
            tokio::select! {
                lives = elected => if !lives { return },
                // Nobody is here to answer.
                asked = self.asked.recv() => if asked.is_none() { return } else { continue },
            }
            let closed = self.open().await;
            self.known.0.lock().clear();
            match closed {
                Closed::Stopped => return,
                Closed::NotElected => info!("another gateway deals out quotas from now on"),
                Closed::Overtaken => {
                    warn!("another gateway has dealt out quotas; starting again from its record");
                    // It may have taken the Lease as well.
                    self.look.at_once(None);
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    async fn open(&mut self) -> Closed {
        let (version, contents) = loop {
            let found = tokio::select! {
                found = self.store.read() => found,
                closed = not_elected(&mut self.leader) => return closed,
            };
            match found {
                Ok(found) => break found,
                Err(error) => warn!(%error, "failed to read the record of quotas"),
            }
            tokio::select! {
                () = tokio::time::sleep(RETRY) => {}
                closed = not_elected(&mut self.leader) => return closed,
            }
        };
        let read_at = self.clock.nanos();
        let mut session = Session {
            desks: BTreeMap::new(),
            record: Record::new(version, contents),
            written_at: BTreeMap::new(),
            read_at,
            dirty: BTreeMap::new(),
            batch: Vec::new(),
            closed_until: BTreeMap::new(),
            leaving: Vec::new(),
            ended: BTreeSet::new(),
            witnesses: FuturesUnordered::new(),
            overtaken: false,
            office: self,
        };
        session.follow_limits();
        session.run().await
    }
}

async fn not_elected(leader: &mut watch::Receiver<Leader>) -> Closed {
    match leader.wait_for(|leader| *leader != Leader::Me).await {
        Ok(_) => Closed::NotElected,
        Err(_) => Closed::Stopped,
    }
}

/// The office while it is open.
struct Session<'a> {
    desks: BTreeMap<String, Desk>,
    record: Record<Version, Contents>,
    /// When this process wrote a provider's entry.
    written_at: BTreeMap<String, Nanos>,
    /// When the others were read.
    read_at: Nanos,
    /// What is to be written.
    dirty: BTreeMap<String, Checkpoint>,
    /// Providers whose entries are being written.
    batch: Vec<String>,
    /// Providers whose record cannot be read.
    closed_until: BTreeMap<String, Instant>,
    /// Holders that gave everything back and wait until that is written, so that they may end.
    leaving: Vec<oneshot::Sender<Reply>>,
    /// Processes that were replaced by another in the same pod: a late report of theirs says nothing.
    ended: BTreeSet<String>,
    /// Witnesses that are asked.
    witnesses: FuturesUnordered<BoxFuture<'static, Said>>,
    overtaken: bool,
    office: &'a mut Office,
}

impl Session<'_> {
    async fn run(mut self) -> Closed {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut write: Option<BoxFuture<'static, Outcome>> = None;
        loop {
            if write.is_none() && !self.dirty.is_empty() {
                write = Some(self.write());
            }
            if write.is_none() {
                // Dropped: there is nothing to answer.
                self.leaving.clear();
            }
            let Office {
                leader,
                asked,
                limits,
                ..
            } = &mut *self.office;
            let under_way = async {
                match &mut write {
                    Some(write) => write.await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                closed = not_elected(leader) => return closed,
                outcome = under_way => {
                    write = None;
                    self.settle(outcome);
                }
                asked = asked.recv() => match asked {
                    Some(asked) => self.handle(asked),
                    None => return Closed::Stopped,
                },
                changed = limits.changed() => match changed {
                    Ok(()) => self.follow_limits(),
                    Err(_) => return Closed::Stopped,
                },
                Some(said) = self.witnesses.next() => self.hear(said),
                _ = ticks.tick() => self.tick(),
            }
            if self.overtaken {
                return Closed::Overtaken;
            }
        }
    }

    /// Makes desks for the limits as they are now.
    fn follow_limits(&mut self) {
        let limits = self.office.limits.borrow_and_update().clone();
        let desks = std::mem::take(&mut self.desks);
        let (stay, go): (BTreeMap<_, _>, BTreeMap<_, _>) = desks
            .into_iter()
            .partition(|(provider, desk)| limits.get(provider) == Some(&desk.limits));
        self.desks = stay;
        self.dirty.retain(|provider, _| self.desks.contains_key(provider));
        let now = self.office.clock.now();
        let mut known: BTreeMap<String, Checkpoint> = go
            .into_iter()
            .map(|(provider, desk)| (provider, desk.allocator.into_checkpoint(now)))
            .collect();
        for (provider, limits) in limits {
            if !self.desks.contains_key(&provider) {
                let known = known.remove(&provider);
                self.make_desk(provider, limits, known);
            }
        }
    }

    /// `known` is what was known for the limits before; else the record says it.
    fn make_desk(&mut self, provider: String, limits: Vec<Limit>, known: Option<Checkpoint>) {
        let now = self.office.clock.now();
        let text = self
            .record
            .content()
            .get(&provider)
            .filter(|text| !text.is_empty());
        let is_known = known.is_some();
        let found = known
            .map(Ok)
            .or_else(|| text.map(|text| Checkpoint::from_json(text)));
        let checkpoint = match found {
            None => None,
            Some(Ok(checkpoint)) => Some(checkpoint),
            Some(Err(wrong)) => {
                let within = longest(&limits);
                let until = *self
                    .closed_until
                    .entry(provider.clone())
                    .or_insert_with(|| Instant::now() + within);
                if Instant::now() < until {
                    error!(
                        provider,
                        error = %wrong,
                        "requests under quotas stop: what was dealt out is not known, and will not matter in {} s; to go on at \
                         once, delete the key of this provider from {}",
                        within.as_secs(),
                        self.office.store.place()
                    );
                    return;
                }
                None
            }
        };
        let seen = if is_known {
            now.nanos
        } else {
            self.written_at.get(&provider).copied().unwrap_or(self.read_at)
        };
        let mut allocator = Allocator::new(&limits, self.office.terms, checkpoint.as_ref(), seen, now)
            .beside(self.office.process.clone());
        if let Some(term) = self.office.heard.get(&provider) {
            allocator = allocator.after(*term);
        }
        let desk = Desk {
            limits,
            allocator,
            waiting: BTreeMap::new(),
        };
        self.desks.insert(provider, desk);
    }

    fn handle(&mut self, asked: Asked) {
        let Asked {
            provider,
            report,
            answer,
        } = asked;
        let now = self.office.clock.now();
        if process_of(&report.holder).is_some_and(|process| self.ended.contains(process)) {
            return;
        }
        let Some(desk) = self.desks.get_mut(&provider) else {
            return;
        };
        let replaced: Vec<String> = desk
            .allocator
            .holders()
            .filter(|other| is_replaced(other, &report.holder))
            .map(str::to_owned)
            .collect();
        for other in replaced {
            desk.allocator.gone(&other, now);
            if self.ended.len() < MAX_ENDED {
                self.ended.extend(process_of(&other).map(str::to_owned));
            }
        }
        if report.released {
            self.leaving.push(answer);
        } else {
            desk.waiting.insert(report.holder.clone(), answer);
        }
        let actions = desk.allocator.handle(&report, now);
        self.act(&provider, actions);
    }

    fn act(&mut self, provider: &str, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Write(checkpoint) => {
                    self.dirty.insert(provider.to_owned(), checkpoint);
                }
                Action::Send(holder, reply) => {
                    let desk = self.desks.get_mut(provider);
                    if let Some(answer) = desk.and_then(|desk| desk.waiting.remove(&holder)) {
                        // One that does not wait any more will report again.
                        let _ = answer.send(reply);
                    }
                }
                Action::Vouch(by, vouch) => self.ask(provider, by, vouch),
                Action::StepDown(term) => {
                    let heard = self.office.heard.entry(provider.to_owned()).or_default();
                    *heard = term.max(*heard);
                    warn!(provider, term, "a holder has heard of a later allocator");
                    self.overtaken = true;
                }
            }
        }
    }

    fn tick(&mut self) {
        let now = self.office.clock.now();
        let broken = self
            .closed_until
            .iter()
            .any(|(_, until)| Instant::now() >= *until);
        if broken {
            self.follow_limits();
            self.closed_until.retain(|_, until| Instant::now() < *until);
        }
        let providers: Vec<String> = self.desks.keys().cloned().collect();
        for provider in providers {
            let Some(desk) = self.desks.get_mut(&provider) else {
                continue;
            };
            desk.waiting.retain(|_, answer| !answer.is_closed());
            let lost: Vec<String> = desk
                .allocator
                .holders()
                .filter(|holder| pod_of(holder).is_some_and(|pod| !self.office.peers.has(pod)))
                .map(str::to_owned)
                .collect();
            for holder in lost {
                desk.allocator.lost(&holder, now);
            }
            let actions = desk.allocator.tick(now);
            let known = (desk.allocator.term(), desk.allocator.usage(now));
            self.office.known.0.lock().insert(provider.clone(), known);
            self.act(&provider, actions);
        }
        let desks = &self.desks;
        self.office
            .known
            .0
            .lock()
            .retain(|provider, _| desks.contains_key(provider));
    }

    /// Writes what is to be written.
    fn write(&mut self) -> BoxFuture<'static, Outcome> {
        let mut entries: Contents = std::mem::take(&mut self.dirty)
            .into_iter()
            .map(|(provider, checkpoint)| (provider, checkpoint.to_json()))
            .collect();
        self.batch = entries.keys().cloned().collect();
        let mut contents = self.record.content().clone();
        if contents.values().map(String::len).sum::<usize>() > MAX_BYTES {
            let limits = self.office.limits.borrow();
            let strangers = contents.keys().filter(|provider| !limits.contains_key(*provider));
            entries.extend(strangers.map(|provider| (provider.clone(), String::new())));
        }
        contents.extend(entries.clone());
        self.record.attempt(contents.clone());
        if self.record.version().is_none() {
            // Somebody has deleted it: all is written again.
            entries = contents;
        }
        let (store, version) = (self.office.store.clone(), self.record.version().clone());
        Box::pin(async move {
            match store.write(version, entries).await {
                Ok(version) => return Outcome::Written(version),
                Err(StoreError::Conflict) => {}
                Err(StoreError::Unclear(error)) => warn!(error, "failed to write the record of quotas"),
            }
            loop {
                match store.read().await {
                    Ok((version, contents)) => return Outcome::Unclear(version, contents),
                    Err(_) => tokio::time::sleep(RETRY).await,
                }
            }
        })
    }

    fn settle(&mut self, outcome: Outcome) {
        let now = self.office.clock.now();
        let batch = std::mem::take(&mut self.batch);
        match outcome {
            Outcome::Written(version) => {
                self.record.landed(version);
                for provider in batch {
                    self.written_at.insert(provider.clone(), now.nanos);
                    // A desk that was made anew meanwhile has not asked for this write.
                    if let Some(desk) = self.desks.get_mut(&provider)
                        && !self.dirty.contains_key(&provider)
                    {
                        let actions = desk.allocator.written(now);
                        self.act(&provider, actions);
                    }
                }
            }
            Outcome::Unclear(version, contents) => {
                // Nobody of us deletes the record. Whoever did wants it to begin anew, and what we know stays right.
                let contents = if version.is_none() {
                    self.record.content().clone()
                } else {
                    contents
                };
                match self.record.found(version, contents) {
                    Found::Ours => {
                        for provider in &batch {
                            if let Some(desk) = self.desks.get_mut(provider) {
                                desk.allocator.not_written();
                            }
                        }
                        self.tick();
                    }
                    Found::Anothers => self.overtaken = true,
                }
            }
        }
    }
}

/// How long what was dealt out may matter.
fn longest(limits: &[Limit]) -> Duration {
    use flotilla_core::quota::Window;
    let of = |limit: &Limit| match limit.window {
        Window::Rolling(window) => Duration::from_nanos(window.saturating_add(limit.within)),
        Window::Calendar(_) => LONG,
        Window::None => Duration::from_nanos(limit.within),
    };
    limits.iter().map(of).max().unwrap_or_default()
}
