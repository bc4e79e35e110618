//! What etcd and the watch cache hold: objects, numbered changes, and how far back they are kept.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use serde_json::Value;

use crate::kinds::KindId;

/// Where an object lives.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Its kind.
    pub kind: KindId,
    /// Its namespace, "" for cluster-scoped ones.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// What happened to an object.
#[derive(Clone, Debug)]
pub struct Change {
    /// The version it made.
    pub revision: u64,
    /// Whose.
    pub key: Key,
    /// The object before, none for a new one.
    pub old: Option<Arc<Value>>,
    /// The object now, none for one that is gone.
    pub new: Option<Arc<Value>>,
}

impl Change {
    /// What a watcher that selects by `selected` is told, if anything: the type and the object.
    pub fn told(&self, selected: impl Fn(&Value) -> bool) -> Option<(&'static str, Arc<Value>)> {
        let was = self.old.as_ref().filter(|object| selected(object));
        let is = self.new.as_ref().filter(|object| selected(object));
        match (was, is) {
            (None, None) => None,
            (None, Some(object)) => Some(("ADDED", Arc::clone(object))),
            (Some(_), Some(object)) => Some(("MODIFIED", Arc::clone(object))),
            (Some(object), None) => {
                let mut last = (**object).clone();
                last["metadata"]["resourceVersion"] = Value::String(self.revision.to_string());
                Some(("DELETED", Arc::new(last)))
            }
        }
    }
}

/// Objects and their history.
#[derive(Debug)]
pub struct Store {
    objects: BTreeMap<Key, Arc<Value>>,
    revision: u64,
    log: VecDeque<Change>,
    compacted: u64,
    changed: Vec<u64>,
    made: Vec<u64>,
    removed: Vec<u64>,
    ended: HashMap<Key, u64>,
    /// Objects that were made and not written since.
    new: HashSet<Key>,
}

/// The version an empty store is at. Not small, so that versions of several digits are compared as numbers.
const FIRST: u64 = 990;
/// The oldest version that can be asked for.
pub const OLDEST: u64 = FIRST;

impl Store {
    /// An empty store for this many kinds.
    pub fn new(kinds: usize) -> Self {
        Self {
            objects: BTreeMap::new(),
            revision: FIRST,
            log: VecDeque::new(),
            compacted: FIRST,
            changed: vec![FIRST; kinds],
            made: vec![0; kinds],
            removed: vec![0; kinds],
            ended: HashMap::new(),
            new: HashSet::new(),
        }
    }

    /// The newest version.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// The version an object will get if it is written next.
    pub fn next(&self) -> u64 {
        self.revision + 1
    }

    /// The version of the last change of a kind.
    pub fn changed(&self, kind: KindId) -> u64 {
        self.changed[kind.0]
    }

    /// How many objects of a kind were ever made, and how many went.
    pub fn counts(&self, kind: KindId) -> (u64, u64) {
        (self.made[kind.0], self.removed[kind.0])
    }

    /// Whether the object that lives here was made and not written since.
    pub fn is_new(&self, key: &Key) -> bool {
        self.new.contains(key)
    }

    /// How many objects that lived here have gone.
    pub fn ended(&self, key: &Key) -> u64 {
        self.ended.get(key).copied().unwrap_or_default()
    }

    /// Reads one object.
    pub fn get(&self, key: &Key) -> Option<&Arc<Value>> {
        self.objects.get(key)
    }

    /// Every object in order.
    pub fn iter(&self) -> impl Iterator<Item = (&Key, &Arc<Value>)> {
        self.objects.iter()
    }

    /// The objects of a kind, of one namespace or all, in order.
    pub fn of_kind<'a>(
        &'a self,
        kind: KindId,
        namespace: Option<&'a str>,
    ) -> impl Iterator<Item = (&'a Key, &'a Arc<Value>)> {
        let start = Key {
            kind,
            namespace: namespace.unwrap_or_default().to_owned(),
            name: String::new(),
        };
        self.objects.range(start..).take_while(move |(key, _)| {
            key.kind == kind && namespace.is_none_or(|namespace| key.namespace == namespace)
        })
    }

    /// Writes an object that carries [`next`](Self::next) as its version, or removes it.
    pub fn commit(&mut self, key: Key, new: Option<Arc<Value>>) {
        self.revision += 1;
        let old = match &new {
            Some(object) => self.objects.insert(key.clone(), Arc::clone(object)),
            None => self.objects.remove(&key),
        };
        let kind = key.kind.0;
        self.changed[kind] = self.revision;
        match (&old, &new) {
            (None, Some(_)) => {
                self.made[kind] += 1;
                self.new.insert(key.clone());
            }
            (Some(_), None) => {
                self.removed[kind] += 1;
                *self.ended.entry(key.clone()).or_default() += 1;
                self.new.remove(&key);
            }
            _ => drop(self.new.remove(&key)),
        }
        self.log.push_back(Change {
            revision: self.revision,
            key,
            old,
            new,
        });
    }

    /// The changes after a version, oldest first.
    ///
    /// # Errors
    /// The oldest version that can be asked for, when this one cannot any more.
    pub fn since(&self, revision: u64) -> Result<impl Iterator<Item = &Change>, u64> {
        if revision < self.compacted {
            return Err(self.compacted);
        }
        let start = self.log.partition_point(|change| change.revision <= revision);
        Ok(self.log.range(start..))
    }

    /// The objects of a kind as they were at a version.
    ///
    /// # Errors
    /// As for [`since`](Self::since).
    pub fn at(
        &self,
        revision: u64,
        kind: KindId,
        namespace: Option<&str>,
    ) -> Result<BTreeMap<Key, Arc<Value>>, u64> {
        let mut objects: BTreeMap<Key, Arc<Value>> = self
            .of_kind(kind, namespace)
            .map(|(key, object)| (key.clone(), Arc::clone(object)))
            .collect();
        let changes: Vec<&Change> = self.since(revision)?.collect();
        let ours = changes.into_iter().rev().filter(|change| {
            change.key.kind == kind && namespace.is_none_or(|namespace| change.key.namespace == namespace)
        });
        for change in ours {
            match &change.old {
                Some(old) => drop(objects.insert(change.key.clone(), Arc::clone(old))),
                None => drop(objects.remove(&change.key)),
            }
        }
        Ok(objects)
    }

    /// Forgets the history up to now: whoever resumes from before must list anew.
    pub fn compact(&mut self) {
        self.log.clear();
        self.compacted = self.revision;
    }

    /// Moves the version on without a change, as other clients of etcd do.
    pub fn skip(&mut self, versions: u64) {
        self.revision += versions;
    }
}
