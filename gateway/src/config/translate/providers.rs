//! ModelProviders to configuration, with what has been spent.

use std::collections::BTreeMap;

use flotilla_core::price::Price;
use flotilla_core::price::ledger::Policy;
use flotilla_core::usage::spent;
use flotilla_crds::model_provider::{
    AuthType, Budget, BudgetStatus, CountedSource, ModelBudgetStatus, ModelProvider, Spend,
};

use crate::config::{ProviderConfig, SpendConfig};

pub(super) fn provider_config(provider: &ModelProvider) -> ProviderConfig {
    let auth = &provider.spec.auth;
    let reference = auth.api_key.as_ref().map(|key| &key.secret_key_ref);
    let secret = match auth.type_ {
        AuthType::APIKey => reference.map(|reference| (reference.name.clone(), reference.key.clone())),
        AuthType::None => None,
    };
    ProviderConfig {
        generation: provider.metadata.generation.unwrap_or(0),
        endpoint: provider.spec.endpoint.clone(),
        secret,
        type_: provider.spec.type_,
        // What cannot be read is refused by the operator; here it is as if it were not there.
        prices: provider
            .spec
            .models
            .iter()
            .filter_map(|model| {
                let price = model.price.as_ref()?;
                let price = Price::parse(
                    &price.currency,
                    &price.input_per_million,
                    &price.output_per_million,
                );
                Some((model.name.clone(), price.ok()?))
            })
            .collect(),
        budget: provider
            .spec
            .budget
            .as_ref()
            .and_then(|budget| Policy::parse(budget).ok()),
        model_budgets: provider
            .spec
            .models
            .iter()
            .filter_map(|model| {
                let policy = Policy::parse(model.budget.as_ref()?).ok()?;
                Some((model.name.clone(), policy))
            })
            .collect(),
        quotas: provider.spec.quotas.clone(),
        quota_group: provider.spec.quota_group.clone(),
    }
}

/// What the operator has written of a budget, if it is about the currency that the spec names.
pub(super) fn spend_config(provider: &ModelProvider) -> Option<SpendConfig> {
    let status = provider.status.as_ref()?;
    let budget = provider.spec.budget.as_ref()?;
    written(provider, budget, status.budget.as_ref()?, |source| &source.spend)
}

/// The same of each model that has a budget.
pub(super) fn model_spends(provider: &ModelProvider) -> BTreeMap<String, SpendConfig> {
    let statuses = provider
        .status
        .as_ref()
        .map(|status| status.model_budgets.as_slice());
    let of = |status: &ModelBudgetStatus| {
        let models = &provider.spec.models;
        let model = models.iter().find(|model| model.name == status.name)?;
        let spend = written(provider, model.budget.as_ref()?, &status.budget, |source| {
            let used = source.models.iter().find(|used| used.name == status.name);
            used.map_or(&[][..], |used| used.spend.as_slice())
        });
        Some((status.name.clone(), spend?))
    };
    statuses.unwrap_or_default().iter().filter_map(of).collect()
}

pub(super) fn written<'a>(
    provider: &'a ModelProvider,
    budget: &Budget,
    status: &BudgetStatus,
    spend: impl Fn(&'a CountedSource) -> &'a [Spend],
) -> Option<SpendConfig> {
    let policy = Policy::parse(budget).ok()?;
    if status.currency != policy.currency.to_string() {
        return None;
    }
    let usage = provider.status.as_ref()?.usage.as_ref();
    let counted = usage.map(|usage| usage.counted.as_slice()).unwrap_or_default();
    Some(SpendConfig {
        window_start: status.start_time.0,
        spent: status.spent.parse().ok()?,
        counted: counted
            .iter()
            .map(|source| (source.instance.clone(), spent(spend(source), policy.currency)))
            .collect(),
    })
}
