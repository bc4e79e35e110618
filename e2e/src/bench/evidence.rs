//! The rules that judge a release beside those of Argo Rollouts and Flagger, in the same simulated worlds
//! ([`flotilla_core::evidence::comparison`]), and the page of the documentation that shows them.
//!
//! Everything is seeded: the same program prints the same figures everywhere.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result};
use flotilla_core::evidence::comparison::{
    ComparisonRow, ReleaseRow, Stopped, comparison, comparison_markdown, whole_releases,
    whole_releases_markdown,
};
use flotilla_core::evidence::eta::duration;
use flotilla_core::evidence::simulation::{Release, Schedule, World};
use flotilla_core::evidence::statistics::{self, Cell, Promise};
use flotilla_core::evidence::{Arm, DEFAULT_STEPS, Metric, Strictness, Traffic, expected_seconds};
use flotilla_core::load::random::Stream;

use crate::report::Row;

const SEED: u64 = 1;
/// Releases of each world: in a sample, and in full, which is what the documentation shows.
const SAMPLE: usize = 1_000;
const FULL: usize = 10_000;

/// Requests a second of the table of durations.
const TRAFFIC: [f64; 6] = [1.0, 3.0, 10.0, 30.0, 100.0, 1000.0];
/// Stable's error rates of it, in thousandths.
const ERRORS: [u64; 4] = [0, 1, 5, 20];

pub(super) fn run(full: bool, page: Option<&Path>) -> Result<Vec<Row>> {
    let releases = if full { FULL } else { SAMPLE };
    let beside = comparison(releases, SEED);
    let whole = whole_releases(releases / 5, SEED);
    if let Some(page) = page {
        write(page, releases, &beside, &whole)?;
    }
    let mut rows = rows(&beside, &whole);
    rows.extend(promises(releases / if full { 1 } else { 10 }, full));
    Ok(rows)
}

/// What [`flotilla_core::evidence`] promises, each in its worst world; then how soon it finds what is worse.
fn promises(releases: usize, full: bool) -> Vec<Row> {
    type Simulate = fn(usize) -> Vec<Cell>;
    // What the shares are of, and what the medians.
    let simulated: [(&str, &str, Simulate); 9] = [
        (
            "good candidates led back: drift, daily shape, weights",
            "",
            statistics::good_candidates,
        ),
        (
            "as bad as a step must rule out, and passed",
            "",
            statistics::at_the_margin,
        ),
        ("good, retries in bursts of 5, led back", "", statistics::retries),
        ("good, while both fail, led back", "", statistics::outages),
        (
            "good, both failed: longer than the outage and half again",
            "",
            statistics::after_outages,
        ),
        (
            "",
            "worse errors found, median (reference)",
            statistics::detections,
        ),
        (
            "as fast, led back by latency",
            "more latency found, median (reference)",
            statistics::latency,
        ),
        (
            "as few tokens, led back by tokens",
            "more tokens found, median (reference)",
            statistics::tokens,
        ),
        ("restarts that change a bit of the evidence", "", |releases| {
            vec![statistics::restarts(releases)]
        }),
    ];
    let figures = std::thread::scope(|scope| {
        let threads = simulated
            .map(|(shares, medians, simulate)| (shares, medians, scope.spawn(move || simulate(releases))));
        threads.map(|(shares, medians, thread)| (shares, medians, thread.join().unwrap_or_default()))
    });
    let mut rows: Vec<Row> = figures
        .iter()
        .flat_map(|(of_shares, of_medians, cells)| {
            let (medians, shares): (Vec<&Cell>, Vec<&Cell>) = cells
                .iter()
                .partition(|cell| matches!(cell.promise, Promise::Median { .. }));
            [
                promise(of_shares, &shares, full),
                promise(of_medians, &medians, full),
            ]
        })
        .flatten()
        .collect();
    let difference = statistics::reference_difference();
    rows.push(Row::new(
        "reference values of ln E, greatest difference",
        format!("{difference:.0e}"),
        "< 1e-4",
        difference < 1e-4,
    ));
    rows
}

