//! What to watch of a kind, and what to keep.

use std::sync::Arc;

use serde::{Serialize, de::DeserializeOwned};

use super::{IndexFn, TrimFn};
#[cfg(doc)]
use crate::runtime::Cache;

/// What to watch and what to keep of it.
pub struct Watch<K> {
    pub(in crate::runtime) labels: Option<String>,
    pub(in crate::runtime) fields: Option<String>,
    pub(in crate::runtime) trim: Option<TrimFn<K>>,
    pub(in crate::runtime) indexes: Vec<(&'static str, IndexFn<K>)>,
    pub(super) packing: Option<Packing<K>>,
}

/// How to keep an object as text.
pub(super) struct Packing<K> {
    pub(super) pack: fn(&K) -> Option<Arc<[u8]>>,
    pub(super) unpack: fn(&[u8]) -> Option<K>,
}

impl<K> Default for Watch<K> {
    fn default() -> Self {
        Self {
            labels: None,
            fields: None,
            trim: None,
            indexes: Vec::new(),
            packing: None,
        }
    }
}

impl<K> Watch<K> {
    /// Everything of the kind.
    pub fn all() -> Self {
        Self::default()
    }

    /// Only objects that match a label selector.
    pub fn labels(mut self, selector: impl Into<String>) -> Self {
        self.labels = Some(selector.into());
        self
    }

    /// Only objects that match a field selector.
    pub fn fields(mut self, selector: impl Into<String>) -> Self {
        self.fields = Some(selector.into());
        self
    }

    /// Drops what is never read, to save memory. `managedFields` and kubectl's last-applied annotation always go. Do
    /// not trim a field that an [`Action::apply`](crate::runtime::Action::apply) sets: the comparison would never be equal.
    pub fn trim(mut self, trim: impl Fn(&mut K) + Send + Sync + 'static) -> Self {
        self.trim = Some(Arc::new(trim));
        self
    }

    /// Keeps the objects, but for the first few dozen, as JSON text and decodes one at each look-up. A typed pod is 5 kB of mostly empty fields, its
    /// text 1 kB; decoding takes some ten microseconds. For kinds of which there are many, read few at a time.
    pub fn packed(mut self) -> Self
    where
        K: Serialize + DeserializeOwned,
    {
        self.packing = Some(Packing {
            pack: |object| serde_json::to_vec(object).ok().map(Into::into),
            unpack: |text| serde_json::from_slice(text).ok(),
        });
        self
    }

    /// Adds a look-up for [`Cache::by_index`]: `values` names the values under which an object is found.
    pub fn index(
        mut self,
        name: &'static str,
        values: impl Fn(&K) -> Vec<String> + Send + Sync + 'static,
    ) -> Self {
        self.indexes.push((name, Arc::new(values)));
        self
    }
}
