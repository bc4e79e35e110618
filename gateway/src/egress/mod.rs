//! Agent → provider: `/providers/<name>/v1/<rest>` with the provider's key added, and what was used counted.
//!
//! Who may: pods of agents of this namespace, known by their address or by a token that only their pod has ([`identity`]),
//! and by nothing else a client can say. A pod that has just got its address may be faster than the watch that tells of it, so an unknown address waits a moment before it is
//! refused.
//!
//! ```text
//!  identity ─► route ─► content ─┬─► attempt: quota, budget, breaker ─► send ─► meter: usage, settle
//!                                └─► the next of the path's fallbacks, while nothing has reached the agent
//! ```
//!
//! Bodies pass in both directions as they come, but for what [`request`] adds and [`events`] takes out again. Model names
//! are the request's, because pools and prices name the provider's model as requests do (responses name dated snapshots);
//! the response's is taken where the request has none.
//!
//! To one provider a request is sent once more only by the rules of [`crate::upstream`]; to another one by those of
//! [`fallback`].
//!
//! Where a provider has quotas a request is sent when it has reserved what it will use ([`quota`]), and settled by what it
//! has used.

pub mod events;
pub mod export;
pub mod fallback;
pub mod health;
pub mod identity;
pub mod keys;
mod meter;
pub mod provider;
pub mod quota;
mod refused;
pub mod request;
pub mod spend;
pub mod tls;
pub mod usage;

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use flotilla_crds::route::Route;
use http::header::{HeaderName, HeaderValue};
use http::{HeaderMap, Method, Request, Response, StatusCode, header, request as http_request};
use hyper::body::Incoming;
use jiff::Timestamp;
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, Sleep};
use tracing::debug;

use crate::config::{Config, ProviderType};
use crate::reply::{Outgoing, Passing, Refusal};
use crate::server::Handler;
use crate::upstream::body::RequestBody;
use crate::upstream::{Answer, FailureKind, Limits, forward};
use fallback::{Choice, Fallbacks, Miss, Reason};
pub use meter::Meter;
use provider::{Place, Provider};
use quota::{Ask, Permit, Quotas};
use request::{Content, Operation, Room};
use spend::{OverBudget, Reserved};

/// How long an unknown address may wait for the watch to tell of it.
const IDENTITY_GRACE: Duration = Duration::from_secs(2);
/// Requests of unknown addresses that may wait at once.
const MAX_STRANGERS: usize = 64;
/// Sends of one request to one provider at most.
const MAX_SENDS: u32 = 3;

/// All providers of the namespace, and who may use them.
pub struct Egress {
    providers: ArcSwap<HashMap<String, Arc<Provider>>>,
    agents: watch::Sender<Arc<HashSet<IpAddr>>>,
    identity: identity::Identity,
    strangers: Semaphore,
    pools: ArcSwap<HashMap<IpAddr, Arc<str>>>,
    quotas: Arc<Quotas>,
    keys: PathBuf,
    tls: Arc<rustls::ClientConfig>,
    limits: Limits,
    timeout: Duration,
    instance: String,
    room: Room,
    fallbacks: Fallbacks,
}

impl Egress {
    /// No providers yet. `keys` is the folder with one folder per provider, `timeout` that of a whole request, `instance`
    /// the name of this process in `/stats`.
    pub fn new(
        keys: PathBuf,
        tls: Arc<rustls::ClientConfig>,
        limits: Limits,
        timeout: Duration,
        instance: &str,
        quotas: Arc<Quotas>,
    ) -> Self {
        Self {
            providers: ArcSwap::default(),
            agents: watch::Sender::default(),
            identity: identity::Identity::default(),
            strangers: Semaphore::new(MAX_STRANGERS),
            pools: ArcSwap::default(),
            quotas,
            keys,
            tls,
            limits,
            timeout,
            instance: instance.to_owned(),
            room: Room::default(),
            fallbacks: Fallbacks::default(),
        }
    }

