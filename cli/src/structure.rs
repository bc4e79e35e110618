//! Structural schemas: types, bounds, required and unknown fields, list keys.
//!
//! A general JSON Schema library would miss what the API server adds (unknown fields, list maps, int-or-string) and say
//! the rest in other words than the ones users search for.

use regex::Regex;
use serde_json::{Map, Value};
use std::collections::BTreeSet;

/// Adds everything that is wrong with `object` under `schema`, a definition's `openAPIV3Schema`, to `problems`.
pub fn check(object: &Value, schema: &Value, problems: &mut Vec<String>) {
    // `metadata` is the API server's own; a status that is sent along is dropped by it.
    let mut object = object.clone();
    if let Some(map) = object.as_object_mut() {
        for name in ["apiVersion", "kind", "metadata", "status"] {
            map.remove(name);
        }
    }
    visit("", &object, schema, problems);
}

fn visit(path: &str, value: &Value, schema: &Value, problems: &mut Vec<String>) {
    let start = problems.len();
    match (schema.get("type").and_then(Value::as_str), value) {
        (Some("object"), Value::Object(map)) => object(path, map, schema, problems),
        (Some("array"), Value::Array(list)) => array(path, list, schema, problems),
        (Some("string"), Value::String(text)) => string(path, text, schema, problems),
        (Some("integer"), Value::Number(number)) if number.is_i64() || number.is_u64() => {
            integer(path, number.as_i64().unwrap_or(i64::MAX), schema, problems);
        }
        (Some("boolean"), Value::Bool(_)) => {}
        (None, Value::Number(number)) if flag(schema, "x-kubernetes-int-or-string") && number.is_i64() => {
            integer(path, number.as_i64().unwrap_or(i64::MAX), schema, problems);
        }
        (None, Value::String(text)) if flag(schema, "x-kubernetes-int-or-string") => {
            string(path, text, schema, problems)
        }
        (expected, found) => {
            let found = match found {
                Value::Null => "null",
                Value::Bool(_) => "boolean",
                Value::Number(number) if number.is_f64() => "number",
                Value::Number(_) => "integer",
                Value::String(_) => "string",
                Value::Array(_) => "array",
                Value::Object(_) => "object",
            };
            let expected = expected.unwrap_or("integer or string");
            problems.push(format!(
                "{path}: Invalid value: \"{found}\": {path} in body must be of type {expected}"
            ));
        }
    }
    if problems.len() == start
        && let Some(values) = schema.get("enum").and_then(Value::as_array)
        && !values.contains(value)
    {
        let known: Vec<String> = values.iter().map(ToString::to_string).collect();
        problems.push(format!(
            "{path}: Unsupported value: {value}: supported values: {}",
            known.join(", ")
        ));
    }
}

fn object(path: &str, map: &Map<String, Value>, schema: &Value, problems: &mut Vec<String>) {
    let at = |name: &str| {
        if path.is_empty() {
            name.to_owned()
        } else {
            format!("{path}.{name}")
        }
    };
    for name in schema
        .get("required")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
    {
        if map.get(name).is_none_or(Value::is_null) {
            problems.push(format!("{}: Required value", at(name)));
        }
    }
    if let Some(most) = number(schema, "maxProperties")
        && map.len() as i64 > most
    {
        problems.push(format!(
            "{path}: Too many: {}: must have at most {most} items",
            map.len()
        ));
    }
    let properties = schema.get("properties").and_then(Value::as_object);
    for (name, value) in map {
        match properties
            .and_then(|properties| properties.get(name))
            .or_else(|| schema.get("additionalProperties"))
        {
            // The API server drops a null that the schema does not allow.
            Some(_) if value.is_null() => {}
            Some(field) => visit(&at(name), value, field, problems),
            None if flag(schema, "x-kubernetes-preserve-unknown-fields") => {}
            None => problems.push(format!("unknown field \"{}\"", at(name))),
        }
    }
}

fn array(path: &str, list: &[Value], schema: &Value, problems: &mut Vec<String>) {
    let count = list.len() as i64;
    if let Some(least) = number(schema, "minItems").filter(|least| count < *least) {
        problems.push(format!(
            "{path}: Invalid value: {count}: {path} in body should have at least {least} items"
        ));
    }
    if let Some(most) = number(schema, "maxItems").filter(|most| count > *most) {
        problems.push(format!(
            "{path}: Too many: {count}: must have at most {most} items"
        ));
    }
    let keys: Vec<&str> = schema
        .get("x-kubernetes-list-map-keys")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let mut seen = BTreeSet::new();
    for (index, value) in list.iter().enumerate() {
        if let Some(items) = schema.get("items") {
            visit(&format!("{path}[{index}]"), value, items, problems);
        }
        let key: Map<String, Value> = keys
            .iter()
            .filter_map(|key| Some(((*key).to_owned(), value.get(*key)?.clone())))
            .collect();
        if !key.is_empty() && !seen.insert(Value::Object(key.clone()).to_string()) {
            problems.push(format!(
                "{path}[{index}]: Duplicate value: {}",
                Value::Object(key)
            ));
        }
    }
}

fn string(path: &str, text: &str, schema: &Value, problems: &mut Vec<String>) {
    let count = text.chars().count() as i64;
    if let Some(least) = number(schema, "minLength").filter(|least| count < *least) {
        problems.push(format!(
            "{path}: Invalid value: {text:?}: {path} in body should be at least {least} chars long"
        ));
    }
    if let Some(most) = number(schema, "maxLength").filter(|most| count > *most) {
        problems.push(format!(
            "{path}: Too long: may not be more than {most} characters"
        ));
    }
    if let Some(pattern) = schema.get("pattern").and_then(Value::as_str)
        && Regex::new(pattern).is_ok_and(|pattern| !pattern.is_match(text))
    {
        problems.push(format!(
            "{path}: Invalid value: {text:?}: {path} in body should match '{pattern}'"
        ));
    }
}

fn integer(path: &str, value: i64, schema: &Value, problems: &mut Vec<String>) {
    if let Some(least) = number(schema, "minimum").filter(|least| value < *least) {
        problems.push(format!(
            "{path}: Invalid value: {value}: {path} in body should be greater than or equal to {least}"
        ));
    }
    if let Some(most) = number(schema, "maximum").filter(|most| value > *most) {
        problems.push(format!(
            "{path}: Invalid value: {value}: {path} in body should be less than or equal to {most}"
        ));
    }
}

fn number(schema: &Value, key: &str) -> Option<i64> {
    schema.get(key).and_then(Value::as_i64)
}

fn flag(schema: &Value, key: &str) -> bool {
    schema.get(key).and_then(Value::as_bool).unwrap_or(false)
}
