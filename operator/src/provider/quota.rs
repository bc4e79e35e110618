//! How much of a provider's quotas is used, from what the gateways of its namespace report. Pure.
//!
//! What is used over all gateways is known by the one that deals the quotas out; while nobody does, what each of them holds
//! is added up.

use std::sync::Arc;

use flotilla_core::stats::{QuotaStats, Stats};
use flotilla_crds::ModelProviderSpec;
use flotilla_crds::quota::QuotaStatus;

/// All is well.
pub const WITHIN_QUOTAS: &str = "WithinQuotas";
/// Requests wait for a quota, or were refused.
pub const QUOTA_EXHAUSTED: &str = "QuotaExhausted";

/// The quotas' state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Quotas {
    /// One for each in the spec, in its order; none before a gateway reports.
    pub list: Vec<QuotaStatus>,
    /// The names of those that have held requests back within the last minute.
    pub exhausted: Vec<String>,
}

/// The state of the quotas in `spec` of the provider `name`.
pub fn quotas(name: &str, spec: &ModelProviderSpec, reports: &[Arc<Stats>]) -> Quotas {
    let of = |quota: &str| -> Vec<&QuotaStats> {
        let providers = reports.iter().filter_map(|stats| stats.providers.get(name));
        let found = providers.filter_map(|provider| provider.quotas.iter().find(|known| known.name == quota));
        found.collect()
    };
    let mut state = Quotas::default();
    for quota in &spec.quotas {
        let reported = of(&quota.name);
        if reported.is_empty() {
            continue;
        }
        let total = reported
            .iter()
            .filter_map(|one| one.total)
            .max_by_key(|total| total.term);
        let held = reported.iter().map(|one| one.held).fold(0, u64::saturating_add);
        let limit = u64::try_from(quota.limit).unwrap_or(0);
        let throttled = reported
            .iter()
            .map(|one| one.throttled)
            .fold(0, u64::saturating_add);
        state.list.push(QuotaStatus {
            name: quota.name.clone(),
            used: number(total.map_or(held, |total| total.used)),
            limit: number(total.map_or(limit, |total| total.limit)),
            throttled: number(throttled),
        });
        if reported.iter().any(|one| one.exhausted) {
            state.exhausted.push(quota.name.clone());
        }
    }
    state
}

impl Quotas {
    /// Status, reason and message of the condition.
    pub fn condition(&self, spec: &ModelProviderSpec) -> (bool, &'static str, String) {
        let quotas = spec
            .quotas
            .iter()
            .filter(|quota| self.exhausted.contains(&quota.name));
        let names: Vec<String> = quotas
            .map(|quota| format!("{} ({} {:?})", quota.name, quota.limit, quota.resource))
            .collect();
        if names.is_empty() {
            return (false, WITHIN_QUOTAS, String::new());
        }
        let message = format!(
            "requests wait for {}, or were refused, within the last minute",
            names.join(", ")
        );
        (true, QUOTA_EXHAUSTED, message)
    }
}

fn number(units: u64) -> i64 {
    i64::try_from(units).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use flotilla_core::stats::{ProviderStats, QuotaTotal};
    use serde_json::json;

    use super::*;

    fn report(held: u64, throttled: u64, total: Option<QuotaTotal>) -> Arc<Stats> {
        let quota = QuotaStats {
            name: "rpm".into(),
            held,
            throttled,
            exhausted: throttled > 0,
            total,
            ..QuotaStats::default()
        };
        let provider = ProviderStats {
            quotas: vec![quota],
            ..ProviderStats::default()
        };
        Arc::new(Stats {
            providers: [("main".to_owned(), provider)].into(),
            ..Stats::default()
        })
    }

    #[test]
    fn the_newest_allocator_knows_what_is_used() {
        let spec: ModelProviderSpec = serde_json::from_value(json!({
            "endpoint": "https://m/v1",
            "quotas": [{"name": "rpm", "resource": "Requests", "limit": 60, "windowSeconds": 60}],
        }))
        .unwrap();
        assert_eq!(quotas("main", &spec, &[]), Quotas::default());
        let status = |used, limit, throttled| QuotaStatus {
            name: "rpm".into(),
            used,
            limit,
            throttled,
        };
        let nobody = quotas("main", &spec, &[report(3, 0, None), report(4, 0, None)]);
        assert_eq!(nobody.list, [status(7, 60, 0)]);
        assert_eq!(nobody.condition(&spec), (false, WITHIN_QUOTAS, String::new()));
        let total = |term, used, limit| Some(QuotaTotal { term, used, limit });
        let known = quotas(
            "main",
            &spec,
            &[report(3, 5, total(2, 50, 40)), report(4, 0, total(1, 9, 60))],
        );
        assert_eq!(known.list, [status(50, 40, 5)]);
        let (exhausted, reason, message) = known.condition(&spec);
        assert_eq!((exhausted, reason), (true, "QuotaExhausted"));
        assert!(message.contains("rpm (60 Requests)"), "{message}");
    }
}
