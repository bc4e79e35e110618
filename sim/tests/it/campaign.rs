//! Every workload under every crash at every write, and under plans by lot. `FLOTILLA_FULL=1` runs all plans, otherwise
//! every n-th; `FLOTILLA_PLAN="rolling: 1 crash-before:7"` runs one, again, with its transcript.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use flotilla_sim::faults::{Fault, Plan};
use flotilla_sim::run::{Outcome, Workload, compare};

use crate::operator::simulate;
use crate::workloads;

/// The seed of the crash plans.
const SEED: u64 = 1;
/// Plans by lot for each workload, in full.
const RANDOM: u64 = 400;
/// Of a sampled campaign every so-manieth plan is run.
const SAMPLE: usize = 12;

fn is_full() -> bool {
    std::env::var_os("FLOTILLA_FULL").is_some()
}

fn plans(writes: u64) -> Vec<Plan> {
    let crashes = (0..writes + 2).flat_map(|at| {
        [Fault::CrashBefore(at), Fault::CrashAfter(at), Fault::Lost(at)].map(|fault| Plan::one(SEED, fault))
    });
    crashes
        .chain((0..RANDOM).map(|seed| Plan::random(1000 + seed, writes)))
        .collect()
}

fn check(workload: &Workload, expected: &Outcome, plan: &Plan) -> Result<(), String> {
    let told = |violation| {
        format!(
            "{violation}\n  again: FLOTILLA_PLAN={:?} cargo test -p flotilla-sim --test it one_plan",
            format!("{}: {plan}", workload.name)
        )
    };
    let found = simulate(workload, plan).map_err(told)?;
    compare(workload, expected, &found).map_err(told)
}

#[test]
fn no_plan_changes_the_end() {
    let mut work = Vec::new();
    for workload in workloads::all() {
        let expected = simulate(&workload, &Plan::none(SEED)).unwrap_or_else(|why| panic!("{}: {why}", workload.name));
        let plans = plans(expected.writes);
        let count = plans.len();
        let chosen = plans
            .into_iter()
            .enumerate()
            .filter(|(index, _)| is_full() || (index + count).is_multiple_of(SAMPLE))
            .map(|(_, plan)| plan);
        work.extend(chosen.map(|plan| (workload.clone(), expected.clone(), plan)));
    }
    let (next, failures) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some((workload, expected, plan)) = work.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(failure) = check(workload, expected, plan) {
                        failures.lock().unwrap().push(failure);
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap();
    println!("{} plans, {} violations", work.len(), failures.len());
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn one_plan() {
    let Ok(text) = std::env::var("FLOTILLA_PLAN") else {
        return;
    };
    let (name, plan) = text.split_once(": ").expect("FLOTILLA_PLAN is `workload: plan`");
    let plan = Plan::parse(plan).unwrap();
    let workload = workloads::all()
        .into_iter()
        .find(|workload| workload.name == name)
        .expect("a workload of that name");
    let expected = simulate(&workload, &Plan::none(SEED)).unwrap();
    let found = simulate(&workload, &plan).unwrap_or_else(|why| panic!("{why}"));
    println!("{}", found.transcript);
    compare(&workload, &expected, &found).unwrap_or_else(|why| panic!("{why}"));
}
