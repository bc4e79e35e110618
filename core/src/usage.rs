//! What a ModelProvider was used for, summed over gateway processes that come and go.
//!
//! A gateway counts since the start of its process. The operator sees those counters only now and then, may be restarted
//! between any two looks, and must neither lose nor repeat anything it has seen. So the sums and the counters they were
//! made from are one value, written in one status write: [`accumulate`] adds to the sums what a process reports beyond
//! what is recorded of it, and records the new counters beside them. Whatever was written last, the next step starts from
//! it.
//!
//! What a process counted after it was last seen is lost with it: at most the time between two scrapes.

use std::collections::{BTreeMap, BTreeSet};

use flotilla_crds::model_provider::{CountedSource, ModelUsage, Spend, Usage};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::price::{Currency, Money};
use crate::stats::ModelUse;

/// Models listed by name; the use of further ones is added up under [`OTHER`], as gateways do.
pub const MAX_MODELS: usize = 128;
/// Gateway processes recorded at once. Use by a process beyond them is not counted until one of them has gone.
pub const MAX_SOURCES: usize = 64;
/// Currencies in which spend is added up; that in further ones is not counted.
pub const MAX_CURRENCIES: usize = 8;
/// The name under which the use of unlisted models is added up.
pub const OTHER: &str = "other";

/// The counters of one gateway process for one provider.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InstanceUse {
    /// The process, as it names itself.
    pub instance: String,
    /// Its pod.
    pub pod: String,
    /// By model, since the start of the process.
    pub models: BTreeMap<String, ModelUse>,
    /// Spend since the start of the process.
    pub spend: BTreeMap<Currency, Money>,
    /// Answers of models without a known price since then.
    pub unpriced: u64,
}

/// The usage after these reports. `recorded` is what the last write left, `pods` names the gateway pods that exist.
///
/// The result is `recorded` itself, to the byte, when nothing new was reported and no recorded process has gone.
/// `None` when nothing was ever reported.
pub fn accumulate(
    recorded: Option<&Usage>,
    reports: &[InstanceUse],
    pods: &BTreeSet<String>,
    now: Timestamp,
) -> Option<Usage> {
    if recorded.is_none() && reports.is_empty() {
        return None;
    }
    let before = recorded.cloned().unwrap_or_default();
    let mut sources: BTreeMap<String, CountedSource> = before
        .counted
        .iter()
        .map(|source| (source.instance.clone(), source.clone()))
        .collect();
    let reported: BTreeSet<&str> = reports.iter().map(|report| report.instance.as_str()).collect();
    // A pod that is there but silent keeps its record: it may report again.
    sources.retain(|instance, source| {
        let replaced = reports
            .iter()
            .any(|report| report.pod == source.pod && report.instance != *instance);
        reported.contains(instance.as_str()) || (pods.contains(&source.pod) && !replaced)
    });

    let mut sums = Sums::of(&before);
    for report in reports {
        if !sources.contains_key(&report.instance) && sources.len() >= MAX_SOURCES {
            continue;
        }
        let source = sources.entry(report.instance.clone()).or_default();
        let known: BTreeMap<&str, &ModelUsage> = source
            .models
            .iter()
            .map(|model| (model.name.as_str(), model))
            .collect();
        for (name, counters) in &report.models {
            sums.add(name, counters, known.get(name.as_str()).copied());
        }
        let counted = counted_of(report);
        sums.add_spend(&counted, source);
        *source = counted;
    }

    let mut after = sums.into_usage();
    after.counted = sources.into_values().collect();
    let counts_changed = (
        after.requests,
        after.failed,
        after.input_tokens,
        after.output_tokens,
        &after.models,
        &after.spend,
        after.unpriced_requests,
    ) != (
        before.requests,
        before.failed,
        before.input_tokens,
        before.output_tokens,
        &before.models,
        &before.spend,
        before.unpriced_requests,
    );
    after.time = if counts_changed || recorded.is_none() {
        Some(Time(now))
    } else {
        before.time
    };
    Some(after)
}

/// Whether `usage` has taken in everything that `report` says.
pub fn has_counted(usage: Option<&Usage>, report: &InstanceUse) -> bool {
    let source = usage.and_then(|usage| {
        usage
            .counted
            .iter()
            .find(|source| source.instance == report.instance)
    });
    source.is_some_and(|source| *source == counted_of(report))
}

/// What was spent in `currency`; nothing where that is not said.
pub fn spent(spend: &[Spend], currency: Currency) -> Money {
    let currency = currency.to_string();
    let entry = spend.iter().find(|entry| entry.currency == currency);
    entry
        .and_then(|entry| entry.amount.parse().ok())
        .unwrap_or_default()
}

