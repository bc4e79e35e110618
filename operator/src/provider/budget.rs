//! The budgets of a provider and of its models: their status, their alert, and how closely they have to be looked at. What is decided is in
//! [`flotilla_core::price::ledger`].

use std::collections::HashMap;

use flotilla_core::price::Money;
use flotilla_core::price::budget::Threshold;
use flotilla_core::price::ledger::{Policy, settle, settle_model};
use flotilla_crds::ModelProviderSpec;
use flotilla_crds::common::condition;
use flotilla_crds::model_provider::{
    Budget, BudgetStatus, ModelBudgetStatus, ModelProviderStatus, OnExhausted, Usage,
};
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
    /// The model whose budget it is; none: the provider's.
    pub model: Option<String>,
    /// What was written.
    pub budget: Budget,
    /// To be written.
    pub status: BudgetStatus,
    /// To be announced once that is written, lowest first.
    pub news: Vec<Threshold>,
}

/// Looks at all budgets of `spec`, the provider's own first. `status` is what is written, `after` the usage as it is to be.
pub fn look(
    spec: &ModelProviderSpec,
    status: &ModelProviderStatus,
    after: Option<&Usage>,
    now: Timestamp,
) -> Vec<Look> {
    let before = status.usage.as_ref();
    let of_provider = spec.budget.as_ref().and_then(|budget| {
        let policy = Policy::parse(budget).ok()?;
        let (status, news) = settle(&policy, status.budget.as_ref(), before, after, now).ok()?;
        Some(Look {
            model: None,
            budget: budget.clone(),
            status,
            news,
        })
    });
    let of_models = spec.models.iter().filter_map(|model| {
        let budget = model.budget.as_ref()?;
        let policy = Policy::parse(budget).ok()?;
        let written = status.model_budgets.iter().find(|known| known.name == model.name);
        let written = written.map(|known| &known.budget);
        let (status, news) = settle_model(&policy, written, &model.name, before, after, now).ok()?;
        Some(Look {
            model: Some(model.name.clone()),
            budget: budget.clone(),
            status,
            news,
        })
    });
    of_provider.into_iter().chain(of_models).collect()
}

/// The provider's own, as it is to be written.
pub fn of_provider(looks: &[Look]) -> Option<BudgetStatus> {
    let own = looks.iter().find(|look| look.model.is_none())?;
    Some(own.status.clone())
}

/// Those of models, as they are to be written.
pub fn of_models(looks: &[Look]) -> Vec<ModelBudgetStatus> {
    let of = |look: &Look| {
        Some(ModelBudgetStatus {
            name: look.model.clone()?,
            budget: look.status.clone(),
        })
    };
    looks.iter().filter_map(of).collect()
}

/// Sets the condition BudgetAlert, of the budget of which most is spent. It speaks of thresholds only, so that it changes with
/// them and not with every cent.
pub fn set_condition(conditions: &mut Conditions, looks: &[Look]) {
    // Of equals the first: the provider's own.
    let most = looks.iter().rev().max_by_key(|look| look.status.alerted_percent);
    let Some(look) = most else {
        return conditions.set(condition::BUDGET_ALERT, false, "NoBudget", "");
    };
    let percent = look.status.alerted_percent;
    let reason = match percent {
        100.. => "Exhausted",
        90.. => "Spent90Percent",
        80.. => "Spent80Percent",
        _ => return conditions.set(condition::BUDGET_ALERT, false, "WithinBudget", ""),
    };
    let further = looks
        .iter()
        .filter(|other| other.status.alerted_percent >= 80)
        .count()
        - 1;
    let mut message = sentence(look, percent);
    if further > 0 {
        message.push_str(&format!("; {further} more in status.modelBudgets"));
    }
    conditions.set(condition::BUDGET_ALERT, true, reason, message);
}

/// What is announced of a threshold.
pub fn note(look: &Look, threshold: Threshold) -> Note {
    let reason = match threshold {
        Threshold::Eighty => "BudgetSpent80Percent",
        Threshold::Ninety => "BudgetSpent90Percent",
        Threshold::Exhausted => "BudgetExhausted",
    };
    Note::warning(reason, sentence(look, i32::from(threshold.percent())))
}

fn sentence(look: &Look, percent: i32) -> String {
    let (limit, currency, end) = (&look.status.limit, &look.status.currency, look.status.end_time.0);
    let blocks = look.budget.on_exhausted == OnExhausted::Block;
    let (whose, field) = match &look.model {
        Some(model) => (format!(" for model {model}"), "models[].budget"),
        None => (String::new(), "budget"),
    };
    let then = match (percent >= 100, blocks) {
        (true, true) => {
            format!(
                "; requests are refused or go to their fallbacks until then, or until {field}.limit is raised"
            )
        }
        (true, false) => format!("; requests still pass, because {field}.onExhausted is Allow"),
        (false, true) => {
            "; when all of it is spent, requests are refused or go to their fallbacks".to_owned()
        }
        (false, false) => String::new(),
    };
    format!("{percent} % of the budget of {limit} {currency}{whose} are spent; it begins anew at {end}{then}")
}

