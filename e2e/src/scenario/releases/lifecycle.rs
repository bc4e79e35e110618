//! Good and bad revisions, pauses, pins, restarts, deletion.

use super::scenarios;
use super::stage::{LONGEST, POOL, Stage, canary, candidate_ready, holds, stable_ready, weight_of};
use crate::scenario::pool;
use crate::{Namespace, operator, wait};
use anyhow::{Context, Result, bail, ensure};
use flotilla_crds::AgentPoolStatus;
use flotilla_crds::rollout_action::{ActionResult, ActionType};
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::api::ListParams;
use serde_json::json;
use std::time::{Duration, Instant};

scenarios!(
    good_then_bad_then_bad_then_good,
    a_bad_first_revision_is_replaced,
    a_bad_stable_revision_is_replaced_by_a_canary,
    a_crashing_candidate_loses_its_traffic,
    paused_and_resumed,
    paused_while_it_is_superseded,
    pinned,
    stopped_under_way,
    restarted_at_rest_and_not_in_a_release,
    a_config_map_alone_and_its_bytes_back,
    deleted_under_way,
    kubectl_waits_for_it,
    history_is_pruned,
    an_autoscaler_sees_only_what_serves,
);

async fn good_then_bad_then_bad_then_good(namespace: Namespace) -> Result<()> {
    let mut rollout = canary(&[50]);
    rollout["progressDeadlineSeconds"] = json!(10);
    let mut stage = Stage::serving(namespace, 2, rollout).await?;
    let stable = stage.stable().await?;
    for bad in ["second", "third"] {
        stage.release_unready(bad).await?;
        stage.until("it to be started", |s| s.candidate.is_some()).await?;
        let status = stage.until("it to be rejected", |s| holds(s, "Stalled")).await?;
        ensure!(
            weight_of(&status, &stable) == 100 && holds(&status, "Available"),
            "{status:?}"
        );
    }
    stage.release("fourth").await?;
    let good = stage.candidate_at(50).await?;
    stage.act(ActionType::PromoteFull, &good, None).await?;
    stage.alone(&good).await?;
    stage.ready().await?;
    stage.end().await
}

async fn a_bad_first_revision_is_replaced(namespace: Namespace) -> Result<()> {
    let mut rollout = canary(&[50]);
    rollout["progressDeadlineSeconds"] = json!(10);
    let mut stage = Stage::new(namespace, 2, rollout).await?;
    stage.release_unready("first").await?;
    stage
        .until("the pool to be stalled", |s| holds(s, "Stalled"))
        .await?;
    stage.release("second").await?;
    stage.ready().await?;
    stage.begin_traffic().await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    stage.end().await
}

/// What served well and does not any more: its image is gone, as its pods are.
async fn a_bad_stable_revision_is_replaced_by_a_canary(namespace: Namespace) -> Result<()> {
    let mut stage = Stage::new(namespace, 2, canary(&[50])).await?;
    stage.apply().await?;
    stage.ready().await?;
    let stable = stage.stable().await?;
    // Nobody may pull it again: the pods that replace these stay in ErrImageNeverPull.
    let sets = stage.namespace.api::<ReplicaSet>();
    let set = sets
        .list(&ListParams::default().labels(&format!("flotilla.dev/revision={stable}")))
        .await?
        .items
        .pop()
        .and_then(|set| set.metadata.name)
        .context("no ReplicaSet")?;
    let image = json!({"spec": {"template": {"spec": {"containers": [{"name": "agent", "image": "flotilla.dev/none:gone", "imagePullPolicy": "Never"}]}}}});
    stage
        .namespace
        .kubectl(&[
            "patch",
            "replicaset",
            &set,
            "--type=strategic",
            "-p",
            &image.to_string(),
        ])
        .await?;
    for pod in stage.pods(&stable).await? {
        stage
            .namespace
            .kubectl(&["delete", "pod", &pod, "--grace-period=0", "--force"])
            .await?;
    }
    stage.until("stable to be down", |s| stable_ready(s) == 0).await?;
    stage.release("second").await?;
    stage.ready().await?;
    ensure!(stage.stable().await? != stable);
    stage.end().await
}

async fn a_crashing_candidate_loses_its_traffic(namespace: Namespace) -> Result<()> {
    if namespace.cluster.is_local() {
        let seconds = seconds_to_lose_the_traffic(namespace).await?;
        println!("a crashing candidate's weight was 0 after {seconds:.1} s");
    }
    Ok(())
}

