//! `metadata.managedFields`: who owns which fields, after each kind of write.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::compare::Difference;
use super::fields::Set;
use super::merge::{merge, remove};
use crate::schema::Type;

/// Who writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Writer {
    /// The field manager.
    pub manager: String,
    /// `apiVersion` of the body.
    pub api_version: String,
    /// `status`, `scale` or "".
    pub subresource: String,
}

/// One entry.
#[derive(Clone, Debug, PartialEq)]
struct Entry {
    writer: Writer,
    is_apply: bool,
    time: String,
    set: Set,
}

/// All entries of an object.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Managed(Vec<Entry>);

/// Fields of others that an apply without `force` would change: manager, operation and paths.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// Whose.
    pub manager: String,
    /// Since when.
    pub time: String,
    /// `apiVersion` of theirs.
    pub api_version: String,
    /// Which.
    pub paths: Vec<String>,
}

const SERVER_SET: [&str; 8] = [
    "name",
    "namespace",
    "creationTimestamp",
    "selfLink",
    "uid",
    "generation",
    "managedFields",
    "resourceVersion",
];

/// Without what the server sets and what a write to this subresource cannot change.
fn stripped(mut set: Set, reset: &[&str]) -> Set {
    for name in ["apiVersion", "kind"] {
        set.forget(&[name]);
    }
    set.forget_member("metadata");
    for name in SERVER_SET {
        set.forget(&["metadata", name]);
    }
    for path in reset {
        set.forget(&path.split('.').collect::<Vec<_>>());
    }
    set
}

impl Managed {
    /// From an object.
    pub fn of(object: &Value) -> Self {
        let entries = object
            .pointer("/metadata/managedFields")
            .and_then(Value::as_array);
        let decode = |entry: &Value| {
            let text = |name: &str| {
                entry
                    .get(name)
                    .and_then(Value::as_str)
                    .unwrap_or_default()
                    .to_owned()
            };
            Entry {
                writer: Writer {
                    manager: text("manager"),
                    api_version: text("apiVersion"),
                    subresource: text("subresource"),
                },
                is_apply: text("operation") == "Apply",
                time: text("time"),
                set: Set::decode(entry.get("fieldsV1").unwrap_or(&Value::Null)),
            }
        };
        Self(entries.into_iter().flatten().map(decode).collect())
    }

    /// Writes them into an object.
    pub fn store(&self, object: &mut Value) {
        let mut entries: Vec<&Entry> = self.0.iter().filter(|entry| !entry.set.is_empty()).collect();
        entries.sort_by_key(|&entry| {
            let Writer {
                manager, subresource, ..
            } = &entry.writer;
            (!entry.is_apply, &entry.time, manager, subresource)
        });
        let entries: Vec<Value> = entries
            .iter()
            .map(|entry| {
                let mut value = json!({
                    "manager": entry.writer.manager, "operation": if entry.is_apply { "Apply" } else { "Update" },
                    "apiVersion": entry.writer.api_version, "time": entry.time, "fieldsType": "FieldsV1",
                    "fieldsV1": entry.set.encode(),
                });
                if !entry.writer.subresource.is_empty() {
                    value["subresource"] = json!(entry.writer.subresource);
                }
                value
            })
            .collect();
        let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) else {
            return;
        };
        if entries.is_empty() {
            metadata.remove("managedFields");
        } else {
            metadata.insert("managedFields".to_owned(), Value::Array(entries));
        }
    }

    fn entry(&mut self, writer: &Writer, is_apply: bool) -> &mut Entry {
        let found = self
            .0
            .iter()
            .position(|entry| entry.is_apply == is_apply && entry.writer == *writer);
        let index = found.unwrap_or_else(|| {
            self.0.push(Entry {
                writer: writer.clone(),
                is_apply,
                time: String::new(),
                set: Set::default(),
            });
            self.0.len() - 1
        });
        &mut self.0[index]
    }

    /// Takes what changed from everybody else.
    fn take(&mut self, writer: &Writer, is_apply: bool, difference: &Difference) {
        let changed = difference.added.union(&difference.modified);
        for entry in &mut self.0 {
            if entry.is_apply == is_apply && entry.writer == *writer {
                continue;
            }
            entry.set = entry.set.without(&changed).without(&difference.removed);
        }
    }

    /// After a write that is no apply: who wrote a field owns it, alone if its value changed.
    pub fn update(
        mut self,
        (live, new): (&Value, &Value),
        writer: &Writer,
        reset: &[&str],
        shape: Type<'_>,
        now: Timestamp,
    ) -> Self {
        let difference = Difference::between(live, new, shape);
        let owned = stripped(difference.added.union(&difference.modified), reset);
        self.take(writer, false, &difference);
        let entry = self.entry(writer, false);
        let set = entry.set.without(&difference.removed).union(&owned);
        if set != entry.set || !owned.is_empty() {
            entry.time = time(now);
        }
        entry.set = set;
        self
    }

    /// Without owners of this field.
    pub fn disowned(mut self, path: &[&str]) -> Self {
        for entry in &mut self.0 {
            entry.set.forget(path);
        }
        self
    }

    /// The object after an apply, before defaults, and the entries that go with it.
    ///
    /// # Errors
    /// The conflicts, when `force` is not set.
    pub fn apply(
        mut self,
        (live, config): (&Value, &Value),
        (writer, force): (&Writer, bool),
        reset: &[&str],
        shape: Type<'_>,
        now: Timestamp,
    ) -> Result<(Value, Self), Vec<Conflict>> {
        let live = bare(live);
        let config = bare(config);
        let applied = stripped(Set::of(&config, shape), reset);
        let entry = self.entry(writer, true);
        let last = std::mem::replace(&mut entry.set, applied.clone());
        if last != applied || entry.time.is_empty() {
            entry.time = time(now);
        }
        let merged = merge(&live, &config, shape);
        let all = self
            .0
            .iter()
            .fold(Set::default(), |all, entry| all.union(&entry.set));
        let mut unwanted = last
            .with_named_fields(shape)
            .without(&all.with_named_fields(shape));
        // There is always a name in it.
        unwanted.forget_member("metadata");
        let merged = if unwanted.is_empty() {
            merged
        } else {
            remove(&merged, &unwanted, shape)
        };
        let difference = Difference::between(&live, &merged, shape);
        let changed = difference.added.union(&difference.modified);
        let conflicts: Vec<Conflict> = self
            .0
            .iter()
            .filter(|entry| !(entry.is_apply && entry.writer == *writer))
            .filter_map(|entry| {
                let paths = stripped(entry.set.common(&changed), reset).paths();
                (!paths.is_empty()).then(|| Conflict {
                    manager: entry.writer.manager.clone(),
                    time: entry.time.clone(),
                    api_version: entry.writer.api_version.clone(),
                    paths,
                })
            })
            .collect();
        if !conflicts.is_empty() && !force {
            return Err(conflicts);
        }
        self.take(writer, true, &difference);
        Ok((merged, self))
    }
}

