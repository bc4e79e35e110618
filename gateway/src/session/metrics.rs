//! What `/metrics` says about conversations.

use std::fmt;
use std::sync::Arc;

use flotilla_core::session::MoveReason;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::MetricType;

use super::Sessions;
use super::pool::Totals;
use crate::ingress::pool::Pool;
use crate::metrics::{family, gauge};

/// Writes the families of all `pools` that keep conversations, and of the gateways among themselves.
pub(crate) fn encode(
    encoder: &mut DescriptorEncoder<'_>,
    sessions: &Sessions,
    pools: &[&Arc<Pool>],
) -> fmt::Result {
    let help = "Other gateways of the namespace that this one knows.";
    let mut peers = family(encoder, "flotilla_gateway_peers", help, MetricType::Gauge)?;
    peers.gauge([], gauge(sessions.peers() as u64))?;
    let help = "Messages to other gateways that could not be sent; they are repeated.";
    let mut lost = family(
        encoder,
        "flotilla_gateway_peer_messages_lost",
        help,
        MetricType::Counter,
    )?;
    lost.counter([], sessions.lost_messages())?;

    let all: Vec<(&str, Totals)> = pools
        .iter()
        .filter_map(|pool| Some((pool.name(), pool.sessions()?.totals())))
        .collect();
    let help = "Conversations and tasks known here, by whether this gateway is a home of them or only has asked for them.";
    let mut known = family(encoder, "flotilla_gateway_sessions", help, MetricType::Gauge)?;
    for (pool, totals) in &all {
        for (kept, count) in [("home", totals.homes), ("remembered", totals.remembered)] {
            known.gauge([("pool", pool), ("kept", kept)], gauge(count))?;
        }
    }
    let help = "Conversations and tasks whose revision is being asked for or copied.";
    let mut pending = family(
        encoder,
        "flotilla_gateway_sessions_pending",
        help,
        MetricType::Gauge,
    )?;
    for (pool, totals) in &all {
        pending.gauge([("pool", pool)], gauge(totals.waiting))?;
    }
    let help = "Conversations that had to leave their revision, by reason.";
    let mut moved = family(
        encoder,
        "flotilla_gateway_sessions_moved",
        help,
        MetricType::Counter,
    )?;
    for (pool, totals) in &all {
        for reason in [
            MoveReason::Withdrawn,
            MoveReason::Gone,
            MoveReason::EarlierAttempt,
        ] {
            let count = totals.counts.moved.get(&reason).copied().unwrap_or_default();
            moved.counter([("pool", pool), ("reason", reason.as_str())], count)?;
        }
    }
    let help = "Entries forgotten: not used for too long, or the table was full.";
    let mut removed = family(
        encoder,
        "flotilla_gateway_sessions_removed",
        help,
        MetricType::Counter,
    )?;
    for (pool, totals) in &all {
        let causes = [
            ("idle", totals.counts.removed.idle),
            ("full_remembered", totals.counts.removed.remembered),
            ("full", totals.counts.removed.homes),
        ];
        for (cause, count) in causes {
            removed.counter([("pool", pool), ("cause", cause)], count)?;
        }
    }
    type Count = fn(&Totals) -> u64;
    let counters: [(&str, &str, Count); 6] = [
        (
            "flotilla_gateway_sessions_assigned",
            "Conversations and tasks that were given a revision here, for all gateways.",
            |totals| totals.counts.assigned,
        ),
        (
            "flotilla_gateway_sessions_repinned",
            "Conversations that were given another replica of their revision.",
            |totals| totals.counts.repinned,
        ),
        (
            "flotilla_gateway_sessions_unprotected",
            "Responses that began before another gateway had a copy of their conversation.",
            |totals| totals.counts.unprotected,
        ),
        (
            "flotilla_gateway_sessions_split",
            "Requests sent to one revision when gateways that could not reach each other agreed on another.",
            |totals| totals.counts.split,
        ),
        (
            "flotilla_gateway_sessions_unanswered",
            "Requests whose revision was guessed, or whose response began too early, because no answer came in time.",
            |totals| totals.unanswered,
        ),
        (
            "flotilla_gateway_sessions_refused_messages",
            "Messages of other gateways that were not understood, or were for another process.",
            |totals| totals.counts.refused,
        ),
    ];
    for (name, help, count) in counters {
        let mut counter = family(encoder, name, help, MetricType::Counter)?;
        for (pool, totals) in &all {
            counter.counter([("pool", pool)], count(totals))?;
        }
    }
    Ok(())
}
