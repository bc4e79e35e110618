//! What is served: `/version`, `/api`, `/apis` and the lists of resources.

use std::collections::BTreeMap;

use http::Method;
use serde_json::{Value, json};

use super::failure::Failure;
use super::request::Request;
use crate::kinds::{Kind, Registry};

const VERBS: [&str; 8] = [
    "create",
    "delete",
    "deletecollection",
    "get",
    "list",
    "patch",
    "update",
    "watch",
];

/// The document at a discovery path; `None` for any other path.
pub fn answer(registry: &Registry, request: &Request) -> Option<Result<Value, Failure>> {
    let parts: Vec<&str> = request.path.trim_matches('/').split('/').collect();
    let document = match parts.as_slice() {
        ["version"] => {
            json!({"major": "1", "minor": "33", "gitVersion": "v1.33.0", "platform": "linux/amd64"})
        }
        ["healthz" | "livez" | "readyz"] => json!("ok"),
        ["api"] => json!({"kind": "APIVersions", "versions": ["v1"]}),
        ["apis"] => groups(registry),
        ["api", version] => return Some(resources(registry, "", version)),
        ["apis", group] => {
            let groups = groups(registry);
            let found = groups["groups"]
                .as_array()
                .into_iter()
                .flatten()
                .find(|found| found["name"] == *group)
                .cloned();
            return Some(found.ok_or_else(Failure::no_such_path));
        }
        ["apis", group, version] => return Some(resources(registry, group, version)),
        _ => return None,
    };
    Some(if request.method == Method::GET {
        Ok(document)
    } else {
        Err(Failure::not_allowed())
    })
}

fn groups(registry: &Registry) -> Value {
    let mut versions: BTreeMap<&str, &str> = BTreeMap::new();
    for (_, kind) in registry.iter().filter(|(_, kind)| !kind.group.is_empty()) {
        versions.insert(&kind.group, &kind.version);
    }
    let groups: Vec<Value> = versions
        .iter()
        .map(|(group, version)| {
            let version = json!({"groupVersion": format!("{group}/{version}"), "version": version});
            json!({"name": group, "versions": [version], "preferredVersion": version})
        })
        .collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

fn resources(registry: &Registry, group: &str, version: &str) -> Result<Value, Failure> {
    let kinds: Vec<&Kind> = registry
        .iter()
        .map(|(_, kind)| kind)
        .filter(|kind| kind.group == group && kind.version == version)
        .collect();
    let Some(first) = kinds.first() else {
        return Err(Failure::no_such_path());
    };
    let mut resources = Vec::new();
    for kind in &kinds {
        resources.push(json!({
            "name": kind.plural, "singularName": kind.singular, "namespaced": kind.namespaced, "kind": kind.kind,
            "verbs": VERBS, "shortNames": kind.short,
        }));
        let mut sub = |name: &str, what: &str| {
            resources.push(json!({
                "name": format!("{}/{name}", kind.plural), "singularName": "", "namespaced": kind.namespaced,
                "kind": what, "verbs": ["get", "patch", "update"],
            }));
        };
        if kind.status {
            sub("status", &kind.kind);
        }
        if kind.scale.is_some() {
            sub("scale", "Scale");
        }
    }
    Ok(json!({
        "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": first.api_version(), "resources": resources,
    }))
}
