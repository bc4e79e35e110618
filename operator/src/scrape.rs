//! Reads `/stats` of gateways, pod by pod.
//!
//! A release moves on what gateways have done, so each one is asked by its pod's address: every second where somebody
//! is [eager](Scraper::set_eager) (a release, a start), every 15 s otherwise, for the providers' counters. None of this
//! touches the API server: which pods there are comes from the cache of pods. The newest answer of each is kept in
//! memory until its pod is gone. Who is eager is told of the first answer of each gateway, and then when what it says
//! of that pool has changed: a namespace where a thousand pools start at once is not visited a thousand times a second.
//!
//! A gateway that does not answer ten times in a row is asked more rarely, so that a namespace of dead addresses (fake
//! nodes in a scale test) costs next to nothing.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flotilla_core::stats::{self, PoolStats, RevisionStats, Stats};
use flotilla_crds::names;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use crate::runtime::{Cache, Key, Manager, key_of};

/// Pause between two questions to a gateway somebody is eager about.
pub const EAGER_PACE: Duration = Duration::from_secs(1);
/// Shortest pause between two questions, however many become eager.
pub const LEAST_PACE: Duration = Duration::from_millis(200);
/// Pause between two questions otherwise.
pub const IDLE_PACE: Duration = Duration::from_secs(15);
/// How long an answer speaks for the present: a few missed questions.
pub const FRESH: Duration = Duration::from_secs(5);
/// Longest wait for an answer.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Longest wait for a connection; addresses are in this cluster.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
/// Longest answer read. A report of a hundred pools with all their windows is a tenth of this.
const MAX_BODY: usize = 16 << 20;
/// Questions under way at once.
const CONCURRENCY: usize = 32;
/// After so many failures in a row a gateway is asked more rarely.
const PATIENCE: u32 = 10;
/// How much more rarely.
const WEARY: u32 = 5;

/// Asks one gateway. Replaced in the simulator.
pub trait Fetch: Send + Sync + 'static {
    /// The report of the gateway with this address, or a sentence why there is none.
    fn fetch(&self, address: IpAddr) -> BoxFuture<'static, Result<Stats, String>>;
}

/// Asks over HTTP, on the admin port.
pub struct HttpFetch(Client<HttpConnector, Empty<Bytes>>);

impl Default for HttpFetch {
    fn default() -> Self {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        connector.set_nodelay(true);
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(2 * IDLE_PACE)
            .pool_max_idle_per_host(1)
            .build(connector);
        Self(client)
    }
}

impl Fetch for HttpFetch {
    fn fetch(&self, address: IpAddr) -> BoxFuture<'static, Result<Stats, String>> {
        let authority = std::net::SocketAddr::new(address, names::GATEWAY_ADMIN_PORT);
        let uri = format!("http://{authority}/stats").parse::<hyper::Uri>();
        let client = self.0.clone();
        async move {
            let uri = uri.map_err(|error| error.to_string())?;
            let response = client.get(uri).await.map_err(|error| root_cause(&error))?;
            let status = response.status();
            let body = Limited::new(response.into_body(), MAX_BODY)
                .collect()
                .await
                .map_err(|error| error.to_string())?;
            if !status.is_success() {
                return Err(format!("it answered {status}"));
            }
            let stats: Stats = serde_json::from_slice(&body.to_bytes()).map_err(|error| error.to_string())?;
            match stats.version {
                stats::VERSION => Ok(stats),
                version => Err(format!(
                    "it speaks version {version} of /stats, not {}",
                    stats::VERSION
                )),
            }
        }
        .boxed()
    }
}

fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

/// What is known of one gateway pod.
#[derive(Clone, Debug)]
pub struct View {
    /// Name of the pod.
    pub pod: String,
    /// Whether it is ready and not about to stop.
    pub ready: bool,
    /// Its newest report.
    pub stats: Option<Arc<Stats>>,
    /// Whether that is recent enough to speak for the present, see [`FRESH`].
    pub fresh: bool,
    /// Why the last question had no answer.
    pub problem: Option<String>,
}

