//! Releases whose new revision is tested before traffic, at a step and after the promotion.

use flotilla_e2e::scenario::release_tests::{first_revision, release, template};
use flotilla_e2e::with_namespace;
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn a_first_revision_serves_once_it_has_passed_its_tests() {
    with_namespace("smoke-first", first_revision).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_smoke_test_stops_a_release_before_its_first_request() {
    with_namespace("smoke-bad", |namespace| async move {
        let tested = release(
            &namespace,
            json!({"type": "Canary", "settleSeconds": 0, "smokeTests": [
                {"name": "health", "type": "HTTP", "http": {"path": "/healthz", "expectContains": "ok"}},
                {"name": "missing", "type": "HTTP", "http": {"path": "/no-such-path"}, "attempts": 1, "dependsOn": ["health"]},
            ]}),
        )
        .await?;
        let why = tested.rejected.clone().unwrap_or_default();
        anyhow::ensure!(
            why.starts_with("SmokeTestFailed: missing: GET /no-such-path was answered with 404, not 200"),
            "{tested:?}"
        );
        anyhow::ensure!(tested.highest_weight == 0, "{tested:?}");
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checklist_is_passed_before_and_after_the_traffic() {
    with_namespace("smoke-good", |namespace| async move {
        namespace.apply(&template("smoke-load", 80, 8000)).await?;
        let tested = release(
            &namespace,
            json!({
                "type": "BlueGreen", "settleSeconds": 0, "blueGreen": {"bakeSeconds": 0, "scaleDownDelaySeconds": 0},
                "smokeTests": [
                    {"name": "health", "type": "HTTP", "http": {"path": "/readyz"}, "when": "BeforeAndAfter"},
                    {"name": "agent", "type": "Agent", "agent": {"prompt": "Where is my parcel?"}, "dependsOn": ["health"], "when": "BeforeAndAfter"},
                    {"name": "chat", "type": "Agent", "agent": {"prompt": "Where is my parcel?", "protocol": "OpenAIChat", "maxMilliseconds": 20000}},
                    {"name": "own-port", "type": "TCP"},
                    {"name": "front", "type": "TCP", "tcp": {"serviceName": "support"}},
                    {"name": "dns", "type": "DNS", "dns": {"host": "support"}},
                    {"name": "command", "type": "Job", "job": {"command": ["/usr/local/bin/flotilla-agent", "--version"]}},
                    {"name": "latency", "type": "LoadTest", "loadTest": {"templateRef": {"name": "smoke-load"}}, "dependsOn": ["agent"]},
                ],
            }),
        )
        .await?;
        anyhow::ensure!(tested.rejected.is_none(), "{tested:?}");
        anyhow::ensure!(tested.load_tests == ["Some(Passed)"], "{tested:?}");
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_steps_load_test_gates_it() {
    with_namespace("gate", |namespace| async move {
        // Nothing answers within a millisecond.
        namespace.apply(&template("gate", 80, 1)).await?;
        let step = json!({
            "weight": 20, "minDurationSeconds": 0, "decideWithinSeconds": 600,
            "loadTest": {"templateRef": {"name": "gate"}, "attempts": 8},
        });
        let tested = release(
            &namespace,
            json!({
                "type": "Canary", "settleSeconds": 0, "canary": {"steps": [step]},
                "analysis": {"warmupSeconds": 0, "errors": {"mode": "Observe"}},
            }),
        )
        .await?;
        let why = tested.rejected.clone().unwrap_or_default();
        anyhow::ensure!(
            why.starts_with("LoadTestFailed: step-load-test: LoadTest support-"),
            "{tested:?}"
        );
        anyhow::ensure!(tested.highest_weight == 20, "{tested:?}");
        // On a busy machine the generator may be late; such a run is Invalid and is repeated.
        let failed = tested
            .load_tests
            .iter()
            .filter(|verdict| *verdict == "Some(Failed)");
        anyhow::ensure!(failed.count() == 1, "{tested:?}");
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_fails_stops_a_rolling_update() {
    with_namespace("smoke-job", |namespace| async move {
        let tested = release(
            &namespace,
            json!({"settleSeconds": 0, "smokeTests": [
                {"name": "command", "type": "Job", "job": {"command": ["/usr/local/bin/flotilla-agent", "--no-such-flag"]}, "attempts": 1},
            ]}),
        )
        .await?;
        let why = tested.rejected.clone().unwrap_or_default();
        anyhow::ensure!(why.starts_with("SmokeTestFailed: command: the command exited with 2"), "{tested:?}");
        anyhow::ensure!(tested.highest_weight == 0, "{tested:?}");
        Ok(())
    })
    .await;
}
