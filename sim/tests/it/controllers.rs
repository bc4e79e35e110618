//! What the simulated controllers do, by themselves.

use std::sync::Arc;
use std::time::Duration;

use flotilla_sim::Cluster;
use flotilla_sim::controllers::{Controllers, Fate};
use serde_json::{Value, json};
use tokio::time::sleep;

const DEPLOYMENT: &str = "/apis/apps/v1/namespaces/shop/deployments/web";
const JOB: &str = "/apis/batch/v1/namespaces/shop/jobs/work";
const PODS: &str = "/api/v1/namespaces/shop/pods";

fn cluster(fate: impl Fn(&Value) -> Fate + Send + Sync + 'static) -> (Cluster, Controllers) {
    let cluster = Cluster::new(3);
    cluster.namespace("shop");
    let controllers = Controllers::start(&cluster, Arc::new(move |_: &Cluster, pod: &Value| fate(pod)));
    (cluster, controllers)
}

fn image(pod: &Value) -> &str {
    pod["spec"]["containers"][0]["image"].as_str().unwrap_or_default()
}

fn deployment(image: &str) -> Value {
    json!({
        "metadata": {"name": "web"},
        "spec": {
            "replicas": 2, "selector": {"matchLabels": {"app": "web"}}, "progressDeadlineSeconds": 60,
            "strategy": {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": image}]}},
        },
    })
}

#[tokio::test(start_paused = true)]
async fn a_deployment_rolls_without_ever_having_too_few() {
    let (cluster, _controllers) = cluster(|_| Fate::Ready(Duration::from_secs(1)));
    cluster
        .create("/apis/apps/v1/namespaces/shop/deployments", &deployment("i:1"))
        .unwrap();
    sleep(Duration::from_secs(10)).await;
    assert_eq!(cluster.get(DEPLOYMENT).unwrap()["status"]["availableReplicas"], 2);
    cluster
        .patch(
            DEPLOYMENT,
            json!({"spec": {"template": deployment("i:2")["spec"]["template"]}}),
        )
        .unwrap();
    for _ in 0..300 {
        sleep(Duration::from_millis(100)).await;
        let pods = cluster.list(PODS);
        let ready = |pod: &&Value| {
            let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
            let mut ready = conditions.filter(|condition| condition["type"] == "Ready");
            ready.any(|condition| condition["status"] == "True")
                && pod["metadata"]["deletionTimestamp"].is_null()
        };
        assert!(pods.iter().filter(ready).count() >= 2);
    }
    let status = cluster.get(DEPLOYMENT).unwrap()["status"].clone();
    assert_eq!(
        (&status["updatedReplicas"], &status["replicas"]),
        (&json!(2), &json!(2)),
        "{status:#}"
    );
    assert!(cluster.list(PODS).iter().all(|pod| image(pod) == "i:2"));
}

#[tokio::test(start_paused = true)]
async fn a_deployment_that_does_not_move_says_so() {
    let (cluster, _controllers) = cluster(|pod| match image(pod) {
        "i:1" => Fate::Ready(Duration::ZERO),
        _ => Fate::ImagePull("no such image".into()),
    });
    cluster
        .create("/apis/apps/v1/namespaces/shop/deployments", &deployment("i:9"))
        .unwrap();
    sleep(Duration::from_secs(90)).await;
    let conditions = cluster.get(DEPLOYMENT).unwrap()["status"]["conditions"].clone();
    let progressing = conditions
        .as_array()
        .into_iter()
        .flatten()
        .find(|condition| condition["type"] == "Progressing");
    assert_eq!(
        progressing.unwrap()["reason"],
        "ProgressDeadlineExceeded",
        "{conditions:#}"
    );
    cluster
        .patch(
            DEPLOYMENT,
            json!({"spec": {"template": deployment("i:1")["spec"]["template"]}}),
        )
        .unwrap();
    sleep(Duration::from_secs(20)).await;
    assert_eq!(cluster.get(DEPLOYMENT).unwrap()["status"]["availableReplicas"], 2);
}

fn job(spec: Value) -> Value {
    let mut job = json!({"metadata": {"name": "work"}, "spec": {
        "completionMode": "Indexed", "completions": 3, "parallelism": 3, "backoffLimitPerIndex": 0,
        "podFailurePolicy": {"rules": [
            {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [64]}},
            {"action": "Ignore", "onExitCodes": {"operator": "In", "values": [75]}},
        ]},
        "template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}},
    }});
    for (field, value) in spec.as_object().into_iter().flatten() {
        job["spec"][field] = value.clone();
    }
    job
}

fn exits(code: i64) -> Fate {
    Fate::Exits {
        after: Duration::from_secs(5),
        code,
        message: "done".into(),
    }
}

fn ended(cluster: &Cluster) -> Vec<String> {
    let conditions = cluster.get(JOB).unwrap()["status"]["conditions"].clone();
    let conditions = conditions.as_array().cloned().unwrap_or_default();
    conditions
        .iter()
        .filter(|condition| condition["status"] == "True")
        .map(|condition| condition["type"].as_str().unwrap().to_owned())
        .collect()
}

