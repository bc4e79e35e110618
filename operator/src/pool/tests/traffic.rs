//! Pools whose traffic does not go through Flotilla's gateway: by numbers of replicas, and by an HTTPRoute.

use std::sync::Arc;
use std::time::Duration;

use flotilla_core::evidence::{Judgement, Verdict};
use flotilla_core::rollout::{Gate, Opinion, Reason};
use flotilla_crds::names;
use serde_json::{Value, json};

use super::controller::{
    MINUTE, PODS, POOL, SETS, change, image, objects, operator, outcome, play, reach, sentence, shop, state,
};
use super::world::World;
use crate::fakecluster::{FakeCluster, eventually};
use crate::pool::judge::Heard;

const SERVICES: &str = "/api/v1/namespaces/shop/services/";
const ROUTES: &str = "/apis/gateway.networking.k8s.io/v1/httproutes";
const ROUTE: &str = "/apis/gateway.networking.k8s.io/v1/namespaces/shop/httproutes/support";

fn canary(steps: Value, more: Value) -> Value {
    let mut canary =
        json!({"candidateMinReplicas": 1, "bakeSeconds": 5, "scaleDownDelaySeconds": 0, "steps": steps});
    for (key, value) in more.as_object().unwrap() {
        canary[key] = value.clone();
    }
    json!({"type": "Canary", "settleSeconds": 1, "canary": canary})
}

fn step(weight: i32, seconds: i32) -> Value {
    json!({"weight": weight, "minDurationSeconds": seconds, "decideWithinSeconds": 600})
}

fn rollout(cluster: &FakeCluster) -> Value {
    cluster.get(POOL).unwrap()["status"]["rollout"].clone()
}

/// Images and replicas, without those that have none.
fn sizes(cluster: &FakeCluster) -> Vec<(String, i64)> {
    let sets = objects(cluster, SETS);
    let mut sizes: Vec<_> = sets
        .iter()
        .map(|set| (image(set), set["spec"]["replicas"].as_i64().unwrap()))
        .filter(|(_, size)| *size > 0)
        .collect();
    sizes.sort();
    sizes
}

/// Plays until the release has reached the step of this weight, and is judged there.
async fn climb(cluster: &FakeCluster, weight: i64) {
    eventually("the step", 5 * MINUTE, || {
        play(cluster);
        accept(cluster, "True");
        if rollout(cluster)["step"]["weight"] == weight {
            Ok(())
        } else {
            Err(format!("{:#}", cluster.get(POOL).unwrap()["status"]))
        }
    })
    .await;
}

fn workers(rollout: Value, service: &str) -> FakeCluster {
    let cluster = shop(json!({
        "replicas": 4, "rollout": rollout,
        "traffic": {"type": "ReplicaRatio", "replicaRatio": {"service": service}},
    }));
    // Nobody's requests pass the gateway, so nothing waits for one.
    cluster.delete(&format!("{PODS}/flotilla-gateway-1"));
    cluster
}

#[tokio::test(start_paused = true)]
async fn a_canary_of_workers_goes_by_numbers_and_time() {
    let cluster = workers(canary(json!([step(1, 10), step(50, 10)]), json!({})), "None");
    let _running = operator(&cluster);
    reach(&cluster, "Ready").await;
    let probes = &objects(&cluster, SETS)[0]["spec"]["template"]["spec"]["containers"][0]["readinessProbe"];
    assert!(probes.is_null(), "a worker need not listen: {probes}");
    change(&cluster, "/spec/agent/image", json!("agent:2"));
    climb(&cluster, 1).await;
    assert_eq!(
        sizes(&cluster),
        [("agent:1".to_owned(), 4), ("agent:2".to_owned(), 1)]
    );
    let at = rollout(&cluster);
    assert_eq!(at["measuredWeightPercent"], "20.0", "1 % of four is one of five");
    assert_eq!(at["waitingFor"]["reason"], "StepLasts");
    let message = at["waitingFor"]["message"].as_str().unwrap();
    assert!(
        message.contains("no request is counted: time and approval decide"),
        "{message}"
    );
    climb(&cluster, 50).await;
    assert_eq!(
        sizes(&cluster),
        [("agent:1".to_owned(), 4), ("agent:2".to_owned(), 4)]
    );
    assert_eq!(rollout(&cluster)["measuredWeightPercent"], "50.0");
    reach(&cluster, "Ready").await;
    assert_eq!(
        outcome(&cluster),
        "agent:1=0 agent:2=4 | agent:1:verified agent:2:stable | 100"
    );
    let services: Vec<_> = objects(&cluster, SERVICES)
        .iter()
        .filter(|service| service["metadata"]["labels"][names::REVISION].is_null())
        .map(|service| service["metadata"]["name"].clone())
        .collect();
    assert_eq!(services, Vec::<Value>::new(), "there is no front Service");
    assert!(cluster.get(POOL).unwrap()["status"]["gatewayPort"].is_null());
}

