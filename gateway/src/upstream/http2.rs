//! HTTP/2 with prior knowledge (h2c): few connections to a peer, shared by its requests.
//!
//! Each worker has its own. A connection takes [`MAX_STREAMS`] requests at once, which every server grants; beyond that a
//! further one is opened, so that no request waits for another's end inside a connection. Whoever needs a connection while
//! one is being opened waits for that one.
//!
//! A request is written for HTTP/1.1 until here (`Host`, origin form), because a second try of it may go to a peer that
//! takes that. Where it comes back unsent, it comes back so.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use http::header::{self, HeaderValue};
use http::{Request, Uri, Version, uri};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::body::RequestBody;
use super::connection::{Connection, Io};
use super::{Answer, Failure, FailureKind, Limits, Sending, Target, forward, in_time};
use crate::server::workers;

/// Requests of one connection at once. RFC 9113 section 6.5.2 recommends that peers grant no fewer.
const MAX_STREAMS: u32 = 100;
/// A peer is asked this often whether it is still there while requests are out.
const PING_INTERVAL: Duration = Duration::from_secs(10);
/// And has this long to answer.
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// Bytes of one header list of a response.
const MAX_HEADER_LIST: u32 = 128 * 1024;

/// The connections to one peer.
#[derive(Default)]
pub(super) struct Shared {
    open: Mutex<Open>,
    /// Held while a connection is being opened.
    opening: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Open {
    closed: bool,
    connections: Vec<Arc<Multiplexed>>,
}

/// One connection.
#[derive(Debug)]
struct Multiplexed {
    sender: SendRequest<RequestBody>,
    worker: usize,
    streams: AtomicU32,
    opened: Instant,
    /// When the last stream ended, in milliseconds after `opened`.
    idle_since: AtomicU64,
}

/// A place among the streams of a connection, until it is dropped.
#[derive(Debug)]
pub struct Stream(Arc<Multiplexed>);

impl Drop for Stream {
    fn drop(&mut self) {
        let now = u64::try_from(self.0.opened.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.0.idle_since.store(now, Ordering::Relaxed);
        self.0.streams.fetch_sub(1, Ordering::Release);
    }
}

impl Shared {
    /// Sends `request` over a connection that is there, or a new one: always a new one for a second try of a request
    /// (`reuse` is false and its body is in memory), since the old connection may be what was wrong.
    pub(super) async fn send(
        &self,
        target: &Target,
        limits: &Limits,
        mut request: Sending,
        reuse: bool,
    ) -> Result<Answer, Failure> {
        let reuse = reuse || request.body().is_streamed();
        loop {
            let there = if reuse { self.take() } else { None };
            let reused = there.is_some();
            let stream = match there {
                Some(stream) => stream,
                None => match in_time(limits, Box::pin(self.open(target, reuse))).await {
                    Ok(stream) => stream,
                    Err(error) => {
                        return Err(Failure {
                            kind: FailureKind::NotSent(error),
                            request: Some(request),
                        });
                    }
                },
            };
            let host = to_http2(&mut request, target);
            let mut error = match stream.0.sender.clone().try_send_request(*request).await {
                Ok(response) => {
                    let connection = Connection::Stream(stream);
                    return Ok(Answer { response, connection });
                }
                Err(error) => error,
            };
            let unsent = error.take_message().map(Box::new);
            let error = error.into_error();
            let Some(mut unsent) = unsent else {
                return Err(Failure {
                    kind: kind(error, reused),
                    request: None,
                });
            };
            to_http1(&mut unsent, host);
            if reused {
                // It went just when we took it.
                self.forget(&stream);
                request = unsent;
                continue;
            }
            return Err(Failure {
                kind: FailureKind::NotSent(std::io::Error::other(error)),
                request: Some(unsent),
            });
        }
    }

    /// A stream of the first connection of this worker that has room.
    fn take(&self) -> Option<Stream> {
        let mut open = self.open.lock();
        open.connections
            .retain(|connection| !connection.sender.is_closed());
        let own = workers::current();
        let found = open.connections.iter().find(|connection| {
            connection.worker == own && connection.streams.load(Ordering::Acquire) < MAX_STREAMS
        })?;
        found.streams.fetch_add(1, Ordering::Acquire);
        Some(Stream(found.clone()))
    }

