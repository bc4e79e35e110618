//! Queues, refusals, retries, ejections.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::MetricType::{Counter, Gauge, Histogram};

use super::{Labels, family, gauge};
use crate::ingress::clock;
use crate::ingress::pool::Pool;
use crate::ingress::revision::Revision;

pub(super) fn of_pools(encoder: &mut DescriptorEncoder<'_>, pools: &[&Arc<Pool>]) -> fmt::Result {
    let help = "Requests held, from arrival to the last byte of the response.";
    let mut held = family(encoder, "flotilla_gateway_held_requests", help, Gauge)?;
    for pool in pools {
        held.gauge([("pool", pool.name())], gauge(pool.held() as u64))?;
    }
    let help = "Requests that wait for a slot.";
    let mut depth = family(encoder, "flotilla_gateway_queue_depth", help, Gauge)?;
    for pool in pools {
        depth.gauge([("pool", pool.name())], gauge(pool.waiting() as u64))?;
    }
    let help = "Waiting time of requests that found no free slot at once and got one later.";
    let mut waits = family(encoder, "flotilla_gateway_queue_wait_seconds", help, Histogram)?;
    for pool in pools {
        let labels: Labels<'_, 1> = [("pool", pool.name())];
        waits.histogram(labels, &pool.counts.waits)?;
    }
    let help = "Requests answered with 503 by the gateway, by reason.";
    let mut refused = family(encoder, "flotilla_gateway_refused", help, Counter)?;
    for pool in pools {
        let counts = &pool.counts;
        let reasons: [(&str, &AtomicU64); 7] = [
            ("too_many", &counts.too_many),
            ("queue_full", &counts.queue_full),
            ("tenant_share", &counts.tenant_share),
            ("displaced", &counts.displaced),
            ("predicted_wait", &counts.predicted_wait),
            ("waited_too_long", &counts.waited_too_long),
            ("stopped", &counts.stopped),
        ];
        for (reason, count) in reasons {
            refused.counter([("pool", pool.name()), ("reason", reason)], count.load(Relaxed))?;
        }
    }
    let help = "Further tries by result: sent, denied by the retry budget, resent over a new connection in place of a closed one.";
    let mut retries = family(encoder, "flotilla_gateway_retries", help, Counter)?;
    for pool in pools {
        let counts = &pool.counts;
        let results: [(&str, &AtomicU64); 3] = [
            ("sent", &counts.retries),
            ("denied", &counts.retries_denied),
            ("resent", &counts.stale_connections),
        ];
        for (result, count) in results {
            retries.counter([("pool", pool.name()), ("result", result)], count.load(Relaxed))?;
        }
    }
    let help = "Further tries that the retry budget allows now.";
    let mut budget = family(encoder, "flotilla_gateway_retry_budget", help, Gauge)?;
    let now = clock::now_nanos();
    for pool in pools {
        let left = pool.traffic().retries.budget.balance(now);
        budget.gauge([("pool", pool.name())], gauge(left))?;
    }
    Ok(())
}

pub(super) fn of_revisions(
    encoder: &mut DescriptorEncoder<'_>,
    revisions: &[(&str, Arc<Revision>)],
) -> fmt::Result {
    let help = "Replicas ejected, by reason.";
    let mut ejections = family(encoder, "flotilla_gateway_ejections", help, Counter)?;
    for (pool, revision) in revisions {
        let counts = &revision.totals.ejections;
        let reasons: [(&str, &AtomicU64); 4] = [
            ("unreachable", &counts.unreachable),
            ("failures", &counts.failures),
            ("outlier", &counts.outlier),
            ("probe", &counts.probe),
        ];
        for (reason, count) in reasons {
            let labels = [("pool", *pool), ("revision", &revision.name), ("reason", reason)];
            ejections.counter(labels, count.load(Relaxed))?;
        }
    }
    let help = "Replicas taken back after an ejection.";
    let mut readmissions = family(encoder, "flotilla_gateway_readmissions", help, Counter)?;
    for (pool, revision) in revisions {
        let count = revision.totals.ejections.readmitted.load(Relaxed);
        readmissions.counter([("pool", *pool), ("revision", &revision.name)], count)?;
    }
    let help = "Endpoints that take new requests, by the state of their circuit breaker.";
    let mut breakers = family(encoder, "flotilla_gateway_breakers", help, Gauge)?;
    for (pool, revision) in revisions {
        let seen = revision.breakers();
        for (state, count) in [
            ("closed", seen.closed),
            ("open", seen.open),
            ("half_open", seen.half_open),
        ] {
            let labels = [("pool", *pool), ("revision", &revision.name), ("state", state)];
            breakers.gauge(labels, gauge(count))?;
        }
    }
    Ok(())
}
