//! RolloutActions: what they expect, and how they are answered.

use serde_json::json;

use super::{Scene, canary, rolling, scenario};

#[test]
fn promote_is_refused_while_evidence_is_gathered() {
    scenario(canary(4, &[25]), async |s: &mut Scene| {
        s.traffic(2.0);
        s.image("2");
        s.judged_at(25).await;
        s.wait_for("Judging", |s| s.condition("Ready") == "False Judging")
            .await;
        let (result, message) = s.command("Promote").await;
        assert_eq!(result, "Rejected");
        assert!(
            message.contains("SkipStep passes the step without it"),
            "{message}"
        );
        s.does("PromoteFull").await;
        s.says("Ready").await;
        s.traffic(0.0);
    });
}

#[test]
fn a_command_meant_for_another_attempt_is_refused() {
    scenario(canary(4, &[25]), async |s: &mut Scene| {
        s.image("2");
        s.judged_at(25).await;
        let revision = s.revision("2");
        s.does("Abort").await;
        s.says("Aborted").await;
        s.does("Retry").await;
        s.judged_at(25).await;
        let late = json!({"revision": revision, "attempt": 1});
        let (result, message) = s.command_for("Abort", late).await;
        assert_eq!(result, "Rejected");
        assert!(message.contains("at attempt 2, not 1"), "{message}");
        s.until("1=3@75 2=1@25").await;
        s.stays("1=3@75 2=1@25", 30).await;
    });
}

#[test]
fn the_last_command_is_shown_and_twenty_are_kept() {
    scenario(rolling(1), async |s: &mut Scene| {
        let stable = s.revision("1");
        for _ in 0..24 {
            let (result, _) = s.command_for("Abort", json!({"revision": stable})).await;
            assert_eq!(result, "Rejected");
            s.pass(1).await;
        }
        s.wait_for("twenty", |s| s.cluster.list(super::ACTIONS).len() == 20)
            .await;
        s.wait_for("the last one", |s| {
            s.status()["lastAction"]["name"] == "command-24"
        })
        .await;
        assert_eq!(s.status()["lastAction"]["result"], "Rejected");
    });
}

#[test]
fn a_command_for_nobody_is_refused_after_a_minute() {
    scenario(rolling(1), async |s: &mut Scene| {
        let spec = json!({"poolRef": {"name": "nobody"}, "type": "Restart"});
        s.cluster
            .create(
                super::ACTIONS,
                &json!({"metadata": {"name": "lost"}, "spec": spec}),
            )
            .unwrap();
        s.pass(10).await;
        let action = s.cluster.get(&format!("{}/lost", super::ACTIONS)).unwrap();
        assert!(action["status"]["result"].is_null(), "{action:#}");
        let (result, message) = s.answer("lost").await;
        assert_eq!(result, "Rejected");
        assert!(message.contains("does not exist"), "{message}");
    });
}

#[test]
fn commands_go_one_after_the_other() {
    scenario(canary(4, &[10, 25, 50]), async |s: &mut Scene| {
        s.image("2");
        s.judged_at(10).await;
        let expect = |step: i32| json!({"revision": s.revision("2"), "step": step});
        let (first, second) = (expect(0), expect(1));
        let names = [s.give("SkipStep", first), s.give("SkipStep", second)];
        assert_eq!(s.answer(&names[0]).await.0, "Applied");
        // The second was meant for a step that is not reached yet when it is its turn, or that just is.
        let _ = s.answer(&names[1]).await;
        s.wait_for("a later step", |s| {
            let weight = s.status()["rollout"]["step"]["weight"].as_i64();
            weight.is_some_and(|weight| weight >= 25)
        })
        .await;
    });
}
