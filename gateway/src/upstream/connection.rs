//! Connections to peers: an HTTP/1.1 one, and what its socket says about how it ended, or a share of an HTTP/2 one.
//!
//! The task that drives the connection outlives it by a moment: when it ended in the middle of an exchange, the task asks
//! the socket whether the peer answered our data with a reset. After a FIN the reset needs one more round trip, so the
//! question is repeated for [`RESET_WAIT`]; Linux keeps the answer in `SO_ERROR` (`EPIPE` when the FIN came first, else
//! `ECONNRESET`).

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::body::RequestBody;
use super::http2::Stream;
use super::{Failure, FailureKind, Sending, Target};
use crate::server::workers;

/// How long a reset may come after a FIN: several round trips inside a cluster, short for a client that waits.
const RESET_WAIT: Duration = Duration::from_millis(50);
/// Pause between two questions to the socket.
const RESET_POLL: Duration = Duration::from_millis(5);

/// What an exchange runs over.
#[derive(Debug)]
pub enum Connection {
    /// An HTTP/1.1 connection.
    Exclusive(Exclusive),
    /// A stream of an HTTP/2 connection that others use too.
    Stream(Stream),
}

/// A connection that has no exchange in progress, or exactly one.
#[derive(Debug)]
pub struct Exclusive {
    shared: Arc<Shared>,
    /// `Some(unread)` after the end.
    end: watch::Receiver<Option<bool>>,
    reused: bool,
    worker: usize,
}

/// What the connection and its task share.
#[derive(Debug)]
struct Shared {
    /// `None` after the end. The task takes it then, because a request that enters hyper's channel in the very moment in
    /// which the other end of it goes stays in there, and its sender waits for ever, until the last sending half is gone.
    sender: Mutex<Option<SendRequest<RequestBody>>>,
    /// A request is out and its response has not begun.
    waiting: AtomicBool,
    /// The request asked for another protocol: the socket is not closed at the end of HTTP, but left here.
    switching: AtomicBool,
    switched: Mutex<Option<Switched>>,
}

/// A socket that no longer speaks HTTP, and what was read from it already.
#[derive(Debug)]
pub struct Switched {
    /// The socket.
    pub io: Io,
    /// Bytes that came right behind the head.
    pub read: Bytes,
}

impl Exclusive {
    /// Starts HTTP over `io`, driven by a task of its own.
    pub(super) async fn new(io: Io) -> io::Result<Self> {
        let (sender, connection) = http1::handshake(TokioIo::new(io))
            .await
            .map_err(io::Error::other)?;
        let (report, end) = watch::channel(None);
        let shared = Arc::new(Shared {
            sender: Mutex::new(Some(sender)),
            waiting: AtomicBool::new(false),
            switching: AtomicBool::new(false),
            switched: Mutex::default(),
        });
        tokio::spawn(drive(connection, report, shared.clone()));
        Ok(Self {
            shared,
            end,
            reused: false,
            worker: workers::current(),
        })
    }

    /// The worker on whose thread it is driven.
    pub(super) fn worker(&self) -> usize {
        self.worker
    }

    /// Takes another request at once.
    pub(super) fn is_ready(&self) -> bool {
        self.shared
            .sender
            .lock()
            .as_ref()
            .is_some_and(SendRequest::is_ready)
    }

    /// Will never take another request.
    pub(super) fn is_closed(&self) -> bool {
        self.shared
            .sender
            .lock()
            .as_ref()
            .is_none_or(SendRequest::is_closed)
    }

    pub(super) async fn send(&mut self, request: Sending) -> Result<Response<Incoming>, Failure> {
        let reused = std::mem::replace(&mut self.reused, true);
        let error = match self.begin(request)?.await {
            Ok(response) => {
                self.shared.waiting.store(false, Ordering::Relaxed);
                return Ok(response);
            }
            Err(error) => failed(error)?,
        };
        let kind = if is_end(&error) {
            FailureKind::Closed {
                unread: is_refusal(&error) || self.ended_unread().await,
                reused,
            }
        } else {
            FailureKind::Broken(error)
        };
        Err(Failure { kind, request: None })
    }

    /// Hands `request` to the task. What waits for the response holds nothing else.
    fn begin(
        &self,
        request: Sending,
    ) -> Result<
        impl Future<Output = Result<Response<Incoming>, TrySendError<Request<RequestBody>>>> + use<>,
        Failure,
    > {
        let shared = &self.shared;
        shared.waiting.store(true, Ordering::Relaxed);
        let switching = request.body().is_switching();
        shared.switching.store(switching, Ordering::Relaxed);
        match shared.sender.lock().as_mut() {
            Some(sender) => Ok(sender.try_send_request(*request)),
            None => Err(Failure {
                kind: FailureKind::NotSent(io::ErrorKind::NotConnected.into()),
                request: Some(request),
            }),
        }
    }

