//! What the operator hands to the workers: a LoadTest with every reference resolved and every default filled in.
//!
//! JSON in the shapes of the LoadTest API. Unknown fields are refused: a worker that ignored a field of a newer
//! operator would apply another load than the one that was asked for.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::decimal::Decimal;

mod validate;

pub use validate::PlanErrors;

/// The most requests a plan may hold; schedules are computed in full by every worker.
pub const MAX_REQUESTS: u64 = 100_000_000;

/// A resolved LoadTest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LoadPlan {
    /// The LoadTest's name, for logs.
    pub name: String,
    /// Determines arrivals, scenarios and slots.
    pub seed: u64,
    /// Who sends.
    #[serde(default)]
    pub workers: Workers,
    /// Where to.
    pub target: Target,
    /// How each request is made.
    #[serde(default)]
    pub requests: Requests,
    /// What is asked, by weight.
    pub scenarios: Vec<Scenario>,
    /// Requests before the start that no figure contains.
    #[serde(default)]
    pub warmup: Warmup,
    /// When requests start; one stage after the other.
    pub stages: Vec<Stage>,
}

/// The worker Job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Workers {
    /// Number of workers, 1 to 1000; each sends every `count`-th request.
    pub count: u32,
    /// Share of the planned requests that must be measured, in percent; below it the run is Invalid.
    pub min_coverage_percent: u32,
    /// How long workers wait for each other, in seconds.
    pub start_deadline_seconds: u32,
}

impl Default for Workers {
    fn default() -> Self {
        Self {
            count: 1,
            min_coverage_percent: 99,
            start_deadline_seconds: 180,
        }
    }
}

/// How the target is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Protocol {
    /// The prompt is the request's body; a 2xx answer is a success.
    HTTP,
    /// OpenAI chat completions; the prompt is the user's message.
    OpenAIChat,
    /// A2A 1.0 over JSON-RPC; the prompt is the message's text part.
    A2A,
}

/// Where requests go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Target {
    /// `http://host[:port][/path]`.
    pub url: String,
    /// How the target is spoken to.
    pub protocol: Protocol,
}

/// The method of protocol HTTP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Method {
    /// Sends no body.
    GET,
    /// Sends the prompt.
    #[default]
    POST,
    /// Sends the prompt.
    PUT,
}

impl Method {
    /// The method as it is sent.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::GET => "GET",
            Self::POST => "POST",
            Self::PUT => "PUT",
        }
    }
}

/// How each request is made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Requests {
    /// From the intended start to the last byte, with all attempts and waits, in milliseconds.
    pub timeout_milliseconds: u64,
    /// Attempts per request, 1 to 10. A further one follows a failed connection, a 429 or a 503.
    pub max_attempts: u32,
    /// Whether OpenAIChat and A2A answers are streamed; only then there is a first token.
    pub stream: bool,
    /// The model named in OpenAIChat requests.
    pub model: String,
    /// The method of HTTP requests.
    pub method: Method,
    /// The path and query; where absent the url's, else the protocol's: `/chat`, `/v1/chat/completions`, `/`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// The content type of HTTP requests.
    pub content_type: String,
}

impl Default for Requests {
    fn default() -> Self {
        Self {
            timeout_milliseconds: 30_000,
            max_attempts: 1,
            stream: false,
            model: "default".to_owned(),
            method: Method::default(),
            path: None,
            content_type: "text/plain; charset=utf-8".to_owned(),
        }
    }
}

/// One kind of question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Scenario {
    /// The scenario's name.
    pub name: String,
    /// Its share among the weights of all scenarios, 1 to 1000.
    pub weight: u32,
    /// The prompt with slots, see [`super::template`].
    pub prompt: String,
}

/// Requests before the start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Warmup {
    /// How many, over all workers.
    pub requests: u32,
}

/// A part of the schedule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Stage {
    /// The stage's name.
    pub name: String,
    /// When its requests start.
    #[serde(flatten)]
    pub arrivals: Arrivals,
}

/// When a stage's requests start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type")]
pub enum Arrivals {
    /// Groups of requests that start at the same moment.
    Batch {
        /// The member of type Batch.
        batch: Batch,
    },
    /// An open load that does not wait for answers.
    ConstantRate {
        /// The member of type ConstantRate.
        #[serde(rename = "constantRate")]
        constant_rate: ConstantRate,
    },
}

/// Groups of requests. Batch `k` starts `k · delaySeconds` after the stage, whether the one before has been
/// answered or not: otherwise the schedule would depend on the target. The next stage starts a delay after the
/// last batch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Batch {
    /// Requests per batch.
    pub size: u32,
    /// Seconds from one batch's start to the next one's.
    pub delay_seconds: u32,
    /// Requests in all; the last batch has what is left.
    pub requests: u32,
}

/// An open load.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ConstantRate {
    /// Requests per second over all workers, a decimal string.
    pub per_second: String,
    /// Length in seconds.
    pub seconds: u32,
    /// How starts are spread.
    #[serde(default)]
    pub arrival: Arrival,
    /// Requests in flight at once over all workers. A start above it waits, and its wait is part of its latency.
    #[serde(default = "default_max_in_flight")]
    pub max_in_flight: u32,
}

fn default_max_in_flight() -> u32 {
    1000
}

/// How the starts of a constant rate are spread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Arrival {
    /// At equal distances.
    Uniform,
    /// At random, as independent users arrive. The number of requests is still `perSecond · seconds`: it is a
    /// Poisson process given its count, whose starts are uniformly distributed.
    #[default]
    Poisson,
}

