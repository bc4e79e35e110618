//! `/stats`: what the operator is told, as [`flotilla_core::stats`] defines it.

use std::time::{SystemTime, UNIX_EPOCH};

use flotilla_core::stats::{PoolStats, ProviderStats, RevisionStats, SessionStats, Stats, VERSION};

use crate::egress::Egress;
use crate::egress::provider::Provider;
use crate::ingress::Ingress;
use crate::ingress::pool::Pool;
use crate::ingress::revision::Revision;

/// Who reports.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Unique for the life of this process.
    pub instance: String,
    /// Name of the pod.
    pub pod: String,
}

/// The report as of now.
pub fn report(identity: &Identity, draining: bool, ingress: &Ingress, egress: &Egress) -> Stats {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let unix_seconds = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    let pools = ingress.pools();
    Stats {
        version: VERSION,
        instance: identity.instance.clone(),
        pod: identity.pod.clone(),
        time_milliseconds: i64::try_from(now.as_millis()).unwrap_or(i64::MAX),
        draining,
        pools: pools
            .by_name
            .iter()
            .map(|(name, pool)| (name.clone(), pool_stats(pool, unix_seconds)))
            .collect(),
        providers: egress
            .providers()
            .iter()
            .map(|(name, provider)| (name.clone(), provider_stats(provider, egress)))
            .collect(),
    }
}

fn pool_stats(pool: &Pool, unix_seconds: i64) -> PoolStats {
    use std::sync::atomic::Ordering::Relaxed;
    // The snapshot is taken before in-flight is counted: see the module doc of `ingress::pool`.
    let traffic = pool.traffic();
    let port = pool.bound_port();
    let keep = Ingress::keep_seconds(traffic.request_timeout);
    let weight = |revision: &Revision| {
        let share = traffic.shares().find(|(other, _)| other.name == revision.name);
        share.map_or(0, |(_, weight)| i32::try_from(weight).unwrap_or(100))
    };
    let revisions = pool
        .revisions()
        .iter()
        .map(|revision| {
            (
                revision.name.clone(),
                revision_stats(pool, revision, weight(revision), unix_seconds, keep),
            )
        })
        .collect();
    let counts = &pool.counts;
    let sessions = pool.sessions();
    PoolStats {
        // Not in force for anybody until the port is bound.
        traffic_generation: if port.is_some() { traffic.generation } else { -1 },
        port: port.map(i32::from),
        queued: pool.waiting() as u64,
        refused: counts.refused(),
        diverted: counts.diverted.load(Relaxed),
        sessions: sessions.map(|sessions| {
            let counts = sessions.totals().counts;
            SessionStats {
                since_generation: sessions.since(),
                moved: counts.moved.values().sum(),
                unprotected: counts.unprotected,
            }
        }),
        revisions,
    }
}

fn revision_stats(
    pool: &Pool,
    revision: &Revision,
    weight: i32,
    unix_seconds: i64,
    keep_seconds: i64,
) -> RevisionStats {
    let sessions = pool.sessions();
    let in_flight_by_address = revision.in_flight();
    RevisionStats {
        weight,
        endpoints: revision.addresses(),
        in_flight: in_flight_by_address.values().sum(),
        in_flight_by_address,
        sessions: sessions
            .as_ref()
            .map_or(0, |sessions| sessions.sessions(&revision.name)),
        sessions_assigned: sessions.map_or(0, |sessions| sessions.assigned(&revision.name)),
        windows: revision.windows.report(unix_seconds, keep_seconds),
    }
}

fn provider_stats(provider: &Provider, egress: &Egress) -> ProviderStats {
    let (quotas, quota_pools) = egress.quotas().stats(&provider.name);
    let (spend, unpriced) = provider.usage.spend();
    ProviderStats {
        quotas,
        quota_pools,
        generation: provider.config.generation,
        credential: provider.credential(),
        in_flight: provider.usage.in_flight(),
        models: provider.usage.models(),
        spend,
        unpriced,
    }
}
