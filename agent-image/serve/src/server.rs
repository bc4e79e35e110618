//! One listener, and how it ends.
//!
//! When `shutdown` is cancelled the server becomes a lame duck: it goes on accepting, because in Kubernetes
//! some clients hear of a pod's end later than the pod does, but it asks every client to close its connection
//! with the answer. Once nothing is in flight (and a minimum has passed) the listener closes, idle connections
//! are closed, and the server ends. A response counts as in flight until its body has ended, so streams
//! finish. The drain's time-out ends whatever is left.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::time::Duration;

use http::{HeaderValue, Request, Response, Version, header};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::body::{Body, with_guard};

/// How long a connection may be idle, or take to send its request head. Longer than the idle time of any
/// client pool in use (90 s at most): the side that sends requests should be the one that closes, otherwise a
/// request can meet a closing connection.
const IDLE_TIMEOUT: Duration = Duration::from_secs(900);

/// How long to wait after a failed `accept`, which is mostly for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How long the end may take.
#[derive(Debug, Clone, Copy)]
pub struct DrainLimits {
    /// Accept for at least this long after the shutdown began.
    pub minimum: Duration,
    /// End whatever is left after this long.
    pub timeout: Duration,
}

/// A running server. Dropping it lets it run on; `shutdown` ends it.
#[derive(Debug)]
pub struct Running {
    /// The bound address, with the real port when port 0 was asked for.
    pub addr: SocketAddr,
    task: JoinHandle<()>,
}

impl Running {
    /// Waits until the server has ended.
    pub async fn ended(self) {
        if let Err(error) = self.task.await {
            tracing::error!(%error, "the server task ended abnormally");
        }
    }
}

/// Binds `listen` and serves `handler` until `shutdown` is cancelled and the drain is over.
///
/// A handler's future is dropped when its client goes away. Fails only when the address cannot be bound.
pub async fn start<H, F>(
    listen: SocketAddr,
    limits: DrainLimits,
    shutdown: CancellationToken,
    handler: H,
) -> io::Result<Running>
where
    H: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let listener = TcpListener::bind(listen).await?;
    let addr = listener.local_addr()?;
    let task = tokio::spawn(serve(listener, limits, shutdown, handler));
    Ok(Running { addr, task })
}

async fn serve<H, F>(listener: TcpListener, limits: DrainLimits, shutdown: CancellationToken, handler: H)
where
    H: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE_TIMEOUT);
    builder.http2().timer(TokioTimer::new());

    let deadline = CancellationToken::new();
    tokio::spawn({
        let (shutdown, deadline) = (shutdown.clone(), deadline.clone());
        async move {
            shutdown.cancelled().await;
            tokio::time::sleep(limits.timeout).await;
            deadline.cancel();
        }
    });

    let in_flight = TaskTracker::new();
    let connections = TaskTracker::new();
    let graceful = GracefulShutdown::new();
    let mut drained = pin!(async {
        shutdown.cancelled().await;
        tokio::time::sleep(limits.minimum).await;
        in_flight.close();
        in_flight.wait().await;
    });
    loop {
        let socket = tokio::select! {
            () = deadline.cancelled() => break,
            () = &mut drained => break,
            accepted = listener.accept() => match accepted {
                Ok((socket, _)) => socket,
                Err(error) => {
                    tracing::warn!(%error, "failed to accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            },
        };
        let service = {
            let (handler, in_flight, shutdown) = (handler.clone(), in_flight.clone(), shutdown.clone());
            service_fn(move |request: Request<Incoming>| {
                let token = in_flight.token();
                let shutdown = shutdown.clone();
                let close_with_header = request.version() < Version::HTTP_2;
                let answer = handler(request);
                async move {
                    let mut response = answer.await;
                    if close_with_header && shutdown.is_cancelled() {
                        response
                            .headers_mut()
                            .insert(header::CONNECTION, HeaderValue::from_static("close"));
                    }
                    Ok::<_, Infallible>(with_guard(response, token))
                }
            })
        };
        let connection = builder
            .serve_connection(TokioIo::new(no_delay(socket)), service)
            .into_owned();
        let connection = graceful.watch(connection);
        let deadline = deadline.clone();
        connections.spawn(async move {
            tokio::select! {
                () = deadline.cancelled() => {}
                result = connection => if let Err(error) = result {
                    tracing::debug!(%error, "a connection ended early");
                },
            }
        });
    }
    drop(listener);
    tokio::select! {
        () = deadline.cancelled() => tracing::warn!("the drain's time-out ended requests that were still in flight"),
        () = graceful.shutdown() => {}
    }
    connections.close();
    connections.wait().await;
}

/// Small event frames must not wait for the acknowledgement of the one before.
fn no_delay(socket: TcpStream) -> TcpStream {
    if let Err(error) = socket.set_nodelay(true) {
        tracing::debug!(%error, "failed to set TCP_NODELAY");
    }
    socket
}

/// Resolves at the first SIGTERM or SIGINT.
pub async fn terminated() -> io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}
