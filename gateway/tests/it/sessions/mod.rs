//! Conversations over several gateways in one process, each with a runtime of its own so that it can be killed.

mod a2a;
mod keys;
mod releases;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use flotilla_core::stats::Stats;
use flotilla_gateway::config::watch::Freshness;
use flotilla_gateway::config::{Config, KeySource, SessionsConfig};
use flotilla_gateway::{Gateway, Settings};
use http::{HeaderName, StatusCode};
use tokio::runtime::Runtime;
use tokio::sync::watch;

use crate::support::{get, settings};

/// One gateway and the threads it runs on.
pub struct Node {
    pub ingress: SocketAddr,
    pub admin: SocketAddr,
    gateway: Option<Gateway>,
    runtime: Option<Runtime>,
    told: watch::Sender<Option<Arc<Config>>>,
}

impl Node {
    pub async fn start() -> Self {
        let settings = Settings {
            max_connections: 10_000,
            ..settings()
        };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let (told, source) = watch::channel(None);
        let gateway = runtime
            .spawn(Gateway::start(settings, source, Arc::new(Freshness::default())))
            .await
            .unwrap()
            .unwrap();
        Self {
            ingress: gateway.ingress,
            admin: gateway.admin,
            gateway: Some(gateway),
            runtime: Some(runtime),
            told,
        }
    }

    /// Sends `config` with `others` as the namespace's other gateways.
    pub fn tell(&self, config: &Config, others: &BTreeSet<SocketAddr>) {
        let mut gateways = others.clone();
        gateways.remove(&self.admin);
        let config = Config {
            gateways,
            ..config.clone()
        };
        self.told.send_replace(Some(Arc::new(config)));
    }

    /// As a process that is killed: no more byte from it.
    pub fn kill(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
        self.gateway = None;
    }

    /// As SIGTERM: drains, hands over, ends. Gives the number of requests that were cut.
    pub async fn stop(&mut self) -> usize {
        let gateway = self.gateway.take().unwrap();
        let cut = self
            .runtime
            .as_ref()
            .unwrap()
            .spawn(gateway.stop())
            .await
            .unwrap();
        self.kill();
        cut
    }

    pub async fn stats(&self) -> Stats {
        let answer = get(self.admin, "/stats").await;
        serde_json::from_slice(&answer.body).unwrap()
    }

    /// The value of a series of `/metrics`, all of its labels' values added up.
    pub async fn metric(&self, name: &str) -> u64 {
        let text = get(self.admin, "/metrics").await.text();
        let series = text.lines().filter(|line| {
            line.strip_prefix(name)
                .is_some_and(|rest| rest.starts_with(['{', ' ']))
        });
        let values: Vec<u64> = series
            .map(|line| line.rsplit_once(' ').unwrap().1.parse().unwrap())
            .collect();
        assert!(!values.is_empty(), "{name} is not in\n{text}");
        values.iter().sum()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Gateways that know each other.
pub struct Cluster {
    pub nodes: Vec<Node>,
    config: Config,
}

impl Cluster {
    pub async fn start(number: usize, config: Config) -> Self {
        let mut nodes = Vec::new();
        for _ in 0..number {
            nodes.push(Node::start().await);
        }
        let mut cluster = Self { nodes, config };
        cluster.tell(cluster.config.clone());
        cluster.settle().await;
        cluster
    }

    /// Admin addresses of all nodes.
    pub fn listed(&self) -> BTreeSet<SocketAddr> {
        self.nodes.iter().map(|node| node.admin).collect()
    }

    /// Sends a configuration without waiting until it is in force.
    pub fn tell(&mut self, config: Config) {
        self.config = config;
        self.relist(&self.listed());
    }

    /// Tells all which gateways there are.
    pub fn relist(&self, listed: &BTreeSet<SocketAddr>) {
        for node in &self.nodes {
            node.tell(&self.config, listed);
        }
    }

    /// Waits until all are ready, know each other and have the newest generation.
    pub async fn settle(&self) {
        let generation = self.config.pools["support"].generation;
        for _ in 0..1000 {
            let mut settled = true;
            for node in &self.nodes {
                let ready = get(node.admin, "/readyz").await.status == StatusCode::OK;
                let stats = node.stats().await;
                let pool = stats.pools.get("support");
                // Without a port of its own the pool's generation is not reported.
                if !ready || pool.is_none_or(|pool| pool.sessions.is_none()) {
                    settled = false;
                    continue;
                }
                let peers = node.metric("flotilla_gateway_peers").await;
                let applied = node.metric("flotilla_gateway_traffic_generation").await;
                settled &= peers == self.nodes.len() as u64 - 1 && applied == generation as u64;
            }
            if settled {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the gateways do not settle");
    }

    /// What all gateways say about conversations, to explain a failure.
    pub async fn explain(&self) -> String {
        let mut text = String::new();
        for node in self.nodes.iter().filter(|node| node.runtime.is_some()) {
            let all = get(node.admin, "/metrics").await.text();
            let series = all
                .lines()
                .filter(|line| !line.starts_with('#') && !line.ends_with(" 0"));
            let ours = series.filter(|line| {
                line.contains("_session") || line.contains("_peer") || line.contains("_diverted")
            });
            text.push_str(&format!("{}\n", node.admin));
            ours.for_each(|line| text.push_str(&format!("  {line}\n")));
        }
        text
    }

    pub async fn metric(&self, name: &str) -> u64 {
        let mut sum = 0;
        for node in self.nodes.iter().filter(|node| node.runtime.is_some()) {
            sum += node.metric(name).await;
        }
        sum
    }
}

/// Conversations known by `X-Session-Id`; `since` dates the weight of a candidate.
pub fn by_header(since: &[(&str, i64)]) -> SessionsConfig {
    sessions(KeySource::Header(HeaderName::from_static("x-session-id")), since)
}

pub fn sessions(key: KeySource, since: &[(&str, i64)]) -> SessionsConfig {
    SessionsConfig {
        key,
        idle: Duration::from_secs(1800),
        since: since
            .iter()
            .map(|(revision, since)| ((*revision).to_owned(), *since))
            .collect(),
        rejected: vec![],
    }
}
