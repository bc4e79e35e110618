//! The same requests to the simulated server and to a real one, that of `FLOTILLA_KUBECONFIG`: a hundred sequences, or 10,000
//! with `FLOTILLA_FULL=1`. `FLOTILLA_SEQUENCE=7` sends one of them and prints what was answered.

#![allow(clippy::unwrap_used, reason = "a helper of a test fails where the test does")]

use std::time::{Duration, Instant};

use flotilla_sim::conformance::{GROUP, NAMESPACE, compare, exchange, sequence, stand_ins};
use kube::api::{DeleteParams, DynamicObject, Patch, PatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Api, Client, Config};
use serde_json::{Value, json};

/// Sequences in full, and in a sample.
const COUNT: [u64; 2] = [10_000, 120];
/// Sequences that are under way at once.
const LANES: usize = 16;
/// How long a real server takes at most to end a namespace or to serve a new kind.
const PATIENCE: Duration = Duration::from_secs(60);

/// Applies an object; one of an earlier run that is still on its way out is waited for.
async fn apply(api: &Api<DynamicObject>, object: &Value) {
    let name = object["metadata"]["name"].as_str().unwrap();
    let begin = Instant::now();
    loop {
        let is_going = match api.get_opt(name).await.unwrap() {
            Some(found) => found.metadata.deletion_timestamp.is_some(),
            None => false,
        };
        if !is_going {
            let params = PatchParams::apply("conformance").force();
            api.patch(name, &params, &Patch::Apply(object)).await.unwrap();
            return;
        }
        assert!(begin.elapsed() < PATIENCE, "{name} does not go");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

async fn connect() -> Client {
    let path = std::env::var_os("FLOTILLA_KUBECONFIG")
        .expect("FLOTILLA_KUBECONFIG names no cluster; run `make e2e` or `make simulate`");
    let file = Kubeconfig::read_from(&path).unwrap();
    let mut config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
        .await
        .unwrap();
    config.default_retry = false;
    Client::try_from(config).unwrap()
}

#[tokio::test]
async fn the_real_server_agrees() {
    let client = connect().await;
    let cluster_wide = |group: &str, version: &str, kind: &str| {
        Api::<DynamicObject>::all_with(
            client.clone(),
            &ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind)),
        )
    };
    let namespaces = cluster_wide("", "v1", "Namespace");
    let definitions = cluster_wide("apiextensions.k8s.io", "v1", "CustomResourceDefinition");
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}});
    apply(&namespaces, &namespace).await;
    for definition in stand_ins() {
        apply(&definitions, &definition).await;
    }
    let begin = Instant::now();
    let list = format!("/apis/{GROUP}/v1alpha1/namespaces/{NAMESPACE}/agentpools");
    let request = || http::Request::get(&list).body(Vec::new()).unwrap();
    while let Err(why) = client.request_text(request()).await {
        assert!(begin.elapsed() < PATIENCE, "the stand-ins are not served: {why}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let seeds: Vec<u64> = match std::env::var("FLOTILLA_SEQUENCE") {
        Ok(one) => {
            let seed = one.parse().expect("FLOTILLA_SEQUENCE is a number");
            let asked = sequence(seed, NAMESPACE);
            let answered = exchange(&client, &asked).await.unwrap();
            for (asked, answered) in asked.iter().zip(answered) {
                println!("{asked:?}\n  {} {}", answered.code, answered.body);
            }
            vec![seed]
        }
        Err(_) => (0..COUNT[usize::from(std::env::var_os("FLOTILLA_FULL").is_none())]).collect(),
    };
    let begin = Instant::now();
    let lanes = (0..LANES).map(|lane| compare(&client, seeds.iter().copied().skip(lane).step_by(LANES)));
    let compared = futures::future::try_join_all(lanes).await;
    for definition in stand_ins() {
        let name = definition["metadata"]["name"].as_str().unwrap();
        let _ = definitions.delete(name, &DeleteParams::default()).await;
    }
    let _ = namespaces.delete(NAMESPACE, &DeleteParams::default()).await;
    let divergences: Vec<String> = compared.unwrap().into_iter().flatten().collect();
    println!(
        "{} sequences in {:.0?}, {} divergences",
        seeds.len(),
        begin.elapsed(),
        divergences.len()
    );
    assert!(divergences.is_empty(), "{}", divergences.join("\n"));
}
