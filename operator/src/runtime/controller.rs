//! The driver of one kind: triggers in, visits out.
//!
//! One dispatcher takes keys from the queue and gives them to at most [`CONCURRENCY`] workers; a key is never
//! worked on twice at once. Each visit is a future under `catch_unwind`: a panic is an error of that key
//! alone, with a long back-off, and is counted. A key whose last write the caches have not seen yet is held back
//! first (see [`gate`](super::gate)).

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use kube::Resource;
use parking_lot::Mutex;
use serde::Serialize;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, debug, error, info_span, warn};

use super::cache::Cache;
use super::errors::{Blame, Failure};
use super::events::{Note, Regarding};
use super::key::{Key, key_of, uid_of};
use super::manager::{Context, Manager};
use super::queue::Queue;
use super::visit::Visit;
use crate::metrics::{ControllerMetrics, ReconcileResult};

/// How many objects of a kind are worked on at once.
pub const CONCURRENCY: usize = 16;

/// When to visit an object again if nothing happens to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Next(Option<Duration>);

impl Next {
    /// Only when the object, a child or anything watched changes, or somebody triggers it.
    pub const fn on_change() -> Self {
        Self(None)
    }

    /// At the latest after this pause. The answer of the latest visit replaces that of the one before.
    pub const fn after(pause: Duration) -> Self {
        Self(Some(pause))
    }
}

/// Brings objects of one kind to their desired state.
pub trait Reconciler: Send + Sync + 'static {
    /// The kind it is for.
    type Kind: Resource<DynamicType = ()> + Serialize + Send + Sync + 'static;
    /// Its errors, told apart by who can act.
    type Error: Failure;

    /// One visit. `object` comes from the cache and has seen every write of earlier visits.
    fn reconcile(
        &self,
        object: Arc<Self::Kind>,
        visit: &Visit,
    ) -> impl Future<Output = Result<Next, Self::Error>> + Send;

    /// The object is gone: drop what is remembered about it. No request is needed, children are collected.
    fn forget(&self, key: &Key) {
        let _ = key;
    }
}

/// Asks for visits from outside the watches: a scraper, a timer, another controller. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Trigger(Arc<Queue>);

impl Trigger {
    /// A visit as soon as a worker is free; many triggers before it make one visit.
    pub fn now(&self, key: Key) {
        self.0.add(key);
    }

    /// A visit in `pause`, unless one is already due earlier from such a trigger.
    pub fn after(&self, key: Key, pause: Duration) {
        self.0.add_after(key, Instant::now() + pause);
    }
}

/// Declares what leads to visits of one kind.
pub struct Controller<K> {
    name: &'static str,
    cache: Cache<K>,
    queue: Arc<Queue>,
}

impl<K: Resource<DynamicType = ()> + Serialize + Send + Sync + 'static> Controller<K> {
    /// A controller of the objects in `cache`; `name` is its metric label and log field, lower case.
    pub fn new(name: &'static str, cache: &Cache<K>) -> Self {
        let queue = Arc::new(Queue::new());
        let adder = Arc::clone(&queue);
        cache.on_change(move |change| {
            change.new.iter().chain(&change.old).take(1).for_each(|object| adder.add(key_of(&**object)));
        });
        Self { name, cache: cache.clone(), queue }
    }

    /// Visits the owners (of kind `K`, controller or not) of every child that changes.
    pub fn owns<C: Resource<DynamicType = ()> + 'static>(self, children: &Cache<C>) -> Self {
        self.watches(children, |child: &C| {
            let namespace = child.meta().namespace.clone().unwrap_or_default();
            let owners = child.meta().owner_references.iter().flatten();
            let ours = owners.filter(|owner| owner.kind == K::kind(&()) && owner.api_version == K::api_version(&()));
            ours.map(|owner| Key::new(namespace.clone(), owner.name.clone())).collect()
        })
    }

    /// Visits the objects that `keys` names for every change of something else, both as it was and as it is.
    pub fn watches<C: Resource<DynamicType = ()> + 'static>(
        self,
        others: &Cache<C>,
        keys: impl Fn(&C) -> Vec<Key> + Send + Sync + 'static,
    ) -> Self {
        let queue = Arc::clone(&self.queue);
        others.on_change(move |change| {
            change.new.iter().chain(&change.old).flat_map(|object| keys(object)).for_each(|key| queue.add(key));
        });
        self
    }

    /// A handle that asks for visits; usable before the controller runs.
    pub fn trigger(&self) -> Trigger {
        Trigger(Arc::clone(&self.queue))
    }

    /// Hands the controller to the manager, which runs it while this replica leads.
    pub fn register<R: Reconciler<Kind = K>>(self, manager: &mut Manager, reconciler: R) -> Trigger {
        let trigger = self.trigger();
        let driver = Driver::new(self, reconciler, manager);
        manager.add_controller(driver);
        trigger
    }
}
