//! Argo Rollouts' Jobs, experiments and step plugins, told with smoke tests and load tests.

use flotilla_sim::controllers::Fate;
use serde_json::{Value, json};

use super::world::Answer;
use super::{Scene, canary, merged, of_canary, scenario};

const JOBS: &str = "/apis/batch/v1/namespaces/shop/jobs";
const TESTS: &str = "/apis/flotilla.dev/v1alpha1/namespaces/shop/loadtests";

fn with_tests(tests: Value) -> Value {
    let rollout = json!({"smokeTests": tests, "initialGates": "Skip"});
    merged(canary(4, &[25]), json!({"rollout": rollout}))
}

fn job() -> Value {
    with_tests(json!([
        {"name": "job", "type": "Job", "job": {"command": ["run"], "image": "smoke:job"}, "timeoutSeconds": 20, "attempts": 1},
    ]))
}

fn http(attempts: i32) -> Value {
    with_tests(json!([
        {"name": "health", "type": "HTTP", "http": {"path": "/health"}, "timeoutSeconds": 10, "attempts": attempts},
    ]))
}

/// A canary whose step has a load test, and the LoadTest it is made from. A worker answers in a second; of 150 requests none fails.
fn load_tested(scene: &Scene, thresholds: Value) {
    let spec = json!({
        "target": {"poolRef": {"name": "support"}}, "suspend": true, "workers": {"count": 2},
        "scenarios": [{"name": "a", "prompt": {"text": "hi"}}],
        "stages": [{"name": "steady", "type": "ConstantRate", "constantRate": {"perSecond": "5", "seconds": 60}}],
        "thresholds": thresholds,
    });
    let template = json!({"metadata": {"name": "template"}, "spec": spec});
    scene.cluster.create(TESTS, &template).unwrap();
}

fn with_load_test() -> Value {
    let step = json!({
        "weight": 25, "ruleOutTimesWorse": 10, "minDurationSeconds": 10, "decideWithinSeconds": 600,
        "loadTest": {"templateRef": {"name": "template"}, "attempts": 2},
    });
    let observed = json!({"rollout": {"analysis": {"errors": {"mode": "Observe"}}}});
    merged(
        merged(canary(4, &[]), of_canary(json!({"steps": [step]}))),
        observed,
    )
}

/// Names of the LoadTests that were made for releases.
fn made(scene: &Scene) -> Vec<String> {
    let tests = scene.cluster.list(TESTS);
    let names = tests
        .iter()
        .filter_map(|test| test["metadata"]["name"].as_str().map(str::to_owned));
    names.filter(|name| name != "template").collect()
}

fn never_had_traffic(scene: &Scene) {
    let traffic = scene.status()["traffic"].clone();
    let reached = scene.events().iter().any(|reason| reason == "StepPassed");
    assert!(
        !reached && traffic.as_array().is_some_and(|traffic| traffic.len() == 1),
        "{traffic:#}"
    );
}

#[test]
fn inline_analysis_long_running_job_with_deadline() {
    scenario(job(), async |s: &mut Scene| {
        s.fate("job", Fate::Unready);
        s.image("2");
        s.says("SmokeTestFailed").await;
        s.until("1=4@100").await;
        never_had_traffic(s);
    });
}

#[test]
fn background_analysis_long_running_job() {
    scenario(job(), async |s: &mut Scene| {
        s.fate("job", Fate::Unready);
        s.image("2");
        s.says("Testing").await;
        s.wait_for("its Job", |s| !s.cluster.list(JOBS).is_empty()).await;
        s.does("PromoteFull").await;
        s.says("Ready").await;
        s.wait_for("its end", |s| s.cluster.list(JOBS).is_empty()).await;
        assert_eq!(s.arms(), "2=4@100");
    });
}

#[test]
fn inline_analysis_invalid_image_job() {
    scenario(job(), async |s: &mut Scene| {
        s.fate("job", Fate::ImagePull("Back-off pulling image".to_owned()));
        s.image("2");
        s.says("SmokeTestFailed").await;
        never_had_traffic(s);
        s.fate(
            "job",
            Fate::Exits {
                after: std::time::Duration::from_secs(1),
                code: 0,
                message: String::new(),
            },
        );
        s.does("Retry").await;
        s.judged_at(25).await;
        s.does("PromoteFull").await;
        s.says("Ready").await;
    });
}

