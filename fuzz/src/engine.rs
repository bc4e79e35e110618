//! Executes a target so many times, on some threads.

use std::any::Any;
use std::cell::Cell;
use std::collections::{BTreeMap, HashSet};
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;
use std::time::Duration;

use rand::SeedableRng as _;
use rand::rngs::StdRng;
use rustix::time::{ClockId, clock_gettime};

use crate::Target;
use crate::mutate::mutate;

/// Processor time that one execution may take: a thousand times what the slowest takes that is not broken.
pub const LIMIT: Duration = Duration::from_secs(2);
/// Inputs kept for new outcomes, per thread.
const MAX_FOUND: usize = 1024;
/// Different failures after which a target is given up.
const MAX_FAILURES: usize = 8;

/// How to run.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Executions of each target, all threads together.
    pub executions: u64,
    /// Of the random numbers.
    pub seed: u64,
    /// Threads, at least 1. Their number is part of what makes a run repeatable.
    pub threads: u64,
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Executions done.
    pub executions: u64,
    /// Different outcomes.
    pub outcomes: usize,
    /// Processor time of the slowest execution.
    pub slowest: Duration,
    /// By the place in the source that panicked: the shortest input that made it, and its message.
    pub failures: BTreeMap<String, Failure>,
}

/// How an execution failed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Failure {
    /// Where it panicked, as `file:line`.
    pub place: String,
    /// With which words.
    pub message: String,
    /// On what.
    pub input: Vec<u8>,
}

impl Report {
    /// True when no execution failed.
    pub fn is_good(&self) -> bool {
        self.failures.is_empty()
    }
}

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Panics are expected and reported here: the usual message per panic would be millions of lines.
fn be_quiet() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if QUIET.get() {
                let place = info
                    .location()
                    .map(|place| format!("{}:{}", place.file(), place.line()));
                LAST_PLACE.set(place.unwrap_or_default());
            } else {
                usual(info);
            }
        }));
    });
}

thread_local! {
    static LAST_PLACE: Cell<String> = const { Cell::new(String::new()) };
}

/// The outcome of one input, or why it failed.
///
/// # Errors
/// Where and how it panicked, or that it took longer than [`LIMIT`].
pub fn execute(target: &Target, input: &[u8]) -> Result<(u64, Duration), Failure> {
    be_quiet();
    let before = processor_time();
    QUIET.set(true);
    let result = panic::catch_unwind(AssertUnwindSafe(|| (target.execute)(input)));
    QUIET.set(false);
    let taken = processor_time().saturating_sub(before);
    let failure = |place: String, message: String| Failure {
        place,
        message,
        input: input.to_vec(),
    };
    let outcome = result.map_err(|panic| failure(LAST_PLACE.take(), message(panic.as_ref())))?;
    if taken > LIMIT {
        return Err(failure(
            "too slow".to_owned(),
            format!("took {taken:?} of processor time"),
        ));
    }
    Ok((outcome, taken))
}

fn message(panic: &(dyn Any + Send)) -> String {
    panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("a panic without a message")
        .to_owned()
}

fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(
        u64::try_from(time.tv_sec).unwrap_or_default(),
        u32::try_from(time.tv_nsec).unwrap_or_default(),
    )
}

/// Runs `target` by `plan`: first `known` inputs (once failed, from the repository), then its corpus, then mutations.
pub fn run(target: &Target, known: &[Vec<u8>], plan: Plan) -> Report {
    let threads = plan.threads.max(1);
    let mut total = Report::default();
    let reports: Vec<(Report, HashSet<u64>)> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|worker| {
                let share = plan.executions / threads + u64::from(worker < plan.executions % threads);
                scope.spawn(move || work(target, known, plan.seed, worker, share))
            })
            .collect();
        workers
            .into_iter()
            .map(|worker| worker.join().unwrap_or_default())
            .collect()
    });
    let mut outcomes = HashSet::new();
    for (report, seen) in reports {
        total.executions += report.executions;
        total.slowest = total.slowest.max(report.slowest);
        total.failures.extend(report.failures);
        outcomes.extend(seen);
    }
    total.outcomes = outcomes.len();
    if total.executions < plan.executions && total.is_good() {
        let failure = Failure {
            place: "worker".to_owned(),
            message: "a worker ended early".to_owned(),
            input: Vec::new(),
        };
        total.failures.insert(failure.place.clone(), failure);
    }
    total
}

fn work(
    target: &Target,
    known: &[Vec<u8>],
    seed: u64,
    worker: u64,
    executions: u64,
) -> (Report, HashSet<u64>) {
    let mut random = StdRng::seed_from_u64(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(worker));
    let mut corpus = (target.corpus)();
    let mut first = known
        .iter()
        .cloned()
        .chain(corpus.clone())
        .collect::<Vec<_>>()
        .into_iter();
    let room = corpus.len() + MAX_FOUND;
    let mut outcomes = HashSet::new();
    let mut report = Report::default();
    while report.executions < executions && report.failures.len() < MAX_FAILURES {
        let given = first.next();
        let fresh = given.is_none();
        let input = given.unwrap_or_else(|| mutate(&mut random, &corpus, target.words));
        report.executions += 1;
        match execute(target, &input) {
            Ok((outcome, taken)) => {
                report.slowest = report.slowest.max(taken);
                if outcomes.insert(outcome) && fresh && corpus.len() < room {
                    corpus.push(input);
                }
            }
            Err(failure) => {
                let kept = report.failures.get(&failure.place);
                if kept.is_none_or(|kept| failure.input.len() < kept.input.len()) {
                    report.failures.insert(failure.place.clone(), failure);
                }
            }
        }
    }
    (report, outcomes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fragile(input: &[u8]) -> u64 {
        assert!(
            !input.windows(2).any(|pair| pair == b"!!"),
            "two marks in {input:?}"
        );
        input.len() as u64
    }

    const TARGET: Target = Target {
        name: "fragile",
        about: "",
        corpus: || vec![b"hello".to_vec()],
        words: &["!"],
        execute: fragile,
    };
    const PLAN: Plan = Plan {
        executions: 20_000,
        seed: 1,
        threads: 2,
    };

    #[test]
    fn a_failure_is_found_and_can_be_repeated() {
        let report = run(&TARGET, &[], PLAN);
        let (place, failure) = report.failures.first_key_value().expect("a failure");
        assert!(
            place.contains("engine.rs:") && failure.message.starts_with("two marks in"),
            "{failure:?}"
        );
        assert_eq!(execute(&TARGET, &failure.input).as_ref(), Err(failure));
        assert_eq!(report.failures, run(&TARGET, &[], PLAN).failures);
    }

    #[test]
    fn a_sound_target_is_executed_as_often_as_asked() {
        let sound = Target {
            execute: |input| input.len() as u64,
            ..TARGET
        };
        let report = run(
            &sound,
            &[b"known".to_vec()],
            Plan {
                executions: 1001,
                ..PLAN
            },
        );
        assert!(report.is_good());
        assert_eq!(report.executions, 1001);
        assert!(report.outcomes > 10);
    }
}
