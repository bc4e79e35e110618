//! A WebSocket from a client to an agent.
//!
//! It is an ordinary request until the agent answers 101; `requestTimeoutSeconds` holds for that part, and this is what the
//! counts of the revision see of it: how a conversation of hours ends says nothing about a release. From then on bytes pass
//! both ways as they come, the slot stays taken, and it is in flight for `/stats` and for the drain.
//!
//! It ends when either side ends it, when no byte has passed for the client's idle time, and when the gateway leaves: then
//! both sides get a `Close` with status 1001 between two frames, as soon as the conversation has been quiet for
//! [`QUIET`], and at the latest [`crate::drain::PARTING`] before the drain's deadline.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use http::header::HeaderMap;
use http::{Method, Response, StatusCode, Version, request};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, timeout};
use tracing::debug;

use super::exchange::Exchange;
use super::websocket::{self, Frames};
use crate::drain::Phase;
use crate::reply::{Outgoing, Refusal};
use crate::upstream::connection::{Connection, Switched};
use crate::upstream::forward;

/// A conversation without a byte for this long may be ended when the gateway leaves.
const QUIET: Duration = Duration::from_secs(5);
/// What the other side has for its own end after one side has ended.
const LINGER: Duration = Duration::from_secs(2);
/// Bytes taken at once in each direction.
const BUFFER: usize = 16 * 1024;

/// A WebSocket that has been agreed on.
pub struct Tunnel {
    client: OnUpgrade,
    agent: Connection,
    /// Holds the slot.
    _exchange: Exchange,
}

/// The client's side of an upgrade, if the request asks for one that is supported.
pub fn wanted(head: &mut request::Parts) -> Result<Option<OnUpgrade>, Refusal> {
    if head.method == Method::CONNECT {
        return Err(Refusal::new(
            StatusCode::NOT_IMPLEMENTED,
            "ConnectNotSupported",
            "CONNECT is not supported here",
        ));
    }
    // Only HTTP/1.1 requests have it, and only those with an Upgrade field.
    let Some(client) = head.extensions.remove::<OnUpgrade>() else {
        return Ok(None);
    };
    match forward::wanted_upgrade(&head.headers) {
        None => Ok(None),
        Some(protocol) if protocol.eq_ignore_ascii_case("websocket") && head.method == Method::GET => {
            Ok(Some(client))
        }
        Some(protocol) => Err(Refusal::new(
            StatusCode::NOT_IMPLEMENTED,
            "UpgradeNotSupported",
            format!("an upgrade to {protocol:?} is not supported; WebSocket (by GET) is"),
        )),
    }
}

impl Tunnel {
    /// The response 101 that opens it.
    pub fn open(
        headers: HeaderMap,
        client: OnUpgrade,
        agent: Connection,
        exchange: Exchange,
    ) -> Response<Outgoing> {
        let tunnel = Self {
            client,
            agent,
            _exchange: exchange,
        };
        let mut response = Response::new(Outgoing::Tunnel(Box::new(tunnel)));
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        *response.version_mut() = Version::HTTP_11;
        *response.headers_mut() = headers;
        forward::set_websocket(response.headers_mut());
        response
    }

    /// Passes bytes on until the end.
    pub async fn run(self, phase: watch::Receiver<Phase>, idle: Duration) {
        let Connection::Exclusive(agent) = self.agent else {
            return;
        };
        let (client, agent) = match tokio::join!(self.client, agent.switched()) {
            (Ok(client), Some(agent)) => (TokioIo::new(client), agent),
            (Err(error), _) => return debug!(%error, "the client has gone before its WebSocket began"),
            (_, None) => return debug!("the agent has gone before its WebSocket began"),
        };
        let Switched { io, read } = agent;
        let (from_client, to_client) = tokio::io::split(client);
        let (from_agent, to_agent) = tokio::io::split(io);
        let state = State::new();
        let up = Direction::new(&state, &state.part_up, to_agent, websocket::close_for_agent());
        let down = Direction::new(&state, &state.part_down, to_client, websocket::close_for_client());
        let both = async {
            tokio::join!(up.pass(from_client, &[]), down.pass(from_agent, &read));
        };
        tokio::select! {
            () = both => {}
            () = state.watch(phase, idle) => {}
        }
    }
}

