//! Argo Rollouts' canary tests.

use serde_json::json;

use super::{Scene, canary, merged, of_canary, rolling, scenario, unready_scenario};

#[test]
fn canary_set_canary_scale() {
    let steps = json!([{"weight": 25, "replicas": 3}, {"weight": 50}]);
    let spec = merged(
        canary(4, &[]),
        of_canary(json!({"steps": steps, "stableScale": "Keep"})),
    );
    scenario(spec, async |s: &mut Scene| {
        assert_eq!(s.arms(), "1=4@100");
        s.image("2");
        s.judged_at(25).await;
        assert_eq!(s.arms(), "1=4@75 2=3@25");
        s.does("SkipStep").await;
        s.until("1=4@50 2=2@50").await;
        s.judged_at(50).await;
        s.does("SkipStep").await;
        s.until("2=4@100").await;
        s.says("Ready").await;
    });
}

#[test]
fn rollout_scaling_when_paused() {
    scenario(canary(4, &[25]), async |s: &mut Scene| {
        s.image("2");
        s.judged_at(25).await;
        s.until("1=3@75 2=1@25").await;
        s.set(json!({"rollout": {"paused": true}}));
        s.says("Paused").await;
        s.scale(8);
        s.wait_for("the capacity", |s| {
            s.condition("Available").starts_with("True") && s.arms().ends_with("2=2@25")
        })
        .await;
        s.set(json!({"rollout": {"paused": false}}));
        s.until("1=6@75 2=2@25").await;
        s.scale(4);
        s.until("1=3@75 2=1@25").await;
    });
}

#[test]
fn rollout_with_max_surge_scaling_during_update() {
    let spec = merged(
        rolling(4),
        json!({"rollout": {"rollingUpdate": {"maxSurgePercent": 100}}}),
    );
    scenario(spec, async |s: &mut Scene| {
        s.never_ready("2");
        s.image("2");
        s.until("1=4@100 2=0/4@0").await;
        s.scale(8);
        s.until("1=8@100 2=0/8@0").await;
        s.scale(4);
        s.until("1=4@100 2=0/4@0").await;
    });
}

#[test]
fn rollout_scaling_during_update() {
    let spec = merged(
        rolling(4),
        json!({"rollout": {"rollingUpdate": {"maxSurgePercent": 50}}}),
    );
    scenario(spec, async |s: &mut Scene| {
        s.never_ready("2");
        s.image("2");
        s.until("1=4@100 2=0/2@0").await;
        // Argo gives all of the growth to the broken revision (#738); here stable grows.
        s.scale(8);
        s.until("1=8@100 2=0/4@0").await;
        s.scale(4);
        s.wait_for("stable's size", |s| s.arms().starts_with("1=4@100 "))
            .await;
    });
}

#[test]
fn reduce_weight_and_honor_max_unavailable() {
    // That capacity is never below the replicas is an invariant of every scenario.
    scenario(canary(3, &[33, 66]), async |s: &mut Scene| {
        s.image("2");
        s.judged_at(33).await;
        s.does("SkipStep").await;
        s.judged_at(66).await;
        s.until("1=1@34 2=2@66").await;
        s.does("Abort").await;
        s.until("1=3@100").await;
        s.says("Aborted").await;
    });
}

#[test]
fn canary_progress_deadline_exceeded() {
    let spec = merged(
        canary(3, &[33]),
        json!({"rollout": {"progressDeadlineSeconds": 10}}),
    );
    unready_scenario(spec, async |s: &mut Scene| {
        s.slow_start("1", 20);
        s.wait_for("Stalled", |s| s.condition("Stalled").starts_with("True"))
            .await;
        s.says("Ready").await;
        assert_eq!(s.condition("Stalled"), "False Progressing");
        // A first revision has nothing to go back to; a candidate has.
        s.slow_start("2", 20);
        s.image("2");
        s.says("ProbeFailing").await;
        s.until("1=3@100").await;
        s.slow_start("2", 1);
        s.does("Retry").await;
        s.judged_at(33).await;
        s.does("PromoteFull").await;
        s.says("Ready").await;
    });
}

#[test]
fn canary_scale_down_delay_with_progress_deadline() {
    let delay = json!({"scaleDownDelaySeconds": 120, "stableScale": "Keep"});
    let spec = merged(canary(2, &[50]), of_canary(delay));
    let spec = merged(spec, json!({"rollout": {"progressDeadlineSeconds": 10}}));
    scenario(spec, async |s: &mut Scene| {
        s.image("2");
        s.judged_at(50).await;
        s.does("SkipStep").await;
        s.until("1=2@0 2=2@100").await;
        s.pass(60).await;
        assert_eq!(s.condition("Stalled"), "False Progressing");
        s.until("2=2@100").await;
    });
}

