//! Providers' quotas, held by all gateways of the namespace together, or by those of several namespaces ([`groups`], [`redis`]).
//!
//! ```text
//!  agent ─► admission (lease, line, estimate) ─► provider
//!               │ reporter: report, once a second while there is use
//!               ▼
//!           link ─ this gateway is elected ─► office: one allocator per provider ─► POST /quota/v1/vouch to its witness
//!                └ another is ─ POST /quota/v1/report to its admin port ─► its office
//!                                                 │
//!  election ◄── Lease flotilla-quota              └─► ConfigMap flotilla-quota, before anything is granted
//! ```
//!
//! The protocol, and why no unit can be given out twice, is [`flotilla_core::quota`]; this module gives it clocks, a network,
//! and somebody who waits. A request is admitted from the lease under one short lock ([`admission`]); one that finds too little
//! waits in a fair line of its provider until its deadline ([`line`]) and is then told which quota it was. On a partition a
//! gateway uses its lease up and then stops, or falls to the quota's floor.

pub mod admission;
pub mod asked;
pub mod clock;
pub mod counts;
pub mod election;
pub mod groups;
pub mod link;
pub mod redis;
pub mod refusal;
pub mod store;

mod line;
mod office;
mod reporter;

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use flotilla_core::quota::{Limit, Reply, Report, Terms, spec};
use flotilla_core::stats::{QuotaPoolStats, QuotaStats};
use flotilla_crds::quota::Quota;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

pub use admission::{Admission, Ask, Permit, Used};
pub use clock::Clock;
pub use counts::WAIT_BUCKETS;
pub use election::{Leader, Pace};
pub use groups::{AllQuotas, Groups};
pub use link::{Http, Message, PATH, SendError, Transport, VOUCH_PATH, Word};
pub use refusal::{Refused, Why};
pub use store::Store;

use crate::peers::Peers;
use crate::reply::{Outgoing, Refusal, held};
use election::{Candidate, Doubt, Look};
use link::{Link, MAX_BYTES};
use office::{Known, Limits, Office};

/// Reports that may wait for the office.
const INBOX: usize = 256;
/// For the last words of a gateway that leaves.
const LEAVE_LIMIT: Duration = Duration::from_secs(2);
/// Without an answer by then the holder has asked again.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);
const TEXT: &str = "text/plain; charset=utf-8";

/// What quotas need.
pub struct Setup {
    /// Name of this gateway's pod.
    pub pod: String,
    /// Unique for the life of this process.
    pub instance: String,
    /// The longest time in which a provider answers a request.
    pub within: Duration,
    /// Numbers that all gateways share.
    pub terms: Terms,
    /// How the election goes.
    pub pace: Pace,
    /// Where the gateways meet.
    pub store: Arc<dyn Store>,
    /// Who they are.
    pub peers: Arc<Peers>,
    /// How they speak to each other.
    pub transport: Arc<dyn Transport>,
    /// This process's clocks.
    pub clock: Clock,
}

/// One provider's admission, for one list of limits.
struct Provider {
    limits: Vec<Limit>,
    admission: Arc<Admission>,
    stop: CancellationToken,
}

/// All quotas of the namespace, as this gateway holds them.
pub struct Quotas {
    identity: String,
    within: Duration,
    terms: Terms,
    clock: Clock,
    peers: Arc<Peers>,
    link: Link,
    known: Arc<Known>,
    /// By provider; a sentence where the quotas are impossible.
    admissions: ArcSwap<HashMap<String, Result<Arc<Admission>, String>>>,
    providers: Mutex<HashMap<String, Provider>>,
    limits: watch::Sender<Limits>,
    wanted: watch::Sender<bool>,
    stop: CancellationToken,
}

