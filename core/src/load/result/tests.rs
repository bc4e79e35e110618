use super::*;
use crate::load::wire::tests::{worker, worker_with};

#[test]
fn merged_percentiles_are_within_one_percent_of_all_samples() {
    let mut all: Vec<u64> = (1..=50_000u64)
        .map(|i| (i * i) % 4_000_037 + i % 977 + 1)
        .collect();
    let results: Vec<WorkerResult> = (0..50)
        .map(|index| {
            let share = all.iter().skip(index as usize).step_by(50).copied();
            let result = worker_with(index, 50, share.collect());
            WorkerResult::from_message(&result.to_message()).unwrap()
        })
        .collect();
    let run = RunResult::merge(50, 50_000, 7, &results);
    all.sort_unstable();
    for q in [0.5, 0.95, 0.99] {
        let exact = all[(q * all.len() as f64).ceil() as usize - 1] as f64;
        let merged = run.series.latency.quantile(q).unwrap();
        assert!(
            (merged / exact - 1.0).abs() <= 0.01,
            "p{q}: {merged}, exactly {exact}"
        );
    }
    assert_eq!(run.coverage_percent().to_string(), "100");
}

#[test]
fn a_missing_worker_is_missing_coverage() {
    let run = RunResult::merge(4, 400, 7, &[worker(0, 4), worker(2, 4), worker(3, 4)]);
    assert_eq!(
        (run.reported, run.coverage_percent().to_string().as_str()),
        (3, "75")
    );
}

#[test]
fn strangers_and_duplicates_do_not_count() {
    let again = WorkerResult {
        attempt: 2,
        ..worker(0, 2)
    };
    let mut other_plan = worker(1, 2);
    other_plan.workload = 8;
    let results = [
        worker(0, 2),
        again.clone(),
        other_plan,
        worker(1, 3),
        worker(5, 2),
    ];
    let run = RunResult::merge(2, 200, 7, &results);
    assert_eq!((run.reported, run.totals().done), (1, 100));
    assert_eq!(run, RunResult::merge(2, 200, 7, &[again]));
}

#[test]
fn coverage_of_nothing_is_nothing() {
    assert!(RunResult::merge(1, 0, 7, &[]).coverage_percent().is_zero());
    assert!(RunResult::merge(1, 10, 7, &[]).summary(None).latency.is_none());
}

#[test]
fn cost_is_exact() {
    let price = Price::parse("USD", "0.25", "2.00").unwrap();
    let cost = |input, output| {
        price
            .cost(&Tokens {
                input,
                output,
                reported: 1,
            })
            .total
    };
    // 512345 * 0.25e-6 + 221009 * 2e-6 = 0.12808625 + 0.442018
    assert_eq!(cost(512_345, 221_009), "0.570104");
    assert_eq!(cost(5_123_450, 2_210_090), "5.70");
    assert_eq!(cost(0, 0), "0.00");
    assert_eq!(cost(1, 0), "0.00");
    assert_eq!(cost(u64::MAX, u64::MAX).split_once('.').unwrap().1.len(), 2);
}

#[test]
fn errors_are_listed_by_frequency() {
    let mut errors = ErrorCounts::default();
    errors.add(ErrorCategory::Timeout, 2);
    errors.add(ErrorCategory::ServerError, 5);
    let names: Vec<_> = errors
        .by_frequency()
        .into_iter()
        .map(|entry| (entry.category.as_str(), entry.count))
        .collect();
    assert_eq!(names, [("ServerError", 5), ("Timeout", 2)]);
    assert_eq!(errors.total(), 7);
    for (number, category) in ErrorCategory::ALL.into_iter().enumerate() {
        assert_eq!(category as usize, number);
        assert_eq!(
            serde_json::to_string(&category).unwrap(),
            format!("\"{}\"", category.as_str())
        );
    }
}
