//! Canaries.

use super::scenarios;
use super::stage::{Stage, canary, candidate_ready, held, holds, stable_ready, weight_of};
use crate::Namespace;
use crate::scenario::release::kill_leader;
use anyhow::{Result, ensure};
use flotilla_crds::rollout_action::{ActionResult, ActionType};
use serde_json::json;

scenarios!(
    scaled_while_it_is_held,
    scaled_while_the_candidate_is_not_ready,
    every_step_by_command,
    two_skips_of_one_step_pass_one,
    a_late_command_is_refused,
    promoted_in_full,
    aborted,
    aborted_and_scaled_stays_at_zero,
    aborted_with_shrunk_stable,
    an_abort_without_a_release_changes_nothing,
    retried_after_an_abort,
    not_retried_by_noise,
    superseded,
    superseded_while_the_leader_is_killed,
    back_to_stable,
    back_inside_the_window,
    back_outside_the_window_is_judged,
    steps_edited_under_way,
    former_pods_stay_for_the_delay,
    the_spec_and_the_replicas_at_once,
);

async fn scaled_while_it_is_held(namespace: Namespace) -> Result<()> {
    let (mut stage, stable, candidate) = Stage::at_first_step(namespace, 4, &[25]).await?;
    stage.has_pods(&candidate, 1).await?;
    stage.change("/spec/replicas", json!(8)).await?;
    stage
        .until("both sides to cover their shares of 8", |s| {
            stable_ready(s) == 8 && candidate_ready(s) == 2
        })
        .await?;
    stage.change("/spec/replicas", json!(4)).await?;
    stage
        .until("both sides to cover their shares of 4", |s| {
            stable_ready(s) == 4 && candidate_ready(s) == 1
        })
        .await?;
    stage.candidate_at(25).await?;
    stage.act(ActionType::PromoteFull, &candidate, None).await?;
    stage.alone(&candidate).await?;
    stage.has_pods(&stable, 0).await?;
    stage.end().await
}

/// What is missing grows on the side that serves.
async fn scaled_while_the_candidate_is_not_ready(namespace: Namespace) -> Result<()> {
    let mut rollout = canary(&[25]);
    rollout["progressDeadlineSeconds"] = json!(300);
    let mut stage = Stage::serving(namespace, 2, rollout).await?;
    let stable = stage.stable().await?;
    stage.release_unready("second").await?;
    stage
        .until("a candidate with a pod", |s| {
            s.candidate.as_ref().is_some_and(|c| c.replicas == 1)
        })
        .await?;
    stage.change("/spec/replicas", json!(5)).await?;
    let status = stage
        .until("stable to have grown", |s| stable_ready(s) == 5)
        .await?;
    ensure!(weight_of(&status, &stable) == 100, "{:?}", status.traffic);
    stage.end().await
}

async fn every_step_by_command(namespace: Namespace) -> Result<()> {
    let (stage, stable, candidate) = Stage::at_first_step(namespace, 4, &[25, 50, 75]).await?;
    for (step, next) in [(0, 50), (1, 75)] {
        stage.act(ActionType::SkipStep, &candidate, Some(step)).await?;
        ensure!(stage.candidate_at(next).await? == candidate);
        let status = stage.status().await?;
        ensure!(candidate_ready(&status) * 25 >= next, "{status:?}");
        ensure!(
            status
                .stable
                .is_some_and(|known| known.revision == stable && known.ready_replicas == 4)
        );
    }
    stage.act(ActionType::SkipStep, &candidate, Some(2)).await?;
    stage.alone(&candidate).await?;
    stage.end().await
}

async fn two_skips_of_one_step_pass_one(namespace: Namespace) -> Result<()> {
    let (stage, _, candidate) = Stage::at_first_step(namespace, 2, &[25, 50]).await?;
    let (one, other) = tokio::join!(
        stage.command(ActionType::SkipStep, &candidate, Some(0)),
        stage.command(ActionType::SkipStep, &candidate, Some(0))
    );
    let mut results = [one?, other?].map(|(result, message)| (format!("{result:?}"), message));
    results.sort();
    ensure!(
        results[0].0 == "Applied" && results[1].0 == "Rejected",
        "{results:?}"
    );
    ensure!(results[1].1.len() > 20, "a refusal says why: {results:?}");
    stage.candidate_at(50).await?;
    stage
        .stays("the second step", 5, |s| {
            s.candidate.as_ref().is_some_and(|c| c.weight == 50)
        })
        .await?;
    stage.end().await
}

async fn a_late_command_is_refused(namespace: Namespace) -> Result<()> {
    let (stage, stable, candidate) = Stage::at_first_step(namespace, 2, &[25]).await?;
    let other = format!("{}-0123456789", super::stage::POOL);
    for (type_, revision, step) in [
        (ActionType::Abort, other.as_str(), None),
        (ActionType::SkipStep, &candidate, Some(3)),
        (ActionType::PromoteFull, &stable, None),
        (ActionType::Retry, &candidate, None),
    ] {
        let (result, message) = stage.command(type_, revision, step).await?;
        ensure!(
            result == ActionResult::Rejected && message.len() > 20,
            "{type_:?}: {result:?} {message}"
        );
    }
    stage.candidate_at(25).await?;
    stage.end().await
}

