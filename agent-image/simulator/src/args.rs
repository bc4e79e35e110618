//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Parser;

use crate::config::{Config, ConfigError};
use crate::distribution::Distribution;
use crate::limit::LimitMode;
use crate::quota::{LimitSpec, LimitUnit};

/// A simulated model provider with enforced limits.
///
/// Serves OpenAI's POST /v1/chat/completions, /v1/responses and /v1/embeddings, Anthropic's POST /v1/messages, and GET
/// /v1/models; GET /admin/log, POST /admin/reset and POST /admin/script are for tests.
/// Model names select behaviours: sim-fast, sim-slow, sim-error-20, sim-cut-5, sim-latency-50-tokens-200 …
#[derive(Debug, Parser)]
#[command(name = "flotilla-simulator", version)]
pub struct Args {
    /// Where to listen [default: 0.0.0.0:8080]
    #[arg(long, env = "FLOTILLA_SIMULATOR_LISTEN", value_name = "ADDRESS:PORT")]
    pub listen: Option<SocketAddr>,

    /// JSON file with everything below and more (behaviour per model); flags win over it
    #[arg(long, env = "FLOTILLA_SIMULATOR_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Seed of texts, token counts, latencies and errors [default: 1]
    #[arg(long, env = "FLOTILLA_SIMULATOR_SEED")]
    pub seed: Option<u64>,

    /// Accepted API keys, separated by commas; with none, every request is accepted
    #[arg(
        long = "api-keys",
        env = "FLOTILLA_SIMULATOR_API_KEYS",
        hide_env_values = true,
        value_delimiter = ','
    )]
    pub api_keys: Vec<String>,

    /// File with one accepted API key a line
    #[arg(long, env = "FLOTILLA_SIMULATOR_API_KEYS_FILE", value_name = "FILE")]
    pub api_keys_file: Option<PathBuf>,

    /// Milliseconds to the first token: fixed:<ms> or lognormal:<median>:<sigma> [default: lognormal:300:0.3]
    #[arg(long, env = "FLOTILLA_SIMULATOR_LATENCY", value_name = "DISTRIBUTION")]
    pub latency: Option<Distribution>,

    /// Tokens per second after the first, 0 for all at once [default: fixed:80]
    #[arg(
        long,
        env = "FLOTILLA_SIMULATOR_TOKENS_PER_SECOND",
        value_name = "DISTRIBUTION"
    )]
    pub tokens_per_second: Option<Distribution>,

    /// Tokens of a reply [default: lognormal:40:0.4]
    #[arg(long, env = "FLOTILLA_SIMULATOR_OUTPUT_TOKENS", value_name = "DISTRIBUTION")]
    pub output_tokens: Option<Distribution>,

    /// Percent of the requests that answer 500 [default: 0]
    #[arg(long, env = "FLOTILLA_SIMULATOR_ERROR_PERCENT", value_name = "PERCENT")]
    pub error_percent: Option<f64>,

    /// Percent of the requests that answer 503 [default: 0]
    #[arg(long, env = "FLOTILLA_SIMULATOR_UNAVAILABLE_PERCENT", value_name = "PERCENT")]
    pub unavailable_percent: Option<f64>,

    /// Percent of the requests that never answer [default: 0]
    #[arg(long, env = "FLOTILLA_SIMULATOR_TIMEOUT_PERCENT", value_name = "PERCENT")]
    pub timeout_percent: Option<f64>,

    /// Percent of the replies that break off half-way [default: 0]
    #[arg(long, env = "FLOTILLA_SIMULATOR_CUT_PERCENT", value_name = "PERCENT")]
    pub cut_percent: Option<f64>,

    /// A limit, may be repeated: <unit>:<mode>:<limit>/<seconds>[:<burst>], for example requests:fixed:60/60,
    /// tokens:sliding:100000/60 or requests:bucket:600/60:10. Units: requests, tokens, input-tokens, output-tokens
    #[arg(
        long = "limit",
        env = "FLOTILLA_SIMULATOR_LIMITS",
        value_name = "LIMIT",
        value_delimiter = ',',
        value_parser = parse_limit
    )]
    pub limits: Vec<LimitSpec>,

    /// Append every event to this file, one JSON object a line
    #[arg(long, env = "FLOTILLA_SIMULATOR_LOG_FILE", value_name = "FILE")]
    pub log_file: Option<PathBuf>,

    /// Seconds that requests in flight may take after SIGTERM [default: 30]
    #[arg(
        long,
        env = "FLOTILLA_SIMULATOR_DRAIN_TIMEOUT_SECONDS",
        value_name = "SECONDS"
    )]
    pub drain_timeout_seconds: Option<u64>,

    /// Which logs: error, warn, info, debug, or tracing's filter syntax
    #[arg(long, env = "FLOTILLA_LOG", default_value = "info", value_name = "FILTER")]
    pub log: String,
}

