//! Tells waiters that something has changed, all of them in the order in which they began to wait.
//!
//! Tokio's watch channel wakes its receivers in an order drawn by lot, and equal runs would not be equal.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;

/// The sending side.
#[derive(Debug, Default)]
pub(crate) struct Pulse {
    version: AtomicU64,
    notify: Notify,
}

impl Pulse {
    /// Something has changed: it is at this version now.
    pub(crate) fn beat(&self, version: u64) {
        self.version.store(version, Ordering::Relaxed);
        self.notify.notify_waiters();
    }
}

/// Changes that one waiter has not seen yet.
#[derive(Clone, Debug)]
pub struct Changes {
    pulse: Arc<Pulse>,
    seen: u64,
}

impl Changes {
    pub(crate) fn new(pulse: &Arc<Pulse>) -> Self {
        Self {
            pulse: Arc::clone(pulse),
            seen: pulse.version.load(Ordering::Relaxed),
        }
    }

    /// Everything up to now is seen.
    pub fn mark_seen(&mut self) {
        self.seen = self.pulse.version.load(Ordering::Relaxed);
    }

    /// Waits for a change that is not seen yet, and marks it seen.
    pub async fn changed(&mut self) {
        loop {
            let notified = self.pulse.notify.notified();
            let version = self.pulse.version.load(Ordering::Relaxed);
            if version != self.seen {
                self.seen = version;
                return;
            }
            notified.await;
        }
    }
}
