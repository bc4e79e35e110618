//! A request's body on its way to a provider: held and read, or passed as it comes.
//!
//! A body is held when it is JSON for an operation that is paid by tokens, so that it can be read before it is sent: the
//! model's name decides about prices and fallbacks, `stream` about where usage will be, and a fallback needs the body once
//! more under another name. What is longer than 4 MiB, or comes without a length, passes as it comes, unchanged, and its
//! model's name is read on the way; unless more depends on it ([`Need`]): then up to 32 MiB are held, and what cannot be
//! read is refused where a limit could be passed by it.
//!
//! All that is held at once is at most 64 MiB, and what fits into a buffer ([`BUFFERED`]) of each request. Room is taken as
//! bytes come, so whoever only announces them takes none.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, StatusCode, header};
use http_body::Body;
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::request::{Asked, Operation, media_type};
use super::usage::JsonReader;
use crate::ingress::proxy::{BodyLimit, body_incomplete, too_large};
use crate::reply::Refusal;
use crate::upstream::body::{BUFFERED, Bounded, RequestBody};

/// Longest body that is held where nothing depends on it; a context of a million tokens has about as many bytes.
const HELD: u64 = 4 << 20;
/// Longest body that is held where something does; no provider takes longer messages.
const HELD_LONG: u64 = 32 << 20;
/// Bytes of bodies longer than [`BUFFERED`] that are held at once.
const HELD_AT_ONCE: usize = 64 << 20;
/// Unit of the semaphore.
const PERMIT: usize = 1 << 10;
/// How long a body that must be held may wait for room.
const ROOM_PATIENCE: Duration = Duration::from_secs(5);

/// What depends on a body's being read before it is sent. Each includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Need {
    /// Nothing that matters much.
    Nothing,
    /// A fallback: a body of unknown length is held, too.
    Fallback,
    /// Limits that depend on the model: if it names one, that must be read.
    Limits,
    /// A budget that only one model has: the model must be named.
    ModelBudget,
}

/// A request's body, read as far as that was possible.
pub struct Content {
    /// The body.
    pub body: RequestBody,
    /// What a held body asks for.
    pub asked: Asked,
    /// Reads the body of a request that is not held as it passes; at its end its length is known, too.
    pub reader: Option<Arc<Mutex<JsonReader>>>,
    /// Length of a held body.
    pub bytes: u64,
    _room: Option<OwnedSemaphorePermit>,
}

impl Content {
    /// The body once more with `model` in place of its own; none where it is not held.
    pub fn again(&self, model: Option<&str>) -> Option<RequestBody> {
        match &self.body {
            RequestBody::Held(Some(bytes)) => Some(RequestBody::held(self.asked.body(bytes, model))),
            held => held.again(),
        }
    }
}

/// Room for bodies that are held, and how long a body may be.
pub struct Room {
    permits: Arc<Semaphore>,
    limit: BodyLimit,
}

/// A body in memory, and its room.
type Kept = (Bytes, Option<OwnedSemaphorePermit>);

impl Room {
    /// With nothing in it.
    pub(crate) fn new(limit: BodyLimit) -> Self {
        Self {
            permits: Arc::new(Semaphore::new(HELD_AT_ONCE / PERMIT)),
            limit,
        }
    }

    /// How long a body may be.
    pub(crate) fn limit(&self) -> BodyLimit {
        self.limit
    }

    /// Holds `body` where it is worth it and there is room, or where it is needed; else passes it on.
    ///
    /// # Errors
    /// It is too long, broke off, or is needed and cannot be held or read.
    pub async fn take(
        &self,
        operation: Operation,
        headers: &HeaderMap,
        body: Incoming,
        need: Need,
    ) -> Result<Content, Refusal> {
        let must_read = operation.uses_tokens() && need >= Need::Limits;
        let is_encoded = headers.contains_key(header::CONTENT_ENCODING);
        if must_read && is_encoded {
            return Err(unreadable("its body must come without Content-Encoding"));
        }
        // Servers read JSON whatever a client calls it.
        let readable = !is_encoded && (must_read || is_json(headers));
        let kept = match body.size_hint().exact() {
            Some(length) if length > self.limit.bytes => return Err(too_large(self.limit)),
            Some(0) => Ok((Bytes::new(), None)),
            Some(length) if length <= BUFFERED => Ok((collect(body, length).await?, None)),
            _ if must_read => Ok(self.gather(body).await?),
            Some(length) if length <= HELD && readable && operation.uses_tokens() => {
                let permits = u32::try_from(length.div_ceil(PERMIT as u64)).unwrap_or(u32::MAX);
                match self.permits.clone().try_acquire_many_owned(permits) {
                    Ok(room) => Ok((collect(body, length).await?, Some(room))),
                    Err(_) => Err(Bounded::known(body)),
                }
            }
            Some(_) => Err(Bounded::known(body)),
            None if readable && operation.uses_tokens() && need >= Need::Fallback => {
                Ok(self.gather(body).await?)
            }
            None => Err(Bounded::limited(body, self.limit.bytes)),
        };
        let (bytes, room) = match kept {
            Ok(kept) => kept,
            Err(passing) => return Ok(passed_on(passing, readable || operation.uses_tokens())),
        };
        let asked = if readable {
            Asked::read(operation, &bytes)
        } else {
            Asked::default()
        };
        if must_read {
            if !asked.is_plain {
                return Err(unreadable("its body must be one JSON object with \"model\" once"));
            }
            if need >= Need::ModelBudget && asked.model.is_none() {
                return Err(unreadable("it must name its model"));
            }
        }
        Ok(Content {
            asked,
            bytes: bytes.len() as u64,
            body: RequestBody::held(bytes),
            reader: None,
            _room: room,
        })
    }

