//! The data plane: between clients and agents (ingress), and between agents and model providers (egress).
//!
//! ```text
//!            config (watches, or a test)
//!                     │ whole configurations      ┌─► session: conversation → revision ◄─► other gateways
//!                     ▼                           ▼
//!  client ─► server ─► ingress: pool → revision → slot ─► upstream ─► agent
//!  agent  ─► server ─► egress: identity, key, usage    ─► upstream ─► provider
//!                     ▲
//!  operator ─► admin: report (/stats), metrics, readiness, drain
//! ```
//!
//! A request reads snapshots and atomics; locks are taken only where it waits, where connections are kept, and once in 15
//! seconds. What is decided (replicas, retries, the order of those who wait) is in [`flotilla_core`], without I/O. The library runs in a process of its own
//! ([`run`]) and, fed by hand, inside tests ([`Gateway::start`]).

pub mod admin;
pub mod args;
pub mod config;
pub mod drain;
pub mod egress;
pub mod ingress;
pub mod metrics;
pub mod observe;
pub mod peers;
pub mod reply;
pub mod report;
pub mod server;
pub mod session;
pub mod upstream;

mod telemetry;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tracing::info;

use admin::Admin;
use args::Args;
use config::Source;
use config::watch::Freshness;
use drain::{Drain, Phase};
use egress::Egress;
use egress::quota::{self, AllQuotas};
use ingress::Ingress;
use ingress::listeners::{Listeners, RETRY, SharedPort};
use metrics::{Metrics, Sources};
use observe::Observe;
use observe::access_log::AccessLog;
use peers::Peers;
use server::workers::Workers;
use server::{ConnectionLimits, Serving};
use session::Sessions;
use upstream::Limits;

/// How often idle connections are looked through and keys are read again.
const HOUSEKEEPING: Duration = Duration::from_secs(2);
/// Connections to the admin port, apart from the others so that `/stats` answers when clients use up theirs.
const ADMIN_CONNECTIONS: usize = 256;

/// What the data plane needs to know.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Namespace that is served.
    pub namespace: String,
    /// Name of this pod.
    pub pod: String,
    /// Domain of the cluster.
    pub cluster_domain: String,
    /// Address to listen on.
    pub listen: IpAddr,
    /// Fixed ports; 0 lets the system choose.
    pub ports: Ports,
    /// Folder with one folder per provider.
    pub credentials: PathBuf,
    /// Open connections of clients and agents.
    pub max_connections: usize,
    /// Bounds of clients' connections.
    pub clients: ConnectionLimits,
    /// Connections to agents.
    pub agents: Limits,
    /// Connections to providers.
    pub providers: Limits,
    /// For a whole request to a provider.
    pub provider_timeout: Duration,
    /// Longest body of a request to a provider.
    pub max_provider_request_bytes: u64,
    /// What is told of single requests.
    pub observe: Observe,
    /// Threads that carry requests, this runtime's included.
    pub workers: usize,
    /// Idle connections are left open this long after the drain's beginning.
    pub drain_idle: Duration,
    /// What still runs is cut this long after the drain's beginning.
    pub drain_deadline: Duration,
}

/// The fixed ports.
#[derive(Clone, Copy, Debug)]
pub struct Ports {
    /// Shared ingress.
    pub ingress: u16,
    /// Egress.
    pub egress: u16,
    /// Admin.
    pub admin: u16,
}

/// A running data plane.
pub struct Gateway {
    /// Shared ingress.
    pub ingress: SocketAddr,
    /// Egress.
    pub egress: SocketAddr,
    /// Admin.
    pub admin: SocketAddr,
    drain: Arc<Drain>,
    quotas: Arc<AllQuotas>,
    sessions: Arc<Sessions>,
    settings: Settings,
    stop: CancellationToken,
}

impl Gateway {
    /// A gateway that is alone: it holds quotas by itself, and forgets them when it ends. Otherwise as
    /// [`start_with`](Self::start_with).
    pub async fn start(settings: Settings, source: Source, freshness: Arc<Freshness>) -> io::Result<Self> {
        let store = Arc::new(quota::store::Memory::default());
        Self::start_with(settings, source, freshness, store, None).await
    }

