//! The shape of a value, as far as merging and ownership of fields depend on it.

use serde_json::Value;

use super::built_in;
use crate::kinds::Kind;

/// A cursor into the shape of a kind.
#[derive(Clone, Copy, Debug)]
pub struct Type<'a> {
    pub(super) node: Node<'a>,
    /// How the value itself is merged.
    pub form: Form<'a>,
}

/// How a value is merged.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Form<'a> {
    /// Objects field by field, lists as a whole.
    Plain,
    /// As a whole.
    Atomic,
    /// A list of distinct scalars.
    Set,
    /// A list of objects told apart by these fields.
    Keyed(Keys<'a>),
}

/// The key fields of a list.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Keys<'a> {
    /// Of a built-in kind.
    Fixed(&'static [&'static str]),
    /// Of a definition.
    Schema(&'a [Value]),
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Node<'a> {
    /// A struct of a built-in kind by name; "" for one without special fields.
    Struct(&'static str),
    /// A map whose keys are data.
    Map,
    /// A schema of a definition.
    Schema(&'a Value),
    /// The root of a definition's schema: its metadata is that of every object.
    Root(&'a Value),
}

impl<'a> Type<'a> {
    /// The shape of a whole object.
    pub fn of(kind: &'a Kind) -> Self {
        let node = match &kind.custom {
            Some(custom) => Node::Root(custom.schema()),
            None => Node::Struct(built_in::root(&kind.group, &kind.kind)),
        };
        Self {
            node,
            form: Form::Plain,
        }
    }

    pub(super) const fn new(node: Node<'a>, form: Form<'a>) -> Self {
        Self { node, form }
    }

    /// The shape of a member of an object.
    pub fn field(self, name: &str) -> Self {
        match self.node {
            Node::Struct(parent) => built_in::field(parent, name),
            Node::Map => Self::new(Node::Map, Form::Plain),
            Node::Root(_) if name == "metadata" => built_in::field("Object", "metadata"),
            Node::Root(schema) | Node::Schema(schema) => {
                let declared = schema
                    .get("properties")
                    .and_then(|properties| properties.get(name));
                let found = declared.or_else(|| {
                    schema
                        .get("additionalProperties")
                        .filter(|schema| schema.is_object())
                });
                match found {
                    Some(schema) => Self::of_schema(schema),
                    None => Self::new(Node::Map, Form::Plain),
                }
            }
        }
    }

    /// The shape of a list's items.
    pub fn item(self) -> Self {
        match self.node {
            Node::Struct(name) => Self::new(Node::Struct(name), Form::Plain),
            Node::Map => self,
            Node::Root(schema) | Node::Schema(schema) => match schema.get("items") {
                Some(items) => Self::of_schema(items),
                None => Self::new(Node::Map, Form::Plain),
            },
        }
    }

    /// Whether a member is a field of the type, not a key of a map.
    pub fn declares(self, name: &str) -> bool {
        match self.node {
            Node::Struct(_) => true,
            Node::Map => false,
            Node::Root(schema) | Node::Schema(schema) => {
                (matches!(self.node, Node::Root(_)) && matches!(name, "metadata" | "kind" | "apiVersion"))
                    || schema
                        .get("properties")
                        .is_some_and(|properties| properties.get(name).is_some())
            }
        }
    }

    /// Whether there may be a member of this name at all.
    pub fn allows(self, name: &str) -> bool {
        match self.node {
            Node::Struct(_) | Node::Map => true,
            Node::Root(schema) | Node::Schema(schema) => {
                self.declares(name)
                    || schema.get("properties").is_none()
                    || schema.get("additionalProperties").is_some_and(Value::is_object)
                    || schema.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(true))
            }
        }
    }

    pub(super) fn of_schema(schema: &'a Value) -> Self {
        let form = match schema.get("x-kubernetes-list-type").and_then(Value::as_str) {
            Some("set") => Form::Set,
            Some("map") => {
                let keys = schema.get("x-kubernetes-list-map-keys").and_then(Value::as_array);
                Form::Keyed(Keys::Schema(keys.map(Vec::as_slice).unwrap_or_default()))
            }
            Some(_) => Form::Atomic,
            None if schema.get("x-kubernetes-map-type").and_then(Value::as_str) == Some("atomic") => {
                Form::Atomic
            }
            None => Form::Plain,
        };
        Self::new(Node::Schema(schema), form)
    }
}

impl<'a> Keys<'a> {
    /// The first key field: the merge key of strategic merge patches.
    pub fn first(&self) -> Option<&'a str> {
        match self {
            Keys::Fixed(names) => names.first().copied(),
            Keys::Schema(names) => names.first().and_then(Value::as_str),
        }
    }

    /// The key of an item, as an object of its key fields in the order of their names.
    pub fn of(&self, item: &Value) -> Value {
        let pick = |name: &str| {
            let found = item.get(name).filter(|value| !value.is_null());
            // The one key field of the built-in kinds with a default.
            let value = match found {
                None if name == "protocol" => Value::from("TCP"),
                None => return None,
                Some(value) => value.clone(),
            };
            Some((name.to_owned(), value))
        };
        match self {
            Keys::Fixed(names) => names.iter().filter_map(|name| pick(name)).collect(),
            Keys::Schema(names) => names.iter().filter_map(Value::as_str).filter_map(pick).collect(),
        }
    }
}
