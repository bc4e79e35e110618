//! Custom kinds: pruning, defaults, structural validation and CEL rules, as the generated definitions say.

use std::collections::BTreeSet;
use std::sync::Arc;

use kube_cel::{CompiledSchema, Validator, compile_schema};
use regex::Regex;
use serde_json::{Map, Value, json};

use crate::api::failure::Cause;

/// The schema of a custom kind.
#[derive(Clone, Debug)]
pub struct Custom {
    schema: Value,
    rules: Arc<CompiledSchema>,
    /// The rules of `status` alone, if there are any: what was sound and did not change need not be asked again.
    status_rules: Option<Arc<CompiledSchema>>,
    patterns: Arc<std::collections::BTreeMap<String, Regex>>,
}

thread_local! {
    // Registering its functions takes longer than most checks.
    static VALIDATOR: Validator = Validator::new();
}

impl Custom {
    /// From `openAPIV3Schema`.
    pub fn new(schema: Value) -> Self {
        let mut patterns = std::collections::BTreeMap::new();
        collect_patterns(&schema, &mut patterns);
        Self {
            rules: Arc::new(compile_schema(&schema)),
            status_rules: only_status(&schema)
                .filter(has_rules)
                .map(|status| Arc::new(compile_schema(&status))),
            patterns: Arc::new(patterns),
            schema,
        }
    }

    /// The schema.
    pub fn schema(&self) -> &Value {
        &self.schema
    }

    /// Drops what the schema does not know and fills its defaults in.
    pub fn normalise(&self, object: &mut Value) {
        let Some(fields) = object.as_object_mut() else {
            return;
        };
        let kept: Vec<(String, Value)> = ["apiVersion", "kind", "metadata"]
            .iter()
            .filter_map(|name| fields.remove_entry(*name))
            .collect();
        normalise(object, &self.schema, true);
        if let Some(fields) = object.as_object_mut() {
            fields.extend(kept);
        }
    }

    /// What an apply has left as null and may not be: it is not pruned as what clients send is.
    pub fn emptied(&self, object: &Value) -> Vec<Cause> {
        let mut causes = Vec::new();
        for part in ["spec", "status"] {
            let schema = member(&self.schema, part);
            if let (Some(value), Some(schema)) = (object.get(part), schema) {
                emptied(part, value, schema, &mut causes);
            }
        }
        causes
    }

    /// What is wrong with an object that is new or replaces `old`. Rules run only on a sound structure, as on the server.
    pub fn check(&self, object: &Value, old: Option<&Value>) -> Vec<Cause> {
        let mut causes = Vec::new();
        self.visit("", object, &self.schema, &mut causes);
        if !causes.is_empty() {
            return causes;
        }
        let is_same_spec = old.is_some_and(|old| old.get("spec") == object.get("spec"));
        let rules = if is_same_spec {
            self.status_rules.as_ref()
        } else {
            Some(&self.rules)
        };
        let Some(rules) = rules else { return causes };
        let checked = VALIDATOR.with(|validator| validator.validate_compiled(rules, object, old));
        let broken = checked.err().map(|errors| errors.into_vec()).unwrap_or_default();
        broken
            .into_iter()
            .map(|error| Cause {
                field: if error.field_path.is_empty() {
                    "<nil>".to_owned()
                } else {
                    error.field_path.clone()
                },
                reason: "FieldValueInvalid",
                message: format!("Invalid value: {}", error.message),
            })
            .collect()
    }

    fn visit(&self, path: &str, value: &Value, schema: &Value, causes: &mut Vec<Cause>) {
        let before = causes.len();
        match (schema.get("type").and_then(Value::as_str), value) {
            (Some("object"), Value::Object(map)) => self.object(path, map, schema, causes),
            (Some("array"), Value::Array(list)) => self.array(path, list, schema, causes),
            (Some("string"), Value::String(text)) => self.string(path, text, schema, causes),
            (Some("integer"), Value::Number(number)) if !number.is_f64() => {
                bounds(path, value, schema, causes);
            }
            (Some("number"), Value::Number(_)) => bounds(path, value, schema, causes),
            (Some("boolean"), Value::Bool(_)) => {}
            (None, Value::Number(number)) if int_or_string(schema) && !number.is_f64() => {
                bounds(path, value, schema, causes);
            }
            (None, Value::String(text)) if int_or_string(schema) => {
                self.string(path, text, schema, causes);
            }
            (None, _) if !int_or_string(schema) => {}
            (expected, found) => causes.push(mistyped(path, expected.unwrap_or("integer,string"), found)),
        }
        if causes.len() == before
            && let Some(values) = schema.get("enum").and_then(Value::as_array)
            && !values.contains(value)
        {
            let known: Vec<String> = values.iter().map(ToString::to_string).collect();
            causes.push(Cause::unsupported(path, value, &known.join(", ")));
        }
    }

