//! What clients are told when a pool does not serve them.

use std::time::Duration;

use flotilla_core::queue::{Limit, Refused};
use http::StatusCode;

use super::traffic::Traffic;
use crate::reply::Refusal;

pub(super) const MAX_REQUESTS: &str = "spec.traffic.maxConcurrentRequests";
pub(super) const QUEUE_REQUESTS: &str = "spec.traffic.queue.maxRequests";
pub(super) const QUEUE_WAIT: &str = "spec.traffic.queue.maxWaitSeconds";
pub(super) const REQUEST_TIMEOUT: &str = "spec.traffic.requestTimeoutSeconds";
pub(super) const TRY_TIMEOUT: &str = "spec.traffic.retries.perTryTimeoutSeconds";

fn unavailable(code: &'static str, message: String) -> Refusal {
    Refusal::new(StatusCode::SERVICE_UNAVAILABLE, code, message)
}

/// The answer for a pool that is not there.
pub fn gone(name: &str) -> Refusal {
    Refusal::new(
        StatusCode::NOT_FOUND,
        "NoSuchPool",
        format!("there is no pool \"{name}\" in this namespace"),
    )
}

pub(super) fn stopped(name: &str) -> Refusal {
    unavailable(
        "PoolStopped",
        format!("the pool \"{name}\" is stopped (spec.stopped: true): no agent runs"),
    )
}

/// The bulkhead is full.
pub(super) fn too_many(name: &str, most: usize) -> Refusal {
    let message =
        format!("this gateway holds {most} requests for the pool \"{name}\" already ({MAX_REQUESTS})");
    unavailable("TooManyRequests", message)
        .limit(MAX_REQUESTS)
        .retry_after(1)
}

/// The answer when the request's time is over before the response has begun.
pub fn timed_out(timeout: Duration) -> Refusal {
    let message = format!("no response within {} s ({REQUEST_TIMEOUT})", timeout.as_secs());
    Refusal::new(StatusCode::GATEWAY_TIMEOUT, "RequestTimeout", message).limit(REQUEST_TIMEOUT)
}

/// The answer when a replica did not answer in the time for one try, and there is no further try.
pub(super) fn try_timed_out(timeout: Duration) -> Refusal {
    let message = format!(
        "the replica did not answer within {} s ({TRY_TIMEOUT}); it may have worked on the request",
        timeout.as_secs_f64()
    );
    Refusal::new(StatusCode::GATEWAY_TIMEOUT, "TryTimeout", message).limit(TRY_TIMEOUT)
}

/// It may not wait. `patience` is how long it would, by the `limit` of that name.
pub(super) fn may_not_wait(
    name: &str,
    traffic: &Traffic,
    refused: &Refused<()>,
    patience: Duration,
    limit: &'static str,
) -> Refusal {
    let refusal = match refused.limit {
        Limit::QueueFull => queue_full(name, traffic),
        Limit::TenantShare => {
            let message = format!(
                "every slot of the pool \"{name}\" is taken, {} requests wait already ({QUEUE_REQUESTS}) and this tenant \
                 has its share of these places",
                traffic.queue.requests
            );
            unavailable("TenantQueueFull", message).limit(QUEUE_REQUESTS)
        }
        Limit::PredictedWait => {
            let predicted = refused.predicted_nanoseconds.map(Duration::from_nanos);
            let wait = predicted.map_or_else(
                || "some time".to_owned(),
                |wait| format!("about {:.1} s", wait.as_secs_f64()),
            );
            let message = format!(
                "every slot of the pool \"{name}\" is taken; the request would wait {wait}, and may wait {:.1} s ({limit})",
                patience.as_secs_f64()
            );
            unavailable("WaitTooLong", message).limit(limit)
        }
    };
    // At most an hour.
    refusal.retry_after(u16::try_from(refused.retry_after_seconds()).unwrap_or(u16::MAX))
}

pub(super) fn queue_full(name: &str, traffic: &Traffic) -> Refusal {
    let message = format!(
        "every slot of the pool \"{name}\" is taken and {} requests wait already ({QUEUE_REQUESTS})",
        traffic.queue.requests
    );
    unavailable("QueueFull", message)
        .limit(QUEUE_REQUESTS)
        .retry_after(1)
}

/// It gave its place to one of a tenant that has fewer, or of a higher class.
pub(super) fn displaced(name: &str, traffic: &Traffic) -> Refusal {
    let message = format!(
        "{} requests wait for the pool \"{name}\" ({QUEUE_REQUESTS}) and another one had a better right to the place: a \
         tenant with fewer, or a higher class",
        traffic.queue.requests
    );
    unavailable("QueueDisplaced", message)
        .limit(QUEUE_REQUESTS)
        .retry_after(1)
}

/// Nobody served it for as long as the `limit` allows; `stranded`: there was no replica at all.
pub(super) fn waited_too_long(
    name: &str,
    patience: Duration,
    limit: &'static str,
    stranded: bool,
) -> Refusal {
    let (code, why, retry_after) = if stranded {
        ("NoReplica", "no replica was ready", 5)
    } else {
        ("QueueTimeout", "no slot was free", 1)
    };
    let message = format!(
        "{why} in the pool \"{name}\" within {} s ({limit})",
        patience.as_secs_f64()
    );
    unavailable(code, message).limit(limit).retry_after(retry_after)
}

/// There is no usable response, and no further try.
pub(super) fn no_response(kind: &crate::upstream::FailureKind) -> Refusal {
    use crate::upstream::FailureKind;
    match kind {
        FailureKind::NotSent(_) => unavailable(
            "ReplicaUnreachable",
            "no replica could be reached; nothing was sent, so another try is safe".to_owned(),
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
