//! The promises of this module as figures: what its tests hold in a sample, and what the benchmark prints in full.
//!
//! Each function simulates one promise in several worlds ([`Cell`]s). Everything is seeded. Reference values: rollouts.md, 9.5.

use super::eta::{DEFAULT_STEPS, Rung};
use super::exceedance::{Shift, Tail};
use super::judge::Verdict;
use super::plan::{Compare, Counted, Metric, Rule};
use super::ratio::{Arm, LogE, RatioTest};
use super::simulation::{Dice, Ended, Incident, Release, Schedule, World};
use super::window::cluster_thousandths;
use crate::load::binomial;
use crate::load::random::Stream;

const MINUTE: i64 = 60;
const STEP_SECONDS: i64 = 600;
/// A step that nothing decides is given up after that long.
const LONGEST_SECONDS: i64 = 10_800;

/// What is promised of a world.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Promise {
    /// In no release.
    Never,
    /// No larger share of the releases.
    AtMost(f64),
    /// At least this share of the releases, and their median in minutes.
    Median {
        /// Of the releases.
        share: f64,
        /// The reference.
        minutes: i64,
    },
}

/// One simulated world.
#[derive(Clone, Debug, PartialEq)]
pub struct Cell {
    /// What is special about it.
    pub name: String,
    /// Releases simulated.
    pub releases: usize,
    /// Minutes until it happened, of those releases to which it did; ascending.
    pub minutes: Vec<i64>,
    /// What is promised.
    pub promise: Promise,
}

impl Cell {
    fn new(
        name: String,
        promise: Promise,
        releases: usize,
        stream: Stream,
        run: impl Fn(Stream) -> Option<i64>,
    ) -> Self {
        let mut minutes: Vec<i64> = (0..releases)
            .filter_map(|n| run(stream.split(n as u64)))
            .collect();
        minutes.sort_unstable();
        Self {
            name,
            releases,
            minutes,
            promise,
        }
    }

    /// To how many of the releases it happened.
    pub fn share(&self) -> f64 {
        self.minutes.len() as f64 / self.releases.max(1) as f64
    }

    /// The median, where it ever happened.
    pub fn median(&self) -> Option<i64> {
        self.minutes.get(self.minutes.len() / 2).copied()
    }

    /// Whether the promise is shown: a share with 99 % confidence, a median within 20 % (looks come once a minute).
    pub fn is_kept(&self) -> bool {
        match self.promise {
            Promise::Never => self.minutes.is_empty(),
            Promise::AtMost(share) => {
                let most = binomial::most_misses(self.releases as u64, share, 0.99);
                most.is_some_and(|most| self.minutes.len() as u64 <= most)
            }
            Promise::Median { .. } => self.is_near(0.2),
        }
    }

    /// Whether the opposite is not shown: for samples that are too small for [`Cell::is_kept`]. The median of 101 has a standard
    /// error of some 10 %.
    pub fn is_possible(&self) -> bool {
        match self.promise {
            Promise::Never => self.minutes.is_empty(),
            Promise::AtMost(share) => {
                binomial::at_least(self.minutes.len() as u64, self.releases as u64, share) > 1e-3
            }
            Promise::Median { .. } => self.is_near(0.4),
        }
    }

    fn is_near(&self, tolerance: f64) -> bool {
        let Promise::Median { share, minutes } = self.promise else {
            return false;
        };
        let slack = (tolerance * minutes as f64).max(1.0);
        self.share() >= share
            && self
                .median()
                .is_some_and(|median| (median - minutes).abs() as f64 <= slack)
    }
}

fn steps() -> [Rung; 4] {
    DEFAULT_STEPS.map(|step| Rung {
        min_seconds: 300,
        decide_within_seconds: LONGEST_SECONDS,
        ..step
    })
}

fn errors(change: impl FnOnce(&mut Compare)) -> Vec<Metric> {
    let mut compare = Compare::errors();
    change(&mut compare);
    vec![Metric {
        rule: Rule::Compare(compare),
        ..Metric::errors()
    }]
}

fn rolled_back(release: &Release, world: &World, stream: Stream) -> Option<i64> {
    let outcome = release.run(world, stream, |_, _, _| ());
    (outcome.ended == Ended::RolledBack).then_some(outcome.seconds / MINUTE)
}

