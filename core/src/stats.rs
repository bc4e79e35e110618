//! `/stats` version 1: what a gateway tells the operator.
//!
//! A release moves on what gateways *have done*, not on what they were told, so each report names the traffic
//! generation it has applied, the endpoints it sees, and what is still in flight. Counts are kept by revision,
//! assignment epoch and absolute 15 s window of the request's **start**: two scrapes of one instance can be subtracted,
//! windows of different gateways can be added, and a window is closed once its end plus the request timeout has passed.
//!
//! Fields are only ever added. A reader refuses a `version` it does not know.

use crate::histogram::Histogram;
use crate::price::{Currency, Money};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The version of this format.
pub const VERSION: u32 = 1;
/// Length of a window in seconds; windows start at multiples of it since the Unix epoch.
pub const WINDOW_SECONDS: i64 = 15;

/// One gateway replica's report.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Stats {
    /// [`VERSION`].
    pub version: u32,
    /// Unique for the life of one gateway process; counters start at zero with a new one.
    pub instance: String,
    /// Name of the gateway's pod.
    pub pod: String,
    /// Wall clock of the report, in milliseconds since the Unix epoch.
    pub time_milliseconds: i64,
    /// True once the gateway has been told to stop: it still serves what it has, and takes nothing new soon.
    #[serde(default)]
    pub draining: bool,
    /// By pool name.
    #[serde(default)]
    pub pools: BTreeMap<String, PoolStats>,
    /// By ModelProvider name.
    #[serde(default)]
    pub providers: BTreeMap<String, ProviderStats>,
}

/// What a gateway knows of one pool.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PoolStats {
    /// `status.trafficGeneration` of the weights in force for new requests; -1 before any.
    pub traffic_generation: i64,
    /// The pool's own port (`status.gatewayPort`) once it is bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<i32>,
    /// Requests that wait for a slot.
    #[serde(default)]
    pub queued: u64,
    /// Requests refused since the start of this instance because the queue was full or the wait too long.
    #[serde(default)]
    pub refused: u64,
    /// Requests that went to another revision than the weights named, because that one had no endpoint here.
    #[serde(default)]
    pub diverted: u64,
    /// What became of conversations; absent for a pool that keeps none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sessions: Option<SessionStats>,
    /// By revision name.
    #[serde(default)]
    pub revisions: BTreeMap<String, RevisionStats>,
}

/// What became of a pool's conversations, counted by the gateway that decided it: sums over gateways count each once.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionStats {
    /// `trafficGeneration` with which the candidate's weight left zero: `epoch` in the windows is that of the conversation's
    /// assignment, and all conversations from before have the epoch just below this one.
    pub since_generation: i64,
    /// Conversations and tasks that had to leave their revision, since the start of this instance.
    #[serde(default)]
    pub moved: u64,
    /// Responses that began before another gateway had a copy of their conversation, since the start of this instance.
    #[serde(default)]
    pub unprotected: u64,
}

/// What a gateway knows of one revision.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RevisionStats {
    /// Weight in force, in percent.
    pub weight: i32,
    /// Addresses of the endpoints that take new requests, sorted.
    #[serde(default)]
    pub endpoints: Vec<String>,
    /// Requests in flight.
    #[serde(default)]
    pub in_flight: u64,
    /// Requests in flight by address, also for endpoints that take no new ones; addresses with none are left out.
    #[serde(default)]
    pub in_flight_by_address: BTreeMap<String, u64>,
    /// Conversations and tasks of this revision that the gateway knows; the same one may be known to several. 0 on all of
    /// them means that nobody needs the revision's replicas for a conversation any more.
    #[serde(default)]
    pub sessions: u64,
    /// Conversations that were given this revision by this instance since [`SessionStats::since_generation`]: evidence, on
    /// both arms. Starts at zero again when that changes.
    #[serde(default)]
    pub sessions_assigned: u64,
    /// Counts by window of the request's start, oldest first.
    #[serde(default)]
    pub windows: Vec<WindowStats>,
}

/// Counts of the requests of one revision that started in one window under one assignment epoch.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WindowStats {
    /// Start of the window in seconds since the Unix epoch, a multiple of [`WINDOW_SECONDS`].
    pub start: i64,
    /// `trafficGeneration` under which the requests were assigned, or, of a conversation, under which that was (see
    /// [`SessionStats::since_generation`]).
    pub epoch: i64,
    /// Requests that started.
    pub started: u64,
    /// Requests of these that have ended, failed ones among them.
    pub ended: u64,
    /// Requests of these that failed: status 500 and above, a reset, a cut stream, a timeout.
    pub failed: u64,
    /// Requests of those ended that the client gave up: neither failed nor in `latency`.
    #[serde(default)]
    pub cancelled: u64,
    /// Time from arrival to the response's last byte, in microseconds, of those that have ended and were not cancelled.
    pub latency: Histogram,
    /// Time to the response's first body byte, in microseconds.
    #[serde(default)]
    pub first_byte: Histogram,
}

