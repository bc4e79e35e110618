//! The controllers of pools and commands with the scraper, on an API server in memory, under virtual time. The test
//! plays the ReplicaSet controller, kubelet and the gateways.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use flotilla_core::stats::{PoolStats, RevisionStats, Stats, VERSION, WINDOW_SECONDS, WindowStats};
use flotilla_crds::names;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use serde_json::{Value, json};

use crate::caches::Caches;
use crate::fakecluster::{FakeCluster, Fault, Running, eventually};
use crate::pool::Questions;
use crate::pool::figures::read::HttpRead;
use crate::pool::figures::{Figures, Sources};
use crate::pool::memory::Standpoints;
use crate::pool::trial::ask::{Ask, Network};
use crate::scrape::{self, Fetch};

pub(super) const POOL: &str = "/apis/flotilla.dev/v1alpha1/namespaces/shop/agentpools/support";
const ACTIONS: &str = "/apis/flotilla.dev/v1alpha1/namespaces/shop/rolloutactions";
const PROMPT: &str = "/api/v1/namespaces/shop/configmaps/prompts";
pub(super) const PODS: &str = "/api/v1/namespaces/shop/pods";
pub(super) const FRONT: &str = "/api/v1/namespaces/shop/services/support";
pub(super) const SETS: &str = "/apis/apps/v1/namespaces/shop/replicasets/";
pub(super) const MINUTE: Duration = Duration::from_secs(60);

/// A gateway that does what the pool's status says.
pub(super) struct Gateways(FakeCluster);

impl Fetch for Gateways {
    fn fetch(&self, _: IpAddr) -> BoxFuture<'static, Result<Stats, String>> {
        let cluster = &self.0;
        let status = cluster
            .get(POOL)
            .map(|pool| pool["status"].clone())
            .unwrap_or_default();
        let pods = objects(cluster, PODS);
        let revisions = status["traffic"].as_array().into_iter().flatten().map(|share| {
            let name = share["revision"].as_str().unwrap();
            let of_revision = pods
                .iter()
                .filter(|pod| revision_of(pod) == Some(name) && is_ready(pod));
            let endpoints = of_revision
                .map(|pod| pod["status"]["podIP"].as_str().unwrap().to_owned())
                .collect();
            (
                name.to_owned(),
                RevisionStats {
                    endpoints,
                    windows: windows(cluster, &status),
                    ..RevisionStats::default()
                },
            )
        });
        let pool = PoolStats {
            traffic_generation: status["trafficGeneration"].as_i64().unwrap_or(-1),
            port: status["gatewayPort"]
                .as_i64()
                .and_then(|port| i32::try_from(port).ok()),
            revisions: revisions.collect(),
            ..PoolStats::default()
        };
        let stats = Stats {
            version: VERSION,
            instance: "g-1".to_owned(),
            time_milliseconds: cluster.now().as_millisecond(),
            pools: [("support".to_owned(), pool)].into(),
            ..Stats::default()
        };
        async move { Ok(stats) }.boxed()
    }
}

/// Ten good requests of each revision in each of the last windows, under the weights in force.
fn windows(cluster: &FakeCluster, status: &Value) -> Vec<WindowStats> {
    let newest = cluster.now().as_second().div_euclid(WINDOW_SECONDS) * WINDOW_SECONDS;
    let window = |ago: i64| WindowStats {
        start: newest - ago * WINDOW_SECONDS,
        epoch: status["trafficGeneration"].as_i64().unwrap_or(-1),
        started: 10,
        ended: 10,
        ..WindowStats::default()
    };
    (0..16).rev().map(window).collect()
}

pub(super) fn operator(cluster: &FakeCluster) -> Running {
    operator_asking(cluster, Arc::new(Network::default()))
}

/// An operator that asks candidates in another way.
pub(super) fn operator_asking(cluster: &FakeCluster, ask: Arc<dyn Ask>) -> Running {
    let mut manager = cluster.manager();
    let caches = Caches::new(&mut manager);
    let scraper = scrape::register(&mut manager, &caches.pods, Arc::new(Gateways(cluster.clone())));
    let standpoints = Standpoints::default();
    let health = crate::gateway::GatewayHealth::default();
    let questions = Questions {
        ask,
        figures: Figures::new(Arc::new(HttpRead::default()), Sources::new()),
    };
    crate::pool::register(
        &mut manager,
        &caches,
        &scraper,
        health,
        standpoints.clone(),
        questions,
    );
    crate::action::register(&mut manager, &caches, standpoints);
    Running::start(manager)
}

