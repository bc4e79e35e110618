//! Merging an applied configuration into an object, and taking out what nobody wants any more.

use serde_json::{Map, Value};

use super::fields::{Element, Set, element_of, is_leaf};
use crate::schema::{Form, Type};

/// `object` with everything that `config` says.
pub fn merge(object: &Value, config: &Value, shape: Type<'_>) -> Value {
    match (object, config) {
        (Value::Object(old), Value::Object(new)) if shape.form != Form::Atomic => {
            let mut all = old.clone();
            for (name, member) in new {
                let merged = match old.get(name) {
                    Some(before) => merge(before, member, shape.field(name)),
                    None => member.clone(),
                };
                all.insert(name.clone(), merged);
            }
            Value::Object(all)
        }
        (Value::Array(old), Value::Array(new)) if matches!(shape.form, Form::Set | Form::Keyed(_)) => {
            Value::Array(merge_lists(old, new, shape))
        }
        _ => config.clone(),
    }
}

/// Items keep the order of the configuration; items that only the object has stay between their neighbours.
fn merge_lists(old: &[Value], new: &[Value], shape: Type<'_>) -> Vec<Value> {
    let name =
        |items: &[Value]| -> Vec<Element> { items.iter().map(|item| element_of(item, shape)).collect() };
    let (old_names, new_names) = (name(old), name(new));
    let mut all = Vec::new();
    let (mut left, mut right) = (0, 0);
    while left < old.len() || right < new.len() {
        let (mine, theirs) = (old_names.get(left), new_names.get(right));
        if let (Some(mine), Some(theirs)) = (mine, theirs)
            && mine == theirs
        {
            all.push(merge(&old[left], &new[right], shape.item()));
            left += 1;
            right += 1;
        } else if mine.is_some_and(|mine| !new_names.contains(mine)) {
            all.push(old[left].clone());
            left += 1;
        } else if let Some(theirs) = theirs {
            let before = old_names.iter().position(|name| name == theirs);
            all.push(match before {
                Some(before) => merge(&old[before], &new[right], shape.item()),
                None => new[right].clone(),
            });
            right += 1;
        } else {
            // Taken over already, where the configuration has it.
            left += 1;
        }
    }
    all
}

/// `object` without the paths of a set. What becomes empty by it becomes null.
pub fn remove(object: &Value, paths: &Set, shape: Type<'_>) -> Value {
    match object {
        Value::Object(fields) if !is_leaf(object, shape) => {
            let kept: Map<String, Value> = fields
                .iter()
                .filter_map(|(name, member)| {
                    let element = Element::Field(name.clone());
                    let member = keep(member, &element, paths, shape.field(name))?;
                    Some((name.clone(), member))
                })
                .collect();
            if kept.is_empty() {
                Value::Null
            } else {
                Value::Object(kept)
            }
        }
        Value::Array(items) if !is_leaf(object, shape) => {
            let kept: Vec<Value> = items
                .iter()
                .filter_map(|item| keep(item, &element_of(item, shape), paths, shape.item()))
                .collect();
            if kept.is_empty() {
                Value::Null
            } else {
                Value::Array(kept)
            }
        }
        _ => object.clone(),
    }
}

fn keep(member: &Value, element: &Element, paths: &Set, shape: Type<'_>) -> Option<Value> {
    if paths.has(element) {
        return None;
    }
    match paths.below(element) {
        Some(below) if !below.is_empty() => Some(remove(member, below, shape)),
        _ => Some(member.clone()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kinds::Registry;

    fn merged(object: Value, config: Value) -> Value {
        let registry = Registry::flotilla();
        let kind = registry.get(registry.by_kind("v1", "Pod").unwrap());
        merge(&object, &config, Type::of(kind))
    }

    fn containers(names: &[&str]) -> Value {
        let containers: Vec<Value> = names.iter().map(|name| json!({"name": name})).collect();
        json!({"spec": {"containers": containers}})
    }

    #[test]
    fn keyed_lists_interleave() {
        for (object, config, expected) in [
            (&["a", "b"][..], &["b", "c"][..], &["a", "b", "c"][..]),
            (&["a", "b", "c"], &["c", "a"], &["c", "a", "b"]),
            (&["x", "a"], &["a"], &["x", "a"]),
            (&[], &["a"], &["a"]),
        ] {
            assert_eq!(
                merged(containers(object), containers(config)),
                containers(expected),
                "{object:?} {config:?}"
            );
        }
    }

    #[test]
    fn atomic_values_are_replaced() {
        let object =
            json!({"spec": {"nodeSelector": {"a": "1"}, "containers": [{"name": "a", "args": ["x"]}]}});
        let config =
            json!({"spec": {"nodeSelector": {"b": "2"}, "containers": [{"name": "a", "args": ["y", "z"]}]}});
        assert_eq!(merged(object, config.clone()), config);
    }
}
