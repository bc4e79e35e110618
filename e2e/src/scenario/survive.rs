//! The operator survives: its own death at any moment, an API server that is away, an object nobody can read.

use super::pool::{self, SOON};
use super::release::kill_leader;
use crate::fixtures::with;
use crate::{Cluster, Namespace, fixtures, operator, wait};
use anyhow::{Context, Result, ensure};
use flotilla_crds::LoadTest;
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::json;
use std::time::{Duration, Instant};

/// Kills the leading operator `kills` times, with a random pause between, during releases and a load test, and checks
/// that everything ends as without the kills.
pub async fn kills(namespace: Namespace, kills: u32) -> Result<LoadTest> {
    pool::provider(&namespace).await?;
    let base = fixtures::pool("support", 3);
    namespace.apply(&base).await?;
    pool::ready(&namespace, "support", SOON).await?;
    let seconds = i32::try_from(kills * 5).context("too many kills")?.clamp(20, 300);
    namespace
        .apply(&fixtures::load_test("through", "support", "20", seconds, 2))
        .await?;
    for kill in 0..kills {
        if kill % 3 == 0 {
            let prompt = format!("{} Version {kill}.", fixtures::PROMPT);
            namespace
                .apply(&with(base.clone(), "/spec/agent/prompt/text", json!(prompt)))
                .await?;
        }
        // A pause that is different each time and the same in every run.
        tokio::time::sleep(Duration::from_millis(200 + u64::from(kill * 7919 % 2800))).await;
        wait::until("an operator that leads and runs", SOON, || async {
            kill_leader(&namespace).await.map_err(|e| format!("{e:#}"))
        })
        .await?;
    }
    pool::ready(&namespace, "support", Duration::from_secs(240)).await?;
    let done = super::load_test::complete(&namespace, "through", Duration::from_secs(240)).await?;
    let revisions = namespace
        .kubectl(&["get", "rs", "-l", "flotilla.dev/pool=support", "-o", "json"])
        .await?;
    let revisions: serde_json::Value = serde_json::from_str(&revisions)?;
    let serving = revisions["items"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|rs| rs["spec"]["replicas"] != json!(0))
        .count();
    ensure!(
        serving == 1,
        "{serving} ReplicaSets have replicas after the releases; one should"
    );
    Ok(done)
}

/// Stops the API server for `seconds` in the middle of a release; traffic is not the subject here, convergence is.
pub async fn api_server_away(namespace: Namespace, seconds: u64) -> Result<f64> {
    pool::provider(&namespace).await?;
    let base = fixtures::pool("support", 3);
    namespace.apply(&base).await?;
    pool::ready(&namespace, "support", SOON).await?;
    namespace
        .apply(&with(
            base,
            "/spec/agent/prompt/text",
            json!(format!("{} Two.", fixtures::PROMPT)),
        ))
        .await?;
    namespace.cluster.tool(&["stop", "kube-apiserver"]).await?;
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    namespace.cluster.tool(&["start", "kube-apiserver"]).await?;
    let start = Instant::now();
    wait::until("the pool's object", SOON, || async {
        namespace.api::<flotilla_crds::AgentPool>().get("support").await
    })
    .await?;
    pool::ready(&namespace, "support", Duration::from_secs(180)).await?;
    Ok(start.elapsed().as_secs_f64())
}

/// Seconds from the SIGKILL of the leader, whose container is kept from coming back, until another replica leads.
pub async fn takeover(cluster: &Cluster) -> Result<f64> {
    wait::until("two operators", SOON, || async {
        let ready = operator::pods(cluster).await.map_err(|e| e.to_string())?;
        let is_ready = |p: &&k8s_openapi::api::core::v1::Pod| {
            p.status
                .iter()
                .flat_map(|s| s.conditions.iter().flatten())
                .any(|c| c.type_ == "Ready" && c.status == "True")
        };
        match ready.iter().filter(is_ready).count() {
            2.. => Ok(()),
            n => Err(format!("{n} ready")),
        }
    })
    .await?;
    let leader = operator::leader(cluster).await?.context("nobody leads")?;
    let pods = operator::pods(cluster).await?;
    let pod = pods
        .iter()
        .find(|p| p.metadata.name.as_deref() == Some(&leader))
        .context("the leader has no pod")?;
    let api: kube::Api<k8s_openapi::api::core::v1::Pod> =
        kube::Api::namespaced(cluster.client.clone(), operator::NAMESPACE);
    let start = Instant::now();
    operator::kill(pod).await?;
    // A restarted container resumes at once under its pod's name; without the pod the other one has to take over.
    api.delete(&leader, &DeleteParams::default().grace_period(0))
        .await?;
    wait::until("another leader", SOON, || async {
        match operator::leader(cluster).await.map_err(|e| e.to_string())? {
            Some(holder) if holder != leader => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await?;
    Ok(start.elapsed().as_secs_f64())
}

/// An AgentPool that cannot be decoded does not stop the others. The API server's schema would refuse such an object,
/// so validation is taken off the CRD for a moment, as an upgrade from an older schema would have left it behind.
pub async fn poison(namespace: Namespace) -> Result<()> {
    use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
    let crds: kube::Api<CustomResourceDefinition> = kube::Api::all(namespace.cluster.client.clone());
    let original = crds.get("agentpools.flotilla.dev").await?;
    let loose = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    let patch = |schema: serde_json::Value| {
        Patch::Json::<()>(json_patch(&[
            json!({"op": "replace", "path": "/spec/versions/0/schema/openAPIV3Schema", "value": schema}),
        ]))
    };
    let schema = serde_json::to_value(&original)?
        .pointer("/spec/versions/0/schema/openAPIV3Schema")
        .cloned()
        .context("no schema")?;
    crds.patch("agentpools.flotilla.dev", &PatchParams::default(), &patch(loose))
        .await?;
    let bad = json!({"apiVersion": "flotilla.dev/v1alpha1", "kind": "AgentPool", "metadata": {"name": "poison"}, "spec": {"replicas": 1, "agent": 7}});
    let planted = wait::until("the bad object to be accepted", SOON, || async {
        namespace.apply(&bad).await.map_err(|e| format!("{e:#}"))
    })
    .await;
    crds.patch("agentpools.flotilla.dev", &PatchParams::default(), &patch(schema))
        .await?;
    planted?;
    pool::provider(&namespace).await?;
    wait::until("the good pool to be accepted", SOON, || async {
        namespace
            .apply(&fixtures::pool("healthy", 1))
            .await
            .map_err(|e| format!("{e:#}"))
    })
    .await?;
    pool::ready(&namespace, "healthy", SOON).await?;
    // A restarted operator must get past it as well.
    kill_leader(&namespace).await?;
    namespace.apply(&fixtures::pool("healthy", 2)).await?;
    pool::ready(&namespace, "healthy", SOON).await?;
    Ok(())
}

fn json_patch(operations: &[serde_json::Value]) -> json_patch::Patch {
    serde_json::from_value(json!(operations)).expect("the operations are written out above")
}
