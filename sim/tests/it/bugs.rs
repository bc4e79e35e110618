//! Are the oracles worth anything? Each seeded bug is turned on in the operator, and runs must fail because of it.
//!
//! `cargo test -p flotilla-sim --features seeded-bugs --test it bugs -- --nocapture` prints what found each.

use flotilla_core::seeded::{Bug, seed};
use flotilla_sim::faults::{Fault, Plan};
use flotilla_sim::run::{Outcome, Workload, compare};

use crate::campaign::{SEED, in_parallel};
use crate::operator::simulate;
use crate::workloads;

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

fn hunt(bug: Bug, expected: &[(Workload, Outcome)]) -> Option<String> {
    let most = expected
        .iter()
        .map(|(_, outcome)| plans(outcome.writes).len())
        .max()
        .unwrap_or_default();
    for turn in 0..most {
        for (workload, outcome) in expected {
            let Some(plan) = plans(outcome.writes).into_iter().nth(turn) else {
                continue;
            };
            seed(Some(bug));
            let violation = found(workload, outcome, &plan);
            seed(None);
            if let Some(violation) = violation {
                let short: String = violation.chars().take(160).collect();
                return Some(format!("{}: {plan}: {short}", workload.name));
            }
        }
    }
    None
}

#[test]
fn seeded_bugs_are_found() {
    let expected: Vec<(Workload, Outcome)> = workloads::all()
        .into_iter()
        .map(|workload| {
            let outcome = simulate(&workload, &Plan::none(SEED));
            let outcome = outcome.unwrap_or_else(|why| panic!("{} without a bug: {why}", workload.name));
            (workload, outcome)
        })
        .collect();
    let found = in_parallel(&Bug::ALL, |bug| (*bug, hunt(*bug, &expected)));
    for (bug, by) in &found {
        println!("{bug:?}: {}", by.as_deref().unwrap_or("NOT FOUND"));
    }
    let count = found.iter().filter(|(_, by)| by.is_some()).count();
    assert!(count >= ENOUGH, "{count} of {} bugs are found", found.len());
}
