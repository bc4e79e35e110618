//! The whole controller on an API server in memory, under virtual time: lives of LoadTests, also of those whose operator
//! is killed between any two writes. The test plays the Job controller and kubelet.

use std::sync::Arc;
use std::time::Duration;

use flotilla_core::load::result::{Series, StageCounts};
use flotilla_core::load::wire::WorkerResult;
use serde_json::{Value, json};

use crate::caches::Caches;
use crate::fakecluster::{FakeCluster, Fault, Running, eventually};
use crate::loadtest::{Settings, register};

const TEST: &str = "/apis/flotilla.dev/v1alpha1/namespaces/shop/loadtests/steady";
const POOL: &str = "/apis/flotilla.dev/v1alpha1/namespaces/shop/agentpools/support";
const JOB: &str = "/apis/batch/v1/namespaces/shop/jobs/steady";
const PLAN: &str = "/api/v1/namespaces/shop/configmaps/steady-plan";
const RESULT: &str = "/api/v1/namespaces/shop/configmaps/steady-result";
const SERVICE: &str = "/api/v1/namespaces/shop/services/steady-coordinator";
const MINUTE: Duration = Duration::from_secs(60);

fn operator(cluster: &FakeCluster) -> Running {
    let mut manager = cluster.manager();
    let caches = Caches::new(&mut manager);
    register(
        &mut manager,
        &caches,
        Settings {
            image: "loadgen:1".into(),
        },
        Arc::new(super::progress::HttpAsk::default()),
    );
    Running::start(manager)
}

fn put_pool(cluster: &FakeCluster) {
    cluster.put(
        POOL,
        json!({
            "metadata": {"name": "support"},
            "spec": {"agent": {"image": "a"}},
            "status": {"observedGeneration": 1, "conditions": [
                {"type": "Available", "status": "True", "reason": "Serving", "message": "", "lastTransitionTime": "2026-11-21T10:00:00Z"},
            ]},
        }),
    );
}

fn put_test(cluster: &FakeCluster, more: Value) {
    let mut spec = json!({
        "target": {"poolRef": {"name": "support"}},
        "workers": {"count": 2},
        "scenarios": [{"name": "a", "prompt": {"text": "order {{order}}"}}],
        "stages": [{"name": "steady", "type": "ConstantRate", "constantRate": {"perSecond": "5", "seconds": 60}}],
        "thresholds": {"p95Milliseconds": 4000},
    });
    for (key, value) in more.as_object().unwrap() {
        spec[key] = value.clone();
    }
    cluster.put(
        TEST,
        json!({"metadata": {"name": "steady"}, "spec": spec, "status": {"observedGeneration": -1}}),
    );
}

/// What the operator says: STATE, the verdict, and Ready's message.
fn state(cluster: &FakeCluster) -> (String, String, String) {
    let status = cluster
        .get(TEST)
        .map(|test| test["status"].clone())
        .unwrap_or_default();
    let ready = status["conditions"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|condition| condition["type"] == "Ready")
        .cloned();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let ready = ready.unwrap_or_default();
    (
        text(&ready["reason"]),
        text(&status["verdict"]),
        text(&ready["message"]),
    )
}

fn condition(cluster: &FakeCluster, type_: &str) -> String {
    let conditions = cluster
        .get(TEST)
        .map(|test| test["status"]["conditions"].clone())
        .unwrap_or_default();
    let found = conditions
        .as_array()
        .into_iter()
        .flatten()
        .find(|condition| condition["type"] == type_)
        .cloned();
    found
        .and_then(|condition| condition["status"].as_str().map(str::to_owned))
        .unwrap_or_default()
}

async fn becomes(cluster: &FakeCluster, reason: &str, verdict: &str) {
    eventually(&format!("{reason} {verdict}"), 15 * MINUTE, || {
        let (is, judged, message) = state(cluster);
        if is == reason && judged == verdict {
            Ok(())
        } else {
            Err(format!("{is} {judged}: {message}; {:?}", cluster.paths("shop")))
        }
    })
    .await;
}

fn pod_path(index: u32) -> String {
    format!("/api/v1/namespaces/shop/pods/steady-{index}-x")
}

/// A pod for each worker, as the Job controller and kubelet would have them.
fn start_pods(cluster: &FakeCluster) {
    let job = cluster.get(JOB).unwrap();
    let template = &job["spec"]["template"];
    for index in 0..2 {
        if cluster.get(&pod_path(index)).is_some() {
            continue;
        }
        let mut metadata = template["metadata"].clone();
        metadata["name"] = json!(format!("steady-{index}-x"));
        metadata["labels"]["batch.kubernetes.io/job-completion-index"] = json!(index.to_string());
        metadata["ownerReferences"] = json!([{"apiVersion": "batch/v1", "kind": "Job", "name": "steady", "uid": job["metadata"]["uid"], "controller": true}]);
        let status = json!({"phase": "Running", "containerStatuses": [
            {"name": "worker", "image": "", "imageID": "", "ready": true, "restartCount": 0, "state": {"running": {}}},
        ]});
        cluster.put(
            &pod_path(index),
            json!({"metadata": metadata, "spec": template["spec"], "status": status}),
        );
    }
}

