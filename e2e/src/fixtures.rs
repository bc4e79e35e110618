//! Objects of the scenarios, as a user would write them.

use serde_json::{Value, json};

/// The reference agent's image.
pub const AGENT: &str = "flotilla.dev/agent:dev";
/// The simulated provider's Service, installed by the chart.
pub const SIMULATOR: &str = "http://flotilla-simulator.flotilla-system.svc/v1";
/// A prompt the reference agent accepts.
pub const PROMPT: &str = "You are a friendly customer-service agent. Answer in two sentences.";

/// The simulated provider without a key.
pub fn provider(name: &str) -> Value {
    json!({
        "apiVersion": "flotilla.dev/v1alpha1", "kind": "ModelProvider", "metadata": {"name": name},
        "spec": {
            "endpoint": SIMULATOR,
            "models": [{"name": "sim-fast", "price": {"inputPerMillion": "0.25", "outputPerMillion": "2.00"}}]
        }
    })
}

/// A pool of the reference agent on provider `main`.
pub fn pool(name: &str, replicas: i32) -> Value {
    json!({
        "apiVersion": "flotilla.dev/v1alpha1", "kind": "AgentPool", "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "agent": {
                "image": AGENT,
                "models": [{"name": "default", "providerRef": {"name": "main"}, "model": "sim-fast"}],
                "prompt": {"text": PROMPT},
                "probes": {"readiness": {"httpGet": {"path": "/readyz"}, "periodSeconds": 1}}
            },
            "rollout": {"settleSeconds": 0}
        }
    })
}

/// `object` with the value at a JSON pointer replaced or added; the parent must exist.
///
/// # Panics
/// When the pointer's parent is not in `object`: a mistake in the scenario.
pub fn with(mut object: Value, pointer: &str, value: Value) -> Value {
    let (parent, key) = pointer.rsplit_once('/').expect("a JSON pointer starts with /");
    match object.pointer_mut(parent).expect("the parent exists") {
        Value::Object(map) => drop(map.insert(key.into(), value)),
        Value::Array(list) => {
            let index: usize = key.parse().expect("an index into a list");
            *list.get_mut(index).expect("the index exists") = value;
        }
        other => panic!("{pointer}: the parent is {other}"),
    }
    object
}

/// A load test of pool `pool` at a constant rate. Its limit is wide, because a generator may be late by a hundredth of it, and
/// other scenarios run on the same two cores.
pub fn load_test(name: &str, pool: &str, per_second: &str, seconds: i32, workers: i32) -> Value {
    json!({
        "apiVersion": "flotilla.dev/v1alpha1", "kind": "LoadTest", "metadata": {"name": name},
        "spec": {
            "target": {"poolRef": {"name": pool}},
            "protocol": "A2A",
            "workers": {"count": workers},
            "scenarios": [
                {"name": "damaged-product", "weight": 4, "prompt": {"text": "My order {{order}} arrived damaged. What now?"}},
                {"name": "billing-inquiry", "weight": 3, "prompt": {"text": "Why was I charged twice for order {{order}}?"}},
                {"name": "delivery-issue", "weight": 3, "prompt": {"text": "Where is my parcel for order {{order}}?"}}
            ],
            "stages": [{"name": "steady", "type": "ConstantRate", "constantRate": {"perSecond": per_second, "seconds": seconds}}],
            "thresholds": {"p95Milliseconds": 20000, "failedPercent": "1"}
        }
    })
}
