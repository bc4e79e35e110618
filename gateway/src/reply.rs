//! What clients get: a peer's response on its way through, or one of the gateway's own.
//!
//! The gateway's own errors have the shape that OpenAI's SDKs and most others read:
//! `{"error": {"message": "a sentence", "type": "flotilla_gateway", "code": "QueueFull", "limit": "…"}}`.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::sync::mpsc;
use tokio::time::Sleep;

use crate::egress::Meter;
use crate::ingress::exchange::Exchange;
use crate::ingress::tunnel::Tunnel;
use crate::observe::RefusalCode;
use crate::upstream::body::longer;

/// How a response ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Its last byte has come.
    Complete,
    /// The peer broke off.
    Cut,
    /// The time was over.
    TimedOut,
    /// The client has gone.
    Cancelled,
}

/// Follows a response on its way through. `end` is called exactly once.
pub trait Observer {
    /// Body bytes, in order.
    fn data(&mut self, bytes: &Bytes);
    /// Body bytes, in order, before they are passed on; gives what is, which may be nothing for now.
    fn pass(&mut self, bytes: Bytes) -> Bytes {
        self.data(&bytes);
        bytes
    }
    /// What was kept back so far; asked after the last byte.
    fn rest(&mut self) -> Bytes {
        Bytes::new()
    }
    /// What is passed on may be shorter than what comes.
    fn changes_length(&self) -> bool {
        false
    }
    /// After the last byte, or instead of it.
    fn end(&mut self, end: End);
}

/// A peer's body, passed on frame by frame until the deadline.
pub struct Passing<O: Observer> {
    /// What was read of it before.
    first: VecDeque<Frame<Bytes>>,
    incoming: Incoming,
    deadline: Pin<Box<Sleep>>,
    observer: O,
    ended: bool,
}

/// The body of any response.
pub enum Outgoing {
    /// From memory.
    Held(Option<Bytes>),
    /// From an agent.
    Agent(Passing<Exchange>),
    /// From a provider.
    Provider(Box<Passing<Meter>>),
    /// From either, by way of a task: see [`Outgoing::detached`].
    Detached(Detached),
    /// None: the connection becomes a WebSocket.
    Tunnel(Box<Tunnel>),
}

/// The client's end of a body that a task passes on.
pub struct Detached {
    frames: mpsc::Receiver<Result<Frame<Bytes>, Broken>>,
    /// The task has seen the end, as opposed to: was stopped.
    whole: Arc<AtomicBool>,
}

/// Why a response was cut off on our side; hyper then closes the connection (HTTP/1.1) or resets the stream (HTTP/2).
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// The peer broke off.
    #[error("the response was cut off: {0}")]
    Peer(#[from] hyper::Error),
    /// The request's time was over.
    #[error("the response took longer than the request may")]
    TimedOut,
}

// === impl Passing ===

impl<O: Observer> Passing<O> {
    /// Passes `incoming` on until `deadline`.
    pub fn new(incoming: Incoming, deadline: Pin<Box<Sleep>>, observer: O) -> Self {
        Self::resumed(VecDeque::new(), incoming, deadline, observer)
    }

    /// Passes `first`, which was read of it before, and then the rest of `incoming` on until `deadline`.
    pub fn resumed(
        first: VecDeque<Frame<Bytes>>,
        incoming: Incoming,
        deadline: Pin<Box<Sleep>>,
        observer: O,
    ) -> Self {
        let mut passing = Self {
            first,
            incoming,
            deadline,
            observer,
            ended: false,
        };
        if passing.incoming.is_end_stream() {
            passing.end(End::Complete);
        }
        passing
    }

    fn end(&mut self, end: End) {
        if !std::mem::replace(&mut self.ended, true) {
            self.observer.end(end);
        }
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_empty() && self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        if self.observer.changes_length() {
            return SizeHint::default();
        }
        let read = self.first.iter().filter_map(Frame::data_ref).map(Bytes::len);
        longer(self.incoming.size_hint(), read.sum())
    }

