//! One pool: weights in force, revisions, and the way of a request to a slot.
//!
//! # Weights and drains
//!
//! `trafficGeneration` is reported as applied once no new request can follow older weights. A request reads a snapshot,
//! takes a slot, and then looks whether the snapshot is still the pool's; otherwise it gives the slot back and chooses
//! again. So whoever reads the new generation and then in-flight counts misses no request: it was either counted before, or
//! has seen the new weights. Waiters of a revision that has lost its weight are sent to choose again.
//!
//! # Where nothing serves the chosen revision
//!
//! It goes to the next revision by weight that has endpoints here, else to any that has: an old revision at weight 0 is
//! better than no answer. Both are counted as diverted. Without any endpoint it waits like one that finds no slot.
//!
//! # Lost status
//!
//! Status may be lost (a restore from backup). A pool that had weights or a port keeps them until its status names some
//! again; the operator rebuilds it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use http::StatusCode;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::queue::{Handover, Queue};
use super::revision::{Permit, Revision};
use crate::balance::weights::WeightTable;
use crate::config::PoolConfig;
use crate::reply::Refusal;
use crate::session::pool::PoolSessions;
use crate::session::visit::Session;
use crate::upstream::Limits;

/// One pool.
pub struct Pool {
    name: String,
    uid: String,
    traffic: ArcSwap<Traffic>,
    /// The configuration in force, with what a lost status has left behind.
    config: Mutex<Option<PoolConfig>>,
    /// Also those that serve no more but have something to report.
    revisions: Mutex<BTreeMap<String, Arc<Revision>>>,
    /// The pool's port is bound here.
    bound: ArcSwap<Option<u16>>,
    removed: AtomicBool,
    /// Requests for which no revision has an endpoint.
    stranded: Queue,
    waiting: AtomicUsize,
    next_ticket: AtomicU64,
    turn: AtomicUsize,
    /// Its conversations, where they are kept.
    sessions: ArcSwapOption<PoolSessions>,
    /// Since the start of this process.
    pub counts: Counts,
}

/// Counts since the start of the process.
#[derive(Default)]
pub struct Counts {
    /// 503 because the queue was full.
    pub queue_full: AtomicU64,
    /// 503 because the wait was too long.
    pub waited_too_long: AtomicU64,
    /// 503 because the pool is stopped.
    pub stopped: AtomicU64,
    /// Requests that went to another revision than the weights named.
    pub diverted: AtomicU64,
    /// Requests of conversations that went by weight, because their revision is not in the weights known here.
    pub sessionless: AtomicU64,
}

/// What a request needs to know, unchanging.
#[derive(Default)]
pub struct Traffic {
    /// `status.trafficGeneration`.
    pub generation: i64,
    /// Answer 503 at once.
    pub stopped: bool,
    /// From arrival to the last byte.
    pub request_timeout: Duration,
    queue_requests: usize,
    queue_wait: Duration,
    weights: WeightTable,
    /// In the order of the weights.
    weighted: Vec<(Arc<Revision>, u32)>,
    /// The others that have endpoints.
    unweighted: Vec<Arc<Revision>>,
}

/// A request that looks for a slot.
pub struct Claim {
    /// Arrival.
    pub arrival: Instant,
    /// Its end by `requestTimeoutSeconds`.
    pub deadline: Instant,
    /// Addresses that could not be reached for this request.
    pub avoid: Vec<SocketAddr>,
    /// The revision it was assigned before, while that one has endpoints: a second try is no second draw.
    pub stick: Option<Arc<Revision>>,
    /// The conversation it belongs to.
    pub session: Option<Session>,
    ticket: Option<u64>,
}

/// A slot found.
pub struct Assignment {
    /// The slot.
    pub permit: Permit,
    /// `trafficGeneration` of the weights that chose.
    pub generation: i64,
}

