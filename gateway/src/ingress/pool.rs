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
use std::hash::RandomState;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arc_swap::{ArcSwap, ArcSwapOption};
use flotilla_core::balance::Wheel;
use flotilla_core::queue::{Arrival, Limit, Ticket};
use http::HeaderMap;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::claim::{Claim, Patience};
use super::durations::Durations;
use super::queue::{Handover, Queue};
use super::revision::{Permit, Revision};
use super::room::{Room, Seat};
use super::traffic::{QueueLimits, Retries, Traffic, ageing};
use super::{clock, refusals};
use crate::config::PoolConfig;
use crate::reply::Refusal;
use crate::session::pool::PoolSessions;
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
    room: Arc<Room>,
    turn: AtomicU64,
    /// Tells tenants apart; its key is random, so that nobody can aim for another's lane.
    hasher: RandomState,
    /// Its conversations, where they are kept.
    sessions: ArcSwapOption<PoolSessions>,
    /// Since the start of this process.
    pub counts: Counts,
}

/// Counts since the start of the process.
#[derive(Default)]
pub struct Counts {
    /// 503 because the pool held too many requests here.
    pub too_many: AtomicU64,
    /// 503 because the queue was full.
    pub queue_full: AtomicU64,
    /// 503 because the queue was full and the tenant had its share of it.
    pub tenant_share: AtomicU64,
    /// 503 because another one had a better right to the place in the queue.
    pub displaced: AtomicU64,
    /// 503 on arrival because the wait would have been too long.
    pub predicted_wait: AtomicU64,
    /// 503 because the wait was too long.
    pub waited_too_long: AtomicU64,
    /// 503 because the pool is stopped.
    pub stopped: AtomicU64,
    /// Requests that went to another revision than the weights named.
    pub diverted: AtomicU64,
    /// Requests of conversations that went by weight, because their revision is not in the weights known here.
    pub sessionless: AtomicU64,
    /// Sent again over a new connection, because the replica had closed an idle one.
    pub stale_connections: AtomicU64,
    /// Further tries.
    pub retries: AtomicU64,
    /// Further tries that the budget did not allow.
    pub retries_denied: AtomicU64,
    /// From the first moment in a queue to a slot.
    pub waits: Durations,
}

impl Counts {
    /// Requests refused by the queue.
    pub fn refused(&self) -> u64 {
        let counts = [
            &self.queue_full,
            &self.tenant_share,
            &self.displaced,
            &self.predicted_wait,
            &self.waited_too_long,
        ];
        counts.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }
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
    queue: &'a Queue,
    ticket: Ticket,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.queue.leave(self.ticket, clock::now_nanos());
    }
}

impl Pool {
    pub(super) fn new(name: &str, uid: &str) -> Self {
        let room = Arc::new(Room::default());
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
            stranded: Queue::new(room.clone()),
            room,
            // Gateways that start together must not all begin the cycle at the same place.
            turn: AtomicU64::new(u64::from(rand::random::<u16>())),
            hasher: RandomState::new(),
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
        self.room.waiting()
    }

    /// Requests from their arrival to the response's end.
    pub fn held(&self) -> usize {
        self.room.held()
    }

