//! Makes caches and controllers, and runs everything until shutdown.

use std::fmt::Debug;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use k8s_openapi::NamespaceResourceScope;
use kube::core::DeserializeGuard;
use kube::{Api, Client, Resource};
use serde::{Serialize, de::DeserializeOwned};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use super::cache::{Cache, Watch};
use super::client::Clients;
use super::controller::{AnyController, Driver, Reconciler};
use super::events::{EventPublisher, EventWorker};
use super::gate::Gate;
use super::informer::{Delivered, Informer};
use super::lease::{Elector, Leadership};
use super::optional::{Link, Optional, Presence};
use super::readiness::Readiness;
use super::status::StatusPacer;
use super::time::{Clock, Jitter};
use crate::metrics::{Metrics, ScrapeGauge};

/// How long everything but the lease gets to end.
const STOP_LIMIT: Duration = Duration::from_secs(7);

/// What every visit shares.
pub struct Context {
    /// The client stack of [`client`](super::client). Writes go through [`Visit`](super::Visit) instead.
    pub client: Client,
    /// The wall clock.
    pub clock: Clock,
    /// Randomness for pauses.
    pub jitter: Jitter,
    /// This replica's leadership.
    pub leadership: Leadership,
    /// Kubernetes Events.
    pub events: EventPublisher,
    /// The metrics.
    pub metrics: Metrics,
    pub(super) gate: Gate,
    pub(super) status: StatusPacer,
}

/// How to run.
pub struct Options {
    /// The clients.
    pub clients: Clients,
    /// The wall clock.
    pub clock: Clock,
    /// Randomness for pauses.
    pub jitter: Jitter,
    /// The metrics, also given to [`client::connect`](super::client::connect).
    pub metrics: Metrics,
    /// What `/readyz` waits for.
    pub readiness: Readiness,
    /// The namespaces to watch; empty for all.
    pub namespaces: Vec<String>,
    /// Where and as whom to stand for election; none to lead without asking (one process, tests).
    pub election: Option<Election>,
}

/// Where and as whom to stand for election.
#[derive(Clone, Debug)]
pub struct Election {
    /// Namespace of the Lease.
    pub namespace: String,
    /// Name of the Lease.
    pub name: String,
    /// This replica: the pod's name.
    pub identity: String,
}

/// A core task ended although nobody asked it to: the process must end and be restarted.
#[derive(Debug, thiserror::Error)]
#[error("a task of the operator ended unexpectedly: {0}")]
pub struct TaskEnded(String);

