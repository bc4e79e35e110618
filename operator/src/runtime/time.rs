//! The only places that read a clock or a random source.
//!
//! Decisions get `now` as a parameter. The wall clock is read through [`Clock`], durations are measured with
//! `tokio::time::Instant`, and both follow tokio's paused time in tests and in the simulator.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use parking_lot::Mutex;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tokio::time::Instant;

/// A handle on the wall clock. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Clock(Source);

#[derive(Clone, Debug)]
enum Source {
    System,
    Virtual { start: Timestamp, origin: Instant },
}

impl Clock {
    /// The machine's clock.
    pub fn system() -> Self {
        Self(Source::System)
    }

    /// A clock that shows `start` now and moves with tokio's (pausable) time.
    pub fn virtual_from(start: Timestamp) -> Self {
        Self(Source::Virtual {
            start,
            origin: Instant::now(),
        })
    }

    /// The time.
    pub fn now(&self) -> Timestamp {
        match &self.0 {
            Source::System => Timestamp::now(),
            Source::Virtual { start, origin } => {
                start.checked_add(origin.elapsed()).unwrap_or(Timestamp::MAX)
            }
        }
    }
}

/// A source of jitter; seeded in tests and in the simulator. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Jitter(Arc<Mutex<StdRng>>);

impl Jitter {
    /// Seeded by the operating system.
    pub fn random() -> Self {
        Self(Arc::new(Mutex::new(StdRng::from_os_rng())))
    }

    /// The same sequence for the same seed.
    pub fn seeded(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(StdRng::seed_from_u64(seed))))
    }

    /// `duration` times a factor drawn evenly from 0.75 to 1.25.
    pub fn spread(&self, duration: Duration) -> Duration {
        duration.mul_f64(self.0.lock().random_range(0.75..1.25))
    }
}
