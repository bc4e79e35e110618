//! Kubernetes objects to [`Config`], without a client.
//!
//! Slots. `agent.concurrency` bounds what a replica works on at once, but each gateway sees only its own requests. So the G
//! ready gateways divide it: each has `concurrency / G` slots at a replica, and those left over go to the gateways that
//! rendezvous hashing names for that replica ([`Gateways::slots`]). All see the same gateways, so the bound is met
//! exactly, but for moments in which they do not, and where `concurrency` is below G: each has one slot then, because a
//! replica without any gateway that may use it would be idle.
//! Concurrency belongs to the revision, so it is read from the revision's EndpointSlices ([`CONCURRENCY`], which the
//! EndpointSlice controller copies from the Service's labels) and only without that label from the pool's present spec.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use flotilla_core::balance::hash_bytes;
use flotilla_core::price::Price;
use flotilla_core::price::ledger::Policy;
use flotilla_core::usage::spent;
use flotilla_crds::agent_pool::AgentPool;
use flotilla_crds::model_provider::{AuthType, ModelProvider};
use flotilla_crds::names;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};

use super::issuer::Issuer;
use super::{
    AgentPods, Config, EndpointConfig, PoolConfig, ProviderConfig, RevisionConfig, SpendConfig, resilience,
};

pub use flotilla_crds::names::CONCURRENCY;
/// Label of the EndpointSlice controller: the Service's name.
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// The watched objects, by name.
#[derive(Default)]
pub struct Objects {
    /// AgentPools.
    pub pools: HashMap<String, AgentPool>,
    /// ModelProviders.
    pub providers: HashMap<String, ModelProvider>,
    /// EndpointSlices of revision Services.
    pub slices: HashMap<String, EndpointSlice>,
    /// EndpointSlices of the gateway's own Service.
    pub gateways: HashMap<String, EndpointSlice>,
    /// Who signs ServiceAccount tokens.
    pub issuer: Option<Arc<Issuer>>,
}

/// The configuration that `objects` describe, for the gateway pod with UID `pod_uid`.
pub fn config(objects: &Objects, pod_uid: &str) -> Config {
    let gateways = Gateways::new(objects, pod_uid);
    let mut revisions = revisions(objects);
    let pools = objects
        .pools
        .iter()
        .map(|(name, pool)| {
            (
                name.clone(),
                pool_config(name, pool, revisions.remove(name).unwrap_or_default(), &gateways),
            )
        })
        .collect();
    Config {
        pools,
        providers: objects
            .providers
            .iter()
            .map(|(name, provider)| (name.clone(), provider_config(provider)))
            .collect(),
        spends: objects
            .providers
            .iter()
            .filter_map(|(name, provider)| Some((name.clone(), spend_config(provider)?)))
            .collect(),
        ready_gateways: u32::try_from(gateways.ready.len()).unwrap_or(u32::MAX).max(1),
        agents: agents(objects),
        agent_pools: agent_pools(objects),
        gateway_pods: gateway_pods(objects),
        gateways: other_gateways(objects, pod_uid),
        pods: agent_pods(objects),
        issuer: objects.issuer.clone(),
        terminating: is_terminating(objects, pod_uid),
    }
}

fn endpoints(slice: &EndpointSlice) -> impl Iterator<Item = &Endpoint> {
    slice.endpoints.iter()
}

fn is_ready(endpoint: &Endpoint) -> bool {
    let conditions = endpoint.conditions.as_ref();
    let ready = conditions.and_then(|conditions| conditions.ready).unwrap_or(true);
    ready && !is_leaving(endpoint)
}

fn is_leaving(endpoint: &Endpoint) -> bool {
    endpoint
        .conditions
        .as_ref()
        .and_then(|conditions| conditions.terminating)
        .unwrap_or(false)
}

fn pod_uid_of(endpoint: &Endpoint) -> &str {
    endpoint
        .target_ref
        .as_ref()
        .and_then(|target| target.uid.as_deref())
        .unwrap_or_default()
}

fn label<'a>(slice: &'a EndpointSlice, key: &str) -> Option<&'a str> {
    slice.metadata.labels.as_ref()?.get(key).map(String::as_str)
}

/// The gateways that divide the slots.
struct Gateways<'a> {
    /// By address: the UIDs of the ready ones.
    ready: BTreeMap<&'a str, &'a str>,
    own: &'a str,
}

impl<'a> Gateways<'a> {
    fn new(objects: &'a Objects, pod_uid: &'a str) -> Self {
        let endpoints = objects.gateways.values().flat_map(endpoints);
        let ready = endpoints.filter(|endpoint| is_ready(endpoint));
        Self {
            ready: ready
                .filter_map(|endpoint| Some((endpoint.addresses.first()?.as_str(), pod_uid_of(endpoint))))
                .collect(),
            own: pod_uid,
        }
    }

