//! A pool's way to Ready, its writes, its silence at rest, its scale.

use flotilla_e2e::scenario::pool;
use flotilla_e2e::{fixtures, with_namespace};
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn a_short_pool_becomes_ready_within_k_plus_4_writes() {
    with_namespace("up", |namespace| async move {
        let local = namespace.cluster.is_local();
        let up = pool::bring_up(namespace).await?;
        println!(
            "ready after {:.1} s, K = {}, {} writes: {:?}",
            up.seconds, up.objects, up.writes, up.by_kind
        );
        anyhow::ensure!(up.objects >= 8, "only {} objects carry our label", up.objects);
        anyhow::ensure!(!local || up.writes > 0, "no write was counted");
        anyhow::ensure!(
            up.writes <= up.objects + 4,
            "{} writes for {} objects: {:?}",
            up.writes,
            up.objects,
            up.by_kind
        );
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_scale_changes_the_replicas() {
    with_namespace("scale", |namespace| async move {
        pool::provider(&namespace).await?;
        namespace.apply(&fixtures::pool("support", 1)).await?;
        pool::ready(&namespace, "support", pool::SOON).await?;
        namespace
            .kubectl(&["scale", "apool/support", "--replicas=3"])
            .await?;
        let ready = pool::ready(&namespace, "support", pool::SOON).await?;
        anyhow::ensure!(ready.status.and_then(|s| s.replicas) == Some(3));
        let stopped = fixtures::with(fixtures::pool("support", 3), "/spec/stopped", json!(true));
        namespace.apply(&stopped).await?;
        flotilla_e2e::wait::until("no agent pod", pool::SOON, || async {
            let left = namespace
                .kubectl(&["get", "pods", "-l", "flotilla.dev/pool=support", "-o", "name"])
                .await
                .map_err(|e| e.to_string())?;
            if left.trim().is_empty() { Ok(()) } else { Err(left) }
        })
        .await?;
        Ok(())
    })
    .await;
}

/// Below its minimum an HPA needs no metric, so this is its whole way through `/scale`: read, decide, write.
#[tokio::test(flavor = "multi_thread")]
async fn a_horizontal_pod_autoscaler_scales_a_pool() {
    with_namespace("hpa", |namespace| async move {
        pool::provider(&namespace).await?;
        namespace.apply(&fixtures::pool("support", 1)).await?;
        pool::ready(&namespace, "support", pool::SOON).await?;
        let cpu = json!({"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 70}});
        namespace
            .apply(&json!({
                "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "support"},
                "spec": {
                    "scaleTargetRef": {"apiVersion": "flotilla.dev/v1alpha1", "kind": "AgentPool", "name": "support"},
                    "minReplicas": 3, "maxReplicas": 5, "metrics": [{"type": "Resource", "resource": cpu}]
                }
            }))
            .await?;
        flotilla_e2e::wait::until("the HPA to have scaled", pool::SOON, || async {
            let replicas = namespace
                .kubectl(&["get", "apool/support", "-o", "jsonpath={.spec.replicas} {.status.replicas}"])
                .await
                .map_err(|e| e.to_string())?;
            if replicas == "3 3" { Ok(()) } else { Err(replicas) }
        })
        .await?;
        pool::ready(&namespace, "support", pool::SOON).await.map(drop)
    })
    .await;
}
