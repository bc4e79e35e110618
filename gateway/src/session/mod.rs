//! Conversations stay on their revision, on every gateway: the wiring of [`flotilla_core::session`].
//!
//! ```text
//!   request ─► visit ── key: header, cookie, A2A contextId or task ──► PoolSessions ── not known here ──► network
//!                 │                                                        │             (the key's home, another gateway)
//!                 ▼                                                        ▼
//!        ingress::pool takes a slot of that revision ◄──────────────── assignment
//!                 │
//!   response ◄─ visit: waits for the copy, learns A2A names
//! ```
//!
//! * [`config`]: what a pool says about its conversations.
//! * [`visit`]: what happens to one request and its response.
//! * [`pool`]: one pool's conversations.
//! * `network`: messages between gateways.
//!
//! Members are processes: a gateway whose address is listed becomes one once it has said which process it is, by an exchange
//! in either direction. A gateway is ready only when it has tried to reach all others that are listed: it must not decide what they
//! know already. Nobody is waited for longer than [`pool`] says; where no answer comes the revision is guessed, which is counted.

pub mod config;
pub mod metrics;
mod network;
pub mod pool;
pub mod visit;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use flotilla_core::session::wire::{Envelope, VERSION};
use flotilla_core::session::{Keyer, MemberId};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use parking_lot::Mutex;
use tracing::{info, warn};

use crate::config::Config;
use crate::reply::{Outgoing, held};
use network::{Link, MAX_BODY, Network, Post};
use pool::PoolSessions;

pub use network::PATH;

/// How long a gateway that stops waits for the others to have taken over what it knows.
const HANDOVER: Duration = Duration::from_secs(5);
/// How often it looks.
const HANDOVER_POLL: Duration = Duration::from_millis(10);

const TEXT: &str = "text/plain; charset=utf-8";

/// The conversations of all pools, and the other gateways.
pub struct Sessions {
    this: Weak<Self>,
    instance: String,
    me: MemberId,
    network: Arc<Network>,
    /// By [`Keyer::pool`].
    pools: ArcSwap<HashMap<u64, Arc<PoolSessions>>>,
    /// Held by whoever changes `pools` or the members.
    change: Mutex<()>,
    leaving: AtomicBool,
}

impl Sessions {
    /// No pools, no other gateways; a process of its own.
    pub fn new() -> Arc<Self> {
        let instance = uuid::Uuid::new_v4().to_string();
        Arc::new_cyclic(|this| Self {
            this: this.clone(),
            me: MemberId::of(&instance),
            instance,
            network: Arc::new(Network::new()),
            pools: ArcSwap::default(),
            change: Mutex::new(()),
            leaving: AtomicBool::new(false),
        })
    }

    /// Unique for the life of this process.
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// Messages to other gateways are to come from `address`, by which they know this one.
    pub fn set_source(&self, address: IpAddr) {
        if !address.is_unspecified() {
            self.network.set_source(address);
        }
    }

    /// Puts `config` in force. Before the weights are: a request that has seen new weights finds conversations that follow them.
    pub fn apply(&self, config: &Config) {
        let _change = self.change.lock();
        let before = self.pools.load_full();
        let members = self.members();
        let mut after = HashMap::new();
        for pool in config.pools.values() {
            let Some(sessions) = &pool.sessions else { continue };
            let number = Keyer::new(&pool.uid).pool();
            let known = before.get(&number).cloned().unwrap_or_else(|| {
                let known = PoolSessions::new(&pool.uid, sessions, self.me, &members, &self.network);
                if self.leaving.load(Ordering::SeqCst) {
                    known.leave();
                }
                known
            });
            known.apply(sessions, config::route(pool, sessions));
            after.insert(number, known);
        }
        self.pools.store(Arc::new(after));
        let others = config.gateways.iter().copied().collect();
        if self.network.follow(&others, &self.this) {
            self.change_members();
        }
    }

    /// The conversations of the pool with this UID, if it keeps any.
    pub fn of_pool(&self, uid: &str) -> Option<Arc<PoolSessions>> {
        self.pools.load().get(&Keyer::new(uid).pool()).cloned()
    }

    /// All other gateways that are listed have been asked who they are.
    pub fn is_joined(&self) -> bool {
        self.network.is_joined()
    }

