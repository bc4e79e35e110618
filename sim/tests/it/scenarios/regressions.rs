//! Issues of the peers that must not be ours (rollouts.md 11 B).

use std::time::Duration;

use flotilla_sim::controllers::Fate;
use flotilla_sim::faults::{Fault, Plan};
use flotilla_sim::run::compare;
use serde_json::json;
use tokio::time::Instant;

use super::world::Answer;
use super::{Scene, blue_green, canary, merged, of_canary, rolling, scenario, unready_scenario};

/// argo-rollouts #4898.
#[test]
fn abort_with_shrinking_stable_and_a_delay_does_not_deadlock() {
    let spec = merged(canary(4, &[75]), of_canary(json!({"scaleDownDelaySeconds": 60})));
    scenario(spec, async |s: &mut Scene| {
        s.image("2");
        s.judged_at(75).await;
        s.until("1=1@25 2=3@75").await;
        s.slow_start("1", 40);
        s.does("Abort").await;
        s.until("1=4@100").await;
        s.says("Aborted").await;
    });
}

/// argo-rollouts #4973.
#[test]
fn an_aborted_canary_stays_at_zero_on_scale_up() {
    scenario(canary(4, &[25]), async |s: &mut Scene| {
        s.image("2");
        s.judged_at(25).await;
        s.does("Abort").await;
        s.until("1=4@100").await;
        s.scale(8);
        s.until("1=8@100").await;
        s.stays("1=8@100", 120).await;
    });
}

/// argo-rollouts #2982, #1292.
#[test]
fn abort_of_a_finished_release_changes_nothing() {
    scenario(canary(2, &[50]), async |s: &mut Scene| {
        s.image("2");
        s.judged_at(50).await;
        let revision = s.revision("2");
        s.does("PromoteFull").await;
        s.says("Ready").await;
        let (result, _) = s.command_for("Abort", json!({"revision": revision})).await;
        assert_eq!(result, "Rejected");
        s.stays("2=2@100", 60).await;
        assert_eq!(s.condition("Ready"), "True Ready");
    });
}

/// argo-rollouts #2929.
#[test]
fn nothing_but_a_retry_retries() {
    scenario(canary(4, &[25]), async |s: &mut Scene| {
        s.image("2");
        s.judged_at(25).await;
        s.does("Abort").await;
        s.until("1=4@100").await;
        s.restart_operator().await;
        s.scale(6);
        s.until("1=6@100").await;
        s.cluster
            .patch(
                super::POOL,
                json!({"metadata": {"annotations": {"noise": "1"}, "labels": {"noise": "1"}}}),
            )
            .unwrap();
        s.set(json!({"rollout": {"settleSeconds": 1}}));
        s.stays("1=6@100", 3600).await;
        s.says("Aborted").await;
        s.does("Retry").await;
        s.judged_at(25).await;
    });
}

/// argo-rollouts #2897.
#[test]
fn a_retry_starts_with_new_evidence() {
    scenario(canary(4, &[25]), async |s: &mut Scene| {
        s.traffic(100.0);
        s.fails("2", 0.5);
        s.image("2");
        s.says("AnalysisFailed").await;
        s.fails("2", 0.0);
        s.does("Retry").await;
        s.judged_at(25).await;
        let events = |s: &Scene| {
            s.status()["rollout"]["metrics"][0]["candidate"]["events"]
                .as_i64()
                .unwrap_or_default()
        };
        assert_eq!(events(s), 0);
        s.says("Ready").await;
        s.traffic(0.0);
    });
}

