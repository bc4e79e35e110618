//! One revision of a pool: its endpoints, its slots, its queue and its counts.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use super::endpoint::Endpoint;
use super::queue::Queue;
use super::windows::Windows;
use crate::balance::replica;
use crate::config::{Balancing, RevisionConfig};
use crate::upstream::Limits;

/// Upper bounds of the duration buckets on `/metrics`, in seconds.
pub const DURATION_BUCKETS: [f64; 14] = [
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0,
];

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
    serving: ArcSwap<Serving>,
    /// All endpoints with something to report, those that take no new requests among them.
    known: Mutex<Vec<Arc<Endpoint>>>,
    turn: AtomicUsize,
}

/// What takes new requests.
#[derive(Default)]
struct Serving {
    endpoints: Vec<Arc<Endpoint>>,
    slots: u32,
    balancing: Balancing,
}

/// A slot of an endpoint, until it is dropped.
pub struct Permit {
    /// The revision.
    pub revision: Arc<Revision>,
    /// The endpoint.
    pub endpoint: Arc<Endpoint>,
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
    /// By bucket of [`DURATION_BUCKETS`], not cumulated; the last is what is above them.
    pub duration: [AtomicU64; DURATION_BUCKETS.len() + 1],
    /// In microseconds.
    pub duration_sum: AtomicU64,
}

impl Totals {
    pub(super) fn took(&self, time: Duration) {
        let seconds = time.as_secs_f64();
        let bucket = DURATION_BUCKETS
            .iter()
            .position(|bound| seconds <= *bound)
            .unwrap_or(DURATION_BUCKETS.len());
        if let Some(count) = self.duration.get(bucket) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        self.duration_sum.fetch_add(
            u64::try_from(time.as_micros()).unwrap_or(u64::MAX),
            Ordering::Relaxed,
        );
    }
}

