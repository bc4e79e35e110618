//! Are the oracles worth anything? Each seeded bug is turned on in the operator, and runs must fail because of it.
//!
//! `cargo test -p flotilla-sim --features seeded-bugs --test it bugs -- --nocapture` prints what found each: the bug, after
//! how many plans, the plan, and what it broke. `FLOTILLA_BUG=PruneNewest` turns on only that one.

use flotilla_core::seeded::{Bug, seed};
use flotilla_sim::faults::{Fault, Plan};
use flotilla_sim::run::{Outcome, Violation, Workload, compare};

use crate::campaign::{SEED, in_parallel};
use crate::operator::simulate;
use crate::workloads;

/// Of 24 bugs at least so many must be found.
const ENOUGH: usize = 23;
/// A crash at each so-manieth write.
const STRIDE: u64 = 3;

/// What is tried after the runs without faults until the bug is found: a crash here and there, refusals, late news.
fn plans(writes: u64) -> Vec<Plan> {
    let crashes = (0..writes).filter(|at| at % STRIDE == 0).flat_map(|at| {
        [
            Fault::CrashAfter(at),
            Fault::CrashBefore(at + 1),
            Fault::Lost(at + 2),
        ]
        .map(|fault| Plan::one(SEED, fault))
    });
    let refusals = (0..writes).filter(|at| at % (2 * STRIDE) == 0).map(|at| {
        let fault = Fault::Refused {
            at,
            count: 2,
            code: if at % 4 == 0 { 500 } else { 409 },
        };
        Plan::one(SEED, fault)
    });
    let late = ["replicasets", "controllerrevisions", "agentpools", "pods"].map(|plural| {
        let fault = Fault::Late {
            plural: plural.to_owned(),
            by: 3_000,
        };
        Plan::one(SEED, fault)
    });
    crashes.chain(refusals).chain(late).collect()
}

/// Runs a workload with the bug, and compares the end with that of the run without faults, if there is one: with the bug as well,
/// for nobody who makes a mistake knows the end without it.
fn run(bug: Bug, workload: &Workload, plan: &Plan, expected: Option<&Outcome>) -> Result<Outcome, Violation> {
    seed(Some(bug));
    let outcome = simulate(workload, plan);
    seed(None);
    let outcome = outcome?;
    match expected {
        Some(expected) => compare(workload, expected, &outcome)?,
        None if !outcome.idle.is_empty() => {
            return Err(Violation {
                what: format!("{} writes changed nothing", outcome.idle.len()),
                transcript: outcome.transcript,
            });
        }
        None => {}
    }
    Ok(outcome)
}

/// How a bug was found: after how many plans, by which, and what it broke.
fn hunt(bug: Bug, workloads: &[Workload]) -> (usize, Option<String>) {
    let mut tried = 0;
    let mut told = |workload: &Workload, plan: &Plan, ran: Result<Outcome, Violation>| {
        tried += 1;
        ran.map_err(|violation| {
            let short: String = violation.to_string().chars().take(160).collect();
            (tried, Some(format!("{}: {plan} | {short}", workload.name)))
        })
    };
    let mut ends = Vec::new();
    for workload in workloads {
        let plan = Plan::none(SEED);
        match told(workload, &plan, run(bug, workload, &plan, None)) {
            Ok(end) => ends.push(end),
            Err(found) => return found,
        }
    }
    let plans: Vec<Vec<Plan>> = ends.iter().map(|end| plans(end.writes)).collect();
    let most = plans.iter().map(Vec::len).max().unwrap_or_default();
    for turn in 0..most {
        for ((workload, end), plans) in workloads.iter().zip(&ends).zip(&plans) {
            let Some(plan) = plans.get(turn) else {
                continue;
            };
            if let Err(found) = told(workload, plan, run(bug, workload, plan, Some(end))) {
                return found;
            }
        }
    }
    (tried, None)
}

#[test]
fn seeded_bugs_are_found() {
    let workloads = workloads::all();
    let only = std::env::var("FLOTILLA_BUG").ok();
    let is_wanted = |bug: &Bug| only.as_ref().is_none_or(|only| *only == format!("{bug:?}"));
    let bugs: Vec<Bug> = Bug::ALL.into_iter().filter(is_wanted).collect();
    let hunted = in_parallel(&bugs, |bug| {
        let (tried, by) = hunt(*bug, &workloads);
        println!("{bug:?} | {tried} | {}", by.as_deref().unwrap_or("NOT FOUND"));
        by.is_some()
    });
    let count = hunted.iter().filter(|is_found| **is_found).count();
    let enough = if only.is_some() { 1 } else { ENOUGH };
    assert!(count >= enough, "{count} of {} bugs are found", hunted.len());
}