/// argo-rollouts #3331, #1372, #3082.
#[test]
fn supersede_at_every_state() {
    let tests = json!([{"name": "health", "type": "HTTP", "http": {"path": "/health"}}]);
    let late = |bake: i32, delay: i32| {
        of_canary(json!({"stableScale": "Keep", "bakeSeconds": bake, "scaleDownDelaySeconds": delay}))
    };
    // What the release waits for, or else the word of Ready.
    let states = [
        ("Settling", json!({"rollout": {"settleSeconds": 2}})),
        ("CandidateAvailable", json!({})),
        ("Testing", json!({"rollout": {"smokeTests": tests}})),
        ("Judging", json!({})),
        ("NoData", json!({})),
        ("Paused", json!({})),
        ("Baking", late(60, 0)),
        ("ScaleDownDelay", late(0, 30)),
        ("Returning", json!({})),
        ("Aborted", json!({})),
    ];
    for (state, change) in states {
        scenario(merged(canary(4, &[25]), change), async |s: &mut Scene| {
            s.answers("/health", Some(Answer::Never));
            s.image("2");
            match state {
                "Paused" => {
                    s.judged_at(25).await;
                    s.set(json!({"rollout": {"paused": true}}));
                }
                "Baking" | "ScaleDownDelay" => {
                    s.judged_at(25).await;
                    s.does("SkipStep").await;
                }
                "Returning" | "Aborted" => {
                    s.judged_at(25).await;
                    s.until("1=3@75 2=1@25").await;
                    // With stable's new pods still to come, the way back takes a while.
                    s.slow_start("1", 20);
                    s.does("Abort").await;
                }
                _ => {}
            }
            s.wait_for(state, |s| {
                let waiting = s.status()["rollout"]["waitingFor"]["reason"] == state;
                waiting || s.condition("Ready") == format!("False {state}")
            })
            .await;
            s.answers("/health", None);
            s.image("3");
            s.set(json!({"rollout": {"paused": false}}));
            s.wait_for("the third at its first step", |s| s.arms().ends_with(" 3=1@25"))
                .await;
            s.judged_at(25).await;
            assert!(!s.arms().contains("2="), "{}", s.arms());
            s.does("SkipStep").await;
            s.until("3=4@100").await;
            s.says("Ready").await;
        });
    }
}

/// Metrics that cannot be had for half an hour.
#[test]
fn gateways_that_do_not_answer_hold_the_release() {
    scenario(canary(4, &[25]), async |s: &mut Scene| {
        s.traffic(20.0);
        s.image("2");
        s.judged_at(25).await;
        s.world.gateways.mute(true);
        s.says("GatewayUnconfirmed").await;
        s.stays("1=3@75 2=1@25", 1800).await;
        assert!(s.status()["rejected"].is_null());
        s.world.gateways.mute(false);
        s.traffic(100.0);
        s.says("Ready").await;
        assert_eq!(s.arms(), "2=4@100");
        s.traffic(0.0);
    });
}

/// argo-rollouts #3984, without smoke tests: what never starts never serves.
#[test]
fn a_first_deployment_that_fails_is_not_ready() {
    unready_scenario(rolling(2), async |s: &mut Scene| {
        s.crashes("1");
        s.says("CrashLoop").await;
        assert!(s.condition("Ready").starts_with("False"));
        assert!(s.condition("Available").starts_with("False"));
        s.fate("2", Fate::Ready(Duration::from_secs(1)));
        s.image("2");
        s.until("2=2@100").await;
        s.says("Ready").await;
    });
}

/// argo-rollouts #3984.
#[test]
fn a_first_deployment_that_fails_its_smoke_test_serves_nobody() {
    let tests = json!([{"name": "health", "type": "HTTP", "http": {"path": "/health"}, "attempts": 1}]);
    let spec = merged(canary(2, &[50]), json!({"rollout": {"smokeTests": tests}}));
    unready_scenario(spec, async |s: &mut Scene| {
        s.answers("/health", Some(Answer::Broken));
        s.says("SmokeTestFailed").await;
        assert!(s.condition("Ready").starts_with("False"));
        assert!(s.status()["traffic"].is_null() && s.status()["stable"].is_null());
        s.answers("/health", None);
        s.image("2");
        s.until("2=2@100").await;
        s.says("Ready").await;
    });
}

/// argo-rollouts #4073, #3080, #3316.
#[test]
fn a_fifth_of_all_writes_fails_and_news_is_ten_seconds_old() {
    let workloads = crate::workloads::all();
    let canary = workloads
        .iter()
        .find(|workload| workload.name == "canary")
        .unwrap();
    let run =
        |plan: &Plan| crate::operator::simulate(canary, plan).map_err(|violation| violation.to_string());
    let expected = run(&Plan::none(1)).unwrap();
    let codes: &[u16] = if crate::campaign::is_full() {
        &[409, 500]
    } else {
        &[500]
    };
    for code in codes.iter().copied() {
        let plan = Plan {
            seed: 1,
            faults: vec![
                Fault::Flaky { percent: 20, code },
                Fault::Late {
                    plural: "replicasets".to_owned(),
                    by: 10_000,
                },
            ],
        };
        compare(canary, &expected, &run(&plan).unwrap()).unwrap();
    }
}