/// Begins the names under which providers are eager; the rest are pools.
pub const PROVIDER_PREFIX: &str = "modelproviders/";

type Listener = Box<dyn Fn(Key) + Send + Sync>;

/// Keeps the newest report of every gateway. Cheap to clone.
#[derive(Clone)]
pub struct Scraper(Arc<Inner>);

struct Inner {
    fetch: Arc<dyn Fetch>,
    state: Mutex<State>,
    changed: Notify,
    listeners: RwLock<Vec<Listener>>,
}

#[derive(Default)]
struct State {
    gateways: BTreeMap<Key, Gateway>,
    /// Who wants every second, and since when, by namespace.
    eager: HashMap<String, BTreeMap<Key, Instant>>,
}

struct Gateway {
    uid: String,
    address: Option<IpAddr>,
    ready: bool,
    due: Instant,
    asked: Option<Instant>,
    busy: bool,
    report: Option<(Instant, Arc<Stats>)>,
    problem: Option<String>,
    failures: u32,
}

impl fmt::Debug for Scraper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Scraper({} gateways)", self.0.state.lock().gateways.len())
    }
}

/// Makes the scraper and its task, which runs on the leader.
pub fn register(manager: &mut Manager, pods: &Cache<Pod>, fetch: Arc<dyn Fetch>) -> Scraper {
    let scraper = Scraper::new(fetch);
    let watching = scraper.clone();
    pods.on_change(move |change| match (&change.new, &change.old) {
        (Some(pod), _) => watching.take_in(pod),
        (None, Some(pod)) => watching.forget(pod),
        (None, None) => {}
    });
    let running = scraper.clone();
    manager.leader_task("scraper", move |_| running.clone().run());
    scraper
}

impl Scraper {
    fn new(fetch: Arc<dyn Fetch>) -> Self {
        Self(Arc::new(Inner {
            fetch,
            state: Mutex::default(),
            changed: Notify::new(),
            listeners: RwLock::default(),
        }))
    }

    /// Every gateway of a namespace, by name.
    pub fn views(&self, namespace: &str) -> Vec<View> {
        let now = Instant::now();
        let state = self.0.state.lock();
        let of_namespace = state.of_namespace(namespace);
        of_namespace
            .map(|(key, gateway)| View {
                pod: key.name.clone(),
                ready: gateway.ready,
                stats: gateway.report.as_ref().map(|(_, stats)| Arc::clone(stats)),
                fresh: gateway
                    .report
                    .as_ref()
                    .is_some_and(|(at, _)| now.duration_since(*at) <= FRESH),
                problem: gateway.problem.clone(),
            })
            .collect()
    }

    /// Says whether `who` wants to know every second what the gateways of its namespace do.
    pub fn set_eager(&self, who: &Key, eager: bool) {
        let mut state = self.0.state.lock();
        let is_new = if eager {
            let keys = state.eager.entry(who.namespace.clone()).or_default();
            let is_new = !keys.contains_key(who);
            if is_new {
                keys.insert(who.clone(), Instant::now());
            }
            is_new
        } else {
            if let Some(keys) = state.eager.get_mut(&who.namespace) {
                keys.remove(who);
                if keys.is_empty() {
                    state.eager.remove(&who.namespace);
                }
            }
            false
        };
        if is_new {
            state.hurry(&who.namespace);
            drop(state);
            self.0.changed.notify_one();
        }
    }

    /// Calls `listener` with whoever is eager about a namespace and learns something: an answer that is new to them,
    /// or its absence.
    pub fn on_report(&self, listener: impl Fn(Key) + Send + Sync + 'static) {
        self.0.listeners.write().push(Box::new(listener));
    }

