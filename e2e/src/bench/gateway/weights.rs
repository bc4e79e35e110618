//! A change of weights on three gateways: how long until each sends to the other revision, and what fails meanwhile.
//!
//! The change is written to the API server as the operator does; each gateway hears of it by its own watch. A client at
//! each of them sends a request every millisecond and sees by the answer which revision served. In force is a change
//! when the last of the three has sent a request to the new revision; the millisecond is part of what is measured.

use anyhow::{Result, anyhow, bail};
use bytes::Bytes;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

use super::Bench;
use super::fleet::{Fleet, Layout, Way, requests};
use super::http::Connection;
use super::machine::pause;
use super::objects::{self, REVISIONS};
use super::origin::REPLICAS;
use crate::report::Row;

const GATEWAYS: u8 = 3;
const CHANGES: usize = 1000;
const EVERY: Duration = Duration::from_millis(1);
/// Rest after a change is in force, so that the next one meets gateways at work and not in the middle of the last.
const REST: Duration = Duration::from_millis(10);
const LIMIT: Duration = Duration::from_secs(10);

/// The first answer of the other revision at one gateway.
struct Turned {
    gateway: usize,
    at: Instant,
}

/// What the three clients share.
#[derive(Default)]
struct Counts {
    stop: AtomicBool,
    requests: AtomicU64,
    failed: AtomicU64,
    /// Answers of a revision whose weight was already seen to be gone.
    relapses: AtomicU64,
}

pub(super) fn run(bench: &Bench) -> Result<Vec<Row>> {
    let fleet = Fleet::start(&Layout {
        program: &bench.program,
        folder: &bench.folder("weights")?,
        origin: bench.cores.both(),
        gateway: bench.cores.both(),
        gateways: GATEWAYS,
        split: true,
    })?;
    let counts = Arc::new(Counts::default());
    let (sender, turned) = mpsc::channel();
    let targets: Vec<SocketAddr> = fleet.gateways.iter().map(|gateway| gateway.ingress).collect();
    let thread = {
        let counts = counts.clone();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(ask_all(targets, counts, sender))
        })
    };
    let delays = change_all(&fleet, &turned);
    counts.stop.store(true, Ordering::Relaxed);
    thread.join().map_err(|_| anyhow!("the client panicked"))??;
    let mut delays = delays?;
    delays.sort_unstable();
    let mean = delays.iter().map(Duration::as_secs_f64).sum::<f64>() * 1000.0 / delays.len() as f64;
    let p99 = delays
        .get(delays.len() * 99 / 100)
        .map_or(f64::NAN, |delay| delay.as_secs_f64() * 1000.0);
    let worst = delays
        .last()
        .map_or(f64::NAN, |delay| delay.as_secs_f64() * 1000.0);
    let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
    let (all, failed, relapses) = (
        load(&counts.requests),
        load(&counts.failed),
        load(&counts.relapses),
    );
    Ok(vec![
        Row::new(
            format!("change of weights in force on {GATEWAYS} gateways, mean of {CHANGES}"),
            format!("{mean:.1} ms"),
            "≤ 25 ms",
            mean <= 25.0,
        ),
        Row::new("  p99", format!("{p99:.1} ms"), "≤ 250 ms", p99 <= 250.0),
        Row::note("  longest", format!("{worst:.1} ms")),
        Row::new(
            format!("requests failed through {CHANGES} changes"),
            format!("{failed} of {all}"),
            "0",
            failed == 0 && all > 0,
        ),
        Row::new(
            "answers of a revision that had lost its weight there",
            relapses.to_string(),
            "0",
            relapses == 0,
        ),
    ])
}

fn change_all(fleet: &Fleet, turned: &Receiver<Turned>) -> Result<Vec<Duration>> {
    // Every client has to have seen the first revision.
    pause(Duration::from_millis(500));
    let [first, second] = REVISIONS;
    let mut delays = Vec::with_capacity(CHANGES);
    for change in 0..CHANGES {
        let to = if change % 2 == 0 {
            [(first, 0), (second, 100)]
        } else {
            [(first, 100), (second, 0)]
        };
        let generation = i64::try_from(change).unwrap_or(0) + 2;
        let begin = Instant::now();
        fleet
            .api
            .put(objects::path::POOLS, objects::pool(&to, generation));
        let mut seen = [false; GATEWAYS as usize];
        let mut last = begin;
        while seen.contains(&false) {
            let Ok(turn) = turned.recv_timeout(LIMIT) else {
                bail!(
                    "change {change} is not in force everywhere after {} s",
                    LIMIT.as_secs()
                );
            };
            if let Some(seen) = seen.get_mut(turn.gateway) {
                *seen = true;
            }
            last = last.max(turn.at);
        }
        delays.push(last - begin);
        pause(REST);
    }
    Ok(delays)
}

async fn ask_all(targets: Vec<SocketAddr>, counts: Arc<Counts>, turned: Sender<Turned>) -> Result<()> {
    let mut clients = JoinSet::new();
    for (gateway, to) in targets.into_iter().enumerate() {
        clients.spawn(ask(gateway, to, counts.clone(), turned.clone()));
    }
    while let Some(client) = clients.join_next().await {
        client??;
    }
    Ok(())
}

async fn ask(gateway: usize, to: SocketAddr, counts: Arc<Counts>, turned: Sender<Turned>) -> Result<()> {
    let requests: Arc<[Bytes]> = unrelated_requests();
    let mut connection = Connection::open(to).await?;
    let mut ticks = tokio::time::interval(EVERY);
    let mut arm = 0;
    // Set when the arm changes: an answer of the old one before that is no relapse, one after it is.
    let mut changed = Instant::now();
    for request in requests.iter().cycle() {
        ticks.tick().await;
        if counts.stop.load(Ordering::Relaxed) {
            break;
        }
        counts.requests.fetch_add(1, Ordering::Relaxed);
        match connection.exchange(request).await {
            Ok(head) => {
                let served = usize::from(head.origin.is_none_or(|origin| origin > REPLICAS / 2));
                if served != arm {
                    let now = Instant::now();
                    // Two turns of one gateway are at least a rest apart.
                    if now - changed < REST / 2 {
                        counts.relapses.fetch_add(1, Ordering::Relaxed);
                    }
                    (arm, changed) = (served, now);
                    let _ = turned.send(Turned { gateway, at: now });
                }
            }
            Err(error) => {
                eprintln!("gateway {}: {error:#}", gateway + 1);
                counts.failed.fetch_add(1, Ordering::Relaxed);
                connection = Connection::open(to).await?;
            }
        }
    }
    Ok(())
}

/// Requests of no conversation: those stay on their revision, which is another property.
fn unrelated_requests() -> Arc<[Bytes]> {
    requests(Way::Ingress, "bench", false, 1024, "")
        .iter()
        .map(|request| {
            let text = String::from_utf8_lossy(request);
            let kept: Vec<&str> = text
                .split("\r\n")
                .filter(|line| !line.starts_with(objects::SESSION_HEADER))
                .collect();
            Bytes::from(kept.join("\r\n"))
        })
        .collect()
}
