//! A2A 1.0 over JSON-RPC: `SendMessage` and `SendStreamingMessage`.
//!
//! A good answer is a message, or a task that is completed or asks its user back (`INPUT_REQUIRED` ends a turn, it
//! is no failure). An answer that leaves the task at work is malformed, because both methods wait for its end.

use bytes::Bytes;
use flotilla_core::load::random::Stream;
use flotilla_core::load::result::ErrorCategory;
use flotilla_core::load::schedule::Start;
use serde_json::Value;

use super::Usage;

/// Where a Flotilla agent says how many tokens an answer took: in the metadata of a message, task, artifact or
/// status update, as `{"inputTokens": n, "outputTokens": n}`.
const USAGE_KEY: &str = "flotilla.dev/usage";

pub(super) fn body(start: &Start, prompt: &str, stream: bool) -> Bytes {
    let ids = Stream::new(start.body_seed, 0xa2a);
    let method = if stream {
        "SendStreamingMessage"
    } else {
        "SendMessage"
    };
    let body = serde_json::json!({
        "jsonrpc": "2.0",
        "id": start.index,
        "method": method,
        "params": {"message": {
            "messageId": format!("{:016x}{:016x}", ids.at(0), ids.at(1)),
            "role": "ROLE_USER",
            "parts": [{"text": prompt}],
        }},
    });
    Bytes::from(body.to_string())
}

/// What has been read of an answer.
#[derive(Debug, Default)]
pub struct Answer {
    pub(super) usage: Option<Usage>,
    finished: bool,
}

/// What a task's state makes of the request; `None` while it is at work.
fn outcome(state: &str) -> Option<Result<(), ErrorCategory>> {
    match state {
        "TASK_STATE_COMPLETED" | "TASK_STATE_INPUT_REQUIRED" => Some(Ok(())),
        "TASK_STATE_SUBMITTED" | "TASK_STATE_WORKING" => None,
        "TASK_STATE_FAILED" | "TASK_STATE_CANCELED" | "TASK_STATE_REJECTED" | "TASK_STATE_AUTH_REQUIRED" => {
            Some(Err(ErrorCategory::AgentError))
        }
        _ => Some(Err(ErrorCategory::Malformed)),
    }
}

fn has_text(parts: &Value) -> bool {
    parts.as_array().is_some_and(|parts| {
        parts
            .iter()
            .any(|part| match part.get("text").and_then(Value::as_str) {
                Some(text) => !text.is_empty(),
                None => part.get("data").is_some() || part.get("raw").is_some() || part.get("url").is_some(),
            })
    })
}

impl Answer {
    fn note_usage(&mut self, holder: &Value) {
        if let Some(usage) = holder
            .get("metadata")
            .and_then(|metadata| metadata.get(USAGE_KEY))
        {
            let tokens = |key: &str| usage.get(key).and_then(Value::as_u64).unwrap_or(0);
            self.usage = Some(Usage {
                input: tokens("inputTokens"),
                output: tokens("outputTokens"),
            });
        }
    }

    fn status(&mut self, holder: &Value) -> Result<bool, ErrorCategory> {
        let status = holder.get("status").ok_or(ErrorCategory::Malformed)?;
        let message = status.get("message").unwrap_or(&Value::Null);
        self.note_usage(holder);
        self.note_usage(message);
        let state = status
            .get("state")
            .and_then(Value::as_str)
            .ok_or(ErrorCategory::Malformed)?;
        match outcome(state) {
            Some(Ok(())) => self.finished = true,
            Some(Err(category)) => return Err(category),
            None => {}
        }
        Ok(has_text(message.get("parts").unwrap_or(&Value::Null)))
    }

    /// One JSON-RPC response; `true` if it brought text.
    fn response(&mut self, response: &Value) -> Result<bool, ErrorCategory> {
        if response.get("error").is_some_and(|error| !error.is_null()) {
            return Err(ErrorCategory::AgentError);
        }
        let result = response.get("result").ok_or(ErrorCategory::Malformed)?;
        if let Some(message) = result.get("message") {
            self.finished = true;
            self.note_usage(message);
            Ok(has_text(message.get("parts").unwrap_or(&Value::Null)))
        } else if let Some(task) = result.get("task") {
            let artifacts = task
                .get("artifacts")
                .and_then(Value::as_array)
                .map_or(&[][..], Vec::as_slice);
            artifacts.iter().for_each(|artifact| self.note_usage(artifact));
            let text = artifacts
                .iter()
                .any(|artifact| has_text(artifact.get("parts").unwrap_or(&Value::Null)));
            Ok(self.status(task)? || text)
        } else if let Some(update) = result.get("statusUpdate") {
            self.status(update)
        } else if let Some(update) = result.get("artifactUpdate") {
            self.note_usage(update);
            let artifact = update.get("artifact").ok_or(ErrorCategory::Malformed)?;
            self.note_usage(artifact);
            Ok(has_text(artifact.get("parts").unwrap_or(&Value::Null)))
        } else {
            Err(ErrorCategory::Malformed)
        }
    }

