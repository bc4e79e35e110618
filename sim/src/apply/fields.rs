//! Sets of paths, and their form in `managedFields` (`FieldsV1`).

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use crate::schema::{Form, Type};

/// One step of a path.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Element {
    /// A member of an object.
    Field(String),
    /// An item of a keyed list: its key fields as compact JSON.
    Key(String),
    /// An item of a set: itself as compact JSON.
    Item(String),
}

impl Element {
    fn encode(&self) -> String {
        match self {
            Self::Field(name) => format!("f:{name}"),
            Self::Key(key) => format!("k:{key}"),
            Self::Item(value) => format!("v:{value}"),
        }
    }

    fn decode(text: &str) -> Option<Self> {
        let (kind, rest) = text.split_once(':')?;
        let rest = rest.to_owned();
        match kind {
            "f" => Some(Self::Field(rest)),
            "k" => Some(Self::Key(rest)),
            "v" => Some(Self::Item(rest)),
            _ => None,
        }
    }

    pub(super) fn show(&self) -> String {
        match self {
            Self::Field(name) => format!(".{name}"),
            Self::Key(key) => {
                let fields: Map<String, Value> = serde_json::from_str(key).unwrap_or_default();
                let pairs: Vec<String> = fields
                    .iter()
                    .map(|(name, value)| format!("{name}={value}"))
                    .collect();
                format!("[{}]", pairs.join(","))
            }
            Self::Item(value) => format!("[={value}]"),
        }
    }
}

/// A set of paths: at each node, whether it is in the set itself, and what is below it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Set {
    members: BTreeSet<Element>,
    children: BTreeMap<Element, Set>,
}

impl Set {
    /// Whether no path is in it.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty() && self.children.values().all(Set::is_empty)
    }

    /// Whether this node's child is in the set itself.
    pub fn has(&self, element: &Element) -> bool {
        self.members.contains(element)
    }

    /// What is below a child.
    pub fn below(&self, element: &Element) -> Option<&Set> {
        self.children.get(element)
    }

    /// Adds a path.
    pub fn insert(&mut self, path: &[Element]) {
        match path {
            [] => {}
            [last] => drop(self.members.insert(last.clone())),
            [first, rest @ ..] => self.children.entry(first.clone()).or_default().insert(rest),
        }
    }

    /// All paths of both.
    pub fn union(&self, other: &Self) -> Self {
        let mut all = self.clone();
        all.members.extend(other.members.iter().cloned());
        for (element, set) in &other.children {
            let merged = all
                .children
                .get(element)
                .map_or_else(|| set.clone(), |mine| mine.union(set));
            all.children.insert(element.clone(), merged);
        }
        all
    }

    /// The paths that are not in the other.
    pub fn without(&self, other: &Self) -> Self {
        let members = self.members.difference(&other.members).cloned().collect();
        let children = self.children.iter().filter_map(|(element, set)| {
            let left = match other.children.get(element) {
                Some(theirs) => set.without(theirs),
                None => set.clone(),
            };
            (!left.is_empty()).then(|| (element.clone(), left))
        });
        Self {
            members,
            children: children.collect(),
        }
    }

    /// The paths that are in both.
    pub fn common(&self, other: &Self) -> Self {
        let members = self.members.intersection(&other.members).cloned().collect();
        let children = self.children.iter().filter_map(|(element, set)| {
            let both = set.common(other.children.get(element)?);
            (!both.is_empty()).then(|| (element.clone(), both))
        });
        Self {
            members,
            children: children.collect(),
        }
    }

    /// Drops a member and all below it.
    pub fn forget(&mut self, path: &[&str]) {
        let Some((first, rest)) = path.split_first() else {
            return;
        };
        let element = Element::Field((*first).to_owned());
        if rest.is_empty() {
            self.members.remove(&element);
            self.children.remove(&element);
        } else if let Some(child) = self.children.get_mut(&element) {
            child.forget(rest);
            if child.is_empty() {
                self.children.remove(&element);
            }
        }
    }

    /// Drops a member of the root, but nothing below it.
    pub fn forget_member(&mut self, name: &str) {
        self.members.remove(&Element::Field(name.to_owned()));
    }

    /// With the fields of structs as members wherever something below them is in the set.
    pub fn with_named_fields(&self, shape: Type<'_>) -> Self {
        let mut all = self.clone();
        for (element, set) in &self.children {
            let inner = match element {
                Element::Field(name) => {
                    if shape.declares(name) {
                        all.members.insert(element.clone());
                    }
                    shape.field(name)
                }
                Element::Key(_) | Element::Item(_) => shape.item(),
            };
            all.children.insert(element.clone(), set.with_named_fields(inner));
        }
        all
    }

    /// Every path of a value.
    pub fn of(value: &Value, shape: Type<'_>) -> Self {
        let mut set = Self::default();
        set.add(value, shape);
        set
    }

    fn add(&mut self, value: &Value, shape: Type<'_>) {
        match value {
            Value::Object(fields) => {
                for (name, member) in fields {
                    let element = Element::Field(name.clone());
                    let inner = shape.field(name);
                    let is_leaf = is_leaf(member, inner);
                    if is_leaf || !shape.declares(name) {
                        self.members.insert(element.clone());
                    }
                    if !is_leaf {
                        self.descend(element, member, inner);
                    }
                }
            }
            Value::Array(items) => {
                for item in items {
                    let element = element_of(item, shape);
                    self.members.insert(element.clone());
                    if matches!(shape.form, Form::Keyed(_)) {
                        self.descend(element, item, shape.item());
                    }
                }
            }
            _ => {}
        }
    }

    fn descend(&mut self, element: Element, value: &Value, shape: Type<'_>) {
        let mut inner = Self::default();
        inner.add(value, shape);
        if !inner.is_empty() {
            self.children.insert(element, inner);
        }
    }

    /// As `fieldsV1`.
    pub fn encode(&self) -> Value {
        let mut fields = Map::new();
        for element in &self.members {
            fields.insert(element.encode(), Value::Object(Map::new()));
        }
        for (element, set) in &self.children {
            let mut inner = set.encode();
            if self.members.contains(element) {
                inner["."] = Value::Object(Map::new());
            }
            fields.insert(element.encode(), inner);
        }
        Value::Object(fields)
    }

    /// From `fieldsV1`; what it does not understand is left out.
    pub fn decode(value: &Value) -> Self {
        let mut set = Self::default();
        for (name, inner) in value.as_object().into_iter().flatten() {
            let Some(element) = Element::decode(name) else {
                continue;
            };
            let below = inner.as_object();
            if below.is_none_or(|below| below.is_empty() || below.contains_key(".")) {
                set.members.insert(element.clone());
            }
            let child = Self::decode(inner);
            if !child.is_empty() {
                set.children.insert(element, child);
            }
        }
        set
    }

    /// Every path as text, as in messages.
    pub fn paths(&self) -> Vec<String> {
        let mut paths: Vec<String> = self.members.iter().map(Element::show).collect();
        for (element, set) in &self.children {
            let inner = set.paths();
            paths.extend(inner.iter().map(|path| format!("{}{path}", element.show())));
        }
        paths
    }
}

