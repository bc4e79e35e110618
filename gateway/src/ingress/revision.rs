//! One revision of a pool: its endpoints, its slots, its queue and its counts.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use flotilla_core::balance::{Change, Outcome, Ticket};
use parking_lot::Mutex;
use tracing::{info, warn};

use super::clock;
use super::durations::Durations;
use super::endpoint::Endpoint;
use super::queue::Queue;
use super::replicas::{Breakers, Replica, Replicas};
use super::room::{Room, Seat};
use super::traffic::ageing;
use super::windows::Windows;
use crate::config::{PoolConfig, RevisionConfig};
use crate::upstream::Limits;

/// Success rates are compared this often, in nanoseconds.
const SWEEP_NANOS: u64 = 10_000_000_000;

/// One revision.
pub struct Revision {
    /// `<pool>-<hash>`.
    pub name: String,
    /// Requests that wait for one of its slots.
    pub queue: Queue,
    /// Counts by start window, for the operator.
    pub windows: Windows,
    /// Counts since the start, for Prometheus.
    pub totals: Totals,
    room: Arc<Room>,
    serving: ArcSwap<Replicas>,
    /// All endpoints with something to report, those that take no new requests among them.
    known: Mutex<Vec<Arc<Endpoint>>>,
    swept_nanos: AtomicU64,
}

/// A slot of an endpoint, until it is dropped.
pub struct Permit {
    /// The revision.
    pub revision: Arc<Revision>,
    /// The endpoint.
    pub endpoint: Arc<Endpoint>,
    /// What the request took with it from the endpoint's breaker, until it has ended.
    ticket: Option<Ticket>,
    taken_nanos: u64,
    /// The latency of the answer is wanted, and not known yet.
    is_measured: bool,
    /// Its request's place in the room is given up with the slot.
    is_seated: bool,
    released: bool,
}

/// Counts since the start of the process.
#[derive(Default)]
pub struct Totals {
    /// By class of status: index 1 is 1xx.
    pub status: [AtomicU64; 6],
    /// Without a whole response: cut by the agent, or never answered.
    pub broken: AtomicU64,
    /// Of these, over time.
    pub timed_out: AtomicU64,
    /// Given up by the client.
    pub cancelled: AtomicU64,
    /// From arrival to the last byte.
    pub duration: Durations,
    /// Replicas ejected, by reason.
    pub ejections: Ejections,
}

/// Changes of replicas' breakers since the start of the process.
#[derive(Default)]
pub struct Ejections {
    /// It could not be connected to.
    pub unreachable: AtomicU64,
    /// Failures in a row.
    pub failures: AtomicU64,
    /// It failed more often than the others.
    pub outlier: AtomicU64,
    /// It failed on probation.
    pub probe: AtomicU64,
    /// Back in service.
    pub readmitted: AtomicU64,
}

impl Revision {
    pub(super) fn new(name: &str, room: Arc<Room>) -> Self {
        Self {
            name: name.to_owned(),
            queue: Queue::new(room.clone()),
            windows: Windows::default(),
            totals: Totals::default(),
            room,
            serving: ArcSwap::default(),
            known: Mutex::default(),
            swept_nanos: AtomicU64::new(clock::now_nanos()),
        }
    }

    /// Whether there is an endpoint that takes new requests.
    pub fn is_served(&self) -> bool {
        self.serving.load().endpoints().next().is_some()
    }

    /// Whether an endpoint other than `address` takes new requests.
    pub(super) fn has_others(&self, address: SocketAddr) -> bool {
        let serving = self.serving.load();
        serving.endpoints().any(|endpoint| endpoint.address != address)
    }

    /// Addresses of the endpoints that take new requests, sorted.
    pub fn addresses(&self) -> Vec<String> {
        let serving = self.serving.load();
        let mut addresses: Vec<SocketAddr> = serving.endpoints().map(|endpoint| endpoint.address).collect();
        addresses.sort_unstable();
        addresses.iter().map(|address| address.ip().to_string()).collect()
    }

