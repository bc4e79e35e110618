//! Random numbers that can be asked for by position.
//!
//! The schedule must be the same on every worker, platform and release of any library, so the generator and
//! the logarithm are written out here. The generator is SplitMix64 (Steele, Lea, Flood: "Fast splittable
//! pseudorandom number generators", OOPSLA 2014), whose n-th output needs only the key and n: that is what lets
//! a worker that joins late compute its place.

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A stream of random numbers with random access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream(u64);

impl Stream {
    /// The stream of `seed` for one purpose; different `domain`s are independent.
    pub fn new(seed: u64, domain: u64) -> Self {
        Self(mix(mix(seed.wrapping_add(GOLDEN)) ^ domain.wrapping_mul(GOLDEN)))
    }

    /// The sub-stream number `n`.
    pub fn split(self, n: u64) -> Self {
        Self::new(self.at(n), !self.0)
    }

    /// The `n`-th output: SplitMix64 seeded with this stream's key.
    pub fn at(self, n: u64) -> u64 {
        mix(self.0.wrapping_add(n.wrapping_add(1).wrapping_mul(GOLDEN)))
    }

    /// The `n`-th output as an integer in `0..bound` (multiply-shift; the bias is below `bound / 2^64`).
    /// A `bound` of 0 counts as 1.
    pub fn below(self, n: u64, bound: u64) -> u64 {
        ((u128::from(self.at(n)) * u128::from(bound.max(1))) >> 64) as u64
    }

    /// The `n`-th output as an exponential variate with mean 1.
    pub fn exponential(self, n: u64) -> f64 {
        // In (0, 1]: 53 random bits, plus one so that ln(0) cannot occur.
        let uniform = ((self.at(n) >> 11) + 1) as f64 / (1u64 << 53) as f64;
        -ln(uniform)
    }
}

/// The natural logarithm of a finite positive number from additions, multiplications and divisions only, which
/// IEEE 754 defines to the last bit; libm's `ln` may differ between platforms in the last place.
///
/// `ln(m · 2^e) = e ln 2 + 2 atanh((m-1)/(m+1))` with m in `[√½, √2)`, where 11 terms reach the last bit.
fn ln(x: f64) -> f64 {
    let bits = x.to_bits();
    let mut exponent = ((bits >> 52) as i32) - 1023;
    let mut mantissa = f64::from_bits((bits & ((1 << 52) - 1)) | (1023 << 52));
    if mantissa > std::f64::consts::SQRT_2 {
        mantissa /= 2.0;
        exponent += 1;
    }
    let s = (mantissa - 1.0) / (mantissa + 1.0);
    let square = s * s;
    let series = (0..11)
        .rev()
        .fold(0.0, |sum, k| sum * square + 1.0 / f64::from(2 * k + 1));
    f64::from(exponent) * std::f64::consts::LN_2 + 2.0 * s * series
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The published SplitMix64 sequence of seed 1234567.
    #[test]
    fn outputs_are_those_of_splitmix64() {
        let stream = Stream(1_234_567);
        let outputs: Vec<u64> = (0..3).map(|n| stream.at(n)).collect();
        assert_eq!(
            outputs,
            [6457827717110365317, 3203168211198807973, 9817491932198370423]
        );
    }

    #[test]
    fn ln_is_within_two_units_in_the_last_place() {
        let stream = Stream::new(7, 7);
        for n in 0..100_000 {
            let x = ((stream.at(n) >> 11) + 1) as f64 / (1u64 << 53) as f64;
            assert!(
                (ln(x) - x.ln()).abs() <= 4.0 * f64::EPSILON * x.ln().abs().max(1e-3),
                "ln({x})"
            );
        }
        assert_eq!(ln(1.0), 0.0);
    }

    #[test]
    fn draws_have_the_right_mean() {
        let stream = Stream::new(1, 2).split(3);
        let n = 100_000;
        let mean = (0..n).map(|i| stream.exponential(i)).sum::<f64>() / n as f64;
        assert!((mean - 1.0).abs() < 0.02, "{mean}");
        let mean = (0..n).map(|i| stream.below(i, 10)).sum::<u64>() as f64 / n as f64;
        assert!((mean - 4.5).abs() < 0.05, "{mean}");
    }

    #[test]
    fn domains_and_seeds_differ() {
        let first = Stream::new(1, 1).at(0);
        assert!(
            [
                Stream::new(1, 2).at(0),
                Stream::new(2, 1).at(0),
                Stream::new(1, 1).split(0).at(0)
            ]
            .iter()
            .all(|other| *other != first)
        );
    }
}
