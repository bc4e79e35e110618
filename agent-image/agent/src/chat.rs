//! Plain chat (`POST /chat`) and OpenAI chat (`POST /v1/chat/completions`).
//!
//! `/chat` has sessions: `{"message", "session", "turn", "stream"}` → `{"reply", "session", "turn", "usage"}`, the
//! session also in `X-Session-Id` both ways. Streamed, it is events of `{"delta"}` and at last the whole answer; a
//! stream whose model breaks off ends with `{"error"}` and a reset, never as if it were whole.
//!
//! The OpenAI form is a proxy with the agent's prompt and model: its client keeps the conversation itself.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use flotilla_serve::{Body, json as json_response, read_body, sse_event, sse_response, stream};
use futures::stream::unfold;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::time::{Instant, timeout_at};

use crate::core::{Core, error_json, error_response, log_failure};
use crate::error::AgentError;
use crate::model::{Piece, Reply, Usage};
use crate::session::{OpenTurn, SessionRequest};

const SESSION_HEADER: &str = "x-session-id";

#[derive(Debug, Deserialize)]
struct ChatBody {
    message: String,
    #[serde(default)]
    session: Option<String>,
    #[serde(default)]
    turn: Option<u64>,
    #[serde(default)]
    stream: bool,
}

/// `POST /chat`.
pub(crate) async fn chat(core: Arc<Core>, request: Request<Incoming>) -> Result<Response<Body>, AgentError> {
    let (head, body) = request.into_parts();
    let body = read_body(body, core.config.max_body_bytes).await?;
    let body: ChatBody = serde_json::from_slice(&body)
        .map_err(|error| AgentError::BadRequest(format!("the body is not a chat message: {error}")))?;
    if body.message.trim().is_empty() {
        return Err(AgentError::BadRequest("'message' is empty".to_owned()));
    }
    let id = session_id(&head.headers, body.session)?;
    let setup = core.admit()?;
    let turn = core.begin(SessionRequest {
        id,
        turn: body.turn,
        only_issued_ids: false,
    })?;
    let streamed = body.stream || accepts_events(&head.headers);
    let session = HeaderValue::try_from(turn.id.as_str());
    let reply = core.ask(&setup, &turn, &body.message, streamed).await?;
    let mut exchange = Exchange {
        core: Arc::clone(&core),
        turn,
        question: body.message,
        reply,
        answer: String::new(),
        usage: None,
    };
    let mut response = if streamed {
        sse_response(unfold(Phase::Open(Box::new(exchange)), Phase::next))
    } else {
        while exchange.piece().await?.is_some() {}
        json_response(StatusCode::OK, &exchange.finish())
    };
    if let Ok(session) = session {
        response.headers_mut().insert(SESSION_HEADER, session);
    }
    Ok(response)
}

/// The session named in the header or the body; naming two is a mistake.
fn session_id(headers: &HeaderMap, body: Option<String>) -> Result<Option<String>, AgentError> {
    let header = match headers.get(SESSION_HEADER).map(HeaderValue::to_str) {
        None => None,
        Some(Ok(id)) => Some(id.to_owned()),
        Some(Err(_)) => return Err(AgentError::BadRequest("X-Session-Id is not text".to_owned())),
    };
    match (header, body) {
        (Some(header), Some(body)) if header != body => Err(AgentError::BadRequest(
            "X-Session-Id and 'session' name two sessions".to_owned(),
        )),
        (header, body) => Ok(header.or(body)),
    }
}

fn accepts_events(headers: &HeaderMap) -> bool {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
    accept.is_some_and(|accept| accept.contains("text/event-stream"))
}

/// A turn that the model is answering.
struct Exchange {
    core: Arc<Core>,
    turn: OpenTurn,
    question: String,
    reply: Reply,
    answer: String,
    usage: Option<Usage>,
}