    /// The next frame as the observer passes it on; frames of which it passes nothing are left out.
    fn poll_observed(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        loop {
            let next = match self.first.pop_front() {
                Some(frame) => Some(Ok(frame)),
                None => ready!(Pin::new(&mut self.incoming).poll_frame(cx)),
            };
            let frame = match next {
                Some(Ok(frame)) => frame,
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => {
                    let rest = self.observer.rest();
                    return Poll::Ready((!rest.is_empty()).then(|| Ok(Frame::data(rest))));
                }
            };
            // With a known length nobody asks for what comes after the last byte.
            let last = self.is_end_stream();
            let frame = match frame.into_data() {
                Ok(data) => {
                    let mut passed = self.observer.pass(data);
                    if last {
                        passed = joined(passed, self.observer.rest());
                    } else if passed.is_empty() {
                        continue;
                    }
                    Frame::data(passed)
                }
                Err(other) => other,
            };
            if last {
                self.end(End::Complete);
            }
            return Poll::Ready(Some(Ok(frame)));
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        match self.poll_observed(cx) {
            Poll::Ready(Some(Ok(frame))) => Poll::Ready(Some(Ok(frame))),
            Poll::Ready(Some(Err(error))) => {
                self.end(End::Cut);
                Poll::Ready(Some(Err(error.into())))
            }
            Poll::Ready(None) => {
                self.end(End::Complete);
                Poll::Ready(None)
            }
            Poll::Pending if self.ended => Poll::Pending,
            Poll::Pending => match self.deadline.as_mut().poll(cx) {
                Poll::Pending => Poll::Pending,
                Poll::Ready(()) => {
                    self.end(End::TimedOut);
                    Poll::Ready(Some(Err(Broken::TimedOut)))
                }
            },
        }
    }
}

/// One after the other; copies only if there are two.
pub(crate) fn joined(first: Bytes, second: Bytes) -> Bytes {
    match (first.is_empty(), second.is_empty()) {
        (_, true) => first,
        (true, false) => second,
        (false, false) => [first, second].concat().into(),
    }
}

impl<O: Observer> Drop for Passing<O> {
    fn drop(&mut self) {
        let late = self.deadline.deadline() <= tokio::time::Instant::now();
        self.end(if late { End::TimedOut } else { End::Cancelled });
    }
}

/// Passes frames on until the end, the deadline, or until nobody wants them.
async fn pass_on<O: Observer>(
    mut passing: Passing<O>,
    frames: mpsc::Sender<Result<Frame<Bytes>, Broken>>,
    whole: Arc<AtomicBool>,
) {
    let deadline = passing.deadline.deadline();
    loop {
        let place = tokio::select! {
            biased;
            place = frames.reserve() => place,
            () = tokio::time::sleep_until(deadline) => return passing.end(End::TimedOut),
        };
        let Ok(place) = place else { return };
        let frame = tokio::select! {
            biased;
            frame = poll_fn(|cx| passing.poll(cx)) => frame,
            () = frames.closed() => return,
        };
        match frame {
            Some(frame) => place.send(frame),
            None => return whole.store(true, Ordering::Release),
        }
    }
}

// === impl Outgoing ===

impl Outgoing {
    /// The same body, passed on by a task of its own.
    ///
    /// HTTP/2 asks for frames only when the client grants a window for them, so a client that grants none would hold a
    /// slot past the request's deadline. With HTTP/1.1 the socket's own time limit does that.
    pub fn detached(self) -> Self {
        if self.is_end_stream() {
            // The head then carries the end of the stream, as gRPC wants it of a response that is all trailers.
            return Self::Held(None);
        }
        let (sender, frames) = mpsc::channel(1);
        let whole = Arc::new(AtomicBool::new(false));
        match self {
            Self::Agent(passing) => drop(tokio::spawn(pass_on(passing, sender, whole.clone()))),
            Self::Provider(passing) => drop(tokio::spawn(pass_on(*passing, sender, whole.clone()))),
            held => return held,
        }
        Self::Detached(Detached { frames, whole })
    }
}

impl Detached {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        self.frames.poll_recv(cx).map(|frame| match frame {
            None if !self.whole.load(Ordering::Acquire) => Some(Err(Broken::TimedOut)),
            frame => frame,
        })
    }
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        match self.get_mut() {
            Self::Held(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Agent(passing) => passing.poll(cx),
            Self::Provider(passing) => passing.poll(cx),
            Self::Detached(detached) => detached.poll(cx),
            Self::Tunnel(_) => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Held(bytes) => bytes.is_none(),
            Self::Agent(passing) => passing.is_end_stream(),
            Self::Provider(passing) => passing.is_end_stream(),
            Self::Detached(_) => false,
            Self::Tunnel(_) => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Held(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Agent(passing) => passing.size_hint(),
            Self::Provider(passing) => passing.size_hint(),
            Self::Detached(_) => SizeHint::default(),
            Self::Tunnel(_) => SizeHint::with_exact(0),
        }
    }
}

/// One of the gateway's own errors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// HTTP status.
    pub status: StatusCode,
    /// One word, stable.
    pub code: &'static str,
    /// A sentence for a person.
    pub message: String,
    /// The field whose limit was reached.
    pub limit: Option<&'static str>,
    /// Seconds after which another try makes sense.
    pub retry_after: Option<u16>,
}

impl Refusal {
    /// A refusal that names no limit and invites no retry.
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            code,
            message: message.into(),
            limit: None,
            retry_after: None,
        }
    }

    /// Invites another try.
    pub fn retry_after(mut self, seconds: u16) -> Self {
        self.retry_after = Some(seconds);
        self
    }

    /// Names the field whose limit was reached.
    pub fn limit(mut self, field: &'static str) -> Self {
        self.limit = Some(field);
        self
    }

    /// As a response.
    pub fn into_response(self) -> Response<Outgoing> {
        let mut error = serde_json::json!({
            "message": self.message, "type": "flotilla_gateway", "code": self.code,
        });
        if let Some(limit) = self.limit {
            error["limit"] = limit.into();
        }
        let body = serde_json::json!({ "error": error }).to_string();
        let mut response = held(self.status, "application/json", body);
        response.extensions_mut().insert(RefusalCode(self.code));
        if let Some(seconds) = self.retry_after {
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

/// A response from memory.
pub fn held(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response<Outgoing> {
    let mut response = Response::new(Outgoing::Held(Some(body.into()).filter(|body| !body.is_empty())));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