/// A place in a queue.
struct Place<'a> {
    pool: &'a Pool,
    queue: &'a Queue,
    ticket: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.queue.leave(self.ticket);
        self.pool.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Claim {
    /// A request that arrived at `arrival` and may take until `deadline`.
    pub fn new(arrival: Instant, deadline: Instant) -> Self {
        Self {
            arrival,
            deadline,
            avoid: Vec::new(),
            stick: None,
            session: None,
            ticket: None,
        }
    }

    /// The epoch under which it is counted, if it was assigned under `generation`.
    pub fn epoch(&self, generation: i64) -> i64 {
        self.session.as_ref().map_or(generation, Session::epoch)
    }

    /// What names its conversation to every gateway alike, for consistent hashing.
    pub fn hash(&self) -> Option<u64> {
        self.session.as_ref().map(Session::hash)
    }

    /// A slot of `revision`, at the conversation's replica if it has one there.
    fn take(&self, revision: &Arc<Revision>) -> Option<Permit> {
        let replica = self.session.as_ref().and_then(Session::replica);
        let replica = replica.filter(|(address, _)| !self.avoid.contains(address));
        if let Some((address, beyond_slots)) = replica
            && (beyond_slots || revision.queue.is_empty())
            && let Some(permit) = revision.take_at(address, beyond_slots)
        {
            return Some(permit);
        }
        revision
            .queue
            .is_empty()
            .then(|| revision.take(&self.avoid))
            .flatten()
    }
}

impl Traffic {
    /// The revision for the `turn`-th request; true when it is not the one that the weights name.
    fn choose(&self, turn: usize) -> Option<(&Arc<Revision>, bool)> {
        let named = self.weights.first(turn);
        let usable = |index: usize| {
            self.weighted
                .get(index)
                .is_some_and(|(revision, _)| revision.is_served())
        };
        if let Some(index) = self.weights.pick(turn, usable) {
            let (revision, _) = self.weighted.get(index)?;
            return Some((revision, Some(index) != named));
        }
        let idle = self.weighted.iter().map(|(revision, _)| revision);
        idle.chain(&self.unweighted)
            .find(|revision| revision.is_served())
            .map(|revision| (revision, true))
    }

    /// The revision of that name, if its conversations may stay: it has a weight, be it 0.
    fn keeps(&self, name: &str) -> Option<&Arc<Revision>> {
        let named = self.weighted.iter().find(|(revision, _)| revision.name == name);
        named.map(|(revision, _)| revision)
    }

    /// Revisions with their weights in percent.
    pub fn shares(&self) -> impl Iterator<Item = (&Arc<Revision>, u32)> {
        self.weighted.iter().map(|(revision, weight)| (revision, *weight))
    }
}

impl Pool {
    pub(super) fn new(name: &str, uid: &str) -> Self {
        Self {
            name: name.to_owned(),
            uid: uid.to_owned(),
            traffic: ArcSwap::from_pointee(Traffic {
                generation: -1,
                ..Traffic::default()
            }),
            config: Mutex::default(),
            revisions: Mutex::default(),
            bound: ArcSwap::default(),
            removed: AtomicBool::new(false),
            stranded: Queue::default(),
            waiting: AtomicUsize::new(0),
            next_ticket: AtomicU64::new(0),
            // Gateways that start together must not all begin the cycle at the same place.
            turn: AtomicUsize::new(usize::from(rand::random::<u16>())),
            sessions: ArcSwapOption::empty(),
            counts: Counts::default(),
        }
    }

