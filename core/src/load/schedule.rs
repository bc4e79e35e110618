//! One seeded schedule, the same for any number of workers.
//!
//! Request `i` of stage `s` has its intended start, scenario and slot values from streams keyed by the seed and
//! the stage (see [`super::random`]). Every worker computes the whole schedule and takes `i mod N == w`, so the
//! union over workers never depends on N, batches and Poisson arrivals stay exact when split, and a worker that
//! joins late knows which starts it missed. A million starts take milliseconds to compute and no memory.
//!
//! Offsets are whole nanoseconds from the common start and computed without `libm` (see [`super::random`]), so
//! they are equal on every platform.

use super::decimal::Decimal;
use super::plan::{Arrival, Arrivals, Batch, ConstantRate, LoadPlan, PlanErrors};
use super::random::Stream;
use super::template::Template;

const NANOSECONDS: u64 = 1_000_000_000;

/// Domains of the random streams; a new one must not reuse a number.
mod domain {
    pub(super) const ARRIVALS: u64 = 1;
    pub(super) const SCENARIOS: u64 = 2;
    pub(super) const BODIES: u64 = 3;
    pub(super) const WARMUP: u64 = 4;
}

/// One request of the schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    /// Its place in the whole run, from 0.
    pub index: u64,
    /// Its stage's place in the plan.
    pub stage: usize,
    /// The intended start in nanoseconds from the run's common start; never decreases with the index.
    pub offset_nanoseconds: u64,
    /// Its scenario's place in the plan.
    pub scenario: usize,
    /// Determines the values of the prompt's slots and the ids in the body.
    pub body_seed: u64,
}

/// A plan made ready to be run.
#[derive(Clone, Debug)]
pub struct Schedule {
    seed: u64,
    workers: u64,
    warmup: u64,
    stages: Vec<StageSchedule>,
    templates: Vec<Template>,
    weights: Vec<u64>,
}

#[derive(Clone, Debug)]
struct StageSchedule {
    first_index: u64,
    requests: u64,
    start_nanoseconds: u64,
    arrivals: Arrivals,
    /// Of a Poisson stage: the sum of its gaps, so that no stage begins with a pause for computing it.
    total_gap: u128,
}

impl Schedule {
    /// Computes the schedule of `plan`.
    ///
    /// # Errors
    /// If the plan is not valid.
    pub fn new(plan: &LoadPlan) -> Result<Self, PlanErrors> {
        plan.validate()?;
        let mut first_index = 0;
        let mut start_nanoseconds = 0;
        let mut stages = Vec::with_capacity(plan.stages.len());
        for (number, stage) in plan.stages.iter().enumerate() {
            let arrivals = stage.arrivals.clone();
            let requests = arrivals.requests();
            let total_gap = match &arrivals {
                Arrivals::ConstantRate { constant_rate } if constant_rate.arrival == Arrival::Poisson => {
                    let stream = arrival_stream(plan.seed, number);
                    (0..=requests).map(|i| u128::from(gap(stream, i))).sum()
                }
                _ => 0,
            };
            let seconds = arrivals.seconds();
            stages.push(StageSchedule {
                first_index,
                requests,
                start_nanoseconds,
                arrivals,
                total_gap,
            });
            first_index += requests;
            start_nanoseconds += seconds * NANOSECONDS;
        }
        Ok(Self {
            seed: plan.seed,
            workers: u64::from(plan.workers.count),
            warmup: u64::from(plan.warmup.requests),
            stages,
            templates: plan
                .scenarios
                .iter()
                .filter_map(|scenario| Template::parse(&scenario.prompt).ok())
                .collect(),
            weights: plan
                .scenarios
                .iter()
                .map(|scenario| u64::from(scenario.weight))
                .collect(),
        })
    }

    /// The number of requests, warm-up apart.
    pub fn planned(&self) -> u64 {
        self.stages.iter().map(|stage| stage.requests).sum()
    }

    /// The number of requests per stage that fall to `worker`.
    pub fn planned_of(&self, worker: u32) -> Vec<u64> {
        // How many of the indices below `end` belong to the worker.
        let below = |end: u64| end.saturating_sub(u64::from(worker)).div_ceil(self.workers);
        self.stages
            .iter()
            .map(|stage| below(stage.first_index + stage.requests) - below(stage.first_index))
            .collect()
    }