impl Batch {
    /// How many batches there are.
    pub fn count(&self) -> u64 {
        u64::from(self.requests).div_ceil(u64::from(self.size.max(1)))
    }
}

impl Arrivals {
    /// The number of requests; 0 where `perSecond` is not a decimal.
    pub fn requests(&self) -> u64 {
        match self {
            Self::Batch { batch } => u64::from(batch.requests),
            Self::ConstantRate { constant_rate } => {
                let rate = constant_rate.per_second.parse::<Decimal>().unwrap_or_default();
                let total = rate.millionths() * u128::from(constant_rate.seconds);
                u64::try_from(total.div_ceil(1_000_000)).unwrap_or(u64::MAX)
            }
        }
    }

    /// The length in seconds: until the next stage starts.
    pub fn seconds(&self) -> u64 {
        match self {
            Self::Batch { batch } => batch.count() * u64::from(batch.delay_seconds),
            Self::ConstantRate { constant_rate } => u64::from(constant_rate.seconds),
        }
    }
}

/// The parts of a target's url.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetUrl {
    /// The host without brackets.
    pub host: String,
    /// The port, 80 where none is written.
    pub port: u16,
    /// `host[:port]` as written, for the Host header.
    pub authority: String,
    /// The path and query; empty where none is written.
    pub path: String,
}

/// Whether the load generator can send this as part of an address: RFC 3986 has none of these characters in a path or query.
fn is_plain(text: &str) -> bool {
    text.bytes()
        .all(|byte| byte.is_ascii_graphic() && !b"\"#<>`".contains(&byte))
}

impl TargetUrl {
    /// Splits `http://host[:port][/path]`.
    ///
    /// # Errors
    /// A sentence that says what to write instead.
    pub fn parse(url: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "url {url:?} is not usable; write http://host[:port][/path], with %XX for characters that no address may have"
            )
        };
        if url.starts_with("https://") {
            return Err(format!(
                "url {url:?} uses TLS, which the load generator does not speak; give the http address inside the cluster"
            ));
        }
        let rest = url.strip_prefix("http://").ok_or_else(wrong)?;
        let at = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(at);
        if !is_plain(url) || authority.contains('@') {
            return Err(wrong());
        }
        let (host, port) = match authority.strip_prefix('[') {
            Some(v6) => v6.split_once(']').ok_or_else(wrong)?,
            None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
        };
        let port = match port.strip_prefix(':') {
            Some(port) => port.parse().ok().filter(|port| *port > 0).ok_or_else(wrong)?,
            None if port.is_empty() => 80,
            None => return Err(wrong()),
        };
        if host.is_empty() {
            return Err(wrong());
        }
        let path = if path.starts_with('?') {
            format!("/{path}")
        } else {
            path.to_owned()
        };
        Ok(Self {
            host: host.to_owned(),
            port,
            authority: authority.to_owned(),
            path,
        })
    }
}

impl LoadPlan {
    /// The number of requests, warm-up apart.
    pub fn requests(&self) -> u64 {
        self.stages
            .iter()
            .fold(0, |total, stage| total.saturating_add(stage.arrivals.requests()))
    }

    /// The length of the schedule in seconds; answers may take [`Requests::timeout_milliseconds`] longer.
    pub fn seconds(&self) -> u64 {
        self.stages.iter().map(|stage| stage.arrivals.seconds()).sum()
    }

    /// The path requests go to: [`Requests::path`], else the url's, else the protocol's usual one.
    ///
    /// # Errors
    /// As [`TargetUrl::parse`].
    pub fn path(&self) -> Result<String, String> {
        let url = TargetUrl::parse(&self.target.url)?;
        let usual = match self.target.protocol {
            Protocol::HTTP => "/chat",
            Protocol::OpenAIChat => "/v1/chat/completions",
            Protocol::A2A => "/",
        };
        Ok(match &self.requests.path {
            Some(path) => path.clone(),
            None if matches!(url.path.as_str(), "" | "/") => usual.to_owned(),
            None => url.path,
        })
    }

    /// A hash of everything that determines which requests are sent when, as `sha256:` and 32 hex digits.
    ///
    /// Not of the target's address, the number of workers, or time limits: two runs with equal hashes are
    /// comparable request by request.
    pub fn workload_hash(&self) -> String {
        let Self {
            name: _,
            seed,
            workers: _,
            target,
            requests,
            scenarios,
            warmup,
            stages,
        } = self;
        let Target { url: _, protocol } = target;
        let Requests {
            timeout_milliseconds: _,
            max_attempts: _,
            stream,
            model,
            method,
            path: _,
            content_type,
        } = requests;
        let path = self.path().unwrap_or_default();
        let workload = serde_json::json!([
            seed,
            protocol,
            stream,
            model,
            method,
            path,
            content_type,
            scenarios,
            warmup,
            stages,
        ]);
        let digest = Sha256::digest(workload.to_string().as_bytes());
        let hex: String = digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        format!("sha256:{hex}")
    }

    /// The first eight bytes of [`LoadPlan::workload_hash`] as a number, for wire forms.
    pub fn workload_id(&self) -> u64 {
        self.workload_hash()
            .strip_prefix("sha256:")
            .and_then(|hex| u64::from_str_radix(hex.get(..16)?, 16).ok())
            .unwrap_or_default()
    }
}

#[cfg(test)]
pub(crate) mod tests;