/// A row for the cells of one promise, none where there are none.
fn promise(name: &str, cells: &[&Cell], full: bool) -> Option<Row> {
    let worst = cells.iter().max_by(|a, b| a.share().total_cmp(&b.share()))?;
    let holds = cells
        .iter()
        .all(|cell| if full { cell.is_kept() } else { cell.is_possible() });
    let (measured, goal) = match worst.promise {
        Promise::Never => (
            format!("{} of {}", worst.minutes.len(), worst.releases),
            "none".to_owned(),
        ),
        Promise::AtMost(share) => (
            format!("{:.2} % ({})", worst.share() * 100.0, worst.name),
            format!("≤ {:.0} %", share * 100.0),
        ),
        Promise::Median { .. } => {
            let medians = cells.iter().map(|cell| {
                let median = cell.median().map_or("-".to_owned(), |median| median.to_string());
                match cell.promise {
                    Promise::Median { minutes, .. } => format!("{} {median} ({minutes}) min", cell.name),
                    Promise::Never | Promise::AtMost(_) => median,
                }
            });
            (medians.collect::<Vec<_>>().join(", "), "± 20 %".to_owned())
        }
    };
    Some(Row::new(name, measured, goal, holds))
}

fn rows(beside: &[ComparisonRow], whole: &[ReleaseRow]) -> Vec<Row> {
    type Rule = fn(&ComparisonRow) -> Stopped;
    let worst = |rule: Rule, is_meant: &dyn Fn(&ComparisonRow) -> bool| {
        let percents = beside
            .iter()
            .filter(|row| is_meant(row))
            .map(|row| rule(row).percent);
        percents.fold(0.0, f64::max)
    };
    let least = |rule: Rule, is_meant: &dyn Fn(&ComparisonRow) -> bool| {
        let percents = beside
            .iter()
            .filter(|row| is_meant(row))
            .map(|row| rule(row).percent);
        percents.fold(100.0, f64::min)
    };
    let good = |row: &ComparisonRow| row.times_worse == 1.0 && !row.has_incident;
    let incident = |row: &ComparisonRow| row.has_incident;
    let bad = |row: &ComparisonRow| row.times_worse >= 5.0 && row.requests_per_second >= 10.0;
    let (ours, argo_99, argo_95, flagger): (Rule, Rule, Rule, Rule) = (
        |row| row.flotilla,
        |row| row.argo_99,
        |row| row.argo_95,
        |row| row.flagger_99,
    );
    let beside_ours = |mine: f64, of: &dyn Fn(Rule) -> f64| {
        format!(
            "{mine:.2} % (Argo-style 99 %: {:.0} %, 95 %: {:.0} %; Flagger-style: {:.0} %)",
            of(argo_99),
            of(argo_95),
            of(flagger)
        )
    };
    let alarms = worst(ours, &good);
    let outage = worst(ours, &incident);
    let found = least(ours, &bad);
    let passed = whole.iter().filter(|row| row.times_worse >= 2.0);
    let passed = passed.map(|row| row.promoted).fold(0.0, f64::max);
    vec![
        Row::new(
            "good candidates stopped, worst of 1, 10, 100 requests/s",
            beside_ours(alarms, &|rule| worst(rule, &good)),
            "≤ 1 %",
            alarms <= 1.0,
        ),
        Row::new(
            "good candidates stopped while both revisions fail 5 %",
            beside_ours(outage, &|rule| worst(rule, &incident)),
            "≤ 1 %",
            outage <= 1.0,
        ),
        Row::new(
            "candidates ≥ 5 × as bad found at ≥ 10 requests/s, least",
            beside_ours(found, &|rule| least(rule, &bad)),
            "≥ 99 %",
            found >= 99.0,
        ),
        Row::new(
            "candidates ≥ 2 × as bad that pass every step, worst world",
            format!("{passed:.2} %"),
            "≤ 5 %",
            passed <= 5.0,
        ),
    ]
}

/// How long each default step is expected to take for a candidate as good as stable, as a Markdown table.
pub fn durations_markdown() -> String {
    let mut table = String::from("| requests/s | stable fails |");
    for step in DEFAULT_STEPS {
        let _ = write!(
            table,
            " {} %, rules out {} × |",
            step.weight_percent, step.times_worse
        );
    }
    table += "\n|---|---|---|---|---|---|\n";
    for requests_per_second in TRAFFIC {
        for thousandths in ERRORS {
            // An hour's worth, as an operator has seen of it.
            let requests = (requests_per_second * 3_600.0) as u64;
            let stable = Arm {
                requests,
                events: requests * thousandths / 1_000,
            };
            let traffic = Traffic {
                requests_per_second,
                stable,
            };
            let _ = write!(
                table,
                "| {requests_per_second} | {} % |",
                thousandths as f64 / 10.0
            );
            for step in DEFAULT_STEPS {
                let seconds = expected_seconds(&step, Strictness::Standard, &[Metric::errors()], traffic);
                let takes = seconds.map_or("> 1 month".to_owned(), duration);
                let _ = write!(table, " {takes} |");
            }
            table.push('\n');
        }
    }
    table
}

