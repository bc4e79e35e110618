//! All objects of one kind, kept current by a watch.
//!
//! kube's `Store` is not used for three reasons. It has no index, so "the children of this pool" is a scan of every
//! child in the cluster. It says nothing about objects that vanished while the watch was down, so their owners are
//! never told; here the end of a relist is compared with what was held and each difference is reported, which makes a
//! periodic resync unnecessary. And it does not know how far it has read, which read-your-writes needs.
//!
//! Resource versions are compared as numbers: since Kubernetes 1.35 that is official (KEP-5504), before it was true
//! of every API server backed by etcd.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Resource, core::ApiResource};
use parking_lot::RwLock;
use tokio::sync::watch;

use super::gate::ResourceVersion;
use super::key::{Key, key_of};

mod selection;
mod view;

use selection::Packing;
pub use selection::Watch;
pub(super) use view::{AnyCache, Cached};

type TrimFn<K> = Arc<dyn Fn(&mut K) + Send + Sync>;
type IndexFn<K> = Arc<dyn Fn(&K) -> Vec<String> + Send + Sync>;
type Subscriber<K> = Box<dyn Fn(&Change<K>) + Send + Sync>;

/// One difference between what was held and what is. Both are `None` for an object that does not decode.
#[derive(Debug)]
pub struct Change<K> {
    /// The object's name.
    pub key: Key,
    /// What the cache held before.
    pub old: Option<Arc<K>>,
    /// What it holds now.
    pub new: Option<Arc<K>>,
}

/// An object the API server sent that does not decode into its type.
#[derive(Clone, Debug)]
pub struct Undecodable {
    /// Its metadata.
    pub metadata: Box<ObjectMeta>,
    /// What was wrong, for the log and the event.
    pub error: String,
}

/// All objects of kind `K`. Cheap to clone; every clone shows the same objects.
pub struct Cache<K> {
    inner: Arc<Inner<K>>,
}

struct Inner<K> {
    resource: ApiResource,
    trim: Option<TrimFn<K>>,
    indexes: Vec<(&'static str, IndexFn<K>)>,
    packing: Option<Packing<K>>,
    state: RwLock<State<K>>,
    subscribers: RwLock<Vec<Subscriber<K>>>,
    /// Counts updates; read-your-writes waits on it.
    progress: watch::Sender<u64>,
    synced: watch::Sender<bool>,
}

/// So many objects are held as they are, also where they are to be packed: text saves memory where there are thousands, and
/// costs time at each look.
const UNPACKED: usize = 64;

/// A held object.
enum Slot<K> {
    Plain(Arc<K>),
    Packed(Arc<[u8]>),
}

impl<K> Clone for Slot<K> {
    fn clone(&self) -> Self {
        match self {
            Self::Plain(object) => Self::Plain(Arc::clone(object)),
            Self::Packed(text) => Self::Packed(Arc::clone(text)),
        }
    }
}

/// A few keys in order. Owners have a handful of children, so a sorted list beats a tree by far in memory.
#[derive(Default)]
struct Keys(Vec<Arc<Key>>);

impl Keys {
    fn insert(&mut self, key: &Arc<Key>) {
        if let Err(at) = self.0.binary_search(key) {
            self.0.insert(at, Arc::clone(key));
        }
    }

    fn remove(&mut self, key: &Key) {
        if let Ok(at) = self.0.binary_search_by(|held| (**held).cmp(key)) {
            self.0.remove(at);
        }
    }
}

struct State<K> {
    objects: BTreeMap<Arc<Key>, Slot<K>>,
    owners: HashMap<String, Keys>,
    indexes: Vec<HashMap<String, Keys>>,
    undecodable: BTreeMap<Key, Undecodable>,
    /// Per shard (a watched namespace, or "" for all of them) how far its watch has read.
    high_water: HashMap<String, ResourceVersion>,
    /// Shards whose first list has not ended.
    unsynced: BTreeSet<String>,
}

impl<K> Clone for Cache<K> {
    fn clone(&self) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
        }
    }
}

impl<K> fmt::Debug for Cache<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Cache<{}>({})",
            self.inner.resource.kind,
            self.inner.state.read().objects.len()
        )
    }
}

