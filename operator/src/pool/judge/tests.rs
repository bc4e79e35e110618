//! The spec as ladder, plan and start; the judgement as opinion; the checkpoint.

use flotilla_core::evidence::{Counted, Mode, Question, Rule};
use flotilla_core::release::{self, left_out};
use flotilla_core::rollout::Opinion;
use jiff::SignedDuration;

use super::*;
use crate::pool::build::fixtures::pool;
use serde_json::json;

fn reached(weight: i32) -> Reached {
    Reached {
        revision: "support-2".into(),
        attempt: 1,
        weight,
        since: Timestamp::from_second(1_000).unwrap(),
    }
}

fn asked(spec: serde_json::Value, weight: i32) -> evidence::Plan {
    let pool = pool(spec);
    let ladder = ladder(&pool.spec).unwrap();
    evidence_plan(&pool.spec, &ladder, &reached(weight), 7, 5)
}

#[test]
fn a_canary_without_settings_has_the_default_ladder() {
    let ladder = ladder(&pool(json!({"rollout": {"type": "Canary"}})).spec).unwrap();
    let weights: Vec<_> = ladder.rungs.iter().map(|rung| rung.weight).collect();
    assert_eq!(
        (weights, ladder.least_pods, ladder.keeps_stable),
        (vec![1, 10, 25, 50], 2, true)
    );
    assert_eq!(ladder.bake, SignedDuration::from_secs(600));
    assert_eq!(release::ladder(&pool(json!({})).spec), None);
}

#[test]
fn tests_before_traffic_are_a_rung_of_their_own() {
    let tests = json!([{"name": "health", "type": "HTTP", "when": "BeforeAndAfter"}]);
    let ladder_of = |rollout: serde_json::Value| {
        let mut spec = json!({"replicas": 8, "rollout": rollout});
        spec["rollout"]["smokeTests"] = tests.clone();
        ladder(&pool(spec).spec).unwrap()
    };
    let canary = ladder_of(json!({"type": "Canary", "canary": {"steps": [{"weight": 5, "replicas": 3}]}}));
    let rungs: Vec<_> = canary.rungs.iter().map(|rung| (rung.weight, rung.pods)).collect();
    assert_eq!(rungs, [(0, Some(3)), (5, Some(3))]);
    assert!(canary.tested_after && !canary.rolls);
    let green = ladder_of(json!({"type": "BlueGreen"}));
    assert_eq!((green.rungs.len(), green.tested_after), (1, true));
    let rolling = ladder_of(json!({}));
    assert_eq!((rolling.rungs[0].pods, rolling.rolls), (Some(2), true));
}

#[test]
fn each_rung_asks_what_its_step_says_and_the_last_one_bakes() {
    let spec = json!({"rollout": {
        "type": "Canary",
        "canary": {"bakeSeconds": 90, "steps": [
            {"weight": 20, "ruleOutTimesWorse": 4, "minDurationSeconds": 10, "decideWithinSeconds": 100},
        ]},
        "analysis": {"strictness": "Strict", "warmupSeconds": 3, "errors": {"acceptableErrorPercent": "0.5", "abortAbovePercent": "12.5"},
            "latency": {"thresholdsMilliseconds": [100, 200], "mode": "Observe"},
            "firstByte": {"thresholdsMilliseconds": [50], "tolerateWorsePercent": 7}},
    }, "traffic": {"requestTimeoutSeconds": 9}});
    let plan = asked(spec.clone(), 20);
    assert_eq!(plan.step.question, Question::Advance { times_worse: 4 });
    assert_eq!(
        (plan.step.min_seconds, plan.step.decide_within_seconds),
        (10, 100)
    );
    assert_eq!(
        (plan.step.epoch, plan.first_epoch, plan.step.start),
        (7, 5, 1_000)
    );
    assert_eq!(
        (plan.request_timeout_seconds, plan.warmup_seconds, plan.bakes),
        (9, 3, true)
    );
    assert_eq!(plan.strictness, evidence::Strictness::Strict);
    let Rule::Compare(errors) = &plan.metrics[0].rule else {
        panic!()
    };
    assert_eq!(
        (errors.acceptable_millionths, errors.abort_above_millionths),
        (5_000, 125_000)
    );
    let Rule::Compare(latency) = &plan.metrics[1].rule else {
        panic!()
    };
    assert_eq!(latency.counted, Counted::Latency(vec![100, 200]));
    assert_eq!(
        (plan.metrics[1].mode, latency.tolerate_worse_percent),
        (Mode::Observe, 5)
    );
    let Rule::Compare(first_byte) = &plan.metrics[2].rule else {
        panic!()
    };
    assert_eq!(
        (plan.metrics[2].name.as_str(), plan.metrics[2].mode),
        ("firstByte", Mode::Enforce)
    );
    assert_eq!(
        (&first_byte.counted, first_byte.tolerate_worse_percent),
        (&Counted::FirstByte(vec![50]), 7)
    );
    let bake = asked(spec, 100);
    assert_eq!(
        (bake.step.question, bake.step.min_seconds, bake.step.index),
        (Question::Bake, 90, 1)
    );
}

