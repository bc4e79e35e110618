//! The client of the model: OpenAI's chat completions, at `OPENAI_BASE_URL`.
//!
//! A reply is a sequence of [`Piece`]s whether it is streamed or not, so that the callers have one path. Dropping a
//! [`Reply`] closes the connection, which is how a cancelled task stops costing tokens. There are no retries here:
//! the gateway between agent and provider knows the limits, an agent does not.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use flotilla_serve::SseDecoder;
use http::{HeaderValue, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tokio::time::{Instant, timeout_at};

use crate::error::ModelError;
use crate::session::ChatMessage;

/// Longest reply, in bytes of text; a model that does not stop must not fill the memory.
pub const MAX_REPLY_BYTES: usize = 1 << 20;
/// Longest answer of the provider that is not streamed, and longest event of one that is.
const MAX_ANSWER_BYTES: usize = 4 << 20;
/// As much of a provider's error as is worth passing on.
const MAX_ERROR_BYTES: usize = 16 << 10;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Shorter than any server's idle time in use, so that no request meets a closing connection.
const POOL_IDLE: Duration = Duration::from_secs(30);

/// Tokens of one reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Usage {
    /// Tokens of the conversation.
    pub input_tokens: u64,
    /// Tokens of the reply.
    pub output_tokens: u64,
}

/// A part of a reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// More text.
    Text(String),
    /// What it cost, if the provider says so; at most once.
    Usage(Usage),
}

/// How to reach a model.
#[derive(Clone)]
pub struct ModelClient {
    http: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    endpoint: Uri,
    authorization: HeaderValue,
    token_file: Option<PathBuf>,
    model: String,
    parameters: Map<String, Value>,
    timeout: Duration,
}

/// A model that cannot be called, for the person who configured it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ModelConfigError(pub String);

