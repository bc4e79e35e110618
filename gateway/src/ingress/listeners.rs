//! A listening port for each pool, bound and given up as pools come and go.
//!
//! A port that cannot be bound is tried again and reported, and stops nobody else. If two pools name the same port the one
//! that has it keeps it.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use http::{Request, Response};
use hyper::body::Incoming;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::pool::Pool;
use super::{Ingress, proxy};
use crate::observe::Plane;
use crate::reply::Outgoing;
use crate::server::{self, Handler, Serving};

/// Pause before a port that could not be bound is tried again.
pub const RETRY: Duration = Duration::from_secs(1);

/// Serves one pool on its own port.
struct PoolPort(Arc<Pool>);

impl Handler for PoolPort {
    const PLANE: Plane = Plane::Ingress;

    async fn handle(&self, request: Request<Incoming>, client: SocketAddr) -> Response<Outgoing> {
        proxy::serve(&self.0, request, client, None).await
    }
}

/// Serves all pools on the shared port.
pub struct SharedPort(pub Arc<Ingress>);

impl Handler for SharedPort {
    const PLANE: Plane = Plane::Ingress;

    async fn handle(&self, request: Request<Incoming>, client: SocketAddr) -> Response<Outgoing> {
        let (mut head, body) = request.into_parts();
        match self.0.route(&mut head) {
            Ok((pool, prefix)) => {
                proxy::serve(&pool, Request::from_parts(head, body), client, prefix.as_deref()).await
            }
            Err(refusal) => refusal.into_response(),
        }
    }
}

/// The ports of the pools.
pub struct Listeners {
    host: IpAddr,
    serving: Arc<Serving>,
    open: HashMap<u16, Open>,
    failures: Arc<Failures>,
}

/// Pools whose port could not be bound, with a sentence.
#[derive(Default)]
pub struct Failures(ArcSwap<BTreeMap<String, String>>);

struct Open {
    pool: Arc<Pool>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Failures {
    /// By pool.
    pub fn get(&self) -> Arc<BTreeMap<String, String>> {
        self.0.load_full()
    }
}

impl Listeners {
    /// No port yet; they will be bound on `host`.
    pub fn new(host: IpAddr, serving: Arc<Serving>) -> Self {
        Self {
            host,
            serving,
            open: HashMap::new(),
            failures: Arc::default(),
        }
    }

    /// What could not be bound, kept up to date.
    pub fn failures(&self) -> Arc<Failures> {
        self.failures.clone()
    }

    /// Binds and gives up ports to fit the pools. True when all is as wanted, false when it should be tried again.
    pub async fn follow(&mut self, ingress: &Ingress) -> bool {
        let pools = ingress.pools();
        let holds = |pool: &Arc<Pool>, port: u16| {
            pool.wanted_port() == Some(port)
                && pools
                    .by_name
                    .get(pool.name())
                    .is_some_and(|current| Arc::ptr_eq(current, pool))
        };
        let stale: Vec<u16> = self
            .open
            .iter()
            .filter(|(port, open)| !holds(&open.pool, **port))
            .map(|(port, _)| *port)
            .collect();
        for port in stale {
            if let Some(open) = self.open.remove(&port) {
                open.close(port).await;
            }
        }
        let mut failures = BTreeMap::new();
        let mut wanted: Vec<_> = pools
            .by_name
            .values()
            .filter_map(|pool| Some((pool, pool.wanted_port()?)))
            .collect();
        wanted.sort_by_key(|(pool, _)| pool.name().to_owned());
        for (pool, port) in wanted {
            if let Some(open) = self.open.get(&port) {
                if !Arc::ptr_eq(&open.pool, pool) {
                    let holder = open.pool.name();
                    failures.insert(
                        pool.name().to_owned(),
                        format!("port {port} is held by the pool \"{holder}\""),
                    );
                }
                continue;
            }
            match TcpListener::bind(SocketAddr::new(self.host, port)).await {
                Ok(listener) => self.opened(pool.clone(), port, listener),
                Err(error) => {
                    failures.insert(
                        pool.name().to_owned(),
                        format!("failed to bind port {port}: {error}"),
                    );
                }
            }
        }
        let before = self.failures.get();
        for (pool, failure) in failures
            .iter()
            .filter(|(pool, failure)| before.get(*pool) != Some(*failure))
        {
            warn!(pool, failure, "a pool's port is not bound");
        }
        let done = failures.is_empty();
        self.failures.0.store(Arc::new(failures));
        done
    }

    fn opened(&mut self, pool: Arc<Pool>, port: u16, listener: TcpListener) {
        let stop = CancellationToken::new();
        let handler = Arc::new(PoolPort(pool.clone()));
        let task = tokio::spawn(server::serve(
            listener,
            handler,
            self.serving.clone(),
            stop.clone(),
        ));
        pool.set_bound_port(Some(port));
        info!(pool = pool.name(), port, "listening");
        self.open.insert(port, Open { pool, stop, task });
    }
}

impl Open {
    /// Stops accepting; connections that are open are served on.
    async fn close(self, port: u16) {
        self.pool.set_bound_port(None);
        self.stop.cancel();
        // The socket is free once the task has ended; that it panicked would have been logged.
        let _ = self.task.await;
        info!(pool = self.pool.name(), port, "no longer listening");
    }
}
