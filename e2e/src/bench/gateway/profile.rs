//! One gateway under a steady load, for `perf`, `strace` and the like.

use anyhow::Result;
use clap::ValueEnum;
use std::time::Duration;

use super::Bench;
use super::closed::Load;
use super::fleet::{Fleet, Layout, Way, requests};
use super::streams::Streams;

const CONNECTIONS: usize = 32;
const WARM: Duration = Duration::from_secs(1);
/// Streams at once, of 64 events 5 ms apart: few enough for a core.
const STREAMS: usize = 100;

/// The way of the load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Direction {
    /// Clients to agents.
    Ingress,
    /// Agents to providers.
    Egress,
}

/// Runs it for `time` with bodies of `bytes` bytes, or with streams where that is 0, and prints the process id first and
/// the cost last.
///
/// # Errors
/// When a request fails.
pub fn run(bench: &Bench, direction: Direction, bytes: usize, time: Duration) -> Result<()> {
    let fleet = Fleet::start(&Layout {
        program: &bench.program,
        folder: &bench.folder("profile")?,
        origin: bench.cores.load.to_string(),
        gateway: bench.cores.proxy.to_string(),
        gateways: 1,
        split: false,
    })?;
    let gateway = fleet.gateway()?;
    println!("the gateway's process id is {}", gateway.process.id());
    let (way, to) = match direction {
        Direction::Ingress => (Way::Ingress, gateway.ingress),
        Direction::Egress => (Way::Egress, gateway.egress),
    };
    if bytes == 0 {
        let streams = Streams {
            to,
            requests: requests(way, "paced", true, 1024, ""),
            concurrent: STREAMS,
            warm: Duration::ZERO,
            time,
            cores: vec![bench.cores.load],
        };
        let before = gateway.process.cpu()?;
        let seen = streams.run()?;
        let micros = (gateway.process.cpu()? - before).as_secs_f64() * 1e6;
        println!("{:.1} µs per event", micros / seen.events as f64);
        return Ok(());
    }
    let load = Load {
        to,
        requests: requests(way, "bench", false, bytes, ""),
        connections: CONNECTIONS,
        cores: vec![bench.cores.load],
    };
    let done = load.measure(&gateway.process, WARM, time)?;
    println!("{:.1} µs per request, {:.0}/s", done.cpu_micros(), done.rate());
    Ok(())
}
