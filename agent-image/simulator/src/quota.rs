//! A provider's limits together: a request is charged to all that apply or to none, and the headers say what is left.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use serde::{Deserialize, Serialize};

use crate::limit::{Decision, Level, LimitMode, Limiter};

/// What a limit counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum LimitUnit {
    /// Requests.
    Requests,
    /// Input and output tokens together.
    Tokens,
    /// Input tokens.
    InputTokens,
    /// Output tokens.
    OutputTokens,
}

/// One limit as configured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LimitSpec {
    /// Named in the log and in the message of a 429.
    pub name: String,
    /// What it counts.
    pub unit: LimitUnit,
    /// How it counts.
    pub mode: LimitMode,
    /// Units per window.
    pub limit: u64,
    /// The window's length in milliseconds.
    pub per_milliseconds: u64,
    /// The size of a token bucket in units; default `limit`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst: Option<u64>,
    /// Only requests for this model count; default all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
}

/// What output tokens a request is charged with when it is admitted. Limits of real providers differ in this.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum OutputCharge {
    /// Those it will produce: the simulator knows. The sum over a window is then what the usages say.
    #[default]
    Actual,
    /// Its `max_tokens` where it has one, as providers do that cannot know.
    MaxTokens,
}

/// What a request costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cost {
    /// Input tokens.
    pub input_tokens: u64,
    /// Output tokens to be charged.
    pub output_tokens: u64,
}

impl Cost {
    fn of(self, unit: LimitUnit) -> u64 {
        match unit {
            LimitUnit::Requests => 1,
            LimitUnit::Tokens => self.input_tokens + self.output_tokens,
            LimitUnit::InputTokens => self.input_tokens,
            LimitUnit::OutputTokens => self.output_tokens,
        }
    }
}

/// A refused request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The name of the limit that asks for the longest wait.
    pub limit: String,
    /// What that limit counts.
    pub unit: LimitUnit,
    /// The time until the request would be admitted; `None`: it is larger than the limit and never will.
    pub retry_after: Option<Duration>,
}

/// All limits with their state.
#[derive(Debug)]
pub struct Quota {
    limits: Vec<(LimitSpec, Limiter)>,
}

impl Quota {
    /// Unused limits.
    pub fn new(specs: &[LimitSpec]) -> Self {
        let limits = specs
            .iter()
            .map(|spec| {
                let per = Duration::from_millis(spec.per_milliseconds);
                (spec.clone(), Limiter::new(spec.mode, spec.limit, per, spec.burst))
            })
            .collect();
        Self { limits }
    }

    /// Admits a request at `now` (time since the start, never backwards) and charges every limit that applies, or
    /// refuses it and charges none.
    pub fn admit(&mut self, now: Duration, model: &str, cost: Cost) -> Result<(), Refusal> {
        let mut refusal: Option<Refusal> = None;
        for (spec, limiter) in self.applying(model) {
            let retry_after = match limiter.check(now, cost.of(spec.unit)) {
                Decision::Admit => continue,
                Decision::RetryAfter(wait) => Some(wait),
                Decision::Never => None,
            };
            // `None` is the longest wait of all.
            let longer = refusal
                .as_ref()
                .is_none_or(|known| match (known.retry_after, retry_after) {
                    (None, _) => false,
                    (Some(_), None) => true,
                    (Some(known), Some(wait)) => wait > known,
                });
            if longer {
                refusal = Some(Refusal {
                    limit: spec.name.clone(),
                    unit: spec.unit,
                    retry_after,
                });
            }
        }
        if let Some(refusal) = refusal {
            return Err(refusal);
        }
        for (spec, limiter) in self.applying(model) {
            limiter.charge(now, cost.of(spec.unit));
        }
        Ok(())
    }