impl ModelClient {
    /// A client of `model` at `base_url` (which ends in `/v1`). `parameters` go into every request's body. A reply
    /// must be whole within `timeout`.
    pub fn new(
        base_url: &str,
        api_key: &str,
        model: &str,
        parameters: Map<String, Value>,
        timeout: Duration,
    ) -> Result<Self, ModelConfigError> {
        let error = |text: String| Err(ModelConfigError(text));
        let endpoint = format!("{}/chat/completions", base_url.trim_end_matches('/'));
        let Ok(endpoint) = endpoint.parse::<Uri>() else {
            return error(format!("OPENAI_BASE_URL '{base_url}' is not a URL"));
        };
        if !matches!(endpoint.scheme_str(), Some("http" | "https")) || endpoint.authority().is_none() {
            return error(format!(
                "OPENAI_BASE_URL '{base_url}' must be http://… or https://…"
            ));
        }
        if model.is_empty() || model.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return error(format!("the model's name '{model}' is empty or has spaces"));
        }
        let Some(authorization) = bearer(api_key) else {
            return error("OPENAI_API_KEY cannot be sent in a header".to_owned());
        };
        let mut connector = HttpConnector::new();
        connector.enforce_http(false);
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        let connector = HttpsConnectorBuilder::new()
            .with_provider_and_webpki_roots(rustls::crypto::ring::default_provider())
            .map_err(|error| ModelConfigError(format!("TLS cannot be set up: {error}")))?
            .https_or_http()
            .enable_http1()
            .wrap_connector(connector);
        let http = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(POOL_IDLE)
            .build(connector);
        Ok(Self {
            http,
            endpoint,
            authorization,
            token_file: None,
            model: model.to_owned(),
            parameters,
            timeout,
        })
    }

    /// Sends the content of this file in the place of the key. It is read for each request: kubelet renews it.
    pub fn with_token_file(self, token_file: Option<PathBuf>) -> Self {
        Self { token_file, ..self }
    }

    async fn authorization(&self) -> Result<HeaderValue, ModelError> {
        let Some(path) = &self.token_file else {
            return Ok(self.authorization.clone());
        };
        let failed = |what: &str| ModelError::Unreachable(format!("the token in {} {what}", path.display()));
        let token = tokio::fs::read_to_string(path)
            .await
            .map_err(|error| failed(&format!("cannot be read: {error}")))?;
        bearer(token.trim()).ok_or_else(|| failed("cannot be sent in a header"))
    }

    /// The model's name.
    pub fn model(&self) -> &str {
        &self.model
    }

    /// Asks for a reply to `messages`.
    pub async fn ask(&self, messages: &[ChatMessage], stream: bool) -> Result<Reply, ModelError> {
        let mut body = self.parameters.clone();
        body.insert("model".to_owned(), json!(self.model));
        body.insert("messages".to_owned(), json!(messages));
        if stream {
            body.insert("stream".to_owned(), json!(true));
            body.insert("stream_options".to_owned(), json!({"include_usage": true}));
        }
        let deadline = self.deadline();
        let response = self.send(&Value::Object(body), deadline).await?;
        let mut reply = Reply {
            body: response.into_body(),
            decoder: SseDecoder::new(MAX_ANSWER_BYTES),
            pieces: VecDeque::new(),
            text_bytes: 0,
            complete: false,
            done: false,
            deadline,
            timeout: self.timeout,
        };
        if !stream {
            reply.read_whole().await?;
        }
        Ok(reply)
    }

    /// Sends a request that the client wrote, with this agent's model, parameters (where it has none) and system prompt.
    /// Returns the provider's successful response as it comes, and until when it may take.
    pub async fn pass(
        &self,
        mut body: Map<String, Value>,
        system: &str,
    ) -> Result<(Response<Incoming>, Instant), ModelError> {
        body.insert("model".to_owned(), json!(self.model));
        for (name, value) in &self.parameters {
            body.entry(name.clone()).or_insert_with(|| value.clone());
        }
        if let Some(Value::Array(messages)) = body.get_mut("messages") {
            messages.insert(0, json!(ChatMessage::new("system", system)));
        }
        let deadline = self.deadline();
        Ok((self.send(&Value::Object(body), deadline).await?, deadline))
    }

    fn deadline(&self) -> Instant {
        Instant::now() + self.timeout
    }

    async fn send(&self, body: &Value, deadline: Instant) -> Result<Response<Incoming>, ModelError> {
        let request = Request::post(self.endpoint.clone())
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::AUTHORIZATION, self.authorization().await?)
            .body(Full::new(Bytes::from(body.to_string())))
            .map_err(|error| ModelError::Unreachable(error.to_string()))?;
        let sent = timeout_at(deadline, self.http.request(request)).await;
        let response = sent
            .map_err(|_| self.timed_out())?
            .map_err(|error| ModelError::Unreachable(chain(&error)))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let (head, body) = response.into_parts();
        let read = timeout_at(deadline, flotilla_serve::read_body(body, MAX_ERROR_BYTES)).await;
        let message = match read {
            Ok(Ok(bytes)) => error_message(&bytes),
            _ => String::new(),
        };
        let status = head.status;
        Err(match status {
            StatusCode::TOO_MANY_REQUESTS => ModelError::RateLimited {
                message,
                retry_after: head.headers.get(header::RETRY_AFTER).cloned(),
            },
            status if status.is_client_error() => ModelError::Refused { status, message },
            status => ModelError::Failed { status, message },
        })
    }

    fn timed_out(&self) -> ModelError {
        ModelError::TimedOut {
            seconds: self.timeout.as_secs(),
        }
    }
}

/// The header that carries `key`, hidden from debug output.
fn bearer(key: &str) -> Option<HeaderValue> {
    let mut header = HeaderValue::try_from(format!("Bearer {key}")).ok()?;
    header.set_sensitive(true);
    Some(header)
}

/// Without the key.
impl std::fmt::Debug for ModelClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ModelClient")
            .field("endpoint", &self.endpoint)
            .field("model", &self.model)
            .finish_non_exhaustive()
    }
}

/// A reply on its way. Dropped before its end, it stops the model.
#[derive(Debug)]
pub struct Reply {
    body: Incoming,
    decoder: SseDecoder,
    pieces: VecDeque<Piece>,
    text_bytes: usize,
    /// A finish reason has come.
    complete: bool,
    /// Nothing more is to be read.
    done: bool,
    deadline: Instant,
    timeout: Duration,
}

