//! Requests to agents and providers over HTTP/1.1 connections that are kept alive, or over shared HTTP/2 connections
//! ([`http2`]) to agents that want these.
//!
//! # When a request may be sent again
//!
//! A client of an agent must not see that a pod is being replaced, and an agent must not act twice. So a request is
//! repeated exactly when it is known that nobody has worked on it:
//!
//! 1. *Not connected*, or the connection ended before the request was written ([`FailureKind::NotSent`]): always.
//! 2. *Closed without one byte of response, and the kernel says that the request was not read*
//!    ([`FailureKind::Closed`] with `unread`): the peer's TCP answered our data with a reset, which it does when the
//!    socket was closed before the data came, or closed with data still in its receive buffer. A process that had read
//!    the request and then died closes with a plain FIN and acknowledges our data: no reset, no repetition. This needs a
//!    body that can be sent again, so one held in memory.
//! 3. *Closed without one byte of response on a reused connection*: idempotent methods only, as RFC 9110 section 9.2.2 and
//!    RFC 9112 section 9.3.1 allow, because here the request may have been read.
//!
//! With HTTP/2 the peer says it itself: a stream refused (`REFUSED_STREAM`) or beyond the last one that a `GOAWAY` names was
//! not worked on.
//!
//! Everything else is the client's to know. hyper says only "connection closed before message completed" for 2 and 3 alike;
//! the difference is read from the socket after the connection has ended ([`connection`]).
//!
//! Such races are made rare: an endpoint that leaves gets no new requests and loses its idle connections at once, idle
//! connections are dropped after a few seconds, below the keep-alive timeout of common agent servers (uvicorn and Node
//! close after 5 s), and a request whose body is streamed always gets a new connection.
//!
//! # Whose connections
//!
//! Each worker ([`crate::server::workers`]) has connections of its own to agents, because it costs less to open one than to wake
//! another thread for every request. Those to providers, which are far away and speak TLS, are lent to the others.

pub mod body;
pub mod connection;
pub mod forward;
pub mod http2;

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use parking_lot::Mutex;
use rustls::pki_types::ServerName;
use tokio::time::Instant;

use body::RequestBody;
use connection::{Connection, Exclusive, Io};

use crate::server::workers;

/// Idle connections kept per peer and worker; more than any sensible `concurrency` would only hold sockets.
const MAX_IDLE: usize = 256;

/// Where a peer is.
#[derive(Clone, Debug)]
pub enum Target {
    /// An agent: plain TCP to an address.
    Address(SocketAddr),
    /// A provider: a name to resolve, with TLS where given.
    Name {
        /// Host name or address, without brackets.
        host: String,
        /// TCP port.
        port: u16,
        /// Client configuration and the name that the certificate must carry.
        tls: Option<(Arc<rustls::ClientConfig>, ServerName<'static>)>,
    },
}

/// How connections to a peer are handled.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// For name resolution, TCP and TLS together.
    pub connect: Duration,
    /// An idle connection older than this is not used again.
    pub idle: Duration,
}

/// One place with its keep-alive connections.
pub struct Peer {
    target: Target,
    limits: Limits,
    idle: Mutex<Idle>,
    /// Where the peer takes HTTP/2.
    http2: Option<http2::Shared>,
}

#[derive(Default)]
struct Idle {
    closed: bool,
    /// By worker.
    kept: Vec<Kept>,
}

/// Connections without a request, the youngest last.
#[derive(Default)]
struct Kept(Vec<(Exclusive, Instant)>);

/// A request on its way. On the heap, because it is handed on often and whoever waits for the response would hold the space.
pub type Sending = Box<Request<RequestBody>>;

/// The same request once more, if its body is in memory.
pub fn spare(request: &Request<RequestBody>) -> Option<Sending> {
    let mut spare = Box::new(Request::new(request.body().again()?));
    *spare.method_mut() = request.method().clone();
    *spare.uri_mut() = request.uri().clone();
    *spare.headers_mut() = request.headers().clone();
    Some(spare)
}

/// A response, with the connection it comes over: to be given back by [`Peer::keep`] after the last byte.
pub struct Answer {
    /// Head and body as they arrive.
    pub response: Response<Incoming>,
    /// Usable again after the body's end.
    pub connection: Connection,
}

/// Why there is no response.
#[derive(Debug)]
pub struct Failure {
    /// What is known about the request's fate.
    pub kind: FailureKind,
    /// The request where it was not consumed.
    pub request: Option<Sending>,
}

/// What is known about the fate of a request without a response.
#[derive(Debug)]
pub enum FailureKind {
    /// Nothing was written.
    NotSent(std::io::Error),
    /// Sent, and the connection ended before a byte of the response.
    Closed {
        /// The peer's kernel refused the data, so that nobody has read all of it; or the peer said over HTTP/2 that it
        /// has not worked on the request.
        unread: bool,
        /// The connection had carried a request before.
        reused: bool,
    },
    /// A response that is no HTTP, or a request body that failed.
    Broken(hyper::Error),
}

impl std::fmt::Display for FailureKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotSent(error) => write!(f, "failed to connect: {error}"),
            Self::Closed { .. } => f.write_str("the connection was closed before a response"),
            Self::Broken(error) => write!(f, "the response could not be understood: {error}"),
        }
    }
}

// === impl Peer ===

impl Peer {
    /// A peer without connections yet.
    pub fn new(target: Target, limits: Limits) -> Self {
        Self {
            target,
            limits,
            idle: Mutex::default(),
            http2: None,
        }
    }

