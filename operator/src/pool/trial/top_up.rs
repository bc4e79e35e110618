//! Synthetic load for a step that has too little traffic to be judged: a LoadTest through the gateway, which divides it between
//! both revisions by the weights in force, as it does with everything. Pure.
//!
//! It begins when the measured traffic is below the floor, and goes on, run after run, until the step is decided: its own requests are
//! in what is measured from then on, so the traffic says nothing any more about whether it is needed.

use std::sync::Arc;

use flotilla_crds::LoadTest;
use flotilla_crds::common::LocalRef;
use flotilla_crds::load_test::{Target, Verdict};
use flotilla_crds::names;
use flotilla_crds::rollout::TopUp;
use jiff::{SignedDuration, Timestamp};
use kube::ResourceExt as _;

use super::child::{self, Whose};
use super::list::{Check, Test};
use crate::runtime::Action;

/// Annotation: the number of a run, from 1.
const RUN: &str = "flotilla.dev/run";
/// After a run that measured nothing the next one waits, so that what can never run is not tried all the time.
const AFTER_INVALID: SignedDuration = SignedDuration::from_secs(60);

/// What is to be done about the synthetic load of a step.
#[derive(Debug, Default)]
pub struct TopUpErrands {
    /// LoadTests to create or to delete.
    pub actions: Vec<Action>,
    /// The one that runs, or is about to.
    pub running: Option<String>,
    /// It is the first one of this step.
    pub begins: bool,
}

/// Begins the name of all synthetic load; no test's name has a slash.
const MARK: &str = "top-up/";

/// The name under which a step's runs are kept apart from those of others.
fn mark(weight: i32) -> String {
    format!("{MARK}{weight}")
}

fn run_of(test: &LoadTest) -> i32 {
    let run = test.annotations().get(RUN);
    run.and_then(|run| run.parse().ok()).unwrap_or_default()
}

/// Whether a LoadTest is synthetic load, and not that of the step of this release; `step` is none while none is judged.
pub fn is_stale(test: &LoadTest, step: Option<Whose<'_>>) -> bool {
    let annotation = |name| test.annotations().get(name).map(String::as_str);
    let is_top_up = annotation(names::TEST).is_some_and(|test| test.starts_with(MARK));
    let is_current = step.is_some_and(|whose| {
        annotation(names::TESTED_RELEASE) == Some(&child::release(whose.revision, whose.attempt))
            && annotation(names::TEST) == Some(&mark(whose.weight))
    });
    is_top_up && !is_current
}

/// What to do for the step of `whose`. `owned` are the pool's LoadTests, `rate` the requests per second that the gateways have measured,
/// over both revisions.
pub fn decide(
    whose: Whose<'_>,
    top_up: &TopUp,
    owned: &[Arc<LoadTest>],
    template: Option<&LoadTest>,
    rate: f64,
    now: Timestamp,
) -> TopUpErrands {
    let runs = owned.iter().filter(|test| {
        let is_top_up = test.annotations().get(names::TEST) == Some(&mark(whose.weight));
        is_top_up && !is_stale(test, Some(whose))
    });
    let mut runs: Vec<&Arc<LoadTest>> = runs.collect();
    runs.sort_by_key(|test| run_of(test));
    let newest = runs.pop();
    let former = runs.into_iter().map(|test| Action::delete(&**test)).collect();
    let floor: f64 = top_up.min_requests_per_second.parse().unwrap_or_default();
    let next = match newest {
        None if rate >= floor => return TopUpErrands::default(),
        None => 1,
        Some(newest) if !child::has_verdict(newest) => {
            return TopUpErrands {
                actions: former,
                running: Some(newest.name_any()),
                begins: false,
            };
        }
        Some(newest) => {
            let status = newest.status.as_ref();
            let ended = status
                .and_then(|status| status.completion_time.as_ref())
                .map(|time| time.0);
            let is_invalid = status.and_then(|status| status.verdict) == Some(Verdict::Invalid);
            if is_invalid && ended.is_some_and(|ended| now.duration_since(ended) < AFTER_INVALID) {
                return TopUpErrands {
                    actions: former,
                    ..TopUpErrands::default()
                };
            }
            run_of(newest).saturating_add(1)
        }
    };
    let Some(template) = template else {
        return TopUpErrands {
            actions: former,
            ..TopUpErrands::default()
        };
    };
    let test = build(whose, top_up, template, next);
    let name = test.name_any();
    let mut actions: Vec<Action> = former;
    actions.push(Action::create(&test));
    TopUpErrands {
        actions,
        running: Some(name),
        begins: next == 1,
    }
}

