//! What must hold within an object of a built-in kind, and what may not change.

use serde_json::{Value, json};

use crate::api::failure::Cause;
use crate::api::selector::Selector;
use crate::kinds::Kind;

const IMMUTABLE: &str = "field is immutable";

/// What is wrong with a new object or with its change.
pub fn check(kind: &Kind, object: &Value, old: Option<&Value>) -> Vec<Cause> {
    let mut causes = Vec::new();
    match (kind.group.as_str(), kind.kind.as_str()) {
        ("", "ConfigMap" | "Secret") => data(object, old, &mut causes),
        ("", "Service") => service(object, old, &mut causes),
        ("", "Pod") => {
            containers("spec", &object["spec"], &mut causes);
            if let Some(old) = old {
                pod_change(object, old, &mut causes);
            }
        }
        ("apps", "ReplicaSet" | "Deployment") => workload(object, old, &mut causes),
        ("batch", "Job") => job(object, old, &mut causes),
        ("apps", "ControllerRevision") => {
            if object["data"].is_null() {
                causes.push(Cause::required("data", "data is mandatory"));
            }
            if old.is_some_and(|old| old["data"] != object["data"]) {
                causes.push(Cause::invalid("data", &object["data"], IMMUTABLE));
            }
            if object["revision"].as_i64().unwrap_or_default() < 0 {
                causes.push(Cause::invalid("revision", &object["revision"], NOT_NEGATIVE));
            }
        }
        ("rbac.authorization.k8s.io", "RoleBinding")
            if old.is_some_and(|old| old["roleRef"] != object["roleRef"]) =>
        {
            causes.push(Cause::invalid(
                "roleRef",
                &object["roleRef"],
                "cannot change roleRef",
            ));
        }
        ("coordination.k8s.io", "Lease") => {
            if object["spec"]["leaseDurationSeconds"]
                .as_i64()
                .is_some_and(|seconds| seconds <= 0)
            {
                causes.push(Cause::invalid(
                    "spec.leaseDurationSeconds",
                    &object["spec"]["leaseDurationSeconds"],
                    "must be greater than 0",
                ));
            }
            if object["spec"]["leaseTransitions"]
                .as_i64()
                .is_some_and(|count| count < 0)
            {
                causes.push(Cause::invalid(
                    "spec.leaseTransitions",
                    &object["spec"]["leaseTransitions"],
                    NOT_NEGATIVE,
                ));
            }
        }
        _ => {}
    }
    causes
}

const NOT_NEGATIVE: &str = "must be greater than or equal to 0";

fn data(object: &Value, old: Option<&Value>, causes: &mut Vec<Cause>) {
    for field in ["data", "binaryData"] {
        for key in object[field]
            .as_object()
            .into_iter()
            .flatten()
            .map(|(key, _)| key)
        {
            let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
            if key.is_empty()
                || key.len() > 253
                || !key.chars().all(fits)
                || matches!(key.as_str(), "." | "..")
            {
                causes.push(Cause::invalid(
                    format!("{field}[{key}]"),
                    &json!(key),
                    "a valid config key must consist of alphanumeric characters, '-', '_' or '.'",
                ));
            }
        }
    }
    let Some(old) = old.filter(|old| old["immutable"] == true) else {
        return;
    };
    if object["immutable"] != true {
        causes.push(Cause::forbidden(
            "immutable",
            "field is immutable when `immutable` is set",
        ));
    }
    for field in ["data", "binaryData"] {
        if old[field] != object[field] {
            causes.push(Cause::forbidden(
                field,
                "field is immutable when `immutable` is set",
            ));
        }
    }
}

fn service(object: &Value, old: Option<&Value>, causes: &mut Vec<Cause>) {
    let spec = &object["spec"];
    let ports = spec["ports"].as_array().map(Vec::as_slice).unwrap_or_default();
    if ports.is_empty() && spec["clusterIP"] != "None" && spec["type"] != "ExternalName" {
        causes.push(Cause::required("spec.ports", ""));
    }
    for (index, port) in ports.iter().enumerate() {
        let number = port["port"].as_i64().unwrap_or_default();
        if !(1..=65535).contains(&number) {
            causes.push(Cause::invalid(
                format!("spec.ports[{index}].port"),
                &port["port"],
                "must be between 1 and 65535, inclusive",
            ));
        }
        if ports.len() > 1 && port["name"].as_str().unwrap_or_default().is_empty() {
            causes.push(Cause::required(format!("spec.ports[{index}].name"), ""));
        }
        let is_same = |other: &Value| other["port"] == port["port"] && other["protocol"] == port["protocol"];
        if ports.iter().take(index).any(is_same) {
            causes.push(Cause::duplicate(
                format!("spec.ports[{index}]"),
                &json!({"port": port["port"], "protocol": port["protocol"]}),
            ));
        }
        let name = &port["name"];
        if name.is_string() && ports.iter().take(index).any(|other| other["name"] == *name) {
            causes.push(Cause::duplicate(format!("spec.ports[{index}].name"), name));
        }
    }
    if let Some(old) = old
        && old["spec"]["type"] == spec["type"]
        && old["spec"]["clusterIP"] != spec["clusterIP"]
    {
        causes.push(Cause::invalid(
            "spec.clusterIPs[0]",
            &json!([spec["clusterIP"]]),
            "may not change once set",
        ));
    }
}

