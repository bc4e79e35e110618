//! Many releases whose candidates are as good as stable, or so many times as bad: what the evidence makes of them.

use super::pool::{self, SOON};
use crate::fixtures::with;
use crate::traffic::{Outcome, Plan, Traffic};
use crate::{Namespace, fixtures};
use anyhow::{Context, Result, bail, ensure};
use flotilla_crds::AgentPool;
use futures::future::try_join_all;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// Share of the requests that stable's agent fails.
const STABLE_ERRORS: f64 = 0.02;
/// Requests per second of each pool.
const PER_SECOND: u32 = 30;
/// A release has ended by then.
const LONGEST: Duration = Duration::from_secs(600);

/// How one release ended.
#[derive(Clone, Debug)]
pub struct Judged {
    /// How many times as often as stable's its agent fails.
    pub times_as_bad: f64,
    /// Why it was rejected; none when it was promoted.
    pub rejected: Option<String>,
    /// The largest weight it had, in percent, seen every 500 ms.
    pub heaviest: i32,
    /// From the apply to the end.
    pub seconds: u64,
}

/// What a fleet of releases came to.
#[derive(Clone, Debug)]
pub struct Fleet {
    /// Each release.
    pub releases: Vec<Judged>,
    /// Requests of all pools.
    pub requests: u64,
    /// Requests that failed for another reason than the agents' own errors.
    pub failed_by_us: Vec<(String, u64)>,
}

/// A pool whose canary has short steps.
fn base(name: &str) -> Value {
    let step = |weight: i32, times: i32, seconds: i32| json!({"weight": weight, "ruleOutTimesWorse": times, "minDurationSeconds": seconds, "decideWithinSeconds": 600});
    let mut base = with(
        fixtures::pool(name, 1),
        "/spec/rollout",
        json!({
            "type": "Canary", "settleSeconds": 0,
            "canary": {
                "candidateMinReplicas": 1, "steps": [step(5, 10, 10), step(20, 5, 5), step(50, 3, 5)],
                "bakeSeconds": 5, "scaleDownDelaySeconds": 5
            },
            "analysis": {"warmupSeconds": 0},
        }),
    );
    // A window counts once its requests must be over.
    base["spec"]["traffic"] = json!({"requestTimeoutSeconds": 5});
    base
}

fn prompt(release: usize, errors: f64) -> Value {
    json!(format!(
        "{} Release {release}.\n<!-- flotilla: error-rate={errors} -->",
        fixtures::PROMPT
    ))
}

/// Releases `rounds` candidates, one after the other, in each of `pools` pools at once; each of `rounds` says how many times
/// as often as stable it fails. Rounds begin together, and none sooner than `apart` after the one before it of the same kind, so
/// that the storm breaker has no reason to open.
pub async fn fleet(namespace: Namespace, pools: usize, rounds: &[f64], apart: Duration) -> Result<Fleet> {
    pool::provider(&namespace).await?;
    let names: Vec<String> = (0..pools).map(|n| format!("p{n}")).collect();
    let mut traffic = Vec::new();
    for name in &names {
        let first = with(base(name), "/spec/agent/prompt/text", prompt(0, STABLE_ERRORS));
        namespace.apply(&first).await?;
    }
    for name in &names {
        pool::ready(&namespace, name, SOON * 2).await?;
        traffic.push(Traffic::start(Plan {
            address: pool::address(&namespace, name).await?,
            host: format!("{name}.{}.svc", namespace.name),
            per_second: PER_SECOND,
            connections: 8,
            timeout: Duration::from_secs(30),
        }));
    }
    let mut releases = Vec::new();
    let mut last_bad: Option<Instant> = None;
    for (round, times_as_bad) in rounds.iter().enumerate() {
        if *times_as_bad > 1.0 {
            if let Some(before) = last_bad {
                tokio::time::sleep(apart.saturating_sub(before.elapsed())).await;
            }
            last_bad = Some(Instant::now());
        }
        let all = names
            .iter()
            .map(|name| one(&namespace, name, round + 1, *times_as_bad));
        releases.extend(try_join_all(all).await?);
    }
    let mut fleet = Fleet {
        releases,
        requests: 0,
        failed_by_us: Vec::new(),
    };
    for one in traffic {
        let Outcome {
            requests, failures, ..
        } = one.stop().await;
        fleet.requests += requests;
        let ours = failures
            .into_iter()
            .filter(|(kind, _)| !kind.starts_with("status 500"));
        fleet.failed_by_us.extend(ours);
    }
    Ok(fleet)
}

async fn one(namespace: &Namespace, name: &str, round: usize, times_as_bad: f64) -> Result<Judged> {
    let api = namespace.api::<AgentPool>();
    let before = api.get(name).await?.status.unwrap_or_default();
    let stable = before.stable.context("no stable revision")?.revision;
    let start = Instant::now();
    let errors = STABLE_ERRORS * times_as_bad;
    namespace
        .apply(&with(
            base(name),
            "/spec/agent/prompt/text",
            prompt(round, errors),
        ))
        .await?;
    let mut heaviest = 0;
    let mut candidate = None;
    let mut last = String::new();
    while start.elapsed() < LONGEST {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let Ok(pool) = api.get(name).await else { continue };
        let status = pool.status.unwrap_or_default();
        if let Some(found) = &status.candidate {
            candidate = Some(found.revision.clone());
        }
        let Some(candidate) = &candidate else { continue };
        let weight = status.traffic.iter().find(|share| share.revision == *candidate);
        heaviest = heaviest.max(weight.map_or(0, |share| share.weight));
        let rejected = status.rejected.iter().find(|known| known.revision == *candidate);
        let serves = status.stable.as_ref().map(|stable| stable.revision.as_str());
        last = format!("{:?}", status.rollout);
        if status.candidate.is_none() && (rejected.is_some() || serves == Some(candidate)) {
            ensure!(
                rejected.is_none() || serves == Some(&stable),
                "{name}: rejected, and {serves:?} serves"
            );
            return Ok(Judged {
                times_as_bad,
                rejected: rejected.map(|known| format!("{}: {}", known.reason, known.message)),
                heaviest: if rejected.is_some() { heaviest } else { 100 },
                seconds: start.elapsed().as_secs(),
            });
        }
    }
    bail!("release {round} of {name} has not ended: {last}")
}
