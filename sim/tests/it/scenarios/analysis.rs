//! Argo Rollouts' analysis tests, judged by evidence.

use serde_json::json;

use super::{Scene, blue_green, canary, merged, of_canary, scenario};

#[test]
fn canary_background_analysis() {
    scenario(canary(4, &[25, 50]), async |s: &mut Scene| {
        assert_eq!(s.events(), ["FirstRevision"], "a first deployment is not judged");
        s.traffic(100.0);
        s.image("2");
        s.judged_at(25).await;
        s.judged_at(50).await;
        s.until("2=4@100").await;
        s.says("Ready").await;
        assert_eq!(
            s.events(),
            [
                "FirstRevision",
                "ReleaseStarted",
                "StepReached",
                "StepPassed",
                "StepReached",
                "StepPassed",
                "ReleaseCompleted"
            ]
        );
        s.traffic(0.0);
    });
}

#[test]
fn canary_inconclusive_analysis_waits_for_a_person() {
    let steps = json!([{"weight": 50, "minDurationSeconds": 10, "decideWithinSeconds": 120}]);
    scenario(
        merged(canary(2, &[]), of_canary(json!({"steps": steps}))),
        async |s: &mut Scene| {
            s.traffic(0.5);
            s.image("2");
            s.says("Undecided").await;
            assert!(
                s.condition("Stalled").starts_with("False"),
                "waiting for a person is no failure"
            );
            s.does("Promote").await;
            s.says("Ready").await;
            s.traffic(0.0);
        },
    );
}

#[test]
fn undecided_may_promote_or_abort() {
    for (policy, word, arms) in [("Promote", "Ready", "2=2@100"), ("Abort", "Undecided", "1=2@100")] {
        let steps = json!([{"weight": 50, "minDurationSeconds": 10, "decideWithinSeconds": 120}]);
        let change = of_canary(json!({"steps": steps, "onUndecided": policy}));
        scenario(merged(canary(2, &[]), change), async |s: &mut Scene| {
            s.traffic(0.5);
            s.image("2");
            s.until(arms).await;
            s.says(word).await;
            s.traffic(0.0);
        });
    }
}

#[test]
fn fail_inline_analysis() {
    scenario(canary(4, &[25, 50]), async |s: &mut Scene| {
        s.traffic(100.0);
        s.fails("2", 0.5);
        s.image("2");
        s.says("AnalysisFailed").await;
        s.until("1=4@100").await;
        assert_eq!(s.condition("Stalled"), "True AnalysisFailed");
        assert!(
            s.sentence().contains("RolloutAction of type Retry"),
            "{}",
            s.sentence()
        );
        s.traffic(0.0);
    });
}

#[test]
fn a_candidate_that_is_slower_is_led_back() {
    let latency = json!({"rollout": {"analysis": {"latency": {"thresholdsMilliseconds": [400, 800]}}}});
    scenario(merged(canary(4, &[25]), latency), async |s: &mut Scene| {
        s.traffic(100.0);
        s.answers_in("2", 1000.0);
        s.image("2");
        s.says("AnalysisFailed").await;
        assert!(s.sentence().contains("latency"), "{}", s.sentence());
        s.traffic(0.0);
    });
}

/// For those who read along; how long the whole answer takes tells nothing of it.
#[test]
fn a_candidate_whose_first_byte_is_slower_is_led_back() {
    let analysis = json!({"latency": {"thresholdsMilliseconds": [100, 400]}, "firstByte": {"thresholdsMilliseconds": [50, 200]}});
    let judged = merged(canary(4, &[25]), json!({"rollout": {"analysis": analysis}}));
    for (part, word) in [(0.9, "AnalysisFailed"), (0.5, "Ready")] {
        scenario(judged.clone(), async |s: &mut Scene| {
            s.traffic(100.0);
            s.first_byte_after("2", part);
            s.image("2");
            s.judged_at(25).await;
            let shown = |s: &Scene| {
                let metrics = s.status()["rollout"]["metrics"].clone();
                metrics
                    .as_array()
                    .is_some_and(|metrics| metrics.iter().any(|metric| metric["name"] == "firstByte"))
            };
            s.wait_for("firstByte in status", shown).await;
            s.says(word).await;
            if word == "AnalysisFailed" {
                assert!(
                    s.sentence()
                        .contains("firstByte: the candidate is worse than stable"),
                    "{}",
                    s.sentence()
                );
                assert!(
                    s.sentence().contains("with the first byte above"),
                    "{}",
                    s.sentence()
                );
                s.until("1=4@100").await;
            }
            s.traffic(0.0);
        });
    }
}

#[test]
fn what_is_only_observed_decides_nothing() {
    let observe = json!({"rollout": {"analysis": {"errors": {"mode": "Observe"}}}});
    scenario(merged(canary(4, &[25]), observe), async |s: &mut Scene| {
        s.traffic(100.0);
        s.fails("2", 0.5);
        s.image("2");
        s.says("Ready").await;
        assert_eq!(s.arms(), "2=4@100");
        s.traffic(0.0);
    });
}

