//! Argo Rollouts' functional tests.

use serde_json::json;

use super::{Scene, blue_green, canary, merged, rolling, scenario, unready_scenario};

#[test]
fn rollout_abort_retry_promote() {
    scenario(canary(4, &[25]), async |s: &mut Scene| {
        s.image("2");
        s.judged_at(25).await;
        s.does("Abort").await;
        s.says("Aborted").await;
        s.until("1=4@100").await;
        s.does("Retry").await;
        s.judged_at(25).await;
        assert_eq!(s.status()["candidate"]["attempt"], 2);
        s.does("SkipStep").await;
        s.until("2=4@100").await;
        s.says("Ready").await;
        assert_eq!(s.status()["rejected"], json!(null));
        assert_eq!(
            s.events(),
            [
                "FirstRevision",
                "ReleaseStarted",
                "StepReached",
                "TrafficReturned",
                "ReleaseCompleted"
            ],
            "what a command does is told by its own object"
        );
    });
}

#[test]
fn canary_promote_full() {
    scenario(canary(4, &[10, 25, 50]), async |s: &mut Scene| {
        s.image("2");
        s.judged_at(10).await;
        s.does("PromoteFull").await;
        s.until("2=4@100").await;
        s.says("Ready").await;
        s.image("3");
        s.judged_at(10).await;
        s.does("Abort").await;
        s.says("Aborted").await;
        s.does("Retry").await;
        s.judged_at(10).await;
        s.does("PromoteFull").await;
        s.until("3=4@100").await;
        s.says("Ready").await;
    });
}

#[test]
fn rollout_restart() {
    scenario(rolling(4), async |s: &mut Scene| {
        s.pass(5).await;
        s.does("Restart").await;
        s.wait_for("new pods", |s| {
            s.status()["restart"]["replaced"] == "4/4" || s.arms() == "1=4/5@100"
        })
        .await;
        s.says("Ready").await;
        s.until("1=4@100").await;
    });
}

/// A restart makes new pods before it takes old ones, so it stays within the pool's budget without evicting any.
#[test]
fn rollout_pdb_restart() {
    scenario(rolling(4), async |s: &mut Scene| {
        let budget = s
            .cluster
            .get("/apis/policy/v1/namespaces/shop/poddisruptionbudgets/support")
            .unwrap();
        let most = budget["spec"]["maxUnavailable"].as_i64().unwrap();
        s.pass(5).await;
        s.slow_start("1", 20);
        s.does("Restart").await;
        s.says("Restarting").await;
        s.wait_for("new pods", |s| {
            let sets = s.cluster.objects("/apis/apps/v1/namespaces/shop/replicasets");
            let available = sets
                .iter()
                .filter(|set| set["metadata"]["labels"]["flotilla.dev/revision"].is_string())
                .filter_map(|set| set["status"]["availableReplicas"].as_i64())
                .sum::<i64>();
            assert!(available >= 4 - most, "{available} pods are left");
            s.condition("Ready") == "True Ready"
        })
        .await;
    });
}

#[test]
fn a_restart_in_the_middle_of_a_release_is_rejected() {
    scenario(canary(4, &[25]), async |s: &mut Scene| {
        s.image("2");
        s.judged_at(25).await;
        let (result, message) = s.command("Restart").await;
        assert_eq!(result, "Rejected");
        assert!(message.contains("is being released"), "{message}");
    });
}

#[test]
fn complete_rollout_restart_does_not_trip_the_deadline() {
    let spec = merged(rolling(3), json!({"rollout": {"progressDeadlineSeconds": 10}}));
    scenario(spec, async |s: &mut Scene| {
        s.pass(3600).await;
        s.slow_start("1", 5);
        s.does("Restart").await;
        s.says("Restarting").await;
        s.wait_for("Ready", |s| {
            assert!(s.condition("Stalled").starts_with("False"));
            s.condition("Ready") == "True Ready"
        })
        .await;
    });
}

#[test]
fn good_to_bad() {
    scenario(rolling(4), async |s: &mut Scene| {
        s.crashes("2");
        s.image("2");
        s.says("CrashLoop").await;
        s.until("1=4@100").await;
        assert_eq!(s.condition("Stalled"), "True CrashLoop");
        assert!(s.condition("Available").starts_with("True"));
    });
}

