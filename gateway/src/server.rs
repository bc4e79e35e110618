//! Listening, and the life of a client's connection.
//!
//! HTTP/1.1 and HTTP/2 with prior knowledge (h2c) come in on every port. hyper refuses ambiguous framing; what it does not
//! bound is bounded here: the time for a head (from its first byte, so that an idle keep-alive connection is not cut just
//! when its client sends again), idle time, the time a client may take to read a response, headers and connections.

mod socket;
pub mod workers;

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Request, Response, StatusCode, Version};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, Semaphore};
use tokio::time::{Instant, Sleep};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::drain::{Drain, Phase};
use crate::ingress::tunnel::Tunnel;
use crate::observe::{Ending, Observe, Plane, Record, request_id};
use crate::reply::{Broken, Outgoing};
use socket::ClientIo;
use workers::Workers;

/// Bytes of one HTTP/1.1 head, and of what is read ahead of a body.
const MAX_BUFFER: usize = 128 * 1024;
/// Bytes of one HTTP/2 header list.
const MAX_HEADER_LIST: u32 = 64 * 1024;
/// Streams of one HTTP/2 connection.
const MAX_STREAMS: u32 = 1000;
/// An HTTP/2 client is asked this often whether it is still there.
const PING_INTERVAL: Duration = Duration::from_secs(30);
/// And has this long to answer.
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// Pause after a failed accept: without a free file descriptor the next one fails at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Bounds of a connection.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionLimits {
    /// From the first byte of a head to its last.
    pub head: Duration,
    /// Without a request.
    pub idle: Duration,
    /// Without a byte taken by the client while a response waits for it.
    pub stall: Duration,
}

/// What all listeners share.
pub struct Serving {
    /// The way out.
    pub drain: Arc<Drain>,
    /// Connections that may be served at once; further ones wait: one of each listener here, the others in the kernel.
    pub permits: Arc<Semaphore>,
    /// Bounds of each.
    pub limits: ConnectionLimits,
    /// What is told of requests.
    pub observe: Observe,
    /// Who carries them.
    pub workers: Arc<Workers>,
}

/// Answers requests.
pub trait Handler: Send + Sync + 'static {
    /// Which way its requests go.
    const PLANE: Plane;

    /// Answers one request from `client`.
    fn handle(
        &self,
        request: Request<Incoming>,
        client: SocketAddr,
    ) -> impl Future<Output = Response<Outgoing>> + Send;
}