    fn object(&self, path: &str, map: &Map<String, Value>, schema: &Value, causes: &mut Vec<Cause>) {
        let required = schema.get("required").and_then(Value::as_array);
        for name in required.into_iter().flatten().filter_map(Value::as_str) {
            if !map.contains_key(name) {
                causes.push(Cause::required(join(path, name), ""));
            }
        }
        count(
            path,
            map.len(),
            schema,
            ("minProperties", "maxProperties"),
            causes,
        );
        for (name, value) in map {
            // They are every kind's, and checked elsewhere.
            if path.is_empty() && matches!(name.as_str(), "apiVersion" | "kind" | "metadata") {
                continue;
            }
            if let Some(field) = member(schema, name) {
                self.visit(&join(path, name), value, field, causes);
            }
        }
    }

    fn array(&self, path: &str, list: &[Value], schema: &Value, causes: &mut Vec<Cause>) {
        count(path, list.len(), schema, ("minItems", "maxItems"), causes);
        let form = super::Type::of_schema(schema).form;
        let mut seen = BTreeSet::new();
        for (index, value) in list.iter().enumerate() {
            let at = format!("{path}[{index}]");
            if let Some(items) = schema.get("items") {
                self.visit(&at, value, items, causes);
            }
            let identity = match form {
                super::Form::Keyed(keys) => keys.of(value),
                super::Form::Set => value.clone(),
                super::Form::Plain | super::Form::Atomic => continue,
            };
            if !seen.insert(identity.to_string()) {
                causes.push(Cause::duplicate(at, &identity));
            }
        }
    }

    fn string(&self, path: &str, text: &str, schema: &Value, causes: &mut Vec<Cause>) {
        let length = text.chars().count();
        let value = Value::from(text);
        if let Some(least) = schema.get("minLength").and_then(Value::as_u64)
            && (length as u64) < least
        {
            let why = format!("{path} in body should be at least {least} chars long");
            causes.push(Cause::invalid(path, &value, &why));
        }
        if let Some(most) = schema.get("maxLength").and_then(Value::as_u64)
            && (length as u64) > most
        {
            causes.push(Cause {
                field: path.to_owned(),
                reason: "FieldValueTooLong",
                message: format!("Too long: may not be more than {most} bytes"),
            });
        }
        if let Some(pattern) = schema.get("pattern").and_then(Value::as_str)
            && let Some(compiled) = self.patterns.get(pattern)
            && !compiled.is_match(text)
        {
            let why = format!("{path} in body should match '{pattern}'");
            causes.push(Cause::invalid(path, &value, &why));
        }
        if schema.get("format").and_then(Value::as_str) == Some("date-time")
            && text.parse::<jiff::Timestamp>().is_err()
        {
            let why = format!("{path} in body must be of type date-time: {text:?}");
            causes.push(Cause::invalid(path, &value, &why));
        }
    }
}

/// A schema without anything but its status.
fn only_status(schema: &Value) -> Option<Value> {
    let status = schema.get("properties")?.get("status")?;
    Some(json!({"type": "object", "properties": {"status": status}}))
}

fn has_rules(schema: &Value) -> bool {
    match schema {
        Value::Object(fields) => {
            fields.contains_key("x-kubernetes-validations") || fields.values().any(has_rules)
        }
        Value::Array(items) => items.iter().any(has_rules),
        _ => false,
    }
}

/// Nulls where there may be none: what an apply has emptied without taking it away.
fn emptied(path: &str, value: &Value, schema: &Value, causes: &mut Vec<Cause>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let Some(field) = member(schema, name) else {
                    continue;
                };
                let at = join(path, name);
                if value.is_null() && field.get("default").is_none() && !flag(field, "nullable") {
                    let expected = field.get("type").and_then(Value::as_str).unwrap_or_default();
                    causes.push(mistyped(&at, expected, value));
                } else {
                    emptied(&at, value, field, causes);
                }
            }
        }
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                if let Some(schema) = schema.get("items") {
                    emptied(&format!("{path}[{index}]"), item, schema, causes);
                }
            }
        }
        _ => {}
    }
}

