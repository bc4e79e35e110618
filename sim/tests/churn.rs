//! Pools that come and go leave nothing behind in the operator (rollouts.md 11 B: 10,000 pools in two days).
//!
//! What the operator holds is what is free again when it is dropped. So this test has a process of its own, and compares two rounds
//! of pools with more: each round makes pools of every kind in a namespace of its own, releases a second revision of each, and
//! deletes everything. `FLOTILLA_FULL=1` makes 400 pools.

#![allow(clippy::unwrap_used, reason = "a test fails where it does")]

#[allow(dead_code, reason = "the other tests use the rest")]
#[path = "it/operator.rs"]
mod operator;

use std::sync::Arc;
use std::time::Duration;

use flotilla_operator::metrics::Metrics;
use flotilla_sim::Cluster;
use flotilla_sim::controllers::{Controllers, Fate};
use flotilla_sim::faults::{Line, Plan};
use flotilla_sim::gateways::{Gateways, Steady};
use flotilla_sim::run::World;
use peak_alloc::PeakAlloc;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};

#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

/// Pools of one round, one of each kind.
const POOLS: usize = 5;
/// A round takes no longer.
const LIMIT: Duration = Duration::from_secs(1800);
/// After this long the operator may repeat an event: the next round's first one makes it forget those before.
const FORGOTTEN: Duration = Duration::from_secs(900);
/// What one pool may leave behind, in bytes: less than its name in any map.
const LEFT: usize = 16;
/// What does not depend on the number of rounds: maps that are emptied keep their room, and when they grow is chance.
const SLACK: usize = 8 * 1024;

/// A pool of the n-th kind, whose images are of this tag.
fn spec(n: usize, tag: u32) -> Value {
    let ladder = |type_: &str, member: &str, settings: Value| json!({"type": type_, "settleSeconds": 0, member: settings});
    let steps =
        json!([{"weight": 50, "ruleOutTimesWorse": 10, "minDurationSeconds": 0, "decideWithinSeconds": 600}]);
    let canary =
        json!({"steps": steps, "candidateMinReplicas": 1, "bakeSeconds": 0, "scaleDownDelaySeconds": 0});
    let (rollout, traffic) = match n % 5 {
        0 => (json!({"settleSeconds": 0}), json!({})),
        1 => (ladder("Canary", "canary", canary), json!({})),
        2 => (
            ladder("BlueGreen", "blueGreen", json!({"bakeSeconds": 0})),
            json!({}),
        ),
        3 => (
            ladder("Canary", "canary", canary),
            json!({"type": "ReplicaRatio"}),
        ),
        // The second one crashes.
        _ => (ladder("Canary", "canary", canary), json!({})),
    };
    let image = if n % 5 == 4 && tag > 1 { "bad" } else { "agent" };
    json!({
        "replicas": 1, "rollout": rollout, "traffic": traffic,
        "agent": {
            "image": format!("{image}:{tag}"), "prompt": {"configMapKeyRef": {"name": "prompts", "key": "p"}},
            "models": [{"name": "default", "providerRef": {"name": "main"}, "model": "fast"}],
        },
    })
}

/// Waits until each pool of the namespace is so.
async fn until(cluster: &Cluster, what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + LIMIT;
    let mut changes = cluster.changes();
    while !is_so() {
        assert!(Instant::now() < deadline, "{what} does not come");
        let _ = timeout(Duration::from_secs(5), changes.changed()).await;
        changes.mark_seen();
    }
}