/// From the first crash of a candidate at 50 % until its weight is 0. A hard fault needs no statistics; and when it goes on
/// crashing it is rejected. Requests that were in a killed process are lost with it, so failures of the client say nothing here.
pub async fn seconds_to_lose_the_traffic(namespace: Namespace) -> Result<f64> {
    let (stage, stable, candidate) = Stage::at_first_step(namespace, 2, &[50]).await?;
    let start = Instant::now();
    let mut lost = None;
    while start.elapsed() < LONGEST {
        for name in stage.pods(&candidate).await? {
            if let Some(pod) = stage.namespace.api::<Pod>().get_opt(&name).await? {
                // Between two starts it has no process.
                let _ = operator::kill_process(&pod, "flotilla-agent").await;
            }
        }
        let status = stage.status().await?;
        if weight_of(&status, &stable) == 100 {
            lost.get_or_insert(start.elapsed().as_secs_f64());
        }
        if status.rejected.iter().any(|known| known.revision == candidate) {
            stage.alone(&stable).await?;
            return lost.context("rejected with its weight");
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    bail!("it was not rejected: {:?}", stage.status().await?.rollout)
}

async fn paused_and_resumed(namespace: Namespace) -> Result<()> {
    let (mut stage, _, candidate) = Stage::at_first_step(namespace, 2, &[25, 50]).await?;
    stage.change("/spec/rollout/paused", json!(true)).await?;
    stage.reason("Paused").await?;
    let before = stage.status().await?.conditions;
    stage.stays("the pause", 5, |s| s.conditions == before).await?;
    stage.change("/spec/rollout/paused", json!(false)).await?;
    stage.candidate_at(25).await?;
    stage.act(ActionType::SkipStep, &candidate, Some(0)).await?;
    stage.candidate_at(50).await?;
    stage.end().await
}

async fn paused_while_it_is_superseded(namespace: Namespace) -> Result<()> {
    let (mut stage, stable, second) = Stage::at_first_step(namespace, 2, &[50]).await?;
    stage.change("/spec/rollout/paused", json!(true)).await?;
    stage.reason("Paused").await?;
    stage.release("third").await?;
    stage
        .stays("the second one", 4, |s| {
            s.candidate.as_ref().is_some_and(|c| c.revision == second)
        })
        .await?;
    stage.change("/spec/rollout/paused", json!(false)).await?;
    let other = |status: &AgentPoolStatus| status.candidate.as_ref().is_some_and(|c| c.revision != second);
    stage.until("the third one", other).await?;
    stage.candidate_at(50).await?;
    ensure!(weight_of(&stage.status().await?, &stable) == 50);
    stage.has_pods(&second, 0).await?;
    stage.end().await
}

async fn pinned(namespace: Namespace) -> Result<()> {
    let (mut stage, first, second) = Stage::at_first_step(namespace, 2, &[50]).await?;
    stage.act(ActionType::PromoteFull, &second, None).await?;
    stage.alone(&second).await?;
    stage.set("/spec/rollout/rollbackWindowRevisions", json!(2));
    stage.change("/spec/rollout/pinnedRevision", json!(first)).await?;
    stage.alone(&first).await?;
    // Whatever the spec says now, the pin holds.
    stage.release("third").await?;
    stage
        .stays("the pin", 5, |s| {
            s.candidate.is_none() && weight_of(s, &first) == 100
        })
        .await?;
    stage.change("/spec/rollout/pinnedRevision", json!("")).await?;
    stage.candidate_at(50).await?;
    stage.end().await
}

async fn stopped_under_way(namespace: Namespace) -> Result<()> {
    let mut stage = Stage::new(namespace, 2, canary(&[50])).await?;
    stage.apply().await?;
    stage.ready().await?;
    let stable = stage.stable().await?;
    stage.release("second").await?;
    let candidate = stage.candidate_at(50).await?;
    stage.change("/spec/stopped", json!(true)).await?;
    stage.has_pods(&stable, 0).await?;
    stage.has_pods(&candidate, 0).await?;
    stage.change("/spec/stopped", json!(false)).await?;
    ensure!(stage.candidate_at(50).await? == candidate);
    stage
        .until("both sides", |s| stable_ready(s) == 2 && candidate_ready(s) == 1)
        .await?;
    stage.begin_traffic().await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    stage.end().await
}

async fn restarted_at_rest_and_not_in_a_release(namespace: Namespace) -> Result<()> {
    let mut stage = Stage::serving(namespace, 2, canary(&[50])).await?;
    let stable = stage.stable().await?;
    let before = stage.pods(&stable).await?;
    stage.act(ActionType::Restart, &stable, None).await?;
    wait::until("other pods", LONGEST, || async {
        let now = stage.pods(&stable).await.map_err(|error| error.to_string())?;
        let all_new = now.len() == 2 && now.iter().all(|pod| !before.contains(pod));
        if all_new { Ok(()) } else { Err(format!("{now:?}")) }
    })
    .await?;
    stage.ready().await?;
    stage.release("second").await?;
    stage.candidate_at(50).await?;
    let (result, message) = stage.command(ActionType::Restart, &stable, None).await?;
    ensure!(
        result == ActionResult::Rejected && message.contains("restart when that has ended"),
        "{message}"
    );
    stage.end().await
}

async fn a_config_map_alone_and_its_bytes_back(namespace: Namespace) -> Result<()> {
    let prompt = |text: &str| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "prompt"}, "data": {"prompt.md": text}});
    namespace.apply(&prompt("You are the first prompt.")).await?;
    let mut stage = Stage::new(namespace, 2, canary(&[50])).await?;
    stage.set(
        "/spec/agent/prompt",
        json!({"configMapKeyRef": {"name": "prompt", "key": "prompt.md"}}),
    );
    stage.apply().await?;
    stage.ready().await?;
    stage.begin_traffic().await?;
    let first = stage.stable().await?;
    stage
        .namespace
        .apply(&prompt("You are the second prompt."))
        .await?;
    let second = stage.candidate_at(50).await?;
    stage.act(ActionType::PromoteFull, &second, None).await?;
    stage.alone(&second).await?;
    // The ConfigMap has only the second prompt; the first revision has kept its own bytes.
    stage.set("/spec/rollout/rollbackWindowRevisions", json!(1));
    stage.change("/spec/rollout/pinnedRevision", json!(first)).await?;
    stage.alone(&first).await?;
    let pod = stage.pods(&first).await?.pop().context("no pod")?;
    let pod = stage.namespace.api::<Pod>().get(&pod).await?;
    let volumes = pod.spec.and_then(|spec| spec.volumes).unwrap_or_default();
    let maps = stage.namespace.api::<ConfigMap>();
    let mut texts = Vec::new();
    for name in volumes
        .into_iter()
        .filter_map(|volume| Some(volume.config_map?.name))
    {
        texts.extend(maps.get(&name).await?.data.unwrap_or_default().into_values());
    }
    ensure!(
        texts.iter().any(|text| text.contains("the first prompt")),
        "{texts:?}"
    );
    stage.end().await
}