    /// The `x-ratelimit-*` headers at `now`: for requests and for tokens the limit that is nearest to its end.
    pub fn headers(&mut self, now: Duration, model: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (kind, counts_requests) in [("requests", true), ("tokens", false)] {
            let tightest = self
                .applying(model)
                .filter(|(spec, _)| (spec.unit == LimitUnit::Requests) == counts_requests)
                .map(|(_, limiter)| limiter.level(now))
                .min_by(|a, b| share(a).total_cmp(&share(b)));
            if let Some(level) = tightest {
                insert(
                    &mut headers,
                    format!("x-ratelimit-limit-{kind}"),
                    level.limit.to_string(),
                );
                insert(
                    &mut headers,
                    format!("x-ratelimit-remaining-{kind}"),
                    level.remaining.to_string(),
                );
                insert(
                    &mut headers,
                    format!("x-ratelimit-reset-{kind}"),
                    duration_text(level.reset_after),
                );
            }
        }
        headers
    }

    /// The `anthropic-ratelimit-*` headers at `now`, which is `unix_milliseconds`: for each unit the limit that is nearest
    /// to its end.
    pub fn anthropic_headers(&mut self, now: Duration, model: &str, unix_milliseconds: u64) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (unit, name) in [
            (LimitUnit::Requests, "requests"),
            (LimitUnit::Tokens, "tokens"),
            (LimitUnit::InputTokens, "input-tokens"),
            (LimitUnit::OutputTokens, "output-tokens"),
        ] {
            let tightest = self
                .applying(model)
                .filter(|(spec, _)| spec.unit == unit)
                .map(|(_, limiter)| limiter.level(now))
                .min_by(|a, b| share(a).total_cmp(&share(b)));
            let Some(level) = tightest else { continue };
            let mut put = |what: &str, value: String| {
                insert(&mut headers, format!("anthropic-ratelimit-{name}-{what}"), value);
            };
            put("limit", level.limit.to_string());
            put("remaining", level.remaining.to_string());
            // Rounded up to whole seconds, as there.
            let at = u128::from(unix_milliseconds) + level.reset_after.as_nanos().div_ceil(1_000_000);
            let at = i64::try_from(at.div_ceil(1_000)).ok();
            if let Some(at) = at.and_then(|at| jiff::Timestamp::from_second(at).ok()) {
                put("reset", at.to_string());
            }
        }
        headers
    }

    fn applying<'a>(&'a mut self, model: &'a str) -> impl Iterator<Item = &'a mut (LimitSpec, Limiter)> {
        self.limits
            .iter_mut()
            .filter(move |(spec, _)| spec.model.as_deref().is_none_or(|only| only == model))
    }
}

fn share(level: &Level) -> f64 {
    if level.limit == 0 {
        0.0
    } else {
        level.remaining as f64 / level.limit as f64
    }
}

fn insert(headers: &mut HeaderMap, name: String, value: String) {
    if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
        headers.insert(name, value);
    }
}

/// A duration as OpenAI writes it in its reset headers: `17ms`, `1.5s`, `6m0s`, `1h0m2s`. Rounded up to milliseconds.
pub fn duration_text(duration: Duration) -> String {
    let milliseconds = duration.as_nanos().div_ceil(1_000_000);
    if milliseconds < 1_000 {
        return format!("{milliseconds}ms");
    }
    let (seconds, fraction) = (milliseconds / 1_000, milliseconds % 1_000);
    let fraction = match fraction {
        0 => String::new(),
        fraction => format!(".{fraction:03}").trim_end_matches('0').to_owned(),
    };
    let (hours, minutes, rest) = (seconds / 3_600, seconds / 60 % 60, seconds % 60);
    match (hours, minutes) {
        (0, 0) => format!("{rest}{fraction}s"),
        (0, minutes) => format!("{minutes}m{rest}{fraction}s"),
        (hours, minutes) => format!("{hours}h{minutes}m{rest}{fraction}s"),
    }
}

