//! A budget that blocks: spent to its end under load, with a fallback, and through the loss of every gateway at once.

use crate::fixtures::with;
use crate::scenario::pool::{self, SOON};
use crate::traffic::{Outcome, Plan, Traffic};
use crate::{Namespace, fixtures, wait};
use anyhow::{Context, Result, ensure};
use flotilla_crds::ModelProvider;
use flotilla_crds::common::find;
use serde_json::json;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// What came of it.
#[derive(Clone, Debug)]
pub struct Spent {
    /// Of the budget of 20 dollars when it was exhausted, and 30 s after every gateway was replaced.
    pub dollars: [f64; 2],
    /// Requests to the fallback at those times.
    pub fallback: [i64; 2],
    /// What clients saw.
    pub traffic: [Outcome; 2],
}

/// Where a gateway answers agents.
const GATEWAY_PORT: u16 = 8081;

/// A cent for each token: a request of the reference agent costs about a dollar.
fn expensive(name: &str) -> serde_json::Value {
    let price = json!({"inputPerMillion": "10000", "outputPerMillion": "10000"});
    with(
        fixtures::provider(name),
        "/spec/models",
        json!([{"name": "sim-fast", "price": price}]),
    )
}

/// Spends the budget, deletes every gateway pod, and goes on.
pub async fn spend_and_lose_every_gateway(namespace: Namespace) -> Result<Spent> {
    let budget = json!({"limit": "20.00", "window": "Year"});
    namespace
        .apply(&with(expensive("main"), "/spec/budget", budget))
        .await?;
    namespace.apply(&fixtures::provider("backup")).await?;
    let fallbacks = json!([{"providerRef": {"name": "backup"}, "model": "sim-fast"}]);
    namespace
        .apply(&with(
            fixtures::pool("support", 2),
            "/spec/agent/models/0/fallbacks",
            fallbacks,
        ))
        .await?;
    pool::ready(&namespace, "support", SOON).await?;
    let traffic = async || {
        Ok::<_, anyhow::Error>(Traffic::start(Plan {
            address: pool::address(&namespace, "support").await?,
            host: format!("support.{}.svc", namespace.name),
            per_second: 5,
            connections: 8,
            timeout: Duration::from_secs(30),
        }))
    };
    let first = traffic().await?;
    wait::until("the budget to be exhausted", Duration::from_secs(180), || async {
        let provider = namespace.api::<ModelProvider>().get("main").await;
        let status = provider.map_err(|e| e.to_string())?.status.ok_or("no status")?;
        let alert = find(&status.conditions, "BudgetAlert").ok_or("no condition")?;
        match alert.reason.as_str() {
            "Exhausted" => Ok(()),
            reason => Err(format!("{reason}: {:?}", status.budget)),
        }
    })
    .await?;
    // What was in flight is counted by the next writing.
    tokio::time::sleep(Duration::from_secs(35)).await;
    let first = first.stop().await;
    let before = (spent(&namespace).await?, requests(&namespace, "backup").await?);

    let gateways = "app.kubernetes.io/name=flotilla-gateway";
    let lost = pool::endpoints(&namespace, "support").await?;
    namespace
        .kubectl(&["delete", "pods", "-l", gateways, "--grace-period=0", "--force"])
        .await?;
    // The API forgets a pod deleted by force at once, its containers end later: what agents ask them meanwhile is lost.
    wait::until("the end of the old gateways", SOON, || async {
        for address in &lost {
            let connect = TcpStream::connect((address.as_str(), GATEWAY_PORT));
            if let Ok(Ok(_)) = timeout(Duration::from_secs(1), connect).await {
                return Err(format!("{address} still listens"));
            }
        }
        let left = pool::endpoints(&namespace, "support").await;
        let left = left.map_err(|e| e.to_string())?;
        match left.iter().find(|address| lost.contains(address)) {
            Some(address) => Err(format!("{address} is still an endpoint")),
            None => Ok(()),
        }
    })
    .await?;
    pool::ready(&namespace, "support", SOON).await?;
    pool::two_gateways(&namespace, "support").await?;
    let second = traffic().await?;
    second.reach(50).await;
    tokio::time::sleep(Duration::from_secs(50)).await;
    let second = second.stop().await;
    let after = (spent(&namespace).await?, requests(&namespace, "backup").await?);
    ensure!(after.1 > before.1, "the fallback got nothing after the restart");
    Ok(Spent {
        dollars: [before.0, after.0],
        fallback: [before.1, after.1],
        traffic: [first, second],
    })
}

async fn spent(namespace: &Namespace) -> Result<f64> {
    let provider = namespace.api::<ModelProvider>().get("main").await?;
    let budget = provider
        .status
        .and_then(|status| status.budget)
        .context("no budget in the status")?;
    Ok(budget.spent.parse()?)
}

async fn requests(namespace: &Namespace, provider: &str) -> Result<i64> {
    let provider = namespace.api::<ModelProvider>().get(provider).await?;
    let usage = provider.status.and_then(|status| status.usage);
    Ok(usage.map_or(0, |usage| usage.requests))
}
