//! Resident memory of the gateway's process: idle, with 2,000 open streams, and whether it grows with requests.

use anyhow::{Context as _, Result};
use std::time::{Duration, Instant};

use super::Bench;
use super::closed::Load;
use super::fleet::{Gateway, Way, requests};
use super::machine::pause;
use super::streams::Held;
use crate::report::Row;

const STREAMS: usize = 2000;
const CONNECTIONS: usize = 32;
const SAMPLED: u64 = 400_000;
const FULL: u64 = 10_000_000;
/// How often the operator reads `/stats`; old windows are given up then.
const SCRAPE: Duration = Duration::from_secs(15);
/// What may come and go with allocation luck.
const GROWTH_MIB: f64 = 2.0;

pub(super) fn run(bench: &Bench) -> Result<Vec<Row>> {
    let fleet = bench.shared_fleet("memory")?;
    let gateway = fleet.gateway()?;
    pause(Duration::from_secs(3));
    let idle = mebibytes(gateway)?;
    let mut rows = vec![Row::new(
        "memory, idle",
        format!("{idle:.0} MiB"),
        "≤ 40 MiB",
        idle <= 40.0,
    )];
    let mut most = 0.0_f64;
    for (way, to) in [(Way::Ingress, gateway.ingress), (Way::Egress, gateway.egress)] {
        let request = requests(way, "held", true, 1024, "")
            .first()
            .cloned()
            .context("no request")?;
        let held = Held::open(to, request, STREAMS, Duration::from_secs(60))?;
        pause(Duration::from_secs(2));
        most = most.max(mebibytes(gateway)?);
        held.close()?;
    }
    rows.push(Row::new(
        format!("memory, {STREAMS} open streams, the larger of ingress and egress"),
        format!("{most:.0} MiB"),
        "≤ 120 MiB",
        most <= 120.0,
    ));
    rows.extend(growth(bench, gateway)?);
    Ok(rows)
}

/// From a tenth of all requests, when everything has been used once, to the last.
fn growth(bench: &Bench, gateway: &Gateway) -> Result<Vec<Row>> {
    let total = if bench.full { FULL } else { SAMPLED };
    let load = |way, to| Load {
        to,
        requests: requests(way, "bench", false, 1024, ""),
        connections: CONNECTIONS,
        cores: bench.both(),
    };
    let ingress = load(Way::Ingress, gateway.ingress).start();
    let egress = load(Way::Egress, gateway.egress).start();
    let mut scraped = Instant::now();
    let mut scrape = || -> Result<()> {
        if scraped.elapsed() >= SCRAPE {
            scraped = Instant::now();
            gateway.stats()?;
        }
        Ok(())
    };
    let mut samples = Vec::new();
    for tenth in 1..=10 {
        // Both ways get half, whatever their speeds.
        ingress.reach(total / 20 * tenth, &mut scrape)?;
        egress.reach(total / 20 * tenth, &mut scrape)?;
        samples.push(mebibytes(gateway)?);
    }
    let count = ingress.count() + egress.count();
    ingress.stop()?;
    egress.stop()?;
    let (first, last) = (
        samples.first().copied().unwrap_or(f64::NAN),
        samples.last().copied().unwrap_or(f64::NAN),
    );
    let most = samples.iter().copied().fold(f64::NAN, f64::max);
    let millions = count as f64 / 1e6;
    Ok(vec![
        Row::new(
            format!("memory, growth over {millions:.1} million requests"),
            format!("{:+.1} MiB", last - first),
            format!("≤ {GROWTH_MIB} MiB"),
            last - first <= GROWTH_MIB,
        ),
        Row::note(
            "  memory under load: after a tenth, at most, at the end",
            format!("{first:.0}, {most:.0}, {last:.0} MiB"),
        ),
    ])
}

fn mebibytes(gateway: &Gateway) -> Result<f64> {
    Ok(gateway.process.memory()? as f64 / (1024.0 * 1024.0))
}
