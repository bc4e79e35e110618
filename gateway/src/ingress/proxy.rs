//! One request from a client to an agent and back.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, request};
use http_body::Body as _;
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep};
use tracing::debug;

use super::pool::{self, Assignment, Claim, Pool};
use super::revision::{Permit, Revision};
use super::windows::{Outcome, Window};
use crate::reply::{End, Observer, Outgoing, Passing, Refusal};
use crate::session::visit::{Begun, Served, Visit};
use crate::upstream::body::{BUFFERED, RequestBody};
use crate::upstream::connection::Connection;
use crate::upstream::{FailureKind, forward};

/// Sends of one request at most: with several replicas gone at once the client should know.
const MAX_SENDS: u32 = 4;
/// Pause before an endpoint is tried that could not be reached a moment ago; doubled each time.
const FIRST_PAUSE: Duration = Duration::from_millis(50);

/// Serves `request` from `client` by `pool`; `prefix` was cut off its path.
pub async fn serve(
    pool: &Pool,
    request: Request<Incoming>,
    client: SocketAddr,
    prefix: Option<&str>,
) -> Response<Outgoing> {
    match try_serve(pool, request, client, prefix).await {
        Ok(response) => response,
        Err(refusal) => refusal.into_response(),
    }
}

async fn try_serve(
    pool: &Pool,
    request: Request<Incoming>,
    client: SocketAddr,
    prefix: Option<&str>,
) -> Result<Response<Outgoing>, Refusal> {
    let arrival = Instant::now();
    let unix_seconds = unix_seconds();
    let (mut head, body) = request.into_parts();
    refuse_upgrades(&head)?;
    let timeout = pool.traffic().request_timeout;
    let deadline = arrival + timeout;
    let mut timer = Box::pin(tokio::time::sleep_until(deadline));
    let body = tokio::select! {
        biased;
        body = hold(body) => body?,
        () = timer.as_mut() => return Err(pool::timed_out(timeout)),
    };
    let mut claim = Claim::new(arrival, deadline);
    let (body, visit) = match pool.sessions() {
        None => (body, None),
        Some(sessions) => {
            let arrival = tokio::select! {
                biased;
                arrival = Visit::begin(sessions, &mut head, body, prefix) => {
                    arrival.map_err(|_| body_incomplete())?
                }
                () = timer.as_mut() => return Err(pool::timed_out(timeout)),
            };
            claim.session = arrival.session;
            (arrival.body, Some(arrival.visit))
        }
    };
    let streamed = body.again().is_none();
    forward::to_agent(&mut head, client.ip().to_canonical(), streamed, prefix);
    let mut attempts = Attempts {
        pool,
        claim,
        generation: -1,
        unix_seconds,
        method: head.method.clone(),
        reuse: !streamed,
        sends: 0,
        pause: FIRST_PAUSE,
    };
    let request = Request::from_parts(head, body);
    let (response, connection, mut exchange) = attempts.run(request, &mut timer).await?;
    let begun = match visit {
        None => Begun::untouched(response),
        Some(visit) => {
            let served = Served {
                revision: &exchange.permit.revision,
                replica: exchange.permit.endpoint.address,
                generation: attempts.generation,
            };
            let begun = tokio::select! {
                biased;
                begun = visit.finish(response, attempts.claim.session.take(), served) => begun,
                () = timer.as_mut() => {
                    exchange.tally.end(None, End::TimedOut);
                    return Err(pool::timed_out(timeout));
                }
            };
            match begun {
                Ok(begun) => begun,
                Err(error) => {
                    exchange.tally.end(None, End::Cut);
                    return Err(no_response(&FailureKind::Broken(error)));
                }
            }
        }
    };
    Ok(passed_on(begun, connection, exchange, timer))
}

fn passed_on(
    begun: Begun,
    connection: Connection,
    mut exchange: Exchange,
    timer: std::pin::Pin<Box<Sleep>>,
) -> Response<Outgoing> {
    let (mut head, body) = begun.response.into_parts();
    forward::to_client(&mut head);
    exchange.answered(head.status, connection);
    let passing = Passing::resumed(begun.first, body, timer, exchange);
    Response::from_parts(head, Outgoing::Agent(passing))
}

fn body_incomplete() -> Refusal {
    Refusal::new(
        StatusCode::BAD_REQUEST,
        "BodyIncomplete",
        "the request's body ended before the length that its head gives",
    )
}