    /// The whole of `body`, whose length need not be known, with room that is taken as it comes.
    async fn gather(&self, mut body: impl Body<Data = Bytes> + Unpin) -> Result<Kept, Refusal> {
        let most = self.limit.bytes.min(HELD_LONG);
        let too_long = || {
            if most == self.limit.bytes {
                too_large(self.limit)
            } else {
                too_long()
            }
        };
        if body.size_hint().lower() > most {
            return Err(too_long());
        }
        let mut whole = BytesMut::new();
        let mut room: Option<OwnedSemaphorePermit> = None;
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(|_| body_incomplete())?.into_data() else {
                continue;
            };
            let length = whole.len() + data.len();
            if length as u64 > most {
                return Err(too_long());
            }
            let taken = room.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
            if length as u64 > BUFFERED && length > taken * PERMIT {
                let more = u32::try_from(length.div_ceil(PERMIT) - taken).unwrap_or(u32::MAX);
                let more = self.permits.clone().acquire_many_owned(more);
                let Ok(Ok(more)) = tokio::time::timeout(ROOM_PATIENCE, more).await else {
                    return Err(no_room());
                };
                match &mut room {
                    Some(room) => room.merge(more),
                    none => *none = Some(more),
                }
            }
            whole.extend_from_slice(&data);
        }
        Ok((whole.freeze(), room))
    }
}

/// A body of this length, which is known.
async fn collect(body: Incoming, length: u64) -> Result<Bytes, Refusal> {
    let limit = usize::try_from(length).unwrap_or(usize::MAX);
    let whole = Limited::new(body, limit).collect().await;
    Ok(whole.map_err(|_| body_incomplete())?.to_bytes())
}

fn passed_on(body: Bounded, is_read: bool) -> Content {
    let reader = is_read.then(|| Arc::new(Mutex::new(JsonReader::default())));
    Content {
        body: match &reader {
            Some(reader) => RequestBody::Read(body, reader.clone()),
            None => RequestBody::Streamed(body),
        },
        asked: Asked::default(),
        reader,
        bytes: 0,
        _room: None,
    }
}

fn too_long() -> Refusal {
    let message = format!(
        "the request's body is longer than {HELD_LONG} bytes; its model must be read before it is sent, because this \
         ModelProvider has a budget or limits for single models, or the request a fallback"
    );
    Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "RequestTooLarge", message)
}

fn unreadable(what: &str) -> Refusal {
    let message = format!(
        "this ModelProvider has a budget, or limits for single models, so a request's model must be known before it is sent: \
         {what}"
    );
    Refusal::new(StatusCode::BAD_REQUEST, "ModelUnknown", message)
}

fn no_room() -> Refusal {
    let message = format!(
        "{HELD_AT_ONCE} bytes of requests to model providers are held already, and this one's model must be read before it \
         is sent"
    );
    Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "NoRoom", message).retry_after(1)
}

fn is_json(headers: &HeaderMap) -> bool {
    media_type(headers).is_some_and(|media| media == "application/json" || media.ends_with("+json"))
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http_body_util::{Full, StreamBody};
    use hyper::body::Frame;

    use super::*;

    fn code(kept: Result<Kept, Refusal>) -> Option<(u16, &'static str)> {
        kept.err().map(|refusal| (refusal.status.as_u16(), refusal.code))
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_held_takes_room_as_it_comes_and_waits_for_it_a_moment() {
        let field = "--max-provider-request-bytes";
        let room = Room::new(BodyLimit {
            bytes: 64 << 20,
            field,
        });
        let all = u32::try_from(HELD_AT_ONCE / PERMIT).unwrap();
        let others = room.permits.clone().acquire_many_owned(all - 100).await.unwrap();
        let body = |bytes: usize| Full::new(Bytes::from(vec![b'x'; bytes]));
        let short = room.gather(body(60_000)).await.ok().unwrap();
        assert!(short.1.is_none(), "a short one takes none");
        let (bytes, taken) = room.gather(body(100_000)).await.ok().unwrap();
        assert_eq!((bytes.len(), room.permits.available_permits()), (100_000, 2));
        drop(taken);
        assert_eq!(code(room.gather(body(200_000)).await), Some((503, "NoRoom")));
        let soon = async {
            tokio::time::sleep(ROOM_PATIENCE / 2).await;
            drop(others);
        };
        let (late, ()) = tokio::join!(room.gather(body(200_000)), soon);
        assert_eq!(code(late), None);
        assert_eq!(room.permits.available_permits(), HELD_AT_ONCE / PERMIT);

        let pieces = |count: usize| {
            let piece = Bytes::from(vec![b'x'; 1 << 20]);
            let pieces = (0..count).map(move |_| Ok::<_, Infallible>(Frame::data(piece.clone())));
            StreamBody::new(futures::stream::iter(pieces))
        };
        assert_eq!(code(room.gather(pieces(32)).await), None);
        let too_large = Some((413, "RequestTooLarge"));
        assert_eq!(code(room.gather(pieces(33)).await), too_large);
        assert_eq!(code(room.gather(body((32 << 20) + 1)).await), too_large);
        assert_eq!(room.permits.available_permits(), HELD_AT_ONCE / PERMIT);
        let small = Room::new(BodyLimit { bytes: 100, field });
        assert_eq!(code(small.gather(pieces(1)).await), too_large);
    }
}
