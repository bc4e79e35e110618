//! One request from a client to an agent and back.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use flotilla_core::balance::Outcome as Verdict;
use http::{HeaderName, HeaderValue, Request, Response, StatusCode};
use http_body::Body as _;
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use tokio::time::{Instant, Sleep};
use tracing::debug;

use super::claim::Claim;
use super::exchange::{Exchange, Tally};
use super::pool::{Assignment, Pool};
use super::refusals;
use super::retry::{self, Next, Tries};
use super::revision::Permit;
use super::served_by::ServedBy;
use super::tunnel::{self, Tunnel};
use crate::config::HttpConfig;
use crate::observe::Note;
use crate::reply::{End, Observer, Outgoing, Passing, Refusal};
use crate::session::visit::{Begun, Served, Tested, Visit};
use crate::upstream::body::{BUFFERED, BodyError, Bounded, Exceeded, RequestBody};
use crate::upstream::connection::Connection;
use crate::upstream::{self, Answer, Failure, FailureKind, Sending, forward};

/// Header of a tester's response: the revision that answered.
pub const ANSWERED_BY: HeaderName = HeaderName::from_static("x-flotilla-revision");

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
    let traffic = pool.traffic();
    let seat = pool.admit(&traffic)?;
    let timeout = traffic.request_timeout;
    let (tell, limit) = (traffic.http.tells(&head.headers), BodyLimit::of(&traffic.http));
    let deadline = arrival + timeout;
    let mut timer = Box::pin(tokio::time::sleep_until(deadline));
    let body = tokio::select! {
        biased;
        body = hold(body, limit) => body?,
        () = timer.as_mut() => return Err(refusals::timed_out(timeout)),
    };
    let mut claim = Claim::new(arrival, deadline);
    claim.is_preview = traffic.is_preview(&head.headers);
    let tested = traffic.previewed().filter(|_| claim.is_preview);
    let tested = tested.map(|revision| Tested {
        revision: &revision.name,
        generation: traffic.generation,
    });
    let (body, visit) = match pool.sessions() {
        None => (body, None),
        Some(sessions) => {
            let arrival = tokio::select! {
                biased;
                arrival = Visit::begin(sessions, &mut head, body, prefix, tested) => {
                    arrival.map_err(|error| match error {
                        BodyError::Client(_) => body_incomplete(),
                        BodyError::TooLong => too_large(limit),
                    })?
                }
                () = timer.as_mut() => return Err(refusals::timed_out(timeout)),
            };
            claim.session = arrival.session;
            (arrival.body, Some(arrival.visit))
        }
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
        claim,
        generation: -1,
        unix_seconds,
        tries: Tries::new(&traffic.retries, &head.method, arrival),
        reuse: !streamed,
        sends: 0,
        exceeded: exceeded.clone(),
    };
    let request = Box::new(Request::from_parts(head, body));
    if attempts.claim.is_preview {
        pool.counts.previews.fetch_add(1, Ordering::Relaxed);
    }
    let ran = attempts.run(request, &mut timer).await;
    let (response, connection, mut exchange) = match ran {
        Ok(answer) => answer,
        Err(_) if exceeded.is_set() => return Err(too_large(limit)),
        Err(refusal) => return Err(refusal),
    };
    exchange.permit.sit(seat);
    if let Some(note) = note {
        note.write(|noted| {
            noted.revision = Some(exchange.permit.revision.name.clone());
            noted.replica = Some(exchange.permit.endpoint.address);
            noted.sends = attempts.sends;
        });
    }
    let shown = attempts
        .claim
        .is_preview
        .then(|| exchange.permit.revision.name.clone());
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
                Err(_) if exceeded.is_set() => {
                    exchange.tally.end(None, End::Cancelled);
                    return Err(too_large(limit));
                }
                Err(error) => {
                    exchange.tally.end(None, End::Cut);
                    exchange.permit.ended(Verdict::Reset, None);
                    return Err(refusals::no_response(&FailureKind::Broken(error)));
                }
            }
        }
    };
    let served_by = tell.then(|| ServedBy::new(&exchange.permit));
    let mut response = passed_on(begun, connection, exchange, timer, switching, shown.as_deref())?;
    if let Some(served_by) = served_by {
        served_by.tell(response.headers_mut());
    }
    Ok(response)
}

fn passed_on(
    begun: Begun,
    connection: Connection,
    mut exchange: Exchange,
    timer: std::pin::Pin<Box<Sleep>>,
    switching: Option<OnUpgrade>,
    shown: Option<&str>,
) -> Result<Response<Outgoing>, Refusal> {
    let (mut head, body) = begun.response.into_parts();
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
    // A tester has to know who answered: there may be nothing to test any more.
    if let Some(name) = shown.and_then(|name| HeaderValue::from_str(name).ok()) {
        head.headers.insert(ANSWERED_BY, name);
    }
    exchange.answered(head.status, retry::retry_after(&head.headers), connection);
    let passing = Passing::resumed(begun.first, body, timer, exchange);
    Ok(Response::from_parts(head, Outgoing::Agent(passing)))
}

/// The answer to one that breaks off.
pub(crate) fn body_incomplete() -> Refusal {
    Refusal::new(
        StatusCode::BAD_REQUEST,
        "BodyIncomplete",
        "the request's body ended before the length that its head gives",
    )
}

/// A short body of known length is read whole, anything else is left as it comes, up to `limit`.
async fn hold(body: Incoming, limit: BodyLimit) -> Result<RequestBody, Refusal> {
    match body.size_hint().exact() {
        Some(0) => Ok(RequestBody::Held(None)),
        Some(length) if length > limit.bytes => Err(too_large(limit)),
        Some(length) if length <= BUFFERED => {
            let limit = usize::try_from(BUFFERED).unwrap_or(usize::MAX);
            match Limited::new(body, limit).collect().await {
                Ok(whole) => Ok(RequestBody::held(whole.to_bytes())),
                Err(_) => Err(body_incomplete()),
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
    /// `trafficGeneration` of the last assignment.
    generation: i64,
    unix_seconds: i64,
    tries: Tries<'a>,
    /// Idle connections may be used.
    reuse: bool,
    /// Over new connections to the same replica too.
    sends: u32,
    /// Tells when the client's body was too long.
    exceeded: Exceeded,
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
        mut request: Sending,
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
                    let window = (!self.claim.is_preview).then(|| {
                        let epoch = self.claim.epoch(generation);
                        permit.revision.windows.started(self.unix_seconds, epoch)
                    });
                    Tally::start(&permit.revision, window, self.claim.arrival)
                }
            };
            let spare = upstream::spare(&request);
            self.tries.sent();
            self.sends += 1;
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
    async fn send(&self, permit: &Permit, request: Sending) -> Result<Answer, Failed> {
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
            Failed::Failure(failure) if self.exceeded.is_set() => {
                // A body that is too long is the client's doing, not the replica's.
                counted.end(None, End::Cancelled);
                permit.ended(Verdict::Cancelled, None);
                refusals::no_response(&failure.kind)
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
