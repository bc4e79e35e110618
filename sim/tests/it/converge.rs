//! Without faults every workload converges, twice in the same way, and then falls silent.

use flotilla_sim::faults::Plan;

use crate::campaign::{SEED, fault_free, in_parallel, is_full};
use crate::operator::simulate;
use crate::workloads;

#[test]
fn every_workload_converges_and_falls_silent() {
    let told = fault_free().iter().filter_map(|(workload, outcome)| {
        let name = workload.name;
        match outcome {
            Ok(outcome) if outcome.idle.is_empty() && outcome.writes > 0 => {
                println!("{name}: {} writes, {:?}", outcome.writes, outcome.took);
                None
            }
            Ok(outcome) => Some(format!(
                "{name}: writes that changed nothing: {:#?}",
                outcome.idle
            )),
            Err(violation) => Some(format!("{name}: {violation}")),
        }
    });
    let failures: Vec<String> = told.collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn the_same_seed_gives_the_same_run_byte_for_byte() {
    let each = if is_full() { 1 } else { 13 };
    let some: Vec<_> = workloads::all().into_iter().step_by(each).collect();
    let told = in_parallel(&some, |workload| {
        let plan = Plan::random(SEED, 30);
        let runs = [(); 2].map(|()| match simulate(workload, &plan) {
            Ok(outcome) => outcome.transcript,
            Err(violation) => violation.to_string(),
        });
        let differing = runs[0].lines().zip(runs[1].lines()).find(|(a, b)| a != b);
        (runs[0] != runs[1]).then(|| format!("{} under {plan}: {differing:#?}", workload.name))
    });
    let failures: Vec<String> = told.into_iter().flatten().collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
