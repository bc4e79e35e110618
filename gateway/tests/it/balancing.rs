//! Which replica, by strategy and by health.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::support::{Agent, Client, Fixture, PoolExt as _, config, full, pool};
use flotilla_core::balance::BreakerPolicy;
use flotilla_gateway::config::Balancing;
use http::{Response, StatusCode};

async fn ask(fixture: &Fixture, requests: usize) -> Vec<StatusCode> {
    let mut client = Client::connect(fixture.gateway.ingress).await;
    let mut seen = Vec::new();
    for _ in 0..requests {
        seen.push(client.get(&fixture.path("/")).await.status);
    }
    seen
}

fn count(seen: &[StatusCode], status: StatusCode) -> usize {
    seen.iter().filter(|other| **other == status).count()
}

/// Answers with the status that the test sets.
struct Moody {
    agent: Agent,
    status: tokio::sync::watch::Sender<StatusCode>,
}

impl Moody {
    async fn start(status: StatusCode) -> Self {
        let (status, told) = tokio::sync::watch::channel(status);
        let agent = Agent::start(move |_| {
            let mut response = Response::new(full("x"));
            *response.status_mut() = *told.borrow();
            async move { response }
        })
        .await;
        Self { agent, status }
    }
}

#[tokio::test]
async fn in_turn_each_gets_its_exact_share() {
    let (a, b) = (Agent::named("a").await, Agent::named("b").await);
    for (balancing, share) in [(Balancing::RoundRobin, (20, 20)), (Balancing::Weighted, (10, 30))] {
        let before = (a.hits(), b.hits());
        let mut wanted = pool().revision("a", 100, 1, &[a.address, b.address]);
        wanted.balancing = balancing;
        let endpoints = &mut wanted.revisions.get_mut("a").unwrap().endpoints;
        endpoints.get_mut(&b.address).unwrap().slots = Some(3);
        let fixture = Fixture::with(config(wanted)).await;
        ask(&fixture, 40).await;
        assert_eq!((a.hits() - before.0, b.hits() - before.1), share, "{balancing:?}");
    }
}

#[tokio::test]
async fn adaptive_leaves_the_slow_replica_to_others() {
    let quick = Agent::named("quick").await;
    // Slower by far than anything the quick one was seen to take, however busy the machine is.
    let longest = Arc::new(AtomicU64::new(0));
    let seen = longest.clone();
    let slow = Agent::start(move |_| {
        let pause = Duration::from_micros(10 * seen.load(Ordering::Relaxed)).min(Duration::from_secs(5));
        async move {
            tokio::time::sleep(Duration::from_millis(60) + pause).await;
            Response::new(full("slow"))
        }
    })
    .await;
    let mut wanted = pool().revision("a", 100, 8, &[quick.address, slow.address]);
    wanted.balancing = Balancing::Adaptive;
    let fixture = Fixture::with(config(wanted)).await;
    let mut client = Client::connect(fixture.gateway.ingress).await;
    for _ in 0..100 {
        let begin = Instant::now();
        if client.get(&fixture.path("/")).await.text() == "quick" {
            let took = u64::try_from(begin.elapsed().as_micros()).unwrap();
            longest.fetch_max(took, Ordering::Relaxed);
        }
    }
    // Half of them by load alone. Some come while both are new, which are compared with a tenth of their weight.
    assert!(slow.hits() < 30, "{}", slow.hits());
}

#[tokio::test]
async fn a_conversation_has_its_replica_and_leaves_it_only_when_that_is_gone() {
    let agents = [
        Agent::named("a").await,
        Agent::named("b").await,
        Agent::named("c").await,
    ];
    let with = |agents: &[Agent]| {
        let addresses: Vec<_> = agents.iter().map(|agent| agent.address).collect();
        let mut wanted = pool().revision("a", 100, 8, &addresses);
        wanted.balancing = Balancing::ConsistentHash;
        wanted.sessions = Some(crate::sessions::by_header(&[]));
        config(wanted)
    };
    let fixture = Fixture::with(with(&agents)).await;
    let mut client = Client::connect(fixture.gateway.ingress).await;
    let mut homes = Vec::new();
    for _ in 0..2 {
        for person in 0..30 {
            let mut request = crate::support::request(http::Method::GET, &fixture.path("/"), "");
            let name = format!("person-{person}").parse().unwrap();
            request.headers_mut().insert("x-session-id", name);
            homes.push(client.send(request).await.unwrap().text());
        }
    }
    let (first, second) = homes.split_at(30);
    assert_eq!(first, second);
    for name in ["a", "b", "c"] {
        assert!(first.iter().any(|home| home == name), "{first:?}");
    }
    fixture.tell(with(&agents[..2])).await;
    for (person, home) in first.iter().enumerate() {
        let mut request = crate::support::request(http::Method::GET, &fixture.path("/"), "");
        let name = format!("person-{person}").parse().unwrap();
        request.headers_mut().insert("x-session-id", name);
        let now = client.send(request).await.unwrap().text();
        assert!(now == *home || home == "c", "person {person}: {home}, then {now}");
    }
}