impl Reply {
    /// The next piece; `None` after the last. A stream that ends without a finish reason is an error, not an end.
    pub async fn next(&mut self) -> Result<Option<Piece>, ModelError> {
        loop {
            if let Some(piece) = self.pieces.pop_front() {
                return Ok(Some(piece));
            }
            if self.done {
                return Ok(None);
            }
            match self.frame().await? {
                Some(bytes) => {
                    let events = self
                        .decoder
                        .push(&bytes)
                        .map_err(|error| ModelError::Broken(error.to_string()))?;
                    for event in events {
                        self.event(&event)?;
                    }
                }
                None if self.complete => self.done = true,
                None => return Err(ModelError::Broken("it ended without a finish reason".to_owned())),
            }
        }
    }

    async fn frame(&mut self) -> Result<Option<Bytes>, ModelError> {
        let seconds = self.timeout.as_secs();
        let frame = timeout_at(self.deadline, self.body.frame()).await;
        match frame.map_err(|_| ModelError::TimedOut { seconds })? {
            None => Ok(None),
            Some(Ok(frame)) => Ok(Some(frame.into_data().unwrap_or_default())),
            Some(Err(error)) => Err(ModelError::Broken(chain(&error))),
        }
    }

    async fn read_whole(&mut self) -> Result<(), ModelError> {
        let mut bytes = Vec::new();
        while let Some(frame) = self.frame().await? {
            bytes.extend_from_slice(&frame);
            if bytes.len() > MAX_ANSWER_BYTES {
                return Err(ModelError::Broken(format!(
                    "it has more than {MAX_ANSWER_BYTES} bytes"
                )));
            }
        }
        let completion: Completion = parse(&bytes)?;
        let message = completion
            .choices
            .into_iter()
            .next()
            .and_then(|choice| choice.message);
        let message = message.ok_or_else(|| ModelError::Broken("it has no choice".to_owned()))?;
        self.text(message.content.unwrap_or_default())?;
        self.usage(completion.usage);
        self.done = true;
        Ok(())
    }

    fn event(&mut self, data: &str) -> Result<(), ModelError> {
        if data == "[DONE]" {
            self.complete = true;
            self.done = true;
            return Ok(());
        }
        let chunk: Completion = parse(data.as_bytes())?;
        if let Some(error) = chunk.error {
            return Err(ModelError::Broken(error.message.unwrap_or_default()));
        }
        for choice in chunk.choices {
            if let Some(text) = choice.delta.and_then(|delta| delta.content) {
                self.text(text)?;
            }
            self.complete |= choice.finish_reason.is_some();
        }
        self.usage(chunk.usage);
        Ok(())
    }

    fn text(&mut self, text: String) -> Result<(), ModelError> {
        self.text_bytes += text.len();
        if self.text_bytes > MAX_REPLY_BYTES {
            return Err(ModelError::Broken(format!(
                "it has more than {MAX_REPLY_BYTES} bytes of text"
            )));
        }
        if !text.is_empty() {
            self.pieces.push_back(Piece::Text(text));
        }
        Ok(())
    }

    fn usage(&mut self, usage: Option<ProviderUsage>) {
        if let Some(usage) = usage {
            let usage = Usage {
                input_tokens: usage.prompt_tokens,
                output_tokens: usage.completion_tokens,
            };
            self.pieces.push_back(Piece::Usage(usage));
        }
    }
}

/// A completion, a chunk of one, or an error: what of them is looked at.
#[derive(Debug, Deserialize)]
struct Completion {
    #[serde(default)]
    choices: Vec<Choice>,
    #[serde(default)]
    usage: Option<ProviderUsage>,
    #[serde(default)]
    error: Option<ProviderError>,
}