    /// Other gateways that have said who they are.
    pub fn peers(&self) -> usize {
        self.members().len().saturating_sub(1)
    }

    /// Messages that could not be sent.
    pub fn lost_messages(&self) -> u64 {
        self.network.lost()
    }

    /// Starts to hand over: this gateway is no conversation's home from now on.
    pub fn leave(&self) {
        let _change = self.change.lock();
        if !self.leaving.swap(true, Ordering::SeqCst) {
            for pool in self.pools.load().values() {
                pool.leave();
            }
        }
    }

    /// After [`leave`](Self::leave): waits until every other gateway that answers has what this one had.
    pub async fn handed_over(&self) {
        let is_drained = || self.pools.load().values().all(|pool| pool.is_drained());
        let waiting = async {
            while !is_drained() {
                tokio::time::sleep(HANDOVER_POLL).await;
            }
        };
        match tokio::time::timeout(HANDOVER, waiting).await {
            Ok(()) => info!("sessions are handed over"),
            Err(_) => {
                warn!("sessions could not be handed over in time; those that were not copied are forgotten")
            }
        }
    }

    fn members(&self) -> Vec<MemberId> {
        let links = self.network.links();
        let mut members: Vec<MemberId> = links.iter().filter_map(|link| link.member()).collect();
        members.push(self.me);
        members.sort_unstable();
        members.dedup();
        members
    }

    fn change_members(&self) {
        let members = self.members();
        for pool in self.pools.load().values() {
            pool.set_members(&members);
        }
    }

    /// The process behind `link` has said who it is.
    fn met(&self, link: &Link, instance: &str) {
        let member = MemberId::of(instance);
        if link.member() == Some(member) {
            return;
        }
        let _change = self.change.lock();
        if link.meet(member) {
            info!(address = %link.address, instance, "met another gateway");
            self.change_members();
        }
    }

    fn unreachable(&self, link: &Link) {
        if let Some(member) = link.member() {
            for pool in self.pools.load().values() {
                pool.unreachable(member);
            }
        }
    }

    /// Messages of another gateway; what is to be said to it goes into `replies` where there are some, else over its link.
    fn receive(&self, envelopes: Vec<Envelope>, replies: Option<&mut Vec<Envelope>>) {
        let pools = self.pools.load();
        let mut said = Vec::new();
        for envelope in envelopes {
            if let Some(pool) = pools.get(&envelope.pool) {
                pool.receive(envelope, &mut said);
            }
        }
        match replies {
            Some(replies) => *replies = said,
            None => said.into_iter().for_each(|envelope| self.network.send(envelope)),
        }
    }

    /// A post of another gateway. Anybody who is no gateway pod of this namespace is refused.
    pub async fn serve(&self, request: Request<Incoming>, client: SocketAddr) -> Response<Outgoing> {
        let Some(link) = self.network.find(client.ip().to_canonical()) else {
            let message = "only gateway pods of this namespace may use this path\n";
            return held(StatusCode::FORBIDDEN, TEXT, message);
        };
        if request.method() != Method::POST {
            return held(StatusCode::METHOD_NOT_ALLOWED, TEXT, "use POST\n");
        }
        let Ok(body) = Limited::new(request.into_body(), MAX_BODY).collect().await else {
            return held(
                StatusCode::PAYLOAD_TOO_LARGE,
                TEXT,
                "the message is too long or was cut\n",
            );
        };
        let post: Post = match serde_json::from_slice(&body.to_bytes()) {
            Ok(post) => post,
            Err(error) => {
                let message = format!("failed to read the message: {error}\n");
                return held(StatusCode::BAD_REQUEST, TEXT, message);
            }
        };
        if post.version != VERSION {
            let message = format!("this gateway speaks version {VERSION}, not {}\n", post.version);
            return held(StatusCode::BAD_REQUEST, TEXT, message);
        }
        self.met(&link, &post.instance);
        let mut replies = Vec::new();
        self.receive(post.envelopes, Some(&mut replies));
        let answer = Post {
            version: VERSION,
            instance: self.instance.clone(),
            envelopes: replies,
        };
        match serde_json::to_vec(&answer) {
            Ok(json) => held(StatusCode::OK, "application/json", json),
            Err(error) => {
                let message = format!("failed to write the answer: {error}\n");
                held(StatusCode::INTERNAL_SERVER_ERROR, TEXT, message)
            }
        }
    }
}
