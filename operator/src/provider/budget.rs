//! A provider's budget: its status, its alert, and how closely it has to be looked at. What is decided is in
//! [`flotilla_core::price::ledger`].

use std::collections::HashMap;

use flotilla_core::price::Money;
use flotilla_core::price::budget::Threshold;
use flotilla_core::price::ledger::{Policy, settle};
use flotilla_crds::ModelProviderSpec;
use flotilla_crds::common::condition;
use flotilla_crds::model_provider::{BudgetStatus, OnExhausted, Usage};
use jiff::Timestamp;
use parking_lot::Mutex;

use crate::runtime::{Conditions, Key, Note};

/// A budget that would be used up within this time at the present pace is looked at every second.
const CLOSE_SECONDS: f64 = 120.0;
/// The pace is measured over at least this long.
const PACE_SECONDS: i64 = 10;

/// A budget after a look.
#[derive(Debug)]
pub struct Look {
    /// To be written.
    pub status: BudgetStatus,
    /// To be announced once that is written, lowest first.
    pub news: Vec<Threshold>,
}

/// Looks at the budget of `spec`; none if it has none. `before` is the usage as written, `after` as it is to be.
pub fn look(
    spec: &ModelProviderSpec,
    written: Option<&BudgetStatus>,
    before: Option<&Usage>,
    after: Option<&Usage>,
    now: Timestamp,
) -> Option<Look> {
    let policy = Policy::parse(spec.budget.as_ref()?).ok()?;
    let (status, news) = settle(&policy, written, before, after, now).ok()?;
    Some(Look { status, news })
}

/// Sets the condition BudgetAlert. It speaks of thresholds only, so that it changes with them and not with every cent.
pub fn set_condition(conditions: &mut Conditions, spec: &ModelProviderSpec, look: Option<&Look>) {
    let Some(look) = look else {
        return conditions.set(condition::BUDGET_ALERT, false, "NoBudget", "");
    };
    let percent = look.status.alerted_percent;
    let reason = match percent {
        100.. => "Exhausted",
        90.. => "Spent90Percent",
        80.. => "Spent80Percent",
        _ => return conditions.set(condition::BUDGET_ALERT, false, "WithinBudget", ""),
    };
    conditions.set(
        condition::BUDGET_ALERT,
        true,
        reason,
        sentence(spec, &look.status, percent),
    );
}

/// What is announced of a threshold.
pub fn note(spec: &ModelProviderSpec, status: &BudgetStatus, threshold: Threshold) -> Note {
    let reason = match threshold {
        Threshold::Eighty => "BudgetSpent80Percent",
        Threshold::Ninety => "BudgetSpent90Percent",
        Threshold::Exhausted => "BudgetExhausted",
    };
    Note::warning(reason, sentence(spec, status, i32::from(threshold.percent())))
}

fn sentence(spec: &ModelProviderSpec, status: &BudgetStatus, percent: i32) -> String {
    let (limit, currency, end) = (&status.limit, &status.currency, status.end_time.0);
    let blocks = spec
        .budget
        .as_ref()
        .is_some_and(|budget| budget.on_exhausted == OnExhausted::Block);
    let then = match (percent >= 100, blocks) {
        (true, true) => {
            "; requests are refused or go to their fallbacks until then, or until budget.limit is raised"
        }
        (true, false) => "; requests still pass, because budget.onExhausted is Allow",
        (false, true) => "; when all of it is spent, requests are refused or go to their fallbacks",
        (false, false) => "",
    };
    format!("{percent} % of the budget of {limit} {currency} are spent; it begins anew at {end}{then}")
}

/// How fast providers spend, as far as this process has seen.
#[derive(Debug, Default)]
pub struct Paces(Mutex<HashMap<Key, Pace>>);

#[derive(Clone, Copy, Debug)]
struct Pace {
    spent: Money,
    at: Timestamp,
    per_second: f64,
}

