//! Bodies of requests to agents and providers.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

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
    Streamed(Incoming),
    /// The same, after its beginning was read.
    Resumed(Option<Bytes>, Incoming),
    /// Passed through, with the bytes also shown to a reader.
    Read(Incoming, Arc<Mutex<JsonReader>>),
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
            Self::Streamed(_) | Self::Resumed(..) | Self::Read(..) => None,
        }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        match self.get_mut() {
            Self::Held(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Streamed(incoming) => Pin::new(incoming).poll_frame(cx),
            Self::Resumed(first, incoming) => match first.take() {
                Some(bytes) => Poll::Ready(Some(Ok(Frame::data(bytes)))),
                None => Pin::new(incoming).poll_frame(cx),
            },
            Self::Read(incoming, reader) => {
                let polled = Pin::new(incoming).poll_frame(cx);
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
            Self::Streamed(incoming) | Self::Read(incoming, _) => incoming.is_end_stream(),
            Self::Resumed(first, incoming) => first.is_none() && incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Held(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Streamed(incoming) | Self::Read(incoming, _) => incoming.size_hint(),
            Self::Resumed(first, incoming) => {
                longer(incoming.size_hint(), first.as_ref().map_or(0, Bytes::len))
            }
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
