//! The operator as the process under test.

use std::cell::Cell;
use std::net::IpAddr;
use std::sync::{Arc, Once};

use flotilla_core::load::wire::Progress;
use flotilla_core::stats::Stats;
use flotilla_operator::loadtest::progress::Ask;
use flotilla_operator::metrics::Metrics;
use flotilla_operator::pool::figures::read::{Question, Read};
use flotilla_operator::pool::trial::ask::{Ask as AskCandidate, Miss, Target};
use flotilla_operator::pool::trial::list::Probe;
use flotilla_operator::runtime::manager::Options;
use flotilla_operator::runtime::readiness::Readiness;
use flotilla_operator::runtime::{Clock, Jitter, Manager, client};
use flotilla_operator::scrape::Fetch;
use flotilla_operator::{Network, Settings, register};
use flotilla_sim::faults::{Plan, Wire};
use flotilla_sim::gateways::Gateways;
use flotilla_sim::run::{Outcome, Violation, Workload, World, run};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

struct Scraped(Gateways);

impl Fetch for Scraped {
    fn fetch(&self, address: IpAddr) -> BoxFuture<'static, Result<Stats, String>> {
        let stats = self.0.stats(address);
        async move { stats }.boxed()
    }
}

/// Progress is advisory: here nobody tells any.
struct Silent;

impl Ask for Silent {
    fn ask(&self, _: &str) -> BoxFuture<'static, Result<Progress, String>> {
        async { Err("nobody answers".to_owned()) }.boxed()
    }
}

/// Nobody is there to be tested, and no source has numbers.
pub struct Nobody;

impl AskCandidate for Nobody {
    fn ask(&self, _: Probe, _: Target) -> BoxFuture<'static, Result<String, Miss>> {
        async { Err(Miss::Unreached("nobody is there".to_owned())) }.boxed()
    }
}

impl Read for Nobody {
    fn read(&self, _: Question) -> BoxFuture<'static, Result<Option<f64>, String>> {
        async { Err("no source answers".to_owned()) }.boxed()
    }
}

/// Starts the whole operator, without election: it leads.
pub fn start(world: &World, wire: Wire) -> JoinHandle<()> {
    start_asking(world, wire, Arc::new(Nobody), Arc::new(Nobody))
}

/// The same, with candidates that answer tests and a source named `main` that has numbers.
pub fn start_asking(
    world: &World,
    wire: Wire,
    candidates: Arc<dyn AskCandidate>,
    figures: Arc<dyn Read>,
) -> JoinHandle<()> {
    start_with(world, wire, Metrics::new(), candidates, figures)
}

/// The same, counting into these metrics.
pub fn start_with(
    world: &World,
    wire: Wire,
    metrics: Metrics,
    candidates: Arc<dyn AskCandidate>,
    figures: Arc<dyn Read>,
) -> JoinHandle<()> {
    let jitter = Jitter::seeded(7);
    let mut manager = Manager::new(Options {
        clients: client::on_service(wire, &metrics, &jitter),
        clock: Clock::virtual_from(world.cluster.now()),
        jitter,
        metrics,
        readiness: Readiness::default(),
        namespaces: Vec::new(),
        election: None,
    });
    let settings = Settings {
        gateway_image: "gateway:1".into(),
        loadgen_image: "loadgen:1".into(),
        gateway_replicas: 2,
        upgrade_parallelism: 2,
        gateway_env: Vec::new(),
        metric_sources: [("main".to_owned(), "http://numbers.example.com".to_owned())].into(),
    };
    let network = Network {
        gateways: Arc::new(Scraped(world.gateways.clone())),
        workers: Arc::new(Silent),
        candidates,
        figures,
    };
    register(&mut manager, &settings, network);
    tokio::spawn(async move {
        let _ = manager.run(CancellationToken::new()).await;
    })
}

thread_local! {
    static PANICS: Cell<usize> = const { Cell::new(0) };
}

/// Panics of this thread so far: the operator catches its own.
pub fn panics() -> usize {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            PANICS.with(|count| count.set(count.get() + 1));
            before(info);
        }));
    });
    PANICS.with(Cell::get)
}

/// Runs a workload under a plan, on this thread and in virtual time.
pub fn simulate(workload: &Workload, plan: &Plan) -> Result<Outcome, Violation> {
    let before = panics();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime can be made");
    let outcome = runtime.block_on(run(workload, plan, &start))?;
    match panics() - before {
        0 => Ok(outcome),
        count => Err(Violation {
            what: format!("{count} panics in the operator"),
            transcript: outcome.transcript,
        }),
    }
}
