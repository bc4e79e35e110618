//! What was used and spent at one provider since the start of this process, and what may be spent next.
//!
//! One lock, taken twice in a request's life for a few additions: once before it is sent, to look at the budget and to
//! reserve the estimate, once at its end.
//!
//! # What a request costs
//!
//! By the tokens that the provider reports, at the price of the ModelProvider, else at the built-in list price of the
//! day. An answer of which the provider does not tell the usage (a stream that was given up half-way, a server that has
//! none) is charged by what was seen, or what it was estimated at: a budget must not be evaded by hanging up. Errors cost
//! nothing. What is not paid by tokens (images, audio, files, batches) is not counted.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use flotilla_core::price::gate::{Gate, Own, Verdict};
use flotilla_core::price::{Currency, Money, Price, TokenUsage, lookup};
use flotilla_core::quota::{Estimator, OutputCharge};
use flotilla_core::stats::ModelUse;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use parking_lot::Mutex;

use crate::config::{ProviderConfig, SpendConfig};

/// Model names that are counted apart; an agent that makes up names must not fill the memory.
const MAX_MODELS: usize = 128;
/// Where further names are counted.
const OTHER: &str = "other";
/// Where requests without a model are counted, lists of models for example.
const UNKNOWN: &str = "unknown";

/// What was used of one provider since the start of this process. Outlives changes of its spec.
#[derive(Default)]
pub struct Usage {
    counts: Mutex<Counts>,
    in_flight: AtomicU64,
    known: ArcSwap<Known>,
}

/// What the configuration says of the budget's use.
#[derive(Default)]
struct Known {
    /// As the operator has written it.
    written: Option<SpendConfig>,
    gateways: u32,
}

#[derive(Default)]
struct Counts {
    models: BTreeMap<String, Model>,
    spend: BTreeMap<Currency, Money>,
    unpriced: u64,
    /// Estimates of requests in flight, in the budget's currency.
    reserved: Money,
    gate: Gate,
    refused: HashMap<&'static str, u64>,
}

#[derive(Clone, Default)]
struct Model {
    used: ModelUse,
    spend: BTreeMap<Currency, Money>,
    estimator: Estimator,
}

/// What was reserved for a request, until it is settled.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reserved {
    /// Tokens it is estimated at.
    pub tokens: TokenUsage,
    amount: Money,
}

/// Why a budget does not let a request pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OverBudget {
    /// The window's limit is reached.
    Exhausted {
        /// When the next window begins.
        until: Timestamp,
    },
    /// This replica's share is used up, and the operator has not written since.
    ShareUsed,
    /// The model has no price in the budget's currency.
    NoPrice,
}

impl OverBudget {
    /// One word, for metrics.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Exhausted { .. } => "budget_exhausted",
            Self::ShareUsed => "budget_share_used",
            Self::NoPrice => "no_price",
        }
    }
}

/// A request that has ended.
#[derive(Clone, Debug, Default)]
pub struct Ended<'a> {
    /// The model asked for, else the one that answered.
    pub model: Option<&'a str>,
    /// Without a response, or with a status of 400 and above.
    pub failed: bool,
    /// As the provider reported it.
    pub reported: Option<TokenUsage>,
    /// As it is charged where the provider did not report it.
    pub assumed: Option<TokenUsage>,
    /// Length of the request's body.
    pub bytes: u64,
    /// What was reserved for it.
    pub reserved: Reserved,
}

/// What one model was used for, for metrics.
#[derive(Clone, Debug)]
pub struct ModelSpend {
    /// Its name.
    pub model: String,
    /// Its requests and tokens.
    pub used: ModelUse,
    /// Its spend.
    pub spend: BTreeMap<Currency, Money>,
}

/// How much of a budget is spent, as far as this process knows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BudgetView {
    /// In this window, by all gateways when the operator last wrote, and by this one since.
    pub spent: Money,
    /// The limit.
    pub limit: Money,
}