    pub(super) fn event(&mut self, data: &str) -> Result<bool, ErrorCategory> {
        self.response(&serde_json::from_str(data).map_err(|_| ErrorCategory::Malformed)?)
    }

    pub(super) fn end_of_stream(&self) -> Result<(), ErrorCategory> {
        if self.finished {
            Ok(())
        } else {
            Err(ErrorCategory::StreamCut)
        }
    }

    pub(super) fn body(&mut self, body: &[u8]) -> Result<(), ErrorCategory> {
        self.response(&serde_json::from_slice(body).map_err(|_| ErrorCategory::Malformed)?)?;
        if self.finished {
            Ok(())
        } else {
            Err(ErrorCategory::Malformed)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(state: &str) -> String {
        format!(
            r#"{{"jsonrpc":"2.0","id":1,"result":{{"task":{{"id":"t","contextId":"c","status":{{"state":"{state}",
            "message":{{"role":"ROLE_AGENT","parts":[{{"text":"hi"}}],
            "metadata":{{"flotilla.dev/usage":{{"inputTokens":5,"outputTokens":9}}}}}}}}}}}}}}"#
        )
    }

    #[test]
    fn the_state_of_a_task_decides() {
        for (state, outcome) in [
            ("TASK_STATE_COMPLETED", Ok(())),
            ("TASK_STATE_INPUT_REQUIRED", Ok(())),
            ("TASK_STATE_FAILED", Err(ErrorCategory::AgentError)),
            ("TASK_STATE_REJECTED", Err(ErrorCategory::AgentError)),
            ("TASK_STATE_CANCELED", Err(ErrorCategory::AgentError)),
            ("TASK_STATE_AUTH_REQUIRED", Err(ErrorCategory::AgentError)),
            ("TASK_STATE_WORKING", Err(ErrorCategory::Malformed)),
            ("completed", Err(ErrorCategory::Malformed)),
        ] {
            let mut answer = Answer::default();
            assert_eq!(answer.body(task(state).as_bytes()), outcome, "{state}");
            assert_eq!(answer.usage, Some(Usage { input: 5, output: 9 }));
        }
    }

    #[test]
    fn messages_and_errors() {
        let body = |text: &str| Answer::default().body(text.as_bytes());
        assert_eq!(
            body(r#"{"result":{"message":{"role":"ROLE_AGENT","parts":[{"text":"hi"}]}}}"#),
            Ok(())
        );
        assert_eq!(
            body(r#"{"error":{"code":-32001,"message":"x"}}"#),
            Err(ErrorCategory::AgentError)
        );
        assert_eq!(body(r#"{"result":{}}"#), Err(ErrorCategory::Malformed));
        assert_eq!(body("[]"), Err(ErrorCategory::Malformed));
    }

    #[test]
    fn a_stream_brings_tokens_until_its_last_state() {
        let mut answer = Answer::default();
        let events = [
            (
                r#"{"result":{"task":{"id":"t","status":{"state":"TASK_STATE_SUBMITTED"}}}}"#,
                false,
            ),
            (
                r#"{"result":{"statusUpdate":{"taskId":"t","status":{"state":"TASK_STATE_WORKING"}}}}"#,
                false,
            ),
            (
                r#"{"result":{"artifactUpdate":{"taskId":"t","artifact":{"artifactId":"a","parts":[{"text":"Hi"}]}}}}"#,
                true,
            ),
            (
                r#"{"result":{"artifactUpdate":{"artifact":{"parts":[{"text":""}]},"append":true,"lastChunk":true}}}"#,
                false,
            ),
        ];
        for (event, token) in events {
            assert_eq!(answer.event(event), Ok(token), "{event}");
        }
        assert_eq!(answer.end_of_stream(), Err(ErrorCategory::StreamCut));
        let last = r#"{"result":{"statusUpdate":{"status":{"state":"TASK_STATE_COMPLETED"},
            "metadata":{"flotilla.dev/usage":{"inputTokens":1,"outputTokens":2}}}}}"#;
        assert_eq!(answer.event(last), Ok(false));
        assert_eq!(
            (answer.end_of_stream(), answer.usage),
            (Ok(()), Some(Usage { input: 1, output: 2 }))
        );
    }

    #[test]
    fn bodies_are_messages_of_one_point_zero() {
        let start = Start {
            index: 7,
            stage: 0,
            offset_nanoseconds: 0,
            scenario: 0,
            body_seed: 99,
        };
        let value: Value = serde_json::from_slice(&body(&start, "hi", true)).unwrap();
        assert_eq!(value["method"], "SendStreamingMessage");
        assert_eq!(value["params"]["message"]["role"], "ROLE_USER");
        assert_eq!(
            value["params"]["message"]["parts"],
            serde_json::json!([{"text": "hi"}])
        );
        assert_eq!(
            value["params"]["message"]["messageId"].as_str().unwrap().len(),
            32
        );
        assert_eq!(body(&start, "hi", true), body(&start, "hi", true));
    }
}
