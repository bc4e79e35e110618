//! The CustomResourceDefinitions, as committed in `crds/yaml/` and as the chart and `flotilla-operator crds` print them.

use crate::{AgentPool, LoadTest, ModelProvider, RolloutAction};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use serde_json::{Map, Value, json};

/// All definitions, in the order in which they are printed: file stem (the plural name) and definition.
pub fn all() -> Vec<(&'static str, Value)> {
    vec![
        ("agentpools", finish(AgentPool::crd())),
        ("loadtests", finish(LoadTest::crd())),
        ("modelproviders", finish(ModelProvider::crd())),
        ("rolloutactions", finish(RolloutAction::crd())),
    ]
}

/// One definition as YAML.
pub fn to_yaml(definition: &Value) -> String {
    serde_saphyr::to_string(definition).expect("a definition is a plain tree of maps, lists and scalars")
}

/// All definitions as one YAML stream.
pub fn all_yaml() -> String {
    all().iter().map(|(_, definition)| format!("---\n{}", to_yaml(definition))).collect()
}

/// Brings what schemars derives in line with the API's rules: no `nullable`, no floats in bounds, `status` defaults to
/// "not seen yet", and an absent sub-object takes its members' defaults.
fn finish(crd: CustomResourceDefinition) -> Value {
    let mut value = serde_json::to_value(crd).expect("a definition serialises");
    if let Some(object) = value.as_object_mut() {
        object.remove("status");
    }
    if let Some(versions) = value.pointer_mut("/spec/versions").and_then(Value::as_array_mut) {
        for version in versions {
            if let Some(schema) = version.pointer_mut("/schema/openAPIV3Schema") {
                tidy(schema);
                if let Some(status) = schema.pointer_mut("/properties/status").and_then(Value::as_object_mut)
                    && status.get("properties").is_some_and(|p| p.get("observedGeneration").is_some())
                {
                    status.insert("default".into(), json!({"observedGeneration": -1}));
                }
            }
        }
    }
    value
}

fn tidy(schema: &mut Value) {
    let Some(object) = schema.as_object_mut() else { return };
    object.remove("nullable");
    integers(object);
    if let Some(Value::Object(properties)) = object.get_mut("properties") {
        properties.values_mut().for_each(tidy);
    }
    for key in ["items", "additionalProperties"] {
        if let Some(inner) = object.get_mut(key) {
            tidy(inner);
        }
    }
    if object.get("type").and_then(Value::as_str) == Some("array") && !object.contains_key("x-kubernetes-list-type") {
        object.insert("x-kubernetes-list-type".into(), json!("atomic"));
    }
}

/// schemars writes bounds as floats (`0.0`); the API's are whole numbers.
fn integers(object: &mut Map<String, Value>) {
    for key in ["minimum", "maximum"] {
        if let Some(bound) = object.get(key).and_then(Value::as_f64)
            && bound.fract() == 0.0
        {
            object.insert(key.into(), json!(bound as i64));
        }
    }
}
