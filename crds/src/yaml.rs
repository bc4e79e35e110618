//! The CustomResourceDefinitions: as YAML, as `flotilla-operator crds` prints them, and as templates of the chart.

use crate::{AgentPool, LoadTest, ModelProvider, RolloutAction};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use serde_json::{Map, Value, json};

/// Largest number that every JSON reader keeps exactly.
const MAX_SAFE_INTEGER: i64 = (1 << 53) - 1;

/// All definitions, in the order in which they are printed: plural name and definition.
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
    all()
        .iter()
        .map(|(_, definition)| format!("---\n{}", to_yaml(definition)))
        .collect()
}

/// One definition as a template of the chart: behind `crds.install`, with the chart's labels and annotations.
pub fn to_template(definition: &Value) -> String {
    let yaml = to_yaml(definition).replace("{{", "{{ \"{{\" }}");
    let name = definition
        .pointer("/metadata/name")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let plain = format!("metadata:\n  name: {name}\n");
    debug_assert!(yaml.contains(&plain), "the definition's metadata is its name");
    let labelled = format!(
        "{plain}  labels:\n    {{{{- include \"flotilla.labels\" . | nindent 4 }}}}\n  \
         {{{{- with include \"flotilla.crdAnnotations\" . }}}}\n  annotations:\n    {{{{- . | nindent 4 }}}}\n  {{{{- end }}}}\n"
    );
    format!(
        "{{{{- if .Values.crds.install }}}}\n{}{{{{- end }}}}\n",
        yaml.replacen(&plain, &labelled, 1)
    )
}

/// Brings what schemars derives in line with the API's rules: no `nullable`, whole numbers as bounds and one on both
/// sides, `status` defaults to "not seen yet", and descriptions begin with the field's name.
fn finish(crd: CustomResourceDefinition) -> Value {
    let mut value = serde_json::to_value(crd).expect("a definition serialises");
    if let Some(object) = value.as_object_mut() {
        object.remove("status");
    }
    if let Some(versions) = value.pointer_mut("/spec/versions").and_then(Value::as_array_mut) {
        for version in versions {
            if let Some(schema) = version.pointer_mut("/schema/openAPIV3Schema") {
                tidy(schema);
                describe(schema);
                if let Some(status) = schema
                    .pointer_mut("/properties/status")
                    .and_then(Value::as_object_mut)
                    && status
                        .get("properties")
                        .is_some_and(|p| p.get("observedGeneration").is_some())
                {
                    status.insert("default".into(), json!({"observedGeneration": -1}));
                }
            }
        }
    }
    value
}

fn describe(schema: &mut Value) {
    for (field, text) in [
        ("/properties/spec", "spec is what is wanted."),
        (
            "/properties/status",
            "status is what the operator observes; nobody else writes it.",
        ),
    ] {
        if let Some(object) = schema.pointer_mut(field).and_then(Value::as_object_mut) {
            object.insert("description".into(), json!(text));
        }
    }
    if let Some(object) = schema.as_object_mut() {
        object.remove("title");
    }
}

fn tidy(schema: &mut Value) {
    let Some(object) = schema.as_object_mut() else {
        return;
    };
    object.remove("nullable");
    integers(object);
    if let Some(Value::String(text)) = object.get_mut("description") {
        // Line breaks of the source; `kubectl explain` wraps by itself.
        *text = text
            .split("\n\n")
            .map(|paragraph| paragraph.replace('\n', " "))
            .collect::<Vec<_>>()
            .join("\n\n");
    }
    if let Some(Value::Object(properties)) = object.get_mut("properties") {
        properties.values_mut().for_each(tidy);
    }
    for key in ["items", "additionalProperties"] {
        if let Some(inner) = object.get_mut(key) {
            tidy(inner);
        }
    }
    if object.get("type").and_then(Value::as_str) == Some("array")
        && !object.contains_key("x-kubernetes-list-type")
    {
        object.insert("x-kubernetes-list-type".into(), json!("atomic"));
    }
}

/// schemars writes bounds as floats (`0.0`); the API's are whole numbers, and counters end where JSON does.
fn integers(object: &mut Map<String, Value>) {
    for key in ["minimum", "maximum"] {
        if let Some(bound) = object.get(key).and_then(Value::as_f64)
            && bound.fract() == 0.0
        {
            object.insert(key.into(), json!(bound as i64));
        }
    }
    if !object.contains_key("maximum") {
        match object.get("format").and_then(Value::as_str) {
            Some("int32") => object.insert("maximum".into(), json!(i32::MAX)),
            Some("int64") => object.insert("maximum".into(), json!(MAX_SAFE_INTEGER)),
            _ => None,
        };
    }
}