fn containers(path: &str, spec: &Value, causes: &mut Vec<Cause>) {
    let list = spec["containers"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    if list.is_empty() {
        causes.push(Cause::required(format!("{path}.containers"), ""));
    }
    for (index, container) in list.iter().enumerate() {
        for field in ["name", "image"] {
            if container[field].as_str().unwrap_or_default().is_empty() {
                causes.push(Cause::required(format!("{path}.containers[{index}].{field}"), ""));
            }
        }
        if list
            .iter()
            .take(index)
            .any(|other| other["name"] == container["name"])
        {
            causes.push(Cause::duplicate(
                format!("{path}.containers[{index}].name"),
                &container["name"],
            ));
        }
    }
}

fn workload(object: &Value, old: Option<&Value>, causes: &mut Vec<Cause>) {
    let spec = &object["spec"];
    for field in ["replicas", "minReadySeconds"] {
        if spec[field].as_i64().unwrap_or_default() < 0 {
            causes.push(Cause::invalid(
                format!("spec.{field}"),
                &spec[field],
                NOT_NEGATIVE,
            ));
        }
    }
    if spec["selector"].is_null() {
        causes.push(Cause::required("spec.selector", ""));
    } else {
        let selector = Selector::of_object(&spec["selector"]);
        if selector.is_empty() {
            causes.push(Cause::invalid(
                "spec.selector",
                &spec["selector"],
                "empty selector is invalid for deployment",
            ));
        } else if !selector.matches_labels(&spec["template"]["metadata"]["labels"]) {
            causes.push(Cause::invalid(
                "spec.template.metadata.labels",
                &spec["template"]["metadata"]["labels"],
                "`selector` does not match template `labels`",
            ));
        }
    }
    if old.is_some_and(|old| old["spec"]["selector"] != spec["selector"]) {
        causes.push(Cause::invalid("spec.selector", &spec["selector"], IMMUTABLE));
    }
    template(spec, &["Always"], causes);
}

fn template(spec: &Value, policies: &[&str], causes: &mut Vec<Cause>) {
    let pod = &spec["template"]["spec"];
    containers("spec.template.spec", pod, causes);
    let policy = pod["restartPolicy"].as_str().unwrap_or_default();
    if !policies.contains(&policy) {
        let known: Vec<String> = policies.iter().map(|policy| format!("{policy:?}")).collect();
        causes.push(Cause::unsupported(
            "spec.template.spec.restartPolicy",
            &pod["restartPolicy"],
            &known.join(", "),
        ));
    }
}

fn job(object: &Value, old: Option<&Value>, causes: &mut Vec<Cause>) {
    let spec = &object["spec"];
    template(spec, &["OnFailure", "Never"], causes);
    for field in [
        "parallelism",
        "completions",
        "backoffLimit",
        "activeDeadlineSeconds",
    ] {
        if spec[field].as_i64().is_some_and(|number| number < 0) {
            causes.push(Cause::invalid(
                format!("spec.{field}"),
                &spec[field],
                NOT_NEGATIVE,
            ));
        }
    }
    if spec["completionMode"] == "Indexed" && spec["completions"].is_null() {
        causes.push(Cause::required(
            "spec.completions",
            "when completion mode is Indexed",
        ));
    }
    let Some(old) = old else { return };
    let before = &old["spec"];
    let fixed = [
        "selector",
        "completionMode",
        "podFailurePolicy",
        "backoffLimitPerIndex",
    ];
    for field in fixed {
        if before[field] != spec[field] {
            causes.push(Cause::invalid(format!("spec.{field}"), &spec[field], IMMUTABLE));
        }
    }
    // Only the scheduling directives of a Job that has not begun may change.
    let may_change = before["suspend"] == true && old["status"]["startTime"].is_null();
    if before["template"] != spec["template"] && !may_change {
        causes.push(Cause::invalid("spec.template", &spec["template"], IMMUTABLE));
    }
    let elastic = spec["completionMode"] == "Indexed" && spec["completions"] == spec["parallelism"];
    if before["completions"] != spec["completions"] && !elastic {
        causes.push(Cause::invalid(
            "spec.completions",
            &spec["completions"],
            IMMUTABLE,
        ));
    }
}

fn pod_change(object: &Value, old: &Value, causes: &mut Vec<Cause>) {
    let reduced = |object: &Value| {
        let mut spec = object["spec"].clone();
        if let Some(fields) = spec.as_object_mut() {
            for field in [
                "activeDeadlineSeconds",
                "tolerations",
                "terminationGracePeriodSeconds",
                "nodeName",
            ] {
                fields.remove(field);
            }
        }
        for list in ["containers", "initContainers"] {
            for container in spec[list].as_array_mut().into_iter().flatten() {
                container["image"] = Value::Null;
            }
            if spec[list].is_null()
                && let Some(fields) = spec.as_object_mut()
            {
                fields.remove(list);
            }
        }
        spec
    };
    if reduced(object) != reduced(old) {
        causes.push(Cause::forbidden(
            "spec",
            "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)",
        ));
    }
}
