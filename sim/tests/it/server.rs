//! The server through kube's own client: what the operator relies on.

use std::time::Duration;

use flotilla_sim::Cluster;
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{
    DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions, WatchEvent, WatchParams,
};
use kube::core::PartialObjectMeta;
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};

fn api() -> (Cluster, Api<ConfigMap>) {
    let cluster = Cluster::new(1);
    cluster.namespace("shop");
    let client = Client::new(cluster.service(), "default");
    (cluster, Api::namespaced(client, "shop"))
}

fn map(name: &str, data: Value) -> ConfigMap {
    serde_json::from_value(json!({"metadata": {"name": name}, "data": data})).unwrap()
}

fn code(error: kube::Error) -> u16 {
    match error {
        kube::Error::Api(status) => status.code,
        other => panic!("{other}"),
    }
}

#[tokio::test(start_paused = true)]
async fn versions_and_uids_guard_writes() {
    let (_, api) = api();
    let one = api
        .create(&PostParams::default(), &map("a", json!({"k": "1"})))
        .await
        .unwrap();
    assert_eq!(
        code(
            api.create(&PostParams::default(), &map("a", json!({})))
                .await
                .unwrap_err()
        ),
        409
    );
    let mut two = one.clone();
    two.data.get_or_insert_default().insert("k".into(), "2".into());
    let two = api.replace("a", &PostParams::default(), &two).await.unwrap();
    assert_ne!(one.resource_version(), two.resource_version());
    assert_eq!(
        code(api.replace("a", &PostParams::default(), &one).await.unwrap_err()),
        409
    );
    let same = api.replace("a", &PostParams::default(), &two).await.unwrap();
    assert_eq!(same.resource_version(), two.resource_version(), "nothing changed");
    let other = json!({"metadata": {"uid": "11111111-1111-4111-8111-111111111111"}, "data": {"k": "3"}});
    let refused = api
        .patch("a", &PatchParams::default(), &Patch::Merge(&other))
        .await
        .unwrap_err();
    assert_eq!(code(refused), 422);
    let wrong = DeleteParams::default().preconditions(Preconditions {
        uid: Some("x".into()),
        resource_version: None,
    });
    assert_eq!(code(api.delete("a", &wrong).await.unwrap_err()), 409);
    api.delete("a", &DeleteParams::default()).await.unwrap();
    assert_eq!(code(api.get("a").await.unwrap_err()), 404);
    let apply = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "uid": one.uid()}});
    let refused = api
        .patch("a", &PatchParams::apply("x").force(), &Patch::Apply(&apply))
        .await
        .unwrap_err();
    assert_eq!(
        code(refused),
        409,
        "an apply with a UID brings nothing back to life"
    );
}

#[tokio::test(start_paused = true)]
async fn lists_come_in_pages_of_one_version() {
    let (cluster, api) = api();
    for index in 0..5 {
        api.create(&PostParams::default(), &map(&format!("m{index}"), json!({})))
            .await
            .unwrap();
    }
    let first = api.list(&ListParams::default().limit(2)).await.unwrap();
    assert_eq!(first.items.len(), 2);
    assert_eq!(first.metadata.remaining_item_count, Some(3));
    api.delete("m3", &DeleteParams::default()).await.unwrap();
    let token = first.metadata.continue_.unwrap();
    let rest = api
        .list(&ListParams::default().continue_token(&token))
        .await
        .unwrap();
    let names: Vec<String> = rest.items.iter().map(ResourceExt::name_any).collect();
    assert_eq!(names, ["m2", "m3", "m4"], "as of the first page");
    assert_eq!(rest.metadata.resource_version, first.metadata.resource_version);
    cluster.compact();
    let late = api
        .list(&ListParams::default().continue_token(&token))
        .await
        .unwrap_err();
    assert_eq!(code(late), 410);
}

#[tokio::test(start_paused = true)]
async fn watches_tell_changes_bookmarks_and_what_is_too_old() {
    let (cluster, api) = api();
    api.create(&PostParams::default(), &map("a", json!({})))
        .await
        .unwrap();
    let from = api
        .list(&ListParams::default())
        .await
        .unwrap()
        .metadata
        .resource_version
        .unwrap();
    let labels = json!({"metadata": {"labels": {"app": "x"}}});
    api.patch("a", &PatchParams::default(), &Patch::Merge(&labels))
        .await
        .unwrap();
    let bare = json!({"metadata": {"labels": null}});
    api.patch("a", &PatchParams::default(), &Patch::Merge(&bare))
        .await
        .unwrap();
    let selected = WatchParams::default().labels("app=x").timeout(30);
    let events: Vec<_> = api.watch(&selected, &from).await.unwrap().collect().await;
    let words: Vec<&str> = events
        .iter()
        .map(|event| match event.as_ref().unwrap() {
            WatchEvent::Added(_) => "added",
            WatchEvent::Modified(_) => "modified",
            WatchEvent::Deleted(_) => "deleted",
            WatchEvent::Bookmark(_) => "bookmark",
            WatchEvent::Error(_) => "error",
        })
        .collect();
    assert_eq!(words, ["added", "deleted", "bookmark"]);
    cluster.compact();
    let mut late = api.watch(&selected, &from).await.unwrap().boxed();
    assert!(matches!(late.next().await, Some(Ok(WatchEvent::Error(status))) if status.code == 410));
}

