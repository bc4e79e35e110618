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
use flotilla_core::price::ledger::Policy;
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
    /// The same by model.
    models: BTreeMap<String, SpendConfig>,
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
    /// Of its own budget.
    reserved: Money,
    gate: Gate,
}

/// What was reserved for a request, until it is settled.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reserved {
    /// Tokens it is estimated at.
    pub tokens: TokenUsage,
    amount: Money,
    /// Of the model's own budget.
    of_model: Money,
}

/// Whose budget it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All of the provider.
    Provider,
    /// The model that was asked for.
    Model,
}

/// Why a budget does not let a request pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OverBudget {
    /// The window's limit is reached.
    Exhausted {
        /// Whose.
        scope: Scope,
        /// When the next window begins.
        until: Timestamp,
    },
    /// This replica's share is used up, and the operator has not written since.
    ShareUsed(Scope),
    /// The model has no price in the budget's currency.
    NoPrice,
}

impl OverBudget {
    /// One word, for metrics.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Exhausted {
                scope: Scope::Provider,
                ..
            } => "budget_exhausted",
            Self::Exhausted {
                scope: Scope::Model, ..
            } => "model_budget_exhausted",
            Self::ShareUsed(Scope::Provider) => "budget_share_used",
            Self::ShareUsed(Scope::Model) => "model_budget_share_used",
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

impl Counts {
    /// What was reserved is free: it is spent now, or was not needed.
    fn release(&mut self, model: Option<&str>, reserved: Reserved) {
        self.reserved = self.reserved.less(reserved.amount);
        if let Some(entry) = model.and_then(|model| self.models.get_mut(model)) {
            entry.reserved = entry.reserved.less(reserved.of_model);
        }
    }
}

impl Usage {
    /// Takes in what the operator has written of the budget and of models' own, and how many gateways share them.
    pub fn follow(
        &self,
        written: Option<&SpendConfig>,
        models: Option<&BTreeMap<String, SpendConfig>>,
        gateways: u32,
    ) {
        self.known.store(Arc::new(Known {
            written: written.cloned(),
            models: models.cloned().unwrap_or_default(),
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
        let policy = config.budget.as_ref();
        let own = model.and_then(|model| Some((model, config.model_budgets.get(model)?)));
        if policy.is_none() && own.is_none() {
            return Ok(Reserved {
                tokens,
                ..Reserved::default()
            });
        }
        let price = model.and_then(|model| price(config, model, now));
        let known = self.known.load();
        let judge =
            |gate: &mut Gate, policy: &Policy, written: Option<&SpendConfig>, own: Own, scope: Scope| {
                let is_priced = price.is_some_and(|price| price.currency == policy.currency);
                if policy.blocks && model.is_some() && !is_priced {
                    return Some(OverBudget::NoPrice);
                }
                let written = written.map(|written| written.of(instance));
                // At the ends of the calendar there are no budgets.
                let window = gate.window(policy, now).ok()?;
                match gate.judge(policy, written.as_ref(), &own, known.gateways, &window) {
                    Verdict::Admit => None,
                    Verdict::Exhausted => Some(OverBudget::Exhausted {
                        scope,
                        until: window.end,
                    }),
                    Verdict::ShareUsed => Some(OverBudget::ShareUsed(scope)),
                }
            };
        let of = |spend: &BTreeMap<Currency, Money>, policy: &Policy| {
            spend.get(&policy.currency).copied().unwrap_or_default()
        };
        let mut refusal = policy.and_then(|policy| {
            let own = Own {
                spent: of(&counts.spend, policy),
                reserved: counts.reserved,
            };
            judge(
                &mut counts.gate,
                policy,
                known.written.as_ref(),
                own,
                Scope::Provider,
            )
        });
        if let (None, Some((name, policy))) = (refusal, own) {
            let entry = counts.models.entry(name.to_owned()).or_default();
            let own = Own {
                spent: of(&entry.spend, policy),
                reserved: entry.reserved,
            };
            refusal = judge(&mut entry.gate, policy, known.models.get(name), own, Scope::Model);
        }
        if let Some(refusal) = refusal {
            *counts.refused.entry(refusal.reason()).or_default() += 1;
            return Err(refusal);
        }
        let cost = |policy: &Policy| {
            let price = price.filter(|price| price.currency == policy.currency);
            price.map_or(Money::ZERO, |price| price.cost(&tokens))
        };
        let amount = policy.map_or(Money::ZERO, cost);
        counts.reserved = counts.reserved + amount;
        let of_model = own.map_or(Money::ZERO, |(_, policy)| cost(policy));
        if let Some(entry) = own.and_then(|(name, _)| counts.models.get_mut(name)) {
            entry.reserved = entry.reserved + of_model;
        }
        Ok(Reserved {
            tokens,
            amount,
            of_model,
        })
    }

    /// A request for `model` that was reserved for was not sent.
    pub fn cancel(&self, model: Option<&str>, reserved: Reserved) {
        self.counts.lock().release(model, reserved);
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
        counts.release(ended.model, ended.reserved);
        if let Some((currency, amount)) = cost {
            let sum = counts.spend.entry(currency).or_default();
            *sum = *sum + amount;
        } else if tokens.is_some() {
            counts.unpriced += 1;
        }
        let name = ended.model.unwrap_or(UNKNOWN);
        // One with a budget of its own is always counted apart.
        let known = counts.models.len() < MAX_MODELS
            || counts.models.contains_key(name)
            || config.model_budgets.contains_key(name);
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
        let known = self.known.load();
        let counts = self.counts.lock();
        view(
            config.budget.as_ref()?,
            known.written.as_ref(),
            &counts.spend,
            instance,
            now,
        )
    }

    /// How much of each model's own budget is spent, by its name.
    pub fn model_budgets(
        &self,
        config: &ProviderConfig,
        instance: &str,
        now: Timestamp,
    ) -> Vec<(String, BudgetView)> {
        let known = self.known.load();
        let counts = self.counts.lock();
        let nothing = BTreeMap::new();
        let of = |(name, policy): (&String, &Policy)| {
            let spend = counts.models.get(name).map_or(&nothing, |model| &model.spend);
            Some((
                name.clone(),
                view(policy, known.models.get(name), spend, instance, now)?,
            ))
        };
        config.model_budgets.iter().filter_map(of).collect()
    }
}

fn view(
    policy: &Policy,
    written: Option<&SpendConfig>,
    spend: &BTreeMap<Currency, Money>,
    instance: &str,
    now: Timestamp,
) -> Option<BudgetView> {
    let window = policy.window(now).ok()?;
    let own = spend.get(&policy.currency).copied().unwrap_or_default();
    let spent = match written.map(|written| written.of(instance)) {
        Some(written) if written.window_start >= window.start => written.spent + own.less(written.counted),
        _ => Money::ZERO,
    };
    Some(BudgetView {
        spent,
        limit: policy.limit,
    })
}

#[cfg(test)]
mod tests;