// === the page ===

/// Puts the tables between their marks in the page, and the picture beside it.
fn write(page: &Path, releases: usize, beside: &[ComparisonRow], whole: &[ReleaseRow]) -> Result<()> {
    let mut text = std::fs::read_to_string(page).with_context(|| page.display().to_string())?;
    let sizes = format!("{releases} simulated releases a cell, seed {SEED}.\n\n");
    for (name, table) in [
        ("durations", durations_markdown()),
        ("peers", format!("{sizes}{}", comparison_markdown(beside))),
        (
            "releases",
            format!(
                "{} simulated releases a row, seed {SEED}.\n\n{}",
                releases / 5,
                whole_releases_markdown(whole)
            ),
        ),
    ] {
        text = replaced(&text, name, &table)?;
    }
    std::fs::write(page, text).with_context(|| page.display().to_string())?;
    let picture = page.with_extension("svg");
    std::fs::write(&picture, svg()).with_context(|| picture.display().to_string())
}

/// What stands between the marks of `name`.
///
/// # Errors
/// When a mark is missing.
pub fn between<'a>(text: &'a str, name: &str) -> Result<(&'a str, &'a str, &'a str)> {
    let (start, end) = (format!("<!-- {name}: "), format!("<!-- end of {name} -->"));
    let missing = || format!("the page has lost its mark {name:?}");
    let at = text.find(&start).with_context(missing)?;
    let (_, rest) = text.split_at(at);
    let line = rest.find('\n').with_context(missing)? + 1;
    let (before, rest) = text.split_at(at + line);
    let (inside, _) = rest.split_once(&end).with_context(missing)?;
    Ok((before, inside, rest.get(inside.len()..).unwrap_or_default()))
}

fn replaced(text: &str, name: &str, table: &str) -> Result<String> {
    let (before, _, after) = between(text, name)?;
    Ok(format!("{before}\n{table}\n{after}"))
}

// === the picture ===

const WIDTH: f64 = 760.0;
const PANEL: f64 = 190.0;
const LEFT: f64 = 60.0;
const TOP: f64 = 44.0;
const PLOT: f64 = 120.0;

/// Two releases at 10 requests/s as their evidence grows: a good candidate, and one that fails three times as often.
pub fn svg() -> String {
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#ffffff\"/>\n",
        height = 2.0 * PANEL + 30.0,
    );
    for (index, (title, times_worse)) in [
        ("A candidate as good as stable", 1.0),
        ("A candidate that fails three times as often", 3.0),
    ]
    .into_iter()
    .enumerate()
    {
        panel(&mut text, index as f64 * PANEL, title, times_worse);
    }
    let y = 2.0 * PANEL + 18.0;
    for (x, colour, words) in [
        (LEFT, "#1a7f37", "evidence that this step may be left"),
        (LEFT + 260.0, "#cf222e", "evidence of harm"),
        (LEFT + 420.0, "#d0d7de", "a step begins"),
    ] {
        let _ = writeln!(
            text,
            "<rect x=\"{x}\" y=\"{}\" width=\"18\" height=\"4\" fill=\"{colour}\"/><text x=\"{}\" y=\"{y}\" fill=\"#24292f\">{words}</text>",
            y - 6.0,
            x + 24.0
        );
    }
    text + "</svg>\n"
}

