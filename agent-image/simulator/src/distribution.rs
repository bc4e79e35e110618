//! Distributions of latency, token speed and reply length.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::random::Random;

/// A distribution of positive numbers. The unit is the field's that holds it.
///
/// On the command line and in the JSON file: `fixed:300` or `lognormal:300:0.5` (median, then sigma of the logarithm).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Distribution {
    /// Always this value.
    Fixed(f64),
    /// Lognormal, which is what latencies of model providers look like: most near the median, a long tail above.
    Lognormal {
        /// Half of the draws are below.
        median: f64,
        /// Standard deviation of the natural logarithm; at most [`MAX_SIGMA`].
        sigma: f64,
    },
}

/// Beyond this a draw can be ten thousand times the median, and a run would measure one request.
pub const MAX_SIGMA: f64 = 2.0;

/// A distribution's text that cannot be used.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("'{text}' is not a distribution: {problem}; write fixed:<value> or lognormal:<median>:<sigma>")]
pub struct DistributionError {
    text: String,
    problem: String,
}

impl Distribution {
    /// One draw. Lognormal draws are cut at four sigma on both sides, so that a run has a known longest request.
    pub fn sample(&self, random: &mut Random) -> f64 {
        match *self {
            Self::Fixed(value) => value,
            Self::Lognormal { median, sigma } => median * (sigma * random.normal().clamp(-4.0, 4.0)).exp(),
        }
    }
}

impl FromStr for Distribution {
    type Err = DistributionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = |problem: &str| DistributionError {
            text: text.to_owned(),
            problem: problem.to_owned(),
        };
        let number = |part: &str| match part.trim().parse::<f64>() {
            Ok(value) if value.is_finite() && value >= 0.0 => Ok(value),
            _ => Err(error(&format!("'{part}' is not a number of at least 0"))),
        };
        match text.split(':').collect::<Vec<_>>().as_slice() {
            ["fixed", value] => Ok(Self::Fixed(number(value)?)),
            ["lognormal", median, sigma] => {
                let (median, sigma) = (number(median)?, number(sigma)?);
                if sigma > MAX_SIGMA {
                    return Err(error(&format!("sigma is at most {MAX_SIGMA}")));
                }
                Ok(Self::Lognormal { median, sigma })
            }
            _ => Err(error("its form is unknown")),
        }
    }
}

impl fmt::Display for Distribution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(value) => write!(f, "fixed:{value}"),
            Self::Lognormal { median, sigma } => write!(f, "lognormal:{median}:{sigma}"),
        }
    }
}

impl TryFrom<String> for Distribution {
    type Error = DistributionError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Distribution> for String {
    fn from(distribution: Distribution) -> Self {
        distribution.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_forms() {
        for (text, expected) in [
            ("fixed:300", Some(Distribution::Fixed(300.0))),
            ("fixed:0", Some(Distribution::Fixed(0.0))),
            (
                "lognormal:300:0.5",
                Some(Distribution::Lognormal {
                    median: 300.0,
                    sigma: 0.5,
                }),
            ),
            ("lognormal:300", None),
            ("lognormal:300:2.5", None),
            ("fixed:-1", None),
            ("fixed:NaN", None),
            ("fixed:inf", None),
            ("uniform:1:2", None),
            ("", None),
        ] {
            let parsed = text.parse::<Distribution>();
            assert_eq!(parsed.as_ref().ok(), expected.as_ref(), "{text}");
            if let Ok(distribution) = parsed {
                assert_eq!(distribution.to_string(), text);
            }
        }
    }

    #[test]
    fn half_of_the_lognormal_draws_are_below_the_median() {
        let distribution = Distribution::Lognormal {
            median: 300.0,
            sigma: 0.5,
        };
        let mut random = Random::new(1);
        let below = (0..10_000)
            .filter(|_| distribution.sample(&mut random) < 300.0)
            .count();
        assert!((4_850..=5_150).contains(&below), "{below}");
    }
}
