//! What a request needs to know of its pool, unchanging: weights, times, limits.

use std::hash::RandomState;
use std::sync::Arc;
use std::time::Duration;

use flotilla_core::balance::{RetryBudget, RetryPolicy, Wheel};
use flotilla_core::load::random::Stream;
use flotilla_core::queue::{Class, Tenant};
use http::{HeaderMap, HeaderName};

use super::clock;
use super::revision::Revision;
use crate::config::{PoolConfig, RetryConfig};

const DOMAIN: u64 = 0x6469_7665_7274;

/// What is in force for new requests.
#[derive(Default)]
pub struct Traffic {
    /// `status.trafficGeneration`.
    pub generation: i64,
    /// Answer 503 at once.
    pub stopped: bool,
    /// From arrival to the last byte.
    pub request_timeout: Duration,
    /// Requests that the pool may hold here at once.
    pub max_requests: usize,
    /// What is tried again.
    pub retries: Retries,
    pub(super) queue: QueueLimits,
    pub(super) wheel: Wheel,
    /// In the order of the weights.
    pub(super) weighted: Vec<(Arc<Revision>, u32)>,
    /// The others that have endpoints.
    pub(super) unweighted: Vec<Arc<Revision>>,
}

/// Who may wait, and how long.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QueueLimits {
    /// Requests that may wait at once.
    pub requests: usize,
    /// How long one may wait.
    pub wait: Duration,
    /// The header that names the tenant.
    pub tenant_header: Option<HeaderName>,
    /// The header that names the class.
    pub priority_header: Option<HeaderName>,
}

/// What is tried again.
pub struct Retries {
    /// Which failures, how often.
    pub policy: RetryPolicy,
    /// For the response's head, at one replica.
    pub try_timeout: Option<Duration>,
    /// How many the pool can afford. It outlives the configuration while its policy stays.
    pub budget: Arc<RetryBudget>,
}

impl Default for Retries {
    fn default() -> Self {
        Self::new(&RetryConfig::default())
    }
}

impl Retries {
    /// With a full budget.
    pub(super) fn new(config: &RetryConfig) -> Self {
        Self {
            policy: config.policy,
            try_timeout: config.try_timeout,
            budget: Arc::new(RetryBudget::new(config.budget, clock::now_nanos())),
        }
    }
}

impl From<&PoolConfig> for QueueLimits {
    fn from(pool: &PoolConfig) -> Self {
        Self {
            requests: pool.queue_requests,
            wait: pool.queue_wait,
            tenant_header: pool.tenant_header.clone(),
            priority_header: pool.priority_header.clone(),
        }
    }
}

impl QueueLimits {
    /// For whom a request with these headers is. Requests that name nobody are one tenant.
    pub(super) fn tenant(&self, headers: &HeaderMap, hasher: &RandomState) -> Tenant {
        let name = self.tenant_header.as_ref().and_then(|header| headers.get(header));
        match name.map(http::HeaderValue::as_bytes) {
            None | Some([]) => Tenant::ABSENT,
            Some(name) => Tenant::named(name, hasher),
        }
    }

    /// How urgent a request with these headers is; Normal where it does not say, or something unknown.
    pub(super) fn class(&self, headers: &HeaderMap) -> Class {
        let header = self.priority_header.as_ref();
        let name = header.and_then(|header| headers.get(header)?.to_str().ok());
        name.and_then(|name| Class::from_name(name.trim()))
            .unwrap_or_default()
    }
}

/// After this time a waiter rises by a level: from the lowest it is at the highest after half of the longest wait, so
/// that a class decides who waits longer and not who is served.
pub(super) fn ageing(longest_wait: Duration) -> Duration {
    longest_wait / 6
}

impl Traffic {
    /// The revision for the `turn`-th request; true when it is not the one that the weights name.
    pub(super) fn choose(&self, turn: u64) -> Option<(&Arc<Revision>, bool)> {
        let named = self.wheel.at(turn).and_then(|index| self.weighted.get(index));
        if let Some((revision, _)) = named
            && revision.is_served()
        {
            return Some((revision, false));
        }
        // Drawn by weight from the others: the next one in turn would get the missing one's share on top of its own.
        let served = || self.weighted.iter().filter(|(revision, _)| revision.is_served());
        let total: u64 = served().map(|(_, weight)| u64::from(*weight)).sum();
        let mut left = Stream::new(turn, DOMAIN).below(0, total);
        for (revision, weight) in served() {
            match left.checked_sub(u64::from(*weight)) {
                Some(rest) => left = rest,
                None => return Some((revision, true)),
            }
        }
        let idle = self.weighted.iter().map(|(revision, _)| revision);
        idle.chain(&self.unweighted)
            .find(|revision| revision.is_served())
            .map(|revision| (revision, true))
    }

    /// The revision of that name, if its conversations may stay: it has a weight, be it 0.
    pub(super) fn keeps(&self, name: &str) -> Option<&Arc<Revision>> {
        let named = self.weighted.iter().find(|(revision, _)| revision.name == name);
        named.map(|(revision, _)| revision)
    }

    /// Revisions with their weights in percent.
    pub fn shares(&self) -> impl Iterator<Item = (&Arc<Revision>, u32)> {
        self.weighted.iter().map(|(revision, weight)| (revision, *weight))
    }
}
