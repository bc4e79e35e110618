//! Load tests with real workers.

use flotilla_crds::load_test::Verdict;
use flotilla_e2e::scenario::load_test;
use flotilla_e2e::with_namespace;

#[tokio::test(flavor = "multi_thread")]
async fn two_workers_give_one_verdict() {
    with_namespace("ltest", |namespace| async move {
        let done = load_test::run(namespace, 20, 15, 2).await?;
        let status = done.status.unwrap_or_default();
        let summary = status.summary.clone().unwrap_or_default();
        anyhow::ensure!(status.verdict == Some(Verdict::Passed), "{status:?}");
        anyhow::ensure!(
            (200..=400).contains(&summary.requests.total) && summary.requests.failed == 0,
            "{summary:?}"
        );
        anyhow::ensure!(
            summary.latency.is_some_and(|l| l.p95_milliseconds > 0),
            "{status:?}"
        );
        anyhow::ensure!(
            summary.tokens.is_some_and(|t| t.input > 0 && t.output > 0),
            "{status:?}"
        );
        anyhow::ensure!(
            summary
                .cost
                .is_some_and(|c| c.currency == "USD" && c.total != "0"),
            "{status:?}"
        );
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_worker_is_never_a_passed_test() {
    with_namespace("killed", |namespace| async move {
        let done = load_test::with_killed_worker(namespace).await?;
        let status = done.status.unwrap_or_default();
        anyhow::ensure!(status.verdict == Some(Verdict::Invalid), "{status:?}");
        Ok(())
    })
    .await;
}
