//! Routes, health, and the agent's life.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use flotilla_serve::{Body, DrainLimits, Running, empty, json as json_response, text, with_guard};
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use serde_json::json;
use tokio::time::Instant;

use crate::card::{CARD_PATH, agent_card};
use crate::config::Config;
use crate::core::{Core, error_response};
use crate::{a2a_server, chat};

/// A running agent.
#[derive(Debug)]
pub struct Agent {
    /// Where it listens.
    pub addr: SocketAddr,
    core: Arc<Core>,
    running: Running,
}

/// The address cannot be bound. Nothing else stops an agent from starting: what is wrong with its configuration,
/// it says at `/readyz`.
#[derive(Debug, thiserror::Error)]
#[error("failed to listen on {addr}")]
pub struct StartError {
    addr: SocketAddr,
    source: io::Error,
}

impl Agent {
    /// Starts on the current runtime. It runs until [`Agent::shutdown`] or the runtime's end.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        let listen = config.listen;
        let limits = DrainLimits {
            minimum: config.drain_minimum,
            timeout: config.drain_timeout,
        };
        let core = Arc::new(Core::new(config));
        let handler = {
            let core = Arc::clone(&core);
            move |request| handle(Arc::clone(&core), request)
        };
        let running = flotilla_serve::start(listen, limits, core.shutdown.clone(), handler)
            .await
            .map_err(|source| StartError { addr: listen, source })?;
        let addr = *core.addr.get_or_init(|| running.addr);
        let reasons = core.unready();
        if reasons.is_empty() {
            tracing::info!(%addr, model = core.model_name(), "the agent is ready");
        } else {
            tracing::error!(%addr, ?reasons, "the agent is not ready");
        }
        Ok(Self { addr, core, running })
    }

    /// Its address as a URL, without a slash at the end.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Begins to drain: `/readyz` says no, requests in flight and late ones are still answered.
    pub fn drain(&self) {
        self.core.shutdown.cancel();
    }

    /// Drains and returns when everything has ended or the drain's time-out is over.
    pub async fn shutdown(self) {
        self.drain();
        let deadline = Instant::now() + self.core.config.drain_timeout;
        self.running.ended().await;
        self.core.working.close();
        if tokio::time::timeout_at(deadline, self.core.working.wait())
            .await
            .is_err()
        {
            tracing::warn!(
                tasks = self.core.working.len(),
                "the drain's time-out ended tasks that were still at work"
            );
        }
    }
}

async fn handle(core: Arc<Core>, request: Request<Incoming>) -> Response<Body> {
    let path = request.uri().path().to_owned();
    match (request.method(), path.as_str()) {
        (&Method::POST, "/" | "/chat" | "/v1/chat/completions") => match core.permit() {
            Ok(permit) => with_guard(work(core, path.as_str(), request).await, permit),
            Err(error) => error_response(&error),
        },
        (&Method::GET, "/healthz") => text(StatusCode::OK, "ok\n"),
        (&Method::GET, "/readyz") => ready(&core),
        (&Method::GET, CARD_PATH) => card(&core, &request),
        (_, "/" | "/chat" | "/v1/chat/completions" | "/healthz" | "/readyz" | CARD_PATH) => {
            text(StatusCode::METHOD_NOT_ALLOWED, "this path has another method\n")
        }
        _ => text(
            StatusCode::NOT_FOUND,
            "no such path: POST /, /chat or /v1/chat/completions\n",
        ),
    }
}

async fn work(core: Arc<Core>, path: &str, request: Request<Incoming>) -> Response<Body> {
    let answered = match path {
        "/chat" => chat::chat(core, request).await,
        "/v1/chat/completions" => chat::completions(core, request).await,
        _ => Ok(a2a_server::handle(core, request).await),
    };
    answered.unwrap_or_else(|error| error_response(&error))
}

fn ready(core: &Core) -> Response<Body> {
    let reasons = core.unready();
    let status = if reasons.is_empty() {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    json_response(status, &json!({"ready": reasons.is_empty(), "reasons": reasons}))
}

fn card(core: &Core, request: &Request<Incoming>) -> Response<Body> {
    let config = &core.config;
    let own = || {
        let addr = core.addr.get().copied().unwrap_or(config.listen);
        if addr.ip().is_unspecified() {
            format!("http://localhost:{}", addr.port())
        } else {
            format!("http://{addr}")
        }
    };
    let public_url = config.public_url.clone().unwrap_or_else(own);
    let etag = format!("\"{}\"", config.version);
    let known = request
        .headers()
        .get(header::IF_NONE_MATCH)
        .is_some_and(|value| value.as_bytes() == etag.as_bytes());
    let mut response = if known {
        let mut response = Response::new(empty());
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        response
    } else {
        json_response(
            StatusCode::OK,
            &agent_card(&config.name, &config.version, &public_url),
        )
    };
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("max-age=60"));
    if let Ok(etag) = HeaderValue::try_from(etag) {
        headers.insert(header::ETAG, etag);
    }
    response
}