/// argo-rollouts #1905, flagger #1035, #883, argo-rollouts #2071.
#[test]
fn without_traffic_it_holds_until_synthetic_load_lets_it_pass() {
    let top_up = json!({"templateRef": {"name": "quiet"}, "minRequestsPerSecond": "0.5"});
    let spec = merged(
        canary(4, &[25]),
        json!({"rollout": {"analysis": {"topUp": top_up}}}),
    );
    scenario(spec, async |s: &mut Scene| {
        s.image("2");
        s.says("NoData").await;
        s.stays("1=3@75 2=1@25", 300).await;
        let template = json!({"metadata": {"name": "quiet"}, "spec": {
            "target": {"poolRef": {"name": "support"}}, "suspend": true, "workers": {"count": 2},
            "scenarios": [{"name": "a", "prompt": {"text": "hi"}}],
            "stages": [{"name": "steady", "type": "ConstantRate", "constantRate": {"perSecond": "5", "seconds": 60}}],
        }});
        let tests = "/apis/flotilla.dev/v1alpha1/namespaces/shop/loadtests";
        s.cluster.create(tests, &template).unwrap();
        s.wait_for("synthetic load", |s| {
            s.status()["rollout"]["topUpRef"]["name"].is_string()
        })
        .await;
        // Its requests are requests to the pool.
        s.traffic(20.0);
        s.says("Ready").await;
        assert_eq!(s.arms(), "2=4@100");
        s.traffic(0.0);
        s.wait_for("its end", |s| s.cluster.list(tests).len() == 1).await;
    });
}

/// argo-rollouts #3854, #3578, flagger #1158: Argo CD and Flux see no difference, and `managedFields` does not grow.
#[test]
fn releases_leave_the_spec_to_its_author() {
    scenario(canary(2, &[50]), async |s: &mut Scene| {
        let managers = |s: &Scene| {
            s.pool()["metadata"]["managedFields"]
                .as_array()
                .map_or(0, Vec::len)
        };
        let (mut spec, before) = (s.pool()["spec"].clone(), managers(s));
        for tag in ["2", "3", "4"] {
            s.image(tag);
            s.judged_at(50).await;
            spec["agent"]["image"] = json!(format!("agent:{tag}"));
            assert_eq!(s.pool()["spec"], spec, "while {tag} is released");
            s.does("SkipStep").await;
            s.until(&format!("{tag}=2@100")).await;
            s.says("Ready").await;
            assert_eq!(s.pool()["spec"], spec, "after {tag}");
        }
        // The operator's own fields and its author's, whoever that was last.
        assert!(managers(s) <= before + 1, "{before} became {}", managers(s));
    });
}

/// Open in Argo Rollouts.
#[test]
fn two_promotes_in_one_second_advance_one_step() {
    scenario(canary(4, &[25, 50]), async |s: &mut Scene| {
        s.image("2");
        s.judged_at(25).await;
        let expect = json!({"revision": s.revision("2"), "step": 0});
        let first = s.give("SkipStep", expect.clone());
        let second = s.give("SkipStep", expect);
        assert_eq!(s.answer(&first).await.0, "Applied");
        assert_eq!(s.answer(&second).await.0, "Rejected");
        s.judged_at(50).await;
        s.until("1=2@50 2=2@50").await;
        s.stays("1=2@50 2=2@50", 30).await;
    });
}

/// argo-rollouts #4503.
#[test]
fn a_hold_for_approval_survives_every_noise() {
    scenario(blue_green(2, json!({})), async |s: &mut Scene| {
        s.image("2");
        s.says("ApprovalNeeded").await;
        s.restart_operator().await;
        s.cluster
            .patch(super::POOL, json!({"metadata": {"annotations": {"noise": "1"}}}))
            .unwrap();
        s.stays("1=2@100 2=2@0", 1800).await;
        s.says("ApprovalNeeded").await;
    });
}

