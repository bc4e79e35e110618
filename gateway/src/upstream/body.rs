//! Bodies of requests to agents and providers.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use parking_lot::Mutex;

use crate::egress::usage::JsonReader;

/// A body known to be at most this long is read whole before a replica is chosen: a slow upload then takes no slot,
/// and the request can be sent again. Everything longer, or of unknown length, is streamed.
pub const BUFFERED: u64 = 64 * 1024;

/// The body of an outgoing request.
#[derive(Debug)]
pub enum RequestBody {
    /// Held in memory; cheap to clone. Empty when `None`.
    Held(Option<Bytes>),
    /// Passed through as it arrives.
    Streamed(Bounded),
    /// The same, after its beginning was read.
    Resumed(Option<Bytes>, Bounded),
    /// Passed through, with the bytes also shown to a reader.
    Read(Bounded, Arc<Mutex<JsonReader>>),
    /// None, and the connection is to become something else than HTTP: needs a connection of its own.
    Switching,
}

/// A client's body as it comes, up to a number of bytes.
#[derive(Debug)]
pub struct Bounded {
    /// On the heap: hyper keeps places for many requests for each connection, and most have no such body.
    incoming: Box<Incoming>,
    left: u64,
    exceeded: Exceeded,
}

/// Tells, also after a body has been handed on, whether it was longer than it may be.
#[derive(Clone, Debug, Default)]
pub struct Exceeded(Option<Arc<AtomicBool>>);

/// Why a request's body ended early.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The client broke off.
    #[error(transparent)]
    Client(#[from] hyper::Error),
    /// Longer than it may be.
    #[error("the request's body is longer than it may be")]
    TooLong,
}

impl Exceeded {
    /// The body was too long.
    pub fn is_set(&self) -> bool {
        self.0.as_ref().is_some_and(|set| set.load(Ordering::Acquire))
    }
}

impl Bounded {
    /// `incoming`, whose length is known and allowed.
    pub fn known(incoming: Incoming) -> Self {
        Self {
            incoming: Box::new(incoming),
            left: u64::MAX,
            exceeded: Exceeded::default(),
        }
    }

    /// `incoming` up to `limit` bytes.
    pub fn limited(incoming: Incoming, limit: u64) -> Self {
        Self {
            incoming: Box::new(incoming),
            left: limit,
            exceeded: Exceeded(Some(Arc::default())),
        }
    }
}

impl Body for Bounded {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let body = self.get_mut();
        let Some(frame) = ready!(Pin::new(&mut body.incoming).poll_frame(cx)?) else {
            return Poll::Ready(None);
        };
        let length = frame.data_ref().map_or(0, |data| data.len() as u64);
        match (body.left.checked_sub(length), &body.exceeded.0) {
            (None, Some(exceeded)) => {
                exceeded.store(true, Ordering::Release);
                Poll::Ready(Some(Err(BodyError::TooLong)))
            }
            (left, _) => {
                body.left = left.unwrap_or(u64::MAX);
                Poll::Ready(Some(Ok(frame)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

impl RequestBody {
    /// A body that is sent from memory.
    pub fn held(bytes: Bytes) -> Self {
        Self::Held((!bytes.is_empty()).then_some(bytes))
    }

    /// The same once more, if it is held in memory.
    pub fn again(&self) -> Option<Self> {
        match self {
            Self::Held(bytes) => Some(Self::Held(bytes.clone())),
            Self::Switching => Some(Self::Switching),
            Self::Streamed(_) | Self::Resumed(..) | Self::Read(..) => None,
        }
    }

    /// Passed through as it arrives: it cannot be sent again.
    pub fn is_streamed(&self) -> bool {
        matches!(self, Self::Streamed(_) | Self::Resumed(..) | Self::Read(..))
    }

    /// Will tell whether it was longer than it may be.
    pub fn exceeded(&self) -> Exceeded {
        match self {
            Self::Streamed(body) | Self::Resumed(_, body) | Self::Read(body, _) => body.exceeded.clone(),
            Self::Held(_) | Self::Switching => Exceeded::default(),
        }
    }

    /// The request asks for another protocol than HTTP.
    pub fn is_switching(&self) -> bool {
        matches!(self, Self::Switching)
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        match self.get_mut() {
            Self::Held(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Switching => Poll::Ready(None),
            Self::Streamed(body) => Pin::new(body).poll_frame(cx),
            Self::Resumed(first, body) => match first.take() {
                Some(bytes) => Poll::Ready(Some(Ok(Frame::data(bytes)))),
                None => Pin::new(body).poll_frame(cx),
            },
            Self::Read(body, reader) => {
                let polled = Pin::new(body).poll_frame(cx);
                if let Poll::Ready(Some(Ok(frame))) = &polled
                    && let Some(data) = frame.data_ref()
                {
                    reader.lock().feed(data);
                }
                polled
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Held(bytes) => bytes.is_none(),
            Self::Switching => true,
            Self::Streamed(body) | Self::Read(body, _) => body.is_end_stream(),
            Self::Resumed(first, body) => first.is_none() && body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Held(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Switching => SizeHint::with_exact(0),
            Self::Streamed(body) | Self::Read(body, _) => body.size_hint(),
            Self::Resumed(first, body) => longer(body.size_hint(), first.as_ref().map_or(0, Bytes::len)),
        }
    }
}

/// The hint of a body that has `bytes` more in front.
pub(crate) fn longer(hint: SizeHint, bytes: usize) -> SizeHint {
    let mut longer = SizeHint::new();
    longer.set_lower(hint.lower().saturating_add(bytes as u64));
    if let Some(upper) = hint.upper() {
        longer.set_upper(upper.saturating_add(bytes as u64));
    }
    longer
}
