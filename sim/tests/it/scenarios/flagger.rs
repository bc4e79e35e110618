//! Flagger's end-to-end flows.

use serde_json::json;

use super::{Scene, blue_green, canary, merged, rolling, scenario};

#[test]
fn init_promotion_rollback() {
    scenario(canary(2, &[10, 20, 50]), async |s: &mut Scene| {
        assert_eq!(s.arms(), "1=2@100");
        s.traffic(200.0);
        s.image("2");
        s.until("2=2@100").await;
        s.says("Ready").await;
        s.fails("3", 0.5);
        s.image("3");
        s.says("AnalysisFailed").await;
        s.until("2=2@100").await;
        s.traffic(0.0);
    });
}

#[test]
fn blue_green_with_evidence() {
    let change = json!({"approval": "Automatic", "bakeSeconds": 60, "scaleDownDelaySeconds": 30});
    scenario(blue_green(2, change), async |s: &mut Scene| {
        s.traffic(100.0);
        s.pass(60).await;
        s.image("2");
        s.until("1=2@0 2=2@100").await;
        s.says("Ready").await;
        assert_eq!(s.arms(), "2=2@100");
        s.traffic(0.0);
    });
}

#[test]
fn skip_analysis_with_a_bad_image_keeps_the_primary() {
    scenario(rolling(2), async |s: &mut Scene| {
        s.crashes("2");
        s.image("2");
        s.says("CrashLoop").await;
        s.until("1=2@100").await;
    });
}

#[test]
fn fail_revert_trigger_fail_retry_promote() {
    scenario(canary(2, &[50]), async |s: &mut Scene| {
        s.traffic(100.0);
        s.fails("2", 0.5);
        s.image("2");
        s.says("AnalysisFailed").await;
        // Back to what serves starts nothing.
        let started = |s: &Scene| {
            s.events()
                .iter()
                .filter(|event| *event == "ReleaseStarted")
                .count()
        };
        s.image("1");
        s.says("Ready").await;
        s.stays("1=2@100", 60).await;
        assert_eq!(started(s), 1);
        // The rejected revision is not tried again by itself.
        s.image("2");
        s.says("AnalysisFailed").await;
        assert_eq!(started(s), 1);
        s.does("Retry").await;
        s.wait_for("the second failure", |s| s.status()["candidate"].is_object())
            .await;
        s.says("AnalysisFailed").await;
        s.fails("2", 0.0);
        s.does("Retry").await;
        s.says("Ready").await;
        assert_eq!(s.arms(), "2=2@100");
        s.traffic(0.0);
    });
}

#[test]
fn non_linear_steps() {
    scenario(canary(2, &[1, 2, 10, 80]), async |s: &mut Scene| {
        s.image("2");
        for weight in [1, 2, 10, 80] {
            s.judged_at(weight).await;
            s.does("SkipStep").await;
        }
        s.until("2=2@100").await;
    });
}

#[test]
fn a_config_change_triggers_a_run_and_a_rollback_restores_the_bytes() {
    let prompt = json!({"configMapKeyRef": {"name": "prompts", "key": "p"}});
    let spec = merged(canary(2, &[50]), json!({"agent": {"prompt": prompt}}));
    super::unready_scenario(spec, async |s: &mut Scene| {
        s.says("WaitingForReference").await;
        let maps = "/api/v1/namespaces/shop/configmaps";
        s.cluster
            .create(
                maps,
                &json!({"metadata": {"name": "prompts"}, "data": {"p": "be kind"}}),
            )
            .unwrap();
        s.says("Ready").await;
        let first = s.status()["stable"]["revision"].clone();
        s.cluster
            .patch(&format!("{maps}/prompts"), json!({"data": {"p": "be brief"}}))
            .unwrap();
        s.judged_at(50).await;
        s.does("PromoteFull").await;
        s.says("Ready").await;
        assert_ne!(s.status()["stable"]["revision"], first);
        s.set(json!({"rollout": {"pinnedRevision": first}}));
        s.says("Ready").await;
        assert_eq!(s.status()["stable"]["revision"], first);
        let set = s.cluster.get(&format!(
            "/apis/apps/v1/namespaces/shop/replicasets/{}",
            first.as_str().unwrap()
        ));
        let set = set.unwrap().to_string();
        let snapshots = s.cluster.list(maps);
        let kind = snapshots
            .iter()
            .find(|map| map["data"]["p"] == "be kind" || map["data"].to_string().contains("be kind"));
        let name = kind.unwrap()["metadata"]["name"].as_str().unwrap();
        assert!(set.contains(name), "the pods mount {name}");
    });
}

#[test]
fn scaling_by_somebody_else_is_followed() {
    scenario(canary(2, &[50]), async |s: &mut Scene| {
        s.cluster
            .patch(
                &format!("{}/scale", super::POOL),
                json!({"spec": {"replicas": 4}}),
            )
            .unwrap();
        s.until("1=4@100").await;
        s.says("Ready").await;
        assert_eq!(s.status()["replicas"], 4);
    });
}
