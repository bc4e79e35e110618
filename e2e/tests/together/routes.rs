//! Other ways of traffic, and the dry run.

use flotilla_e2e::scenario::routes;
use flotilla_e2e::with_namespace;

#[tokio::test(flavor = "multi_thread")]
async fn an_http_route_carries_a_canary_and_is_put_right() {
    with_namespace("route", |namespace| async move {
        let routed = routes::http_route(namespace).await?;
        println!("{routed:?}");
        anyhow::ensure!(routed.corrected_milliseconds < 5_000, "{routed:?}");
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_canary_of_workers_shows_its_true_weights() {
    with_namespace("workers", |namespace| async move {
        let measured = routes::workers(namespace).await?;
        anyhow::ensure!(measured == ["25.0", "50.0"], "{measured:?}");
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn testers_reach_the_candidate_and_count_for_nobody() {
    with_namespace("testers", routes::testers).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_tells_what_a_release_would_do() {
    with_namespace("dry-run", |namespace| async move {
        let plan = routes::dry_run(namespace).await?;
        println!("{plan:#?}");
        anyhow::ensure!(
            plan.changes == ["spec.agent.prompt", "content of prompt"],
            "{plan:?}"
        );
        anyhow::ensure!(
            plan.objects
                .iter()
                .any(|object| object.starts_with("ReplicaSet support-")),
            "{plan:?}"
        );
        Ok(())
    })
    .await;
}
