//! A request that a revision works on, and its response on the way to the client: counted once, however it ends.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use flotilla_core::balance::Outcome as Verdict;
use http::StatusCode;
use tokio::time::Instant;

use super::revision::{Permit, Revision};
use super::windows::{Outcome, Window};
use crate::reply::{End, Observer};
use crate::upstream::connection::Connection;

/// A request that a revision has been given: counted once, when it ends or is dropped.
pub(super) struct Tally {
    pub(super) revision: Arc<Revision>,
    /// None for a tester's: it counts for nobody.
    window: Option<Arc<Window>>,
    arrival: Instant,
    ended: bool,
}

impl Tally {
    pub(super) fn start(revision: &Arc<Revision>, window: Option<Arc<Window>>, arrival: Instant) -> Self {
        Self {
            revision: revision.clone(),
            window,
            arrival,
            ended: false,
        }
    }

    pub(super) fn end(&mut self, status: Option<StatusCode>, end: End) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        let took = self.arrival.elapsed();
        let totals = &self.revision.totals;
        let outcome = match (end, status) {
            (End::Cancelled, _) => {
                totals.cancelled.fetch_add(1, Ordering::Relaxed);
                Outcome::Cancelled
            }
            (End::Complete, Some(status)) => {
                if let Some(class) = totals.status.get(usize::from(status.as_u16() / 100)) {
                    class.fetch_add(1, Ordering::Relaxed);
                }
                if status.is_server_error() {
                    Outcome::Failed
                } else {
                    Outcome::Succeeded
                }
            }
            (End::TimedOut, _) => {
                totals.timed_out.fetch_add(1, Ordering::Relaxed);
                Outcome::Failed
            }
            (End::Cut | End::Complete, _) => {
                totals.broken.fetch_add(1, Ordering::Relaxed);
                Outcome::Failed
            }
        };
        if outcome != Outcome::Cancelled {
            totals.duration.record(took);
        }
        if let Some(window) = &self.window {
            window.ended(outcome, took);
        }
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        self.end(None, End::Cancelled);
    }
}

/// A response on its way from a replica: holds the slot until its end, and gives the connection back.
pub struct Exchange {
    pub(super) permit: Permit,
    pub(super) tally: Tally,
    connection: Option<Connection>,
    status: Option<StatusCode>,
    retry_after: Option<Duration>,
    first_byte_seen: bool,
}

impl Exchange {
    pub(super) fn new(permit: Permit, tally: Tally) -> Self {
        Self {
            permit,
            tally,
            connection: None,
            status: None,
            retry_after: None,
            first_byte_seen: false,
        }
    }

    pub(super) fn answered(
        &mut self,
        status: StatusCode,
        retry_after: Option<Duration>,
        connection: Connection,
    ) {
        self.status = Some(status);
        self.retry_after = retry_after;
        self.connection = Some(connection);
    }

    /// The agent speaks another protocol from now on. To the statistics the request has ended; the slot stays taken.
    pub(super) fn switched(&mut self) {
        self.status = Some(StatusCode::SWITCHING_PROTOCOLS);
        self.first_byte();
        self.tally.end(self.status, End::Complete);
        self.permit.ended(self.verdict(End::Complete), None);
    }

    fn first_byte(&mut self) {
        if !std::mem::replace(&mut self.first_byte_seen, true) {
            if let Some(window) = &self.tally.window {
                window.first_byte(self.tally.arrival.elapsed());
            }
            // A quick refusal does not make a quick replica.
            if self.status.is_some_and(|status| !status.is_server_error()) {
                self.permit.answered();
            }
        }
    }

    /// What the end says about the replica. A stream that is cut by the request's time was flowing.
    fn verdict(&self, end: End) -> Verdict {
        match (end, self.status) {
            (End::Complete, Some(status)) => Verdict::Answered(status.as_u16()),
            (End::TimedOut, Some(status)) if self.first_byte_seen => Verdict::Answered(status.as_u16()),
            (End::TimedOut, _) => Verdict::TimedOut,
            (End::Cut | End::Complete, _) => Verdict::Reset,
            (End::Cancelled, _) => Verdict::Cancelled,
        }
    }
}

impl Observer for Exchange {
    fn data(&mut self, _: &Bytes) {
        self.first_byte();
    }

    fn end(&mut self, end: End) {
        let connection = self.connection.take();
        if end == End::Complete {
            self.first_byte();
            if let Some(connection) = connection {
                self.permit.endpoint.peer.keep(connection);
            }
        }
        self.tally.end(self.status, end);
        self.permit.ended(self.verdict(end), self.retry_after);
        self.permit.release();
    }
}