/// One namespace with its pools, from the first to the last object.
async fn round(cluster: &Cluster, namespace: &str) {
    cluster.namespace(namespace);
    let of = |group: &str, plural: &str| format!("{group}/namespaces/{namespace}/{plural}");
    let ours = |plural: &str| of("/apis/flotilla.dev/v1alpha1", plural);
    let pools = ours("agentpools");
    let paths: Vec<String> = (0..POOLS).map(|n| format!("{pools}/p{n}")).collect();
    let prompts = json!({"metadata": {"name": "prompts"}, "data": {"p": "be kind"}});
    cluster.create(&of("/api/v1", "configmaps"), &prompts).unwrap();
    let provider = json!({"metadata": {"name": "main"}, "spec": {
        "endpoint": "https://models.example.com/v1", "auth": {"type": "None"},
    }});
    cluster.create(&ours("modelproviders"), &provider).unwrap();
    for n in 0..POOLS {
        let pool = json!({"metadata": {"name": format!("p{n}")}, "spec": spec(n, 1)});
        cluster.create(&pools, &pool).unwrap();
    }
    let says = |path: &String| {
        let pool = cluster.object(path).unwrap_or_default();
        let conditions = pool["status"]["conditions"].as_array();
        let mut conditions = conditions.into_iter().flatten();
        let ready = conditions.find(|condition| condition["type"] == "Ready");
        let is_current = pool["status"]["observedGeneration"] == pool["metadata"]["generation"];
        let word = ready
            .and_then(|ready| ready["reason"].as_str())
            .unwrap_or_default();
        (is_current && pool["status"]["candidate"].is_null()).then(|| word.to_owned())
    };
    until(cluster, "the first revisions", || {
        paths.iter().all(|path| says(path).as_deref() == Some("Ready"))
    })
    .await;
    for (n, path) in paths.iter().enumerate() {
        cluster.patch(path, json!({"spec": spec(n, 2)})).unwrap();
    }
    until(cluster, "the second revisions", || {
        paths
            .iter()
            .enumerate()
            .all(|(n, path)| says(path).as_deref() == Some(if n % 5 == 4 { "CrashLoop" } else { "Ready" }))
    })
    .await;
    for (n, path) in paths.iter().enumerate() {
        let restart = json!({"poolRef": {"name": format!("p{n}")}, "type": "Restart"});
        let command = json!({"metadata": {"name": format!("again-{n}")}, "spec": restart});
        cluster.create(&ours("rolloutactions"), &command).unwrap();
        // One is deleted in the middle of it.
        if n == 0 {
            cluster.delete(path).unwrap();
        }
    }
    sleep(Duration::from_secs(60)).await;
    for path in &paths {
        let _ = cluster.delete(path);
    }
    until(cluster, "the end of the pools", || {
        cluster.objects(&pools).is_empty() && cluster.objects(&of("/api/v1", "pods")).is_empty()
    })
    .await;
    let path = format!("/api/v1/namespaces/{namespace}");
    cluster.delete(&path).unwrap();
    until(cluster, "the end of the namespace", || {
        cluster.object(&path).is_none()
    })
    .await;
}

/// Bytes that the operator holds after so many rounds, and its metrics.
fn held_after(rounds: usize) -> (usize, String) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(async {
        let cluster = Cluster::new(1);
        let fates = |_: &Cluster, pod: &Value| {
            let image = pod["spec"]["containers"][0]["image"].as_str().unwrap_or_default();
            match image.starts_with("bad") {
                true => Fate::Exits {
                    after: Duration::from_millis(500),
                    code: 1,
                    message: "no".into(),
                },
                false => Fate::Ready(Duration::from_millis(700)),
            }
        };
        let _controllers = Controllers::start(&cluster, Arc::new(fates));
        let line = Line::new(&cluster, Plan::none(1));
        let traffic = Steady {
            rate: 20.0,
            failing: Vec::new(),
        };
        let world = World {
            cluster: cluster.clone(),
            gateways: Gateways::new(&cluster, Arc::new(traffic), Duration::from_millis(50), 1),
        };
        let metrics = Metrics::new();
        let nobody = || Arc::new(operator::Nobody);
        let process = operator::start_with(&world, line.connect(), metrics.clone(), nobody(), nobody());
        for number in 0..rounds {
            round(&cluster, &format!("shop-{number:04}")).await;
            sleep(FORGOTTEN).await;
        }
        let text = metrics.encode();
        drop(metrics);
        let before = HEAP.current_usage();
        process.abort();
        sleep(Duration::from_secs(60)).await;
        (before.saturating_sub(HEAP.current_usage()), text)
    })
}

#[test]
fn pools_that_are_gone_leave_nothing() {
    let is_full = std::env::var_os("FLOTILLA_FULL").is_some();
    let rounds = if is_full { 80 } else { 4 };
    // Maps that are emptied keep their room: what the second round needs beside the first is there for the third.
    let ((few, _), (many, metrics)) = (held_after(2), held_after(rounds));
    println!(
        "{few} bytes after {} pools, {many} after {}",
        2 * POOLS,
        rounds * POOLS
    );
    let series = metrics.lines().find(|line| line.contains("shop-"));
    assert_eq!(series, None, "a series of a namespace that is gone");
    let more = (rounds - 2) * POOLS;
    assert!(
        many < few + SLACK + more * LEFT,
        "{few} bytes, and {many} after {more} more pools"
    );
}
