//! Whether requests follow the weights: the measured share beside the one that was asked for.
//!
//! Gateways say which weights they have applied; only counts show that requests go by them. Clients that pass the gateways by, a
//! revision without endpoints, or conversations that are heavier than others make a difference. Evidence compares rates and does not
//! mind; but what was proved at a tenth of the exposure that a step is for is less than the step promises.
//!
//! The check is coarse on purpose. A share is off when it is below half of the weight, or above twice as much, by more than chance:
//! four standard deviations of a binomial count, which a good release meets with a probability below 1 in 10,000.

/// Fewer requests than this say nothing about a share.
const ENOUGH: u64 = 100;
/// Standard deviations beyond a bound.
const DEVIATIONS: f64 = 4.0;

/// The measured share in percent where it is off; none where it fits `weight` percent (1 to 99), or where there are too few requests
/// of both revisions to tell.
pub fn off(weight: u32, candidate: u64, stable: u64) -> Option<f64> {
    let all = candidate + stable;
    if all < ENOUGH || !(1..=99).contains(&weight) {
        return None;
    }
    let weight = f64::from(weight) / 100.0;
    let (low, high) = (weight / 2.0, (2.0 * weight).min((1.0 + weight) / 2.0));
    let (share, all) = (candidate as f64 / all as f64, all as f64);
    let slack = |bound: f64| DEVIATIONS * (bound * (1.0 - bound) / all).sqrt();
    let is_off = share < low - slack(low) || share > high + slack(high);
    is_off.then_some(share * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_chance_does_not_explain_is_off() {
        for (weight, candidate, stable, is_off) in [
            (10, 100, 900, false),
            (10, 60, 940, false),
            (10, 30, 970, false),
            (10, 2, 998, true),
            (10, 0, 1000, true),
            (10, 0, 99, false),
            (10, 0, 150, false),
            (10, 240, 760, false),
            (10, 300, 700, true),
            (50, 1, 999, true),
            (50, 760, 240, false),
            (50, 900, 100, true),
            (1, 0, 1000, false),
            (1, 0, 10_000, true),
            (1, 1000, 9000, true),
            (90, 990, 10, true),
            (90, 1000, 0, true),
            (0, 500, 500, false),
            (100, 0, 1000, false),
        ] {
            assert_eq!(
                off(weight, candidate, stable).is_some(),
                is_off,
                "{weight} % {candidate} {stable}"
            );
        }
        assert_eq!(off(10, 2, 998), Some(0.2));
    }
}
