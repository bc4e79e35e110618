use std::sync::Arc;

use proptest::prelude::*;

use super::*;

/// The exact quantile by the same definition: the `ceil(q·n)`-th smallest.
fn exact_quantile(values: &mut [u64], q: f64) -> f64 {
    values.sort_unstable();
    let rank = ((q * values.len() as f64).ceil() as usize).clamp(1, values.len());
    values[rank - 1] as f64
}

/// A deterministic log-normal sample in microseconds.
fn log_normal(count: usize, median_microseconds: f64, sigma: f64) -> Vec<u64> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut uniform = move || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        ((state >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    };
    (0..count)
        .map(|_| {
            let normal = (-2.0 * uniform().ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos();
            (median_microseconds * (sigma * normal).exp()) as u64
        })
        .collect()
}

fn values() -> impl Strategy<Value = Vec<u64>> {
    let value = prop_oneof![
        1 => Just(0u64),
        4 => 1u64..300,
        8 => 1u64..10_000_000_000,
        1 => any::<u64>(),
    ];
    prop::collection::vec(value, 1..300)
}

proptest! {
    #[test]
    fn quantiles_are_within_the_relative_error(mut values in values(), q in 0.0f64..=1.0, halvings in 0u8..=2) {
        let precision = Precision::from_halvings(halvings).unwrap();
        let histogram = values.iter().copied().collect::<Histogram>().coarsened(precision);
        let exact = exact_quantile(&mut values, q);
        let answer = histogram.quantile(q).unwrap();
        let bound = precision.relative_error() + 1e-9;
        prop_assert!((answer - exact).abs() <= bound * exact, "{answer} is not {exact}");
    }

    #[test]
    fn count_above_is_exact_for_a_limit_within_the_error(values in values(), limit in 1u64..10_000_000_000) {
        let histogram: Histogram = values.iter().copied().collect();
        let exact = |limit: f64| values.iter().filter(|v| **v as f64 > limit).count() as u64;
        let answer = histogram.count_above(limit);
        prop_assert!(answer <= exact(limit as f64 * 0.989));
        prop_assert!(answer >= exact(limit as f64 * 1.011));
    }

    #[test]
    fn count_above_agrees_with_quantile(values in values(), q in 0.01f64..0.999, limit in 1u64..10_000_000_000) {
        let histogram: Histogram = values.iter().copied().collect();
        let rank = ((q * values.len() as f64).ceil() as u64).clamp(1, values.len() as u64);
        let above = histogram.count_above(limit) > values.len() as u64 - rank;
        prop_assert_eq!(histogram.quantile(q).unwrap() > limit as f64, above);
    }

    #[test]
    fn merge_is_associative_and_commutative(
        a in values(), b in values(), c in values(), levels in prop::array::uniform3(0u8..=3),
    ) {
        let build = |values: &[u64], level: u8| {
            values.iter().copied().collect::<Histogram>().coarsened(Precision::from_halvings(level).unwrap())
        };
        let (a, b, c) = (build(&a, levels[0]), build(&b, levels[1]), build(&c, levels[2]));
        let merged = |parts: &[&Histogram]| {
            let mut all = Histogram::new();
            parts.iter().for_each(|part| all.merge(part));
            all
        };
        let left = merged(&[&merged(&[&a, &b]), &c]);
        prop_assert_eq!(&left, &merged(&[&a, &merged(&[&b, &c])]));
        prop_assert_eq!(&left, &merged(&[&c, &a, &b]));
    }

    #[test]
    fn merging_parts_equals_recording_everything(a in values(), b in values()) {
        let mut merged: Histogram = a.iter().copied().collect();
        merged.merge(&b.iter().copied().collect());
        prop_assert_eq!(merged, a.into_iter().chain(b).collect::<Histogram>());
    }

    #[test]
    fn text_round_trips(values in prop::collection::vec(any::<u64>(), 0..200), halvings in 0u8..=6) {
        let histogram = values.into_iter().collect::<Histogram>()
            .coarsened(Precision::from_halvings(halvings).unwrap());
        let text = histogram.to_text();
        prop_assert_eq!(&Histogram::from_text(&text).unwrap(), &histogram);
        let json = serde_json::to_string(&histogram).unwrap();
        prop_assert_eq!(&json, &format!("\"{text}\""));
        prop_assert_eq!(serde_json::from_str::<Histogram>(&json).unwrap(), histogram);
    }

    #[test]
    fn decoder_survives_garbage(bytes in prop::collection::vec(any::<u8>(), 0..400), text in ".{0,200}") {
        let _ = Histogram::from_text(&text);
        let _ = Histogram::from_text(&codec::pack(&bytes));
        let _ = codec::decode(&mut codec::Reader::new(&bytes));
    }

    #[test]
    fn decoder_accepts_only_what_is_consistent(values in values(), position in any::<prop::sample::Index>(), byte: u8) {
        let mut bytes = Vec::new();
        codec::encode(&values.into_iter().collect(), &mut bytes);
        let position = position.index(bytes.len());
        bytes[position] = byte;
        if let Ok(histogram) = codec::decode(&mut codec::Reader::new(&bytes)) {
            prop_assert_eq!(histogram.buckets().map(|(_, n)| n).sum::<u64>(), histogram.count());
            prop_assert!(histogram.quantile(0.0) <= histogram.quantile(1.0));
            prop_assert!(histogram.count_above(0) <= histogram.count());
        }
    }

    #[test]
    fn atomic_snapshot_equals_plain_recording(values in prop::collection::vec(0u64..MAX_TRACKED_MICROSECONDS, 0..200)) {
        let atomic = AtomicHistogram::new();
        values.iter().for_each(|value| atomic.record(*value));
        prop_assert_eq!(atomic.snapshot(), values.into_iter().collect::<Histogram>());
    }
}

#[test]
fn empty_has_no_percentile() {
    let empty = Histogram::new();
    assert_eq!(empty.quantile(0.5), None);
    assert_eq!((empty.min(), empty.max(), empty.mean()), (None, None, None));
    assert_eq!(empty.count_above(0), 0);
    assert_eq!(Histogram::from_text(&empty.to_text()).unwrap(), empty);
}

#[test]
fn extremes_have_buckets() {
    assert_eq!(index_of(1), 0);
    assert_eq!(index_of(u64::MAX), MAX_INDEX);
    let histogram: Histogram = [0, 1, u64::MAX].into_iter().collect();
    assert_eq!(histogram.quantile(0.3), Some(0.0));
    assert!((0.99..=1.01).contains(&histogram.quantile(0.6).unwrap()));
    assert_eq!(histogram.quantile(1.0), Some(u64::MAX as f64));
}

#[test]
fn precision_names_are_true() {
    let errors: Vec<u32> = (0..4)
        .map(|h| Precision::from_halvings(h).unwrap().percent())
        .collect();
    assert_eq!(errors, [1, 2, 4, 8]);
    assert_eq!(Precision::from_halvings(7), None);
    assert!((Precision::ONE_PERCENT.relative_error() - 0.01).abs() < 1e-12);
}

/// Sizes of loadtest.md 5.4 in bytes of base64, with what minimum, maximum and sum take.
#[test]
fn text_sizes_fit_the_wire_forms() {
    let wide: Vec<u64> = (0..1_000_000u64)
        .map(|i| ((i as f64 / 85_000.0).exp() * 1000.0) as u64)
        .collect();
    for (samples, limit_1, limit_2) in [
        (log_normal(10_000, 2e6, 0.6), 420, 280),
        (log_normal(100_000, 2e6, 0.6), 560, 340),
        (log_normal(100_000, 4e5, 0.7), 620, 370),
        (log_normal(100_000, 2e4, 0.5), 500, 300),
        (log_normal(1_000_000, 2e6, 0.6), 760, 440),
        (wide, 1700, 1000),
    ] {
        let count = samples.len();
        let histogram: Histogram = samples.into_iter().collect();
        let (one, two) = (
            histogram.to_text().len(),
            histogram.coarsened(Precision::TWO_PERCENT).to_text().len(),
        );
        assert!(
            one <= limit_1 && two <= limit_2,
            "{count} samples took {one} and {two} bytes"
        );
    }
}

#[test]
fn atomic_histogram_counts_from_many_threads() {
    let atomic = Arc::new(AtomicHistogram::new());
    let threads: Vec<_> = (0..4u64)
        .map(|thread| {
            let atomic = Arc::clone(&atomic);
            std::thread::spawn(move || (0..10_000).for_each(|i| atomic.record(thread * 10_000 + i)))
        })
        .collect();
    // A snapshot in the middle of it must be consistent with itself.
    for _ in 0..50 {
        let text = atomic.snapshot().to_text();
        Histogram::from_text(&text).expect("a snapshot decodes");
    }
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert_eq!(atomic.snapshot(), (0..40_000).collect::<Histogram>());
}

#[test]
fn atomic_histogram_clamps_but_keeps_the_maximum() {
    let atomic = AtomicHistogram::new();
    atomic.record(MAX_TRACKED_MICROSECONDS * 100);
    let snapshot = atomic.snapshot();
    assert_eq!(snapshot.max(), Some(MAX_TRACKED_MICROSECONDS * 100));
    assert_eq!(snapshot.count(), 1);
    assert_eq!(Histogram::from_text(&snapshot.to_text()).unwrap(), snapshot);
    assert_eq!(index_of(MAX_TRACKED_MICROSECONDS) + 1, atomic.counts_len());
}
