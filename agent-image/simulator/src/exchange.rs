//! One admitted request until its end, and its reply at its pace.

use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::{Bytes, BytesMut};
use http::StatusCode;
use tokio::time::Instant;

use crate::api::Protocol;
use crate::log::{EventKind, LogEvent};
use crate::model::Failure;
use crate::plan::Plan;
use crate::server::State;
use crate::wire::{Envelope, Usage};

/// What a log line says of a request, apart from what happened.
#[derive(Debug, Clone)]
pub(crate) struct Subject {
    pub protocol: Protocol,
    pub request_id: String,
    pub model: String,
    pub stream: bool,
}

impl Subject {
    pub fn event(&self, now: Duration, kind: EventKind, status: u16) -> LogEvent {
        LogEvent {
            sequence: 0,
            monotonic_nanoseconds: u64::try_from(now.as_nanos()).unwrap_or(u64::MAX),
            unix_milliseconds: unix_milliseconds(),
            request_id: self.request_id.clone(),
            kind,
            model: self.model.clone(),
            stream: self.stream,
            status,
            input_tokens: 0,
            output_tokens: 0,
            limit: None,
            retry_after_nanoseconds: None,
        }
    }
}

/// An admitted request until its end. Dropped before that, its client has left, and the log says so.
#[derive(Debug)]
pub(crate) struct Admission {
    state: Arc<State>,
    subject: Subject,
    input_tokens: u64,
    sent: u64,
    ended: bool,
}

impl Admission {
    pub fn new(state: Arc<State>, subject: Subject, input_tokens: u64) -> Self {
        Self {
            state,
            subject,
            input_tokens,
            sent: 0,
            ended: false,
        }
    }

    pub fn sent(&mut self, tokens: usize) {
        self.sent = tokens as u64;
    }

    pub fn end(&mut self, kind: EventKind, status: StatusCode) {
        self.log(kind, status.as_u16());
        self.ended = true;
    }

    fn log(&self, kind: EventKind, status: u16) {
        let mut inner = self.state.inner.lock();
        let mut event = self.subject.event(inner.epoch.elapsed(), kind, status);
        (event.input_tokens, event.output_tokens) = (self.input_tokens, self.sent);
        inner.log.push(event);
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        if !self.ended {
            self.log(EventKind::Cancelled, 0);
        }
    }
}

/// A reply that is being streamed. Tokens have absolute due times, so a late timer does not slow the rest down.
pub(crate) struct Streaming {
    envelope: Envelope,
    plan: Plan,
    admission: Admission,
    first_token_at: Instant,
    sent: usize,
    ended: bool,
}

impl Streaming {
    /// A reply whose first token is due at `first_token_at`.
    pub fn new(envelope: Envelope, plan: Plan, admission: Admission, first_token_at: Instant) -> Self {
        Self {
            envelope,
            plan,
            admission,
            first_token_at,
            sent: 0,
            ended: false,
        }
    }

    /// The next bytes of the reply, when they are due.
    pub async fn next(mut self) -> Option<(io::Result<Bytes>, Self)> {
        if self.ended {
            return None;
        }
        let mut out = BytesMut::new();
        let to_send = self.plan.tokens_to_send();
        if self.sent < to_send {
            tokio::time::sleep_until(self.due(self.sent)).await;
            let now = Instant::now();
            if self.sent == 0 {
                self.envelope.begin(&mut out, self.plan.input_tokens);
            }
            while self.sent < to_send && self.due(self.sent) <= now {
                if let Some(word) = self.plan.words.get(self.sent) {
                    self.envelope.delta(&mut out, word);
                }
                self.sent += 1;
            }
            self.admission.sent(self.sent);
            return Some((Ok(out.freeze()), self));
        }
        self.ended = true;
        if self.plan.failure == Some(Failure::Cut) {
            self.admission.end(EventKind::Failed, StatusCode::OK);
            return Some((Err(cut().await), self));
        }
        let usage = Usage::new(self.plan.input_tokens, self.plan.output_tokens());
        let text = self.plan.words.concat();
        self.envelope
            .finish(&mut out, &text, self.plan.finish_reason, usage);
        self.admission.end(EventKind::Completed, StatusCode::OK);
        Some((Ok(out.freeze()), self))
    }

    fn due(&self, token: usize) -> Instant {
        self.first_token_at + self.plan.gap * u32::try_from(token).unwrap_or(u32::MAX)
    }
}

/// The error that breaks a response off. It yields first: hyper drops what it has not flushed when a body fails, and
/// flushes when a body is pending.
pub(crate) async fn cut() -> io::Error {
    tokio::task::yield_now().await;
    io::Error::new(
        io::ErrorKind::ConnectionAborted,
        "a simulated break of the connection",
    )
}

pub(crate) fn unix_milliseconds() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
