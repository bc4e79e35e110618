//! What differs between two versions of an object.

use serde_json::{Map, Value};

use super::fields::{Element, Set, element_of, is_leaf};
use crate::schema::Type;

/// Paths by what happened to them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// There now, not before.
    pub added: Set,
    /// There before, not now.
    pub removed: Set,
    /// Another value.
    pub modified: Set,
}

impl Difference {
    /// Compares.
    pub fn between(old: &Value, new: &Value, shape: Type<'_>) -> Self {
        let mut difference = Self::default();
        difference.walk(&mut Vec::new(), Some(old), Some(new), shape);
        difference
    }

    /// Whether nothing differs.
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.removed.is_empty() && self.modified.is_empty()
    }

    fn walk(&mut self, path: &mut Vec<Element>, old: Option<&Value>, new: Option<&Value>, shape: Type<'_>) {
        if old == new {
            return;
        }
        let leaf = |value: Option<&Value>| value.is_none_or(|value| is_leaf(value, shape));
        // Null is as good as an empty map or list.
        let same_kind = match (old, new) {
            (Some(old), Some(new)) if !old.is_null() && !new.is_null() => {
                old.is_object() == new.is_object() && old.is_array() == new.is_array()
            }
            _ => true,
        };
        if !same_kind || (leaf(old) && leaf(new)) {
            match (old, new) {
                (None, _) => self.added.insert(path),
                (_, None) => self.removed.insert(path),
                _ => self.modified.insert(path),
            }
            return;
        }
        if old.is_none() {
            self.added.insert(path);
        }
        if new.is_none() {
            self.removed.insert(path);
        }
        if [old, new].into_iter().flatten().any(Value::is_object) {
            let (old, new) = (old.and_then(Value::as_object), new.and_then(Value::as_object));
            let mut names: Vec<&String> = [old, new].into_iter().flatten().flat_map(Map::keys).collect();
            names.sort();
            names.dedup();
            for name in names {
                let old = old.and_then(|fields| fields.get(name));
                let new = new.and_then(|fields| fields.get(name));
                if old != new {
                    path.push(Element::Field(name.clone()));
                    self.walk(path, old, new, shape.field(name));
                    path.pop();
                }
            }
            return;
        }
        let (old, new) = (items(old, shape), items(new, shape));
        let inner = shape.item();
        for (element, item) in &old {
            path.push(element.clone());
            self.walk(path, Some(item), find(&new, element), inner);
            path.pop();
        }
        for (element, item) in &new {
            if find(&old, element).is_none() {
                path.push(element.clone());
                self.walk(path, None, Some(item), inner);
                path.pop();
            }
        }
    }
}

fn items<'a>(value: Option<&'a Value>, shape: Type<'_>) -> Vec<(Element, &'a Value)> {
    let items = value.and_then(Value::as_array).into_iter().flatten();
    items.map(|item| (element_of(item, shape), item)).collect()
}

fn find<'a>(items: &[(Element, &'a Value)], element: &Element) -> Option<&'a Value> {
    let found = items.iter().find(|(other, _)| other == element);
    found.map(|(_, item)| *item)
}
