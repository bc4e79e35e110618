//! Simulated releases: seeded traffic with known rates, through the real evidence and judgement.

use std::collections::BTreeMap;
use std::f64::consts::{PI, TAU};

use super::eta::Rung;
use super::judge::{Judgement, Verdict, judge};
use super::plan::{Metric, Plan, Question, Step, Strictness};
use super::ratio::Arm;
use super::state::{Evidence, Key};
use super::window::{Counts, Observation, Report, Scrape, Tally, Window};
use crate::load::random::Stream;
use crate::stats::WINDOW_SECONDS;

/// The beginning of simulated time, a multiple of the window's length.
pub const ORIGIN: i64 = 1_800_000_000;
/// How often a simulated operator looks.
const LOOK_SECONDS: i64 = 60;

/// Random numbers one after the other.
#[derive(Clone, Debug)]
pub struct Dice {
    stream: Stream,
    next: u64,
}

impl Dice {
    /// The numbers of `stream`.
    pub fn new(stream: Stream) -> Self {
        Self { stream, next: 0 }
    }

    /// Uniform in (0, 1).
    pub fn uniform(&mut self) -> f64 {
        self.next += 1;
        ((self.stream.at(self.next) >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    }

    /// A Poisson variate with `mean` (0 to 10⁹): by inversion for small means, else by transformed rejection (Hörmann 1993,
    /// algorithm PTRS).
    pub fn poisson(&mut self, mean: f64) -> u64 {
        if mean <= 0.0 {
            return 0;
        }
        if mean < 20.0 {
            let mut left = self.uniform();
            let mut probability = (-mean).exp();
            let mut count = 0u64;
            while left > probability && count < 1_000 {
                left -= probability;
                count += 1;
                probability *= mean / count as f64;
            }
            return count;
        }
        let b = 0.931 + 2.53 * mean.sqrt();
        let a = -0.059 + 0.02483 * b;
        let inverse_alpha = 1.1239 + 1.1328 / (b - 3.4);
        let v_limit = 0.9277 - 3.6224 / (b - 2.0);
        loop {
            let u = self.uniform() - 0.5;
            let v = self.uniform();
            let us = 0.5 - u.abs();
            let k = ((2.0 * a / us + b) * u + mean + 0.43).floor();
            if us >= 0.07 && v <= v_limit {
                return k as u64;
            }
            if k < 0.0 || us < 0.013 && v > us {
                continue;
            }
            let density = k * mean.ln() - mean - ln_factorial(k);
            if (v * inverse_alpha / (a / (us * us) + b)).ln() <= density {
                return k as u64;
            }
        }
    }
}

/// `ln k!` by Stirling's series; below 10 by multiplication.
fn ln_factorial(k: f64) -> f64 {
    if k < 10.0 {
        return (2..=k as u64).map(|i| i as f64).product::<f64>().ln();
    }
    let inverse = 1.0 / k;
    (k + 0.5) * k.ln() - k + 0.5 * (2.0 * PI).ln() + inverse / 12.0 - inverse.powi(3) / 360.0
}

/// Both arms fail for one reason, for a time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Incident {
    /// Seconds after the start.
    pub from: i64,
    /// Seconds after the start.
    pub until: i64,
    /// The error rate of both arms meanwhile, as a share.
    pub error_rate: f64,
}

/// A pool's traffic.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct World {
    /// Requests a second, both arms together, on average.
    pub requests_per_second: f64,
    /// Stable's error rate as a share, on average.
    pub error_rate: f64,
    /// The candidate's error rate as a multiple of stable's at the time.
    pub times_worse: f64,
    /// Stable's rate drifts by up to about four times, and traffic by the hour of the day; the true share of the candidate
    /// strays by up to 30 % from its weight.
    pub drifts: bool,
    /// Each failure is retried until this many have failed.
    pub burst: u64,
    /// An outage of both arms.
    pub incident: Option<Incident>,
}

impl World {
    /// Steady traffic.
    pub fn new(requests_per_second: f64, error_rate: f64, times_worse: f64) -> Self {
        Self {
            requests_per_second,
            error_rate,
            times_worse,
            drifts: false,
            burst: 1,
            incident: None,
        }
    }

    /// The counts of the `seconds` from `second` on (after the start), with a candidate's `weight` as a share.
    pub fn counts(&self, dice: &mut Dice, phase: f64, second: i64, seconds: i64, weight: f64) -> [Arm; 2] {
        let t = second as f64;
        let wave = |period: f64, offset: f64| (TAU * (t / period + phase + offset)).sin();
        let (mut rate, mut traffic, mut share) = (self.error_rate, self.requests_per_second, weight);
        if self.drifts {
            rate *= (0.5 * wave(1_700.0, 0.0) + 0.4 * wave(6_100.0, 0.3)).exp();
            traffic *= 1.0 + 0.6 * wave(86_400.0, 0.6);
            share *= 0.7 + 0.6 * dice.uniform();
        }
        let mut rates = [rate, rate * self.times_worse];
        if let Some(incident) = self
            .incident
            .filter(|incident| (incident.from..incident.until).contains(&second))
        {
            rates = rates.map(|rate| rate.max(incident.error_rate));
        }
        let requests = traffic * seconds as f64;
        let shares = [1.0 - share.min(1.0), share.min(1.0)];
        std::array::from_fn(|arm| {
            let mean = requests * shares[arm];
            let rate = rates[arm].min(1.0);
            let events = dice.poisson(mean * rate / self.burst as f64) * self.burst;
            Arm {
                requests: events + dice.poisson(mean * (1.0 - rate)),
                events,
            }
        })
    }
}

