//! Latency by exceedance at several thresholds: a shift of the body or of the tail, with the figures of the research notes, 9.5.

use super::releases::{alarms_are_rare, full, size};
use super::simulation::{Dice, ORIGIN};
use super::*;
use crate::load::random::Stream;

const EDGES: [u64; 5] = [500, 1_000, 2_000, 4_000, 8_000];

/// The standard normal's upper tail (Abramowitz and Stegun 26.2.17, error below 10⁻⁷).
fn upper_tail(x: f64) -> f64 {
    if x < 0.0 {
        return 1.0 - upper_tail(-x);
    }
    let t = 1.0 / (1.0 + 0.2316419 * x);
    let series = [0.319381530, -0.356563782, 1.781477937, -1.821255978, 1.330274429];
    let sum = series.iter().rev().fold(0.0, |sum, c| (sum + c) * t);
    (-x * x / 2.0).exp() / std::f64::consts::TAU.sqrt() * sum
}

/// Log-normal latencies of median 0.8 s, σ 0.8, times `slower`; `stuck` of them take 4 s more.
#[derive(Clone, Copy)]
struct Latency {
    slower: f64,
    stuck: f64,
}

impl Latency {
    fn above(self, edge: u64) -> f64 {
        let tail = |ms: f64| {
            if ms <= 0.0 {
                1.0
            } else {
                upper_tail((ms / 800.0 / self.slower).ln() / 0.8)
            }
        };
        (1.0 - self.stuck) * tail(edge as f64) + self.stuck * tail(edge as f64 - 4_000.0)
    }

    fn counts(self, dice: &mut Dice, mean: f64) -> Counts {
        let above = EDGES.map(|edge| self.above(edge));
        let mut higher = 0.0;
        let mut events = vec![0; EDGES.len()];
        let mut total = 0;
        for (index, share) in above.iter().enumerate().rev() {
            total += dice.poisson(mean * (share - higher));
            events[index] = total;
            higher = *share;
        }
        let requests = total + dice.poisson(mean * (1.0 - higher));
        Counts { requests, events }
    }
}

/// The minute of the rollback on the fixed schedule, if any.
fn found(requests_per_second: f64, candidate: Latency, stream: Stream) -> Option<i64> {
    let mut dice = Dice::new(stream);
    let mut evidence = Evidence::new(Key::default());
    let mut plan = plan();
    plan.request_timeout_seconds = 0;
    plan.metrics = vec![Metric::latency(EDGES.to_vec())];
    let normal = Latency {
        slower: 1.0,
        stuck: 0.0,
    };
    for n in 0..160 {
        let step = n / 40;
        let start = ORIGIN + n * 15;
        plan.step.index = step as u32;
        plan.step.epoch = 1 + step;
        plan.step.start = ORIGIN + step * 600;
        let weight = [0.01, 0.1, 0.25, 0.5][step as usize];
        let requests = requests_per_second * 15.0;
        let tally = Tally {
            stable: normal.counts(&mut dice, requests * (1.0 - weight)),
            candidate: candidate.counts(&mut dice, requests * weight),
        };
        let metrics = BTreeMap::from([("latency".to_owned(), Observation::Counts(tally))]);
        let epoch = plan.step.epoch;
        evidence.update(
            &plan,
            &look(
                start + 15,
                vec![Window {
                    start,
                    epoch,
                    metrics,
                }],
            ),
        );
        if n % 4 == 3 && judge(&evidence, &plan, start + 15).verdict == Verdict::Rollback {
            return Some((n + 1) / 4);
        }
    }
    None
}

#[test]
fn slower_candidates_are_found_and_equal_ones_are_not() {
    for (cell, (requests_per_second, slower, stuck, percent, minutes)) in [
        (10.0, 1.0, 0.0, 0.0, None),
        (10.0, 1.3, 0.0, 100.0, Some(17)),
        (1.0, 1.6, 0.0, 99.8, Some(25)),
        (1.0, 2.0, 0.0, 100.0, Some(17)),
        (10.0, 2.0, 0.0, 100.0, Some(7)),
        (10.0, 1.0, 0.05, 100.0, Some(14)),
    ]
    .into_iter()
    .enumerate()
    {
        let releases = if full() { 10_000 } else { size(12) };
        let candidate = Latency { slower, stuck };
        let stream = Stream::new(11, cell as u64);
        let mut times: Vec<i64> = (0..releases)
            .filter_map(|n| found(requests_per_second, candidate, stream.split(n as u64)))
            .collect();
        times.sort_unstable();
        let median = times.get(times.len() / 2).copied();
        let name = format!("{requests_per_second}/s, x{slower}, {stuck} stuck");
        println!(
            "latency, {name}: {} of {releases} found, median {median:?} min (reference {percent} %, {minutes:?})",
            times.len()
        );
        match minutes {
            None => alarms_are_rare(&name, times.len(), releases, 0.01),
            Some(reference) => {
                let median = median.unwrap();
                assert!(
                    (median - reference).abs() as f64 <= (0.2 * reference as f64).max(1.0),
                    "{name}: {median} min"
                );
                assert!(
                    times.len() as f64 >= 0.95 * releases as f64,
                    "{name}: {}",
                    times.len()
                );
            }
        }
    }
}