async fn deleted_under_way(namespace: Namespace) -> Result<()> {
    let mut stage = Stage::new(namespace, 2, canary(&[50])).await?;
    stage.apply().await?;
    stage.ready().await?;
    stage.release("second").await?;
    stage.candidate_at(50).await?;
    stage
        .namespace
        .kubectl(&["delete", "agentpool", POOL, "--timeout=60s"])
        .await?;
    wait::until("nothing of it to be left", LONGEST, || async {
        let kinds =
            "replicasets,services,configmaps,controllerrevisions,poddisruptionbudgets,serviceaccounts,pods";
        let selector = format!("flotilla.dev/pool={POOL}");
        let left = stage
            .namespace
            .kubectl(&["get", kinds, "-l", &selector, "-o", "name"])
            .await;
        let left = left.map_err(|error| error.to_string())?;
        if left.trim().is_empty() { Ok(()) } else { Err(left) }
    })
    .await
}

async fn kubectl_waits_for_it(namespace: Namespace) -> Result<()> {
    let (mut stage, _, candidate) = Stage::at_first_step(namespace, 2, &[50]).await?;
    let namespace = stage.namespace.clone();
    let wait_for = async |what: &str| {
        let what = format!("--for={what}");
        let arguments = ["wait", "apool/support", &what, "--timeout=60s"];
        namespace.kubectl(&arguments).await.map(drop)
    };
    wait_for("condition=Reconciling").await?;
    wait_for("condition=Ready=false").await?;
    stage.act(ActionType::PromoteFull, &candidate, None).await?;
    wait_for("condition=Ready").await?;
    stage.release_first().await?;
    wait_for("jsonpath={.status.candidate.weight}=50").await?;
    stage.end().await
}

async fn history_is_pruned(namespace: Namespace) -> Result<()> {
    let mut stage =
        Stage::serving(namespace, 1, json!({"type": "RollingUpdate", "settleSeconds": 0})).await?;
    stage.change("/spec/revisionHistoryLimit", json!(1)).await?;
    for revision in ["second", "third", "fourth"] {
        stage.release(revision).await?;
        stage.ready().await?;
    }
    wait::until("two revisions to be left", LONGEST, || async {
        let kept = stage
            .namespace
            .kubectl(&[
                "get",
                "controllerrevisions",
                "-l",
                "flotilla.dev/pool=support",
                "-o",
                "name",
            ])
            .await
            .map_err(|error| error.to_string())?;
        if kept.lines().count() == 2 {
            Ok(())
        } else {
            Err(kept)
        }
    })
    .await?;
    stage.end().await
}

/// A candidate must not inflate what an autoscaler sees.
async fn an_autoscaler_sees_only_what_serves(namespace: Namespace) -> Result<()> {
    let (stage, stable, _) = Stage::at_first_step(namespace, 2, &[50]).await?;
    let scale = stage
        .namespace
        .kubectl(&[
            "get",
            "apool/support",
            "-o",
            "jsonpath={.status.replicas} {.status.selector}",
        ])
        .await?;
    let (replicas, selector) = scale.split_once(' ').context("no selector")?;
    ensure!(replicas == "2", "{scale}");
    let pods = stage
        .namespace
        .kubectl(&["get", "pods", "-l", selector, "-o", "name"])
        .await?;
    ensure!(
        pods.lines().count() == 2 && selector.contains(&stable),
        "{scale}: {pods}"
    );
    pool::ready(&stage.namespace, POOL, Duration::from_secs(1))
        .await
        .map_or(Ok(()), |_| bail!("Ready during a release"))?;
    stage.end().await
}