async fn promoted_in_full(namespace: Namespace) -> Result<()> {
    let (stage, _, candidate) = Stage::at_first_step(namespace, 2, &[5, 10, 20, 40]).await?;
    stage.act(ActionType::PromoteFull, &candidate, None).await?;
    stage.alone(&candidate).await?;
    stage.ready().await?;
    stage.end().await
}

async fn aborted(namespace: Namespace) -> Result<()> {
    let (mut stage, stable, candidate) = Stage::at_first_step(namespace, 3, &[50]).await?;
    stage.act(ActionType::Abort, &candidate, None).await?;
    let status = stage.alone(&stable).await?;
    ensure!(stable_ready(&status) == 3, "{status:?}");
    stage.has_pods(&candidate, 0).await?;
    let status = stage
        .until("the pool to be stalled", |s| holds(s, "Stalled"))
        .await?;
    ensure!(
        holds(&status, "Available") && !holds(&status, "Ready"),
        "{:?}",
        status.conditions
    );
    ensure!(
        status.rejected.iter().any(|known| known.revision == candidate),
        "{:?}",
        status.rejected
    );
    // The spec names what serves: nothing is wrong any more.
    stage.release_first().await?;
    stage.ready().await?;
    stage.end().await
}

async fn aborted_and_scaled_stays_at_zero(namespace: Namespace) -> Result<()> {
    let (mut stage, stable, candidate) = Stage::at_first_step(namespace, 2, &[50]).await?;
    stage.act(ActionType::Abort, &candidate, None).await?;
    stage.alone(&stable).await?;
    stage.change("/spec/replicas", json!(4)).await?;
    stage
        .until("stable to have grown", |s| stable_ready(s) == 4)
        .await?;
    stage.has_pods(&candidate, 0).await?;
    stage
        .stays("no candidate", 5, |s| {
            s.candidate.is_none() && weight_of(s, &stable) == 100
        })
        .await?;
    stage.end().await
}

/// The way back needs pods of stable first.
async fn aborted_with_shrunk_stable(namespace: Namespace) -> Result<()> {
    let mut rollout = canary(&[25, 75]);
    rollout["canary"]["stableScale"] = json!("Shrink");
    let mut stage = Stage::serving(namespace, 4, rollout).await?;
    let stable = stage.stable().await?;
    stage.release("second").await?;
    let candidate = stage.candidate_at(25).await?;
    stage.act(ActionType::SkipStep, &candidate, Some(0)).await?;
    stage.candidate_at(75).await?;
    stage
        .until("stable to have shrunk", |s| {
            s.stable.as_ref().is_some_and(|s| s.replicas < 4)
        })
        .await?;
    stage.act(ActionType::Abort, &candidate, None).await?;
    let status = stage.alone(&stable).await?;
    ensure!(stable_ready(&status) == 4, "{status:?}");
    stage.has_pods(&candidate, 0).await?;
    stage.end().await
}

async fn an_abort_without_a_release_changes_nothing(namespace: Namespace) -> Result<()> {
    let stage = Stage::serving(namespace, 2, canary(&[50])).await?;
    let stable = stage.stable().await?;
    let (result, message) = stage.command(ActionType::Abort, &stable, None).await?;
    ensure!(
        result == ActionResult::Rejected && message.len() > 20,
        "{message}"
    );
    stage.stays("Ready", 3, |s| holds(s, "Ready")).await?;
    stage.end().await
}

async fn retried_after_an_abort(namespace: Namespace) -> Result<()> {
    let (stage, stable, candidate) = Stage::at_first_step(namespace, 2, &[25, 50]).await?;
    stage.act(ActionType::SkipStep, &candidate, Some(0)).await?;
    stage.candidate_at(50).await?;
    stage.act(ActionType::Abort, &candidate, None).await?;
    stage.alone(&stable).await?;
    stage.act(ActionType::Retry, &candidate, None).await?;
    ensure!(stage.candidate_at(25).await? == candidate);
    let status = stage.status().await?;
    ensure!(status.candidate.is_some_and(|known| known.attempt == 2));
    stage.act(ActionType::PromoteFull, &candidate, None).await?;
    stage.alone(&candidate).await?;
    stage.end().await
}

async fn not_retried_by_noise(namespace: Namespace) -> Result<()> {
    let (mut stage, stable, candidate) = Stage::at_first_step(namespace, 2, &[50]).await?;
    stage.act(ActionType::Abort, &candidate, None).await?;
    stage.alone(&stable).await?;
    stage
        .namespace
        .kubectl(&["annotate", "apool/support", "example.com/noise=1", "--overwrite"])
        .await?;
    stage
        .change("/spec/disruption", json!({"maxUnavailable": 1}))
        .await?;
    if stage.namespace.cluster.is_local() {
        kill_leader(&stage.namespace).await?;
    }
    stage.apply().await?;
    stage
        .stays("no candidate", 25, |s| {
            s.candidate.is_none() && weight_of(s, &stable) == 100
        })
        .await?;
    stage.end().await
}

