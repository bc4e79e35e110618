//! The client stack.
//!
//! kube's default client retries a refused `POST` for minutes, waits for ever for a server that does not answer, and
//! opens as many connections as there are callers. This one keeps four promises, all in one tower layer, because they
//! share one budget:
//!
//! - A call ends within [`CALL_TIMEOUT`], waiting for its turn, all tries and the reading of the body included. A list
//!   gets [`LIST_TIMEOUT`], since a page of 500 objects may be megabytes. A watch has [`CALL_TIMEOUT`] to open and
//!   then lasts as long as the server was told (25 s, see [`informer`](super::informer)).
//! - At most [`CONCURRENCY`] calls are under way, watches aside.
//! - At most [`TRIES`] tries, only when a second one is harmless: a `POST` only if it cannot have been acted on (429, or
//!   no connection), other verbs also after 503, 504 and a broken connection. Our `PUT`s and `PATCH`es carry a
//!   resourceVersion or are server-side apply, our `DELETE`s a UID.
//! - The HTTP status is what an error is judged by. A body that is not a `Status`, from a proxy or a load balancer, is
//!   replaced by one that carries the code.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{HeaderValue, RETRY_AFTER, USER_AGENT};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, combinators::UnsyncBoxBody};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::{Body, ConfigExt as _};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};
use tower::{BoxError, Layer, Service, ServiceBuilder, ServiceExt as _};

use super::time::Jitter;
use crate::metrics::Metrics;

/// Longest call, all tries included. Leadership must outlive it before a write starts.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest page of a list.
const LIST_TIMEOUT: Duration = Duration::from_secs(20);
/// Calls under way at once.
pub const CONCURRENCY: usize = 16;
/// Tries of one call.
const TRIES: u32 = 3;
/// Pause before the second try; four times that before the third.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Longest wait for a TCP connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Probes an idle connection, so that one that died in silence is noticed.
const TCP_KEEPALIVE: Duration = Duration::from_secs(15);

/// Two clients of one API server.
#[derive(Clone)]
pub struct Clients {
    /// For everything but the lease.
    pub api: Client,
    /// For the lease: one try per call, and its own connections, so that neither retries nor a crowd delays a renewal.
    pub lease: Client,
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The named kubeconfig is unusable.
    #[error("failed to read the kubeconfig {path}")]
    Kubeconfig {
        /// Where it was looked for.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: Box<kube::config::KubeconfigError>,
    },
    /// No kubeconfig was named and this is no pod.
    #[error(
        "no API server: not running in a pod, and neither --kubeconfig nor KUBECONFIG names a file \
         (the default ~/.kube/config is never used unasked)"
    )]
    NoCluster(#[source] Box<kube::config::InClusterError>),
    /// The configuration does not make a client (TLS, credentials).
    #[error("failed to set the client up")]
    Setup(#[source] Box<kube::Error>),
}

/// The configuration from the named kubeconfig (a file, or several separated by `:`, as kubectl reads `KUBECONFIG`), or
/// else the pod's. Never the user's current context unasked.
///
/// # Errors
/// [`ClientError`].
pub async fn load(kubeconfig: Option<&Path>, context: Option<&str>) -> Result<Config, ClientError> {
    let mut config = match kubeconfig.filter(|path| !path.as_os_str().is_empty()) {
        Some(paths) => {
            let failed = |source| ClientError::Kubeconfig {
                path: paths.to_owned(),
                source: Box::new(source),
            };
            let mut merged = Kubeconfig::default();
            for path in std::env::split_paths(paths) {
                merged = merged
                    .merge(Kubeconfig::read_from(path).map_err(failed)?)
                    .map_err(failed)?;
            }
            let context = context.filter(|name| !name.is_empty());
            let options = KubeConfigOptions {
                context: context.map(str::to_owned),
                ..Default::default()
            };
            Config::from_custom_kubeconfig(merged, &options)
                .await
                .map_err(failed)?
        }
        None => Config::incluster().map_err(|source| ClientError::NoCluster(Box::new(source)))?,
    };
    config.default_retry = false;
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    let agent = concat!("flotilla-operator/", env!("CARGO_PKG_VERSION"));
    config.headers.push((USER_AGENT, HeaderValue::from_static(agent)));
    Ok(config)
}

/// Clients with the promises of this module.
///
/// # Errors
/// [`ClientError::Setup`].
pub fn connect(config: &Config, metrics: &Metrics, jitter: &Jitter) -> Result<Clients, ClientError> {
    let build = |layer: CallLayer| -> kube::Result<Client> {
        let mut connector = HttpConnector::new();
        connector.enforce_http(false);
        connector.set_connect_timeout(config.connect_timeout);
        connector.set_keepalive(Some(TCP_KEEPALIVE));
        connector.set_nodelay(true);
        let connector = config.rustls_https_connector_with_connector(connector)?;
        let hyper = legacy::Client::builder(TokioExecutor::new()).build::<_, Body>(connector);
        let service = ServiceBuilder::new()
            .layer(config.base_uri_layer())
            .option_layer(config.auth_layer()?)
            .layer(config.extra_headers_layer()?)
            .map_err(BoxError::from)
            .service(hyper);
        Ok(Client::new(layer.layer(service), &config.default_namespace))
    };
    let setup = |source| ClientError::Setup(Box::new(source));
    Ok(Clients {
        api: build(CallLayer::new(TRIES, metrics, jitter)).map_err(setup)?,
        lease: build(CallLayer::new(1, metrics, jitter)).map_err(setup)?,
    })
}

/// The same clients on any service that answers requests: a mock, or the simulated API server.
pub fn on_service<S, B>(service: S, metrics: &Metrics, jitter: &Jitter) -> Clients
where
    S: Service<Request<Body>, Response = Response<B>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Into<BoxError>,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let build = |tries| {
        Client::new(
            CallLayer::new(tries, metrics, jitter).layer(service.clone()),
            "default",
        )
    };
    Clients {
        api: build(TRIES),
        lease: build(1),
    }
}

