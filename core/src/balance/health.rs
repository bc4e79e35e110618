//! What a replica's answers say about it, and the decision to eject it.
//!
//! Signals are passive: the answers to real requests. There are three ways out. A *failed connection* shows at once that
//! nobody is there; waiting for more of them would make of a dead replica the least loaded one, which draws all requests
//! to it. *Consecutive failures* find the replica that hangs or breaks off, within a few requests. *Success rate*, looked at
//! every few seconds, finds the one that fails one request in three, which never fails five times in a row
//! ([`super::outlier`]).
//!
//! At most `max_ejected_percent` of the replicas are out at once, probation included, and by default one always stays:
//! when everybody fails, sending all requests to the few that are left makes it worse. One that cannot be connected to
//! is ejected whatever their number, since it takes no load from the others anyway. Counting the ejected and ejecting
//! one more is made atomic by a flag that is only tried: a thread that finds it taken leaves the decision to the next
//! failure.

#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use super::breaker::{Breaker, BreakerPolicy, Failed, Opened, State, Succeeded, Ticket};
use super::outlier::{SuccessRatePolicy, Tally, outliers};

/// How a request to a replica ended, as far as the gateway knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// With a response of this status.
    Answered(u16),
    /// No connection.
    ConnectFailed,
    /// The connection ended before the response did, or what came was no response.
    Reset,
    /// Not in time.
    TimedOut,
    /// The client gave up: nobody knows.
    Cancelled,
}

impl Outcome {
    /// Whether it is the replica's failure; none if it says nothing. A status of 500 is an answer: an agent's 500 often
    /// belongs to the request, and would follow it from replica to replica.
    pub fn is_failure(self) -> Option<bool> {
        match self {
            Self::Answered(status) => Some(matches!(status, 502..=504)),
            Self::ConnectFailed | Self::Reset | Self::TimedOut => Some(true),
            Self::Cancelled => None,
        }
    }
}

/// When a replica is ejected, and for how long.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EjectionPolicy {
    /// Failures in a row, of which one failed connection is enough; 0 ejects nobody for either.
    pub consecutive_failures: u8,
    /// Compared with the others; none ejects nobody for it.
    pub success_rate: Option<SuccessRatePolicy>,
    /// The largest share of replicas that may be out at once, not counting failed connections. Of two or more, one
    /// always may; below 100, one always stays.
    pub max_ejected_percent: u32,
    /// How an ejected replica comes back.
    pub breaker: BreakerPolicy,
}

impl Default for EjectionPolicy {
    /// Five failures in a row, one failed connection, or the default success rate; at most 30 %.
    fn default() -> Self {
        Self {
            consecutive_failures: 5,
            success_rate: Some(SuccessRatePolicy::default()),
            max_ejected_percent: 30,
            breaker: BreakerPolicy::default(),
        }
    }
}

impl EjectionPolicy {
    /// Ejects nobody.
    pub fn off() -> Self {
        Self {
            consecutive_failures: 0,
            success_rate: None,
            ..Self::default()
        }
    }

    /// How many of `replicas` may be out at once.
    pub fn max_ejected(&self, replicas: usize) -> usize {
        if self.max_ejected_percent >= 100 {
            return replicas;
        }
        let share = replicas * self.max_ejected_percent as usize / 100;
        share.max(1).min(replicas.saturating_sub(1))
    }
}

/// The health of one replica.
#[derive(Debug, Default)]
pub struct Health {
    breaker: Breaker,
    /// Answers since the last look, older ones halved at each: good ones in the lower half, failures in the upper.
    tally: AtomicU64,
}

/// Where a half of the tally must not be counted up further.
const TALLY_FULL: u64 = 1 << 31;

impl Health {
    /// Whether requests should go elsewhere now. One load.
    pub fn is_ejected(&self, now_nanos: u64, policy: &EjectionPolicy) -> bool {
        !self.breaker.admits(now_nanos, &policy.breaker)
    }

    /// The breaker's state, to be shown.
    pub fn state(&self, now_nanos: u64) -> State {
        self.breaker.state(now_nanos)
    }

    /// A request has taken a slot here. None: choose again, the place for a probe is gone. `is_ejected` as the picker
    /// said: then it may go in any case.
    pub fn begin(&self, is_ejected: bool, now_nanos: u64, policy: &EjectionPolicy) -> Option<Ticket> {
        if is_ejected {
            Some(self.breaker.begin_anyway(now_nanos, &policy.breaker))
        } else {
            self.breaker.begin(now_nanos, &policy.breaker)
        }
    }

    fn count(&self, failed: bool) {
        let seen = self.tally.load(Ordering::Relaxed);
        if (seen & u64::from(u32::MAX)) < TALLY_FULL && seen >> 32 < TALLY_FULL {
            self.tally
                .fetch_add(if failed { 1 << 32 } else { 1 }, Ordering::Relaxed);
        }
    }

    fn tally(&self) -> Tally {
        let seen = self.tally.load(Ordering::Relaxed);
        Tally {
            answered: seen & u64::from(u32::MAX),
            failed: seen >> 32,
        }
    }

    /// Takes `by` off; only the holder of the ejector's flag does that, so it is still there.
    fn forget(&self, by: Tally) {
        self.tally
            .fetch_sub(by.failed << 32 | by.answered, Ordering::Relaxed);
    }
}

/// How many replicas there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// Those that take requests, ejected or not.
    pub replicas: usize,
    /// Those that are ejected or on probation.
    pub ejected: usize,
}

