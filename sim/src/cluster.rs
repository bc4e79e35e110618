//! The handle on a simulated cluster: its client side as a tower service, and its inside for tests and controllers.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use http::{Method, Response, header};
use http_body::Frame;
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use jiff::Timestamp;
use kube::client::Body;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::time::Instant;
use tower::{BoxError, Service};

use crate::api::failure::Failure;
use crate::api::request::{Path, Query, Request, View};
use crate::api::{Answer, serve, watch as watching};
use crate::kinds::{KindId, Registry};
use crate::pulse::{Changes, Pulse};
use crate::state::{Admission, State};
use crate::store::Key;

/// When every simulation begins: 2027-01-15T08:00:00Z.
pub const START: i64 = 1_800_000_000;

/// The body of an answer.
pub type AnswerBody = UnsyncBoxBody<Bytes, BoxError>;

/// The time as the API server writes it: whole seconds.
pub fn seconds(time: Timestamp) -> String {
    Timestamp::from_second(time.as_second())
        .unwrap_or(time)
        .to_string()
}

/// A simulated cluster. Cheap to clone; every clone is the same cluster.
#[derive(Clone, Debug)]
pub struct Cluster(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    state: Mutex<State>,
    changed: Arc<Pulse>,
    /// By kind.
    changed_kinds: Vec<Arc<Pulse>>,
    start: Timestamp,
    origin: Instant,
}

impl Cluster {
    /// An empty cluster with Flotilla's kinds and the namespaces `default` and `kube-system`. Its time is tokio's,
    /// beginning at [`START`].
    pub fn new(seed: u64) -> Self {
        Self::with_registry(Registry::flotilla(), seed)
    }

    /// The same with other kinds.
    pub fn with_registry(registry: Registry, seed: u64) -> Self {
        let cluster = Self(Arc::new(Inner {
            changed: Arc::default(),
            changed_kinds: registry.iter().map(|_| Arc::default()).collect(),
            state: Mutex::new(State::new(registry, seed)),
            start: Timestamp::from_second(START).unwrap_or(Timestamp::UNIX_EPOCH),
            origin: Instant::now(),
        }));
        for namespace in ["default", "kube-system"] {
            cluster.namespace(namespace);
        }
        cluster
    }

    /// The time.
    pub fn now(&self) -> Timestamp {
        self.0
            .start
            .checked_add(self.0.origin.elapsed())
            .unwrap_or(Timestamp::MAX)
    }

    /// How long it has run.
    pub fn age(&self) -> Duration {
        self.0.origin.elapsed()
    }

    /// Makes a namespace, if it is not there.
    pub fn namespace(&self, name: &str) {
        let body = json!({"metadata": {"name": name}});
        // It may be there already.
        let _ = self.create("/api/v1/namespaces", &body);
    }

    // === what is in it ===

