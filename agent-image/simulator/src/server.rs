//! The provider: routes, keys, limits, and replies at their pace.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use flotilla_serve::{
    Body, DrainLimits, Running, json as json_response, read_body, sse_response, stream, text,
};
use futures::StreamExt;
use futures::stream::unfold;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use parking_lot::Mutex;
use serde_json::json;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::api::{ChatRequest, Protocol, error_body};
use crate::config::{Config, ConfigError};
use crate::exchange::{Admission, Streaming, Subject, cut, unix_milliseconds};
use crate::log::{EventKind, Log, LogEvent, LogPage};
use crate::model::{Behaviour, Failure, behaviour_of};
use crate::plan::Plan;
use crate::quota::Quota;
use crate::refusal::too_many_requests;
use crate::script::{Script, Step};
use crate::wire::{Envelope, Usage};

/// Slots of the table that counts equal requests. Two requests that share one only shift each other's count.
const OCCURRENCE_SLOTS: usize = 1 << 16;

/// Names listed by `GET /v1/models` besides the configured ones.
const LISTED_MODELS: &[&str] = &["sim", "sim-fast", "sim-slow", "sim-error-20"];

/// A running simulator.
#[derive(Debug)]
pub struct Simulator {
    /// Where it listens.
    pub addr: SocketAddr,
    state: Arc<State>,
    shutdown: CancellationToken,
    running: Running,
}

/// Why a simulator did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration is impossible.
    #[error("the configuration cannot be used")]
    Config(#[from] ConfigError),
    /// The log file cannot be written.
    #[error("failed to open the log file")]
    LogFile(#[source] io::Error),
    /// The address cannot be bound.
    #[error("failed to listen on {addr}")]
    Listen {
        /// The address.
        addr: SocketAddr,
        /// Why.
        source: io::Error,
    },
}

impl Simulator {
    /// Starts on the current runtime. It runs until [`Simulator::shutdown`] or the runtime's end.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        config.validate()?;
        let log = Log::open(config.log_capacity, config.log_file.as_deref()).map_err(StartError::LogFile)?;
        let (listen, timeout) = (config.listen, config.drain_timeout());
        let state = Arc::new(State {
            inner: Mutex::new(Inner {
                epoch: Instant::now(),
                quota: Quota::new(&config.limits),
                log,
                occurrences: vec![0; OCCURRENCE_SLOTS],
                script: Script::default(),
            }),
            requests: AtomicU64::new(0),
            config,
        });
        let shutdown = CancellationToken::new();
        let limits = DrainLimits {
            minimum: Duration::ZERO,
            timeout,
        };
        let handler = {
            let state = Arc::clone(&state);
            move |request| Arc::clone(&state).handle(request)
        };
        let running = flotilla_serve::start(listen, limits, shutdown.clone(), handler)
            .await
            .map_err(|source| StartError::Listen { addr: listen, source })?;
        tracing::info!(addr = %running.addr, config = ?state.config, "the simulator listens");
        Ok(Self {
            addr: running.addr,
            state,
            shutdown,
            running,
        })
    }

    /// The base URL for `OPENAI_BASE_URL`, ending in `/v1`.
    pub fn base_url(&self) -> String {
        format!("http://{}/v1", self.addr)
    }

    /// The events in memory.
    pub fn log(&self) -> LogPage {
        self.state.inner.lock().log.since(0)
    }

    /// What happens to the next requests.
    ///
    /// # Errors
    /// What is impossible in it.
    pub fn script(&self, steps: Vec<Step>) -> Result<(), String> {
        self.state.inner.lock().script.extend(steps)
    }

    /// Unused limits, an empty log, no script, time zero: as after a start.
    pub fn reset(&self) {
        self.state.reset();
    }

    /// Stops accepting, lets requests in flight end, and returns when they have.
    pub async fn shutdown(self) {
        self.shutdown.cancel();
        self.running.ended().await;
    }
}

#[derive(Debug)]
pub(crate) struct State {
    config: Config,
    requests: AtomicU64,
    pub inner: Mutex<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    /// Where the limiters' clock starts.
    pub epoch: Instant,
    pub log: Log,
    quota: Quota,
    occurrences: Vec<u32>,
    script: Script,
}