/// Good candidates that are led back: drift, the hour of the day, weights that change and stray, warm-up; also at the edge of
/// what is tolerated.
pub fn good_candidates(releases: usize) -> Vec<Cell> {
    let mut release = Release::new(steps(), Schedule::Evidence);
    release.warmup_seconds = 60;
    let mut cells = Vec::new();
    for requests_per_second in [1.0, 10.0, 100.0] {
        for (error_rate, times_worse) in [(0.001, 1.0), (0.005, 1.0), (0.005, 1.2), (0.02, 1.0), (0.05, 1.0)]
        {
            let world = World {
                drifts: true,
                ..World::new(requests_per_second, error_rate, times_worse)
            };
            // What is normal for a pool is acceptable.
            release.metrics = errors(|compare| {
                compare.acceptable_millionths = compare.acceptable_millionths.max((error_rate * 3e6) as u32);
            });
            cells.push(Cell::new(
                format!(
                    "{requests_per_second}/s, {} %, {times_worse}x",
                    percent(error_rate)
                ),
                Promise::AtMost(0.01),
                releases,
                Stream::new(21, cells.len() as u64),
                |stream| rolled_back(&release, &world, stream),
            ));
        }
    }
    cells
}

/// Candidates exactly as bad as a step must rule out that ever pass it within three hours, with a harm test that is told to tolerate
/// them. Also with ten minutes in which both fail the same, and by the absolute route: stable never fails, and the candidate as
/// often as is just not acceptable.
pub fn at_the_margin(releases: usize) -> Vec<Cell> {
    let outage = |error_rate| {
        Some(Incident {
            from: 1_200,
            until: 1_800,
            error_rate,
        })
    };
    let mut cells = Vec::new();
    for (step, requests_per_second, incident) in [
        (0, 10.0, None),
        (1, 10.0, None),
        (2, 10.0, None),
        (3, 1.0, None),
        (3, 10.0, None),
        (0, 10.0, outage(0.5)),
        (1, 10.0, outage(0.2)),
        (1, 100.0, outage(0.5)),
        (3, 1.0, outage(0.5)),
        (3, 10.0, outage(1.0)),
    ] {
        let rung = DEFAULT_STEPS[step];
        let world = World {
            drifts: true,
            incident,
            ..World::new(requests_per_second, 0.02, f64::from(rung.times_worse))
        };
        let outage = incident.map_or(String::new(), |incident| {
            format!(", an outage of {} %", percent(incident.error_rate))
        });
        let name = format!(
            "{requests_per_second}/s at {} %, {}x{outage}",
            rung.weight_percent, rung.times_worse
        );
        let stream = Stream::new(22, cells.len() as u64);
        cells.push(passes(name, rung, world, 3_900, releases, stream));
    }
    let unseen = World::new(10.0, 1e-9, 1e7);
    let name = "10/s at 10 %, stable never fails".to_owned();
    let stream = Stream::new(23, 0);
    cells.push(passes(name, DEFAULT_STEPS[1], unseen, 20, releases, stream));
    cells
}

fn passes(
    name: String,
    rung: Rung,
    world: World,
    tolerate_worse_percent: u32,
    releases: usize,
    stream: Stream,
) -> Cell {
    let rung = Rung {
        min_seconds: 0,
        decide_within_seconds: i64::MAX,
        ..rung
    };
    let mut release = Release::new([rung], Schedule::Fixed(LONGEST_SECONDS));
    release.metrics = errors(|compare| compare.tolerate_worse_percent = tolerate_worse_percent);
    Cell::new(name, Promise::AtMost(0.05), releases, stream, |stream| {
        let mut passed = None;
        release.run(&world, stream, |second, _, judgement| {
            if judgement.verdict == Verdict::Advance {
                passed = passed.or(Some(second / MINUTE));
            }
        });
        passed
    })
}

/// Candidates that fail more, on the fixed schedule, and when they are found.
pub fn detections(releases: usize) -> Vec<Cell> {
    let release = Release::new(DEFAULT_STEPS, Schedule::Fixed(STEP_SECONDS));
    let worlds = [
        (1.0, 10.0, 24),
        (10.0, 3.0, 27),
        (10.0, 5.0, 16),
        (10.0, 10.0, 11),
        (100.0, 2.0, 21),
        (100.0, 3.0, 12),
        (100.0, 5.0, 6),
        (100.0, 10.0, 2),
    ];
    let cells = worlds.into_iter().enumerate();
    cells
        .map(|(cell, (requests_per_second, times_worse, minutes))| {
            let world = World::new(requests_per_second, 0.005, times_worse);
            Cell::new(
                format!("{requests_per_second}/s, {times_worse}x"),
                Promise::Median { share: 0.88, minutes },
                releases,
                Stream::new(27, cell as u64),
                |stream| rolled_back(&release, &world, stream),
            )
        })
        .collect()
}

