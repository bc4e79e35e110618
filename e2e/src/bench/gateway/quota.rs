//! A provider's quota, held by three gateways, against a provider that counts for itself and refuses what is too much.
//!
//! One pool asks for all it can get, at one gateway more than at the others; another one asks for just its half. First nothing
//! else happens; then the gateway that deals the quota out is killed every 20 seconds, and started again at once, as kubelet
//! would.

use anyhow::{Context as _, Result, bail};
use flotilla_simulator::limit::LimitMode;
use flotilla_simulator::log::EventKind;
use flotilla_simulator::quota::{LimitSpec, LimitUnit};
use flotilla_simulator::{Config, Simulator};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::sync::Mutex;
use tokio::time::{Instant, interval};

use super::Bench;
use super::fleet::{Fleet, Layout, Way, requests};
use super::http::Connection;
use super::machine::pause;
use super::objects;
use crate::report::Row;

const GATEWAYS: u8 = 3;
/// Requests that the provider takes in any [`WINDOW`].
const LIMIT: u64 = 6_000;
const WINDOW: Duration = Duration::from_secs(60);
/// By then something has been served.
const SOON: Duration = Duration::from_secs(5);
/// Until shares have settled and a first window is over.
const WARM: Duration = Duration::from_secs(75);
/// Nothing happens.
const CALM: Duration = Duration::from_secs(60);
/// From one kill to the next, and how many there are.
const KILL_EVERY: Duration = Duration::from_secs(20);
const KILLS: u32 = 9;
/// Connections of the greedy pool to each gateway. A request takes the provider about 0.8 s, so together they could send 1,000 in a
/// second: 20 times the pool's share.
const GREEDY: [usize; GATEWAYS as usize] = [500, 200, 100];
/// The greedy pool's agents are those of the fleet.
const GREEDY_AGENT: Ipv4Addr = Ipv4Addr::LOCALHOST;
const MODEST_AGENT: Ipv4Addr = Ipv4Addr::new(127, 0, 2, 1);
/// Before a client connects again.
const RECONNECT: Duration = Duration::from_millis(50);

/// What all clients share.
#[derive(Default)]
struct Counts {
    stop: AtomicBool,
    /// Answered with 200.
    greedy: AtomicU64,
    modest: AtomicU64,
    /// Answered with 429.
    refused: AtomicU64,
    /// Without an answer, or with another one.
    failed: AtomicU64,
    /// The first 429, and the first of the others.
    refusal: OnceLock<String>,
    failure: OnceLock<String>,
}

/// The counts at one moment.
struct Moment {
    /// After the provider's start.
    at: Duration,
    modest: u64,
    failed: u64,
}

pub(super) fn run(bench: &Bench) -> Result<Vec<Row>> {
    let runtime = Runtime::new()?;
    let simulator = runtime.block_on(Simulator::start(provider()))?;
    let started = Instant::now();
    let folder = bench.folder("quota")?;
    let layout = Layout {
        program: &bench.program,
        folder: &folder,
        origin: bench.cores.both(),
        gateway: bench.cores.both(),
        gateways: GATEWAYS,
        split: false,
    };
    let mut fleet = Fleet::start(&layout)?;
    fleet
        .api
        .put(objects::path::SLICES, objects::agents_of("modest", MODEST_AGENT));
    fleet.api.put(
        objects::path::PROVIDERS,
        objects::metered(&simulator.base_url(), LIMIT, WINDOW.as_secs()),
    );
    pause(Duration::from_secs(2));
    let counts = Arc::new(Counts::default());
    let egress: Vec<SocketAddr> = fleet.gateways.iter().map(|gateway| gateway.egress).collect();
    start_clients(&runtime, &egress, &counts);

    let look = || Moment {
        at: started.elapsed(),
        modest: counts.modest.load(Ordering::Relaxed),
        failed: counts.failed.load(Ordering::Relaxed),
    };
    pause(SOON);
    if counts.greedy.load(Ordering::Relaxed) == 0 {
        let why = counts.failure.get().map_or("nothing is answered", String::as_str);
        bail!("no request has been served within {} s: {why}", SOON.as_secs());
    }
    pause(WARM);
    let calm = look();
    pause(CALM);
    let rough = look();
    for _ in 0..KILLS {
        let next = Instant::now() + KILL_EVERY;
        let holder = holder(&fleet)?;
        fleet.restart(&layout, holder)?;
        pause(next.saturating_duration_since(Instant::now()));
    }
    let end = look();
    counts.stop.store(true, Ordering::Relaxed);
    let rows = report(&simulator, &counts, [&calm, &rough, &end]);
    runtime.shutdown_background();
    Ok(rows)
}