/// A restore without status does not release a rejected revision again.
#[test]
fn a_lost_status_forgets_no_rejection() {
    scenario(canary(4, &[25]), async |s: &mut Scene| {
        s.image("2");
        s.judged_at(25).await;
        s.does("Abort").await;
        s.until("1=4@100").await;
        s.restart_operator().await;
        s.cluster
            .patch(&format!("{}/status", super::POOL), json!({"status": null}))
            .unwrap();
        s.says("Aborted").await;
        s.stays("1=4@100", 120).await;
    });
}

/// Weight 0 within ten seconds of a hard fault, at a step and with all the traffic: nobody waits for statistics.
#[test]
fn a_hard_fault_takes_the_traffic_within_ten_seconds() {
    for (exits, is_promoted, word) in [
        (true, false, "CrashLoop"),
        (false, false, "ProbeFailing"),
        (true, true, "CrashLoop"),
    ] {
        let late = of_canary(json!({"bakeSeconds": 1200, "scaleDownDelaySeconds": 1200}));
        scenario(merged(canary(4, &[25]), late), async |s: &mut Scene| {
            let fate = Fate::Breaks {
                ready: Duration::from_millis(700),
                lasts: Duration::from_secs(60),
                exits,
            };
            s.fate("2", fate);
            s.image("2");
            s.judged_at(25).await;
            if is_promoted {
                s.does("SkipStep").await;
                s.judged_at(100).await;
            }
            assert!(s.ready("2").0 > 0);
            let has_no_weight =
                |s: &Scene| s.status()["candidate"]["weight"].as_i64().unwrap_or_default() == 0;
            // Who looks late sees both at once.
            s.wait_for("the fault", |s| s.ready("2").0 == 0 || has_no_weight(s))
                .await;
            let begin = Instant::now();
            s.wait_for("weight 0", has_no_weight).await;
            assert!(
                begin.elapsed() <= Duration::from_secs(10),
                "{:?}",
                begin.elapsed()
            );
            s.says(word).await;
            s.until("1=4@100").await;
            assert_eq!(s.status()["rejected"][0]["reason"], word);
        });
    }
}

/// One outage is a likelier cause than many bad candidates: after ten, the evidence alone leads nobody back.
#[test]
fn when_many_releases_fail_at_once_a_person_decides() {
    const POOLS: usize = 12;
    let release = of_canary(json!({"stableScale": "Keep"}));
    scenario(merged(canary(1, &[50]), release), async |s: &mut Scene| {
        let path = |n: usize| format!("{}/pool-{n}", super::POOLS);
        let spec = s.pool()["spec"].clone();
        let all = (1..POOLS)
            .map(path)
            .chain([super::POOL.to_owned()])
            .collect::<Vec<_>>();
        for n in 1..POOLS {
            let pool = json!({"metadata": {"name": format!("pool-{n}")}, "spec": spec});
            s.cluster.create(super::POOLS, &pool).unwrap();
        }
        let words = |s: &Scene, word: &str| {
            let is_so = |path: &&String| {
                let pool = s.cluster.object(path).unwrap_or_default();
                let conditions = pool["status"]["conditions"]
                    .as_array()
                    .cloned()
                    .unwrap_or_default();
                conditions
                    .iter()
                    .any(|condition| condition["type"] == "Ready" && condition["reason"] == word)
            };
            all.iter().filter(is_so).count()
        };
        s.wait_for("all pools", |s| words(s, "Ready") == POOLS).await;
        s.traffic(100.0);
        s.fails("2", 0.5);
        for path in &all {
            s.cluster
                .patch(path, json!({"spec": {"agent": {"image": "agent:2"}}}))
                .unwrap();
        }
        s.wait_for("the storm", |s| {
            words(s, "AnalysisFailed") + words(s, "RollbackStorm") == POOLS
        })
        .await;
        assert_eq!(words(s, "AnalysisFailed"), 10);
        // For as long as it takes, whoever looks.
        s.restart_operator().await;
        s.pass(900).await;
        assert_eq!(words(s, "RollbackStorm"), POOLS - 10);
        s.traffic(0.0);
        for path in &all {
            s.cluster
                .patch(path, json!({"spec": {"agent": {"image": "agent:1"}}}))
                .unwrap();
        }
        s.wait_for("the end", |s| words(s, "Ready") == POOLS).await;
    });
}
