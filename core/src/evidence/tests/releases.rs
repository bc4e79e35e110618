//! Seeded releases. A few hundred per default run; with `FLOTILLA_FULL=1`, 10,000 per cell and the tables of the documentation.

use super::comparison::{comparison, comparison_markdown, whole_releases, whole_releases_markdown};
use super::simulation::{Dice, Ended, Incident, Release, Schedule, World};
use super::*;
use crate::load::binomial;
use crate::load::random::Stream;

pub(super) fn full() -> bool {
    std::env::var("FLOTILLA_FULL").is_ok_and(|value| value == "1")
}

/// Releases per cell: 10,000, or `sample`.
pub(super) fn size(sample: usize) -> usize {
    if full() { 10_000 } else { sample }
}

/// In full: `alarms` show, with 99 % confidence, a rate of at most `rate`. In a sample, which cannot show that: they do not show the
/// opposite.
pub(super) fn alarms_are_rare(name: &str, alarms: usize, releases: usize, rate: f64) {
    let (alarms, releases) = (alarms as u64, releases as u64);
    if full() {
        let most = binomial::most_misses(releases, rate, 0.99);
        assert!(
            most.is_some_and(|most| alarms <= most),
            "{name}: {alarms} of {releases}, at most {most:?}"
        );
    } else {
        let chance = binomial::at_least(alarms, releases, rate);
        assert!(chance > 1e-3, "{name}: {alarms} of {releases}");
    }
}