/// The price of `model` by this spec, or the built-in one of the day.
pub fn price(config: &ProviderConfig, model: &str, now: Timestamp) -> Option<Price> {
    let own = config.prices.get(model).copied();
    own.or_else(|| lookup(model, now.to_zoned(TimeZone::UTC).date()).map(|listed| listed.price))
}

impl Usage {
    /// Takes in what the operator has written, and how many gateways share the budget.
    pub fn follow(&self, written: Option<&SpendConfig>, gateways: u32) {
        self.known.store(Arc::new(Known {
            written: written.cloned(),
            gateways,
        }));
    }

    /// A request with a body of `bytes` for `model` wants to go: its estimate is reserved until [`Usage::end`] or
    /// [`Usage::cancel`]. `instance` is this process.
    ///
    /// # Errors
    /// Why the budget does not allow it.
    pub fn reserve(
        &self,
        config: &ProviderConfig,
        instance: &str,
        model: Option<&str>,
        bytes: u64,
        max_tokens: Option<u64>,
        now: Timestamp,
    ) -> Result<Reserved, OverBudget> {
        let mut counts = self.counts.lock();
        let counts = &mut *counts;
        let estimator = model.and_then(|model| counts.models.get(model));
        let estimator = estimator.map(|model| model.estimator).unwrap_or_default();
        let (input, output) = estimator.estimate(bytes, max_tokens, OutputCharge::Used);
        let tokens = TokenUsage {
            input,
            output,
            ..TokenUsage::default()
        };
        let Some(policy) = &config.budget else {
            return Ok(Reserved {
                tokens,
                amount: Money::ZERO,
            });
        };
        let price = model.and_then(|model| price(config, model, now));
        let price = price.filter(|price| price.currency == policy.currency);
        let refusal = if policy.blocks && model.is_some() && price.is_none() {
            Some(OverBudget::NoPrice)
        } else {
            let known = self.known.load();
            let written = known.written.as_ref().map(|written| written.of(instance));
            let own = Own {
                spent: counts.spend.get(&policy.currency).copied().unwrap_or_default(),
                reserved: counts.reserved,
            };
            // At the ends of the calendar there are no budgets.
            let window = counts.gate.window(policy, now).ok();
            window.and_then(|window| {
                match counts
                    .gate
                    .judge(policy, written.as_ref(), &own, known.gateways, &window)
                {
                    Verdict::Admit => None,
                    Verdict::Exhausted => Some(OverBudget::Exhausted { until: window.end }),
                    Verdict::ShareUsed => Some(OverBudget::ShareUsed),
                }
            })
        };
        if let Some(refusal) = refusal {
            *counts.refused.entry(refusal.reason()).or_default() += 1;
            return Err(refusal);
        }
        let amount = price.map_or(Money::ZERO, |price| price.cost(&tokens));
        counts.reserved = counts.reserved + amount;
        Ok(Reserved { tokens, amount })
    }

    /// A request that was reserved for was not sent.
    pub fn cancel(&self, reserved: Reserved) {
        let mut counts = self.counts.lock();
        counts.reserved = counts.reserved.less(reserved.amount);
    }