fn panel(text: &mut String, y: f64, title: &str, times_worse: f64) {
    let release = Release::new(DEFAULT_STEPS, Schedule::Evidence);
    let world = World::new(10.0, 0.005, times_worse);
    let mut looks = Vec::new();
    let outcome = release.run(&world, Stream::new(SEED, 42), |second, step, judgement| {
        if let Some(metric) = judgement.metrics.first() {
            looks.push((second, step, metric.advance_percent, metric.rollback_percent));
        }
    });
    let end = outcome.seconds.max(60) as f64;
    let x = |second: f64| LEFT + (WIDTH - LEFT - 20.0) * second / end;
    let height = |percent: f64| y + TOP + PLOT * (1.0 - percent / 100.0);
    let ends = format!("{:?} after {}", outcome.ended, duration(outcome.seconds));
    let _ = writeln!(
        text,
        "<text x=\"{LEFT}\" y=\"{}\" font-weight=\"bold\" fill=\"#24292f\">{title}: {}</text>",
        y + 20.0,
        ends.replace("RolledBack", "led back")
            .replace("Promoted", "promoted")
            .replace("Held", "held"),
    );
    for percent in [0.0, 50.0, 100.0] {
        let line = height(percent);
        let _ = writeln!(
            text,
            "<line x1=\"{LEFT}\" y1=\"{line}\" x2=\"{}\" y2=\"{line}\" stroke=\"#eaeef2\"/>\
             <text x=\"{}\" y=\"{}\" text-anchor=\"end\" fill=\"#57606a\">{percent} %</text>",
            WIDTH - 20.0,
            LEFT - 6.0,
            line + 4.0
        );
    }
    let mut begun = None;
    let mut before = 0;
    for (second, step, _, _) in &looks {
        if begun != Some(*step) {
            begun = Some(*step);
            let at = x(before as f64);
            let weight = DEFAULT_STEPS.get(*step).map_or(0, |step| step.weight_percent);
            let _ = writeln!(
                text,
                "<line x1=\"{at:.1}\" y1=\"{}\" x2=\"{at:.1}\" y2=\"{}\" stroke=\"#d0d7de\"/>\
                 <text x=\"{:.1}\" y=\"{}\" fill=\"#57606a\">{weight} %</text>",
                y + TOP,
                y + TOP + PLOT,
                at + 3.0,
                y + TOP + PLOT + 14.0
            );
        }
        before = *second;
    }
    let _ = writeln!(
        text,
        "<text x=\"{}\" y=\"{}\" text-anchor=\"end\" fill=\"#57606a\">{}</text>",
        WIDTH - 20.0,
        y + TOP + PLOT + 14.0,
        duration(outcome.seconds)
    );
    for (colour, pick) in [("#1a7f37", 0), ("#cf222e", 1)] {
        let mut points = format!("{:.1},{:.1}", x(0.0), height(0.0));
        let mut step_before = 0;
        for (second, step, advance, rollback) in &looks {
            let percent = f64::from(if pick == 0 { *advance } else { *rollback });
            if pick == 0 && step_before != *step {
                step_before = *step;
                let _ = write!(points, " {:.1},{:.1}", x((second - 60) as f64), height(0.0));
            }
            let _ = write!(points, " {:.1},{:.1}", x(*second as f64), height(percent));
        }
        let _ = writeln!(
            text,
            "<polyline points=\"{points}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page() -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/src/concepts/evidence.md")
    }

    #[test]
    fn the_page_shows_what_is_computed() {
        let renew = "run `make bench-evidence FLOTILLA_FULL=1`";
        let text = std::fs::read_to_string(page()).expect("the page");
        let (_, durations, _) = between(&text, "durations").expect("its mark");
        assert_eq!(durations.trim(), durations_markdown().trim(), "{renew}");
        let picture = std::fs::read_to_string(page().with_extension("svg")).expect("its picture");
        assert_eq!(picture, svg(), "{renew}");
        for name in ["peers", "releases"] {
            let (_, table, _) = between(&text, name).expect("its mark");
            assert!(table.lines().count() > 15, "{name}: {renew}");
        }
    }

    #[test]
    fn rules_are_told_apart() {
        let stopped = |percent| Stopped {
            percent,
            median_minutes: None,
        };
        let row = |times_worse, flotilla| ComparisonRow {
            requests_per_second: 10.0,
            times_worse,
            has_incident: false,
            argo_99: stopped(87.0),
            argo_95: stopped(0.0),
            flagger_99: stopped(0.1),
            flotilla: stopped(flotilla),
        };
        let marks = |flotilla: [f64; 2]| {
            let beside = [row(1.0, flotilla[0]), row(5.0, flotilla[1])];
            let marks = rows(&beside, &[]).iter().map(Row::mark).collect::<Vec<_>>();
            marks.join(" ")
        };
        assert_eq!(marks([0.1, 100.0]), "ok ok ok ok");
        assert_eq!(marks([1.1, 100.0]), "short ok ok ok");
        assert_eq!(marks([0.1, 98.0]), "ok ok short ok");
    }
}
