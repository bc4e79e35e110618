//! The Flotilla operator: makes a cluster match its AgentPools, LoadTests, ModelProviders and RolloutActions.
//!
//! Decisions are pure functions in `flotilla-core`. Here is the wiring around them: [`runtime`] watches, queues and
//! writes; one module per kind does `dereference → validate → plan → apply → status`; [`caches`] lists everything that
//! is watched. [`execute`] is the whole program.

pub mod action;
pub mod args;
pub mod caches;
#[cfg(test)]
pub(crate) mod fakecluster;
pub mod gateway;
pub mod gateway_api;
pub mod loadtest;
pub mod metrics;
pub mod pool;
pub mod provider;
pub mod runtime;
pub mod scrape;
pub mod server;
pub mod telemetry;
pub mod waiting;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::info;

use args::{Cli, Command, RunArgs};
use caches::Caches;
use gateway::GatewayHealth;
use metrics::Metrics;
use runtime::manager::{Election, Options, TaskEnded};
use runtime::readiness::Readiness;
use runtime::{Clock, Jitter, Manager, client};

/// What the controllers are told by flags.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Image of the gateway.
    pub gateway_image: String,
    /// Image of the load generator.
    pub loadgen_image: String,
    /// Gateway pods per namespace.
    pub gateway_replicas: i32,
    /// Further environment variables of the gateways.
    pub gateway_env: Vec<(String, String)>,
    /// Namespaces whose gateways are replaced at the same time after an upgrade.
    pub upgrade_parallelism: usize,
    /// Sources that `analysis.metrics` of a pool may name.
    pub metric_sources: pool::figures::Sources,
}