    /// What this gateway may have in flight at `replica`, of `concurrency` in all.
    fn slots(&self, concurrency: i32, replica: &str) -> u32 {
        let concurrency = usize::try_from(concurrency).unwrap_or(1);
        let gateways = self.ready.len().max(1);
        let (each, left_over) = (concurrency / gateways, concurrency % gateways);
        let score = |gateway: &str| hash_bytes(format!("{gateway} {replica}").as_bytes());
        let own = score(self.own);
        let is_ready = self.ready.values().any(|gateway| *gateway == self.own);
        let before = self.ready.values().filter(|gateway| score(gateway) < own).count();
        let slots = each + usize::from(is_ready && before < left_over);
        u32::try_from(slots).unwrap_or(u32::MAX).max(1)
    }
}

/// Those that stop are among them: they hand over what they know.
fn other_gateways(objects: &Objects, pod_uid: &str) -> BTreeSet<SocketAddr> {
    let others = objects
        .gateways
        .values()
        .flat_map(endpoints)
        .filter(|endpoint| pod_uid.is_empty() || pod_uid_of(endpoint) != pod_uid);
    let addresses = others.filter_map(|endpoint| endpoint.addresses.first()?.parse::<IpAddr>().ok());
    addresses
        .map(|address| SocketAddr::new(address, names::GATEWAY_ADMIN_PORT))
        .collect()
}

fn is_terminating(objects: &Objects, pod_uid: &str) -> bool {
    let mut own = objects
        .gateways
        .values()
        .flat_map(endpoints)
        .filter(|endpoint| pod_uid_of(endpoint) == pod_uid);
    !pod_uid.is_empty() && own.any(is_leaving)
}

/// The pool and the revision a slice belongs to. The front Service's slices name gateways, not agents, and have no
/// revision.
fn owner(slice: &EndpointSlice) -> Option<(&str, &str)> {
    let revision = label(slice, names::REVISION)?;
    (label(slice, SERVICE_NAME) == Some(revision)).then_some((label(slice, names::POOL)?, revision))
}

fn agents(objects: &Objects) -> HashSet<IpAddr> {
    objects
        .slices
        .values()
        .filter(|slice| owner(slice).is_some())
        .flat_map(endpoints)
        .flat_map(|endpoint| &endpoint.addresses)
        .filter_map(|address| address.parse().ok())
        .collect()
}

fn agent_pools(objects: &Objects) -> HashMap<IpAddr, Arc<str>> {
    let mut names: HashMap<&str, Arc<str>> = HashMap::new();
    let mut pools = HashMap::new();
    for slice in objects.slices.values() {
        let Some((pool, _)) = owner(slice) else { continue };
        let name = names.entry(pool).or_insert_with(|| Arc::from(pool));
        let addresses = endpoints(slice).flat_map(|endpoint| &endpoint.addresses);
        let addresses = addresses.filter_map(|address| address.parse().ok());
        pools.extend(addresses.map(|address| (address, name.clone())));
    }
    pools
}

fn gateway_pods(objects: &Objects) -> BTreeMap<String, IpAddr> {
    let endpoints = objects.gateways.values().flat_map(endpoints);
    endpoints
        .filter_map(|endpoint| {
            let pod = endpoint.target_ref.as_ref()?.name.clone()?;
            Some((pod, endpoint.addresses.first()?.parse().ok()?))
        })
        .collect()
}

fn agent_pods(objects: &Objects) -> AgentPods {
    let mut pods = AgentPods::default();
    for slice in objects.slices.values().filter(|slice| owner(slice).is_some()) {
        let proven = label(slice, names::EGRESS_IDENTITY) == Some("Token");
        for endpoint in endpoints(slice) {
            let addresses = endpoint
                .addresses
                .iter()
                .filter_map(|address| address.parse().ok());
            for address in addresses {
                pods.addresses.insert(pod_uid_of(endpoint).to_owned(), address);
                if proven {
                    pods.proven.insert(address);
                }
            }
        }
    }
    pods.addresses.remove("");
    pods
}

