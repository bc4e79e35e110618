//! Strategic merge patches of built-in kinds: as merge patches, except that keyed lists are merged by their first key
//! and sets are united; `$patch: delete` and `$patch: replace`, `$deleteFromPrimitiveList` and
//! `$setElementOrder` (which only orders, and is left out of account).

use serde_json::{Map, Value};

use crate::schema::{Form, Type};

/// `object` after the patch.
pub fn merge(object: &Value, patch: &Value, shape: Type<'_>) -> Value {
    let (Value::Object(old), Value::Object(new)) = (object, patch) else {
        return without_directives(patch);
    };
    if new.get("$patch").and_then(Value::as_str) == Some("replace") {
        return without_directives(patch);
    }
    let mut all = old.clone();
    for (name, member) in new {
        if let Some(list) = name.strip_prefix("$deleteFromPrimitiveList/") {
            let gone = member.as_array().cloned().unwrap_or_default();
            if let Some(items) = all.get_mut(list).and_then(Value::as_array_mut) {
                items.retain(|item| !gone.contains(item));
            }
            continue;
        }
        if name.starts_with('$') {
            continue;
        }
        let inner = shape.field(name);
        match (old.get(name), member) {
            (_, Value::Null) => drop(all.remove(name)),
            (Some(Value::Array(before)), Value::Array(items)) => {
                all.insert(name.clone(), Value::Array(lists(before, items, inner)));
            }
            (None, Value::Array(items)) => {
                all.insert(name.clone(), Value::Array(lists(&[], items, inner)));
            }
            (Some(before), _) => drop(all.insert(name.clone(), merge(before, member, inner))),
            (None, _) => {
                let made = merge(&Value::Object(Map::new()), member, inner);
                all.insert(
                    name.clone(),
                    if member.is_object() { made } else { member.clone() },
                );
            }
        }
    }
    Value::Object(all)
}

fn lists(old: &[Value], new: &[Value], shape: Type<'_>) -> Vec<Value> {
    match shape.form {
        Form::Keyed(keys) => {
            let key = keys.first();
            let mut all = old.to_vec();
            let directive = |item: &Value| item.get("$patch").and_then(Value::as_str).map(str::to_owned);
            if new
                .iter()
                .any(|item| directive(item).as_deref() == Some("replace"))
            {
                let kept = new.iter().filter(|item| directive(item).is_none());
                return kept.map(without_directives).collect();
            }
            for item in new {
                let found = all
                    .iter()
                    .position(|other| key.is_some_and(|key| other.get(key) == item.get(key)));
                match (found, directive(item).as_deref()) {
                    (Some(index), Some("delete")) => drop(all.remove(index)),
                    (None, Some("delete")) => {}
                    (Some(index), _) => all[index] = merge(&all[index], item, shape.item()),
                    (None, _) => all.push(without_directives(item)),
                }
            }
            all
        }
        Form::Set => {
            let mut all = old.to_vec();
            all.extend(new.iter().filter(|item| !old.contains(item)).cloned());
            all
        }
        Form::Plain | Form::Atomic => new.to_vec(),
    }
}

fn without_directives(value: &Value) -> Value {
    match value {
        Value::Object(fields) => fields
            .iter()
            .filter(|(name, member)| !name.starts_with('$') && !member.is_null())
            .map(|(name, member)| (name.clone(), without_directives(member)))
            .collect::<Map<_, _>>()
            .into(),
        Value::Array(items) => items.iter().map(without_directives).collect(),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kinds::Registry;

    #[test]
    fn containers_are_merged_by_name() {
        let registry = Registry::flotilla();
        let shape = Type::of(registry.get(registry.by_kind("v1", "Pod").unwrap()));
        let pod = json!({"spec": {"containers": [{"name": "a", "image": "1"}, {"name": "b"}]}});
        let patch = json!({"spec": {"containers": [{"name": "a", "image": "2"}, {"name": "b", "$patch": "delete"}, {"name": "c"}]}});
        assert_eq!(
            merge(&pod, &patch, shape),
            json!({"spec": {"containers": [{"name": "a", "image": "2"}, {"name": "c"}]}})
        );
    }
}