impl Revision {
    pub(super) fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            queue: Queue::default(),
            windows: Windows::default(),
            totals: Totals::default(),
            serving: ArcSwap::default(),
            known: Mutex::default(),
            turn: AtomicUsize::new(0),
        }
    }

    /// Whether there is an endpoint that takes new requests.
    pub fn is_served(&self) -> bool {
        !self.serving.load().endpoints.is_empty()
    }

    /// Whether an endpoint other than `address` takes new requests.
    pub(super) fn has_others(&self, address: SocketAddr) -> bool {
        self.serving
            .load()
            .endpoints
            .iter()
            .any(|endpoint| endpoint.address != address)
    }

    /// Addresses of the endpoints that take new requests, sorted.
    pub fn addresses(&self) -> Vec<String> {
        let mut addresses: Vec<SocketAddr> = self
            .serving
            .load()
            .endpoints
            .iter()
            .map(|endpoint| endpoint.address)
            .collect();
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

    pub(super) fn apply(self: &Arc<Self>, wanted: &RevisionConfig, balancing: Balancing, limits: Limits) {
        let mut known = self.known.lock();
        let mut serving = Vec::with_capacity(wanted.endpoints.len());
        for (address, config) in wanted.endpoints.iter().filter(|(_, config)| config.ready) {
            let same = |endpoint: &&Arc<Endpoint>| {
                endpoint.address == *address && endpoint.uid == config.uid && !endpoint.is_leaving()
            };
            let found = known.iter().find(same).cloned();
            serving.push(found.unwrap_or_else(|| {
                let endpoint = Arc::new(Endpoint::new(*address, &config.uid, limits));
                known.push(endpoint.clone());
                endpoint
            }));
        }
        let stays = |endpoint: &Arc<Endpoint>| serving.iter().any(|other| Arc::ptr_eq(other, endpoint));
        for endpoint in known.iter().filter(|endpoint| !stays(endpoint)) {
            endpoint.leave();
        }
        // Only after they leave: who takes a slot from now on sees that and gives it back.
        known.retain(|endpoint| !endpoint.is_leaving() || endpoint.in_flight() > 0);
        drop(known);
        self.serving.store(Arc::new(Serving {
            endpoints: serving,
            slots: wanted.slots.max(1),
            balancing,
        }));
        self.serve_queue();
    }

    /// Takes no new requests any more; what is in flight ends by itself.
    pub(super) fn remove(self: &Arc<Self>) {
        self.serving.store(Arc::default());
        for endpoint in self.known.lock().iter() {
            endpoint.leave();
        }
        self.queue.dismiss();
    }

    /// True while there is something to report.
    pub(super) fn is_busy(&self) -> bool {
        self.known.lock().iter().any(|endpoint| endpoint.in_flight() > 0)
    }

    pub(super) fn trim(&self) {
        let mut known = self.known.lock();
        known.retain(|endpoint| !endpoint.is_leaving() || endpoint.in_flight() > 0);
        for endpoint in known.iter() {
            endpoint.peer.trim();
        }
    }

    /// A slot of an endpoint that `avoid` does not name; of one that it does name, if these are the only free ones.
    pub(super) fn take(self: &Arc<Self>, avoid: &[SocketAddr]) -> Option<Permit> {
        let serving = self.serving.load();
        let choose = |avoid: &[SocketAddr]| {
            let endpoints = &serving.endpoints;
            let load = |index: usize| {
                endpoints
                    .get(index)
                    .map_or(u32::MAX, |endpoint| endpoint.in_flight())
            };
            let take = |index: usize| {
                endpoints.get(index).is_some_and(|endpoint| {
                    !avoid.contains(&endpoint.address) && endpoint.take(serving.slots)
                })
            };
            match serving.balancing {
                Balancing::RoundRobin => {
                    replica::round_robin(endpoints.len(), self.turn.fetch_add(1, Ordering::Relaxed), take)
                }
                Balancing::LeastLoaded => replica::least_loaded(endpoints.len(), rand::random(), load, take),
            }
        };
        let chosen = choose(avoid).or_else(|| if avoid.is_empty() { None } else { choose(&[]) })?;
        let endpoint = serving.endpoints.get(chosen)?.clone();
        Some(Permit {
            revision: self.clone(),
            endpoint,
            released: false,
        })
    }

    /// Whether `address` takes new requests.
    pub fn serves(&self, address: SocketAddr) -> bool {
        let serving = self.serving.load();
        serving
            .endpoints
            .iter()
            .any(|endpoint| endpoint.address == address)
    }

    /// A slot of the endpoint at `address`; with `beyond_slots` also when all of them are taken.
    pub(super) fn take_at(self: &Arc<Self>, address: SocketAddr, beyond_slots: bool) -> Option<Permit> {
        let serving = self.serving.load();
        let mut endpoints = serving.endpoints.iter();
        let endpoint = endpoints.find(|endpoint| endpoint.address == address)?;
        let taken = if beyond_slots {
            endpoint.take_beyond()
        } else {
            endpoint.take(serving.slots)
        };
        taken.then(|| Permit {
            revision: self.clone(),
            endpoint: endpoint.clone(),
            released: false,
        })
    }

    /// Hands free slots to those who wait, until one or the other is used up.
    pub(super) fn serve_queue(self: &Arc<Self>) {
        while !self.queue.is_empty() {
            let Some(permit) = self.take(&[]) else { return };
            if let Err(permit) = self.queue.hand_over(permit) {
                // All of them have gone. Somebody may come until the slot is free again, hence the loop.
                permit.release_quietly();
            }
        }
    }
}

impl Permit {
    /// Frees the slot for whoever waits; later calls change nothing.
    pub fn release(&mut self) {
        if !std::mem::replace(&mut self.released, true) {
            self.endpoint.give_back();
            self.revision.serve_queue();
        }
    }

    /// Frees the slot without looking at the queue.
    fn release_quietly(mut self) {
        self.released = true;
        self.endpoint.give_back();
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.release();
    }
}
