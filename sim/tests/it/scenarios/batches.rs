//! Batches and steps that have become another size, or begin again.

use serde_json::json;

use super::{Scene, canary, rolling, scenario};

/// Two pods are a batch of eight, one is a batch of four: the second would take room that the pool has no more.
#[test]
fn a_scale_down_takes_pods_that_are_not_ready_of_a_batch_that_is_too_large() {
    for paused in [false, true] {
        scenario(rolling(8), async |s: &mut Scene| {
            s.never_ready("2");
            s.image("2");
            s.until("1=8@100 2=0/2@0").await;
            s.set(json!({"rollout": {"paused": paused}}));
            s.scale(4);
            s.until("1=4@100 2=0/1@0").await;
            s.stays("1=4@100 2=0/1@0", 30).await;
            s.set(json!({"rollout": {"paused": false}, "agent": {"image": "agent:1"}}));
            s.until("1=4@100").await;
            s.says("Ready").await;
        });
    }
}

/// With two requests a second 1 % cannot be judged within its hour, 10 % can: neither at the first attempt nor at the second.
#[test]
fn a_retry_leaves_out_the_steps_that_the_traffic_cannot_judge() {
    scenario(canary(4, &[]), async |s: &mut Scene| {
        s.traffic(2.0);
        s.pass(180).await;
        for attempt in 1..=2 {
            if attempt == 1 {
                s.image("2");
            } else {
                s.does("Retry").await;
            }
            s.judged_at(10).await;
            assert_eq!(s.status()["candidate"]["attempt"], attempt);
            s.does("Abort").await;
            s.says("Aborted").await;
            s.until("1=4@100").await;
        }
        assert!(
            s.events().contains(&"StepsLeftOut".to_owned()),
            "{:?}",
            s.events()
        );
        s.traffic(0.0);
    });
}