impl Exchange {
    /// The next piece of text; `None` when the reply is whole.
    async fn piece(&mut self) -> Result<Option<String>, AgentError> {
        loop {
            match self.reply.next().await? {
                None => return Ok(None),
                Some(Piece::Usage(usage)) => self.usage = Some(usage),
                Some(Piece::Text(text)) => {
                    self.answer.push_str(&text);
                    return Ok(Some(text));
                }
            }
        }
    }

    /// Keeps the turn and returns the whole answer.
    fn finish(&mut self) -> Value {
        let answer = std::mem::take(&mut self.answer);
        let value =
            json!({"reply": answer, "session": self.turn.id, "turn": self.turn.turn, "usage": self.usage});
        self.core
            .record(&self.turn, std::mem::take(&mut self.question), answer);
        value
    }
}

/// A streamed answer.
enum Phase {
    Open(Box<Exchange>),
    Broken,
    Ended,
}

impl Phase {
    async fn next(self) -> Option<(io::Result<Bytes>, Self)> {
        match self {
            Self::Open(mut exchange) => Some(match exchange.piece().await {
                Ok(Some(text)) => (event(&json!({"delta": text})), Self::Open(exchange)),
                Ok(None) => (event(&exchange.finish()), Self::Ended),
                Err(error) => {
                    log_failure(&error);
                    (event(&error_json(&error)), Self::Broken)
                }
            }),
            Self::Broken => Some((Err(broken().await), Self::Ended)),
            Self::Ended => None,
        }
    }
}

fn event(value: &Value) -> io::Result<Bytes> {
    Ok(sse_event(&value.to_string()))
}

/// The error that resets a response. It yields first: hyper drops what it has not flushed when a body fails, and
/// flushes when a body is pending.
async fn broken() -> io::Error {
    tokio::task::yield_now().await;
    io::Error::new(io::ErrorKind::BrokenPipe, "the model's reply broke off")
}

/// `POST /v1/chat/completions`.
pub(crate) async fn completions(
    core: Arc<Core>,
    request: Request<Incoming>,
) -> Result<Response<Body>, AgentError> {
    let body = read_body(request.into_body(), core.config.max_body_bytes).await?;
    let body: Map<String, Value> = serde_json::from_slice(&body)
        .map_err(|error| AgentError::BadRequest(format!("the body is not a chat request: {error}")))?;
    let messages = body.get("messages").and_then(Value::as_array);
    if messages.is_none_or(Vec::is_empty) {
        return Err(AgentError::BadRequest(
            "'messages' must have at least one message".to_owned(),
        ));
    }
    let setup = core.admit()?;
    tokio::time::sleep(setup.prompt.directives.latency).await;
    let (response, deadline) = match setup.client.pass(body, &setup.prompt.text).await {
        Ok(passed) => passed,
        Err(error) => {
            let status = error.status_of_passthrough();
            let mut response = error_response(&AgentError::Model(error));
            *response.status_mut() = status;
            return Ok(response);
        }
    };
    let (head, body) = response.into_parts();
    let mut answer = Response::new(stream(unfold(Some(body), move |body| pipe(body, deadline))));
    if let Some(content_type) = head.headers.get(header::CONTENT_TYPE) {
        answer
            .headers_mut()
            .insert(header::CONTENT_TYPE, content_type.clone());
    }
    Ok(answer)
}

/// Hands the provider's body on as it comes, until `deadline`.
async fn pipe(body: Option<Incoming>, deadline: Instant) -> Option<(io::Result<Bytes>, Option<Incoming>)> {
    let mut body = body?;
    match timeout_at(deadline, body.frame()).await {
        Ok(None) => None,
        Ok(Some(Ok(frame))) => Some((Ok(frame.into_data().unwrap_or_default()), Some(body))),
        Ok(Some(Err(error))) => {
            tracing::warn!(%error, "the model's reply broke off while it was handed on");
            Some((Err(broken().await), None))
        }
        Err(_) => {
            tracing::warn!("the model's reply took too long while it was handed on");
            Some((Err(broken().await), None))
        }
    }
}
