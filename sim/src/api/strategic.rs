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
            let is_same = |one: &Value, other: &Value| key.is_some_and(|key| one.get(key) == other.get(key));
            let mut patched = Vec::new();
            for item in new {
                let found = all.iter().position(|other| is_same(other, item));
                match (found, directive(item).as_deref()) {
                    (Some(index), Some("delete")) => drop(all.remove(index)),
                    (None, Some("delete")) => {}
                    (Some(index), _) => patched.push(merge(&all.remove(index), item, shape.item())),
                    (None, _) => patched.push(without_directives(item)),
                }
            }
            woven(all, patched, old, is_same)
        }
        Form::Set => {
            let left = old.iter().filter(|item| !new.contains(item));
            woven(left.cloned().collect(), new.to_vec(), old, |one, other| {
                one == other
            })
        }
        Form::Plain | Form::Atomic => new.to_vec(),
    }
}

/// The items of a patch in their order, and between them those that only the object has: each before the first one after the
/// last of its like that comes later in the object.
fn woven(
    left: Vec<Value>,
    patched: Vec<Value>,
    old: &[Value],
    is_same: impl Fn(&Value, &Value) -> bool,
) -> Vec<Value> {
    let place = |item: &Value| old.iter().position(|other| is_same(other, item));
    let mut all = patched;
    let mut from = 0;
    for item in left {
        let own = place(&item);
        let later = |other: &Value| place(other).is_some_and(|place| Some(place) > own);
        let at = all.iter().skip(from).position(later);
        let at = at.map_or(all.len(), |at| from + at);
        all.insert(at, item);
        from = at + 1;
    }
    all
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

    #[test]
    fn what_only_the_object_has_stays_between_its_neighbours() {
        let place = |left: Value, patched: Value, old: Value| {
            let list = |value: Value| value.as_array().cloned().unwrap();
            Value::Array(woven(list(left), list(patched), &list(old), |one, other| {
                one == other
            }))
        };
        assert_eq!(place(json!(["p"]), json!(["x"]), json!(["p"])), json!(["x", "p"]));
        assert_eq!(
            place(json!(["b"]), json!(["a", "c"]), json!(["a", "b", "c"])),
            json!(["a", "b", "c"])
        );
        assert_eq!(
            place(json!(["a"]), json!(["c", "b"]), json!(["a", "b", "c"])),
            json!(["a", "c", "b"])
        );
    }
}
