//! A meeting place in memory: for a gateway that is alone, and for tests.

use futures::future::BoxFuture;
use parking_lot::Mutex;

use super::{Claim, Contents, Store, StoreError, Version};

/// Lives as long as the process.
#[derive(Debug, Default)]
pub struct Memory(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    claim: Option<Claim>,
    record: (u64, Contents),
    writes: u64,
}

impl State {
    fn next(&mut self) -> String {
        self.writes += 1;
        self.writes.to_string()
    }

    fn version(&self) -> Version {
        (self.record.0 > 0).then(|| self.record.0.to_string())
    }
}

impl Store for Memory {
    fn claim(&self) -> BoxFuture<'_, Result<Option<Claim>, StoreError>> {
        let claim = self.0.lock().claim.clone();
        Box::pin(async { Ok(claim) })
    }

    fn put_claim(&self, mut claim: Claim) -> BoxFuture<'_, Result<Claim, StoreError>> {
        let mut state = self.0.lock();
        let current = state.claim.as_ref().and_then(|claim| claim.version.clone());
        let result = if current == claim.version {
            let next = state.next();
            claim.renewal.clone_from(&next);
            claim.version = Some(next);
            state.claim = Some(claim.clone());
            Ok(claim)
        } else {
            Err(StoreError::Conflict)
        };
        Box::pin(async { result })
    }

    fn read(&self) -> BoxFuture<'_, Result<(Version, Contents), StoreError>> {
        let state = self.0.lock();
        let found = (state.version(), state.record.1.clone());
        Box::pin(async { Ok(found) })
    }

    fn write(&self, version: Version, entries: Contents) -> BoxFuture<'_, Result<Version, StoreError>> {
        let mut state = self.0.lock();
        let result = if state.version() == version {
            state.record.0 += 1;
            state.record.1.extend(entries);
            Ok(state.version())
        } else {
            Err(StoreError::Conflict)
        };
        Box::pin(async { result })
    }
}