    /// A peer that takes HTTP/2 with prior knowledge (h2c), without connections yet.
    pub fn http2(target: Target, limits: Limits) -> Self {
        Self {
            http2: Some(http2::Shared::default()),
            ..Self::new(target, limits)
        }
    }

    /// Sends `request` over an idle connection if `reuse` allows and one is there, else over a new one.
    pub async fn send(&self, request: Sending, reuse: bool) -> Result<Answer, Failure> {
        self.send_noting(request, reuse, &AtomicBool::new(false)).await
    }

    /// The same, for one who has to know although the answer may not be waited for: `sent` is set from the moment on when any
    /// of the request may have reached the peer. One that was set before stays set.
    pub async fn send_noting(
        &self,
        mut request: Sending,
        reuse: bool,
        sent: &AtomicBool,
    ) -> Result<Answer, Failure> {
        // HTTP/2 has no upgrades; servers that take h2c take HTTP/1.1 for these.
        if let Some(shared) = &self.http2
            && !request.body().is_switching()
        {
            sent.store(true, Ordering::Relaxed);
            return shared.send(&self.target, &self.limits, request, reuse).await;
        }
        let before = sent.load(Ordering::Relaxed);
        let note = |failure: &Failure| {
            if matches!(failure.kind, FailureKind::NotSent(_)) {
                sent.store(before, Ordering::Relaxed);
            }
        };
        let reuse = reuse && !request.body().is_switching();
        while reuse && let Some(mut connection) = self.take() {
            sent.store(true, Ordering::Relaxed);
            match connection.send(request).await.inspect_err(note) {
                Ok(response) => {
                    let connection = Connection::Exclusive(connection);
                    return Ok(Answer { response, connection });
                }
                Err(Failure {
                    kind: FailureKind::NotSent(_),
                    request: Some(back),
                }) => request = back,
                Err(failure) => return Err(failure),
            }
        }
        let mut connection = match in_time(&self.limits, Box::pin(self.connect())).await {
            Ok(connection) => connection,
            Err(error) => {
                return Err(Failure {
                    kind: FailureKind::NotSent(error),
                    request: Some(request),
                });
            }
        };
        sent.store(true, Ordering::Relaxed);
        let response = connection.send(request).await.inspect_err(note)?;
        let connection = Connection::Exclusive(connection);
        Ok(Answer { response, connection })
    }

    async fn connect(&self) -> std::io::Result<Exclusive> {
        Exclusive::new(Io::connect(&self.target).await?).await
    }

    /// The youngest idle connection of this worker that is ready, or of another one where they are lent.
    fn take(&self) -> Option<Exclusive> {
        let mut idle = self.idle.lock();
        let (own, now) = (workers::current(), Instant::now());
        let mut take = |kept: &mut Kept| kept.take(now, self.limits.idle);
        if let Some(found) = idle.kept.get_mut(own).and_then(&mut take) {
            return Some(found);
        }
        match self.target {
            Target::Address(_) => None,
            Target::Name { .. } => idle.kept.iter_mut().find_map(take),
        }
    }

    /// Takes back a connection whose response has been read to the end.
    pub fn keep(&self, connection: Connection) {
        let Connection::Exclusive(connection) = connection else {
            return;
        };
        if connection.is_closed() {
            return;
        }
        let mut idle = self.idle.lock();
        if idle.closed {
            return;
        }
        let worker = connection.worker();
        if idle.kept.len() <= worker {
            idle.kept.resize_with(worker + 1, Kept::default);
        }
        if let Some(Kept(kept)) = idle.kept.get_mut(worker)
            && kept.len() < MAX_IDLE
        {
            kept.push((connection, Instant::now()));
        }
    }

    /// Drops idle connections and keeps none from now on.
    pub fn close(&self) {
        let mut idle = self.idle.lock();
        idle.closed = true;
        idle.kept.clear();
        if let Some(shared) = &self.http2 {
            shared.close();
        }
    }

    /// Drops connections that have been idle for too long.
    pub fn trim(&self) {
        let now = Instant::now();
        let keep = |since: &Instant| now.saturating_duration_since(*since) <= self.limits.idle;
        for Kept(kept) in &mut self.idle.lock().kept {
            kept.retain(|(connection, since)| keep(since) && !connection.is_closed());
        }
        if let Some(shared) = &self.http2 {
            shared.trim(self.limits.idle);
        }
    }
}

impl Kept {
    /// The youngest that is ready; none that has waited for longer than `idle`.
    fn take(&mut self, now: Instant, idle: Duration) -> Option<Exclusive> {
        let mut settling = Vec::new();
        let mut found = None;
        while let Some((connection, since)) = self.0.pop() {
            if now.saturating_duration_since(since) > idle {
                // The others are older still.
                self.0.clear();
                break;
            }
            if connection.is_ready() {
                found = Some(connection);
                break;
            }
            // Its last byte has just come through, and its task has not yet said so: it stays for the next request.
            if !connection.is_closed() {
                settling.push((connection, since));
            }
        }
        self.0.extend(settling.into_iter().rev());
        found
    }
}

/// `connecting`, as long as it may take. On the heap, because most requests find a connection and would hold the space for
/// nothing.
async fn in_time<T>(
    limits: &Limits,
    connecting: Pin<Box<impl Future<Output = std::io::Result<T>>>>,
) -> std::io::Result<T> {
    tokio::time::timeout(limits.connect, connecting)
        .await
        .unwrap_or_else(|_| {
            let late = std::io::ErrorKind::TimedOut;
            Err(std::io::Error::new(late, "connecting took too long"))
        })
}