impl Census {
    /// Counts the replicas of a pool.
    pub fn of<'a>(pool: impl IntoIterator<Item = &'a Health>) -> Self {
        pool.into_iter().fold(Self::default(), |census, health| Self {
            replicas: census.replicas + 1,
            ejected: census.ejected + usize::from(health.breaker.is_out()),
        })
    }
}

/// A change of a replica's health, for logs and metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Ejected because it could not be connected to.
    Unreachable(Opened),
    /// Ejected after this many failures in a row.
    FailedInARow(u8, Opened),
    /// Ejected because it fails more than the others.
    WorseThanOthers(Opened),
    /// It failed on probation.
    ProbeFailed(Opened),
    /// It is back after its probation.
    Readmitted,
}

/// Decides over the replicas of one revision.
#[derive(Debug, Default)]
pub struct Ejector {
    policy: EjectionPolicy,
    deciding: AtomicBool,
}

/// The right to decide, until it is dropped.
struct Deciding<'a>(&'a AtomicBool);

impl Drop for Deciding<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

impl Ejector {
    /// An ejector with this policy.
    pub fn new(policy: EjectionPolicy) -> Self {
        Self {
            policy,
            deciding: AtomicBool::new(false),
        }
    }

    /// Its policy.
    pub fn policy(&self) -> &EjectionPolicy {
        &self.policy
    }

    /// A request to `replica` has ended. `retry_after` is what its response said: it matters if this answer opens the
    /// breaker, and opens nothing by itself. `census` is asked only when the replica is to be ejected. Costs two loads
    /// and an addition for a good answer.
    pub fn end(
        &self,
        replica: &Health,
        ticket: Ticket,
        outcome: Outcome,
        retry_after: Option<Duration>,
        now_nanos: u64,
        census: impl FnOnce() -> Census,
    ) -> Option<Change> {
        let breaker = &self.policy.breaker;
        match outcome.is_failure() {
            None => {
                replica.breaker.abandon(ticket);
                None
            }
            Some(false) => {
                let is_probe = ticket.is_probe();
                match replica.breaker.succeed(ticket, now_nanos, breaker) {
                    Succeeded::Closed => return Some(Change::Readmitted),
                    Succeeded::Counted if !is_probe => replica.count(false),
                    Succeeded::Counted | Succeeded::Ignored => {}
                }
                None
            }
            Some(true) => self.failed(replica, ticket, outcome, retry_after, now_nanos, census),
        }
    }

    fn failed(
        &self,
        replica: &Health,
        ticket: Ticket,
        outcome: Outcome,
        retry_after: Option<Duration>,
        now_nanos: u64,
        census: impl FnOnce() -> Census,
    ) -> Option<Change> {
        let breaker = &self.policy.breaker;
        // Read first: if the state changes in between, there is nothing to open.
        let stay = replica.breaker.stay();
        let failures = match replica.breaker.fail(ticket, retry_after, now_nanos, breaker) {
            Failed::Ignored => return None,
            Failed::Reopened(opened) => return Some(Change::ProbeFailed(opened)),
            Failed::Counted(failures) => failures,
        };
        replica.count(true);
        let is_unreachable = outcome == Outcome::ConnectFailed;
        let enough = match self.policy.consecutive_failures {
            0 => return None,
            _ if is_unreachable => 1,
            enough => enough,
        };
        if failures < enough {
            return None;
        }
        let _deciding = self.decide()?;
        if !is_unreachable {
            let census = census();
            if census.ejected >= self.policy.max_ejected(census.replicas) {
                return None;
            }
        }
        let opened = replica.breaker.open(stay, retry_after, now_nanos, breaker)?;
        replica.forget(replica.tally());
        Some(if is_unreachable {
            Change::Unreachable(opened)
        } else {
            Change::FailedInARow(failures, opened)
        })
    }

    /// Looks at the success rates of the replicas that take requests; to be called every 10 s or so. Counts are halved
    /// at each look, so about the last two intervals weigh. The changes come with the index of the replica.
    pub fn sweep(&self, pool: &[&Health], now_nanos: u64) -> Vec<(usize, Change)> {
        let Some(_deciding) = self.decide() else {
            return Vec::new();
        };
        let stays: Vec<_> = pool.iter().map(|health| health.breaker.stay()).collect();
        // One that is out has no say about the others.
        let tallies: Vec<Tally> = pool
            .iter()
            .map(|health| {
                if health.breaker.is_out() {
                    Tally::default()
                } else {
                    health.tally()
                }
            })
            .collect();
        let census = Census::of(pool.iter().copied());
        let room = self
            .policy
            .max_ejected(census.replicas)
            .saturating_sub(census.ejected);
        let worse = match &self.policy.success_rate {
            Some(policy) => outliers(&tallies, policy, room),
            None => Vec::new(),
        };
        let mut changes = Vec::new();
        for (index, (health, stay)) in pool.iter().zip(stays).enumerate() {
            let seen = health.tally();
            let opened = worse
                .contains(&index)
                .then(|| health.breaker.open(stay, None, now_nanos, &self.policy.breaker))
                .flatten();
            let Some(opened) = opened else {
                health.forget(Tally {
                    answered: seen.answered - seen.answered / 2,
                    failed: seen.failed - seen.failed / 2,
                });
                continue;
            };
            health.forget(seen);
            changes.push((index, Change::WorseThanOthers(opened)));
        }
        changes
    }

    fn decide(&self) -> Option<Deciding<'_>> {
        self.deciding
            .compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed)
            .is_ok()
            // Not `then_some`: a value made for nothing would be dropped, and let go what another thread holds.
            .then(|| Deciding(&self.deciding))
    }
}
