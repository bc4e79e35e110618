//! Releases under load: a good one takes over without a failed request, a bad one does not take over.

use super::pool::{self, SOON};
use crate::fixtures::with;
use crate::traffic::{Outcome, Plan, Traffic};
use crate::{Namespace, fixtures, operator, wait};
use anyhow::{Context, Result};
use flotilla_crds::AgentPool;
use flotilla_crds::names;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, ListParams};
use serde_json::json;
use std::time::Duration;

/// Sizes of [`rolling_under_load`].
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Requests in all.
    pub requests: u64,
    /// Requests per second.
    pub per_second: u32,
    /// Releases, spread over the requests.
    pub releases: u64,
}

/// Sends traffic through two gateway replicas while revision after revision is released; in the middle of the second
/// release the leading operator is killed, in the middle of the third a gateway pod is deleted gracefully.
pub async fn rolling_under_load(namespace: Namespace, sizes: Sizes) -> Result<Outcome> {
    pool::provider(&namespace).await?;
    let base = fixtures::pool("support", 4);
    namespace.apply(&base).await?;
    pool::ready(&namespace, "support", SOON).await?;
    pool::two_gateways(&namespace, "support").await?;
    let traffic = Traffic::start(Plan {
        address: pool::address(&namespace, "support").await?,
        host: format!("support.{}.svc", namespace.name),
        per_second: sizes.per_second,
        connections: 64,
        timeout: Duration::from_secs(30),
    });
    let share = sizes.requests / (sizes.releases + 1);
    for release in 1..=sizes.releases {
        traffic.reach(share * release).await;
        let prompt = format!("{} Release {release}.", fixtures::PROMPT);
        namespace
            .apply(&with(base.clone(), "/spec/agent/prompt/text", json!(prompt)))
            .await?;
        match release {
            2 if namespace.cluster.is_local() => {
                wait_for_candidate(&namespace, "support").await?;
                kill_leader(&namespace).await?;
            }
            3 => {
                wait_for_candidate(&namespace, "support").await?;
                delete_one_gateway(&namespace).await?;
            }
            _ => {}
        }
        pool::ready(&namespace, "support", Duration::from_secs(180))
            .await
            .context(format!("release {release}"))?;
    }
    traffic.reach(sizes.requests).await;
    Ok(traffic.stop().await)
}

/// Waits until a release is under way: the candidate has a replica.
pub async fn wait_for_candidate(namespace: &Namespace, pool: &str) -> Result<String> {
    let api = namespace.api::<AgentPool>();
    wait::until("a candidate with a replica", SOON, || async {
        let status = api
            .get(pool)
            .await
            .map_err(|e| e.to_string())?
            .status
            .unwrap_or_default();
        match status.candidate {
            Some(c) if c.replicas > 0 => Ok(c.revision),
            other => Err(format!("{other:?}")),
        }
    })
    .await
}

/// Kills the leading operator with SIGKILL.
pub async fn kill_leader(namespace: &Namespace) -> Result<()> {
    let leader = operator::leader(&namespace.cluster)
        .await?
        .context("nobody leads")?;
    let pods = operator::pods(&namespace.cluster).await?;
    let pod = pods
        .iter()
        .find(|p| p.metadata.name.as_deref() == Some(&leader))
        .context("the leader has no pod")?;
    operator::kill(pod).await
}

/// Deletes a gateway pod of the namespace gracefully.
pub async fn delete_one_gateway(namespace: &Namespace) -> Result<()> {
    let api = namespace.api::<Pod>();
    let pods = api
        .list(&ListParams::default().labels(&format!("{}={}", names::APP_NAME, names::GATEWAY)))
        .await?;
    let name = pods
        .items
        .first()
        .and_then(|p| p.metadata.name.clone())
        .context("no gateway pod")?;
    api.delete(&name, &DeleteParams::default()).await?;
    Ok(())
}

