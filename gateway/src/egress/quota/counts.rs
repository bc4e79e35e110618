//! What quotas did to requests, for `/stats` and `/metrics`.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use flotilla_core::quota::Nanos;

/// Upper bounds of the buckets of waiting times, in seconds.
pub const WAIT_BUCKETS: [f64; 9] = [0.01, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 120.0, 300.0];
/// A quota that has held nothing back for this long is not exhausted.
const EXHAUSTED_FOR: Nanos = 60 * 1_000_000_000;

/// What happened to one pool's requests, since the start.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Pool {
    /// Admitted without waiting.
    pub admitted: u64,
    /// Admitted after they had waited.
    pub waited: u64,
    /// Refused.
    pub refused: u64,
    /// Not admitted at once, where another provider is asked rather than waiting.
    pub passed_over: u64,
    /// Waiting now.
    pub waiting: u64,
    /// Time that those admitted had waited, together.
    pub wait: Duration,
    /// How many of them had waited up to a bound of [`WAIT_BUCKETS`] and longer than the one before; the last: longer than
    /// all.
    pub buckets: [u64; WAIT_BUCKETS.len() + 1],
}

/// What one limit did, since the list of limits was put in force.
#[derive(Clone, Copy, Debug, Default)]
struct Held {
    throttled: u64,
    last: Option<Nanos>,
}

/// The counts of one provider.
#[derive(Debug)]
pub(super) struct Counts {
    pools: HashMap<Arc<str>, Pool>,
    limits: Vec<Held>,
}

impl Counts {
    pub(super) fn new(limits: usize) -> Self {
        Self {
            pools: HashMap::new(),
            limits: vec![Held::default(); limits],
        }
    }

    pub(super) fn limits_changed(&mut self, limits: usize) {
        self.limits = vec![Held::default(); limits];
    }

    pub(super) fn pool(&mut self, pool: &Arc<str>) -> &mut Pool {
        if !self.pools.contains_key(pool) {
            self.pools.insert(pool.clone(), Pool::default());
        }
        self.pools.entry(pool.clone()).or_default()
    }

    pub(super) fn pools(&self) -> impl Iterator<Item = (&str, &Pool)> {
        self.pools.iter().map(|(name, pool)| (&**name, pool))
    }

    /// A request was made to wait for a limit.
    pub(super) fn throttled(&mut self, limit: usize, now: Nanos) {
        if let Some(held) = self.limits.get_mut(limit) {
            held.throttled += 1;
            held.last = Some(now);
        }
    }

    /// A request was refused because of a limit, or passed over because it could only be admitted `at_once`.
    pub(super) fn turned_away(&mut self, pool: &Arc<str>, limit: usize, at_once: bool, now: Nanos) {
        let pool = self.pool(pool);
        let count = if at_once {
            &mut pool.passed_over
        } else {
            &mut pool.refused
        };
        *count += 1;
        if let Some(held) = self.limits.get_mut(limit) {
            held.last = Some(now);
        }
    }

    /// A request was admitted after it had waited.
    pub(super) fn waited(&mut self, pool: &Arc<str>, wait: Duration) {
        let pool = self.pool(pool);
        pool.waited += 1;
        pool.wait += wait;
        let seconds = wait.as_secs_f64();
        let bucket = WAIT_BUCKETS.iter().position(|bound| seconds <= *bound);
        if let Some(count) = pool.buckets.get_mut(bucket.unwrap_or(WAIT_BUCKETS.len())) {
            *count += 1;
        }
    }

    /// Requests that a limit made wait, and whether it has held any back lately.
    pub(super) fn limit(&self, limit: usize, now: Nanos) -> (u64, bool) {
        let held = self.limits.get(limit).copied().unwrap_or_default();
        let lately = held
            .last
            .is_some_and(|last| now.saturating_sub(last) < EXHAUSTED_FOR);
        (held.throttled, lately)
    }
}
