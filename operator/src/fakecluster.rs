//! An API server in memory, as far as the operator can tell, for tests of whole controllers under paused time.
//!
//! It keeps objects by path, numbers every change, serves lists and watches, knows create, merge patch, apply (as a merge
//! of objects, with lists replaced), the status subresource, preconditions and the garbage collector's cascade. It does no
//! defaulting and no validation; tests on a real cluster are in `e2e`. What other controllers would do, a test does itself
//! with [`FakeCluster::update`].
//!
//! A fault can be planned for the n-th write: [`Fault::Refused`] happens before it, [`Fault::Lost`] after it. Either way the
//! operator behind it is meant to be dropped and started anew, as after a kill.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Response};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use jiff::Timestamp;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;
use tower::BoxError;

use crate::runtime::manager::Options;
use crate::runtime::readiness::Readiness;
use crate::runtime::testing::{Answer, FakeApi, Got, answer, status};
use crate::runtime::{Clock, Jitter, Manager};

/// When the test begins.
pub(crate) const START: i64 = 1_800_000_000;

/// What goes wrong with one write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It is not carried out.
    Refused,
    /// It is carried out, and the answer is lost.
    Lost,
}

#[derive(Default)]
struct Store {
    /// By path, such as `/api/v1/namespaces/shop/pods/x`.
    objects: BTreeMap<String, Value>,
    version: u64,
    log: Vec<(u64, &'static str, Value, String)>,
    writes: usize,
    fault: Option<(usize, Fault)>,
    tripped: bool,
    /// Answers to dry runs of pods: a refusal's sentence.
    refusal: Option<String>,
    /// Answers to every request about the object of this path: an HTTP status.
    forbidden: Option<(String, u16)>,
    /// Kinds that it does not know, as `/apis/batch/v1/jobs`.
    unknown: std::collections::BTreeSet<String>,
}

/// The server. Cheap to clone.
#[derive(Clone)]
pub(crate) struct FakeCluster {
    store: Arc<Mutex<Store>>,
    changed: watch::Sender<u64>,
    clock: Clock,
    pub(crate) api: FakeApi,
}

struct Route {
    /// The collection's path, with the namespace if there is one.
    collection: String,
    kind_path: String,
    namespace: Option<String>,
    name: Option<String>,
    subresource: Option<String>,
}

impl Route {
    /// `/api/v1[/namespaces/{namespace}]/{plural}[/{name}[/{subresource}]]`, and the same below `/apis/{group}/{version}`.
    fn parse(path: &str) -> Self {
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        let prefix = if parts.first() == Some(&"api") { 2 } else { 3 };
        let (version, mut rest) = parts.split_at(prefix.min(parts.len()));
        let mut namespace = None;
        if let ["namespaces", name, tail @ ..] = rest
            && !tail.is_empty()
        {
            namespace = Some((*name).to_owned());
            rest = tail;
        }
        let plural = rest.first().copied().unwrap_or_default();
        let version = version.join("/");
        let collection = match &namespace {
            Some(namespace) => format!("/{version}/namespaces/{namespace}/{plural}"),
            None => format!("/{version}/{plural}"),
        };
        let part = |at: usize| rest.get(at).map(|part| (*part).to_owned());
        Self {
            collection,
            kind_path: format!("/{version}/{plural}"),
            namespace,
            name: part(1),
            subresource: part(2),
        }
    }
}

impl FakeCluster {
    pub(crate) fn new() -> Self {
        let store = Arc::new(Mutex::new(Store::default()));
        let clock = Clock::virtual_from(Timestamp::from_second(START).unwrap());
        let changed = watch::Sender::new(0);
        let (for_api, sender, now) = (Arc::clone(&store), changed.clone(), clock.clone());
        let api = FakeApi::new(move |got| {
            let (store, changed, clock) = (Arc::clone(&for_api), sender.clone(), now.clone());
            async move { serve(&store, &changed, &clock, got) }
        });
        Self {
            store,
            changed,
            clock,
            api,
        }
    }

