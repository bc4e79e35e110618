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

#[tokio::test(flavor = "multi_thread")]
async fn a_budget_of_a_model_blocks_that_model_only() {
    with_namespace("model-budget", |namespace| async move {
        let done = budget::spend_on_one_model(namespace).await?;
        println!("{done:?}");
        anyhow::ensure!(
            done.message
                .contains("of the budget of 40 USD for model sim-fast are spent"),
            "{done:?}"
        );
        // One request of each gateway, and what comes between a report and the next writing.
        anyhow::ensure!((40.0..50.0).contains(&done.dollars), "{done:?}");
        let expected = ["BudgetExhausted", "BudgetSpent80Percent", "BudgetSpent90Percent"];
        anyhow::ensure!(done.announced.iter().eq(expected), "{done:?}");
        anyhow::ensure!(
            done.blocked.failed() == done.blocked.requests
                && done
                    .blocked
                    .failures
                    .keys()
                    .all(|kind| kind.starts_with("status 429")),
            "the model goes on without money: {done:?}"
        );
        anyhow::ensure!(
            done.other.failed() == 0 && done.other.requests > 40,
            "the other model has no budget: {done:?}"
        );
        Ok(())
    })
    .await;
}
