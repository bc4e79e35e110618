//! Agent → provider: `/providers/<name>/v1/<rest>` with the provider's key added, and what was used counted.
//!
//! Who may: pods of agents of this namespace, known by their address or by a token that only their pod has ([`identity`]),
//! and by nothing else a client can say. A pod that has just got its address may be faster than the watch that tells of it, so an unknown address waits a moment before it is
//! refused.
//!
//! The body passes unchanged, in both directions, and as it comes; token counts are read on the way ([`usage`]). Model
//! names are the request's, because pools and prices name the provider's model as requests do (responses name dated
//! snapshots); the response's is taken where the request has none.
//!
//! A request is sent once more only by the rules of [`crate::upstream`].

pub mod identity;
pub mod keys;
pub mod provider;
pub mod tls;
pub mod usage;

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, watch};
use tokio::time::Sleep;
use tracing::debug;

use crate::config::Config;
use crate::ingress::proxy::hold;
use crate::reply::{End, Observer, Outgoing, Passing, Refusal};
use crate::server::Handler;
use crate::upstream::body::RequestBody;
use crate::upstream::connection::Connection;
use crate::upstream::{Answer, FailureKind, Limits, forward};
use provider::{Place, Provider};
use usage::{EventReader, Found, JsonReader};

/// How long an unknown address may wait for the watch to tell of it.
const IDENTITY_GRACE: Duration = Duration::from_secs(2);
/// Requests of unknown addresses that may wait at once.
const MAX_STRANGERS: usize = 64;
/// Sends of one request at most.
const MAX_SENDS: u32 = 3;

/// All providers of the namespace, and who may use them.
pub struct Egress {
    providers: ArcSwap<HashMap<String, Arc<Provider>>>,
    agents: watch::Sender<Arc<HashSet<IpAddr>>>,
    identity: identity::Identity,
    strangers: Semaphore,
    keys: PathBuf,
    tls: Arc<rustls::ClientConfig>,
    limits: Limits,
    timeout: Duration,
}

impl Egress {
    /// No providers yet. `keys` is the folder with one folder per provider, `timeout` that of a whole request.
    pub fn new(keys: PathBuf, tls: Arc<rustls::ClientConfig>, limits: Limits, timeout: Duration) -> Self {
        Self {
            providers: ArcSwap::default(),
            agents: watch::Sender::default(),
            identity: identity::Identity::default(),
            strangers: Semaphore::new(MAX_STRANGERS),
            keys,
            tls,
            limits,
            timeout,
        }
    }

    /// The providers as they are now.
    pub fn providers(&self) -> Arc<HashMap<String, Arc<Provider>>> {
        self.providers.load_full()
    }

    /// Puts `config` in force. One caller at a time.
    pub async fn apply(&self, config: &Config) {
        let before = self.providers.load_full();
        let mut after = HashMap::new();
        for (name, wanted) in &config.providers {
            let known = before.get(name);
            let provider = match known {
                Some(provider) if provider.config == *wanted => provider.clone(),
                _ => {
                    let known = known.map(Arc::as_ref);
                    let provider = Provider::new(name, wanted, &self.keys, &self.tls, self.limits, known);
                    if let Some(key) = &provider.key {
                        key.refresh().await;
                    }
                    Arc::new(provider)
                }
            };
            after.insert(name.clone(), provider);
        }
        self.providers.store(Arc::new(after));
        // Before the addresses: who is an agent must be known with what is asked of it.
        self.identity.apply(config);
        self.agents.send_if_modified(|agents| {
            let changed = **agents != config.agents;
            if changed {
                *agents = Arc::new(config.agents.clone());
            }
            changed
        });
    }

    /// Reads all keys again and drops connections that have been idle for too long.
    pub async fn refresh(&self) {
        for provider in self.providers.load_full().values() {
            if let Some(key) = &provider.key {
                key.refresh().await;
            }
            if let Ok(place) = &provider.place {
                place.peer.trim();
            }
        }
    }

    async fn is_agent(&self, address: IpAddr) -> bool {
        if self.agents.borrow().contains(&address) {
            return true;
        }
        let Ok(_place) = self.strangers.try_acquire() else {
            return false;
        };
        let mut agents = self.agents.subscribe();
        let known = agents.wait_for(|agents| agents.contains(&address));
        tokio::time::timeout(IDENTITY_GRACE, known)
            .await
            .is_ok_and(|known| known.is_ok())
    }

