//! Which requests may be tried again.
//!
//! An agent must not act twice because a gateway was helpful. A request is repeated only where it is known that nobody
//! has worked on it, or where the user has asked for more. Never after a byte of a response has gone to the client
//! (nobody asks then), never past the request's deadline, and never without its body.
//!
//! | what happened | worked on? | `connect_failure` | `unavailable` |
//! |---|---|---|---|
//! | no connection, or nothing was written | no | yes | – |
//! | closed, and the peer's kernel says that the request was not read | no | yes | – |
//! | closed on a reused connection, idempotent method | harmless (RFC 9110, 9.2.2) | yes | yes |
//! | closed without an answer otherwise | perhaps | – | yes |
//! | status 503 | perhaps | – | yes |
//! | a try's own time is over | perhaps | – | yes |
//! | an answer that cannot be understood | yes | – | – |
//!
//! [`may_retry`] says whether; [`super::RetryBudget`] then says whether the pool can afford it. A connection that the
//! peer closed while it was idle is another matter, [`is_stale`]: no replica has failed, and a client that did not keep
//! connections would not have noticed.

/// How a try has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// No connection, or it ended before the request was written.
    NotSent,
    /// The connection ended without a byte of response, and the peer's kernel had refused the data.
    NotRead {
        /// It had carried a request before: most likely the peer closed it as idle.
        reused: bool,
    },
    /// The connection ended without a byte of response.
    Closed {
        /// As above.
        reused: bool,
    },
    /// A response with status 503.
    Unavailable,
    /// The time for one try is over.
    TryTimedOut,
    /// A response that is none.
    Broken,
}

/// An idle connection was closed just when it was used again, so the request goes out over a new one: once, whatever the
/// policy, and without counting as a try or as the replica's failure.
pub fn is_stale(failure: Failure, idempotent: bool) -> bool {
    match failure {
        Failure::NotRead { reused } => reused,
        Failure::Closed { reused } => reused && idempotent,
        Failure::NotSent | Failure::Unavailable | Failure::TryTimedOut | Failure::Broken => false,
    }
}

/// Which failures are worth another try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Further tries after the first.
    pub attempts: u32,
    /// `ConnectFailure`: where nobody has worked on the request.
    pub connect_failure: bool,
    /// `Unavailable`: also where somebody may have, so that side effects may be repeated.
    pub unavailable: bool,
}

impl Default for RetryPolicy {
    /// Three more tries where nobody has worked on the request: with more replicas than that gone at once the client
    /// should know.
    fn default() -> Self {
        Self {
            attempts: 3,
            connect_failure: true,
            unavailable: false,
        }
    }
}

/// The request as it stands after a try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// Tries so far, from 1.
    pub tries: u32,
    /// The request can be sent once more: its body is in memory, or none of it has been read.
    pub replayable: bool,
    /// Its method is idempotent.
    pub idempotent: bool,
    /// When the next try would start, after any pause.
    pub next_start_nanos: u64,
    /// When the request's time is over.
    pub deadline_nanos: u64,
}

/// Why there is no further try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoRetry {
    /// Somebody may have worked on it, or the policy does not name this failure.
    NotAllowed,
    /// The request cannot be sent again.
    NotReplayable,
    /// There have been enough tries.
    NoAttemptsLeft,
    /// It would start after the deadline.
    NoTimeLeft,
}

/// Whether a request may be tried again.
///
/// # Errors
///
/// The first reason against it, in the order of [`NoRetry`].
pub fn may_retry(attempt: &Attempt, failure: Failure, policy: &RetryPolicy) -> Result<(), NoRetry> {
    let allowed = match failure {
        Failure::NotSent | Failure::NotRead { .. } => policy.connect_failure,
        Failure::Closed { reused: true } if attempt.idempotent => {
            policy.connect_failure || policy.unavailable
        }
        Failure::Closed { .. } | Failure::Unavailable | Failure::TryTimedOut => policy.unavailable,
        Failure::Broken => false,
    };
    if !allowed {
        Err(NoRetry::NotAllowed)
    } else if !attempt.replayable {
        Err(NoRetry::NotReplayable)
    } else if attempt.tries > policy.attempts {
        Err(NoRetry::NoAttemptsLeft)
    } else if attempt.next_start_nanos >= attempt.deadline_nanos {
        Err(NoRetry::NoTimeLeft)
    } else {
        Ok(())
    }
}
