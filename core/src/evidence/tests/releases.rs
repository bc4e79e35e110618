//! Seeded releases. A few hundred per default run; with `FLOTILLA_FULL=1`, 10,000 per cell and the tables of the documentation.

use super::comparison::{comparison, comparison_markdown, whole_releases, whole_releases_markdown};
use super::simulation::{Release, Schedule, World};
use super::statistics::Cell;
use super::*;
use crate::load::binomial;
use crate::load::random::Stream;

fn full() -> bool {
    std::env::var("FLOTILLA_FULL").is_ok_and(|value| value == "1")
}

/// Releases per cell: 10,000, or `sample`.
fn size(sample: usize) -> usize {
    if full() { 10_000 } else { sample }
}

/// In full: what is promised is shown. In a sample, which cannot show that: the opposite is not.
fn hold(cells: &[Cell]) {
    for cell in cells {
        let holds = if full() {
            cell.is_kept()
        } else {
            cell.is_possible()
        };
        let figures = format!(
            "{}: {} of {}, median {:?} min; promised: {:?}",
            cell.name,
            cell.minutes.len(),
            cell.releases,
            cell.median(),
            cell.promise
        );
        println!("{figures}");
        assert!(holds, "{figures}");
    }
}

#[test]
fn good_candidates_are_not_rolled_back() {
    hold(&statistics::good_candidates(size(12)));
}

#[test]
fn what_a_step_must_rule_out_does_not_pass() {
    hold(&statistics::at_the_margin(size(20)));
}

#[test]
fn retries_are_no_harm_with_the_cluster_factor() {
    hold(&statistics::retries(size(60)));
    let naive = statistics::retries_without_factor(size(60)).share();
    assert!(naive > 0.1, "the naive form must fail here: {naive}");
}

#[test]
fn an_outage_of_both_arms_is_no_harm() {
    hold(&statistics::outages(size(20)));
}

#[test]
fn an_outage_of_both_arms_holds_a_release_and_no_longer() {
    hold(&statistics::after_outages(size(21)));
}

#[test]
fn regressions_are_found_when_they_should_be() {
    hold(&statistics::detections(size(101)));
}

#[test]
fn what_takes_longer_is_found_and_what_does_not_is_not() {
    hold(&statistics::latency(size(12)));
}

#[test]
fn what_uses_more_tokens_is_found_and_what_does_not_is_not() {
    hold(&statistics::tokens(size(12)));
}

#[test]
fn restarts_change_no_bit() {
    hold(&[statistics::restarts(size(4))]);
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
            let chance = binomial::at_least(alarms as u64, releases as u64, 0.01);
            assert!(chance > 1e-3, "{row:?}");
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