    /// Binds the fixed ports and follows `source` from then on. `freshness` is told by whoever fills `source`; in `store` the
    /// gateways of the namespace agree on who may use how much of a provider's quota, in `groups` those of several.
    ///
    /// Fails only if a fixed port cannot be bound or a thread cannot be started.
    pub async fn start_with(
        settings: Settings,
        source: Source,
        freshness: Arc<Freshness>,
        store: Arc<dyn quota::Store>,
        groups: Option<quota::Groups>,
    ) -> io::Result<Self> {
        let drain = Arc::new(Drain::default());
        let stop = CancellationToken::new();
        let workers = Arc::new(Workers::start(settings.workers, &stop)?);
        let serving = |connections| {
            let permits = Arc::new(Semaphore::new(connections));
            Arc::new(Serving {
                drain: drain.clone(),
                permits,
                limits: settings.clients,
                observe: settings.observe.clone(),
                workers: workers.clone(),
            })
        };
        let shared = serving(settings.max_connections);
        let ingress = Arc::new(Ingress::new(
            &settings.namespace,
            &settings.cluster_domain,
            settings.agents,
        ));
        let instance = ingress.sessions().instance().to_owned();
        let peers = Arc::new(Peers::new(settings.ports.admin));
        let quotas = AllQuotas::start(
            quota::Setup {
                pod: settings.pod.clone(),
                instance: instance.clone(),
                within: settings.provider_timeout,
                terms: Default::default(),
                pace: Default::default(),
                store,
                peers: peers.clone(),
                transport: Arc::new(quota::Http::new(peers.clone(), settings.listen)),
                clock: quota::Clock::system(),
            },
            groups,
            stop.clone(),
        );
        ingress.sessions().set_source(settings.listen);
        let egress = Arc::new(Egress::new(
            settings.credentials.clone(),
            egress::tls::client_config(),
            settings.providers,
            settings.provider_timeout,
            settings.max_provider_request_bytes,
            &instance,
            quotas.clone(),
        ));
        let listeners = Listeners::new(settings.listen, shared.clone());
        let admin = Arc::new(Admin {
            identity: report::Identity {
                instance,
                pod: settings.pod.clone(),
            },
            ingress: ingress.clone(),
            egress: egress.clone(),
            drain: drain.clone(),
            source: source.clone(),
            failures: listeners.failures(),
            metrics: Metrics::new(Sources {
                ingress: ingress.clone(),
                egress: egress.clone(),
                drain: drain.clone(),
                freshness,
                observe: settings.observe.clone(),
            }),
            started: Instant::now(),
        });

        let bind = |port| TcpListener::bind(SocketAddr::new(settings.listen, port));
        let (ingress_port, egress_port, admin_port) = (
            bind(settings.ports.ingress).await?,
            bind(settings.ports.egress).await?,
            bind(settings.ports.admin).await?,
        );
        let gateway = Self {
            ingress: ingress_port.local_addr()?,
            egress: egress_port.local_addr()?,
            admin: admin_port.local_addr()?,
            drain: drain.clone(),
            quotas,
            sessions: ingress.sessions().clone(),
            settings,
            stop: stop.clone(),
        };
        tokio::spawn(hand_over(
            drain.clone(),
            gateway.sessions.clone(),
            gateway.quotas.clone(),
            stop.clone(),
        ));
        let port = Arc::new(SharedPort(ingress.clone()));
        tokio::spawn(server::serve(ingress_port, port, shared.clone(), stop.clone()));
        tokio::spawn(server::serve(egress_port, egress.clone(), shared, stop.clone()));
        // Apart from the drain: it reports until the end, and does not hold it up.
        let admin_serving = Arc::new(Serving {
            drain: Arc::default(),
            permits: Arc::new(Semaphore::new(ADMIN_CONNECTIONS)),
            limits: gateway.settings.clients,
            observe: Observe::default(),
            workers: Arc::new(Workers::here()),
        });
        tokio::spawn(server::serve(admin_port, admin, admin_serving, stop.clone()));
        tokio::spawn(follow(
            source,
            ingress.clone(),
            egress.clone(),
            listeners,
            peers,
            drain,
            stop.clone(),
        ));
        tokio::spawn(keep_house(ingress, egress, stop));
        info!(ingress = %gateway.ingress, egress = %gateway.egress, admin = %gateway.admin, "serving");
        Ok(gateway)
    }

