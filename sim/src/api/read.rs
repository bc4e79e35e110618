//! Get and list.

use std::sync::Arc;

use serde_json::{Value, json};

use super::Call;
use super::failure::Failure;
use super::request::{Path, Request};
use super::selector::Selector;
use crate::state::State;

/// One object.
///
/// # Errors
/// 404.
pub fn get(state: &State, call: &Call<'_>, name: &str) -> Result<Arc<Value>, Failure> {
    let found = state.store.get(&call.key(name)).cloned();
    found.ok_or_else(|| Failure::not_found(call.kind, name))
}

/// The objects that a request selects, in order of namespace and name, a page at a time if it asks for pages. All
/// pages show the version of the first.
///
/// # Errors
/// 400 for selectors, 410 for a page of a version that is not kept any more.
pub fn list(state: &State, request: &Request, path: &Path, call: &Call<'_>) -> Result<Value, Failure> {
    let query = &request.query;
    let selector = Selector::parse(call.kind, query.get("labelSelector"), query.get("fieldSelector"))?;
    let namespace = path.namespace.as_deref();
    let token = query.get("continue").filter(|token| !token.is_empty());
    let (revision, start) = match token {
        Some(token) => decode(token)
            .ok_or_else(|| Failure::bad_request("continue key is not valid: illegal base64 data"))?,
        None => (state.store.revision(), None),
    };
    let objects = state.store.at(revision, call.id, namespace).map_err(|_| {
        Failure::expired(
            "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter.",
        )
    })?;
    let limit = query.number("limit").filter(|limit| *limit > 0);
    let is_after = |key: &crate::store::Key| {
        start.as_ref().is_none_or(|(namespace, name)| {
            (key.namespace.as_str(), key.name.as_str()) > (namespace.as_str(), name.as_str())
        })
    };
    let mut rest = objects
        .iter()
        .filter(|(key, object)| is_after(key) && selector.matches(object))
        .peekable();
    let mut items = Vec::new();
    let mut last = None;
    while let Some((key, object)) = rest.next_if(|_| limit.is_none_or(|limit| (items.len() as u64) < limit)) {
        let mut item = (**object).clone();
        // Items of typed lists do not say what they are.
        if call.kind.custom.is_none()
            && let Some(fields) = item.as_object_mut()
        {
            fields.remove("apiVersion");
            fields.remove("kind");
        }
        items.push(item);
        last = Some((key.namespace.clone(), key.name.clone()));
    }
    let mut metadata = json!({"resourceVersion": revision.to_string()});
    if rest.peek().is_some()
        && let Some((namespace, name)) = last
    {
        metadata["continue"] = json!(encode(revision, &namespace, &name));
        if selector.is_empty() {
            metadata["remainingItemCount"] = json!(rest.count());
        }
    }
    Ok(json!({
        "kind": format!("{}List", call.kind.kind), "apiVersion": call.kind.api_version(),
        "metadata": metadata, "items": items,
    }))
}

fn encode(revision: u64, namespace: &str, name: &str) -> String {
    format!("v1.{revision}.{namespace}.{name}")
}

type Start = Option<(String, String)>;

fn decode(token: &str) -> Option<(u64, Start)> {
    let mut parts = token.strip_prefix("v1.")?.splitn(3, '.');
    let revision = parts.next()?.parse().ok()?;
    Some((
        revision,
        Some((parts.next()?.to_owned(), parts.next()?.to_owned())),
    ))
}
