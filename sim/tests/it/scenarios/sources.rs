//! Argo Rollouts' analysis runs with several templates, arguments and providers, told with `analysis.metrics`.

use serde_json::{Value, json};

use super::Number::{Is, Rises};
use super::{Scene, canary, merged, scenario};

/// A canary judged by what the gateways count, by checkouts of both revisions and by a limit.
fn several() -> Value {
    let metrics = json!([
        {
            "name": "checkouts", "source": {"type": "Prometheus", "name": "main"},
            "counts": {"requests": "checkouts({{revision}})", "events": "failures({{revision}})", "acceptablePercent": "5"},
        },
        {
            "name": "slowest", "source": {"type": "JSON", "name": "main"},
            "threshold": {"value": "/{{namespace}}/{{pool}}/{{revision}}/{{stable}}#/p99", "maximum": "4.5"},
        },
    ]);
    merged(
        canary(4, &[25]),
        json!({"rollout": {"analysis": {"metrics": metrics}}}),
    )
}

fn healthy(s: &Scene) {
    s.traffic(100.0);
    s.number("checkouts(", Rises(20.0));
    s.number("failures(", Rises(0.0));
    s.number("/p99", Is(3.0));
}

#[test]
fn multiple_analysis() {
    scenario(several(), async |s: &mut Scene| {
        healthy(s);
        s.image("2");
        s.says("Ready").await;
        assert_eq!(s.arms(), "2=4@100");
        s.traffic(0.0);
    });
}

#[test]
fn one_of_several_metrics_is_enough_to_lead_back() {
    for (metric, part, number) in [
        ("checkouts", "failures(support", Rises(10.0)),
        ("slowest", "/p99", Is(6.0)),
    ] {
        scenario(several(), async |s: &mut Scene| {
            healthy(s);
            s.image("2");
            s.judged_at(25).await;
            let part = match part.strip_suffix("support") {
                Some(prefix) => format!("{prefix}{}", s.revision("2")),
                None => part.to_owned(),
            };
            s.number(&part, number);
            s.says("AnalysisFailed").await;
            assert!(s.sentence().contains(metric), "{}", s.sentence());
            s.until("1=4@100").await;
            s.traffic(0.0);
        });
    }
}

/// A candidate that answers as well and as fast, for more.
#[test]
fn a_candidate_that_uses_more_tokens_is_led_back() {
    let metrics = json!([{
        "name": "tokens", "source": {"type": "Prometheus", "name": "main"},
        "counts": {
            "requests": "tasks({{revision}})", "events": "above({{revision}},{{threshold}})", "thresholds": ["2000.0", "8000"],
        },
    }]);
    let judged = merged(
        canary(4, &[25]),
        json!({"rollout": {"analysis": {"metrics": metrics}}}),
    );
    for (more, word) in [(5.0, "AnalysisFailed"), (1.0, "Ready")] {
        scenario(judged.clone(), async |s: &mut Scene| {
            s.traffic(100.0);
            s.number("tasks(", Rises(20.0));
            s.number(",2000.0)", Rises(2.0));
            // Above it is nobody: that must not keep a good candidate waiting.
            s.number(",8000)", Rises(0.0));
            s.image("2");
            // Before it is first read, for a leap of the counter would be events.
            let is_there = |s: &Scene| s.status()["candidate"]["revision"].is_string();
            s.wait_for("the candidate", is_there).await;
            s.number(&format!("above({},2000.0)", s.revision("2")), Rises(2.0 * more));
            s.says(word).await;
            if word == "AnalysisFailed" {
                let told = s.sentence();
                assert!(
                    told.contains("tokens: the candidate is worse than stable"),
                    "{told}"
                );
                assert!(told.contains("requests above 2000, against"), "{told}");
                s.until("1=4@100").await;
            } else {
                assert_eq!(s.arms(), "2=4@100");
            }
            s.traffic(0.0);
        });
    }
}

#[test]
fn analysis_with_args() {
    scenario(several(), async |s: &mut Scene| {
        healthy(s);
        s.image("2");
        s.says("Ready").await;
        let (one, two) = (s.revision("1"), s.revision("2"));
        let asked = s.script.with(|script| script.questions.clone());
        for question in [
            format!("checkouts({one})"),
            format!("failures({two})"),
            format!("/shop/support/{two}/{one}#/p99"),
        ] {
            assert!(asked.contains(&question), "{question}: {asked:?}");
        }
        s.traffic(0.0);
    });
}

/// Argo Rollouts aborts after five errors of a provider.
#[test]
fn a_source_that_does_not_answer_holds_the_release() {
    scenario(several(), async |s: &mut Scene| {
        s.traffic(100.0);
        s.image("2");
        s.judged_at(25).await;
        let says = |s: &Scene| {
            let waiting = s.status()["rollout"]["waitingFor"].clone();
            waiting["message"].as_str().unwrap_or_default().to_owned()
        };
        s.wait_for("the sentence", |s| {
            says(s).contains("cannot be read: it does not answer")
        })
        .await;
        s.stays("1=3@75 2=1@25", 300).await;
        healthy(s);
        s.says("Ready").await;
        assert_eq!(s.arms(), "2=4@100");
        s.traffic(0.0);
    });
}
