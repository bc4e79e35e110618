//! The API reference of the book, one page per kind, from the definitions themselves.

use serde_json::Value;
use std::fmt::Write;

/// The page of one definition, as Markdown: what the kind is, its columns, fields and rules.
pub fn page(definition: &Value) -> String {
    let text = |pointer: &str| {
        definition
            .pointer(pointer)
            .and_then(Value::as_str)
            .unwrap_or_default()
    };
    let schema = definition
        .pointer("/spec/versions/0/schema/openAPIV3Schema")
        .unwrap_or(&Value::Null);
    let mut page = format!(
        "# {}\n\n{}\n\n`{}/{}`, short name `{}`, namespaced.\n",
        text("/spec/names/kind"),
        schema
            .get("description")
            .and_then(Value::as_str)
            .unwrap_or_default(),
        text("/spec/group"),
        text("/spec/versions/0/name"),
        text("/spec/names/shortNames/0"),
    );
    let mut rules = Vec::new();
    messages("", schema, &mut rules);
    for (section, title) in [("spec", "Spec"), ("status", "Status")] {
        let Some(part) = schema.pointer(&format!("/properties/{section}")) else {
            continue;
        };
        let _ = write!(
            page,
            "\n## {title}\n\n| field | type | default | allowed | |\n|---|---|---|---|---|\n"
        );
        rows(section, part, &mut page);
    }
    page.push_str("\n## Refused by the API server\n\n| where | message |\n|---|---|\n");
    for (place, message) in rules {
        let place = if place.is_empty() {
            "object".to_owned()
        } else {
            format!("`{place}`")
        };
        let _ = writeln!(page, "| {place} | {} |", cell(&message));
    }
    page
}

/// One row for each field below `path`, in the order of their names.
fn rows(path: &str, schema: &Value, page: &mut String) {
    let required = |name: &str| {
        schema
            .get("required")
            .and_then(Value::as_array)
            .is_some_and(|list| list.iter().any(|entry| entry == name))
    };
    for (name, field) in schema
        .get("properties")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
    {
        let path = format!("{path}.{name}");
        let default = match field.get("default") {
            Some(Value::Object(_)) => String::new(),
            Some(value) => format!("`{value}`"),
            None if required(name) => "required".to_owned(),
            None => String::new(),
        };
        let description = field
            .get("description")
            .and_then(Value::as_str)
            .unwrap_or_default();
        let _ = writeln!(
            page,
            "| `{path}` | {} | {default} | {} | {} |",
            kind(field),
            cell(&allowed(field)),
            cell(description)
        );
        match field.get("items") {
            Some(items) => rows(&format!("{path}[]"), items, page),
            None => rows(&path, field, page),
        }
    }
}

/// The type as a reader of YAML thinks of it.
fn kind(field: &Value) -> String {
    let of = |schema: &Value| match schema.get("type").and_then(Value::as_str) {
        Some(name) => name.to_owned(),
        None if schema.get("x-kubernetes-int-or-string").is_some() => "integer or string".to_owned(),
        None => "any".to_owned(),
    };
    if let Some(items) = field.get("items") {
        format!("list of {}", of(items))
    } else if let Some(values) = field.get("additionalProperties") {
        format!("map of {}", of(values))
    } else if field.get("format").and_then(Value::as_str) == Some("date-time") {
        "time".to_owned()
    } else {
        of(field)
    }
}

/// The values a field takes.
fn allowed(field: &Value) -> String {
    let number = |key: &str| field.get(key).and_then(Value::as_i64);
    if let Some(values) = field.get("enum").and_then(Value::as_array) {
        let values: Vec<&str> = values.iter().filter_map(Value::as_str).collect();
        return values.join(", ");
    }
    let range = |low: Option<i64>, high: Option<i64>, unit: &str| match (low, high) {
        (None | Some(0), Some(high)) if !unit.is_empty() => format!("≤ {high}{unit}"),
        (Some(low), Some(high)) => format!("{low} to {high}{unit}"),
        (None, Some(high)) => format!("≤ {high}{unit}"),
        (Some(low), None) => format!("≥ {low}{unit}"),
        (None, None) => String::new(),
    };
    match field.get("type").and_then(Value::as_str) {
        Some("integer") => range(number("minimum"), number("maximum"), ""),
        Some("string") => range(number("minLength"), number("maxLength"), " characters"),
        Some("array") => range(number("minItems"), number("maxItems"), " entries"),
        Some("object") => range(None, number("maxProperties"), " entries"),
        _ => String::new(),
    }
}

/// Every rule's message with the place it holds at.
fn messages(path: &str, schema: &Value, found: &mut Vec<(String, String)>) {
    for rule in schema
        .get("x-kubernetes-validations")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        let message = rule.get("message").and_then(Value::as_str).unwrap_or_default();
        found.push((path.to_owned(), message.to_owned()));
    }
    for (name, field) in schema
        .get("properties")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
    {
        let path = if path.is_empty() {
            name.clone()
        } else {
            format!("{path}.{name}")
        };
        messages(&path, field, found);
    }
    if let Some(items) = schema.get("items") {
        messages(&format!("{path}[]"), items, found);
    }
}

fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('<', "&lt;").replace('\n', " ")
}