#[tokio::test]
async fn without_a_key_a_consistent_pool_spreads_by_load() {
    let (a, b) = (Agent::named("a").await, Agent::named("b").await);
    let mut wanted = pool().revision("a", 100, 8, &[a.address, b.address]);
    wanted.balancing = Balancing::ConsistentHash;
    let fixture = Fixture::with(config(wanted)).await;
    ask(&fixture, 40).await;
    assert!(a.hits() > 0 && b.hits() > 0);
}

#[tokio::test]
async fn five_failures_in_a_row_eject_a_replica_and_probes_bring_it_back() {
    let (bad, good) = (
        Moody::start(StatusCode::SERVICE_UNAVAILABLE).await,
        Agent::named("good").await,
    );
    let mut wanted = pool().revision("a", 100, 8, &[bad.agent.address, good.address]);
    wanted.ejection.breaker = BreakerPolicy {
        open: Duration::from_millis(300),
        ..BreakerPolicy::default()
    };
    let fixture = Fixture::with(config(wanted)).await;
    let seen = ask(&fixture, 40).await;
    // A slow machine may take longer than the 300 ms and try it again.
    let failed = count(&seen, StatusCode::SERVICE_UNAVAILABLE);
    assert!((5..=7).contains(&failed), "{failed}");
    let metrics = fixture.metrics().await;
    assert!(
        metrics
            .contains(r#"flotilla_gateway_ejections_total{pool="support",revision="a",reason="failures"} 1"#),
        "{metrics}"
    );
    bad.status.send_replace(StatusCode::OK);
    fixture
        .wait_for_metric(
            r#"flotilla_gateway_readmissions_total{pool="support",revision="a"} 1"#,
            || async {
                ask(&fixture, 4).await;
            },
        )
        .await;
    let before = bad.agent.hits();
    let seen = ask(&fixture, 10).await;
    assert_eq!((count(&seen, StatusCode::OK), bad.agent.hits() - before), (10, 5));
}

#[tokio::test]
async fn when_all_are_ejected_all_serve() {
    let dead = crate::support::nobody().await;
    let (a, b) = (
        Moody::start(StatusCode::BAD_GATEWAY).await,
        Moody::start(StatusCode::BAD_GATEWAY).await,
    );
    let mut wanted = pool().revision("a", 100, 8, &[a.agent.address, b.agent.address, dead]);
    wanted.ejection.max_ejected_percent = 100;
    let fixture = Fixture::with(config(wanted)).await;
    ask(&fixture, 30).await;
    let metrics = fixture.metrics().await;
    let open = r#"flotilla_gateway_breakers{pool="support",revision="a",state="open"} 3"#;
    assert!(metrics.contains(open), "{metrics}");
    let before = (a.agent.hits(), b.agent.hits());
    let seen = ask(&fixture, 30).await;
    assert_eq!(count(&seen, StatusCode::BAD_GATEWAY), 30);
    assert!(a.agent.hits() > before.0 && b.agent.hits() > before.1);
    // Well again, they serve at once: nobody is refused on suspicion.
    a.status.send_replace(StatusCode::OK);
    b.status.send_replace(StatusCode::OK);
    let seen = ask(&fixture, 30).await;
    assert_eq!(count(&seen, StatusCode::OK), 30);
}

#[tokio::test]
async fn ejection_can_be_switched_off() {
    let (bad, good) = (
        Moody::start(StatusCode::SERVICE_UNAVAILABLE).await,
        Agent::named("good").await,
    );
    let mut wanted = pool().revision("a", 100, 8, &[bad.agent.address, good.address]);
    wanted.ejection = flotilla_core::balance::EjectionPolicy::off();
    let fixture = Fixture::with(config(wanted)).await;
    let seen = ask(&fixture, 40).await;
    assert_eq!(count(&seen, StatusCode::SERVICE_UNAVAILABLE), 20);
}

#[tokio::test]
async fn one_that_cannot_be_reached_is_asked_once_also_when_the_others_are_full() {
    let dead = crate::support::nobody().await;
    let alive = Agent::start(|_| async {
        tokio::time::sleep(Duration::from_millis(5)).await;
        Response::new(full("alive"))
    })
    .await;
    let mut wanted = pool().revision("a", 100, 1, &[dead, alive.address]);
    // The least loaded one is always the one that is dead.
    wanted.balancing = Balancing::LeastLoaded;
    let fixture = Fixture::with(config(wanted)).await;
    let clients = (0..8).map(|_| ask(&fixture, 10));
    let seen = futures::future::join_all(clients).await.concat();
    assert_eq!(count(&seen, StatusCode::OK), 80);
    let metrics = fixture.metrics().await;
    let ejected = r#"flotilla_gateway_ejections_total{pool="support",revision="a",reason="unreachable"} 1"#;
    assert!(metrics.contains(ejected), "{metrics}");
}
