use super::*;
use crate::load::result::{ErrorCategory, StageCounts};
use crate::load::wire::WorkerResult;
use crate::load::wire::tests::{worker, worker_with};

const VALID: Validity = Validity {
    min_coverage_percent: 99,
    stopped: false,
};

/// A run of one worker: `over` requests of 5 s, the rest of 1 s, `failed` of them failures.
fn run(samples: u64, over: u64, failed: u64) -> RunResult {
    let latencies = (0..samples)
        .map(|i| if i < over { 5_000_000 } else { 1_000_000 })
        .collect();
    let mut result = worker_with(0, 1, latencies);
    result.stages[0].failed = failed;
    result.errors.add(ErrorCategory::Timeout, failed);
    RunResult::merge(1, samples, 7, &[result])
}

fn p95() -> Thresholds {
    Thresholds {
        p95_milliseconds: Some(4000),
        failed_percent: Some("100".to_owned()),
        ..Thresholds::default()
    }
}

fn failed(percent: &str) -> Thresholds {
    Thresholds {
        failed_percent: Some(percent.to_owned()),
        ..Thresholds::default()
    }
}

#[test]
fn thresholds_follow_the_published_sample_sizes() {
    for (samples, over, verdict) in [
        (58, 0, Verdict::Inconclusive),
        (59, 0, Verdict::Passed),
        (93, 1, Verdict::Passed),
        (92, 1, Verdict::Inconclusive),
        (540, 18, Verdict::Passed),
        (540, 19, Verdict::Inconclusive),
        (540, 41, Verdict::Failed),
        (2, 1, Verdict::Inconclusive),
        (3, 2, Verdict::Failed),
    ] {
        let judgement = judge(&run(samples, over, 0), &p95(), &VALID);
        assert_eq!(
            judgement.verdict, verdict,
            "{samples} {over}: {}",
            judgement.message
        );
    }
}

#[test]
fn messages_say_how_many_samples_are_missing() {
    let judgement = judge(&run(600, 0, 3), &failed("1"), &VALID);
    let result = &judgement.thresholds[0];
    assert_eq!(
        (judgement.verdict, judgement.reason.as_str()),
        (Verdict::Inconclusive, "TooFewSamples")
    );
    assert_eq!(
        result.message,
        "3 of 600 failed; at most 1 allow a pass at 95 % confidence; needs 173 more samples without another miss"
    );
    assert_eq!(
        (result.observed.as_str(), result.limit.as_str()),
        ("0.50 %", "1 %")
    );
    let judgement = judge(&run(540, 41, 0), &p95(), &VALID);
    assert_eq!(
        judgement.message,
        "p95: 41 of 540 over 4000 ms; at most 18 allow a pass at 95 % confidence"
    );
    assert_eq!(judgement.thresholds[0].observed, "5000 ms");
}

#[test]
fn no_data_is_never_passed() {
    let empty = RunResult::merge(1, 0, 7, &[]);
    let lax = Validity {
        min_coverage_percent: 0,
        stopped: false,
    };
    for thresholds in [Thresholds::default(), p95(), failed("0"), failed("100")] {
        let judgement = judge(&empty, &thresholds, &lax);
        assert_eq!(
            (judgement.verdict, judgement.reason.as_str()),
            (Verdict::Inconclusive, "NoData")
        );
        assert_eq!(judge(&empty, &thresholds, &VALID).verdict, Verdict::Invalid);
    }
    let without_tokens = Thresholds {
        failed_percent: Some("100".to_owned()),
        custom: vec![CustomThreshold {
            name: "first".to_owned(),
            metric: Metric::FirstToken,
            stat: Stat::Max,
            max_milliseconds: 1,
        }],
        ..Thresholds::default()
    };
    assert_eq!(
        judge(&run(1000, 0, 0), &without_tokens, &VALID).verdict,
        Verdict::Inconclusive
    );
}

#[test]
fn zero_percent_is_a_census() {
    assert_eq!(
        judge(&run(3, 0, 0), &failed("0"), &VALID).verdict,
        Verdict::Passed
    );
    assert_eq!(
        judge(&run(100_000, 0, 1), &failed("0"), &VALID).verdict,
        Verdict::Failed
    );
    assert_eq!(
        judge(&run(3, 0, 3), &failed("100"), &VALID).verdict,
        Verdict::Passed
    );
}

