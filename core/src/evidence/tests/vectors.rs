//! The reference values of the research notes, section 9.3 and 9.2, and the property on which all rests: under the null,
//! a window's factor is at most 1 in expectation.

use proptest::prelude::*;

use super::super::rate::RateTest;
use super::super::ratio::{LogE, RatioTest};
use super::*;

fn arm(requests: u64, events: u64) -> Arm {
    Arm { requests, events }
}

#[test]
fn ratio_tests_give_the_reference_values() {
    let difference = statistics::reference_difference();
    assert!(difference < 1e-4, "{difference}");
}

/// Requests of a candidate with 0, 1 and 3 failures that pass by the absolute route alone, at β = 5 %.
#[test]
fn a_clean_record_passes_after_the_reference_number_of_requests() {
    for (limit, requests) in [
        (0.005, [863, 1_462, 2_351]),
        (0.01, [431, 730, 1_174]),
        (0.02, [214, 363, 585]),
        (0.05, [85, 144, 232]),
    ] {
        for (failures, expected) in [0, 1, 3].into_iter().zip(requests) {
            let test = RateTest::below(limit, 1.0);
            let passes = |requests: u64| {
                let mut evidence = LogE::default();
                test.observe(&mut evidence, arm(requests, failures));
                // The comparison has seen nothing: it is 1.
                (1.0 + evidence.ln_mean().exp()) / 2.0 >= 20.0
            };
            assert_eq!(
                (1..).find(|n| passes(*n)),
                Some(expected),
                "{limit}, {failures} failures"
            );
        }
    }
}

/// The binomial distribution of `n` trials of probability `p`.
fn binomial(n: u64, p: f64) -> impl Iterator<Item = (u64, f64)> + Clone {
    (0..=n).map(move |k| {
        let ways = (0..k).fold(1.0, |ways, i| ways * (n - i) as f64 / (i + 1) as f64);
        (k, ways * p.powi(k as i32) * (1.0 - p).powi((n - k) as i32))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// The expectation over all outcomes of one window, failures in bursts of `burst`, at and inside the null.
    #[test]
    fn a_window_is_a_fair_bet_under_the_null(
        bursts in (1u64..8, 1u64..8),
        burst in 1u64..4,
        stable_rate in 0.0..1.0f64,
        inside in 0.0..1.0f64,
        tolerated in 1.0..4.0f64,
    ) {
        let (n_c, n_s) = bursts;
        let test = RatioTest::harm(tolerated, burst as f64);
        let candidate_rate = (stable_rate * tolerated * inside).min(1.0);
        let mut expectation = 0.0;
        for (x_c, p_c) in binomial(n_c, candidate_rate) {
            for (x_s, p_s) in binomial(n_s, stable_rate) {
                let mut evidence = LogE::default();
                test.observe(&mut evidence, arm(n_c * burst, x_c * burst), arm(n_s * burst, x_s * burst), false);
                expectation += p_c * p_s * evidence.ln_mean().exp();
            }
        }
        prop_assert!(expectation <= 1.0 + 1e-12, "{}", expectation);
    }

    /// The pass test as the judge uses it, whatever makes a window degraded; here: that stable fails more than by half.
    #[test]
    fn a_bad_candidate_gains_nothing_in_expectation(
        sizes in (1u64..8, 1u64..8),
        candidate_rate in 0.0..1.0f64,
        inside in 0.0..1.0f64,
        times in 2.0..10.0f64,
        guarded in any::<bool>(),
    ) {
        let (n_c, n_s) = sizes;
        let test = RatioTest::pass(times, 1.0);
        let stable_rate = candidate_rate / times * inside;
        let mut expectation = 0.0;
        for (x_c, p_c) in binomial(n_c, candidate_rate) {
            for (x_s, p_s) in binomial(n_s, stable_rate) {
                let mut evidence = LogE::default();
                let is_degraded = guarded && 2 * x_s > n_s;
                test.observe(&mut evidence, arm(n_s, x_s), arm(n_c, x_c), is_degraded);
                expectation += p_c * p_s * evidence.ln_mean().exp();
            }
        }
        prop_assert!(expectation <= 1.0 + 1e-12, "{}", expectation);
    }

    #[test]
    fn rates_are_fair_bets_at_and_beyond_the_limit(
        bursts in 1u64..12,
        burst in 1u64..4,
        limit in 0.001..0.9f64,
        beyond in 0.0..1.0f64,
    ) {
        let above = limit + (1.0 - limit) * beyond;
        let below = limit * beyond;
        let (mut of_below, mut of_above) = (0.0, 0.0);
        let counts = |x: u64| arm(bursts * burst, x * burst);
        for (x, p) in binomial(bursts, above) {
            let mut evidence = LogE::default();
            RateTest::below(limit, burst as f64).observe(&mut evidence, counts(x));
            of_below += p * evidence.ln_mean().exp();
        }
        for (x, p) in binomial(bursts, below) {
            let mut evidence = LogE::default();
            RateTest::above(limit, burst as f64).observe(&mut evidence, counts(x));
            of_above += p * evidence.ln_mean().exp();
        }
        prop_assert!(of_below <= 1.0 + 1e-9 && of_above <= 1.0 + 1e-9, "{of_below} {of_above}");
    }
}

#[test]
fn one_silent_arm_says_nothing() {
    let mut evidence = LogE::default();
    RatioTest::harm(1.2, 1.0).observe(&mut evidence, arm(50, 50), arm(0, 0), false);
    RatioTest::harm(1.2, 1.0).observe(&mut evidence, arm(0, 0), arm(50, 50), false);
    assert_eq!(evidence, LogE::default());
}

#[test]
fn bursts_are_seen_in_the_history() {
    let mut dice = simulation::Dice::new(crate::load::random::Stream::new(5, 5));
    let mut history = |burst: u64, mean: f64| -> Vec<Arm> {
        (0..240)
            .map(|_| arm(1_000, dice.poisson(mean / burst as f64) * burst))
            .collect()
    };
    assert_eq!(cluster_thousandths(&history(1, 5.0)), 1_000);
    let five = cluster_thousandths(&history(5, 5.0));
    assert!((5_000..=8_000).contains(&five), "{five}");
    assert_eq!(cluster_thousandths(&history(5, 0.05)), 1_000, "too few to tell");
    assert_eq!(cluster_thousandths(&[]), 1_000);
}