    /// The pool's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn uid(&self) -> &str {
        &self.uid
    }

    /// What is in force for new requests.
    pub fn traffic(&self) -> Arc<Traffic> {
        self.traffic.load_full()
    }

    /// Its conversations, if it keeps any.
    pub fn sessions(&self) -> Option<Arc<PoolSessions>> {
        self.sessions.load_full()
    }

    pub(super) fn set_sessions(&self, sessions: Option<Arc<PoolSessions>>) {
        self.sessions.store(sessions);
    }

    /// Requests that wait.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// The port that the pool wants.
    pub fn wanted_port(&self) -> Option<u16> {
        self.config.lock().as_ref().and_then(|config| config.port)
    }

    /// The port that is bound for the pool.
    pub fn bound_port(&self) -> Option<u16> {
        **self.bound.load()
    }

    pub(super) fn set_bound_port(&self, port: Option<u16>) {
        self.bound.store(Arc::new(port));
    }

    /// The pool has been deleted.
    pub fn is_removed(&self) -> bool {
        self.removed.load(Ordering::Relaxed)
    }

    /// All revisions with something to report.
    pub fn revisions(&self) -> Vec<Arc<Revision>> {
        self.revisions.lock().values().cloned().collect()
    }

    pub(super) fn apply(&self, wanted: &PoolConfig, limits: Limits) {
        let mut config = self.config.lock();
        let wanted = with_lost_status(config.as_ref(), wanted);
        if config.as_ref() == Some(&wanted) {
            return;
        }
        let mut revisions = self.revisions.lock();
        for (name, revision) in &wanted.revisions {
            let known = revisions
                .entry(name.clone())
                .or_insert_with(|| Arc::new(Revision::new(name)));
            known.apply(revision, wanted.balancing, limits);
        }
        let named = |name: &String| revisions.get(name).cloned();
        let weighted: Vec<(Arc<Revision>, u32)> = wanted
            .weights
            .iter()
            .filter_map(|(name, weight)| Some((named(name)?, *weight)))
            .collect();
        let has_weight = |name: &String| {
            wanted
                .weights
                .iter()
                .any(|(weighted, weight)| weighted == name && *weight > 0)
        };
        let is_listed = |name: &String| wanted.weights.iter().any(|(weighted, _)| weighted == name);
        let unweighted = wanted
            .revisions
            .keys()
            .filter(|name| !is_listed(name))
            .filter_map(named)
            .collect();
        let weights: Vec<u32> = weighted.iter().map(|(_, weight)| *weight).collect();
        self.traffic.store(Arc::new(Traffic {
            generation: wanted.generation,
            stopped: wanted.stopped,
            request_timeout: wanted.request_timeout,
            queue_requests: wanted.queue_requests,
            queue_wait: wanted.queue_wait,
            weights: WeightTable::new(&weights),
            weighted,
            unweighted,
        }));
        for (name, revision) in revisions.iter() {
            if !wanted.revisions.contains_key(name) {
                revision.remove();
            } else if wanted.stopped || !has_weight(name) || !revision.is_served() {
                revision.queue.dismiss();
            }
        }
        self.stranded.dismiss();
        drop(revisions);
        *config = Some(wanted);
    }

    pub(super) fn remove(&self) {
        self.removed.store(true, Ordering::SeqCst);
        self.traffic.store(Arc::default());
        for revision in self.revisions.lock().values() {
            revision.remove();
        }
        self.stranded.dismiss();
    }

    pub(super) fn trim(&self) {
        let config = self.config.lock();
        let wanted = |name: &String| {
            config
                .as_ref()
                .is_some_and(|config| config.revisions.contains_key(name))
        };
        self.revisions.lock().retain(|name, revision| {
            revision.trim();
            wanted(name) || revision.is_busy() || !revision.windows.is_empty()
        });
    }

    /// Finds a slot for `claim`, waiting for one if need be.
    ///
    /// Takes no lock unless it has to wait. Fails with what the client is to be told.
    pub async fn assign(&self, claim: &mut Claim) -> Result<Assignment, Refusal> {
        loop {
            let traffic = self.traffic.load();
            if self.is_removed() {
                return Err(gone(&self.name));
            }
            if traffic.stopped {
                self.counts.stopped.fetch_add(1, Ordering::Relaxed);
                return Err(Refusal::new(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "PoolStopped",
                    format!(
                        "the pool \"{}\" is stopped (spec.stopped: true): no agent runs",
                        self.name
                    ),
                ));
            }
            let kept = match &claim.session {
                Some(session) => match traffic.keeps(session.revision()) {
                    Some(revision) => Some(revision),
                    None => {
                        // Weights have changed since it was looked up, or this gateway is behind.
                        drop(traffic);
                        self.renew_session(claim).await;
                        continue;
                    }
                },
                None => None,
            };
            let stick = claim.stick.as_ref().or(kept);
            let choice = match stick.filter(|revision| revision.is_served()) {
                Some(revision) => Some((revision, false)),
                None if kept.is_some() => traffic
                    .choose(self.turn.fetch_add(1, Ordering::Relaxed))
                    .map(|(revision, _)| (revision, true)),
                None => traffic.choose(self.turn.fetch_add(1, Ordering::Relaxed)),
            };
            let queue = match choice {
                Some((revision, diverted)) => {
                    if let Some(permit) = claim.take(revision) {
                        if Arc::ptr_eq(&traffic, &self.traffic.load()) {
                            return Ok(self.assigned(permit, diverted, traffic.generation));
                        }
                        continue;
                    }
                    Some((revision.clone(), diverted))
                }
                None => None,
            };
            // Waiting is rare and slow: from here on the snapshot is held in full.
            let traffic = arc_swap::Guard::into_inner(traffic);
            if let Some(assignment) = self.wait(&traffic, queue, claim).await? {
                return Ok(assignment);
            }
        }
    }

    /// Looks the conversation up again; after a few times in vain the request goes by weight, and is counted.
    async fn renew_session(&self, claim: &mut Claim) {
        claim.stick = None;
        if let Some(session) = &mut claim.session
            && !session.renew().await
        {
            claim.session = None;
            self.counts.sessionless.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn assigned(&self, permit: Permit, diverted: bool, generation: i64) -> Assignment {
        if diverted {
            self.counts.diverted.fetch_add(1, Ordering::Relaxed);
        }
        Assignment { permit, generation }
    }

    /// Waits in the queue of a revision, or with the stranded. `None`: choose again.
    async fn wait(
        &self,
        traffic: &Arc<Traffic>,
        line: Option<(Arc<Revision>, bool)>,
        claim: &mut Claim,
    ) -> Result<Option<Assignment>, Refusal> {
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= traffic.queue_requests {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            self.counts.queue_full.fetch_add(1, Ordering::Relaxed);
            return Err(self.queue_full(traffic));
        }
        let ticket = *claim
            .ticket
            .get_or_insert_with(|| self.next_ticket.fetch_add(1, Ordering::Relaxed));
        let queue = line
            .as_ref()
            .map_or(&self.stranded, |(revision, _)| &revision.queue);
        let place = Place {
            pool: self,
            queue,
            ticket,
        };
        let handed = queue.enter(ticket);
        if !Arc::ptr_eq(traffic, &self.traffic.load()) {
            return Ok(None);
        }
        if let Some((revision, _)) = &line {
            revision.serve_queue();
        }
        let patience = claim.arrival + traffic.queue_wait;
        let waited = tokio::time::timeout_at(patience.min(claim.deadline), handed).await;
        drop(place);
        match waited {
            Ok(Ok(Handover::Slot(permit))) => {
                let diverted = line.is_some_and(|(_, diverted)| diverted);
                Ok(Some(self.assigned(permit, diverted, traffic.generation)))
            }
            Ok(Ok(Handover::ChooseAgain) | Err(_)) => Ok(None),
            Err(_) if claim.deadline < patience => Err(timed_out(traffic.request_timeout)),
            Err(_) => {
                self.counts.waited_too_long.fetch_add(1, Ordering::Relaxed);
                Err(self.waited_too_long(traffic, line.is_none()))
            }
        }
    }

    fn queue_full(&self, traffic: &Traffic) -> Refusal {
        let message = format!(
            "every slot of the pool \"{}\" is taken and {} requests wait already (spec.traffic.queue.maxRequests)",
            self.name, traffic.queue_requests
        );
        Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "QueueFull", message)
            .limit("spec.traffic.queue.maxRequests")
            .retry_after(1)
    }

    fn waited_too_long(&self, traffic: &Traffic, stranded: bool) -> Refusal {
        let seconds = traffic.queue_wait.as_secs();
        let (code, why) = if stranded {
            ("NoReplica", "no replica was ready")
        } else {
            ("QueueTimeout", "no slot was free")
        };
        let message = format!(
            "{why} in the pool \"{}\" within {seconds} s (spec.traffic.queue.maxWaitSeconds)",
            self.name
        );
        Refusal::new(StatusCode::SERVICE_UNAVAILABLE, code, message)
            .limit("spec.traffic.queue.maxWaitSeconds")
            .retry_after(if stranded { 5 } else { 1 })
    }
}

