//! The examples decode into the types and back, and the types' defaults are the schema's.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests, which clippy.toml exempts only inside #[test]"
)]

use flotilla_crds::{AgentPool, LoadTest, ModelProvider, RolloutAction};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::path::Path;

fn example(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../examples")
        .join(name);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_saphyr::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Decodes, encodes, and asserts that nothing of `object` was lost on the way.
fn round_trip<K: DeserializeOwned + Serialize>(object: &Value) -> Value {
    let typed: K = serde_json::from_value(object.clone()).unwrap_or_else(|error| panic!("{error}: {object}"));
    let back = serde_json::to_value(&typed).unwrap();
    contains("", &back, object);
    back
}

fn contains(path: &str, whole: &Value, part: &Value) {
    match (whole, part) {
        (Value::Object(whole), Value::Object(part)) => {
            for (key, inner) in part {
                let there = whole.get(key).unwrap_or_else(|| panic!("{path}.{key} was lost"));
                contains(&format!("{path}.{key}"), there, inner);
            }
        }
        (Value::Array(whole), Value::Array(part)) => {
            assert_eq!(whole.len(), part.len(), "{path}");
            for (index, (whole, part)) in whole.iter().zip(part).enumerate() {
                contains(&format!("{path}[{index}]"), whole, part);
            }
        }
        _ => assert_eq!(whole, part, "{path}"),
    }
}

#[test]
fn the_examples_decode_without_loss() {
    round_trip::<AgentPool>(&example("pool-small.yaml"));
    round_trip::<AgentPool>(&example("pool-full.yaml"));
    round_trip::<ModelProvider>(&example("provider.yaml"));
    round_trip::<LoadTest>(&example("loadtest.yaml"));
    round_trip::<RolloutAction>(&example("action.yaml"));
}

#[test]
fn the_smallest_pool_has_at_most_15_lines() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/pool-small.yaml");
    let lines = std::fs::read_to_string(path)
        .unwrap()
        .lines()
        .filter(|line| !line.starts_with('#'))
        .count();
    assert!(lines <= 15, "{lines} lines");
}

#[test]
fn the_full_pool_has_every_field() {
    let full = example("pool-full.yaml");
    let (_, definition) = flotilla_crds::yaml::all()
        .into_iter()
        .find(|(plural, _)| *plural == "agentpools")
        .unwrap();
    let schema = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
    let mut missing = Vec::new();
    for (at, pointer) in [
        ("spec", ""),
        ("spec.agent", "/properties/agent"),
        ("spec.agent.probes", "/properties/agent/properties/probes"),
        ("spec.sessions", "/properties/sessions"),
        ("spec.traffic", "/properties/traffic"),
        ("spec.traffic.retries", "/properties/traffic/properties/retries"),
        ("spec.traffic.ejection", "/properties/traffic/properties/ejection"),
        ("spec.traffic.queue", "/properties/traffic/properties/queue"),
        ("spec.rollout", "/properties/rollout"),
        ("spec.rollout.canary", "/properties/rollout/properties/canary"),
        ("spec.rollout.analysis", "/properties/rollout/properties/analysis"),
    ] {
        let object = &full.pointer(&format!("/{}", at.replace('.', "/"))).unwrap();
        for name in schema
            .pointer(&format!("{pointer}/properties"))
            .unwrap()
            .as_object()
            .unwrap()
            .keys()
        {
            if object.get(name).is_none() {
                missing.push(format!("{at}.{name}"));
            }
        }
    }
    // Members of the union that is shown with another type.
    missing.retain(|name| name != "spec.rollout.rollingUpdate" && name != "spec.rollout.blueGreen");
    assert!(missing.is_empty(), "examples/pool-full.yaml lacks {missing:?}");
}

/// Writes the schema's defaults into an object, as the API server does.
fn default_in(object: &mut Value, schema: &Value) {
    match object {
        Value::Object(map) => {
            for (name, field) in schema["properties"].as_object().into_iter().flatten() {
                if let Some(default) = field.get("default")
                    && !map.contains_key(name)
                {
                    map.insert(name.clone(), default.clone());
                }
                if let Some(inner) = map.get_mut(name) {
                    default_in(inner, field);
                }
            }
        }
        Value::Array(list) => list
            .iter_mut()
            .for_each(|inner| default_in(inner, &schema["items"])),
        _ => {}
    }
}

/// What the server stores and what a client without the server's defaults reads must be the same object.
fn same_defaults<K: DeserializeOwned + Serialize>(plural: &str, object: Value) {
    let (_, definition) = flotilla_crds::yaml::all()
        .into_iter()
        .find(|(name, _)| *name == plural)
        .unwrap();
    let mut stored = object.clone();
    default_in(
        &mut stored,
        &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"],
    );
    let decode = |object: Value| serde_json::to_value(serde_json::from_value::<K>(object).unwrap()).unwrap();
    let mut undefaulted = object;
    undefaulted["status"] = stored.get("status").cloned().unwrap_or(Value::Null);
    assert_eq!(decode(stored.clone()), decode(undefaulted), "{plural}");
    contains(plural, &decode(stored.clone())["spec"], &stored["spec"]);
}

#[test]
fn the_types_and_the_schema_have_the_same_defaults() {
    let object = |spec: Value| json!({"apiVersion": "flotilla.dev/v1alpha1", "kind": "X", "metadata": {}, "spec": spec});
    same_defaults::<AgentPool>(
        "agentpools",
        object(json!({
            "agent": {"image": "i", "prompt": {"text": "p"}},
            "traffic": {"queue": {}, "retries": {}, "ejection": {}}, "disruption": {}, "rollout": {"rollingUpdate": {}}
        })),
    );
    same_defaults::<AgentPool>("agentpools", object(json!({"agent": {"image": "i"}})));
    same_defaults::<ModelProvider>(
        "modelproviders",
        object(
            json!({"endpoint": "https://e/v1", "models": [{"name": "m", "price": {"inputPerMillion": "1", "outputPerMillion": "2"}}]}),
        ),
    );
    same_defaults::<LoadTest>(
        "loadtests",
        object(json!({
            "target": {"serviceRef": {"name": "s"}}, "workers": {}, "requests": {}, "thresholds": {},
            "scenarios": [{"name": "s", "prompt": {"text": "t"}}],
            "stages": [
                {"name": "a", "type": "Batch", "batch": {"size": 1, "requests": 1}},
                {"name": "b", "type": "ConstantRate", "constantRate": {"perSecond": "1", "seconds": 1}}
            ]
        })),
    );
    same_defaults::<RolloutAction>(
        "rolloutactions",
        object(json!({"poolRef": {"name": "p"}, "type": "Restart"})),
    );
}
