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

mod call;
pub mod content;
pub mod events;
pub mod export;
pub mod fallback;
pub mod genai;
pub mod health;
pub mod identity;
pub mod keys;
mod meter;
pub mod provider;
pub mod quota;
pub mod redact;
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
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use jiff::Timestamp;
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, Sleep};

use crate::config::{Config, ProviderType};
use crate::ingress::proxy::{BodyLimit, too_large};
use crate::observe::{Note, Plane};
use crate::reply::{Outgoing, Refusal};
use crate::server::Handler;
use crate::upstream::{Limits, forward};
use call::{Answered, Call, proof, send, set_length};
use content::{Need, Room};
use fallback::{Choice, Fallbacks, Miss, Reason};
pub use meter::Meter;
use provider::Provider;
use quota::{AllQuotas, Ask, Permit};
use request::Operation;
use spend::{OverBudget, Reserved};

/// How long an unknown address may wait for the watch to tell of it.
const IDENTITY_GRACE: Duration = Duration::from_secs(2);
/// Requests of unknown addresses that may wait at once.
const MAX_STRANGERS: usize = 64;

/// All providers of the namespace, and who may use them.
pub struct Egress {
    providers: ArcSwap<HashMap<String, Arc<Provider>>>,
    agents: watch::Sender<Arc<HashSet<IpAddr>>>,
    identity: identity::Identity,
    strangers: Semaphore,
    pools: ArcSwap<HashMap<IpAddr, Arc<str>>>,
    quotas: Arc<AllQuotas>,
    keys: PathBuf,
    tls: Arc<rustls::ClientConfig>,
    limits: Limits,
    timeout: Duration,
    instance: String,
    room: Room,
    fallbacks: Fallbacks,
}

impl Egress {
    /// No providers yet. `keys` is the folder with one folder per provider, `timeout` that of a whole request,
    /// `max_request_bytes` the longest body of one, `instance` the name of this process in `/stats`.
    pub fn new(
        keys: PathBuf,
        tls: Arc<rustls::ClientConfig>,
        limits: Limits,
        timeout: Duration,
        max_request_bytes: u64,
        instance: &str,
        quotas: Arc<AllQuotas>,
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
            room: Room::new(BodyLimit {
                bytes: max_request_bytes,
                field: "--max-provider-request-bytes",
            }),
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
    pub fn quotas(&self) -> &Arc<AllQuotas> {
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
            provider.usage.follow(
                config.spends.get(name),
                config.model_spends.get(name),
                config.ready_gateways.max(1),
            );
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
        let operation = Operation::of(&head.method, route.rest);
        let chain = route.chain();
        let of_chain = chain.as_ref().map_or(Need::Nothing, |_| Need::Fallback);
        let need = provider.need().max(of_chain);
        let content = tokio::select! {
            biased;
            content = self.room.take(operation, &headers, body, need) => content.map_err(ours)?,
            () = timer.as_mut() => return Err(ours(self.timed_out())),
        };
        let chain = chain.filter(|chain| content.asked.model.as_deref() == Some(&*chain.model));
        let tells = chain.is_some();
        let others = chain.map_or_else(Vec::new, |chain| fallback::choices(&chain, &provider, &providers));
        let mut call = Call {
            address,
            note: Note::of(&head.extensions),
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
        let mut kept: Option<Box<(Answered, Choice, Option<Reason>)>> = None;
        loop {
            let last = others.len() == 0;
            let missed = match self.attempt(&mut call, &choice, last, timer.as_mut()).await {
                Ok(answered) => {
                    let Some(reason) = Reason::of(answered.head.status).filter(|_| !last) else {
                        // It is told of as an attempt before this one.
                        drop(kept.take());
                        let mut response = answered.pass_on(timer).await.map_err(ours)?;
                        if tells {
                            let model = choice.model.as_deref();
                            fallback::tell(&mut response, &choice.provider.name, model, passed_over);
                        }
                        return Ok(response);
                    };
                    kept = Some(Box::new((answered, choice.clone(), passed_over)));
                    reason
                }
                Err(miss) => match miss.reason {
                    Some(reason) if !last => reason,
                    reason => {
                        let Some(kept) = kept.filter(|_| reason.is_some()) else {
                            return Err(ours(miss.refusal));
                        };
                        let (answered, choice, passed_over) = *kept;
                        let mut response = answered.pass_on(timer).await.map_err(ours)?;
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
    ) -> Result<Answered, Miss> {
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
            provider.usage.cancel(model, reserved);
            permit.into_iter().for_each(Permit::cancel);
            return Err(refused::left_alone(provider, Reason::BreakerOpen));
        };
        let mut meter = Meter::new(
            provider.clone(),
            genai::Call::begin(call.operation, call.note.clone()),
            &call.content,
            model,
            reserved,
            ticket,
            permit,
        );

        let body = call.take_body(model);
        let exceeded = body.exceeded();
        let secret = proof.as_ref().map(|(_, value)| value.clone());
        let mut head = call.head(last);
        forward::to_provider(&mut head, target, place.host.clone(), proof, body.is_streamed());
        set_length(&mut head.headers, &body);
        tokio::select! {
            biased;
            sent = send(place, Box::new(Request::from_parts(head, body)), meter.sent()) => match sent {
                Ok(answer) if answer.response.status() == StatusCode::SWITCHING_PROTOCOLS => {
                    meter.broken();
                    Err(refused::switched())
                }
                Ok(answer) => Ok(Answered::new(answer, meter, secret)),
                Err(_) if exceeded.is_set() => {
                    meter.too_long();
                    Err(Miss::last(too_large(self.room.limit())))
                }
                Err(kind) => {
                    meter.unanswered();
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

impl Handler for Egress {
    const PLANE: Plane = Plane::Egress;

    async fn handle(&self, request: Request<Incoming>, client: SocketAddr) -> Response<Outgoing> {
        self.serve(request, client)
            .await
            .unwrap_or_else(|(refusal, type_)| refused::into_response(refusal, type_))
    }
}