    /// A place among the requests that the pool may hold, by the `traffic` in force.
    pub fn admit(&self, traffic: &Traffic) -> Result<Seat<'_>, Refusal> {
        // One that is gone or stopped has its own answer.
        let is_open = !traffic.stopped && !self.is_removed();
        let most = if is_open { traffic.max_requests } else { usize::MAX };
        self.room.enter(most).ok_or_else(|| {
            self.counts.too_many.fetch_add(1, Ordering::Relaxed);
            refusals::too_many(&self.name, most)
        })
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
                .or_insert_with(|| Arc::new(Revision::new(name, self.room.clone())));
            known.apply(revision, &wanted, limits);
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
        let mut retries = Retries::new(&wanted.retries);
        if config
            .as_ref()
            .is_some_and(|config| config.retries.budget == wanted.retries.budget)
        {
            retries.budget = self.traffic.load().retries.budget.clone();
        }
        let now = clock::now_nanos();
        self.stranded.set_ageing(ageing(wanted.queue_wait));
        self.traffic.store(Arc::new(Traffic {
            generation: wanted.generation,
            stopped: wanted.stopped,
            request_timeout: wanted.request_timeout,
            max_requests: wanted.max_requests,
            retries,
            queue: QueueLimits::from(&wanted),
            wheel: Wheel::new(weighted.iter().map(|(_, weight)| *weight)),
            weighted,
            unweighted,
        }));
        for (name, revision) in revisions.iter() {
            if !wanted.revisions.contains_key(name) {
                revision.remove();
            } else if wanted.stopped || !has_weight(name) || !revision.is_served() {
                revision.queue.dismiss(now);
            }
        }
        self.stranded.dismiss(now);
        drop(revisions);
        *config = Some(wanted);
    }

    pub(super) fn remove(&self) {
        self.removed.store(true, Ordering::SeqCst);
        self.traffic.store(Arc::default());
        for revision in self.revisions.lock().values() {
            revision.remove();
        }
        self.stranded.dismiss(clock::now_nanos());
    }

    /// What has to be done now and then, every few seconds.
    pub(super) fn keep_house(&self) {
        let config = self.config.lock();
        let wanted = |name: &String| {
            config
                .as_ref()
                .is_some_and(|config| config.revisions.contains_key(name))
        };
        self.revisions.lock().retain(|name, revision| {
            revision.keep_house();
            wanted(name) || revision.is_busy() || !revision.windows.is_empty()
        });
    }

    /// Finds a slot for `claim`, a request with these `headers`, waiting for one if need be.
    ///
    /// Takes no lock unless it has to wait, and only then looks at the headers. Fails with what the client is to be told.
    pub async fn assign(&self, claim: &mut Claim, headers: &HeaderMap) -> Result<Assignment, Refusal> {
        loop {
            let traffic = self.traffic.load();
            if self.is_removed() {
                return Err(refusals::gone(&self.name));
            }
            if traffic.stopped {
                self.counts.stopped.fetch_add(1, Ordering::Relaxed);
                return Err(refusals::stopped(&self.name));
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
            let line = match choice {
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
            if let Some(assignment) = self.wait(&traffic, line, claim, headers).await? {
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
        headers: &HeaderMap,
    ) -> Result<Option<Assignment>, Refusal> {
        let queue = line
            .as_ref()
            .map_or(&self.stranded, |(revision, _)| &revision.queue);
        let now = Instant::now();
        let began = *claim.queued.get_or_insert(now);
        let Patience { until, limit } = claim.patience(&traffic.queue, headers);
        let arrival = Arrival {
            tenant: traffic.queue.tenant(headers, &self.hasher),
            class: traffic.queue.class(headers),
            cost: 1,
            arrived_nanoseconds: clock::nanos(claim.arrival),
            deadline_nanoseconds: clock::nanos(until),
        };
        let entered = queue.enter(&arrival, traffic.queue.requests, clock::nanos(now));
        let (ticket, handed) = entered.map_err(|refused| {
            let count = match refused.limit {
                Limit::QueueFull => &self.counts.queue_full,
                Limit::TenantShare => &self.counts.tenant_share,
                Limit::PredictedWait => &self.counts.predicted_wait,
            };
            count.fetch_add(1, Ordering::Relaxed);
            let patience = until.saturating_duration_since(now);
            refusals::may_not_wait(&self.name, traffic, &refused, patience, limit)
        })?;
        let place = Place { queue, ticket };
        if !Arc::ptr_eq(traffic, &self.traffic.load()) {
            return Ok(None);
        }
        if let Some((revision, _)) = &line {
            revision.serve_queue();
        }
        let waited = tokio::time::timeout_at(until, handed).await;
        drop(place);
        match waited {
            Ok(Ok(Handover::Slot(permit))) => {
                self.counts.waits.record(began.elapsed());
                let diverted = line.is_some_and(|(_, diverted)| diverted);
                Ok(Some(self.assigned(permit, diverted, traffic.generation)))
            }
            Ok(Ok(Handover::ChooseAgain) | Err(_)) => Ok(None),
            Ok(Ok(Handover::Displaced)) => {
                self.counts.displaced.fetch_add(1, Ordering::Relaxed);
                Err(refusals::displaced(&self.name, traffic))
            }
            Ok(Ok(Handover::Expired)) | Err(_) if limit == refusals::REQUEST_TIMEOUT => {
                Err(refusals::timed_out(traffic.request_timeout))
            }
            Ok(Ok(Handover::Expired)) | Err(_) => {
                self.counts.waited_too_long.fetch_add(1, Ordering::Relaxed);
                let patience = until.saturating_duration_since(claim.arrival);
                let stranded = line.is_none();
                Err(refusals::waited_too_long(&self.name, patience, limit, stranded))
            }
        }
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
