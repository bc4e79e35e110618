//! Releases that end in every way, under load: promoted, aborted, superseded, rolled back.

use super::pool::{self, SOON};
use crate::fixtures::with;
use crate::traffic::{Outcome, Plan, Traffic};
use crate::{Namespace, fixtures, wait};
use anyhow::{Result, bail};
use flotilla_crds::common::LocalRef;
use flotilla_crds::rollout_action::{ActionResult, ActionType, Expect, RolloutAction, RolloutActionSpec};
use flotilla_crds::{AgentPool, AgentPoolStatus};
use kube::api::PostParams;
use serde_json::{Value, json};
use std::time::Duration;

const POOL: &str = "support";
const LONGEST: Duration = Duration::from_secs(180);

/// What came of it.
#[derive(Clone, Debug)]
pub struct Turmoil {
    /// Releases that were begun.
    pub releases: u64,
    /// The client's view.
    pub traffic: Outcome,
}

fn spec(prompt: u64) -> Value {
    let step = |weight: i32| json!({"weight": weight, "ruleOutTimesWorse": 10, "minDurationSeconds": 3600, "decideWithinSeconds": 7200});
    let pool = with(
        fixtures::pool(POOL, 4),
        "/spec/rollout",
        json!({
            "type": "Canary", "settleSeconds": 0, "rollbackWindowRevisions": 3,
            "canary": {"steps": [step(20), step(50)], "bakeSeconds": 0, "scaleDownDelaySeconds": 0},
        }),
    );
    with(
        pool,
        "/spec/agent/prompt/text",
        json!(format!("{} Release {prompt}.", fixtures::PROMPT)),
    )
}

/// Sends `requests` at `per_second` while release after release ends in another way.
pub async fn under_load(namespace: Namespace, requests: u64, per_second: u32) -> Result<Turmoil> {
    pool::provider(&namespace).await?;
    namespace.apply(&spec(0)).await?;
    pool::ready(&namespace, POOL, SOON).await?;
    let traffic = Traffic::start(Plan {
        address: pool::address(&namespace, POOL).await?,
        host: format!("{POOL}.{}.svc", namespace.name),
        per_second,
        connections: 64,
        timeout: Duration::from_secs(30),
    });
    let mut serving = 0;
    let mut newest = 0;
    while traffic.sent() < requests {
        // Promoted.
        let before = serving;
        newest += 1;
        namespace.apply(&spec(newest)).await?;
        let candidate = weighted(&namespace, None).await?;
        act(&namespace, ActionType::PromoteFull, &candidate).await?;
        serves(&namespace, &candidate).await?;
        serving = newest;
        // Aborted; the spec goes back as well.
        newest += 1;
        namespace.apply(&spec(newest)).await?;
        let candidate = weighted(&namespace, None).await?;
        act(&namespace, ActionType::Abort, &candidate).await?;
        alone(&namespace).await?;
        namespace.apply(&spec(serving)).await?;
        pool::ready(&namespace, POOL, LONGEST).await?;
        // Superseded.
        newest += 1;
        namespace.apply(&spec(newest)).await?;
        let first = weighted(&namespace, None).await?;
        newest += 1;
        namespace.apply(&spec(newest)).await?;
        let second = weighted(&namespace, Some(&first)).await?;
        act(&namespace, ActionType::PromoteFull, &second).await?;
        serves(&namespace, &second).await?;
        // Rolled back to what served before, without being judged.
        namespace.apply(&spec(before)).await?;
        pool::ready(&namespace, POOL, LONGEST).await?;
        serving = before;
    }
    Ok(Turmoil {
        // A rollback is a release as well.
        releases: newest + newest / 4,
        traffic: traffic.stop().await,
    })
}

async fn status(namespace: &Namespace) -> Result<AgentPoolStatus, String> {
    let pool = namespace.api::<AgentPool>().get(POOL).await;
    pool.map(|pool| pool.status.unwrap_or_default())
        .map_err(|error| error.to_string())
}

/// The candidate once it has traffic, another one than `not`.
async fn weighted(namespace: &Namespace, not: Option<&str>) -> Result<String> {
    wait::until("a candidate with traffic", LONGEST, || async {
        let status = status(namespace).await?;
        match status.candidate {
            Some(candidate) if candidate.weight > 0 && not != Some(&candidate.revision) => {
                Ok(candidate.revision)
            }
            other => Err(format!("{other:?}")),
        }
    })
    .await
}

/// Waits until `revision` is stable and no candidate is left.
async fn serves(namespace: &Namespace, revision: &str) -> Result<()> {
    wait::until("the candidate to serve", LONGEST, || async {
        let status = status(namespace).await?;
        match status.stable {
            Some(stable) if stable.revision == revision && status.candidate.is_none() => Ok(()),
            other => Err(format!("{other:?} {:?}", status.rollout)),
        }
    })
    .await
}

/// Waits until no candidate is left.
async fn alone(namespace: &Namespace) -> Result<()> {
    wait::until("the candidate to be gone", LONGEST, || async {
        let status = status(namespace).await?;
        if status.candidate.is_none() {
            Ok(())
        } else {
            Err(format!("{:?}", status.rollout))
        }
    })
    .await
}

/// Gives a command and waits until it has been carried out.
async fn act(namespace: &Namespace, type_: ActionType, revision: &str) -> Result<()> {
    let api = namespace.api::<RolloutAction>();
    let mut action = RolloutAction::new(
        "",
        RolloutActionSpec {
            pool_ref: LocalRef { name: POOL.into() },
            type_,
            expect: Some(Expect {
                revision: revision.into(),
                ..Expect::default()
            }),
            reason: None,
        },
    );
    action.metadata.name = None;
    action.metadata.generate_name = Some(format!("{POOL}-"));
    let name = api
        .create(&PostParams::default(), &action)
        .await?
        .metadata
        .name
        .unwrap_or_default();
    let (result, message) = wait::until("an answer to the command", LONGEST, || async {
        let answered = api.get(&name).await.map_err(|error| error.to_string())?.status;
        let answered = answered.unwrap_or_default();
        let result = answered.result.ok_or("no result")?;
        Ok::<_, String>((result, answered.message))
    })
    .await?;
    if result != ActionResult::Applied {
        bail!("{type_:?} of {revision}: {message}");
    }
    Ok(())
}