#[tokio::test(start_paused = true)]
async fn an_indexed_job_runs_each_index_once() {
    let (cluster, _controllers) = cluster(|_| exits(0));
    cluster
        .create("/apis/batch/v1/namespaces/shop/jobs", &job(json!({})))
        .unwrap();
    sleep(Duration::from_secs(30)).await;
    assert_eq!(ended(&cluster), ["SuccessCriteriaMet", "Complete"]);
    assert_eq!(cluster.get(JOB).unwrap()["status"]["completedIndexes"], "0-2");
    assert_eq!(cluster.counts(PODS), (3, 0));
    let message = "/status/containerStatuses/0/state/terminated/message";
    assert!(
        cluster
            .list(PODS)
            .iter()
            .all(|pod| pod.pointer(message) == Some(&json!("done")))
    );
    cluster.delete(JOB).unwrap();
    sleep(Duration::from_secs(2)).await;
    assert_eq!(cluster.list(PODS), Vec::<Value>::new());
}

#[tokio::test(start_paused = true)]
async fn a_hopeless_exit_code_fails_the_job() {
    let (hopeless, _controllers) = cluster(|_| exits(64));
    hopeless
        .create("/apis/batch/v1/namespaces/shop/jobs", &job(json!({})))
        .unwrap();
    sleep(Duration::from_secs(60)).await;
    assert_eq!(ended(&hopeless), ["FailureTarget", "Failed"]);
}

/// Open: the Job keeps `FailureTarget` and is never `Failed` after its deadline when its failed pods are ignored.
#[ignore = "the simulated Job controller does not finish such a Job yet"]
#[tokio::test(start_paused = true)]
async fn a_job_past_its_deadline_fails() {
    let (ignored, _controllers) = cluster(|_| exits(75));
    ignored
        .create(
            "/apis/batch/v1/namespaces/shop/jobs",
            &job(json!({"activeDeadlineSeconds": 30})),
        )
        .unwrap();
    sleep(Duration::from_secs(60)).await;
    assert_eq!(ended(&ignored), ["FailureTarget", "Failed"]);
    assert!(ignored.counts(PODS).0 > 3, "each index was tried again");
}

#[tokio::test(start_paused = true)]
async fn a_suspended_job_has_no_pods_until_it_is_resumed() {
    let (cluster, _controllers) = cluster(|_| exits(0));
    cluster
        .create(
            "/apis/batch/v1/namespaces/shop/jobs",
            &job(json!({"suspend": true})),
        )
        .unwrap();
    sleep(Duration::from_secs(10)).await;
    assert_eq!(
        (cluster.counts(PODS).0, ended(&cluster)),
        (0, vec!["Suspended".to_owned()])
    );
    cluster.patch(JOB, json!({"spec": {"suspend": false}})).unwrap();
    sleep(Duration::from_secs(30)).await;
    assert_eq!(ended(&cluster), ["SuccessCriteriaMet", "Complete"]);
}

#[tokio::test(start_paused = true)]
async fn a_namespace_goes_with_all_that_is_in_it() {
    let (cluster, _controllers) = cluster(|_| Fate::Ready(Duration::ZERO));
    cluster
        .create("/apis/apps/v1/namespaces/shop/deployments", &deployment("i:1"))
        .unwrap();
    sleep(Duration::from_secs(5)).await;
    cluster.delete("/api/v1/namespaces/shop").unwrap();
    let refused = cluster.create(
        "/api/v1/namespaces/shop/configmaps",
        &json!({"metadata": {"name": "late"}}),
    );
    assert_eq!(refused.unwrap_err().code, 403);
    sleep(Duration::from_secs(60)).await;
    assert_eq!(cluster.paths("shop"), Vec::<String>::new());
    assert!(cluster.get("/api/v1/namespaces/shop").is_none());
}

#[tokio::test(start_paused = true)]
async fn orphans_are_let_go_and_foreground_waits() {
    let (cluster, _controllers) = cluster(|_| Fate::Ready(Duration::ZERO));
    let sets = "/apis/apps/v1/namespaces/shop/replicasets";
    let set = |name: &str| {
        json!({"metadata": {"name": name}, "spec": {
            "replicas": 1, "selector": {"matchLabels": {"of": name}},
            "template": {"metadata": {"labels": {"of": name}}, "spec": {"containers": [{"name": "c", "image": "i"}]}},
        }})
    };
    for name in ["orphan", "front"] {
        cluster.create(sets, &set(name)).unwrap();
    }
    sleep(Duration::from_secs(5)).await;
    for (name, policy) in [("orphan", "Orphan"), ("front", "Foreground")] {
        let path = format!("{sets}/{name}");
        cluster
            .request(http::Method::DELETE, &path, json!({"propagationPolicy": policy}))
            .unwrap();
    }
    assert!(
        cluster.get(&format!("{sets}/front")).is_some(),
        "it waits for its pods"
    );
    sleep(Duration::from_secs(30)).await;
    assert_eq!(cluster.list(sets), Vec::<Value>::new());
    let left = cluster.list(PODS);
    assert_eq!(left.len(), 1);
    assert_eq!(left[0]["metadata"]["labels"]["of"], "orphan");
    assert!(left[0]["metadata"]["ownerReferences"].is_null());
}