fn refuse_upgrades(head: &request::Parts) -> Result<(), Refusal> {
    if head.method == Method::CONNECT {
        return Err(Refusal::new(
            StatusCode::NOT_IMPLEMENTED,
            "ConnectNotSupported",
            "CONNECT is not supported here",
        ));
    }
    match forward::wanted_upgrade(&head.headers) {
        None => Ok(()),
        Some(protocol) => Err(Refusal::new(
            StatusCode::NOT_IMPLEMENTED,
            "UpgradeNotSupported",
            format!(
                "an upgrade to {protocol:?} is not supported; stream by chunked bodies or server-sent events"
            ),
        )),
    }
}

/// A short body of known length is read whole, anything else is left as it comes.
pub(crate) async fn hold(body: Incoming) -> Result<RequestBody, Refusal> {
    match body.size_hint().exact() {
        Some(0) => Ok(RequestBody::Held(None)),
        Some(length) if length <= BUFFERED => {
            let limit = usize::try_from(BUFFERED).unwrap_or(usize::MAX);
            match Limited::new(body, limit).collect().await {
                Ok(whole) => Ok(RequestBody::held(whole.to_bytes())),
                Err(_) => Err(body_incomplete()),
            }
        }
        _ => Ok(RequestBody::Streamed(body)),
    }
}

fn unix_seconds() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |time| i64::try_from(time.as_secs()).unwrap_or(i64::MAX))
}

/// The sends of one request, until there is a response or nothing more may be tried.
struct Attempts<'a> {
    pool: &'a Pool,
    claim: Claim,
    /// `trafficGeneration` of the last assignment.
    generation: i64,
    unix_seconds: i64,
    method: Method,
    /// Idle connections may be used.
    reuse: bool,
    sends: u32,
    pause: Duration,
}

impl Attempts<'_> {
    async fn run(
        &mut self,
        mut request: Request<RequestBody>,
        timer: &mut std::pin::Pin<Box<Sleep>>,
    ) -> Result<(Response<Incoming>, Connection, Exchange), Refusal> {
        let mut tally: Option<Tally> = None;
        loop {
            let Assignment { permit, generation } = match self.pool.assign(&mut self.claim).await {
                Ok(assignment) => assignment,
                Err(refusal) => {
                    if let Some(mut tally) = tally {
                        tally.end(None, End::Cut);
                    }
                    return Err(refusal);
                }
            };
            self.generation = generation;
            // A second send to the same revision is the same request to the statistics.
            let mut counted = match tally.take() {
                Some(tally) if Arc::ptr_eq(&tally.revision, &permit.revision) => tally,
                other => {
                    if let Some(mut other) = other {
                        other.end(None, End::Cut);
                    }
                    Tally::start(
                        &permit.revision,
                        self.unix_seconds,
                        self.claim.epoch(generation),
                        self.claim.arrival,
                    )
                }
            };
            let spare = spare(&request);
            self.sends += 1;
            let sent = tokio::select! {
                biased;
                sent = permit.endpoint.peer.send(request, self.reuse) => sent,
                () = timer.as_mut() => {
                    counted.end(None, End::TimedOut);
                    return Err(pool::timed_out(self.claim.deadline - self.claim.arrival));
                }
            };
            let failure = match sent {
                Ok(answer) => {
                    return Ok((answer.response, answer.connection, Exchange::new(permit, counted)));
                }
                Err(failure) => failure,
            };
            debug!(pool = self.pool.name(), address = %permit.endpoint.address, error = %failure.kind, "no response");
            let again = self
                .may_repeat(&failure.kind)
                .then(|| failure.request.or(spare))
                .flatten();
            let Some(again) = again.filter(|_| self.sends < MAX_SENDS) else {
                counted.end(None, End::Cut);
                return Err(no_response(&failure.kind));
            };
            request = again;
            tally = Some(counted);
            self.prepare_next(permit, &failure.kind).await;
        }
    }

    /// By the rules in [`crate::upstream`].
    fn may_repeat(&self, kind: &FailureKind) -> bool {
        match kind {
            FailureKind::NotSent(_) => true,
            FailureKind::Closed { unread: true, .. } => true,
            FailureKind::Closed { reused, .. } => *reused && self.method.is_idempotent(),
            FailureKind::Broken(_) => false,
        }
    }

    /// Frees the slot, and waits a moment if the same endpoint would have to be tried again at once.
    async fn prepare_next(&mut self, permit: Permit, kind: &FailureKind) {
        self.reuse = false;
        let (address, revision) = (permit.endpoint.address, permit.revision.clone());
        drop(permit);
        if matches!(kind, FailureKind::NotSent(_)) {
            if self.claim.avoid.contains(&address) || !revision.has_others(address) {
                tokio::time::sleep(self.pause).await;
                self.pause *= 2;
            }
            self.claim.avoid.push(address);
        }
        self.claim.stick = Some(revision);
    }
}

