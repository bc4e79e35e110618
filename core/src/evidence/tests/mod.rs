//! Vectors, the checkpoint, the verdicts, and seeded releases.

mod checkpoint;
mod releases;
mod vectors;
mod verdicts;

use std::collections::BTreeMap;

use super::*;

/// A plan at its first step, from time 0, of the default metrics' `errors`.
fn plan() -> Plan {
    Plan {
        strictness: Strictness::Standard,
        metrics: vec![Metric::errors()],
        step: Step {
            index: 0,
            question: Question::Advance { times_worse: 3 },
            epoch: 1,
            start: 0,
            min_seconds: 60,
            decide_within_seconds: 3_600,
        },
        first_epoch: 1,
        request_timeout_seconds: 120,
        warmup_seconds: 0,
        bakes: false,
    }
}

/// A window of errors as (requests, failed), stable first.
fn window(start: i64, epoch: i64, stable: (u64, u64), candidate: (u64, u64)) -> Window {
    let tally = Tally {
        stable: Counts::new(stable.0, stable.1),
        candidate: Counts::new(candidate.0, candidate.1),
    };
    Window {
        start,
        epoch,
        metrics: BTreeMap::from([("errors".to_owned(), Observation::Counts(tally))]),
    }
}

/// A complete look of one gateway at `time`.
fn look(time: i64, windows: Vec<Window>) -> Scrape {
    Scrape {
        now: time,
        complete: true,
        reports: vec![report("gateway-a", time, windows)],
    }
}

fn report(instance: &str, time: i64, windows: Vec<Window>) -> Report {
    Report {
        instance: instance.to_owned(),
        time,
        windows,
    }
}

/// Evidence after `count` closed windows of the same counts, and the time of the last look.
fn seen(plan: &Plan, count: i64, stable: (u64, u64), candidate: (u64, u64)) -> (Evidence, i64) {
    let mut evidence = Evidence::new(Key::default());
    let mut now = 0;
    for n in 0..count {
        let start = plan.step.start + n * 15;
        now = plan.closes(start);
        evidence.update(
            plan,
            &look(now, vec![window(start, plan.step.epoch, stable, candidate)]),
        );
    }
    (evidence, now)
}