    /// The whole schedule in order of index and time.
    pub fn starts(&self) -> impl Iterator<Item = Start> + '_ {
        self.stages.iter().enumerate().flat_map(move |(number, stage)| {
            let offsets = stage.offsets(arrival_stream(self.seed, number));
            offsets
                .zip(stage.first_index..)
                .map(move |(offset, index)| Start {
                    index,
                    stage: number,
                    offset_nanoseconds: stage.start_nanoseconds + offset,
                    scenario: self.scenario(Stream::new(self.seed, domain::SCENARIOS), index),
                    body_seed: Stream::new(self.seed, domain::BODIES).at(index),
                })
        })
    }

    /// What `worker` sends: every start whose index is `worker` modulo the number of workers.
    pub fn starts_of(&self, worker: u32) -> impl Iterator<Item = Start> + '_ {
        self.starts()
            .filter(move |start| start.index % self.workers == u64::from(worker))
    }

    /// The warm-up requests of `worker`; their offset is 0 and their indices are their own.
    pub fn warmup_of(&self, worker: u32) -> impl Iterator<Item = Start> + '_ {
        let stream = Stream::new(self.seed, domain::WARMUP);
        (u64::from(worker)..self.warmup)
            .step_by(self.workers as usize)
            .map(move |index| Start {
                index,
                stage: 0,
                offset_nanoseconds: 0,
                scenario: self.scenario(stream.split(0), index),
                body_seed: stream.split(1).at(index),
            })
    }

    /// The prompt of a request.
    pub fn prompt(&self, start: &Start) -> String {
        match self.templates.get(start.scenario) {
            Some(template) => template.render(Stream::new(start.body_seed, domain::BODIES), start.index),
            None => String::new(),
        }
    }

    /// How many requests of `stage` the `worker` may have in flight: an equal share of the stage's cap, the rest
    /// of the division to the first workers. Batches have no cap.
    pub fn max_in_flight(&self, stage: usize, worker: u32) -> Option<u64> {
        match &self.stages.get(stage)?.arrivals {
            Arrivals::Batch { .. } => None,
            Arrivals::ConstantRate { constant_rate } => {
                let cap = u64::from(constant_rate.max_in_flight);
                Some(cap / self.workers + u64::from(u64::from(worker) < cap % self.workers))
            }
        }
    }

    fn scenario(&self, stream: Stream, index: u64) -> usize {
        let mut draw = stream.below(index, self.weights.iter().sum());
        for (scenario, weight) in self.weights.iter().enumerate() {
            match draw.checked_sub(*weight) {
                Some(rest) => draw = rest,
                None => return scenario,
            }
        }
        0
    }
}

impl StageSchedule {
    /// Offsets from the stage's start in nanoseconds, ascending.
    fn offsets(&self, stream: Stream) -> Box<dyn Iterator<Item = u64> + Send> {
        match &self.arrivals {
            Arrivals::Batch { batch } => {
                let Batch {
                    size,
                    delay_seconds,
                    requests,
                } = batch.clone();
                let delay = u64::from(delay_seconds) * NANOSECONDS;
                Box::new((0..u64::from(requests)).map(move |i| i / u64::from(size) * delay))
            }
            Arrivals::ConstantRate { constant_rate } => {
                let ConstantRate {
                    per_second,
                    seconds,
                    arrival,
                    max_in_flight: _,
                } = constant_rate;
                let requests = self.requests;
                match arrival {
                    Arrival::Uniform => {
                        let rate = per_second
                            .parse::<Decimal>()
                            .unwrap_or_default()
                            .millionths()
                            .max(1);
                        let distance = u128::from(NANOSECONDS) * 1_000_000;
                        Box::new((0..requests).map(move |i| (u128::from(i) * distance / rate) as u64))
                    }
                    Arrival::Poisson => {
                        let length = u64::from(*seconds) * NANOSECONDS;
                        Box::new(poisson(stream, requests, length, self.total_gap))
                    }
                }
            }
        }
    }
}

/// The `requests` arrival times of a Poisson process on `[0, length)` given that there are so many: with
/// exponential gaps `e_0 … e_n` and their partial sums `S`, time `k` is `length · S_k / S_(n+1)` (Ross,
/// Stochastic Processes, theorem 2.3.1). A fixed number of requests is what makes coverage and sample sizes
/// known before the start; the gaps are as bursty as those of a free process.
fn poisson(stream: Stream, requests: u64, length: u64, total_gap: u128) -> impl Iterator<Item = u64> {
    (0..requests).scan(0u128, move |sum, i| {
        *sum += u128::from(gap(stream, i));
        Some((u128::from(length) * *sum / total_gap.max(1)) as u64)
    })
}

/// The `i`-th exponential gap in units of 2^-32 of its mean: integers, so that sums do not depend on their order.
fn gap(stream: Stream, i: u64) -> u64 {
    (stream.exponential(i) * 4_294_967_296.0) as u64
}