/// It counts over any stretch of a window's length, to the nanosecond.
fn provider() -> Config {
    Config {
        listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        limits: vec![LimitSpec {
            name: "requests".to_owned(),
            unit: LimitUnit::Requests,
            mode: LimitMode::SlidingWindow,
            limit: LIMIT,
            per_milliseconds: WINDOW.as_secs() * 1000,
            burst: None,
            model: None,
        }],
        log_capacity: 1_000_000,
        ..Config::default()
    }
}

/// When the provider did this, after its start.
fn events(simulator: &Simulator, kind: EventKind) -> Vec<Duration> {
    let page = simulator.log();
    let events = page.events.iter().filter(|event| event.kind == kind);
    events
        .map(|event| Duration::from_nanos(event.monotonic_nanoseconds))
        .collect()
}

/// How many count in a window that ends between two instants, on average and in percent of the limit. Clients that take all at
/// once come in one burst in each window, so how many come between two instants would depend on where in it they are.
fn used(admitted: &[Duration], from: Duration, to: Duration) -> f64 {
    let counts = |at: &Duration| {
        let (first, last) = ((*at).max(from), (*at + WINDOW).min(to));
        last.saturating_sub(first).as_secs_f64()
    };
    let counted: f64 = admitted.iter().map(counts).sum();
    counted * 100.0 / (LIMIT as f64 * (to - from).as_secs_f64())
}

/// The index of the gateway that deals quotas out.
fn holder(fleet: &Fleet) -> Result<usize> {
    let lease = fleet.api.get(objects::path::LEASES, "flotilla-quota");
    let lease = lease.context("no gateway has ever dealt quotas out")?;
    let holder = lease["spec"]["holderIdentity"].as_str().unwrap_or_default();
    let found = (1..=GATEWAYS).find(|number| holder.contains(&format!("gateway-{number}")));
    match found {
        Some(number) => Ok(usize::from(number) - 1),
        None => bail!("quotas are dealt out by {holder:?}, which is no gateway of ours"),
    }
}

fn start_clients(runtime: &Runtime, egress: &[SocketAddr], counts: &Arc<Counts>) {
    // The modest pool asks for half of the quota, at all gateways alike.
    let pace = WINDOW * u32::from(GATEWAYS) * 2 / u32::try_from(LIMIT).unwrap_or(u32::MAX);
    for (to, greedy) in egress.iter().zip(GREEDY) {
        for _ in 0..greedy {
            runtime.spawn(ask_on(*to, counts.clone()));
        }
        runtime.spawn(ask_in_time(*to, pace, counts.clone()));
    }
}

/// The greedy pool: a request, its answer, and at once the next one.
async fn ask_on(to: SocketAddr, counts: Arc<Counts>) {
    let mut connection = None;
    for request in requests(Way::Egress, "bench", false, 1024, "").iter().cycle() {
        if counts.stop.load(Ordering::Relaxed) {
            return;
        }
        connection = ask(to, GREEDY_AGENT, connection, request, &counts.greedy, &counts).await;
        if connection.is_none() {
            tokio::time::sleep(RECONNECT).await;
        }
    }
}