#[derive(Debug, Deserialize)]
struct Choice {
    #[serde(default)]
    message: Option<Content>,
    #[serde(default)]
    delta: Option<Content>,
    #[serde(default)]
    finish_reason: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Content {
    #[serde(default)]
    content: Option<String>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
struct ProviderUsage {
    #[serde(default)]
    prompt_tokens: u64,
    #[serde(default)]
    completion_tokens: u64,
}

#[derive(Debug, Deserialize)]
struct ProviderError {
    #[serde(default)]
    message: Option<String>,
}

fn parse(bytes: &[u8]) -> Result<Completion, ModelError> {
    serde_json::from_slice(bytes)
        .map_err(|error| ModelError::Broken(format!("it is not a completion: {error}")))
}

/// The provider's own words in an error body, at most 500 characters of them.
fn error_message(bytes: &[u8]) -> String {
    let parsed = serde_json::from_slice::<Completion>(bytes).ok();
    let message = parsed.and_then(|body| body.error).and_then(|error| error.message);
    let message = message.unwrap_or_else(|| String::from_utf8_lossy(bytes).trim().to_owned());
    message.chars().take(500).collect()
}

/// An error with its causes, for a sentence.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// Parameters as the pool writes them, numbers in strings: `"0.2"` becomes 0.2, `"true"` true, other text stays text.
pub fn parameters(values: Map<String, Value>) -> Map<String, Value> {
    let typed = |value: Value| match &value {
        Value::String(text) => match serde_json::from_str::<Value>(text) {
            Ok(parsed @ (Value::Number(_) | Value::Bool(_))) => parsed,
            _ => value,
        },
        _ => value,
    };
    values
        .into_iter()
        .map(|(name, value)| (name, typed(value)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_that_cannot_be_called() {
        let client =
            |url: &str, model: &str| ModelClient::new(url, "k", model, Map::new(), Duration::from_secs(1));
        for (url, model, problem) in [
            ("http://gateway:8081/providers/main/v1", "gpt-5-mini", None),
            ("https://provider.example/v1/", "gpt-5-mini", None),
            ("provider.example/v1", "m", Some("is not a URL")),
            ("ftp://provider.example/v1", "m", Some("must be http")),
            ("http://bad host/v1", "m", Some("is not a URL")),
            ("http://gateway/v1", "", Some("is empty or has spaces")),
            ("http://gateway/v1", "gpt 5", Some("is empty or has spaces")),
        ] {
            let found = client(url, model).err().map(|error| error.to_string());
            assert_eq!(found.is_some(), problem.is_some(), "{url} {model}: {found:?}");
            assert!(found.unwrap_or_default().contains(problem.unwrap_or_default()));
        }
        let client = client("https://provider.example/v1/", "m").expect("valid");
        assert_eq!(client.endpoint, "https://provider.example/v1/chat/completions");
        assert!(!format!("{client:?}").contains("Bearer"));
    }

    #[tokio::test]
    async fn a_token_file_is_read_for_each_request() {
        let path = std::env::temp_dir().join(format!("flotilla-agent-token-{}", std::process::id()));
        let client = ModelClient::new(
            "http://g/v1",
            "placeholder",
            "m",
            Map::new(),
            Duration::from_secs(1),
        )
        .expect("valid");
        assert_eq!(
            client
                .authorization()
                .await
                .ok()
                .as_ref()
                .map(HeaderValue::as_bytes),
            Some(&b"Bearer placeholder"[..])
        );
        let client = client.with_token_file(Some(path.clone()));
        assert!(client.authorization().await.is_err());
        for token in ["one", "two"] {
            std::fs::write(&path, format!("{token}\n")).expect("written");
            let header = client.authorization().await.expect("a token");
            assert_eq!(header, format!("Bearer {token}"));
            assert!(header.is_sensitive());
        }
        std::fs::remove_file(&path).expect("removed");
    }

    #[test]
    fn parameters_get_their_types_back() {
        let values = json!({"temperature": "0.2", "seed": "7", "store": "true", "user": "abc", "stop": ["a"], "top_p": 1});
        let Value::Object(values) = values else {
            unreachable!("an object was written")
        };
        let expected =
            json!({"temperature": 0.2, "seed": 7, "store": true, "user": "abc", "stop": ["a"], "top_p": 1});
        assert_eq!(Value::Object(parameters(values)), expected);
    }

    #[test]
    fn a_providers_words_are_found_and_kept_short() {
        assert_eq!(
            error_message(br#"{"error": {"message": "slow down", "code": "x"}}"#),
            "slow down"
        );
        assert_eq!(error_message(b"  bad gateway\n"), "bad gateway");
        assert_eq!(error_message("ü".repeat(2_000).as_bytes()).chars().count(), 500);
    }
}