/// `Retry-After` in whole seconds: rounded up, because a client that comes back too early is refused again.
pub fn retry_after_seconds(wait: Duration) -> u64 {
    u64::try_from(wait.as_nanos().div_ceil(1_000_000_000))
        .unwrap_or(u64::MAX)
        .max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(name: &str, unit: LimitUnit, limit: u64, seconds: u64) -> LimitSpec {
        LimitSpec {
            name: name.to_owned(),
            unit,
            mode: LimitMode::SlidingWindow,
            limit,
            per_milliseconds: seconds * 1000,
            burst: None,
            model: None,
        }
    }

    const COST: Cost = Cost {
        input_tokens: 30,
        output_tokens: 30,
    };

    #[test]
    fn a_refused_request_is_charged_to_no_limit() {
        let mut quota = Quota::new(&[
            limit("minute", LimitUnit::Requests, 2, 60),
            limit("tokens", LimitUnit::Tokens, 100, 10),
        ]);
        assert_eq!(quota.admit(Duration::ZERO, "m", COST), Ok(()));
        let refusal = quota
            .admit(Duration::from_secs(1), "m", COST)
            .expect_err("60 + 60 tokens are more than 100");
        assert_eq!(
            (refusal.limit.as_str(), refusal.retry_after),
            ("tokens", Some(Duration::from_secs(9)))
        );
        let headers = quota.headers(Duration::from_secs(1), "m");
        assert_eq!(
            headers["x-ratelimit-remaining-requests"], "1",
            "the refused one did not count"
        );
        assert_eq!(headers["x-ratelimit-remaining-tokens"], "40");
        assert_eq!(headers["x-ratelimit-reset-tokens"], "9s");
    }

    #[test]
    fn anthropic_has_names_of_its_own() {
        let mut quota = Quota::new(&[
            limit("minute", LimitUnit::Requests, 2, 60),
            limit("input", LimitUnit::InputTokens, 100, 60),
        ]);
        assert_eq!(quota.admit(Duration::ZERO, "m", COST), Ok(()));
        let headers = quota.anthropic_headers(Duration::from_secs(1), "m", 1_000_500);
        for (name, value) in [
            ("anthropic-ratelimit-requests-limit", "2"),
            ("anthropic-ratelimit-requests-remaining", "1"),
            ("anthropic-ratelimit-input-tokens-remaining", "70"),
            ("anthropic-ratelimit-input-tokens-reset", "1970-01-01T00:17:40Z"),
        ] {
            assert_eq!(headers[name], value, "{name}");
        }
        assert_eq!(headers.len(), 6);
    }

    #[test]
    fn the_longest_wait_is_named() {
        let mut quota = Quota::new(&[
            limit("day", LimitUnit::Requests, 1, 86_400),
            limit("second", LimitUnit::Requests, 1, 1),
        ]);
        assert_eq!(quota.admit(Duration::ZERO, "m", COST), Ok(()));
        let refusal = quota
            .admit(Duration::ZERO, "m", COST)
            .expect_err("both are used up");
        assert_eq!(
            (refusal.limit.as_str(), refusal.retry_after),
            ("day", Some(Duration::from_secs(86_400)))
        );
    }

    #[test]
    fn a_models_limit_leaves_other_models_alone() {
        let only = LimitSpec {
            model: Some("a".to_owned()),
            ..limit("a", LimitUnit::Requests, 0, 1)
        };
        let mut quota = Quota::new(&[only]);
        assert_eq!(quota.admit(Duration::ZERO, "b", COST), Ok(()));
        assert_eq!(
            quota
                .admit(Duration::ZERO, "a", COST)
                .expect_err("limit 0")
                .retry_after,
            None
        );
        assert!(quota.headers(Duration::ZERO, "b").is_empty());
    }

    #[test]
    fn durations_are_written_as_the_providers_do() {
        for (nanoseconds, text) in [
            (0, "0ms"),
            (1, "1ms"),
            (17_000_000, "17ms"),
            (1_000_000_000, "1s"),
            (1_500_000_000, "1.5s"),
            (360_000_000_000, "6m0s"),
            (3_602_020_000_000, "1h0m2.02s"),
        ] {
            assert_eq!(duration_text(Duration::from_nanos(nanoseconds)), text);
        }
        assert_eq!(retry_after_seconds(Duration::from_millis(1001)), 2);
        assert_eq!(retry_after_seconds(Duration::ZERO), 1);
    }
}