fn arrival_stream(seed: u64, stage: usize) -> Stream {
    Stream::new(seed, domain::ARRIVALS).split(stage as u64)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::plan::tests::example;
    use super::*;

    fn schedule(workers: u32) -> Schedule {
        let mut plan = example();
        plan.workers.count = workers;
        Schedule::new(&plan).unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn workers_partition_one_schedule(workers in 1u32..=64) {
            let whole: Vec<Start> = schedule(1).starts().collect();
            let split = schedule(workers);
            let mut union: Vec<Start> = Vec::new();
            for worker in 0..workers {
                let share: Vec<Start> = split.starts_of(worker).collect();
                let planned = split.planned_of(worker);
                for (stage, planned) in planned.iter().enumerate() {
                    prop_assert_eq!(share.iter().filter(|s| s.stage == stage).count() as u64, *planned);
                }
                union.extend(share);
            }
            union.sort_by_key(|start| start.index);
            prop_assert_eq!(union, whole);
        }
    }

    /// These values must never change: results of different releases are compared by workload hash.
    #[test]
    fn the_schedule_is_pinned() {
        let schedule = schedule(1);
        let starts: Vec<Start> = schedule.starts().collect();
        assert_eq!(starts.len(), 3010);
        let pinned: Vec<(u64, u64, String)> = [0, 7, 10, 3009]
            .map(|i: usize| {
                (
                    starts[i].index,
                    starts[i].offset_nanoseconds,
                    schedule.prompt(&starts[i]),
                )
            })
            .to_vec();
        assert_eq!(
            format!("{pinned:#?}"),
            include_str!("schedule.pinned.txt").trim_end()
        );
    }

    #[test]
    fn offsets_ascend_and_stay_inside_their_stage() {
        let starts: Vec<Start> = schedule(1).starts().collect();
        assert!(
            starts
                .windows(2)
                .all(|pair| pair[0].offset_nanoseconds <= pair[1].offset_nanoseconds)
        );
        let batch: Vec<u64> = starts
            .iter()
            .take(10)
            .map(|start| start.offset_nanoseconds / NANOSECONDS)
            .collect();
        assert_eq!(batch, [0, 0, 0, 0, 0, 5, 5, 5, 5, 5]);
        assert!(
            starts[10..]
                .iter()
                .all(|start| (10 * NANOSECONDS..130 * NANOSECONDS).contains(&start.offset_nanoseconds))
        );
    }

    #[test]
    fn poisson_gaps_are_exponential() {
        let n = 100_000;
        let stream = Stream::new(3, 1);
        let total = (0..=n).map(|i| u128::from(gap(stream, i))).sum();
        let times: Vec<u64> = poisson(stream, n, n * 1000, total).collect();
        let gaps: Vec<f64> = times
            .windows(2)
            .map(|pair| (pair[1] - pair[0]) as f64 / 1000.0)
            .collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        let above_two_means = gaps.iter().filter(|gap| **gap > 2.0).count() as f64 / gaps.len() as f64;
        assert!(
            (mean - 1.0).abs() < 0.01 && (variance - 1.0).abs() < 0.03,
            "{mean} {variance}"
        );
        assert!(
            (above_two_means - (-2.0f64).exp()).abs() < 0.005,
            "{above_two_means}"
        );
    }

    #[test]
    fn uniform_starts_are_equally_spaced_also_for_fractions() {
        let mut plan = example();
        plan.stages[1].arrivals = Arrivals::ConstantRate {
            constant_rate: ConstantRate {
                per_second: "0.3".to_owned(),
                seconds: 10,
                arrival: Arrival::Uniform,
                max_in_flight: 9,
            },
        };
        let schedule = Schedule::new(&plan).unwrap();
        let offsets: Vec<u64> = schedule
            .starts()
            .skip(10)
            .map(|start| start.offset_nanoseconds - 10 * NANOSECONDS)
            .collect();
        assert_eq!(offsets, [0, 3_333_333_333, 6_666_666_666]);
        assert_eq!(
            (0..4).map(|w| schedule.max_in_flight(1, w)).collect::<Vec<_>>(),
            [Some(3), Some(2), Some(2), Some(2)]
        );
        assert_eq!(schedule.max_in_flight(0, 0), None);
    }

    #[test]
    fn scenarios_follow_their_weights() {
        let first = schedule(1).starts().filter(|start| start.scenario == 0).count() as f64;
        assert!((first / 3010.0 - 4.0 / 7.0).abs() < 0.03, "{first}");
    }

    #[test]
    fn warmup_is_split_and_differs_from_the_run() {
        let schedule = schedule(4);
        let indices: Vec<u64> = (0..4)
            .flat_map(|w| schedule.warmup_of(w).map(|s| s.index).collect::<Vec<_>>())
            .collect();
        assert_eq!(indices.len(), 20);
        assert_ne!(
            schedule.warmup_of(0).next().unwrap().body_seed,
            schedule.starts().next().unwrap().body_seed
        );
    }
}