fn steps(decide_within_seconds: i64) -> [Rung; 4] {
    DEFAULT_STEPS.map(|step| Rung {
        min_seconds: 300,
        decide_within_seconds,
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

/// Rolled back, of `releases`.
fn rolled_back(release: &Release, world: &World, releases: usize, stream: Stream) -> usize {
    let ended = (0..releases).map(|n| release.run(world, stream.split(n as u64), |_, _, _| ()).ended);
    ended.filter(|ended| *ended == Ended::RolledBack).count()
}

/// Drift, the hour of the day, weights that change and stray, warm-up; also at the edge of what is tolerated.
#[test]
fn good_candidates_are_not_rolled_back() {
    let mut release = Release::new(steps(10_800), Schedule::Evidence);
    release.warmup_seconds = 60;
    let mut cell = 0;
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
            let releases = size(if requests_per_second < 10.0 { 8 } else { 16 });
            let alarms = rolled_back(&release, &world, releases, Stream::new(21, cell));
            let name = format!("{requests_per_second}/s, {error_rate}, x{times_worse}");
            println!("A/A, {name}: {alarms} of {releases} rolled back");
            alarms_are_rare(&name, alarms, releases, 0.01);
            cell += 1;
        }
    }
}

/// A candidate exactly as bad as the step must rule out, with a harm test that is told to tolerate it: how often does
/// the evidence to advance ever suffice within three hours?
#[test]
fn what_a_step_must_rule_out_does_not_pass() {
    for (cell, (step, requests_per_second)) in [(0, 10.0), (1, 10.0), (2, 10.0), (3, 1.0), (3, 10.0)]
        .into_iter()
        .enumerate()
    {
        let rung = Rung {
            min_seconds: 0,
            decide_within_seconds: i64::MAX,
            ..DEFAULT_STEPS[step]
        };
        let mut release = Release::new([rung], Schedule::Fixed(10_800));
        release.metrics = errors(|compare| compare.tolerate_worse_percent = 3_900);
        let world = World {
            drifts: true,
            ..World::new(requests_per_second, 0.02, f64::from(rung.times_worse))
        };
        let releases = size(20);
        let stream = Stream::new(22, cell as u64);
        let passed = (0..releases).filter(|n| {
            let mut passes = false;
            release.run(&world, stream.split(*n as u64), |_, _, judgement| {
                passes |= judgement.verdict == Verdict::Advance;
            });
            passes
        });
        let passed = passed.count();
        let name = format!(
            "{requests_per_second}/s at {} %, x{}",
            rung.weight_percent, rung.times_worse
        );
        println!("boundary, {name}: {passed} of {releases} pass");
        alarms_are_rare(&name, passed, releases, 0.05);
    }
}

/// The same for the absolute route: no failure in sight on stable, the candidate exactly at the acceptable rate.
#[test]
fn what_is_not_acceptable_does_not_pass_unseen() {
    let rung = Rung {
        min_seconds: 0,
        decide_within_seconds: i64::MAX,
        ..DEFAULT_STEPS[1]
    };
    let release = Release::new([rung], Schedule::Fixed(10_800));
    let world = World::new(10.0, 1e-9, 1e7);
    let releases = size(30);
    let passed = (0..releases).filter(|n| {
        let mut passes = false;
        release.run(&world, Stream::new(23, 0).split(*n as u64), |_, _, judgement| {
            passes |= judgement.verdict == Verdict::Advance;
        });
        passes
    });
    let passed = passed.count();
    println!("boundary, absolute: {passed} of {releases} pass");
    alarms_are_rare("absolute", passed, releases, 0.05);
}

/// Each failure is retried until five have failed.
#[test]
fn retries_are_no_harm_with_the_cluster_factor() {
    let mut rates = Vec::new();
    for (cell, factor) in [Some(1_000), Some(5_000), None].into_iter().enumerate() {
        let world = World {
            burst: 5,
            ..World::new(10.0, 0.005, 1.0)
        };
        let releases = size(60);
        let alarms = (0..releases)
            .filter(|n| {
                let stream = Stream::new(24, cell as u64).split(*n as u64);
                // The hour before the release, for the factor that is not given.
                let mut dice = Dice::new(stream.split(1));
                let mut history = || {
                    (0..240)
                        .map(|_| world.counts(&mut dice, 0.0, 0, 15, 0.0)[0])
                        .collect::<Vec<_>>()
                };
                let factor = factor.unwrap_or_else(|| cluster_thousandths(&history()));
                let mut release = Release::new(DEFAULT_STEPS, Schedule::Fixed(600));
                release.metrics = errors(|compare| compare.cluster_thousandths = factor);
                release.run(&world, stream, |_, _, _| ()).ended == Ended::RolledBack
            })
            .count();
        println!("retries of 5, factor {factor:?}: {alarms} of {releases} rolled back");
        rates.push((alarms, releases));
    }
    let (naive, releases) = rates[0];
    assert!(
        naive * 10 > releases,
        "the naive form must fail here: {naive} of {releases}"
    );
    for (alarms, releases) in &rates[1..] {
        alarms_are_rare("retries", *alarms, *releases, 0.01);
    }
}

#[test]
fn an_outage_of_both_arms_is_no_harm() {
    for (cell, requests_per_second) in [1.0, 10.0, 100.0].into_iter().enumerate() {
        for (kind, error_rate) in [0.05, 0.5].into_iter().enumerate() {
            let world = World {
                incident: Some(Incident {
                    from: 1_200,
                    until: 1_800,
                    error_rate,
                }),
                ..World::new(requests_per_second, 0.005, 1.0)
            };
            let releases = size(20);
            let release = Release::new(DEFAULT_STEPS, Schedule::Fixed(600));
            let alarms = rolled_back(
                &release,
                &world,
                releases,
                Stream::new(25 + kind as u64, cell as u64),
            );
            let name = format!("outage to {error_rate} at {requests_per_second}/s");
            println!("{name}: {alarms} of {releases} rolled back");
            alarms_are_rare(&name, alarms, releases, 0.01);
        }
    }
}

/// Medians of the research notes, table 9.5, on the fixed schedule.
#[test]
fn regressions_are_found_when_they_should_be() {
    for (cell, (requests_per_second, times_worse, reference)) in [
        (1.0, 10.0, 24),
        (10.0, 3.0, 27),
        (10.0, 5.0, 16),
        (10.0, 10.0, 11),
        (100.0, 2.0, 21),
        (100.0, 3.0, 12),
        (100.0, 5.0, 6),
        (100.0, 10.0, 2),
    ]
    .into_iter()
    .enumerate()
    {
        let releases = size(101);
        let world = World::new(requests_per_second, 0.005, times_worse);
        let release = Release::new(DEFAULT_STEPS, Schedule::Fixed(600));
        let stream = Stream::new(27, cell as u64);
        let mut minutes: Vec<i64> = (0..releases)
            .map(|n| release.run(&world, stream.split(n as u64), |_, _, _| ()))
            .filter(|outcome| outcome.ended == Ended::RolledBack)
            .map(|outcome| outcome.seconds / 60)
            .collect();
        minutes.sort_unstable();
        let median = minutes[minutes.len() / 2];
        let name = format!("{requests_per_second}/s, x{times_worse}");
        println!(
            "{name}: {} of {releases} found, median {median} min (reference {reference})",
            minutes.len()
        );
        // A median of 101 has a standard error of some 10 %.
        let tolerance = if full() { 0.2 } else { 0.4 } * reference as f64;
        assert!(
            (median - reference).abs() as f64 <= tolerance.max(1.0),
            "{name}: {median} min"
        );
        assert!(
            minutes.len() * 100 >= releases * 88,
            "{name}: {} found",
            minutes.len()
        );
    }
}

/// The estimate for users, against the median of what happens.
#[test]
fn steps_take_about_as_long_as_expected() {
    for (cell, (requests_per_second, error_rate)) in [(10.0, 0.005), (100.0, 0.02), (10.0, 0.0001)]
        .into_iter()
        .enumerate()
    {
        for (index, rung) in DEFAULT_STEPS.into_iter().enumerate() {
            let rung = Rung {
                min_seconds: 0,
                decide_within_seconds: 100_000,
                ..rung
            };
            let traffic = Traffic {
                requests_per_second,
                stable: Arm {
                    requests: 10_000_000,
                    events: (1e7 * error_rate) as u64,
                },
            };
            let expected = starting_step(&[rung], Strictness::Standard, &[Metric::errors()], traffic);
            let expected = expected.expected_seconds.unwrap();
            let world = World::new(requests_per_second, error_rate, 1.0);
            let release = Release::new([rung], Schedule::Evidence);
            let stream = Stream::new(28, (cell * 10 + index) as u64);
            let releases = if full() { 1_001 } else { 21 };
            let mut seconds: Vec<i64> = (0..releases)
                .map(|n| release.run(&world, stream.split(n), |_, _, _| ()).seconds)
                .collect();
            seconds.sort_unstable();
            let median = seconds[seconds.len() / 2];
            let name = format!("{requests_per_second}/s, {error_rate}, {} %", rung.weight_percent);
            println!("{name}: expected {expected} s, median {median} s");
            // Looks come once a minute.
            assert!(
                median <= expected * 8 / 5 + 60 && expected <= median * 8 / 5 + 60,
                "{name}: {expected} s, {median} s"
            );
        }
    }
}

/// The tables of the documentation.
#[test]
fn the_tables_show_what_the_peers_do() {
    let releases = size(6);
    let rows = comparison(releases, 1);
    println!("{}", comparison_markdown(&rows));
    assert_eq!(rows, comparison_again(&rows, releases), "seeded");
    for row in &rows {
        if row.times_worse == 1.0 {
            let alarms = (row.flotilla.percent * releases as f64 / 100.0).round() as usize;
            alarms_are_rare(&format!("{row:?}"), alarms, releases, 0.01);
        }
    }
    let good = |rps: f64| {
        rows.iter()
            .find(|row| row.requests_per_second == rps && row.times_worse == 1.0)
    };
    let argo = good(10.0).unwrap().argo_99.percent;
    assert!(
        argo > 50.0,
        "a limit of 99 % aborts good candidates at 10/s: {argo} %"
    );
    let whole = whole_releases(if full() { 10_000 } else { 1 }, 1);
    println!("{}", whole_releases_markdown(&whole));
    assert_eq!(whole.len(), 20);
    for row in whole {
        assert!((row.promoted + row.rolled_back + row.held - 100.0).abs() < 1e-6);
        if full() && row.times_worse >= 2.0 {
            assert!(row.promoted <= 5.0, "{row:?}");
        }
    }
}

/// In full once is enough.
fn comparison_again(rows: &[comparison::ComparisonRow], releases: usize) -> Vec<comparison::ComparisonRow> {
    if full() {
        rows.to_vec()
    } else {
        comparison(releases, 1)
    }
}