#[tokio::test(start_paused = true)]
async fn metadata_is_served_alone() {
    let cluster = Cluster::new(1);
    cluster
        .create(
            "/api/v1/namespaces/default/configmaps",
            &json!({"metadata": {"name": "a"}, "data": {"k": "v"}}),
        )
        .unwrap();
    let client = Client::new(cluster.service(), "default");
    let api: Api<PartialObjectMeta<ConfigMap>> = Api::all(client);
    let list = api.list(&ListParams::default()).await.unwrap();
    assert_eq!(list.items[0].name_any(), "a");
}

#[tokio::test(start_paused = true)]
async fn our_kinds_are_defaulted_checked_and_counted() {
    let cluster = Cluster::new(1);
    let pools = "/apis/flotilla.dev/v1alpha1/namespaces/default/agentpools";
    let made = cluster
        .create(
            pools,
            &json!({"metadata": {"name": "p"}, "spec": {"agent": {"image": "a"}}, "status": {"replicas": 9}}),
        )
        .unwrap();
    assert!(made["spec"]["replicas"].is_number(), "{made:#}");
    assert_eq!(made["metadata"]["generation"], 1);
    assert_eq!(
        made["status"],
        json!({"observedGeneration": -1}),
        "the default, not what was sent"
    );
    let path = format!("{pools}/p");
    let scaled = cluster
        .patch(&format!("{path}/scale"), json!({"spec": {"replicas": 3}}))
        .unwrap();
    assert_eq!(scaled["spec"]["replicas"], 3);
    let status = cluster
        .patch(
            &format!("{path}/status"),
            json!({"spec": {"replicas": 7}, "status": {"replicas": 1}}),
        )
        .unwrap();
    assert_eq!(
        (&status["spec"]["replicas"], &status["metadata"]["generation"]),
        (&json!(3), &json!(2))
    );
    for wrong in [
        json!({"metadata": {"name": "q"}, "spec": {}}),
        json!({"metadata": {"name": "q"}, "spec": {"agent": {"image": "a"}, "replicas": -1}}),
        json!({"metadata": {"name": "flotilla-gateway"}, "spec": {"agent": {"image": "a"}}}),
    ] {
        assert_eq!(cluster.create(pools, &wrong).unwrap_err().code, 422, "{wrong}");
    }
}

#[tokio::test(start_paused = true)]
async fn finalizers_hold_and_the_last_one_lets_go() {
    let cluster = Cluster::new(1);
    let maps = "/api/v1/namespaces/default/configmaps";
    cluster
        .create(maps, &json!({"metadata": {"name": "a", "finalizers": ["x.y/z"]}}))
        .unwrap();
    let path = format!("{maps}/a");
    assert!(cluster.delete(&path).unwrap()["metadata"]["deletionTimestamp"].is_string());
    let added = cluster.patch(&path, json!({"metadata": {"finalizers": ["x.y/z", "p.q/r"]}}));
    assert_eq!(added.unwrap_err().code, 422);
    cluster
        .patch(&path, json!({"metadata": {"finalizers": null}}))
        .unwrap();
    assert!(cluster.get(&path).is_none());
}

#[tokio::test(start_paused = true)]
async fn dependents_go_with_their_owners() {
    let cluster = Cluster::new(1);
    let _controllers = flotilla_sim::controllers::Controllers::start(
        &cluster,
        std::sync::Arc::new(|_: &Cluster, _: &Value| flotilla_sim::controllers::Fate::Unready),
    );
    let maps = "/api/v1/namespaces/default/configmaps";
    let owner = cluster
        .create(maps, &json!({"metadata": {"name": "owner"}}))
        .unwrap();
    let reference =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner["metadata"]["uid"]});
    cluster
        .create(
            maps,
            &json!({"metadata": {"name": "child", "ownerReferences": [reference]}}),
        )
        .unwrap();
    cluster.delete(&format!("{maps}/owner")).unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(cluster.get(&format!("{maps}/child")).is_none());
}
