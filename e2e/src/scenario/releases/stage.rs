//! A pool on its stage: its spec as it is changed, its status as it is waited for, and traffic all the time.

use crate::fixtures::with;
use crate::scenario::pool;
use crate::traffic::{Plan, Traffic};
use crate::{Namespace, fixtures, wait};
use anyhow::{Result, bail, ensure};
use flotilla_crds::agent_pool::StableStatus;
use flotilla_crds::common::{LocalRef, find, is_true};
use flotilla_crds::rollout_action::{ActionResult, ActionType, Expect, RolloutAction, RolloutActionSpec};
use flotilla_crds::{AgentPool, AgentPoolStatus, names};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{ListParams, PostParams};
use serde_json::{Value, json};
use std::time::Duration;

/// Name of the pool.
pub const POOL: &str = "support";
/// Enough for anything that is not a matter of evidence.
pub const LONGEST: Duration = Duration::from_secs(120);

/// A pool under traffic.
pub struct Stage {
    /// Where it is.
    pub namespace: Namespace,
    spec: Value,
    traffic: Option<Traffic>,
}

/// Steps that nothing but a command passes.
pub fn held(weights: &[i32]) -> Value {
    let step = |weight: &i32| json!({"weight": weight, "ruleOutTimesWorse": 10, "minDurationSeconds": 3600, "decideWithinSeconds": 7200});
    Value::Array(weights.iter().map(step).collect())
}

/// A canary with such steps, without bake and delay.
pub fn canary(weights: &[i32]) -> Value {
    json!({
        "type": "Canary", "settleSeconds": 0, "progressDeadlineSeconds": 20,
        "canary": {"candidateMinReplicas": 1, "steps": held(weights), "bakeSeconds": 0, "scaleDownDelaySeconds": 0},
    })
}

impl Stage {
    /// A pool that has not been applied yet.
    pub async fn new(namespace: Namespace, replicas: i32, rollout: Value) -> Result<Self> {
        pool::provider(&namespace).await?;
        let spec = with(fixtures::pool(POOL, replicas), "/spec/rollout", rollout);
        Ok(Self {
            namespace,
            spec,
            traffic: None,
        })
    }

    /// A pool that serves, with traffic.
    pub async fn serving(namespace: Namespace, replicas: i32, rollout: Value) -> Result<Self> {
        let mut stage = Self::new(namespace, replicas, rollout).await?;
        stage.apply().await?;
        stage.ready().await?;
        stage.begin_traffic().await?;
        Ok(stage)
    }

    /// A pool with `replicas` that serves, and a candidate at the first of the steps `weights`; gives their names.
    pub async fn at_first_step(
        namespace: Namespace,
        replicas: i32,
        weights: &[i32],
    ) -> Result<(Self, String, String)> {
        let mut stage = Self::serving(namespace, replicas, canary(weights)).await?;
        let stable = stage.stable().await?;
        stage.release("second").await?;
        let first = weights.first().copied().unwrap_or_default();
        let candidate = stage.candidate_at(first).await?;
        Ok((stage, stable, candidate))
    }

    /// Starts to send 20 requests per second.
    pub async fn begin_traffic(&mut self) -> Result<()> {
        self.traffic = Some(Traffic::start(Plan {
            address: pool::address(&self.namespace, POOL).await?,
            host: format!("{POOL}.{}.svc", self.namespace.name),
            per_second: 20,
            connections: 8,
            timeout: Duration::from_secs(30),
        }));
        Ok(())
    }

    /// Applies the spec as it is.
    pub async fn apply(&self) -> Result<()> {
        self.namespace.apply(&self.spec).await
    }

    /// Sets a field of the object, without applying it.
    pub fn set(&mut self, pointer: &str, value: Value) -> &mut Self {
        self.spec = with(std::mem::take(&mut self.spec), pointer, value);
        self
    }