// === impl Cache: reading ===

impl<K: Resource<DynamicType = ()> + 'static> Cache<K> {
    /// A cache filled by hand and already synced, for tests of plans and mappers.
    pub fn filled(objects: impl IntoIterator<Item = K>) -> Self {
        let cache = Self::new(Watch::all(), [String::new()]);
        let mut relist = Relist::default();
        objects
            .into_iter()
            .for_each(|object| relist.add(&cache, Ok(object)));
        cache.finish(&String::new(), relist);
        cache
    }

    /// The object of that name, if the cache has it.
    pub fn get(&self, key: &Key) -> Option<Arc<K>> {
        let slot = self.inner.state.read().objects.get(key).cloned();
        slot.and_then(|slot| self.opened(slot))
    }

    /// All objects, ordered by namespace and name.
    pub fn list(&self) -> Vec<Arc<K>> {
        let slots: Vec<_> = self.inner.state.read().objects.values().cloned().collect();
        self.all_opened(slots)
    }

    /// The names of all objects, also of those that do not decode.
    pub fn keys(&self) -> Vec<Key> {
        let state = self.inner.state.read();
        let held = state.objects.keys().map(|key| (**key).clone());
        held.chain(state.undecodable.keys().cloned()).collect()
    }

    /// The objects of one namespace, ordered by name.
    pub fn in_namespace(&self, namespace: &str) -> Vec<Arc<K>> {
        let first = Key::new(namespace, "");
        let slots: Vec<_> = {
            let state = self.inner.state.read();
            let range = state.objects.range::<Key, _>(&first..);
            range
                .take_while(|(key, _)| key.namespace == namespace)
                .map(|(_, slot)| slot.clone())
                .collect()
        };
        self.all_opened(slots)
    }

    /// The objects with an owner reference (controller or not) to this UID, ordered by name.
    pub fn owned_by(&self, uid: &str) -> Vec<Arc<K>> {
        let slots = {
            let state = self.inner.state.read();
            state.slots(state.owners.get(uid))
        };
        self.all_opened(slots)
    }

    /// The objects found under `value` in the index of that name (see [`Watch::index`]), ordered by name.
    pub fn by_index(&self, name: &str, value: &str) -> Vec<Arc<K>> {
        let position = self.inner.indexes.iter().position(|(index, _)| *index == name);
        let slots = {
            let state = self.inner.state.read();
            let index = position.and_then(|at| state.indexes.get(at));
            state.slots(index.and_then(|index| index.get(value)))
        };
        self.all_opened(slots)
    }

    fn opened(&self, slot: Slot<K>) -> Option<Arc<K>> {
        match slot {
            Slot::Plain(object) => Some(object),
            // What was encoded from this very type decodes into it.
            Slot::Packed(text) => self
                .inner
                .packing
                .as_ref()
                .and_then(|packing| (packing.unpack)(&text))
                .map(Arc::new),
        }
    }

    fn all_opened(&self, slots: Vec<Slot<K>>) -> Vec<Arc<K>> {
        slots.into_iter().filter_map(|slot| self.opened(slot)).collect()
    }

    /// The object as it is held beside `held` others.
    fn closed(&self, object: &Arc<K>, held: usize) -> Slot<K> {
        let packing = self.inner.packing.as_ref().filter(|_| held >= UNPACKED);
        let text = packing.and_then(|packing| (packing.pack)(object));
        text.map_or_else(|| Slot::Plain(Arc::clone(object)), Slot::Packed)
    }

    /// Number of objects.
    pub fn len(&self) -> usize {
        self.inner.state.read().objects.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the first list has been read completely.
    pub fn is_synced(&self) -> bool {
        *self.inner.synced.borrow()
    }

    /// Waits until [`Cache::is_synced`].
    pub async fn synced(&self) {
        // The sender lives as long as `self`, so the wait cannot fail.
        let _ = self.inner.synced.subscribe().wait_for(|synced| *synced).await;
    }

    /// The object of that name, when it is there but does not decode.
    pub fn undecodable(&self, key: &Key) -> Option<Undecodable> {
        self.inner.state.read().undecodable.get(key).cloned()
    }

    /// Group, version, kind and plural of `K`.
    pub fn resource(&self) -> &ApiResource {
        &self.inner.resource
    }

    /// Calls `subscriber` after every change, from the watch's task: it must be quick and must not block.
    pub fn on_change(&self, subscriber: impl Fn(&Change<K>) + Send + Sync + 'static) {
        self.inner.subscribers.write().push(Box::new(subscriber));
    }
}

