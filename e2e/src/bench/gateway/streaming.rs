//! Many streams at once of 64 events, 5 ms apart: what the gateway adds to the first event and to the gaps, and whether
//! events stay apart. 500 of them are 100,000 events in a second: on few cores client, origin and gateway together have more to do
//! than they can, and then it is the queue for a core that is measured. So fewer are measured as well.

use anyhow::Result;
use bytes::Bytes;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::fleet::{Way, requests};
use super::install::Peer;
use super::streams::{Seen, Streams};
use super::{Bench, not_measured, peers};
use crate::bench::stats::{median, spread};
use crate::report::Row;

const CONCURRENT: [usize; 2] = [50, 500];
const WARM: Duration = Duration::from_millis(700);
const TIME: Duration = Duration::from_secs(3);

struct Subject {
    name: &'static str,
    to: SocketAddr,
    requests: Arc<[Bytes]>,
    rounds: Vec<Seen>,
    failure: Option<anyhow::Error>,
}

pub(super) fn run(bench: &Bench) -> Result<Vec<Row>> {
    let fleet = bench.shared_fleet("streaming")?;
    let gateway = fleet.gateway()?;
    let folder = bench.folder("streaming")?;
    let envoy = peers::start(
        Peer::Envoy,
        &bench.cache,
        &folder,
        &bench.cores.both(),
        fleet.origin,
    );
    let ask = |way| requests(way, "paced", true, 1024, "");
    let mut rows = Vec::new();
    for concurrent in CONCURRENT {
        let mut subjects = vec![
            Subject::new("direct", fleet.origin, ask(Way::Plain)),
            Subject::new("ingress", gateway.ingress, ask(Way::Ingress)),
            Subject::new("egress", gateway.egress, ask(Way::Egress)),
        ];
        if let Ok(envoy) = &envoy {
            subjects.push(Subject::new("Envoy", envoy.address, envoy.streams.clone()));
        }
        for _ in 0..bench.rounds {
            for subject in &mut subjects {
                subject.measure(bench, concurrent);
            }
        }
        rows.extend(report(&subjects, concurrent));
    }
    Ok(rows)
}

fn first(seen: &Seen) -> f64 {
    seen.first.quantile(0.99).unwrap_or(f64::NAN) / 1e6
}

fn gap(seen: &Seen) -> f64 {
    seen.gap.quantile(0.99).unwrap_or(f64::NAN) / 1e6
}

fn report(subjects: &[Subject], concurrent: usize) -> Vec<Row> {
    let Some((direct, others)) = subjects.split_first() else {
        return vec![];
    };
    let mut rows = Vec::new();
    for subject in others {
        if let Some(error) = subject.failure.as_ref().or(direct.failure.as_ref()) {
            rows.push(not_measured(
                format!("{concurrent} streams, {}", subject.name),
                "-",
                error,
            ));
            continue;
        }
        let added = |of: fn(&Seen) -> f64| -> Vec<f64> {
            let pairs = subject.rounds.iter().zip(&direct.rounds);
            pairs.map(|(with, without)| of(with) - of(without)).collect()
        };
        for (what, added, goal) in [("first event", added(first), 0.5), ("gap", added(gap), 0.2)] {
            let name = format!("{concurrent} streams, {}, added {what}, p99", subject.name);
            let measured = format!("{} ms", spread(&added, 3));
            rows.push(if subject.name == "Envoy" {
                Row::note(format!("  {name}"), measured)
            } else {
                Row::new(name, measured, format!("≤ {goal} ms"), median(added) <= goal)
            });
        }
        let joined: u64 = subject.rounds.iter().map(|seen| seen.joined).sum();
        let events: u64 = subject.rounds.iter().map(|seen| seen.events).sum();
        let name = format!(
            "{concurrent} streams, {}, events joined to one chunk",
            subject.name
        );
        let measured = format!("{joined} of {events}");
        rows.push(if subject.name == "Envoy" {
            Row::note(format!("  {name}"), measured)
        } else {
            Row::new(name, measured, "0", joined == 0)
        });
    }
    for subject in subjects.iter().filter(|subject| subject.failure.is_none()) {
        let of = |of: fn(&Seen) -> f64| median(subject.rounds.iter().map(of).collect());
        let streams: u64 = subject.rounds.iter().map(|seen| seen.streams).sum();
        rows.push(Row::note(
            format!(
                "  {concurrent} at once, {}: first event p99, gap p99, streams",
                subject.name
            ),
            format!("{:.2} ms, {:.2} ms, {streams}", of(first), of(gap)),
        ));
    }
    rows
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

    /// A failure is this subject's: the others go on.
    fn measure(&mut self, bench: &Bench, concurrent: usize) {
        if self.failure.is_some() {
            return;
        }
        let streams = Streams {
            to: self.to,
            requests: self.requests.clone(),
            concurrent,
            warm: WARM,
            time: TIME,
            cores: bench.both(),
        };
        match streams.run() {
            Ok(seen) => self.rounds.push(seen),
            Err(error) => self.failure = Some(error),
        }
    }
}