/// A call that took longer than its budget.
#[derive(Debug, thiserror::Error)]
#[error("no answer to {method} {path} within {} s", after.as_secs())]
pub struct TimedOut {
    method: Method,
    path: String,
    after: Duration,
}

/// Adds the promises of this module to a service.
#[derive(Clone)]
pub struct CallLayer {
    tries: u32,
    turns: Arc<Semaphore>,
    metrics: Metrics,
    jitter: Jitter,
}

impl CallLayer {
    /// A layer whose calls are tried at most `tries` times and share [`CONCURRENCY`] turns.
    pub fn new(tries: u32, metrics: &Metrics, jitter: &Jitter) -> Self {
        Self {
            tries,
            turns: Arc::new(Semaphore::new(CONCURRENCY)),
            metrics: metrics.clone(),
            jitter: jitter.clone(),
        }
    }
}

impl<S> Layer<S> for CallLayer {
    type Service = CallService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        CallService {
            inner,
            layer: self.clone(),
        }
    }
}

/// The service made by [`CallLayer`].
#[derive(Clone)]
pub struct CallService<S> {
    inner: S,
    layer: CallLayer,
}

type AnswerBody = UnsyncBoxBody<Bytes, BoxError>;

impl<S, B> Service<Request<Body>> for CallService<S>
where
    S: Service<Request<Body>, Response = Response<B>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Into<BoxError>,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<AnswerBody>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        // Each try asks a clone of its own; waiting there counts against the call's budget.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let inner = self.inner.clone();
        let layer = self.layer.clone();
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            let body = body.collect_bytes().await?;
            let call = Call { parts, body, layer };
            match call.kind() {
                CallKind::Watch => call.open_watch(inner).await,
                CallKind::List => call.run(inner, LIST_TIMEOUT).await,
                CallKind::Other => call.run(inner, CALL_TIMEOUT).await,
            }
        })
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum CallKind {
    Watch,
    List,
    Other,
}

/// One call, whatever number of tries it takes.
struct Call {
    parts: http::request::Parts,
    body: Bytes,
    layer: CallLayer,
}

impl Call {
    fn kind(&self) -> CallKind {
        let mut query = self.parts.uri.query().unwrap_or_default().split('&');
        if query.clone().any(|pair| matches!(pair, "watch=true" | "watch=1")) {
            CallKind::Watch
        } else if self.parts.method == Method::GET && query.any(|pair| pair.starts_with("limit=")) {
            CallKind::List
        } else {
            CallKind::Other
        }
    }

