//! The other workers' side of the coordinator.

use std::io;
use std::time::{Duration, Instant};

use bytes::Bytes;
use flotilla_core::load::wire::WorkerProgress;
use http::header::{CONTENT_TYPE, HOST, HeaderValue};
use http::{Method, Request};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use crate::barrier::{ClockOffset, ClockReading, Signal};
use crate::coordinator::{Clock, Ready};
use crate::recorder::Identity;

/// Between two questions at the barrier.
const POLL: Duration = Duration::from_millis(250);
/// Every question must be answered within this; the barrier is patient, a worker is not.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Readings of the coordinator's clock; the best one counts.
const READINGS: usize = 8;
/// Beyond the coordinator's own deadline, which begins when it begins.
const SLACK: Duration = Duration::from_secs(30);
/// The largest answer that is read.
const MAX_ANSWER_BYTES: usize = 64 * 1024;

/// Why a worker did not get a start.
#[derive(Debug, thiserror::Error)]
pub enum BarrierError {
    /// The coordinator did not answer in time.
    #[error("the coordinator at {address} could not be reached before the start deadline: {source}")]
    Unreachable {
        /// `host:port`.
        address: String,
        /// The last error.
        source: io::Error,
    },
    /// Too few workers came.
    #[error("too few workers came before the start deadline")]
    Abandoned,
    /// The coordinator has another plan.
    #[error("the coordinator runs another plan, or one with another number of workers")]
    Refused,
    /// A stop came first.
    #[error("stopped before the start")]
    Stopped,
}

/// A common start on this machine's clock.
#[derive(Clone, Copy, Debug)]
pub struct CommonStart {
    /// The start.
    pub at: Instant,
    /// By how much it may be wrong.
    pub uncertainty: Duration,
}

/// Speaks to the coordinator over one connection at a time.
pub struct Follower {
    address: String,
    connection: Option<SendRequest<Full<Bytes>>>,
}

impl Follower {
    /// For the coordinator at `address` (`host:port`); connects when needed.
    pub fn new(address: &str) -> Self {
        Self {
            address: address.to_owned(),
            connection: None,
        }
    }

    /// Waits at the barrier until the start is known, at most `patience` longer than the coordinator may wait.
    ///
    /// # Errors
    /// See [`BarrierError`].
    pub async fn wait_for_start(
        &mut self,
        identity: &Identity,
        patience: Duration,
        stop: &CancellationToken,
    ) -> Result<CommonStart, BarrierError> {
        let deadline = Instant::now() + patience + SLACK;
        let mut ready = Ready {
            index: identity.index,
            workers: identity.workers,
            workload: identity.workload,
            round_trip_nanoseconds: 0,
        };
        loop {
            let asked = Instant::now();
            let answer = tokio::select! {
                answer = self.ask::<Signal>(Method::POST, "/ready", serde_json::to_vec(&ready).unwrap_or_default()) => answer,
                () = stop.cancelled() => return Err(BarrierError::Stopped),
            };
            match answer {
                Ok(Signal::Start { at_nanoseconds }) => match self.read_clock(at_nanoseconds).await {
                    Ok(start) => return Ok(start),
                    Err(error) => self.give_up_after(deadline, error)?,
                },
                Ok(Signal::Abandoned) => return Err(BarrierError::Abandoned),
                Ok(Signal::Refused) => return Err(BarrierError::Refused),
                Ok(Signal::Waiting) => {
                    ready.round_trip_nanoseconds =
                        u64::try_from(asked.elapsed().as_nanos()).unwrap_or(u64::MAX);
                }
                Err(error) => self.give_up_after(deadline, error)?,
            }
            tokio::select! {
                () = tokio::time::sleep(POLL) => {}
                () = stop.cancelled() => return Err(BarrierError::Stopped),
            }
        }
    }

    fn give_up_after(&self, deadline: Instant, source: io::Error) -> Result<(), BarrierError> {
        if Instant::now() < deadline {
            tracing::debug!(error = %source, "the coordinator does not answer yet");
            return Ok(());
        }
        Err(BarrierError::Unreachable {
            address: self.address.clone(),
            source,
        })
    }

    async fn read_clock(&mut self, start: u64) -> io::Result<CommonStart> {
        let epoch = Instant::now();
        let ours = || u64::try_from(epoch.elapsed().as_nanos()).unwrap_or(u64::MAX);
        // Our clock must not be younger than a start that is already past, or it could not be expressed in it.
        let base = u64::MAX / 4;
        let mut readings = Vec::with_capacity(READINGS);
        for _ in 0..READINGS {
            let sent = base + ours();
            let clock: Clock = self.ask(Method::GET, "/clock", Vec::new()).await?;
            readings.push(ClockReading {
                sent,
                their_received: clock.received_nanoseconds,
                their_sent: clock.sent_nanoseconds,
                received: base + ours(),
            });
        }
        let offset = ClockOffset::best_of(&readings).ok_or(io::ErrorKind::InvalidData)?;
        let at = offset.to_ours(start);
        let at = match at.checked_sub(base) {
            Some(ahead) => epoch + Duration::from_nanos(ahead),
            None => epoch
                .checked_sub(Duration::from_nanos(base - at))
                .unwrap_or(epoch),
        };
        Ok(CommonStart {
            at,
            uncertainty: Duration::from_nanos(offset.uncertainty),
        })
    }

    /// Sends a snapshot; losing one costs freshness only.
    pub async fn push(&mut self, progress: &WorkerProgress) {
        let body = serde_json::to_vec(progress).unwrap_or_default();
        if let Err(error) = self.send(Method::POST, "/progress", body).await {
            tracing::debug!(%error, "failed to send progress");
        }
    }

    async fn ask<T: DeserializeOwned>(&mut self, method: Method, path: &str, body: Vec<u8>) -> io::Result<T> {
        let answer = self.send(method, path, body).await?;
        serde_json::from_slice(&answer).map_err(io::Error::other)
    }

    async fn send(&mut self, method: Method, path: &str, body: Vec<u8>) -> io::Result<Bytes> {
        let result = tokio::time::timeout(TIMEOUT, self.exchange(method, path, body)).await;
        let result = result.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        if result.is_err() {
            self.connection = None;
        }
        result
    }

    async fn exchange(&mut self, method: Method, path: &str, body: Vec<u8>) -> io::Result<Bytes> {
        if self.connection.as_ref().is_none_or(SendRequest::is_closed) {
            self.connection = None;
        }
        let connection = match &mut self.connection {
            Some(connection) => connection,
            closed => {
                let stream = TcpStream::connect(&self.address).await?;
                stream.set_nodelay(true)?;
                let (sender, connection) = http1::handshake(TokioIo::new(stream))
                    .await
                    .map_err(io::Error::other)?;
                tokio::spawn(connection);
                closed.insert(sender)
            }
        };
        connection.ready().await.map_err(io::Error::other)?;
        let mut request = Request::new(Full::new(Bytes::from(body)));
        *request.method_mut() = method;
        *request.uri_mut() = path.parse().map_err(io::Error::other)?;
        let headers = request.headers_mut();
        headers.insert(
            HOST,
            HeaderValue::try_from(&self.address).map_err(io::Error::other)?,
        );
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let response = connection.send_request(request).await.map_err(io::Error::other)?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES)
            .collect()
            .await
            .map_err(io::Error::other)?;
        if !status.is_success() {
            return Err(io::Error::other(format!("status {status}")));
        }
        Ok(body.to_bytes())
    }
}