/// Good candidates that are led back where each failure is retried until five have failed: with the factor of 5 given, and with
/// the one that is found in the hour before.
pub fn retries(releases: usize) -> Vec<Cell> {
    [("factor 5", Some(5_000)), ("factor from history", None)]
        .into_iter()
        .enumerate()
        .map(|(cell, (name, factor))| {
            Cell::new(
                name.to_owned(),
                Promise::AtMost(0.01),
                releases,
                Stream::new(24, 1 + cell as u64),
                |stream| retried(factor, stream),
            )
        })
        .collect()
}

/// The same without a factor: why there is one. A quarter are led back.
pub fn retries_without_factor(releases: usize) -> Cell {
    Cell::new(
        "no factor".to_owned(),
        Promise::AtMost(1.0),
        releases,
        Stream::new(24, 0),
        |stream| retried(Some(1_000), stream),
    )
}

fn retried(factor: Option<u32>, stream: Stream) -> Option<i64> {
    let world = World {
        burst: 5,
        ..World::new(10.0, 0.005, 1.0)
    };
    let factor = factor.unwrap_or_else(|| {
        let mut dice = Dice::new(stream.split(1));
        let history: Vec<Arm> = (0..240)
            .map(|_| world.counts(&mut dice, 0.0, 0, 15, 0.0)[0])
            .collect();
        cluster_thousandths(&history)
    });
    let mut release = Release::new(DEFAULT_STEPS, Schedule::Fixed(STEP_SECONDS));
    release.metrics = errors(|compare| compare.cluster_thousandths = factor);
    rolled_back(&release, &world, stream)
}

/// Good candidates that are led back although both revisions failed, for ten minutes.
pub fn outages(releases: usize) -> Vec<Cell> {
    let release = Release::new(DEFAULT_STEPS, Schedule::Fixed(STEP_SECONDS));
    let mut cells = Vec::new();
    for requests_per_second in [1.0, 10.0, 100.0] {
        for error_rate in [0.05, 0.5] {
            let world = World {
                incident: Some(Incident {
                    from: 1_200,
                    until: 1_800,
                    error_rate,
                }),
                ..World::new(requests_per_second, 0.005, 1.0)
            };
            cells.push(Cell::new(
                format!("{requests_per_second}/s, both fail {} %", percent(error_rate)),
                Promise::AtMost(0.01),
                releases,
                Stream::new(25, cells.len() as u64),
                |stream| rolled_back(&release, &world, stream),
            ));
        }
    }
    cells
}

/// How long a step of 10 % takes a good candidate when both revisions fail for its first five minutes. It holds for those and for
/// the five that the guard looks back; the reference is half as much again as the median without.
pub fn after_outages(releases: usize) -> Vec<Cell> {
    let rung = Rung {
        min_seconds: 0,
        decide_within_seconds: i64::MAX,
        ..DEFAULT_STEPS[1]
    };
    let release = Release::new([rung], Schedule::Evidence);
    let mut cells = Vec::new();
    for (requests_per_second, error_rate) in [(10.0, 0.005), (10.0, 1e-6), (100.0, 0.005)] {
        let promoted = |world: World, stream: Stream| {
            let outcome = release.run(&world, stream, |_, _, _| ());
            (outcome.ended == Ended::Promoted).then_some(outcome.seconds / MINUTE)
        };
        let calm = World::new(requests_per_second, error_rate, 1.0);
        let promise = Promise::AtMost(1.0);
        let stream = Stream::new(30, cells.len() as u64);
        let without = Cell::new(String::new(), promise, releases, stream, |stream| {
            promoted(calm, stream)
        });
        let longest = 10 + without.median().unwrap_or_default() * 3 / 2 + 1;
        for outage in [0.2, 0.5, 1.0] {
            let world = World {
                incident: Some(Incident {
                    from: 30,
                    until: 330,
                    error_rate: outage,
                }),
                ..calm
            };
            let name = format!(
                "{requests_per_second}/s, {} %, both fail {} %",
                percent(error_rate),
                percent(outage)
            );
            // Of those that take longer at most half.
            let stream = Stream::new(31, cells.len() as u64);
            cells.push(Cell::new(
                name,
                Promise::AtMost(0.5),
                releases,
                stream,
                |stream| promoted(world, stream).filter(|minutes| *minutes > longest),
            ));
        }
    }
    cells
}

/// Latency by exceedance at five thresholds: equal candidates that are led back, and slower ones.
pub fn latency(releases: usize) -> Vec<Cell> {
    exceedances(Metric::latency(Tail::EDGES.to_vec()), 11, releases)
}

