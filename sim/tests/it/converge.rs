//! Without faults every workload converges, twice in the same way, and then falls silent.

use flotilla_sim::faults::Plan;

use crate::operator::simulate;
use crate::workloads;

#[test]
fn every_workload_converges_and_falls_silent() {
    for workload in workloads::all() {
        let outcome =
            simulate(&workload, &Plan::none(1)).unwrap_or_else(|why| panic!("{}: {why}", workload.name));
        println!(
            "{}: {} writes, {:?}, {:?}",
            workload.name, outcome.writes, outcome.took, outcome.counts
        );
        assert!(outcome.writes > 0);
        assert!(
            outcome.idle.is_empty(),
            "{}: writes that changed nothing: {:#?}",
            workload.name,
            outcome.idle
        );
    }
}

#[test]
fn the_same_seed_gives_the_same_run_byte_for_byte() {
    for workload in workloads::all() {
        for seed in [1, 2] {
            let plan = Plan::random(seed, 30);
            let runs: Vec<_> = (0..2).map(|_| simulate(&workload, &plan)).collect();
            let texts: Vec<String> = runs
                .iter()
                .map(|run| match run {
                    Ok(outcome) => outcome.transcript.clone(),
                    Err(violation) => violation.to_string(),
                })
                .collect();
            if texts[0] != texts[1] {
                let differing = texts[0].lines().zip(texts[1].lines()).find(|(a, b)| a != b);
                panic!("{} under {plan}: {differing:#?}", workload.name);
            }
        }
    }
}
