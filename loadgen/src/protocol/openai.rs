//! OpenAI chat completions, streamed and not.

use bytes::Bytes;
use flotilla_core::load::result::ErrorCategory;
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::Usage;

/// The request body. A stream is asked for its usage, which otherwise only unstreamed answers have.
pub(super) fn body(model: &str, prompt: &str, stream: bool) -> Bytes {
    let messages = [serde_json::json!({"role": "user", "content": prompt})];
    let body = if stream {
        serde_json::json!({
            "model": model, "messages": messages, "stream": true, "stream_options": {"include_usage": true},
        })
    } else {
        serde_json::json!({"model": model, "messages": messages})
    };
    Bytes::from(body.to_string())
}

#[derive(Deserialize)]
struct Completion {
    #[serde(default)]
    choices: Vec<Choice>,
    usage: Option<WireUsage>,
    error: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct Choice {
    delta: Option<Delta>,
    message: Option<IgnoredAny>,
    finish_reason: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct Delta {
    content: Option<String>,
    reasoning_content: Option<String>,
    refusal: Option<String>,
    tool_calls: Option<IgnoredAny>,
}

impl Delta {
    fn has_token(&self) -> bool {
        let Self {
            content,
            reasoning_content,
            refusal,
            tool_calls,
        } = self;
        [content, reasoning_content, refusal]
            .into_iter()
            .flatten()
            .any(|text| !text.is_empty())
            || tool_calls.is_some()
    }
}

#[derive(Deserialize)]
struct WireUsage {
    #[serde(default)]
    prompt_tokens: u64,
    #[serde(default)]
    completion_tokens: u64,
}

/// What has been read of an answer.
#[derive(Debug, Default)]
pub struct Answer {
    pub(super) usage: Option<Usage>,
    finished: bool,
}

impl Answer {
    fn note_usage(&mut self, usage: Option<WireUsage>) {
        if let Some(WireUsage {
            prompt_tokens,
            completion_tokens,
        }) = usage
        {
            self.usage = Some(Usage {
                input: prompt_tokens,
                output: completion_tokens,
            });
        }
    }

    pub(super) fn event(&mut self, data: &str) -> Result<bool, ErrorCategory> {
        if data.trim() == "[DONE]" {
            self.finished = true;
            return Ok(false);
        }
        let chunk: Completion = serde_json::from_str(data).map_err(|_| ErrorCategory::Malformed)?;
        if chunk.error.is_some() {
            return Err(ErrorCategory::ServerError);
        }
        self.note_usage(chunk.usage);
        self.finished |= chunk.choices.iter().any(|choice| choice.finish_reason.is_some());
        Ok(chunk
            .choices
            .iter()
            .any(|choice| choice.delta.as_ref().is_some_and(Delta::has_token)))
    }

    pub(super) fn end_of_stream(&self) -> Result<(), ErrorCategory> {
        if self.finished {
            Ok(())
        } else {
            Err(ErrorCategory::StreamCut)
        }
    }

    pub(super) fn body(&mut self, body: &[u8]) -> Result<(), ErrorCategory> {
        let completion: Completion = serde_json::from_slice(body).map_err(|_| ErrorCategory::Malformed)?;
        self.note_usage(completion.usage);
        if completion.error.is_some() {
            Err(ErrorCategory::ServerError)
        } else if completion.choices.iter().any(|choice| choice.message.is_some()) {
            Ok(())
        } else {
            Err(ErrorCategory::Malformed)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_has_tokens_usage_and_an_end() {
        let mut answer = Answer::default();
        let events = [
            (
                r#"{"choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}"#,
                false,
            ),
            (
                r#"{"choices":[{"index":0,"delta":{"content":"Hi"}}],"usage":null}"#,
                true,
            ),
            (
                r#"{"choices":[{"index":0,"delta":{"tool_calls":[{"index":0}]}}]}"#,
                true,
            ),
            (
                r#"{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#,
                false,
            ),
            (
                r#"{"choices":[],"usage":{"prompt_tokens":12,"completion_tokens":3}}"#,
                false,
            ),
            ("[DONE]", false),
        ];
        assert_eq!(answer.end_of_stream(), Err(ErrorCategory::StreamCut));
        for (event, token) in events {
            assert_eq!(answer.event(event), Ok(token), "{event}");
        }
        assert_eq!(answer.end_of_stream(), Ok(()));
        assert_eq!(answer.usage, Some(Usage { input: 12, output: 3 }));
    }

    #[test]
    fn bad_answers_have_a_category() {
        let body = |text: &str| Answer::default().body(text.as_bytes());
        assert_eq!(body(r#"{"choices":[{"message":{"content":"Hi"}}]}"#), Ok(()));
        assert_eq!(body(r#"{"choices":[]}"#), Err(ErrorCategory::Malformed));
        assert_eq!(body("<html>"), Err(ErrorCategory::Malformed));
        assert_eq!(
            body(r#"{"error":{"message":"x"}}"#),
            Err(ErrorCategory::ServerError)
        );
        assert_eq!(Answer::default().event("{"), Err(ErrorCategory::Malformed));
        assert_eq!(
            Answer::default().event(r#"{"error":{}}"#),
            Err(ErrorCategory::ServerError)
        );
    }

    #[test]
    fn bodies_are_chat_requests() {
        let body: serde_json::Value = serde_json::from_slice(&body("m", "a \"b\"", true)).unwrap();
        assert_eq!(body["messages"][0]["content"], "a \"b\"");
        assert_eq!(body["stream_options"]["include_usage"], true);
    }
}
