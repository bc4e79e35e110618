//! Gateways in one process, in virtual time: each with clocks, a network and a store that can be cut off, and a provider that
//! counts for itself.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use flotilla_core::quota::{Reply, Terms};
use flotilla_gateway::config::{Config, Quota};
use flotilla_gateway::egress::quota::store::{Claim, Contents, Memory, StoreError, Version};
use flotilla_gateway::egress::quota::{
    Ask, Clock, Message, Pace, Quotas, SendError, Setup, Store, Transport, Used, Word,
};
use flotilla_gateway::peers::Peers;
use futures::future::BoxFuture;
use http::{HeaderMap, StatusCode};
use parking_lot::Mutex;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// The longest time in which the provider answers, as gateways have it by default.
const WITHIN: Duration = Duration::from_secs(600);
/// Until a pod that was deleted is in nobody's list of gateways any more.
const NOTICED: Duration = Duration::from_secs(1);

/// The store as one gateway reaches it.
#[derive(Debug)]
struct Reach {
    store: Arc<Memory>,
    cut: Arc<AtomicBool>,
}

impl Reach {
    async fn pass(&self) -> Result<(), StoreError> {
        tokio::time::sleep(Duration::from_millis(3)).await;
        if self.cut.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_millis(500)).await;
            return Err(StoreError::Unclear("cut off".into()));
        }
        Ok(())
    }
}

impl Store for Reach {
    fn claim(&self) -> BoxFuture<'_, Result<Option<Claim>, StoreError>> {
        Box::pin(async {
            self.pass().await?;
            self.store.claim().await
        })
    }
    fn put_claim(&self, claim: Claim) -> BoxFuture<'_, Result<Claim, StoreError>> {
        Box::pin(async {
            self.pass().await?;
            self.store.put_claim(claim).await
        })
    }
    fn read(&self) -> BoxFuture<'_, Result<(Version, Contents), StoreError>> {
        Box::pin(async {
            self.pass().await?;
            self.store.read().await
        })
    }
    fn write(&self, version: Version, entries: Contents) -> BoxFuture<'_, Result<Version, StoreError>> {
        Box::pin(async {
            self.pass().await?;
            self.store.write(version, entries).await
        })
    }
}

#[derive(Default)]
struct Network {
    gateways: Mutex<BTreeMap<String, Arc<Quotas>>>,
    /// Addresses from which nothing comes back: packets are dropped, not refused.
    cut: Mutex<BTreeSet<String>>,
}

/// The network as one gateway reaches it.
struct Wire {
    from: String,
    network: Arc<Network>,
    peers: Arc<Peers>,
}

impl Wire {
    async fn reach(&self, pod: &str) -> Result<Arc<Quotas>, SendError> {
        if self.peers.has_left(pod) {
            return Err(SendError::Ended("its pod is gone".into()));
        }
        if self.peers.has_left(&self.from) {
            return Err(SendError::Unwilling("only gateways report here".into()));
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
        let is_cut = {
            let cut = self.network.cut.lock();
            cut.contains(pod) || cut.contains(&self.from)
        };
        if is_cut {
            tokio::time::sleep(Duration::from_secs(60)).await;
        }
        let gateway = self.network.gateways.lock().get(pod).cloned();
        gateway.ok_or_else(|| SendError::Ended("connection refused".into()))
    }
}

impl Transport for Wire {
    fn send<'a>(&'a self, pod: &'a str, message: Message) -> BoxFuture<'a, Result<Option<Reply>, SendError>> {
        Box::pin(async move {
            let gateway = self.reach(pod).await?;
            let reply = gateway.answer(message).await;
            let reply = reply.ok_or_else(|| SendError::Unwilling("not elected".into()))?;
            tokio::time::sleep(Duration::from_millis(1)).await;
            Ok(reply)
        })
    }

