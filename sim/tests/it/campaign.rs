//! Every workload under every crash at every write, under late and old news, and under plans by lot.
//!
//! `FLOTILLA_FULL=1` runs all plans, otherwise a sample that is the same each time; `FLOTILLA_PLAN="rolling: 1 crash-before:7"`
//! runs one of them again and prints its transcript.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{LazyLock, Mutex};
use std::time::Instant;

use flotilla_sim::faults::{Fault, Plan};
use flotilla_sim::run::{Outcome, Violation, Workload, compare, last_words};

use crate::operator::simulate;
use crate::workloads;

/// The seed of the crash plans.
pub const SEED: u64 = 1;
/// Plans by lot for each workload, in full.
const RANDOM: u64 = 60;
/// Of a sampled campaign every so-manieth plan is run.
const SAMPLE: usize = 601;
/// Workloads there must be.
const WORKLOADS: usize = 18;
/// Plans there must be in full.
const PLANS: usize = 5_000;

pub fn is_full() -> bool {
    std::env::var_os("FLOTILLA_FULL").is_some()
}

/// Does `work` for each item, on all processors; the answers in the items' order.
pub fn in_parallel<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let (next, answers) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(item) = items.get(index) else { break };
                    let answer = work(item);
                    answers.lock().unwrap().push((index, answer));
                }
            });
        }
    });
    let mut answers = answers.into_inner().unwrap();
    answers.sort_by_key(|(index, _)| *index);
    answers.into_iter().map(|(_, answer)| answer).collect()
}

/// Every workload, and what becomes of it without faults.
pub fn fault_free() -> &'static [(Workload, Result<Outcome, Violation>)] {
    static ALL: LazyLock<Vec<(Workload, Result<Outcome, Violation>)>> = LazyLock::new(|| {
        let workloads = workloads::all();
        let outcomes = in_parallel(&workloads, |workload| simulate(workload, &Plan::none(SEED)));
        workloads.into_iter().zip(outcomes).collect()
    });
    &ALL
}

fn plans(writes: u64) -> Vec<Plan> {
    let crashes = (0..writes + 2).flat_map(|at| {
        [Fault::CrashBefore(at), Fault::CrashAfter(at), Fault::Lost(at)].map(|fault| Plan::one(SEED, fault))
    });
    // An old list is seen by a process that starts again.
    let stale = (0..writes).step_by(5).map(|at| Plan {
        seed: SEED,
        faults: vec![Fault::CrashAfter(at), Fault::Stale(at % 29 + 1)],
    });
    let kinds = [
        "agentpools",
        "replicasets",
        "controllerrevisions",
        "pods",
        "services",
        "configmaps",
    ];
    let late = kinds.iter().flat_map(|plural| {
        [300, 3_000, 10_000].map(|by| {
            let plural = (*plural).to_owned();
            Plan::one(SEED, Fault::Late { plural, by })
        })
    });
    // A fifth of all writes fails and news are ten seconds old (argo-rollouts #4073, #3080, #3316).
    let storm = [409, 500].map(|code| Plan {
        seed: SEED,
        faults: vec![
            Fault::Flaky { percent: 20, code },
            Fault::Late {
                plural: "replicasets".to_owned(),
                by: 10_000,
            },
        ],
    });
    crashes
        .chain(stale)
        .chain(late)
        .chain(storm)
        .chain((0..RANDOM).map(|lot| Plan {
            seed: SEED,
            ..Plan::random(lot, writes)
        }))
        .collect()
}

/// What is wrong with a run; it is told at once, with the command that repeats it.
fn check(workload: &Workload, expected: &Outcome, plan: &Plan) -> Option<String> {
    let checked = simulate(workload, plan).and_then(|found| {
        let most = found.counts.values().map(|(made, _)| *made).max();
        if most.unwrap_or_default() > CHURN {
            return Err(Violation {
                what: format!("objects are made again and again: {:?}", found.counts),
                transcript: found.transcript,
            });
        }
        compare(workload, expected, &found)
    });
    let violation = checked.err()?;
    let told = format!(
        "{violation}\n{}  again: FLOTILLA_PLAN={:?} cargo test -p flotilla-sim --test it one_plan -- --nocapture",
        last_words(&violation.transcript),
        format!("{}: {plan}", workload.name)
    );
    println!("{told}");
    Some(told)
}

#[test]
fn no_plan_changes_the_end() {
    let all: Vec<_> = fault_free()
        .iter()
        .flat_map(|(workload, expected)| {
            let expected = expected
                .as_ref()
                .unwrap_or_else(|why| panic!("{}: {why}", workload.name));
            let plans = plans(expected.writes).into_iter();
            plans.map(move |plan| (workload, expected, plan))
        })
        .collect();
    assert!(fault_free().len() >= WORKLOADS);
    assert!(all.len() >= PLANS, "{} plans", all.len());
    let total = all.len();
    let each = if is_full() { 1 } else { SAMPLE };
    let work: Vec<_> = all.into_iter().step_by(each).collect();
    let begin = Instant::now();
    let failures: Vec<String> = in_parallel(&work, |(workload, expected, plan)| {
        check(workload, expected, plan)
    })
    .into_iter()
    .flatten()
    .collect();
    println!(
        "{} workloads, {} of {total} plans in {:.0?}, {} violations",
        fault_free().len(),
        work.len(),
        begin.elapsed(),
        failures.len()
    );
    assert!(
        failures.is_empty(),
        "{} violations:\n{}",
        failures.len(),
        failures.join("\n")
    );
}

/// Plans that have found something, and what that was.
const ONCE_BROKEN: [&str; 4] = [
    // A command was refused by a record that the cache had not seen change.
    "action: 1 late:controllerrevisions:300",
    // A command whose answer was lost was answered without its sentence.
    "action: 1 crash-after:24",
    // A Service was deleted because the record of its revision had not been seen yet.
    "pause: 1 crash-after:20 stale:21",
    // Children were made for a pool that was gone as fast as they were collected.
    "gateway: 1 twice:6 late:agentpools:8937",
];
/// More objects than a run may make.
const CHURN: u64 = 60;

#[test]
fn what_was_once_broken_holds() {
    let failures = in_parallel(&ONCE_BROKEN, |text| {
        let (name, plan) = text.split_once(": ").unwrap();
        let mut all = fault_free().iter();
        let (workload, expected) = all.find(|(workload, _)| workload.name == name).unwrap();
        check(workload, expected.as_ref().unwrap(), &Plan::parse(plan).unwrap())
    });
    let failures: Vec<String> = failures.into_iter().flatten().collect();
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
    let ran = simulate(&workload, &plan).and_then(|found| {
        compare(&workload, &expected, &found)?;
        Ok(found.transcript)
    });
    let transcript = ran.as_ref().unwrap_or_else(|why| &why.transcript);
    println!("{transcript}");
    if let Err(why) = ran {
        panic!("{why}");
    }
}