impl Quotas {
    /// Takes part in the election as soon as there is a quota, until `stop`.
    pub fn start(setup: Setup, stop: CancellationToken) -> Arc<Self> {
        let Setup {
            pod,
            instance,
            within,
            terms,
            pace,
            store,
            peers,
            transport,
            clock,
        } = setup;
        let (limits, limits_seen) = watch::channel(Limits::new());
        let (wanted, wants) = watch::channel(false);
        let (inbox, asked) = mpsc::channel(INBOX);
        let look = Arc::new(Look::default());
        let known = Arc::new(Known::default());
        let (candidate, leader) = Candidate::new(store.clone(), &pod, pace, look.clone());
        tokio::spawn(candidate.run(wants, stop.child_token()));
        let identity = format!("{pod}/{instance}");
        let office = Office {
            store,
            clock: clock.clone(),
            terms,
            limits: limits_seen,
            leader: leader.clone(),
            look: look.clone(),
            asked,
            peers: peers.clone(),
            known: known.clone(),
            transport: transport.clone(),
            process: format!("{identity}/"),
            heard: BTreeMap::new(),
        };
        let closed = stop.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = office.run() => {}
                () = closed.cancelled() => {}
            }
        });
        Arc::new(Self {
            identity,
            within,
            terms,
            clock,
            peers,
            link: Link {
                leader,
                look,
                office: inbox,
                transport,
            },
            known,
            admissions: ArcSwap::default(),
            providers: Mutex::default(),
            limits,
            wanted,
            stop,
        })
    }

    /// The list of gateways may have changed: one that deals out and is not on it any more is replaced at once.
    pub fn see_who_is_there(&self) {
        let leader = self.link.leader.borrow().clone();
        if let Leader::Other(pod) = leader
            && self.peers.has_left(&pod)
        {
            self.link.look.at_once(Some((&pod, Doubt::Ended)));
        }
    }

    /// Puts these quotas in force, by provider. One caller at a time.
    pub fn set<'a>(&self, quotas: impl Iterator<Item = (&'a str, &'a [Quota])>) {
        let within = u64::try_from(self.within.as_nanos()).unwrap_or(u64::MAX);
        let mut wanted = Limits::new();
        let mut admissions = HashMap::new();
        let mut providers = self.providers.lock();
        for (name, quotas) in quotas.filter(|(_, quotas)| !quotas.is_empty()) {
            match spec::limits(quotas, within) {
                Ok(limits) => {
                    let admission = self.provider(&mut providers, name, &limits);
                    admissions.insert(name.to_owned(), Ok(admission));
                    wanted.insert(name.to_owned(), limits);
                }
                Err(sentence) => {
                    admissions.insert(name.to_owned(), Err(sentence));
                }
            }
        }
        // Before any of them leaves: whoever waits there looks again at what is in force.
        self.admissions.store(Arc::new(admissions));
        providers.retain(|name, provider| {
            let stays = wanted.contains_key(name);
            if !stays {
                provider.stop.cancel();
                self.last_word(name, provider.admission.leave());
            }
            stays
        });
        self.wanted
            .send_if_modified(|known| std::mem::replace(known, !wanted.is_empty()) == wanted.is_empty());
        self.limits.send_if_modified(|known| {
            let changed = *known != wanted;
            *known = wanted;
            changed
        });
    }

    /// The admission of a provider with these limits; made if there is none.
    fn provider(
        &self,
        providers: &mut HashMap<String, Provider>,
        name: &str,
        limits: &[Limit],
    ) -> Arc<Admission> {
        match providers.get_mut(name) {
            Some(known) => {
                if known.limits != limits {
                    known.limits = limits.to_vec();
                    self.last_word(name, known.admission.replace(limits));
                }
                known.admission.clone()
            }
            None => {
                let admission = Arc::new(Admission::new(
                    name,
                    &self.identity,
                    limits,
                    self.terms,
                    self.clock.clone(),
                ));
                let stop = self.stop.child_token();
                tokio::spawn(reporter::run(admission.clone(), self.link.clone(), stop.clone()));
                let provider = Provider {
                    limits: limits.to_vec(),
                    admission: admission.clone(),
                    stop,
                };
                providers.insert(name.to_owned(), provider);
                admission
            }
        }
    }

    fn last_word(&self, provider: &str, report: Report) {
        let (link, provider) = (self.link.clone(), provider.to_owned());
        tokio::spawn(async move { link.report(&provider, report).await });
    }

    /// Reserves what a request to `provider` will use; nothing where it has no quotas.
    ///
    /// # Errors
    /// [`NotAdmitted`]: a quota is used up, the quotas are impossible, or in force no more.
    pub async fn reserve(&self, provider: &str, ask: Ask<'_>) -> Result<Option<Permit>, NotAdmitted> {
        let admission = match self.admissions.load().get(provider) {
            None => return Ok(None),
            Some(Ok(admission)) => admission.clone(),
            Some(Err(sentence)) => return Err(NotAdmitted::Impossible(sentence.clone())),
        };
        match admission.reserve(ask).await {
            Ok(Some(permit)) => Ok(Some(permit)),
            Ok(None) => Err(NotAdmitted::Left),
            Err(refused) => Err(NotAdmitted::Refused(refused)),
        }
    }

    /// The quotas of a provider and what they did to each pool, for `/stats`.
    pub fn stats(&self, provider: &str) -> (Vec<QuotaStats>, BTreeMap<String, QuotaPoolStats>) {
        let admissions = self.admissions.load();
        let Some(Ok(admission)) = admissions.get(provider) else {
            return Default::default();
        };
        let total = self.known.of(provider);
        admission.with(|state, now| {
            let mut quotas = Vec::new();
            for position in 0.. {
                let Some(limit) = state.holder.limit(position).cloned() else {
                    break;
                };
                let (held, share) = state.holder.usage(position, now).unwrap_or_default();
                let (throttled, exhausted) = state.counts.limit(position, now);
                let known = total
                    .as_ref()
                    .and_then(|(term, usage)| Some((*term, *usage.get(&limit.key())?)));
                quotas.push(QuotaStats {
                    name: limit.name.clone(),
                    held,
                    share,
                    throttled,
                    exhausted,
                    limit: limit.limit,
                    total: known.map(|(term, usage)| flotilla_core::stats::QuotaTotal {
                        term,
                        used: usage.used,
                        limit: usage.capacity,
                    }),
                });
            }
            let pools = state.counts.pools().map(|(name, pool)| {
                let stats = QuotaPoolStats {
                    admitted: pool.admitted,
                    waited: pool.waited,
                    refused: pool.refused,
                    waiting: pool.waiting,
                    wait_microseconds: u64::try_from(pool.wait.as_micros()).unwrap_or(u64::MAX),
                };
                (name.to_owned(), stats)
            });
            (quotas, pools.collect())
        })
    }

    /// What a provider's quotas did to each pool, with the distribution of waiting times; ordered by name.
    pub fn pools(&self, provider: &str) -> Vec<(String, counts::Pool)> {
        let admissions = self.admissions.load();
        let Some(Ok(admission)) = admissions.get(provider) else {
            return Vec::new();
        };
        let mut pools: Vec<_> = admission.with(|state, _| {
            let pools = state.counts.pools();
            pools
                .map(|(name, pool)| (name.to_owned(), pool.clone()))
                .collect()
        });
        pools.sort_by(|(a, _), (b, _)| a.cmp(b));
        pools
    }

    /// Whether this gateway deals out quotas.
    pub fn is_elected(&self) -> bool {
        self.link.is_elected()
    }

    /// Another gateway is to deal out, if there is one; this one goes on using its share.
    pub fn stand_aside(&self) {
        self.link.look.stand_aside();
    }

    /// Hands over: nothing is admitted from now on, shares go back, and another gateway may be elected.
    pub async fn leave(&self) {
        let reports: Vec<_> = {
            let mut providers = self.providers.lock();
            let leaving = providers.drain();
            leaving
                .map(|(name, provider)| {
                    provider.stop.cancel();
                    (name, provider.admission.leave())
                })
                .collect()
        };
        let said = reports.into_iter().map(|(name, report)| {
            let link = self.link.clone();
            async move { link.report(&name, report).await }
        });
        // The record is written by whoever is elected; it takes a moment if that is this gateway.
        let _ = tokio::time::timeout(LEAVE_LIMIT, futures::future::join_all(said)).await;
        self.wanted.send_replace(false);
        let mut leader = self.link.leader.clone();
        let given_up = leader.wait_for(|leader| *leader != Leader::Me);
        let _ = tokio::time::timeout(LEAVE_LIMIT, given_up).await;
    }

    /// Answers another gateway: its report, or its word for a witness.
    pub async fn handle(&self, request: Request<Incoming>, client: SocketAddr) -> Response<Outgoing> {
        let refused = |status, sentence: &str| held(status, TEXT, format!("{sentence}\n"));
        if request.method() != Method::POST {
            return refused(StatusCode::METHOD_NOT_ALLOWED, "use POST");
        }
        if !self.peers.is_gateway(client.ip()) {
            return refused(
                StatusCode::FORBIDDEN,
                "only gateways of this namespace report here",
            );
        }
        let is_word = request.uri().path() == VOUCH_PATH;
        let body = match Limited::new(request.into_body(), MAX_BYTES).collect().await {
            Ok(body) => body.to_bytes(),
            Err(_) => {
                return refused(
                    StatusCode::PAYLOAD_TOO_LARGE,
                    "the report is too long or was cut off",
                );
            }
        };
        let malformed = |error: serde_json::Error| {
            refused(StatusCode::BAD_REQUEST, &format!("this is no report: {error}"))
        };
        if is_word {
            return match serde_json::from_slice(&body) {
                Ok(word) => {
                    if self.vouch(word) {
                        held(StatusCode::NO_CONTENT, TEXT, "")
                    } else {
                        refused(StatusCode::CONFLICT, "this gateway is no witness for that")
                    }
                }
                Err(error) => malformed(error),
            };
        }
        let message: Message = match serde_json::from_slice(&body) {
            Ok(message) => message,
            Err(error) => return malformed(error),
        };
        match self.answer(message).await {
            Some(Some(reply)) => match serde_json::to_vec(&reply) {
                Ok(json) => held(StatusCode::OK, "application/json", json),
                Err(error) => refused(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
            },
            Some(None) => held(StatusCode::NO_CONTENT, TEXT, ""),
            None => refused(
                StatusCode::MISDIRECTED_REQUEST,
                "this gateway does not deal out quotas",
            ),
        }
    }

    /// Remembers what the gateway that deals out says of its own use; false if this one is no witness for it.
    pub fn vouch(&self, word: Word) -> bool {
        let Word { provider, by, vouch } = word;
        let admissions = self.admissions.load();
        let Some(Ok(admission)) = admissions.get(&provider) else {
            return false;
        };
        admission.with(|state, now| state.holder.id() == by && state.holder.vouch(vouch, now))
    }

    /// The answer to another gateway's report, if there is one; none at all where this gateway is not elected.
    pub async fn answer(&self, message: Message) -> Option<Option<Reply>> {
        if !self.is_elected() {
            return None;
        }
        let Message { provider, report } = message;
        let answer = tokio::time::timeout(ANSWER_LIMIT, self.link.here(provider, report)).await;
        Some(answer.ok().flatten())
    }
}

/// Why a request may not be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotAdmitted {
    /// A quota is used up.
    Refused(Refused),
    /// The quotas were taken away meanwhile, or are held elsewhere, or this gateway ends: what is in force now decides.
    Left,
    /// The provider's quotas are impossible; the sentence says what to write.
    Impossible(String),
}

impl NotAdmitted {
    /// The same, of a provider by its name here.
    fn of(self, provider: &str) -> Self {
        match self {
            Self::Refused(mut refused) => {
                refused.provider = provider.to_owned();
                Self::Refused(refused)
            }
            other => other,
        }
    }

    /// As an answer.
    pub fn into_refusal(self, provider: &str) -> Refusal {
        match self {
            Self::Refused(refused) => refused.into_refusal(),
            Self::Left => {
                let message =
                    format!("this gateway ends, and deals with ModelProvider \"{provider}\" no more");
                Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "QuotaUnavailable", message).retry_after(1)
            }
            Self::Impossible(sentence) => {
                let message = format!("the ModelProvider \"{provider}\" cannot be used: {sentence}");
                Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "ProviderInvalid", message)
            }
        }
    }
}