async fn superseded(namespace: Namespace) -> Result<()> {
    let (mut stage, stable, second) = Stage::at_first_step(namespace, 3, &[25, 50]).await?;
    stage.act(ActionType::SkipStep, &second, Some(0)).await?;
    stage.candidate_at(50).await?;
    stage.release("third").await?;
    // It inherits nothing: neither the weight nor the step.
    let third = stage.candidate_at(25).await?;
    ensure!(third != second, "{third}");
    let status = stage.status().await?;
    ensure!(status.stable.is_some_and(|known| known.revision == stable));
    stage.has_pods(&second, 0).await?;
    stage.act(ActionType::PromoteFull, &third, None).await?;
    stage.alone(&third).await?;
    stage.end().await
}

async fn superseded_while_the_leader_is_killed(namespace: Namespace) -> Result<()> {
    let (mut stage, _, second) = Stage::at_first_step(namespace, 2, &[50]).await?;
    stage.release("third").await?;
    if stage.namespace.cluster.is_local() {
        kill_leader(&stage.namespace).await?;
    }
    let third = stage.candidate_at(50).await?;
    ensure!(third != second);
    stage.has_pods(&second, 0).await?;
    stage.end().await
}

async fn back_to_stable(namespace: Namespace) -> Result<()> {
    let (mut stage, stable, candidate) = Stage::at_first_step(namespace, 3, &[50]).await?;
    stage.release_first().await?;
    stage.alone(&stable).await?;
    stage.ready().await?;
    stage.has_pods(&candidate, 0).await?;
    let status = stage.status().await?;
    ensure!(
        status.rejected.is_empty(),
        "nobody rejected it: {:?}",
        status.rejected
    );
    stage.end().await
}

async fn back_inside_the_window(namespace: Namespace) -> Result<()> {
    let (mut stage, first, second) = Stage::at_first_step(namespace, 2, &[50]).await?;
    stage.act(ActionType::PromoteFull, &second, None).await?;
    stage.alone(&second).await?;
    stage
        .change("/spec/rollout/rollbackWindowRevisions", json!(1))
        .await?;
    // It has served: nothing is to be proved again, and no command is needed.
    stage.release_first().await?;
    stage.alone(&first).await?;
    stage.end().await
}

async fn back_outside_the_window_is_judged(namespace: Namespace) -> Result<()> {
    let (mut stage, first, second) = Stage::at_first_step(namespace, 2, &[50]).await?;
    stage.act(ActionType::PromoteFull, &second, None).await?;
    stage.alone(&second).await?;
    stage
        .change("/spec/rollout/rollbackWindowRevisions", json!(0))
        .await?;
    stage.release_first().await?;
    ensure!(stage.candidate_at(50).await? == first);
    stage
        .stays("the step", 5, |s| weight_of(s, &second) == 50)
        .await?;
    stage.end().await
}

async fn steps_edited_under_way(namespace: Namespace) -> Result<()> {
    let (mut stage, _, candidate) = Stage::at_first_step(namespace, 4, &[25, 50]).await?;
    // The weight stays, and the next step is the first that is not below it.
    stage
        .change("/spec/rollout/canary/steps", held(&[10, 30, 60]))
        .await?;
    stage
        .until("the step of 30 %", |s| {
            s.candidate.as_ref().is_some_and(|c| c.weight == 30)
        })
        .await?;
    ensure!(stage.candidate_at(30).await? == candidate);
    stage.end().await
}

async fn former_pods_stay_for_the_delay(namespace: Namespace) -> Result<()> {
    let mut rollout = canary(&[50]);
    rollout["canary"]["scaleDownDelaySeconds"] = json!(15);
    let mut stage = Stage::serving(namespace, 2, rollout).await?;
    let stable = stage.stable().await?;
    stage.release("second").await?;
    let candidate = stage.candidate_at(50).await?;
    stage.act(ActionType::PromoteFull, &candidate, None).await?;
    stage
        .until("all the traffic", |s| weight_of(s, &candidate) == 100)
        .await?;
    ensure!(
        stage.pods(&stable).await?.len() == 2,
        "the former pods went at once"
    );
    stage.alone(&candidate).await?;
    stage.has_pods(&stable, 0).await?;
    stage.end().await
}

async fn the_spec_and_the_replicas_at_once(namespace: Namespace) -> Result<()> {
    let mut stage = Stage::serving(namespace, 2, canary(&[50])).await?;
    stage.set("/spec/replicas", json!(4)).release("second").await?;
    let candidate = stage.candidate_at(50).await?;
    stage
        .until("both sides", |s| stable_ready(s) == 4 && candidate_ready(s) == 2)
        .await?;
    stage.act(ActionType::PromoteFull, &candidate, None).await?;
    let status = stage.alone(&candidate).await?;
    ensure!(stable_ready(&status) == 4, "{status:?}");
    stage.end().await
}