    async fn serve(
        &self,
        request: Request<Incoming>,
        client: SocketAddr,
    ) -> Result<Response<Outgoing>, Refusal> {
        let headers = request.headers();
        let address = self.identity.caller(headers, client.ip().to_canonical()).await?;
        if !self.is_agent(address).await {
            let message = format!(
                "{address} is no agent pod of this namespace; only those may use its model providers"
            );
            return Err(Refusal::new(StatusCode::FORBIDDEN, "NotAnAgent", message));
        }
        self.identity.admit(address, headers)?;
        let (mut head, body) = request.into_parts();
        let (name, rest) = split(head.uri.path()).ok_or_else(|| {
            Refusal::new(
                StatusCode::NOT_FOUND,
                "NoSuchRoute",
                "this port serves /providers/<name>/v1/…",
            )
        })?;
        let provider = self.providers.load().get(name).cloned().ok_or_else(|| {
            let message = format!("there is no ModelProvider \"{name}\" in this namespace");
            Refusal::new(StatusCode::NOT_FOUND, "NoSuchProvider", message)
        })?;
        let place = provider.place.as_ref().map_err(|wrong| {
            let message = format!("the ModelProvider \"{name}\" cannot be used: {wrong}");
            Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "ProviderInvalid", message)
        })?;
        let target = place.target(rest, head.uri.query()).ok_or_else(|| {
            Refusal::new(
                StatusCode::BAD_REQUEST,
                "PathRefused",
                "the path may not contain \".\" or \"..\" segments",
            )
        })?;
        let proof = proof(&provider).await?;

        let mut timer = Box::pin(tokio::time::sleep(self.timeout));
        let reader = is_json(&head.headers).then(|| Arc::new(Mutex::new(JsonReader::default())));
        let body = tokio::select! {
            biased;
            body = hold(body) => read_along(body?, reader.as_ref()),
            () = timer.as_mut() => return Err(self.timed_out()),
        };
        let streamed = body.again().is_none();
        forward::to_provider(&mut head, target, place.host.clone(), proof, streamed);
        let mut meter = Meter::new(provider.clone(), reader);
        let sent = tokio::select! {
            biased;
            sent = send(place, Request::from_parts(head, body)) => sent,
            () = timer.as_mut() => Err(self.timed_out()),
        };
        match sent {
            Ok(answer) => Ok(passed_on(answer, meter, timer)),
            Err(refusal) => {
                meter.count(true);
                Err(refusal)
            }
        }
    }

    fn timed_out(&self) -> Refusal {
        let message = format!("the provider did not answer within {} s", self.timeout.as_secs());
        Refusal::new(StatusCode::GATEWAY_TIMEOUT, "ProviderTimeout", message)
    }
}

impl Handler for Egress {
    async fn handle(&self, request: Request<Incoming>, client: SocketAddr) -> Response<Outgoing> {
        self.serve(request, client)
            .await
            .unwrap_or_else(Refusal::into_response)
    }
}

/// The provider's name and what follows `/v1`, with its slash.
pub fn split(path: &str) -> Option<(&str, &str)> {
    let (name, after) = path.strip_prefix("/providers/")?.split_once('/')?;
    let rest = after.strip_prefix("v1")?;
    (!name.is_empty() && (rest.is_empty() || rest.starts_with('/'))).then_some((name, rest))
}

/// The header that proves us to the provider; none where it needs none.
async fn proof(provider: &Provider) -> Result<Option<HeaderValue>, Refusal> {
    let Some(key) = &provider.key else { return Ok(None) };
    if let Some(header) = key.header() {
        return Ok(Some(header));
    }
    // It may have been mounted a moment ago.
    key.refresh().await;
    if let Some(header) = key.header() {
        return Ok(Some(header));
    }
    let (secret, field) = provider
        .config
        .secret
        .as_ref()
        .map_or(("", ""), |(name, key)| (name, key));
    let message = format!(
        "the key of provider \"{}\" is missing: Secret \"{secret}\", key \"{field}\"",
        provider.name
    );
    Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "KeyMissing", message).retry_after(5))
}

fn is_json(headers: &HeaderMap) -> bool {
    media_type(headers).is_some_and(|media| media == "application/json" || media.ends_with("+json"))
}

fn media_type(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
    Some(
        value
            .split(';')
            .next()
            .unwrap_or_default()
            .trim()
            .to_ascii_lowercase(),
    )
}

/// Has `reader` see the bytes of `body`: now if they are here, else as they pass.
fn read_along(body: RequestBody, reader: Option<&Arc<Mutex<JsonReader>>>) -> RequestBody {
    let Some(reader) = reader else { return body };
    match body {
        RequestBody::Held(Some(bytes)) => {
            reader.lock().feed(&bytes);
            RequestBody::Held(Some(bytes))
        }
        RequestBody::Streamed(incoming) => RequestBody::Read(incoming, reader.clone()),
        other => other,
    }
}

