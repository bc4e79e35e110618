//! Load tests: a verdict from real workers, and never a false Passed.

use super::pool::{self, SOON};
use crate::fixtures::with;
use crate::{Namespace, fixtures, operator, wait};
use anyhow::{Context, Result};
use flotilla_crds::LoadTest;
use flotilla_crds::common::{condition, is_true};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use serde_json::json;
use std::time::Duration;

/// Waits until the test is Complete.
pub async fn complete(namespace: &Namespace, name: &str, limit: Duration) -> Result<LoadTest> {
    let api = namespace.api::<LoadTest>();
    wait::until(&format!("load test {name} to be Complete"), limit, || async {
        let object = api.get(name).await.map_err(|e| e.to_string())?;
        let status = object.status.clone().unwrap_or_default();
        if is_true(&status.conditions, condition::COMPLETE) {
            Ok(object)
        } else {
            Err(format!("{:?}", status))
        }
    })
    .await
}

/// Runs a test of `seconds` at `per_second` with `workers` against a fresh pool.
pub async fn run(namespace: Namespace, per_second: u32, seconds: i32, workers: i32) -> Result<LoadTest> {
    pool::provider(&namespace).await?;
    namespace.apply(&fixtures::pool("support", 2)).await?;
    pool::ready(&namespace, "support", SOON).await?;
    namespace
        .apply(&fixtures::load_test(
            "steady",
            "support",
            &per_second.to_string(),
            seconds,
            workers,
        ))
        .await?;
    let done = complete(
        &namespace,
        "steady",
        SOON + Duration::from_secs(seconds.unsigned_abs().into()),
    )
    .await?;
    // The pods and the Job go once the result is in status; the result stays.
    let jobs = namespace.api::<Job>();
    wait::until("the Job to be cleaned up", SOON, || async {
        let left = jobs
            .list(&ListParams::default())
            .await
            .map_err(|e| e.to_string())?
            .items
            .len();
        if left == 0 {
            Ok(())
        } else {
            Err(format!("{left} Jobs"))
        }
    })
    .await?;
    Ok(done)
}

/// Runs a test with two workers and kills one of them in the middle.
pub async fn with_killed_worker(namespace: Namespace) -> Result<LoadTest> {
    pool::provider(&namespace).await?;
    namespace.apply(&fixtures::pool("support", 2)).await?;
    pool::ready(&namespace, "support", SOON).await?;
    let test = with(
        fixtures::load_test("killed", "support", "20", 20, 2),
        "/spec/workers",
        json!({"count": 2}),
    );
    namespace.apply(&test).await?;
    let api = namespace.api::<LoadTest>();
    wait::until("the test to have started", SOON, || async {
        let status = api
            .get("killed")
            .await
            .map_err(|e| e.to_string())?
            .status
            .unwrap_or_default();
        match status.progress {
            Some(p) if p.started > 0 => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await?;
    let pods = namespace.api::<Pod>();
    let worker = pods
        .list(&ListParams::default().labels("batch.kubernetes.io/job-completion-index=1"))
        .await?
        .items
        .into_iter()
        .next()
        .context("no worker 1")?;
    operator::kill_process(&worker, "flotilla-loadgen").await?;
    complete(&namespace, "killed", SOON + Duration::from_secs(60)).await
}