/// The same for what another source counts, here the tokens of a request.
pub fn tokens(releases: usize) -> Vec<Cell> {
    let metric = Metric {
        name: "tokens".to_owned(),
        rule: Rule::Compare(Compare {
            counted: Counted::Above(Tail::EDGES.map(|tokens| tokens * 1_000_000).to_vec()),
            ..Compare::latency(Vec::new())
        }),
        ..Metric::errors()
    };
    exceedances(metric, 12, releases)
}

/// A share in percent, without the digits that binary fractions add.
fn percent(share: f64) -> f64 {
    (share * 1e8).round() / 1e6
}

fn exceedances(metric: Metric, seed: u64, releases: usize) -> Vec<Cell> {
    let median = |minutes| Promise::Median { share: 0.95, minutes };
    let shift = |times, stuck| Shift { times, stuck };
    let worlds = [
        (1.0, shift(1.0, 0.0), Promise::AtMost(0.01)),
        (10.0, shift(1.0, 0.0), Promise::AtMost(0.01)),
        (10.0, shift(1.3, 0.0), median(17)),
        (1.0, shift(1.6, 0.0), median(25)),
        (1.0, shift(2.0, 0.0), median(17)),
        (10.0, shift(2.0, 0.0), median(7)),
        (10.0, shift(1.0, 0.05), median(14)),
    ];
    let cells = worlds.into_iter().enumerate();
    cells
        .map(|(cell, (requests_per_second, candidate, promise))| {
            let tail = Tail {
                requests_per_second,
                candidate,
            };
            let stuck = match candidate.stuck {
                0.0 => String::new(),
                share => format!(", {} % far more", percent(share)),
            };
            let name = format!("{requests_per_second}/s, {}x{stuck}", candidate.times);
            let stream = Stream::new(seed, cell as u64);
            Cell::new(name, promise, releases, stream, |stream| {
                tail.rolled_back(&metric, stream)
            })
        })
        .collect()
}

/// The greatest difference from the reference values of ln E of harm and of pass at three times, which an independent
/// implementation gave (rollouts.md, 9.3).
pub fn reference_difference() -> f64 {
    let arm = |requests, events| Arm { requests, events };
    let after = |windows: usize, cluster: f64, candidate: Arm, stable: Arm| {
        let (mut harm, mut pass) = (LogE::default(), LogE::default());
        for _ in 0..windows {
            RatioTest::harm(1.2, cluster).observe(&mut harm, candidate, stable, false);
            RatioTest::pass(3.0, cluster).observe(&mut pass, stable, candidate, false);
        }
        (harm.ln_mean(), pass.ln_mean())
    };
    // Windows, cluster factor, candidate, stable.
    let both = [
        (5, 1.0, arm(600, 3), arm(5400, 27), -3.3200, 9.5973),
        (5, 1.0, arm(600, 9), arm(5400, 27), 9.8204, -2.8978),
        (5, 1.0, arm(60, 3), arm(5940, 30), 16.2125, -4.2526),
        (5, 1.0, arm(600, 30), arm(5400, 270), -8.4534, 106.2624),
        (5, 1.0, arm(600, 0), arm(5400, 0), 0.0, 0.0),
        (1, 1.0, arm(6, 1), arm(54, 0), 1.4150, -0.9353),
    ];
    let both = both.map(|(windows, cluster, candidate, stable, harm, pass)| {
        let (is_harm, is_pass) = after(windows, cluster, candidate, stable);
        (is_harm - harm).abs().max((is_pass - pass).abs())
    });
    let clustered = [
        (arm(600, 9), arm(5400, 27), 1.0255),
        (arm(60, 3), arm(5940, 30), 2.6996),
    ];
    let clustered =
        clustered.map(|(candidate, stable, harm)| (after(5, 5.0, candidate, stable).0 - harm).abs());
    both.into_iter().chain(clustered).fold(0.0, f64::max)
}

/// Releases whose operator restarts at each look, reading its checkpoint back, and that end with other evidence than
/// without.
pub fn restarts(releases: usize) -> Cell {
    let mut release = Release::new(steps(), Schedule::Evidence);
    release.warmup_seconds = 60;
    let world = World {
        drifts: true,
        ..World::new(10.0, 0.005, 1.5)
    };
    Cell::new(
        "10/s, 0.5 %, 1.5x".to_owned(),
        Promise::Never,
        releases,
        Stream::new(32, 0),
        |stream| {
            let (outcome, evidence) = release.run_to_the_end(&world, stream, false, |_, _, _| ());
            let (again, read_back) = release.run_to_the_end(&world, stream, true, |_, _, _| ());
            let is_same = outcome == again && evidence.to_checkpoint() == read_back.to_checkpoint();
            (!is_same).then_some(outcome.seconds / MINUTE)
        },
    )
}