    /// Requests in flight by address, also at endpoints that leave.
    pub fn in_flight(&self) -> BTreeMap<String, u64> {
        let mut by_address = BTreeMap::new();
        for endpoint in self.known.lock().iter() {
            let in_flight = endpoint.in_flight();
            if in_flight > 0 {
                *by_address.entry(endpoint.address.ip().to_string()).or_insert(0) += u64::from(in_flight);
            }
        }
        by_address
    }

    /// The endpoints that take new requests, by the state of their breakers.
    pub fn breakers(&self) -> Breakers {
        self.serving.load().breakers(clock::now_nanos())
    }

    pub(super) fn apply(self: &Arc<Self>, wanted: &RevisionConfig, pool: &PoolConfig, limits: Limits) {
        let mut known = self.known.lock();
        let mut serving: Vec<Replica> = Vec::with_capacity(wanted.endpoints.len());
        for (address, config) in wanted.endpoints.iter().filter(|(_, config)| config.ready) {
            let same = |endpoint: &&Arc<Endpoint>| {
                endpoint.address == *address && endpoint.uid == config.uid && !endpoint.is_leaving()
            };
            let found = known.iter().find(same).cloned();
            let endpoint = found.unwrap_or_else(|| {
                let endpoint = Arc::new(Endpoint::new(*address, &config.uid, limits));
                known.push(endpoint.clone());
                endpoint
            });
            let slots = config.slots.unwrap_or(wanted.slots).max(1);
            serving.push(Replica { endpoint, slots });
        }
        let stays =
            |endpoint: &Arc<Endpoint>| serving.iter().any(|other| Arc::ptr_eq(&other.endpoint, endpoint));
        for endpoint in known.iter().filter(|endpoint| !stays(endpoint)) {
            endpoint.leave();
        }
        // Only after they leave: who takes a slot from now on sees that and gives it back.
        known.retain(|endpoint| !endpoint.is_leaving() || endpoint.in_flight() > 0);
        drop(known);
        let replicas = Replicas::new(serving, pool.balancing.into(), pool.ejection);
        self.serving.store(Arc::new(replicas));
        self.queue.set_ageing(ageing(pool.queue_wait));
        self.serve_queue();
    }

    /// Takes no new requests any more; what is in flight ends by itself.
    pub(super) fn remove(self: &Arc<Self>) {
        self.serving.store(Arc::default());
        for endpoint in self.known.lock().iter() {
            endpoint.leave();
        }
        self.queue.dismiss(clock::now_nanos());
    }

    /// True while there is something to report.
    pub(super) fn is_busy(&self) -> bool {
        self.known.lock().iter().any(|endpoint| endpoint.in_flight() > 0)
    }

    /// What has to be done now and then, every few seconds.
    pub(super) fn keep_house(self: &Arc<Self>) {
        let mut known = self.known.lock();
        known.retain(|endpoint| !endpoint.is_leaving() || endpoint.in_flight() > 0);
        for endpoint in known.iter() {
            endpoint.peer.trim();
        }
        drop(known);
        let now = clock::now_nanos();
        if now.saturating_sub(self.swept_nanos.load(Ordering::Relaxed)) >= SWEEP_NANOS {
            self.swept_nanos.store(now, Ordering::Relaxed);
            for (endpoint, change) in self.serving.load().sweep(now) {
                self.changed(endpoint, change);
            }
        }
        // Nobody tells when an ejected replica may be tried again.
        self.serve_queue();
    }

    /// A slot of an endpoint that `avoid` does not name, as long as there is any other that is not ejected.
    pub(super) fn take(
        self: &Arc<Self>,
        avoid: &[SocketAddr],
        key: Option<u64>,
        now_nanos: u64,
    ) -> Option<Permit> {
        let serving = self.serving.load();
        let (endpoint, ticket) = serving.claim(avoid, key, now_nanos)?;
        Some(self.permit(&serving, endpoint, ticket, now_nanos))
    }

    fn permit(
        self: &Arc<Self>,
        serving: &Replicas,
        endpoint: Arc<Endpoint>,
        ticket: Ticket,
        now_nanos: u64,
    ) -> Permit {
        Permit {
            revision: self.clone(),
            endpoint,
            ticket: Some(ticket),
            taken_nanos: now_nanos,
            is_measured: serving.measures_latency(),
            is_seated: false,
            released: false,
        }
    }

