//! The same requests to the simulated server and to a real one. The real one is that of `FLOTILLA_KUBECONFIG`; without
//! it two simulated ones with different seeds are compared, which holds the generator and the comparison to account.
//! `FLOTILLA_FULL=1` sends 10,000 sequences instead of 300.

use std::sync::Arc;

use flotilla_sim::Cluster;
use flotilla_sim::conformance::{diverge, exchange, registry, sequence, stand_ins};
use flotilla_sim::controllers::{Controllers, Fate};
use kube::api::{DeleteParams, DynamicObject, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Api, Client, Config};
use serde_json::Value;

const NAMESPACE: &str = "flotilla-conformance";

/// A server with its garbage collector.
fn simulated(seed: u64) -> (Client, Controllers) {
    let cluster = Cluster::with_registry(registry(), seed);
    cluster.namespace(NAMESPACE);
    let controllers = Controllers::start(&cluster, Arc::new(|_: &Cluster, _: &Value| Fate::Unready));
    (Client::new(cluster.service(), NAMESPACE), controllers)
}

fn count() -> u64 {
    if std::env::var_os("FLOTILLA_FULL").is_some() {
        10_000
    } else {
        300
    }
}

async fn compare(there: &Client, seeds: std::ops::Range<u64>) -> Vec<String> {
    let (here, _controllers) = simulated(1);
    let mut divergences = Vec::new();
    for seed in seeds {
        let asked = sequence(seed, NAMESPACE);
        let ours = exchange(&here, &asked).await.unwrap();
        let theirs = exchange(there, &asked).await.unwrap();
        divergences.extend(diverge(&asked, &ours, &theirs).map(|text| format!("sequence {seed}: {text}")));
    }
    divergences
}

#[tokio::test(start_paused = true)]
async fn two_simulated_servers_agree() {
    let (there, _controllers) = simulated(2);
    let divergences = compare(&there, 0..count()).await;
    assert!(
        divergences.is_empty(),
        "{} diverge: {}",
        divergences.len(),
        divergences.join("\n")
    );
}

#[tokio::test]
async fn the_real_server_agrees() {
    let Some(path) = std::env::var_os("FLOTILLA_KUBECONFIG") else {
        println!("FLOTILLA_KUBECONFIG is not set: not compared with a real server");
        return;
    };
    let file = Kubeconfig::read_from(&path).unwrap();
    let mut config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
        .await
        .unwrap();
    config.default_retry = false;
    let client = Client::try_from(config).unwrap();
    let cluster_wide = |group: &str, version: &str, kind: &str| {
        Api::<DynamicObject>::all_with(
            client.clone(),
            &ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind)),
        )
    };
    let namespaces = cluster_wide("", "v1", "Namespace");
    let definitions = cluster_wide("apiextensions.k8s.io", "v1", "CustomResourceDefinition");
    let namespace = serde_json::from_value(
        serde_json::json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}),
    );
    // An earlier run may have left it.
    let _ = namespaces
        .create(&PostParams::default(), &namespace.unwrap())
        .await;
    for definition in stand_ins() {
        let definition: DynamicObject = serde_json::from_value(definition).unwrap();
        let _ = definitions.create(&PostParams::default(), &definition).await;
    }
    let is_served = async || {
        let list = format!(
            "/apis/{}/v1alpha1/namespaces/{NAMESPACE}/agentpools",
            flotilla_sim::conformance::GROUP
        );
        let request = http::Request::get(list).body(Vec::new()).unwrap();
        client.request_text(request).await.is_ok()
    };
    for _ in 0..100 {
        if is_served().await {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    }
    let lanes = (0..8_u64).map(|lane| {
        let client = client.clone();
        let share = count() / 8;
        async move { compare(&client, lane * share..(lane + 1) * share).await }
    });
    let divergences: Vec<String> = futures::future::join_all(lanes)
        .await
        .into_iter()
        .flatten()
        .collect();
    for definition in stand_ins() {
        let name = definition["metadata"]["name"].as_str().unwrap().to_owned();
        let _ = definitions.delete(&name, &DeleteParams::default()).await;
    }
    let _ = namespaces.delete(NAMESPACE, &DeleteParams::default()).await;
    assert!(
        divergences.is_empty(),
        "{} of {} sequences diverge: {}",
        divergences.len(),
        count(),
        divergences.join("\n")
    );
}