    fn vouch<'a>(&'a self, pod: &'a str, word: Word) -> BoxFuture<'a, Result<(), SendError>> {
        Box::pin(async move {
            let gateway = self.reach(pod).await?;
            let agreed = gateway.vouch(word);
            tokio::time::sleep(Duration::from_millis(1)).await;
            agreed
                .then_some(())
                .ok_or_else(|| SendError::Unwilling("no witness".into()))
        })
    }
}

/// What the provider counted: instants after the start in milliseconds, and units.
#[derive(Default)]
pub struct Provider {
    counted: Mutex<Vec<(u64, u64)>>,
    pub largest_error: AtomicU64,
    /// In milliseconds, of one that was answered.
    pub longest_wait: AtomicU64,
}

impl Provider {
    /// The most units in any stretch of this length.
    pub fn most(&self, window: Duration) -> u64 {
        let mut counted = self.counted.lock().clone();
        counted.sort_unstable();
        let window = window.as_millis() as u64;
        let (mut first, mut sum, mut most) = (0, 0, 0);
        for (at, units) in &counted {
            sum += units;
            while counted[first].0 + window <= *at {
                sum -= counted[first].1;
                first += 1;
            }
            most = most.max(sum);
        }
        most
    }

    /// Units counted from one instant to another.
    pub fn between(&self, from: Duration, to: Duration) -> u64 {
        let span = from.as_millis() as u64..to.as_millis() as u64;
        self.counted
            .lock()
            .iter()
            .filter(|(at, _)| span.contains(at))
            .map(|(_, units)| units)
            .sum()
    }
}

/// One gateway's process.
pub struct Process {
    pub quotas: Arc<Quotas>,
    store_cut: Arc<AtomicBool>,
    stop: CancellationToken,
    agents: Vec<JoinHandle<()>>,
}

pub struct World {
    pub provider: Arc<Provider>,
    pub refused: Arc<AtomicU64>,
    /// Milliseconds by which the system's clock is wrong.
    pub clock_error: Arc<AtomicI64>,
    pub processes: BTreeMap<String, Process>,
    quotas: Vec<Quota>,
    started: Instant,
    store: Arc<Memory>,
    network: Arc<Network>,
    peers: Arc<Peers>,
    pods: Arc<Mutex<BTreeSet<String>>>,
    lives: u64,
    weighs: bool,
}

/// Agents of one pool at one gateway.
#[derive(Clone, Copy)]
pub struct Load {
    pub pool: &'static str,
    pub agents: usize,
    /// Between one request's end and the next one's start; if `open`, between their starts.
    pub pause: Duration,
    /// Requests come whether earlier ones have ended or not.
    pub open: bool,
}

impl World {
    pub fn new(quota: serde_json::Value) -> Self {
        let quota: Quota = serde_json::from_value(quota).unwrap();
        let weighs = !matches!(quota.resource, flotilla_crds::quota::QuotaResource::Requests);
        Self {
            provider: Arc::default(),
            refused: Arc::default(),
            clock_error: Arc::default(),
            processes: BTreeMap::new(),
            quotas: vec![quota],
            started: Instant::now(),
            store: Arc::default(),
            network: Arc::default(),
            peers: Arc::new(Peers::new(9090)),
            pods: Arc::default(),
            lives: 0,
            weighs,
        }
    }

    /// One more quota, for gateways that start from now on.
    pub fn add(&mut self, quota: serde_json::Value) {
        self.quotas.push(serde_json::from_value(quota).unwrap());
    }

    /// Starts a gateway in a pod, and agents that use it.
    pub fn start(&mut self, pod: &str, load: &[Load]) {
        self.lives += 1;
        let (started, error) = (self.started, self.clock_error.clone());
        let store_cut = Arc::new(AtomicBool::new(false));
        let stop = CancellationToken::new();
        let quotas = Quotas::start(
            Setup {
                pod: pod.to_owned(),
                instance: self.lives.to_string(),
                within: WITHIN,
                terms: Terms::default(),
                pace: Pace::default(),
                store: Arc::new(Reach {
                    store: self.store.clone(),
                    cut: store_cut.clone(),
                }),
                peers: self.peers.clone(),
                transport: Arc::new(Wire {
                    from: pod.to_owned(),
                    network: self.network.clone(),
                    peers: self.peers.clone(),
                }),
                clock: Clock::new(move || {
                    // 2026-11-05T12:00:00Z.
                    1_793_880_000_000 + started.elapsed().as_millis() as i64 + error.load(Ordering::SeqCst)
                }),
            },
            stop.clone(),
        );
        quotas.set([("main", self.quotas.as_slice())].into_iter());
        self.network
            .gateways
            .lock()
            .insert(pod.to_owned(), quotas.clone());
        let mut agents = Vec::new();
        for (index, load) in load.iter().enumerate() {
            for agent in 0..load.agents {
                let seed = self.lives * 1_000_003 + index as u64 * 10_007 + agent as u64;
                agents.push(tokio::spawn(self.agent(quotas.clone(), *load, seed)));
            }
        }
        let process = Process {
            quotas,
            store_cut,
            stop,
            agents,
        };
        self.processes.insert(pod.to_owned(), process);
        self.pods.lock().insert(pod.to_owned());
        self.tell_who_is_there();
    }

