//! Budgets and fallbacks on a real cluster.

use flotilla_e2e::scenario::budget;
use flotilla_e2e::with_namespace;

#[tokio::test(flavor = "multi_thread")]
async fn a_budget_holds_through_the_loss_of_every_gateway() {
    with_namespace("budget", |namespace| async move {
        let spent = budget::spend_and_lose_every_gateway(namespace).await?;
        println!("{spent:?}");
        anyhow::ensure!(
            spent.traffic.iter().all(|outcome| outcome.failed() == 0),
            "the fallback answers all: {spent:?}"
        );
        let [before, after] = spent.dollars;
        // One request of each gateway, and what comes between a report and the next writing.
        anyhow::ensure!((20.0..30.0).contains(&before), "{before} of 20 dollars");
        anyhow::ensure!(
            (after - before).abs() < 1e-9,
            "spent again after the restart: {before}, then {after}"
        );
        Ok(())
    })
    .await;
}
