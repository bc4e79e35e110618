//! What clients ask for: chat completions, as far as they matter here, and the other protocols as those.
//!
//! How answers look on the wire is in [`crate::wire`].

use serde::Deserialize;
use serde_json::{Value, json};

use crate::random::fnv1a;

/// What is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// OpenAI `POST /v1/chat/completions`.
    ChatCompletions,
    /// OpenAI `POST /v1/responses`.
    Responses,
    /// OpenAI `POST /v1/embeddings`.
    Embeddings,
    /// Anthropic `POST /v1/messages`.
    Messages,
}

impl Protocol {
    /// The protocol of a path; none for other paths.
    pub fn of(path: &str) -> Option<Self> {
        Some(match path {
            "/v1/chat/completions" => Self::ChatCompletions,
            "/v1/responses" => Self::Responses,
            "/v1/embeddings" => Self::Embeddings,
            "/v1/messages" => Self::Messages,
            _ => return None,
        })
    }

    /// Reads a request's body as a chat request.
    ///
    /// # Errors
    /// If the body is none of this protocol.
    pub fn read(self, body: &[u8]) -> serde_json::Result<ChatRequest> {
        Ok(match self {
            Self::ChatCompletions => serde_json::from_slice(body)?,
            Self::Responses => serde_json::from_slice::<ResponsesRequest>(body)?.into(),
            Self::Embeddings => serde_json::from_slice::<EmbeddingsRequest>(body)?.into(),
            Self::Messages => serde_json::from_slice::<MessagesRequest>(body)?.into(),
        })
    }

    /// An error in this protocol's shape.
    pub fn error(self, message: &str, kind: &str, code: Option<&str>) -> Value {
        match self {
            Self::Messages => {
                let kind = match kind {
                    "requests" | "tokens" => "rate_limit_error",
                    "server_error" => "api_error",
                    other => other,
                };
                json!({"type": "error", "error": {"type": kind, "message": message}})
            }
            _ => error_body(message, kind, code),
        }
    }
}

/// `POST /v1/responses`.
#[derive(Debug, Clone, Deserialize)]
struct ResponsesRequest {
    model: String,
    input: Input,
    #[serde(default)]
    instructions: Option<String>,
    #[serde(default)]
    stream: bool,
    #[serde(default)]
    max_output_tokens: Option<u64>,
}

/// A text, or messages.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum Input {
    Text(String),
    Messages(Vec<ChatMessage>),
}

/// `POST /v1/embeddings`.
#[derive(Debug, Clone, Deserialize)]
struct EmbeddingsRequest {
    model: String,
    input: Texts,
}

/// One text, or several.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum Texts {
    One(String),
    Many(Vec<String>),
}

/// `POST /v1/messages`; there `max_tokens` is required.
#[derive(Debug, Clone, Deserialize)]
struct MessagesRequest {
    model: String,
    messages: Vec<ChatMessage>,
    max_tokens: u64,
    #[serde(default)]
    system: Option<Content>,
    #[serde(default)]
    stream: bool,
}

fn message(role: &str, content: Content) -> ChatMessage {
    ChatMessage {
        role: role.to_owned(),
        content: Some(content),
    }
}

impl From<ResponsesRequest> for ChatRequest {
    fn from(request: ResponsesRequest) -> Self {
        let instructions = request
            .instructions
            .map(|text| message("system", Content::Text(text)));
        let input = match request.input {
            Input::Text(text) => vec![message("user", Content::Text(text))],
            Input::Messages(messages) => messages,
        };
        Self {
            messages: instructions.into_iter().chain(input).collect(),
            stream: request.stream,
            max_completion_tokens: request.max_output_tokens,
            ..Self::empty(request.model)
        }
    }
}

impl From<EmbeddingsRequest> for ChatRequest {
    fn from(request: EmbeddingsRequest) -> Self {
        let texts = match request.input {
            Texts::One(text) => vec![text],
            Texts::Many(texts) => texts,
        };
        let messages = texts.into_iter().map(|text| message("user", Content::Text(text)));
        Self {
            messages: messages.collect(),
            ..Self::empty(request.model)
        }
    }
}

impl From<MessagesRequest> for ChatRequest {
    fn from(request: MessagesRequest) -> Self {
        let system = request.system.map(|content| message("system", content));
        Self {
            messages: system.into_iter().chain(request.messages).collect(),
            stream: request.stream,
            max_tokens: Some(request.max_tokens),
            ..Self::empty(request.model)
        }
    }
}

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
    fn empty(model: String) -> Self {
        Self {
            model,
            messages: Vec::new(),
            stream: false,
            stream_options: None,
            max_tokens: None,
            max_completion_tokens: None,
            n: None,
        }
    }

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
    fn other_protocols_are_the_same_conversation() {
        let chat = request(
            r#"{"model":"m","messages":[{"role":"system","content":"Be brief."},{"role":"user","content":"late parcel"}]}"#,
        );
        for (protocol, body) in [
            (
                Protocol::Responses,
                r#"{"model":"m","instructions":"Be brief.","input":"late parcel","stream":true}"#,
            ),
            (
                Protocol::Responses,
                r#"{"model":"m","input":[{"role":"system","content":"Be brief."},{"role":"user","content":[{"type":"input_text","text":"late parcel"}]}]}"#,
            ),
            (
                Protocol::Messages,
                r#"{"model":"m","max_tokens":9,"system":[{"type":"text","text":"Be brief."}],"messages":[{"role":"user","content":"late parcel"}]}"#,
            ),
        ] {
            let read = protocol.read(body.as_bytes()).expect("a request");
            assert_eq!(read.fingerprint(), chat.fingerprint(), "{body}");
        }
        let embeddings = Protocol::Embeddings
            .read(br#"{"model":"m","input":["a","b"]}"#)
            .expect("a request");
        assert_eq!(embeddings.messages.len(), 2);
        assert!(
            Protocol::Messages
                .read(br#"{"model":"m","messages":[]}"#)
                .is_err(),
            "max_tokens is required"
        );
        assert_eq!(Protocol::of("/v1/models"), None);
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
