//! Answers without what is drawn by lot or depends on when.

use serde_json::{Map, Value, json};

use super::exchange::Answered;
use super::sequence::Asked;

/// Members that are different on every server.
const CHANCE: [&str; 10] = [
    "uid",
    "resourceVersion",
    "creationTimestamp",
    "clusterIP",
    "clusterIPs",
    "time",
    "continue",
    "selfLink",
    "remainingItemCount",
    "observedGeneration",
];

/// What two servers must agree on: the code, the reason of a refusal, the object of a success.
pub fn plain(answered: &Answered, asked: &Asked) -> Value {
    if answered.code >= 400 {
        return json!({"code": answered.code, "reason": answered.body["reason"]});
    }
    let mut body = reduced(&answered.body);
    if body["kind"] == "Status" {
        body = json!({"kind": "Status", "status": answered.body["status"]});
    }
    // Written by a controller of the real cluster, at any moment.
    if asked.path.contains("/replicasets") && !asked.path.ends_with("/scale") {
        let items = body.get_mut("items").and_then(Value::as_array_mut);
        for item in items.into_iter().flatten() {
            forget(item, "status");
        }
        forget(&mut body, "status");
    }
    json!({"code": answered.code, "body": body})
}

fn forget(object: &mut Value, field: &str) {
    if let Some(fields) = object.as_object_mut() {
        fields.remove(field);
    }
}

fn reduced(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let mut kept = Map::new();
            for (name, member) in fields {
                if CHANCE.contains(&name.as_str()) || member.is_null() {
                    continue;
                }
                if name == "managedFields" {
                    kept.insert(name.clone(), owners(member));
                } else if name == "deletionTimestamp" {
                    kept.insert(name.clone(), json!("<time>"));
                } else {
                    kept.insert(name.clone(), reduced(member));
                }
            }
            Value::Object(kept)
        }
        Value::Array(items) => items.iter().map(reduced).collect(),
        other => other.clone(),
    }
}

/// Who applies what. What other writes own is compared by its effects: the real server counts fields there that
/// its own types hold and no client ever sent.
fn owners(entries: &Value) -> Value {
    let entries = entries.as_array().into_iter().flatten();
    let mut applied: Vec<Value> = entries
        .filter(|entry| entry["operation"] == "Apply")
        .map(|entry| json!({"manager": entry["manager"], "fields": entry["fieldsV1"], "subresource": entry["subresource"]}))
        .collect();
    applied.sort_by_key(Value::to_string);
    json!(applied)
}
