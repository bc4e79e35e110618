//! `spec.agent.podTemplate`: decoding strictly, merging over ours.
//!
//! The field is kept as it was written, so a typing error in it passes the CRD's schema. Here it is read into the
//! pod's type, written back, and compared: a field that did not come back is not a field of a pod.

use k8s_openapi::DeepMerge as _;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use serde_json::Value;

/// The overlay of an agent.
///
/// # Errors
/// A sentence that names the field that is wrong.
pub fn decode(overlay: &Value) -> Result<PodTemplateSpec, String> {
    let decoded: PodTemplateSpec = serde_json::from_value(overlay.clone())
        .map_err(|error| format!("spec.agent.podTemplate is not a pod template: {error}"))?;
    let written = serde_json::to_value(&decoded).unwrap_or_default();
    match first_lost("", overlay, &written) {
        Some(path) => Err(format!(
            "spec.agent.podTemplate{path} is not a field of a pod; remove it or correct its name"
        )),
        None => Ok(decoded),
    }
}

/// `ours` with the overlay merged over it: lists by key where the API has one, everything else replaced.
pub fn merge(mut ours: PodTemplateSpec, overlay: PodTemplateSpec) -> PodTemplateSpec {
    ours.merge_from(overlay);
    ours
}

/// The path of the first member of `given` that `kept` lost.
fn first_lost(path: &str, given: &Value, kept: &Value) -> Option<String> {
    match (given, kept) {
        (Value::Object(given), Value::Object(kept)) => given.iter().find_map(|(key, value)| {
            let path = format!("{path}.{key}");
            match kept.get(key) {
                Some(kept) => first_lost(&path, value, kept),
                None if is_nothing(value) => None,
                None => Some(path),
            }
        }),
        (Value::Array(given), Value::Array(kept)) => given
            .iter()
            .zip(kept)
            .enumerate()
            .find_map(|(position, (given, kept))| first_lost(&format!("{path}[{position}]"), given, kept)),
        _ => None,
    }
}

fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_not_a_pod_is_named() {
        for (overlay, expected) in [
            (
                json!({"spec": {"nodeSelectr": {"a": "b"}}}),
                "podTemplate.spec.nodeSelectr is not",
            ),
            (
                json!({"spec": {"containers": [{"name": "agent", "imge": "x"}]}}),
                "containers[0].imge is not",
            ),
            (json!({"spec": {"containers": "agent"}}), "not a pod template"),
            (
                json!({"sepc": {}, "metadata": {"label": {"a": "b"}}}),
                "metadata.label is not",
            ),
            (json!(7), "not a pod template"),
        ] {
            let error = decode(&overlay).unwrap_err();
            assert!(error.contains(expected), "{overlay}: {error}");
        }
    }

    #[test]
    fn what_is_a_pod_passes() {
        for overlay in [
            json!({}),
            json!({"metadata": {"annotations": {"a": "b"}}, "spec": {"nodeSelector": {"a": "b"}}}),
            json!({"spec": {
                "containers": [{"name": "side", "image": "s:1", "resources": {"limits": {"cpu": "1"}}}],
                "tolerations": [{"key": "k", "operator": "Exists"}],
                "volumes": [{"name": "v", "emptyDir": {}}],
                "topologySpreadConstraints": [
                    {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"}
                ],
            }}),
        ] {
            assert!(decode(&overlay).is_ok(), "{overlay}: {:?}", decode(&overlay));
        }
    }
}
