//! OpenKruise Rollouts' tests that are not about its own workload kinds.

use serde_json::json;

use super::{Scene, blue_green, canary, merged, of_canary, scenario};

#[test]
fn twenty_and_sixty_percent() {
    scenario(canary(5, &[20, 60]), async |s: &mut Scene| {
        s.image("2");
        s.judged_at(20).await;
        s.until("1=4@80 2=1@20").await;
        s.does("SkipStep").await;
        s.judged_at(60).await;
        s.until("1=2@40 2=3@60").await;
        s.does("SkipStep").await;
        s.until("2=5@100").await;
        s.says("Ready").await;
    });
}

#[test]
fn five_steps() {
    scenario(canary(5, &[20, 40, 60, 80, 90]), async |s: &mut Scene| {
        s.image("2");
        for weight in [20, 40, 60, 80, 90] {
            s.judged_at(weight).await;
            s.does("SkipStep").await;
        }
        s.until("2=5@100").await;
        s.says("Ready").await;
    });
}

#[test]
fn rollback_v1() {
    scenario(canary(5, &[20, 60]), async |s: &mut Scene| {
        s.image("2");
        s.judged_at(20).await;
        s.does("SkipStep").await;
        s.judged_at(60).await;
        s.image("1");
        s.until("1=5@100").await;
        s.says("Ready").await;
    });
}

#[test]
fn continuous_v3() {
    scenario(canary(5, &[20, 60]), async |s: &mut Scene| {
        s.image("2");
        s.judged_at(20).await;
        s.does("SkipStep").await;
        s.judged_at(60).await;
        s.image("3");
        // It starts at the first step, from stable.
        s.wait_for("the first step", |s| s.arms() == "1=4@80 3=1@20")
            .await;
        s.judged_at(20).await;
        s.does("PromoteFull").await;
        s.until("3=5@100").await;
    });
}

#[test]
fn scale_in_the_middle() {
    for (from, to, before, after) in [
        (5, 10, "1=4@80 2=1@20", "1=8@80 2=2@20"),
        (10, 5, "1=8@80 2=2@20", "1=4@80 2=1@20"),
    ] {
        scenario(canary(from, &[20]), async |s: &mut Scene| {
            s.image("2");
            s.judged_at(20).await;
            s.until(before).await;
            s.scale(to);
            s.until(after).await;
            s.does("SkipStep").await;
            s.until(&format!("2={to}@100")).await;
        });
    }
}

#[test]
fn paused_and_resumed() {
    scenario(canary(5, &[20, 60]), async |s: &mut Scene| {
        s.image("2");
        s.judged_at(20).await;
        s.until("1=4@80 2=1@20").await;
        s.set(json!({"rollout": {"paused": true}}));
        s.says("Paused").await;
        s.does("SkipStep").await;
        s.stays("1=4@80 2=1@20", 60).await;
        s.set(json!({"rollout": {"paused": false}}));
        s.judged_at(60).await;
        s.does("SkipStep").await;
        s.until("2=5@100").await;
    });
}

#[test]
fn v2_is_bad_and_v3_good() {
    scenario(canary(5, &[20, 60]), async |s: &mut Scene| {
        s.crashes("2");
        s.image("2");
        s.says("CrashLoop").await;
        s.image("3");
        s.judged_at(20).await;
        s.does("PromoteFull").await;
        s.until("3=5@100").await;
        s.says("Ready").await;
    });
}

fn steps(weights: &[i32]) -> serde_json::Value {
    let steps: Vec<_> = weights.iter().map(|weight| json!({"weight": weight})).collect();
    of_canary(json!({"steps": steps}))
}

#[test]
fn steps_changed() {
    scenario(canary(5, &[20, 60]), async |s: &mut Scene| {
        s.image("2");
        s.judged_at(20).await;
        // It goes on at the first step that is not below the weight in force.
        s.set(steps(&[10, 40, 80]));
        s.judged_at(40).await;
        s.until("1=3@60 2=2@40").await;
        s.does("SkipStep").await;
        s.judged_at(80).await;
        s.does("SkipStep").await;
        s.until("2=5@100").await;
    });
}

#[test]
fn steps_removed() {
    scenario(canary(5, &[20, 40, 60, 80]), async |s: &mut Scene| {
        s.image("2");
        s.judged_at(20).await;
        s.set(steps(&[20]));
        s.judged_at(20).await;
        s.does("SkipStep").await;
        s.until("2=5@100").await;
        s.says("Ready").await;
    });
}

#[test]
fn step_jumps() {
    scenario(canary(5, &[20, 40, 60]), async |s: &mut Scene| {
        s.image("2");
        for weight in [20, 40] {
            s.judged_at(weight).await;
            s.does("SkipStep").await;
        }
        s.judged_at(60).await;
        let (result, message) = s
            .command_for("SkipStep", json!({"revision": s.revision("2"), "step": 0}))
            .await;
        assert_eq!(result, "Rejected");
        assert!(message.contains("at step 2, not 0"), "{message}");
    });
}

#[test]
fn blue_green_rolling_rollback_continuous_scale() {
    scenario(blue_green(5, json!({})), async |s: &mut Scene| {
        s.image("2");
        s.until("1=5@100 2=5@0").await;
        s.image("1");
        s.until("1=5@100").await;
        s.says("Ready").await;
        s.image("2");
        s.says("ApprovalNeeded").await;
        s.image("3");
        s.until("1=5@100 3=5@0").await;
        s.says("ApprovalNeeded").await;
        s.scale(2);
        s.until("1=2@100 3=2@0").await;
        s.does("Promote").await;
        s.until("3=2@100").await;
        s.says("Ready").await;
    });
}

#[test]
fn a_smaller_pool_than_the_step_needs() {
    scenario(merged(canary(1, &[10, 50]), json!({})), async |s: &mut Scene| {
        s.image("2");
        s.judged_at(10).await;
        // One pod is the least a weight needs, and stable must carry the rest.
        assert_eq!(s.arms(), "1=1@90 2=1@10");
        s.does("PromoteFull").await;
        s.until("2=1@100").await;
    });
}