fn message(cluster: &FakeCluster, index: u32) -> String {
    let plan = cluster.get(JOB).unwrap()["metadata"]["annotations"]["flotilla.dev/workload"].clone();
    let hex = plan
        .as_str()
        .unwrap()
        .strip_prefix("sha256:")
        .unwrap()
        .get(..16)
        .unwrap()
        .to_owned();
    WorkerResult {
        index,
        workers: 2,
        attempt: 1,
        workload: u64::from_str_radix(&hex, 16).unwrap(),
        stages: vec![StageCounts {
            planned: 150,
            started: 150,
            done: 150,
            failed: 0,
        }],
        series: Series {
            latency: (0..150).map(|_| 1_000_000).collect(),
            lateness: (0..150).map(|_| 10).collect(),
            ..Series::default()
        },
        ..WorkerResult::default()
    }
    .to_message()
}

fn end_pod(cluster: &FakeCluster, index: u32, exit_code: i32, message: &str) {
    cluster.update(&pod_path(index), |pod| {
        pod["status"]["phase"] = json!(if exit_code == 0 { "Succeeded" } else { "Failed" });
        pod["status"]["containerStatuses"][0]["state"] =
            json!({"terminated": {"exitCode": exit_code, "reason": if exit_code == 0 { "Completed" } else { "Error" }, "message": message}});
    });
}

fn end_job(cluster: &FakeCluster, type_: &str) {
    let now = cluster.now();
    cluster.update(JOB, |job| {
        job["status"]["conditions"] = json!([{"type": type_, "status": "True", "lastTransitionTime": now}]);
    });
}

/// Plays the cluster's part of a good run, from wherever it is, and is harmless when repeated.
fn play(cluster: &FakeCluster) {
    if cluster
        .get(JOB)
        .is_some_and(|job| job["status"]["conditions"].is_null())
    {
        start_pods(cluster);
        for index in 0..2 {
            end_pod(cluster, index, 0, &message(cluster, index));
        }
        end_job(cluster, "Complete");
    }
}

#[tokio::test(start_paused = true)]
async fn a_good_life_from_start_to_silence() {
    let cluster = FakeCluster::new();
    put_pool(&cluster);
    let _operator = operator(&cluster);
    tokio::time::sleep(Duration::from_secs(1)).await;
    put_test(&cluster, json!({}));
    becomes(&cluster, "Pending", "").await;
    for path in [JOB, PLAN, RESULT, SERVICE] {
        assert!(cluster.get(path).is_some(), "{path}");
    }
    let plan: Value =
        serde_json::from_str(cluster.get(PLAN).unwrap()["data"]["plan.json"].as_str().unwrap()).unwrap();
    assert_eq!(
        plan["target"],
        json!({"url": "http://support.shop.svc", "protocol": "HTTP"})
    );
    start_pods(&cluster);
    becomes(&cluster, "Running", "").await;
    assert_eq!(cluster.get(TEST).unwrap()["status"]["workers"]["ready"], 2);

    end_pod(&cluster, 0, 0, &message(&cluster, 0));
    eventually("the first result is safe at once", MINUTE, || {
        let result = cluster.get(RESULT).unwrap();
        if result["data"]["worker-0"].is_string() {
            Ok(())
        } else {
            Err(result.to_string())
        }
    })
    .await;
    end_pod(&cluster, 1, 0, &message(&cluster, 1));
    end_job(&cluster, "Complete");
    becomes(&cluster, "Complete", "Passed").await;
    eventually("all but the result is gone", MINUTE, || {
        match cluster.paths("shop") {
            paths if paths.len() == 3 => Ok(()),
            paths => Err(format!("{paths:?}")),
        }
    })
    .await;
    let status = cluster.get(TEST).unwrap()["status"].clone();
    assert_eq!(status["summary"]["latency"]["p95Milliseconds"], 1000);
    assert_eq!(status["workers"]["coveragePercent"], "100.00");
    assert_eq!(condition(&cluster, "Succeeded"), "True");
    let result: Value = serde_json::from_str(
        cluster.get(RESULT).unwrap()["data"]["result.json"]
            .as_str()
            .unwrap(),
    )
    .unwrap();
    assert_eq!(result["verdict"], "Passed");

    tokio::time::sleep(MINUTE).await;
    let skip = cluster.request_count();
    tokio::time::sleep(10 * MINUTE).await;
    assert_eq!(
        cluster.requests(skip),
        Vec::<String>::new(),
        "a finished test costs nothing"
    );
}

