//! The table of the documentation: our rule beside Argo- and Flagger-style ones, in the same simulated worlds.
//!
//! All but Flagger, which has its own, follow one schedule: 1, 10, 25, 50 % for 10 min each, a look every minute, stable failing 0.5 %. Flagger's
//! raises the weight by 5 % a minute up to 50 %.

use std::fmt::Write as _;

use super::eta::{DEFAULT_STEPS, Rung};
use super::peers::{ArgoStyle, FlaggerStyle, PeerVerdict};
use super::simulation::{Dice, Ended, Incident, Outcome, Release, Schedule, World};
use crate::load::random::Stream;

const STEP_SECONDS: i64 = 600;
const MINUTE: i64 = 60;
const ERROR_RATE: f64 = 0.005;
/// What both arms fail during an incident, and when.
const INCIDENT: Incident = Incident {
    from: 1_200,
    until: 1_800,
    error_rate: 0.05,
};
/// Flagger's schedule is over after ten minutes; its incident is in the middle.
const FLAGGER_INCIDENT: Incident = Incident {
    from: 180,
    until: 780,
    error_rate: 0.05,
};

/// How often one rule stopped a candidate.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Stopped {
    /// In percent of the releases.
    pub percent: f64,
    /// Median of the minutes it took, of those stopped.
    pub median_minutes: Option<f64>,
}

impl Stopped {
    fn of(mut minutes: Vec<i64>, releases: usize) -> Self {
        minutes.sort_unstable();
        Self {
            percent: minutes.len() as f64 * 100.0 / releases.max(1) as f64,
            median_minutes: minutes.get(minutes.len() / 2).map(|minutes| *minutes as f64),
        }
    }
}

/// One world of the comparison.
#[derive(Clone, Debug, PartialEq)]
pub struct ComparisonRow {
    /// Requests a second, both arms together.
    pub requests_per_second: f64,
    /// The candidate's error rate as a multiple of stable's.
    pub times_worse: f64,
    /// Both arms fail 5 % for 10 min.
    pub has_incident: bool,
    /// At least 99 % success, `failureLimit` 3.
    pub argo_99: Stopped,
    /// At least 95 % success, `failureLimit` 3.
    pub argo_95: Stopped,
    /// At least 99 % success, `threshold` 10.
    pub flagger_99: Stopped,
    /// The harm test at α = 1 %, tolerating 20 %.
    pub flotilla: Stopped,
}

/// Simulates `releases` releases per world. A candidate that is once as bad as stable and stopped is a false alarm, and so is one stopped by an
/// incident; the others are detections.
pub fn comparison(releases: usize, seed: u64) -> Vec<ComparisonRow> {
    let worlds = [1.0, 10.0, 100.0].into_iter().flat_map(|requests_per_second| {
        let ratios = [1.0, 2.0, 3.0, 5.0, 10.0].into_iter();
        let steady = ratios.map(move |times| World::new(requests_per_second, ERROR_RATE, times));
        steady.chain(std::iter::once(World {
            incident: Some(INCIDENT),
            ..World::new(requests_per_second, ERROR_RATE, 1.0)
        }))
    });
    worlds
        .enumerate()
        .map(|(row, world)| compare(&world, releases, Stream::new(seed, row as u64)))
        .collect()
}

fn compare(world: &World, releases: usize, stream: Stream) -> ComparisonRow {
    let release = Release::new(DEFAULT_STEPS, Schedule::Fixed(STEP_SECONDS));
    let all = |rule: &dyn Fn(Stream) -> Option<i64>| {
        let minutes = (0..releases).filter_map(|n| rule(stream.split(n as u64)));
        Stopped::of(minutes.collect(), releases)
    };
    ComparisonRow {
        requests_per_second: world.requests_per_second,
        times_worse: world.times_worse,
        has_incident: world.incident.is_some(),
        argo_99: all(&|stream| argo(world, ArgoStyle::new(0.99, 3), stream)),
        argo_95: all(&|stream| argo(world, ArgoStyle::new(0.95, 3), stream)),
        flagger_99: all(&|stream| flagger(world, stream)),
        flotilla: all(&|stream| {
            let outcome = release.run(world, stream, |_, _, _| ());
            (outcome.ended == Ended::RolledBack).then_some(outcome.seconds / MINUTE)
        }),
    }
}

/// The minute in which it aborts.
fn argo(world: &World, mut rule: ArgoStyle, stream: Stream) -> Option<i64> {
    let mut dice = Dice::new(stream);
    let phase = dice.uniform();
    let end = STEP_SECONDS * DEFAULT_STEPS.len() as i64;
    (0..end / MINUTE).find_map(|minute| {
        let step = (minute * MINUTE / STEP_SECONDS) as usize;
        let weight = f64::from(DEFAULT_STEPS[step].weight_percent) / 100.0;
        let [_, candidate] = world.counts(&mut dice, phase, minute * MINUTE, MINUTE, weight);
        (rule.measure(candidate) == PeerVerdict::Abort).then_some(minute + 1)
    })
}