#[test]
fn canary_scale_down_delay() {
    let spec = merged(
        canary(2, &[50]),
        of_canary(json!({"scaleDownDelaySeconds": 60, "stableScale": "Keep"})),
    );
    scenario(spec, async |s: &mut Scene| {
        s.image("2");
        s.judged_at(50).await;
        s.does("SkipStep").await;
        s.until("1=2@0 2=2@100").await;
        s.stays("1=2@0 2=2@100", 50).await;
        // Another revision before the delay has passed: it starts from the one that is proved.
        s.image("3");
        s.judged_at(50).await;
        assert_eq!(s.arms(), "1=2@50 3=1@50");
        s.does("SkipStep").await;
        s.until("3=2@100").await;
        s.says("Ready").await;
    });
}

#[test]
fn canary_scale_down_on_abort() {
    scenario(canary(4, &[25]), async |s: &mut Scene| {
        s.image("2");
        s.judged_at(25).await;
        s.does("Abort").await;
        s.until("1=4@100").await;
        s.says("Aborted").await;
        assert_eq!(s.condition("Stalled"), "True Aborted");
        assert!(s.condition("Available").starts_with("True"));
    });
}

#[test]
fn canary_with_paused_rollout() {
    scenario(canary(4, &[25]), async |s: &mut Scene| {
        s.image("2");
        s.judged_at(25).await;
        s.set(json!({"rollout": {"paused": true}}));
        s.says("Paused").await;
        s.image("3");
        s.says("Paused").await;
        s.stays("1=3@75 2=1@25", 30).await;
        s.set(json!({"rollout": {"paused": false}}));
        s.until("1=3@75 3=1@25").await;
    });
}

#[test]
fn canary_dynamic_stable_scale() {
    scenario(canary(4, &[25, 75]), async |s: &mut Scene| {
        s.image("2");
        s.judged_at(25).await;
        s.until("1=3@75 2=1@25").await;
        s.does("SkipStep").await;
        s.judged_at(75).await;
        s.until("1=1@25 2=3@75").await;
        s.slow_start("1", 30);
        s.does("Abort").await;
        // Stable grows within the surge, and nothing moves before its pods are there.
        s.until("1=1/2@25 2=3@75").await;
        s.stays("1=1/2@25 2=3@75", 20).await;
        s.until("1=4@100").await;
    });
}

#[test]
fn canary_dynamic_stable_scale_rollback_to_stable() {
    scenario(canary(4, &[25]), async |s: &mut Scene| {
        s.image("2");
        s.judged_at(25).await;
        s.until("1=3@75 2=1@25").await;
        s.slow_start("1", 30);
        s.image("1");
        s.until("1=3/4@75 2=1@25").await;
        s.stays("1=3/4@75 2=1@25", 20).await;
        s.until("1=4@100").await;
        s.says("Ready").await;
    });
}

#[test]
fn canary_with_spec_pause() {
    scenario(canary(4, &[25]), async |s: &mut Scene| {
        s.set(json!({"rollout": {"paused": true}}));
        s.image("2");
        s.says("Paused").await;
        let (conditions, writes) = (s.status()["conditions"].clone(), s.writes());
        s.pass(1200).await;
        assert_eq!(
            (s.status()["conditions"].clone(), s.writes()),
            (conditions, writes)
        );
        assert_eq!(s.arms(), "1=4@100");
        assert_eq!(s.condition("Stalled"), "False Progressing");
    });
}

#[test]
fn candidate_min_replicas_and_keep() {
    let spec = merged(
        canary(8, &[1, 50]),
        of_canary(json!({"candidateMinReplicas": 3, "stableScale": "Keep"})),
    );
    scenario(spec, async |s: &mut Scene| {
        s.image("2");
        s.judged_at(1).await;
        assert_eq!(s.arms(), "1=8@99 2=3@1");
        s.does("SkipStep").await;
        s.judged_at(50).await;
        assert_eq!(s.arms(), "1=8@50 2=4@50");
    });
}

#[test]
fn steps_that_cannot_be_are_refused() {
    scenario(canary(2, &[25]), async |s: &mut Scene| {
        let steps = |weights: &[i32]| {
            let steps: Vec<_> = weights.iter().map(|weight| json!({"weight": weight})).collect();
            of_canary(json!({"steps": steps}))
        };
        assert!(s.refused(steps(&[25, 10])).contains("rising weights"));
        assert!(s.refused(steps(&[100])).contains("weight"));
        assert!(
            s.refused(json!({"rollout": {"blueGreen": {}}}))
                .contains("type: BlueGreen")
        );
    });
}