    /// A request is sent.
    pub fn begin(&self) {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts one request that has ended, and gives what it cost, if that is known.
    pub fn end(
        &self,
        config: &ProviderConfig,
        ended: &Ended<'_>,
        now: Timestamp,
    ) -> Option<(Currency, Money)> {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
        let tokens = ended.reported.or(ended.assumed);
        let price = ended.model.and_then(|model| price(config, model, now));
        let cost = tokens
            .zip(price)
            .map(|(tokens, price)| (price.currency, price.cost(&tokens)));
        let mut counts = self.counts.lock();
        let counts = &mut *counts;
        counts.reserved = counts.reserved.less(ended.reserved.amount);
        if let Some((currency, amount)) = cost {
            let sum = counts.spend.entry(currency).or_default();
            *sum = *sum + amount;
        } else if tokens.is_some() {
            counts.unpriced += 1;
        }
        let name = ended.model.unwrap_or(UNKNOWN);
        let known = counts.models.len() < MAX_MODELS || counts.models.contains_key(name);
        let name = if known { name } else { OTHER };
        let entry = match counts.models.get_mut(name) {
            Some(entry) => entry,
            None => counts.models.entry(name.to_owned()).or_default(),
        };
        entry.used.requests += 1;
        entry.used.failed += u64::from(ended.failed);
        if let Some(reported) = &ended.reported {
            entry.used.input_tokens = entry.used.input_tokens.saturating_add(reported.input);
            entry.used.output_tokens = entry.used.output_tokens.saturating_add(reported.output);
            entry
                .estimator
                .learn(ended.bytes, reported.input, reported.output);
        }
        if let Some((currency, amount)) = cost {
            let sum = entry.spend.entry(currency).or_default();
            *sum = *sum + amount;
        }
        cost
    }

    /// Requests in flight.
    pub fn in_flight(&self) -> u64 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Requests and tokens by model.
    pub fn models(&self) -> BTreeMap<String, ModelUse> {
        let counts = self.counts.lock();
        counts
            .models
            .iter()
            .map(|(name, model)| (name.clone(), model.used))
            .collect()
    }

    /// Requests, tokens and spend by model.
    pub fn spend_by_model(&self) -> Vec<ModelSpend> {
        let counts = self.counts.lock();
        let models = counts.models.iter().map(|(name, model)| ModelSpend {
            model: name.clone(),
            used: model.used,
            spend: model.spend.clone(),
        });
        models.collect()
    }

    /// Spend by currency, and answers whose price is not known.
    pub fn spend(&self) -> (BTreeMap<Currency, Money>, u64) {
        let counts = self.counts.lock();
        (counts.spend.clone(), counts.unpriced)
    }

    /// Requests refused because of the budget, by reason.
    pub fn refused(&self) -> BTreeMap<&'static str, u64> {
        self.counts
            .lock()
            .refused
            .iter()
            .map(|(reason, count)| (*reason, *count))
            .collect()
    }

    /// How much of the budget is spent.
    pub fn budget(&self, config: &ProviderConfig, instance: &str, now: Timestamp) -> Option<BudgetView> {
        let policy = config.budget.as_ref()?;
        let window = policy.window(now).ok()?;
        let known = self.known.load();
        let written = known.written.as_ref().map(|written| written.of(instance));
        let own = self
            .counts
            .lock()
            .spend
            .get(&policy.currency)
            .copied()
            .unwrap_or_default();
        let spent = match written {
            Some(written) if written.window_start >= window.start => {
                written.spent + own.less(written.counted)
            }
            _ => Money::ZERO,
        };
        Some(BudgetView {
            spent,
            limit: policy.limit,
        })
    }
}

#[cfg(test)]
mod tests {
    use flotilla_core::price::budget::Calendar;
    use flotilla_core::price::ledger::Policy;

    use super::*;

    fn config(limit: &str) -> ProviderConfig {
        ProviderConfig {
            prices: [("m".to_owned(), Price::parse("USD", "1", "10").unwrap())].into(),
            budget: Some(Policy {
                limit: limit.parse().unwrap(),
                currency: Currency::USD,
                calendar: Calendar::Month,
                blocks: true,
            }),
            ..ProviderConfig::default()
        }
    }

    fn now() -> Timestamp {
        "2026-11-21T12:00:00Z".parse().unwrap()
    }

    fn call(input: u64, output: u64) -> Option<TokenUsage> {
        Some(TokenUsage {
            input,
            output,
            ..TokenUsage::default()
        })
    }

