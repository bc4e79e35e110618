//! The OpenAI chat-completions wire format, as far as clients of a chat model look at it.

use bytes::BytesMut;
use flotilla_serve::sse_event;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::random::fnv1a;

/// `POST /v1/chat/completions`. Fields that do not change the answer are accepted and ignored, as `temperature`.
#[derive(Debug, Clone, Deserialize)]
pub struct ChatRequest {
    /// Which model; its name may select a behaviour.
    pub model: String,
    /// The conversation; at least one message.
    pub messages: Vec<ChatMessage>,
    /// Answer as server-sent events.
    #[serde(default)]
    pub stream: bool,
    /// Options of a stream.
    #[serde(default)]
    pub stream_options: Option<StreamOptions>,
    /// Longest reply in tokens (the older name).
    #[serde(default)]
    pub max_tokens: Option<u64>,
    /// Longest reply in tokens.
    #[serde(default)]
    pub max_completion_tokens: Option<u64>,
    /// Number of replies; only 1 is supported.
    #[serde(default)]
    pub n: Option<u32>,
}

/// Options of a stream.
#[derive(Debug, Clone, Copy, Deserialize)]
pub struct StreamOptions {
    /// Send the usage as a last chunk without choices.
    #[serde(default)]
    pub include_usage: bool,
}

/// One message of the conversation.
#[derive(Debug, Clone, Deserialize)]
pub struct ChatMessage {
    /// `system`, `user`, `assistant`, …
    pub role: String,
    /// Its content.
    #[serde(default)]
    pub content: Option<Content>,
}

/// A message's content in either of its forms.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum Content {
    /// A plain string.
    Text(String),
    /// Typed parts; those without text (images) count nothing.
    Parts(Vec<Part>),
}

/// A typed part.
#[derive(Debug, Clone, Deserialize)]
pub struct Part {
    /// The text, for parts of type `text`.
    #[serde(default)]
    pub text: Option<String>,
}

impl ChatMessage {
    /// All text of the message.
    pub fn text(&self) -> String {
        match &self.content {
            None => String::new(),
            Some(Content::Text(text)) => text.clone(),
            Some(Content::Parts(parts)) => parts.iter().filter_map(|part| part.text.as_deref()).collect(),
        }
    }
}

impl ChatRequest {
    /// What is wrong with a well-formed request, if anything.
    pub fn problem(&self) -> Option<&'static str> {
        if self.messages.is_empty() {
            Some("'messages' must have at least one message")
        } else if self.n.is_some_and(|n| n != 1) {
            Some("'n' must be 1: this simulator gives one reply")
        } else if self.max_output_tokens() == Some(0) {
            Some("'max_completion_tokens' must be at least 1")
        } else {
            None
        }
    }

    /// The longest reply asked for.
    pub fn max_output_tokens(&self) -> Option<u64> {
        self.max_completion_tokens.or(self.max_tokens)
    }

    /// The last thing the user said.
    pub fn question(&self) -> String {
        self.messages
            .iter()
            .rev()
            .find(|message| message.role == "user")
            .map(ChatMessage::text)
            .unwrap_or_default()
    }

    /// What makes two requests the same for the simulator: model and conversation, not how the reply is sent.
    pub fn fingerprint(&self) -> u64 {
        let mut bytes = self.model.clone().into_bytes();
        for message in &self.messages {
            bytes.push(0);
            bytes.extend_from_slice(message.role.as_bytes());
            bytes.push(1);
            bytes.extend_from_slice(message.text().as_bytes());
        }
        fnv1a(&bytes)
    }
}

/// Tokens used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// Input.
    pub prompt_tokens: u64,
    /// Output.
    pub completion_tokens: u64,
    /// Both.
    pub total_tokens: u64,
}

impl Usage {
    /// Usage of `input` and `output` tokens.
    pub fn new(input: u64, output: u64) -> Self {
        Self {
            prompt_tokens: input,
            completion_tokens: output,
            total_tokens: input + output,
        }
    }
}

/// What every chunk or completion of one reply shares.
#[derive(Debug, Clone)]
pub struct Envelope {
    /// `chatcmpl-…`
    pub id: String,
    /// Seconds since 1970.
    pub created: u64,
    /// The model as the client named it.
    pub model: String,
}

impl Envelope {
    /// A whole reply.
    pub fn completion(&self, text: &str, finish_reason: &str, usage: Usage) -> Value {
        json!({
            "id": self.id, "object": "chat.completion", "created": self.created, "model": self.model,
            "choices": [{
                "index": 0, "finish_reason": finish_reason, "logprobs": null,
                "message": {"role": "assistant", "content": text, "refusal": null},
            }],
            "usage": usage,
        })
    }

    /// Appends one chunk of a streamed reply to `out`.
    pub fn chunk(&self, out: &mut BytesMut, delta: &Value, finish_reason: Option<&str>) {
        let choice = json!({"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": null});
        self.event(out, json!([choice]), None);
    }

    /// Appends the chunk without choices that carries the usage.
    pub fn usage_chunk(&self, out: &mut BytesMut, usage: Usage) {
        self.event(out, json!([]), Some(usage));
    }

    fn event(&self, out: &mut BytesMut, choices: Value, usage: Option<Usage>) {
        let chunk = json!({
            "id": self.id, "object": "chat.completion.chunk", "created": self.created, "model": self.model,
            "choices": choices, "usage": usage,
        });
        out.extend_from_slice(&sse_event(&chunk.to_string()));
    }
}

/// An error in OpenAI's shape.
pub fn error_body(message: &str, kind: &str, code: Option<&str>) -> Value {
    json!({"error": {"message": message, "type": kind, "param": null, "code": code}})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(text: &str) -> ChatRequest {
        serde_json::from_str(text).expect("a request")
    }

    #[test]
    fn both_forms_of_content_are_the_same_request() {
        let plain =
            request(r#"{"model":"m","messages":[{"role":"user","content":"late parcel"}],"stream":true}"#);
        let parts = request(
            r#"{"model":"m","messages":[{"role":"user","content":[{"type":"text","text":"late "},{"type":"text","text":"parcel"}]}],"temperature":0.2}"#,
        );
        assert_eq!(plain.question(), "late parcel");
        assert_eq!(plain.fingerprint(), parts.fingerprint());
        let other = request(r#"{"model":"m2","messages":[{"role":"user","content":"late parcel"}]}"#);
        assert_ne!(plain.fingerprint(), other.fingerprint());
    }

    #[test]
    fn problems() {
        let message = r#"{"role":"user","content":"x"}"#;
        for (text, problem) in [
            (format!(r#"{{"model":"m","messages":[{message}]}}"#), None),
            (
                r#"{"model":"m","messages":[]}"#.to_owned(),
                Some("'messages' must"),
            ),
            (
                format!(r#"{{"model":"m","messages":[{message}],"n":2}}"#),
                Some("'n' must"),
            ),
            (
                format!(r#"{{"model":"m","messages":[{message}],"max_tokens":0}}"#),
                Some("'max_completion_tokens' must"),
            ),
        ] {
            let found = request(&text).problem();
            assert_eq!(found.is_some(), problem.is_some(), "{text}");
            assert!(found.unwrap_or_default().starts_with(problem.unwrap_or_default()));
        }
    }
}