type Task = (String, BoxFuture<'static, ()>);

/// Collects what is to run, then runs it.
pub struct Manager {
    context: Arc<Context>,
    namespaces: Vec<String>,
    readiness: Readiness,
    elector: Option<Elector>,
    events: EventWorker,
    informers: Vec<Task>,
    /// Plurals of the kinds that need not be there.
    optional: Vec<String>,
    controllers: Vec<Arc<dyn AnyController>>,
    tasks: Vec<(String, LeaderTask)>,
}

type LeaderTask = Box<dyn Fn(Arc<Context>) -> BoxFuture<'static, ()> + Send + Sync>;

impl Manager {
    /// A manager with nothing to run yet.
    pub fn new(options: Options) -> Self {
        let Options {
            clients,
            clock,
            jitter,
            metrics,
            readiness,
            mut namespaces,
            election,
        } = options;
        let (elector, leadership) = match election {
            Some(Election {
                namespace,
                name,
                identity,
            }) => {
                let clock = clock.clone();
                let (elector, leadership) = Elector::new(
                    clients.lease,
                    &namespace,
                    &name,
                    &identity,
                    clock,
                    metrics.clone(),
                );
                (Some(elector), leadership)
            }
            None => (None, Leadership::always()),
        };
        let (publisher, events) = EventPublisher::new(
            clients.api.clone(),
            leadership.clone(),
            clock.clone(),
            metrics.clone(),
        );
        namespaces.sort();
        namespaces.dedup();
        let context = Arc::new(Context {
            client: clients.api,
            clock,
            jitter,
            leadership,
            events: publisher,
            metrics,
            gate: Gate::default(),
            status: StatusPacer::default(),
        });
        show_caches(&context);
        Self {
            context,
            namespaces,
            readiness,
            elector,
            events,
            informers: Vec::new(),
            optional: Vec::new(),
            controllers: Vec::new(),
            tasks: Vec::new(),
        }
    }

    /// A cache of a kind whose objects always decode (built-in kinds, metadata). At most one per kind: make it in
    /// `caches.rs` and share it.
    pub fn cache<K>(&mut self, watch: Watch<K>) -> Cache<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + Serialize
            + DeserializeOwned
            + Debug
            + Send
            + Sync
            + 'static,
    {
        self.watched::<K, K>(watch, None)
    }

    /// A cache of a kind that the cluster need not have: nobody waits for it at the start, see [`Optional`].
    pub fn optional_cache<K>(&mut self, watch: Watch<K>) -> Optional<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + Serialize
            + DeserializeOwned
            + Debug
            + Send
            + Sync
            + 'static,
    {
        let link = Link::new();
        let cache = self.watched::<K, K>(watch, Some(link.clone()));
        Optional { cache, link }
    }

    /// A cache of one of our own kinds: an object that does not decode is reported and left alone, the others go on.
    pub fn guarded_cache<K>(&mut self, watch: Watch<K>) -> Cache<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + Serialize
            + DeserializeOwned
            + Debug
            + Send
            + Sync
            + 'static,
    {
        self.watched::<K, DeserializeGuard<K>>(watch, None)
    }

    fn watched<K, D>(&mut self, watch: Watch<K>, link: Option<Link>) -> Cache<K>
    where
        K: Resource<DynamicType = ()> + Serialize + Send + Sync + 'static,
        D: Delivered<K>
            + Resource<Scope = NamespaceResourceScope>
            + Clone
            + DeserializeOwned
            + Debug
            + Send
            + 'static,
    {
        let informer = Informer {
            labels: watch.labels.clone(),
            fields: watch.fields.clone(),
            metrics: self.context.metrics.clone(),
            jitter: self.context.jitter.clone(),
            link: link.clone(),
        };
        let shards = if self.namespaces.is_empty() {
            vec![String::new()]
        } else {
            self.namespaces.clone()
        };
        let cache = Cache::<K>::new(watch, shards.clone());
        let part = format!("cache of {}", K::plural(&()));
        match &link {
            Some(link) => {
                // One namespace's answer is not everybody's.
                shards.iter().for_each(|shard| link.set(shard, Presence::Unknown));
                self.optional.push(K::plural(&()).into_owned());
            }
            None => self.readiness.expect(&part),
        }
        for shard in shards {
            let client = self.context.client.clone();
            let api = if shard.is_empty() {
                Api::<D>::all(client)
            } else {
                Api::namespaced(client, &shard)
            };
            self.informers.push((
                part.clone(),
                informer.clone().run(cache.clone(), api, shard).boxed(),
            ));
        }
        self.context.gate.add_cache(Arc::new(cache.clone()));
        cache
    }

    /// Runs `task` whenever this replica leads: started with the leadership, dropped when it is lost. If it returns it
    /// is not started again before the next leadership.
    pub fn leader_task<F>(&mut self, name: &str, task: impl Fn(Arc<Context>) -> F + Send + Sync + 'static)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.tasks
            .push((name.to_owned(), Box::new(move |context| task(context).boxed())));
    }

    /// What every visit shares, for parts that are built before the run.
    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// The metrics.
    pub fn metrics(&self) -> &Metrics {
        &self.context.metrics
    }

    pub(super) fn add_controller<R: Reconciler>(&mut self, driver: Driver<R>) {
        self.controllers.push(Arc::new(driver));
    }

    /// Runs until `stop`: caches first, controllers once all caches are filled, visits while this replica leads. At
    /// the end running visits finish, then the lease is given up; all within 10 s.
    ///
    /// # Errors
    /// [`TaskEnded`] when a watch, the election or a controller ended by itself (a panic).
    pub async fn run(self, stop: CancellationToken) -> Result<(), TaskEnded> {
        let Self {
            context,
            readiness,
            elector,
            events,
            informers,
            optional,
            controllers,
            tasks,
            ..
        } = self;
        // Reconciles stop first, then watches and events, then the lease, so that the last writes are still fenced.
        let (stop_rest, stop_lease) = (CancellationToken::new(), CancellationToken::new());
        let mut core = JoinSet::new();
        for (name, task) in informers {
            let stop = stop_rest.clone();
            core.spawn(async move {
                stop.run_until_cancelled_owned(task).await;
                name
            });
        }
        let stop_events = stop_rest.clone();
        core.spawn(async move {
            events.run(stop_events).await;
            "events".to_owned()
        });
        let election = elector.map(|elector| tokio::spawn(elector.run(stop_lease.clone())));

        let mut working = JoinSet::new();
        let synced = Arc::clone(&context);
        let started = {
            let stop = stop.clone();
            async move {
                wait_for_caches(&synced, &optional, &readiness, &stop).await;
                info!("caches filled");
            }
        };
        let ended = tokio::select! {
            () = started => {
                for controller in controllers {
                    working.spawn(controller.run(Arc::clone(&context), stop.clone()));
                }
                for (name, task) in tasks {
                    working.spawn(run_while_leading(name, task, Arc::clone(&context), stop.clone()));
                }
                tokio::select! {
                    () = stop.cancelled() => None,
                    ended = core.join_next() => Some(format!("{ended:?}")),
                    ended = join_any(&mut working) => Some(format!("{ended:?}")),
                    () = ended_early(election.as_ref(), &stop) => Some("leader election".to_owned()),
                }
            }
            ended = core.join_next() => Some(format!("{ended:?}")),
            () = ended_early(election.as_ref(), &stop) => Some("leader election".to_owned()),
        };
        stop.cancel();
        let wind_down = async {
            while working.join_next().await.is_some() {}
            stop_rest.cancel();
            while core.join_next().await.is_some() {}
        };
        if tokio::time::timeout(STOP_LIMIT, wind_down).await.is_err() {
            error!("some work had not ended {STOP_LIMIT:?} after the stop");
        }
        stop_lease.cancel();
        if let Some(election) = election {
            let _ = election.await;
        }
        match ended {
            Some(task) if !task.is_empty() => Err(TaskEnded(task)),
            _ => Ok(()),
        }
    }
}

/// Resolves when a task of a set ended; never for an empty set.
async fn join_any(set: &mut JoinSet<()>) -> Result<(), tokio::task::JoinError> {
    match set.join_next().await {
        Some(ended) => ended,
        None => std::future::pending().await,
    }
}

/// Resolves when the election ended before the stop.
async fn ended_early(election: Option<&tokio::task::JoinHandle<()>>, stop: &CancellationToken) {
    const LOOK: Duration = Duration::from_secs(1);
    while let Some(election) = election
        && !election.is_finished()
        && !stop.is_cancelled()
    {
        tokio::time::sleep(LOOK).await;
    }
    if election.is_none() || stop.is_cancelled() {
        std::future::pending::<()>().await;
    }
}

async fn wait_for_caches(
    context: &Context,
    optional: &[String],
    readiness: &Readiness,
    stop: &CancellationToken,
) {
    let caches = context.gate.caches().into_iter();
    for cache in caches.filter(|cache| !optional.contains(&cache.resource().plural)) {
        let mut progress = cache.progress();
        while !cache.is_synced() && !stop.is_cancelled() {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = progress.changed() => {}
            }
        }
        readiness.done(&format!("cache of {}", cache.resource().plural));
    }
}

