//! The simulator's configuration: a JSON file, the command line over it, and what makes both impossible.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::model::Behaviour;
use crate::quota::{LimitSpec, OutputCharge};

/// Limits are on at most a year's window and 10^15 units: far beyond any provider's, far below overflow.
const MAX_PER_MILLISECONDS: u64 = 366 * 24 * 3600 * 1000;
const MAX_UNITS: u64 = 1_000_000_000_000_000;

/// Everything the simulator can be told. The JSON file has these fields in camelCase; all have defaults.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Config {
    /// Where to listen.
    pub listen: SocketAddr,
    /// Texts and token counts are functions of this and the request; latency and errors also of how often the
    /// same request has come before.
    pub seed: u64,
    /// Accepted API keys; with none, every request is accepted.
    #[serde(skip_serializing)]
    pub api_keys: Vec<String>,
    /// How models answer that are not in `models`.
    pub behaviour: Behaviour,
    /// Models with their own behaviour.
    pub models: BTreeMap<String, Behaviour>,
    /// Answer 404 for models that are neither in `models` nor called `sim-…`.
    pub known_models_only: bool,
    /// Enforced limits.
    pub limits: Vec<LimitSpec>,
    /// What output tokens are charged at admission.
    pub output_charge: OutputCharge,
    /// Every event is appended here, one JSON object a line.
    pub log_file: Option<PathBuf>,
    /// Events kept in memory for `GET /admin/log`.
    pub log_capacity: usize,
    /// How long a simulated time-out holds the connection before it answers 504, in seconds.
    pub hang_seconds: u64,
    /// Larger request bodies are answered with 413.
    pub max_body_bytes: usize,
    /// How long requests in flight may take after SIGTERM, in seconds.
    pub drain_timeout_seconds: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 8080)),
            seed: 1,
            api_keys: Vec::new(),
            behaviour: Behaviour::default(),
            models: BTreeMap::new(),
            known_models_only: false,
            limits: Vec::new(),
            output_charge: OutputCharge::default(),
            log_file: None,
            log_capacity: 100_000,
            hang_seconds: 600,
            max_body_bytes: 4 << 20,
            drain_timeout_seconds: 30,
        }
    }
}

/// Keys are not shown.
impl std::fmt::Debug for Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            listen,
            seed,
            api_keys,
            behaviour,
            models,
            limits,
            ..
        } = self;
        f.debug_struct("Config")
            .field("listen", listen)
            .field("seed", seed)
            .field("api_keys", &format_args!("{} keys", api_keys.len()))
            .field("behaviour", behaviour)
            .field("models", models)
            .field("limits", limits)
            .finish_non_exhaustive()
    }
}

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file cannot be read.
    #[error("failed to read {}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not a configuration.
    #[error("{} is not a configuration of the simulator", path.display())]
    Parse {
        /// Which file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// A value is impossible.
    #[error("{0}")]
    Invalid(String),
}

impl Config {
    /// Reads the JSON file at `path`.
    pub fn from_file(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        serde_json::from_str(&text).map_err(|source| ConfigError::Parse {
            path: path.to_owned(),
            source,
        })
    }

    /// A configuration for tests in the same process: a free port on loopback, tokens at once, no failures.
    pub fn local() -> Self {
        use crate::distribution::Distribution;
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            behaviour: Behaviour {
                latency_milliseconds: Distribution::Fixed(0.0),
                tokens_per_second: Distribution::Fixed(0.0),
                output_tokens: Distribution::Fixed(20.0),
                ..Behaviour::default()
            },
            drain_timeout_seconds: 2,
            ..Self::default()
        }
    }

    /// Says what is impossible in it.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let invalid = |text: String| Err(ConfigError::Invalid(text));
        for (name, behaviour) in std::iter::once(("behaviour", &self.behaviour)).chain(
            self.models
                .iter()
                .map(|(name, behaviour)| (name.as_str(), behaviour)),
        ) {
            if let Some(problem) = behaviour.errors.problem() {
                return invalid(format!("{name}: {problem}"));
            }
        }
        for limit in &self.limits {
            let LimitSpec {
                name,
                limit: units,
                per_milliseconds,
                burst,
                ..
            } = limit;
            if name.is_empty() || self.limits.iter().filter(|other| other.name == *name).count() > 1 {
                return invalid(format!("limit '{name}': every limit needs a name of its own"));
            }
            if *per_milliseconds == 0 || *per_milliseconds > MAX_PER_MILLISECONDS {
                return invalid(format!(
                    "limit '{name}': perMilliseconds is from 1 to {MAX_PER_MILLISECONDS}"
                ));
            }
            if *units > MAX_UNITS || burst.is_some_and(|burst| burst > MAX_UNITS) {
                return invalid(format!("limit '{name}': at most {MAX_UNITS} units"));
            }
            if burst.is_some() && limit.mode != crate::limit::LimitMode::TokenBucket {
                return invalid(format!("limit '{name}': only a TokenBucket has a burst"));
            }
        }
        if self.api_keys.iter().any(String::is_empty) {
            return invalid("an API key is empty".to_owned());
        }
        Ok(())
    }

    pub(crate) fn drain_timeout(&self) -> Duration {
        Duration::from_secs(self.drain_timeout_seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        let config: Config = serde_json::from_str(text).map_err(|error| error.to_string())?;
        config.validate().map_err(|error| error.to_string())?;
        Ok(config)
    }

    #[test]
    fn a_whole_file_is_read() {
        let config = parse(
            r#"{"seed": 7, "apiKeys": ["k"], "behaviour": {"latencyMilliseconds": "lognormal:100:0.2"},
                "models": {"big": {"tokensPerSecond": "fixed:30", "errors": {"errorPercent": 2.5}}},
                "limits": [{"name": "rpm", "unit": "Requests", "mode": "FixedWindow", "limit": 60, "perMilliseconds": 60000},
                           {"name": "tpm", "unit": "Tokens", "mode": "TokenBucket", "limit": 9, "perMilliseconds": 1000, "burst": 5, "model": "big"}]}"#,
        )
        .expect("valid");
        assert_eq!((config.seed, config.limits.len()), (7, 2));
        assert!((config.models["big"].errors.error_percent - 2.5).abs() < 1e-9);
    }

    #[test]
    fn impossible_values_are_refused_with_a_sentence() {
        let limit = |extra: &str| {
            format!(
                r#"{{"limits": [{{"name": "l", "unit": "Requests", "mode": "FixedWindow", "limit": 1, {extra}}}]}}"#
            )
        };
        for (text, message) in [
            (limit(r#""perMilliseconds": 0"#), "perMilliseconds is from 1"),
            (
                limit(r#""perMilliseconds": 1, "burst": 2"#),
                "only a TokenBucket has a burst",
            ),
            (
                r#"{"behaviour": {"errors": {"errorPercent": 101}}}"#.to_owned(),
                "percentages from 0 to 100",
            ),
            (r#"{"apiKeys": [""]}"#.to_owned(), "an API key is empty"),
            (r#"{"latency": 1}"#.to_owned(), "unknown field"),
        ] {
            let error = parse(&text).expect_err(&text);
            assert!(error.contains(message), "{text}: {error}");
        }
    }

    #[test]
    fn keys_are_not_in_the_debug_text() {
        let config = Config {
            api_keys: vec!["sk-secret".to_owned()],
            ..Config::default()
        };
        assert!(!format!("{config:?}").contains("sk-secret"));
    }
}
