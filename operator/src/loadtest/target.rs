//! Where a LoadTest's requests go, and whether that is there yet.

use std::sync::Arc;

use flotilla_core::load::plan::Protocol;
use flotilla_core::load::result::Price;
use flotilla_core::price::lookup;
use flotilla_crds::agent_pool::{self, Model};
use flotilla_crds::common::{condition, find};
use flotilla_crds::load_test::{LoadProtocol, ServiceRef};
use flotilla_crds::{AgentPool, ModelProvider};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use k8s_openapi::api::core::v1::Service;
use kube::ResourceExt as _;

/// Something that has to come before the test can start. It starts by itself when that has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotYet {
    /// `WaitingForReference` or `WaitingForTarget`.
    pub reason: &'static str,
    /// What is missing, and what to do.
    pub message: String,
}

impl NotYet {
    /// Something that is named does not exist.
    pub fn reference(message: impl Into<String>) -> Self {
        Self {
            reason: "WaitingForReference",
            message: message.into(),
        }
    }

    /// The target exists but does not serve.
    pub fn target(message: impl Into<String>) -> Self {
        Self {
            reason: "WaitingForTarget",
            message: message.into(),
        }
    }
}

/// A target that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Its address.
    pub url: String,
    /// What it speaks.
    pub protocol: Protocol,
}

/// The target `poolRef: {name}`; `wanted` is the LoadTest's own protocol.
///
/// # Errors
/// When the pool is not there or does not serve.
pub fn of_pool(name: &str, pool: Option<&AgentPool>, wanted: Option<LoadProtocol>) -> Result<Target, NotYet> {
    let Some(pool) = pool.filter(|pool| pool.metadata.deletion_timestamp.is_none()) else {
        return Err(NotYet::reference(format!(
            "AgentPool {name} does not exist in this namespace; create it, or delete this LoadTest and name another pool"
        )));
    };
    let conditions = pool
        .status
        .as_ref()
        .map(|status| status.conditions.as_slice())
        .unwrap_or_default();
    match find(conditions, condition::AVAILABLE) {
        Some(available) if available.status == "True" => {}
        Some(available) => {
            let why = if available.message.is_empty() {
                &available.reason
            } else {
                &available.message
            };
            return Err(NotYet::target(format!(
                "AgentPool {name} does not serve yet: {why}"
            )));
        }
        None => {
            return Err(NotYet::target(format!(
                "AgentPool {name} does not serve yet: it was just created"
            )));
        }
    }
    let namespace = pool.namespace().unwrap_or_default();
    let protocol = match pool.spec.agent.protocol {
        agent_pool::Protocol::HTTP => Protocol::HTTP,
        agent_pool::Protocol::A2A => Protocol::A2A,
    };
    Ok(Target {
        url: format!("http://{}.{namespace}.svc", pool.spec.front_service(name)),
        protocol: wanted.map_or(protocol, protocol_of),
    })
}

/// The target `serviceRef`, from the Service as it was read.
///
/// # Errors
/// When the Service or its port is not there.
pub fn of_service(
    reference: &ServiceRef,
    namespace: &str,
    service: Option<&Service>,
    wanted: LoadProtocol,
) -> Result<Target, NotYet> {
    let ServiceRef { name, port } = reference;
    let Some(service) = service.filter(|service| service.metadata.deletion_timestamp.is_none()) else {
        return Err(NotYet::reference(format!(
            "Service {name} does not exist in this namespace; create it, or delete this LoadTest and name another Service"
        )));
    };
    let ports = service
        .spec
        .as_ref()
        .and_then(|spec| spec.ports.as_deref())
        .unwrap_or_default();
    if !ports.iter().any(|found| found.port == *port) {
        let known: Vec<String> = ports.iter().map(|found| found.port.to_string()).collect();
        return Err(NotYet::reference(format!(
            "Service {name} has no port {port}, only {}; add it, or delete this LoadTest and name another port",
            if known.is_empty() {
                "none".to_owned()
            } else {
                known.join(", ")
            }
        )));
    }
    let port = if *port == 80 {
        String::new()
    } else {
        format!(":{port}")
    };
    Ok(Target {
        url: format!("http://{name}.{namespace}.svc{port}"),
        protocol: protocol_of(wanted),
    })
}

/// The plan's word for a protocol.
pub fn protocol_of(protocol: LoadProtocol) -> Protocol {
    match protocol {
        LoadProtocol::HTTP => Protocol::HTTP,
        LoadProtocol::OpenAIChat => Protocol::OpenAIChat,
        LoadProtocol::A2A => Protocol::A2A,
    }
}

