//! Moments as the pure decisions of [`flotilla_core`] take them: nanoseconds since the process looked at its clock first.

use std::sync::LazyLock;

use tokio::time::Instant;

static ORIGIN: LazyLock<Instant> = LazyLock::new(Instant::now);

/// `moment` in nanoseconds; 0 for anything before the first call.
pub fn nanos(moment: Instant) -> u64 {
    u64::try_from(moment.saturating_duration_since(*ORIGIN).as_nanos()).unwrap_or(u64::MAX)
}

/// Now, in nanoseconds.
pub fn now_nanos() -> u64 {
    let origin = *ORIGIN;
    u64::try_from(Instant::now().saturating_duration_since(origin).as_nanos()).unwrap_or(u64::MAX)
}
