//! Simulated requests that take long, or much: a shift of the body or of the tail, counted above several thresholds.

use std::collections::BTreeMap;

use super::eta::DEFAULT_STEPS;
use super::judge::{Verdict, judge};
use super::plan::{Metric, Plan, Question, Step, Strictness};
use super::simulation::{Dice, ORIGIN};
use super::state::{Evidence, Key};
use super::window::{Counts, Observation, Report, Scrape, Tally, Window};
use crate::load::random::Stream;
use crate::stats::WINDOW_SECONDS;

const STEP_SECONDS: i64 = 600;
const MINUTE: i64 = 60;

/// How the candidate's requests differ.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shift {
    /// All of them take so many times as much.
    pub times: f64,
    /// This share of them takes 4000 more.
    pub stuck: f64,
}

/// Requests of log-normal size with a median of 800 (milliseconds, tokens), σ 0.8.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tail {
    /// Both arms together.
    pub requests_per_second: f64,
    /// The candidate's.
    pub candidate: Shift,
}

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

impl Shift {
    fn above(self, edge: u64) -> f64 {
        let tail = |size: f64| {
            if size <= 0.0 {
                1.0
            } else {
                upper_tail((size / 800.0 / self.times).ln() / 0.8)
            }
        };
        (1.0 - self.stuck) * tail(edge as f64) + self.stuck * tail(edge as f64 - 4_000.0)
    }

    fn counts(self, dice: &mut Dice, mean: f64) -> Counts {
        let mut higher = 0.0;
        let mut events = vec![0; Tail::EDGES.len()];
        let mut total = 0;
        for (count, edge) in events.iter_mut().zip(Tail::EDGES).rev() {
            let share = self.above(edge);
            total += dice.poisson(mean * (share - higher));
            *count = total;
            higher = share;
        }
        let requests = total + dice.poisson(mean * (1.0 - higher));
        Counts { requests, events }
    }
}

impl Tail {
    /// The thresholds.
    pub const EDGES: [u64; 5] = [500, 1_000, 2_000, 4_000, 8_000];

    /// The minute in which it is led back by `metric`, if it is, with ten minutes at each of the default steps.
    pub fn rolled_back(&self, metric: &Metric, stream: Stream) -> Option<i64> {
        let mut dice = Dice::new(stream);
        let mut evidence = Evidence::new(Key::default());
        let stable = Shift {
            times: 1.0,
            stuck: 0.0,
        };
        for (index, rung) in (0i64..).zip(DEFAULT_STEPS) {
            let begins = index * STEP_SECONDS;
            let plan = Plan {
                strictness: Strictness::Standard,
                metrics: vec![metric.clone()],
                step: Step {
                    index: index as u32,
                    question: Question::Advance {
                        times_worse: rung.times_worse,
                    },
                    epoch: 1 + index,
                    start: ORIGIN + begins,
                    min_seconds: MINUTE,
                    decide_within_seconds: 3_600,
                },
                first_epoch: 1,
                request_timeout_seconds: 0,
                warmup_seconds: 0,
                bakes: false,
            };
            let weight = f64::from(rung.weight_percent) / 100.0;
            for second in (begins..begins + STEP_SECONDS).step_by(WINDOW_SECONDS as usize) {
                let requests = self.requests_per_second * WINDOW_SECONDS as f64;
                let tally = Tally {
                    stable: stable.counts(&mut dice, requests * (1.0 - weight)),
                    candidate: self.candidate.counts(&mut dice, requests * weight),
                };
                let time = ORIGIN + second + WINDOW_SECONDS;
                let window = Window {
                    start: ORIGIN + second,
                    epoch: plan.step.epoch,
                    metrics: BTreeMap::from([(metric.name.clone(), Observation::Counts(tally))]),
                };
                evidence.update(
                    &plan,
                    &Scrape {
                        now: time,
                        complete: true,
                        reports: vec![Report {
                            instance: "source".to_owned(),
                            time,
                            windows: vec![window],
                        }],
                    },
                );
                let looked = (time - ORIGIN) % MINUTE == 0;
                if looked && judge(&evidence, &plan, time).verdict == Verdict::Rollback {
                    return Some((time - ORIGIN) / MINUTE);
                }
            }
        }
        None
    }
}