    fn take_in(&self, pod: &Pod) {
        if !is_gateway(pod) {
            return;
        }
        let status = pod.status.as_ref();
        let is_over = status
            .and_then(|status| status.phase.as_deref())
            .is_some_and(|phase| phase == "Succeeded" || phase == "Failed");
        if is_over {
            return self.forget(pod);
        }
        let address = status
            .and_then(|status| status.pod_ip.as_deref())
            .and_then(|address| address.parse().ok());
        let conditions = status
            .and_then(|status| status.conditions.as_deref())
            .unwrap_or_default();
        let is_ready = conditions
            .iter()
            .any(|condition| condition.type_ == "Ready" && condition.status == "True");
        let ready = is_ready && pod.metadata.deletion_timestamp.is_none();
        let uid = pod.uid().unwrap_or_default();
        {
            let mut state = self.0.state.lock();
            let key = key_of(pod);
            let same = state
                .gateways
                .get(&key)
                .is_some_and(|gateway| gateway.uid == uid && gateway.address == address);
            if !same {
                state.gateways.insert(
                    key.clone(),
                    Gateway {
                        uid,
                        address,
                        ready,
                        due: Instant::now(),
                        asked: None,
                        busy: false,
                        report: None,
                        problem: None,
                        failures: 0,
                    },
                );
            }
            if let Some(gateway) = state.gateways.get_mut(&key) {
                if ready && !gateway.ready {
                    gateway.due = Instant::now();
                    gateway.failures = 0;
                }
                gateway.ready = ready;
            }
        }
        self.0.changed.notify_one();
        self.tell_all(&pod.namespace().unwrap_or_default());
    }

    fn forget(&self, pod: &Pod) {
        if is_gateway(pod) {
            self.0.state.lock().gateways.remove(&key_of(pod));
            self.tell_all(&pod.namespace().unwrap_or_default());
        }
    }

    /// Tells all who are eager about a namespace.
    fn tell_all(&self, namespace: &str) {
        let keys = match self.0.state.lock().eager.get(namespace) {
            Some(keys) => keys.keys().cloned().collect(),
            None => Vec::new(),
        };
        self.tell(keys);
    }

    fn tell(&self, keys: Vec<Key>) {
        let listeners = self.0.listeners.read();
        for key in keys {
            listeners.iter().for_each(|listener| listener(key.clone()));
        }
    }

    async fn run(self) {
        // An earlier leadership may have been lost in the middle of a question.
        self.0
            .state
            .lock()
            .gateways
            .values_mut()
            .for_each(|gateway| gateway.busy = false);
        let mut asking = JoinSet::new();
        loop {
            let now = Instant::now();
            let (due, next) = self
                .0
                .state
                .lock()
                .take_due(now, CONCURRENCY.saturating_sub(asking.len()));
            for (key, uid, address) in due {
                let question = self.0.fetch.fetch(address);
                asking.spawn(async move {
                    let answer = timeout(TIMEOUT, question).await;
                    let answer = answer.unwrap_or_else(|_| Err(format!("no answer within {TIMEOUT:?}")));
                    (key, uid, answer)
                });
            }
            tokio::select! {
                // In a fixed order, so that equal runs are equal.
                biased;
                Some(answered) = asking.join_next() => {
                    if let Ok((key, uid, answer)) = answered {
                        let learnt = self.0.state.lock().settle(&key, &uid, answer);
                        self.tell(learnt);
                    }
                }
                () = self.0.changed.notified() => {}
                () = sleep_until(next) => {}
            }
        }
    }
}

impl crate::provider::Reports for Scraper {
    fn of_namespace(&self, namespace: &str) -> Vec<Arc<Stats>> {
        self.views(namespace)
            .into_iter()
            .filter_map(|view| view.stats)
            .collect()
    }

    fn set_eager(&self, provider: &Key, eager: bool) {
        // A name that no pool has.
        let who = Key::new(&provider.namespace, format!("{PROVIDER_PREFIX}{}", provider.name));
        Scraper::set_eager(self, &who, eager);
    }
}

