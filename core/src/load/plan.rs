//! What the operator hands to the workers: a LoadTest with every reference resolved and every default filled in.
//!
//! JSON in the shapes of the LoadTest API. Unknown fields are refused: a worker that ignored a field of a newer
//! operator would apply another load than the one that was asked for.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::decimal::Decimal;
use super::template::Template;

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

/// Everything that is wrong with a plan, each with the field and what to write instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct PlanErrors(Vec<String>);

impl fmt::Display for PlanErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("; "))
    }
}

impl PlanErrors {
    /// One sentence per error.
    pub fn sentences(&self) -> &[String] {
        &self.0
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

impl TargetUrl {
    /// Splits `http://host[:port][/path]`.
    ///
    /// # Errors
    /// A sentence that says what to write instead.
    pub fn parse(url: &str) -> Result<Self, String> {
        let wrong = || format!("url {url:?} is not usable; write http://host[:port][/path]");
        if url.starts_with("https://") {
            return Err(format!(
                "url {url:?} uses TLS, which the load generator does not speak; give the http address inside the cluster"
            ));
        }
        let rest = url.strip_prefix("http://").ok_or_else(wrong)?;
        let at = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(at);
        if !url.bytes().all(|byte| byte.is_ascii_graphic()) || authority.contains('@') || rest.contains('#') {
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

    /// Checks everything that a worker relies on.
    ///
    /// # Errors
    /// Every problem found, each with its field and what to write instead.
    pub fn validate(&self) -> Result<(), PlanErrors> {
        let mut check = Check::default();
        let Self {
            name: _,
            seed: _,
            workers,
            target,
            requests,
            scenarios,
            warmup,
            stages,
        } = self;
        check.range("workers.count", workers.count, 1, 1000);
        check.range("workers.minCoveragePercent", workers.min_coverage_percent, 1, 100);
        check.range(
            "workers.startDeadlineSeconds",
            workers.start_deadline_seconds,
            1,
            3600,
        );
        if let Err(sentence) = TargetUrl::parse(&target.url) {
            check.add(format!("target.{sentence}"));
        }
        check.requests(requests);
        check.range("warmup.requests", warmup.requests, 0, 100_000);
        check.range("scenarios: their number", scenarios.len() as u64, 1, 100);
        check.unique(
            "scenarios",
            scenarios.iter().map(|scenario| scenario.name.as_str()),
        );
        for scenario in scenarios {
            let at = format!("scenarios[{}]", scenario.name);
            check.range(&format!("{at}.weight"), scenario.weight, 1, 1000);
            check.range(
                &format!("{at}.prompt: its length"),
                scenario.prompt.len() as u64,
                1,
                1 << 20,
            );
            if let Err(sentence) = Template::parse(&scenario.prompt) {
                check.add(format!("{at}.prompt: {sentence}"));
            }
        }
        check.range("stages: their number", stages.len() as u64, 1, 32);
        check.unique("stages", stages.iter().map(|stage| stage.name.as_str()));
        for stage in stages {
            check.stage(stage, workers.count);
        }
        if self.requests() > MAX_REQUESTS {
            check.add(format!(
                "stages: {} requests are too many; lower perSecond, seconds or requests to at most {MAX_REQUESTS} in all",
                self.requests()
            ));
        }
        check.finish()
    }
}

#[derive(Default)]
struct Check(Vec<String>);

impl Check {
    fn add(&mut self, sentence: String) {
        self.0.push(sentence);
    }

    fn range(&mut self, field: &str, value: impl Into<u64>, low: u64, high: u64) {
        let value = value.into();
        if !(low..=high).contains(&value) {
            self.add(format!("{field} is {value}; write a number from {low} to {high}"));
        }
    }

    fn unique<'a>(&mut self, field: &str, names: impl Iterator<Item = &'a str>) {
        let mut seen = BTreeSet::new();
        for name in names {
            if name.is_empty() {
                self.add(format!("{field}: a name is empty; name each of them"));
            } else if !seen.insert(name) {
                self.add(format!(
                    "{field}: the name {name:?} occurs twice; names must differ"
                ));
            }
        }
    }

    fn requests(&mut self, requests: &Requests) {
        let Requests {
            timeout_milliseconds,
            max_attempts,
            stream: _,
            model,
            method: _,
            path,
            content_type,
        } = requests;
        self.range(
            "requests.timeoutMilliseconds",
            *timeout_milliseconds,
            1,
            3_600_000,
        );
        self.range("requests.maxAttempts", *max_attempts, 1, 10);
        if model.is_empty() {
            self.add("requests.model is empty; name the model, or leave it out for \"default\"".to_owned());
        }
        if let Some(path) = path
            && (!path.starts_with('/') || !path.bytes().all(|byte| byte.is_ascii_graphic()))
        {
            self.add(format!(
                "requests.path {path:?} is not usable; write one that starts with \"/\""
            ));
        }
        if content_type.is_empty()
            || !content_type
                .bytes()
                .all(|byte| byte == b' ' || byte.is_ascii_graphic())
        {
            self.add(format!(
                "requests.contentType {content_type:?} is not usable; write one such as \"application/json\""
            ));
        }
    }

    fn stage(&mut self, stage: &Stage, workers: u32) {
        let at = format!("stages[{}]", stage.name);
        match &stage.arrivals {
            Arrivals::Batch { batch } => {
                self.range(&format!("{at}.batch.size"), batch.size, 1, 100_000);
                self.range(&format!("{at}.batch.delaySeconds"), batch.delay_seconds, 0, 3600);
                self.range(&format!("{at}.batch.requests"), batch.requests, 1, MAX_REQUESTS);
            }
            Arrivals::ConstantRate { constant_rate } => {
                let ConstantRate {
                    per_second,
                    seconds,
                    arrival: _,
                    max_in_flight,
                } = constant_rate;
                match per_second.parse::<Decimal>() {
                    Ok(rate) if (1_000..=100_000_000_000).contains(&rate.millionths()) => {}
                    Ok(_) => self.add(format!(
                        "{at}.constantRate.perSecond is {per_second:?}; write a rate from \"0.001\" to \"100000\""
                    )),
                    Err(error) => self.add(format!("{at}.constantRate.perSecond: {error}")),
                }
                self.range(&format!("{at}.constantRate.seconds"), *seconds, 1, 604_800);
                self.range(
                    &format!("{at}.constantRate.maxInFlight"),
                    *max_in_flight,
                    1,
                    1_000_000,
                );
                if *max_in_flight < workers {
                    self.add(format!(
                        "{at}.constantRate.maxInFlight is {max_in_flight}, less than one per worker; write at least \
                         {workers}, or fewer workers"
                    ));
                }
            }
        }
    }

    fn finish(self) -> Result<(), PlanErrors> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(PlanErrors(self.0))
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The plan of the API's own example.
    pub(crate) fn example() -> LoadPlan {
        serde_json::from_value(serde_json::json!({
            "name": "support-x7k2p",
            "seed": 1,
            "workers": {"count": 4, "minCoveragePercent": 99, "startDeadlineSeconds": 180},
            "target": {"url": "http://support.shop.svc", "protocol": "A2A"},
            "requests": {"timeoutMilliseconds": 30000, "maxAttempts": 1, "stream": true},
            "scenarios": [
                {"name": "damaged-product", "weight": 4, "prompt": "My {{product}} arrived broken."},
                {"name": "billing-inquiry", "weight": 3, "prompt": "Why was I charged twice for order {{order}}?"},
            ],
            "warmup": {"requests": 20},
            "stages": [
                {"name": "smoke", "type": "Batch", "batch": {"size": 5, "delaySeconds": 5, "requests": 10}},
                {"name": "steady", "type": "ConstantRate",
                 "constantRate": {"perSecond": "25", "seconds": 120, "arrival": "Poisson", "maxInFlight": 200}},
            ],
        }))
        .unwrap()
    }

    #[test]
    fn the_example_is_valid_and_counts_its_requests() {
        let plan = example();
        plan.validate().unwrap();
        assert_eq!((plan.requests(), plan.seconds()), (3010, 130));
        assert_eq!(plan.path().unwrap(), "/");
    }

    #[test]
    fn json_round_trips() {
        let plan = example();
        let json = serde_json::to_string(&plan).unwrap();
        assert_eq!(serde_json::from_str::<LoadPlan>(&json).unwrap(), plan);
        assert!(serde_json::from_str::<LoadPlan>(&json.replacen("\"seed\"", "\"sead\"", 1)).is_err());
    }

    #[test]
    fn the_hash_covers_the_workload_and_nothing_else() {
        type Change = fn(&mut LoadPlan);
        let hash = example().workload_hash();
        assert_eq!(hash.len(), "sha256:".len() + 32);
        let changed = |change: Change| {
            let mut plan = example();
            change(&mut plan);
            plan.workload_hash() != hash
        };
        let determining: [Change; 4] = [
            |plan| plan.seed = 2,
            |plan| plan.scenarios[0].weight = 5,
            |plan| plan.requests.stream = false,
            |plan| plan.stages[0].name = "other".to_owned(),
        ];
        let indifferent: [Change; 4] = [
            |plan| plan.workers.count = 7,
            |plan| plan.name = "other".to_owned(),
            |plan| plan.target.url = "http://elsewhere:81".to_owned(),
            |plan| plan.requests.timeout_milliseconds = 1,
        ];
        assert!(determining.into_iter().all(changed));
        assert!(!indifferent.into_iter().any(changed));
    }

    #[test]
    fn every_error_says_what_to_write() {
        type Break = fn(&mut LoadPlan);
        let cases: [(Break, &str); 15] = [
            (
                |plan| plan.workers.count = 0,
                "workers.count is 0; write a number from 1 to 1000",
            ),
            (
                |plan| plan.target.url = "support".to_owned(),
                "write http://host[:port][/path]",
            ),
            (
                |plan| plan.target.url = "https://support".to_owned(),
                "give the http address inside the cluster",
            ),
            (
                |plan| plan.requests.max_attempts = 11,
                "requests.maxAttempts is 11",
            ),
            (|plan| plan.requests.model.clear(), "name the model"),
            (
                |plan| plan.requests.path = Some("chat".to_owned()),
                "starts with \"/\"",
            ),
            (
                |plan| plan.requests.content_type = "a\nb".to_owned(),
                "such as \"application/json\"",
            ),
            (|plan| plan.scenarios.clear(), "scenarios: their number is 0"),
            (
                |plan| plan.scenarios[0].prompt = "{{ordr}}".to_owned(),
                "known are: order",
            ),
            (
                |plan| plan.scenarios[1].name = "damaged-product".to_owned(),
                "occurs twice",
            ),
            (
                |plan| plan.scenarios[0].weight = 0,
                "scenarios[damaged-product].weight is 0",
            ),
            (|plan| plan.stages.clear(), "stages: their number is 0"),
            (
                |plan| rate(plan).per_second = "fast".to_owned(),
                "such as \"25\" or \"0.5\"",
            ),
            (
                |plan| rate(plan).per_second = "0".to_owned(),
                "from \"0.001\" to \"100000\"",
            ),
            (
                |plan| rate(plan).max_in_flight = 3,
                "write at least 4, or fewer workers",
            ),
        ];
        for (break_it, sentence) in cases {
            let mut plan = example();
            break_it(&mut plan);
            let error = plan.validate().expect_err(sentence).to_string();
            assert!(error.contains(sentence), "{error}");
        }
        let mut plan = example();
        rate(&mut plan).per_second = "100000".to_owned();
        rate(&mut plan).seconds = 600_000;
        assert!(plan.validate().unwrap_err().to_string().contains("too many"));
    }

    fn rate(plan: &mut LoadPlan) -> &mut ConstantRate {
        match &mut plan.stages[1].arrivals {
            Arrivals::ConstantRate { constant_rate } => constant_rate,
            Arrivals::Batch { .. } => unreachable!("the example's second stage has a constant rate"),
        }
    }

    #[test]
    fn urls_are_split() {
        for (url, host, port, path) in [
            ("http://support", "support", 80, ""),
            (
                "http://support.shop.svc:8080/chat?x=1",
                "support.shop.svc",
                8080,
                "/chat?x=1",
            ),
            ("http://[::1]:9/", "::1", 9, "/"),
            ("http://10.0.0.1?a", "10.0.0.1", 80, "/?a"),
        ] {
            let parsed = TargetUrl::parse(url).unwrap();
            assert_eq!(
                (parsed.host.as_str(), parsed.port, parsed.path.as_str()),
                (host, port, path)
            );
        }
        for url in [
            "",
            "http://",
            "http://:80",
            "http://a:b",
            "http://a:0",
            "http://u@a",
            "http://a b",
            "http://[::1",
        ] {
            assert!(TargetUrl::parse(url).is_err(), "{url:?}");
        }
    }

    #[test]
    fn paths_default_by_protocol() {
        let mut plan = example();
        plan.target.protocol = Protocol::OpenAIChat;
        assert_eq!(plan.path().unwrap(), "/v1/chat/completions");
        plan.target.url.push_str("/v2/chat");
        assert_eq!(plan.path().unwrap(), "/v2/chat");
        plan.target.protocol = Protocol::HTTP;
        plan.target.url = "http://support/".to_owned();
        assert_eq!(plan.path().unwrap(), "/chat");
        plan.requests.path = Some("/healthz".to_owned());
        assert_eq!(plan.path().unwrap(), "/healthz");
    }
}
