//! The objects that the gateway under test follows: one pool, one provider, their endpoints, with everything switched on
//! that costs time on a request's way. Limits are far above the load: what is measured is their keeping, not their
//! reaching.

use flotilla_crds::names;
use serde_json::{Value, json};
use std::net::{IpAddr, Ipv4Addr};

use super::origin::REPLICAS;

/// Namespace of everything.
pub const NAMESPACE: &str = "bench";
/// Name of the pool, its front Service and the only provider.
pub const POOL: &str = "agents";
/// The pool's own port.
pub const POOL_PORT: u16 = 20_001;
/// Revisions; the first has the first half of the origin's addresses when traffic is split.
pub const REVISIONS: [&str; 2] = ["agents-a", "agents-b"];
/// Request header that names a conversation.
pub const SESSION_HEADER: &str = "x-session-id";
/// What the provider sells; the origin knows how to answer for each. A budget refuses models without a price.
const MODELS: [&str; 3] = ["bench", "paced", "held"];
/// Requests that one replica works on at once.
const CONCURRENCY: u32 = 4096;

/// Collections, as their paths in the API.
pub mod path {
    /// AgentPools.
    pub const POOLS: &str = "/apis/flotilla.dev/v1alpha1/namespaces/bench/agentpools";
    /// ModelProviders.
    pub const PROVIDERS: &str = "/apis/flotilla.dev/v1alpha1/namespaces/bench/modelproviders";
    /// Leases.
    pub const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/bench/leases";
    /// EndpointSlices.
    pub const SLICES: &str = "/apis/discovery.k8s.io/v1/namespaces/bench/endpointslices";
}

/// The pool with `weights` in percent, as the operator leaves it after `generation` changes.
pub fn pool(weights: &[(&str, u32)], generation: i64) -> Value {
    let traffic: Vec<Value> = weights
        .iter()
        .map(|(revision, weight)| json!({"revision": revision, "weight": weight}))
        .collect();
    json!({
        "apiVersion": "flotilla.dev/v1alpha1", "kind": "AgentPool",
        "metadata": {"name": POOL, "namespace": NAMESPACE, "uid": "pool-uid", "generation": 1},
        "spec": {
            "replicas": REPLICAS,
            "agent": {
                "image": "registry.example/agents:1",
                "concurrency": CONCURRENCY,
                "models": [{"name": "default", "providerRef": {"name": POOL}, "model": "bench"}],
            },
            "sessions": {"key": {"type": "Header", "header": SESSION_HEADER}, "idleSeconds": 1800},
            "traffic": {"serviceName": POOL},
        },
        "status": {"gatewayPort": POOL_PORT, "trafficGeneration": generation, "traffic": traffic},
    })
}

/// The provider at `endpoint`, with a key, quotas and a budget.
pub fn provider(endpoint: &str) -> Value {
    json!({
        "apiVersion": "flotilla.dev/v1alpha1", "kind": "ModelProvider",
        "metadata": {"name": POOL, "namespace": NAMESPACE, "uid": "provider-uid", "generation": 1},
        "spec": {
            "type": "OpenAI",
            "endpoint": endpoint,
            "auth": {"type": "APIKey", "apiKey": {"secretKeyRef": {"name": "key", "key": "api-key"}}},
            "models": MODELS.map(|name| {
                json!({"name": name, "price": {"inputPerMillion": "0.25", "outputPerMillion": "2.00"}})
            }),
            "quotas": [
                {"name": "rpm", "resource": "Requests", "limit": 600_000_000, "windowSeconds": 60},
                {"name": "tpm", "resource": "Tokens", "limit": 600_000_000_000_u64, "windowSeconds": 60},
            ],
            "budget": {"limit": "999999999.00", "currency": "USD", "window": "Month"},
        },
    })
}

/// The provider at `endpoint` with a quota of `limit` requests in any `seconds`.
pub fn metered(endpoint: &str, limit: u64, seconds: u64) -> Value {
    let mut provider = provider(endpoint);
    provider["spec"]["quotas"] =
        json!([{"name": "requests", "resource": "Requests", "limit": limit, "windowSeconds": seconds}]);
    provider
}

/// The slice of another pool, which has one agent and serves nobody.
pub fn agents_of(pool: &str, agent: Ipv4Addr) -> Value {
    let revision = format!("{pool}-a");
    let labels = json!({
        "kubernetes.io/service-name": revision,
        names::POOL: pool,
        names::REVISION: revision,
        names::CONCURRENCY: CONCURRENCY.to_string(),
    });
    endpoint_slice(&revision, labels, POOL_PORT, vec![agent.to_string()])
}

/// The slice of `revision`: the origin's addresses whose last bytes are `replicas`.
pub fn slice(revision: &str, port: u16, replicas: impl Iterator<Item = u8>) -> Value {
    let addresses = replicas.map(|replica| format!("127.0.0.{replica}")).collect();
    let labels = json!({
        "kubernetes.io/service-name": revision,
        names::POOL: POOL,
        names::REVISION: revision,
        names::CONCURRENCY: CONCURRENCY.to_string(),
    });
    endpoint_slice(revision, labels, port, addresses)
}

/// The slice of the gateway's own Service. Gateways find each other by the names of their pods.
pub fn gateways(pods: &[(String, IpAddr)]) -> Value {
    let labels = json!({"kubernetes.io/service-name": names::GATEWAY});
    let addresses = pods.iter().map(|(_, address)| address.to_string()).collect();
    let mut slice = endpoint_slice(names::GATEWAY, labels, names::GATEWAY_INGRESS_PORT, addresses);
    for (index, (name, _)) in pods.iter().enumerate() {
        slice["endpoints"][index]["targetRef"]["name"] = json!(name);
    }
    slice
}

fn endpoint_slice(name: &str, labels: Value, port: u16, addresses: Vec<String>) -> Value {
    let endpoints: Vec<Value> = addresses
        .into_iter()
        .map(|address| {
            json!({
                "addresses": [address],
                "conditions": {"ready": true, "serving": true, "terminating": false},
                "targetRef": {"kind": "Pod", "namespace": NAMESPACE, "name": address, "uid": format!("uid-{address}")},
            })
        })
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": labels},
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": port, "protocol": "TCP"}],
        "endpoints": endpoints,
    })
}
