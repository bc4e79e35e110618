//! Who holds which quotas together: those of a provider with a group all gateways of the group, all others the gateways of
//! this namespace.
//!
//! Each provider with a group takes part in that group by itself, under a name that no other gateway has anywhere. Its quotas
//! are known there by the group's name, because the ModelProvider may be called differently in each namespace.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use flotilla_core::quota::Terms;
use flotilla_core::stats::{QuotaPoolStats, QuotaStats};
use http::{Request, Response};
use hyper::body::Incoming;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::redis::{Place, Server, Wire};
use super::{Ask, Clock, NotAdmitted, Pace, Permit, Quotas, Setup, counts};
use crate::config::Config;
use crate::peers::Peers;
use crate::reply::Outgoing;

/// What it takes to be in groups.
#[derive(Clone, Debug)]
pub struct Groups {
    /// Where gateways of a group meet.
    pub server: Arc<Server>,
    /// What this gateway is called there; no other has this name anywhere. Without a slash.
    pub name: String,
}

/// One provider's place in its group.
#[derive(Clone)]
struct Member {
    group: Arc<str>,
    quotas: Arc<Quotas>,
    stop: CancellationToken,
}

impl Member {
    /// Gives back what it has, then ends.
    async fn leave(self) {
        self.quotas.leave().await;
        self.stop.cancel();
    }
}

/// The quotas of all providers.
pub struct AllQuotas {
    own: Arc<Quotas>,
    groups: Option<Groups>,
    instance: String,
    within: Duration,
    terms: Terms,
    pace: Pace,
    members: Mutex<BTreeMap<String, Member>>,
    /// Providers with a group; a sentence where there is no place to meet.
    by_provider: ArcSwap<HashMap<String, Result<Member, String>>>,
    leaving: AtomicBool,
    stop: CancellationToken,
}

impl AllQuotas {
    /// As [`Quotas::start`] for the providers of the namespace; without `groups` those of providers with a group cannot be
    /// used.
    pub fn start(setup: Setup, groups: Option<Groups>, stop: CancellationToken) -> Arc<Self> {
        Arc::new(Self {
            groups,
            instance: setup.instance.clone(),
            within: setup.within,
            terms: setup.terms,
            pace: setup.pace,
            own: Quotas::start(setup, stop.clone()),
            members: Mutex::default(),
            by_provider: ArcSwap::default(),
            leaving: AtomicBool::new(false),
            stop,
        })
    }

    /// Puts the quotas of `config` in force. One caller at a time.
    pub fn apply(&self, config: &Config) {
        let all = config.providers.iter();
        let mut members = self.members.lock();
        let mut by_provider = HashMap::new();
        let mut stay = BTreeMap::new();
        let mut leaving = Vec::new();
        for (name, provider) in all.clone() {
            let Some(group) = &provider.quota_group else {
                continue;
            };
            let Some(groups) = &self.groups else {
                let sentence = format!(
                    "quotaGroup {group} needs a Redis or Valkey; set the chart's value gateway.quotaRedis, or take \
                     quotaGroup away"
                );
                by_provider.insert(name.clone(), Err(sentence));
                continue;
            };
            let (known, other) = match members.remove(name) {
                Some(member) if *member.group == **group => (Some(member), None),
                other => (None, other),
            };
            leaving.extend(other);
            let member = known.unwrap_or_else(|| self.join(groups, name, group));
            member
                .quotas
                .set([(group.as_str(), provider.quotas.as_slice())].into_iter());
            by_provider.insert(name.clone(), Ok(member.clone()));
            stay.insert(name.clone(), member);
        }
        leaving.extend(std::mem::replace(&mut *members, stay).into_values());
        // A provider that comes into a group or leaves one is at no moment without quotas.
        let mut meanwhile = HashMap::clone(&self.by_provider.load());
        meanwhile.extend(by_provider.clone());
        self.by_provider.store(Arc::new(meanwhile));
        let alone = all.filter(|(_, provider)| provider.quota_group.is_none());
        let quotas = alone.map(|(name, provider)| (name.as_str(), provider.quotas.as_slice()));
        self.own.set(quotas);
        self.own.see_who_is_there();
        self.by_provider.store(Arc::new(by_provider));
        for member in leaving {
            tokio::spawn(member.leave());
        }
    }