/// Revisions by pool.
fn revisions(objects: &Objects) -> BTreeMap<String, BTreeMap<String, RevisionConfig>> {
    let mut pools: BTreeMap<String, BTreeMap<String, RevisionConfig>> = BTreeMap::new();
    for slice in objects.slices.values() {
        let Some((pool, revision)) = owner(slice) else {
            continue;
        };
        let config = pools
            .entry(pool.to_owned())
            .or_default()
            .entry(revision.to_owned())
            .or_default();
        if let Some(concurrency) = label(slice, CONCURRENCY).and_then(|text| text.parse().ok()) {
            config.slots = concurrency;
        }
        let port = slice
            .ports
            .iter()
            .flatten()
            .find_map(|port| u16::try_from(port.port?).ok());
        let Some(port) = port else { continue };
        for endpoint in endpoints(slice) {
            let Some(address) = endpoint
                .addresses
                .first()
                .and_then(|text| text.parse::<IpAddr>().ok())
            else {
                continue;
            };
            let entry = EndpointConfig {
                uid: pod_uid_of(endpoint).to_owned(),
                ready: is_ready(endpoint),
                slots: None,
            };
            // While the controller moves an endpoint between slices it is in both.
            let known = config
                .endpoints
                .entry(SocketAddr::new(address, port))
                .or_insert_with(|| entry.clone());
            if entry.ready {
                *known = entry;
            }
        }
    }
    pools
}

fn seconds(value: i32) -> Duration {
    Duration::from_secs(u64::try_from(value).unwrap_or(1))
}

fn pool_config(
    name: &str,
    pool: &AgentPool,
    mut revisions: BTreeMap<String, RevisionConfig>,
    gateways: &Gateways<'_>,
) -> PoolConfig {
    let (spec, status) = (&pool.spec, pool.status.as_ref());
    let weights: Vec<(String, u32)> = status
        .map(|status| status.traffic.as_slice())
        .unwrap_or_default()
        .iter()
        .map(|share| {
            (
                share.revision.clone(),
                u32::try_from(share.weight).unwrap_or(0).min(100),
            )
        })
        .collect();
    for (revision, _) in &weights {
        revisions.entry(revision.clone()).or_default();
    }
    for revision in revisions.values_mut() {
        let concurrency = match i32::try_from(revision.slots) {
            Ok(0) | Err(_) => spec.agent.concurrency,
            Ok(concurrency) => concurrency,
        };
        for (address, endpoint) in &mut revision.endpoints {
            let slots = match endpoint.uid.as_str() {
                "" => gateways.slots(concurrency, &address.to_string()),
                uid => gateways.slots(concurrency, uid),
            };
            endpoint.slots = Some(slots);
        }
        revision.slots = gateways.slots(concurrency, "");
    }
    PoolConfig {
        uid: pool.metadata.uid.clone().unwrap_or_default(),
        service: spec.front_service(name).to_owned(),
        port: status
            .and_then(|status| status.gateway_port)
            .and_then(|port| u16::try_from(port).ok()),
        generation: status.and_then(|status| status.traffic_generation).unwrap_or(-1),
        weights,
        balancing: spec.traffic.balancing,
        request_timeout: seconds(spec.traffic.request_timeout_seconds),
        max_requests: usize::try_from(spec.traffic.max_concurrent_requests).unwrap_or(1),
        retries: resilience::retries(&spec.traffic.retries),
        ejection: resilience::ejection(&spec.traffic.ejection),
        queue_requests: usize::try_from(spec.traffic.queue.max_requests).unwrap_or(0),
        queue_wait: seconds(spec.traffic.queue.max_wait_seconds),
        tenant_header: resilience::header(spec.traffic.queue.tenant_header.as_deref()),
        priority_header: resilience::header(spec.traffic.queue.priority_header.as_deref()),
        stopped: spec.stopped,
        sessions: crate::session::config::of_pool(pool),
        revisions,
    }
}

fn provider_config(provider: &ModelProvider) -> ProviderConfig {
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
        quotas: provider.spec.quotas.clone(),
    }
}

