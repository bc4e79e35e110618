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

use flotilla_core::seeded::{self, Bug};
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
use super::key::Key;
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
        cache.on_change(move |change| adder.add(change.key.clone()));
        Self {
            name,
            cache: cache.clone(),
            queue,
        }
    }

    /// Visits the owners (of kind `K`, controller or not) of every child that changes.
    pub fn owns<C: Resource<DynamicType = ()> + 'static>(self, children: &Cache<C>) -> Self {
        self.watches(children, |child: &C| {
            let namespace = child.meta().namespace.clone().unwrap_or_default();
            let owners = child.meta().owner_references.iter().flatten();
            let ours =
                owners.filter(|owner| owner.kind == K::kind(&()) && owner.api_version == K::api_version(&()));
            ours.map(|owner| Key::new(namespace.clone(), owner.name.clone()))
                .collect()
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
            change
                .new
                .iter()
                .chain(&change.old)
                .flat_map(|object| keys(object))
                .for_each(|key| queue.add(key));
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

// === impl Driver ===

/// Longest visit. Every request has its own timeout; this is the last resort against one that was forgotten.
const VISIT_LIMIT: Duration = Duration::from_secs(60);
/// First pause after a failure; doubles up to [`Failure::backoff_cap`].
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// How long running visits get to end at a shutdown.
const DRAIN_LIMIT: Duration = Duration::from_secs(6);

pub(super) struct Driver<R: Reconciler> {
    name: &'static str,
    cache: Cache<R::Kind>,
    queue: Arc<Queue>,
    reconciler: R,
    metrics: ControllerMetrics,
    /// Consecutive failures per key; cleared by a success.
    failures: Mutex<std::collections::HashMap<Key, u32>>,
    /// The generations already reported as undecodable.
    reported: Mutex<std::collections::HashMap<Key, Option<i64>>>,
}

/// A controller of any kind, as the manager runs it.
pub(super) trait AnyController: Send + Sync {
    fn run(
        self: Arc<Self>,
        context: Arc<Context>,
        stop: CancellationToken,
    ) -> futures::future::BoxFuture<'static, ()>;
}

/// Why a visit failed, whatever the reconciler's error type.
struct Failed {
    category: &'static str,
    blame: Blame,
    cap: Duration,
    notable: bool,
    message: String,
}

impl Failed {
    fn of(error: &impl Failure) -> Self {
        Self {
            category: error.category(),
            blame: error.blame(),
            cap: error.backoff_cap(),
            notable: error.is_notable(),
            message: super::informer::Chain(error).to_string(),
        }
    }

    fn bug(category: &'static str, message: String) -> Self {
        Self {
            category,
            blame: Blame::Bug,
            cap: Duration::from_secs(300),
            notable: true,
            message,
        }
    }
}

impl<R: Reconciler> Driver<R> {
    fn new(controller: Controller<R::Kind>, reconciler: R, manager: &Manager) -> Self {
        let metrics = manager.metrics().controller(controller.name, CONCURRENCY);
        controller.queue.observe(metrics.clone());
        Self {
            name: controller.name,
            cache: controller.cache,
            queue: controller.queue,
            reconciler,
            metrics,
            failures: Mutex::default(),
            reported: Mutex::default(),
        }
    }

    /// Runs visits until leadership or the process ends; running visits end by themselves.
    async fn lead(
        self: &Arc<Self>,
        context: &Arc<Context>,
        work: &mut JoinSet<()>,
        stop: &CancellationToken,
    ) {
        self.cache.keys().into_iter().for_each(|key| self.queue.add(key));
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = context.leadership.lost() => {
                    warn!(controller = self.name, "leadership lost, holding still");
                    return;
                }
                Some(_) = work.join_next(), if !work.is_empty() => {}
                key = self.queue.next(), if work.len() < CONCURRENCY => {
                    work.spawn(Arc::clone(self).visit(Arc::clone(context), key));
                }
            }
        }
    }

    async fn visit(self: Arc<Self>, context: Arc<Context>, key: Key) {
        let Some(object) = self.cache.get(&key) else {
            self.absent(&context, &key).await;
            self.queue.done(&key, None);
            return;
        };
        self.metrics.active.inc();
        let started = Instant::now();
        let visit = Visit {
            context,
            controller: self.name,
            key: key.clone(),
            regarding: Regarding::of(&*object),
            again: Mutex::new(None),
        };
        let span = info_span!("reconcile", controller = self.name, object = %key);
        let guarded = AssertUnwindSafe(self.attempt(&visit)).catch_unwind();
        let result = match tokio::time::timeout(VISIT_LIMIT, guarded.instrument(span.clone())).await {
            Ok(Ok(result)) => result,
            Ok(Err(panic)) => {
                self.metrics.panics.inc();
                Err(Failed::bug(
                    "Panic",
                    format!(
                        "the reconcile panicked: {}",
                        crate::telemetry::panic_text(&*panic)
                    ),
                ))
            }
            Err(_) => Err(Failed::bug(
                "VisitTimeout",
                format!("the reconcile took over {VISIT_LIMIT:?}"),
            )),
        };
        let took = started.elapsed().as_secs_f64();
        self.metrics.active.dec();
        self.metrics.reconcile_time.observe(took);
        self.metrics.work_duration.observe(took);
        let wished = *visit.again.lock();
        let pause = span.in_scope(|| self.conclude(&visit, &key, result));
        let pause = match (pause, wished) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        self.queue.done(&key, pause.map(|pause| Instant::now() + pause));
    }

    async fn attempt(&self, visit: &Visit) -> Result<Next, Failed> {
        let context = &visit.context;
        let visitor = (self.name, &visit.key);
        context
            .gate
            .pass(&context.client, visitor)
            .await
            .map_err(|error| Failed::of(&error))?;
        // The caches may have moved on while the gate was closed.
        let Some(object) = self.cache.get(&visit.key) else {
            return Ok(Next::on_change());
        };
        self.reconciler
            .reconcile(object, visit)
            .await
            .map_err(|error| Failed::of(&error))
    }

    /// Counts, logs and reports a visit's end; gives the pause until the next one.
    fn conclude(&self, visit: &Visit, key: &Key, result: Result<Next, Failed>) -> Option<Duration> {
        let failed = match result {
            Ok(Next(pause)) => {
                self.failures.lock().remove(key);
                let result = if pause.is_some() {
                    ReconcileResult::RequeueAfter
                } else {
                    ReconcileResult::Success
                };
                self.metrics.finished(result);
                return pause;
            }
            Err(failed) => failed,
        };
        self.metrics.failed(failed.category);
        if failed.notable {
            visit.note(Note::warning(failed.category, failed.message.clone()));
        }
        if failed.blame == Blame::User || seeded::has(Bug::NoRetry) {
            self.failures.lock().remove(key);
            self.metrics.finished(ReconcileResult::TerminalError);
            warn!(
                category = failed.category,
                error = failed.message,
                "waiting for the object to be mended"
            );
            return None;
        }
        let count = {
            let mut failures = self.failures.lock();
            let count = failures.entry(key.clone()).or_default();
            *count = count.saturating_add(1);
            *count
        };
        self.metrics.finished(ReconcileResult::Error);
        self.metrics.retries.inc();
        let pause = visit.context.jitter.spread(pause_after(count, failed.cap));
        let pause_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
        match (failed.blame, failed.notable) {
            (Blame::Bug, _) => error!(
                category = failed.category,
                error = failed.message,
                pause_ms,
                "reconcile failed"
            ),
            (_, true) => warn!(
                category = failed.category,
                error = failed.message,
                pause_ms,
                "reconcile failed"
            ),
            (_, false) => debug!(
                category = failed.category,
                error = failed.message,
                pause_ms,
                "reconcile put off"
            ),
        }
        Some(pause)
    }

    /// The cache has no such object: it is gone, or does not decode.
    async fn absent(&self, context: &Arc<Context>, key: &Key) {
        let Some(undecodable) = self.cache.undecodable(key) else {
            self.failures.lock().remove(key);
            self.reported.lock().remove(key);
            context.gate.forget((self.name, key));
            context.status.forget(self.cache.resource(), key);
            self.reconciler.forget(key);
            return;
        };
        let generation = undecodable.metadata.generation;
        if self.reported.lock().insert(key.clone(), generation) == Some(generation) {
            return;
        }
        let message = format!(
            "this version of the operator cannot read the object: {}",
            undecodable.error
        );
        let regarding = Regarding::from_parts(self.cache.resource(), &undecodable.metadata);
        context
            .events
            .publish(regarding, Note::warning("Undecodable", message.clone()));
        let resource = self.cache.resource();
        let marked =
            super::status::mark_undecodable(context, resource, key, &undecodable.metadata, &message).await;
        if let Err(error) = marked {
            debug!(%key, error = %super::informer::Chain(&error), "failed to mark an undecodable object");
        }
    }
}

impl<R: Reconciler> AnyController for Driver<R> {
    fn run(
        self: Arc<Self>,
        context: Arc<Context>,
        stop: CancellationToken,
    ) -> futures::future::BoxFuture<'static, ()> {
        async move {
            let mut work = JoinSet::new();
            while !stop.is_cancelled() {
                tokio::select! {
                    () = stop.cancelled() => break,
                    () = context.leadership.acquired() => {}
                }
                self.lead(&context, &mut work, &stop).await;
            }
            let drained = async { while work.join_next().await.is_some() {} };
            if tokio::time::timeout(DRAIN_LIMIT, drained).await.is_err() {
                warn!(
                    controller = self.name,
                    "reconciles still ran at the end of the shutdown"
                );
            }
        }
        .boxed()
    }
}

/// The pause after the `count`-th failure in a row, without jitter.
fn pause_after(count: u32, cap: Duration) -> Duration {
    let doublings = count.saturating_sub(1).min(16);
    FIRST_PAUSE
        .saturating_mul(1 << doublings)
        .min(cap)
        .max(FIRST_PAUSE)
}

#[cfg(test)]
mod tests;