/// Accepts until `stop` or until the drain closes.
pub async fn serve<H: Handler>(
    listener: TcpListener,
    handler: Arc<H>,
    serving: Arc<Serving>,
    stop: CancellationToken,
) {
    let mut phase = serving.drain.watch();
    let mut builder = auto::Builder::new(TokioExecutor::new());
    // hyper answers more than 100 header fields with 431. Another bound would cost an allocation for each request.
    builder.http1().max_buf_size(MAX_BUFFER).header_read_timeout(None);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .max_header_list_size(MAX_HEADER_LIST)
        .max_concurrent_streams(MAX_STREAMS);
    let builder = Arc::new(builder);
    let mut closing = pin!(async move {
        // The sender lives as long as the drain, which this task holds.
        let _ = phase.wait_for(|phase| *phase >= Phase::Closing).await;
    });
    loop {
        let accepted = tokio::select! {
            biased;
            () = &mut closing => break,
            () = stop.cancelled() => break,
            accepted = accept(&listener, &serving.permits) => accepted,
        };
        match accepted {
            Ok((stream, client, permit)) => {
                let (handler, serving, builder) = (handler.clone(), serving.clone(), builder.clone());
                let workers = serving.workers.clone();
                workers.carry(stream, move |stream| async move {
                    connection(stream, client, handler, &serving, &builder).await;
                    drop(permit);
                });
            }
            Err(error) => {
                warn!(%error, "failed to accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn accept(
    listener: &TcpListener,
    permits: &Arc<Semaphore>,
) -> io::Result<(TcpStream, SocketAddr, tokio::sync::OwnedSemaphorePermit)> {
    let (stream, client) = listener.accept().await?;
    stream.set_nodelay(true)?;
    // In this order, because a listener without clients must not hold what others need.
    let permit = permits.clone().acquire_owned().await.map_err(io::Error::other)?;
    Ok((stream, client, permit))
}

async fn connection<H: Handler>(
    stream: TcpStream,
    client: SocketAddr,
    handler: Arc<H>,
    serving: &Serving,
    builder: &auto::Builder<TokioExecutor>,
) {
    let _guard = serving.drain.connection();
    let state = Arc::new(State::new());
    let io = TokioIo::new(ClientIo::new(stream, state.clone(), serving.limits));
    let service = service_fn(|mut request: Request<Incoming>| {
        let guard = RequestGuard::new(state.clone(), serving.drain.clone(), request.version());
        let id = (H::PLANE == Plane::Ingress).then(|| request_id::ensure(request.headers_mut()));
        let record = serving.observe.begin(H::PLANE, &mut request, client);
        let handler = handler.clone();
        async move {
            let mut response = handler.handle(request, client).await;
            if let Some(id) = id {
                let entry = response.headers_mut().entry(request_id::NAME);
                entry.or_insert(id);
            }
            if guard.state.is_http2() {
                response = response.map(Outgoing::detached);
            } else if guard.drain.is_leaving() && response.status() != StatusCode::SWITCHING_PROTOCOLS {
                let close = HeaderValue::from_static("close");
                response.headers_mut().insert(header::CONNECTION, close);
            }
            Ok::<_, Infallible>(guarded(response, guard, record))
        }
    });
    let mut connection = pin!(builder.serve_connection_with_upgrades(io, service));
    let mut phase = serving.drain.watch();
    let mut asked_to_leave = false;
    // With HTTP/1.1 the socket looks after it.
    let mut http2_idle: Option<Pin<Box<Sleep>>> = None;
    loop {
        let now = *phase.borrow_and_update();
        if now == Phase::Aborted {
            // It holds its own connection's state.
            state.tunnel.lock().take();
            return;
        }
        let leave = now >= Phase::Closing || (now == Phase::Draining && state.is_http2());
        if leave && !std::mem::replace(&mut asked_to_leave, true) {
            connection.as_mut().graceful_shutdown();
        }
        let idle = async {
            match &mut http2_idle {
                Some(idle) => idle.await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            result = connection.as_mut() => {
                if let Err(error) = result {
                    debug!(%client, error, "connection ended");
                }
                break;
            }
            _ = phase.changed() => {}
            () = state.became_http2.notified() => {
                http2_idle = Some(Box::pin(tokio::time::sleep(serving.limits.idle)));
            }
            () = idle, if !asked_to_leave => {
                let since = if state.streams.load(Ordering::Relaxed) > 0 {
                    Instant::now()
                } else {
                    state.idle_since()
                };
                let due = since + serving.limits.idle;
                if due <= Instant::now() {
                    asked_to_leave = true;
                    connection.as_mut().graceful_shutdown();
                } else {
                    http2_idle = Some(Box::pin(tokio::time::sleep_until(due)));
                }
            }
        }
    }
    let tunnel = state.tunnel.lock().take();
    if let Some((tunnel, _request)) = tunnel {
        let mut aborted = serving.drain.watch();
        tokio::select! {
            // On the heap, because every connection's task would hold the space for it.
            () = Box::pin(tunnel.run(phase, serving.limits.idle)) => {}
            _ = aborted.wait_for(|phase| *phase >= Phase::Aborted) => {}
        }
    }
}

/// The response with what follows it to its end. A tunnel is put aside for the connection's task.
fn guarded(
    response: Response<Outgoing>,
    guard: RequestGuard,
    mut record: Option<Box<Record>>,
) -> Response<Guarded> {
    if let Some(record) = &mut record {
        record.answered(&response);
    }
    response.map(|body| match body {
        Outgoing::Tunnel(tunnel) => {
            let state = guard.state.clone();
            *state.tunnel.lock() = Some((tunnel, guard));
            if let Some(record) = &mut record {
                record.ended(Ending::Whole);
            }
            Guarded {
                body: Outgoing::Held(None),
                _guard: None,
                record,
            }
        }
        body => {
            if let Some(record) = &mut record
                && body.is_end_stream()
            {
                record.ended(Ending::Whole);
            }
            Guarded {
                body,
                _guard: Some(guard),
                record,
            }
        }
    })
}

// === one connection's state ===

const FRESH: u8 = 0;
const READING_HEAD: u8 = 1;
const BUSY: u8 = 2;
const HTTP2: u8 = 3;

/// What the socket must know of the requests on it.
struct State {
    stage: AtomicU8,
    became_http2: Notify,
    /// Requests under way over HTTP/2.
    streams: AtomicU32,
    opened: Instant,
    /// End of the last request, in milliseconds after `opened`.
    idle_since: AtomicU64,
    /// What the connection becomes after HTTP.
    tunnel: Mutex<Option<(Box<Tunnel>, RequestGuard)>>,
}

impl State {
    fn new() -> Self {
        Self {
            stage: AtomicU8::new(FRESH),
            became_http2: Notify::new(),
            streams: AtomicU32::new(0),
            opened: Instant::now(),
            idle_since: AtomicU64::new(0),
            tunnel: Mutex::default(),
        }
    }

    fn idle_since(&self) -> Instant {
        self.opened + Duration::from_millis(self.idle_since.load(Ordering::Relaxed))
    }

    fn stage(&self) -> u8 {
        self.stage.load(Ordering::Relaxed)
    }

    fn is_http2(&self) -> bool {
        self.stage() == HTTP2
    }

    fn bytes_came(&self) {
        // Bytes of a body come while busy.
        let _ = self
            .stage
            .compare_exchange(FRESH, READING_HEAD, Ordering::Relaxed, Ordering::Relaxed);
    }

    fn request_started(&self, version: Version) {
        if version == Version::HTTP_2 {
            self.streams.fetch_add(1, Ordering::Relaxed);
            if self.stage.swap(HTTP2, Ordering::Relaxed) != HTTP2 {
                self.became_http2.notify_one();
            }
        } else {
            self.stage.store(BUSY, Ordering::Relaxed);
        }
    }

    fn request_ended(&self) {
        let now = u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.idle_since.store(now, Ordering::Relaxed);
        if self.is_http2() {
            self.streams.fetch_sub(1, Ordering::Relaxed);
        }
        let _ = self
            .stage
            .compare_exchange(BUSY, FRESH, Ordering::Relaxed, Ordering::Relaxed);
    }
}

/// A request from its head to the last byte of its response, or to its end by other means.
struct RequestGuard {
    state: Arc<State>,
    drain: Arc<Drain>,
}

impl RequestGuard {
    fn new(state: Arc<State>, drain: Arc<Drain>, version: Version) -> Self {
        state.request_started(version);
        drain.request_started();
        Self { state, drain }
    }
}

impl Drop for RequestGuard {
    fn drop(&mut self) {
        self.state.request_ended();
        self.drain.request_ended();
    }
}

/// A response's body with what follows it to its end.
struct Guarded {
    body: Outgoing,
    _guard: Option<RequestGuard>,
    record: Option<Box<Record>>,
}

impl Guarded {
    fn note(&mut self, frame: &Option<Result<Frame<Bytes>, Broken>>) {
        let Some(record) = &mut self.record else { return };
        match frame {
            Some(Ok(frame)) => {
                record.sent(frame.data_ref().map_or(0, |data| data.len() as u64));
                if self.body.is_end_stream() {
                    record.ended(Ending::Whole);
                }
            }
            Some(Err(_)) => record.ended(Ending::Broken),
            None => record.ended(Ending::Whole),
        }
    }
}

impl Body for Guarded {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let this = self.get_mut();
        let frame = ready!(Pin::new(&mut this.body).poll_frame(cx));
        this.note(&frame);
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
