//! Who is served next when not everybody can be, and who is told at once that it will not be.

use std::sync::Arc;
use std::time::Duration;

use crate::slots::gated;
use crate::support::{Agent, Answer, Client, Fixture, PoolExt as _, config, pool};
use flotilla_gateway::config::PoolConfig;
use http::{HeaderName, StatusCode};
use tokio::sync::{Mutex, Semaphore};
use tokio::task::JoinHandle;

const TENANT: HeaderName = HeaderName::from_static("x-tenant");
const PRIORITY: HeaderName = HeaderName::from_static("x-priority");

/// One slot, and headers for tenants and classes.
struct Line {
    fixture: Fixture,
    gate: Arc<Semaphore>,
    order: Arc<Mutex<Vec<String>>>,
    _agent: Agent,
}

impl Line {
    async fn start(change: impl FnOnce(&mut PoolConfig)) -> Self {
        let (agent, gate, order) = gated().await;
        let mut wanted = pool().revision("a", 100, 1, &[agent.address]);
        (wanted.tenant_header, wanted.priority_header) = (Some(TENANT), Some(PRIORITY));
        change(&mut wanted);
        let line = Self {
            fixture: Fixture::with(config(wanted)).await,
            gate,
            order,
            _agent: agent,
        };
        line.send("/first", &[]);
        line.fixture
            .wait("the slot is taken", |stats| {
                stats.pools["support"].revisions["a"].in_flight == 1
            })
            .await;
        line
    }

