//! Releases whose evidence cannot be kept: the controller on an API server in memory.

use flotilla_crds::names;
use serde_json::json;

use super::controller::{MINUTE, PODS, POOL, change, objects, operator, outcome, play, reach};
use super::trials::canary;
use crate::fakecluster::{FakeCluster, eventually};

const EVIDENCE: &str = "/api/v1/namespaces/shop/configmaps/support-evidence";

#[tokio::test(start_paused = true)]
async fn evidence_that_cannot_be_kept_holds_the_release_but_not_a_crash_loop() {
    for (forbidden, word, part) in [
        (
            None,
            "NameTaken",
            "cannot be saved, so the release waits: ConfigMap support-evidence exists and belongs to nobody",
        ),
        (
            Some(403),
            "Refused",
            "cannot be read, so the release waits: failed to read",
        ),
        (
            Some(503),
            "Unavailable",
            "cannot be read, so the release waits: failed to read",
        ),
    ] {
        let cluster = canary(json!([]));
        cluster.update(POOL, |pool| {
            pool["spec"]["rollout"]["analysis"] = json!({"warmupSeconds": 0})
        });
        match forbidden {
            Some(code) => cluster.forbid(EVIDENCE, code),
            None => {
                let theirs = json!({"metadata": {"name": "support-evidence"}, "data": {"theirs": "1"}});
                cluster.put(EVIDENCE, theirs);
            }
        }
        let _running = operator(&cluster);
        reach(&cluster, "Ready").await;
        change(&cluster, "/spec/agent/image", json!("agent:2"));
        reach(&cluster, word).await;
        let waiting = cluster.get(POOL).unwrap()["status"]["rollout"]["waitingFor"]["message"].clone();
        assert!(waiting.as_str().unwrap().contains(part), "{waiting}");
        if forbidden.is_none() {
            assert_eq!(cluster.get(EVIDENCE).unwrap()["data"], json!({"theirs": "1"}));
        }
        crash_candidate(&cluster);
        reach(&cluster, "CrashLoop").await;
    }
}

#[tokio::test(start_paused = true)]
async fn evidence_that_cannot_be_understood_begins_anew_and_that_is_told() {
    let cluster = canary(json!([]));
    let running = operator(&cluster);
    reach(&cluster, "Ready").await;
    let uid = cluster.get(POOL).unwrap()["metadata"]["uid"].clone();
    cluster.put(
        EVIDENCE,
        json!({
            "metadata": {"name": "support-evidence", "ownerReferences": [{
                "apiVersion": "flotilla.dev/v1alpha1", "kind": "AgentPool", "name": "support", "uid": uid, "controller": true,
            }]},
            "data": {"checkpoint.json": "{\"firstEpoch\": \"soon\"}"},
        }),
    );
    change(&cluster, "/spec/agent/image", json!("agent:2"));
    eventually("it is told", MINUTE, || {
        play(&cluster);
        match cluster.events("support") {
            events if events.contains(&"EvidenceReset".to_owned()) => Ok(()),
            events => Err(format!("{events:?}")),
        }
    })
    .await;
    reach(&cluster, "Ready").await;
    assert_eq!(
        outcome(&cluster),
        "agent:1=0 agent:2=2 | agent:1:verified agent:2:stable | 100"
    );
    drop(running);
}

/// The candidate's pods begin to crash.
fn crash_candidate(cluster: &FakeCluster) {
    let crashed = json!({"podIP": "10.1.9.9", "conditions": [{"type": "Ready", "status": "False"}], "containerStatuses": [{
        "name": "agent", "image": "agent:2", "imageID": "", "ready": false, "restartCount": 3,
        "lastState": {"terminated": {"exitCode": 1, "reason": "Error", "message": "out"}},
    }]});
    let candidate = cluster.get(POOL).unwrap()["status"]["candidate"]["revision"].clone();
    for pod in objects(cluster, PODS) {
        if pod["metadata"]["labels"][names::REVISION] == candidate {
            let path = format!("{PODS}/{}", pod["metadata"]["name"].as_str().unwrap());
            cluster.update(&path, |pod| pod["status"] = crashed.clone());
        }
    }
}
