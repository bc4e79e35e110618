use std::sync::atomic::{AtomicBool, Ordering};

use http::Method;
use jiff::Timestamp;
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::*;
use crate::runtime::testing::{FakeApi, answer, status};

fn lease(holder: Option<&str>, seconds: Option<i32>) -> Lease {
    Lease {
        spec: Some(LeaseSpec {
            holder_identity: holder.map(str::to_owned),
            lease_duration_seconds: seconds,
            ..LeaseSpec::default()
        }),
        ..Lease::default()
    }
}

#[tokio::test(start_paused = true)]
async fn decisions() {
    let since = Instant::now();
    let at = |seconds: u64| since + Duration::from_secs(seconds);
    for (what, lease, now, expected) in [
        ("none", None, at(0), Decision::Create),
        ("given up", Some(lease(Some(""), Some(1))), at(0), Decision::Take),
        ("no holder", Some(lease(None, None)), at(0), Decision::Take),
        ("ours", Some(lease(Some("me"), Some(15))), at(1), Decision::Renew),
        (
            "ours, long expired",
            Some(lease(Some("me"), Some(15))),
            at(900),
            Decision::Renew,
        ),
        (
            "another's, alive",
            Some(lease(Some("you"), Some(15))),
            at(1),
            Decision::Wait(LOOK_INTERVAL),
        ),
        (
            "another's, about to expire",
            Some(lease(Some("you"), Some(15))),
            at(14),
            Decision::Wait(Duration::from_secs(1)),
        ),
        (
            "another's, expired",
            Some(lease(Some("you"), Some(15))),
            at(15),
            Decision::Take,
        ),
        (
            "another's, short",
            Some(lease(Some("you"), Some(3))),
            at(4),
            Decision::Take,
        ),
        (
            "another's, without a duration",
            Some(lease(Some("you"), None)),
            at(14),
            Decision::Wait(Duration::from_secs(1)),
        ),
        (
            "another's, nonsense duration",
            Some(lease(Some("you"), Some(-5))),
            at(15),
            Decision::Take,
        ),
    ] {
        let observed = lease.map(|lease| Observed { lease, since });
        assert_eq!(decide(observed.as_ref(), "me", now), expected, "{what}");
    }
}

/// An API server that holds one Lease and checks versions, and can be cut off.
#[derive(Clone)]
struct LeaseServer {
    api: FakeApi,
    up: Arc<AtomicBool>,
    stored: Arc<Mutex<Option<Value>>>,
}

fn lease_server() -> LeaseServer {
    let up = Arc::new(AtomicBool::new(true));
    let stored = Arc::new(Mutex::new(None::<Value>));
    let (is_up, store) = (Arc::clone(&up), Arc::clone(&stored));
    let version = Arc::new(Mutex::new(1_u64));
    let api = FakeApi::new(move |got| {
        let (is_up, store, version) = (Arc::clone(&is_up), Arc::clone(&store), Arc::clone(&version));
        async move {
            if !is_up.load(Ordering::SeqCst) {
                std::future::pending::<()>().await;
            }
            let mut store = store.lock();
            let current = store
                .as_ref()
                .map(|lease| lease["metadata"]["resourceVersion"].clone());
            if got.method == Method::GET {
                return match store.as_ref() {
                    Some(lease) => answer(200, lease),
                    None => status(404, "NotFound", "no such lease"),
                };
            }
            let sent = got.body["metadata"].get("resourceVersion").cloned();
            if got.method == Method::POST && current.is_some() {
                return status(409, "AlreadyExists", "there");
            }
            if got.method == Method::PUT && sent != current {
                return status(409, "Conflict", "changed");
            }
            let mut lease = got.body.clone();
            *version.lock() += 1;
            lease["metadata"]["resourceVersion"] = json!(version.lock().to_string());
            *store = Some(lease.clone());
            answer(200, &lease)
        }
    });
    LeaseServer { api, up, stored }
}

