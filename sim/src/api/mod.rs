//! The API server: requests in, answers out, on a [`State`].
//!
//! | module | holds |
//! |---|---|
//! | [`request`] | a request taken apart |
//! | [`failure`] | refusals as `Status` objects |
//! | [`selector`] | label and field selectors |
//! | [`read`] | get, list with pages |
//! | [`watch`] | watches with bookmarks |
//! | [`create`], [`update`], [`patch`], [`delete`] | writes |
//! | [`scale`], [`events`], [`discovery`] | the scale subresource, the two groups of events, what is served |

pub mod create;
pub mod delete;
pub mod discovery;
pub mod events;
pub mod failure;
pub mod patch;
pub mod read;
pub mod request;
pub mod scale;
pub mod selector;
pub mod strategic;
pub mod update;
pub mod watch;

use std::sync::Arc;

use http::Method;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::apply::managed::Writer;
use crate::kinds::{Kind, KindId, Registry};
use crate::state::State;
use crate::store::Key;
use failure::Failure;
use request::{Path, Request, View};

/// What a request is answered with.
#[derive(Debug)]
pub enum Answer {
    /// A body.
    Whole {
        /// HTTP status.
        code: u16,
        /// JSON.
        body: Arc<Value>,
    },
    /// A stream of changes.
    Watch(watch::Plan),
}

impl Answer {
    fn ok(body: impl Into<Arc<Value>>) -> Self {
        Self::Whole {
            code: 200,
            body: body.into(),
        }
    }
}

/// Which part of an object a write is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// All but status.
    Main,
    /// Status only.
    Status,
}

/// The circumstances of a write.
#[derive(Clone, Debug)]
pub struct Call<'a> {
    /// The kind.
    pub kind: &'a Kind,
    /// Its index.
    pub id: KindId,
    /// The namespace of the path, "" for none.
    pub namespace: String,
    /// Who writes.
    pub writer: Writer,
    /// Whether it is only tried.
    pub dry_run: bool,
    /// The time.
    pub now: Timestamp,
}

impl Call<'_> {
    /// Where an object of this name lives.
    pub fn key(&self, name: &str) -> Key {
        Key {
            kind: self.id,
            namespace: self.namespace.clone(),
            name: name.to_owned(),
        }
    }

    /// The version an object carries; a dry run's answer carries that of the live object, or none.
    fn stamp(&self, state: &State, object: &mut Value) {
        if !self.dry_run {
            object["metadata"]["resourceVersion"] = json!(state.store.next().to_string());
        }
    }

    fn commit(&self, state: &mut State, name: &str, object: Value) -> Arc<Value> {
        let object = Arc::new(object);
        if !self.dry_run {
            state.store.commit(self.key(name), Some(Arc::clone(&object)));
        }
        object
    }
}

/// Answers a request.
///
/// # Errors
/// What the server would refuse.
pub fn serve(state: &mut State, request: &Request, now: Timestamp) -> Result<Answer, Failure> {
    let registry = state.registry.clone();
    if let Some(document) = discovery::answer(&registry, request) {
        return document.map(Answer::ok);
    }
    let path = Path::parse(&request.path)?;
    if path.group == events::GROUP && path.plural == "events" {
        return events::serve(state, request, &path, now);
    }
    let id = registry
        .by_plural(&path.group, &path.version, &path.plural)
        .ok_or_else(Failure::no_such_path)?;
    let kind = registry.get(id);
    if kind.namespaced != path.namespace.is_some() && path.name.is_some() {
        return Err(Failure::no_such_path());
    }
    let call = Call {
        kind,
        id,
        namespace: path.namespace.clone().unwrap_or_default(),
        writer: Writer {
            manager: request.manager().to_owned(),
            api_version: kind.api_version(),
            subresource: path.subresource.clone().unwrap_or_default(),
        },
        dry_run: request.dry_run().0,
        now,
    };
    let answer = dispatch(state, request, &path, &call)?;
    Ok(present(answer, request.view))
}

fn dispatch(state: &mut State, request: &Request, path: &Path, call: &Call<'_>) -> Result<Answer, Failure> {
    let part = match path.subresource.as_deref() {
        None => Part::Main,
        Some("status") if call.kind.status => Part::Status,
        Some("scale") if call.kind.scale.is_some() => return scale::serve(state, request, path, call),
        Some("eviction") if call.kind.is("", "Pod") && request.method == Method::POST => {
            return delete::evict(state, request, path, call);
        }
        Some(_) => return Err(Failure::no_such_path()),
    };
    let Some(name) = path.name.as_deref() else {
        return match request.method {
            Method::GET if request.is_watch() => watch::plan(request, path, call).map(Answer::Watch),
            Method::GET => read::list(state, request, path, call).map(Answer::ok),
            Method::POST => {
                if call.kind.namespaced && path.namespace.is_none() {
                    return Err(Failure::not_allowed());
                }
                let created = create::create(state, call, request.body.clone())?;
                Ok(Answer::Whole {
                    code: 201,
                    body: created,
                })
            }
            Method::DELETE => delete::collection(state, request, path, call).map(Answer::ok),
            _ => Err(Failure::not_allowed()),
        };
    };
    match request.method {
        Method::GET => read::get(state, call, name).map(Answer::ok),
        Method::PUT => update::replace(state, call, name, part, request.body.clone()),
        Method::PATCH => patch::patch(state, request, call, name, part),
        Method::DELETE if part == Part::Main => delete::delete(state, call, name, &request.body, request),
        _ => Err(Failure::not_allowed()),
    }
}

/// An object as `PartialObjectMetadata`.
pub fn metadata_only(object: &Value) -> Value {
    json!({
        "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
        "metadata": object.get("metadata").cloned().unwrap_or_default(),
    })
}

fn present(answer: Answer, view: View) -> Answer {
    match answer {
        Answer::Whole { code, body } if view == View::Metadata && body["kind"] != "Status" => {
            let body = match body.get("items").and_then(Value::as_array) {
                Some(items) => json!({
                    "kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1",
                    "metadata": body["metadata"], "items": items.iter().map(metadata_only).collect::<Vec<_>>(),
                }),
                None => metadata_only(&body),
            };
            Answer::Whole {
                code,
                body: body.into(),
            }
        }
        answer => answer,
    }
}

/// The registry's kind for an object that says what it is.
pub fn kind_of(registry: &Registry, object: &Value) -> Option<KindId> {
    registry.by_kind(object.get("apiVersion")?.as_str()?, object.get("kind")?.as_str()?)
}