    /// Starts draining and keeps serving; [`stop`](Self::stop) goes on from here.
    pub fn drain(&self, reason: &str) {
        self.drain.begin(reason);
    }

    /// Drains, waits until what runs has ended or the deadline is over, and stops. Gives the number of requests cut.
    pub async fn stop(self) -> usize {
        let cut = self
            .drain
            .finish(self.settings.drain_idle, self.settings.drain_deadline)
            .await;
        self.quotas.leave().await;
        self.sessions.leave();
        self.sessions.handed_over().await;
        self.stop.cancel();
        cut
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Puts each configuration in force as it comes.
async fn follow(
    mut source: Source,
    ingress: Arc<Ingress>,
    egress: Arc<Egress>,
    mut listeners: Listeners,
    peers: Arc<Peers>,
    drain: Arc<Drain>,
    stop: CancellationToken,
) {
    let mut done = true;
    loop {
        let config = source.borrow_and_update().clone();
        if let Some(config) = config {
            peers.apply(&config);
            ingress.apply(&config);
            done = listeners.follow(&ingress).await;
            egress.apply(&config).await;
            if config.terminating {
                drain.begin("the pod is being terminated");
            }
        }
        tokio::select! {
            changed = source.changed() => if changed.is_err() {
                // Whoever told us has gone: what is known stays in force.
                stop.cancelled().await;
                return;
            },
            () = tokio::time::sleep(RETRY), if !done => {}
            () = stop.cancelled() => return,
        }
    }
}

/// Gives up its conversations, and that it deals out quotas, as soon as it is to leave: while it still serves there is time to
/// hand them over, and its machine may be gone before what it serves has ended.
async fn hand_over(
    drain: Arc<Drain>,
    sessions: Arc<Sessions>,
    quotas: Arc<AllQuotas>,
    stop: CancellationToken,
) {
    let mut phase = drain.watch();
    tokio::select! {
        begun = phase.wait_for(|phase| *phase >= Phase::Draining) => if begun.is_ok() {
            sessions.leave();
            quotas.stand_aside();
        },
        () = stop.cancelled() => {}
    }
}

async fn keep_house(ingress: Arc<Ingress>, egress: Arc<Egress>, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(HOUSEKEEPING);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = stop.cancelled() => return,
        }
        ingress.keep_house();
        egress.refresh().await;
    }
}

/// The whole process: follows the API server until SIGTERM or SIGINT, then drains. A second signal ends it at once.
pub async fn run(args: Args) -> anyhow::Result<()> {
    telemetry::start(&args.log, args.log_format)?;
    let mut terminate = signal(SignalKind::terminate()).context("failed to listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("failed to listen for SIGINT")?;
    let freshness = Arc::new(Freshness::default());
    let client = config::watch::client(freshness.clone())
        .await
        .context("failed to set up the Kubernetes client")?;
    let store = Arc::new(quota::store::kube::Kube::new(client.clone(), &args.namespace));
    let source = config::watch::start(client, &args.namespace, &args.pod_uid);
    let mut settings = args.settings();
    settings.observe = observe(&args)?;
    let spans = settings.observe.spans.clone();
    let groups = args.groups().map_err(anyhow::Error::msg)?;
    let gateway = Gateway::start_with(settings, source, freshness, store, groups)
        .await
        .context("failed to bind the gateway's ports")?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tokio::select! {
        _ = gateway.stop() => {}
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    if let Some(spans) = spans {
        // Its thread waits for the collector.
        let last = tokio::task::spawn_blocking(move || spans.shutdown());
        last.await.context("failed to send the last spans")?;
    }
    Ok(())
}

/// What flags and environment want to be told of requests.
fn observe(args: &Args) -> anyhow::Result<Observe> {
    let identity = observe::otlp::Identity {
        namespace: args.namespace.clone(),
        pod: args.pod_name.clone(),
    };
    let percent = args.access_log_percent;
    Ok(Observe {
        access_log: (percent > 0).then(|| Arc::new(AccessLog::new(percent, io::stdout()))),
        spans: observe::otlp::from_environment(&identity, &egress::tls::client_config())?,
    })
}
