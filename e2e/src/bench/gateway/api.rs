//! An API server of the smallest kind: objects in memory, lists, watches, and the writes that a gateway makes.
//!
//! The gateway that is measured is the whole process with its own watches; what it follows is written here. There is no
//! validation, no defaulting and no authentication. Kinds need not be known: what is written can be read.

use anyhow::{Result, anyhow};
use bytes::Bytes;
use futures::stream;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::Instant;

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// Longest watch; clients ask for less.
const WATCH: Duration = Duration::from_secs(300);

/// A running API server; it ends with the process.
pub struct Api {
    /// Where it listens.
    pub address: SocketAddr,
    store: Arc<Store>,
}

struct Store {
    objects: Mutex<Objects>,
    /// The last resource version.
    changed: watch::Sender<u64>,
}

#[derive(Default)]
struct Objects {
    version: u64,
    /// By path of the collection, by name.
    collections: BTreeMap<String, BTreeMap<String, Value>>,
    log: Vec<Event>,
}

struct Event {
    version: u64,
    collection: String,
    kind: &'static str,
    object: Value,
}

impl Api {
    /// Starts it on a thread of its own.
    ///
    /// # Errors
    /// When it cannot listen.
    pub fn start() -> Result<Self> {
        let store = Arc::new(Store {
            objects: Mutex::default(),
            changed: watch::Sender::new(0),
        });
        let (ready, address) = std::sync::mpsc::channel();
        let shared = store.clone();
        std::thread::spawn(move || {
            let served = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(anyhow::Error::from)
                .and_then(|runtime| {
                    runtime.block_on(async {
                        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
                        let _ = ready.send(listener.local_addr()?);
                        serve(listener, shared).await
                    })
                });
            if let Err(error) = served {
                eprintln!("the benchmark's API server has ended: {error:#}");
            }
        });
        let address = address
            .recv()
            .map_err(|_| anyhow!("the API server did not start"))?;
        Ok(Self { address, store })
    }

    /// Reads an object; `collection` is the path up to the plural.
    pub fn get(&self, collection: &str, name: &str) -> Option<Value> {
        self.store.get(collection, name)
    }

    /// Writes a whole object; `collection` is the path up to the plural.
    pub fn put(&self, collection: &str, object: Value) {
        self.store.write(collection, object);
    }
}

impl Store {
    fn lock(&self) -> MutexGuard<'_, Objects> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, collection: &str, mut object: Value) -> Value {
        let mut objects = self.lock();
        objects.version += 1;
        let version = objects.version;
        let name = name_of(&object);
        object["metadata"]["resourceVersion"] = version.to_string().into();
        let known = objects.collections.entry(collection.to_owned()).or_default();
        let before = known.insert(name.clone(), object.clone());
        if object["metadata"]["uid"].is_null() {
            let uid = before.as_ref().map(|before| before["metadata"]["uid"].clone());
            object["metadata"]["uid"] = uid.unwrap_or_else(|| format!("uid-{name}-{version}").into());
            known.insert(name, object.clone());
        }
        objects.log.push(Event {
            version,
            collection: collection.to_owned(),
            kind: if before.is_some() { "MODIFIED" } else { "ADDED" },
            object: object.clone(),
        });
        drop(objects);
        self.changed.send_replace(version);
        object
    }

    fn remove(&self, collection: &str, name: &str) -> Option<Value> {
        let mut objects = self.lock();
        let object = objects.collections.get_mut(collection)?.remove(name)?;
        objects.version += 1;
        let version = objects.version;
        objects.log.push(Event {
            version,
            collection: collection.to_owned(),
            kind: "DELETED",
            object: object.clone(),
        });
        drop(objects);
        self.changed.send_replace(version);
        Some(object)
    }

    fn get(&self, collection: &str, name: &str) -> Option<Value> {
        self.lock().collections.get(collection)?.get(name).cloned()
    }

    fn list(&self, collection: &str, labels: &str) -> Value {
        let objects = self.lock();
        let items: Vec<&Value> = objects
            .collections
            .get(collection)
            .into_iter()
            .flat_map(BTreeMap::values)
            .filter(|object| selects(labels, object))
            .collect();
        json!({
            "kind": "List", "apiVersion": "v1",
            "metadata": {"resourceVersion": objects.version.to_string()},
            "items": items,
        })
    }

    /// Events of `collection` after `version`, as lines, and the version up to which they go.
    fn events(&self, collection: &str, labels: &str, version: u64) -> (String, u64) {
        let objects = self.lock();
        let from = objects.log.partition_point(|event| event.version <= version);
        let mut lines = String::new();
        for event in objects.log.iter().skip(from) {
            if event.collection == collection && selects(labels, &event.object) {
                lines += &json!({"type": event.kind, "object": event.object}).to_string();
                lines.push('\n');
            }
        }
        (lines, objects.version)
    }
}