/// Why the program ended.
#[derive(Debug, thiserror::Error)]
pub enum ExitError {
    /// The log filter does not parse.
    #[error("failed to understand --log-level")]
    Log(#[from] tracing_subscriber::filter::ParseError),
    /// There is no API server to talk to.
    #[error(transparent)]
    Client(#[from] client::ClientError),
    /// The port is taken.
    #[error(transparent)]
    Bind(#[from] server::BindError),
    /// Signals cannot be received.
    #[error("failed to listen for signals")]
    Signal(#[source] std::io::Error),
    /// Something that must run for ever ended.
    #[error(transparent)]
    Task(#[from] TaskEnded),
}

/// Does what the command line says, until it is done or a signal comes.
///
/// # Errors
/// [`ExitError`].
pub async fn execute(cli: Cli) -> Result<(), ExitError> {
    telemetry::init(&cli.log)?;
    match cli.command {
        Some(Command::Crds) => {
            print!("{}", flotilla_crds::yaml::all_yaml());
            Ok(())
        }
        Some(Command::Run(args)) => run(*args, stop_on_signal()?).await,
        None => run(cli.run, stop_on_signal()?).await,
    }
}

/// Runs the operator until `stop`.
///
/// # Errors
/// [`ExitError`].
pub async fn run(args: RunArgs, stop: CancellationToken) -> Result<(), ExitError> {
    let listener = server::bind(args.http_address).await?;
    let (metrics, jitter, readiness) = (Metrics::new(), Jitter::random(), Readiness::default());
    let config = client::load(args.kubeconfig.as_deref().map(Path::new), args.context.as_deref()).await?;
    let clients = client::connect(&config, &metrics, &jitter)?;
    // An environment variable that is set to nothing is the same as one that is not set.
    let given = |value: &Option<String>| value.clone().filter(|value| !value.is_empty());
    let election = Election {
        namespace: given(&args.lease_namespace).unwrap_or_else(|| config.default_namespace.clone()),
        name: args.lease_name.clone(),
        identity: given(&args.identity).unwrap_or_else(host_identity),
    };
    info!(
        version = env!("CARGO_PKG_VERSION"),
        server = %config.cluster_url,
        identity = election.identity,
        lease = format!("{}/{}", election.namespace, election.name),
        http = %args.http_address,
        "starting"
    );
    let mut manager = Manager::new(Options {
        clients,
        clock: Clock::system(),
        jitter,
        metrics: metrics.clone(),
        readiness: readiness.clone(),
        namespaces: args
            .watch_namespaces
            .into_iter()
            .filter(|name| !name.is_empty())
            .collect(),
        election: Some(election),
    });
    let settings = Settings {
        gateway_image: args.gateway_image,
        loadgen_image: args.loadgen_image,
        gateway_replicas: args.gateway_replicas,
        gateway_env: args.gateway_env,
        upgrade_parallelism: usize::try_from(args.upgrade_parallelism).unwrap_or(usize::MAX),
        metric_sources: args.metric_sources.into_iter().collect(),
    };
    register(&mut manager, &settings, Network::default());

    let stop_server = CancellationToken::new();
    let server = tokio::spawn(server::serve(listener, metrics, readiness, stop_server.clone()));
    let result = manager.run(stop).await;
    stop_server.cancel();
    // The server ends within its own limit; a panic in it was logged by the runtime.
    let _ = tokio::time::timeout(Duration::from_secs(2), server).await;
    info!("stopped");
    Ok(result?)
}

/// What the operator asks besides the API server.
#[derive(Clone)]
pub struct Network {
    /// `/stats` of gateways.
    pub gateways: Arc<dyn scrape::Fetch>,
    /// Live progress of load generators.
    pub workers: Arc<dyn loadtest::progress::Ask>,
    /// Candidates that are tested.
    pub candidates: Arc<dyn pool::trial::ask::Ask>,
    /// Numbers of other sources than the gateways.
    pub figures: Arc<dyn pool::figures::read::Read>,
}

impl Default for Network {
    fn default() -> Self {
        Self {
            gateways: Arc::new(scrape::HttpFetch::default()),
            workers: Arc::new(loadtest::progress::HttpAsk::default()),
            candidates: Arc::new(pool::trial::ask::Network::default()),
            figures: Arc::new(pool::figures::read::HttpRead::default()),
        }
    }
}

/// Makes every cache and controller of the operator; also how a simulated cluster gets the real thing.
pub fn register(manager: &mut Manager, settings: &Settings, network: Network) -> Caches {
    let caches = Caches::new(manager);
    let scraper = scrape::register(manager, &caches.pods, network.gateways);
    let health = GatewayHealth::default();
    let gateways = gateway::Settings {
        image: settings.gateway_image.clone(),
        replicas: settings.gateway_replicas,
        env: settings.gateway_env.clone(),
        upgrade_parallelism: settings.upgrade_parallelism,
    };
    let shares_quotas = gateways.shares_quotas();
    gateway::register(manager, &caches, gateways, health.clone());
    let standpoints = pool::memory::Standpoints::default();
    let questions = pool::Questions {
        ask: network.candidates,
        figures: pool::figures::Figures::new(network.figures, settings.metric_sources.clone()),
    };
    pool::register(
        manager,
        &caches,
        &scraper,
        health.clone(),
        standpoints.clone(),
        questions,
    );
    action::register(manager, &caches, standpoints);
    provider::register(manager, &caches, scraper, health, shares_quotas);
    let load_generators = loadtest::Settings {
        image: settings.loadgen_image.clone(),
    };
    loadtest::register(manager, &caches, load_generators, network.workers);
    caches
}

fn stop_on_signal() -> Result<CancellationToken, ExitError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(ExitError::Signal)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(ExitError::Signal)?;
    let stop = CancellationToken::new();
    let stopped = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        info!("stopping");
        stopped.cancel();
    });
    Ok(stop)
}

/// The host's name with a random suffix, for a process outside a pod.
fn host_identity() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = if host.trim().is_empty() {
        "operator"
    } else {
        host.trim()
    };
    format!("{host}-{:08x}", rand::random::<u32>())
}