/// The record of a process when everything that it reports is counted.
fn counted_of(report: &InstanceUse) -> CountedSource {
    let models = report.models.iter();
    let spend = report.spend.iter().take(MAX_CURRENCIES);
    CountedSource {
        instance: report.instance.clone(),
        pod: report.pod.clone(),
        models: models.map(|(name, counters)| usage_of(name, counters)).collect(),
        spend: spend
            .map(|(currency, amount)| Spend {
                currency: currency.to_string(),
                amount: amount.to_string(),
            })
            .collect(),
        unpriced_requests: number(report.unpriced),
    }
}

struct Sums {
    total: Usage,
    models: BTreeMap<String, ModelUsage>,
}

impl Sums {
    fn of(usage: &Usage) -> Self {
        let models = usage
            .models
            .iter()
            .map(|model| (model.name.clone(), model.clone()))
            .collect();
        Self {
            total: usage.clone(),
            models,
        }
    }

    /// Adds what `counters` say beyond `known`. A counter that went back adds nothing.
    fn add(&mut self, name: &str, counters: &ModelUse, known: Option<&ModelUsage>) {
        let new = usage_of(name, counters);
        let beyond = |new: i64, known: Option<i64>| new.saturating_sub(known.unwrap_or_default()).max(0);
        let requests = beyond(new.requests, known.map(|known| known.requests));
        let failed = beyond(new.failed, known.map(|known| known.failed));
        let input_tokens = beyond(new.input_tokens, known.map(|known| known.input_tokens));
        let output_tokens = beyond(new.output_tokens, known.map(|known| known.output_tokens));
        if requests == 0 && failed == 0 && input_tokens == 0 && output_tokens == 0 {
            return;
        }
        let has_room = self.models.len() + 1 < MAX_MODELS || self.models.contains_key(name);
        let name = if has_room { name } else { OTHER };
        let model = self.models.entry(name.to_owned()).or_insert_with(|| ModelUsage {
            name: name.to_owned(),
            ..ModelUsage::default()
        });
        for (sum, more) in [
            (&mut model.requests, requests),
            (&mut model.failed, failed),
            (&mut model.input_tokens, input_tokens),
            (&mut model.output_tokens, output_tokens),
            (&mut self.total.requests, requests),
            (&mut self.total.failed, failed),
            (&mut self.total.input_tokens, input_tokens),
            (&mut self.total.output_tokens, output_tokens),
        ] {
            *sum = sum.saturating_add(more);
        }
    }

    /// Adds the spend that `new` says beyond `known`.
    fn add_spend(&mut self, new: &CountedSource, known: &CountedSource) {
        let unpriced = new
            .unpriced_requests
            .saturating_sub(known.unpriced_requests)
            .max(0);
        self.total.unpriced_requests = self.total.unpriced_requests.saturating_add(unpriced);
        for entry in &new.spend {
            let (Ok(currency), Ok(amount)) = (entry.currency.parse(), entry.amount.parse::<Money>()) else {
                continue;
            };
            let more = amount.less(spent(&known.spend, currency));
            if more == Money::ZERO {
                continue;
            }
            let sum = (spent(&self.total.spend, currency) + more).to_string();
            let totals = &mut self.total.spend;
            match totals.iter().position(|sum| sum.currency == entry.currency) {
                Some(place) => {
                    if let Some(total) = totals.get_mut(place) {
                        total.amount = sum;
                    }
                }
                None if totals.len() < MAX_CURRENCIES => totals.push(Spend {
                    currency: entry.currency.clone(),
                    amount: sum,
                }),
                None => {}
            }
        }
    }

    fn into_usage(self) -> Usage {
        Usage {
            models: self.models.into_values().collect(),
            ..self.total
        }
    }
}

fn usage_of(name: &str, counters: &ModelUse) -> ModelUsage {
    let ModelUse {
        requests,
        failed,
        input_tokens,
        output_tokens,
    } = *counters;
    ModelUsage {
        name: name.to_owned(),
        requests: number(requests),
        failed: number(failed),
        input_tokens: number(input_tokens),
        output_tokens: number(output_tokens),
    }
}