/// How fast providers spend, as far as this process has seen: by provider and model.
#[derive(Debug, Default)]
pub struct Paces(Mutex<HashMap<Key, HashMap<Option<String>, Pace>>>);

#[derive(Clone, Copy, Debug)]
struct Pace {
    spent: Money,
    at: Timestamp,
    per_second: f64,
}

impl Pace {
    /// Whether `left` is used up soon at this pace.
    fn is_close(&mut self, spent: Money, limit: Money, now: Timestamp) -> bool {
        let passed = now.duration_since(self.at).as_secs();
        if passed >= PACE_SECONDS {
            *self = Self {
                spent,
                at: now,
                per_second: spent.less(self.spent).to_f64() / passed as f64,
            };
        }
        let left = limit.less(spent).to_f64();
        // What came since the pace was measured counts as if it had come in that time.
        let lately = spent.less(self.spent).to_f64() / PACE_SECONDS as f64;
        left > 0.0 && self.per_second.max(lately) * CLOSE_SECONDS >= left
    }
}

impl Paces {
    /// Whether a budget that blocks is so near to its end that every second counts.
    pub fn is_close(&self, provider: &Key, looks: &[Look], now: Timestamp) -> bool {
        let mut all = self.0.lock();
        let blocking = looks
            .iter()
            .filter(|look| look.budget.on_exhausted == OnExhausted::Block);
        let mut paces = all.remove(provider).unwrap_or_default();
        let (mut known, mut is_close) = (HashMap::new(), false);
        for look in blocking {
            let read = |text: &str| text.parse::<Money>().unwrap_or_default();
            let (spent, limit) = (read(&look.status.spent), read(&look.status.limit));
            let mut pace = paces.remove(&look.model).unwrap_or(Pace {
                spent,
                at: now,
                per_second: 0.0,
            });
            is_close |= pace.is_close(spent, limit, now);
            known.insert(look.model.clone(), pace);
        }
        if !known.is_empty() {
            all.insert(provider.clone(), known);
        }
        is_close
    }

    /// The provider is gone.
    pub fn forget(&self, provider: &Key) {
        self.0.lock().remove(provider);
    }
}

#[cfg(test)]
mod tests {
    use flotilla_crds::common::find;
    use flotilla_crds::model_provider::{ModelUsage, Spend};
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

    fn looked(on_exhausted: &str, amount: &str) -> Vec<Look> {
        let status = ModelProviderStatus::default();
        look(&spec(on_exhausted), &status, Some(&usage(amount)), at(0))
    }

    #[test]
    fn a_models_budget_alerts_by_its_name() {
        let mut spec = spec("Allow");
        let model = json!({"name": "mini", "budget": {"limit": "10", "window": "Day"}});
        spec.models =
            serde_json::from_value(json!([model, {"name": "large", "budget": {"limit": "1"}}])).unwrap();
        let used = ModelUsage {
            name: "mini".into(),
            spend: usage("9.5").spend,
            ..ModelUsage::default()
        };
        let after = Usage {
            models: vec![used],
            ..usage("85")
        };
        let looks = look(&spec, &ModelProviderStatus::default(), Some(&after), at(0));
        let percents: Vec<_> = looks.iter().map(|look| look.status.percent).collect();
        assert_eq!(percents, [85, 95, 0]);
        assert_eq!(of_provider(&looks).map(|status| status.percent), Some(85));
        let named: Vec<_> = of_models(&looks).into_iter().map(|model| model.name).collect();
        assert_eq!(named, ["mini", "large"]);
        let mut conditions = Conditions::new(&[], Some(1), at(0));
        set_condition(&mut conditions, &looks);
        let conditions = conditions.into_vec();
        let alert = find(&conditions, "BudgetAlert").unwrap();
        assert_eq!(alert.reason, "Spent90Percent");
        assert!(
            alert
                .message
                .starts_with("90 % of the budget of 10 USD for model mini are spent")
                && alert.message.ends_with("; 1 more in status.modelBudgets"),
            "{}",
            alert.message
        );
        let written = ModelProviderStatus {
            model_budgets: of_models(&looks),
            budget: of_provider(&looks),
            usage: Some(after.clone()),
            ..ModelProviderStatus::default()
        };
        let again = look(&spec, &written, Some(&after), at(1));
        assert!(again.iter().all(|look| look.news.is_empty()), "said once");
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
            set_condition(&mut conditions, &looked(on_exhausted, amount));
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
            paces.is_close(&key, &looked(on_exhausted, amount), at(second))
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