    fn send(&self, path: &str, headers: &[(HeaderName, &'static str)]) -> JoinHandle<Answer> {
        let mut request = crate::support::request(http::Method::POST, &self.fixture.path(path), "x");
        for (name, value) in headers {
            request.headers_mut().insert(name, value.parse().unwrap());
        }
        let to = self.fixture.gateway.ingress;
        tokio::spawn(async move { Client::connect(to).await.send(request).await.unwrap() })
    }

    /// The same, once it waits as number `queued`.
    async fn enter(
        &self,
        queued: u64,
        path: &str,
        headers: &[(HeaderName, &'static str)],
    ) -> JoinHandle<Answer> {
        let sent = self.send(path, headers);
        self.fixture
            .wait("it waits", |stats| stats.pools["support"].queued == queued)
            .await;
        sent
    }

    async fn order(&self, sent: Vec<JoinHandle<Answer>>) -> Vec<String> {
        self.gate.add_permits(sent.len() + 1);
        for answer in sent {
            assert_eq!(answer.await.unwrap().status, StatusCode::OK);
        }
        self.order.lock().await.clone()
    }
}

#[tokio::test]
async fn tenants_take_turns_whoever_came_first() {
    let line = Line::start(|_| {}).await;
    let mut sent = Vec::new();
    for (number, (path, tenant)) in [
        ("/a1", "a"),
        ("/a2", "a"),
        ("/a3", "a"),
        ("/b1", "b"),
        ("/b2", "b"),
        ("/c1", "c"),
    ]
    .into_iter()
    .enumerate()
    {
        sent.push(line.enter(number as u64 + 1, path, &[(TENANT, tenant)]).await);
    }
    assert_eq!(
        line.order(sent).await,
        ["/first", "/a1", "/b1", "/c1", "/a2", "/b2", "/a3"]
    );
}

#[tokio::test]
async fn a_higher_class_goes_first_and_an_unknown_one_is_normal() {
    let line = Line::start(|_| {}).await;
    let mut sent = Vec::new();
    for (number, (path, class)) in [
        ("/low", "Low"),
        ("/strange", "urgent!"),
        ("/high", "high"),
        ("/normal", "Normal"),
        ("/critical", "CRITICAL"),
    ]
    .into_iter()
    .enumerate()
    {
        sent.push(line.enter(number as u64 + 1, path, &[(PRIORITY, class)]).await);
    }
    assert_eq!(
        line.order(sent).await,
        ["/first", "/critical", "/high", "/strange", "/normal", "/low"]
    );
}

#[tokio::test]
async fn without_the_headers_named_all_are_one_tenant_and_normal() {
    let line = Line::start(|pool| (pool.tenant_header, pool.priority_header) = (None, None)).await;
    let mut sent = Vec::new();
    for (number, (path, tenant, class)) in [("/1", "a", "Low"), ("/2", "a", "Low"), ("/3", "b", "Critical")]
        .into_iter()
        .enumerate()
    {
        let headers = [(TENANT, tenant), (PRIORITY, class)];
        sent.push(line.enter(number as u64 + 1, path, &headers).await);
    }
    assert_eq!(line.order(sent).await, ["/first", "/1", "/2", "/3"]);
}

#[tokio::test]
async fn a_tenant_that_fills_the_queue_gives_way_to_another() {
    let line = Line::start(|pool| pool.queue_requests = 2).await;
    let first = line.enter(1, "/a1", &[(TENANT, "a")]).await;
    let second = line.enter(2, "/a2", &[(TENANT, "a")]).await;
    let own = line.send("/a3", &[(TENANT, "a")]).await.unwrap();
    assert_eq!(own.code(), "QueueFull");
    let other = line.send("/b1", &[(TENANT, "b")]);
    let displaced = second.await.unwrap();
    assert_eq!(
        (displaced.status, displaced.code().as_str()),
        (StatusCode::SERVICE_UNAVAILABLE, "QueueDisplaced")
    );
    assert!(
        displaced.text().contains("spec.traffic.queue.maxRequests")
            && displaced.headers.contains_key("retry-after")
    );
    let share = line.send("/b2", &[(TENANT, "b")]).await.unwrap();
    assert_eq!(share.code(), "TenantQueueFull");
    assert_eq!(line.order(vec![first, other]).await, ["/first", "/a1", "/b1"]);
    let pool = &line.fixture.stats().await.pools["support"];
    assert_eq!((pool.refused, pool.queued), (3, 0));
}

#[tokio::test]
async fn who_waits_beyond_its_clients_deadline_is_told_which() {
    let line = Line::start(|_| {}).await;
    let timeout = HeaderName::from_static("grpc-timeout");
    let answer = line.send("/", &[(timeout, "100m")]).await.unwrap();
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (StatusCode::SERVICE_UNAVAILABLE, "QueueTimeout")
    );
    let body: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(body["error"]["limit"], "grpc-timeout");
    line.gate.add_permits(1);
}

#[tokio::test]
async fn a_wait_that_would_be_too_long_is_refused_on_arrival() {
    let line = Line::start(|_| {}).await;
    let waiting: Vec<_> = (0..40).map(|_| line.send("/", &[])).collect();
    line.fixture
        .wait("all wait", |stats| stats.pools["support"].queued == 40)
        .await;
    // Ten are served, one after another: about 20 ms each.
    for _ in 0..10 {
        line.gate.add_permits(1);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    line.fixture
        .wait("some are served", |stats| stats.pools["support"].queued <= 30)
        .await;
    // 30 times 20 ms are 600 ms, and no machine is 10 times as fast as its sleep.
    let header = HeaderName::from_static("x-envoy-expected-rq-timeout-ms");
    let answer = line.send("/", &[(header.clone(), "60")]).await.unwrap();
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (StatusCode::SERVICE_UNAVAILABLE, "WaitTooLong"),
        "{}",
        answer.text()
    );
    let body: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(body["error"]["limit"], header.as_str());
    let retry_after: u64 = answer.headers["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=30).contains(&retry_after), "{retry_after}");
    let metrics = line.fixture.metrics().await;
    let refused = r#"flotilla_gateway_refused_total{pool="support",reason="predicted_wait"} 1"#;
    assert!(metrics.contains(refused), "{metrics}");
    line.gate.add_permits(100);
    for answer in waiting {
        assert_eq!(answer.await.unwrap().status, StatusCode::OK);
    }
    let metrics = line.fixture.metrics().await;
    let waits = r#"flotilla_gateway_queue_wait_seconds_count{pool="support"} 40"#;
    assert!(metrics.contains(waits), "{metrics}");
}
