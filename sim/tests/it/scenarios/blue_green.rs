//! Argo Rollouts' blue-green tests.

use serde_json::json;

use super::{Scene, blue_green, merged, scenario};

#[test]
fn blue_green_update() {
    scenario(
        blue_green(3, json!({"approval": "Automatic"})),
        async |s: &mut Scene| {
            s.image("2");
            s.until("1=3@100 2=3@0").await;
            s.until("2=3@100").await;
            s.says("Ready").await;
            assert_eq!(
                s.events(),
                [
                    "FirstRevision",
                    "ReleaseStarted",
                    "StepReached",
                    "StepPassed",
                    "ReleaseCompleted"
                ]
            );
        },
    );
}

#[test]
fn preview_replica_count() {
    scenario(
        blue_green(2, json!({"previewReplicas": 1})),
        async |s: &mut Scene| {
            s.image("2");
            s.says("ApprovalNeeded").await;
            // A pause longer than the deadline is no failure.
            s.stays("1=2@100 2=1@0", 1200).await;
            assert_eq!(s.condition("Stalled"), "False Progressing");
            s.does("Promote").await;
            s.until("2=2@100").await;
            s.says("Ready").await;
        },
    );
}

#[test]
fn preview_replica_count_promote_full() {
    scenario(
        blue_green(2, json!({"previewReplicas": 1})),
        async |s: &mut Scene| {
            s.image("2");
            s.says("ApprovalNeeded").await;
            s.does("PromoteFull").await;
            s.until("2=2@100").await;
            s.says("Ready").await;
        },
    );
}

#[test]
fn blue_green_pre_promotion_fail() {
    scenario(blue_green(2, json!({})), async |s: &mut Scene| {
        s.crashes("2");
        s.image("2");
        s.says("CrashLoop").await;
        s.until("1=2@100").await;
        s.image("3");
        s.says("ApprovalNeeded").await;
        s.does("Promote").await;
        s.until("3=2@100").await;
    });
}

#[test]
fn blue_green_abort_and_update() {
    scenario(blue_green(2, json!({})), async |s: &mut Scene| {
        s.image("2");
        s.says("ApprovalNeeded").await;
        s.does("Abort").await;
        s.says("Aborted").await;
        s.until("1=2@100").await;
        s.image("3");
        s.says("ApprovalNeeded").await;
        assert_eq!(s.arms(), "1=2@100 3=2@0");
        s.does("Promote").await;
        s.until("3=2@100").await;
        s.says("Ready").await;
    });
}

#[test]
fn blue_green_kitchen_sink() {
    let change = json!({"previewReplicas": 1, "bakeSeconds": 600, "scaleDownDelaySeconds": 600});
    scenario(blue_green(2, change), async |s: &mut Scene| {
        s.traffic(100.0);
        s.image("2");
        s.says("ApprovalNeeded").await;
        assert_eq!(s.arms(), "1=2@100 2=1@0");
        s.pass(120).await;
        s.does("Promote").await;
        s.until("1=2@0 2=2@100").await;
        s.fails("2", 0.5);
        s.says("AnalysisFailed").await;
        s.until("1=2@100").await;
        s.traffic(0.0);
    });
}

#[test]
fn blue_green_to_canary() {
    scenario(
        blue_green(2, json!({"approval": "Automatic"})),
        async |s: &mut Scene| {
            s.image("2");
            s.until("2=2@100").await;
            s.says("Ready").await;
            let steps = json!([{"weight": 50}]);
            s.set(json!({"rollout": {"type": "Canary", "blueGreen": null, "canary": {"steps": steps, "candidateMinReplicas": 1}}}));
            s.says("Ready").await;
            s.image("3");
            s.judged_at(50).await;
            assert_eq!(s.arms(), "2=2@50 3=1@50");
        },
    );
}

#[test]
fn a_preview_becomes_a_canary() {
    scenario(blue_green(4, json!({})), async |s: &mut Scene| {
        s.image("2");
        s.says("ApprovalNeeded").await;
        let canary = json!({"steps": [{"weight": 25}], "candidateMinReplicas": 1, "bakeSeconds": 0, "scaleDownDelaySeconds": 0});
        s.set(json!({"rollout": {"type": "Canary", "blueGreen": null, "canary": canary}}));
        s.judged_at(25).await;
        assert_eq!(s.arms(), "1=4@75 2=1@25");
        s.does("SkipStep").await;
        s.until("2=4@100").await;
    });
}

#[test]
fn blue_green_scale_down_delay() {
    scenario(
        blue_green(2, json!({"approval": "Automatic", "scaleDownDelaySeconds": 60})),
        async |s: &mut Scene| {
            s.image("2");
            s.until("1=2@0 2=2@100").await;
            s.stays("1=2@0 2=2@100", 55).await;
            s.until("2=2@100").await;
            s.says("Ready").await;
        },
    );
}

#[test]
fn blue_green_rollback_inside_the_delay_needs_no_new_pods() {
    let change = json!({"approval": "Automatic", "scaleDownDelaySeconds": 600});
    scenario(blue_green(2, change), async |s: &mut Scene| {
        s.image("2");
        s.until("1=2@0 2=2@100").await;
        // New pods of the old revision would never be ready.
        s.never_ready("1");
        s.image("1");
        s.until("1=2@100").await;
        s.says("Ready").await;
    });
}

#[test]
fn blue_green_exceed_progress_deadline_abort() {
    let spec = merged(
        blue_green(2, json!({})),
        json!({"rollout": {"progressDeadlineSeconds": 30}}),
    );
    scenario(spec, async |s: &mut Scene| {
        s.never_ready("2");
        s.image("2");
        s.until("1=2@100 2=0/2@0").await;
        s.says("ProbeFailing").await;
        s.until("1=2@100").await;
        assert!(s.condition("Available").starts_with("True"));
    });
}

#[test]
fn blue_green_scale_down_on_abort() {
    scenario(
        blue_green(2, json!({"scaleDownDelaySeconds": 600})),
        async |s: &mut Scene| {
            s.image("2");
            s.says("ApprovalNeeded").await;
            s.does("Abort").await;
            s.until("1=2@100").await;
        },
    );
}

#[test]
fn a_preview_follows_the_scale() {
    scenario(blue_green(2, json!({})), async |s: &mut Scene| {
        s.image("2");
        s.says("ApprovalNeeded").await;
        s.scale(4);
        s.until("1=4@100 2=4@0").await;
        s.scale(1);
        s.until("1=1@100 2=1@0").await;
        s.does("Promote").await;
        s.until("2=1@100").await;
    });
}
