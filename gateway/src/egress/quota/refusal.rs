//! What a request that a quota holds back is told.

use std::fmt;
use std::time::Duration;

use flotilla_core::quota::{Amounts, Limit, Resource, Window};
use http::StatusCode;

use crate::reply::Refusal;

/// Why a request was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// It waited until its time was over.
    TimedOut,
    /// It would wait longer than its time.
    WouldTimeOut,
    /// It waited until its time was over, and nobody gave this gateway a share.
    NoShare,
    /// Too many wait already.
    QueueFull,
    /// It is estimated to be larger than the whole limit.
    TooLarge(Amounts),
}

/// A request that a quota refuses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The ModelProvider.
    pub provider: String,
    /// The quota's name.
    pub quota: String,
    /// Why.
    pub why: Why,
    /// When to come back.
    pub retry_after: Duration,
    /// The quota in words.
    limit: String,
}

impl Refused {
    pub(super) fn new(provider: &str, limit: Option<&Limit>, why: Why, retry_after: Duration) -> Self {
        Self {
            provider: provider.to_owned(),
            quota: limit.map(|limit| limit.name.clone()).unwrap_or_default(),
            why,
            retry_after,
            limit: limit.map(in_words).unwrap_or_default(),
        }
    }

    /// As an answer.
    pub fn into_refusal(self) -> Refusal {
        let message = self.to_string();
        let seconds = self.retry_after.as_secs() + u64::from(self.retry_after.subsec_nanos() > 0);
        let after = u16::try_from(seconds.max(1)).unwrap_or(u16::MAX);
        match self.why {
            Why::TooLarge(_) => Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "LargerThanQuota", message),
            Why::NoShare => {
                Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "QuotaUnavailable", message).retry_after(after)
            }
            Why::QueueFull => {
                Refusal::new(StatusCode::TOO_MANY_REQUESTS, "QuotaQueueFull", message).retry_after(after)
            }
            Why::TimedOut | Why::WouldTimeOut => {
                Refusal::new(StatusCode::TOO_MANY_REQUESTS, "QuotaExceeded", message).retry_after(after)
            }
        }
        .limit("quotas")
    }
}

/// For example `60 Requests in 60 s`.
pub(super) fn in_words(limit: &Limit) -> String {
    let Limit {
        limit: units,
        resource,
        window,
        ..
    } = limit;
    match window {
        Window::None => format!("{units} requests at once"),
        Window::Rolling(length) => format!("{units} {} in {} s", of(*resource), length / 1_000_000_000),
        Window::Calendar(_) => format!("{units} {} per {window}", of(*resource)),
    }
}

fn of(resource: Resource) -> &'static str {
    match resource {
        Resource::Requests | Resource::Concurrency => "requests",
        Resource::InputTokens => "input tokens",
        Resource::OutputTokens => "output tokens",
        Resource::Tokens => "tokens",
        Resource::NanoDollars => "billionths of the currency",
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            provider,
            quota,
            limit,
            ..
        } = self;
        if self.why == Why::NoShare {
            return write!(
                f,
                "quota \"{quota}\" of ModelProvider \"{provider}\" ({limit}): no gateway deals it out, or none that this one \
                 can reach; see Lease flotilla-quota"
            );
        }
        write!(
            f,
            "quota \"{quota}\" of ModelProvider \"{provider}\" ({limit}) is used up: "
        )?;
        match self.why {
            Why::TimedOut => f.write_str("the request waited for its turn until its time was over"),
            Why::NoShare => Ok(()),
            Why::WouldTimeOut => f.write_str("the request would wait longer than its time"),
            Why::QueueFull => f.write_str("too many requests wait for it already"),
            Why::TooLarge(amounts) => write!(
                f,
                "the request alone needs more ({} input and up to {} output tokens, estimated); make it smaller or set max_tokens",
                amounts.input, amounts.output
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_names_the_quota_and_when_to_come_back() {
        let limit = Limit::new("rpm", Resource::Requests, Window::seconds(60), 5);
        let refused = Refused::new("main", Some(&limit), Why::TimedOut, Duration::from_millis(1_200));
        let refusal = refused.into_refusal();
        assert_eq!((refusal.status.as_u16(), refusal.code), (429, "QuotaExceeded"));
        assert_eq!(refusal.retry_after, Some(2));
        assert!(
            refusal
                .message
                .contains("quota \"rpm\" of ModelProvider \"main\" (5 requests in 60 s)")
        );
        let amounts = Amounts {
            input: 9,
            output: 8,
            nano_dollars: 0,
        };
        let refusal =
            Refused::new("main", Some(&limit), Why::TooLarge(amounts), Duration::ZERO).into_refusal();
        assert_eq!((refusal.status.as_u16(), refusal.retry_after), (413, None));
        assert!(refusal.message.contains("9 input and up to 8 output"));
    }
}
