//! Argo Rollouts' traffic tests. Each revision has a Service of its own for ever; what changes are the weights.

use serde_json::json;

use super::{Scene, canary, merged, of_canary, rolling, scenario};

#[test]
fn host_split() {
    let keep = of_canary(json!({"stableScale": "Keep", "scaleDownDelaySeconds": 30}));
    scenario(merged(canary(4, &[10]), keep), async |s: &mut Scene| {
        assert_eq!(s.arms(), "1=4@100");
        s.image("2");
        s.judged_at(10).await;
        assert_eq!(s.arms(), "1=4@90 2=1@10");
        s.does("SkipStep").await;
        s.until("1=4@0 2=4@100").await;
        s.stays("1=4@0 2=4@100", 25).await;
        s.until("2=4@100").await;
    });
}

#[test]
fn services_of_revisions_stay_as_they_are() {
    scenario(canary(2, &[50]), async |s: &mut Scene| {
        let first = s.revision("1");
        let path = format!("/api/v1/namespaces/shop/services/{first}");
        let before = s.cluster.get(&path).unwrap()["spec"]["selector"].clone();
        s.image("2");
        s.judged_at(50).await;
        s.does("SkipStep").await;
        s.until("2=2@100").await;
        assert_eq!(s.cluster.get(&path).unwrap()["spec"]["selector"], before);
    });
}

#[test]
fn abort_when_nothing_runs_is_refused() {
    scenario(canary(4, &[25]), async |s: &mut Scene| {
        let writes = s.writes();
        let revision = s.revision("1");
        let (result, message) = s.command_for("Abort", json!({"revision": revision})).await;
        assert_eq!(result, "Rejected");
        assert!(message.contains("is not being released"), "{message}");
        // The owner reference and the answer; a status at most.
        assert!(s.writes() - writes <= 3, "{} writes", s.writes() - writes);
    });
}

#[test]
fn update_in_the_middle_without_replicas() {
    let spec = merged(canary(2, &[50]), json!({"replicas": 0}));
    scenario(spec, async |s: &mut Scene| {
        s.image("2");
        s.pass(30).await;
        s.scale(2);
        s.wait_for("a step or the end", |s| {
            s.status()["rollout"]["step"].is_object() || s.arms() == "2=2@100"
        })
        .await;
        if s.arms() != "2=2@100" {
            s.judged_at(50).await;
            s.does("PromoteFull").await;
        }
        s.until("2=2@100").await;
        s.says("Ready").await;
    });
}

#[test]
fn abort_update_keeps_no_candidate_pods() {
    scenario(
        merged(canary(5, &[20]), of_canary(json!({"stableScale": "Keep"}))),
        async |s: &mut Scene| {
            s.image("2");
            s.judged_at(20).await;
            assert_eq!(s.arms(), "1=5@80 2=1@20");
            s.does("Abort").await;
            s.until("1=5@100").await;
        },
    );
}

#[test]
fn ping_pong() {
    scenario(canary(4, &[75]), async |s: &mut Scene| {
        for (from, to) in [("1", "2"), ("2", "3")] {
            s.image(to);
            s.judged_at(75).await;
            s.until(&format!("{from}=1@25 {to}=3@75")).await;
            s.does("SkipStep").await;
            s.until(&format!("{to}=4@100")).await;
            s.says("Ready").await;
        }
    });
}

#[test]
fn stable_downscale_after_canary_abort() {
    scenario(canary(4, &[25]), async |s: &mut Scene| {
        s.image("2");
        s.judged_at(25).await;
        s.does("Abort").await;
        s.until("1=4@100").await;
        s.scale(2);
        s.until("1=2@100").await;
        s.scale(6);
        s.until("1=6@100").await;
        s.says("Aborted").await;
    });
}

#[test]
fn the_weight_follows_the_available_share() {
    let spec = merged(
        rolling(4),
        json!({"rollout": {"rollingUpdate": {"maxSurgePercent": 25}}}),
    );
    scenario(spec, async |s: &mut Scene| {
        s.image("2");
        for arms in ["1=4@75 2=1@25", "1=3@75 2=1@25"] {
            s.wait_for(arms, |s| s.arms() == arms || s.arms().contains("2=2"))
                .await;
        }
        s.until("2=4@100").await;
        s.says("Ready").await;
    });
}

#[test]
fn lost_candidate_pods_give_their_weight_back() {
    scenario(
        merged(canary(4, &[50]), of_canary(json!({"stableScale": "Keep"}))),
        async |s: &mut Scene| {
            s.image("2");
            s.judged_at(50).await;
            assert_eq!(s.arms(), "1=4@50 2=2@50");
            s.never_ready("2");
            let pods = s.cluster.list("/api/v1/namespaces/shop/pods");
            let revision = s.revision("2");
            let lost = pods
                .iter()
                .find(|pod| pod["metadata"]["labels"]["flotilla.dev/revision"] == revision.as_str());
            let name = lost.unwrap()["metadata"]["name"].as_str().unwrap();
            s.cluster
                .delete(&format!("/api/v1/namespaces/shop/pods/{name}"))
                .unwrap();
            s.until("1=4@75 2=1/2@25").await;
            s.does("Abort").await;
            s.until("1=4@100").await;
        },
    );
}

/// Testers are led to the candidate by a header while it has a replica, and no longer.
#[test]
fn header_route() {
    let preview = json!({"rollout": {"preview": {"header": "X-Preview", "value": "yes"}}});
    scenario(merged(canary(4, &[25]), preview), async |s: &mut Scene| {
        let led_to = |s: &Scene| -> Vec<String> {
            let status = s.status();
            let shares = status["traffic"].as_array().into_iter().flatten();
            shares
                .filter(|share| share["preview"] == true)
                .filter_map(|share| share["revision"].as_str().map(str::to_owned))
                .collect()
        };
        assert!(led_to(s).is_empty());
        s.image("2");
        s.judged_at(25).await;
        assert_eq!(led_to(s), [s.revision("2")]);
        s.does("Abort").await;
        s.until("1=4@100").await;
        assert!(led_to(s).is_empty());
    });
}
