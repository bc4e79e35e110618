use std::thread;
use std::time::Duration;

use proptest::prelude::*;

use super::cases;
use crate::balance::PeakEwma;

const SECOND: u64 = 1_000_000_000;
const MILLI: u64 = 1_000_000;

fn close(one: Option<u64>, other: f64) -> bool {
    one.is_some_and(|one| (one as f64 - other).abs() <= 1e-3 * other + 1.0)
}

#[test]
fn rises_at_once_and_falls_with_time() {
    let ewma = PeakEwma::new(Duration::from_secs(10));
    assert_eq!(ewma.estimate_nanos(0, false), None);
    ewma.observe(50 * MILLI, SECOND);
    assert!(close(ewma.estimate_nanos(SECOND, true), 50e6));
    ewma.observe(2 * SECOND, 2 * SECOND);
    assert!(
        close(ewma.estimate_nanos(2 * SECOND, true), 2e9),
        "a peak counts whole"
    );
    // One quick answer 5 s later is worth 1 - e^-½.
    ewma.observe(50 * MILLI, 7 * SECOND);
    let weight = (-0.5f64).exp();
    let expected = 2e9 * weight + 50e6 * (1.0 - weight);
    assert!(close(ewma.estimate_nanos(7 * SECOND, true), expected));
    // Idle: forgotten by 1/e in 10 s. While an answer is awaited: not at all.
    assert!(close(
        ewma.estimate_nanos(17 * SECOND, false),
        expected / 1f64.exp()
    ));
    assert!(close(ewma.estimate_nanos(17 * SECOND, true), expected));
}

#[test]
fn a_request_given_up_can_only_raise() {
    let ewma = PeakEwma::default();
    ewma.observe_at_least(SECOND, 0);
    assert_eq!(ewma.estimate_nanos(0, true), None);
    ewma.seed(100 * MILLI, 0);
    ewma.seed(7, 0);
    ewma.observe_at_least(50 * MILLI, SECOND);
    assert!(close(ewma.estimate_nanos(0, true), 100e6));
    ewma.observe_at_least(SECOND, SECOND);
    assert!(close(ewma.estimate_nanos(SECOND, true), 1e9));
}

#[test]
fn a_clock_read_out_of_order_and_one_that_wraps_do_no_harm() {
    let ewma = PeakEwma::default();
    ewma.observe(SECOND, 100 * SECOND);
    ewma.observe(MILLI, 100 * SECOND - 500 * MILLI);
    assert!(close(ewma.estimate_nanos(100 * SECOND, false), 1e9));
    // 26 days of silence are no time travel.
    let later = 100 * SECOND + 26 * 86_400 * SECOND;
    assert_eq!(ewma.estimate_nanos(later, false), Some(0));
    ewma.observe(MILLI, later);
    assert!(close(ewma.estimate_nanos(later, false), 1e6));
}

#[test]
fn concurrent_samples_stay_between_the_least_and_the_largest() {
    let ewma = PeakEwma::new(Duration::from_millis(100));
    ewma.observe(500, 0);
    thread::scope(|scope| {
        for thread in 0..4u64 {
            let ewma = &ewma;
            scope.spawn(move || {
                for n in 0..20_000 {
                    ewma.observe(100 + thread * 300 + n % 7, n * 50_000);
                    let seen = ewma.estimate_nanos(n * 50_000, true).unwrap();
                    assert!((99..=1007).contains(&seen), "{seen}");
                }
            });
        }
    });
}

proptest! {
    #![proptest_config(cases(200, 50_000))]

    /// Against the formula in `f64`, with time in the same units.
    #[test]
    fn follows_the_formula(samples in prop::collection::vec((1u64..10_000_000_000, 0u64..60_000), 1..50)) {
        let ewma = PeakEwma::new(Duration::from_secs(10));
        let tau = 1e10 / f64::from(1 << 20);
        let (mut now, mut expected) = (0u64, 0f64);
        for (count, (sample, pause)) in samples.iter().enumerate() {
            now += pause << 20;
            ewma.observe(*sample, now);
            let weight = (-(*pause as f64) / tau).exp();
            expected = if count == 0 || *sample as f64 > expected {
                *sample as f64
            } else {
                expected * weight + *sample as f64 * (1.0 - weight)
            };
            prop_assert!(close(ewma.estimate_nanos(now, true), expected), "{expected}");
        }
    }
}