// === impl Cache: writing, by the informer ===

/// The objects of a list that has not ended yet.
pub(super) struct Relist<K>(Vec<Result<K, Undecodable>>);

impl<K> Default for Relist<K> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<K: Resource<DynamicType = ()> + 'static> Relist<K> {
    /// Adds an object, without what `cache` never keeps: a list holds every object twice for a moment, and managed
    /// fields alone are half of it.
    pub(super) fn add(&mut self, cache: &Cache<K>, object: Result<K, Undecodable>) {
        self.0.push(object.map(|object| cache.trimmed(object)));
    }
}

impl<K: Resource<DynamicType = ()> + 'static> Cache<K> {
    pub(super) fn new(spec: Watch<K>, shards: impl IntoIterator<Item = String>) -> Self {
        let state = State {
            objects: BTreeMap::new(),
            owners: HashMap::new(),
            indexes: spec.indexes.iter().map(|_| HashMap::new()).collect(),
            undecodable: BTreeMap::new(),
            high_water: HashMap::new(),
            unsynced: shards.into_iter().collect(),
        };
        Self {
            inner: Arc::new(Inner {
                resource: ApiResource::erase::<K>(&()),
                trim: spec.trim,
                indexes: spec.indexes,
                packing: spec.packing,
                state: RwLock::new(state),
                subscribers: RwLock::new(Vec::new()),
                progress: watch::Sender::new(0),
                synced: watch::Sender::new(false),
            }),
        }
    }

    /// Takes over one added or changed object.
    pub(super) fn upsert(&self, shard: &str, object: Result<K, Undecodable>) {
        let object = object.map(|object| self.trimmed(object));
        let change = {
            let mut state = self.inner.state.write();
            state.advance(shard, version_of(&object));
            self.insert(&mut state, object)
        };
        self.announce(change);
    }

    /// Forgets one deleted object; its metadata carries the version of the deletion.
    pub(super) fn remove(&self, shard: &str, metadata: &ObjectMeta) {
        let change = {
            let mut state = self.inner.state.write();
            state.advance(shard, ResourceVersion::of(metadata));
            self.take(&mut state, &key_of_meta(metadata))
        };
        self.announce(change);
    }

    /// Replaces a shard by a complete list. Its high-water mark starts again from the list, because after a restore
    /// of etcd versions go back.
    pub(super) fn finish(&self, shard: &String, relist: Relist<K>) {
        let (changes, all_synced) = {
            let mut state = self.inner.state.write();
            let held = state.objects.keys().map(|key| (**key).clone());
            let mut vanished: BTreeSet<Key> = held.chain(state.undecodable.keys().cloned()).collect();
            if !shard.is_empty() {
                vanished.retain(|key| key.namespace == *shard);
            }
            state.high_water.remove(shard);
            let mut changes = Vec::new();
            for object in relist.0 {
                state.advance(shard, version_of(&object));
                let key = match &object {
                    Ok(object) => key_of(object),
                    Err(undecodable) => key_of_meta(&undecodable.metadata),
                };
                vanished.remove(&key);
                changes.push(self.insert(&mut state, object));
            }
            for key in vanished {
                changes.push(self.take(&mut state, &key));
            }
            state.unsynced.remove(shard);
            (changes, state.unsynced.is_empty())
        };
        changes.into_iter().for_each(|change| self.announce(change));
        if all_synced {
            self.inner.synced.send_replace(true);
        }
        // Also for a list without a change, which may be what somebody waits for.
        self.advanced();
    }

    fn trimmed(&self, mut object: K) -> K {
        object.meta_mut().managed_fields = None;
        if let Some(annotations) = &mut object.meta_mut().annotations {
            annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
        }
        if let Some(trim) = &self.inner.trim {
            trim(&mut object);
        }
        object
    }

    fn insert(&self, state: &mut State<K>, object: Result<K, Undecodable>) -> Option<Change<K>> {
        let object = match object {
            Ok(object) => object,
            Err(undecodable) => {
                let key = key_of_meta(&undecodable.metadata);
                let old = self.take(state, &key).and_then(|change| change.old);
                state.undecodable.insert(key.clone(), undecodable);
                return Some(Change { key, old, new: None });
            }
        };
        let key = Arc::new(key_of(&object));
        let object = Arc::new(object);
        state.undecodable.remove(&*key);
        let slot = self.closed(&object, state.objects.len());
        let old = state
            .objects
            .insert(Arc::clone(&key), slot)
            .and_then(|old| self.opened(old));
        if let Some(old) = &old {
            self.unindex(state, &key, old);
        }
        for owner in object.meta().owner_references.iter().flatten() {
            state.owners.entry(owner.uid.clone()).or_default().insert(&key);
        }
        for ((_, values), index) in self.inner.indexes.iter().zip(&mut state.indexes) {
            for value in values(&object) {
                index.entry(value).or_default().insert(&key);
            }
        }
        let unchanged = old.as_ref().is_some_and(|old| {
            old.meta().resource_version.is_some()
                && old.meta().resource_version == object.meta().resource_version
                && old.meta().uid == object.meta().uid
        });
        (!unchanged).then(|| Change {
            key: (*key).clone(),
            old,
            new: Some(object),
        })
    }

    fn take(&self, state: &mut State<K>, key: &Key) -> Option<Change<K>> {
        let undecodable = state.undecodable.remove(key);
        let old = state.objects.remove(key).and_then(|old| self.opened(old));
        if let Some(old) = &old {
            self.unindex(state, key, old);
        }
        (old.is_some() || undecodable.is_some()).then(|| Change {
            key: key.clone(),
            old,
            new: None,
        })
    }

    fn unindex(&self, state: &mut State<K>, key: &Key, old: &K) {
        let drop_from = |index: &mut HashMap<String, Keys>, value: &str| {
            if let Some(keys) = index.get_mut(value) {
                keys.remove(key);
                if keys.0.is_empty() {
                    index.remove(value);
                }
            }
        };
        for owner in old.meta().owner_references.iter().flatten() {
            drop_from(&mut state.owners, &owner.uid);
        }
        for ((_, values), index) in self.inner.indexes.iter().zip(&mut state.indexes) {
            for value in values(old) {
                drop_from(index, &value);
            }
        }
    }

    fn announce(&self, change: Option<Change<K>>) {
        if let Some(change) = change {
            self.inner
                .subscribers
                .read()
                .iter()
                .for_each(|subscriber| subscriber(&change));
        }
        self.advanced();
    }

    fn advanced(&self) {
        self.inner
            .progress
            .send_modify(|count| *count = count.wrapping_add(1));
    }
}

impl<K> State<K> {
    fn slots(&self, keys: Option<&Keys>) -> Vec<Slot<K>> {
        let keys = keys.into_iter().flat_map(|keys| &keys.0);
        keys.filter_map(|key| self.objects.get(key).cloned()).collect()
    }

    fn advance(&mut self, shard: &str, version: Option<ResourceVersion>) {
        let Some(version) = version else { return };
        match self.high_water.get_mut(shard) {
            Some(mark) => *mark = (*mark).max(version),
            None => {
                self.high_water.insert(shard.to_owned(), version);
            }
        }
    }
}

fn version_of<K: Resource>(object: &Result<K, Undecodable>) -> Option<ResourceVersion> {
    match object {
        Ok(object) => ResourceVersion::of(object.meta()),
        Err(undecodable) => ResourceVersion::of(&undecodable.metadata),
    }
}

fn key_of_meta(meta: &ObjectMeta) -> Key {
    Key::new(
        meta.namespace.clone().unwrap_or_default(),
        meta.name.clone().unwrap_or_default(),
    )
}

#[cfg(test)]
mod tests;