fn name_of(object: &Value) -> String {
    object["metadata"]["name"].as_str().unwrap_or_default().to_owned()
}

/// `key` and `key=value`, joined by commas.
fn selects(labels: &str, object: &Value) -> bool {
    labels.split(',').filter(|part| !part.is_empty()).all(|part| {
        let (key, value) = part
            .split_once('=')
            .map_or((part, None), |(key, value)| (key, Some(value)));
        let label = object["metadata"]["labels"][key].as_str();
        label.is_some() && (value.is_none() || label == value)
    })
}

async fn serve(listener: TcpListener, store: Arc<Store>) -> Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let store = store.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let store = store.clone();
                async move { Ok::<_, Infallible>(answer(&store, request).await) }
            });
            // Clients break off their watches as they like.
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

async fn answer(store: &Arc<Store>, request: Request<Incoming>) -> Response<Body> {
    let (head, body) = request.into_parts();
    let Some((collection, name)) = split(head.uri.path()) else {
        return status(StatusCode::NOT_FOUND, "NotFound");
    };
    let (collection, name) = (collection.to_owned(), name.map(str::to_owned));
    let query = Query::parse(head.uri.query().unwrap_or_default());
    let body = match body.collect().await {
        Ok(body) => body.to_bytes(),
        Err(_) => return status(StatusCode::BAD_REQUEST, "BadRequest"),
    };
    let sent = || serde_json::from_slice::<Value>(&body).ok();
    match (head.method, name) {
        (Method::GET, None) if query.watch => follow(store.clone(), collection, query),
        (Method::GET, None) => whole(StatusCode::OK, &store.list(&collection, &query.labels)),
        (Method::GET, Some(name)) => match store.get(&collection, &name) {
            Some(object) => whole(StatusCode::OK, &object),
            None => status(StatusCode::NOT_FOUND, "NotFound"),
        },
        (Method::POST, None) => match sent() {
            Some(object) if store.get(&collection, &name_of(&object)).is_some() => {
                status(StatusCode::CONFLICT, "AlreadyExists")
            }
            Some(object) => whole(StatusCode::CREATED, &store.write(&collection, object)),
            None => status(StatusCode::BAD_REQUEST, "BadRequest"),
        },
        (Method::PUT, Some(name)) => match sent() {
            Some(object) if is_stale(store.get(&collection, &name).as_ref(), &object) => {
                status(StatusCode::CONFLICT, "Conflict")
            }
            Some(object) => whole(StatusCode::OK, &store.write(&collection, object)),
            None => status(StatusCode::BAD_REQUEST, "BadRequest"),
        },
        (Method::PATCH, Some(name)) => {
            let (before, Some(patch)) = (store.get(&collection, &name), sent()) else {
                return status(StatusCode::BAD_REQUEST, "BadRequest");
            };
            if is_stale(before.as_ref(), &patch) {
                return status(StatusCode::CONFLICT, "Conflict");
            }
            let mut object = before.unwrap_or_else(|| json!({"metadata": {"name": name}}));
            json_patch::merge(&mut object, &patch);
            whole(StatusCode::OK, &store.write(&collection, object))
        }
        (Method::DELETE, Some(name)) => match store.remove(&collection, &name) {
            Some(object) => whole(StatusCode::OK, &object),
            None => status(StatusCode::NOT_FOUND, "NotFound"),
        },
        _ => status(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed"),
    }
}

/// The path of the collection, and the object's name where there is one; subresources are the object itself.
fn split(path: &str) -> Option<(&str, Option<&str>)> {
    let before_namespace = path.find("/namespaces/")?;
    let mut slashes = path
        .match_indices('/')
        .map(|(at, _)| at)
        .filter(|at| *at > before_namespace);
    let (_namespace, plural) = (slashes.next()?, slashes.next()?);
    let Some(end) = slashes.next() else {
        return (plural + 1 < path.len()).then_some((path, None));
    };
    let (collection, rest) = path.split_at(end);
    let name = rest.split('/').nth(1).filter(|name| !name.is_empty())?;
    Some((collection, Some(name)))
}

fn is_stale(before: Option<&Value>, sent: &Value) -> bool {
    let version = &sent["metadata"]["resourceVersion"];
    version.is_string() && before.is_none_or(|before| before["metadata"]["resourceVersion"] != *version)
}

#[derive(Default)]
struct Query {
    watch: bool,
    labels: String,
    version: u64,
    timeout: Option<Duration>,
}

impl Query {
    fn parse(text: &str) -> Self {
        let mut query = Self::default();
        for pair in text.split('&') {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            match key {
                "watch" => query.watch = value == "true" || value == "1",
                "labelSelector" => {
                    query.labels = value.replace("%3D", "=").replace("%2F", "/").replace("%2C", ",");
                }
                "resourceVersion" => query.version = value.parse().unwrap_or(0),
                "timeoutSeconds" => query.timeout = value.parse().ok().map(Duration::from_secs),
                _ => {}
            }
        }
        query
    }
}

fn follow(store: Arc<Store>, collection: String, query: Query) -> Response<Body> {
    let end = Instant::now() + query.timeout.unwrap_or(WATCH).min(WATCH);
    let changes = store.changed.subscribe();
    let state = (store, changes, query.version);
    let events = stream::unfold(state, move |(store, mut changes, mut version)| {
        let (collection, labels) = (collection.clone(), query.labels.clone());
        async move {
            loop {
                changes.mark_unchanged();
                let (lines, seen) = store.events(&collection, &labels, version);
                version = seen;
                if !lines.is_empty() {
                    let frame = Ok::<_, Infallible>(Frame::data(Bytes::from(lines)));
                    return Some((frame, (store, changes, version)));
                }
                match tokio::time::timeout_at(end, changes.changed()).await {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) | Err(_) => return None,
                }
            }
        }
    });
    json_response(StatusCode::OK, StreamBody::new(Box::pin(events)).boxed_unsync())
}

