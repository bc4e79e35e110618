//! One request from a client to an agent and back.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body::Body as _;
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use tokio::time::{Instant, Sleep};
use tracing::debug;

use super::pool::{self, Assignment, Claim, Pool};
use super::revision::{Permit, Revision};
use super::served_by::ServedBy;
use super::tunnel::{self, Tunnel};
use super::windows::{Outcome, Window};
use crate::config::HttpConfig;
use crate::observe::Note;
use crate::reply::{End, Observer, Outgoing, Passing, Refusal};
use crate::upstream::body::{BUFFERED, Bounded, Exceeded, RequestBody};
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
    forward::check_host(&head).map_err(|wrong| Refusal::new(StatusCode::BAD_REQUEST, "BadRequest", wrong))?;
    let switching = tunnel::wanted(&mut head)?;
    let note = Note::of(&head.extensions);
    if let Some(note) = &note {
        note.write(|noted| noted.pool = Some(pool.name().to_owned()));
    }
    let (timeout, http) = {
        let traffic = pool.traffic();
        (traffic.request_timeout, traffic.http)
    };
    let (tell, limit) = (http.tells(&head.headers), BodyLimit::of(&http));
    let deadline = arrival + timeout;
    let mut timer = Box::pin(tokio::time::sleep_until(deadline));
    let body = tokio::select! {
        biased;
        body = hold(body, limit) => body?,
        () = timer.as_mut() => return Err(pool::timed_out(timeout)),
    };
    let body = match body {
        RequestBody::Held(None) if switching.is_some() => RequestBody::Switching,
        body => body,
    };
    let streamed = body.is_streamed();
    forward::to_agent(&mut head, client.ip().to_canonical(), streamed, prefix);
    if body.is_switching() {
        forward::set_websocket(&mut head.headers);
    }
    let exceeded = body.exceeded();
    let mut attempts = Attempts {
        pool,
        claim: Claim::new(arrival, deadline),
        unix_seconds,
        method: head.method.clone(),
        reuse: !streamed,
        sends: 0,
        pause: FIRST_PAUSE,
        exceeded: exceeded.clone(),
    };
    let request = Request::from_parts(head, body);
    let ran = attempts.run(request, &mut timer).await;
    let (response, connection, exchange) = match ran {
        Ok(answer) => answer,
        Err(_) if exceeded.is_set() => return Err(too_large(limit)),
        Err(refusal) => return Err(refusal),
    };
    if let Some(note) = note {
        note.write(|noted| {
            noted.revision = Some(exchange.permit.revision.name.clone());
            noted.replica = Some(exchange.permit.endpoint.address);
            noted.sends = attempts.sends;
        });
    }
    let served_by = tell.then(|| ServedBy::new(&exchange.permit));
    let mut response = passed_on(response, connection, exchange, timer, switching)?;
    if let Some(served_by) = served_by {
        served_by.tell(response.headers_mut());
    }
    Ok(response)
}

fn passed_on(
    response: Response<Incoming>,
    connection: Connection,
    mut exchange: Exchange,
    timer: std::pin::Pin<Box<Sleep>>,
    switching: Option<OnUpgrade>,
) -> Result<Response<Outgoing>, Refusal> {
    let (mut head, body) = response.into_parts();
    forward::to_client(&mut head);
    if head.status == StatusCode::SWITCHING_PROTOCOLS {
        let Some(client) = switching else {
            exchange.end(End::Cut);
            return Err(Refusal::new(
                StatusCode::BAD_GATEWAY,
                "ReplicaBroken",
                "the replica switched to another protocol without being asked",
            ));
        };
        exchange.switched();
        return Ok(Tunnel::open(head.headers, client, connection, exchange));
    }
    exchange.answered(head.status, connection);
    let body = Outgoing::Agent(Passing::new(body, timer, exchange));
    Ok(Response::from_parts(head, body))
}

/// A short body of known length is read whole, anything else is left as it comes, up to `limit`.
pub(crate) async fn hold(body: Incoming, limit: BodyLimit) -> Result<RequestBody, Refusal> {
    match body.size_hint().exact() {
        Some(0) => Ok(RequestBody::Held(None)),
        Some(length) if length > limit.bytes => Err(too_large(limit)),
        Some(length) if length <= BUFFERED => {
            let limit = usize::try_from(BUFFERED).unwrap_or(usize::MAX);
            match Limited::new(body, limit).collect().await {
                Ok(whole) => Ok(RequestBody::held(whole.to_bytes())),
                Err(_) => Err(Refusal::new(
                    StatusCode::BAD_REQUEST,
                    "BodyIncomplete",
                    "the request's body ended before the length that its head gives",
                )),
            }
        }
        Some(_) => Ok(RequestBody::Streamed(Bounded::known(body))),
        None => Ok(RequestBody::Streamed(Bounded::limited(body, limit.bytes))),
    }
}

/// How long a body may be, and what says so.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BodyLimit {
    pub(crate) bytes: u64,
    /// The field or flag.
    pub(crate) field: &'static str,
}

impl BodyLimit {
    fn of(http: &HttpConfig) -> Self {
        Self {
            bytes: http.max_request_bytes,
            field: "spec.traffic.maxRequestBytes",
        }
    }
}

/// The answer to a longer one.
pub(crate) fn too_large(limit: BodyLimit) -> Refusal {
    let BodyLimit { bytes, field } = limit;
    let message = format!("the request's body is longer than {bytes} bytes ({field})");
    Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "RequestTooLarge", message).limit(field)
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
    unix_seconds: i64,
    method: Method,
    /// Idle connections may be used.
    reuse: bool,
    sends: u32,
    pause: Duration,
    exceeded: Exceeded,
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
                        generation,
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
                // A body that is too long is the client's doing, not the replica's.
                let client = self.exceeded.is_set();
                counted.end(None, if client { End::Cancelled } else { End::Cut });
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

    /// The agent speaks another protocol from now on. To the statistics the request has ended; the slot stays taken.
    fn switched(&mut self) {
        self.first_byte();
        self.tally
            .end(Some(StatusCode::SWITCHING_PROTOCOLS), End::Complete);
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
