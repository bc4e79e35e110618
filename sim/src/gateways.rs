//! Gateways as the operator sees them: `/stats` of each gateway pod, with traffic by lot.
//!
//! A gateway is whatever pod carries the gateway's label and is ready. It applies the traffic of each pool's status
//! a little after it changes, sees the endpoints of the revisions' EndpointSlices, and counts requests that a [`Traffic`]
//! sends, split by the weights in force. Counts of a window are drawn once the window is over or asked for, from
//! the seed, so equal runs give equal evidence.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use flotilla_core::stats::{
    Credential, PoolStats, ProviderStats, RevisionStats, Stats, VERSION, WINDOW_SECONDS, WindowStats,
};
use flotilla_crds::names;
use parking_lot::Mutex;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use serde_json::Value;

use crate::cluster::Cluster;

/// Windows a gateway keeps.
const KEPT: i64 = 20;

/// What users do, and how revisions answer.
pub trait Traffic: Send + Sync {
    /// Requests per second to a pool, at this second since the Unix epoch.
    fn rate(&self, pool: &Value, second: i64) -> f64;

    /// How an image's pods answer.
    fn manner(&self, image: &str, second: i64) -> Manner;
}

/// How a revision's requests fare.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Manner {
    /// Share of them that fail.
    pub failing: f64,
    /// Median latency in milliseconds.
    pub latency: f64,
    /// The part of a request's time after which the first byte of its answer comes.
    pub first_byte: f64,
    /// The part of them, by weight, that reach it; the others reach another revision.
    pub reaching: f64,
}

impl Default for Manner {
    fn default() -> Self {
        Self {
            failing: 0.0,
            latency: 100.0,
            first_byte: 0.5,
            reaching: 1.0,
        }
    }
}

/// Nobody asks anything.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silence;

impl Traffic for Silence {
    fn rate(&self, _: &Value, _: i64) -> f64 {
        0.0
    }

    fn manner(&self, _: &str, _: i64) -> Manner {
        Manner::default()
    }
}

/// The same rate to every pool; failures by image.
#[derive(Clone, Debug, Default)]
pub struct Steady {
    /// Requests per second to each pool.
    pub rate: f64,
    /// Share of failures by a part of the image's name; others never fail.
    pub failing: Vec<(String, f64)>,
}

impl Traffic for Steady {
    fn rate(&self, _: &Value, _: i64) -> f64 {
        self.rate
    }

    fn manner(&self, image: &str, _: i64) -> Manner {
        let found = self
            .failing
            .iter()
            .find(|(part, _)| image.contains(part.as_str()));
        Manner {
            failing: found.map_or(0.0, |(_, share)| *share),
            latency: 120.0,
            ..Manner::default()
        }
    }
}

/// All gateways of a cluster. Cheap to clone.
#[derive(Clone)]
pub struct Gateways {
    cluster: Cluster,
    traffic: Arc<dyn Traffic>,
    lag: Duration,
    seed: u64,
    state: Arc<Mutex<BTreeMap<String, Process>>>,
    timeline: Arc<Mutex<Vec<Applied>>>,
    muted: Arc<AtomicBool>,
}

/// Weights that one gateway has put in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// The store's version when it did so.
    pub at: u64,
    /// UID of the gateway's pod.
    pub gateway: String,
    /// `namespace/pool`.
    pub pool: String,
    /// Weights by revision.
    pub weights: BTreeMap<String, i32>,
}

impl std::fmt::Debug for Gateways {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Gateways({} processes)", self.state.lock().len())
    }
}

/// One gateway process.
#[derive(Debug, Default)]
struct Process {
    pools: BTreeMap<String, Served>,
    served_until: i64,
}

/// What one process does for one pool.
#[derive(Clone, Debug, Default)]
struct Served {
    /// What is in force.
    applied: Option<Shares>,
    /// What was seen last, and when.
    coming: Option<(Shares, Duration)>,
    /// Counts by revision, window and epoch.
    windows: BTreeMap<(String, i64, i64), WindowStats>,
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Shares {
    generation: i64,
    weights: BTreeMap<String, i32>,
}

impl Gateways {
    /// Gateways that apply a change `lag` after they are first asked while it is there.
    pub fn new(cluster: &Cluster, traffic: Arc<dyn Traffic>, lag: Duration, seed: u64) -> Self {
        Self {
            cluster: cluster.clone(),
            traffic,
            lag,
            seed,
            state: Arc::default(),
            timeline: Arc::default(),
            muted: Arc::default(),
        }
    }

    /// Whether nobody answers from now on; requests are served all the same.
    pub fn mute(&self, is_muted: bool) {
        self.muted.store(is_muted, Ordering::Relaxed);
    }

    /// Everything that gateways have put in force, in order.
    pub fn timeline(&self) -> Vec<Applied> {
        self.timeline.lock().clone()
    }