#[test]
fn bad_to_good() {
    scenario(rolling(4), async |s: &mut Scene| {
        s.crashes("2");
        s.image("2");
        s.says("CrashLoop").await;
        s.image("3");
        s.until("3=4@100").await;
        s.says("Ready").await;
    });
}

#[test]
fn bad_to_bad() {
    scenario(rolling(4), async |s: &mut Scene| {
        s.crashes("2");
        s.crashes("3");
        s.image("2");
        s.says("CrashLoop").await;
        s.image("3");
        s.wait_for("both rejected", |s| {
            s.status()["rejected"]
                .as_array()
                .is_some_and(|all| all.len() == 2)
        })
        .await;
        s.until("1=4@100").await;
    });
}

#[test]
fn bad_stable_good_candidate_completes() {
    for spec in [rolling(2), canary(2, &[50])] {
        unready_scenario(spec, async |s: &mut Scene| {
            s.crashes("1");
            s.says("CrashLoop").await;
            s.image("2");
            s.wait_for("the good one", |s| {
                s.arms() == "2=2@100" || s.status()["rollout"]["step"]["weight"] == 50
            })
            .await;
            if s.arms() != "2=2@100" {
                s.does("SkipStep").await;
            }
            s.until("2=2@100").await;
            s.says("Ready").await;
        });
    }
}

#[test]
fn fix_invalid_spec() {
    scenario(rolling(2), async |s: &mut Scene| {
        s.set(json!({"agent": {"podTemplate": {"spec": {"containers": "none"}}}}));
        s.says("InvalidPodTemplate").await;
        assert_eq!(s.condition("Stalled"), "True InvalidPodTemplate");
        assert_eq!(s.arms(), "1=2@100", "what serves goes on serving");
        s.set(json!({"agent": {"podTemplate": null}}));
        s.says("Ready").await;
        s.set(json!({"agent": {"image": "agent:2"}}));
        s.says("Ready").await;
    });
}

#[test]
fn conditions_can_be_waited_for() {
    scenario(canary(2, &[50]), async |s: &mut Scene| {
        assert_eq!(s.condition("Ready"), "True Ready");
        s.set(json!({"rollout": {"paused": true}}));
        s.image("2");
        s.wait_for("Paused", |s| {
            s.condition("Ready") == "False Paused" && s.condition("Reconciling") == "True Paused"
        })
        .await;
        s.set(json!({"rollout": {"paused": false}}));
        s.judged_at(50).await;
        s.does("PromoteFull").await;
        s.wait_for("Completed", |s| s.condition("Ready") == "True Ready")
            .await;
    });
}

#[test]
fn pause_duration_greater_than_progress_deadline() {
    for spec in [canary(2, &[50]), blue_green(2, json!({}))] {
        let spec = merged(spec, json!({"rollout": {"progressDeadlineSeconds": 10}}));
        scenario(spec, async |s: &mut Scene| {
            s.image("2");
            s.wait_for("the step", |s| s.status()["rollout"]["step"].is_object())
                .await;
            s.pass(120).await;
            assert!(s.condition("Stalled").starts_with("False"));
            s.does("PromoteFull").await;
            s.says("Ready").await;
        });
    }
}

#[test]
fn spec_and_replica_change_same_time() {
    scenario(rolling(4), async |s: &mut Scene| {
        s.set(json!({"replicas": 3, "agent": {"image": "agent:2"}}));
        s.says("Ready").await;
        assert_eq!(s.arms(), "2=3@100");
        s.set(json!({"replicas": 4, "agent": {"image": "agent:3"}}));
        s.says("Ready").await;
        assert_eq!(s.arms(), "3=4@100");
    });
}

#[test]
fn deletion_takes_everything() {
    for spec in [rolling(3), canary(3, &[33]), blue_green(3, json!({}))] {
        scenario(spec, async |s: &mut Scene| {
            s.image("2");
            s.wait_for("pods of both", |s| s.arms().contains("2=")).await;
            s.delete();
            s.wait_for("nothing", |s| {
                let paths = s.cluster.paths("shop");
                !paths
                    .iter()
                    .any(|path| path.contains("support") && !path.contains("/events/"))
            })
            .await;
        });
    }
}
