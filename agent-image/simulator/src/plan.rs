//! What will happen to one request, decided before it starts: text, tokens, pace and failure as values.
//!
//! Text and token counts are functions of the seed and the request. Latency, speed and failure also depend on how
//! many times the same request has come before; otherwise a retry would meet the same error for ever.

use std::time::Duration;

use crate::api::{ChatMessage, ChatRequest};
use crate::model::{Behaviour, Failure};
use crate::quota::{Cost, OutputCharge};
use crate::random::Random;
use crate::reply::{input_tokens, reply};

/// A longer latency or gap would only be a time-out under another name.
const MAX_WAIT_SECONDS: f64 = 3_600.0;
/// The longest reply, in tokens.
const MAX_OUTPUT_TOKENS: f64 = 100_000.0;

/// One reply to be.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// One token each.
    pub words: Vec<String>,
    /// `stop`, or `length` where `max_tokens` cut it.
    pub finish_reason: &'static str,
    /// Tokens of the conversation.
    pub input_tokens: u64,
    /// Time to the first token.
    pub latency: Duration,
    /// Time between tokens.
    pub gap: Duration,
    /// The failure that this request meets.
    pub failure: Option<Failure>,
}

impl Plan {
    /// Decides. `fingerprint` is the request's own; `occurrence` counts equal requests from 0.
    pub fn new(
        seed: u64,
        request: &ChatRequest,
        behaviour: &Behaviour,
        fingerprint: u64,
        occurrence: u32,
    ) -> Self {
        let start = seed ^ fingerprint;
        let mut of_text = Random::for_purpose(start, "text");
        let mut of_run = Random::for_purpose(start.wrapping_add(u64::from(occurrence)), "run");

        let wanted = behaviour
            .output_tokens
            .sample(&mut of_text)
            .round()
            .clamp(1.0, MAX_OUTPUT_TOKENS) as u64;
        let (tokens, finish_reason) = match request.max_output_tokens() {
            Some(most) if most < wanted => (most, "length"),
            _ => (wanted, "stop"),
        };
        let words = reply(&request.question(), tokens as usize, &mut of_text);
        let texts: Vec<String> = request.messages.iter().map(ChatMessage::text).collect();

        let latency = behaviour.latency_milliseconds.sample(&mut of_run) / 1_000.0;
        let speed = behaviour.tokens_per_second.sample(&mut of_run);
        let gap = if speed > 0.0 { 1.0 / speed } else { 0.0 };
        Self {
            words,
            finish_reason,
            input_tokens: input_tokens(texts.iter().map(String::as_str)),
            latency: Duration::from_secs_f64(latency.clamp(0.0, MAX_WAIT_SECONDS)),
            gap: Duration::from_secs_f64(gap.clamp(0.0, MAX_WAIT_SECONDS)),
            failure: behaviour.errors.failure(of_run.unit()),
        }
    }

    /// Tokens of the reply.
    pub fn output_tokens(&self) -> u64 {
        self.words.len() as u64
    }

    /// How many of them are sent before the connection breaks, or all.
    pub fn tokens_to_send(&self) -> usize {
        if self.failure == Some(Failure::Cut) {
            self.words.len() / 2
        } else {
            self.words.len()
        }
    }

    /// What limits charge for it.
    pub fn cost(&self, charge: OutputCharge, request: &ChatRequest) -> Cost {
        let output_tokens = match (charge, request.max_output_tokens()) {
            (OutputCharge::MaxTokens, Some(most)) => most,
            _ => self.output_tokens(),
        };
        Cost {
            input_tokens: self.input_tokens,
            output_tokens,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ErrorRates, behaviour_of};

    fn request(text: &str, max_tokens: Option<u64>) -> ChatRequest {
        let body = serde_json::json!({"model": "m", "messages": [{"role": "user", "content": text}], "max_tokens": max_tokens});
        serde_json::from_value(body).expect("a request")
    }

    fn plan(seed: u64, request: &ChatRequest, occurrence: u32) -> Plan {
        Plan::new(
            seed,
            request,
            &Behaviour::default(),
            request.fingerprint(),
            occurrence,
        )
    }

    #[test]
    fn a_plan_is_a_function_of_seed_and_request() {
        let asked = request("where is parcel 12345", None);
        assert_eq!(plan(1, &asked, 0), plan(1, &asked, 0));
        assert_ne!(plan(1, &asked, 0).words, plan(2, &asked, 0).words);

        let again = plan(1, &asked, 1);
        assert_eq!(
            plan(1, &asked, 0).words,
            again.words,
            "a repetition says the same"
        );
        assert_ne!(plan(1, &asked, 0).latency, again.latency, "at another pace");
    }

    #[test]
    fn max_tokens_cut_the_reply() {
        let cut = plan(1, &request("late", Some(3)), 0);
        assert_eq!((cut.output_tokens(), cut.finish_reason), (3, "length"));
        let whole = plan(1, &request("late", Some(5_000)), 0);
        assert_eq!(whole.finish_reason, "stop");
        assert_eq!(
            whole
                .cost(OutputCharge::MaxTokens, &request("late", Some(5_000)))
                .output_tokens,
            5_000
        );
        assert_eq!(
            whole
                .cost(OutputCharge::Actual, &request("late", Some(5_000)))
                .output_tokens,
            whole.output_tokens()
        );
    }

    #[test]
    fn a_share_of_repeated_requests_fails() {
        let behaviour = behaviour_of("sim-error-20", Behaviour::default()).expect("known");
        let asked = request("late", None);
        let failures = (0..5_000)
            .filter(|occurrence| {
                Plan::new(1, &asked, &behaviour, asked.fingerprint(), *occurrence)
                    .failure
                    .is_some()
            })
            .count();
        assert!((900..=1_100).contains(&failures), "{failures} of 5000");
        assert_eq!(
            behaviour.errors,
            ErrorRates {
                error_percent: 20.0,
                ..ErrorRates::default()
            }
        );
    }
}
