//! CPU time per request of 1 KiB with an answer of 1 KiB, closed loop, the measured process alone on one core.

use anyhow::Result;
use bytes::Bytes;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::closed::Load;
use super::fleet::{Fleet, Layout, Way, requests};
use super::install::Peer;
use super::peers;
use super::process::Child;
use super::{Bench, not_measured};
use crate::bench::stats::{median, spread};
use crate::report::Row;

const WARM: Duration = Duration::from_millis(500);
const TIME: Duration = Duration::from_millis(2500);
const CONNECTIONS: usize = 32;
/// LiteLLM answers so few per second that with more of them most of a round would be half done.
const LITELLM_CONNECTIONS: usize = 8;
const PEERS: [Peer; 4] = [Peer::Envoy, Peer::Nginx, Peer::LiteLlm, Peer::Portkey];

/// Something whose CPU time is measured.
struct Subject<'a> {
    name: &'static str,
    process: &'a Child,
    to: SocketAddr,
    requests: Arc<[Bytes]>,
    /// Microseconds per request, one of each round.
    micros: Vec<f64>,
    rates: Vec<f64>,
    failure: Option<anyhow::Error>,
}

pub(super) fn run(bench: &Bench) -> Result<Vec<Row>> {
    let folder = bench.folder("cpu")?;
    let (load, proxy) = (bench.cores.load.to_string(), bench.cores.proxy.to_string());
    let fleet = Fleet::start(&Layout {
        program: &bench.program,
        folder: &folder,
        origin: load,
        gateway: proxy.clone(),
        gateways: 1,
        split: false,
    })?;
    let started = PEERS.map(|peer| {
        (
            peer,
            peers::start(peer, &bench.cache, &folder, &proxy, fleet.origin),
        )
    });
    let gateway = fleet.gateway()?;
    let ask = |way| requests(way, "bench", false, 1024, "");
    let mut subjects = vec![
        Subject::new("ingress", &gateway.process, gateway.ingress, ask(Way::Ingress)),
        Subject::new("egress", &gateway.process, gateway.egress, ask(Way::Egress)),
    ];
    for (peer, running) in &started {
        if let Ok(running) = running {
            let requests = running.requests.clone();
            subjects.push(Subject::new(
                peer.name(),
                &running.process,
                running.address,
                requests,
            ));
        }
    }
    for round in 0..bench.rounds {
        // Each begins once: who comes first after a pause differs.
        let count = subjects.len();
        subjects.rotate_left(usize::from(round > 0 && count > 0));
        for subject in &mut subjects {
            subject.measure(bench);
        }
    }
    let figures = |name: &str| subjects.iter().find(|subject| subject.name == name);
    for name in ["ingress", "egress"] {
        if let Some(error) = figures(name).and_then(|subject| subject.failure.as_ref()) {
            anyhow::bail!("the gateway's {name} failed under load: {error:#}");
        }
    }
    let mut rows = Vec::new();
    for (peer, running) in &started {
        let their = match (running, figures(peer.name())) {
            (Err(error), _) => Err(error),
            (Ok(_), Some(subject)) => subject.failure.as_ref().map_or(Ok(subject), Err),
            (Ok(_), None) => continue,
        };
        for way in ["ingress", "egress"] {
            let Some(ours) = figures(way) else { continue };
            rows.extend(compare(
                *peer,
                way,
                &ours.micros,
                their.map(|their| their.micros.as_slice()),
            ));
        }
    }
    for subject in &subjects {
        if subject.failure.is_none() {
            rows.push(Row::note(
                format!("  {}, CPU per request", subject.name),
                format!(
                    "{} µs, {:.0}/s",
                    spread(&subject.micros, 0),
                    median(subject.rates.clone())
                ),
            ));
        }
    }
    Ok(rows)
}

/// One row: the gateway's time as a multiple of the proxy's, or the LLM gateway's as a multiple of ours.
fn compare(peer: Peer, way: &str, ours: &[f64], their: Result<&[f64], &anyhow::Error>) -> Option<Row> {
    let (goal, text, ours_first) = match peer {
        Peer::Envoy => (2.0, "≤ 2.0 ×", true),
        Peer::Nginx => (8.0, "≤ 8 ×", true),
        Peer::LiteLlm => (75.0, "≥ 75 ×", false),
        Peer::Portkey => (10.0, "≥ 10 ×", false),
    };
    // LLM gateways do what the egress does.
    if !ours_first && way != "egress" {
        return None;
    }
    let name = if ours_first {
        format!("CPU per 1 KiB request, {way}, against {}", peer.name())
    } else {
        format!("CPU per 1 KiB request of {}, against {way}", peer.name())
    };
    let their = match their {
        Ok(their) => their,
        Err(error) => return Some(not_measured(name, text, error)),
    };
    let ratios: Vec<f64> = ours
        .iter()
        .zip(their)
        .map(|(ours, their)| if ours_first { ours / their } else { their / ours })
        .collect();
    let ratio = median(ratios.clone());
    let reached = if ours_first { ratio <= goal } else { ratio >= goal };
    Some(Row::new(name, format!("{} ×", spread(&ratios, 2)), text, reached))
}

impl<'a> Subject<'a> {
    fn new(name: &'static str, process: &'a Child, to: SocketAddr, requests: Arc<[Bytes]>) -> Self {
        Self {
            name,
            process,
            to,
            requests,
            micros: vec![],
            rates: vec![],
            failure: None,
        }
    }

    fn measure(&mut self, bench: &Bench) {
        if self.failure.is_some() {
            return;
        }
        let load = Load {
            to: self.to,
            requests: self.requests.clone(),
            connections: if self.name == Peer::LiteLlm.name() {
                LITELLM_CONNECTIONS
            } else {
                CONNECTIONS
            },
            cores: vec![bench.cores.load],
        };
        match load.measure(self.process, WARM, TIME) {
            Ok(done) => {
                self.micros.push(done.cpu_micros());
                self.rates.push(done.rate());
            }
            Err(error) => self.failure = Some(error),
        }
    }
}
