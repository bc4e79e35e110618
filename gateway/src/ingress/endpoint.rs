//! One agent pod as this gateway sees it: its slots in use, its connections, and what its answers say about it.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use flotilla_core::balance::{Health, PeakEwma, hash_bytes};
use tokio::time::Instant;

use super::clock;
use crate::upstream::{Limits, Peer, Target};

/// One agent pod.
pub struct Endpoint {
    /// Where it listens.
    pub address: SocketAddr,
    /// UID of the pod: a new pod at the same address is another endpoint.
    pub uid: String,
    /// Connections to it.
    pub peer: Peer,
    /// Whether requests should go elsewhere.
    pub health: Health,
    /// Time from a request's sending to the first byte of the response's body; measured for balancing by latency only.
    pub latency: PeakEwma,
    /// Names it to every gateway alike.
    pub hash_id: u64,
    ready_nanos: u64,
    in_flight: AtomicU32,
    leaving: AtomicBool,
}

impl Endpoint {
    pub(super) fn new(address: SocketAddr, uid: &str, limits: Limits) -> Self {
        let hash_id = if uid.is_empty() {
            hash_bytes(address.to_string().as_bytes())
        } else {
            hash_bytes(uid.as_bytes())
        };
        Self {
            address,
            uid: uid.to_owned(),
            peer: Peer::new(Target::Address(address), limits),
            health: Health::default(),
            latency: PeakEwma::default(),
            hash_id,
            ready_nanos: clock::nanos(Instant::now()),
            in_flight: AtomicU32::new(0),
            leaving: AtomicBool::new(false),
        }
    }

    /// Requests in flight.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::SeqCst)
    }

    /// How long it has been ready, as far as this gateway knows.
    pub(super) fn age_nanos(&self, now_nanos: u64) -> u64 {
        now_nanos.saturating_sub(self.ready_nanos)
    }

    /// Takes one of `slots`, unless all are taken or the endpoint leaves.
    pub(super) fn take(&self, slots: u32) -> bool {
        let more = |taken: u32| (taken < slots).then_some(taken + 1);
        if self
            .in_flight
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, more)
            .is_err()
        {
            return false;
        }
        if self.is_leaving() {
            self.give_back();
            return false;
        }
        true
    }

    pub(super) fn give_back(&self) {
        self.in_flight.fetch_sub(1, Ordering::SeqCst);
    }

    /// No new requests: idle connections go at once.
    pub(super) fn leave(&self) {
        if !self.leaving.swap(true, Ordering::SeqCst) {
            self.peer.close();
        }
    }

    /// Takes no new requests any more.
    pub fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::SeqCst)
    }
}
