use proptest::prelude::*;

use super::*;

pub(crate) fn worker_with(index: u32, workers: u32, latencies: Vec<u64>) -> WorkerResult {
    let done = latencies.len() as u64;
    let series = Series {
        lateness: latencies.iter().map(|_| 20).collect(),
        latency: latencies.into_iter().collect(),
        ..Series::default()
    };
    let stages = vec![StageCounts {
        planned: done,
        started: done,
        done,
        failed: 0,
    }];
    WorkerResult {
        index,
        workers,
        attempt: 1,
        workload: 7,
        stages,
        series,
        ..WorkerResult::default()
    }
}

pub(crate) fn worker(index: u32, workers: u32) -> WorkerResult {
    worker_with(index, workers, (1..=100).map(|i| i * 10_000).collect())
}

fn histogram() -> impl Strategy<Value = Histogram> {
    let value = prop_oneof![Just(0u64), 1u64..10_000, 1u64..10_000_000_000, any::<u64>()];
    prop::collection::vec((value, 1u64..1_000_000_000), 0..400).prop_map(|values| {
        let mut histogram = Histogram::new();
        values
            .into_iter()
            .for_each(|(value, n)| histogram.record_n(value, n));
        histogram
    })
}

prop_compose! {
    fn result()(
        histograms in prop::collection::vec(histogram(), 6),
        index: u32, workers: u32, attempt: u64, workload: u64, interrupted: bool, skew: u64,
        failed in 0u64..1_000_000, retries: u64, input: u64, output: u64, reported: u64, stages in 1usize..=32,
    ) -> WorkerResult {
        let mut each = histograms.into_iter();
        let mut next = || each.next().unwrap_or_default();
        let series = Series {
            latency: next(), first_token: next(), service: next(), inter_token_gap: next(), lateness: next(), queue_delay: next(),
        };
        let done = series.latency.count();
        let failed = failed.min(done);
        let mut errors = ErrorCounts::default();
        errors.add(ErrorCategory::Throttled, failed);
        let mut counts = vec![StageCounts { planned: 5, started: 4, done: 0, failed: 0 }; stages];
        counts[0] = StageCounts { planned: done + 1, started: done, done, failed };
        WorkerResult {
            index, workers, attempt, workload, interrupted, start_skew_microseconds: skew, stages: counts,
            errors, retries, tokens: Tokens { input, output, reported }, series,
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn every_message_fits_and_decodes(result in result()) {
        let message = result.to_message();
        prop_assert!(message.len() <= MAX_MESSAGE_BYTES, "{} bytes", message.len());
        prop_assert!(message.is_ascii());
        let decoded = WorkerResult::from_message(&message).unwrap();
        let precision = decoded.series.latency.precision();
        prop_assert_eq!(&decoded.series.latency, &result.series.latency.coarsened(precision));
        prop_assert_eq!(&decoded.series.lateness.count(), &result.series.lateness.count());
        let counts = |r: &WorkerResult| WorkerResult { series: Series::default(), ..r.clone() };
        prop_assert_eq!(counts(&decoded), counts(&result));
    }

    #[test]
    fn the_decoder_survives_damage(result in result(), position: prop::sample::Index, byte: u8, cut: prop::sample::Index) {
        let mut bytes = result.encode(2, 2);
        let position = position.index(bytes.len());
        bytes[position] = byte;
        let _ = WorkerResult::from_message(&format!("{PREFIX}{}", pack(&bytes)));
        bytes.truncate(cut.index(bytes.len()));
        let cut = WorkerResult::from_message(&format!("{PREFIX}{}", pack(&bytes)));
        prop_assert!(cut.is_err());
    }

    #[test]
    fn the_decoder_survives_garbage(text in ".{0,300}", bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = WorkerResult::from_message(&text);
        let _ = WorkerResult::from_message(&format!("{PREFIX}{text}"));
        let _ = WorkerResult::from_message(&format!("{PREFIX}{}", pack(&bytes)));
    }
}

#[test]
fn a_usual_result_keeps_one_percent() {
    let series = |scale: u64| -> Histogram {
        (1..100_000u64)
            .map(|i| 1000 * scale + (i * i) % (scale * 9001))
            .collect()
    };
    let mut result = worker(0, 1);
    result.series = Series {
        latency: series(2000),
        first_token: series(400),
        service: series(1900),
        inter_token_gap: series(20),
        lateness: series(1),
        queue_delay: Histogram::new(),
    };
    result.stages[0] = StageCounts {
        planned: 99_999,
        started: 99_999,
        done: 99_999,
        failed: 0,
    };
    let decoded = WorkerResult::from_message(&result.to_message()).unwrap();
    assert_eq!(decoded.precision_percent(), 1);
}

#[test]
fn contradictions_are_refused() {
    let mut fewer = worker(0, 1);
    fewer.stages[0].done -= 1;
    let mut failed = worker(0, 1);
    failed.stages[0].failed = 3;
    for wrong in [fewer, failed] {
        assert!(matches!(
            WorkerResult::from_message(&wrong.to_message()),
            Err(DecodeError::Inconsistent(_))
        ));
    }
    assert!(WorkerResult::from_message("lt2:AA").is_err());
    assert!(WorkerResult::from_message(&format!(" {}\n", worker(0, 1).to_message())).is_ok());
}

#[test]
fn snapshots_are_idempotent_and_ordered() {
    let snapshot = |index, attempt, sequence, done| WorkerProgress {
        index,
        attempt,
        sequence,
        counts: StageCounts {
            planned: 100,
            started: done,
            done,
            failed: 0,
        },
        latency: (0..done).collect(),
        ..WorkerProgress::default()
    };
    let mut table = ProgressTable::default();
    let sent = [
        snapshot(0, 1, 2, 20),
        snapshot(0, 1, 1, 10),
        snapshot(1, 1, 9, 50),
        snapshot(1, 2, 1, 5),
        snapshot(1, 2, 1, 5),
    ];
    sent.into_iter().for_each(|progress| table.accept(progress));
    let totals = table.totals();
    assert_eq!(
        (totals.counts.done, totals.counts.planned, totals.latency.count()),
        (25, 200, 25)
    );
    let json = serde_json::to_string(&snapshot(0, 1, 2, 20)).unwrap();
    assert_eq!(
        serde_json::from_str::<WorkerProgress>(&json).unwrap(),
        snapshot(0, 1, 2, 20)
    );
}