/// A namespace with a gateway and the pool `support` of two replicas.
pub(super) fn shop(spec: Value) -> FakeCluster {
    let cluster = FakeCluster::new();
    let gateway = format!("{PODS}/flotilla-gateway-1");
    let labels = json!({names::APP_NAME: names::GATEWAY, names::MANAGED_BY: names::MANAGER});
    cluster.put(
        &gateway,
        json!({"metadata": {"name": "flotilla-gateway-1", "labels": labels}}),
    );
    cluster.update(&gateway, |pod| pod["status"] = ready("10.9.0.1"));
    let mut pool = json!({"replicas": 2, "agent": {"image": "agent:1"}, "rollout": {"settleSeconds": 1}});
    for (key, value) in spec.as_object().cloned().unwrap_or_default() {
        pool[key] = value;
    }
    cluster.put(POOL, json!({"metadata": {"name": "support"}, "spec": pool}));
    cluster
}

fn ready(address: &str) -> Value {
    json!({"podIP": address, "conditions": [{"type": "Ready", "status": "True"}]})
}

pub(super) fn objects(cluster: &FakeCluster, prefix: &str) -> Vec<Value> {
    let paths = cluster.paths("shop");
    let of_kind = paths.iter().filter(|path| path.starts_with(prefix));
    of_kind.filter_map(|path| cluster.get(path)).collect()
}

pub(super) fn revision_of(object: &Value) -> Option<&str> {
    object["metadata"]["labels"][names::REVISION].as_str()
}

fn is_ready(pod: &Value) -> bool {
    pod["status"]["conditions"][0]["status"] == "True"
}

