//! Pools without HTTP (`traffic.type: ReplicaRatio`): a weight is a number of replicas, each ready one takes its part of the work.

use serde_json::{Value, json};

use super::{Scene, merged, of_canary, scenario};

/// Workers whose canary has these steps, of ten seconds each. Nobody counts what they do.
fn workers(replicas: i32, weights: &[i32]) -> Value {
    let steps: Vec<Value> = weights
        .iter()
        .map(|weight| json!({"weight": weight, "minDurationSeconds": 10, "decideWithinSeconds": 600}))
        .collect();
    json!({
        "replicas": replicas, "agent": {"image": "agent:1"},
        "traffic": {"type": "ReplicaRatio", "requestTimeoutSeconds": 5},
        "rollout": {"type": "Canary", "settleSeconds": 0, "canary": {
            "steps": steps, "candidateMinReplicas": 1, "stableScale": "Shrink", "bakeSeconds": 0,
        }},
    })
}

/// Waits for these revisions. On the way there are never fewer than `least` workers, and those of `tag` are never more than
/// `most` percent of them.
async fn until(s: &Scene, arms: &str, tag: &str, (least, most): (usize, usize)) {
    s.wait_for(arms, |s| {
        let (own, all) = s.ready(tag);
        assert!(all >= least, "{all} workers, not {least}: {}", s.arms());
        assert!(
            own * 100 <= most * all,
            "{own} of {all} are above {most} %: {}",
            s.arms()
        );
        s.arms() == arms
    })
    .await;
}

/// The weight that the candidate has in truth.
fn true_weight(s: &Scene) -> Value {
    s.status()["rollout"]["measuredWeightPercent"].clone()
}

#[test]
fn a_canary_of_workers() {
    scenario(workers(8, &[25, 50]), async |s: &mut Scene| {
        assert!(s.status()["gatewayPort"].is_null());
        s.image("2");
        until(s, "1=6@75 2=2@25", "2", (8, 25)).await;
        s.judged_at(25).await;
        assert_eq!(true_weight(s), "25.0");
        until(s, "1=4@50 2=4@50", "2", (8, 50)).await;
        s.judged_at(50).await;
        assert_eq!(true_weight(s), "50.0");
        until(s, "2=8@100", "2", (8, 100)).await;
        s.says("Ready").await;
        assert!(s.status()["rollout"].is_null() && s.status()["candidate"].is_null());
    });
}

#[test]
fn a_weight_that_no_number_stands_for_is_shown_as_it_is() {
    let keep = of_canary(json!({"stableScale": "Keep"}));
    scenario(merged(workers(4, &[1, 60]), keep), async |s: &mut Scene| {
        s.image("2");
        // One of five is the least there is, and four of seven come nearer to 60 % than four of six.
        until(s, "1=4@99 2=1@1", "2", (4, 20)).await;
        s.judged_at(1).await;
        assert_eq!(true_weight(s), "20.0");
        until(s, "1=3@40 2=4@60", "2", (4, 58)).await;
        s.judged_at(60).await;
        assert_eq!(true_weight(s), "57.1");
        until(s, "2=4@100", "2", (4, 100)).await;
        s.says("Ready").await;
    });
}

#[test]
fn aborted_workers_give_their_work_back() {
    let held = of_canary(json!({"steps": [{"weight": 50, "approval": "Manual", "minDurationSeconds": 0}]}));
    scenario(merged(workers(8, &[]), held), async |s: &mut Scene| {
        s.image("2");
        s.says("ApprovalNeeded").await;
        assert_eq!(
            (s.arms().as_str(), true_weight(s)),
            ("1=4@50 2=4@50", json!("50.0"))
        );
        s.does("Abort").await;
        until(s, "1=8@100", "2", (8, 50)).await;
        s.says("Aborted").await;
        assert!(true_weight(s).is_null());
        s.scale(10);
        until(s, "1=10@100", "2", (8, 0)).await;
        s.does("Retry").await;
        s.says("ApprovalNeeded").await;
        s.does("Promote").await;
        until(s, "2=10@100", "2", (10, 100)).await;
        s.says("Ready").await;
    });
}

#[test]
fn workers_scaled_in_the_middle_keep_their_share() {
    let held = of_canary(json!({"steps": [{"weight": 50, "approval": "Manual", "minDurationSeconds": 0}]}));
    scenario(merged(workers(4, &[]), held), async |s: &mut Scene| {
        s.image("2");
        s.says("ApprovalNeeded").await;
        assert_eq!(s.arms(), "1=2@50 2=2@50");
        for (replicas, arms, least) in [
            (10, "1=5@50 2=5@50", 4),
            (3, "1=2@50 2=2@50", 3),
            (2, "1=1@50 2=1@50", 2),
        ] {
            s.scale(replicas);
            until(s, arms, "2", (least, 75)).await;
            s.says("ApprovalNeeded").await;
            assert_eq!(true_weight(s), "50.0");
        }
        s.does("Promote").await;
        until(s, "2=2@100", "2", (2, 100)).await;
        s.says("Ready").await;
    });
}

#[test]
fn a_third_revision_of_workers_begins_below_the_second() {
    let steps = json!([{"weight": 25, "minDurationSeconds": 60, "decideWithinSeconds": 600}]);
    let spec = merged(workers(8, &[]), of_canary(json!({"steps": steps})));
    scenario(spec, async |s: &mut Scene| {
        s.image("2");
        s.judged_at(25).await;
        s.restart_operator().await;
        s.image("3");
        until(s, "1=6@75 3=2@25", "3", (8, 25)).await;
        s.judged_at(25).await;
        assert_eq!(true_weight(s), "25.0");
        until(s, "3=8@100", "3", (8, 100)).await;
        s.says("Ready").await;
    });
}

#[test]
fn workers_that_crash_are_replaced_by_those_that_do_not() {
    scenario(workers(8, &[25]), async |s: &mut Scene| {
        s.crashes("2");
        s.image("2");
        s.says("CrashLoop").await;
        until(s, "1=8@100", "2", (8, 0)).await;
        assert_eq!(s.status()["rejected"][0]["reason"], "CrashLoop");
    });
}
