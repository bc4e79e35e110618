//! `/metrics`, `/stats`, `/healthz`, `/readyz`, and `POST /drain`: for the operator, kubelet and Prometheus; and what gateways say
//! to each other ([`session::PATH`], [`quota::PATH`]).

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::header::{self, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use tokio::time::Instant;

use crate::config::Source;
use crate::drain::Drain;
use crate::egress::{Egress, quota};
use crate::ingress::Ingress;
use crate::ingress::listeners::Failures;
use crate::metrics::{self, Metrics};
use crate::observe::Plane;
use crate::reply::{Outgoing, held};
use crate::report::{self, Identity};
use crate::server::Handler;
use crate::session;

/// For this long after the start a port that cannot be bound holds readiness back: its last holder may be about to go.
/// After that it is reported and no reason to take all other pools of the namespace out of service.
const BIND_GRACE: Duration = Duration::from_secs(10);

/// The admin port.
pub struct Admin {
    /// Who reports.
    pub identity: Identity,
    /// The pools.
    pub ingress: Arc<Ingress>,
    /// The providers.
    pub egress: Arc<Egress>,
    /// The way out.
    pub drain: Arc<Drain>,
    /// Whether anything has been seen of the cluster.
    pub source: Source,
    /// Ports that could not be bound.
    pub failures: Arc<Failures>,
    /// All metrics.
    pub metrics: Metrics,
    /// When the process started.
    pub started: Instant,
}

const TEXT: &str = "text/plain; charset=utf-8";

impl Handler for Admin {
    const PLANE: Plane = Plane::Admin;

    async fn handle(&self, request: Request<Incoming>, client: SocketAddr) -> Response<Outgoing> {
        match (request.method(), request.uri().path()) {
            (&Method::GET | &Method::HEAD, "/healthz") => held(StatusCode::OK, TEXT, "ok\n"),
            (&Method::GET | &Method::HEAD, "/readyz") => self.readiness(),
            (&Method::GET, "/metrics") => held(StatusCode::OK, metrics::CONTENT_TYPE, self.metrics.encode()),
            (&Method::GET, "/stats") => self.stats(),
            (&Method::POST, "/drain") => self.drain(client),
            (_, quota::PATH | quota::VOUCH_PATH) => self.egress.quotas().handle(request, client).await,
            (_, session::PATH) => self.ingress.sessions().serve(request, client).await,
            (_, "/healthz" | "/readyz" | "/metrics" | "/stats" | "/drain") => {
                let allowed = if request.uri().path() == "/drain" {
                    "POST"
                } else {
                    "GET"
                };
                let mut response = held(StatusCode::METHOD_NOT_ALLOWED, TEXT, format!("use {allowed}\n"));
                response
                    .headers_mut()
                    .insert(header::ALLOW, HeaderValue::from_static(allowed));
                response
            }
            _ => held(
                StatusCode::NOT_FOUND,
                TEXT,
                "this port has /metrics, /stats, /healthz, /readyz and POST /drain\n",
            ),
        }
    }
}

impl Admin {
    fn stats(&self) -> Response<Outgoing> {
        let stats = report::report(
            &self.identity,
            self.drain.is_leaving(),
            &self.ingress,
            &self.egress,
        );
        match serde_json::to_vec(&stats) {
            Ok(json) => held(StatusCode::OK, "application/json", json),
            Err(error) => held(
                StatusCode::INTERNAL_SERVER_ERROR,
                TEXT,
                format!("failed to write the report: {error}\n"),
            ),
        }
    }

    fn readiness(&self) -> Response<Outgoing> {
        let (pending, notes) = self.pending();
        let status = if pending.is_empty() {
            StatusCode::OK
        } else {
            StatusCode::SERVICE_UNAVAILABLE
        };
        let mut text = String::from(if pending.is_empty() {
            "ready\n"
        } else {
            "not ready\n"
        });
        for line in pending.iter().chain(&notes) {
            text.push_str("- ");
            text.push_str(line);
            text.push('\n');
        }
        held(status, TEXT, text)
    }

    /// What readiness waits for, and what else is wrong.
    fn pending(&self) -> (Vec<String>, Vec<String>) {
        let (mut pending, mut notes) = (Vec::new(), Vec::new());
        if self.drain.is_leaving() {
            pending.push("draining".to_owned());
        }
        if self.source.borrow().is_none() {
            pending.push(
                "waiting for the first lists of AgentPools, ModelProviders and EndpointSlices".to_owned(),
            );
        }
        if !self.ingress.sessions().is_joined() {
            pending.push("waiting for a first answer of the other gateways".to_owned());
        }
        let failures = self.failures.get();
        let early = self.started.elapsed() < BIND_GRACE;
        for (pool, failure) in failures.iter() {
            let list = if early { &mut pending } else { &mut notes };
            list.push(format!("pool {pool}: {failure}"));
        }
        let pools = self.ingress.pools();
        let unbound: BTreeSet<&str> = pools
            .by_name
            .values()
            .filter(|pool| pool.wanted_port().is_some() && pool.bound_port() != pool.wanted_port())
            .map(|pool| pool.name())
            .filter(|name| !failures.contains_key(*name))
            .collect();
        pending.extend(
            unbound
                .into_iter()
                .map(|pool| format!("pool {pool}: its port is not bound yet")),
        );
        (pending, notes)
    }

    /// From this pod only: otherwise any pod of the cluster could take the namespace out of service.
    fn drain(&self, client: SocketAddr) -> Response<Outgoing> {
        if !client.ip().to_canonical().is_loopback() {
            return held(
                StatusCode::FORBIDDEN,
                TEXT,
                "draining is started from the pod itself only (127.0.0.1)\n",
            );
        }
        self.drain.begin("POST /drain");
        held(StatusCode::ACCEPTED, TEXT, "draining\n")
    }
}