/// What a gateway knows of one ModelProvider.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProviderStats {
    /// `metadata.generation` of the spec in force.
    pub generation: i64,
    /// Whether the key is there.
    pub credential: Credential,
    /// Requests in flight.
    #[serde(default)]
    pub in_flight: u64,
    /// Use by model name, counted since the start of this instance. At most 128 names; further ones under `other`.
    #[serde(default)]
    pub models: BTreeMap<String, ModelUse>,
    /// Spend since the start of this instance, by currency.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub spend: BTreeMap<Currency, Money>,
    /// Answers with tokens of models without a known price; they are in no spend.
    #[serde(default)]
    pub unpriced: u64,
    /// Its quotas as this gateway holds them, in the order of the spec.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub quotas: Vec<QuotaStats>,
    /// What its quotas did to requests, by pool, counted since the start of this instance.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub quota_pools: BTreeMap<String, QuotaPoolStats>,
}

/// One quota as one gateway holds it, in units of its resource.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct QuotaStats {
    /// Its name.
    pub name: String,
    /// The limit as written.
    pub limit: u64,
    /// In use here: what requests under way have reserved, and what still counts in the window.
    pub held: u64,
    /// The most that this gateway may use while its lease lasts.
    pub share: u64,
    /// Requests that it made wait, since the limits were put in force.
    pub throttled: u64,
    /// Whether it has held a request back within the last minute.
    pub exhausted: bool,
    /// What is known of all gateways together; only from the one that deals out quotas.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total: Option<QuotaTotal>,
}

/// One quota over all gateways, in units of its resource.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct QuotaTotal {
    /// Counts those that deal it out; of two the higher one knows better.
    pub term: u64,
    /// In use, and what may be in use by gateways that do not answer.
    pub used: u64,
    /// What there is now: the limit, or less by the provider's headers or the slope.
    pub limit: u64,
}

/// What a provider's quotas did to the requests of one pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct QuotaPoolStats {
    /// Requests admitted without waiting.
    pub admitted: u64,
    /// Requests admitted after they had waited.
    pub waited: u64,
    /// Requests refused.
    pub refused: u64,
    /// Requests that wait now.
    pub waiting: u64,
    /// Time that those admitted had waited, together, in microseconds. It is part of what agents and their clients see as
    /// latency, and no work of theirs.
    pub wait_microseconds: u64,
}

/// Whether a provider's key is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Credential {
    /// The file is there and not empty.
    Present,
    /// The file is missing or empty: the Secret or its key does not exist, or kubelet has not mounted it yet.
    #[default]
    Missing,
    /// The provider needs none.
    NotNeeded,
}

/// Use of one model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ModelUse {
    /// Requests sent to the provider.
    pub requests: u64,
    /// Of these, the ones without a response or with a status of 400 and above.
    pub failed: u64,
    /// Input tokens as the provider reported them.
    pub input_tokens: u64,
    /// Output tokens as the provider reported them.
    pub output_tokens: u64,
}

/// Start of the window that holds `unix_seconds`.
pub fn window_start(unix_seconds: i64) -> i64 {
    unix_seconds - unix_seconds.rem_euclid(WINDOW_SECONDS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_start_at_multiples_also_before_the_epoch() {
        for (second, start) in [
            (0, 0),
            (14, 0),
            (15, 15),
            (29, 15),
            (-1, -15),
            (1_700_000_003, 1_699_999_995),
        ] {
            assert_eq!(window_start(second), start, "second {second}");
        }
    }

    #[test]
    fn a_report_survives_json_and_keeps_its_names() {
        let mut stats = Stats {
            version: VERSION,
            instance: "i".into(),
            ..Stats::default()
        };
        stats
            .pools
            .entry("support".into())
            .or_default()
            .traffic_generation = 3;
        let text = serde_json::to_string(&stats).unwrap();
        assert!(text.contains("\"trafficGeneration\":3"), "{text}");
        assert_eq!(serde_json::from_str::<Stats>(&text).unwrap(), stats);
    }
}
