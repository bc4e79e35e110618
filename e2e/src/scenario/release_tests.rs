//! Releases with tests of the new revision.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use flotilla_crds::agent_pool::AgentPoolStatus;
use flotilla_crds::common::find;
use flotilla_crds::{AgentPool, LoadTest, names};
use kube::api::ListParams;
use serde_json::{Value, json};

use super::pool::{self, SOON};
use crate::fixtures::with;
use crate::{Namespace, fixtures, wait};

/// How long a release with its tests may take.
const RELEASE: Duration = Duration::from_secs(240);

/// What a release with tests came to.
#[derive(Clone, Debug)]
pub struct Tested {
    /// The highest weight the candidate was seen to have, in percent.
    pub highest_weight: i32,
    /// Why it was rejected, `<reason>: <message>`; none when it serves.
    pub rejected: Option<String>,
    /// LoadTests made for it, by verdict.
    pub load_tests: Vec<String>,
}

/// A LoadTest that never runs itself: `requests` requests one by one, p95 within `p95` milliseconds.
pub fn template(name: &str, requests: i32, p95: i32) -> Value {
    let mut test = fixtures::load_test(name, "support", "1", 1, 1);
    test["spec"]["suspend"] = json!(true);
    test["spec"]["stages"] =
        json!([{"name": "all", "type": "Batch", "batch": {"size": 4, "requests": requests}}]);
    test["spec"]["thresholds"] = json!({"p95Milliseconds": p95});
    test
}

/// Releases a changed prompt with these fields of `spec.rollout`, and waits until it serves or was rejected.
pub async fn release(namespace: &Namespace, rollout: Value) -> Result<Tested> {
    pool::provider(namespace).await?;
    let mut base = with(fixtures::pool("support", 2), "/spec/rollout", rollout);
    base["spec"]["agent"]["protocol"] = json!("A2A");
    // What is tested here is the second one.
    base["spec"]["rollout"]["initialGates"] = json!("Skip");
    namespace.apply(&base).await?;
    let before = pool::ready(namespace, "support", SOON).await?;
    let stable = |status: &AgentPoolStatus| status.stable.as_ref().map(|stable| stable.revision.clone());
    let before = stable(&before.status.unwrap_or_default()).context("no stable revision")?;
    let prompt = format!("{} Release 2.", fixtures::PROMPT);
    namespace
        .apply(&with(base, "/spec/agent/prompt/text", json!(prompt)))
        .await?;
    let api = namespace.api::<AgentPool>();
    let highest = std::sync::atomic::AtomicI32::new(0);
    let status = wait::until("the release to end", RELEASE, || async {
        let object = api.get("support").await.map_err(|e| e.to_string())?;
        let status = object.status.unwrap_or_default();
        let weight = status.candidate.as_ref().map_or(0, |candidate| candidate.weight);
        highest.fetch_max(weight, std::sync::atomic::Ordering::Relaxed);
        let has_moved = stable(&status).is_some_and(|now| now != before) || !status.rejected.is_empty();
        if status.candidate.is_none() && has_moved {
            Ok(status)
        } else {
            let ready = find(&status.conditions, "Ready").map(|ready| ready.reason.clone());
            Err(format!("{ready:?} {:?}", status.rollout))
        }
    })
    .await?;
    let tests = namespace
        .api::<LoadTest>()
        .list(&ListParams::default().labels(&format!("{}=support", names::TESTED_POOL)))
        .await?;
    let verdict = |test: LoadTest| format!("{:?}", test.status.and_then(|status| status.verdict));
    Ok(Tested {
        highest_weight: highest.load(std::sync::atomic::Ordering::Relaxed),
        rejected: status
            .rejected
            .first()
            .map(|rejected| format!("{}: {}", rejected.reason, rejected.message)),
        load_tests: tests.items.into_iter().map(verdict).collect(),
    })
}

/// A first revision whose smoke test fails, and then one that passes it.
pub async fn first_revision(namespace: Namespace) -> Result<()> {
    pool::provider(&namespace).await?;
    // Several attempts: a Service refuses connections for a moment after its first endpoint is there.
    let rollout = |path: &str| json!({"type": "Canary", "settleSeconds": 0, "smokeTests": [{"name": "health", "type": "HTTP", "http": {"path": path}, "attempts": 3}]});
    let base = fixtures::pool("support", 1);
    namespace
        .apply(&with(base.clone(), "/spec/rollout", rollout("/no-such-path")))
        .await?;
    let api = namespace.api::<AgentPool>();
    let status = wait::until("the first revision to be stopped", SOON * 2, || async {
        let object = api.get("support").await.map_err(|e| e.to_string())?;
        let status = object.status.unwrap_or_default();
        let reason = find(&status.conditions, "Ready").map(|ready| ready.reason.clone());
        match reason.as_deref() {
            Some("SmokeTestFailed") => Ok(status),
            other => Err(format!("{other:?}")),
        }
    })
    .await?;
    ensure!(status.stable.is_none() && status.traffic.is_empty(), "{status:?}");
    // Another revision, and tests that it can pass.
    let prompt = format!("{} Release 2.", fixtures::PROMPT);
    let mended = with(base, "/spec/rollout", rollout("/healthz"));
    namespace
        .apply(&with(mended, "/spec/agent/prompt/text", json!(prompt)))
        .await?;
    pool::ready(&namespace, "support", SOON * 2).await.map(drop)
}