    /// Sets a field and applies.
    pub async fn change(&mut self, pointer: &str, value: Value) -> Result<()> {
        self.set(pointer, value).apply().await
    }

    /// Releases a good revision of this name.
    pub async fn release(&mut self, revision: &str) -> Result<()> {
        let prompt = format!("{} Revision {revision}.", fixtures::PROMPT);
        self.change("/spec/agent/prompt/text", json!(prompt)).await
    }

    /// Releases one that never becomes ready.
    pub async fn release_unready(&mut self, revision: &str) -> Result<()> {
        let prompt = format!("Revision {revision} for {{{{nobody}}}}.");
        self.change("/spec/agent/prompt/text", json!(prompt)).await
    }

    /// Goes back to the prompt of the fixtures.
    pub async fn release_first(&mut self) -> Result<()> {
        self.change("/spec/agent/prompt/text", json!(fixtures::PROMPT))
            .await
    }

    /// Waits for a status that `is` so.
    pub async fn until(&self, what: &str, is: impl Fn(&AgentPoolStatus) -> bool) -> Result<AgentPoolStatus> {
        wait::until(what, LONGEST, || async {
            let status = self.status().await.map_err(|error| error.to_string())?;
            if is(&status) {
                Ok(status)
            } else {
                Err(format!(
                    "stable {:?}, candidate {:?}, {:?}",
                    status.stable, status.candidate, status.rollout
                ))
            }
        })
        .await
    }

    /// The status as it is.
    pub async fn status(&self) -> Result<AgentPoolStatus> {
        let pool = self.namespace.api::<AgentPool>().get(POOL).await?;
        Ok(pool.status.unwrap_or_default())
    }

    /// Waits for Ready.
    pub async fn ready(&self) -> Result<()> {
        pool::ready(&self.namespace, POOL, LONGEST).await.map(drop)
    }

    /// The serving revision.
    pub async fn stable(&self) -> Result<String> {
        let status = self.until("a stable revision", |s| s.stable.is_some()).await?;
        Ok(status.stable.unwrap_or_default().revision)
    }

    /// Waits until there is a candidate whose weight is confirmed at `weight`; gives its name.
    pub async fn candidate_at(&self, weight: i32) -> Result<String> {
        let status = self
            .until(&format!("a candidate at {weight} %"), |status| {
                let reached = status.rollout.as_ref().and_then(|rollout| rollout.step.as_ref());
                status
                    .candidate
                    .as_ref()
                    .is_some_and(|known| known.weight == weight)
                    && reached.is_some_and(|step| step.weight == weight)
            })
            .await?;
        Ok(status.candidate.unwrap_or_default().revision)
    }

    /// Waits until `revision` serves alone, with all of its replicas.
    pub async fn alone(&self, revision: &str) -> Result<AgentPoolStatus> {
        self.until(&format!("{revision} to serve alone"), |status| {
            let serves = status.stable.as_ref().is_some_and(|s| s.revision == revision);
            serves && status.candidate.is_none() && weight_of(status, revision) == 100
        })
        .await
    }

    /// Waits for the reason of Ready, whatever its status.
    pub async fn reason(&self, reason: &str) -> Result<()> {
        let is = |status: &AgentPoolStatus| {
            find(&status.conditions, "Ready").is_some_and(|ready| ready.reason == reason)
        };
        self.until(&format!("Ready to say {reason}"), is).await.map(drop)
    }

    /// Gives a command and its answer.
    pub async fn command(
        &self,
        type_: ActionType,
        revision: &str,
        step: Option<i32>,
    ) -> Result<(ActionResult, String)> {
        let api = self.namespace.api::<RolloutAction>();
        let name = self.submit(type_, revision, step).await?;
        wait::until("an answer to the command", LONGEST, || async {
            let action = api.get(&name).await.map_err(|error| error.to_string())?;
            let answer = action.status.unwrap_or_default();
            let result = answer.result.ok_or("no result")?;
            Ok::<_, String>((result, answer.message))
        })
        .await
    }

