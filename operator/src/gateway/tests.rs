//! The whole controller on an API server in memory, under virtual time. The test plays the Deployment controller.

use std::time::Duration;

use serde_json::{Value, json};

use super::{GatewayHealth, Settings, register};
use crate::caches::Caches;
use crate::fakecluster::{FakeCluster, Running, eventually};

const MINUTE: Duration = Duration::from_secs(60);

fn operator_with(cluster: &FakeCluster, image: &str) -> (Running, GatewayHealth) {
    let mut manager = cluster.manager();
    let caches = Caches::new(&mut manager);
    let health = GatewayHealth::default();
    let settings = Settings {
        image: image.into(),
        replicas: 2,
        env: vec![],
        upgrade_parallelism: 2,
    };
    register(&mut manager, &caches, settings, health.clone());
    (Running::start(manager), health)
}

fn deployment(namespace: &str) -> String {
    format!("/apis/apps/v1/namespaces/{namespace}/deployments/flotilla-gateway")
}

fn pool_path(namespace: &str, name: &str) -> String {
    format!("/apis/flotilla.dev/v1alpha1/namespaces/{namespace}/agentpools/{name}")
}

fn put_pool(cluster: &FakeCluster, namespace: &str, name: &str) {
    let models = json!([{"name": "default", "providerRef": {"name": "main"}, "model": "m"}]);
    let spec = json!({"agent": {"image": "a", "models": models}});
    cluster.put(
        &pool_path(namespace, name),
        json!({"metadata": {"name": name}, "spec": spec}),
    );
}

fn put_provider(cluster: &FakeCluster, namespace: &str, name: &str) {
    let auth = json!({"type": "APIKey", "apiKey": {"secretKeyRef": {"name": "keys", "key": name}}});
    let path = format!("/apis/flotilla.dev/v1alpha1/namespaces/{namespace}/modelproviders/{name}");
    cluster.put(
        &path,
        json!({"metadata": {"name": name}, "spec": {"endpoint": "https://m/v1", "auth": auth}}),
    );
}

/// Every pod of the newest template is there.
fn settle(cluster: &FakeCluster, namespace: &str) {
    cluster.update(&deployment(namespace), |object| {
        object["status"] = json!({
            "observedGeneration": object["metadata"]["generation"],
            "replicas": 2, "updatedReplicas": 2, "availableReplicas": 2, "readyReplicas": 2,
        });
    });
}

fn volumes(cluster: &FakeCluster, namespace: &str) -> Vec<String> {
    let volumes = cluster.get(&deployment(namespace)).unwrap()["spec"]["template"]["spec"]["volumes"].clone();
    volumes
        .as_array()
        .into_iter()
        .flatten()
        .map(|volume| volume["name"].as_str().unwrap().to_owned())
        .collect()
}

