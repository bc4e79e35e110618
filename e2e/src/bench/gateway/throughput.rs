//! Requests per second through the gateway as a fraction of those without it: client, origin and gateway on the same two
//! cores, closed loop. The client and the origin take part of both cores, so this depends on them as much as on the
//! gateway; CPU per request does not.

use anyhow::Result;
use std::net::SocketAddr;
use std::time::Duration;

use super::closed::Load;
use super::fleet::{Way, requests};
use super::install::Peer;
use super::{Bench, peers};
use crate::bench::stats::{median, spread};
use crate::report::Row;

const CONNECTIONS: usize = 32;
const WARM: Duration = Duration::from_millis(400);
const TIME: Duration = Duration::from_secs(2);
const SIZES: [(usize, &str, f64); 2] = [(1024, "1 KiB", 0.25), (16 * 1024, "16 KiB", 0.75)];

pub(super) fn run(bench: &Bench) -> Result<Vec<Row>> {
    let fleet = bench.shared_fleet("throughput")?;
    let gateway = fleet.gateway()?;
    let folder = bench.folder("throughput")?;
    // What forwarding costs at least on this machine, with this client and this origin.
    let others = [Peer::Envoy, Peer::Nginx].map(|peer| {
        (
            peer,
            peers::start(peer, &bench.cache, &folder, &bench.cores.both(), fleet.origin),
        )
    });
    let mut rows = Vec::new();
    for (bytes, size, goal) in SIZES {
        let mut targets: Vec<(&str, Way, SocketAddr)> = vec![
            ("direct", Way::Plain, fleet.origin),
            ("ingress", Way::Ingress, gateway.ingress),
            ("egress", Way::Egress, gateway.egress),
        ];
        for (peer, running) in &others {
            if let Ok(running) = running {
                targets.push((peer.name(), Way::Plain, running.address));
            }
        }
        let mut rates: Vec<Vec<f64>> = vec![vec![]; targets.len()];
        for _ in 0..bench.rounds {
            for ((_, way, to), rates) in targets.iter().zip(&mut rates) {
                let load = Load {
                    to: *to,
                    requests: requests(*way, "bench", false, bytes, ""),
                    connections: CONNECTIONS,
                    cores: bench.both(),
                };
                rates.push(load.measure(&gateway.process, WARM, TIME)?.rate());
            }
        }
        let Some((direct, others)) = rates.split_first() else {
            continue;
        };
        for ((name, ..), theirs) in targets.iter().skip(1).zip(others) {
            let fractions: Vec<f64> = theirs
                .iter()
                .zip(direct)
                .map(|(with, without)| with / without)
                .collect();
            let measured = format!("{} of direct", spread(&fractions, 2));
            let text = format!("throughput, {name}, {size}");
            rows.push(if matches!(*name, "ingress" | "egress") {
                Row::new(text, measured, format!("≥ {goal}"), median(fractions) >= goal)
            } else {
                Row::note(format!("  {text}, one worker"), measured)
            });
        }
        rows.push(Row::note(
            format!("  direct, {size}"),
            format!("{:.0}/s", median(direct.clone())),
        ));
    }
    Ok(rows)
}
