//! Budgets that block: a provider's, spent to its end under load, with a fallback, and through the loss of every gateway at
//! once; and one of a single model, beside another model of the same provider.

use crate::fixtures::with;
use crate::scenario::pool::{self, SOON};
use crate::traffic::{Outcome, Plan, Traffic};
use crate::{Namespace, fixtures, wait};
use anyhow::{Context, Result, ensure};
use flotilla_crds::ModelProvider;
use flotilla_crds::common::find;
use k8s_openapi::api::core::v1::Event;
use kube::api::ListParams;
use serde_json::json;
use std::collections::BTreeSet;
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

/// Sends `per_second` requests to a pool.
async fn traffic(namespace: &Namespace, pool: &str, per_second: u32) -> Result<Traffic> {
    Ok(Traffic::start(Plan {
        address: pool::address(namespace, pool).await?,
        host: format!("{pool}.{}.svc", namespace.name),
        per_second,
        connections: 8,
        timeout: Duration::from_secs(30),
    }))
}

/// Waits until the condition BudgetAlert of provider `main` says that a budget is spent; gives its message.
async fn exhausted(namespace: &Namespace) -> Result<String> {
    wait::until("the budget to be exhausted", Duration::from_secs(180), || async {
        let provider = namespace.api::<ModelProvider>().get("main").await;
        let status = provider.map_err(|e| e.to_string())?.status.ok_or("no status")?;
        let alert = find(&status.conditions, "BudgetAlert").ok_or("no condition")?;
        match alert.reason.as_str() {
            "Exhausted" => Ok(alert.message.clone()),
            reason => Err(format!(
                "{reason}: {:?} {:?}",
                status.budget, status.model_budgets
            )),
        }
    })
    .await
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
    let first = traffic(&namespace, "support", 5).await?;
    exhausted(&namespace).await?;
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
    let second = traffic(&namespace, "support", 5).await?;
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

/// What came of a budget of one model.
#[derive(Clone, Debug)]
pub struct OfOneModel {
    /// The condition's message when the budget was spent.
    pub message: String,
    /// Of its 40 dollars, at the end.
    pub dollars: f64,
    /// Reasons of the events that announced it.
    pub announced: BTreeSet<String>,
    /// What clients of the pool that uses it saw after that.
    pub blocked: Outcome,
    /// What clients of the pool that uses the other model saw, from beginning to end.
    pub other: Outcome,
}

/// Spends the budget of `sim-fast` by one pool, while another uses `sim` of the same provider at the same price.
pub async fn spend_on_one_model(namespace: Namespace) -> Result<OfOneModel> {
    let price = json!({"inputPerMillion": "10000", "outputPerMillion": "10000"});
    let models = json!([
        {"name": "sim-fast", "price": price, "budget": {"limit": "40.00", "window": "Year"}},
        {"name": "sim", "price": price},
    ]);
    namespace
        .apply(&with(fixtures::provider("main"), "/spec/models", models))
        .await?;
    namespace.apply(&fixtures::pool("support", 1)).await?;
    let other = with(
        fixtures::pool("sales", 1),
        "/spec/agent/models/0/model",
        json!("sim"),
    );
    namespace.apply(&other).await?;
    pool::ready(&namespace, "support", SOON).await?;
    pool::ready(&namespace, "sales", SOON).await?;
    let (spends, other) = (
        traffic(&namespace, "support", 2).await?,
        traffic(&namespace, "sales", 2).await?,
    );
    let message = exhausted(&namespace).await?;
    spends.stop().await;
    let blocked = traffic(&namespace, "support", 5).await?;
    let reached = other.sent() + 20;
    blocked.reach(30).await;
    other.reach(reached).await;
    let (blocked, other) = (blocked.stop().await, other.stop().await);
    let announced = wait::until("the events of three thresholds", SOON, || async {
        let params =
            ListParams::default().fields("involvedObject.kind=ModelProvider,involvedObject.name=main");
        let events = namespace.api::<Event>().list(&params).await;
        let reasons = events
            .map_err(|e| e.to_string())?
            .into_iter()
            .filter_map(|e| e.reason);
        let reasons: BTreeSet<String> = reasons.filter(|reason| reason.starts_with("Budget")).collect();
        if reasons.len() >= 3 {
            Ok(reasons)
        } else {
            Err(format!("{reasons:?}"))
        }
    })
    .await?;
    let status = namespace.api::<ModelProvider>().get("main").await?.status;
    let budgets = status.map(|status| status.model_budgets).unwrap_or_default();
    let own = budgets.iter().find(|budget| budget.name == "sim-fast");
    let dollars = own
        .context("no budget of the model in the status")?
        .budget
        .spent
        .parse()?;
    Ok(OfOneModel {
        message,
        dollars,
        announced,
        blocked,
        other,
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
