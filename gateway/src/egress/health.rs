//! Whether a provider answers: one circuit breaker, and how long it asked to be left alone, by model.
//!
//! Both matter only where there is somebody else to ask: the last of a request's choices is asked whatever they say,
//! because a refusal of ours is no better than the provider's own.
//!
//! The breaker opens after five failures in a row (no connection, no response, 5xx). A 429 is no failure: the provider
//! works, and only this model's quota is used up, so the model is left alone for the time that the answer asks for.

use std::collections::HashMap;
use std::time::Duration;

use flotilla_core::balance::breaker::{Failed, State};
use flotilla_core::balance::{Breaker, BreakerPolicy, Ticket};
use flotilla_core::quota::hint;
use http::{HeaderMap, StatusCode};
use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::time::Instant;

/// Failures in a row that open the breaker.
const FAILURES: u8 = 5;
/// A model that answered 429 without saying for how long.
const DEFAULT_REST: Duration = Duration::from_secs(1);
/// The longest rest: quotas are counted by the minute, and a provider must not take itself out for a day.
const MAX_REST: Duration = Duration::from_secs(60);
/// Models whose rest is remembered.
const MAX_RESTING: usize = 128;

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// With an answer of the provider's that is no failure of its own.
    Answered,
    /// With 5xx, or without an answer.
    Failed {
        /// How long it asks to be left alone.
        retry_after: Option<Duration>,
    },
    /// Without a word about the provider: the agent gave up.
    Unknown,
}

/// The health of one provider.
pub struct Health {
    breaker: Breaker,
    policy: BreakerPolicy,
    origin: Instant,
    /// Until when models are left alone.
    resting: Mutex<HashMap<String, Instant>>,
}

impl Default for Health {
    fn default() -> Self {
        Self {
            breaker: Breaker::default(),
            policy: BreakerPolicy::default(),
            origin: Instant::now(),
            resting: Mutex::default(),
        }
    }
}

impl Health {
    fn now(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// A request wants to go; none while the breaker is open, unless it is the `last` choice.
    pub fn begin(&self, last: bool) -> Option<Ticket> {
        let now = self.now();
        if last {
            return Some(self.breaker.begin_anyway(now, &self.policy));
        }
        self.breaker.begin(now, &self.policy)
    }

    /// The request has ended.
    pub fn end(&self, ticket: Ticket, outcome: Outcome) {
        let now = self.now();
        match outcome {
            Outcome::Answered => {
                self.breaker.succeed(ticket, now, &self.policy);
            }
            Outcome::Unknown => self.breaker.abandon(ticket),
            Outcome::Failed { retry_after } => {
                let stay = self.breaker.stay();
                if let Failed::Counted(count) = self.breaker.fail(ticket, retry_after, now, &self.policy)
                    && count >= FAILURES
                {
                    self.breaker.open(stay, retry_after, now, &self.policy);
                }
            }
        }
    }

    /// `model` asked to be left alone.
    pub fn rest(&self, model: &str, time: Option<Duration>) {
        let now = Instant::now();
        let until = now + time.unwrap_or(DEFAULT_REST).min(MAX_REST);
        let mut resting = self.resting.lock();
        if resting.len() >= MAX_RESTING {
            resting.retain(|_, until| *until > now);
        }
        if resting.len() < MAX_RESTING || resting.contains_key(model) {
            resting.insert(model.to_owned(), until);
        }
    }

    /// Whether `model` asked to be left alone.
    pub fn rests(&self, model: &str) -> bool {
        let resting = self.resting.lock();
        !resting.is_empty() && resting.get(model).is_some_and(|until| *until > Instant::now())
    }

    /// The breaker's state, as a word and a number for metrics: 0 closed, 1 half open, 2 open.
    pub fn state(&self) -> i64 {
        match self.breaker.state(self.now()) {
            State::Closed { .. } => 0,
            State::HalfOpen { .. } => 1,
            State::Open { .. } => 2,
        }
    }
}

/// What an answer says of the provider, and how long it asks to be left alone.
pub fn judge(status: StatusCode, headers: &HeaderMap) -> (Outcome, Option<Duration>) {
    let limited = status == StatusCode::TOO_MANY_REQUESTS;
    if !limited && !status.is_server_error() {
        return (Outcome::Answered, None);
    }
    let fields = headers
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_bytes()));
    let hint = hint::parse(fields, Timestamp::now().as_millisecond());
    let retry_after = hint.retry_after.map(Duration::from_nanos);
    if limited {
        (Outcome::Answered, retry_after)
    } else {
        (Outcome::Failed { retry_after }, retry_after)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn five_failures_in_a_row_open_it_and_probes_close_it() {
        let health = Health::default();
        let attempt = |outcome| health.begin(false).map(|ticket| health.end(ticket, outcome));
        let failed = Outcome::Failed { retry_after: None };
        for _ in 0..4 {
            assert!(attempt(failed).is_some());
        }
        assert!(attempt(Outcome::Answered).is_some());
        for _ in 0..5 {
            assert!(attempt(failed).is_some());
        }
        assert!(attempt(failed).is_none() && health.state() == 2);
        // The last choice goes all the same, and says nothing.
        let ticket = health.begin(true).expect("the last choice goes");
        health.end(ticket, Outcome::Answered);
        assert_eq!(health.state(), 2);
        tokio::time::advance(Duration::from_secs(11)).await;
        assert_eq!(health.state(), 1);
        assert!(attempt(Outcome::Answered).is_some() && attempt(Outcome::Answered).is_some());
        assert_eq!(health.state(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_model_rests_as_long_as_it_asks_for() {
        let health = Health::default();
        health.rest("a", Some(Duration::from_secs(7)));
        health.rest("b", Some(Duration::from_secs(86_400)));
        assert!(health.rests("a") && health.rests("b") && !health.rests("c"));
        tokio::time::advance(Duration::from_secs(8)).await;
        assert!(!health.rests("a") && health.rests("b"));
        tokio::time::advance(MAX_REST).await;
        assert!(!health.rests("b"));
        for number in 0..1_000 {
            health.rest(&format!("m{number}"), None);
        }
        assert!(health.resting.lock().len() <= MAX_RESTING);
    }

    #[test]
    fn answers() {
        let headers: HeaderMap = [(http::header::RETRY_AFTER, "7".parse().expect("a value"))]
            .into_iter()
            .collect();
        let wait = Some(Duration::from_secs(7));
        for (status, expected) in [
            (200, (Outcome::Answered, None)),
            (404, (Outcome::Answered, None)),
            (429, (Outcome::Answered, wait)),
            (503, (Outcome::Failed { retry_after: wait }, wait)),
            (529, (Outcome::Failed { retry_after: wait }, wait)),
        ] {
            let status = StatusCode::from_u16(status).expect("a status");
            assert_eq!(judge(status, &headers), expected, "{status}");
        }
    }
}