#[test]
fn metrics_of_other_sources_are_compared_or_held_against_limits() {
    let plan = asked(
        json!({"rollout": {"type": "Canary", "analysis": {"metrics": [
            {"name": "checkouts", "source": {"type": "Prometheus", "name": "main"},
                "counts": {"requests": "a{{revision}}", "events": "b{{revision}}", "acceptablePercent": "0.5"}},
            {"name": "p95", "mode": "Observe", "source": {"type": "JSON", "name": "own"},
                "threshold": {"value": "/x#/y", "minimum": "-1", "maximum": "4.5", "failureLimit": 2}},
            {"name": "cost", "source": {"type": "JSON", "name": "own"},
                "counts": {"requests": "a{{revision}}", "events": "b{{revision}}{{threshold}}", "thresholds": ["0.05", "2000.0"]}},
        ]}}}),
        10,
    );
    let Rule::Compare(checkouts) = &plan.metrics[1].rule else {
        panic!()
    };
    assert_eq!(
        (
            &checkouts.counted,
            checkouts.acceptable_millionths,
            checkouts.tolerate_worse_percent
        ),
        (&Counted::Events, 5_000, 20)
    );
    let expected = evidence::Threshold {
        minimum_millionths: Some(-1_000_000),
        maximum_millionths: Some(4_500_000),
        failure_limit: 2,
    };
    assert_eq!(
        (&plan.metrics[2].rule, plan.metrics[2].mode),
        (&Rule::Threshold(expected), Mode::Observe)
    );
    let Rule::Compare(cost) = &plan.metrics[3].rule else {
        panic!()
    };
    assert_eq!(
        (&cost.counted, cost.acceptable_millionths),
        (&Counted::Above(vec![50_000, 2_000_000_000]), 10_000)
    );
}

#[test]
fn blue_green_previews_without_traffic_and_asks_nothing_of_it() {
    let spec = json!({"replicas": 4, "rollout": {"type": "BlueGreen", "blueGreen": {"previewReplicas": 2, "approval": "Manual"}}});
    let ladder = ladder(&pool(spec.clone()).spec).unwrap();
    assert_eq!(ladder.pods(ladder.rungs.first(), 4), 2);
    assert!(ladder.rungs[0].needs_approval);
    let judgement = Judgement {
        verdict: Verdict::NoData,
        metrics: Vec::new(),
        eta_seconds: None,
        message: "errors: no closed window".into(),
    };
    let gate = gate(
        &judgement,
        &asked(spec, 0),
        i64::MAX,
        &reached(0),
        Permit::RollBack,
    );
    assert_eq!((gate.opinion, gate.weight), (Opinion::Advance, 0));
}

