//! The newest counters of every gateway process, kept until they are in a status.
//!
//! Counters are written every 30 s at most, and a gateway pod may be gone by then; the scraper forgets it with its pod.
//! So what was reported is kept here, per provider, until a status that was read back contains it. A restarted operator
//! starts with an empty ledger and loses what it had not written, 30 s at most.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use flotilla_core::stats::Stats;
use flotilla_core::usage::{InstanceUse, has_counted};
use flotilla_crds::model_provider::Usage;
use parking_lot::Mutex;

use crate::runtime::Key;

/// The counters of all providers. The lock is held for look-ups only.
#[derive(Debug, Default)]
pub struct Ledger(Mutex<HashMap<Key, BTreeMap<String, InstanceUse>>>);

impl Ledger {
    /// Takes reports in and gives all that is to be counted for `provider`.
    ///
    /// `pods` are the gateway pods that exist, `written` is the usage in the provider's status. A report of a pod that is
    /// gone is taken in only if its process is known: an unknown one may have been counted and forgotten before.
    pub fn take_in(
        &self,
        provider: &Key,
        reports: &[Arc<Stats>],
        pods: &BTreeSet<String>,
        written: Option<&Usage>,
    ) -> Vec<InstanceUse> {
        let mut ledger = self.0.lock();
        let entries = ledger.entry(provider.clone()).or_default();
        let recorded: BTreeSet<&str> = written
            .iter()
            .flat_map(|usage| &usage.counted)
            .map(|source| source.instance.as_str())
            .collect();
        for stats in reports {
            let Some(provider) = stats.providers.get(&provider.name) else {
                continue;
            };
            let is_known =
                recorded.contains(stats.instance.as_str()) || entries.contains_key(&stats.instance);
            if !is_known && (!pods.contains(&stats.pod) || provider.models.is_empty()) {
                continue;
            }
            let used = InstanceUse {
                instance: stats.instance.clone(),
                pod: stats.pod.clone(),
                models: provider.models.clone(),
                spend: provider.spend.clone(),
                unpriced: provider.unpriced,
            };
            entries.insert(stats.instance.clone(), used);
        }
        entries.retain(|_, used| pods.contains(&used.pod) || !has_counted(written, used));
        let all = entries.values().cloned().collect();
        if entries.is_empty() {
            ledger.remove(provider);
        }
        all
    }

    /// The provider is gone.
    pub fn forget(&self, provider: &Key) {
        self.0.lock().remove(provider);
    }
}

#[cfg(test)]
mod tests {
    use flotilla_core::stats::{ModelUse, ProviderStats};
    use flotilla_core::usage::accumulate;
    use jiff::Timestamp;

    use super::*;

    fn report(instance: &str, pod: &str, requests: u64) -> Arc<Stats> {
        let used = ModelUse {
            requests,
            ..ModelUse::default()
        };
        let provider = ProviderStats {
            models: [("mini".to_owned(), used)].into(),
            ..ProviderStats::default()
        };
        Arc::new(Stats {
            instance: instance.into(),
            pod: pod.into(),
            providers: [("main".to_owned(), provider)].into(),
            ..Stats::default()
        })
    }

    fn pods(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    /// One look: what would be written, and the requests in it.
    fn look(
        ledger: &Ledger,
        reports: &[Arc<Stats>],
        pods: &BTreeSet<String>,
        written: &Option<Usage>,
    ) -> (Option<Usage>, i64) {
        let used = ledger.take_in(&Key::new("shop", "main"), reports, pods, written.as_ref());
        let usage = accumulate(written.as_ref(), &used, pods, Timestamp::UNIX_EPOCH);
        let requests = usage.as_ref().map_or(0, |usage| usage.requests);
        (usage, requests)
    }

    #[test]
    fn what_was_seen_of_a_pod_that_went_before_the_write_is_written() {
        let ledger = Ledger::default();
        let (written, _) = look(&ledger, &[report("a", "p", 10)], &pods(&["p"]), &None);
        // Seen, but the counters' next write is not due.
        assert_eq!(
            look(&ledger, &[report("a", "p", 25)], &pods(&["p"]), &written).1,
            25
        );
        // Gone from the scraper and from the cluster.
        let (next, requests) = look(&ledger, &[], &pods(&[]), &written);
        assert_eq!(requests, 25);
        // Written: the process is dropped in two steps and never counted again.
        let (last, requests) = look(&ledger, &[], &pods(&[]), &next);
        assert_eq!(
            (requests, last.as_ref().map(|usage| usage.counted.len())),
            (25, Some(0))
        );
        assert_eq!(
            look(&ledger, &[report("a", "p", 25)], &pods(&[]), &last).1,
            25,
            "a late report of a stranger"
        );
    }

    #[test]
    fn a_restarted_operator_counts_nothing_twice() {
        let (written, _) = look(&Ledger::default(), &[report("a", "p", 10)], &pods(&["p"]), &None);
        assert_eq!(
            look(
                &Ledger::default(),
                &[report("a", "p", 12)],
                &pods(&["p"]),
                &written
            )
            .1,
            12
        );
    }

    #[test]
    fn a_process_that_has_counted_nothing_is_not_recorded() {
        let mut idle = Stats {
            instance: "a".into(),
            pod: "p".into(),
            ..Stats::default()
        };
        idle.providers.insert("main".into(), ProviderStats::default());
        assert_eq!(
            look(&Ledger::default(), &[Arc::new(idle)], &pods(&["p"]), &None).0,
            None
        );
    }
}