    /// Looks at the state; whoever waits for changes is told if there were any.
    pub fn with<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.0.state.lock();
        let before = state.store.revision();
        let looked = look(&mut state);
        let after = state.store.revision();
        if after != before {
            for (kind, pulse) in self.0.changed_kinds.iter().enumerate() {
                let changed = state.store.changed(KindId(kind));
                if changed > before {
                    pulse.beat(changed);
                }
            }
        }
        drop(state);
        if after != before {
            self.0.changed.beat(after);
        }
        looked
    }

    /// Tells of every change.
    pub fn changes(&self) -> Changes {
        Changes::new(&self.0.changed)
    }

    /// Tells of every change of one kind.
    pub(crate) fn changes_of(&self, kind: KindId) -> Changes {
        self.0
            .changed_kinds
            .get(kind.0)
            .map_or_else(|| self.changes(), Changes::new)
    }

    /// Reads the object at a path, such as `/api/v1/namespaces/shop/pods/a`.
    pub fn get(&self, path: &str) -> Option<Value> {
        self.request(Method::GET, path, Value::Null).ok()
    }

    /// The objects of a collection's path.
    pub fn list(&self, path: &str) -> Vec<Value> {
        let found = self.request(Method::GET, path, Value::Null).unwrap_or_default();
        found
            .get("items")
            .and_then(Value::as_array)
            .cloned()
            .unwrap_or_default()
    }

    /// The objects of a collection's path, as they are in the store: nothing is copied.
    pub fn objects(&self, path: &str) -> Vec<Arc<Value>> {
        let Ok(parsed) = Path::parse(path) else {
            return Vec::new();
        };
        self.with(|state| {
            let id = state
                .registry
                .by_plural(&parsed.group, &parsed.version, &parsed.plural);
            let found = id
                .into_iter()
                .flat_map(|id| state.store.of_kind(id, parsed.namespace.as_deref()));
            found.map(|(_, object)| Arc::clone(object)).collect()
        })
    }

    /// The object at a path, as it is in the store: nothing is copied.
    pub fn object(&self, path: &str) -> Option<Arc<Value>> {
        let parsed = Path::parse(path).ok()?;
        self.with(|state| {
            let kind = state
                .registry
                .by_plural(&parsed.group, &parsed.version, &parsed.plural)?;
            let key = Key {
                kind,
                namespace: parsed.namespace.unwrap_or_default(),
                name: parsed.name?,
            };
            state.store.get(&key).cloned()
        })
    }

    /// Creates an object in a collection's path, as `kubectl` would.
    ///
    /// # Errors
    /// What the server refuses.
    pub fn create(&self, collection: &str, object: &Value) -> Result<Value, Failure> {
        self.request(Method::POST, collection, object.clone())
    }

    /// Merges a patch into the object at a path (`…/status` for its status).
    ///
    /// # Errors
    /// What the server refuses.
    pub fn patch(&self, path: &str, patch: Value) -> Result<Value, Failure> {
        self.request(Method::PATCH, path, patch)
    }

    /// Changes an object by a function, its status as well if it has one. `None` when it is not there.
    ///
    /// # Errors
    /// What the server refuses.
    pub fn update(&self, path: &str, change: impl FnOnce(&mut Value)) -> Result<Option<Value>, Failure> {
        let Some(before) = self.get(path) else {
            return Ok(None);
        };
        let mut object = before.clone();
        change(&mut object);
        let status = object.get("status").cloned();
        let mut updated = before.clone();
        let mut main = object.clone();
        main["status"] = before.get("status").cloned().unwrap_or_default();
        if main != before {
            updated = self.request(Method::PUT, path, object)?;
        }
        if status != before.get("status").cloned() {
            let mut with_status = updated;
            with_status["status"] = status.unwrap_or_default();
            updated = self.request(Method::PUT, &format!("{path}/status"), with_status)?;
        }
        Ok(Some(updated))
    }

    /// Deletes the object at a path, its dependents in the background.
    ///
    /// # Errors
    /// What the server refuses.
    pub fn delete(&self, path: &str) -> Result<Value, Failure> {
        self.request(Method::DELETE, path, json!({"propagationPolicy": "Background"}))
    }

    /// One request, as the field manager `sim`, without a network in between. Patches are merge patches.
    ///
    /// # Errors
    /// What the server refuses.
    pub fn request(&self, method: Method, path: &str, body: Value) -> Result<Value, Failure> {
        self.request_as("sim", method, path, body)
    }

    /// The same as another field manager.
    ///
    /// # Errors
    /// What the server refuses.
    pub fn request_as(
        &self,
        manager: &str,
        method: Method,
        path: &str,
        body: Value,
    ) -> Result<Value, Failure> {
        self.shared_request_as(manager, method, path, body)
            .map(Arc::unwrap_or_clone)
    }

    /// The same without a copy of the answer.
    ///
    /// # Errors
    /// What the server refuses.
    pub fn shared_request_as(
        &self,
        manager: &str,
        method: Method,
        path: &str,
        body: Value,
    ) -> Result<Arc<Value>, Failure> {
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        let content_type = if method == Method::PATCH {
            "application/merge-patch+json"
        } else {
            "application/json"
        };
        let request = Request {
            method,
            path: path.to_owned(),
            raw_query: query.to_owned(),
            query: Query::parse(query),
            body,
            content_type: content_type.to_owned(),
            view: View::Full,
            agent: manager.to_owned(),
        };
        match self.answer(&request)? {
            Answer::Whole { body, .. } => Ok(body),
            Answer::Watch(_) => Err(Failure::bad_request("a watch needs the service")),
        }
    }

    /// Answers one request.
    ///
    /// # Errors
    /// What the server refuses.
    pub fn answer(&self, request: &Request) -> Result<Answer, Failure> {
        let now = self.now();
        self.with(|state| serve(state, request, now))
    }

    /// The paths of everything in a namespace, without events.
    pub fn paths(&self, namespace: &str) -> Vec<String> {
        self.with(|state| {
            let registry = state.registry.clone();
            let ours = state.store.iter().filter(|(key, _)| key.namespace == namespace);
            ours.filter(|(key, _)| registry.get(key.kind).plural != "events")
                .map(|(key, _)| path_of(&registry, key))
                .collect()
        })
    }

    /// How many objects of a kind were ever made, and how many went. `path` is a collection's, such as `/apis/batch/v1/jobs`.
    pub fn counts(&self, path: &str) -> (u64, u64) {
        self.with(|state| kind_at(state, path).map_or((0, 0), |id| state.store.counts(id)))
    }

    /// Asks `admission` about each creation of a kind from now on; `None` ends that.
    pub fn admit(&self, path: &str, admission: Option<Admission>) {
        self.with(|state| {
            if let Some(id) = kind_at(state, path) {
                state.admit(id, admission);
            }
        });
    }

    /// Forgets history: every watch that resumes from before now is told 410.
    pub fn compact(&self) {
        self.with(|state| state.store.compact());
    }

    /// The server as clients reach it.
    pub fn service(&self) -> ApiService {
        ApiService(self.clone())
    }
}