async fn exists(cluster: &FakeCluster, path: &str) {
    eventually(path, MINUTE, || {
        cluster
            .get(path)
            .map(drop)
            .ok_or_else(|| format!("{:?}", cluster.paths("shop")))
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn one_gateway_per_namespace_with_pools_and_silence() {
    let cluster = FakeCluster::new();
    let (_operator, _) = operator_with(&cluster, "gateway:1");
    put_provider(&cluster, "shop", "main");
    put_pool(&cluster, "shop", "support");
    tokio::time::sleep(Duration::from_secs(1)).await;
    for path in [
        deployment("shop"),
        "/api/v1/namespaces/shop/services/flotilla-gateway".into(),
        "/api/v1/namespaces/shop/serviceaccounts/flotilla-gateway".into(),
        "/apis/rbac.authorization.k8s.io/v1/namespaces/shop/rolebindings/flotilla-gateway".into(),
        "/apis/policy/v1/namespaces/shop/poddisruptionbudgets/flotilla-gateway".into(),
    ] {
        assert!(cluster.get(&path).is_some(), "{path} is not there after a second");
    }
    assert_eq!(volumes(&cluster, "shop"), ["key-main"]);
    settle(&cluster, "shop");
    put_provider(&cluster, "lab", "main");
    tokio::time::sleep(MINUTE).await;
    assert!(
        cluster.get(&deployment("lab")).is_none(),
        "a provider alone needs no gateway"
    );
    let skip = cluster.request_count();
    tokio::time::sleep(10 * MINUTE).await;
    assert_eq!(cluster.requests(skip), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn providers_applied_together_are_one_rollout() {
    let cluster = FakeCluster::new();
    let (_operator, _) = operator_with(&cluster, "gateway:1");
    put_provider(&cluster, "shop", "main");
    put_pool(&cluster, "shop", "support");
    exists(&cluster, &deployment("shop")).await;
    settle(&cluster, "shop");
    for number in 0..10 {
        put_provider(&cluster, "shop", &format!("p{number}"));
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(volumes(&cluster, "shop").len(), 11);
    assert_eq!(
        cluster.get(&deployment("shop")).unwrap()["metadata"]["generation"],
        2
    );
}

#[tokio::test(start_paused = true)]
async fn a_provider_that_comes_a_moment_after_the_pool_is_in_the_first_template() {
    let cluster = FakeCluster::new();
    let (_operator, _) = operator_with(&cluster, "gateway:1");
    put_pool(&cluster, "shop", "support");
    tokio::time::sleep(Duration::from_millis(300)).await;
    put_provider(&cluster, "shop", "main");
    exists(&cluster, &deployment("shop")).await;
    assert_eq!(volumes(&cluster, "shop"), ["key-main"]);
    put_pool(&cluster, "lab", "lonely");
    exists(&cluster, &deployment("lab")).await;
}

#[tokio::test(start_paused = true)]
async fn the_gateway_goes_with_the_last_pool() {
    let cluster = FakeCluster::new();
    let (_operator, _) = operator_with(&cluster, "gateway:1");
    put_provider(&cluster, "shop", "main");
    put_pool(&cluster, "shop", "a");
    exists(&cluster, &deployment("shop")).await;
    put_pool(&cluster, "shop", "b");
    eventually("both pools own it", MINUTE, || {
        let owners = cluster.get(&deployment("shop")).unwrap()["metadata"]["ownerReferences"].clone();
        if owners.as_array().is_some_and(|owners| owners.len() == 2) {
            Ok(())
        } else {
            Err(owners.to_string())
        }
    })
    .await;
    cluster.delete(&pool_path("shop", "a"));
    tokio::time::sleep(MINUTE).await;
    let owners = cluster.get(&deployment("shop")).unwrap()["metadata"]["ownerReferences"].clone();
    assert_eq!(
        (owners[0]["name"].as_str(), owners.as_array().map(Vec::len)),
        (Some("b"), Some(1))
    );
    cluster.delete(&pool_path("shop", "b"));
    tokio::time::sleep(MINUTE).await;
    let left = cluster.paths("shop");
    assert_eq!(left.len(), 1, "only the provider is left: {left:?}");
}

#[tokio::test(start_paused = true)]
async fn what_others_change_is_put_right() {
    let cluster = FakeCluster::new();
    let (_operator, _) = operator_with(&cluster, "gateway:1");
    put_provider(&cluster, "shop", "main");
    put_pool(&cluster, "shop", "support");
    exists(&cluster, &deployment("shop")).await;
    cluster.update(&deployment("shop"), |object| {
        object["spec"]["template"]["spec"]["containers"][0]["image"] = json!("evil:1")
    });
    cluster.delete("/api/v1/namespaces/shop/services/flotilla-gateway");
    exists(&cluster, "/api/v1/namespaces/shop/services/flotilla-gateway").await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let image =
        cluster.get(&deployment("shop")).unwrap()["spec"]["template"]["spec"]["containers"][0]["image"]
            .clone();
    assert_eq!(image, "gateway:1");
}

#[tokio::test(start_paused = true)]
async fn a_name_that_is_taken_is_told_and_left_alone_and_mended() {
    let cluster = FakeCluster::new();
    let (_operator, health) = operator_with(&cluster, "gateway:1");
    cluster.put(
        &deployment("shop"),
        json!({"metadata": {"name": "flotilla-gateway"}, "spec": {"replicas": 7}}),
    );
    put_provider(&cluster, "shop", "main");
    put_pool(&cluster, "shop", "support");
    eventually("NameTaken", MINUTE, || match health.get("shop") {
        Some(problem) if problem.reason == "NameTaken" => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    assert_eq!(cluster.get(&deployment("shop")).unwrap()["spec"]["replicas"], 7);
    cluster.delete(&deployment("shop"));
    exists(&cluster, &deployment("shop")).await;
    settle(&cluster, "shop");
    eventually("health", MINUTE, || {
        health
            .get("shop")
            .map_or(Ok(()), |problem| Err(format!("{problem:?}")))
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_upgrade_rolls_two_namespaces_at_a_time_and_a_stuck_one_blocks_nobody() {
    let cluster = FakeCluster::new();
    let names = ["a", "b", "c", "d", "e"];
    {
        let (_operator, _) = operator_with(&cluster, "gateway:1");
        for namespace in names {
            put_provider(&cluster, namespace, "main");
            put_pool(&cluster, namespace, "support");
        }
        tokio::time::sleep(Duration::from_secs(10)).await;
        names.iter().for_each(|namespace| settle(&cluster, namespace));
    }
    let is_new = |namespace: &str| {
        let template: Value = cluster.get(&deployment(namespace)).unwrap()["spec"]["template"].clone();
        template["spec"]["containers"][0]["image"] == "gateway:2"
    };
    let new = || names.iter().filter(|namespace| is_new(namespace)).count();
    let (_operator, _) = operator_with(&cluster, "gateway:2");
    tokio::time::sleep(MINUTE).await;
    assert_eq!(new(), 2, "two roll, and as long as they do, no other");
    let first: Vec<&str> = names.into_iter().filter(|namespace| is_new(namespace)).collect();
    settle(&cluster, first[0]);
    tokio::time::sleep(MINUTE).await;
    assert_eq!(new(), 3);
    // The second never gets its pods.
    cluster.update(&deployment(first[1]), |object| {
        object["status"]["conditions"] =
            json!([{"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}]);
    });
    for _ in 0..4 {
        tokio::time::sleep(MINUTE).await;
        names
            .iter()
            .filter(|namespace| is_new(namespace) && **namespace != first[1])
            .for_each(|namespace| settle(&cluster, namespace));
    }
    assert_eq!(new(), 5);
}