/// The same request once more, if its body is in memory.
fn spare(request: &Request<RequestBody>) -> Option<Request<RequestBody>> {
    let mut spare = Request::new(request.body().again()?);
    *spare.method_mut() = request.method().clone();
    *spare.uri_mut() = request.uri().clone();
    *spare.headers_mut() = request.headers().clone();
    Some(spare)
}

fn no_response(kind: &FailureKind) -> Refusal {
    match kind {
        FailureKind::NotSent(_) => Refusal::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "ReplicaUnreachable",
            "no replica could be reached; nothing was sent, so another try is safe",
        )
        .retry_after(1),
        FailureKind::Closed { .. } => Refusal::new(
            StatusCode::BAD_GATEWAY,
            "ReplicaClosed",
            "the replica closed the connection before it answered; it may have worked on the request",
        ),
        FailureKind::Broken(_) => Refusal::new(
            StatusCode::BAD_GATEWAY,
            "ReplicaBroken",
            "the replica's answer could not be understood",
        ),
    }
}

/// A request that a revision has been given: counted once, when it ends or is dropped.
struct Tally {
    revision: Arc<Revision>,
    window: Arc<Window>,
    arrival: Instant,
    ended: bool,
}

impl Tally {
    fn start(revision: &Arc<Revision>, unix_seconds: i64, generation: i64, arrival: Instant) -> Self {
        let window = revision.windows.started(unix_seconds, generation);
        Self {
            revision: revision.clone(),
            window,
            arrival,
            ended: false,
        }
    }

    fn end(&mut self, status: Option<StatusCode>, end: End) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        let took = self.arrival.elapsed();
        let totals = &self.revision.totals;
        let outcome = match (end, status) {
            (End::Cancelled, _) => {
                totals.cancelled.fetch_add(1, Ordering::Relaxed);
                Outcome::Cancelled
            }
            (End::Complete, Some(status)) => {
                if let Some(class) = totals.status.get(usize::from(status.as_u16() / 100)) {
                    class.fetch_add(1, Ordering::Relaxed);
                }
                if status.is_server_error() {
                    Outcome::Failed
                } else {
                    Outcome::Succeeded
                }
            }
            (End::TimedOut, _) => {
                totals.timed_out.fetch_add(1, Ordering::Relaxed);
                Outcome::Failed
            }
            (End::Cut | End::Complete, _) => {
                totals.broken.fetch_add(1, Ordering::Relaxed);
                Outcome::Failed
            }
        };
        if outcome != Outcome::Cancelled {
            totals.took(took);
        }
        self.window.ended(outcome, took);
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        self.end(None, End::Cancelled);
    }
}

/// A response on its way from a replica: holds the slot until its end, and gives the connection back.
pub struct Exchange {
    permit: Permit,
    tally: Tally,
    connection: Option<Connection>,
    status: Option<StatusCode>,
    first_byte_seen: bool,
}

impl Exchange {
    fn new(permit: Permit, tally: Tally) -> Self {
        Self {
            permit,
            tally,
            connection: None,
            status: None,
            first_byte_seen: false,
        }
    }

    fn answered(&mut self, status: StatusCode, connection: Connection) {
        self.status = Some(status);
        self.connection = Some(connection);
    }

    fn first_byte(&mut self) {
        if !std::mem::replace(&mut self.first_byte_seen, true) {
            self.tally.window.first_byte(self.tally.arrival.elapsed());
        }
    }
}

impl Observer for Exchange {
    fn data(&mut self, _: &Bytes) {
        self.first_byte();
    }

    fn end(&mut self, end: End) {
        let connection = self.connection.take();
        if end == End::Complete {
            self.first_byte();
            if let Some(connection) = connection {
                self.permit.endpoint.peer.keep(connection);
            }
        }
        self.tally.end(self.status, end);
        self.permit.release();
    }
}
