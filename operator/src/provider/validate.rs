//! What the CRD's own rules cannot say about a ModelProvider.

use flotilla_core::load::result::Price;
use flotilla_core::price::ledger::Policy;
use flotilla_crds::{ModelProviderSpec, names};

/// Checks a spec. `shares_quotas`: gateways have a place where they share quotas with other namespaces.
///
/// # Errors
/// A sentence that says what to write instead.
pub fn validate(spec: &ModelProviderSpec, shares_quotas: bool) -> Result<(), String> {
    let host = host(&spec.endpoint).ok_or_else(|| {
        format!(
            "endpoint {:?} has no host; write a base address such as https://api.example.com/v1",
            spec.endpoint
        )
    })?;
    // Requests to it would come back to the gateway, until something runs out.
    if host == names::GATEWAY || host.starts_with(&format!("{}.", names::GATEWAY)) {
        return Err(format!(
            "endpoint {:?} is the gateway itself; write the address of the provider that it should reach",
            spec.endpoint
        ));
    }
    flotilla_core::quota::spec::limits(&spec.quotas, 0)?;
    if let Some(group) = spec.quota_group.as_ref().filter(|_| !shares_quotas) {
        return Err(format!(
            "quotaGroup {group} needs a Redis or Valkey; set the chart's value gateway.quotaRedis, or take quotaGroup away"
        ));
    }
    for quota in &spec.quotas {
        let unknown = quota
            .models
            .iter()
            .find(|name| !spec.models.is_empty() && !spec.models.iter().any(|model| model.name == **name));
        if let Some(name) = unknown {
            return Err(format!(
                "quotas[{}].models: {name:?} is not in models; add it there, or leave it out here",
                quota.name
            ));
        }
    }
    for model in &spec.models {
        if let Some(budget) = &model.budget {
            Policy::parse(budget).map_err(|error| format!("models[{}].budget: {error}", model.name))?;
        }
        let Some(price) = &model.price else { continue };
        Price::parse(
            &price.currency,
            &price.input_per_million,
            &price.output_per_million,
        )
        .map_err(|error| format!("models[{}].price: {error}", model.name))?;
    }
    if let Some(budget) = &spec.budget {
        Policy::parse(budget).map_err(|error| format!("budget: {error}"))?;
    }
    Ok(())
}

/// The host of an address, without port and brackets.
fn host(endpoint: &str) -> Option<&str> {
    let (_, rest) = endpoint.split_once("://")?;
    let authority = rest.split(['/', '?', '#']).next()?;
    let host = match authority.strip_prefix('[') {
        Some(v6) => v6.split(']').next()?,
        None => authority.split(':').next()?,
    };
    (!host.is_empty()).then_some(host)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn endpoints_and_prices() {
        let price = |input: &str| json!([{"name": "mini", "price": {"inputPerMillion": input, "outputPerMillion": "2"}}]);
        for (endpoint, models, expected) in [
            ("https://api.example.com/v1", price("0.25"), None),
            ("http://simulator.tools.svc:8080/v1", json!([]), None),
            ("http://[fd00::1]:9/v1", json!([]), None),
            ("https://:443/v1", json!([]), Some("has no host")),
            (
                "http://flotilla-gateway:8081/v1",
                json!([]),
                Some("the gateway itself"),
            ),
            (
                "http://flotilla-gateway.shop.svc:8081/v1",
                json!([]),
                Some("the gateway itself"),
            ),
            ("http://flotilla-gateway-logs.shop.svc/v1", json!([]), None),
            (
                "https://api.example.com/v1",
                price("cheap"),
                Some("models[mini].price"),
            ),
        ] {
            let spec = serde_json::from_value(json!({"endpoint": endpoint, "models": models})).unwrap();
            match (validate(&spec, false), expected) {
                (Ok(()), None) => {}
                (Err(sentence), Some(part)) => assert!(sentence.contains(part), "{sentence}"),
                (result, _) => panic!("{endpoint}: {result:?}"),
            }
        }
    }

    #[test]
    fn a_group_needs_a_place_to_meet() {
        let quotas = json!([{"name": "rpm", "resource": "Requests", "limit": 5, "windowSeconds": 60}]);
        let spec = json!({"endpoint": "https://m/v1", "quotas": quotas, "quotaGroup": "prod"});
        let spec = serde_json::from_value(spec).unwrap();
        assert_eq!(validate(&spec, true), Ok(()));
        let sentence = validate(&spec, false).unwrap_err();
        assert!(sentence.contains("gateway.quotaRedis"), "{sentence}");
    }

    #[test]
    fn quotas() {
        let quota = |more: serde_json::Value| {
            let mut quota = json!({"name": "rpd", "resource": "Requests", "limit": 5});
            for (key, value) in more.as_object().into_iter().flatten() {
                quota[key] = value.clone();
            }
            json!({
                "endpoint": "https://api.example.com/v1", "models": [{"name": "mini"}], "quotas": [quota],
            })
        };
        for (spec, expected) in [
            (quota(json!({"windowSeconds": 60, "models": ["mini"]})), None),
            (quota(json!({"window": "Day", "timeZone": "Asia/Tokyo"})), None),
            (
                quota(json!({"windowSeconds": 60, "models": ["maxi"]})),
                Some("quotas[rpd].models: \"maxi\" is not in models"),
            ),
            (
                quota(json!({"window": "Day", "timeZone": "Asia/Edo"})),
                Some("quotas[rpd].timeZone"),
            ),
        ] {
            let spec = serde_json::from_value(spec).unwrap();
            match (validate(&spec, false), expected) {
                (Ok(()), None) => {}
                (Err(sentence), Some(part)) => assert!(sentence.contains(part), "{sentence}"),
                (result, _) => panic!("{result:?}"),
            }
        }
    }
}