/// How a simulated release ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Every step advanced.
    Promoted,
    /// Rolled back.
    RolledBack,
    /// A step was not decided in time.
    Held,
}

/// A simulated release's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// How.
    pub ended: Ended,
    /// After how long.
    pub seconds: i64,
    /// The step it was at.
    pub step: usize,
}

/// When a simulated release leaves a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Schedule {
    /// When the evidence says so.
    Evidence,
    /// After so many seconds, unless it is rolled back.
    Fixed(i64),
}

/// A release that is simulated.
#[derive(Clone, Debug)]
pub struct Release {
    /// Its steps.
    pub steps: Vec<Rung>,
    /// When it leaves them.
    pub schedule: Schedule,
    /// Its metrics; only errors have counts.
    pub metrics: Vec<Metric>,
    /// How sure verdicts are.
    pub strictness: Strictness,
    /// Seconds left out at the start of each step.
    pub warmup_seconds: i64,
}

impl Release {
    /// Errors alone, at the default strictness, without warm-up.
    pub fn new(steps: impl Into<Vec<Rung>>, schedule: Schedule) -> Self {
        Self {
            steps: steps.into(),
            schedule,
            metrics: vec![Metric::errors()],
            strictness: Strictness::Standard,
            warmup_seconds: 0,
        }
    }

    /// The plan at step `index` that starts at `start`.
    pub fn plan(&self, index: usize, start: i64) -> Plan {
        let rung = self.steps[index];
        Plan {
            strictness: self.strictness,
            metrics: self.metrics.clone(),
            step: Step {
                index: index as u32,
                question: Question::Advance {
                    times_worse: rung.times_worse,
                },
                epoch: 1 + index as i64,
                start,
                min_seconds: rung.min_seconds,
                decide_within_seconds: rung.decide_within_seconds,
            },
            first_epoch: 1,
            request_timeout_seconds: 0,
            warmup_seconds: self.warmup_seconds,
            bakes: false,
        }
    }

    /// Runs it in `world`. `look` sees every judgement, with the time since the start.
    pub fn run(&self, world: &World, stream: Stream, look: impl FnMut(i64, usize, &Judgement)) -> Outcome {
        self.run_to_the_end(world, stream, false, look).0
    }

    /// The same, and what was gathered; with `restarts` by an operator that is new at each look.
    pub fn run_to_the_end(
        &self,
        world: &World,
        stream: Stream,
        restarts: bool,
        mut look: impl FnMut(i64, usize, &Judgement),
    ) -> (Outcome, Evidence) {
        let mut dice = Dice::new(stream);
        let phase = dice.uniform();
        let mut evidence = Evidence::new(Key::default());
        let (mut index, mut second) = (0, 0);
        let mut plan = self.plan(0, ORIGIN);
        loop {
            let weight = f64::from(self.steps[index].weight_percent) / 100.0;
            let arms = world.counts(&mut dice, phase, second, WINDOW_SECONDS, weight);
            let scrape = scrape(ORIGIN + second, plan.step.epoch, &arms);
            evidence.update(&plan, &scrape);
            second += WINDOW_SECONDS;
            if second % LOOK_SECONDS != 0 {
                continue;
            }
            if restarts {
                evidence = Evidence::from_checkpoint(&evidence.to_checkpoint())
                    .unwrap_or_else(|_| Evidence::new(Key::default()));
            }
            let now = ORIGIN + second;
            let judgement = judge(&evidence, &plan, now);
            look(second, index, &judgement);
            let lasted = now - plan.step.start;
            let ended = match (judgement.verdict, self.schedule) {
                (Verdict::Rollback, _) => Some(Ended::RolledBack),
                (Verdict::Advance, Schedule::Evidence) => None,
                (_, Schedule::Evidence) if lasted >= plan.step.decide_within_seconds => Some(Ended::Held),
                (_, Schedule::Fixed(seconds)) if lasted >= seconds => None,
                (_, Schedule::Evidence | Schedule::Fixed(_)) => continue,
            };
            let is_last = index + 1 == self.steps.len();
            if let Some(ended) = ended.or(is_last.then_some(Ended::Promoted)) {
                let outcome = Outcome {
                    ended,
                    seconds: second,
                    step: index,
                };
                return (outcome, evidence);
            }
            index += 1;
            plan = self.plan(index, now);
        }
    }
}

/// The look that closes the window starting at `start`, with the errors of stable and candidate.
pub fn scrape(start: i64, epoch: i64, [stable, candidate]: &[Arm; 2]) -> Scrape {
    let counts = |arm: &Arm| Counts::new(arm.requests, arm.events);
    let tally = Tally {
        stable: counts(stable),
        candidate: counts(candidate),
    };
    let time = start + WINDOW_SECONDS;
    Scrape {
        now: time,
        complete: true,
        reports: vec![Report {
            instance: "gateway".to_owned(),
            time,
            windows: vec![Window {
                start,
                epoch,
                metrics: BTreeMap::from([("errors".to_owned(), Observation::Counts(tally))]),
            }],
        }],
    }
}
