//! A client's socket with its time limits, and its end.

use std::future::Future;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};

use super::{ConnectionLimits, FRESH, READING_HEAD, State};

/// A client that still sends when its connection ends has this long to notice.
const LINGER: Duration = Duration::from_secs(2);
/// Reads in one go meanwhile.
const MAX_LINGER_READS: usize = 64;
/// A client's socket with its time limits. The timer is touched only where the socket has nothing to give or take.
pub(super) struct ClientIo {
    tcp: TcpStream,
    state: Arc<State>,
    limits: ConnectionLimits,
    timer: Option<Pin<Box<Sleep>>>,
    /// What the timer was set for.
    waiting: Waiting,
    /// First byte of the head that is being read.
    head_since: Instant,
    /// Set while what the client still sends is taken and forgotten.
    linger_until: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Waiting {
    Nothing,
    Head,
    Idle,
    Write,
    Linger,
}

impl ClientIo {
    pub(super) fn new(tcp: TcpStream, state: Arc<State>, limits: ConnectionLimits) -> Self {
        Self {
            tcp,
            state,
            limits,
            timer: None,
            waiting: Waiting::Nothing,
            head_since: Instant::now(),
            linger_until: None,
        }
    }

    /// Pending until `deadline`, then an error.
    fn poll_deadline(
        &mut self,
        cx: &mut Context<'_>,
        waiting: Waiting,
        deadline: Instant,
    ) -> Poll<io::Error> {
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        if self.waiting != waiting {
            self.waiting = waiting;
            timer.as_mut().reset(deadline);
        }
        ready!(timer.as_mut().poll(cx));
        if deadline > Instant::now() {
            // The timer was set before the last byte came.
            timer.as_mut().reset(deadline);
            ready!(timer.as_mut().poll(cx));
        }
        Poll::Ready(io::ErrorKind::TimedOut.into())
    }
}

impl AsyncRead for ClientIo {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Poll::Ready(result) = Pin::new(&mut this.tcp).poll_read(cx, buf) {
            if this.state.stage() == FRESH {
                this.head_since = Instant::now();
                this.state.bytes_came();
            }
            return Poll::Ready(result);
        }
        let (waiting, deadline) = match this.state.stage() {
            FRESH => (Waiting::Idle, this.state.idle_since() + this.limits.idle),
            READING_HEAD => (Waiting::Head, this.head_since + this.limits.head),
            _ => return Poll::Pending,
        };
        this.poll_deadline(cx, waiting, deadline).map(Err)
    }
}

impl ClientIo {
    fn after_write<T>(&mut self, cx: &mut Context<'_>, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            if self.waiting == Waiting::Write {
                self.waiting = Waiting::Nothing;
            }
            return polled;
        }
        let limit = match self.waiting {
            // The deadline of a wait that has begun does not move.
            Waiting::Write => self
                .timer
                .as_ref()
                .map_or_else(Instant::now, |timer| timer.deadline()),
            _ => Instant::now() + self.limits.stall,
        };
        self.poll_deadline(cx, Waiting::Write, limit).map(Err)
    }
}

impl AsyncWrite for ClientIo {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.tcp).poll_write(cx, buf);
        this.after_write(cx, polled)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.tcp).poll_write_vectored(cx, bufs);
        this.after_write(cx, polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().tcp).poll_flush(cx)
    }

    /// Ends the writing half, and then takes and forgets what the client still sends, for a moment: closing a socket with
    /// unread bytes resets it, and the client would lose the response (413 as a rule) that it has not read yet.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let (first, until) = match this.linger_until {
            Some(until) => (false, until),
            None => {
                ready!(Pin::new(&mut this.tcp).poll_shutdown(cx))?;
                (true, Instant::now() + LINGER)
            }
        };
        let mut space = [MaybeUninit::uninit(); 4096];
        for read in 0..MAX_LINGER_READS {
            let mut bytes = ReadBuf::uninit(&mut space);
            match Pin::new(&mut this.tcp).poll_read(cx, &mut bytes) {
                Poll::Ready(Ok(())) if !bytes.filled().is_empty() => this.linger_until = Some(until),
                Poll::Ready(_) => return Poll::Ready(Ok(())),
                // Nothing is on its way: a client that is done is not waited for.
                Poll::Pending if first && read == 0 => return Poll::Ready(Ok(())),
                Poll::Pending => {
                    let over = this.poll_deadline(cx, Waiting::Linger, until);
                    return over.map(|_| Ok(()));
                }
            }
        }
        if until <= Instant::now() {
            return Poll::Ready(Ok(()));
        }
        // Others want to be served too.
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}