/// What the status has lost is kept from `before`.
fn with_lost_status(before: Option<&PoolConfig>, wanted: &PoolConfig) -> PoolConfig {
    let mut config = wanted.clone();
    let Some(before) = before else { return config };
    if config.port.is_none() {
        config.port = before.port;
    }
    if config.weights.is_empty() {
        config.weights = before.weights.clone();
        config.generation = before.generation;
        for (name, _) in &config.weights {
            let slots = before.revisions.get(name).map_or(1, |revision| revision.slots);
            let revision = config.revisions.entry(name.clone()).or_default();
            revision.slots = if revision.slots == 0 {
                slots
            } else {
                revision.slots
            };
        }
    }
    config
}

/// The answer for a pool that is not there.
pub fn gone(name: &str) -> Refusal {
    Refusal::new(
        StatusCode::NOT_FOUND,
        "NoSuchPool",
        format!("there is no pool \"{name}\" in this namespace"),
    )
}

/// The answer when the request's time is over before the response has begun.
pub fn timed_out(timeout: Duration) -> Refusal {
    let message = format!(
        "no response within {} s (spec.traffic.requestTimeoutSeconds)",
        timeout.as_secs()
    );
    Refusal::new(StatusCode::GATEWAY_TIMEOUT, "RequestTimeout", message)
        .limit("spec.traffic.requestTimeoutSeconds")
}
