//! A request on its way to a slot.

use std::net::SocketAddr;
use std::sync::Arc;

use http::HeaderMap;
use tokio::time::Instant;

use super::revision::{Permit, Revision};
use super::traffic::QueueLimits;
use super::{clock, deadline, refusals};
use crate::session::visit::Session;

/// A request that looks for a slot.
pub struct Claim {
    /// Arrival.
    pub arrival: Instant,
    /// Its end by `requestTimeoutSeconds`.
    pub deadline: Instant,
    /// Addresses at which this request has failed.
    pub avoid: Vec<SocketAddr>,
    /// The revision it was assigned before, while that one has endpoints: a second try is no second draw.
    pub stick: Option<Arc<Revision>>,
    /// The conversation it belongs to.
    pub session: Option<Session>,
    /// Since when it has been in a queue.
    pub(super) queued: Option<Instant>,
}

/// How long a request may wait, and which limit says so.
#[derive(Clone, Copy)]
pub(super) struct Patience {
    pub(super) until: Instant,
    pub(super) limit: &'static str,
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
            queued: None,
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
    pub(super) fn take(&self, revision: &Arc<Revision>) -> Option<Permit> {
        let now = clock::now_nanos();
        let replica = self.session.as_ref().and_then(Session::replica);
        let replica = replica.filter(|(address, _)| !self.avoid.contains(address));
        if let Some((address, beyond_slots)) = replica
            && (beyond_slots || revision.queue.is_empty())
            && let Some(permit) = revision.take_at(address, beyond_slots, now)
        {
            return Some(permit);
        }
        revision
            .queue
            .is_empty()
            .then(|| revision.take(&self.avoid, self.hash(), now))
            .flatten()
    }

    /// The earliest of the pool's limits and what the client says.
    pub(super) fn patience(&self, limits: &QueueLimits, headers: &HeaderMap) -> Patience {
        let own = [
            (self.arrival + limits.wait, refusals::QUEUE_WAIT),
            (self.deadline, refusals::REQUEST_TIMEOUT),
        ];
        let clients = deadline::patience(headers).map(|(wait, header)| (self.arrival + wait, header));
        let earliest = own.into_iter().chain(clients).min_by_key(|(until, _)| *until);
        // Both of the pool's limits are always there.
        let (until, limit) = earliest.unwrap_or((self.deadline, refusals::REQUEST_TIMEOUT));
        Patience { until, limit }
    }
}