    /// Whether `address` takes new requests.
    pub fn serves(&self, address: SocketAddr) -> bool {
        let serving = self.serving.load();
        serving.endpoints().any(|endpoint| endpoint.address == address)
    }

    /// A slot of the endpoint at `address` unless it is ejected; with `beyond_slots` in any case.
    pub(super) fn take_at(
        self: &Arc<Self>,
        address: SocketAddr,
        beyond_slots: bool,
        now_nanos: u64,
    ) -> Option<Permit> {
        let serving = self.serving.load();
        let (endpoint, ticket) = serving.claim_at(address, beyond_slots, now_nanos)?;
        Some(self.permit(&serving, endpoint, ticket, now_nanos))
    }

    /// Hands free slots to those who wait, until one or the other is used up.
    pub(super) fn serve_queue(self: &Arc<Self>) {
        while !self.queue.is_empty() {
            let now = clock::now_nanos();
            let Some(permit) = self.take(&[], None, now) else {
                return;
            };
            if let Err(permit) = self.queue.hand_over(permit, now) {
                // All of them have gone. Somebody may come until the slot is free again, hence the loop.
                permit.release_quietly();
            }
        }
    }

    fn changed(&self, endpoint: &Endpoint, change: Change) {
        let ejections = &self.totals.ejections;
        let (count, why) = match change {
            Change::Unreachable(_) => (&ejections.unreachable, "it could not be connected to"),
            Change::FailedInARow(..) => (&ejections.failures, "it failed several times in a row"),
            Change::WorseThanOthers(_) => (&ejections.outlier, "it fails more often than the others"),
            Change::ProbeFailed(_) => (&ejections.probe, "it failed on probation"),
            Change::Readmitted => (&ejections.readmitted, "it answered its probes"),
        };
        count.fetch_add(1, Ordering::Relaxed);
        let (revision, address) = (&self.name, endpoint.address);
        if change == Change::Readmitted {
            info!(%revision, %address, why, "a replica is back in service");
        } else {
            warn!(%revision, %address, why, "a replica is ejected for a while");
        }
    }
}

impl Permit {
    /// The request has ended at the endpoint; only the first call says anything. `retry_after` is what its response asked
    /// for.
    pub fn ended(&mut self, outcome: Outcome, retry_after: Option<Duration>) {
        let Some(ticket) = self.ticket.take() else { return };
        let now = clock::now_nanos();
        let serving = self.revision.serving.load();
        if std::mem::take(&mut self.is_measured) && matches!(outcome, Outcome::Cancelled | Outcome::TimedOut)
        {
            serving.unanswered_after(&self.endpoint, now.saturating_sub(self.taken_nanos), now);
        }
        if let Some(change) = serving.ended(&self.endpoint, ticket, outcome, retry_after, now) {
            self.revision.changed(&self.endpoint, change);
        }
    }

    /// The first byte of a good response has come: its latency counts for balancing.
    pub fn answered(&mut self) {
        if std::mem::take(&mut self.is_measured) {
            let now = clock::now_nanos();
            let serving = self.revision.serving.load();
            serving.answered_after(&self.endpoint, now.saturating_sub(self.taken_nanos), now);
        }
    }

    /// How long the slot has been taken.
    pub(super) fn held(&self) -> Duration {
        Duration::from_nanos(clock::now_nanos().saturating_sub(self.taken_nanos))
    }

    /// From now on the request's place in the room is given up with the slot.
    pub(super) fn sit(&mut self, seat: Seat<'_>) {
        seat.keep();
        self.is_seated = true;
    }

    /// Frees the slot for whoever waits; later calls change nothing.
    pub fn release(&mut self) {
        if !std::mem::replace(&mut self.released, true) {
            self.ended(Outcome::Cancelled, None);
            self.endpoint.give_back();
            if self.is_seated {
                self.revision.room.leave();
            }
            self.revision.serve_queue();
        }
    }

    /// Frees the slot without looking at the queue. Nothing was sent, so the time says nothing.
    fn release_quietly(mut self) {
        self.is_measured = false;
        self.ended(Outcome::Cancelled, None);
        self.released = true;
        self.endpoint.give_back();
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.release();
    }
}