impl State {
    async fn handle(self: Arc<Self>, request: Request<Incoming>) -> Response<Body> {
        let path = request.uri().path().to_owned();
        if let Some(protocol) = Protocol::of(&path) {
            return match request.method() {
                &Method::POST => self.reply(request, protocol).await,
                _ => text(StatusCode::METHOD_NOT_ALLOWED, "this path has another method\n"),
            };
        }
        match (request.method(), path.as_str()) {
            (&Method::GET, "/v1/models") => self.models(),
            (&Method::GET, "/admin/log") => {
                let since = request
                    .uri()
                    .query()
                    .and_then(|query| query.strip_prefix("since="));
                match since.map_or(Ok(0), str::parse) {
                    Ok(since) => json_response(StatusCode::OK, &self.inner.lock().log.since(since)),
                    Err(_) => text(StatusCode::BAD_REQUEST, "since is a sequence number\n"),
                }
            }
            (&Method::POST, "/admin/reset") => {
                self.reset();
                text(StatusCode::OK, "reset\n")
            }
            (&Method::GET, "/healthz" | "/readyz") => text(StatusCode::OK, "ok\n"),
            (&Method::POST, "/admin/script") => self.take_script(request).await,
            (_, "/v1/models" | "/admin/log" | "/admin/reset" | "/admin/script") => {
                text(StatusCode::METHOD_NOT_ALLOWED, "this path has another method\n")
            }
            _ => {
                let message = format!("no such path: {path}");
                json_response(
                    StatusCode::NOT_FOUND,
                    &error_body(&message, "invalid_request_error", None),
                )
            }
        }
    }

    async fn take_script(&self, request: Request<Incoming>) -> Response<Body> {
        let body = match read_body(request.into_body(), self.config.max_body_bytes).await {
            Ok(body) => body,
            Err(error) => return text(error.status(), format!("{error}\n")),
        };
        let steps = serde_json::from_slice::<Vec<Step>>(&body).map_err(|error| error.to_string());
        match steps.and_then(|steps| self.inner.lock().script.extend(steps)) {
            Ok(()) => text(StatusCode::OK, "taken\n"),
            Err(problem) => text(StatusCode::BAD_REQUEST, format!("{problem}\n")),
        }
    }

    fn models(&self) -> Response<Body> {
        let configured = self.config.models.keys().map(String::as_str);
        let data: Vec<_> = configured
            .chain(LISTED_MODELS.iter().copied())
            .map(|id| json!({"id": id, "object": "model", "created": 0, "owned_by": "flotilla-simulator"}))
            .collect();
        json_response(StatusCode::OK, &json!({"object": "list", "data": data}))
    }

    fn reset(&self) {
        let mut inner = self.inner.lock();
        inner.epoch = Instant::now();
        inner.quota = Quota::new(&self.config.limits);
        inner.log.reset();
        inner.occurrences.fill(0);
        inner.script = Script::default();
    }

    async fn reply(self: Arc<Self>, request: Request<Incoming>, protocol: Protocol) -> Response<Body> {
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        let subject = Subject {
            protocol,
            request_id: format!("req-{number}"),
            model: String::new(),
            stream: false,
        };
        let id = subject.request_id.clone();
        let mut response = match self.admitted(request, subject).await {
            Ok(response) => response,
            Err(refused) => *refused,
        };
        if let Ok(id) = HeaderValue::try_from(id) {
            let name = match protocol {
                Protocol::Messages => "request-id",
                _ => "x-request-id",
            };
            response.headers_mut().insert(name, id);
        }
        response
    }

