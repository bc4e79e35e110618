//! Blue-green.

use super::scenarios;
use super::stage::{Stage, canary, stable_ready, weight_of};
use crate::Namespace;
use anyhow::{Result, ensure};
use flotilla_crds::rollout_action::ActionType;
use serde_json::{Value, json};

scenarios!(
    a_preview_is_smaller_and_has_no_traffic,
    swapped_in_one_write,
    a_preview_is_aborted,
    a_preview_is_superseded,
    back_while_the_old_pods_are_there,
    from_blue_green_to_canary,
);

fn blue_green(approval: &str, preview: i32) -> Value {
    json!({
        "type": "BlueGreen", "settleSeconds": 0, "progressDeadlineSeconds": 60,
        "blueGreen": {"previewReplicas": preview, "approval": approval, "bakeSeconds": 0, "scaleDownDelaySeconds": 0},
    })
}

/// A pool of three with a preview of one that waits for a person.
async fn previewed(namespace: Namespace) -> Result<(Stage, String, String)> {
    let mut stage = Stage::serving(namespace, 3, blue_green("Manual", 1)).await?;
    let stable = stage.stable().await?;
    stage.release("second").await?;
    stage.reason("ApprovalNeeded").await?;
    let status = stage.status().await?;
    let candidate = status.candidate.unwrap_or_default().revision;
    Ok((stage, stable, candidate))
}

async fn a_preview_is_smaller_and_has_no_traffic(namespace: Namespace) -> Result<()> {
    let (stage, stable, candidate) = previewed(namespace).await?;
    stage.has_pods(&candidate, 1).await?;
    stage
        .stays("no traffic", 3, |s| weight_of(s, &stable) == 100)
        .await?;
    // Its own Service reaches it.
    let slices = format!("kubernetes.io/service-name={candidate}");
    let slices = stage
        .namespace
        .kubectl(&[
            "get",
            "endpointslices",
            "-l",
            &slices,
            "-o",
            "jsonpath={.items[*].endpoints[*].addresses[0]}",
        ])
        .await?;
    ensure!(slices.split_whitespace().count() == 1, "{slices}");
    stage.act(ActionType::Promote, &candidate, Some(0)).await?;
    let status = stage.alone(&candidate).await?;
    ensure!(stable_ready(&status) == 3, "{status:?}");
    stage.has_pods(&stable, 0).await?;
    stage.end().await
}

async fn swapped_in_one_write(namespace: Namespace) -> Result<()> {
    let mut stage = Stage::serving(namespace, 2, blue_green("Automatic", 2)).await?;
    let stable = stage.stable().await?;
    stage.release("second").await?;
    let status = stage
        .until("a share of the traffic", |s| {
            weight_of(s, &stable) < 100 && !s.traffic.is_empty()
        })
        .await?;
    ensure!(weight_of(&status, &stable) == 0, "{:?}", status.traffic);
    stage.ready().await?;
    stage.end().await
}

async fn a_preview_is_aborted(namespace: Namespace) -> Result<()> {
    let (stage, stable, candidate) = previewed(namespace).await?;
    stage.act(ActionType::Abort, &candidate, None).await?;
    stage.alone(&stable).await?;
    stage.has_pods(&candidate, 0).await?;
    stage.end().await
}

async fn a_preview_is_superseded(namespace: Namespace) -> Result<()> {
    let (mut stage, stable, second) = previewed(namespace).await?;
    stage.release("third").await?;
    let status = stage
        .until("another preview", |s| {
            s.candidate
                .as_ref()
                .is_some_and(|c| c.revision != second && c.ready_replicas == 1)
        })
        .await?;
    let third = status.candidate.unwrap_or_default().revision;
    stage.has_pods(&second, 0).await?;
    ensure!(weight_of(&stage.status().await?, &stable) == 100);
    stage.reason("ApprovalNeeded").await?;
    stage.act(ActionType::Promote, &third, Some(0)).await?;
    stage.alone(&third).await?;
    stage.end().await
}

async fn back_while_the_old_pods_are_there(namespace: Namespace) -> Result<()> {
    let mut rollout = blue_green("Automatic", 2);
    rollout["blueGreen"]["scaleDownDelaySeconds"] = json!(120);
    let mut stage = Stage::serving(namespace, 2, rollout).await?;
    let first = stage.stable().await?;
    let pods = stage.pods(&first).await?;
    stage.release("second").await?;
    stage
        .until("the swap", |s| !s.traffic.is_empty() && weight_of(s, &first) == 0)
        .await?;
    stage.release_first().await?;
    stage
        .until("the way back", |s| weight_of(s, &first) == 100)
        .await?;
    ensure!(stage.pods(&first).await? == pods, "the way back needed new pods");
    stage.ready().await?;
    stage.end().await
}

async fn from_blue_green_to_canary(namespace: Namespace) -> Result<()> {
    let mut stage = Stage::serving(namespace, 2, blue_green("Automatic", 2)).await?;
    let stable = stage.stable().await?;
    stage
        .set("/spec/rollout", canary(&[50]))
        .release("second")
        .await?;
    let candidate = stage.candidate_at(50).await?;
    ensure!(weight_of(&stage.status().await?, &stable) == 50);
    stage.act(ActionType::PromoteFull, &candidate, None).await?;
    stage.alone(&candidate).await?;
    stage.end().await
}
