//! The cheaper of two by latency and load.
//!
//! A replica's cost is its peak-sensitive latency times the requests it would have, per slot: an estimate of how long
//! this request would take behind the others. With equal slots this is Finagle's and Linkerd's peak EWMA cost, `latency
//! × (in-flight + 1)`. Latency alone would be old news: it is known only when a request ends, and until then every
//! choice would be the same one.
//!
//! # Replicas without a history
//!
//! An unmeasured replica counts as a typical one (the median of the healthy ones). Zero would bring it all the traffic
//! at once, infinity none. On top of that, a young one is passed over in all but `age / warm-up` of the comparisons in
//! which it stands, though never in more than 90 %: caches are cold and compilers have not run, and the first slow
//! answers should be few. A factor on its cost would do that only by accident: against idle replicas it would get
//! nothing, against busy ones its full share.
//!
//! The median is renewed at most every 250 ms, by whichever request comes first after that; it alone allocates.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use super::candidates::{Candidates, Pick, Tier};
use super::choices::{load, two_choices};
use crate::load::random::Stream;

/// How long the typical latency is used before it is computed again.
const RENEWAL_NANOS: u64 = 250_000_000;
/// The least part of a warm replica's share that a new one gets, as in Envoy's slow start.
const MIN_WARMTH: f64 = 0.1;
const DOMAIN: u64 = 0x7761_726d;

/// What adaptive choices share.
#[derive(Debug)]
pub struct Adaptive {
    warm_up_nanos: u64,
    /// 0 while unknown.
    typical_nanos: AtomicU64,
    /// When the typical latency is to be computed again.
    renew_at: AtomicU64,
}

impl Default for Adaptive {
    /// Replicas are warm after 10 s.
    fn default() -> Self {
        Self::new(Duration::from_secs(10))
    }
}

impl Adaptive {
    /// Replicas are warm after `warm_up`; zero for at once.
    pub fn new(warm_up: Duration) -> Self {
        Self {
            warm_up_nanos: u64::try_from(warm_up.as_nanos()).unwrap_or(u64::MAX),
            typical_nanos: AtomicU64::new(0),
            renew_at: AtomicU64::new(0),
        }
    }

    /// The cheaper of two. Costs the loads of two replicas and their estimates (an exponential function each); of
    /// all, twice, when one of the two cannot take the request.
    pub fn pick(&self, candidates: &impl Candidates, random: u64, now_nanos: u64) -> Pick {
        self.renew(candidates, now_nanos);
        // With no latency known at all, one nanosecond for everybody leaves the load to decide.
        let typical = self.typical_nanos.load(Relaxed).max(1);
        two_choices(candidates, random, |index| {
            let latency = candidates.latency_nanos(index).unwrap_or(typical).max(1);
            let cost = latency as f64 * load(candidates, index);
            (
                self.is_passed_over(candidates.age_nanos(index), index, random),
                cost,
            )
        })
    }

    /// The median latency of the healthy replicas, to start a new one's [`super::PeakEwma`] from.
    pub fn typical_nanos(&self) -> Option<u64> {
        Some(self.typical_nanos.load(Relaxed)).filter(|typical| *typical > 0)
    }

    /// Whether a replica of this age yields to a warm one in this draw.
    fn is_passed_over(&self, age_nanos: u64, index: usize, random: u64) -> bool {
        if age_nanos >= self.warm_up_nanos {
            return false;
        }
        let warmth = (age_nanos as f64 / self.warm_up_nanos as f64).max(MIN_WARMTH);
        let uniform = Stream::new(random, DOMAIN).at(index as u64) as f64 / u64::MAX as f64;
        uniform >= warmth
    }

    fn renew(&self, candidates: &impl Candidates, now_nanos: u64) {
        let due = self.renew_at.load(Relaxed);
        let next = now_nanos.saturating_add(RENEWAL_NANOS);
        if now_nanos < due
            || self
                .renew_at
                .compare_exchange(due, next, Relaxed, Relaxed)
                .is_err()
        {
            return;
        }
        let mut known: Vec<u64> = (0..candidates.count())
            .filter(|index| Tier::Healthy.holds(candidates, *index))
            .filter_map(|index| candidates.latency_nanos(index))
            .collect();
        if known.is_empty() {
            return;
        }
        let middle = (known.len() - 1) / 2;
        let (_, median, _) = known.select_nth_unstable(middle);
        self.typical_nanos.store((*median).max(1), Relaxed);
    }
}
