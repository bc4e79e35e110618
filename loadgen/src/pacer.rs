//! Waiting until a due time, to the microsecond.
//!
//! Tokio's timer wheel ticks in milliseconds: at 1,000 starts per second its median start is 1.5 ms late. One
//! timerfd on the same reactor is 16 µs late (loadtest.md 2.1), and costs one system call per start.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use tokio::io::unix::AsyncFd;

/// One timer, for one waiter at a time.
#[derive(Debug)]
pub struct Pacer(AsyncFd<OwnedFd>);

impl Pacer {
    /// A timer on the current runtime.
    ///
    /// # Errors
    /// If the system has no more file descriptors.
    #[allow(
        deprecated,
        reason = "tokio's new constructor is unsafe because a caller's type might change its descriptor; OwnedFd does not"
    )]
    pub fn new() -> io::Result<Self> {
        let timer = timerfd_create(
            TimerfdClockId::Monotonic,
            TimerfdFlags::NONBLOCK.union(TimerfdFlags::CLOEXEC),
        )?;
        Ok(Self(AsyncFd::with_interest(
            timer,
            tokio::io::Interest::READABLE,
        )?))
    }

    /// Returns at or after `due`; at once if it has passed. May be cancelled at any point.
    ///
    /// # Errors
    /// If the timer cannot be set or read, which the system does not do to a valid one.
    pub async fn sleep_until(&mut self, due: Instant) -> io::Result<()> {
        loop {
            let wait = due.saturating_duration_since(Instant::now());
            if wait.is_zero() {
                return Ok(());
            }
            // Setting it forgets an earlier expiry; a readiness left from that one is cleared by the read below.
            timerfd_settime(self.0.get_ref(), TimerfdTimerFlags::empty(), &once(wait))?;
            let mut guard = self.0.readable().await?;
            let mut expiries = [0u8; 8];
            if let Ok(Err(error)) =
                guard.try_io(|timer| Ok(rustix::io::read(timer.get_ref(), &mut expiries[..])?))
            {
                return Err(error);
            }
        }
    }
}

fn once(wait: Duration) -> Itimerspec {
    Itimerspec {
        it_interval: Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        },
        it_value: Timespec {
            tv_sec: i64::try_from(wait.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(wait.subsec_nanos()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn never_returns_early_and_survives_cancellation() {
        let mut pacer = Pacer::new().unwrap();
        let far = Instant::now() + Duration::from_secs(3600);
        let cancelled = tokio::time::timeout(Duration::from_millis(5), pacer.sleep_until(far)).await;
        assert!(cancelled.is_err());
        for microseconds in [0, 50, 300, 2_000] {
            let due = Instant::now() + Duration::from_micros(microseconds);
            pacer.sleep_until(due).await.unwrap();
            assert!(Instant::now() >= due);
        }
        pacer.sleep_until(Instant::now()).await.unwrap();
    }
}
