//! Model names select behaviour, so that a ModelProvider, a pool or a single request can ask for a slow or failing
//! model without another simulator.
//!
//! A name is `sim` followed by words, each of which changes one thing of the configured default:
//!
//! | word | effect |
//! |---|---|
//! | `fast` | first token after 5 ms, 5,000 tokens/s |
//! | `slow` | first token after 2 s (lognormal, sigma 0.3), 20 tokens/s |
//! | `latency-N` | first token after exactly N ms |
//! | `speed-N` | N tokens/s |
//! | `tokens-N` | replies of exactly N tokens |
//! | `error-N` | N % of the requests answer 500 |
//! | `unavailable-N` | N % answer 503 |
//! | `timeout-N` | N % never answer |
//! | `cut-N` | N % break off in the middle of the reply |
//! | `missing` | 404, as for a model that does not exist |
//!
//! They combine: `sim-slow-error-20`, `sim-latency-50-tokens-200`. Any other name (`gpt-5-mini`) has the default
//! behaviour, unless the configuration names its own or allows known names only.

use serde::{Deserialize, Serialize};

use crate::distribution::Distribution;

/// How one model answers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Behaviour {
    /// Time to the first token in milliseconds.
    pub latency_milliseconds: Distribution,
    /// Tokens per second after the first; 0 means all at once. Drawn once for each request.
    pub tokens_per_second: Distribution,
    /// Output tokens of a reply, at least 1; a request's `max_tokens` cuts them.
    pub output_tokens: Distribution,
    /// Shares of the requests that fail.
    pub errors: ErrorRates,
}

impl Default for Behaviour {
    /// Roughly a small hosted model: 300 ms to the first token, 80 tokens/s, 40 tokens a reply.
    fn default() -> Self {
        Self {
            latency_milliseconds: Distribution::Lognormal {
                median: 300.0,
                sigma: 0.3,
            },
            tokens_per_second: Distribution::Fixed(80.0),
            output_tokens: Distribution::Lognormal {
                median: 40.0,
                sigma: 0.4,
            },
            errors: ErrorRates::default(),
        }
    }
}

/// Shares of the requests that fail, in percent. Together at most 100.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ErrorRates {
    /// 500 without a reply.
    pub error_percent: f64,
    /// 503 without a reply.
    pub unavailable_percent: f64,
    /// No answer at all until the client leaves or the simulator's hang time is over (then 504).
    pub timeout_percent: f64,
    /// The connection breaks after half of the reply.
    pub cut_percent: f64,
}

/// A failure to simulate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// 500.
    Error,
    /// 503.
    Unavailable,
    /// No answer.
    Timeout,
    /// A reply that breaks off.
    Cut,
}

impl ErrorRates {
    /// The failure that a uniform draw in [0, 1) falls on.
    pub fn failure(&self, draw: f64) -> Option<Failure> {
        let mut bound = 0.0;
        for (percent, failure) in [
            (self.error_percent, Failure::Error),
            (self.unavailable_percent, Failure::Unavailable),
            (self.timeout_percent, Failure::Timeout),
            (self.cut_percent, Failure::Cut),
        ] {
            bound += percent;
            if draw * 100.0 < bound {
                return Some(failure);
            }
        }
        None
    }

    /// What is wrong with these rates, if anything.
    pub fn problem(&self) -> Option<String> {
        let all = [
            self.error_percent,
            self.unavailable_percent,
            self.timeout_percent,
            self.cut_percent,
        ];
        if all.iter().any(|percent| !(0.0..=100.0).contains(percent)) {
            return Some("error rates are percentages from 0 to 100".to_owned());
        }
        let sum: f64 = all.iter().sum();
        (sum > 100.0 + 1e-9).then(|| format!("error rates add up to {sum} %, more than 100"))
    }
}

/// A `sim-…` name that says something unknown; the text is for the person who wrote it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct UnknownModel(pub String);

