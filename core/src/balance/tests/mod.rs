//! A pool to pick from, and how many cases to try.

mod adaptive;
mod budget;
mod ewma;
mod hash;
mod pickers;
mod retry;

use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

use proptest::prelude::*;

use super::{Candidates, hash_bytes};

/// With `FLOTILLA_FULL=1`: the full figure.
pub fn is_full() -> bool {
    std::env::var("FLOTILLA_FULL").is_ok_and(|value| value == "1")
}

pub fn cases(sample: u32, full: u32) -> ProptestConfig {
    ProptestConfig {
        cases: if is_full() { full } else { sample },
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

pub struct Replica {
    pub in_flight: AtomicU32,
    pub slots: u32,
    pub is_cordoned: bool,
    pub is_ejected: bool,
    pub hash_id: u64,
    pub latency_nanos: Option<u64>,
}

impl std::fmt::Debug for Replica {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = match (self.is_cordoned, self.is_ejected) {
            (true, _) => " cordoned",
            (_, true) => " ejected",
            _ => "",
        };
        write!(f, "{}/{}{state}", self.in_flight.load(SeqCst), self.slots)
    }
}

impl Replica {
    pub fn new(number: usize, in_flight: u32, slots: u32) -> Self {
        Self {
            in_flight: AtomicU32::new(in_flight),
            slots,
            is_cordoned: false,
            is_ejected: false,
            hash_id: hash_bytes(format!("replica-{number}").as_bytes()),
            latency_nanos: None,
        }
    }

    pub fn is_free(&self) -> bool {
        self.in_flight.load(SeqCst) < self.slots
    }

    pub fn take(&self) -> bool {
        let more = |taken: u32| (taken < self.slots).then_some(taken + 1);
        self.in_flight.fetch_update(SeqCst, SeqCst, more).is_ok()
    }
}

#[derive(Debug)]
pub struct Pool(pub Vec<Replica>);

impl Pool {
    /// Idle replicas with these slots.
    pub fn with_slots(slots: &[u32]) -> Self {
        let replicas = slots.iter().enumerate();
        Self(
            replicas
                .map(|(number, slots)| Replica::new(number, 0, *slots))
                .collect(),
        )
    }
}

impl Candidates for Pool {
    fn count(&self) -> usize {
        self.0.len()
    }
    fn in_flight(&self, index: usize) -> u32 {
        self.0[index].in_flight.load(SeqCst)
    }
    fn slots(&self, index: usize) -> u32 {
        self.0[index].slots
    }
    fn hash_id(&self, index: usize) -> u64 {
        self.0[index].hash_id
    }
    fn is_cordoned(&self, index: usize) -> bool {
        self.0[index].is_cordoned
    }
    fn is_ejected(&self, index: usize) -> bool {
        self.0[index].is_ejected
    }
    fn latency_nanos(&self, index: usize) -> Option<u64> {
        self.0[index].latency_nanos
    }
}

/// Any pool, with few replicas and slots so that every special case is common.
pub fn any_pool() -> impl Strategy<Value = Pool> {
    let replica = (
        0u32..4,
        0u32..4,
        prop::bool::weighted(0.2),
        prop::bool::weighted(0.4),
        prop::option::of(0u64..1_000_000),
    );
    prop::collection::vec(replica, 0..14).prop_map(|replicas| {
        let replicas = replicas.into_iter().enumerate();
        Pool(
            replicas
                .map(
                    |(number, (in_flight, slots, is_cordoned, is_ejected, latency_nanos))| Replica {
                        is_cordoned,
                        is_ejected,
                        latency_nanos,
                        ..Replica::new(number, in_flight, slots)
                    },
                )
                .collect(),
        )
    })
}

/// Pearson's statistic for `counts` against shares in proportion to `weights`, and its degrees of freedom.
pub fn chi_square(counts: &[u64], weights: &[u32]) -> (f64, usize) {
    let total: u64 = counts.iter().sum();
    let weight: u32 = weights.iter().sum();
    let statistic = counts
        .iter()
        .zip(weights)
        .filter(|(_, own)| **own > 0)
        .map(|(count, own)| {
            let expected = total as f64 * f64::from(*own) / f64::from(weight);
            (*count as f64 - expected).powi(2) / expected
        })
        .sum();
    (
        statistic,
        weights.iter().filter(|own| **own > 0).count().saturating_sub(1),
    )
}

/// Fails when the statistic is so large that chance does it less than once in a hundred million times (the
/// Wilson-Hilferty approximation at 5.6 deviations).
pub fn assert_proportional(counts: &[u64], weights: &[u32]) {
    let (statistic, freedom) = chi_square(counts, weights);
    if freedom == 0 {
        return;
    }
    let freedom = freedom as f64;
    let step = 2.0 / (9.0 * freedom);
    let limit = freedom * (1.0 - step + 5.6 * step.sqrt()).powi(3);
    assert!(
        statistic < limit,
        "{statistic} of at most {limit}: {counts:?} for {weights:?}"
    );
}