fn mistyped(path: &str, expected: &str, found: &Value) -> Cause {
    let name = type_name(found);
    Cause {
        field: path.to_owned(),
        reason: "FieldValueTypeInvalid",
        message: format!("Invalid value: {name:?}: {path} in body must be of type {expected}: {name:?}"),
    }
}

fn collect_patterns(schema: &Value, found: &mut std::collections::BTreeMap<String, Regex>) {
    match schema {
        Value::Object(fields) => {
            if let Some(pattern) = fields.get("pattern").and_then(Value::as_str)
                && !found.contains_key(pattern)
                && let Ok(compiled) = Regex::new(pattern)
            {
                found.insert(pattern.to_owned(), compiled);
            }
            fields.values().for_each(|inner| collect_patterns(inner, found));
        }
        Value::Array(items) => items.iter().for_each(|inner| collect_patterns(inner, found)),
        _ => {}
    }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() {
        name.to_owned()
    } else {
        format!("{path}.{name}")
    }
}

fn flag(schema: &Value, name: &str) -> bool {
    schema.get(name) == Some(&Value::Bool(true))
}

fn int_or_string(schema: &Value) -> bool {
    flag(schema, "x-kubernetes-int-or-string")
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn member<'a>(schema: &'a Value, name: &str) -> Option<&'a Value> {
    let declared = schema
        .get("properties")
        .and_then(|properties| properties.get(name));
    declared.or_else(|| {
        schema
            .get("additionalProperties")
            .filter(|schema| schema.is_object())
    })
}

fn count(path: &str, found: usize, schema: &Value, (least, most): (&str, &str), causes: &mut Vec<Cause>) {
    let found = found as u64;
    if let Some(least) = schema.get(least).and_then(Value::as_u64)
        && found < least
    {
        let why = format!("{path} in body should have at least {least} items");
        causes.push(Cause::invalid(path, &Value::from(found), &why));
    }
    if let Some(most) = schema.get(most).and_then(Value::as_u64)
        && found > most
    {
        causes.push(Cause {
            field: path.to_owned(),
            reason: "FieldValueTooMany",
            message: format!("Too many: {found}: must have at most {most} items"),
        });
    }
}

fn bounds(path: &str, value: &Value, schema: &Value, causes: &mut Vec<Cause>) {
    let number = value.as_f64().unwrap_or_default();
    let limit = |name: &str| schema.get(name).and_then(Value::as_f64);
    if let Some(least) = limit("minimum")
        && (number < least || (number <= least && flag(schema, "exclusiveMinimum")))
    {
        let why = format!("{path} in body should be greater than or equal to {least}");
        causes.push(Cause::invalid(path, value, &why));
    }
    if let Some(most) = limit("maximum")
        && (number > most || (number >= most && flag(schema, "exclusiveMaximum")))
    {
        let why = format!("{path} in body should be less than or equal to {most}");
        causes.push(Cause::invalid(path, value, &why));
    }
    let in_format = match schema.get("format").and_then(Value::as_str) {
        Some("int32") => number.abs() <= f64::from(i32::MAX) + 1.0,
        _ => true,
    };
    if !in_format {
        causes.push(Cause::invalid(
            path,
            value,
            &format!("{path} in body must be of type int32"),
        ));
    }
}

/// Prunes, drops nulls that may not be, and fills defaults in, from the outside in: a default's own members are
/// defaulted as well.
fn normalise(value: &mut Value, schema: &Value, prune: bool) {
    match value {
        Value::Object(fields) => {
            let keep = flag(schema, "x-kubernetes-preserve-unknown-fields");
            if prune && !keep {
                fields.retain(|name, _| member(schema, name).is_some());
            }
            fields.retain(|name, value| {
                !value.is_null() || member(schema, name).is_none_or(|field| flag(field, "nullable"))
            });
            let properties = schema.get("properties").and_then(Value::as_object);
            for (name, field) in properties.into_iter().flatten() {
                if let Some(default) = field.get("default")
                    && !fields.contains_key(name)
                {
                    fields.insert(name.clone(), default.clone());
                }
            }
            for (name, value) in fields.iter_mut() {
                if let Some(field) = member(schema, name) {
                    normalise(value, field, prune);
                }
            }
        }
        Value::Array(items) => {
            if let Some(schema) = schema.get("items") {
                items.iter_mut().for_each(|item| normalise(item, schema, prune));
            }
        }
        _ => {}
    }
}