/// The modest pool: a request whenever one is due, whatever has become of those before it.
async fn ask_in_time(to: SocketAddr, pace: Duration, counts: Arc<Counts>) {
    let idle = Arc::new(Mutex::new(Vec::new()));
    let mut due = interval(pace);
    for request in requests(Way::Egress, "bench", false, 1024, "").iter().cycle() {
        due.tick().await;
        if counts.stop.load(Ordering::Relaxed) {
            return;
        }
        let (idle, counts, request) = (idle.clone(), counts.clone(), request.clone());
        tokio::spawn(async move {
            let there = idle.lock().await.pop();
            let open = ask(to, MODEST_AGENT, there, &request, &counts.modest, &counts).await;
            idle.lock().await.extend(open);
        });
    }
}

/// One request; gives the connection if it can be used again.
async fn ask(
    to: SocketAddr,
    agent: Ipv4Addr,
    connection: Option<Connection>,
    request: &[u8],
    served: &AtomicU64,
    counts: &Counts,
) -> Option<Connection> {
    let open = match connection {
        Some(open) => Ok(open),
        None => Connection::open_from(IpAddr::V4(agent), to).await,
    };
    let answered = match open {
        Ok(mut open) => open.exchange(request).await.map(|_| open),
        Err(error) => Err(error),
    };
    match answered {
        Ok(open) => {
            served.fetch_add(1, Ordering::Relaxed);
            Some(open)
        }
        Err(error) => {
            let (count, first) = if error.to_string().starts_with("status 429") {
                (&counts.refused, &counts.refusal)
            } else {
                (&counts.failed, &counts.failure)
            };
            count.fetch_add(1, Ordering::Relaxed);
            // Only the first is kept.
            let _ = first.set(format!("{error:#}"));
            None
        }
    }
}

fn report(simulator: &Simulator, counts: &Counts, [calm, rough, end]: [&Moment; 3]) -> Vec<Row> {
    let admitted = events(simulator, EventKind::Admitted);
    let own = LIMIT as f64 / 2.0 * (rough.at - calm.at).as_secs_f64() / WINDOW.as_secs_f64();
    let modest = (rough.modest - calm.modest) as f64 * 100.0 / own;
    let over = events(simulator, EventKind::Refused).len();
    let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
    let asked = load(&counts.greedy) + load(&counts.modest) + load(&counts.refused);
    // Windows in which nothing was killed yet are left out.
    let (quiet, killed) = (
        used(&admitted, calm.at, rough.at),
        used(&admitted, rough.at + WINDOW, end.at),
    );
    let failed = rough.failed - calm.failed;
    let refusal = counts.refusal.get().map(|text| format!(", such as {text}"));
    let refusal = refusal.unwrap_or_default();
    vec![
        Row::new(
            format!("quota of {LIMIT} requests in any 60 s, {GATEWAYS} gateways: refused by the provider"),
            format!("{over} of {}", admitted.len() + over),
            "0",
            over == 0 && !admitted.is_empty(),
        ),
        Row::new(
            "  answered to agents with 429",
            format!("{} of {asked}{refusal}", load(&counts.refused)),
            "0",
            load(&counts.refused) == 0,
        ),
        Row::new("  used of it", format!("{quiet:.1} %"), "≥ 95 %", quiet >= 95.0),
        Row::new(
            "  used while the one that deals it out is killed every 20 s",
            format!("{killed:.1} %"),
            "≥ 95 %",
            killed >= 95.0,
        ),
        Row::new(
            "  of its half, a pool beside one that asks for all has",
            format!("{modest:.1} %"),
            "≥ 95 %",
            modest >= 95.0,
        ),
        Row::new(
            "  failed while nothing is killed",
            failed.to_string(),
            "0",
            failed == 0,
        ),
        Row::note(
            "  failed with the gateways that were killed",
            (end.failed - rough.failed).to_string(),
        ),
    ]
}
