//! Slots, queues and times.

use std::sync::Arc;
use std::time::Duration;

use crate::support::{Agent, Answer, Client, Fixture, PoolExt as _, config, full, get, pool};
use http::{Response, StatusCode};
use tokio::sync::{Mutex, Semaphore};
use tokio::task::JoinHandle;

/// Answers with the path once the gate lets it.
pub async fn gated() -> (Agent, Arc<Semaphore>, Arc<Mutex<Vec<String>>>) {
    let gate = Arc::new(Semaphore::new(0));
    let order = Arc::new(Mutex::new(Vec::new()));
    let (inner, seen) = (gate.clone(), order.clone());
    let agent = Agent::start(move |request| {
        let (gate, seen) = (inner.clone(), seen.clone());
        async move {
            let path = request.uri().path().to_owned();
            seen.lock().await.push(path.clone());
            gate.acquire().await.unwrap().forget();
            Response::new(full(path))
        }
    })
    .await;
    (agent, gate, order)
}

fn ask(fixture: &Fixture, rest: &str) -> JoinHandle<Answer> {
    let (to, path) = (fixture.gateway.ingress, fixture.path(rest));
    tokio::spawn(async move { get(to, &path).await })
}

#[tokio::test]
async fn a_freed_slot_goes_to_the_one_who_waits_longest() {
    let (agent, gate, order) = gated().await;
    let fixture = Fixture::with(config(pool().revision("a", 100, 1, &[agent.address]))).await;
    let mut answers = Vec::new();
    for number in 0..4 {
        answers.push(ask(&fixture, &format!("/{number}")));
        let busy = |stats: &flotilla_core::stats::Stats| {
            let pool = &stats.pools["support"];
            pool.queued == number && pool.revisions["a"].in_flight == 1
        };
        fixture.wait("one works, the others wait", busy).await;
    }
    assert_eq!(agent.hits(), 1, "one slot");
    gate.add_permits(4);
    for (number, answer) in answers.into_iter().enumerate() {
        assert_eq!(answer.await.unwrap().text(), format!("/{number}"));
    }
    assert_eq!(*order.lock().await, ["/0", "/1", "/2", "/3"]);
    let stats = fixture.stats().await;
    let revision = &stats.pools["support"].revisions["a"];
    let windows = revision.windows.iter();
    let (started, ended) = windows.fold((0, 0), |(s, e), window| (s + window.started, e + window.ended));
    assert_eq!((started, ended, revision.in_flight), (4, 4, 0));
}

#[tokio::test]
async fn a_full_queue_and_a_long_wait_say_which_limit() {
    let (agent, gate, _) = gated().await;
    let mut wanted = pool().revision("a", 100, 1, &[agent.address]);
    (wanted.queue_requests, wanted.queue_wait) = (1, Duration::from_millis(400));
    let fixture = Fixture::with(config(wanted)).await;
    let first = ask(&fixture, "/1");
    fixture
        .wait("the slot is taken", |stats| {
            stats.pools["support"].revisions["a"].in_flight == 1
        })
        .await;
    let second = ask(&fixture, "/2");
    fixture
        .wait("one waits", |stats| stats.pools["support"].queued == 1)
        .await;

    let third = ask(&fixture, "/3").await.unwrap();
    assert_eq!(
        (third.status, third.code().as_str()),
        (StatusCode::SERVICE_UNAVAILABLE, "QueueFull")
    );
    assert!(
        third.text().contains("spec.traffic.queue.maxRequests") && third.headers.contains_key("retry-after")
    );

    let second = second.await.unwrap();
    assert_eq!(
        (second.status, second.code().as_str()),
        (StatusCode::SERVICE_UNAVAILABLE, "QueueTimeout")
    );
    assert!(
        second.text().contains("spec.traffic.queue.maxWaitSeconds")
            && second.headers.contains_key("retry-after")
    );
    gate.add_permits(1);
    assert_eq!(first.await.unwrap().status, StatusCode::OK);
    let pool = &fixture.stats().await.pools["support"];
    assert_eq!((pool.refused, pool.queued), (2, 0));
}

