//! The two clocks that quotas need: a monotonic one for everything, and a steered wall clock for windows of the calendar.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use flotilla_core::quota::{Nanos, Now, WallClock};
use parking_lot::Mutex;
use tokio::time::Instant;

/// Instants begin here, so that records from before the process started have one, too: longer than any month.
const ORIGIN: Nanos = 40 * 86_400 * 1_000_000_000;

/// A process's clocks. Cheap to clone.
#[derive(Clone)]
pub struct Clock {
    origin: Instant,
    /// How long the machine had been suspended before the origin, and the longest since then that was seen; milliseconds.
    suspended: (u64, Arc<AtomicU64>),
    wall: Arc<Mutex<WallClock>>,
    system: Arc<dyn Fn() -> i64 + Send + Sync>,
}

impl Clock {
    /// The clocks of this machine.
    pub fn system() -> Self {
        Self::new(|| {
            let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
        })
    }

    /// A clock whose wall clock is steered by `system`, in milliseconds since 1970.
    pub fn new(system: impl Fn() -> i64 + Send + Sync + 'static) -> Self {
        Self {
            origin: Instant::now(),
            suspended: (suspended_ms(), Arc::default()),
            wall: Arc::new(Mutex::new(WallClock::new(ORIGIN, system()))),
            system: Arc::new(system),
        }
    }

    /// The monotonic clock. It goes on while the machine is suspended, which timers do not: a lease must not outlast its
    /// suspension.
    #[inline]
    pub fn nanos(&self) -> Nanos {
        let (before, seen) = &self.suspended;
        let suspended = suspended_ms().saturating_sub(*before);
        let known = seen.load(Ordering::Relaxed);
        if suspended > known {
            seen.fetch_max(suspended, Ordering::Relaxed);
        }
        // It is read by two clocks, a moment apart: it must not go back by a millisecond.
        let since = self.origin.elapsed() + Duration::from_millis(suspended.max(known));
        let nanos = since.as_secs().saturating_mul(1_000_000_000);
        ORIGIN + nanos + u64::from(since.subsec_nanos())
    }

    /// Both clocks.
    pub fn now(&self) -> Now {
        let nanos = self.nanos();
        let system = (self.system)();
        Now {
            nanos,
            unix_ms: self.wall.lock().observe(nanos, system),
        }
    }

    /// The wall clock, in milliseconds since 1970.
    pub fn unix_ms(&self) -> i64 {
        self.now().unix_ms
    }

    /// The timers' name for an instant of the monotonic clock; one that is out of reach is a day away.
    pub fn instant(&self, nanos: Nanos) -> Instant {
        let after = Duration::from_nanos(nanos.saturating_sub(ORIGIN));
        self.origin
            .checked_add(after)
            .unwrap_or_else(|| Instant::now() + Duration::from_secs(86_400))
    }

    /// The monotonic clock's name for a timer's instant.
    pub fn nanos_of(&self, instant: Instant) -> Nanos {
        let since = instant.saturating_duration_since(self.origin);
        ORIGIN.saturating_add(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
    }
}

/// How long this machine has been suspended since it was started, in milliseconds.
#[cfg(target_os = "linux")]
fn suspended_ms() -> u64 {
    use rustix::time::{ClockId, clock_gettime};
    let millis = |id| {
        let time = clock_gettime(id);
        time.tv_sec
            .saturating_mul(1_000)
            .saturating_add(time.tv_nsec / 1_000_000)
    };
    let monotonic = millis(ClockId::Monotonic);
    u64::try_from(millis(ClockId::Boottime).saturating_sub(monotonic)).unwrap_or(0)
}

#[cfg(not(target_os = "linux"))]
fn suspended_ms() -> u64 {
    0
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicI64;

    #[tokio::test(start_paused = true)]
    async fn a_jump_of_the_system_clock_is_hardly_seen() {
        let system = Arc::new(AtomicI64::new(1_000_000));
        let read = system.clone();
        let clock = Clock::new(move || read.load(Ordering::SeqCst));
        let before = clock.now();
        tokio::time::advance(Duration::from_secs(10)).await;
        system.store(9_000_000_000, Ordering::SeqCst);
        let after = clock.now();
        assert_eq!(after.nanos - before.nanos, 10_000_000_000);
        assert_eq!(
            after.unix_ms - before.unix_ms,
            10_010,
            "a thousandth of the time that has passed"
        );
        assert_eq!(clock.nanos_of(clock.instant(after.nanos)), after.nanos);
    }
}
