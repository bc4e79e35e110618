//! Kubernetes objects to [`Config`], without a client.
//!
//! Slots. `agent.concurrency` bounds what a replica works on at once, but each gateway sees only its own requests. With G
//! gateways each takes `ceil(concurrency / G)` per replica: the bound is met exactly when G divides it and exceeded by at
//! most G - 1 otherwise. Rounding down would leave a replica with `concurrency: 1` without any gateway that may use it.
//! Concurrency belongs to the revision, so it is read from the revision's EndpointSlices ([`CONCURRENCY`], which the
//! EndpointSlice controller copies from the Service's labels) and only without that label from the pool's present spec.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use flotilla_crds::agent_pool::AgentPool;
use flotilla_crds::model_provider::{AuthType, ModelProvider};
use flotilla_crds::names;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};

use super::{Config, EndpointConfig, PoolConfig, ProviderConfig, RevisionConfig};

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
}

/// The configuration that `objects` describe, for the gateway pod with UID `pod_uid`.
pub fn config(objects: &Objects, pod_uid: &str) -> Config {
    let gateways = ready_gateways(objects).max(1);
    let mut revisions = revisions(objects, gateways);
    let pools = objects
        .pools
        .iter()
        .map(|(name, pool)| {
            (
                name.clone(),
                pool_config(name, pool, revisions.remove(name).unwrap_or_default(), gateways),
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
        agents: agents(objects),
        agent_pools: agent_pools(objects),
        gateways: gateway_pods(objects),
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

fn ready_gateways(objects: &Objects) -> u32 {
    let ready: HashSet<&str> = objects
        .gateways
        .values()
        .flat_map(endpoints)
        .filter(|endpoint| is_ready(endpoint))
        .flat_map(|endpoint| endpoint.addresses.first().map(String::as_str))
        .collect();
    u32::try_from(ready.len()).unwrap_or(u32::MAX)
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

/// Revisions by pool.
fn revisions(objects: &Objects, gateways: u32) -> BTreeMap<String, BTreeMap<String, RevisionConfig>> {
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
            config.slots = slots(concurrency, gateways);
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

fn slots(concurrency: i32, gateways: u32) -> u32 {
    u32::try_from(concurrency)
        .unwrap_or(1)
        .max(1)
        .div_ceil(gateways.max(1))
}

fn seconds(value: i32) -> Duration {
    Duration::from_secs(u64::try_from(value).unwrap_or(1))
}

fn pool_config(
    name: &str,
    pool: &AgentPool,
    mut revisions: BTreeMap<String, RevisionConfig>,
    gateways: u32,
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
    for revision in revisions.values_mut().filter(|revision| revision.slots == 0) {
        revision.slots = slots(spec.agent.concurrency, gateways);
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
        queue_requests: usize::try_from(spec.traffic.queue.max_requests).unwrap_or(0),
        queue_wait: seconds(spec.traffic.queue.max_wait_seconds),
        stopped: spec.stopped,
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
        quotas: provider.spec.quotas.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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
        assert_eq!(revision.slots, 2, "3 among two ready gateways, rounded up");
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
        let pods: Vec<&str> = config.gateways.keys().map(String::as_str).collect();
        assert_eq!(pods, ["pod-10.0.1.1", "pod-10.0.1.2", "pod-10.0.1.3"]);
        let agent: IpAddr = "10.0.0.2".parse().expect("an address");
        assert_eq!(config.agent_pools.get(&agent).map(|pool| &**pool), Some("support"));
        assert_eq!(config.agent_pools.len(), config.agents.len());
        let agents = config.agents;
        let mut agents: Vec<String> = agents.iter().map(ToString::to_string).collect();
        agents.sort();
        assert_eq!(agents, ["10.0.0.1", "10.0.0.2", "10.0.0.3"]);
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
        assert_eq!(
            config(&objects, "").pools["support"].revisions["support-a"].slots,
            5
        );
    }

    #[test]
    fn its_own_terminating_endpoint_is_noticed() {
        assert!(config(&objects(), "uid-10.0.1.3").terminating);
    }
}