    /// Creates a command; gives its name.
    pub async fn submit(&self, type_: ActionType, revision: &str, step: Option<i32>) -> Result<String> {
        let mut action = RolloutAction::new(
            "",
            RolloutActionSpec {
                pool_ref: LocalRef { name: POOL.into() },
                type_,
                expect: (!revision.is_empty()).then(|| Expect {
                    revision: revision.into(),
                    attempt: None,
                    step,
                }),
                reason: None,
            },
        );
        action.metadata.name = None;
        action.metadata.generate_name = Some(format!("{POOL}-"));
        let api = self.namespace.api::<RolloutAction>();
        let made = api.create(&PostParams::default(), &action).await?;
        Ok(made.metadata.name.unwrap_or_default())
    }

    /// Gives a command that is carried out.
    pub async fn act(&self, type_: ActionType, revision: &str, step: Option<i32>) -> Result<()> {
        match self.command(type_, revision, step).await? {
            (ActionResult::Applied, _) => Ok(()),
            (ActionResult::Rejected, message) => bail!("{type_:?}: {message}"),
        }
    }

    /// Names of the pods of a revision that are not on their way out.
    pub async fn pods(&self, revision: &str) -> Result<Vec<String>> {
        let selector = format!("{}={revision}", names::REVISION);
        let pods = self
            .namespace
            .api::<Pod>()
            .list(&ListParams::default().labels(&selector))
            .await?;
        let live = pods
            .items
            .into_iter()
            .filter(|pod| pod.metadata.deletion_timestamp.is_none());
        Ok(live.filter_map(|pod| pod.metadata.name).collect())
    }

    /// Waits until a revision has `count` pods.
    pub async fn has_pods(&self, revision: &str, count: usize) -> Result<()> {
        wait::until(&format!("{count} pods of {revision}"), LONGEST, || async {
            let pods = self.pods(revision).await.map_err(|error| error.to_string())?;
            if pods.len() == count {
                Ok(())
            } else {
                Err(format!("{pods:?}"))
            }
        })
        .await
    }

    /// Looks for `seconds` whether the status stays so.
    pub async fn stays(&self, what: &str, seconds: u64, is: impl Fn(&AgentPoolStatus) -> bool) -> Result<()> {
        for _ in 0..seconds * 2 {
            let status = self.status().await?;
            ensure!(
                is(&status),
                "{what} does not hold: {:?} {:?}",
                status.candidate,
                status.rollout
            );
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        Ok(())
    }

    /// Ends the traffic: none of it may have failed.
    pub async fn end(mut self) -> Result<()> {
        if let Some(traffic) = self.traffic.take() {
            let outcome = traffic.stop().await;
            ensure!(
                outcome.requests > 20,
                "only {} requests were sent",
                outcome.requests
            );
            ensure!(outcome.failed() == 0, "requests failed: {outcome:?}");
        }
        Ok(())
    }
}

/// The weight of a revision, 0 to 100.
pub fn weight_of(status: &AgentPoolStatus, revision: &str) -> i32 {
    let share = status.traffic.iter().find(|share| share.revision == revision);
    share.map_or(0, |share| share.weight)
}

/// Replicas of the serving revision that are ready.
pub fn stable_ready(status: &AgentPoolStatus) -> i32 {
    status
        .stable
        .as_ref()
        .map_or(0, |StableStatus { ready_replicas, .. }| *ready_replicas)
}

/// Replicas of the candidate that are ready.
pub fn candidate_ready(status: &AgentPoolStatus) -> i32 {
    status
        .candidate
        .as_ref()
        .map_or(0, |candidate| candidate.ready_replicas)
}

/// Whether a condition is True.
pub fn holds(status: &AgentPoolStatus, condition: &str) -> bool {
    is_true(&status.conditions, condition)
}
