use super::super::sitting::State;
use super::*;
use crate::pool::build::fixtures::{content, pool};
use serde_json::{Value, json};

fn check(test: Test) -> Check {
    Check {
        name: "database".into(),
        test,
        seconds: 30,
        attempts: 2,
        depends_on: Vec::new(),
    }
}

fn command() -> Test {
    let test = json!({"command": ["python", "smoke.py"], "args": ["--db"]});
    Test::Job(serde_json::from_value(test).unwrap())
}

fn whose(pool: &AgentPool) -> Whose<'_> {
    Whose {
        pool,
        revision: "support-2",
        attempt: 1,
        weight: 0,
    }
}

#[test]
fn a_job_is_the_revisions_pod_with_another_command_and_without_its_labels() {
    let pool = pool(json!({"agent": {
        "image": "agent:2",
        "env": [{"name": "CRM_TOKEN", "valueFrom": {"secretKeyRef": {"name": "crm", "key": "token"}}}],
        "prompt": {"text": "hi"},
        "podTemplate": {"metadata": {"labels": {"app": "support"}},
            "spec": {"containers": [{"name": "agent"}, {"name": "sidecar", "image": "proxy:1"}]}},
    }}));
    let check = check(command());
    let job = job(
        whose(&pool),
        &check,
        "support-x",
        &content(&pool, &[("prompt", "ab")]),
    )
    .unwrap();
    let job = serde_json::to_value(job).unwrap();
    let spec = &job["spec"]["template"]["spec"];
    assert_eq!(spec["containers"].as_array().unwrap().len(), 1);
    let container = &spec["containers"][0];
    assert_eq!(
        (&container["image"], &container["command"], &container["args"]),
        (
            &json!("agent:2"),
            &json!(["python", "smoke.py"]),
            &json!(["--db"])
        )
    );
    let names: Vec<&str> = container["env"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|variable| variable["name"].as_str())
        .collect();
    assert!(
        names.contains(&"CRM_TOKEN") && names.contains(&"FLOTILLA_REVISION_URL"),
        "{names:?}"
    );
    for gone in ["ports", "readinessProbe", "lifecycle"] {
        assert!(container[gone].is_null(), "{gone}");
    }
    assert_eq!(spec["volumes"].as_array().unwrap().len(), 1);
    let labels = &job["spec"]["template"]["metadata"]["labels"];
    for gone in [names::POOL, names::REVISION, "app"] {
        assert!(labels[gone].is_null(), "{labels}");
    }
    assert_eq!(labels[names::TESTED_POOL], "support");
    assert_eq!(
        (
            &job["spec"]["backoffLimit"],
            &job["spec"]["activeDeadlineSeconds"]
        ),
        (&json!(1), &json!(180))
    );
    assert_eq!(
        (&spec["restartPolicy"], &spec["activeDeadlineSeconds"]),
        (&json!("Never"), &json!(30))
    );
}

#[test]
fn names_are_short_and_differ_by_everything_that_is_tested() {
    let mut pool = pool(json!({}));
    pool.metadata.name = Some("a".repeat(45));
    let base = whose(&pool);
    let check = check(command());
    let name_of = |whose, check: &Check, run| name(whose, check, run);
    let first = name_of(base, &check, 1);
    assert_eq!((first.len(), &first), (45, &name_of(base, &check, 1)));
    let longer = Check {
        seconds: 31,
        ..check.clone()
    };
    for other in [
        name_of(base, &check, 2),
        name_of(base, &longer, 1),
        name_of(Whose { attempt: 2, ..base }, &check, 1),
        name_of(Whose { weight: 100, ..base }, &check, 1),
        name_of(
            Whose {
                revision: "support-3",
                ..base
            },
            &check,
            1,
        ),
    ] {
        assert_ne!(other, first);
    }
}