fn build(whose: Whose<'_>, top_up: &TopUp, template: &LoadTest, run: i32) -> LoadTest {
    let check = Check {
        name: mark(whose.weight),
        test: Test::LoadTest(top_up.template_ref.name.clone()),
        seconds: 0,
        attempts: 1,
        depends_on: Vec::new(),
    };
    let mut spec = template.spec.clone();
    spec.target = Target {
        pool_ref: Some(LocalRef {
            name: whose.pool.name_any(),
        }),
        ..Target::default()
    };
    spec.suspend = false;
    spec.ttl_seconds_after_finished = None;
    // Other requests in each run.
    spec.seed = spec
        .seed
        .saturating_add(i64::from(run) - 1)
        .min(9_007_199_254_740_991);
    let mut metadata = child::metadata(whose, &child::name(whose, &check, run), &check);
    metadata
        .annotations
        .get_or_insert_default()
        .insert(RUN.to_owned(), run.to_string());
    LoadTest {
        metadata,
        spec,
        status: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::build::fixtures::pool;
    use serde_json::{Value, json};

    fn template() -> LoadTest {
        serde_json::from_value(json!({
            "metadata": {"name": "quiet", "namespace": "shop"},
            "spec": {
                "target": {"url": "http://elsewhere.svc"}, "suspend": true,
                "scenarios": [{"name": "a", "prompt": {"text": "hi"}}],
                "stages": [{"name": "s", "type": "Batch", "batch": {"size": 1, "requests": 3}}],
            },
        }))
        .unwrap()
    }

    fn floor() -> TopUp {
        serde_json::from_value(json!({"templateRef": {"name": "quiet"}, "minRequestsPerSecond": "0.5"}))
            .unwrap()
    }

    fn with_status(test: &LoadTest, status: Value) -> Arc<LoadTest> {
        Arc::new(LoadTest {
            status: serde_json::from_value(status).unwrap(),
            ..test.clone()
        })
    }

    fn created(errands: &TopUpErrands) -> Option<LoadTest> {
        errands.actions.iter().find_map(|action| match action {
            Action::Create(child) => serde_json::from_value(child.object.clone()).ok(),
            _ => None,
        })
    }

    #[test]
    fn a_quiet_step_is_topped_up_run_after_run_until_it_is_decided() {
        let pool = pool(json!({}));
        let whose = Whose {
            pool: &pool,
            revision: "support-2",
            attempt: 1,
            weight: 10,
        };
        let now: Timestamp = "2026-01-01T00:01:00Z".parse().unwrap();
        let look = |owned: &[Arc<LoadTest>], template: Option<&LoadTest>, rate| {
            decide(whose, &floor(), owned, template, rate, now)
        };
        let template = template();
        assert!(look(&[], Some(&template), 0.5).running.is_none());
        assert!(look(&[], None, 0.1).actions.is_empty());
        let begun = look(&[], Some(&template), 0.49);
        let first = created(&begun).unwrap();
        assert!(begun.begins && begun.running == Some(first.name_any()));
        assert_eq!(first.spec.target.pool_ref.as_ref().unwrap().name, "support");
        assert!(first.spec.target.url.is_none() && !first.spec.suspend);
        // It goes on although its own requests are in the rate.
        let running = [with_status(&first, json!({}))];
        let going = look(&running, Some(&template), 5.0);
        assert!(going.actions.is_empty() && going.running == Some(first.name_any()));
        let ended = |verdict: &str, at: &str| {
            [with_status(
                &first,
                json!({"verdict": verdict, "completionTime": at}),
            )]
        };
        let next = look(&ended("Failed", "2026-01-01T00:00:59Z"), Some(&template), 5.0);
        let second = created(&next).unwrap();
        assert!(!next.begins && second.name_any() != first.name_any());
        assert_eq!((second.spec.seed, run_of(&second)), (first.spec.seed + 1, 2));
        assert!(
            look(&ended("Invalid", "2026-01-01T00:00:01Z"), Some(&template), 5.0)
                .actions
                .is_empty()
        );
        assert!(
            created(&look(
                &ended("Invalid", "2026-01-01T00:00:00Z"),
                Some(&template),
                5.0
            ))
            .is_some()
        );
        let both = [Arc::new(second.clone()), Arc::new(first.clone())];
        let kept = look(&both, Some(&template), 5.0);
        assert!(
            matches!(kept.actions.as_slice(), [Action::Delete { target, .. }] if target.key.name == first.name_any())
        );
        // Another step, another attempt, or none: it stops.
        assert!(!is_stale(&first, Some(whose)));
        for step in [
            None,
            Some(Whose { weight: 25, ..whose }),
            Some(Whose { attempt: 2, ..whose }),
        ] {
            assert!(is_stale(&first, step), "{step:?}");
        }
        assert!(!is_stale(&template, None));
    }
}