fn kind_at(state: &State, path: &str) -> Option<KindId> {
    let path = Path::parse(path).ok()?;
    state.registry.by_plural(&path.group, &path.version, &path.plural)
}

/// The path of an object.
pub fn path_of(registry: &Registry, key: &Key) -> String {
    let kind = registry.get(key.kind);
    if kind.namespaced {
        format!(
            "{}/namespaces/{}/{}/{}",
            kind.prefix(),
            key.namespace,
            kind.plural,
            key.name
        )
    } else {
        format!("{}/{}/{}", kind.prefix(), kind.plural, key.name)
    }
}

/// The server as a tower service, for `kube::Client::new`.
#[derive(Clone, Debug)]
pub struct ApiService(Cluster);

impl Service<http::Request<Body>> for ApiService {
    type Response = Response<AnswerBody>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let cluster = self.0.clone();
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            let body = body.collect_bytes().await?;
            let (path, query) = (parts.uri.path(), parts.uri.query().unwrap_or_default());
            let request = Request::new(parts.method, path, query, &parts.headers, &body);
            request.map_or_else(
                |failure| whole(failure.code, &failure.body()),
                |request| respond(&cluster, &request),
            )
        })
    }
}

/// The HTTP answer to a request.
///
/// # Errors
/// Only if the answer cannot be put into words.
pub fn respond(cluster: &Cluster, request: &Request) -> Result<Response<AnswerBody>, BoxError> {
    match cluster.answer(request) {
        Ok(Answer::Whole { code, body }) => whole(code, &body),
        Ok(Answer::Watch(plan)) => {
            let lines = watching::stream(cluster.clone(), plan);
            let frames = lines.map(|line| Ok::<_, BoxError>(Frame::data(line)));
            Ok(Response::builder()
                .status(200)
                .header(header::CONTENT_TYPE, "application/json")
                .body(StreamBody::new(frames).boxed_unsync())?)
        }
        Err(failure) => whole(failure.code, &failure.body()),
    }
}

/// An HTTP answer with a JSON body.
///
/// # Errors
/// Only if the code is none of HTTP's.
pub fn whole(code: u16, body: &Value) -> Result<Response<AnswerBody>, BoxError> {
    let body = Full::new(Bytes::from(body.to_string()))
        .map_err(|never| match never {})
        .boxed_unsync();
    Ok(Response::builder()
        .status(code)
        .header(header::CONTENT_TYPE, "application/json")
        .body(body)?)
}
