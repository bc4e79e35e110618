//! Latency that the gateway adds: open loop at a fixed rate, through it and without it in turns. Envoy beside it, to
//! know what the machine allows.

use anyhow::Result;
use bytes::Bytes;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::fleet::{Way, requests};
use super::install::Peer;
use super::open::{Latencies, Open};
use super::{Bench, not_measured, peers};
use crate::bench::stats::{median, spread};
use crate::report::Row;

const RATES: [u32; 2] = [1000, 3000];
const WARM: Duration = Duration::from_millis(500);
const TIME: Duration = Duration::from_secs(3);
/// A client that is itself later than this at p99 measures its own machine: no goal counts as reached then.
const LATE_MICROS: f64 = 300.0;

struct Subject {
    name: &'static str,
    to: SocketAddr,
    requests: Arc<[Bytes]>,
    /// Of each round, in microseconds: p50, p99, and the client's own lateness at p99.
    rounds: Vec<[f64; 3]>,
    failure: Option<anyhow::Error>,
}

pub(super) fn run(bench: &Bench) -> Result<Vec<Row>> {
    let fleet = bench.shared_fleet("latency")?;
    let gateway = fleet.gateway()?;
    let folder = bench.folder("latency")?;
    let envoy = peers::start(
        Peer::Envoy,
        &bench.cache,
        &folder,
        &bench.cores.both(),
        fleet.origin,
    );
    let ask = |way| requests(way, "bench", false, 1024, "");
    let mut rows = Vec::new();
    for rate in RATES {
        let mut subjects = vec![
            Subject::new("direct", fleet.origin, ask(Way::Plain)),
            Subject::new("ingress", gateway.ingress, ask(Way::Ingress)),
            Subject::new("egress", gateway.egress, ask(Way::Egress)),
        ];
        if let Ok(envoy) = &envoy {
            subjects.push(Subject::new("Envoy", envoy.address, envoy.requests.clone()));
        }
        for _ in 0..bench.rounds {
            for subject in &mut subjects {
                subject.measure(bench, rate);
            }
        }
        rows.extend(report(&subjects, rate));
    }
    Ok(rows)
}

fn report(subjects: &[Subject], rate: u32) -> Vec<Row> {
    let Some((direct, others)) = subjects.split_first() else {
        return vec![];
    };
    let mut rows = Vec::new();
    for subject in others {
        for (index, percentile, goal) in [(0, "p50", 0.15), (1, "p99", 0.35)] {
            let name = format!("added latency, {}, {rate}/s, {percentile}", subject.name);
            let goal_text = format!("≤ {goal} ms");
            if let Some(error) = subject.failure.as_ref().or(direct.failure.as_ref()) {
                rows.push(not_measured(name, &goal_text, error));
                continue;
            }
            let added: Vec<f64> = subject
                .rounds
                .iter()
                .zip(&direct.rounds)
                .map(|(with, without)| (figure(with, index) - figure(without, index)) / 1000.0)
                .collect();
            let mut measured = format!("{} ms", spread(&added, 3));
            let busy = subject.is_late() || direct.is_late();
            if busy {
                measured += ", but the machine was busy";
            }
            rows.push(if subject.name == "Envoy" {
                Row::note(format!("  {name}"), measured)
            } else {
                Row::new(name, measured, goal_text, median(added) <= goal && !busy)
            });
        }
    }
    for subject in subjects.iter().filter(|subject| subject.failure.is_none()) {
        let of = |index: usize| {
            subject
                .rounds
                .iter()
                .map(|round| figure(round, index))
                .collect::<Vec<_>>()
        };
        let late = median(of(2));
        rows.push(Row::note(
            format!("  {}, {rate}/s: p50, p99, client late at p99", subject.name),
            format!("{:.0}, {:.0}, {late:.0} µs", median(of(0)), median(of(1))),
        ));
    }
    rows
}

fn figure(round: &[f64; 3], index: usize) -> f64 {
    round.get(index).copied().unwrap_or(f64::NAN)
}

impl Subject {
    fn new(name: &'static str, to: SocketAddr, requests: Arc<[Bytes]>) -> Self {
        Self {
            name,
            to,
            requests,
            rounds: vec![],
            failure: None,
        }
    }

    /// The client could not keep its own time.
    fn is_late(&self) -> bool {
        let late = self.rounds.iter().map(|round| figure(round, 2)).collect();
        median(late) > LATE_MICROS
    }

    /// A failure is this subject's: the others go on.
    fn measure(&mut self, bench: &Bench, rate: u32) {
        if self.failure.is_none()
            && let Err(error) = self.try_measure(bench, rate)
        {
            self.failure = Some(error);
        }
    }

    fn try_measure(&mut self, bench: &Bench, rate: u32) -> Result<()> {
        let open = Open {
            to: self.to,
            requests: self.requests.clone(),
            rate,
            warm: WARM,
            time: TIME,
            cores: bench.both(),
        };
        let Latencies { latency, late } = open.run()?;
        let micros = |quantile: Option<f64>| quantile.unwrap_or(f64::NAN) / 1000.0;
        self.rounds.push([
            micros(latency.quantile(0.5)),
            micros(latency.quantile(0.99)),
            micros(late.quantile(0.99)),
        ]);
        Ok(())
    }
}