    /// Requests that went from one provider to another.
    pub fn fallbacks(&self) -> &Fallbacks {
        &self.fallbacks
    }

    /// The name of this process in `/stats`.
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// The providers as they are now.
    pub fn providers(&self) -> Arc<HashMap<String, Arc<Provider>>> {
        self.providers.load_full()
    }

    /// The providers' quotas.
    pub fn quotas(&self) -> &Arc<Quotas> {
        &self.quotas
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
            provider
                .usage
                .follow(config.spends.get(name), config.ready_gateways.max(1));
            after.insert(name.clone(), provider);
        }
        self.fallbacks.retain(|name| after.contains_key(name));
        self.quotas.apply(config);
        self.providers.store(Arc::new(after));
        if **self.pools.load() != config.agent_pools {
            self.pools.store(Arc::new(config.agent_pools.clone()));
        }
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
    ) -> Result<Response<Outgoing>, (Refusal, ProviderType)> {
        let plain = |refusal| (refusal, ProviderType::OpenAI);
        let headers = request.headers();
        let address = client.ip().to_canonical();
        let address = self.identity.caller(headers, address).await.map_err(plain)?;
        if !self.is_agent(address).await {
            let message = format!(
                "{address} is no agent pod of this namespace; only those may use its model providers"
            );
            return Err(plain(Refusal::new(StatusCode::FORBIDDEN, "NotAnAgent", message)));
        }
        self.identity.admit(address, headers).map_err(plain)?;
        let (mut head, body) = request.into_parts();
        let headers = std::mem::take(&mut head.headers);
        let route = Route::parse(head.uri.path()).ok_or_else(|| {
            plain(Refusal::new(
                StatusCode::NOT_FOUND,
                "NoSuchRoute",
                "this port serves /providers/<name>/v1/…",
            ))
        })?;
        let providers = self.providers.load_full();
        let provider = providers.get(route.provider).cloned().ok_or_else(|| {
            let message = format!(
                "there is no ModelProvider \"{}\" in this namespace",
                route.provider
            );
            plain(Refusal::new(StatusCode::NOT_FOUND, "NoSuchProvider", message))
        })?;
        let type_ = provider.config.type_;
        let ours = |refusal| (refusal, type_);

        let mut timer = Box::pin(tokio::time::sleep(self.timeout));
        let operation = Operation::of(type_, &head.method, route.rest);
        let content = tokio::select! {
            biased;
            content = self.room.take(operation, &headers, body) => content.map_err(ours)?,
            () = timer.as_mut() => return Err(ours(self.timed_out())),
        };
        let chain = route
            .chain()
            .filter(|chain| content.asked.model.as_deref() == Some(&*chain.model));
        let tells = chain.is_some();
        let others = chain.map_or_else(Vec::new, |chain| fallback::choices(&chain, &provider, &providers));
        let mut call = Call {
            address,
            operation,
            content,
            rest: route.rest,
            query: head.uri.query(),
            method: &head.method,
            headers,
        };

        let mut choice = Choice {
            provider,
            model: call.content.asked.model.clone(),
        };
        let mut others = others.into_iter();
        let mut passed_over = None;
        // What the last choice that answered at all has said, for when nobody else does better.
        let mut kept = None;
        loop {
            let last = others.len() == 0;
            let missed = match self.attempt(&mut call, &choice, last, timer.as_mut()).await {
                Ok((answer, mut meter)) => {
                    let status = answer.response.status();
                    let reason = Reason::of(status).filter(|_| !last);
                    let (mut head, body) = answer.response.into_parts();
                    meter.answered(&mut head.headers, status, answer.connection);
                    forward::to_client(&mut head);
                    let Some(reason) = reason else {
                        let passing = Passing::new(body, timer, meter);
                        let mut response = Response::from_parts(head, Outgoing::Provider(passing));
                        if tells {
                            let model = choice.model.as_deref();
                            fallback::tell(&mut response, &choice.provider.name, model, passed_over);
                        }
                        return Ok(response);
                    };
                    kept = Some((head, body, meter, choice.clone(), passed_over));
                    reason
                }
                Err(miss) => match miss.reason {
                    Some(reason) if !last => reason,
                    reason => {
                        let Some((head, body, meter, choice, passed_over)) =
                            kept.filter(|_| reason.is_some())
                        else {
                            return Err(ours(miss.refusal));
                        };
                        let passing = Passing::new(body, timer, meter);
                        let mut response = Response::from_parts(head, Outgoing::Provider(passing));
                        let model = choice.model.as_deref();
                        fallback::tell(&mut response, &choice.provider.name, model, passed_over);
                        return Ok(response);
                    }
                },
            };
            let Some(next) = others.next() else {
                // `last` was true, and both arms have returned.
                return Err(ours(self.timed_out()));
            };
            self.fallbacks
                .count(&choice.provider.name, &next.provider.name, missed);
            passed_over = Some(missed);
            choice = next;
        }
    }

    /// One choice is tried: reserve, send; the [`Meter`] settles. Nothing has reached the agent when it misses.
    async fn attempt(
        &self,
        call: &mut Call<'_>,
        to: &Choice,
        last: bool,
        timer: Pin<&mut Sleep>,
    ) -> Result<(Answer, Meter), Miss> {
        let provider = &to.provider;
        let model = to.model.as_deref();
        let place = provider.place.as_ref().map_err(|wrong| {
            let message = format!("the ModelProvider \"{}\" cannot be used: {wrong}", provider.name);
            let refusal = Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "ProviderInvalid", message);
            Miss::new(Reason::Unusable, refusal)
        })?;
        let target = place.target(call.rest, call.query).ok_or_else(|| {
            Miss::last(Refusal::new(
                StatusCode::BAD_REQUEST,
                "PathRefused",
                "the path may not contain \".\" or \"..\" segments",
            ))
        })?;
        let proof = proof(provider)
            .await
            .map_err(|refusal| Miss::new(Reason::Unusable, refusal))?;
        if !last && model.is_some_and(|model| provider.health.rests(model)) {
            return Err(refused::left_alone(provider, Reason::Quota));
        }

        let permit = self.admit(call, provider, model, last, timer.deadline()).await?;
        let reserved = match self.reserve(call, provider, model) {
            Ok(reserved) => reserved,
            Err(over) => {
                permit.into_iter().for_each(Permit::cancel);
                return Err(refused::over_budget(provider, model, over));
            }
        };
        let Some(ticket) = provider.health.begin(last) else {
            provider.usage.cancel(reserved);
            permit.into_iter().for_each(Permit::cancel);
            return Err(refused::left_alone(provider, Reason::BreakerOpen));
        };
        let mut meter = Meter::new(
            provider.clone(),
            call.operation,
            &call.content,
            model,
            reserved,
            ticket,
            permit,
        );

        let body = call.take_body(model);
        let mut head = call.head(last);
        forward::to_provider(
            &mut head,
            target,
            place.host.clone(),
            proof,
            body.again().is_none(),
        );
        if call.content.asked.adds_usage() || head.headers.contains_key(header::CONTENT_LENGTH) {
            set_length(&mut head.headers, &body);
        }
        tokio::select! {
            biased;
            sent = send(place, Request::from_parts(head, body)) => match sent {
                Ok(answer) => Ok((answer, meter)),
                Err(kind) => {
                    meter.unanswered(matches!(kind, FailureKind::NotSent(_)));
                    Err(refused::no_response(&kind))
                }
            },
            () = timer => {
                meter.timed_out();
                Err(Miss::last(self.timed_out()))
            }
        }
    }

    /// Asks the budget. Only what is posted costs anything. A body that passes as it comes may name its model at its end:
    /// what it costs is charged afterwards.
    fn reserve(
        &self,
        call: &Call<'_>,
        provider: &Provider,
        model: Option<&str>,
    ) -> Result<Reserved, OverBudget> {
        if *call.method != Method::POST {
            return Ok(Reserved::default());
        }
        let (bytes, most) = (call.content.bytes, call.content.asked.max_tokens);
        let usage = &provider.usage;
        usage.reserve(
            &provider.config,
            &self.instance,
            model,
            bytes,
            most,
            Timestamp::now(),
        )
    }

    /// Reserves what the request will use of the provider's quotas. The `last` choice waits for it; before, another one is
    /// better than waiting.
    async fn admit(
        &self,
        call: &Call<'_>,
        provider: &Provider,
        model: Option<&str>,
        last: bool,
        latest: Instant,
    ) -> Result<Option<Permit>, Miss> {
        let deadline = if last {
            quota::asked::deadline(&call.headers, latest)
        } else {
            Instant::now()
        };
        let pool = self.pools.load().get(&call.address).cloned();
        let ask = Ask {
            pool: pool.as_deref().unwrap_or_default(),
            model,
            bytes: quota::asked::bytes(call.method, &call.headers, &call.content.body),
            max_tokens: call.content.asked.max_tokens,
            deadline,
        };
        let admitted = self.quotas.reserve(&provider.name, ask).await;
        admitted.map_err(|why| Miss::new(Reason::Quota, why.into_refusal(&provider.name)))
    }

    fn timed_out(&self) -> Refusal {
        let message = format!("the provider did not answer within {} s", self.timeout.as_secs());
        Refusal::new(StatusCode::GATEWAY_TIMEOUT, "ProviderTimeout", message)
    }
}