    async fn admitted(
        self: &Arc<Self>,
        request: Request<Incoming>,
        mut subject: Subject,
    ) -> Result<Response<Body>, Box<Response<Body>>> {
        let protocol = subject.protocol;
        if !self.key_accepted(request.headers(), protocol) {
            let kind = match protocol {
                Protocol::Messages => "authentication_error",
                _ => "invalid_request_error",
            };
            let body = protocol.error("Incorrect API key provided.", kind, Some("invalid_api_key"));
            return Err(self.reject(&subject, StatusCode::UNAUTHORIZED, &body));
        }
        if protocol == Protocol::Messages && !request.headers().contains_key("anthropic-version") {
            let body = protocol.error(
                "anthropic-version: header is required",
                "invalid_request_error",
                None,
            );
            return Err(self.reject(&subject, StatusCode::BAD_REQUEST, &body));
        }
        let body = read_body(request.into_body(), self.config.max_body_bytes)
            .await
            .map_err(|error| {
                let body = protocol.error(&error.to_string(), "invalid_request_error", None);
                self.reject(&subject, error.status(), &body)
            })?;
        let request: ChatRequest = protocol.read(&body).map_err(|error| {
            let message = format!("the body is not a request of this kind: {error}");
            self.reject(
                &subject,
                StatusCode::BAD_REQUEST,
                &protocol.error(&message, "invalid_request_error", None),
            )
        })?;
        subject.model.clone_from(&request.model);
        subject.stream = request.stream;
        if let Some(problem) = request.problem() {
            let body = protocol.error(problem, "invalid_request_error", None);
            return Err(self.reject(&subject, StatusCode::BAD_REQUEST, &body));
        }
        let behaviour = self.behaviour(&request.model).map_err(|message| {
            let kind = match protocol {
                Protocol::Messages => "not_found_error",
                _ => "invalid_request_error",
            };
            let body = protocol.error(&message, kind, Some("model_not_found"));
            self.reject(&subject, StatusCode::NOT_FOUND, &body)
        })?;
        self.scripted(&subject)?;
        let (plan, headers) = self.admit(&subject, &request, &behaviour)?;
        let admission = Admission::new(Arc::clone(self), subject, plan.input_tokens);
        let mut response = self.answer(&request, protocol, plan, admission).await;
        response.headers_mut().extend(headers);
        Ok(response)
    }

    /// The failure that the script has for this request.
    fn scripted(&self, subject: &Subject) -> Result<(), Box<Response<Body>>> {
        let mut inner = self.inner.lock();
        let step = inner.script.next(&subject.model);
        let Some((step, status)) = step.and_then(|step| {
            let status = StatusCode::from_u16(step.status).ok()?;
            (status != StatusCode::OK).then_some((step, status))
        }) else {
            return Ok(());
        };
        let event = subject.event(inner.epoch.elapsed(), EventKind::Failed, status.as_u16());
        inner.log.push(event);
        let kind = match status {
            StatusCode::TOO_MANY_REQUESTS => "requests",
            _ => "server_error",
        };
        let body = subject.protocol.error("a scripted failure", kind, None);
        let mut response = json_response(status, &body);
        if let Some(seconds) = step.retry_after_seconds {
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        Err(Box::new(response))
    }

    fn key_accepted(&self, headers: &HeaderMap, protocol: Protocol) -> bool {
        let keys = &self.config.api_keys;
        let text = |name| {
            headers
                .get(name)
                .and_then(|value: &HeaderValue| value.to_str().ok())
        };
        let given = match protocol {
            Protocol::Messages => text("x-api-key"),
            _ => text("authorization").and_then(|value| value.strip_prefix("Bearer ")),
        };
        keys.is_empty() || given.is_some_and(|given| keys.iter().any(|key| key == given))
    }

    fn behaviour(&self, model: &str) -> Result<Behaviour, String> {
        if let Some(own) = self.config.models.get(model) {
            return Ok(*own);
        }
        if self.config.known_models_only && !model.starts_with("sim-") {
            return Err(format!("the model '{model}' does not exist"));
        }
        behaviour_of(model, self.config.behaviour).map_err(|error| error.to_string())
    }

    /// Asks the limits and logs their answer, under one lock and with one reading of the clock.
    fn admit(
        &self,
        subject: &Subject,
        request: &ChatRequest,
        behaviour: &Behaviour,
    ) -> Result<(Plan, HeaderMap), Box<Response<Body>>> {
        let fingerprint = request.fingerprint();
        let mut inner = self.inner.lock();
        let now = inner.epoch.elapsed();
        let slot = (fingerprint % OCCURRENCE_SLOTS as u64) as usize;
        let occurrence = inner.occurrences.get(slot).copied().unwrap_or_default();
        let mut plan = Plan::new(self.config.seed, request, behaviour, fingerprint, occurrence);
        if subject.protocol == Protocol::Embeddings {
            plan.words.clear();
        }
        let cost = plan.cost(self.config.output_charge, request);
        let decision = inner.quota.admit(now, &request.model, cost);
        let headers = match subject.protocol {
            Protocol::Messages => inner
                .quota
                .anthropic_headers(now, &request.model, unix_milliseconds()),
            _ => inner.quota.headers(now, &request.model),
        };
        let event = |kind, status: StatusCode| {
            let mut event = subject.event(now, kind, status.as_u16());
            (event.input_tokens, event.output_tokens) = (cost.input_tokens, cost.output_tokens);
            event
        };
        match decision {
            Ok(()) => {
                inner.log.push(event(EventKind::Admitted, StatusCode::OK));
                if let Some(count) = inner.occurrences.get_mut(slot) {
                    *count = count.wrapping_add(1);
                }
                Ok((plan, headers))
            }
            Err(refusal) => {
                inner.log.push(LogEvent {
                    limit: Some(refusal.limit.clone()),
                    retry_after_nanoseconds: refusal
                        .retry_after
                        .map(|wait| u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX)),
                    ..event(EventKind::Refused, StatusCode::TOO_MANY_REQUESTS)
                });
                let mut response = too_many_requests(subject.protocol, &request.model, cost, &refusal);
                response.headers_mut().extend(headers);
                Err(Box::new(response))
            }
        }
    }