async fn send(place: &Place, mut request: Request<RequestBody>) -> Result<Answer, Refusal> {
    let mut reuse = request.body().again().is_some();
    for _ in 0..MAX_SENDS {
        let idempotent = request.method().is_idempotent();
        let spare = request.body().again().map(|body| {
            let mut spare = Request::new(body);
            *spare.method_mut() = request.method().clone();
            *spare.uri_mut() = request.uri().clone();
            *spare.headers_mut() = request.headers().clone();
            spare
        });
        let failure = match place.peer.send(request, reuse).await {
            Ok(answer) => return Ok(answer),
            Err(failure) => failure,
        };
        debug!(error = %failure.kind, "no response from the provider");
        let again = match &failure.kind {
            FailureKind::Closed { unread: true, .. } => spare,
            FailureKind::Closed { reused: true, .. } if idempotent => spare,
            // A provider that cannot be reached now cannot be reached in a millisecond either.
            _ => None,
        };
        match again {
            Some(again) => request = again,
            None => return Err(no_response(&failure.kind)),
        }
        reuse = false;
    }
    Err(Refusal::new(
        StatusCode::BAD_GATEWAY,
        "ProviderClosed",
        "the provider keeps closing connections unanswered",
    ))
}

fn no_response(kind: &FailureKind) -> Refusal {
    match kind {
        FailureKind::NotSent(error) => {
            let message = format!("the provider could not be reached: {error}");
            Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "ProviderUnreachable", message).retry_after(1)
        }
        FailureKind::Closed { .. } => Refusal::new(
            StatusCode::BAD_GATEWAY,
            "ProviderClosed",
            "the provider closed the connection before it answered; it may have worked on the request",
        ),
        FailureKind::Broken(_) => Refusal::new(
            StatusCode::BAD_GATEWAY,
            "ProviderBroken",
            "the provider's answer could not be understood",
        ),
    }
}

fn passed_on(answer: Answer, mut meter: Meter, timer: std::pin::Pin<Box<Sleep>>) -> Response<Outgoing> {
    let (mut head, body) = answer.response.into_parts();
    meter.answered(&head.headers, head.status, answer.connection);
    forward::to_client(&mut head);
    Response::from_parts(head, Outgoing::Provider(Passing::new(body, timer, meter)))
}

/// A request at a provider: reads what was used, and counts it at the end.
pub struct Meter {
    provider: Arc<Provider>,
    request: Option<Arc<Mutex<JsonReader>>>,
    response: Reader,
    connection: Option<Connection>,
    status: Option<StatusCode>,
    counted: bool,
}

/// How the response is read.
enum Reader {
    Nothing,
    Json(JsonReader),
    Events(EventReader),
}

impl Meter {
    fn new(provider: Arc<Provider>, request: Option<Arc<Mutex<JsonReader>>>) -> Self {
        provider.usage.begin();
        Self {
            provider,
            request,
            response: Reader::Nothing,
            connection: None,
            status: None,
            counted: false,
        }
    }

    fn answered(&mut self, headers: &HeaderMap, status: StatusCode, connection: Connection) {
        self.status = Some(status);
        self.connection = Some(connection);
        self.response = match media_type(headers).as_deref() {
            Some("text/event-stream") => Reader::Events(EventReader::default()),
            Some(media) if media == "application/json" || media.ends_with("+json") => {
                Reader::Json(JsonReader::default())
            }
            _ => Reader::Nothing,
        };
    }

    fn count(&mut self, failed: bool) {
        if std::mem::replace(&mut self.counted, true) {
            return;
        }
        let found = match &self.response {
            Reader::Nothing => Found::default(),
            Reader::Json(reader) => reader.found().clone(),
            Reader::Events(reader) => reader.found().clone(),
        };
        let asked = self
            .request
            .as_ref()
            .and_then(|reader| reader.lock().found().model.clone());
        let model = asked.or_else(|| found.model.clone());
        self.provider.usage.end(model.as_deref(), failed, &found);
    }
}

impl Observer for Meter {
    fn data(&mut self, bytes: &Bytes) {
        match &mut self.response {
            Reader::Nothing => {}
            Reader::Json(reader) => reader.feed(bytes),
            Reader::Events(reader) => reader.feed(bytes),
        }
    }

    fn end(&mut self, end: End) {
        let connection = self.connection.take();
        if end == End::Complete
            && let (Some(connection), Ok(place)) = (connection, &self.provider.place)
        {
            place.peer.keep(connection);
        }
        // One that the agent has given up was answered all the same.
        let refused = self.status.is_none_or(|status| status.as_u16() >= 400);
        self.count(refused || matches!(end, End::Cut | End::TimedOut));
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.count(self.status.is_none());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_names_the_provider() {
        for (path, expected) in [
            (
                "/providers/main/v1/chat/completions",
                Some(("main", "/chat/completions")),
            ),
            ("/providers/main/v1", Some(("main", ""))),
            ("/providers/main/v12/x", None),
            ("/providers//v1/x", None),
            ("/providers/main", None),
            ("/v1/x", None),
        ] {
            assert_eq!(split(path), expected, "{path}");
        }
    }
}
