//! One agent pod as this gateway sees it: its slots in use and its connections.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use crate::upstream::{Limits, Peer, Target};

/// One agent pod.
pub struct Endpoint {
    /// Where it listens.
    pub address: SocketAddr,
    /// UID of the pod: a new pod at the same address is another endpoint.
    pub uid: String,
    /// Connections to it.
    pub peer: Peer,
    in_flight: AtomicU32,
    leaving: AtomicBool,
}

impl Endpoint {
    pub(super) fn new(address: SocketAddr, uid: &str, limits: Limits) -> Self {
        Self {
            address,
            uid: uid.to_owned(),
            peer: Peer::new(Target::Address(address), limits),
            in_flight: AtomicU32::new(0),
            leaving: AtomicBool::new(false),
        }
    }

    /// Requests in flight.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::SeqCst)
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

    /// Takes one beyond its slots, unless the endpoint leaves.
    pub(super) fn take_beyond(&self) -> bool {
        self.take(u32::MAX)
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
