//! Spend, budgets, fallbacks and breakers as metrics, read when they are scraped.

use std::fmt;

use jiff::Timestamp;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

use super::Egress;

/// Writes all of them.
pub fn encode(encoder: &mut DescriptorEncoder<'_>, egress: &Egress) -> fmt::Result {
    let providers = egress.providers();
    let mut providers: Vec<_> = providers.values().collect();
    providers.sort_by(|one, other| one.name.cmp(&other.name));

    let help = "Spend by the prices of spec.models and the built-in ones, in the currency.";
    let mut spend =
        encoder.encode_descriptor("flotilla_gateway_egress_spend", help, None, MetricType::Counter)?;
    for provider in &providers {
        for of_model in provider.usage.spend_by_model() {
            for (currency, amount) in &of_model.spend {
                let currency = currency.to_string();
                let labels = [
                    ("provider", provider.name.as_str()),
                    ("model", of_model.model.as_str()),
                    ("currency", currency.as_str()),
                ];
                spend
                    .encode_family(&labels)?
                    .encode_counter::<NoLabelSet, f64, u64>(&amount.to_f64(), None)?;
            }
        }
    }
    let help = "Answers with tokens of models without a known price; they are in no spend.";
    let mut unpriced = encoder.encode_descriptor(
        "flotilla_gateway_egress_unpriced",
        help,
        None,
        MetricType::Counter,
    )?;
    for provider in &providers {
        let (_, count) = provider.usage.spend();
        unpriced
            .encode_family(&[("provider", provider.name.as_str())])?
            .encode_counter::<NoLabelSet, u64, u64>(&count, None)?;
    }
    let now = Timestamp::now();
    let budgets: Vec<_> = providers
        .iter()
        .filter_map(|provider| {
            let view = provider.usage.budget(&provider.config, egress.instance(), now)?;
            Some((provider.name.as_str(), view))
        })
        .collect();
    let help =
        "Spend in the budget's window: of all gateways as the operator last wrote it, and of this one since.";
    let mut spent =
        encoder.encode_descriptor("flotilla_gateway_budget_spent", help, None, MetricType::Gauge)?;
    for (provider, view) in &budgets {
        spent
            .encode_family(&[("provider", *provider)])?
            .encode_gauge(&view.spent.to_f64())?;
    }
    let help = "The budget's limit.";
    let mut limit =
        encoder.encode_descriptor("flotilla_gateway_budget_limit", help, None, MetricType::Gauge)?;
    for (provider, view) in &budgets {
        limit
            .encode_family(&[("provider", *provider)])?
            .encode_gauge(&view.limit.to_f64())?;
    }
    let help = "Requests that a budget did not let pass, by reason.";
    let mut refused =
        encoder.encode_descriptor("flotilla_gateway_budget_refused", help, None, MetricType::Counter)?;
    for provider in &providers {
        for (reason, count) in provider.usage.refused() {
            refused
                .encode_family(&[("provider", provider.name.as_str()), ("reason", reason)])?
                .encode_counter::<NoLabelSet, u64, u64>(&count, None)?;
        }
    }
    let help = "State of a provider's circuit breaker: 0 closed, 1 half open, 2 open.";
    let mut breakers = encoder.encode_descriptor(
        "flotilla_gateway_egress_breaker_state",
        help,
        None,
        MetricType::Gauge,
    )?;
    for provider in &providers {
        breakers
            .encode_family(&[("provider", provider.name.as_str())])?
            .encode_gauge(&provider.health.state())?;
    }
    let help = "Requests that went on to a fallback, by the provider passed over, the next one, and why.";
    let mut fallbacks =
        encoder.encode_descriptor("flotilla_gateway_fallbacks", help, None, MetricType::Counter)?;
    for (from, to, reason, count) in egress.fallbacks().all() {
        let labels = [
            ("provider", from.as_str()),
            ("fallback", to.as_str()),
            ("reason", reason.as_str()),
        ];
        fallbacks
            .encode_family(&labels)?
            .encode_counter::<NoLabelSet, u64, u64>(&count, None)?;
    }
    Ok(())
}