/// The behaviour of the model called `name`, starting from `default`.
pub fn behaviour_of(name: &str, default: Behaviour) -> Result<Behaviour, UnknownModel> {
    let Some(words) = name.strip_prefix("sim-") else {
        return Ok(default);
    };
    let mut behaviour = default;
    let mut words = words.split('-');
    while let Some(word) = words.next() {
        let mut number = || {
            let text = words.next().unwrap_or_default();
            text.parse::<u32>().map(f64::from).map_err(|_| {
                UnknownModel(format!(
                    "the model '{name}' does not exist: '{word}' needs a number, as in sim-{word}-20"
                ))
            })
        };
        match word {
            "fast" => {
                behaviour.latency_milliseconds = Distribution::Fixed(5.0);
                behaviour.tokens_per_second = Distribution::Fixed(5_000.0);
            }
            "slow" => {
                behaviour.latency_milliseconds = Distribution::Lognormal {
                    median: 2_000.0,
                    sigma: 0.3,
                };
                behaviour.tokens_per_second = Distribution::Fixed(20.0);
            }
            "latency" => behaviour.latency_milliseconds = Distribution::Fixed(number()?),
            "speed" => behaviour.tokens_per_second = Distribution::Fixed(number()?),
            "tokens" => behaviour.output_tokens = Distribution::Fixed(number()?),
            "error" => behaviour.errors.error_percent = number()?,
            "unavailable" => behaviour.errors.unavailable_percent = number()?,
            "timeout" => behaviour.errors.timeout_percent = number()?,
            "cut" => behaviour.errors.cut_percent = number()?,
            "missing" => return Err(UnknownModel(format!("the model '{name}' does not exist"))),
            other => {
                return Err(UnknownModel(format!(
                    "the model '{name}' does not exist: '{other}' is not a behaviour"
                )));
            }
        }
    }
    match behaviour.errors.problem() {
        Some(problem) => Err(UnknownModel(format!(
            "the model '{name}' does not exist: {problem}"
        ))),
        None => Ok(behaviour),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let default = Behaviour::default();
        let with_errors = |errors: ErrorRates| Behaviour { errors, ..default };
        for (name, expected) in [
            ("gpt-5-mini", Ok(default)),
            ("sim", Ok(default)),
            ("simple", Ok(default)),
            (
                "sim-error-20",
                Ok(with_errors(ErrorRates {
                    error_percent: 20.0,
                    ..ErrorRates::default()
                })),
            ),
            (
                "sim-cut-100",
                Ok(with_errors(ErrorRates {
                    cut_percent: 100.0,
                    ..ErrorRates::default()
                })),
            ),
            (
                "sim-latency-50-tokens-200",
                Ok(Behaviour {
                    latency_milliseconds: Distribution::Fixed(50.0),
                    output_tokens: Distribution::Fixed(200.0),
                    ..default
                }),
            ),
            ("sim-missing", Err("the model 'sim-missing' does not exist")),
            (
                "sim-quick",
                Err("the model 'sim-quick' does not exist: 'quick' is not a behaviour"),
            ),
            (
                "sim-error",
                Err("the model 'sim-error' does not exist: 'error' needs a number, as in sim-error-20"),
            ),
            (
                "sim-error-101",
                Err("the model 'sim-error-101' does not exist: error rates are percentages from 0 to 100"),
            ),
            (
                "sim-error-60-cut-60",
                Err(
                    "the model 'sim-error-60-cut-60' does not exist: error rates add up to 120 %, more than 100",
                ),
            ),
        ] {
            let found = behaviour_of(name, default).map_err(|error| error.to_string());
            assert_eq!(found, expected.map_err(str::to_owned), "{name}");
        }
    }

    #[test]
    fn a_draw_falls_on_each_failure_by_its_share() {
        let rates = ErrorRates {
            error_percent: 10.0,
            unavailable_percent: 20.0,
            timeout_percent: 0.0,
            cut_percent: 5.0,
        };
        for (draw, expected) in [
            (0.0, Some(Failure::Error)),
            (0.0999, Some(Failure::Error)),
            (0.1001, Some(Failure::Unavailable)),
            (0.2999, Some(Failure::Unavailable)),
            (0.3001, Some(Failure::Cut)),
            (0.3501, None),
        ] {
            assert_eq!(rates.failure(draw), expected, "{draw}");
        }
    }
}
