//! Other controllers that size a pool while it is released.

use serde_json::json;

use super::{Scene, canary, merged, of_canary, rolling, scenario};

/// argo-rollouts #4847, #3849, #2857: what an autoscaler reads is about the stable revision alone.
#[test]
fn a_candidate_does_not_inflate_the_scale() {
    scenario(
        merged(canary(4, &[50]), of_canary(json!({"stableScale": "Keep"}))),
        async |s: &mut Scene| {
            s.image("2");
            s.judged_at(50).await;
            assert_eq!(s.arms(), "1=4@50 2=2@50");
            let status = s.status();
            assert_eq!(status["replicas"], 4);
            let selector = status["selector"].as_str().unwrap_or_default();
            assert!(selector.contains(&s.revision("1")), "{selector}");
            let scale = s.cluster.get(&format!("{}/scale", super::POOL)).unwrap();
            assert_eq!(
                (&scale["spec"]["replicas"], &scale["status"]["replicas"]),
                (&json!(4), &json!(4))
            );
        },
    );
}

/// A size that changes every few seconds.
#[test]
fn a_restless_autoscaler_does_not_stop_a_release() {
    scenario(canary(4, &[25, 50]), async |s: &mut Scene| {
        s.image("2");
        for replicas in [5, 4, 6, 3, 4, 8, 4] {
            s.scale(replicas);
            s.pass(3).await;
        }
        s.judged_at(25).await;
        s.does("SkipStep").await;
        s.judged_at(50).await;
        for replicas in [8, 2, 4] {
            s.scale(replicas);
            s.pass(2).await;
        }
        s.does("PromoteFull").await;
        s.until("2=4@100").await;
        s.says("Ready").await;
    });
}

#[test]
fn to_zero_and_back() {
    scenario(rolling(3), async |s: &mut Scene| {
        s.scale(0);
        s.wait_for("no pods", |s| s.status()["replicas"] == 0).await;
        s.scale(2);
        s.until("1=2@100").await;
        s.says("Ready").await;
    });
}

#[test]
fn stopped_in_the_middle() {
    for spec in [rolling(4), canary(4, &[25])] {
        scenario(spec, async |s: &mut Scene| {
            s.image("2");
            s.wait_for("weight", |s| {
                s.status()["candidate"]["weight"]
                    .as_i64()
                    .is_some_and(|weight| weight > 0)
            })
            .await;
            s.set(json!({"stopped": true}));
            s.says("Stopped").await;
            s.wait_for("no pods", |s| s.condition("Ready") == "True Stopped")
                .await;
            s.pass(60).await;
            s.set(json!({"stopped": false}));
            s.wait_for("the step or the end", |s| {
                s.condition("Ready") == "True Ready" || s.status()["rollout"]["step"].is_object()
            })
            .await;
            if s.status()["rollout"]["step"].is_object() {
                s.judged_at(25).await;
                s.does("PromoteFull").await;
            }
            s.says("Ready").await;
            assert_eq!(s.arms(), "2=4@100");
        });
    }
}

#[test]
fn many_replicas() {
    scenario(rolling(60), async |s: &mut Scene| {
        s.image("2");
        s.until("2=60@100").await;
        s.says("Ready").await;
    });
}