    #[test]
    fn made_up_models_share_one_entry() {
        let (usage, config) = (Usage::default(), ProviderConfig::default());
        for number in 0..300 {
            usage.begin();
            let model = format!("m{number}");
            let ended = Ended {
                model: Some(&model),
                reported: call(1, 1),
                ..Ended::default()
            };
            assert_eq!(usage.end(&config, &ended, now()), None);
        }
        let models = usage.models();
        assert_eq!(models.len(), MAX_MODELS + 1);
        assert_eq!(models[OTHER].requests, 300 - MAX_MODELS as u64);
        assert_eq!((usage.in_flight(), usage.spend().1), (0, 300));
    }

    #[test]
    fn what_is_in_flight_and_what_was_spent_fill_the_budget() {
        // A call of 1,000 and 100 tokens costs 0.002.
        let (usage, config) = (Usage::default(), config("0.004"));
        let reserve = || usage.reserve(&config, "i", Some("m"), 1_000, Some(100), now());
        let first = reserve().unwrap();
        assert!(first.tokens.input <= 1_000 && first.tokens.output == 100);
        let second = reserve().unwrap();
        let mut reserved = vec![first, second];
        while let Ok(more) = reserve() {
            reserved.push(more);
        }
        assert_eq!(reserve().unwrap_err(), OverBudget::ShareUsed);
        for reserved in reserved.drain(1..) {
            usage.cancel(reserved);
        }
        for reserved in [reserved.remove(0), reserve().unwrap()] {
            usage.begin();
            let ended = Ended {
                model: Some("m"),
                reported: call(1_000, 100),
                bytes: 1_000,
                reserved,
                ..Ended::default()
            };
            let cost = usage.end(&config, &ended, now());
            assert_eq!(
                cost.map(|(currency, cost)| (currency.to_string(), cost.to_string())),
                Some(("USD".into(), "0.002".into()))
            );
        }
        let until = "2026-12-01T00:00:00Z".parse().unwrap();
        assert_eq!(reserve().unwrap_err(), OverBudget::Exhausted { until });
        assert_eq!(usage.refused()["budget_exhausted"], 1);
        // What the operator has counted of it leaves room for a larger limit only.
        let written = SpendConfig {
            window_start: "2026-11-01T00:00:00Z".parse().unwrap(),
            spent: "0.004".parse().unwrap(),
            counted: [("i".to_owned(), "0.004".parse().unwrap())].into(),
        };
        usage.follow(Some(&written), 1);
        assert_eq!(reserve().unwrap_err(), OverBudget::Exhausted { until });
        assert_eq!(
            usage.budget(&config, "i", now()).unwrap().spent.to_string(),
            "0.004"
        );
    }

    #[test]
    fn a_budget_that_blocks_wants_prices() {
        let (usage, config) = (Usage::default(), config("1"));
        let reserve = |model| usage.reserve(&config, "i", model, 10, None, now()).map(|_| ());
        assert_eq!(reserve(Some("unheard-of")), Err(OverBudget::NoPrice));
        assert_eq!(reserve(Some("gpt-5-mini")), Ok(()), "built in");
        assert_eq!(reserve(None), Ok(()), "a list of models costs nothing");
    }

    #[test]
    fn an_answer_without_usage_is_charged_as_assumed_and_a_failure_is_not() {
        let (usage, config) = (Usage::default(), config("1"));
        for (assumed, spent) in [(None, "0"), (call(1_000, 0), "0.001")] {
            usage.begin();
            let ended = Ended {
                model: Some("m"),
                assumed,
                ..Ended::default()
            };
            usage.end(&config, &ended, now());
            let (spend, unpriced) = usage.spend();
            let sum = spend.get(&Currency::USD).copied().unwrap_or_default();
            assert_eq!((sum.to_string().as_str(), unpriced), (spent, 0));
        }
        let used = usage.models()["m"];
        assert_eq!(
            (used.requests, used.input_tokens),
            (2, 0),
            "tokens are as reported"
        );
    }
}
