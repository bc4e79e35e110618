//! Whether an applied configuration fits its type at all.

use std::collections::BTreeSet;

use serde_json::Value;

use super::fields::{element_of, is_leaf};
use crate::schema::{Form, Type};

/// The first field that the type does not know, or item that is there twice.
pub fn mistake(config: &Value, shape: Type<'_>) -> Option<String> {
    match config {
        Value::Object(fields) if !is_leaf(config, shape) => fields.iter().find_map(|(name, member)| {
            if !shape.allows(name) {
                return Some(format!(".{name}: field not declared in schema"));
            }
            mistake(member, shape.field(name)).map(|inner| format!(".{name}{inner}"))
        }),
        Value::Array(items) if matches!(shape.form, Form::Set | Form::Keyed(_)) => {
            let mut seen = BTreeSet::new();
            items.iter().find_map(|item| {
                let element = element_of(item, shape);
                let at = element.show();
                if !seen.insert(element) {
                    return Some(format!(": duplicate entries for key {at}"));
                }
                mistake(item, shape.item()).map(|inner| format!("{at}{inner}"))
            })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kinds::Registry;

    #[test]
    fn what_does_not_fit_is_told_with_its_place() {
        let registry = Registry::flotilla();
        let of = |version: &str, kind: &str, config: Value| {
            let kind = registry.get(registry.by_kind(version, kind).unwrap());
            mistake(&config, Type::of(kind))
        };
        let pool = |spec: Value| {
            of(
                "flotilla.dev/v1alpha1",
                "AgentPool",
                json!({"metadata": {"name": "a"}, "spec": spec}),
            )
        };
        assert_eq!(
            pool(json!({"agent": {"image": "a", "env": [{"name": "A", "value": "1"}]}})),
            None
        );
        let unknown = pool(json!({"unknown": {}}));
        assert_eq!(
            unknown.as_deref(),
            Some(".spec.unknown: field not declared in schema")
        );
        let ports = json!({"spec": {"ports": [{"port": 80}, {"port": 80, "name": "again"}]}});
        assert_eq!(
            of("v1", "Service", ports).as_deref(),
            Some(".spec.ports: duplicate entries for key [port=80,protocol=\"TCP\"]")
        );
    }
}