#[tokio::test(start_paused = true)]
async fn workers_that_shrink_are_never_fewer_and_a_scale_keeps_the_share() {
    let cluster = workers(
        canary(json!([step(50, 600)]), json!({"stableScale": "Shrink"})),
        "None",
    );
    let _running = operator(&cluster);
    reach(&cluster, "Ready").await;
    change(&cluster, "/spec/agent/image", json!("agent:2"));
    climb(&cluster, 50).await;
    assert_eq!(
        sizes(&cluster),
        [("agent:1".to_owned(), 2), ("agent:2".to_owned(), 2)]
    );
    change(&cluster, "/spec/replicas", json!(8));
    let grown = [("agent:1".to_owned(), 4), ("agent:2".to_owned(), 4)];
    eventually("the share is kept", 2 * MINUTE, || {
        play(&cluster);
        if sizes(&cluster) == grown {
            Ok(())
        } else {
            Err(format!("{:?}", sizes(&cluster)))
        }
    })
    .await;
    // Back to the old revision: capacity first.
    change(&cluster, "/spec/agent/image", json!("agent:1"));
    reach(&cluster, "Ready").await;
    assert_eq!(sizes(&cluster), [("agent:1".to_owned(), 8)]);
}

#[tokio::test(start_paused = true)]
async fn a_superseded_candidate_of_workers_gives_nothing_to_its_successor() {
    let cluster = workers(canary(json!([step(25, 20), step(50, 600)]), json!({})), "None");
    let _running = operator(&cluster);
    reach(&cluster, "Ready").await;
    change(&cluster, "/spec/agent/image", json!("agent:2"));
    climb(&cluster, 50).await;
    change(&cluster, "/spec/agent/image", json!("agent:3"));
    eventually("the successor is at its first step", 5 * MINUTE, || {
        play(&cluster);
        let is_first = rollout(&cluster)["step"]["weight"] == 25;
        let expected = [("agent:1".to_owned(), 4), ("agent:3".to_owned(), 1)];
        if is_first && sizes(&cluster) == expected {
            Ok(())
        } else {
            Err(format!("{:?} {:#}", sizes(&cluster), rollout(&cluster)))
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_crash_loop_of_workers_needs_no_deadline() {
    let cluster = workers(canary(json!([step(25, 600)]), json!({})), "None");
    let _running = operator(&cluster);
    reach(&cluster, "Ready").await;
    change(&cluster, "/spec/agent/image", json!("agent:bad"));
    reach(&cluster, "CrashLoop").await;
    eventually("its pods are gone", MINUTE, || {
        play(&cluster);
        if sizes(&cluster) == [("agent:1".to_owned(), 4)] {
            Ok(())
        } else {
            Err(format!("{:?}", sizes(&cluster)))
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_front_service_to_pods_is_made_and_goes_with_its_setting() {
    let cluster = workers(json!({"settleSeconds": 1}), "Pods");
    let _running = operator(&cluster);
    reach(&cluster, "Ready").await;
    let front = cluster.get(&format!("{SERVICES}support")).unwrap();
    assert_eq!(front["spec"]["selector"][names::POOL], "support");
    assert_eq!(front["spec"]["ports"][0]["targetPort"], "http");
    let probe = &objects(&cluster, SETS)[0]["spec"]["template"]["spec"]["containers"][0]["readinessProbe"];
    assert!(!probe.is_null(), "what takes requests is asked whether it can");
    // Batch by batch, it selects both.
    change(&cluster, "/spec/agent/image", json!("agent:2"));
    reach(&cluster, "Ready").await;
    assert_eq!(sizes(&cluster), [("agent:2".to_owned(), 4)]);
    assert_eq!(
        cluster.get(&format!("{SERVICES}support")).unwrap()["metadata"]["uid"],
        front["metadata"]["uid"]
    );
    change(&cluster, "/spec/traffic/replicaRatio/service", json!("None"));
    eventually("the front Service goes", MINUTE, || {
        match cluster.get(&format!("{SERVICES}support")) {
            None => Ok(()),
            Some(service) => Err(format!("{service:#}")),
        }
    })
    .await;
}

/// One turn of a world whose candidate is found good wherever it stands.
fn turn(world: &mut World) -> bool {
    if let Some(reached) = &world.memory.reached {
        let gate = Gate {
            weight: reached.weight,
            opinion: Opinion::Advance,
            reason: Reason::new("EvidenceComplete", "good"),
            deadline: None,
            by_test: false,
        };
        let judgement = Judgement {
            verdict: Verdict::Advance,
            metrics: Vec::new(),
            eta_seconds: None,
            message: "good".into(),
        };
        world.memory.heard = Some(Arc::new(Heard { gate, judgement }));
    }
    let (wrote, before) = (world.visit(), world.store.clone());
    world.cluster();
    wrote || world.store != before
}

#[test]
fn dying_before_any_write_of_a_release_of_workers_ends_in_the_same_place() {
    let run = |stable_scale: &str, dies_before: Option<usize>| {
        let canary = json!({
            "candidateMinReplicas": 1, "stableScale": stable_scale, "bakeSeconds": 0, "scaleDownDelaySeconds": 0,
            "steps": [{"weight": 25}, {"weight": 50}],
        });
        let mut world = super::serving_with(json!({
            "traffic": {"type": "ReplicaRatio"}, "rollout": {"type": "Canary", "canary": canary},
        }));
        world.dies_before = dies_before;
        world.change(json!({"agent": {"image": "agent:2"}}));
        for _ in 0..3 {
            turn(&mut world);
            world.pass(5);
        }
        let mut quiet = 0;
        for _ in 0..200 {
            quiet = if turn(&mut world) { 0 } else { quiet + 1 };
            assert!(
                world.ready_pods() >= 4,
                "{} ready, 4 are needed",
                world.ready_pods()
            );
            if quiet > 1 {
                break;
            }
        }
        (world.state(), world.sizes(), world.standings(), world.weights())
    };
    for stable_scale in ["Keep", "Shrink"] {
        let undisturbed = run(stable_scale, None);
        assert_eq!(undisturbed.0, ("Ready".to_owned(), "TTFF".to_owned()));
        assert_eq!(
            undisturbed.1,
            [("agent:1".to_owned(), 0), ("agent:2".to_owned(), 4)].into()
        );
        for write in 0..40 {
            assert_eq!(
                run(stable_scale, Some(write)),
                undisturbed,
                "{stable_scale}, died before write {write}"
            );
        }
    }
}

// === HTTPRoute ===

fn routed(rollout: Value) -> FakeCluster {
    shop(json!({
        "replicas": 4, "rollout": rollout,
        "traffic": {"type": "HTTPRoute", "httpRoute": {"parentRefs": [{"name": "public", "namespace": "infra"}]}},
    }))
}

/// The controller of the Gateway, once: what it says of the route's present generation.
fn accept(cluster: &FakeCluster, status: &str) {
    let Some(route) = cluster.get(ROUTE) else { return };
    let generation = route["metadata"]["generation"].clone();
    if route["status"]["parents"][0]["conditions"][0]["observedGeneration"] == generation
        && route["status"]["parents"][0]["conditions"][0]["status"] == status
    {
        return;
    }
    let condition = |type_: &str| {
        json!({
            "type": type_, "status": status, "observedGeneration": generation, "reason": "NotAllowedByListeners",
            "message": "no listener lets shop in",
        })
    };
    let parent = json!({"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "public", "namespace": "infra"});
    cluster.update(ROUTE, |route| {
        route["status"] = json!({"parents": [{
            "parentRef": parent, "controllerName": "x.example/c",
            "conditions": [condition("Accepted"), condition("ResolvedRefs")],
        }]});
    });
}

/// Weights of the route by revision.
fn weights(cluster: &FakeCluster) -> Vec<i64> {
    let route = cluster.get(ROUTE).unwrap_or_default();
    let rules = route["spec"]["rules"].as_array().cloned().unwrap_or_default();
    let backends = rules
        .last()
        .map(|rule| rule["backendRefs"].clone())
        .unwrap_or_default();
    let backends = backends.as_array().cloned().unwrap_or_default();
    backends
        .iter()
        .map(|backend| backend["weight"].as_i64().unwrap())
        .collect()
}

async fn becomes(cluster: &FakeCluster, expected: &str) {
    eventually(expected, 2 * MINUTE, || {
        play(cluster);
        if state(cluster) == expected {
            Ok(())
        } else {
            Err(format!("{:#}", cluster.get(POOL).unwrap()["status"]))
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn without_the_gateway_api_it_is_said_and_once_it_is_there_it_goes_on() {
    let cluster = routed(json!({"settleSeconds": 1}));
    cluster.know(ROUTES, false);
    let _running = operator(&cluster);
    becomes(&cluster, "GatewayAPIMissing").await;
    assert!(
        sentence(&cluster).contains("install the CRDs of the Gateway API"),
        "{}",
        sentence(&cluster)
    );
    cluster.know(ROUTES, true);
    eventually("the route is made", MINUTE, || {
        if weights(&cluster) == [100] {
            Ok(())
        } else {
            Err(format!("{:?}", cluster.get(ROUTE)))
        }
    })
    .await;
    assert_ne!(state(&cluster), "Ready", "nobody has accepted it yet");
    accept(&cluster, "False");
    becomes(&cluster, "RouteNotAccepted").await;
    assert!(
        sentence(&cluster).contains("Gateway infra/public does not take"),
        "{}",
        sentence(&cluster)
    );
    accept(&cluster, "True");
    becomes(&cluster, "Ready").await;
}

#[tokio::test(start_paused = true)]
async fn a_pool_that_needs_no_route_does_not_look_for_one() {
    let cluster = shop(json!({}));
    cluster.know(ROUTES, false);
    let _running = operator(&cluster);
    reach(&cluster, "Ready").await;
    tokio::time::sleep(10 * MINUTE).await;
    let asked = cluster.requests(0);
    let asked = asked
        .iter()
        .filter(|request| request.contains("httproutes"))
        .count();
    assert_eq!(asked, 1);
}

#[tokio::test(start_paused = true)]
async fn a_step_counts_once_the_route_is_accepted_with_its_weight() {
    let mut rollout = canary(json!([step(25, 30)]), json!({}));
    rollout["preview"] = json!({"header": "X-Preview", "value": "yes"});
    let cluster = routed(rollout);
    let _running = operator(&cluster);
    let serve = || {
        play(&cluster);
        accept(&cluster, "True");
    };
    eventually("ready", 2 * MINUTE, || {
        serve();
        if state(&cluster) == "Ready" {
            Ok(())
        } else {
            Err(sentence(&cluster))
        }
    })
    .await;
    change(&cluster, "/spec/agent/image", json!("agent:2"));
    // The route has the weight; as long as no Gateway says so, the step does not begin.
    eventually("the weight is in the route", 2 * MINUTE, || {
        play(&cluster);
        if weights(&cluster) == [75, 25] {
            Ok(())
        } else {
            Err(format!("{:?}", weights(&cluster)))
        }
    })
    .await;
    for _ in 0..20 {
        play(&cluster);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert!(self::rollout(&cluster)["step"].is_null());
    assert_eq!(self::rollout(&cluster)["waitingFor"]["reason"], "RoutePending");
    let rules = cluster.get(ROUTE).unwrap()["spec"]["rules"].clone();
    assert_eq!(rules[0]["matches"][0]["headers"][0]["name"], "X-Preview");
    climb(&cluster, 25).await;
    // Somebody edits the route.
    cluster.update(ROUTE, |route| route["spec"]["rules"] = json!([]));
    eventually("it is put right", Duration::from_secs(5), || {
        if weights(&cluster) == [75, 25] {
            Ok(())
        } else {
            Err(format!("{:?}", weights(&cluster)))
        }
    })
    .await;
    eventually("released", 5 * MINUTE, || {
        serve();
        let is_new = sizes(&cluster) == [("agent:2".to_owned(), 4)];
        if is_new && state(&cluster) == "Ready" {
            Ok(())
        } else {
            Err(format!("{:#}", cluster.get(POOL).unwrap()["status"]))
        }
    })
    .await;
    assert_eq!(weights(&cluster), [100]);
    assert_eq!(
        cluster.get(ROUTE).unwrap()["spec"]["rules"]
            .as_array()
            .map(Vec::len),
        Some(1)
    );
    // With another type of traffic it goes.
    cluster.update(POOL, |pool| pool["spec"]["traffic"] = json!({"type": "Gateway"}));
    eventually("the route goes", MINUTE, || match cluster.get(ROUTE) {
        None => Ok(()),
        Some(route) => Err(format!("{route:#}")),
    })
    .await;
}
