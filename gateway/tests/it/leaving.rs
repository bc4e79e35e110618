//! Replicas and gateways leave under load; clients keep connections alive, never retry, and must see nothing.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crate::support::{Agent, Client, Fixture, PoolExt as _, config, full, pool, request};
use flotilla_gateway::config::{Config, EndpointConfig};
use http::{Method, Response, StatusCode};
use tokio::task::JoinHandle;

async fn working() -> Agent {
    Agent::start(|request| async move {
        let body = http_body_util::BodyExt::collect(request.into_body())
            .await
            .unwrap()
            .to_bytes();
        tokio::time::sleep(Duration::from_millis(3)).await;
        Response::new(full(body))
    })
    .await
}

/// Clients that send one request after another over kept connections, to where `target` says when they connect.
struct Load {
    clients: Vec<JoinHandle<usize>>,
    stop: Arc<AtomicBool>,
    closes: Arc<AtomicUsize>,
}

impl Load {
    fn start(clients: usize, target: impl Fn() -> SocketAddr + Send + Sync + 'static) -> Self {
        let (stop, closes, target) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicUsize::new(0)),
            Arc::new(target),
        );
        let run = |number: usize| {
            let (stop, closes, target) = (stop.clone(), closes.clone(), target.clone());
            tokio::spawn(async move {
                let mut client = Client::connect(target()).await;
                let mut sent = 0;
                while !stop.load(Ordering::SeqCst) {
                    let body = format!("{number}-{sent}");
                    let answer = client
                        .send(request(Method::POST, "/pools/support/", body.clone()))
                        .await;
                    let answer = answer.unwrap_or_else(|error| panic!("request {body} failed: {error:?}"));
                    assert_eq!((answer.status, answer.text()), (StatusCode::OK, body));
                    sent += 1;
                    if answer.closes() {
                        closes.fetch_add(1, Ordering::SeqCst);
                        client = Client::connect(target()).await;
                    }
                }
                sent
            })
        };
        Self {
            clients: (0..clients).map(run).collect(),
            stop,
            closes,
        }
    }

    async fn finish(self) -> usize {
        self.stop.store(true, Ordering::SeqCst);
        let mut total = 0;
        for client in self.clients {
            total += client.await.unwrap();
        }
        total
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_are_replaced_under_load_without_an_error() {
    let mut agents = Vec::new();
    for _ in 0..3 {
        agents.push(working().await);
    }
    let with = |agents: &[Agent]| {
        let addresses: Vec<_> = agents.iter().map(|agent| agent.address).collect();
        config(pool().revision("a", 100, 8, &addresses))
    };
    let fixture = Fixture::with(with(&agents)).await;
    let to = fixture.gateway.ingress;
    let load = Load::start(16, move || to);
    for _ in 0..8 {
        tokio::time::sleep(Duration::from_millis(60)).await;
        let leaving = agents.remove(0);
        agents.push(working().await);
        fixture.tell(with(&agents)).await;
        // What it has in flight ends; then its process may go.
        let ip = leaving.ip();
        fixture
            .wait("nothing is in flight there", |stats| {
                !stats.pools["support"].revisions["a"]
                    .in_flight_by_address
                    .contains_key(&ip)
            })
            .await;
        leaving.kill();
    }
    let total = load.finish().await;
    assert!(total > 100, "only {total} requests");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn weights_change_a_hundred_times_under_load_without_an_error() {
    let (a, b) = (working().await, working().await);
    let with = |weight: u32, generation: i64| {
        let mut pool =
            pool()
                .revision("a", 100 - weight, 8, &[a.address])
                .revision("b", weight, 8, &[b.address]);
        pool.generation = generation;
        config(pool)
    };
    let fixture = Fixture::with(with(0, 0)).await;
    let to = fixture.gateway.ingress;
    let load = Load::start(16, move || to);
    for generation in 1..=100 {
        fixture.tell_only(with((generation as u32 * 37) % 101, generation));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    load.finish().await;
    let stats = fixture.stats().await;
    let revisions = stats.pools["support"].revisions.values();
    let windows = revisions.flat_map(|revision| &revision.windows);
    let (started, ended, failed) = windows.fold((0, 0, 0), |(s, e, f), w| {
        (s + w.started, e + w.ended, f + w.failed)
    });
    assert_eq!((started, failed), (ended, 0));
}

#[tokio::test]
async fn a_leaving_replica_finishes_what_it_has_and_gets_nothing_new() {
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    let inner = gate.clone();
    let old = Agent::start(move |_| {
        let gate = inner.clone();
        async move {
            gate.acquire().await.unwrap().forget();
            Response::new(full("old"))
        }
    })
    .await;
    let new = Agent::named("new").await;
    let with = |ready: bool, more: &[SocketAddr]| -> Config {
        let mut pool = pool().revision("a", 100, 8, more);
        let endpoints = &mut pool.revisions.get_mut("a").unwrap().endpoints;
        endpoints.insert(
            old.address,
            EndpointConfig {
                uid: String::new(),
                ready,
                slots: None,
            },
        );
        config(pool)
    };
    let fixture = Fixture::with(with(true, &[])).await;
    let (to, path) = (fixture.gateway.ingress, fixture.path("/"));
    let slow = tokio::spawn(async move { crate::support::get(to, &path).await });
    let ip = old.ip();
    fixture
        .wait("it works", |stats| {
            stats.pools["support"].revisions["a"].in_flight == 1
        })
        .await;
    fixture.tell(with(false, &[new.address])).await;
    for _ in 0..5 {
        assert_eq!(crate::support::get(to, &fixture.path("/")).await.text(), "new");
    }
    let stats = fixture.stats().await;
    let revision = &stats.pools["support"].revisions["a"];
    assert_eq!(
        (revision.endpoints.clone(), revision.in_flight_by_address[&ip]),
        (vec![new.ip()], 1)
    );
    // Also when the pod is no longer listed at all, and when the whole revision is not.
    fixture.tell_only(config(pool().revision("b", 100, 8, &[new.address])));
    fixture
        .wait("b is there", |stats| {
            stats.pools["support"].revisions.contains_key("b")
        })
        .await;
    assert_eq!(
        fixture.stats().await.pools["support"].revisions["a"].in_flight_by_address[&ip],
        1
    );
    gate.add_permits(1);
    assert_eq!(slow.await.unwrap().text(), "old");
    fixture
        .wait("it is idle", |stats| {
            stats.pools["support"].revisions["a"].in_flight == 0
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_drains_under_load_without_an_error() {
    let agent = working().await;
    let with = || config(pool().revision("a", 100, 32, &[agent.address]));
    let (leaving, staying) = (Fixture::with(with()).await, Fixture::with(with()).await);
    let addresses = (leaving.gateway.ingress, staying.gateway.ingress);
    // New connections may still come while it drains; they are served.
    let left = Arc::new(AtomicBool::new(false));
    let flag = left.clone();
    let load = Load::start(16, move || {
        if flag.load(Ordering::SeqCst) {
            addresses.1
        } else {
            addresses.0
        }
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    let stop = tokio::spawn(leaving.gateway.stop());
    tokio::time::sleep(Duration::from_millis(100)).await;
    left.store(true, Ordering::SeqCst);
    assert_eq!(stop.await.unwrap(), 0, "requests were cut");
    tokio::time::sleep(Duration::from_millis(100)).await;
    let closes = load.closes.load(Ordering::SeqCst);
    assert!(
        closes >= 16,
        "only {closes} connections were asked to go elsewhere"
    );
    assert!(load.finish().await > 50);
    assert!(
        tokio::net::TcpStream::connect(addresses.0).await.is_err(),
        "it still listens"
    );
}

#[tokio::test]
async fn a_stream_is_finished_before_the_gateway_goes() {
    let agent = Agent::start(|_| async {
        tokio::time::sleep(Duration::from_millis(900)).await;
        Response::new(full("late"))
    })
    .await;
    let fixture = Fixture::with(config(pool().revision("a", 100, 8, &[agent.address]))).await;
    let (to, path) = (fixture.gateway.ingress, fixture.path("/"));
    let slow = tokio::spawn(async move { crate::support::get(to, &path).await });
    fixture
        .wait("it works", |stats| {
            stats.pools["support"].revisions["a"].in_flight == 1
        })
        .await;
    assert_eq!(fixture.gateway.stop().await, 0);
    assert_eq!(slow.await.unwrap().text(), "late");
}