    /// What every gateway's ModelProvider says from now on; without a quota it has none.
    pub fn set(&mut self, quota: Option<serde_json::Value>) {
        self.quotas = quota
            .map(|quota| serde_json::from_value(quota).unwrap())
            .into_iter()
            .collect();
        for process in self.processes.values() {
            process.quotas.set([("main", self.quotas.as_slice())].into_iter());
        }
    }

    fn agent_at(&self, quotas: Arc<Quotas>, pool: &'static str, patience: Duration) -> Agent {
        Agent {
            quotas,
            provider: self.provider.clone(),
            refused: self.refused.clone(),
            started: self.started,
            weighs: self.weighs,
            pool,
            patience,
        }
    }

    /// One request after another to the gateway in `pod`, or to another where that one is gone; whether earlier ones have ended
    /// or not.
    pub fn stream(&self, pod: &str, every: Duration, patience: Duration, count: u32) -> JoinHandle<()> {
        let (network, peers, pod) = (self.network.clone(), self.peers.clone(), pod.to_owned());
        let somebody = network.gateways.lock().values().next().cloned().unwrap();
        let agent = self.agent_at(somebody, "support", patience);
        tokio::spawn(async move {
            let mut under_way = JoinSet::new();
            for number in 0..count {
                let gateway = {
                    let gateways = network.gateways.lock();
                    let there = gateways.iter().filter(|(pod, _)| peers.has(pod));
                    let mut there = there.map(|(_, gateway)| gateway);
                    let own = gateways.get(&pod).filter(|_| peers.has(&pod));
                    own.or_else(|| there.next()).cloned()
                };
                let agent = Agent {
                    quotas: gateway.unwrap(),
                    ..agent.clone()
                };
                under_way.spawn(agent.request(u64::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15)));
                tokio::time::sleep(every).await;
            }
            while under_way.join_next().await.is_some() {}
        })
    }

    fn agent(&self, quotas: Arc<Quotas>, load: Load, seed: u64) -> impl Future<Output = ()> + use<> {
        let agent = self.agent_at(quotas, load.pool, Duration::from_secs(600));
        async move {
            // Ends with the agent.
            let mut under_way = JoinSet::new();
            for number in 0u64.. {
                let request = agent
                    .clone()
                    .request(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ number << 20);
                if load.open {
                    under_way.spawn(request);
                    while under_way.try_join_next().is_some() {}
                } else {
                    request.await;
                }
                tokio::time::sleep(load.pause).await;
            }
        }
    }

    /// The pod that deals out the quotas.
    pub fn elected(&self) -> Option<String> {
        let mut all = self.processes.iter();
        all.find(|(_, process)| process.quotas.is_elected())
            .map(|(pod, _)| pod.clone())
    }

    /// Ends a process without a word, as a container is killed: its machine says so to who connects. What it has sent is still
    /// counted by the provider.
    pub fn kill(&mut self, pod: &str) {
        let Some(process) = self.processes.remove(pod) else {
            return;
        };
        process.store_cut.store(true, Ordering::SeqCst);
        process.stop.cancel();
        process.agents.iter().for_each(JoinHandle::abort);
        self.network.gateways.lock().remove(pod);
    }

