//! Which parts are not ready yet, by name.

use std::collections::BTreeSet;
use std::sync::Arc;

use parking_lot::Mutex;

/// The parts that `/readyz` waits for. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<Mutex<BTreeSet<String>>>);

impl Readiness {
    /// Adds a part; it is pending until [`Readiness::done`] names it.
    pub fn expect(&self, part: impl Into<String>) {
        self.0.lock().insert(part.into());
    }

    /// The part is ready, for good.
    pub fn done(&self, part: &str) {
        self.0.lock().remove(part);
    }

    /// What is still pending, sorted.
    pub fn pending(&self) -> Vec<String> {
        self.0.lock().iter().cloned().collect()
    }
}