/// What an agent asks for, as often as it has to be asked.
struct Call<'a> {
    /// Of the agent's pod.
    address: IpAddr,
    operation: Operation,
    content: Content,
    /// What follows `/v1` in the path.
    rest: &'a str,
    query: Option<&'a str>,
    method: &'a Method,
    headers: HeaderMap,
}

impl Call<'_> {
    /// The body with this model; the second time nothing where it passes as it comes, and then there is only one choice.
    fn take_body(&mut self, model: Option<&str>) -> RequestBody {
        match self.content.again(model) {
            Some(body) => body,
            None => std::mem::replace(&mut self.content.body, RequestBody::Held(None)),
        }
    }

    /// A head to be changed; of the `last` attempt the only one.
    fn head(&mut self, last: bool) -> http_request::Parts {
        let mut request = Request::new(());
        *request.method_mut() = self.method.clone();
        *request.headers_mut() = if last {
            std::mem::take(&mut self.headers)
        } else {
            self.headers.clone()
        };
        request.into_parts().0
    }
}

impl Handler for Egress {
    async fn handle(&self, request: Request<Incoming>, client: SocketAddr) -> Response<Outgoing> {
        self.serve(request, client)
            .await
            .unwrap_or_else(|(refusal, type_)| refused::into_response(refusal, type_))
    }
}

/// A changed body has another length.
fn set_length(headers: &mut HeaderMap, body: &RequestBody) {
    if let RequestBody::Held(bytes) = body {
        let length = bytes.as_ref().map_or(0, bytes::Bytes::len);
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    }
}

/// The header that proves us to the provider; none where it needs none.
async fn proof(provider: &Provider) -> Result<Option<(HeaderName, HeaderValue)>, Refusal> {
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

/// Sends to one provider, once more where nobody can have read it.
async fn send(place: &Place, mut request: Request<RequestBody>) -> Result<Answer, FailureKind> {
    let mut reuse = request.body().again().is_some();
    let mut sends = 1;
    loop {
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
            Err(failure) => failure.kind,
        };
        debug!(error = %failure, "no response from the provider");
        let again = match &failure {
            FailureKind::Closed { unread: true, .. } => spare,
            FailureKind::Closed { reused: true, .. } if idempotent => spare,
            // A provider that cannot be reached now cannot be reached in a millisecond either.
            _ => None,
        };
        match again {
            Some(again) if sends < MAX_SENDS => request = again,
            _ => return Err(failure),
        }
        sends += 1;
        reuse = false;
    }
}
