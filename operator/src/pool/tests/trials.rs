//! Releases with tests: the controller with scripted candidates, on an API server in memory.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use flotilla_crds::names;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::controller::{
    MINUTE, POOL, answered, change, command, objects, operator, operator_asking, outcome, play, reach, shop,
    state,
};
use crate::fakecluster::{FakeCluster, Fault, eventually};
use crate::pool::trial::ask::{Ask, Miss, Target};
use crate::pool::trial::list::Probe;

const JOBS: &str = "/apis/batch/v1/namespaces/shop/jobs";
const LOAD_TESTS: &str = "/apis/flotilla.dev/v1alpha1/namespaces/shop/loadtests";

/// Candidates that answer by path; counts the questions to each.
#[derive(Clone, Default)]
struct Candidates(Arc<Mutex<Script>>);

#[derive(Default)]
struct Script {
    failing: Vec<&'static str>,
    asked: BTreeMap<String, usize>,
}

impl Candidates {
    fn failing(path: &'static str) -> Self {
        let candidates = Self::default();
        candidates.0.lock().failing.push(path);
        candidates
    }

    fn asked(&self, path: &str) -> usize {
        self.0.lock().asked.get(path).copied().unwrap_or_default()
    }
}

impl Ask for Candidates {
    fn ask(&self, probe: Probe, target: Target) -> BoxFuture<'static, Result<String, Miss>> {
        let Probe::Http(test) = probe else {
            panic!("only requests are scripted: {probe:?}")
        };
        assert!(
            target.name.starts_with("support-") && target.name.ends_with(".shop.svc"),
            "{target:?}"
        );
        let mut script = self.0.lock();
        *script.asked.entry(test.path.clone()).or_default() += 1;
        let is_failing = script.failing.contains(&test.path.as_str());
        async move {
            if is_failing {
                Err(Miss::Failed(format!(
                    "GET {} was answered with 503, not 200",
                    test.path
                )))
            } else {
                Ok("fine".to_owned())
            }
        }
        .boxed()
    }
}

fn http(name: &str, when: &str) -> Value {
    json!({"name": name, "type": "HTTP", "when": when, "http": {"path": format!("/{name}")}, "attempts": 2})
}

pub(super) fn canary(tests: Value) -> FakeCluster {
    let step = json!({"weight": 50, "minDurationSeconds": 0, "decideWithinSeconds": 86400});
    shop(json!({"rollout": {
        "settleSeconds": 1, "type": "Canary", "smokeTests": tests, "initialGates": "Skip",
        "canary": {"steps": [step], "bakeSeconds": 0, "scaleDownDelaySeconds": 0, "onUndecided": "Promote"},
        "analysis": {"warmupSeconds": 0, "errors": {"mode": "Observe"}},
    }}))
}

/// A LoadTest that is only copied.
fn put_template(cluster: &FakeCluster, name: &str) {
    cluster.put(
        &format!("{LOAD_TESTS}/{name}"),
        json!({"metadata": {"name": name}, "spec": {
            "target": {"poolRef": {"name": "support"}}, "suspend": true,
            "scenarios": [{"name": "a", "prompt": {"text": "hi"}}],
            "stages": [{"name": "s", "type": "Batch", "batch": {"size": 1, "requests": 3}}],
        }}),
    );
}

/// The highest weight that the candidate ever had, by what status says while `reach` plays.
async fn highest_weight_until(cluster: &FakeCluster, expected: &str) -> i64 {
    let mut highest = 0;
    eventually(expected, 10 * MINUTE, || {
        play(cluster);
        let weight = cluster.get(POOL).unwrap()["status"]["candidate"]["weight"].as_i64();
        highest = highest.max(weight.unwrap_or_default());
        if state(cluster) == expected {
            Ok(())
        } else {
            Err(format!("{:#}", cluster.get(POOL).unwrap()["status"]))
        }
    })
    .await;
    highest
}

/// The only object of a kind that was made for a release, once there is one.
async fn child(cluster: &FakeCluster, prefix: &str) -> String {
    child_but(cluster, prefix, "").await
}