/// Whether a value is owned as a whole.
pub(super) fn is_leaf(value: &Value, shape: Type<'_>) -> bool {
    match value {
        Value::Object(fields) => shape.form == Form::Atomic || fields.is_empty(),
        Value::Array(_) => !matches!(shape.form, Form::Set | Form::Keyed(_)),
        _ => true,
    }
}

/// How an item is told apart from its siblings.
pub(super) fn element_of(item: &Value, shape: Type<'_>) -> Element {
    match shape.form {
        Form::Keyed(keys) => Element::Key(keys.of(item).to_string()),
        Form::Plain | Form::Atomic | Form::Set => Element::Item(item.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kinds::Registry;

    fn pod() -> Value {
        json!({
            "metadata": {"labels": {"a": "b"}, "finalizers": ["x/y"]},
            "spec": {
                "nodeSelector": {"a": "b"},
                "containers": [{"name": "c", "image": "i", "args": ["1"], "ports": [{"containerPort": 80}], "resources": {}}],
            },
        })
    }

    fn with_pod<T>(use_it: impl FnOnce(Type<'_>) -> T) -> T {
        let registry = Registry::flotilla();
        use_it(Type::of(registry.get(registry.by_kind("v1", "Pod").unwrap())))
    }

    #[test]
    fn paths_of_an_object_and_back() {
        let set = with_pod(|shape| Set::of(&pod(), shape));
        let expected = json!({
            "f:metadata": {"f:labels": {"f:a": {}}, "f:finalizers": {"v:\"x/y\"": {}}},
            "f:spec": {
                "f:nodeSelector": {},
                "f:containers": {"k:{\"name\":\"c\"}": {
                    ".": {}, "f:name": {}, "f:image": {}, "f:args": {}, "f:resources": {},
                    "f:ports": {"k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {".": {}, "f:containerPort": {}}},
                }},
            },
        });
        assert_eq!(set.encode(), expected);
        assert_eq!(Set::decode(&expected), set);
    }

    #[test]
    fn arithmetic() {
        let set = with_pod(|shape| Set::of(&pod(), shape));
        let less = with_pod(|shape| Set::of(&json!({"metadata": {"labels": {"a": "b"}}}), shape));
        assert_eq!(set.common(&less), less);
        assert_eq!(set.without(&less).union(&less), set);
        assert!(less.without(&set).is_empty());
        assert_eq!(less.paths(), [".metadata.labels.a"]);
        let named = with_pod(|shape| less.with_named_fields(shape));
        assert_eq!(
            named.encode(),
            json!({"f:metadata": {".": {}, "f:labels": {".": {}, "f:a": {}}}})
        );
    }
}
