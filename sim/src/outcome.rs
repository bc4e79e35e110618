//! What a run leaves behind, without what may differ between two good runs: names drawn by lot, versions, UIDs, times,
//! addresses, counters of changes.

use std::collections::BTreeMap;

use flotilla_crds::names;
use serde_json::{Map, Value, json};

use crate::cluster::Cluster;

/// Members that count or date changes.
const COUNTERS: [&str; 15] = [
    "resourceVersion",
    "uid",
    "creationTimestamp",
    "managedFields",
    "generation",
    "observedGeneration",
    "trafficGeneration",
    "sinceGeneration",
    "controller-uid",
    "batch.kubernetes.io/controller-uid",
    "pod-template-hash",
    "clusterIP",
    "clusterIPs",
    "deletionTimestamp",
    "terminating",
];

/// Kinds that come and go by themselves, or whose traces say only how it went.
const PASSING: [&str; 4] = ["pods", "events", "leases", "endpointslices"];

/// The end state of a namespace by path; pods by owner and number.
pub fn end_state(cluster: &Cluster, namespace: &str) -> BTreeMap<String, Value> {
    let mut generated = BTreeMap::new();
    let mut objects = BTreeMap::new();
    for path in cluster.paths(namespace) {
        let Some(mut object) = cluster.get(&path) else {
            continue;
        };
        uncounted(&mut object);
        if let Some(prefix) = object["metadata"]["generateName"].as_str() {
            let name = object["metadata"]["name"].as_str().unwrap_or_default();
            generated.insert(name.to_owned(), format!("{prefix}*"));
        }
        objects.insert(path, object);
    }
    let mut end: BTreeMap<String, Value> = BTreeMap::new();
    for (path, object) in objects {
        let plain = plain(&object, &generated);
        let mut path = path.clone();
        for (name, pattern) in &generated {
            if let Some(start) = path.strip_suffix(name.as_str()) {
                path = format!("{start}{pattern}");
            }
        }
        // Which of several like objects comes first is chance.
        let list = end.entry(path).or_insert_with(|| json!([]));
        if let Some(list) = list.as_array_mut() {
            list.push(plain);
            list.sort_by_key(Value::to_string);
        }
    }
    end.retain(|path, _| !path.contains("/leases/") && !path.contains("/endpointslices/"));
    end
}

/// A checkpoint of evidence is kept for what it is about: its counts are the requests that happened to be asked meanwhile. How far a
/// release had come that was ended depends on when that was.
fn uncounted(object: &mut Value) {
    let is_serving = object["metadata"]["labels"][names::REVISION_STATE] == "stable";
    let annotations = object["metadata"]["annotations"].as_object_mut();
    if let Some(annotations) = annotations.filter(|_| !is_serving) {
        annotations.remove("flotilla.dev/passed-weight");
    }
    let text = object["data"]["checkpoint.json"].as_str();
    let Some(case) = text.and_then(|text| serde_json::from_str::<Value>(text).ok()) else {
        return;
    };
    let evidence = case["evidence"].as_str().unwrap_or_default();
    let evidence: Value = serde_json::from_str(evidence).unwrap_or_default();
    object["data"]["checkpoint.json"] = evidence["key"].clone();
    if let Some(annotations) = object["metadata"]["annotations"].as_object_mut() {
        annotations.remove("flotilla.dev/applied-hash");
    }
}

fn plain(value: &Value, generated: &BTreeMap<String, String>) -> Value {
    match value {
        Value::Object(fields) => fields
            .iter()
            .filter(|(name, _)| !COUNTERS.contains(&name.as_str()))
            .map(|(name, value)| (name.clone(), plain(value, generated)))
            .collect::<Map<_, _>>()
            .into(),
        Value::Array(items) => items.iter().map(|item| plain(item, generated)).collect(),
        Value::String(text) => {
            if text.parse::<jiff::Timestamp>().is_ok() {
                json!("<time>")
            } else if text.starts_with("10.244.") {
                json!("<address>")
            } else if is_uid(text) {
                json!("<uid>")
            } else {
                json!(generated.get(text).unwrap_or(text))
            }
        }
        other => other.clone(),
    }
}

fn is_uid(text: &str) -> bool {
    text.len() == 36
        && text.split('-').map(str::len).eq([8, 4, 4, 4, 12])
        && text.chars().all(|c| c.is_ascii_hexdigit() || c == '-')
}

/// How many objects of each lasting kind were made and went.
pub fn counts(cluster: &Cluster) -> BTreeMap<String, (u64, u64)> {
    cluster.with(|state| {
        let registry = state.registry.clone();
        registry
            .iter()
            .filter(|(_, kind)| !PASSING.contains(&kind.plural.as_str()))
            .map(|(id, kind)| (kind.resource(), state.store.counts(id)))
            .filter(|(_, counts)| *counts != (0, 0))
            .collect()
    })
}

/// Where two end states differ, a line for each difference; `counted` are ends of pointers to sentences whose numbers may.
pub fn differences(
    expected: &BTreeMap<String, Value>,
    found: &BTreeMap<String, Value>,
    counted: &[&str],
) -> Vec<String> {
    let mut lines = Vec::new();
    let paths: std::collections::BTreeSet<&String> = expected.keys().chain(found.keys()).collect();
    for path in paths {
        match (expected.get(path), found.get(path)) {
            (Some(_), None) => lines.push(format!("{path} is missing")),
            (None, Some(_)) => lines.push(format!("{path} should not be there")),
            (Some(expected), Some(found)) => compare(path, "", (expected, found), counted, &mut lines),
            (None, None) => {}
        }
    }
    lines
}

fn compare(path: &str, at: &str, (a, b): (&Value, &Value), counted: &[&str], lines: &mut Vec<String>) {
    if a == b {
        return;
    }
    match (a, b) {
        (Value::Object(x), Value::Object(y)) => {
            let names: std::collections::BTreeSet<&String> = x.keys().chain(y.keys()).collect();
            for name in names {
                let none = Value::Null;
                let pair = (x.get(name).unwrap_or(&none), y.get(name).unwrap_or(&none));
                compare(path, &format!("{at}/{name}"), pair, counted, lines);
            }
        }
        (Value::Array(x), Value::Array(y)) if x.len() == y.len() => {
            for (index, pair) in x.iter().zip(y).enumerate() {
                compare(path, &format!("{at}/{index}"), pair, counted, lines);
            }
        }
        (Value::String(x), Value::String(y))
            if counted.iter().any(|end| at.ends_with(end)) && numberless(x) == numberless(y) => {}
        _ => lines.push(format!("{path}{at}: {a} became {b}")),
    }
}

/// A sentence with `#` for each number.
fn numberless(text: &str) -> String {
    let mut plain = String::new();
    for c in text.chars() {
        if !c.is_ascii_digit() {
            plain.push(c);
        } else if plain.ends_with("#.") {
            plain.pop();
        } else if !plain.ends_with('#') {
            plain.push('#');
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_numbers_of_a_sentence_may_differ() {
        let of = |text: &str| BTreeMap::from([("p".to_owned(), json!({"status": {"message": text}}))]);
        let differ = |a: &str, b: &str| differences(&of(a), &of(b), &["/message"]).len();
        assert_eq!(differ("7 of 12.5 % failed.", "11 of 3 % failed."), 0);
        assert_eq!(differ("7 of 12 % failed.", "7 of 12 % passed."), 1);
    }
}
