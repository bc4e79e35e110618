//! Pools to begin with.

use serde_json::{Value, json};

/// A rolling pool of so many replicas.
pub fn rolling(replicas: i32) -> Value {
    json!({"replicas": replicas, "agent": {"image": "agent:1"}, "rollout": {"settleSeconds": 0}})
}

/// A canary pool with these steps. Its stable revision gives up what the candidate carries, one candidate pod is enough, and
/// it ends with its last step.
pub fn canary(replicas: i32, weights: &[i32]) -> Value {
    let steps: Vec<Value> = weights
        .iter()
        .map(|weight| json!({"weight": weight, "ruleOutTimesWorse": 10, "minDurationSeconds": 10, "decideWithinSeconds": 600}))
        .collect();
    let settings = json!({
        "steps": steps, "candidateMinReplicas": 1, "stableScale": "Shrink", "bakeSeconds": 0, "scaleDownDelaySeconds": 0,
    });
    ladder(replicas, "Canary", "canary", settings)
}

/// A blue-green pool with these settings, which otherwise waits for approval and ends with the swap.
pub fn blue_green(replicas: i32, change: Value) -> Value {
    let settings = json!({"approval": "Manual", "bakeSeconds": 0, "scaleDownDelaySeconds": 0});
    ladder(replicas, "BlueGreen", "blueGreen", merged(settings, change))
}

fn ladder(replicas: i32, type_: &str, member: &str, settings: Value) -> Value {
    json!({
        "replicas": replicas, "agent": {"image": "agent:1"}, "traffic": {"requestTimeoutSeconds": 5},
        "rollout": {
            "type": type_, "settleSeconds": 0, member: settings,
            "analysis": {"warmupSeconds": 0, "errors": {"acceptableErrorPercent": "5"}},
        },
    })
}

/// `base` with the members of `change`, as a merge patch.
pub fn merged(mut base: Value, change: Value) -> Value {
    match change {
        Value::Object(fields) => {
            for (name, member) in fields {
                let before = base.get_mut(&name).map(Value::take).unwrap_or_default();
                base[name] = merged(before, member);
            }
            base
        }
        other => other,
    }
}

/// `spec.rollout.canary` of a change.
pub fn of_canary(change: Value) -> Value {
    json!({"rollout": {"canary": change}})
}