#[test]
fn step_plugin_fails_and_is_retried() {
    scenario(http(2), async |s: &mut Scene| {
        s.answers("/health", Some(Answer::Broken));
        s.image("2");
        s.says("SmokeTestFailed").await;
        assert!(
            s.sentence().contains("health: it was answered with 503"),
            "{}",
            s.sentence()
        );
        never_had_traffic(s);
        s.answers("/health", None);
        s.does("Retry").await;
        s.judged_at(25).await;
        s.does("SkipStep").await;
        s.says("Ready").await;
    });
}

#[test]
fn a_node_that_does_not_know_the_endpoint_yet_uses_up_no_attempt() {
    for (refusals, word) in [(5, "Judging"), (100, "SmokeTestFailed")] {
        scenario(http(1), async |s: &mut Scene| {
            s.answers("/health", Some(Answer::Refused(refusals)));
            s.traffic(1.0);
            s.image("2");
            s.says(word).await;
            s.traffic(0.0);
            if word == "Judging" {
                s.does("PromoteFull").await;
            }
        });
    }
}

#[test]
fn step_plugin_that_runs_is_named_and_can_be_aborted() {
    scenario(http(2), async |s: &mut Scene| {
        s.answers("/health", Some(Answer::Never));
        s.image("2");
        s.says("Testing").await;
        let waiting = |s: &Scene| s.status()["rollout"]["waitingFor"].clone();
        s.wait_for("the sentence", |s| waiting(s)["deadlineTime"].is_string())
            .await;
        let message = waiting(s)["message"].as_str().unwrap_or_default().to_owned();
        assert!(
            message.starts_with("0 of 1 tests are passed; open: health; until 20"),
            "{message}"
        );
        s.does("Abort").await;
        s.says("Aborted").await;
        s.until("1=4@100").await;
        never_had_traffic(s);
    });
}

#[test]
fn experiment_with_analysis() {
    scenario(with_load_test(), async |s: &mut Scene| {
        load_tested(s, json!({"p95Milliseconds": 4000}));
        s.image("2");
        s.judged_at(25).await;
        s.says("Testing").await;
        s.says("Ready").await;
        assert_eq!((s.arms().as_str(), made(s).len()), ("2=4@100", 1));
        // The next release is tested anew, and the first test goes.
        let first = made(s);
        s.image("3");
        s.judged_at(25).await;
        s.wait_for("another test", |s| made(s).len() == 1 && made(s) != first)
            .await;
        s.says("Ready").await;
        assert_eq!(s.arms(), "3=4@100");
    });
}

#[test]
fn step_plugin_load_test_fails_and_leads_back() {
    scenario(with_load_test(), async |s: &mut Scene| {
        load_tested(s, json!({"p95Milliseconds": 500}));
        s.image("2");
        s.says("LoadTestFailed").await;
        s.until("1=4@100").await;
        assert_eq!(made(s).len(), 1, "one that has failed is not repeated");
    });
}

#[test]
fn step_plugin_in_error_is_retried_and_then_waits_for_a_person() {
    scenario(with_load_test(), async |s: &mut Scene| {
        // Of 300 requests nobody can tell whether one in ten thousand fails.
        load_tested(s, json!({"failedPercent": "0.01"}));
        s.image("2");
        s.says("TestUndecided").await;
        assert_eq!(made(s).len(), 2);
        s.stays("1=3@75 2=1@25", 600).await;
        s.does("SkipStep").await;
        s.says("Ready").await;
        assert_eq!(s.arms(), "2=4@100");
    });
}

#[test]
fn step_plugin_that_is_not_configured_is_waited_for() {
    scenario(with_load_test(), async |s: &mut Scene| {
        s.image("2");
        s.says("Testing").await;
        let says = |s: &Scene| {
            let waiting = s.status()["rollout"]["waitingFor"].clone();
            waiting["message"].as_str().unwrap_or_default().to_owned()
        };
        s.wait_for("what is missing", |s| {
            says(s).contains("LoadTest template does not exist")
        })
        .await;
        load_tested(s, json!({"p95Milliseconds": 4000}));
        s.says("Ready").await;
        assert_eq!(s.arms(), "2=4@100");
    });
}

#[test]
fn step_plugin_is_ended_by_promote_full() {
    scenario(with_load_test(), async |s: &mut Scene| {
        load_tested(s, json!({"p95Milliseconds": 4000}));
        s.image("2");
        s.judged_at(25).await;
        s.wait_for("its test", |s| made(s).len() == 1).await;
        s.does("PromoteFull").await;
        s.says("Ready").await;
        s.wait_for("its end", |s| made(s).is_empty()).await;
    });
}