    fn join(&self, groups: &Groups, provider: &str, group: &str) -> Member {
        let stop = self.stop.child_token();
        let name = format!("{}.{provider}", groups.name);
        let wire = Arc::new(Wire::new(groups.server.clone(), group, &name));
        let setup = Setup {
            pod: name,
            instance: self.instance.clone(),
            within: self.within,
            terms: self.terms,
            pace: self.pace,
            store: Arc::new(Place::new(groups.server.clone(), group)),
            peers: Arc::new(Peers::elsewhere()),
            transport: wire.clone(),
            clock: Clock::system(),
        };
        let quotas = Quotas::start(setup, stop.clone());
        tokio::spawn(wire.receive(quotas.clone(), stop.clone()));
        Member {
            group: group.into(),
            quotas,
            stop,
        }
    }

    /// The provider's place in its group, if it has one.
    ///
    /// # Errors
    /// A sentence, where there is no place to meet.
    fn member(&self, provider: &str) -> Result<Option<Member>, String> {
        self.by_provider.load().get(provider).cloned().transpose()
    }

    /// Reserves what a request to `provider` will use; nothing where it has no quotas.
    ///
    /// # Errors
    /// [`NotAdmitted`]: a quota is used up, or the quotas are impossible.
    pub async fn reserve(&self, provider: &str, ask: Ask<'_>) -> Result<Option<Permit>, NotAdmitted> {
        loop {
            let member = self.member(provider).map_err(NotAdmitted::Impossible)?;
            let reserved = match &member {
                None => self.own.reserve(provider, ask).await,
                Some(Member { group, quotas, .. }) => quotas.reserve(group, ask).await,
            };
            match reserved {
                // What it waited for is not in force any more; what is, was put in force before.
                Err(NotAdmitted::Left) if !self.leaving.load(Ordering::SeqCst) => {}
                reserved => return reserved.map_err(|why| why.of(provider)),
            }
        }
    }

    /// The quotas of a provider and what they did to each pool, for `/stats`.
    pub fn stats(&self, provider: &str) -> (Vec<QuotaStats>, BTreeMap<String, QuotaPoolStats>) {
        match self.member(provider) {
            Ok(None) => self.own.stats(provider),
            Ok(Some(member)) => member.quotas.stats(&member.group),
            Err(_) => Default::default(),
        }
    }

    /// What a provider's quotas did to each pool, with the distribution of waiting times; ordered by name.
    pub fn pools(&self, provider: &str) -> Vec<(String, counts::Pool)> {
        match self.member(provider) {
            Ok(None) => self.own.pools(provider),
            Ok(Some(member)) => member.quotas.pools(&member.group),
            Err(_) => Vec::new(),
        }
    }

    /// Answers another gateway of the namespace.
    pub async fn handle(&self, request: Request<Incoming>, client: SocketAddr) -> Response<Outgoing> {
        self.own.handle(request, client).await
    }

    /// Other gateways are to deal out, where there are any; this one goes on using its shares.
    pub fn stand_aside(&self) {
        self.own.stand_aside();
        for member in self.members.lock().values() {
            member.quotas.stand_aside();
        }
    }

    /// Hands over: nothing is admitted from now on, shares go back, and other gateways may be elected.
    pub async fn leave(&self) {
        self.leaving.store(true, Ordering::SeqCst);
        let members = std::mem::take(&mut *self.members.lock());
        let leaving = members.into_values().map(Member::leave);
        futures::future::join(self.own.leave(), futures::future::join_all(leaving)).await;
    }
}
