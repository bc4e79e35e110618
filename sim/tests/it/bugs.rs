//! Are the oracles worth anything? Each seeded bug is turned on in the operator, and runs must fail because of it.
//!
//! `cargo test -p flotilla-sim --features seeded-bugs --test it bugs -- --nocapture` prints what found each: the bug, after
//! how many plans, the plan, and what it broke.

use flotilla_core::seeded::{Bug, seed};
use flotilla_sim::faults::{Fault, Plan};
use flotilla_sim::run::{Outcome, Workload, compare};

use crate::campaign::{SEED, fault_free, in_parallel};
use crate::operator::simulate;

/// Of 24 bugs at least so many must be found.
const ENOUGH: usize = 23;
/// A crash at each so-manieth write.
const STRIDE: u64 = 3;

/// What is tried until the bug is found: no fault, a crash here and there, refusals, late and old news.
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
    [Plan::none(SEED)]
        .into_iter()
        .chain(crashes)
        .chain(refusals)
        .chain(late)
        .collect()
}

fn found(workload: &Workload, expected: &Outcome, plan: &Plan) -> Option<String> {
    let outcome = match simulate(workload, plan) {
        Ok(outcome) => outcome,
        Err(violation) => return Some(violation.to_string()),
    };
    if plan.faults.is_empty() && !outcome.idle.is_empty() {
        return Some(format!("{} writes changed nothing", outcome.idle.len()));
    }
    compare(workload, expected, &outcome)
        .err()
        .map(|violation| violation.to_string())
}

/// How a bug was found: after how many plans, by which, and what it broke.
fn hunt(bug: Bug, expected: &[(&Workload, &Outcome)]) -> (usize, Option<String>) {
    let plans: Vec<Vec<Plan>> = expected.iter().map(|(_, outcome)| plans(outcome.writes)).collect();
    let most = plans.iter().map(Vec::len).max().unwrap_or_default();
    let mut tried = 0;
    for turn in 0..most {
        for ((workload, outcome), plans) in expected.iter().zip(&plans) {
            let Some(plan) = plans.get(turn) else {
                continue;
            };
            tried += 1;
            seed(Some(bug));
            let violation = found(workload, outcome, plan);
            seed(None);
            if let Some(violation) = violation {
                let short: String = violation.chars().take(160).collect();
                return (tried, Some(format!("{}: {plan} | {short}", workload.name)));
            }
        }
    }
    (tried, None)
}

#[test]
fn seeded_bugs_are_found() {
    let expected: Vec<(&Workload, &Outcome)> = fault_free()
        .iter()
        .map(|(workload, outcome)| {
            let outcome = outcome.as_ref();
            let outcome = outcome.unwrap_or_else(|why| panic!("{} without a bug: {why}", workload.name));
            (workload, outcome)
        })
        .collect();
    let hunted = in_parallel(&Bug::ALL, |bug| {
        let (tried, by) = hunt(*bug, &expected);
        println!("{bug:?} | {tried} | {}", by.as_deref().unwrap_or("NOT FOUND"));
        by.is_some()
    });
    let count = hunted.iter().filter(|is_found| **is_found).count();
    assert!(count >= ENOUGH, "{count} of {} bugs are found", hunted.len());
}