impl State {
    fn of_namespace<'a>(&'a self, namespace: &'a str) -> impl Iterator<Item = (&'a Key, &'a Gateway)> {
        let range = self.gateways.range(Key::new(namespace, "")..);
        range.take_while(move |(key, _)| key.namespace == namespace)
    }

    /// Somebody became eager: do not wait for what was planned.
    fn hurry(&mut self, namespace: &str) {
        let now = Instant::now();
        for (_, gateway) in self
            .gateways
            .iter_mut()
            .filter(|(key, _)| key.namespace == namespace)
        {
            let soonest = gateway.asked.map_or(now, |asked| now.max(asked + LEAST_PACE));
            gateway.due = gateway.due.min(soonest);
            gateway.failures = 0;
        }
    }

    /// At most `limit` gateways to ask now, and when the next one is due.
    fn take_due(&mut self, now: Instant, limit: usize) -> (Vec<(Key, String, IpAddr)>, Instant) {
        let mut due = Vec::new();
        let mut next = now + IDLE_PACE;
        for (key, gateway) in &mut self.gateways {
            let Some(address) = gateway.address.filter(|_| !gateway.busy) else {
                continue;
            };
            if gateway.due > now {
                next = next.min(gateway.due);
            } else if due.len() < limit {
                gateway.busy = true;
                gateway.asked = Some(now);
                due.push((key.clone(), gateway.uid.clone(), address));
            }
        }
        (due, next)
    }

    /// Keeps an answer; gives those who learn something from it.
    fn settle(&mut self, key: &Key, uid: &str, answer: Result<Stats, String>) -> Vec<Key> {
        let eager = self.eager.get(&key.namespace);
        let Some(gateway) = self.gateways.get_mut(key).filter(|gateway| gateway.uid == uid) else {
            return Vec::new();
        };
        let now = Instant::now();
        // Somebody who became eager while the question was on its way wants the next answer at once.
        let is_later = |since: &Instant| gateway.asked.is_some_and(|asked| *since > asked);
        let is_awaited = eager.is_some_and(|keys| keys.values().any(is_later));
        gateway.busy = false;
        let learnt = match answer {
            Ok(stats) => {
                let (before, stats) = (gateway.report.take(), Arc::new(stats));
                let had_problem = gateway.problem.take().is_some();
                gateway.failures = 0;
                let is_new = |who: &Key, since: Instant| match &before {
                    Some((at, before)) if *at >= since && !had_problem => {
                        !says_the_same(before.pools.get(&who.name), stats.pools.get(&who.name))
                    }
                    _ => true,
                };
                let learnt = eager.into_iter().flatten();
                let learnt = learnt
                    .filter(|(who, since)| is_new(who, **since))
                    .map(|(who, _)| who.clone())
                    .collect();
                gateway.report = Some((now, stats));
                learnt
            }
            Err(problem) => {
                gateway.problem = Some(problem);
                gateway.failures = gateway.failures.saturating_add(1);
                eager.into_iter().flat_map(BTreeMap::keys).cloned().collect()
            }
        };
        let pace = match eager {
            Some(_) if is_awaited && gateway.failures == 0 => LEAST_PACE,
            Some(_) => EAGER_PACE,
            None => IDLE_PACE,
        };
        gateway.due = now
            + if gateway.failures > PATIENCE {
                (pace * WEARY).min(IDLE_PACE)
            } else {
                pace
            };
        learnt
    }
}

/// Whether two reports differ in nothing a release moves on; counts are read when they are needed.
fn says_the_same(before: Option<&PoolStats>, after: Option<&PoolStats>) -> bool {
    let (Some(before), Some(after)) = (before, after) else {
        return before.is_none() && after.is_none();
    };
    let same_revision = |a: &RevisionStats, b: &RevisionStats| {
        (a.weight, &a.endpoints, a.in_flight == 0) == (b.weight, &b.endpoints, b.in_flight == 0)
            && a.in_flight_by_address.keys().eq(b.in_flight_by_address.keys())
    };
    before.traffic_generation == after.traffic_generation
        && before.port == after.port
        && before.revisions.len() == after.revisions.len()
        && before
            .revisions
            .iter()
            .zip(&after.revisions)
            .all(|((a, before), (b, after))| a == b && same_revision(before, after))
}

fn is_gateway(pod: &Pod) -> bool {
    pod.labels()
        .get(names::APP_NAME)
        .is_some_and(|name| name == names::GATEWAY)
}

#[cfg(test)]
mod tests;