/// Kills the operator at its n-th write, before it or right after it, for every n there is.
#[tokio::test(start_paused = true)]
async fn a_kill_at_any_write_loses_and_repeats_nothing() {
    for fault in [Fault::Refused, Fault::Lost] {
        let mut write = 0;
        loop {
            let cluster = FakeCluster::new();
            put_pool(&cluster);
            put_test(&cluster, json!({}));
            cluster.plan_fault(write, fault);
            let mut running = Some(operator(&cluster));
            let mut killed = false;
            for _ in 0..600 {
                tokio::time::sleep(Duration::from_millis(200)).await;
                if cluster.tripped() && !killed {
                    killed = true;
                    drop(running.take());
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    cluster.heal();
                    running = Some(operator(&cluster));
                }
                play(&cluster);
                if cluster.paths("shop").len() == 3 && state(&cluster).1 == "Passed" {
                    break;
                }
            }
            drop(running);
            let what = format!("{fault:?} write {write}");
            assert_eq!(
                state(&cluster).1,
                "Passed",
                "{what}: {:?} {:?}",
                state(&cluster),
                cluster.paths("shop")
            );
            assert_eq!(
                cluster.paths("shop").len(),
                3,
                "{what}: {:?}",
                cluster.paths("shop")
            );
            assert_eq!(
                cluster.made("/apis/batch/v1/jobs"),
                1,
                "{what}: one measurement and no other"
            );
            if !killed {
                assert!(write >= 9, "a life takes at least 9 writes, not {write}");
                break;
            }
            write += 1;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_missing_pool_is_waited_for_and_stalls_and_then_it_starts() {
    let cluster = FakeCluster::new();
    let _operator = operator(&cluster);
    put_test(&cluster, json!({}));
    becomes(&cluster, "WaitingForReference", "").await;
    assert_eq!(
        (condition(&cluster, "Reconciling"), condition(&cluster, "Stalled")),
        ("True".into(), "False".into())
    );
    tokio::time::sleep(11 * MINUTE).await;
    assert_eq!(condition(&cluster, "Stalled"), "True");
    put_pool(&cluster);
    becomes(&cluster, "Pending", "").await;
    assert_eq!(condition(&cluster, "Stalled"), "False");
}

#[tokio::test(start_paused = true)]
async fn prompts_of_config_maps_are_waited_for() {
    let cluster = FakeCluster::new();
    put_pool(&cluster);
    let _operator = operator(&cluster);
    let scenarios = json!([{"name": "a", "prompt": {"configMapKeyRef": {"name": "cases", "key": "a.txt"}}}]);
    put_test(&cluster, json!({"scenarios": scenarios}));
    becomes(&cluster, "WaitingForReference", "").await;
    let cases = "/api/v1/namespaces/shop/configmaps/cases";
    cluster.put(
        cases,
        json!({"metadata": {"name": "cases"}, "data": {"b.txt": "x"}}),
    );
    tokio::time::sleep(MINUTE).await;
    assert!(
        state(&cluster).2.contains("ConfigMap cases with key a.txt"),
        "{:?}",
        state(&cluster)
    );
    cluster.update(cases, |map| {
        map["data"]["a.txt"] = json!("Where is order {{order}}?")
    });
    becomes(&cluster, "Pending", "").await;
    let plan = cluster.get(PLAN).unwrap()["data"]["plan.json"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(plan.contains("Where is order"), "{plan}");
}

#[tokio::test(start_paused = true)]
async fn suspend_before_the_start_waits_and_after_it_stops_for_good() {
    let cluster = FakeCluster::new();
    put_pool(&cluster);
    let _operator = operator(&cluster);
    put_test(&cluster, json!({"suspend": true}));
    becomes(&cluster, "Suspended", "").await;
    assert!(cluster.get(JOB).is_none());
    cluster.update(TEST, |test| test["spec"]["suspend"] = json!(false));
    becomes(&cluster, "Pending", "").await;
    start_pods(&cluster);
    becomes(&cluster, "Running", "").await;
    cluster.update(TEST, |test| test["spec"]["suspend"] = json!(true));
    eventually("the Job is suspended", MINUTE, || match cluster.get(JOB) {
        Some(job) if job["spec"]["suspend"] == true => Ok(()),
        job => Err(format!("{job:?}")),
    })
    .await;
    // The user changes her mind, but a measurement with a hole is none.
    cluster.update(TEST, |test| test["spec"]["suspend"] = json!(false));
    end_pod(&cluster, 0, 0, &message(&cluster, 0));
    end_pod(&cluster, 1, 76, "");
    becomes(&cluster, "Stopped", "Invalid").await;
    eventually("the Job is gone", MINUTE, || {
        cluster.get(JOB).map_or(Ok(()), |job| Err(job.to_string()))
    })
    .await;
    assert_eq!(cluster.get(TEST).unwrap()["status"]["observedGeneration"], 4);
}

#[tokio::test(start_paused = true)]
async fn a_deleted_job_is_never_made_again_and_never_passes() {
    let cluster = FakeCluster::new();
    put_pool(&cluster);
    let _operator = operator(&cluster);
    put_test(&cluster, json!({}));
    becomes(&cluster, "Pending", "").await;
    start_pods(&cluster);
    becomes(&cluster, "Running", "").await;
    cluster.delete(JOB);
    becomes(&cluster, "Complete", "Invalid").await;
    assert!(
        state(&cluster).2.contains("the Job was deleted"),
        "{:?}",
        state(&cluster)
    );
    tokio::time::sleep(MINUTE).await;
    assert!(cluster.get(JOB).is_none());
}

#[tokio::test(start_paused = true)]
async fn a_lost_worker_is_missing_coverage() {
    let cluster = FakeCluster::new();
    put_pool(&cluster);
    let _operator = operator(&cluster);
    put_test(&cluster, json!({}));
    becomes(&cluster, "Pending", "").await;
    start_pods(&cluster);
    end_pod(&cluster, 0, 0, &message(&cluster, 0));
    end_pod(&cluster, 1, 137, "");
    end_job(&cluster, "Failed");
    becomes(&cluster, "Complete", "Invalid").await;
    let (_, _, message) = state(&cluster);
    assert!(
        message.contains("150 of 300") && message.contains("worker 1 ended with exit code 137"),
        "{message}"
    );
    assert_eq!(condition(&cluster, "Succeeded"), "False");
}

#[tokio::test(start_paused = true)]
async fn a_quota_is_named_while_waiting_and_in_the_verdict() {
    let cluster = FakeCluster::new();
    cluster.refuse_pods(Some("pods \"steady-0-probe\" is forbidden: exceeded quota: none"));
    put_pool(&cluster);
    let _operator = operator(&cluster);
    put_test(&cluster, json!({}));
    eventually("the quota is named", MINUTE, || match state(&cluster) {
        (reason, _, message) if reason == "Pending" && message.contains("exceeded quota: none") => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    becomes(&cluster, "QuotaExceeded", "Invalid").await;
    assert_eq!(
        (condition(&cluster, "Stalled"), condition(&cluster, "Complete")),
        ("True".into(), "True".into())
    );
    eventually("the Job is gone", MINUTE, || {
        cluster.get(JOB).map_or(Ok(()), |job| Err(job.to_string()))
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_taken_name_is_told_and_mended() {
    let cluster = FakeCluster::new();
    put_pool(&cluster);
    cluster.put(
        SERVICE,
        json!({"metadata": {"name": "steady-coordinator"}, "spec": {"selector": {"app": "other"}}}),
    );
    let _operator = operator(&cluster);
    put_test(&cluster, json!({}));
    becomes(&cluster, "NameTaken", "").await;
    assert!(
        state(&cluster).2.contains("steady-coordinator"),
        "{:?}",
        state(&cluster)
    );
    assert!(cluster.get(JOB).is_none());
    assert_eq!(cluster.get(SERVICE).unwrap()["spec"]["selector"]["app"], "other");
    cluster.delete(SERVICE);
    becomes(&cluster, "Pending", "").await;
}

#[tokio::test(start_paused = true)]
async fn an_impossible_test_ends_at_once() {
    let cluster = FakeCluster::new();
    put_pool(&cluster);
    let _operator = operator(&cluster);
    put_test(
        &cluster,
        json!({"scenarios": [{"name": "a", "prompt": {"text": "{{ordr}}"}}]}),
    );
    becomes(&cluster, "InvalidSpec", "Invalid").await;
    assert!(
        state(&cluster).2.contains("create a new one"),
        "{:?}",
        state(&cluster)
    );
    assert_eq!(cluster.paths("shop").len(), 2, "nothing was made");
}

#[tokio::test(start_paused = true)]
async fn a_finished_test_goes_after_its_ttl() {
    let cluster = FakeCluster::new();
    put_pool(&cluster);
    put_test(&cluster, json!({"ttlSecondsAfterFinished": 300}));
    let _operator = operator(&cluster);
    becomes(&cluster, "Pending", "").await;
    play(&cluster);
    becomes(&cluster, "Complete", "Passed").await;
    tokio::time::sleep(4 * MINUTE).await;
    assert!(cluster.get(TEST).is_some());
    tokio::time::sleep(2 * MINUTE).await;
    assert!(cluster.get(TEST).is_none() && cluster.get(RESULT).is_none());
}
