//! Agent pods that prove themselves by a token of the cluster's own, from kubelet's mount to the gateway's check.

use anyhow::{Context, Result, ensure};
use flotilla_e2e::fixtures::{self, with};
use flotilla_e2e::scenario::pool::{self, SOON};
use flotilla_e2e::traffic::{Plan, Traffic};
use flotilla_e2e::{Namespace, with_namespace};
use serde_json::{Value, json};
use std::time::Duration;

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_with_tokens_reaches_its_provider() {
    with_namespace("identity", |namespace| async move {
        pool::provider(&namespace).await?;
        let pool = with(
            fixtures::pool("support", 1),
            "/spec/agent/egressIdentity",
            json!("Token"),
        );
        namespace.apply(&pool).await?;
        pool::ready(&namespace, "support", SOON).await?;
        is_asked_for(&namespace).await?;
        let plan = Plan {
            address: pool::address(&namespace, "support").await?,
            host: "support".into(),
            per_second: 10,
            connections: 4,
            timeout: Duration::from_secs(30),
        };
        let traffic = Traffic::start(plan);
        traffic.reach(100).await;
        let outcome = traffic.stop().await;
        // The first ones may come before the gateway has read the cluster's keys.
        let refused: u64 = outcome
            .failures
            .iter()
            .filter(|(kind, _)| !kind.contains("TokenUnverifiable"))
            .map(|(_, count)| count)
            .sum();
        ensure!(refused == 0 && outcome.failed() < 10, "{outcome:?}");
        // Back to addresses: a new revision, without a mount.
        namespace.apply(&fixtures::pool("support", 1)).await?;
        namespace
            .kubectl(&[
                "patch",
                "apool/support",
                "--type=merge",
                "-p",
                r#"{"spec":{"agent":{"egressIdentity":"Address"}}}"#,
            ])
            .await?;
        pool::ready(&namespace, "support", Duration::from_secs(120)).await?;
        Ok(())
    })
    .await;
}

/// Otherwise the test would pass without a token.
async fn is_asked_for(namespace: &Namespace) -> Result<()> {
    let slices = namespace
        .kubectl(&[
            "get",
            "endpointslices",
            "-l",
            "flotilla.dev/egress-identity=Token",
            "-o",
            "json",
        ])
        .await?;
    let slices: Value = serde_json::from_str(&slices)?;
    let count = slices["items"].as_array().context("no list")?.len();
    ensure!(count == 1, "{count} EndpointSlices ask for tokens");
    let pods = namespace
        .kubectl(&["get", "pods", "-l", "flotilla.dev/pool=support", "-o", "json"])
        .await?;
    let pods: Value = serde_json::from_str(&pods)?;
    let volumes = pods["items"][0]["spec"]["volumes"].to_string();
    ensure!(volumes.contains(r#""audience":"flotilla-gateway""#), "{volumes}");
    Ok(())
}
