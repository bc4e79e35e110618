//! Exact binomial tails for up to 10^8 samples.
//!
//! The point probability comes from Loader's saddle-point form ("Fast and accurate computation of binomial
//! probabilities", 2000), which has no cancellation: the obvious way through three `ln Γ` of magnitude 10^9
//! loses seven of sixteen digits. The tail is then a sum of terms that decrease from the point outwards, each a
//! ratio times the one before; even for n = 10^8 some 10^4 of them reach full precision. The regularised
//! incomplete beta function is the same number, and its continued fraction takes as many steps.

use std::f64::consts::PI;

/// `ln n! - ln(√(2πn) (n/e)^n)`: the error of Stirling's formula.
fn stirling_error(n: f64) -> f64 {
    if n <= 15.0 {
        let factorial = (1..=n as u64).map(|k| k as f64).product::<f64>();
        return factorial.ln() - (n + 0.5) * n.ln() + n - 0.5 * (2.0 * PI).ln();
    }
    let square = n * n;
    (1.0 / 12.0
        - (1.0 / 360.0 - (1.0 / 1260.0 - (1.0 / 1680.0 - 1.0 / 1188.0 / square) / square) / square) / square)
        / n
}

/// `x ln(x/m) + m - x` without cancellation where x is close to m.
fn deviance(x: f64, m: f64) -> f64 {
    if (x - m).abs() >= 0.1 * (x + m) {
        return x * (x / m).ln() + m - x;
    }
    let v = (x - m) / (x + m);
    let mut sum = (x - m) * v;
    let mut term = 2.0 * x * v;
    for k in 1..1000 {
        term *= v * v;
        let next = sum + term / f64::from(2 * k + 1);
        if next == sum {
            break;
        }
        sum = next;
    }
    sum
}

/// `P(X = k)` for X binomial with `n` trials of probability `p` in (0, 1), k ≤ n.
fn point(k: u64, n: u64, p: f64) -> f64 {
    let (x, n) = (k as f64, n as f64);
    let q = 1.0 - p;
    if x == 0.0 {
        return (n * (-p).ln_1p()).exp();
    }
    if x == n {
        return (n * p.ln()).exp();
    }
    let exponent = stirling_error(n)
        - stirling_error(x)
        - stirling_error(n - x)
        - deviance(x, n * p)
        - deviance(n - x, n * q);
    exponent.exp() * (n / (2.0 * PI * x * (n - x))).sqrt()
}

/// `P(X ≤ k)` for X binomial with `n` trials of probability `p`.
pub fn at_most(k: u64, n: u64, p: f64) -> f64 {
    if k >= n || p <= 0.0 {
        return 1.0;
    }
    if p >= 1.0 {
        return 0.0;
    }
    if k as f64 > n as f64 * p {
        return 1.0 - upper_sum(k + 1, n, p);
    }
    let odds = (1.0 - p) / p;
    let mut term = point(k, n, p);
    let mut sum = term;
    for j in (1..=k).rev() {
        // P(j-1) / P(j)
        term *= j as f64 / (n - j + 1) as f64 * odds;
        let next = sum + term;
        if next == sum {
            break;
        }
        sum = next;
    }
    sum.min(1.0)
}

/// `P(X ≥ k)` for X binomial with `n` trials of probability `p`.
pub fn at_least(k: u64, n: u64, p: f64) -> f64 {
    if k == 0 || p >= 1.0 && k <= n {
        return 1.0;
    }
    if k > n || p <= 0.0 {
        return 0.0;
    }
    if k as f64 > n as f64 * p {
        upper_sum(k, n, p)
    } else {
        1.0 - at_most(k - 1, n, p)
    }
}

/// The upper tail from `k`, which must be above the mean.
fn upper_sum(k: u64, n: u64, p: f64) -> f64 {
    let odds = p / (1.0 - p);
    let mut term = point(k, n, p);
    let mut sum = term;
    for j in k..n {
        // P(j+1) / P(j)
        term *= (n - j) as f64 / (j + 1) as f64 * odds;
        let next = sum + term;
        if next == sum {
            break;
        }
        sum = next;
    }
    sum.min(1.0)
}

/// The most misses among `n` samples that show, with `confidence` (0 to 1), that the rate of misses is at most
/// `rate`: `P(X ≤ misses | rate) ≤ 1 - confidence`. `None` where even none would not show it.
pub fn most_misses(n: u64, rate: f64, confidence: f64) -> Option<u64> {
    let shows = |misses: u64| at_most(misses, n, rate) <= 1.0 - confidence;
    if n == 0 || !shows(0) {
        return None;
    }
    let (mut low, mut high) = (0, n);
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if shows(middle) {
            low = middle
        } else {
            high = middle
        }
    }
    Some(low)
}

/// The fewest samples with which `misses` misses show a rate of at most `rate`; `None` where `rate` is 0 or no
/// more than 10^12 would do.
pub fn fewest_samples(misses: u64, rate: f64, confidence: f64) -> Option<u64> {
    let shows = |n: u64| at_most(misses, n, rate) <= 1.0 - confidence;
    if rate <= 0.0 {
        return None;
    }
    let mut high = misses + 1;
    while !shows(high) {
        high = high.checked_mul(2).filter(|high| *high <= 1_000_000_000_000)?;
    }
    let mut low = misses;
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if shows(middle) {
            high = middle
        } else {
            low = middle
        }
    }
    Some(high)
}

#[cfg(test)]
mod tests {
    use super::*;

    include!("binomial_vectors.rs");

    #[test]
    fn tails_match_independent_vectors() {
        for (k, n, p, expected) in AT_MOST {
            let answer = at_most(k, n, p);
            assert!(
                (answer - expected).abs() <= 1e-9 * expected,
                "P(X <= {k} | {n}, {p}) = {answer}, not {expected}"
            );
            let upper = at_least(k + 1, n, p);
            assert!(
                (upper - (1.0 - expected)).abs() <= 1e-9,
                "P(X > {k} | {n}, {p}) = {upper}"
            );
        }
    }

    /// The table of loadtest.md section 4.
    #[test]
    fn sample_sizes_match_the_published_table() {
        for (rate, confidence, sizes) in [
            (0.05, 0.95, [59, 93, 124, 153]),
            (0.05, 0.99, [90, 130, 165, 198]),
            (0.01, 0.95, [299, 473, 628, 773]),
            (0.01, 0.99, [459, 662, 838, 1001]),
        ] {
            for (misses, size) in sizes.into_iter().enumerate() {
                let misses = misses as u64;
                assert_eq!(fewest_samples(misses, rate, confidence), Some(size));
                assert_eq!(most_misses(size, rate, confidence), Some(misses));
                assert_eq!(most_misses(size - 1, rate, confidence), misses.checked_sub(1));
            }
        }
        assert_eq!(most_misses(540, 0.05, 0.95), Some(18));
    }

    #[test]
    fn edges() {
        assert_eq!(at_most(0, 0, 0.5), 1.0);
        assert_eq!(
            (at_most(5, 5, 0.1), at_most(0, 5, 0.0), at_most(4, 5, 1.0)),
            (1.0, 1.0, 0.0)
        );
        assert_eq!(
            (
                at_least(0, 5, 0.0),
                at_least(1, 5, 0.0),
                at_least(5, 5, 1.0),
                at_least(6, 5, 0.5)
            ),
            (1.0, 0.0, 1.0, 0.0)
        );
        assert_eq!(
            (most_misses(0, 0.5, 0.95), fewest_samples(0, 0.0, 0.95)),
            (None, None)
        );
        assert!(fewest_samples(0, 1e-9, 0.95).is_some());
    }
}
