//! Whether an object already has every field we want.
//!
//! A server-side apply that changes nothing still costs a request, so the cached object is compared first. Equality
//! will not do: the API server adds defaults, and others add labels, sidecars and annotations that are theirs. So the
//! desired object must be *contained*: every field of ours is there with our value. What that leaves unseen, a field
//! that we wanted once and want no more, is covered by the hash of the desired object which the executor keeps in an
//! annotation and which is itself a desired field.
//!
//! What counts as the same:
//! - `null`, `""`, `false`, `0`, `[]` and `{}` are the same as absent: Go's encoder drops them.
//! - Quantities (below `limits`, `requests`, `capacity`, `hard`, and `sizeLimit`, `divisor`) by value: `1000m` is `1`.
//! - Lists that the API merges by key (containers, volumes, env, ports …) by that key: others may add elements.
//! - All other lists element by element, same length; elements may carry further (defaulted) fields.

use serde_json::{Map, Value};

/// Whether every field of `desired` is in `actual` with the same meaning.
pub fn is_subset(desired: &Value, actual: &Value) -> bool {
    contains("", desired, Some(actual), false)
}

fn contains(field: &str, desired: &Value, actual: Option<&Value>, quantity: bool) -> bool {
    let Some(actual) = actual.filter(|value| !value.is_null()) else {
        return is_empty(desired);
    };
    match (desired, actual) {
        (Value::Object(desired), Value::Object(actual)) => {
            let quantities = quantity || matches!(field, "limits" | "requests" | "capacity" | "hard");
            desired.iter().all(|(key, value)| {
                let quantity = quantities || matches!(key.as_str(), "sizeLimit" | "divisor");
                contains(key, value, actual.get(key), quantity)
            })
        }
        (Value::Array(desired), Value::Array(actual)) => list_contains(field, desired, actual),
        (Value::Null, _) => true,
        (desired, actual) if quantity => {
            desired == actual
                || quantity_of(desired)
                    .zip(quantity_of(actual))
                    .is_some_and(|(a, b)| a.same_as(&b))
        }
        (Value::Number(desired), Value::Number(actual)) => {
            desired == actual || desired.as_f64().zip(actual.as_f64()).is_some_and(|(a, b)| a == b)
        }
        (desired, actual) => desired == actual,
    }
}

/// Values that Go's `omitempty` drops.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(fields) => fields.values().all(is_empty),
    }
}

fn list_contains(field: &str, desired: &[Value], actual: &[Value]) -> bool {
    match merge_keys(field) {
        Some(keys) if desired.iter().all(Value::is_object) => desired.iter().all(|wanted| {
            let mut same_key = actual
                .iter()
                .filter(|found| keys.iter().all(|key| same_member(key, wanted, found)));
            same_key.any(|found| contains("", wanted, Some(found), false))
        }),
        _ => {
            desired.len() == actual.len()
                && desired
                    .iter()
                    .zip(actual)
                    .all(|(wanted, found)| contains("", wanted, Some(found), false))
        }
    }
}

/// The keys by which the API merges a list of objects; a list not named here is atomic or a set.
fn merge_keys(field: &str) -> Option<&'static [&'static str]> {
    Some(match field {
        "containers" | "initContainers" | "ephemeralContainers" | "volumes" | "env" | "imagePullSecrets" => {
            &["name"]
        }
        "volumeMounts" => &["mountPath"],
        "volumeDevices" => &["devicePath"],
        "ports" => &["containerPort", "port", "protocol"],
        "ownerReferences" => &["uid"],
        "hostAliases" => &["ip"],
        "topologySpreadConstraints" => &["topologyKey", "whenUnsatisfiable"],
        "conditions" => &["type"],
        _ => return None,
    })
}

fn same_member(key: &str, wanted: &Value, found: &Value) -> bool {
    match (member(key, wanted), member(key, found)) {
        (Some(wanted), Some(found)) => wanted == found,
        // A defaulted key (protocol: TCP) or one that this kind of port does not have.
        (None, _) => true,
        (Some(_), None) => false,
    }
}

fn member<'a>(key: &str, value: &'a Value) -> Option<&'a Value> {
    value
        .as_object()
        .and_then(|fields: &Map<String, Value>| fields.get(key))
}

/// A quantity as a decimal mantissa and an exponent of ten.
struct Quantity {
    mantissa: i128,
    exponent: i32,
}

impl Quantity {
    fn same_as(&self, other: &Self) -> bool {
        let lowest = self.exponent.min(other.exponent);
        self.scaled(lowest)
            .is_some_and(|value| Some(value) == other.scaled(lowest))
    }

    fn scaled(&self, exponent: i32) -> Option<i128> {
        let steps = u32::try_from(self.exponent - exponent).ok()?;
        self.mantissa.checked_mul(10_i128.checked_pow(steps)?)
    }
}

