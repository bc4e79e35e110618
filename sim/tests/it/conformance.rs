//! The same requests to the simulated server and to a real one, that of `FLOTILLA_KUBECONFIG`. Two simulated ones with different
//! seeds are compared as well, which holds the generator and the comparison to account. `FLOTILLA_FULL=1` sends 10,000 sequences
//! instead of some hundred.

use std::sync::Arc;
use std::time::{Duration, Instant};

use flotilla_sim::Cluster;
use flotilla_sim::conformance::{GROUP, diverge, exchange, registry, sequence, stand_ins};
use flotilla_sim::controllers::{Controllers, Fate};
use kube::api::{DeleteParams, DynamicObject, Patch, PatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Api, Client, Config};
use serde_json::{Value, json};

use crate::campaign::is_full;

const NAMESPACE: &str = "flotilla-conformance";
/// Sequences that are under way at once on a real server.
const LANES: usize = 16;
/// How long a real server takes at most to end a namespace or to serve a new kind.
const PATIENCE: Duration = Duration::from_secs(60);

/// A server with its garbage collector.
fn simulated(seed: u64) -> (Client, Controllers) {
    let cluster = Cluster::with_registry(registry(), seed);
    cluster.namespace(NAMESPACE);
    let controllers = Controllers::start(&cluster, Arc::new(|_: &Cluster, _: &Value| Fate::Unready));
    (Client::new(cluster.service(), NAMESPACE), controllers)
}

/// Sequences of requests: so many in a sample, 10,000 in full.
fn count(sample: u64) -> u64 {
    if is_full() { 10_000 } else { sample }
}

async fn compare(there: &Client, seeds: impl Iterator<Item = u64>) -> Vec<String> {
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
    let divergences = compare(&there, 0..count(300)).await;
    assert!(
        divergences.is_empty(),
        "{} diverge: {}",
        divergences.len(),
        divergences.join("\n")
    );
}

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

#[tokio::test]
#[ignore = "needs a real API server: make simulate"]
async fn the_real_server_agrees() {
    let path = std::env::var_os("FLOTILLA_KUBECONFIG").expect("FLOTILLA_KUBECONFIG names a cluster");
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
    let (count, begin) = (count(320), Instant::now());
    let lanes = (0..LANES).map(|lane| compare(&client, (0..count).skip(lane).step_by(LANES)));
    let divergences: Vec<String> = futures::future::join_all(lanes)
        .await
        .into_iter()
        .flatten()
        .collect();
    println!(
        "{count} sequences in {:.0?}, {} divergences",
        begin.elapsed(),
        divergences.len()
    );
    for definition in stand_ins() {
        let name = definition["metadata"]["name"].as_str().unwrap();
        let _ = definitions.delete(name, &DeleteParams::default()).await;
    }
    let _ = namespaces.delete(NAMESPACE, &DeleteParams::default()).await;
    assert!(
        divergences.is_empty(),
        "{} of {count} sequences diverge: {}",
        divergences.len(),
        divergences.join("\n")
    );
}
