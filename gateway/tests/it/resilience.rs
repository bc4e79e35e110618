//! Tries, times, budgets, bulkheads, and who learns that a client has gone.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::support::{Agent, Answer, Client, Fixture, PoolExt as _, config, full, get, nobody, pool, post};
use flotilla_core::balance::{BudgetPolicy, EjectionPolicy};
use flotilla_gateway::config::PoolConfig;
use http::{Response, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::Frame;
use tokio::sync::{Semaphore, mpsc};

/// Counts one when it is dropped.
struct Dropped(Arc<AtomicUsize>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// An agent that never answers, and how many requests it has been rid of.
async fn hanging() -> (Agent, Arc<AtomicUsize>) {
    let gone = Arc::new(AtomicUsize::new(0));
    let inner = gone.clone();
    let agent = Agent::start(move |_| {
        let guard = Dropped(inner.clone());
        async move {
            let _guard = guard;
            std::future::pending().await
        }
    })
    .await;
    (agent, gone)
}

async fn until(what: &str, met: impl Fn() -> bool) {
    for _ in 0..500 {
        if met() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("not within 5 s: {what}");
}

fn patient(mut pool: PoolConfig) -> PoolConfig {
    pool.ejection = EjectionPolicy::off();
    pool
}

async fn unavailable() -> Agent {
    Agent::start(|_| async {
        let mut response = Response::new(full("busy"));
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        response
    })
    .await
}

#[tokio::test]
async fn a_try_that_takes_too_long_is_given_up_and_repeated_only_if_asked_for() {
    let (hanging, gone) = hanging().await;
    let quick = Agent::named("quick").await;
    let with = |unavailable: bool, agents: &[std::net::SocketAddr]| {
        let mut wanted = patient(pool().revision("a", 100, 8, agents));
        wanted.retries.try_timeout = Some(Duration::from_millis(150));
        wanted.retries.policy.unavailable = unavailable;
        config(wanted)
    };
    let fixture = Fixture::with(with(false, &[hanging.address])).await;
    let answer = post(fixture.gateway.ingress, &fixture.path("/"), "x").await;
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (StatusCode::GATEWAY_TIMEOUT, "TryTimeout")
    );
    assert!(
        answer
            .text()
            .contains("spec.traffic.retries.perTryTimeoutSeconds")
    );
    until("the agent learns of it", || gone.load(Ordering::SeqCst) == 1).await;

    fixture.tell(with(true, &[hanging.address, quick.address])).await;
    for _ in 0..4 {
        let answer = post(fixture.gateway.ingress, &fixture.path("/"), "x").await;
        assert_eq!(answer.text(), "quick");
    }
    assert!(
        hanging.hits() > 2 && quick.hits() == 4,
        "in turn, and then elsewhere"
    );
}

#[tokio::test]
async fn a_status_of_503_is_repeated_only_if_asked_for_and_elsewhere() {
    let (busy, well) = (unavailable().await, Agent::named("well").await);
    let with = |unavailable: bool| {
        let mut wanted = patient(pool().revision("a", 100, 8, &[busy.address, well.address]));
        wanted.retries.policy.unavailable = unavailable;
        config(wanted)
    };
    let fixture = Fixture::with(with(false)).await;
    let mut client = Client::connect(fixture.gateway.ingress).await;
    let mut failed = 0;
    for _ in 0..10 {
        failed += usize::from(client.get(&fixture.path("/")).await.text() == "busy");
    }
    assert_eq!((failed, busy.hits()), (5, 5));
    fixture.tell(with(true)).await;
    for _ in 0..10 {
        assert_eq!(client.get(&fixture.path("/")).await.text(), "well");
    }
    assert!(busy.hits() >= 9, "{}", busy.hits());
    // Each request counts once, by what the client has seen.
    let stats = fixture.stats().await;
    let windows = stats.pools["support"].revisions["a"].windows.iter();
    assert_eq!(
        windows.fold((0, 0), |(e, f), w| (e + w.ended, f + w.failed)),
        (20, 5)
    );
}

#[tokio::test]
async fn with_its_budget_used_up_a_pool_tries_no_more() {
    let busy = unavailable().await;
    let mut wanted = patient(pool().revision("a", 100, 8, &[busy.address]));
    wanted.retries.policy.unavailable = true;
    wanted.retries.budget = BudgetPolicy {
        percent: 0,
        min_per_second: 0,
        burst: 4,
    };
    let fixture = Fixture::with(config(wanted)).await;
    for hits in [4, 6, 7, 8] {
        let answer = post(fixture.gateway.ingress, &fixture.path("/"), "x").await;
        assert_eq!(
            (answer.text().as_str(), busy.hits()),
            ("busy", hits),
            "the agent's own answer in the end"
        );
    }
    let metrics = fixture.metrics().await;
    assert!(
        metrics.contains(r#"flotilla_gateway_retries_total{pool="support",result="sent"} 4"#),
        "{metrics}"
    );
    assert!(
        metrics.contains(r#"flotilla_gateway_retries_total{pool="support",result="denied"} 3"#),
        "{metrics}"
    );
    assert!(
        metrics.contains(r#"flotilla_gateway_retry_budget{pool="support"} 0"#),
        "{metrics}"
    );
}

#[tokio::test]
async fn without_retries_an_unreachable_replica_is_the_clients_to_know() {
    let (dead, alive) = (nobody().await, Agent::named("alive").await);
    let mut wanted = pool().revision("a", 100, 8, &[dead, alive.address]);
    wanted.retries.policy.attempts = 0;
    let fixture = Fixture::with(config(wanted)).await;
    let mut codes = Vec::new();
    for _ in 0..4 {
        let answer = get(fixture.gateway.ingress, &fixture.path("/")).await;
        codes.extend((answer.status != StatusCode::OK).then(|| answer.code()));
    }
    assert_eq!(codes, ["ReplicaUnreachable"], "once: then it is ejected");
}

#[tokio::test]
async fn one_pool_cannot_use_up_the_gateway() {
    let gate = Arc::new(Semaphore::new(0));
    let inner = gate.clone();
    let agent = Agent::start(move |_| {
        let gate = inner.clone();
        async move {
            gate.acquire().await.unwrap().forget();
            Response::new(full("done"))
        }
    })
    .await;
    let mut wanted = pool().revision("a", 100, 1, &[agent.address]);
    wanted.max_requests = 2;
    let fixture = Fixture::with(config(wanted)).await;
    let ask = || {
        let (to, path) = (fixture.gateway.ingress, fixture.path("/"));
        tokio::spawn(async move { get(to, &path).await })
    };
    let held = [ask(), ask()];
    fixture
        .wait("one works, one waits", |stats| {
            let pool = &stats.pools["support"];
            (pool.queued, pool.revisions["a"].in_flight) == (1, 1)
        })
        .await;
    let third: Answer = ask().await.unwrap();
    assert_eq!(
        (third.status, third.code().as_str()),
        (StatusCode::SERVICE_UNAVAILABLE, "TooManyRequests")
    );
    assert!(
        third.text().contains("spec.traffic.maxConcurrentRequests")
            && third.headers.contains_key("retry-after")
    );
    gate.add_permits(10);
    for answer in held {
        assert_eq!(answer.await.unwrap().text(), "done");
    }
    // Each place is given back exactly once.
    for _ in 0..5 {
        assert_eq!(ask().await.unwrap().text(), "done");
    }
    let metrics = fixture.metrics().await;
    assert!(
        metrics.contains(r#"flotilla_gateway_held_requests{pool="support"} 0"#),
        "{metrics}"
    );
}

#[tokio::test]
async fn an_agent_learns_that_its_client_has_gone() {
    let (agent, gone) = hanging().await;
    let fixture = Fixture::with(config(pool().revision("a", 100, 1, &[agent.address]))).await;
    let (to, path) = (fixture.gateway.ingress, fixture.path("/"));
    let client = Client::connect(to).await;
    let mut sender = client.sender;
    let asked = tokio::spawn(async move {
        let _ = sender
            .send_request(crate::support::request(http::Method::POST, &path, "x"))
            .await;
    });
    until("the agent has it", || agent.hits() == 1).await;
    asked.abort();
    client.task.abort();
    until("the agent is rid of it", || gone.load(Ordering::SeqCst) == 1).await;
    let stats = fixture.stats().await;
    assert_eq!(stats.pools["support"].revisions["a"].in_flight, 0);
}

#[tokio::test]
async fn a_stream_survives_the_removal_of_its_replica() {
    let (chunks, told) = mpsc::channel::<&'static str>(4);
    let told = Arc::new(tokio::sync::Mutex::new(Some(told)));
    let old = Agent::start(move |_| {
        let told = told.clone();
        async move {
            let told = told.lock().await.take().unwrap();
            let frames = futures::stream::unfold(told, |mut told| async move {
                let chunk = told.recv().await?;
                Some((Ok::<_, hyper::Error>(Frame::data(chunk.into())), told))
            });
            Response::new(http_body_util::StreamBody::new(frames).boxed())
        }
    })
    .await;
    let new = Agent::named("new").await;
    let fixture = Fixture::with(config(pool().revision("a", 100, 1, &[old.address]))).await;
    let mut client = Client::connect(fixture.gateway.ingress).await;
    let request = crate::support::request(http::Method::GET, &fixture.path("/"), "");
    let mut response = client.sender.send_request(request).await.unwrap();
    let mut expect = async |chunk: &'static str| {
        chunks.send(chunk).await.unwrap();
        let frame = response.frame().await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), chunk);
    };
    expect("one").await;
    fixture
        .tell(config(pool().revision("a", 100, 1, &[new.address])))
        .await;
    expect("two").await;
    assert_eq!(
        get(fixture.gateway.ingress, &fixture.path("/")).await.text(),
        "new"
    );
    expect("three").await;
    drop(chunks);
    assert!(response.frame().await.is_none(), "it ends as the agent ended it");
}