    async fn answer(
        &self,
        request: &ChatRequest,
        protocol: Protocol,
        plan: Plan,
        mut admission: Admission,
    ) -> Response<Body> {
        let asked_at = Instant::now();
        if plan.failure == Some(Failure::Timeout) {
            tokio::time::sleep(Duration::from_secs(self.config.hang_seconds)).await;
            admission.end(EventKind::Failed, StatusCode::GATEWAY_TIMEOUT);
            let body = protocol.error("the simulated time-out is over", "server_error", None);
            return json_response(StatusCode::GATEWAY_TIMEOUT, &body);
        }
        let first_token_at = asked_at + plan.latency;
        tokio::time::sleep_until(first_token_at).await;
        let failed = match plan.failure {
            Some(Failure::Error) => Some((StatusCode::INTERNAL_SERVER_ERROR, "a simulated server error")),
            Some(Failure::Unavailable) => Some((StatusCode::SERVICE_UNAVAILABLE, "simulated overload")),
            _ => None,
        };
        if let Some((status, message)) = failed {
            admission.end(EventKind::Failed, status);
            return json_response(status, &protocol.error(message, "server_error", None));
        }
        let envelope = Envelope {
            protocol,
            id: request.fingerprint() ^ self.config.seed,
            created: unix_milliseconds() / 1_000,
            model: request.model.clone(),
            include_usage: request
                .stream_options
                .is_some_and(|options| options.include_usage),
        };
        if request.stream {
            let reply = Streaming::new(envelope, plan, admission, first_token_at);
            return sse_response(unfold(reply, Streaming::next));
        }
        tokio::time::sleep_until(first_token_at + plan.gap * gaps(plan.tokens_to_send())).await;
        let usage = Usage::new(plan.input_tokens, plan.output_tokens());
        let reply = match protocol {
            Protocol::Embeddings => envelope.embeddings(request.messages.len(), plan.input_tokens),
            _ => envelope.whole(&plan.words.concat(), plan.finish_reason, usage),
        };
        if plan.failure == Some(Failure::Cut) {
            admission.sent(plan.tokens_to_send());
            admission.end(EventKind::Failed, StatusCode::OK);
            let bytes = Bytes::from(reply.to_string());
            let half = bytes.slice(..bytes.len() / 2);
            let chunks =
                futures::stream::iter([Ok(half)]).chain(futures::stream::once(async { Err(cut().await) }));
            let mut response = Response::new(stream(chunks));
            response
                .headers_mut()
                .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            return response;
        }
        admission.sent(plan.words.len());
        admission.end(EventKind::Completed, StatusCode::OK);
        json_response(StatusCode::OK, &reply)
    }

    fn reject(&self, subject: &Subject, status: StatusCode, body: &serde_json::Value) -> Box<Response<Body>> {
        let mut inner = self.inner.lock();
        let event = subject.event(inner.epoch.elapsed(), EventKind::Rejected, status.as_u16());
        inner.log.push(event);
        Box::new(json_response(status, body))
    }
}

fn gaps(tokens: usize) -> u32 {
    u32::try_from(tokens.saturating_sub(1)).unwrap_or(u32::MAX)
}