    /// The same, with its pod and its address: nothing answers there, and it is taken off the list a moment later.
    pub fn vanish(&mut self, pod: &str) {
        self.network.cut.lock().insert(pod.to_owned());
        self.kill(pod);
        let (pods, peers, pod) = (self.pods.clone(), self.peers.clone(), pod.to_owned());
        let network = self.network.clone();
        tokio::spawn(async move {
            tokio::time::sleep(NOTICED).await;
            pods.lock().remove(&pod);
            tell_who_is_there(&pods, &peers, &network);
        });
    }

    /// Takes a pod off everybody's list; its process goes on for some time, and then ends without a word. So does a pod that is
    /// deleted by force.
    pub async fn delete(&mut self, pod: &str, afterlife: Duration) {
        self.pods.lock().remove(pod);
        self.tell_who_is_there();
        tokio::time::sleep(afterlife).await;
        self.network.cut.lock().insert(pod.to_owned());
        self.kill(pod);
    }

    /// Ends a process as a drain does.
    pub async fn leave(&mut self, pod: &str) {
        let Some(process) = self.processes.remove(pod) else {
            return;
        };
        process.agents.iter().for_each(JoinHandle::abort);
        process.quotas.leave().await;
        process.stop.cancel();
        self.network.gateways.lock().remove(pod);
        self.pods.lock().remove(pod);
        self.tell_who_is_there();
    }

    /// Cuts a gateway off from the others and from the store, or heals it.
    pub fn cut(&self, pod: &str, cut: bool) {
        if let Some(process) = self.processes.get(pod) {
            process.store_cut.store(cut, Ordering::SeqCst);
        }
        let mut all = self.network.cut.lock();
        if cut {
            all.insert(pod.to_owned());
        } else {
            all.remove(pod);
        }
    }

    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::SeqCst)
    }

    fn tell_who_is_there(&self) {
        tell_who_is_there(&self.pods, &self.peers, &self.network);
    }
}

fn tell_who_is_there(pods: &Mutex<BTreeSet<String>>, peers: &Peers, network: &Network) {
    let address = std::net::IpAddr::from([10, 0, 0, 1]);
    peers.apply(&Config {
        gateway_pods: pods.lock().iter().map(|pod| (pod.clone(), address)).collect(),
        ..Config::default()
    });
    for gateway in network.gateways.lock().values() {
        gateway.see_who_is_there();
    }
}

#[derive(Clone)]
struct Agent {
    quotas: Arc<Quotas>,
    provider: Arc<Provider>,
    refused: Arc<AtomicU64>,
    started: Instant,
    weighs: bool,
    pool: &'static str,
    /// How long a request waits.
    patience: Duration,
}

impl Agent {
    async fn request(self, seed: u64) {
        let mut dice = seed | 1;
        let mut draw = |bound: u64| {
            for _ in 0..3 {
                dice ^= dice << 13;
                dice ^= dice >> 7;
                dice ^= dice << 17;
            }
            dice % bound
        };
        // English has about four bytes a token; the first few estimates know nothing.
        let (input, output) = (100 + draw(100), 50 + draw(100));
        let ask = Ask {
            pool: self.pool,
            model: Some("mini"),
            bytes: input * 4,
            max_tokens: Some(200),
            deadline: Instant::now() + self.patience,
        };
        let Ok(Some(mut permit)) = self.quotas.reserve("main", ask).await else {
            self.refused.fetch_add(1, Ordering::SeqCst);
            return tokio::time::sleep(Duration::from_secs(1)).await;
        };
        let waited = permit.waited().as_millis() as u64;
        self.provider.longest_wait.fetch_max(waited, Ordering::SeqCst);
        let head = 20 + draw(180);
        let counted_after = draw(head + 1);
        tokio::time::sleep(Duration::from_millis(counted_after)).await;
        let units = if self.weighs { input + output } else { 1 };
        if self.weighs {
            let error = units.saturating_sub(permit.reserved_tokens());
            self.provider.largest_error.fetch_max(error, Ordering::SeqCst);
        }
        let at = self.started.elapsed().as_millis() as u64;
        self.provider.counted.lock().push((at, units));
        tokio::time::sleep(Duration::from_millis(head - counted_after)).await;
        permit.answered(StatusCode::OK, &HeaderMap::new());
        tokio::time::sleep(Duration::from_millis(draw(300))).await;
        permit.settle(Used {
            input: Some(input),
            output: Some(output),
        });
    }
}
