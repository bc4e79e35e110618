//! Argo Rollouts' analysis runs with several templates, arguments and providers, told with `analysis.metrics`.

use serde_json::{Value, json};

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
    s.number("checkouts(", 20.0);
    s.number("failures(", 0.0);
    s.number("/p99", 3.0);
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
    for (metric, part, number) in [("checkouts", "failures(support", 10.0), ("slowest", "/p99", 6.0)] {
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