/// What the operator has written of a budget, if it is about the currency that the spec names.
fn spend_config(provider: &ModelProvider) -> Option<SpendConfig> {
    let policy = Policy::parse(provider.spec.budget.as_ref()?).ok()?;
    let status = provider.status.as_ref()?;
    let budget = status
        .budget
        .as_ref()
        .filter(|budget| budget.currency == policy.currency.to_string())?;
    let counted = status.usage.as_ref().map(|usage| usage.counted.as_slice());
    Some(SpendConfig {
        window_start: budget.start_time.0,
        spent: budget.spent.parse().ok()?,
        counted: counted
            .unwrap_or_default()
            .iter()
            .map(|source| (source.instance.clone(), spent(&source.spend, policy.currency)))
            .collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ProviderType;
    use serde_json::json;

    fn slice(service: &str, revision: Option<&str>, endpoints: serde_json::Value) -> EndpointSlice {
        let mut labels = json!({"kubernetes.io/service-name": service});
        if let Some(revision) = revision {
            labels["flotilla.dev/pool"] = json!("support");
            labels["flotilla.dev/revision"] = json!(revision);
        }
        serde_json::from_value(json!({
            "metadata": {"name": format!("{service}-x"), "labels": labels},
            "addressType": "IPv4",
            "ports": [{"port": 8080}],
            "endpoints": endpoints,
        }))
        .expect("a slice")
    }

    fn endpoint(address: &str, ready: bool, terminating: bool) -> serde_json::Value {
        json!({
            "addresses": [address],
            "conditions": {"ready": ready, "serving": true, "terminating": terminating},
            "targetRef": {"kind": "Pod", "uid": format!("uid-{address}"), "name": format!("pod-{address}")},
        })
    }

    fn objects() -> Objects {
        let pool: AgentPool = serde_json::from_value(json!({
            "apiVersion": "flotilla.dev/v1alpha1", "kind": "AgentPool",
            "metadata": {"name": "support", "uid": "u1"},
            "spec": {"agent": {"image": "i", "concurrency": 3}, "traffic": {"serviceName": "help"}},
            "status": {"gatewayPort": 20001, "trafficGeneration": 4,
                "traffic": [{"revision": "support-a", "weight": 90}, {"revision": "support-b", "weight": 10}]},
        }))
        .expect("a pool");
        let mut objects = Objects::default();
        objects.pools.insert("support".into(), pool);
        objects.slices.insert(
            "a".into(),
            slice(
                "support-a",
                Some("support-a"),
                json!([
                    endpoint("10.0.0.1", true, false),
                    endpoint("10.0.0.2", false, false),
                    endpoint("10.0.0.3", true, true),
                ]),
            ),
        );
        objects.slices.insert(
            "front".into(),
            slice("help", None, json!([endpoint("10.0.9.9", true, false)])),
        );
        objects.gateways.insert(
            "g".into(),
            slice(
                "flotilla-gateway",
                None,
                json!([
                    endpoint("10.0.1.1", true, false),
                    endpoint("10.0.1.2", true, false),
                    endpoint("10.0.1.3", true, true),
                ]),
            ),
        );
        objects
    }

    #[test]
    fn a_pool_has_its_weights_its_endpoints_and_its_share_of_slots() {
        let config = config(&objects(), "uid-10.0.1.1");
        let pool = &config.pools["support"];
        assert_eq!(
            (pool.service.as_str(), pool.port, pool.generation),
            ("help", Some(20001), 4)
        );
        assert_eq!(
            pool.weights,
            [("support-a".to_owned(), 90), ("support-b".to_owned(), 10)]
        );
        let revision = &pool.revisions["support-a"];
        let ready: Vec<String> = revision
            .endpoints
            .iter()
            .filter(|(_, e)| e.ready)
            .map(|(address, _)| address.to_string())
            .collect();
        assert_eq!(
            ready,
            ["10.0.0.1:8080"],
            "not the unready one and not the leaving one"
        );
        assert!(pool.revisions["support-b"].endpoints.is_empty());
        assert!(!config.terminating);
    }

    #[test]
    fn agents_are_the_pods_of_revisions_ready_or_not_and_never_a_gateway() {
        let config = config(&objects(), "");
        let pods: Vec<&str> = config.gateway_pods.keys().map(String::as_str).collect();
        assert_eq!(pods, ["pod-10.0.1.1", "pod-10.0.1.2", "pod-10.0.1.3"]);
        let agent: IpAddr = "10.0.0.2".parse().expect("an address");
        assert_eq!(
            config.agent_pools.get(&agent).map(|pool| &**pool),
            Some("support")
        );
        assert_eq!(config.agent_pools.len(), config.agents.len());
        let agents = config.agents;
        let mut agents: Vec<String> = agents.iter().map(ToString::to_string).collect();
        agents.sort();
        assert_eq!(agents, ["10.0.0.1", "10.0.0.2", "10.0.0.3"]);
    }

    #[test]
    fn a_revision_that_asks_for_tokens_is_known_by_its_label() {
        let mut objects = objects();
        let pods = config(&objects, "").pods;
        assert!(pods.proven.is_empty());
        assert_eq!(pods.addresses["uid-10.0.0.1"].to_string(), "10.0.0.1");
        let labels = objects
            .slices
            .get_mut("a")
            .and_then(|slice| slice.metadata.labels.as_mut())
            .expect("labels");
        labels.insert(names::EGRESS_IDENTITY.into(), "Token".into());
        let config = config(&objects, "");
        assert_eq!(config.pods.proven, config.agents, "all of them are of slice a");
        assert!(config.pods.addresses.len() == config.agents.len());
    }

    #[test]
    fn a_revisions_own_concurrency_wins_over_the_present_spec() {
        let mut objects = objects();
        let labels = objects
            .slices
            .get_mut("a")
            .and_then(|slice| slice.metadata.labels.as_mut())
            .expect("labels");
        labels.insert(CONCURRENCY.into(), "9".into());
        let config = config(&objects, "uid-10.0.1.1");
        let revision = &config.pools["support"].revisions["support-a"];
        let slots = revision.endpoints.values().map(|endpoint| endpoint.slots);
        assert!(slots.clone().count() > 0 && slots.clone().all(|slots| matches!(slots, Some(4 | 5))));
    }

    #[test]
    fn gateways_divide_a_replicas_slots_exactly() {
        let mut objects = objects();
        let ready: Vec<_> = (1..=3)
            .map(|n| endpoint(&format!("10.0.1.{n}"), true, false))
            .collect();
        objects
            .gateways
            .insert("g".into(), slice("flotilla-gateway", None, ready.into()));
        let gateways =
            ["uid-10.0.1.1", "uid-10.0.1.2", "uid-10.0.1.3"].map(|uid| Gateways::new(&objects, uid));
        let mut favoured = [0; 3];
        for concurrency in 1..=20 {
            for replica in 0..50 {
                let slots = [0, 1, 2].map(|g| gateways[g].slots(concurrency, &format!("pod-{replica}")));
                assert!(
                    slots
                        .iter()
                        .max()
                        .zip(slots.iter().min())
                        .is_some_and(|(max, min)| max - min <= 1)
                );
                let total: u32 = slots.iter().sum();
                assert_eq!(
                    total,
                    (concurrency as u32).max(3),
                    "one each where there are fewer than gateways"
                );
                if concurrency == 4 {
                    (0..3).filter(|g| slots[*g] == 2).for_each(|g| favoured[g] += 1);
                }
            }
        }
        assert!(
            favoured.iter().all(|count| (8..=26).contains(count)),
            "{favoured:?}"
        );
        // One that is not ready takes none of those left over.
        let starting = Gateways::new(&objects, "uid-10.0.1.9");
        assert_eq!(starting.slots(5, "pod-1"), 1);
    }

    #[test]
    fn the_other_gateways_are_all_that_are_listed() {
        let others = config(&objects(), "uid-10.0.1.1").gateways;
        let others: Vec<String> = others.iter().map(ToString::to_string).collect();
        assert_eq!(others, ["10.0.1.2:9090", "10.0.1.3:9090"]);
    }

    #[test]
    fn a_provider_has_its_prices_and_what_is_spent_of_its_budget() {
        let mut objects = objects();
        let provider = |currency: &str| {
            serde_json::from_value(json!({
                "metadata": {"name": "main", "generation": 3},
                "spec": {
                    "type": "Anthropic", "endpoint": "https://m/v1", "budget": {"limit": "500.00"},
                    "models": [{"name": "m", "price": {"inputPerMillion": "1", "outputPerMillion": "2"}}, {"name": "n"}],
                },
                "status": {
                    "budget": {
                        "spent": "12.5", "percent": 2, "limit": "500", "currency": currency, "base": "3",
                        "startTime": "2026-11-01T00:00:00Z", "endTime": "2026-12-01T00:00:00Z",
                    },
                    "usage": {"counted": [
                        {"instance": "i", "pod": "g-1", "spend": [{"currency": "USD", "amount": "4.25"}]},
                        {"instance": "j", "pod": "g-2"},
                    ]},
                },
            }))
            .expect("a provider")
        };
        objects.providers.insert("main".into(), provider("USD"));
        let found = config(&objects, "");
        let main = &found.providers["main"];
        assert_eq!((main.type_, main.prices.len()), (ProviderType::Anthropic, 1));
        assert_eq!(main.budget.expect("a budget").limit.to_string(), "500");
        let spend = &found.spends["main"];
        assert_eq!(
            (
                spend.spent.to_string(),
                spend.of("i").counted.to_string(),
                spend.of("j").counted.to_string()
            ),
            ("12.5".into(), "4.25".into(), "0".into())
        );
        assert_eq!(found.ready_gateways, 2);
        objects.providers.insert("main".into(), provider("EUR"));
        assert_eq!(config(&objects, "").spends.get("main"), None);
    }

    #[test]
    fn its_own_terminating_endpoint_is_noticed() {
        assert!(config(&objects(), "uid-10.0.1.3").terminating);
    }
}