    /// Opens a connection, or waits for whoever does.
    async fn open(&self, target: &Target, reuse: bool) -> std::io::Result<Stream> {
        let _opening = self.opening.lock().await;
        if reuse && let Some(stream) = self.take() {
            return Ok(stream);
        }
        let io = Io::connect(target).await?;
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT)
            .max_header_list_size(MAX_HEADER_LIST)
            .handshake(TokioIo::new(io))
            .await
            .map_err(std::io::Error::other)?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "an HTTP/2 connection ended");
            }
        });
        let multiplexed = Arc::new(Multiplexed {
            sender,
            worker: workers::current(),
            streams: AtomicU32::new(1),
            opened: Instant::now(),
            idle_since: AtomicU64::new(0),
        });
        let mut open = self.open.lock();
        if !open.closed {
            open.connections.push(multiplexed.clone());
        }
        Ok(Stream(multiplexed))
    }

    fn forget(&self, stream: &Stream) {
        self.open
            .lock()
            .connections
            .retain(|connection| !Arc::ptr_eq(connection, &stream.0));
    }

    /// Takes no connection from now on. One that carries requests ends with the last of them.
    pub(super) fn close(&self) {
        let mut open = self.open.lock();
        open.closed = true;
        open.connections.clear();
    }

    /// Drops connections that have carried nothing for `idle`.
    pub(super) fn trim(&self, idle: Duration) {
        self.open.lock().connections.retain(|connection| {
            let since = Duration::from_millis(connection.idle_since.load(Ordering::Relaxed));
            let busy = connection.streams.load(Ordering::Acquire) > 0;
            !connection.sender.is_closed()
                && (busy || connection.opened.elapsed().saturating_sub(since) <= idle)
        });
    }
}

/// Makes a request for HTTP/1.1 one for HTTP/2. Gives its `Host`.
fn to_http2(request: &mut Request<RequestBody>, target: &Target) -> Option<HeaderValue> {
    let host = request.headers_mut().remove(header::HOST);
    request.headers_mut().remove(header::TRANSFER_ENCODING);
    let named = host
        .as_ref()
        .and_then(|host| uri::Authority::try_from(host.as_bytes()).ok());
    let authority = named.or_else(|| match target {
        Target::Address(address) => uri::Authority::try_from(address.to_string()).ok(),
        Target::Name { host, port, .. } => uri::Authority::try_from(format!("{host}:{port}")).ok(),
    });
    let mut parts = std::mem::take(request.uri_mut()).into_parts();
    parts.scheme = Some(uri::Scheme::HTTP);
    parts.authority = authority;
    if parts.path_and_query.is_none() {
        parts.path_and_query = Some(uri::PathAndQuery::from_static("/"));
    }
    *request.uri_mut() = Uri::from_parts(parts).unwrap_or_default();
    *request.version_mut() = Version::HTTP_2;
    host
}

/// Takes [`to_http2`] back.
fn to_http1(request: &mut Request<RequestBody>, host: Option<HeaderValue>) {
    if let Some(host) = host {
        request.headers_mut().insert(header::HOST, host);
    }
    let streamed = request.body().is_streamed();
    forward::set_framing(request.headers_mut(), streamed);
    let path = request.uri().path_and_query().cloned();
    *request.uri_mut() = path.map_or_else(|| Uri::from_static("/"), Uri::from);
    *request.version_mut() = Version::HTTP_11;
}

fn kind(error: hyper::Error, reused: bool) -> FailureKind {
    let cause = std::error::Error::source(&error).and_then(|cause| cause.downcast_ref::<h2::Error>());
    let unread = cause.is_some_and(|cause| {
        let graceful = cause.reason() == Some(h2::Reason::NO_ERROR);
        let refused = cause.reason() == Some(h2::Reason::REFUSED_STREAM);
        cause.is_remote() && (refused || (cause.is_go_away() && graceful))
    });
    let ended = cause.is_some_and(|cause| cause.is_io() || cause.is_go_away());
    if unread || ended || error.is_closed() || error.is_canceled() || error.is_incomplete_message() {
        FailureKind::Closed { unread, reused }
    } else {
        FailureKind::Broken(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_comes_back_as_it_was() {
        let target = Target::Address(([10, 0, 0, 1], 8080).into());
        let request = |host: Option<&str>| {
            let mut request = Request::post("/a?b=c");
            if let Some(host) = host {
                request = request.header("host", host);
            }
            request.body(RequestBody::Held(None)).expect("a request")
        };
        for (host, expected) in [
            (Some("support.apps"), "http://support.apps/a?b=c"),
            (None, "http://10.0.0.1:8080/a?b=c"),
            (Some("no host at all"), "http://10.0.0.1:8080/a?b=c"),
        ] {
            let mut there = request(host);
            let kept = to_http2(&mut there, &target);
            assert_eq!(there.uri(), expected);
            assert!(!there.headers().contains_key("host"));
            to_http1(&mut there, kept);
            assert_eq!(there.uri(), request(host).uri());
            assert_eq!(there.headers(), request(host).headers());
            assert_eq!(there.version(), Version::HTTP_11);
        }
    }
}