async fn run_while_leading(name: String, task: LeaderTask, context: Arc<Context>, stop: CancellationToken) {
    while !stop.is_cancelled() {
        tokio::select! {
            () = stop.cancelled() => return,
            () = context.leadership.acquired() => {}
        }
        let work = std::panic::AssertUnwindSafe(task(Arc::clone(&context))).catch_unwind();
        tokio::select! {
            () = stop.cancelled() => return,
            () = context.leadership.lost() => {}
            ended = work => {
                if ended.is_err() {
                    error!(task = name, "task panicked, starting it again");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                } else {
                    tokio::select! {
                        () = stop.cancelled() => return,
                        () = context.leadership.lost() => {}
                    }
                }
            }
        }
    }
}

/// Sizes of the caches, and how many objects do not decode, by kind.
fn show_caches(context: &Arc<Context>) {
    type Pick = fn((usize, usize)) -> usize;
    let gauges: [(&'static str, &'static str, Pick); 2] = [
        (
            "flotilla_cached_objects",
            "Objects held in memory by kind",
            |(objects, _)| objects,
        ),
        (
            "flotilla_undecodable_objects",
            "Objects that this version cannot read by kind",
            |(_, broken)| broken,
        ),
    ];
    for (name, help, pick) in gauges {
        let context_weak = Arc::downgrade(context);
        context
            .metrics
            .register_collector(Box::new(ScrapeGauge::new(name, help, "kind", move || {
                let caches = context_weak
                    .upgrade()
                    .map(|context| context.gate.caches())
                    .unwrap_or_default();
                caches
                    .iter()
                    .map(|cache| (cache.resource().kind.clone(), pick(cache.counts()) as f64))
                    .collect()
            })));
    }
}