#[tokio::test]
async fn without_any_replica_it_waits_for_one() {
    let agent = Agent::named("here").await;
    let fixture = Fixture::with(config(pool().revision("a", 100, 1, &[]))).await;
    let answer = ask(&fixture, "/");
    fixture
        .wait("it waits", |stats| stats.pools["support"].queued == 1)
        .await;
    fixture
        .tell(config(pool().revision("a", 100, 1, &[agent.address])))
        .await;
    assert_eq!(answer.await.unwrap().text(), "here");
}

#[tokio::test]
async fn waiters_of_a_revision_that_lost_its_weight_choose_again() {
    let (old, gate, _) = gated().await;
    let new = Agent::named("new").await;
    let both = |weights: [u32; 2]| {
        config(pool().revision("a", weights[0], 1, &[old.address]).revision(
            "b",
            weights[1],
            1,
            &[new.address],
        ))
    };
    let fixture = Fixture::with(both([100, 0])).await;
    let first = ask(&fixture, "/1");
    fixture
        .wait("the slot is taken", |stats| {
            stats.pools["support"].revisions["a"].in_flight == 1
        })
        .await;
    let second = ask(&fixture, "/2");
    fixture
        .wait("one waits", |stats| stats.pools["support"].queued == 1)
        .await;
    fixture.tell(both([0, 100])).await;
    assert_eq!(second.await.unwrap().text(), "new");
    gate.add_permits(1);
    assert_eq!(first.await.unwrap().text(), "/1");
    assert_eq!(old.hits(), 1);
}

#[tokio::test]
async fn a_request_over_its_time_gets_504_or_is_cut() {
    let agent = Agent::start(|request| async move {
        if request.uri().path() == "/never" {
            std::future::pending::<()>().await;
        }
        // A head and one chunk, and then nothing.
        let chunks = futures::stream::iter([Ok(hyper::body::Frame::data("begun".into()))]);
        let body =
            http_body_util::StreamBody::new(futures::StreamExt::chain(chunks, futures::stream::pending()));
        Response::new(http_body_util::BodyExt::boxed(body))
    })
    .await;
    let mut wanted = pool().revision("a", 100, 4, &[agent.address]);
    wanted.request_timeout = Duration::from_millis(300);
    let fixture = Fixture::with(config(wanted)).await;
    let answer = get(fixture.gateway.ingress, &fixture.path("/never")).await;
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (StatusCode::GATEWAY_TIMEOUT, "RequestTimeout")
    );
    let mut client = Client::connect(fixture.gateway.ingress).await;
    let cut = client
        .send(crate::support::request(
            http::Method::GET,
            &fixture.path("/begun"),
            "",
        ))
        .await;
    assert!(cut.is_err(), "a body that ends early must not look whole");
    let stats = fixture
        .wait("both ended", |stats| {
            stats.pools["support"].revisions["a"].in_flight == 0
        })
        .await;
    assert_eq!(
        stats.pools["support"].revisions["a"]
            .windows
            .iter()
            .map(|window| window.failed)
            .sum::<u64>(),
        2
    );
}

#[tokio::test]
async fn a_client_that_goes_frees_its_slot_and_is_nobodys_failure() {
    let (agent, gate, _) = gated().await;
    let fixture = Fixture::with(config(pool().revision("a", 100, 1, &[agent.address]))).await;
    let client = Client::connect(fixture.gateway.ingress).await;
    let mut sender = client.sender;
    let path = fixture.path("/");
    let asked = tokio::spawn(async move {
        let _ = sender
            .send_request(crate::support::request(http::Method::GET, &path, ""))
            .await;
    });
    fixture
        .wait("the slot is taken", |stats| {
            stats.pools["support"].revisions["a"].in_flight == 1
        })
        .await;
    asked.abort();
    client.task.abort();
    let stats = fixture
        .wait("the slot is free", |stats| {
            stats.pools["support"].revisions["a"].in_flight == 0
        })
        .await;
    let window = stats.pools["support"].revisions["a"].windows.last().unwrap();
    assert_eq!(
        (
            window.ended,
            window.failed,
            window.cancelled,
            window.latency.count()
        ),
        (1, 0, 1, 0)
    );
    gate.add_permits(2);
    assert_eq!(
        get(fixture.gateway.ingress, &fixture.path("/next")).await.status,
        StatusCode::OK
    );
}