#[test]
fn both_arms_bad_holds() {
    let steps = json!([{"weight": 25, "ruleOutTimesWorse": 10, "minDurationSeconds": 10}]);
    scenario(
        merged(canary(4, &[]), of_canary(json!({"steps": steps}))),
        async |s: &mut Scene| {
            s.traffic(100.0);
            s.pass(120).await;
            s.image("2");
            s.judged_at(25).await;
            s.fails("1", 0.6);
            s.fails("2", 0.6);
            s.says("StableDegraded").await;
            s.pass(200).await;
            assert_eq!(s.arms(), "1=3@75 2=1@25");
            assert!(s.condition("Stalled").starts_with("False"));
            s.fails("1", 0.0);
            s.fails("2", 0.0);
            // What was counted meanwhile is set aside: the guard looks back five minutes, and then the step goes on where it was.
            s.pass(420).await;
            s.until("2=4@100").await;
            s.says("Ready").await;
            assert!(s.status()["rejected"].is_null());
            s.traffic(0.0);
        },
    );
}

/// What was proved at a fifth of the exposure that a step is for is not what it promises.
#[test]
fn requests_that_do_not_follow_the_weight_hold_the_step() {
    scenario(canary(4, &[25]), async |s: &mut Scene| {
        s.traffic(100.0);
        s.is_reached_by("2", 0.2);
        s.image("2");
        s.says("WeightNotMeasured").await;
        let waits_for = |s: &Scene| s.status()["rollout"]["waitingFor"]["message"].to_string();
        let told = waits_for(s);
        assert!(
            told.contains("% of the requests where 25 % were asked for"),
            "{told}"
        );
        s.stays("1=3@75 2=1@25", 600).await;
        s.is_reached_by("2", 1.0);
        s.says("Ready").await;
        assert_eq!(s.arms(), "2=4@100");
        s.traffic(0.0);
    });
}

#[test]
fn no_data_holds_and_goes_on_by_itself() {
    scenario(canary(4, &[25]), async |s: &mut Scene| {
        s.image("2");
        s.says("NoData").await;
        s.stays("1=3@75 2=1@25", 3600).await;
        s.traffic(100.0);
        s.says("Ready").await;
        assert_eq!(s.arms(), "2=4@100");
        s.traffic(0.0);
    });
}

#[test]
fn another_way_of_judging_begins_the_evidence_anew() {
    scenario(canary(4, &[25]), async |s: &mut Scene| {
        s.traffic(5.0);
        s.image("2");
        s.judged_at(25).await;
        s.pass(60).await;
        s.set(json!({"rollout": {"analysis": {"errors": {"tolerateWorsePercent": 50}}}}));
        s.wait_for("EvidenceReset", |s| {
            s.events().contains(&"EvidenceReset".to_owned())
        })
        .await;
        s.traffic(100.0);
        s.says("Ready").await;
        s.traffic(0.0);
    });
}

#[test]
fn blue_green_post_promotion_fail() {
    let change = json!({"bakeSeconds": 600, "scaleDownDelaySeconds": 600});
    scenario(blue_green(2, change), async |s: &mut Scene| {
        s.traffic(100.0);
        s.image("2");
        s.says("ApprovalNeeded").await;
        // What the old one shows meanwhile is what the new one is compared with.
        s.pass(120).await;
        s.does("Promote").await;
        s.until("1=2@0 2=2@100").await;
        s.says("Baking").await;
        s.fails("2", 0.5);
        s.says("AnalysisFailed").await;
        s.until("1=2@100").await;
        s.traffic(0.0);
    });
}

#[test]
fn post_promotion_regression_inside_the_bake() {
    let change = json!({"bakeSeconds": 900, "scaleDownDelaySeconds": 900, "stableScale": "Keep"});
    scenario(
        merged(canary(4, &[25]), of_canary(change)),
        async |s: &mut Scene| {
            s.traffic(100.0);
            s.image("2");
            s.says("Baking").await;
            assert_eq!(s.condition("Baking"), "True Baking");
            s.pass(60).await;
            s.fails("2", 0.5);
            s.says("AnalysisFailed").await;
            s.until("1=4@100").await;
            s.traffic(0.0);
        },
    );
}

#[test]
fn evidence_survives_the_operator() {
    scenario(canary(4, &[25]), async |s: &mut Scene| {
        // Too little to decide within two minutes.
        s.traffic(1.0);
        s.image("2");
        s.judged_at(25).await;
        s.pass(120).await;
        let requests = |s: &Scene| {
            let metrics = s.status()["rollout"]["metrics"].clone();
            metrics[0]["candidate"]["requests"].as_i64().unwrap_or_default()
        };
        let before = requests(s);
        assert!(before > 0, "{:#}", s.status());
        s.restart_operator().await;
        s.pass(20).await;
        assert!(requests(s) >= before, "{before} became {}", requests(s));
        s.traffic(100.0);
        s.says("Ready").await;
        s.traffic(0.0);
    });
}
