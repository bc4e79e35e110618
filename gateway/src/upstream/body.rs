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
    /// Passed through, with the bytes also shown to a reader.
    Read(Bounded, Arc<Mutex<JsonReader>>),
    /// None, and the connection is to become something else than HTTP: needs a connection of its own.
    Switching,
}

/// A client's body as it comes, up to a number of bytes.
#[derive(Debug)]
pub struct Bounded {
    incoming: Incoming,
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
            incoming,
            left: u64::MAX,
            exceeded: Exceeded::default(),
        }
    }

    /// `incoming` up to `limit` bytes.
    pub fn limited(incoming: Incoming, limit: u64) -> Self {
        Self {
            incoming,
            left: limit,
            exceeded: Exceeded(Some(Arc::default())),
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Some(frame) = ready!(Pin::new(&mut self.incoming).poll_frame(cx)?) else {
            return Poll::Ready(None);
        };
        let length = frame.data_ref().map_or(0, |data| data.len() as u64);
        match (self.left.checked_sub(length), &self.exceeded.0) {
            (None, Some(exceeded)) => {
                exceeded.store(true, Ordering::Release);
                Poll::Ready(Some(Err(BodyError::TooLong)))
            }
            (left, _) => {
                self.left = left.unwrap_or(u64::MAX);
                Poll::Ready(Some(Ok(frame)))
            }
        }
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
            Self::Streamed(_) | Self::Read(..) => None,
        }
    }

    /// Passed through as it arrives: it cannot be sent again.
    pub fn is_streamed(&self) -> bool {
        matches!(self, Self::Streamed(_) | Self::Read(..))
    }

    /// Will tell whether it was longer than it may be.
    pub fn exceeded(&self) -> Exceeded {
        match self {
            Self::Streamed(body) | Self::Read(body, _) => body.exceeded.clone(),
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
            Self::Streamed(body) => body.poll(cx),
            Self::Read(body, reader) => {
                let polled = body.poll(cx);
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
            Self::Streamed(body) | Self::Read(body, _) => body.incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Held(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Switching => SizeHint::with_exact(0),
            Self::Streamed(body) | Self::Read(body, _) => body.incoming.size_hint(),
        }
    }
}