/// The price of a pool's tokens: that of its main model, as its provider tells it, else the built-in list price of the
/// day. A pool that spends on several models costs something else; which of them a token went to, only the provider's
/// bill knows.
pub fn price(pool: &AgentPool, providers: &[Arc<ModelProvider>], now: Timestamp) -> Option<Price> {
    let models = &pool.spec.agent.models;
    let main: &Model = models
        .iter()
        .find(|model| model.name == "default")
        .or_else(|| models.first())?;
    let provider = providers
        .iter()
        .find(|provider| provider.name_any() == main.provider_ref.name)?;
    let offered = provider
        .spec
        .models
        .iter()
        .find(|offered| offered.name == main.model);
    match offered.and_then(|offered| offered.price.as_ref()) {
        Some(price) => Price::parse(
            &price.currency,
            &price.input_per_million,
            &price.output_per_million,
        )
        .ok(),
        None => {
            let listed = lookup(&main.model, now.to_zoned(TimeZone::UTC).date())?.price;
            Some(Price {
                currency: listed.currency.to_string(),
                input_per_million: listed.rates.input,
                output_per_million: listed.rates.output,
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pool(agent: Value, available: &str) -> AgentPool {
        serde_json::from_value(json!({
            "metadata": {"name": "support", "namespace": "shop"},
            "spec": {"agent": agent, "traffic": {"serviceName": "front"}},
            "status": {"conditions": [{"type": "Available", "status": available, "reason": "Starting", "message": "0 of 2 replicas are ready", "lastTransitionTime": "2026-11-21T10:00:00Z"}]},
        }))
        .unwrap()
    }

    #[test]
    fn pools() {
        let serving = pool(json!({"image": "a", "protocol": "A2A"}), "True");
        let target = of_pool("support", Some(&serving), None).unwrap();
        assert_eq!(
            (target.url.as_str(), target.protocol),
            ("http://front.shop.svc", Protocol::A2A)
        );
        let spoken = of_pool("support", Some(&serving), Some(LoadProtocol::OpenAIChat))
            .unwrap()
            .protocol;
        assert_eq!(spoken, Protocol::OpenAIChat);
        let starting = pool(json!({"image": "a"}), "False");
        let fresh = AgentPool {
            status: None,
            ..starting.clone()
        };
        for (what, pool, reason, part) in [
            (
                "absent",
                None,
                "WaitingForReference",
                "AgentPool support does not exist",
            ),
            (
                "starting",
                Some(&starting),
                "WaitingForTarget",
                "0 of 2 replicas are ready",
            ),
            ("fresh", Some(&fresh), "WaitingForTarget", "just created"),
        ] {
            let wait = of_pool("support", pool, None).unwrap_err();
            assert_eq!(wait.reason, reason, "{what}");
            assert!(wait.message.contains(part), "{}", wait.message);
        }
    }

    #[test]
    fn services() {
        let service: Service = serde_json::from_value(
            json!({"metadata": {"name": "api"}, "spec": {"ports": [{"port": 80}, {"port": 9000}]}}),
        )
        .unwrap();
        let target = |port, service: Option<&Service>| {
            of_service(
                &ServiceRef {
                    name: "api".into(),
                    port,
                },
                "shop",
                service,
                LoadProtocol::HTTP,
            )
        };
        assert_eq!(target(80, Some(&service)).unwrap().url, "http://api.shop.svc");
        assert_eq!(
            target(9000, Some(&service)).unwrap().url,
            "http://api.shop.svc:9000"
        );
        assert!(
            target(81, Some(&service))
                .unwrap_err()
                .message
                .contains("no port 81, only 80, 9000")
        );
        assert!(
            target(80, None)
                .unwrap_err()
                .message
                .contains("Service api does not exist")
        );
    }

    #[test]
    fn prices_are_those_of_the_main_model() {
        let provider: ModelProvider = serde_json::from_value(json!({
            "metadata": {"name": "main"},
            "spec": {"endpoint": "http://m/v1", "models": [
                {"name": "mini", "price": {"inputPerMillion": "0.25", "outputPerMillion": "2.00"}},
                {"name": "free"},
            ]},
        }))
        .unwrap();
        let providers = [Arc::new(provider)];
        let price_of = |models: Value| {
            price(
                &pool(json!({"image": "a", "models": models}), "True"),
                &providers,
                Timestamp::UNIX_EPOCH,
            )
        };
        let model = |name: &str, provider: &str, model: &str| json!({"name": name, "providerRef": {"name": provider}, "model": model});
        assert_eq!(
            price_of(json!([
                model("other", "main", "free"),
                model("default", "main", "mini")
            ]))
            .unwrap()
            .currency,
            "USD"
        );
        assert!(
            price_of(json!([
                model("first", "main", "mini"),
                model("second", "main", "free")
            ]))
            .is_some()
        );
        assert!(price_of(json!([model("default", "main", "free")])).is_none());
        let listed = price_of(json!([model("default", "main", "gpt-5-mini-2025-08-07")])).unwrap();
        assert_eq!(listed.output_per_million.to_string(), "2");
        assert!(price_of(json!([model("default", "gone", "mini")])).is_none());
        assert!(price_of(json!([])).is_none());
    }
}
