//! Which revision, which replica.

use std::time::Duration;

use crate::support::{Agent, Client, Fixture, PoolExt as _, config, get, pool, request};
use flotilla_gateway::config::Balancing;
use http::{Method, Response, StatusCode};

async fn shares(fixture: &Fixture, requests: usize) -> (usize, usize) {
    let mut client = Client::connect(fixture.gateway.ingress).await;
    let (mut a, mut b) = (0, 0);
    for _ in 0..requests {
        let answer = client.get(&fixture.path("/")).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
        match answer.text().as_str() {
            "a" => a += 1,
            _ => b += 1,
        }
    }
    (a, b)
}

#[tokio::test]
async fn weights_are_kept_exactly_and_changed_at_once() {
    let (a, b) = (Agent::named("a").await, Agent::named("b").await);
    let weighted = |generation, weights: [u32; 2]| {
        let pool =
            pool()
                .revision("a", weights[0], 8, &[a.address])
                .revision("b", weights[1], 8, &[b.address]);
        let mut config = config(pool);
        let pool = config.pools.get_mut("support").unwrap();
        (pool.generation, pool.port) = (generation, None);
        config
    };
    let fixture = Fixture::with(weighted(1, [90, 10])).await;
    assert_eq!(shares(&fixture, 100).await, (90, 10));
    fixture.tell(weighted(2, [0, 100])).await;
    assert_eq!(shares(&fixture, 50).await, (0, 50));
    let stats = fixture.stats().await;
    let epochs: Vec<_> = stats.pools["support"].revisions["b"]
        .windows
        .iter()
        .map(|window| (window.epoch, window.ended))
        .collect();
    assert_eq!(
        epochs
            .iter()
            .filter(|(epoch, _)| *epoch == 1)
            .map(|(_, ended)| ended)
            .sum::<u64>(),
        10
    );
    assert_eq!(
        epochs
            .iter()
            .filter(|(epoch, _)| *epoch == 2)
            .map(|(_, ended)| ended)
            .sum::<u64>(),
        50
    );
}

#[tokio::test]
async fn a_revision_without_endpoints_is_replaced_and_that_is_told() {
    let a = Agent::named("a").await;
    let fixture = Fixture::with(config(pool().revision("a", 50, 8, &[a.address]).revision(
        "b",
        50,
        8,
        &[],
    )))
    .await;
    assert_eq!(shares(&fixture, 20).await, (20, 0));
    assert_eq!(fixture.stats().await.pools["support"].diverted, 10);
    // The last resort: weight 0, but the only one there.
    fixture
        .tell(config(pool().revision("a", 0, 8, &[a.address]).revision(
            "b",
            100,
            8,
            &[],
        )))
        .await;
    assert_eq!(shares(&fixture, 5).await, (5, 0));
    assert_eq!(fixture.stats().await.pools["support"].diverted, 15);
}

#[tokio::test]
async fn the_least_loaded_of_two_replicas_is_taken() {
    let slow = Agent::start(|_| async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        Response::new(crate::support::full("slow"))
    })
    .await;
    let quick = Agent::named("quick").await;
    let mut wanted = pool().revision("a", 100, 100, &[slow.address, quick.address]);
    wanted.balancing = Balancing::LeastLoaded;
    let fixture = Fixture::with(config(wanted)).await;
    // One request gets stuck at the slow one; from then on the other one is always the less loaded.
    let mut stuck = Vec::new();
    while slow.hits() == 0 {
        let (to, path) = (fixture.gateway.ingress, fixture.path("/"));
        stuck.push(tokio::spawn(async move { get(to, &path).await }));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let before = slow.hits();
    let mut client = Client::connect(fixture.gateway.ingress).await;
    for _ in 0..50 {
        assert_eq!(client.get(&fixture.path("/")).await.text(), "quick");
    }
    assert_eq!(slow.hits(), before);
    stuck.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test]
async fn a_stopped_pool_says_so_at_once() {
    let mut wanted = pool();
    wanted.stopped = true;
    let fixture = Fixture::with(config(wanted)).await;
    let mut client = Client::connect(fixture.gateway.ingress).await;
    let answer = client
        .send(request(Method::POST, &fixture.path("/"), "x"))
        .await
        .unwrap();
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (StatusCode::SERVICE_UNAVAILABLE, "PoolStopped")
    );
}