    /// The report of the gateway with this address.
    ///
    /// # Errors
    /// A sentence when there is none that answers.
    pub fn stats(&self, address: IpAddr) -> Result<Stats, String> {
        if self.muted.load(Ordering::Relaxed) {
            return Err("no answer".to_owned());
        }
        let pods = self.cluster.objects("/api/v1/pods");
        let address = address.to_string();
        let pod = pods
            .iter()
            .find(|pod| pod["status"]["podIP"] == address.as_str())
            .filter(|pod| pod["status"]["phase"] == "Running")
            .ok_or("connection refused")?;
        let text = |pointer: &str| pod.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        let (namespace, uid) = (text("/metadata/namespace"), text("/metadata/uid"));
        let now = self.cluster.now();
        let scene = Scene {
            namespace: namespace.to_owned(),
            second: now.as_second(),
            uid: uid.to_owned(),
        };
        let gateways = pods
            .iter()
            .filter(|pod| {
                pod["metadata"]["namespace"] == namespace
                    && pod["metadata"]["labels"][names::APP_NAME] == names::GATEWAY
            })
            .count();
        let mut state = self.state.lock();
        let process = state.entry(uid.to_owned()).or_default();
        let mut stats = Stats {
            version: VERSION,
            instance: uid.to_owned(),
            pod: text("/metadata/name").to_owned(),
            time_milliseconds: now.as_millisecond(),
            draining: pod["metadata"]["deletionTimestamp"].is_string(),
            ..Stats::default()
        };
        let from = process.served_until.max(scene.second - KEPT * WINDOW_SECONDS);
        let mut pools = self.objects(namespace, "apis/flotilla.dev/v1alpha1", "agentpools");
        pools.retain(|pool| pool["spec"]["traffic"]["type"] != "ReplicaRatio");
        for pool in pools {
            let name = pool["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            let served = process.pools.entry(name.clone()).or_default();
            self.serve(served, &pool, &scene, from, gateways.max(1));
            if let Some(weights) = self.follow(served, &pool) {
                self.timeline.lock().push(Applied {
                    at: self.cluster.with(|state| state.store.revision()),
                    gateway: uid.to_owned(),
                    pool: format!("{namespace}/{name}"),
                    weights,
                });
            }
            stats.pools.insert(name, self.report(served, &pool, &scene));
        }
        process.served_until = scene.second;
        for provider in self.objects(namespace, "apis/flotilla.dev/v1alpha1", "modelproviders") {
            let name = provider["metadata"]["name"].as_str().unwrap_or_default();
            stats
                .providers
                .insert(name.to_owned(), self.provider(&provider, namespace));
        }
        Ok(stats)
    }

    fn objects(&self, namespace: &str, group: &str, plural: &str) -> Vec<Arc<Value>> {
        self.cluster
            .objects(&format!("/{group}/namespaces/{namespace}/{plural}"))
    }

    /// Applies what has been there long enough; the weights, if they are new.
    fn follow(&self, served: &mut Served, pool: &Value) -> Option<BTreeMap<String, i32>> {
        let status = &pool["status"];
        let shares = status["traffic"].as_array().into_iter().flatten();
        let weights = shares.filter_map(|share| {
            let weight = i32::try_from(share["weight"].as_i64()?).ok()?;
            Some((share["revision"].as_str()?.to_owned(), weight))
        });
        let seen = Shares {
            generation: status["trafficGeneration"].as_i64().unwrap_or(-1),
            weights: weights.collect(),
        };
        let age = self.cluster.age();
        match &served.coming {
            Some((coming, _)) if *coming == seen => {}
            _ => served.coming = Some((seen, age)),
        }
        let (coming, since) = served.coming.as_ref()?;
        if age.saturating_sub(*since) < self.lag || served.applied.as_ref() == Some(coming) {
            return None;
        }
        served.applied = Some(coming.clone());
        Some(coming.weights.clone())
    }

    /// Serves the seconds since it was last asked.
    fn serve(&self, served: &mut Served, pool: &Value, scene: &Scene, from: i64, gateways: usize) {
        let Some(applied) = served.applied.clone() else {
            return;
        };
        let total: i32 = applied.weights.values().sum();
        if total <= 0 {
            return;
        }
        let images: BTreeMap<&String, String> = applied
            .weights
            .keys()
            .map(|revision| (revision, self.image(&scene.namespace, revision)))
            .collect();
        for second in from..scene.second {
            let mut random = StdRng::seed_from_u64(lot(self.seed, &[&scene.uid, &second.to_string()]));
            let rate = self.traffic.rate(pool, second) / gateways as f64;
            let requests = whole(rate, &mut random);
            if requests == 0 {
                continue;
            }
            let start = second - second.rem_euclid(WINDOW_SECONDS);
            let mut arms: Vec<_> = applied
                .weights
                .iter()
                .map(|(revision, weight)| {
                    let image = images.get(revision).map(String::as_str).unwrap_or_default();
                    let key = (revision.clone(), start, applied.generation);
                    let window = served.windows.remove(&key).unwrap_or_else(|| WindowStats {
                        start,
                        epoch: applied.generation,
                        ..WindowStats::default()
                    });
                    (*weight, self.traffic.manner(image, second), key, window)
                })
                .collect();
            for _ in 0..requests {
                let mut pick = random.random_range(0..total);
                let arm = arms.iter().position(|(weight, ..)| {
                    pick -= *weight;
                    pick < 0
                });
                let mut arm = arm.unwrap_or_default();
                let reaching = arms.get(arm).map_or(1.0, |(_, manner, ..)| manner.reaching);
                if reaching < 1.0 && !random.random_bool(reaching) {
                    arm = (arm + 1) % arms.len();
                }
                let Some((_, manner, _, window)) = arms.get_mut(arm) else {
                    continue;
                };
                window.started += 1;
                window.ended += 1;
                window.failed += u64::from(random.random_bool(manner.failing.clamp(0.0, 1.0)));
                // A long tail: each doubling half as likely.
                let stretch = f64::from(1_u32 << random.random::<u32>().trailing_zeros().min(6));
                let microseconds = manner.latency * 1000.0 * stretch * random.random_range(0.6..1.2);
                window.latency.record(microseconds as u64);
                window
                    .first_byte
                    .record((microseconds * manner.first_byte) as u64);
            }
            let asked = arms.into_iter().filter(|(.., window)| window.started > 0);
            served
                .windows
                .extend(asked.map(|(_, _, key, window)| (key, window)));
        }
        let oldest = scene.second - KEPT * WINDOW_SECONDS;
        served.windows.retain(|(_, start, _), _| *start >= oldest);
    }

    fn image(&self, namespace: &str, revision: &str) -> String {
        let path = format!("/apis/apps/v1/namespaces/{namespace}/replicasets/{revision}");
        let set = self.cluster.object(&path).unwrap_or_default();
        let image = set.pointer("/spec/template/spec/containers/0/image");
        image.and_then(Value::as_str).unwrap_or_default().to_owned()
    }

    fn report(&self, served: &Served, pool: &Value, scene: &Scene) -> PoolStats {
        let applied = served.applied.clone().unwrap_or(Shares {
            generation: -1,
            ..Shares::default()
        });
        let slices = self.objects(&scene.namespace, "apis/discovery.k8s.io/v1", "endpointslices");
        let revisions = applied.weights.iter().map(|(revision, weight)| {
            let ours = slices.iter().filter(|slice| {
                slice["metadata"]["labels"]["kubernetes.io/service-name"] == revision.as_str()
            });
            let endpoints = ours.flat_map(|slice| slice["endpoints"].as_array().into_iter().flatten());
            let mut endpoints: Vec<String> = endpoints
                .filter(|endpoint| endpoint["conditions"]["ready"] == true)
                .filter_map(|endpoint| endpoint["addresses"][0].as_str().map(str::to_owned))
                .collect();
            endpoints.sort();
            endpoints.dedup();
            let windows = served.windows.iter().filter(|((name, ..), _)| name == revision);
            let stats = RevisionStats {
                weight: *weight,
                endpoints,
                windows: windows.map(|(_, window)| window.clone()).collect(),
                ..RevisionStats::default()
            };
            (revision.clone(), stats)
        });
        PoolStats {
            traffic_generation: applied.generation,
            port: pool["status"]["gatewayPort"]
                .as_i64()
                .and_then(|port| i32::try_from(port).ok()),
            revisions: revisions.collect(),
            ..PoolStats::default()
        }
    }

    fn provider(&self, provider: &Value, namespace: &str) -> ProviderStats {
        let secret = &provider["spec"]["auth"]["apiKey"]["secretKeyRef"];
        let credential = match secret["name"].as_str() {
            None => Credential::NotNeeded,
            Some(name) => {
                let path = format!("/api/v1/namespaces/{namespace}/secrets/{name}");
                let found = self.cluster.object(&path).unwrap_or_default();
                let key = secret["key"].as_str().unwrap_or_default();
                if found["data"][key].is_string() {
                    Credential::Present
                } else {
                    Credential::Missing
                }
            }
        };
        ProviderStats {
            generation: provider["metadata"]["generation"].as_i64().unwrap_or_default(),
            credential,
            ..ProviderStats::default()
        }
    }
}

struct Scene {
    namespace: String,
    second: i64,
    uid: String,
}

/// A rate as a whole number of requests: the rest by lot.
fn whole(rate: f64, random: &mut StdRng) -> u32 {
    let rest = rate.fract().clamp(0.0, 1.0);
    rate.trunc() as u32 + u32::from(random.random_bool(rest))
}

/// A seed out of words (FNV-1a), the same on every machine.
fn lot(seed: u64, words: &[&str]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325 ^ seed;
    for byte in words.iter().flat_map(|word| word.bytes().chain([0])) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    hash
}
