//! Names, labels and the rest of metadata.

use serde_json::Value;

use crate::api::failure::Cause;
use crate::kinds::Kind;

const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";

fn is_label(text: &str, most: usize, may_start_with_digit: bool) -> bool {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    !text.is_empty()
        && text.len() <= most
        && text.chars().all(inner)
        && edge(text.chars().next())
        && edge(text.chars().last())
        && (may_start_with_digit || text.chars().next().is_some_and(|c| c.is_ascii_lowercase()))
}

fn is_subdomain(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(|part| is_label(part, 253, true))
}

/// Whether a kind may have an object of this name.
pub fn is_valid(kind: &Kind, name: &str) -> bool {
    match (kind.group.as_str(), kind.kind.as_str()) {
        // RFC 1035 until relaxed by a feature gate that is off.
        ("", "Service") => is_label(name, 63, false),
        ("", "Namespace") => is_label(name, 63, true),
        ("rbac.authorization.k8s.io", _) => !name.is_empty() && !name.contains(['/', '%']),
        _ => is_subdomain(name),
    }
}

fn is_qualified(key: &str) -> bool {
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    prefix.is_none_or(is_subdomain) && is_label_text(name) && !name.is_empty()
}

fn is_label_text(text: &str) -> bool {
    let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    text.len() <= 63
        && text.chars().all(inner)
        && text.chars().next().is_none_or(|c| c.is_ascii_alphanumeric())
        && text.chars().last().is_none_or(|c| c.is_ascii_alphanumeric())
}

/// What is wrong with an object's metadata.
pub fn check(kind: &Kind, object: &Value) -> Vec<Cause> {
    let mut causes = Vec::new();
    let metadata = &object["metadata"];
    let name = metadata["name"].as_str().unwrap_or_default();
    if name.is_empty() {
        causes.push(Cause::required(
            "metadata.name",
            "name or generateName is required",
        ));
    } else if !is_valid(kind, name) {
        causes.push(Cause::invalid("metadata.name", &metadata["name"], SUBDOMAIN));
    }
    for (key, value) in metadata["labels"].as_object().into_iter().flatten() {
        if !is_qualified(key) {
            causes.push(Cause::invalid(
                "metadata.labels",
                &Value::from(key.as_str()),
                "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character",
            ));
        }
        if !value.as_str().is_some_and(is_label_text) {
            causes.push(Cause::invalid(
                "metadata.labels",
                value,
                "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character",
            ));
        }
    }
    for (key, _) in metadata["annotations"].as_object().into_iter().flatten() {
        if !is_qualified(&key.to_lowercase()) {
            causes.push(Cause::invalid(
                "metadata.annotations",
                &Value::from(key.as_str()),
                "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character",
            ));
        }
    }
    for (index, finalizer) in metadata["finalizers"]
        .as_array()
        .into_iter()
        .flatten()
        .enumerate()
    {
        let text = finalizer.as_str().unwrap_or_default();
        let is_known = matches!(text, "orphan" | "foregroundDeletion" | "kubernetes");
        if !is_qualified(text) || (!text.contains('/') && !is_known) {
            causes.push(Cause::invalid(
                format!("metadata.finalizers[{index}]"),
                finalizer,
                "name is neither a standard finalizer name nor is it fully qualified",
            ));
        }
    }
    let owners = metadata["ownerReferences"].as_array();
    let mut controllers = 0;
    for (index, owner) in owners.into_iter().flatten().enumerate() {
        let at = format!("metadata.ownerReferences[{index}]");
        for field in ["apiVersion", "kind", "name", "uid"] {
            if owner[field].as_str().unwrap_or_default().is_empty() {
                causes.push(Cause::invalid(
                    format!("{at}.{field}"),
                    &owner[field],
                    &format!("{field} must not be empty"),
                ));
            }
        }
        controllers += usize::from(owner["controller"] == true);
    }
    if controllers > 1 {
        causes.push(Cause::invalid(
            "metadata.ownerReferences",
            &metadata["ownerReferences"],
            "Only one reference can have Controller set to true",
        ));
    }
    causes
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kinds::Registry;

    #[test]
    fn metadata() {
        let registry = Registry::flotilla();
        let service = registry.get(registry.by_kind("v1", "Service").unwrap());
        let map = registry.get(registry.by_kind("v1", "ConfigMap").unwrap());
        assert!(is_valid(map, "0.a-b.c") && !is_valid(map, "A") && !is_valid(map, "a..b"));
        assert!(is_valid(service, "a-0") && !is_valid(service, "0a") && !is_valid(service, "a.b"));
        let wrong = json!({"metadata": {
            "name": "a", "labels": {"x/y/z": "", "ok": "-"}, "finalizers": ["mine", "a.b/c"],
            "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "x", "uid": ""}],
        }});
        assert_eq!(check(map, &wrong).len(), 4, "{:?}", check(map, &wrong));
    }
}
