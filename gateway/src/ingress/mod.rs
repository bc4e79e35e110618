//! Client → pool → revision → replica.
//!
//! [`Ingress`] holds what lives as long as the process: pools, their revisions and endpoints, with slots in use and counts.
//! A new configuration is laid over it by [`Ingress::apply`]; requests read snapshots and take no lock to choose.

pub mod claim;
pub mod clock;
pub mod deadline;
pub mod durations;
pub mod endpoint;
pub mod exchange;
pub mod listeners;
pub mod pool;
pub mod proxy;
pub mod queue;
pub mod refusals;
pub mod replicas;
pub mod revision;
pub mod room;
pub mod route;
pub mod served_by;
pub mod traffic;
pub mod tunnel;
pub mod websocket;
pub mod windows;

mod retry;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;

use crate::config::Config;
use crate::session::Sessions;
use crate::upstream::Limits;
use pool::Pool;

/// All pools of the namespace.
pub struct Ingress {
    pools: ArcSwap<Pools>,
    namespace: String,
    cluster_domain: String,
    limits: Limits,
    sessions: Arc<Sessions>,
}

/// Pools by their names.
#[derive(Default)]
pub struct Pools {
    /// By the pool's name.
    pub by_name: HashMap<String, Arc<Pool>>,
    /// By the front Service's name.
    pub by_service: HashMap<String, Arc<Pool>>,
}

impl Ingress {
    /// No pools yet. `limits` are those of connections to agents.
    pub fn new(namespace: &str, cluster_domain: &str, limits: Limits) -> Self {
        Self {
            pools: ArcSwap::default(),
            namespace: namespace.to_owned(),
            cluster_domain: cluster_domain.to_owned(),
            limits,
            sessions: Sessions::new(),
        }
    }

    /// The pools as they are now.
    pub fn pools(&self) -> Arc<Pools> {
        self.pools.load_full()
    }

    /// The conversations of all pools.
    pub fn sessions(&self) -> &Arc<Sessions> {
        &self.sessions
    }

    /// Puts `config` in force. One caller at a time.
    pub fn apply(&self, config: &Config) {
        self.sessions.apply(config);
        let before = self.pools.load();
        let mut after = Pools::default();
        for (name, wanted) in &config.pools {
            let pool = match before.by_name.get(name) {
                Some(pool) if pool.uid() == wanted.uid => pool.clone(),
                _ => Arc::new(Pool::new(name, &wanted.uid)),
            };
            pool.set_sessions(
                wanted
                    .sessions
                    .as_ref()
                    .and_then(|_| self.sessions.of_pool(&wanted.uid)),
            );
            pool.apply(wanted, self.limits);
            after
                .by_service
                .entry(wanted.service.clone())
                .or_insert_with(|| pool.clone());
            after.by_name.insert(name.clone(), pool);
        }
        for (name, pool) in &before.by_name {
            if !after
                .by_name
                .get(name)
                .is_some_and(|kept| Arc::ptr_eq(kept, pool))
            {
                pool.remove();
            }
        }
        drop(before);
        self.pools.store(Arc::new(after));
    }

    /// Drops connections to agents that have been idle for too long and endpoints that are done, and compares replicas.
    pub fn keep_house(&self) {
        for pool in self.pools.load().by_name.values() {
            pool.keep_house();
        }
    }

    /// Seconds after the end of a window that it is still reported, for a pool with this request timeout.
    pub fn keep_seconds(request_timeout: Duration) -> i64 {
        /// Two scrapes of the operator at rest.
        const SLACK_SECONDS: i64 = 30;
        i64::try_from(request_timeout.as_secs()).unwrap_or(i64::MAX / 2) + SLACK_SECONDS
    }
}
