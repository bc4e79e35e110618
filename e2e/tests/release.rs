//! Releases under load.

use flotilla_e2e::scenario::release::{self, Sizes};
use flotilla_e2e::with_namespace;

#[tokio::test(flavor = "multi_thread")]
async fn releases_lose_no_request() {
    with_namespace("release", |namespace| async move {
        let outcome = release::rolling_under_load(
            namespace,
            Sizes {
                requests: 10_000,
                per_second: 100,
                releases: 3,
            },
        )
        .await?;
        println!("{outcome:?}");
        anyhow::ensure!(outcome.requests >= 10_000 && outcome.failed() == 0, "{outcome:?}");
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_prompt_does_not_take_over() {
    with_namespace("bad-release", |namespace| async move {
        let (message, outcome) = release::bad_release(namespace).await?;
        anyhow::ensure!(
            message.contains("readiness probe") && message.contains("503"),
            "the message does not name the cause: {message}"
        );
        anyhow::ensure!(outcome.requests > 0 && outcome.failed() == 0, "{outcome:?}");
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_good_canary_is_promoted_by_evidence() {
    with_namespace("canary", |namespace| async move {
        let canary = release::canary(namespace, 0.0).await?;
        println!("{canary:?}");
        anyhow::ensure!(canary.rejected.is_none(), "{canary:?}");
        anyhow::ensure!(canary.traffic.failed() == 0, "{canary:?}");
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_canary_that_fails_is_led_back_by_evidence() {
    with_namespace("bad-canary", |namespace| async move {
        let canary = release::canary(namespace, 0.5).await?;
        println!("{canary:?}");
        let why = canary.rejected.clone().unwrap_or_default();
        anyhow::ensure!(
            why.starts_with("AnalysisFailed: errors: the candidate is worse than stable"),
            "{canary:?}"
        );
        // Half of a fifth of the traffic at most, and of that only until it was found.
        anyhow::ensure!(
            canary.traffic.failed() * 5 < canary.traffic.requests,
            "{canary:?}"
        );
        Ok(())
    })
    .await;
}