/// Releases a prompt that the agent refuses; gives the message of `Stalled`, and the outcome of traffic meanwhile.
pub async fn bad_release(namespace: Namespace) -> Result<(String, Outcome)> {
    pool::provider(&namespace).await?;
    let base = with(
        fixtures::pool("support", 2),
        "/spec/rollout",
        json!({"settleSeconds": 0, "progressDeadlineSeconds": 15}),
    );
    namespace.apply(&base).await?;
    let before = pool::ready(&namespace, "support", SOON).await?;
    let traffic = Traffic::start(Plan {
        address: pool::address(&namespace, "support").await?,
        host: format!("support.{}.svc", namespace.name),
        per_second: 50,
        connections: 8,
        timeout: Duration::from_secs(30),
    });
    let broken = with(
        base.clone(),
        "/spec/agent/prompt/text",
        json!("You help {{customer_name}}."),
    );
    namespace.apply(&broken).await?;
    let message = pool::condition_is(
        &namespace,
        "support",
        "Stalled",
        &["ProbeFailing"],
        Duration::from_secs(90),
    )
    .await?;
    let after = namespace
        .api::<AgentPool>()
        .get("support")
        .await?
        .status
        .context("no status")?;
    let stable =
        |status: Option<flotilla_crds::AgentPoolStatus>| status.and_then(|s| s.stable).map(|s| s.revision);
    anyhow::ensure!(
        stable(before.status) == stable(Some(after.clone())),
        "the stable revision changed: {after:?}"
    );
    anyhow::ensure!(
        flotilla_crds::common::is_true(&after.conditions, "Available"),
        "not Available: {after:?}"
    );
    // Mending the spec ends the stall.
    namespace.apply(&base).await?;
    pool::ready(&namespace, "support", SOON).await?;
    Ok((message, traffic.stop().await))
}

/// What a canary came to.
#[derive(Clone, Debug)]
pub struct Canary {
    /// Seconds from the apply to the end of the release, promoted or back.
    pub seconds: u64,
    /// `status.rollout.metrics` as last seen while it was judged.
    pub metrics: Vec<flotilla_crds::agent_pool::MetricStatus>,
    /// Why it was rejected, if it was.
    pub rejected: Option<String>,
    /// The client's view; what the agent itself answers with 500 is a failure here.
    pub traffic: Outcome,
}

/// A canary under traffic whose new prompt makes the agent fail a share `error_rate` of its requests; waits until it has
/// been promoted or led back, with the leading operator killed while it is judged.
pub async fn canary(namespace: Namespace, error_rate: f64) -> Result<Canary> {
    pool::provider(&namespace).await?;
    let step = |weight: i32| json!({"weight": weight, "ruleOutTimesWorse": 10, "minDurationSeconds": 10, "decideWithinSeconds": 600});
    let mut base = with(
        fixtures::pool("support", 2),
        "/spec/rollout",
        json!({
            "type": "Canary", "settleSeconds": 0,
            "canary": {"steps": [step(20), step(50)], "bakeSeconds": 40, "scaleDownDelaySeconds": 20},
            "analysis": {"warmupSeconds": 0, "errors": {"acceptableErrorPercent": "5"}},
        }),
    );
    // A window counts once its requests must be over.
    base["spec"]["traffic"] = json!({"requestTimeoutSeconds": 5});
    namespace.apply(&base).await?;
    let before = pool::ready(&namespace, "support", SOON).await?;
    let stable_before = before
        .status
        .and_then(|status| status.stable)
        .context("no stable revision")?;
    let traffic = Traffic::start(Plan {
        address: pool::address(&namespace, "support").await?,
        host: format!("support.{}.svc", namespace.name),
        per_second: 60,
        connections: 16,
        timeout: Duration::from_secs(30),
    });
    let prompt = format!("{}\n<!-- flotilla: error-rate={error_rate} -->", fixtures::PROMPT);
    let start = std::time::Instant::now();
    namespace
        .apply(&with(base, "/spec/agent/prompt/text", json!(prompt)))
        .await?;
    let api = namespace.api::<AgentPool>();
    // A bad one may be rejected at the first look at its counts.
    let (metrics, is_over) = wait::until("a judged candidate", Duration::from_secs(120), || async {
        let status = api
            .get("support")
            .await
            .map_err(|e| e.to_string())?
            .status
            .unwrap_or_default();
        let rollout = status.rollout.unwrap_or_default();
        let is_judged = rollout.metrics.iter().any(|metric| metric.candidate.is_some());
        let is_over = !status.rejected.is_empty();
        match is_judged || is_over {
            true => Ok((rollout.metrics, is_over)),
            false => Err(format!("{rollout:?}")),
        }
    })
    .await?;
    if namespace.cluster.is_local() && !is_over {
        kill_leader(&namespace).await?;
    }
    let status = wait::until("the release to end", Duration::from_secs(300), || async {
        let status = api
            .get("support")
            .await
            .map_err(|e| e.to_string())?
            .status
            .unwrap_or_default();
        let is_over = status.candidate.is_none() && status.stable.is_some();
        let has_moved = status.stable.as_ref().map(|stable| &stable.revision)
            != Some(&stable_before.revision)
            || !status.rejected.is_empty();
        match is_over && has_moved {
            true => Ok(status),
            false => Err(format!("{:?}", status.rollout)),
        }
    })
    .await?;
    Ok(Canary {
        seconds: start.elapsed().as_secs(),
        metrics,
        rejected: status
            .rejected
            .first()
            .map(|rejected| format!("{}: {}", rejected.reason, rejected.message)),
        traffic: traffic.stop().await,
    })
}