/// What both directions share.
struct State {
    opened: Instant,
    /// When the last byte passed, in milliseconds after `opened`.
    active: AtomicU64,
    parting: AtomicBool,
    /// Wakes the direction to the agent once `parting` is set.
    part_up: Notify,
    /// And that to the client.
    part_down: Notify,
    ended: Notify,
}

impl State {
    fn new() -> Self {
        Self {
            opened: Instant::now(),
            active: AtomicU64::new(0),
            parting: AtomicBool::new(false),
            part_up: Notify::new(),
            part_down: Notify::new(),
            ended: Notify::new(),
        }
    }

    fn touched(&self) {
        let now = u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.active.store(now, Ordering::Relaxed);
    }

    /// Returns when it is over at the latest.
    async fn watch(&self, mut phase: watch::Receiver<Phase>, idle: Duration) {
        loop {
            let now = *phase.borrow_and_update();
            if now >= Phase::Parting {
                break;
            }
            let patience = if now >= Phase::Closing {
                QUIET.min(idle)
            } else {
                idle
            };
            let quiet = self.opened + Duration::from_millis(self.active.load(Ordering::Relaxed)) + patience;
            if quiet <= Instant::now() {
                break;
            }
            tokio::select! {
                () = tokio::time::sleep_until(quiet) => {}
                changed = phase.changed() => if changed.is_err() { break },
                () = self.ended.notified() => return sleep(LINGER).await,
            }
        }
        self.parting.store(true, Ordering::Relaxed);
        self.part_up.notify_one();
        self.part_down.notify_one();
        sleep(LINGER).await;
    }
}

/// One direction.
struct Direction<'a, W> {
    state: &'a State,
    part: &'a Notify,
    to: W,
    goodbye: Vec<u8>,
}

impl<'a, W: AsyncWrite + Unpin> Direction<'a, W> {
    fn new(state: &'a State, part: &'a Notify, to: W, goodbye: Vec<u8>) -> Self {
        Self {
            state,
            part,
            to,
            goodbye,
        }
    }

    async fn pass(mut self, from: impl AsyncRead + Unpin, first: &[u8]) {
        if let Err(error) = self.copy(from, first).await {
            debug!(%error, "a WebSocket broke off");
        }
        // The peer learns of the end also where this fails.
        let _ = self.to.shutdown().await;
        self.state.ended.notify_one();
    }

    async fn copy(&mut self, mut from: impl AsyncRead + Unpin, first: &[u8]) -> io::Result<()> {
        let mut frames = Frames::default();
        frames.feed(first);
        self.to.write_all(first).await?;
        let mut buffer = vec![0; BUFFER];
        loop {
            if self.state.parting.load(Ordering::Relaxed) && frames.is_between() {
                self.to.write_all(&self.goodbye).await?;
                self.to.flush().await?;
                // What still comes is not for anybody; the peer answers the goodbye and closes.
                let rest = async {
                    while from.read(&mut buffer).await? > 0 {}
                    io::Result::Ok(())
                };
                return timeout(LINGER, rest).await.unwrap_or(Ok(()));
            }
            let count = tokio::select! {
                biased;
                count = from.read(&mut buffer) => count?,
                () = self.part.notified() => continue,
            };
            let bytes = buffer.get(..count).unwrap_or_default();
            if bytes.is_empty() {
                return Ok(());
            }
            self.state.touched();
            frames.feed(bytes);
            self.to.write_all(bytes).await?;
            self.to.flush().await?;
        }
    }
}