#[test]
fn failures_alone_fail_a_run_by_default() {
    let fast_failures = run(1000, 0, 500);
    let judgement = judge(
        &fast_failures,
        &Thresholds {
            p95_milliseconds: Some(4000),
            ..Thresholds::default()
        },
        &VALID,
    );
    assert_eq!(judgement.verdict, Verdict::Failed);
    assert!(judgement.message.starts_with("failed: 500 of 1000 failed"));
    let unasked = |samples, failed| judge(&run(samples, 0, failed), &Thresholds::default(), &VALID).verdict;
    assert_eq!(
        (unasked(50, 0), unasked(1000, 10)),
        (Verdict::Passed, Verdict::Passed)
    );
    assert_eq!(
        (unasked(3, 1), unasked(1000, 20)),
        (Verdict::Failed, Verdict::Failed)
    );
}

#[test]
fn a_lost_worker_is_invalid_never_passed() {
    let run = RunResult::merge(2, 200, 7, &[worker(0, 2)]);
    let judgement = judge(&run, &failed("100"), &VALID);
    assert_eq!(
        (judgement.verdict, judgement.reason.as_str()),
        (Verdict::Invalid, "CoverageTooLow")
    );
    assert!(
        judgement.message.contains("1 of 2 workers left a result"),
        "{}",
        judgement.message
    );
}

#[test]
fn a_partial_worker_is_invalid() {
    let mut cut = worker(1, 2);
    cut.interrupted = true;
    cut.stages[0] = StageCounts {
        planned: 200,
        started: 110,
        done: 100,
        failed: 0,
    };
    let judgement = judge(
        &RunResult::merge(2, 300, 7, &[worker(0, 2), cut]),
        &failed("100"),
        &VALID,
    );
    assert_eq!(judgement.verdict, Verdict::Invalid);
    assert!(
        judgement.message.contains("1 of them cut short"),
        "{}",
        judgement.message
    );
}

#[test]
fn invalid_beats_failed_and_failed_beats_inconclusive() {
    let stopped = Validity {
        stopped: true,
        ..VALID
    };
    assert_eq!(
        judge(&run(1000, 0, 500), &failed("1"), &stopped).reason,
        "Stopped"
    );
    let both = Thresholds {
        p99_milliseconds: Some(4000),
        failed_percent: Some("1".to_owned()),
        ..Thresholds::default()
    };
    let judgement = judge(&run(100, 0, 50), &both, &VALID);
    assert_eq!(
        judgement.thresholds.iter().map(|t| t.verdict).collect::<Vec<_>>(),
        [Verdict::Inconclusive, Verdict::Failed]
    );
    assert_eq!(judgement.verdict, Verdict::Failed);
}

#[test]
fn a_late_generator_is_invalid() {
    let late = |lateness: u64, latency: u64| {
        let mut result: WorkerResult = worker_with(0, 1, vec![latency; 1000]);
        result.series.lateness = (0..1000).map(|i| if i < 20 { lateness } else { 10 }).collect();
        judge(&RunResult::merge(1, 1000, 7, &[result]), &failed("1"), &VALID)
    };
    assert_eq!(late(6_000, 100_000).reason, "GeneratorLate");
    assert_eq!(late(4_900, 100_000).verdict, Verdict::Passed);
    // 1 % of a median of 1 s is 10 ms.
    assert_eq!(late(9_000, 1_000_000).verdict, Verdict::Passed);
    assert_eq!(late(11_000, 1_000_000).verdict, Verdict::Invalid);
    assert!(late(6_000, 100_000).message.contains("raise workers.count"));
}

#[test]
fn thresholds_are_checked_and_otherwise_strict() {
    let wrong = Thresholds {
        failed_percent: Some("few".to_owned()),
        confidence_percent: 100,
        ..Thresholds::default()
    };
    assert_eq!(wrong.validate().unwrap_err().len(), 2);
    Thresholds::default().validate().unwrap();
    assert_eq!(judge(&run(1000, 0, 1), &wrong, &VALID).verdict, Verdict::Failed);
}

#[test]
fn json_shapes_are_the_apis() {
    let thresholds: Thresholds = serde_json::from_value(serde_json::json!({
        "p95Milliseconds": 4000, "failedPercent": "1", "confidencePercent": 95,
        "custom": [{"name": "gaps", "metric": "InterTokenGap", "stat": "P99", "maxMilliseconds": 200}],
    }))
    .unwrap();
    assert_eq!(thresholds.custom[0].metric, Metric::InterTokenGap);
    let judgement = serde_json::to_value(judge(&run(59, 0, 0), &thresholds, &VALID)).unwrap();
    assert_eq!(judgement["thresholds"][0]["name"], "p95");
}