fn flagger(world: &World, stream: Stream) -> Option<i64> {
    let mut dice = Dice::new(stream);
    let phase = dice.uniform();
    let mut rule = FlaggerStyle::new(0.99, 10, 5, 50);
    let world = World {
        incident: world.incident.map(|_| FLAGGER_INCIDENT),
        ..*world
    };
    let mut minute = 0;
    loop {
        let weight = f64::from(rule.weight()) / 100.0;
        let [_, candidate] = world.counts(&mut dice, phase, minute * MINUTE, MINUTE, weight);
        minute += 1;
        match rule.measure(candidate) {
            PeerVerdict::Abort => return Some(minute),
            PeerVerdict::Promote => return None,
            PeerVerdict::Continue => {}
        }
    }
}

/// The comparison as a Markdown table.
pub fn comparison_markdown(rows: &[ComparisonRow]) -> String {
    let mut table = String::from(
        "| requests/s | candidate | Argo-style >= 99 % | Argo-style >= 95 % | Flagger-style >= 99 % | Flotilla |\n\
         |---|---|---|---|---|---|\n",
    );
    let cell = |stopped: Stopped| match stopped.median_minutes {
        Some(minutes) => format!("{} ({minutes:.0} min)", percent(stopped.percent)),
        None => percent(stopped.percent),
    };
    for row in rows {
        let candidate = match (row.has_incident, row.times_worse) {
            (true, _) => "good, both arms fail 5 % for 10 min".to_owned(),
            (false, 1.0) => "good".to_owned(),
            (false, times) => format!("{times}x errors"),
        };
        writeln!(
            table,
            "| {} | {candidate} | {} | {} | {} | {} |",
            row.requests_per_second,
            cell(row.argo_99),
            cell(row.argo_95),
            cell(row.flagger_99),
            cell(row.flotilla),
        )
        .expect("writing to a String cannot fail");
    }
    table
}

/// Whole releases by evidence, in one world.
#[derive(Clone, Debug, PartialEq)]
pub struct ReleaseRow {
    /// Requests a second, both arms together.
    pub requests_per_second: f64,
    /// Stable's error rate as a share.
    pub error_rate: f64,
    /// The candidate's error rate as a multiple of stable's.
    pub times_worse: f64,
    /// Percent of releases that advanced through every step.
    pub promoted: f64,
    /// Percent rolled back.
    pub rolled_back: f64,
    /// Percent held, undecided.
    pub held: f64,
    /// Median minutes of the most frequent end.
    pub median_minutes: f64,
}

/// Simulates `releases` whole releases per world: the default steps, at least 5 min each, decided within 3 h or held.
pub fn whole_releases(releases: usize, seed: u64) -> Vec<ReleaseRow> {
    let steps = DEFAULT_STEPS.map(|step| Rung {
        min_seconds: 300,
        decide_within_seconds: 10_800,
        ..step
    });
    let release = Release::new(steps, Schedule::Evidence);
    let mut rows = Vec::new();
    for (requests_per_second, error_rate) in [(10.0, 0.005), (100.0, 0.005), (1.0, 0.02), (1.0, 0.005)] {
        for times_worse in [1.0, 2.0, 3.0, 5.0, 10.0] {
            let world = World::new(requests_per_second, error_rate, times_worse);
            let stream = Stream::new(seed, 1_000 + rows.len() as u64);
            let outcomes: Vec<Outcome> = (0..releases)
                .map(|n| release.run(&world, stream.split(n as u64), |_, _, _| ()))
                .collect();
            let ended = |ended: Ended| {
                let mut minutes: Vec<i64> = outcomes
                    .iter()
                    .filter(|outcome| outcome.ended == ended)
                    .map(|outcome| outcome.seconds / MINUTE)
                    .collect();
                minutes.sort_unstable();
                minutes
            };
            let ends = [
                ended(Ended::Promoted),
                ended(Ended::RolledBack),
                ended(Ended::Held),
            ];
            let share = |minutes: &[i64]| minutes.len() as f64 * 100.0 / releases.max(1) as f64;
            let most = ends.iter().max_by_key(|minutes| minutes.len());
            rows.push(ReleaseRow {
                requests_per_second,
                error_rate,
                times_worse,
                promoted: share(&ends[0]),
                rolled_back: share(&ends[1]),
                held: share(&ends[2]),
                median_minutes: most
                    .and_then(|minutes| minutes.get(minutes.len() / 2))
                    .map_or(0.0, |minutes| *minutes as f64),
            });
        }
    }
    rows
}

/// Whole releases as a Markdown table.
pub fn whole_releases_markdown(rows: &[ReleaseRow]) -> String {
    let mut table = String::from(
        "| requests/s | stable fails | candidate | promoted | rolled back | held | median |\n|---|---|---|---|---|---|---|\n",
    );
    for row in rows {
        writeln!(
            table,
            "| {} | {} % | {}x | {} | {} | {} | {:.0} min |",
            row.requests_per_second,
            row.error_rate * 100.0,
            row.times_worse,
            percent(row.promoted),
            percent(row.rolled_back),
            percent(row.held),
            row.median_minutes,
        )
        .expect("writing to a String cannot fail");
    }
    table
}

fn percent(percent: f64) -> String {
    match percent {
        0.0 | 100.0 => format!("{percent:.0} %"),
        p if !(1.0..=99.0).contains(&p) => format!("{p:.2} %"),
        p => format!("{p:.0} %"),
    }
}
