//! That each rule is told when it is broken.

use http::Method;
use serde_json::json;

use super::*;

const POOLS: &str = "/apis/flotilla.dev/v1alpha1/namespaces/default/agentpools";

fn pool() -> Cluster {
    let cluster = Cluster::new(1);
    let spec = json!({"replicas": 2, "agent": {"image": "a"}});
    cluster
        .create(POOLS, &json!({"metadata": {"name": "p"}, "spec": spec}))
        .unwrap();
    cluster
}

fn say(cluster: &Cluster, generation: i64, traffic: Value) {
    let condition = |type_: &str, status: &str| json!({"type": type_, "status": status, "reason": "R", "message": "m", "lastTransitionTime": "2027-01-15T08:00:00Z"});
    let status = json!({
        "observedGeneration": 1, "trafficGeneration": generation, "traffic": traffic,
        "conditions": [condition("Ready", "True"), condition("Reconciling", "False"), condition("Stalled", "False")],
    });
    let path = format!("{POOLS}/p/status");
    cluster
        .request(Method::PATCH, &path, json!({"status": status}))
        .unwrap();
}

fn record(cluster: &Cluster, name: &str, state: &str) {
    let uid = cluster.get(&format!("{POOLS}/p")).unwrap()["metadata"]["uid"].clone();
    let owner = json!({"apiVersion": "flotilla.dev/v1alpha1", "kind": "AgentPool", "name": "p", "uid": uid, "controller": true});
    let record = json!({
        "metadata": {
            "name": name, "ownerReferences": [owner],
            "labels": {names::POOL: "p", names::REVISION_STATE: state},
        },
        "revision": 1, "data": {},
    });
    cluster
        .create("/apis/apps/v1/namespaces/default/controllerrevisions", &record)
        .unwrap();
}

fn rules(cluster: &Cluster) -> Vec<String> {
    let found = violations(cluster, &[], 0);
    found
        .iter()
        .filter_map(|line| line.split_once(':'))
        .map(|(rule, _)| rule.to_owned())
        .collect()
}

fn share(revision: &str, weight: i64) -> Value {
    json!({"revision": revision, "weight": weight})
}

#[tokio::test(start_paused = true)]
async fn what_is_right_is_not_reported() {
    let cluster = pool();
    record(&cluster, "p-1", "stable");
    say(&cluster, 1, json!([share("p-1", 100)]));
    assert_eq!(rules(&cluster), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn weights_capacity_and_generation_are_watched() {
    let cluster = pool();
    record(&cluster, "p-1", "stable");
    record(&cluster, "p-2", "rejected");
    say(&cluster, 1, json!([share("p-1", 100)]));
    say(&cluster, 1, json!([share("p-1", 60), share("p-2", 50)]));
    // No pod runs, so nobody could carry it better: no word about capacity.
    assert_eq!(rules(&cluster), ["generation", "weights", "rejected"]);
}

#[tokio::test(start_paused = true)]
async fn a_pool_never_loses_its_stable_revision() {
    let cluster = pool();
    record(&cluster, "p-1", "stable");
    let path = "/apis/apps/v1/namespaces/default/controllerrevisions/p-1";
    let verified = json!({"metadata": {"labels": {names::REVISION_STATE: "verified"}}});
    cluster.patch(path, verified).unwrap();
    assert_eq!(rules(&cluster), ["standing"]);
}

#[tokio::test(start_paused = true)]
async fn evidence_belongs_to_one_release_and_only_grows() {
    let cluster = pool();
    record(&cluster, "p-1", "stable");
    record(&cluster, "p-2", "candidate");
    let keep = |candidate: &str, requests: i64| {
        let release = json!({"candidate": {"requests": requests}, "stable": {"requests": 1}});
        let evidence = json!({
            "key": {"stable": "p-1", "candidate": candidate, "attempt": 1}, "metrics": {"errors": {"release": release}},
        });
        let case = json!({"firstEpoch": 1, "evidence": evidence.to_string()});
        json!({"metadata": {"name": "p-evidence"}, "data": {"checkpoint.json": case.to_string()}})
    };
    let maps = "/api/v1/namespaces/default/configmaps";
    cluster.create(maps, &keep("p-2", 5)).unwrap();
    cluster
        .patch(&format!("{maps}/p-evidence"), keep("p-2", 4))
        .unwrap();
    cluster
        .patch(&format!("{maps}/p-evidence"), keep("p-9", 4))
        .unwrap();
    assert_eq!(rules(&cluster), ["evidence", "evidence"]);
}