#[test]
fn a_verdict_becomes_an_opinion_and_a_storm_holds() {
    let plan = asked(json!({"rollout": {"type": "Canary"}}), 10);
    let heard = |verdict, permit| {
        let judgement = Judgement {
            verdict,
            metrics: Vec::new(),
            eta_seconds: None,
            message: "errors: worse".into(),
        };
        gate(&judgement, &plan, 4_600, &reached(10), permit)
    };
    for (verdict, opinion, word) in [
        (Verdict::Advance, Opinion::Advance, "EvidenceComplete"),
        (Verdict::Continue, Opinion::Continue, EVIDENCE_CONTINUES),
        (Verdict::NoData, Opinion::Hold, "NoData"),
        (Verdict::CommonMode, Opinion::Hold, "StableDegraded"),
        (Verdict::Undecided, Opinion::Undecided, "Undecided"),
        (Verdict::Rollback, Opinion::RollBack, "AnalysisFailed"),
    ] {
        let gate = heard(verdict, Permit::RollBack);
        assert_eq!((gate.opinion, gate.reason.word.as_str()), (opinion, word));
    }
    let held = heard(Verdict::Rollback, Permit::Hold);
    assert_eq!(held.opinion, Opinion::Hold);
    assert!(
        held.reason
            .message
            .starts_with("errors: worse; but many releases")
    );
    let due = heard(Verdict::Continue, Permit::RollBack).deadline.unwrap();
    assert_eq!(due.as_second(), 4_600);
}

#[test]
fn evidence_that_cannot_be_saved_holds_but_for_harm() {
    let plan = asked(json!({"rollout": {"type": "Canary"}}), 10);
    let error = Error::NameTaken {
        kind: "ConfigMap".into(),
        name: "support-evidence".into(),
        owner: "nobody".into(),
    };
    for (verdict, opinion, word) in [
        (Verdict::Advance, Opinion::Hold, "NameTaken"),
        (Verdict::Continue, Opinion::Hold, "NameTaken"),
        (Verdict::Rollback, Opinion::RollBack, "AnalysisFailed"),
    ] {
        let judgement = Judgement {
            verdict,
            metrics: Vec::new(),
            eta_seconds: None,
            message: String::new(),
        };
        let gate = unsaved(
            gate(&judgement, &plan, 4_600, &reached(10), Permit::RollBack),
            &error,
        );
        assert_eq!((gate.opinion, gate.reason.word.as_str()), (opinion, word));
    }
}

#[test]
fn little_traffic_leaves_steps_out_only_where_none_are_named() {
    let rate = |requests_per_second| {
        Some(evidence::Traffic {
            requests_per_second,
            stable: evidence::Arm {
                requests: 100_000,
                events: 500,
            },
        })
    };
    let default = pool(json!({"rollout": {"type": "Canary"}})).spec;
    assert_eq!(left_out(&default, rate(1_000.0)), None);
    let (weight, why) = left_out(&default, rate(2.0)).unwrap();
    assert!(
        [1, 10, 25].contains(&weight) && why.starts_with("starts at "),
        "{weight} {why}"
    );
    assert_eq!(left_out(&default, None), None);
    let named = pool(json!({"rollout": {"type": "Canary", "canary": {"steps": [{"weight": 5}]}}})).spec;
    assert_eq!(left_out(&named, rate(2.0)), None);
}

#[test]
fn a_checkpoint_reads_back_and_nonsense_does_not() {
    let whose = evidence::Key {
        stable: "support-1".into(),
        candidate: "support-2".into(),
        attempt: 1,
    };
    let open = Open {
        uid: "u-1".into(),
        first_epoch: 9,
        evidence: Evidence::new(whose),
        unsaved: false,
    };
    let kept = checkpoint(&pool(json!({})), &open);
    assert_eq!(kept.metadata.name.as_deref(), Some("support-evidence"));
    assert_eq!(
        restore(&kept.data.unwrap()[CHECKPOINT]).unwrap(),
        (9, open.evidence)
    );
    assert!(restore("{}").is_err());
}