impl Paces {
    /// Whether a budget that blocks is so near to its end that every second counts.
    pub fn is_close(
        &self,
        provider: &Key,
        spec: &ModelProviderSpec,
        look: Option<&Look>,
        now: Timestamp,
    ) -> bool {
        let budget = spec.budget.as_ref().zip(look);
        let Some((_, look)) = budget.filter(|(budget, _)| budget.on_exhausted == OnExhausted::Block) else {
            self.forget(provider);
            return false;
        };
        let read = |text: &str| text.parse::<Money>().unwrap_or_default();
        let (spent, limit) = (read(&look.status.spent), read(&look.status.limit));
        let mut paces = self.0.lock();
        let pace = paces.entry(provider.clone()).or_insert(Pace {
            spent,
            at: now,
            per_second: 0.0,
        });
        let passed = now.duration_since(pace.at).as_secs();
        if passed >= PACE_SECONDS {
            *pace = Pace {
                spent,
                at: now,
                per_second: spent.less(pace.spent).to_f64() / passed as f64,
            };
        }
        let left = limit.less(spent).to_f64();
        // What came since the pace was measured counts as if it had come in that time.
        let lately = spent.less(pace.spent).to_f64() / PACE_SECONDS as f64;
        left > 0.0 && pace.per_second.max(lately) * CLOSE_SECONDS >= left
    }

    /// The provider is gone.
    pub fn forget(&self, provider: &Key) {
        self.0.lock().remove(provider);
    }
}

#[cfg(test)]
mod tests {
    use flotilla_crds::common::find;
    use flotilla_crds::model_provider::Spend;
    use serde_json::json;

    use super::*;

    fn spec(on_exhausted: &str) -> ModelProviderSpec {
        let budget = json!({"limit": "100", "onExhausted": on_exhausted});
        serde_json::from_value(json!({"endpoint": "https://m/v1", "budget": budget})).unwrap()
    }

    fn usage(amount: &str) -> Usage {
        Usage {
            spend: vec![Spend {
                currency: "USD".into(),
                amount: amount.into(),
            }],
            ..Usage::default()
        }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn looked(on_exhausted: &str, amount: &str) -> Look {
        look(&spec(on_exhausted), None, None, Some(&usage(amount)), at(0)).unwrap()
    }

    #[test]
    fn alerts_say_what_is_so_and_what_to_do() {
        for (on_exhausted, amount, status, reason, part) in [
            ("Block", "79.99", "False", "WithinBudget", ""),
            (
                "Block",
                "80",
                "True",
                "Spent80Percent",
                "80 % of the budget of 100 USD are spent; it begins anew at 1970-02-01T00:00:00Z",
            ),
            ("Allow", "95", "True", "Spent90Percent", "90 %"),
            (
                "Block",
                "100",
                "True",
                "Exhausted",
                "refused or go to their fallbacks until then",
            ),
            ("Allow", "170", "True", "Exhausted", "requests still pass"),
        ] {
            let mut conditions = Conditions::new(&[], Some(1), at(0));
            set_condition(
                &mut conditions,
                &spec(on_exhausted),
                Some(&looked(on_exhausted, amount)),
            );
            let conditions = conditions.into_vec();
            let alert = find(&conditions, "BudgetAlert").unwrap();
            assert_eq!(
                (alert.status.as_str(), alert.reason.as_str()),
                (status, reason),
                "{amount}"
            );
            assert!(alert.message.contains(part), "{}", alert.message);
        }
    }

    #[test]
    fn a_budget_is_close_to_its_end_by_its_pace() {
        let paces = Paces::default();
        let key = Key::new("shop", "main");
        let close = |on_exhausted: &str, amount: &str, second: i64| {
            let look = looked(on_exhausted, amount);
            paces.is_close(&key, &spec(on_exhausted), Some(&look), at(second))
        };
        for (amount, second, expected) in [
            ("90", 0, false),
            ("90", 60, false),
            // 0.01 a second would take 1,000 s.
            ("90.1", 70, false),
            // A burst: 0.5 a second would take 10 s.
            ("95", 71, true),
            ("95", 80, true),
            ("95", 90, false),
            ("100", 91, false),
        ] {
            assert_eq!(close("Block", amount, second), expected, "{amount} at {second}");
        }
        assert!(!close("Allow", "50", 92) && !close("Allow", "99", 93));
    }
}
