//! Argo Rollouts' tests of a rollout's duration: how long the last release took, and what came of it.

use jiff::Timestamp;
use serde_json::json;

use super::{Scene, blue_green, canary, merged, rolling, scenario};

/// `2 Promoted` and the seconds it took; of the release that ended last.
fn last(scene: &Scene) -> (String, i64) {
    let last = scene.status()["lastRelease"].clone();
    let time = |field: &str| {
        last[field]
            .as_str()
            .and_then(|text| text.parse::<Timestamp>().ok())
    };
    let seconds = match (time("startTime"), time("completionTime")) {
        (Some(start), Some(end)) => end.duration_since(start).as_secs(),
        _ => 0,
    };
    let of = ["1", "2", "3"]
        .into_iter()
        .find(|of| last["revision"] == json!(name(scene, of)));
    let result = last["result"].as_str().unwrap_or_default();
    (format!("{} {result}", of.unwrap_or_default()), seconds)
}

/// The name of an image's revision, where there is one.
fn name(scene: &Scene, of: &str) -> Option<String> {
    let sets = scene.cluster.objects("/apis/apps/v1/namespaces/shop/replicasets");
    let set = sets.iter().find(|set| {
        let image = set["spec"]["template"]["spec"]["containers"][0]["image"].as_str();
        image == Some(&format!("agent:{of}"))
    })?;
    set["metadata"]["name"].as_str().map(str::to_owned)
}

#[test]
fn initial_rollout_promoted() {
    scenario(canary(4, &[25]), async |s: &mut Scene| {
        assert!(
            s.status()["lastRelease"].is_null(),
            "the first revision is not released"
        );
        s.image("2");
        s.judged_at(25).await;
        s.does("SkipStep").await;
        s.says("Ready").await;
        assert_eq!(last(s).0, "2 Promoted");
        assert!((1..120).contains(&last(s).1), "{:?}", last(s));
    });
}

#[test]
fn spec_paused_and_indefinite_pause_count() {
    scenario(canary(4, &[25]), async |s: &mut Scene| {
        s.image("2");
        s.judged_at(25).await;
        s.set(json!({"rollout": {"paused": true}}));
        s.says("Paused").await;
        s.pass(600).await;
        s.set(json!({"rollout": {"paused": false}}));
        s.judged_at(25).await;
        s.does("SkipStep").await;
        s.says("Ready").await;
        assert!(
            last(s).0 == "2 Promoted" && (600..720).contains(&last(s).1),
            "{:?}",
            last(s)
        );
    });
    scenario(blue_green(2, json!({})), async |s: &mut Scene| {
        s.image("2");
        s.says("ApprovalNeeded").await;
        s.pass(600).await;
        s.does("Promote").await;
        s.says("Ready").await;
        assert!(
            last(s).0 == "2 Promoted" && (600..720).contains(&last(s).1),
            "{:?}",
            last(s)
        );
    });
}

#[test]
fn fully_promoted() {
    scenario(canary(4, &[25, 50]), async |s: &mut Scene| {
        s.image("2");
        s.judged_at(25).await;
        s.does("PromoteFull").await;
        s.says("Ready").await;
        assert_eq!(last(s).0, "2 Promoted");
    });
}

#[test]
fn abort_finishes_and_retry_resets() {
    scenario(canary(4, &[25]), async |s: &mut Scene| {
        s.image("2");
        s.judged_at(25).await;
        s.pass(300).await;
        s.does("Abort").await;
        s.says("Aborted").await;
        let aborted = last(s);
        assert!(
            aborted.0 == "2 Stopped" && (300..420).contains(&aborted.1),
            "{aborted:?}"
        );
        s.pass(300).await;
        assert_eq!(last(s), aborted);
        s.does("Retry").await;
        s.judged_at(25).await;
        assert!(s.status()["lastRelease"].is_null(), "it is under way again");
        s.does("SkipStep").await;
        s.says("Ready").await;
        assert!(
            last(s).0 == "2 Promoted" && last(s).1 < 120,
            "counted from the Retry: {:?}",
            last(s)
        );
        assert_eq!(s.status()["lastRelease"]["attempt"], 2);
    });
}

#[test]
fn superseded_rollout_restarts_the_clock() {
    scenario(canary(4, &[25]), async |s: &mut Scene| {
        s.image("2");
        s.judged_at(25).await;
        s.pass(300).await;
        s.image("3");
        s.wait_for("the end of 2", |s| last(s).0 == "2 Superseded").await;
        s.judged_at(25).await;
        s.does("SkipStep").await;
        s.until("3=4@100").await;
        s.says("Ready").await;
        assert!(last(s).0 == "3 Promoted" && last(s).1 < 120, "{:?}", last(s));
    });
}

#[test]
fn superseded_rollback_and_rollback_inside_window() {
    let spec = merged(
        canary(4, &[25]),
        json!({"rollout": {"rollbackWindowRevisions": 2}}),
    );
    scenario(spec, async |s: &mut Scene| {
        s.image("2");
        s.judged_at(25).await;
        s.image("1");
        s.until("1=4@100").await;
        s.says("Ready").await;
        assert_eq!(last(s).0, "2 Superseded");
        s.image("2");
        s.judged_at(25).await;
        s.does("SkipStep").await;
        s.says("Ready").await;
        // It served not long ago, so it comes back without being judged.
        s.image("1");
        s.until("1=4@100").await;
        s.says("Ready").await;
        assert!(last(s).0 == "1 Promoted" && last(s).1 < 120, "{:?}", last(s));
    });
}

#[test]
fn scaling_only_leaves_it_alone() {
    scenario(rolling(2), async |s: &mut Scene| {
        s.image("2");
        s.until("2=2@100").await;
        s.says("Ready").await;
        let before = s.status()["lastRelease"].clone();
        s.scale(5);
        s.until("2=5@100").await;
        s.says("Ready").await;
        s.restart_operator().await;
        s.pass(60).await;
        assert_eq!(s.status()["lastRelease"], before);
    });
}