fn time(now: Timestamp) -> String {
    crate::cluster::seconds(now)
}

/// An object without its entries.
fn bare(object: &Value) -> Value {
    let mut object = object.clone();
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("managedFields");
    }
    object
}

/// Whether two objects differ in nothing but when fields were written.
pub fn is_same(a: &Value, b: &Value) -> bool {
    members_without(a, &["metadata"]).eq(members_without(b, &["metadata"]))
        && members_without(&a["metadata"], &["managedFields"])
            .eq(members_without(&b["metadata"], &["managedFields"]))
        && timeless(a) == timeless(b)
}

/// The members of an object but some.
pub fn members_without<'a>(
    object: &'a Value,
    names: &'a [&str],
) -> impl Iterator<Item = (&'a String, &'a Value)> {
    let members = object.as_object().into_iter().flatten();
    members.filter(|(name, _)| !names.contains(&name.as_str()))
}

/// The entries without their times, in an order of their own.
fn timeless(object: &Value) -> Vec<String> {
    let entries = object["metadata"]["managedFields"].as_array();
    let entries = entries.into_iter().flatten().map(|entry| {
        let members: Map<String, Value> = members_without(entry, &["time"])
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        Value::Object(members).to_string()
    });
    let mut entries: Vec<String> = entries.collect();
    entries.sort();
    entries
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::Registry;

    fn writer(manager: &str) -> Writer {
        Writer {
            manager: manager.into(),
            api_version: "v1".into(),
            subresource: String::new(),
        }
    }

    fn with_map<T>(use_it: impl FnOnce(Type<'_>) -> T) -> T {
        let registry = Registry::flotilla();
        use_it(Type::of(
            registry.get(registry.by_kind("v1", "ConfigMap").unwrap()),
        ))
    }

    fn map(data: Value) -> Value {
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m"}, "data": data})
    }

    fn apply(live: &Value, data: Value, manager: &str, force: bool) -> Result<Value, Vec<Conflict>> {
        with_map(|shape| {
            let managed = Managed::of(live);
            let config = map(data);
            let (mut object, managed) = managed.apply(
                (live, &config),
                (&writer(manager), force),
                &[],
                shape,
                Timestamp::UNIX_EPOCH,
            )?;
            managed.store(&mut object);
            Ok(object)
        })
    }

    #[test]
    fn what_is_applied_no_more_goes_unless_somebody_else_wants_it() {
        let empty = json!({});
        let one = apply(&empty, json!({"a": "1", "b": "1"}), "x", false).unwrap();
        let two = apply(&one, json!({"b": "1", "c": "1"}), "y", false).unwrap();
        let three = apply(&two, json!({"a": "2"}), "x", false).unwrap();
        assert_eq!(three["data"], json!({"a": "2", "b": "1", "c": "1"}));
        let four = apply(&three, json!({"c": "1"}), "y", false).unwrap();
        assert_eq!(four["data"], json!({"a": "2", "c": "1"}));
    }

    #[test]
    fn conflicts_are_refused_or_forced() {
        let one = apply(&json!({}), json!({"a": "1"}), "x", false).unwrap();
        let conflicts = apply(&one, json!({"a": "2"}), "y", false).unwrap_err();
        assert_eq!(conflicts[0].manager, "x");
        assert_eq!(conflicts[0].paths, [".data.a"]);
        let two = apply(&one, json!({"a": "2"}), "y", true).unwrap();
        assert_eq!(two["metadata"]["managedFields"].as_array().unwrap().len(), 1);
        // x applies what it always did, and it is y's now.
        assert!(apply(&two, json!({"a": "1"}), "x", false).is_err());
    }

    #[test]
    fn an_update_takes_over_what_it_changes() {
        let one = apply(&json!({}), json!({"a": "1", "b": "1"}), "x", false).unwrap();
        let mut new = one.clone();
        new["data"]["a"] = json!("3");
        with_map(|shape| {
            let managed =
                Managed::of(&one).update((&one, &new), &writer("edit"), &[], shape, Timestamp::UNIX_EPOCH);
            managed.store(&mut new);
        });
        let conflicts = apply(&new, json!({"a": "1", "b": "1"}), "x", false).unwrap_err();
        assert_eq!(conflicts[0].manager, "edit");
        // x gives a up: it stays, for it belongs to edit.
        let after = apply(&new, json!({"b": "1"}), "x", false).unwrap();
        assert_eq!(after["data"], json!({"a": "3", "b": "1"}));
    }
}