    fn verb(&self) -> &'static str {
        match (self.kind(), self.parts.method.as_str()) {
            (CallKind::Watch, _) => "WATCH",
            (CallKind::List, _) => "LIST",
            (_, "GET") => "GET",
            (_, "POST") => "POST",
            (_, "PUT") => "PUT",
            (_, "PATCH") => "PATCH",
            (_, "DELETE") => "DELETE",
            _ => "OTHER",
        }
    }

    fn timed_out(&self, after: Duration) -> BoxError {
        let path = self.parts.uri.path().to_owned();
        Box::new(TimedOut {
            method: self.parts.method.clone(),
            path,
            after,
        })
    }

    fn observe(&self, code: Option<StatusCode>, since: Instant) {
        let code = code.map(|code| code.as_u16());
        self.layer
            .metrics
            .request(&self.parts.method, self.verb(), code, since.elapsed());
    }

    async fn open_watch<S, B>(self, inner: S) -> Result<Response<AnswerBody>, BoxError>
    where
        S: Service<Request<Body>, Response = Response<B>>,
        S::Error: Into<BoxError>,
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let started = Instant::now();
        let request = Request::from_parts(self.parts.clone(), Body::from(self.body.clone()));
        let opened = async { inner.oneshot(request).await.map_err(Into::<BoxError>::into) };
        let answer = timeout_at(started + CALL_TIMEOUT, opened).await;
        match answer {
            Ok(Ok(response)) if response.status().is_success() => {
                self.observe(Some(response.status()), started);
                Ok(response.map(|body| body.map_err(Into::into).boxed_unsync()))
            }
            Ok(Ok(response)) => {
                self.observe(Some(response.status()), started);
                let whole = timeout_at(started + CALL_TIMEOUT, read(response)).await;
                Ok(finish(whole.map_err(|_| self.timed_out(CALL_TIMEOUT))??))
            }
            Ok(Err(error)) => {
                self.observe(None, started);
                Err(error)
            }
            Err(_) => {
                self.observe(None, started);
                Err(self.timed_out(CALL_TIMEOUT))
            }
        }
    }

    async fn run<S, B>(self, inner: S, budget: Duration) -> Result<Response<AnswerBody>, BoxError>
    where
        S: Service<Request<Body>, Response = Response<B>> + Clone,
        S::Error: Into<BoxError>,
        B: http_body::Body<Data = Bytes>,
        B::Error: Into<BoxError>,
    {
        let deadline = Instant::now() + budget;
        // The semaphore is never closed.
        let Ok(Ok(_turn)) = timeout_at(deadline, self.layer.turns.acquire()).await else {
            return Err(self.timed_out(budget));
        };
        let mut tried = 1;
        loop {
            let started = Instant::now();
            let request = Request::from_parts(self.parts.clone(), Body::from(self.body.clone()));
            let answering = inner.clone().oneshot(request);
            let attempt = async { read(answering.await.map_err(Into::into)?).await };
            let answer = match timeout_at(deadline, attempt).await {
                Ok(answer) => answer,
                Err(_) => {
                    self.observe(None, started);
                    return Err(self.timed_out(budget));
                }
            };
            self.observe(answer.as_ref().ok().map(Response::status), started);
            let pause = self.layer.jitter.spread(FIRST_PAUSE * 4_u32.pow(tried - 1));
            let pause = match &answer {
                Ok(response) => pause.max(retry_after(response)),
                Err(_) => pause,
            };
            let again =
                tried < self.layer.tries && self.may_try_again(&answer) && Instant::now() + pause < deadline;
            if !again {
                return answer.map(finish);
            }
            self.layer.metrics.request_retry(self.verb());
            tried += 1;
            tokio::time::sleep(pause).await;
        }
    }

    /// Whether a further try cannot do harm and may help.
    fn may_try_again(&self, answer: &Result<Response<Bytes>, BoxError>) -> bool {
        let repeatable = self.parts.method != Method::POST;
        match answer {
            Ok(response) => match response.status() {
                StatusCode::TOO_MANY_REQUESTS => true,
                StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT => repeatable,
                _ => false,
            },
            Err(error) => match error.downcast_ref::<legacy::Error>() {
                Some(error) => repeatable || error.is_connect(),
                None => false,
            },
        }
    }
}

async fn read<B>(response: Response<B>) -> Result<Response<Bytes>, BoxError>
where
    B: http_body::Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    let (parts, body) = response.into_parts();
    let body = body.collect().await.map_err(Into::into)?.to_bytes();
    Ok(Response::from_parts(parts, body))
}

/// The answer with a whole body; an error always carries a `Status` with the HTTP code.
fn finish(response: Response<Bytes>) -> Response<AnswerBody> {
    let (parts, body) = response.into_parts();
    let is_error = parts.status.is_client_error() || parts.status.is_server_error();
    let body = if is_error {
        status_body(parts.status, body)
    } else {
        body
    };
    Response::from_parts(
        parts,
        Full::new(body).map_err(|never| match never {}).boxed_unsync(),
    )
}

fn status_body(code: StatusCode, body: Bytes) -> Bytes {
    let parsed: Option<Value> = serde_json::from_slice(&body).ok();
    let is_status =
        |value: &Value| value.get("code").and_then(Value::as_u64) == Some(u64::from(code.as_u16()));
    if parsed.as_ref().is_some_and(is_status) {
        return body;
    }
    let text = String::from_utf8_lossy(&body);
    let message = parsed
        .as_ref()
        .and_then(|value| value.get("message"))
        .and_then(Value::as_str);
    let raw = if parsed.is_some() {
        ""
    } else {
        super::conditions::truncate(text.trim(), 512)
    };
    let message = message.unwrap_or(raw);
    let reason = parsed
        .as_ref()
        .and_then(|value| value.get("reason"))
        .and_then(Value::as_str);
    let status = json!({
        "apiVersion": "v1",
        "kind": "Status",
        "status": "Failure",
        "code": code.as_u16(),
        "reason": reason.unwrap_or_else(|| code.canonical_reason().unwrap_or("Unknown")),
        "message": if message.is_empty() { code.to_string() } else { message.to_owned() },
    });
    status.to_string().into()
}

/// What the server asks to wait for, in whole seconds; zero without a wish.
fn retry_after<B>(response: &Response<B>) -> Duration {
    let value = response
        .headers()
        .get(RETRY_AFTER)
        .and_then(|value| value.to_str().ok());
    value
        .and_then(|value| value.trim().parse().ok())
        .map_or(Duration::ZERO, Duration::from_secs)
}

#[cfg(test)]
mod tests;