/// As [`child`], another one than this.
async fn child_but(cluster: &FakeCluster, prefix: &str, but: &str) -> String {
    let find = || {
        let objects = objects(cluster, prefix);
        let tested = objects
            .iter()
            .filter(|object| object["metadata"]["annotations"][names::TESTED_RELEASE].is_string());
        let names: Vec<String> = tested
            .map(|object| object["metadata"]["name"].as_str().unwrap().to_owned())
            .collect();
        names
    };
    eventually(prefix, MINUTE, || {
        play(cluster);
        match find().as_slice() {
            [name] if format!("{prefix}/{name}") != but => Ok(()),
            other => Err(format!("{other:?} {:#}", cluster.get(POOL).unwrap()["status"])),
        }
    })
    .await;
    format!("{prefix}/{}", find().remove(0))
}

#[tokio::test(start_paused = true)]
async fn a_failed_smoke_test_stops_a_release_before_its_first_request() {
    let candidates = Candidates::failing("/health");
    let cluster = canary(json!([
        http("health", "BeforeTraffic"),
        http("ready", "BeforeTraffic")
    ]));
    let _running = operator_asking(&cluster, Arc::new(candidates.clone()));
    reach(&cluster, "Ready").await;
    assert_eq!(candidates.asked("/health"), 0, "initialGates is Skip");
    change(&cluster, "/spec/agent/image", json!("agent:2"));
    assert_eq!(highest_weight_until(&cluster, "SmokeTestFailed").await, 0);
    assert_eq!((candidates.asked("/health"), candidates.asked("/ready")), (2, 1));
    let rejected = cluster.get(POOL).unwrap()["status"]["rejected"][0].clone();
    assert_eq!(
        (&rejected["reason"], &rejected["message"]),
        (
            &json!("SmokeTestFailed"),
            &json!("health: GET /health was answered with 503, not 200")
        )
    );
    assert!(cluster.events("support").contains(&"TestFailed".to_owned()));
    // Mended, and tried again: everything is asked anew, and the release goes on to its end.
    candidates.0.lock().failing.clear();
    command(
        &cluster,
        "again",
        "Retry",
        json!({"revision": rejected["revision"], "attempt": 1}),
    );
    answered(&cluster, "again", "Applied").await;
    reach(&cluster, "Ready").await;
    assert_eq!(
        outcome(&cluster),
        "agent:1=0 agent:2=2 | agent:1:verified agent:2:stable | 100"
    );
    assert_eq!((candidates.asked("/health"), candidates.asked("/ready")), (3, 2));
    assert!(cluster.events("support").contains(&"TestsPassed".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn a_first_revision_that_fails_its_tests_serves_nobody() {
    for rollout in [json!({}), json!({"type": "Canary"}), json!({"type": "BlueGreen"})] {
        let candidates = Candidates::failing("/health");
        let mut rollout = rollout;
        rollout["settleSeconds"] = json!(1);
        rollout["smokeTests"] = json!([http("health", "BeforeTraffic")]);
        let cluster = shop(json!({"rollout": rollout}));
        let _running = operator_asking(&cluster, Arc::new(candidates.clone()));
        assert_eq!(highest_weight_until(&cluster, "SmokeTestFailed").await, 0);
        let status = cluster.get(POOL).unwrap()["status"].clone();
        assert!(
            status["traffic"].is_null() && status["stable"].is_null(),
            "{status:#}"
        );
        assert!(candidates.asked("/health") > 0);
        candidates.0.lock().failing.clear();
        change(&cluster, "/spec/agent/image", json!("agent:2"));
        reach(&cluster, "Ready").await;
        assert_eq!(
            outcome(&cluster),
            "agent:1=0 agent:2=2 | agent:1:rejected agent:2:stable | 100"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_pool_without_replicas_waits_for_one_to_test() {
    let candidates = Candidates::default();
    let cluster = canary(json!([http("health", "BeforeTraffic")]));
    let _running = operator_asking(&cluster, Arc::new(candidates.clone()));
    reach(&cluster, "Ready").await;
    change(&cluster, "/spec/replicas", json!(0));
    reach(&cluster, "Ready").await;
    change(&cluster, "/spec/agent/image", json!("agent:2"));
    reach(&cluster, "Testing").await;
    tokio::time::sleep(MINUTE).await;
    assert_eq!(
        (state(&cluster).as_str(), candidates.asked("/health")),
        ("Testing", 0)
    );
    change(&cluster, "/spec/replicas", json!(2));
    reach(&cluster, "Ready").await;
    assert_eq!(candidates.asked("/health"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_rolling_update_and_a_blue_green_are_tested_before_traffic_too() {
    for rollout in [
        json!({"settleSeconds": 1}),
        json!({"settleSeconds": 1, "type": "BlueGreen", "blueGreen": {"bakeSeconds": 0, "scaleDownDelaySeconds": 0}}),
    ] {
        let candidates = Candidates::failing("/health");
        let mut rollout = rollout;
        rollout["smokeTests"] = json!([http("health", "BeforeTraffic")]);
        rollout["initialGates"] = json!("Skip");
        let cluster = shop(json!({"rollout": rollout}));
        let _running = operator_asking(&cluster, Arc::new(candidates.clone()));
        reach(&cluster, "Ready").await;
        change(&cluster, "/spec/agent/image", json!("agent:2"));
        assert_eq!(highest_weight_until(&cluster, "SmokeTestFailed").await, 0);
        candidates.0.lock().failing.clear();
        change(&cluster, "/spec/agent/image", json!("agent:3"));
        reach(&cluster, "Ready").await;
        let expected =
            "agent:1=0 agent:2=0 agent:3=2 | agent:1:verified agent:2:rejected agent:3:stable | 100";
        assert_eq!(outcome(&cluster), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn a_test_that_fails_after_the_promotion_leads_back() {
    let candidates = Candidates::failing("/after");
    let cluster = canary(json!([
        http("health", "BeforeAndAfter"),
        http("after", "AfterPromotion")
    ]));
    let _running = operator_asking(&cluster, Arc::new(candidates.clone()));
    reach(&cluster, "Ready").await;
    change(&cluster, "/spec/agent/image", json!("agent:2"));
    assert_eq!(highest_weight_until(&cluster, "SmokeTestFailed").await, 100);
    assert_eq!(
        outcome(&cluster),
        "agent:1=2 agent:2=0 | agent:1:stable agent:2:rejected | 100"
    );
    assert_eq!((candidates.asked("/health"), candidates.asked("/after")), (2, 2));
}

#[tokio::test(start_paused = true)]
async fn jobs_and_load_tests_are_awaited_and_survive_a_restart() {
    let tests = json!([
        http("health", "BeforeTraffic"),
        {"name": "database", "type": "Job", "job": {"command": ["true"]}, "dependsOn": ["health"]},
        {"name": "latency", "type": "LoadTest", "loadTest": {"templateRef": {"name": "smoke-load"}}, "dependsOn": ["database"]},
    ]);
    let candidates = Candidates::default();
    let cluster = canary(tests);
    let running = operator_asking(&cluster, Arc::new(candidates.clone()));
    reach(&cluster, "Ready").await;
    change(&cluster, "/spec/agent/image", json!("agent:2"));
    let job = child(&cluster, JOBS).await;
    eventually("its result is in status", MINUTE, || {
        let tests = cluster.get(POOL).unwrap()["status"]["rollout"]["tests"].clone();
        if tests[0]["result"] == "Passed" {
            Ok(())
        } else {
            Err(tests.to_string())
        }
    })
    .await;
    drop(running);
    let _running = operator_asking(&cluster, Arc::new(candidates.clone()));
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(
        (
            candidates.asked("/health"),
            objects(&cluster, JOBS).len(),
            objects(&cluster, LOAD_TESTS).len()
        ),
        (1, 1, 0)
    );
    cluster.update(&job, |job| {
        job["status"] = json!({"conditions": [{"type": "Complete", "status": "True"}]})
    });
    let waiting = || {
        let tests = cluster.get(POOL).unwrap()["status"]["rollout"]["tests"].clone();
        let said = tests[2]["message"].as_str().unwrap_or_default().to_owned();
        if said.contains("LoadTest smoke-load does not exist") {
            Ok(())
        } else {
            Err(tests.to_string())
        }
    };
    eventually("the template is missed", MINUTE, waiting).await;
    put_template(&cluster, "smoke-load");
    let test = child(&cluster, LOAD_TESTS).await;
    assert_eq!(
        cluster.get(&test).unwrap()["spec"]["target"]["serviceRef"]["name"],
        cluster.get(POOL).unwrap()["status"]["candidate"]["revision"]
    );
    // A run that came to no verdict is repeated under another name.
    cluster.update(&test, |test| test["status"] = json!({"verdict": "Invalid"}));
    eventually("another run", MINUTE, || {
        let count = objects(&cluster, LOAD_TESTS).len();
        if count == 3 {
            Ok(())
        } else {
            Err(format!("{count} load tests"))
        }
    })
    .await;
    for object in objects(&cluster, LOAD_TESTS) {
        let path = format!("{LOAD_TESTS}/{}", object["metadata"]["name"].as_str().unwrap());
        if object["status"]["verdict"].is_null() && path != format!("{LOAD_TESTS}/smoke-load") {
            cluster.update(&path, |test| test["status"] = json!({"verdict": "Passed"}));
        }
    }
    reach(&cluster, "Ready").await;
    assert_eq!(
        outcome(&cluster),
        "agent:1=0 agent:2=2 | agent:1:verified agent:2:stable | 100"
    );
    // What was tested can be looked at until the next release begins.
    tokio::time::sleep(MINUTE).await;
    assert_eq!(
        (objects(&cluster, JOBS).len(), objects(&cluster, LOAD_TESTS).len()),
        (1, 3)
    );
    change(&cluster, "/spec/agent/image", json!("agent:bad"));
    reach(&cluster, "CrashLoop").await;
    assert_eq!(
        (objects(&cluster, JOBS).len(), objects(&cluster, LOAD_TESTS).len()),
        (0, 1)
    );
}

#[tokio::test(start_paused = true)]
async fn a_step_waits_for_its_load_test_and_a_failed_one_leads_back() {
    let cluster = canary(json!([]));
    cluster.update(POOL, |pool| {
        pool["spec"]["rollout"]["canary"]["steps"][0]["loadTest"] =
            json!({"templateRef": {"name": "gate"}, "attempts": 1, "timeoutSeconds": 3600});
    });
    put_template(&cluster, "gate");
    let _running = operator(&cluster);
    reach(&cluster, "Ready").await;
    change(&cluster, "/spec/agent/image", json!("agent:2"));
    let test = child(&cluster, LOAD_TESTS).await;
    assert_eq!(cluster.get(POOL).unwrap()["status"]["candidate"]["weight"], 50);
    tokio::time::sleep(2 * MINUTE).await;
    assert_eq!(cluster.get(POOL).unwrap()["status"]["candidate"]["weight"], 50);
    // Too few samples: a person decides, here against it.
    cluster.update(&test, |test| test["status"] = json!({"verdict": "Inconclusive"}));
    reach(&cluster, "TestUndecided").await;
    let rejected = json!({"revision": cluster.get(POOL).unwrap()["status"]["candidate"]["revision"]});
    command(&cluster, "stop", "Abort", rejected.clone());
    reach(&cluster, "Aborted").await;
    command(&cluster, "again", "Retry", rejected);
    answered(&cluster, "again", "Applied").await;
    let second = child_but(&cluster, LOAD_TESTS, &test).await;
    let failed = json!({"verdict": "Failed", "conditions": [{
        "type": "Succeeded", "status": "False", "reason": "ThresholdFailed", "message": "p95 is 900 ms",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }]});
    cluster.update(&second, |test| test["status"] = failed);
    reach(&cluster, "LoadTestFailed").await;
    let message = cluster.get(POOL).unwrap()["status"]["rejected"][0]["message"].clone();
    assert!(message.as_str().unwrap().contains("p95 is 900 ms"), "{message}");
}

#[tokio::test(start_paused = true)]
async fn a_quiet_step_is_topped_up_through_the_gateway_and_only_while_it_is_judged() {
    let cluster = canary(json!([]));
    cluster.update(POOL, |pool| {
        pool["spec"]["rollout"]["analysis"] =
            json!({"topUp": {"templateRef": {"name": "quiet"}, "minRequestsPerSecond": "100"}});
    });
    put_template(&cluster, "quiet");
    let _running = operator(&cluster);
    reach(&cluster, "Ready").await;
    change(&cluster, "/spec/agent/image", json!("agent:2"));
    let test = child(&cluster, LOAD_TESTS).await;
    let made = cluster.get(&test).unwrap();
    assert_eq!(made["spec"]["target"], json!({"poolRef": {"name": "support"}}));
    let shown = || {
        let pool = cluster.get(POOL).unwrap();
        let name = pool["status"]["rollout"]["topUpRef"]["name"].clone();
        if name == made["metadata"]["name"] {
            Ok(())
        } else {
            Err(format!("{:#}", pool["status"]))
        }
    };
    eventually("status names it", MINUTE, shown).await;
    let ended = json!({"verdict": "Inconclusive", "completionTime": "2027-01-15T08:00:00Z"});
    cluster.update(&test, |test| test["status"] = ended);
    eventually("another run", MINUTE, || {
        let tests = objects(&cluster, LOAD_TESTS);
        let is_next = |test: &Value| test["metadata"]["annotations"]["flotilla.dev/run"] == "2";
        if tests.iter().any(is_next) && tests.len() == 2 {
            Ok(())
        } else {
            Err(format!("{tests:#?}"))
        }
    })
    .await;
    let candidate = cluster.get(POOL).unwrap()["status"]["candidate"]["revision"].clone();
    command(&cluster, "go", "PromoteFull", json!({"revision": candidate}));
    reach(&cluster, "Ready").await;
    eventually("it has ended", MINUTE, || {
        let tests = objects(&cluster, LOAD_TESTS);
        if tests.len() == 1 {
            Ok(())
        } else {
            Err(format!("{tests:#?}"))
        }
    })
    .await;
}

/// Kills the operator at its n-th write, before it or right after it, for every n there is, through a release with a request and a
/// Job before its traffic, and requests after it.
#[tokio::test(start_paused = true)]
async fn a_kill_at_any_write_of_a_tested_release_changes_nothing_in_the_end() {
    let tests = json!([
        http("health", "BeforeAndAfter"),
        {"name": "database", "type": "Job", "job": {"command": ["true"]}, "dependsOn": ["health"]},
    ]);
    for fault in [Fault::Refused, Fault::Lost] {
        let mut write = 0;
        loop {
            let cluster = canary(tests.clone());
            let candidates = Candidates::default();
            let start = || operator_asking(&cluster, Arc::new(candidates.clone()));
            cluster.plan_fault(write, fault);
            let mut running = Some(start());
            let mut is_killed = false;
            let mut is_changed = false;
            let mut is_done = false;
            for _ in 0..2000 {
                tokio::time::sleep(Duration::from_millis(200)).await;
                if cluster.tripped() && !is_killed {
                    is_killed = true;
                    drop(running.take());
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    cluster.heal();
                    running = Some(start());
                }
                play(&cluster);
                for job in objects(&cluster, JOBS) {
                    let path = format!("{JOBS}/{}", job["metadata"]["name"].as_str().unwrap());
                    let over = json!({"conditions": [{"type": "Complete", "status": "True"}]});
                    if job["status"].is_null() {
                        cluster.update(&path, |job| job["status"] = over);
                    }
                }
                let pool = cluster.get(POOL).unwrap();
                let is_current = pool["status"]["observedGeneration"] == pool["metadata"]["generation"];
                if is_current && state(&cluster) == "Ready" {
                    is_done = is_changed;
                    if is_done {
                        break;
                    }
                    is_changed = true;
                    change(&cluster, "/spec/agent/image", json!("agent:2"));
                }
            }
            let what = format!("{fault:?} write {write}");
            assert!(is_done, "{what}: {:#}", cluster.get(POOL).unwrap()["status"]);
            assert_eq!(
                outcome(&cluster),
                "agent:1=0 agent:2=2 | agent:1:verified agent:2:stable | 100",
                "{what}"
            );
            assert_eq!(cluster.made("/apis/batch/v1/jobs"), 1, "{what}");
            // At most one more than without the kill, where the result was not in status yet.
            assert!(
                (2..=3).contains(&candidates.asked("/health")),
                "{what}: {}",
                candidates.asked("/health")
            );
            drop(running);
            if !cluster.tripped() {
                break;
            }
            write += 1;
        }
        assert!(write > 15, "only {write} writes were tried");
    }
}
