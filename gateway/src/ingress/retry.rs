//! What becomes of a request after a try that gave no usable response.
//!
//! Whether it may be repeated is [`flotilla_core::balance::retry`]; here failures of sockets get their names there, and what
//! they say about the replica's health.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

pub(super) use flotilla_core::balance::Failure;
use flotilla_core::balance::{Attempt, Outcome, is_stale, may_retry};
use http::header::{self, HeaderMap};
use http::{Method, StatusCode};
use tokio::time::Instant;
use tracing::debug;

use super::claim::Claim;
use super::clock;
use super::pool::Pool;
use super::traffic::Retries;
use crate::upstream::FailureKind;

/// Pause before an endpoint is tried that has just failed; doubled each time.
const FIRST_PAUSE: Duration = Duration::from_millis(50);

/// What is to be done with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Over a new connection, as if nothing had happened.
    Resend,
    /// Another try, elsewhere if possible.
    Retry,
    /// The client is to be told.
    GiveUp,
}

/// The tries of one request.
pub(super) struct Tries<'a> {
    retries: &'a Retries,
    idempotent: bool,
    /// Sent and counted so far.
    count: u32,
    pause: Duration,
}

impl<'a> Tries<'a> {
    /// Of a request that arrived at `arrival`.
    pub(super) fn new(retries: &'a Retries, method: &Method, arrival: Instant) -> Self {
        retries.budget.deposit(clock::nanos(arrival));
        Self {
            retries,
            idempotent: method.is_idempotent(),
            count: 0,
            pause: FIRST_PAUSE,
        }
    }

    /// For the response's head of one try.
    pub(super) fn timeout(&self) -> Option<Duration> {
        self.retries.try_timeout
    }

    /// Whether a response with status 503 may be withheld from the client for another try.
    pub(super) fn retries_unavailable(&self) -> bool {
        self.retries.policy.unavailable
    }

    /// The next try is sent.
    pub(super) fn sent(&mut self) {
        self.count += 1;
    }

    /// What to do after `failure`. `replayable`: the request can be sent once more.
    pub(super) fn after(&mut self, failure: Failure, replayable: bool, pool: &Pool, claim: &Claim) -> Next {
        if replayable && is_stale(failure, self.idempotent) {
            pool.counts.stale_connections.fetch_add(1, Relaxed);
            self.count = self.count.saturating_sub(1);
            return Next::Resend;
        }
        let now = clock::now_nanos();
        let attempt = Attempt {
            tries: self.count,
            replayable,
            idempotent: self.idempotent,
            next_start_nanos: now,
            deadline_nanos: clock::nanos(claim.deadline),
        };
        if let Err(reason) = may_retry(&attempt, failure, &self.retries.policy) {
            debug!(pool = pool.name(), ?failure, ?reason, "no further try");
            return Next::GiveUp;
        }
        if !self.retries.budget.withdraw(now) {
            pool.counts.retries_denied.fetch_add(1, Relaxed);
            return Next::GiveUp;
        }
        pool.counts.retries.fetch_add(1, Relaxed);
        Next::Retry
    }

    /// How long to wait before an endpoint is tried that has just failed.
    pub(super) fn next_pause(&mut self) -> Duration {
        let pause = self.pause;
        self.pause *= 2;
        pause
    }
}

/// The name of a failure without a response.
pub(super) fn failure(kind: &FailureKind) -> Failure {
    match kind {
        FailureKind::NotSent(_) => Failure::NotSent,
        FailureKind::Closed { unread: true, reused } => Failure::NotRead { reused: *reused },
        FailureKind::Closed {
            unread: false,
            reused,
        } => Failure::Closed { reused: *reused },
        FailureKind::Broken(_) => Failure::Broken,
    }
}

/// What a failed try says about the replica.
pub(super) fn outcome(failure: Failure, next: Next) -> Outcome {
    match failure {
        // It may close idle connections when it likes.
        _ if next == Next::Resend => Outcome::Cancelled,
        Failure::NotSent => Outcome::ConnectFailed,
        Failure::NotRead { .. } | Failure::Closed { .. } | Failure::Broken => Outcome::Reset,
        Failure::TryTimedOut => Outcome::TimedOut,
        Failure::Unavailable => Outcome::Answered(StatusCode::SERVICE_UNAVAILABLE.as_u16()),
    }
}

/// What the end of the request's own time says about a replica that has had it for `held`: nothing, if it had spent most
/// of its time elsewhere.
pub(super) fn outcome_of_timeout(claim: &Claim, held: Duration) -> Outcome {
    if held * 2 >= claim.deadline.saturating_duration_since(claim.arrival) {
        Outcome::TimedOut
    } else {
        Outcome::Cancelled
    }
}

/// The seconds of a `Retry-After`; a date says nothing that a breaker could use.
pub(super) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(header::RETRY_AFTER)?.to_str().ok()?;
    value.trim().parse().ok().map(Duration::from_secs)
}