    /// The socket, after a response that switches protocols. `None` if the peer has closed it.
    pub(crate) async fn switched(mut self) -> Option<Switched> {
        // An error means that the task has gone, and what it left is here all the same.
        let _ = self.end.wait_for(Option::is_some).await;
        self.shared.switched.lock().take()
    }

    async fn ended_unread(&mut self) -> bool {
        match self.end.wait_for(Option::is_some).await {
            Ok(unread) => *unread == Some(true),
            Err(_) => false,
        }
    }
}

impl Drop for Exclusive {
    fn drop(&mut self) {
        // hyper closes the connection when its sending half goes; the task would keep it.
        self.shared.sender.lock().take();
    }
}

/// Why a request that went out has no response.
///
/// # Errors
/// It did not go out.
fn failed(mut error: TrySendError<Request<RequestBody>>) -> Result<hyper::Error, Failure> {
    let request = error.take_message();
    let error = error.into_error();
    match request {
        None => Ok(error),
        Some(request) => Err(Failure {
            kind: FailureKind::NotSent(io::Error::other(error)),
            request: Some(Box::new(request)),
        }),
    }
}

/// The connection ended, as opposed to: it carried nonsense.
fn is_end(error: &hyper::Error) -> bool {
    error.is_incomplete_message() || error.is_closed() || error.is_canceled() || io_error(error).is_some()
}

fn is_refusal(error: &hyper::Error) -> bool {
    io_error(error).is_some_and(is_reset)
}

fn is_reset(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
    )
}

fn io_error(error: &hyper::Error) -> Option<&io::Error> {
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        if let Some(error) = error.downcast_ref() {
            return Some(error);
        }
        source = error.source();
    }
    None
}

/// Drives the connection to its end. hyper tells whoever waits for a response of an error, and may then call the end of
/// the connection itself a success: so it is the waiting that decides whether the socket is asked.
async fn drive(
    mut connection: http1::Connection<TokioIo<Io>, RequestBody>,
    report: watch::Sender<Option<bool>>,
    shared: Arc<Shared>,
) {
    let result = poll_fn(|cx| connection.poll_without_shutdown(cx)).await;
    let parts = connection.into_parts();
    let mut io = parts.io.into_inner();
    drop(shared.sender.lock().take());
    if result.is_ok() && shared.switching.load(Ordering::Relaxed) {
        let read = parts.read_buf;
        *shared.switched.lock() = Some(Switched { io, read });
        report.send_replace(Some(false));
        return;
    }
    let refused = result.as_ref().is_err_and(is_refusal);
    let unread = refused || (shared.waiting.load(Ordering::Relaxed) && io.was_reset().await);
    report.send_replace(Some(unread));
    // A courtesy: the peer learns of the end also when this fails.
    let _ = io.shutdown().await;
}

/// The bytes under a connection.
#[derive(Debug)]
pub enum Io {
    /// Without TLS.
    Plain(TcpStream),
    /// With TLS.
    Tls(Box<TlsStream<TcpStream>>),
}

impl Io {
    pub(super) async fn connect(target: &Target) -> io::Result<Self> {
        let (tcp, tls) = match target {
            Target::Address(address) => (TcpStream::connect(address).await?, None),
            Target::Name { host, port, tls } => {
                (TcpStream::connect((host.as_str(), *port)).await?, tls.as_ref())
            }
        };
        tcp.set_nodelay(true)?;
        match tls {
            None => Ok(Self::Plain(tcp)),
            Some((config, name)) => {
                let stream = TlsConnector::from(config.clone())
                    .connect(name.clone(), tcp)
                    .await?;
                Ok(Self::Tls(Box::new(stream)))
            }
        }
    }

    fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(tcp) => tcp,
            Self::Tls(tls) => tls.get_ref().0,
        }
    }

    /// Whether the peer has reset the connection, or does so within [`RESET_WAIT`].
    async fn was_reset(&self) -> bool {
        let mut left = RESET_WAIT;
        loop {
            match self.tcp().take_error() {
                Ok(Some(error)) => return is_reset(&error),
                Ok(None) if !left.is_zero() => {
                    tokio::time::sleep(RESET_POLL).await;
                    left = left.saturating_sub(RESET_POLL);
                }
                _ => return false,
            }
        }
    }
}

impl AsyncRead for Io {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Self::Tls(tls) => Pin::new(tls).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Io {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_write(cx, buf),
            Self::Tls(tls) => Pin::new(tls).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_write_vectored(cx, bufs),
            Self::Tls(tls) => Pin::new(tls).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(tcp) => tcp.is_write_vectored(),
            Self::Tls(tls) => tls.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_flush(cx),
            Self::Tls(tls) => Pin::new(tls).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Self::Tls(tls) => Pin::new(tls).poll_shutdown(cx),
        }
    }
}