impl Args {
    /// The configuration: the file's, with the flags over it.
    pub fn into_config(self) -> Result<Config, ConfigError> {
        let Self {
            listen,
            config,
            seed,
            api_keys,
            api_keys_file,
            latency,
            tokens_per_second,
            output_tokens,
            error_percent,
            unavailable_percent,
            timeout_percent,
            cut_percent,
            limits,
            log_file,
            drain_timeout_seconds,
            log: _,
        } = self;
        let mut merged = config
            .as_deref()
            .map(Config::from_file)
            .transpose()?
            .unwrap_or_default();
        fn set<T>(field: &mut T, flag: Option<T>) {
            if let Some(value) = flag {
                *field = value;
            }
        }
        set(&mut merged.listen, listen);
        set(&mut merged.seed, seed);
        set(&mut merged.behaviour.latency_milliseconds, latency);
        set(&mut merged.behaviour.tokens_per_second, tokens_per_second);
        set(&mut merged.behaviour.output_tokens, output_tokens);
        set(&mut merged.behaviour.errors.error_percent, error_percent);
        set(
            &mut merged.behaviour.errors.unavailable_percent,
            unavailable_percent,
        );
        set(&mut merged.behaviour.errors.timeout_percent, timeout_percent);
        set(&mut merged.behaviour.errors.cut_percent, cut_percent);
        set(&mut merged.drain_timeout_seconds, drain_timeout_seconds);
        if !limits.is_empty() {
            merged.limits = limits;
        }
        if log_file.is_some() {
            merged.log_file = log_file;
        }
        merged.api_keys.extend(api_keys);
        if let Some(path) = api_keys_file {
            let text = std::fs::read_to_string(&path).map_err(|source| ConfigError::Read { path, source })?;
            merged.api_keys.extend(
                text.lines()
                    .map(str::trim)
                    .filter(|line| !line.is_empty())
                    .map(str::to_owned),
            );
        }
        merged.validate()?;
        Ok(merged)
    }
}

fn parse_limit(text: &str) -> Result<LimitSpec, String> {
    let problem = || {
        format!(
            "'{text}' is not a limit; write <unit>:<mode>:<limit>/<seconds>[:<burst>], e.g. requests:sliding:60/60"
        )
    };
    let mut parts = text.split(':');
    let unit = match parts.next() {
        Some("requests") => LimitUnit::Requests,
        Some("tokens") => LimitUnit::Tokens,
        Some("input-tokens") => LimitUnit::InputTokens,
        Some("output-tokens") => LimitUnit::OutputTokens,
        _ => return Err(problem()),
    };
    let mode = match parts.next() {
        Some("fixed") => LimitMode::FixedWindow,
        Some("sliding") => LimitMode::SlidingWindow,
        Some("bucket") => LimitMode::TokenBucket,
        _ => return Err(problem()),
    };
    let (limit, seconds) = parts
        .next()
        .and_then(|part| part.split_once('/'))
        .ok_or_else(problem)?;
    let limit = limit.parse().map_err(|_| problem())?;
    let seconds: u64 = seconds.parse().map_err(|_| problem())?;
    let burst = parts
        .next()
        .map(|part| part.parse().map_err(|_| problem()))
        .transpose()?;
    if parts.next().is_some() {
        return Err(problem());
    }
    let per_milliseconds = seconds.checked_mul(1000).ok_or_else(problem)?;
    Ok(LimitSpec {
        name: text.to_owned(),
        unit,
        mode,
        limit,
        per_milliseconds,
        burst,
        model: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn limits_are_read() {
        for (text, expected) in [
            (
                "requests:fixed:60/60",
                Some((LimitUnit::Requests, LimitMode::FixedWindow, 60, 60_000, None)),
            ),
            (
                "tokens:sliding:100000/60",
                Some((LimitUnit::Tokens, LimitMode::SlidingWindow, 100_000, 60_000, None)),
            ),
            (
                "requests:bucket:600/60:10",
                Some((LimitUnit::Requests, LimitMode::TokenBucket, 600, 60_000, Some(10))),
            ),
            ("requests:60/60", None),
            ("requests:fixed:60", None),
            ("requests:fixed:60/60:1:2", None),
            ("words:fixed:60/60", None),
        ] {
            let parsed = parse_limit(text)
                .ok()
                .map(|l| (l.unit, l.mode, l.limit, l.per_milliseconds, l.burst));
            assert_eq!(parsed, expected, "{text}");
        }
    }

    #[test]
    fn flags_become_the_configuration() {
        let args = Args::try_parse_from([
            "flotilla-simulator",
            "--latency=fixed:10",
            "--error-percent=5",
            "--limit=requests:fixed:60/60,tokens:bucket:100/1",
            "--api-keys=a,b",
        ])
        .expect("parses");
        let config = args.into_config().expect("valid");
        assert_eq!(config.behaviour.latency_milliseconds, Distribution::Fixed(10.0));
        assert_eq!((config.limits.len(), config.api_keys.len()), (2, 2));

        let args = Args::try_parse_from(["flotilla-simulator", "--error-percent=500"]).expect("parses");
        assert!(args.into_config().is_err());
    }
}
