//! A cache without its type, for the executor and the gate.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Resource, core::ApiResource};
use serde::Serialize;
use serde_json::Value;
use tokio::sync::watch;

use super::Cache;
use crate::runtime::gate::{Mark, ResourceVersion};
use crate::runtime::key::Key;

/// A cached object as the executor sees it.
#[derive(Clone, Debug)]
pub(in crate::runtime) struct Cached {
    pub(in crate::runtime) metadata: ObjectMeta,
    pub(in crate::runtime) value: Value,
}

/// A [`Cache`] of any kind.
pub(in crate::runtime) trait AnyCache: Send + Sync {
    fn resource(&self) -> &ApiResource;
    fn cached(&self, key: &Key) -> Option<Cached>;
    fn metadata(&self, key: &Key) -> Option<ObjectMeta>;
    /// Whether what `mark` stands for has arrived.
    fn has_seen(&self, key: &Key, mark: &Mark) -> bool;
    fn progress(&self) -> watch::Receiver<u64>;
    fn is_synced(&self) -> bool;
    fn counts(&self) -> (usize, usize);
}

impl<K> AnyCache for Cache<K>
where
    K: Resource<DynamicType = ()> + Serialize + Send + Sync + 'static,
{
    fn resource(&self) -> &ApiResource {
        &self.inner.resource
    }

    fn cached(&self, key: &Key) -> Option<Cached> {
        let object = self.get(key)?;
        let value = serde_json::to_value(&*object).unwrap_or_default();
        Some(Cached {
            metadata: object.meta().clone(),
            value,
        })
    }

    fn metadata(&self, key: &Key) -> Option<ObjectMeta> {
        let held = self.get(key).map(|object| object.meta().clone());
        held.or_else(|| self.undecodable(key).map(|object| *object.metadata))
    }

    fn has_seen(&self, key: &Key, mark: &Mark) -> bool {
        let held = self.metadata(key);
        let state = self.inner.state.read();
        let read_past = |version: ResourceVersion| {
            let shard = if state.high_water.contains_key(&key.namespace) {
                &key.namespace
            } else {
                ""
            };
            state.high_water.get(shard).is_some_and(|mark| *mark >= version)
        };
        match mark {
            Mark::Written { version: None } => false,
            Mark::Written {
                version: Some(version),
            } => {
                held.and_then(|meta| ResourceVersion::of(&meta))
                    .is_some_and(|held| held >= *version)
                    || read_past(*version)
            }
            Mark::Deleted { uid } => {
                held.is_none_or(|meta| meta.uid.as_ref() != Some(uid) || meta.deletion_timestamp.is_some())
            }
        }
    }

    fn progress(&self) -> watch::Receiver<u64> {
        self.inner.progress.subscribe()
    }

    fn is_synced(&self) -> bool {
        Cache::is_synced(self)
    }

    fn counts(&self) -> (usize, usize) {
        let state = self.inner.state.read();
        (state.objects.len(), state.undecodable.len())
    }
}