struct Replica {
    leadership: Leadership,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl LeaseServer {
    fn replica(&self, me: &str) -> Replica {
        let clock = Clock::virtual_from(Timestamp::UNIX_EPOCH);
        let client = self.api.clients().lease;
        let (elector, leadership) =
            Elector::new(client, "ns", "flotilla-operator", me, clock, Metrics::new());
        let stop = CancellationToken::new();
        let task = tokio::spawn(elector.run(stop.clone()));
        Replica {
            leadership,
            stop,
            task,
        }
    }

    fn holder(&self) -> Value {
        self.stored
            .lock()
            .as_ref()
            .map(|lease| lease["spec"]["holderIdentity"].clone())
            .unwrap_or_default()
    }
}

async fn pass(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}

#[tokio::test(start_paused = true)]
async fn a_standby_takes_over_within_17_seconds_of_a_kill_and_never_before_the_fence() {
    for delay_ms in (0..3000).step_by(250) {
        let server = lease_server();
        let first = server.replica("a");
        first.leadership.acquired().await;
        let second = server.replica("b");
        tokio::time::sleep(Duration::from_millis(20_000 + delay_ms)).await;
        assert!(first.leadership.is_leader() && !second.leadership.is_leader());
        first.task.abort();
        let killed = Instant::now();
        second.leadership.acquired().await;
        assert!(
            killed.elapsed() <= Duration::from_secs(17),
            "took {:?}",
            killed.elapsed()
        );
        assert!(
            !first.leadership.is_leader(),
            "the old claim must have ended before"
        );
        assert_eq!(
            server.stored.lock().as_ref().unwrap()["spec"]["leaseTransitions"],
            1
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_lease_given_up_is_taken_within_two_seconds() {
    let server = lease_server();
    let first = server.replica("a");
    first.leadership.acquired().await;
    let second = server.replica("b");
    pass(5).await;
    let stopped = Instant::now();
    first.stop.cancel();
    first.task.await.unwrap();
    assert!(first.leadership.permit(Duration::ZERO).is_err());
    assert_eq!(server.holder(), json!(""));
    second.leadership.acquired().await;
    assert!(
        stopped.elapsed() <= Duration::from_secs(2),
        "took {:?}",
        stopped.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn a_restarted_container_takes_its_own_lease_up_at_once() {
    let server = lease_server();
    let first = server.replica("pod-0");
    first.leadership.acquired().await;
    first.task.abort();
    let restarted = Instant::now();
    server.replica("pod-0").leadership.acquired().await;
    assert!(restarted.elapsed() < Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn an_unreachable_server_fences_writes_after_ten_seconds_and_leadership_after_fifteen() {
    let server = lease_server();
    let replica = server.replica("a");
    replica.leadership.acquired().await;
    let call = Duration::from_secs(5);
    pass(60).await;
    assert!(replica.leadership.permit(call).is_ok(), "renewed all the time");
    server.up.store(false, Ordering::SeqCst);
    let cut = Instant::now();
    while replica.leadership.permit(call).is_ok() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let fenced = cut.elapsed();
    assert!(
        fenced >= Duration::from_secs(6) && fenced <= Duration::from_secs(11),
        "{fenced:?}"
    );
    replica.leadership.lost().await;
    assert!(cut.elapsed() <= Duration::from_secs(16), "{:?}", cut.elapsed());
    pass(120).await;
    server.up.store(true, Ordering::SeqCst);
    let back = Instant::now();
    replica.leadership.acquired().await;
    assert!(
        back.elapsed() <= Duration::from_secs(8),
        "no restart needed: {:?}",
        back.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn a_write_by_somebody_else_ends_the_claim_at_the_next_renewal() {
    let server = lease_server();
    let replica = server.replica("a");
    replica.leadership.acquired().await;
    {
        let mut stored = server.stored.lock();
        let lease = stored.as_mut().unwrap();
        lease["metadata"]["resourceVersion"] = json!("999");
        lease["spec"]["holderIdentity"] = json!("intruder");
    }
    tokio::time::timeout(RENEW_INTERVAL * 2, replica.leadership.lost())
        .await
        .unwrap();
    pass(3).await;
    assert_eq!(replica.leadership.claim().unwrap().holder, "intruder");
    assert_eq!(server.holder(), "intruder");
}

#[tokio::test(start_paused = true)]
async fn there_is_never_more_than_one_leader() {
    let server = lease_server();
    let mut replicas: Vec<Replica> = ["a", "b", "c"].iter().map(|name| server.replica(name)).collect();
    for round in 0..1200_u32 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let leaders = replicas
            .iter()
            .filter(|replica| replica.leadership.is_leader())
            .count();
        assert!(leaders <= 1, "{leaders} leaders in round {round}");
        match round % 300 {
            50 => server.up.store(false, Ordering::SeqCst),
            120 => server.up.store(true, Ordering::SeqCst),
            200 => {
                let leader = replicas.iter().position(|replica| replica.leadership.is_leader());
                if let Some(leader) = leader {
                    replicas[leader].task.abort();
                    replicas[leader] = server.replica(&format!("new-{round}"));
                }
            }
            _ => {}
        }
    }
    pass(20).await;
    assert!(replicas.iter().any(|replica| replica.leadership.is_leader()));
}

#[tokio::test(start_paused = true)]
async fn a_leader_makes_one_request_every_three_seconds() {
    let server = lease_server();
    let replica = server.replica("a");
    replica.leadership.acquired().await;
    let before = server.api.got().len();
    pass(60).await;
    let requests = &server.api.got()[before..];
    assert!((19..=20).contains(&requests.len()), "{}", requests.len());
    assert!(requests.iter().all(|got| got.method == Method::PUT));
}