fn whole(code: StatusCode, object: &Value) -> Response<Body> {
    json_response(code, Full::new(Bytes::from(object.to_string())).boxed_unsync())
}

fn status(code: StatusCode, reason: &str) -> Response<Body> {
    let object = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "reason": reason, "message": reason, "code": code.as_u16(),
    });
    whole(code, &object)
}

fn json_response(code: StatusCode, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = code;
    let json = hyper::header::HeaderValue::from_static("application/json");
    response.headers_mut().insert(hyper::header::CONTENT_TYPE, json);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_collections_and_names() {
        let base = "/apis/flotilla.dev/v1alpha1/namespaces/bench/agentpools";
        assert_eq!(split(base), Some((base, None)));
        assert_eq!(split(&format!("{base}/a")), Some((base, Some("a"))));
        assert_eq!(split(&format!("{base}/a/status")), Some((base, Some("a"))));
        assert_eq!(split("/api/v1/nodes"), None);
    }

    #[test]
    fn labels_select() {
        let object = json!({"metadata": {"labels": {"a": "1", "b/c": "2"}}});
        for (labels, selected) in [
            ("", true),
            ("a", true),
            ("a=1,b/c=2", true),
            ("a=2", false),
            ("d", false),
        ] {
            assert_eq!(selects(labels, &object), selected, "{labels}");
        }
    }
}