#[test]
fn a_job_says_how_it_ended() {
    let job = |status: Value| -> Job {
        serde_json::from_value(json!({"metadata": {"name": "j"}, "status": status})).unwrap()
    };
    let ended = |type_: &str, failed: i32| {
        job(
            json!({"failed": failed, "conditions": [{"type": type_, "status": "True", "message": "BackoffLimitExceeded"}]}),
        )
    };
    let pod: Pod = serde_json::from_value(
        json!({"metadata": {"name": "p"}, "status": {"containerStatuses": [{
            "name": "agent", "image": "a", "imageID": "", "ready": false, "restartCount": 0,
            "state": {"terminated": {"exitCode": 7, "message": "no route to db\n"}},
        }]}}),
    )
    .unwrap();
    assert_eq!(
        outcome_of_job(&job(json!({"active": 1})), Vec::new).state,
        State::Running
    );
    assert_eq!(
        outcome_of_job(&ended("Complete", 1), Vec::new),
        Outcome::passed(2, "")
    );
    assert_eq!(
        outcome_of_job(&ended("Failed", 2), || vec![Arc::new(pod)]),
        Outcome::failed(2, "the command exited with 7: no route to db")
    );
    assert_eq!(
        outcome_of_job(&ended("Failed", 2), Vec::new),
        Outcome::failed(2, "Job j: BackoffLimitExceeded")
    );
    assert!(is_job_over(&ended("Failed", 0)) && !is_job_over(&job(json!({}))));
}

fn template(change: Value) -> LoadTest {
    let mut test = json!({
        "metadata": {"name": "smoke-load", "namespace": "shop", "uid": "u-7"},
        "spec": {
            "target": {"poolRef": {"name": "support"}}, "suspend": true, "ttlSecondsAfterFinished": 60,
            "scenarios": [{"name": "a", "prompt": {"text": "hi"}}],
            "stages": [{"name": "s", "type": "Batch", "batch": {"size": 1, "requests": 3}}],
        },
    });
    json_patch(&mut test, change);
    serde_json::from_value(test).unwrap()
}

fn json_patch(value: &mut Value, change: Value) {
    match (value, change) {
        (Value::Object(fields), Value::Object(change)) => {
            for (key, member) in change {
                json_patch(fields.entry(key).or_insert(Value::Null), member);
            }
        }
        (value, change) => *value = change,
    }
}

#[test]
fn a_load_test_is_the_template_against_the_revisions_service() {
    let pool = pool(json!({"agent": {"protocol": "A2A"}}));
    let check = check(Test::LoadTest("smoke-load".into()));
    let made = load_test(
        whose(&pool),
        &check,
        "support-x",
        &template(json!({})),
        Protocol::A2A,
    );
    let service = made.spec.target.service_ref.as_ref().unwrap();
    assert_eq!((service.name.as_str(), service.port), ("support-2", 80));
    assert!(made.spec.target.pool_ref.is_none() && !made.spec.suspend);
    assert_eq!(
        (made.spec.protocol, made.spec.ttl_seconds_after_finished),
        (Some(LoadProtocol::A2A), None)
    );
    assert_eq!(made.annotations()[names::TESTED_RELEASE], "support-2/1");
    assert!(is_owned(&made, "u-1") && !is_owned(&made, "u-2"));
}

#[test]
fn a_verdict_becomes_an_outcome_and_none_in_time_is_no_failure() {
    let made = "2026-01-01T00:00:00Z";
    let at = |seconds: i64| {
        let made: Timestamp = made.parse().unwrap();
        made.checked_add(SignedDuration::from_secs(seconds)).unwrap()
    };
    let outcome = |status: Value, spec: Value, after| {
        let test = template(json!({"metadata": {"creationTimestamp": made}, "spec": spec, "status": status}));
        outcome_of_load_test(&test, 30, 1, at(after)).state
    };
    assert_eq!(outcome(json!({}), json!({}), 29), State::Running);
    assert_eq!(outcome(json!({}), json!({}), 30), State::Undecided);
    for (verdict, state) in [
        ("Passed", State::Passed),
        ("Failed", State::Failed),
        ("Inconclusive", State::Undecided),
        ("Invalid", State::Undecided),
    ] {
        assert_eq!(
            outcome(json!({"verdict": verdict}), json!({}), 99),
            state,
            "{verdict}"
        );
    }
    let lenient = json!({"onInconclusive": "Pass"});
    assert_eq!(
        outcome(json!({"verdict": "Inconclusive"}), lenient, 0),
        State::Passed
    );
}
