//! One request from a client to an agent and back.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use flotilla_core::balance::Outcome as Verdict;
use http::{Method, Request, Response, StatusCode, request};
use http_body::Body as _;
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep};
use tracing::debug;

use super::claim::Claim;
use super::pool::{Assignment, Pool};
use super::refusals;
use super::retry::{self, Next, Tries};
use super::revision::{Permit, Revision};
use super::windows::{Outcome, Window};
use crate::reply::{End, Observer, Outgoing, Passing, Refusal};
use crate::session::visit::{Begun, Served, Visit};
use crate::upstream::body::{BUFFERED, RequestBody};
use crate::upstream::connection::Connection;
use crate::upstream::{Answer, Failure, FailureKind, forward};

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
    let traffic = pool.traffic();
    let seat = pool.admit(&traffic)?;
    let timeout = traffic.request_timeout;
    let deadline = arrival + timeout;
    let mut timer = Box::pin(tokio::time::sleep_until(deadline));
    let body = tokio::select! {
        biased;
        body = hold(body) => body?,
        () = timer.as_mut() => return Err(refusals::timed_out(timeout)),
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
                () = timer.as_mut() => return Err(refusals::timed_out(timeout)),
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
        tries: Tries::new(&traffic.retries, &head.method, arrival),
        reuse: !streamed,
    };
    let request = Request::from_parts(head, body);
    let (response, connection, mut exchange) = attempts.run(request, &mut timer).await?;
    exchange.permit.sit(seat);
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
                    exchange.permit.ended(Verdict::TimedOut, None);
                    return Err(refusals::timed_out(timeout));
                }
            };
            match begun {
                Ok(begun) => begun,
                Err(error) => {
                    exchange.tally.end(None, End::Cut);
                    exchange.permit.ended(Verdict::Reset, None);
                    return Err(refusals::no_response(&FailureKind::Broken(error)));
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
    exchange.answered(head.status, retry::retry_after(&head.headers), connection);
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
    tries: Tries<'a>,
    /// Idle connections may be used.
    reuse: bool,
}

/// A try that gave no response for the client.
enum Failed {
    /// No response at all.
    Failure(Failure),
    /// Status 503, and the user wants these to be tried again.
    Unavailable(Answer),
    /// No head within the time for one try.
    Late(Duration),
}

impl Failed {
    fn name(&self) -> retry::Failure {
        match self {
            Self::Failure(failure) => retry::failure(&failure.kind),
            Self::Unavailable(_) => retry::Failure::Unavailable,
            Self::Late(_) => retry::Failure::TryTimedOut,
        }
    }
}

impl Attempts<'_> {
    async fn run(
        &mut self,
        mut request: Request<RequestBody>,
        timer: &mut std::pin::Pin<Box<Sleep>>,
    ) -> Result<(Response<Incoming>, Connection, Exchange), Refusal> {
        let mut tally: Option<Tally> = None;
        loop {
            let assigned = self.pool.assign(&mut self.claim, request.headers()).await;
            let Assignment {
                mut permit,
                generation,
            } = match assigned {
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
            self.tries.sent();
            let tried = tokio::select! {
                biased;
                tried = self.send(&permit, request) => tried,
                () = timer.as_mut() => {
                    counted.end(None, End::TimedOut);
                    permit.ended(retry::outcome_of_timeout(&self.claim, permit.held()), None);
                    return Err(refusals::timed_out(self.claim.deadline - self.claim.arrival));
                }
            };
            let mut failed = match tried {
                Ok(answer) => {
                    let exchange = Exchange::new(permit, counted);
                    return Ok((answer.response, answer.connection, exchange));
                }
                Err(failed) => failed,
            };
            let name = failed.name();
            let again = match &mut failed {
                Failed::Failure(failure) => failure.request.take().or(spare),
                Failed::Unavailable(_) | Failed::Late(_) => spare,
            };
            debug!(pool = self.pool.name(), address = %permit.endpoint.address, failure = ?name, "no response");
            let next = self.tries.after(name, again.is_some(), self.pool, &self.claim);
            let again = again.filter(|_| next != Next::GiveUp);
            let Some(again) = again else {
                return self.give_up(failed, permit, counted);
            };
            let asked_for = match &failed {
                Failed::Unavailable(answer) => retry::retry_after(answer.response.headers()),
                Failed::Failure(_) | Failed::Late(_) => None,
            };
            permit.ended(retry::outcome(name, next), asked_for);
            // The replica learns here that nobody wants its answer any more.
            drop(failed);
            request = again;
            tally = Some(counted);
            self.prepare_next(permit, next).await;
        }
    }

    /// One try, until the head of a response.
    async fn send(&self, permit: &Permit, request: Request<RequestBody>) -> Result<Answer, Failed> {
        let sent = permit.endpoint.peer.send(request, self.reuse);
        let sent = match self.tries.timeout() {
            None => sent.await,
            Some(timeout) => match tokio::time::timeout(timeout, sent).await {
                Ok(sent) => sent,
                Err(_) => return Err(Failed::Late(timeout)),
            },
        };
        let answer = sent.map_err(Failed::Failure)?;
        let is_unavailable = answer.response.status() == StatusCode::SERVICE_UNAVAILABLE;
        if is_unavailable && self.tries.retries_unavailable() {
            return Err(Failed::Unavailable(answer));
        }
        Ok(answer)
    }

    /// The client gets what there is.
    fn give_up(
        &self,
        failed: Failed,
        mut permit: Permit,
        mut counted: Tally,
    ) -> Result<(Response<Incoming>, Connection, Exchange), Refusal> {
        let outcome = retry::outcome(failed.name(), Next::GiveUp);
        let refusal = match failed {
            Failed::Unavailable(answer) => {
                let exchange = Exchange::new(permit, counted);
                return Ok((answer.response, answer.connection, exchange));
            }
            Failed::Failure(failure) => {
                counted.end(None, End::Cut);
                refusals::no_response(&failure.kind)
            }
            Failed::Late(timeout) => {
                counted.end(None, End::TimedOut);
                refusals::try_timed_out(timeout)
            }
        };
        permit.ended(outcome, None);
        Err(refusal)
    }

    /// Frees the slot, and waits a moment if the same endpoint would have to be tried again at once.
    async fn prepare_next(&mut self, permit: Permit, next: Next) {
        self.reuse = false;
        let (address, revision) = (permit.endpoint.address, permit.revision.clone());
        drop(permit);
        if next == Next::Retry {
            if self.claim.avoid.contains(&address) || !revision.has_others(address) {
                tokio::time::sleep(self.tries.next_pause()).await;
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
            totals.duration.record(took);
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
    retry_after: Option<Duration>,
    first_byte_seen: bool,
}

impl Exchange {
    fn new(permit: Permit, tally: Tally) -> Self {
        Self {
            permit,
            tally,
            connection: None,
            status: None,
            retry_after: None,
            first_byte_seen: false,
        }
    }

    fn answered(&mut self, status: StatusCode, retry_after: Option<Duration>, connection: Connection) {
        self.status = Some(status);
        self.retry_after = retry_after;
        self.connection = Some(connection);
    }

    fn first_byte(&mut self) {
        if !std::mem::replace(&mut self.first_byte_seen, true) {
            self.tally.window.first_byte(self.tally.arrival.elapsed());
            // A quick refusal does not make a quick replica.
            if self.status.is_some_and(|status| !status.is_server_error()) {
                self.permit.answered();
            }
        }
    }

    /// What the end says about the replica. A stream that is cut by the request's time was flowing.
    fn verdict(&self, end: End) -> Verdict {
        match (end, self.status) {
            (End::Complete, Some(status)) => Verdict::Answered(status.as_u16()),
            (End::TimedOut, Some(status)) if self.first_byte_seen => Verdict::Answered(status.as_u16()),
            (End::TimedOut, _) => Verdict::TimedOut,
            (End::Cut | End::Complete, _) => Verdict::Reset,
            (End::Cancelled, _) => Verdict::Cancelled,
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
        self.permit.ended(self.verdict(end), self.retry_after);
        self.permit.release();
    }
}