    /// A manager that talks to this server and always leads.
    pub(crate) fn manager(&self) -> Manager {
        Manager::new(Options {
            clients: self.api.clients(),
            clock: self.clock.clone(),
            jitter: Jitter::seeded(1),
            metrics: crate::metrics::Metrics::new(),
            readiness: Readiness::default(),
            namespaces: Vec::new(),
            election: None,
        })
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Adds an object at a path, as somebody else would.
    pub(crate) fn put(&self, path: &str, object: Value) -> Value {
        let route = Route::parse(path);
        let mut store = self.store.lock();
        let created = store.create(path, &route, object, self.clock.now());
        self.changed.send_replace(store.version);
        created
    }

    /// Changes an object; `None` when it is not there. A change of `spec` is a new generation.
    pub(crate) fn update(&self, path: &str, change: impl FnOnce(&mut Value)) -> Option<Value> {
        let mut store = self.store.lock();
        let mut object = store.objects.get(path)?.clone();
        change(&mut object);
        let updated = store.replace(path, object);
        self.changed.send_replace(store.version);
        Some(updated)
    }

    /// Deletes an object and, with the last of their owners, its dependents.
    pub(crate) fn delete(&self, path: &str) {
        let mut store = self.store.lock();
        store.delete(path);
        self.changed.send_replace(store.version);
    }

    pub(crate) fn get(&self, path: &str) -> Option<Value> {
        self.store.lock().objects.get(path).cloned()
    }

    /// The paths of a namespace's objects, without events.
    pub(crate) fn paths(&self, namespace: &str) -> Vec<String> {
        let part = format!("/namespaces/{namespace}/");
        let store = self.store.lock();
        store
            .objects
            .keys()
            .filter(|path| path.contains(&part) && !path.contains("/events/"))
            .cloned()
            .collect()
    }

    /// The reasons of the events about the objects of this name.
    pub(crate) fn events(&self, name: &str) -> Vec<String> {
        let store = self.store.lock();
        let events = store.objects.iter().filter(|(path, _)| path.contains("/events/"));
        let about = events.filter(|(_, event)| event["regarding"]["name"] == name);
        about
            .filter_map(|(_, event)| event["reason"].as_str().map(str::to_owned))
            .collect()
    }

    /// The n-th write from now on (counted from 0) goes wrong.
    pub(crate) fn plan_fault(&self, write: usize, fault: Fault) {
        let mut store = self.store.lock();
        (store.writes, store.fault, store.tripped) = (0, Some((write, fault)), false);
    }

    /// Whether the planned fault has happened.
    pub(crate) fn tripped(&self) -> bool {
        self.store.lock().tripped
    }

    /// Refuses dry runs of pods with this sentence.
    pub(crate) fn refuse_pods(&self, sentence: Option<&str>) {
        self.store.lock().refusal = sentence.map(str::to_owned);
    }

    /// Answers every request about this object with this HTTP status.
    pub(crate) fn forbid(&self, path: &str, code: u16) {
        self.store.lock().forbidden = Some((path.to_owned(), code));
    }

    /// Ends what [`Self::forbid`] began.
    pub(crate) fn permit(&self) {
        self.store.lock().forbidden = None;
    }

    /// Forgets a kind (`/apis/batch/v1/jobs`), or learns it.
    pub(crate) fn know(&self, kind_path: &str, known: bool) {
        let mut store = self.store.lock();
        if known {
            store.unknown.remove(kind_path);
        } else {
            store.unknown.insert(kind_path.to_owned());
        }
    }

    /// Requests but watches and events, since the first `skip`.
    pub(crate) fn requests(&self, skip: usize) -> Vec<String> {
        let all = self.api.got();
        let counted = all
            .iter()
            .skip(skip)
            .filter(|got| !got.is_watch() && !got.path.contains("/events"));
        counted
            .map(|got| format!("{} {}", got.method, got.path))
            .collect()
    }

    /// How many objects of a kind (`/apis/batch/v1/jobs`) were ever made.
    pub(crate) fn made(&self, kind_path: &str) -> usize {
        let store = self.store.lock();
        store
            .log
            .iter()
            .filter(|(_, type_, _, kind)| *type_ == "ADDED" && kind == kind_path)
            .count()
    }

    pub(crate) fn request_count(&self) -> usize {
        self.api.got().len()
    }
}

/// An operator that runs until it is dropped; dropped without a farewell, as by SIGKILL.
pub(crate) struct Running(tokio::task::JoinHandle<()>);

impl Running {
    pub(crate) fn start(manager: Manager) -> Self {
        let run = manager.run(tokio_util::sync::CancellationToken::new());
        Self(tokio::spawn(async move {
            let _ = run.await;
        }))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Waits, in virtual time, until `done`; panics with `what` and the last state after `limit`.
pub(crate) async fn eventually(what: &str, limit: Duration, mut done: impl FnMut() -> Result<(), String>) {
    let deadline = Instant::now() + limit;
    loop {
        match done() {
            Ok(()) => return,
            Err(state) if Instant::now() >= deadline => panic!("{what}: {state}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

fn serve(store: &Arc<Mutex<Store>>, changed: &watch::Sender<u64>, clock: &Clock, got: Got) -> Answer {
    let route = Route::parse(&got.path);
    if store.lock().unknown.contains(&route.kind_path) {
        return status(
            404,
            "NotFound",
            "the server could not find the requested resource",
        );
    }
    if got.is_watch() {
        return watch_answer(Arc::clone(store), changed.subscribe(), &route, &got.query);
    }
    let mut store = store.lock();
    if let Some((_, code)) = store.forbidden.as_ref().filter(|(path, _)| *path == got.path) {
        return status(*code, "Forbidden", "somebody does not want that");
    }
    if got.method != Method::GET && !got.path.contains("/events") && !got.query.contains("dryRun") {
        let write = store.writes;
        store.writes += 1;
        if let Some((_, fault)) = store.fault.filter(|(at, _)| *at == write) {
            store.tripped = true;
            if fault == Fault::Lost {
                let _ = store.handle(&route, &got, clock.now());
                changed.send_replace(store.version);
            }
            return Err("the connection broke".into());
        }
        // After a fault the operator is dead; what it still sends is not heard.
        if store.tripped && store.fault.is_some() {
            return Err("the connection broke".into());
        }
    }
    let answer = store.handle(&route, &got, clock.now());
    changed.send_replace(store.version);
    answer
}

impl FakeCluster {
    /// After a fault: the server answers again.
    pub(crate) fn heal(&self) {
        self.store.lock().fault = None;
    }
}

fn selected(object: &Value, query: &str) -> bool {
    let Some(selector) = query
        .split('&')
        .find_map(|part| part.strip_prefix("labelSelector="))
    else {
        return true;
    };
    let selector = selector
        .replace("%3D", "=")
        .replace("%2F", "/")
        .replace("%2C", ",");
    selector.split(',').all(|term| match term.split_once('=') {
        Some((key, value)) => object["metadata"]["labels"][key] == value,
        None => true,
    })
}

fn watch_answer(
    store: Arc<Mutex<Store>>,
    changed: watch::Receiver<u64>,
    route: &Route,
    query: &str,
) -> Answer {
    let parameter = |name: &str| {
        query
            .split('&')
            .find_map(|part| part.strip_prefix(&format!("{name}=")).map(str::to_owned))
    };
    let since: u64 = parameter("resourceVersion")
        .and_then(|text| text.parse().ok())
        .unwrap_or_default();
    let seconds: u64 = parameter("timeoutSeconds")
        .and_then(|text| text.parse().ok())
        .unwrap_or(25);
    let (kind_path, namespace, query) = (route.kind_path.clone(), route.namespace.clone(), query.to_owned());
    let deadline = Instant::now() + Duration::from_secs(seconds);
    let events = futures::stream::unfold((since, changed), move |(since, mut changed)| {
        let (store, kind_path, namespace, query) = (
            Arc::clone(&store),
            kind_path.clone(),
            namespace.clone(),
            query.clone(),
        );
        async move {
            loop {
                let next = {
                    let store = store.lock();
                    let mut news = store.log.iter().filter(|(version, ..)| *version > since);
                    let ours = news.find(|(_, _, object, kind)| {
                        *kind == kind_path
                            && namespace
                                .as_ref()
                                .is_none_or(|namespace| object["metadata"]["namespace"] == **namespace)
                            && selected(object, &query)
                    });
                    ours.map(|(version, type_, object, _)| {
                        (*version, json!({"type": type_, "object": object}).to_string())
                    })
                };
                if let Some((version, line)) = next {
                    let frame: Result<Frame<Bytes>, BoxError> =
                        Ok(Frame::data(Bytes::from(format!("{line}\n"))));
                    return Some((frame, (version, changed)));
                }
                match tokio::time::timeout_at(deadline, changed.changed()).await {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) | Err(_) => return None,
                }
            }
        }
    });
    Ok(Response::builder()
        .status(200)
        .body(StreamBody::new(events).boxed_unsync())?)
}

impl Store {
    fn handle(&mut self, route: &Route, got: &Got, now: Timestamp) -> Answer {
        let path = match &route.name {
            Some(name) => format!("{}/{name}", route.collection),
            None => route.collection.clone(),
        };
        match (&got.method, &route.name) {
            (&Method::GET, None) => {
                let in_scope = |path: &str| {
                    let there = Route::parse(path);
                    there.kind_path == route.kind_path
                        && (route.namespace.is_none() || there.namespace == route.namespace)
                };
                let objects = self
                    .objects
                    .iter()
                    .filter(|(path, object)| in_scope(path) && selected(object, &got.query));
                let items: Vec<Value> = objects.map(|(_, object)| object.clone()).collect();
                let mut body = json!({"kind": "List", "apiVersion": "v1", "items": items});
                body["metadata"] = json!({"resourceVersion": self.version.to_string()});
                answer(200, &body)
            }
            (&Method::GET, Some(_)) => match self.objects.get(&path) {
                Some(object) => answer(200, object),
                None => status(404, "NotFound", &format!("{path} not found")),
            },
            (&Method::POST, _) => {
                if got.query.contains("dryRun") {
                    return match &self.refusal {
                        Some(sentence) => status(403, "Forbidden", sentence),
                        None => answer(201, &got.body),
                    };
                }
                let name = got.body["metadata"]["name"].as_str().unwrap_or_default();
                let path = format!("{}/{name}", route.collection);
                if self.objects.contains_key(&path) {
                    return status(409, "AlreadyExists", &format!("{path} already exists"));
                }
                let created = self.create(&path, route, got.body.clone(), now);
                answer(201, &created)
            }
            (&Method::PATCH, Some(_)) => self.patch(&path, route, got, now),
            (&Method::DELETE, Some(_)) => {
                let Some(object) = self.objects.get(&path) else {
                    return status(404, "NotFound", "not found");
                };
                let wanted = &got.body["preconditions"]["uid"];
                if !wanted.is_null() && *wanted != object["metadata"]["uid"] {
                    return status(409, "Conflict", "uid differs");
                }
                self.delete(&path);
                answer(
                    200,
                    &json!({"kind": "Status", "apiVersion": "v1", "status": "Success"}),
                )
            }
            _ => status(405, "MethodNotAllowed", "not served here"),
        }
    }

    fn patch(&mut self, path: &str, route: &Route, got: &Got, now: Timestamp) -> Answer {
        let is_apply = got.query.contains("force=true");
        let Some(before) = self.objects.get(path).cloned() else {
            if !is_apply || !got.body["metadata"]["uid"].is_null() {
                return status(404, "NotFound", "not found");
            }
            let created = self.create(path, route, got.body.clone(), now);
            return answer(201, &created);
        };
        for field in ["uid", "resourceVersion"] {
            let wanted = &got.body["metadata"][field];
            if !wanted.is_null() && *wanted != before["metadata"][field] {
                return status(409, "Conflict", &format!("{field} differs"));
            }
        }
        if before["immutable"] == true && !got.body["data"].is_null() {
            return status(422, "Invalid", "field is immutable when `immutable` is set");
        }
        let mut after = before.clone();
        if route.subresource.as_deref() == Some("status") {
            merge(&mut after["status"], &got.body["status"]);
        } else {
            let mut body = got.body.clone();
            if let Some(fields) = body.as_object_mut() {
                fields.remove("status");
            }
            merge(&mut after, &body);
        }
        let updated = if after == before {
            before
        } else {
            self.replace(path, after)
        };
        answer(200, &updated)
    }

    fn create(&mut self, path: &str, route: &Route, mut object: Value, now: Timestamp) -> Value {
        self.version += 1;
        let metadata = &mut object["metadata"];
        if metadata["uid"].is_null() {
            metadata["uid"] = json!(format!("uid-{}", self.version));
        }
        metadata["resourceVersion"] = json!(self.version.to_string());
        metadata["generation"] = json!(1);
        metadata["creationTimestamp"] = json!(now.round(jiff::Unit::Second).unwrap());
        if let Some(namespace) = &route.namespace {
            metadata["namespace"] = json!(namespace);
        }
        self.objects.insert(path.to_owned(), object.clone());
        self.log
            .push((self.version, "ADDED", object.clone(), route.kind_path.clone()));
        object
    }

    fn replace(&mut self, path: &str, mut object: Value) -> Value {
        self.version += 1;
        let before = self.objects.get(path).cloned().unwrap_or_default();
        if before["spec"] != object["spec"] {
            object["metadata"]["generation"] =
                json!(before["metadata"]["generation"].as_i64().unwrap_or_default() + 1);
        }
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.objects.insert(path.to_owned(), object.clone());
        self.log.push((
            self.version,
            "MODIFIED",
            object.clone(),
            Route::parse(path).kind_path,
        ));
        object
    }

    fn delete(&mut self, path: &str) {
        let Some(mut object) = self.objects.remove(path) else {
            return;
        };
        self.version += 1;
        let uid = object["metadata"]["uid"].clone();
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.log
            .push((self.version, "DELETED", object, Route::parse(path).kind_path));
        let alive: Vec<Value> = self
            .objects
            .values()
            .map(|object| object["metadata"]["uid"].clone())
            .collect();
        let orphans: Vec<String> = self
            .objects
            .iter()
            .filter(|(_, object)| {
                let owners = object["metadata"]["ownerReferences"]
                    .as_array()
                    .cloned()
                    .unwrap_or_default();
                owners.iter().any(|owner| owner["uid"] == uid)
                    && owners.iter().all(|owner| !alive.contains(&owner["uid"]))
            })
            .map(|(path, _)| path.clone())
            .collect();
        orphans.iter().for_each(|path| self.delete(path));
    }
}

/// RFC 7396.
fn merge(value: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *value = patch.clone();
        return;
    };
    if !value.is_object() {
        *value = json!({});
    }
    let Value::Object(fields) = value else { return };
    for (key, member) in patch {
        if member.is_null() {
            fields.remove(key);
        } else {
            merge(fields.entry(key.clone()).or_insert(Value::Null), member);
        }
    }
}
