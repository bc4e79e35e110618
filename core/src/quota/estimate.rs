//! What a request will use, before it is sent.
//!
//! One [`Estimator`] per pool and model: their prompts and answers resemble each other. Input follows from the length of
//! the body by bytes per token as last seen, a little pessimistic; output is the 95th percentile of recent answers, or
//! `max_tokens` where that is less. Percentiles come from an exponentially weighted mean and mean absolute deviation, as
//! TCP estimates its time-outs (Jacobson, "Congestion avoidance and control", SIGCOMM 1988, appendix A): two numbers,
//! and it follows a change within tens of requests. A wrong estimate does no lasting harm: it is settled from the usage.

use super::Amounts;
use crate::load::decimal::Decimal;

/// Weight of a new value in the mean and in the deviation.
const GAIN: f64 = 1.0 / 16.0;
/// Mean absolute deviations from the mean to the 95th percentile of a normal distribution: 1.645 · √(π/2).
const P95: f64 = 2.06;
/// Bytes per token before anything is known: JSON with little text; English text alone has about 4.
const FIRST_BYTES_PER_TOKEN: f64 = 3.0;
/// Output tokens before anything is known.
const FIRST_OUTPUT: f64 = 1_024.0;

/// What output tokens a provider charges.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OutputCharge {
    /// Those that were made.
    #[default]
    Used,
    /// `max_tokens` where a request has it, whatever is made.
    MaxTokens,
}

impl OutputCharge {
    /// Output tokens charged for an answer of `used`.
    pub fn of(self, used: u64, max_tokens: Option<u64>) -> u64 {
        match self {
            Self::Used => used,
            Self::MaxTokens => max_tokens.unwrap_or(used),
        }
    }
}

/// Prices in billionths per token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Price {
    /// Of an input token.
    pub input: u64,
    /// Of an output token.
    pub output: u64,
}

impl Price {
    /// From prices per million tokens: a millionth of one per million is a thousandth of a billionth, rounded up.
    pub fn per_million(input: Decimal, output: Decimal) -> Self {
        let per_token =
            |price: Decimal| u64::try_from(price.millionths().div_ceil(1_000)).unwrap_or(u64::MAX);
        Self {
            input: per_token(input),
            output: per_token(output),
        }
    }

    /// What these tokens cost, in billionths.
    pub fn amounts(&self, input: u64, output: u64) -> Amounts {
        let cost = input
            .saturating_mul(self.input)
            .saturating_add(output.saturating_mul(self.output));
        Amounts {
            input,
            output,
            nano_dollars: cost,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Average {
    mean: f64,
    deviation: f64,
    seen: bool,
}

impl Average {
    fn new(mean: f64) -> Self {
        Self {
            mean,
            deviation: mean / 2.0,
            seen: false,
        }
    }

    fn learn(&mut self, value: f64) {
        if !std::mem::replace(&mut self.seen, true) {
            *self = Self {
                mean: value,
                deviation: value / 4.0,
                seen: true,
            };
            return;
        }
        let error = value - self.mean;
        self.mean += GAIN * error;
        self.deviation += GAIN * (error.abs() - self.deviation);
    }
}

/// Estimates of one pool's requests for one model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimator {
    bytes_per_token: Average,
    output: Average,
}

impl Default for Estimator {
    fn default() -> Self {
        Self {
            bytes_per_token: Average::new(FIRST_BYTES_PER_TOKEN),
            output: Average::new(FIRST_OUTPUT),
        }
    }
}

impl Estimator {
    /// Input and output tokens to reserve for a body of `bytes`. Never more input tokens than bytes, at least 1.
    pub fn estimate(&self, bytes: u64, max_tokens: Option<u64>, charge: OutputCharge) -> (u64, u64) {
        let Average { mean, deviation, .. } = self.bytes_per_token;
        let ratio = (mean - deviation).max(mean / 2.0).max(1.0);
        let input = ((bytes as f64 / ratio).ceil() as u64).clamp(1, bytes.max(1));
        let likely = (self.output.mean + P95 * self.output.deviation).ceil() as u64;
        let output = charge.of(likely.min(max_tokens.unwrap_or(u64::MAX)), max_tokens);
        (input, output)
    }

    /// Learns from an answer's usage.
    pub fn learn(&mut self, bytes: u64, input: u64, output: u64) {
        if bytes > 0 && input > 0 {
            self.bytes_per_token.learn(bytes as f64 / input as f64);
        }
        self.output.learn(output as f64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn follows_what_is_used() {
        let mut estimator = Estimator::default();
        let (input, output) = estimator.estimate(3_000, None, OutputCharge::Used);
        assert!(
            (1_000..=2_000).contains(&input) && output >= 1_024,
            "{input} {output}"
        );
        for n in 0..200 {
            estimator.learn(4_000, 1_000, 250 + 10 * (n % 10));
        }
        let (input, output) = estimator.estimate(4_000, None, OutputCharge::Used);
        assert!((1_000..=1_010).contains(&input), "{input}");
        assert!((320..=360).contains(&output), "{output}");
        assert_eq!(estimator.estimate(4_000, Some(100), OutputCharge::Used).1, 100);
        assert_eq!(
            estimator.estimate(4_000, Some(9_000), OutputCharge::MaxTokens).1,
            9_000
        );
        assert_eq!(OutputCharge::MaxTokens.of(12, None), 12);
    }

    #[test]
    fn prices() {
        let price = Price::per_million("0.25".parse().expect("a price"), "2.00".parse().expect("a price"));
        assert_eq!(
            price,
            Price {
                input: 250,
                output: 2_000
            }
        );
        assert_eq!(price.amounts(1_000_000, 500_000).nano_dollars, 1_250_000_000);
    }

    proptest! {
        #[test]
        fn any_history_gives_an_estimate(
            history in prop::collection::vec((any::<u64>(), any::<u64>(), any::<u64>()), 0..40),
            bytes in any::<u64>(),
            max in prop::option::of(any::<u64>()),
        ) {
            let mut estimator = Estimator::default();
            for (bytes, input, output) in history {
                estimator.learn(bytes, input, output);
            }
            let (input, output) = estimator.estimate(bytes, max, OutputCharge::Used);
            prop_assert!(input >= 1 && input <= bytes.max(1));
            prop_assert!(output <= max.unwrap_or(u64::MAX));
        }
    }
}