fn number(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn report(instance: &str, pod: &str, requests: u64) -> InstanceUse {
        let used = ModelUse {
            requests,
            failed: requests / 10,
            input_tokens: requests * 100,
            output_tokens: requests * 7,
        };
        InstanceUse {
            instance: instance.into(),
            pod: pod.into(),
            models: [("mini".to_owned(), used)].into(),
            spend: [(Currency::USD, Money::of_tokens(requests, "1".parse().unwrap()))].into(),
            unpriced: requests / 5,
        }
    }

    fn pods(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn instances(usage: &Usage) -> Vec<&str> {
        usage
            .counted
            .iter()
            .map(|source| source.instance.as_str())
            .collect()
    }

    #[test]
    fn the_same_report_twice_counts_once() {
        let first = accumulate(None, &[report("a", "p", 10)], &pods(&["p"]), at(1)).unwrap();
        assert_eq!(
            (
                first.requests,
                first.failed,
                first.input_tokens,
                first.output_tokens
            ),
            (10, 1, 1000, 70)
        );
        let second = accumulate(Some(&first), &[report("a", "p", 10)], &pods(&["p"]), at(2)).unwrap();
        assert_eq!(second, first);
        assert_eq!(spent(&second.spend, Currency::USD).to_string(), "0.00001");
        assert_eq!(second.unpriced_requests, 2);
        let third = accumulate(Some(&second), &[report("a", "p", 25)], &pods(&["p"]), at(3)).unwrap();
        assert_eq!(
            (third.requests, third.time.as_ref().map(|time| time.0)),
            (25, Some(at(3)))
        );
        assert!(has_counted(Some(&third), &report("a", "p", 25)));
        assert!(!has_counted(Some(&third), &report("a", "p", 26)));
    }

    #[test]
    fn a_restarted_container_counts_from_zero_again_and_replaces_its_predecessor() {
        let first = accumulate(None, &[report("a", "p", 10)], &pods(&["p"]), at(1)).unwrap();
        let second = accumulate(Some(&first), &[report("b", "p", 3)], &pods(&["p"]), at(2)).unwrap();
        assert_eq!((second.requests, instances(&second)), (13, vec!["b"]));
    }

    #[test]
    fn a_silent_pod_keeps_its_record_and_a_gone_one_loses_it() {
        let first = accumulate(
            None,
            &[report("a", "p", 10), report("b", "q", 5)],
            &pods(&["p", "q"]),
            at(1),
        )
        .unwrap();
        let silent = accumulate(Some(&first), &[report("a", "p", 10)], &pods(&["p", "q"]), at(2)).unwrap();
        assert_eq!(silent, first);
        let gone = accumulate(Some(&first), &[report("a", "p", 10)], &pods(&["p"]), at(3)).unwrap();
        assert_eq!(
            (gone.requests, instances(&gone), gone.time.clone()),
            (15, vec!["a"], first.time)
        );
    }

    #[test]
    fn the_last_report_of_a_pod_that_has_gone_still_counts_and_is_remembered() {
        let first = accumulate(None, &[report("a", "p", 10)], &pods(&["p"]), at(1)).unwrap();
        let last = accumulate(Some(&first), &[report("a", "p", 12)], &pods(&[]), at(2)).unwrap();
        assert_eq!((last.requests, instances(&last)), (12, vec!["a"]));
        assert_eq!(
            accumulate(Some(&last), &[report("a", "p", 12)], &pods(&[]), at(3)).unwrap(),
            last
        );
    }

    #[test]
    fn models_and_processes_are_bounded() {
        let used = ModelUse {
            requests: 1,
            ..ModelUse::default()
        };
        let models = (0..200).map(|n| (format!("m{n:03}"), used)).collect();
        let many = InstanceUse {
            instance: "a".into(),
            pod: "p".into(),
            models,
            ..InstanceUse::default()
        };
        let usage = accumulate(None, &[many], &pods(&["p"]), at(1)).unwrap();
        let other = usage.models.iter().find(|model| model.name == OTHER).unwrap();
        assert_eq!(
            (usage.requests, usage.models.len(), other.requests),
            (200, MAX_MODELS, 73)
        );

        let crowd: Vec<_> = (0..70)
            .map(|n| report(&format!("i{n:02}"), &format!("p{n}"), 1))
            .collect();
        let usage = accumulate(None, &crowd, &pods(&[]), at(1)).unwrap();
        assert_eq!((usage.requests, usage.counted.len()), (64, MAX_SOURCES));
    }

    #[test]
    fn nothing_reported_is_nothing_written() {
        assert_eq!(accumulate(None, &[], &pods(&["p"]), at(1)), None);
    }

    proptest! {
        /// Whatever the order of looks, silences and operator restarts (every step starts from the written value), the
        /// sum is the sum of each process's last seen counter.
        #[test]
        fn every_request_seen_counts_exactly_once(steps in prop::collection::vec((0usize..3, 0u64..50, any::<bool>()), 1..60)) {
            let names = ["a", "b", "c"];
            let all = pods(&names);
            let mut counters = [0u64; 3];
            let mut seen = [0u64; 3];
            let mut written: Option<Usage> = None;
            for (which, more, persisted) in steps {
                counters[which] += more;
                let looked = report(names[which], names[which], counters[which]);
                let next = accumulate(written.as_ref(), &[looked], &all, at(1));
                if persisted {
                    seen[which] = counters[which];
                    written = next;
                }
            }
            let sum: u64 = seen.iter().sum();
            let written = written.unwrap_or_default();
            prop_assert_eq!(written.requests, i64::try_from(sum).unwrap());
            prop_assert_eq!(spent(&written.spend, Currency::USD), Money::of_tokens(sum, "1".parse().unwrap()));
        }
    }
}