/// `resource.Quantity`: a decimal number with a binary (`Ki`), decimal (`m`, `k`) or exponent (`e3`) suffix.
fn quantity_of(value: &Value) -> Option<Quantity> {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        _ => return None,
    };
    let split = text
        .find(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | '+' | '-')))
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at_checked(split)?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let mantissa: i128 = format!("{whole}{fraction}").parse().ok()?;
    let places = i32::try_from(fraction.len()).ok()?;
    let (factor, exponent): (i128, i32) = match suffix {
        "n" => (1, -9),
        "u" => (1, -6),
        "m" => (1, -3),
        "" => (1, 0),
        "k" => (1, 3),
        "M" => (1, 6),
        "G" => (1, 9),
        "T" => (1, 12),
        "P" => (1, 15),
        "E" => (1, 18),
        "Ki" => (1 << 10, 0),
        "Mi" => (1 << 20, 0),
        "Gi" => (1 << 30, 0),
        "Ti" => (1 << 40, 0),
        "Pi" => (1 << 50, 0),
        "Ei" => (1 << 60, 0),
        _ => (1, suffix.strip_prefix(['e', 'E'])?.parse().ok()?),
    };
    Some(Quantity {
        mantissa: mantissa.checked_mul(factor)?,
        exponent: exponent.checked_sub(places)?,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn contained() {
        for (what, desired, actual) in [
            (
                "defaults and foreign labels",
                json!({"a": 1}),
                json!({"a": 1, "b": {"c": 2}}),
            ),
            (
                "empty is absent",
                json!({"a": "", "b": [], "c": {"d": {}}, "e": false, "f": 0, "g": null}),
                json!({}),
            ),
            ("null matches anything", json!({"a": null}), json!({"a": 3})),
            (
                "quantity",
                json!({"limits": {"cpu": "1000m"}}),
                json!({"limits": {"cpu": "1"}}),
            ),
            (
                "quantity, fraction",
                json!({"requests": {"cpu": "0.5"}}),
                json!({"requests": {"cpu": "500m"}}),
            ),
            (
                "quantity, binary",
                json!({"limits": {"memory": "1024Mi"}}),
                json!({"limits": {"memory": "1Gi"}}),
            ),
            (
                "quantity, number",
                json!({"limits": {"cpu": 2}}),
                json!({"limits": {"cpu": "2"}}),
            ),
            (
                "quantity, exponent",
                json!({"emptyDir": {"sizeLimit": "1e3"}}),
                json!({"emptyDir": {"sizeLimit": "1k"}}),
            ),
            ("integer as float", json!({"a": 1.0}), json!({"a": 1})),
            (
                "service port with defaults",
                json!({"ports": [{"port": 80, "targetPort": 20001}]}),
                json!({"ports": [{"port": 80, "targetPort": 20001, "protocol": "TCP", "nodePort": 31000}]}),
            ),
            (
                "a sidecar of somebody else before ours",
                json!({"containers": [{"name": "agent", "image": "a"}]}),
                json!({"containers": [{"name": "mesh", "image": "m"}, {"name": "agent", "image": "a", "tty": false}]}),
            ),
            (
                "two protocols on one port",
                json!({"ports": [{"port": 53, "protocol": "UDP", "name": "u"}]}),
                json!({"ports": [{"port": 53, "protocol": "TCP", "name": "t"}, {"port": 53, "protocol": "UDP", "name": "u"}]}),
            ),
            (
                "atomic list",
                json!({"args": ["a", "b"]}),
                json!({"args": ["a", "b"]}),
            ),
            (
                "list of objects by position",
                json!({"rules": [{"verbs": ["get"]}]}),
                json!({"rules": [{"verbs": ["get"], "apiGroups": [""]}]}),
            ),
        ] {
            assert!(is_subset(&desired, &actual), "{what}");
        }
    }

    #[test]
    fn not_contained() {
        for (what, desired, actual) in [
            ("other value", json!({"a": 1}), json!({"a": 2})),
            ("absent", json!({"a": 1}), json!({})),
            ("absent below", json!({"a": {"b": "x"}}), json!({"a": {}})),
            ("true is not absent", json!({"a": true}), json!({})),
            ("zero is not one", json!({"replicas": 0}), json!({"replicas": 1})),
            (
                "other quantity",
                json!({"limits": {"cpu": "1"}}),
                json!({"limits": {"cpu": "1m"}}),
            ),
            (
                "text that looks like a quantity",
                json!({"value": "1000m"}),
                json!({"value": "1"}),
            ),
            (
                "int or string",
                json!({"targetPort": "80"}),
                json!({"targetPort": 80}),
            ),
            ("longer list", json!({"args": ["a"]}), json!({"args": ["a", "b"]})),
            ("order", json!({"args": ["a", "b"]}), json!({"args": ["b", "a"]})),
            (
                "missing member",
                json!({"env": [{"name": "A", "value": "1"}]}),
                json!({"env": [{"name": "B"}]}),
            ),
            (
                "changed member",
                json!({"env": [{"name": "A", "value": "1"}]}),
                json!({"env": [{"name": "A", "value": "2"}]}),
            ),
            (
                "other port",
                json!({"ports": [{"port": 80}]}),
                json!({"ports": [{"port": 81}]}),
            ),
            ("object and text", json!({"a": {}}), json!({"a": "b"})),
        ] {
            assert!(!is_subset(&desired, &actual), "{what}");
        }
    }
}
