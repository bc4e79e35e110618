//! Read-your-writes: a key is not planned again until the caches have seen what it wrote.
//!
//! A plan made from a cache that has not seen the last write repeats or contradicts it; of Sieve's 37 bugs with a
//! pattern 26 were reads of the past. Kubernetes' own controllers have gained the same gate (KEP-5647). After each
//! write the executor leaves a [`Mark`] for (controller, key); the driver waits for the caches before the next visit,
//! at most [`PATIENCE`], then asks the API server: if the cached version is the live one (or both have none), the
//! mark is settled, else the visit is put off.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use flotilla_core::seeded::{self, Bug};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::ApiResource;
use parking_lot::{Mutex, RwLock};
use tokio::time::{Instant, timeout_at};

use super::cache::AnyCache;
use super::errors::Error;
use super::executor::dynamic_api;
use super::key::Key;

/// How long the caches get before the API server is asked. A healthy watch is some milliseconds behind.
const PATIENCE: Duration = Duration::from_secs(2);

/// `metadata.resourceVersion` as the number it is (KEP-5504).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ResourceVersion(u128);

impl ResourceVersion {
    /// The version written as decimal digits; `None` for anything else.
    pub fn parse(text: &str) -> Option<Self> {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        digits.then(|| text.parse().ok().map(Self)).flatten()
    }

    /// The version of an object.
    pub fn of(meta: &ObjectMeta) -> Option<Self> {
        meta.resource_version.as_deref().and_then(Self::parse)
    }
}

/// What a cache must have seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Mark {
    /// This version or a later one. None when the server's version is not a number: only a live read settles it.
    Written { version: Option<ResourceVersion> },
    /// That the object with this UID is gone or going.
    Deleted { uid: String },
}

type KindId = (String, String);
type Marks = BTreeMap<(KindId, Key), Mark>;

/// The open marks of all keys, and the caches that settle them.
#[derive(Default)]
pub(super) struct Gate {
    caches: RwLock<HashMap<KindId, Arc<dyn AnyCache>>>,
    marks: Mutex<HashMap<(&'static str, Key), Marks>>,
}

fn kind_id(resource: &ApiResource) -> KindId {
    (resource.group.clone(), resource.kind.clone())
}

impl Gate {
    /// Makes a cache known. At most one per kind.
    pub(super) fn add_cache(&self, cache: Arc<dyn AnyCache>) {
        self.caches.write().insert(kind_id(cache.resource()), cache);
    }

    /// The cache of a kind.
    pub(super) fn cache(&self, resource: &ApiResource) -> Option<Arc<dyn AnyCache>> {
        self.caches.read().get(&kind_id(resource)).cloned()
    }

    /// All caches, by kind.
    pub(super) fn caches(&self) -> Vec<Arc<dyn AnyCache>> {
        let mut caches: Vec<_> = self.caches.read().values().cloned().collect();
        caches.sort_by(|a, b| a.resource().kind.cmp(&b.resource().kind));
        caches
    }

    /// Remembers a write of `visitor` to `key`.
    pub(super) fn record(
        &self,
        visitor: (&'static str, &Key),
        resource: &ApiResource,
        key: &Key,
        mark: Mark,
    ) {
        let mut marks = self.marks.lock();
        let own = marks.entry((visitor.0, visitor.1.clone())).or_default();
        own.insert((kind_id(resource), key.clone()), mark);
    }

    /// Has `reader` wait, too, for what is open for `writer`.
    pub(super) fn share(&self, writer: (&'static str, &Key), reader: (&'static str, &Key)) {
        let mut marks = self.marks.lock();
        let open = marks
            .get(&(writer.0, writer.1.clone()))
            .cloned()
            .unwrap_or_default();
        if !open.is_empty() {
            marks
                .entry((reader.0, reader.1.clone()))
                .or_default()
                .extend(open);
        }
    }

    /// Drops what is open for a key that is gone.
    pub(super) fn forget(&self, visitor: (&'static str, &Key)) {
        self.marks.lock().remove(&(visitor.0, visitor.1.clone()));
    }

    /// Waits until every write of `visitor` is seen.
    ///
    /// # Errors
    /// [`Error::StaleCache`] when a cache is behind the API server even after [`PATIENCE`], and what the live read
    /// itself can fail with.
    pub(super) async fn pass(
        &self,
        client: &kube::Client,
        visitor: (&'static str, &Key),
    ) -> Result<(), Error> {
        if seeded::has(Bug::NoGate) {
            return Ok(());
        }
        let id = (visitor.0, visitor.1.clone());
        let deadline = Instant::now() + PATIENCE;
        loop {
            let next = self
                .marks
                .lock()
                .get(&id)
                .and_then(|marks| marks.first_key_value().map(clone_pair));
            let Some(((kind, key), mark)) = next else {
                self.marks.lock().remove(&id);
                return Ok(());
            };
            let cache = self.caches.read().get(&kind).cloned();
            let settled = match &cache {
                // Nobody plans from a kind that is not cached.
                None => true,
                Some(cache) => {
                    wait_for(cache.as_ref(), &key, &mark, deadline).await
                        || is_current(client, cache.as_ref(), &key).await?
                }
            };
            if !settled {
                return Err(Error::StaleCache {
                    kind: kind.1,
                    key: key.to_string(),
                });
            }
            if let Some(marks) = self.marks.lock().get_mut(&id) {
                marks.remove(&(kind, key));
            }
        }
    }
}

fn clone_pair<A: Clone, B: Clone>((a, b): (&A, &B)) -> (A, B) {
    (a.clone(), b.clone())
}

/// Waits for the cache until `deadline`; whether it has seen the mark.
async fn wait_for(cache: &dyn AnyCache, key: &Key, mark: &Mark, deadline: Instant) -> bool {
    let mut progress = cache.progress();
    loop {
        if cache.has_seen(key, mark) {
            return true;
        }
        if matches!(mark, Mark::Written { version: None }) {
            return false;
        }
        match timeout_at(deadline, progress.changed()).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) | Err(_) => return false,
        }
    }
}

/// Whether the cache holds exactly what the API server has.
async fn is_current(client: &kube::Client, cache: &dyn AnyCache, key: &Key) -> Result<bool, Error> {
    let resource = cache.resource();
    let live = dynamic_api(client, resource, key)
        .get_metadata_opt(&key.name)
        .await
        .map_err(|error| Error::from_kube(format!("read {} {key}", resource.kind), error))?;
    let held = cache.metadata(key);
    Ok(match (live, held) {
        (None, None) => true,
        (Some(live), Some(held)) => {
            live.metadata.uid == held.uid && live.metadata.resource_version == held.resource_version
        }
        _ => false,
    })
}

#[cfg(test)]
mod tests;