pub(super) fn image(set: &Value) -> String {
    set["spec"]["template"]["spec"]["containers"][0]["image"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

/// The ReplicaSet controller and kubelet, once. Pods of images with `bad` in their name crash.
pub(super) fn play(cluster: &FakeCluster) {
    for set in objects(cluster, SETS) {
        let name = set["metadata"]["name"].as_str().unwrap();
        let wanted = set["spec"]["replicas"].as_u64().unwrap_or_default() as usize;
        let pods: Vec<_> = objects(cluster, PODS)
            .into_iter()
            .filter(|pod| revision_of(pod) == Some(name))
            .collect();
        for pod in pods.iter().skip(wanted) {
            cluster.delete(&format!("{PODS}/{}", pod["metadata"]["name"].as_str().unwrap()));
        }
        for _ in pods.len()..wanted {
            let number = cluster.made("/api/v1/pods");
            let path = format!("{PODS}/{name}-{number}");
            let owner = json!({
                "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": name, "uid": set["metadata"]["uid"],
                "controller": true,
            });
            cluster.put(
                &path,
                json!({"metadata": {
                    "name": format!("{name}-{number}"), "ownerReferences": [owner],
                    "labels": set["spec"]["template"]["metadata"]["labels"],
                }}),
            );
            let address = format!("10.1.{}.{}", number / 200, number % 200);
            let status = if image(&set).contains("bad") {
                let ended = json!({"terminated": {"exitCode": 1, "reason": "Error", "message": "no prompt"}});
                json!({"podIP": address, "conditions": [{"type": "Ready", "status": "False"}], "containerStatuses": [{
                    "name": "agent", "image": "agent:bad", "imageID": "", "ready": false, "restartCount": 3,
                    "lastState": ended,
                }]})
            } else {
                ready(&address)
            };
            cluster.update(&path, |pod| pod["status"] = status);
        }
    }
}

pub(super) fn state(cluster: &FakeCluster) -> String {
    let conditions = cluster.get(POOL).unwrap()["status"]["conditions"].clone();
    let conditions = conditions.as_array().cloned().unwrap_or_default();
    let ready = conditions.iter().find(|condition| condition["type"] == "Ready");
    ready
        .map(|ready| ready["reason"].as_str().unwrap().to_owned())
        .unwrap_or_default()
}

pub(super) fn sentence(cluster: &FakeCluster) -> String {
    cluster.get(POOL).unwrap()["status"]["conditions"][0]["message"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

/// Plays until the pool is in a state, and of a generation.
pub(super) async fn reach(cluster: &FakeCluster, expected: &str) {
    eventually(expected, 5 * MINUTE, || {
        play(cluster);
        let pool = cluster.get(POOL).unwrap();
        let is_current = pool["status"]["observedGeneration"] == pool["metadata"]["generation"];
        if is_current && state(cluster) == expected {
            Ok(())
        } else {
            Err(format!("{:#}", pool["status"]))
        }
    })
    .await;
}

pub(super) fn change(cluster: &FakeCluster, pointer: &str, value: Value) {
    cluster.update(POOL, |pool| *pool.pointer_mut(pointer).unwrap() = value);
}

/// What a release leaves: images by size, standings by image, weights.
pub(super) fn outcome(cluster: &FakeCluster) -> String {
    let sets: Vec<_> = objects(cluster, SETS)
        .iter()
        .map(|set| format!("{}={}", image(set), set["spec"]["replicas"]))
        .collect();
    let records = objects(cluster, "/apis/apps/v1/namespaces/shop/controllerrevisions/");
    let mut standings: Vec<_> = records
        .iter()
        .map(|record| {
            let standing = record["metadata"]["labels"][names::REVISION_STATE]
                .as_str()
                .unwrap_or("none");
            format!("{}:{standing}", super::world::image_of(record))
        })
        .collect();
    standings.sort();
    let weights: Vec<_> = cluster.get(POOL).unwrap()["status"]["traffic"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|share| share["weight"].to_string())
        .collect();
    let mut sets = sets;
    sets.sort();
    format!(
        "{} | {} | {}",
        sets.join(" "),
        standings.join(" "),
        weights.join(" ")
    )
}

#[tokio::test(start_paused = true)]
async fn a_pool_becomes_ready_within_its_budget_and_then_falls_silent() {
    let cluster = shop(json!({"agent": {"image": "agent:1", "prompt": {"text": "hi"}}}));
    let _running = operator(&cluster);
    reach(&cluster, "Ready").await;
    let writes = cluster
        .requests(0)
        .into_iter()
        .filter(|request| !request.starts_with("GET"))
        .collect::<Vec<_>>();
    let objects = cluster
        .paths("shop")
        .iter()
        .filter(|path| !path.contains("/pods/") && *path != POOL)
        .count();
    assert_eq!(objects, 7);
    assert!(
        writes.len() <= objects + 3,
        "{} writes: {writes:#?}",
        writes.len()
    );
    tokio::time::sleep(5 * Duration::from_secs(1)).await;
    let so_far = cluster.request_count();
    tokio::time::sleep(10 * MINUTE).await;
    assert_eq!(cluster.requests(so_far), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn a_config_map_is_read_when_it_changes_and_only_then() {
    let prompt = json!({"configMapKeyRef": {"name": "prompts", "key": "p"}});
    let cluster = shop(json!({"agent": {"image": "agent:1", "prompt": prompt}}));
    let _running = operator(&cluster);
    reach(&cluster, "WaitingForReference").await;
    assert!(
        sentence(&cluster).contains("ConfigMap prompts does not exist"),
        "{}",
        sentence(&cluster)
    );
    cluster.put(
        PROMPT,
        json!({"metadata": {"name": "prompts"}, "data": {"other": "x"}}),
    );
    let has_key = || {
        if sentence(&cluster).contains("has no key p") {
            Ok(())
        } else {
            Err(sentence(&cluster))
        }
    };
    eventually("the key is missed", MINUTE, has_key).await;
    cluster.update(PROMPT, |object| object["data"] = json!({"p": "be kind"}));
    reach(&cluster, "Ready").await;
    let reads = || {
        cluster
            .requests(0)
            .iter()
            .filter(|request| request.contains(PROMPT))
            .count()
    };
    let so_far = reads();
    assert!(so_far <= 4, "{so_far} reads");
    change(&cluster, "/spec/replicas", json!(3));
    reach(&cluster, "Ready").await;
    assert_eq!(reads(), so_far);
    cluster.update(PROMPT, |object| object["data"] = json!({"p": "be brief"}));
    eventually("released", MINUTE, || {
        play(&cluster);
        let count = objects(&cluster, SETS).len();
        if count == 2 && state(&cluster) == "Ready" {
            Ok(())
        } else {
            Err(state(&cluster))
        }
    })
    .await;
    // Once to see what it is, once, after its rest, to copy it.
    assert_eq!(reads(), so_far + 2);
}

#[tokio::test(start_paused = true)]
async fn a_name_that_is_taken_is_said_and_freed() {
    let cluster = shop(json!({}));
    cluster.put(
        FRONT,
        json!({"metadata": {"name": "support"}, "spec": {"selector": {"app": "theirs"}}}),
    );
    let _running = operator(&cluster);
    reach(&cluster, "NameTaken").await;
    assert!(
        sentence(&cluster).contains("Service support exists and belongs to nobody"),
        "{}",
        sentence(&cluster)
    );
    assert_eq!(
        cluster.get(FRONT).unwrap()["spec"]["selector"],
        json!({"app": "theirs"})
    );
    cluster.delete(FRONT);
    reach(&cluster, "Ready").await;
}

#[tokio::test(start_paused = true)]
async fn pods_that_the_server_refuses_are_not_made_until_it_accepts_them() {
    let cluster = shop(json!({}));
    let _running = operator(&cluster);
    reach(&cluster, "Ready").await;
    cluster.refuse_pods(Some("violates the policy"));
    change(
        &cluster,
        "/spec/agent",
        json!({"image": "agent:2", "podTemplate": {"spec": {"hostNetwork": true}}}),
    );
    reach(&cluster, "InvalidPodTemplate").await;
    assert!(
        sentence(&cluster).contains("violates the policy"),
        "{}",
        sentence(&cluster)
    );
    assert_eq!(objects(&cluster, SETS).len(), 1);
    cluster.refuse_pods(None);
    reach(&cluster, "Ready").await;
    assert_eq!(objects(&cluster, SETS).len(), 2);
}

#[tokio::test(start_paused = true)]
async fn the_gateways_service_is_left_alone() {
    let cluster = shop(json!({}));
    let _running = operator(&cluster);
    reach(&cluster, "Ready").await;
    let path = "/api/v1/namespaces/shop/services/flotilla-gateway";
    let uid = cluster.get(POOL).unwrap()["metadata"]["uid"].clone();
    let owner =
        json!({"apiVersion": "flotilla.dev/v1alpha1", "kind": "AgentPool", "name": "support", "uid": uid});
    cluster.put(path, json!({
        "metadata": {
            "name": "flotilla-gateway", "ownerReferences": [owner], "labels": {names::MANAGED_BY: names::MANAGER},
        },
        "spec": {"selector": {names::APP_NAME: names::GATEWAY}, "ports": [{"port": 80, "targetPort": 8080}]},
    }));
    change(&cluster, "/spec/replicas", json!(3));
    reach(&cluster, "Ready").await;
    assert!(cluster.get(path).is_some());
    assert_ne!(cluster.get(POOL).unwrap()["status"]["gatewayPort"], 8080);
}

pub(super) fn command(cluster: &FakeCluster, name: &str, type_: &str, expect: Value) {
    let spec = json!({"poolRef": {"name": "support"}, "type": type_, "expect": expect});
    cluster.put(
        &format!("{ACTIONS}/{name}"),
        json!({"metadata": {"name": name}, "spec": spec}),
    );
}

pub(super) async fn answered(cluster: &FakeCluster, name: &str, expected: &str) -> String {
    let path = format!("{ACTIONS}/{name}");
    eventually(name, 3 * MINUTE, || {
        play(cluster);
        let status = cluster.get(&path).unwrap()["status"].clone();
        if status["result"] == expected {
            Ok(())
        } else {
            Err(status.to_string())
        }
    })
    .await;
    cluster.get(&path).unwrap()["status"]["message"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

#[tokio::test(start_paused = true)]
async fn commands_are_answered_once_and_in_order() {
    let cluster = shop(json!({}));
    let running = operator(&cluster);
    reach(&cluster, "Ready").await;
    change(&cluster, "/spec/agent/image", json!("agent:bad"));
    reach(&cluster, "CrashLoop").await;
    let rejected = cluster.get(POOL).unwrap()["status"]["rejected"][0]["revision"].clone();
    command(
        &cluster,
        "a-retry",
        "Retry",
        json!({"revision": rejected, "attempt": 1}),
    );
    answered(&cluster, "a-retry", "Applied").await;
    reach(&cluster, "CrashLoop").await;
    // The same again is stale: the attempt has moved on.
    command(
        &cluster,
        "b-retry",
        "Retry",
        json!({"revision": rejected, "attempt": 1}),
    );
    let message = answered(&cluster, "b-retry", "Rejected").await;
    assert!(message.contains("at attempt 2, not 1"), "{message}");
    drop(running);
    let _running = operator(&cluster);
    tokio::time::sleep(MINUTE).await;
    assert_eq!(
        cluster.get(POOL).unwrap()["status"]["lastAction"]["name"],
        "b-retry"
    );
    let owners = cluster.get(&format!("{ACTIONS}/a-retry")).unwrap()["metadata"]["ownerReferences"].clone();
    assert_eq!(owners[0]["name"], "support");
}

#[tokio::test(start_paused = true)]
async fn a_command_to_nobody_waits_a_minute() {
    let cluster = shop(json!({}));
    cluster.delete(POOL);
    let _running = operator(&cluster);
    command(&cluster, "restart", "Restart", Value::Null);
    tokio::time::sleep(Duration::from_secs(30)).await;
    let status = cluster.get(&format!("{ACTIONS}/restart")).unwrap()["status"].clone();
    assert!(
        status["result"].is_null()
            && status["message"]
                .as_str()
                .unwrap()
                .contains("WaitingForReference")
    );
    let message = answered(&cluster, "restart", "Rejected").await;
    assert!(message.contains("AgentPool support does not exist"), "{message}");
}

/// Kills the operator at its n-th write, before it or right after it, for every n there is, through a first revision, a
/// release, a release that fails, and a command that stops the next.
#[tokio::test(start_paused = true)]
async fn a_kill_at_any_write_changes_nothing_in_the_end() {
    for fault in [Fault::Refused, Fault::Lost] {
        let mut write = 0;
        loop {
            let cluster = shop(json!({"replicas": 2}));
            cluster.plan_fault(write, fault);
            let mut running = Some(operator(&cluster));
            let mut killed = false;
            let mut steps = ["agent:2", "agent:bad", "agent:2"].into_iter();
            let mut awaited = "Ready";
            let mut is_done = false;
            for _ in 0..2000 {
                tokio::time::sleep(Duration::from_millis(200)).await;
                if cluster.tripped() && !killed {
                    killed = true;
                    drop(running.take());
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    cluster.heal();
                    running = Some(operator(&cluster));
                }
                play(&cluster);
                let pool = cluster.get(POOL).unwrap();
                if pool["status"]["observedGeneration"] == pool["metadata"]["generation"]
                    && state(&cluster) == awaited
                {
                    match steps.next() {
                        Some(image) => {
                            awaited = if image == "agent:bad" {
                                "CrashLoop"
                            } else {
                                "Ready"
                            };
                            change(&cluster, "/spec/agent/image", json!(image));
                        }
                        None => {
                            is_done = true;
                            break;
                        }
                    }
                }
            }
            tokio::time::sleep(Duration::from_secs(20)).await;
            play(&cluster);
            let what = format!("{fault:?} write {write}");
            assert!(is_done, "{what}: {:#}", cluster.get(POOL).unwrap()["status"]);
            let expected =
                "agent:1=0 agent:2=2 agent:bad=0 | agent:1:verified agent:2:stable agent:bad:rejected | 100";
            assert_eq!(outcome(&cluster), expected, "{what}");
            drop(running);
            if !cluster.tripped() {
                break;
            }
            write += 1;
        }
        assert!(write > 20, "only {write} writes were tried");
    }
}
