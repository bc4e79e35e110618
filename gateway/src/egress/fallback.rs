//! Whom else to ask: the choices of a request in their order, and why one was passed over.
//!
//! A choice is passed over when it will not or cannot serve the request: its budget or quota is used up, its breaker is
//! open, it cannot be reached, breaks off before an answer, or answers 429 or 5xx. It happens before a byte of an answer
//! has reached the agent, never after. An error that the request itself has earned (400, 401, 404 …) is the agent's to
//! know: another provider would say the same, or worse, something else.
//!
//! A provider that broke off may have worked on the request; asking another then costs its tokens twice, and nothing else,
//! because a model's answer has no effect until the agent has it.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::sync::Arc;

use flotilla_crds::route::Chain;
use http::header::{HeaderName, HeaderValue};
use http::{Response, StatusCode};
use parking_lot::Mutex;

use super::provider::Provider;
use crate::reply::{Outgoing, Refusal};

/// Header: the ModelProvider that has answered.
pub const PROVIDER: HeaderName = HeaderName::from_static("x-flotilla-provider");
/// Header: the model that was asked there.
pub const MODEL: HeaderName = HeaderName::from_static("x-flotilla-model");
/// Header: why the choice before it was passed over; only there if it was.
pub const FALLBACK: HeaderName = HeaderName::from_static("x-flotilla-fallback");

/// A provider and the model to ask for.
#[derive(Clone)]
pub struct Choice {
    /// The provider.
    pub provider: Arc<Provider>,
    /// The model; as the request names it where it is the first choice.
    pub model: Option<String>,
}

/// Why a choice was passed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// Its spec or its key.
    Unusable,
    /// Its budget, or this replica's share of it, is used up.
    Budget,
    /// Its quota is used up: it answered 429, or asked a moment ago to be left alone.
    Quota,
    /// Its circuit breaker is open.
    BreakerOpen,
    /// No connection.
    Unreachable,
    /// No answer, or none that could be understood.
    NoAnswer,
    /// It answered 5xx.
    ServerError,
}

impl Reason {
    /// One word, in headers and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unusable => "unusable",
            Self::Budget => "budget",
            Self::Quota => "quota",
            Self::BreakerOpen => "breaker_open",
            Self::Unreachable => "unreachable",
            Self::NoAnswer => "no_answer",
            Self::ServerError => "server_error",
        }
    }

    /// What an answer gives as a reason to ask somebody else.
    pub fn of(status: StatusCode) -> Option<Self> {
        match status {
            StatusCode::TOO_MANY_REQUESTS => Some(Self::Quota),
            status if status.is_server_error() => Some(Self::ServerError),
            _ => None,
        }
    }
}

/// A choice that did not serve the request.
pub struct Miss {
    /// Why; none where asking somebody else would be wrong.
    pub reason: Option<Reason>,
    /// What the agent is told if there is nobody else.
    pub refusal: Refusal,
}

impl Miss {
    /// A choice that is passed over.
    pub fn new(reason: Reason, refusal: Refusal) -> Self {
        Self {
            reason: Some(reason),
            refusal,
        }
    }

    /// The request's own fault, or the end of its time.
    pub fn last(refusal: Refusal) -> Self {
        Self {
            reason: None,
            refusal,
        }
    }
}

/// The choices after the first one: those of `chain` that exist and speak the same protocol.
pub fn choices(
    chain: &Chain<'_>,
    first: &Provider,
    providers: &HashMap<String, Arc<Provider>>,
) -> Vec<Choice> {
    let known = chain.fallbacks.iter().filter_map(|(name, model)| {
        let provider = providers.get(*name)?;
        (provider.config.type_ == first.config.type_).then(|| Choice {
            provider: provider.clone(),
            model: Some(model.clone().into_owned()),
        })
    });
    known.collect()
}

/// Says in the head who has answered, and why it was not the one before.
pub fn tell(
    response: &mut Response<Outgoing>,
    provider: &str,
    model: Option<&str>,
    passed_over: Option<Reason>,
) {
    let headers = response.headers_mut();
    if let Ok(name) = HeaderValue::from_str(provider) {
        headers.insert(PROVIDER, name);
    }
    if let Some(Ok(model)) = model.map(HeaderValue::from_str) {
        headers.insert(MODEL, model);
    }
    if let Some(reason) = passed_over {
        headers.insert(FALLBACK, HeaderValue::from_static(reason.as_str()));
    }
}

/// Requests that went from one provider to the next.
#[derive(Default)]
pub struct Fallbacks(Mutex<BTreeMap<(String, String, Reason), u64>>);

impl Fallbacks {
    /// Counts one.
    pub fn count(&self, from: &str, to: &str, reason: Reason) {
        let mut counts = self.0.lock();
        *counts
            .entry((from.to_owned(), to.to_owned(), reason))
            .or_default() += 1;
    }

    /// From, to, why, and how often.
    pub fn all(&self) -> Vec<(String, String, Reason, u64)> {
        let counts = self.0.lock();
        let all = counts.iter();
        all.map(|((from, to, reason), count)| (from.clone(), to.clone(), *reason, *count))
            .collect()
    }

    /// Forgets providers that are gone.
    pub fn retain(&self, exists: impl Fn(&str) -> bool) {
        self.0
            .lock()
            .retain(|(from, to, _), _| exists(from) && exists(to));
    }
}
