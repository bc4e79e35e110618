//! From a LoadTest to the plan its workers get: every reference resolved, every default filled in.

use std::collections::BTreeMap;

use flotilla_core::load::plan::{
    Arrival, Arrivals, Batch, ConstantRate, LoadPlan, Method, Requests, Scenario, Stage,
    Target as PlanTarget, Warmup, Workers,
};
use flotilla_core::load::template::Template;
use flotilla_core::load::verdict::{CustomThreshold, Metric, Stat, Thresholds};
use flotilla_crds::LoadTestSpec;
use flotilla_crds::common::ConfigMapKeyRef;
use flotilla_crds::load_test as api;

use super::target::{NotYet, Target};

/// Texts of ConfigMap keys that scenarios name.
pub type Prompts = BTreeMap<(String, String), String>;

/// Why there is no plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PlanError {
    /// Something outside the LoadTest has to be mended; then it starts by itself.
    NotYet(NotYet),
    /// The LoadTest itself asks for something impossible, and it cannot be changed.
    Impossible(String),
}

/// The ConfigMap keys that a LoadTest's scenarios name.
pub fn references(spec: &LoadTestSpec) -> impl Iterator<Item = &ConfigMapKeyRef> {
    spec.scenarios
        .iter()
        .filter_map(|scenario| scenario.prompt.config_map_key_ref.as_ref())
}

/// The plan.
///
/// # Errors
/// [`PlanError`], with everything that is wrong in one sentence or more.
pub fn build(
    name: &str,
    spec: &LoadTestSpec,
    target: &Target,
    prompts: &Prompts,
) -> Result<LoadPlan, PlanError> {
    let impossible = PlanError::Impossible;
    let scenarios = spec
        .scenarios
        .iter()
        .map(|scenario| scenario_of(scenario, prompts));
    let scenarios = scenarios.collect::<Result<Vec<_>, _>>()?;
    let stages = spec
        .stages
        .iter()
        .map(stage_of)
        .collect::<Result<Vec<_>, _>>()
        .map_err(impossible)?;
    let api::Workers {
        count,
        min_coverage_percent,
        start_deadline_seconds,
    } = spec.workers;
    let plan = LoadPlan {
        name: name.to_owned(),
        seed: u64::try_from(spec.seed).unwrap_or_default(),
        workers: Workers {
            count: number(count),
            min_coverage_percent: number(min_coverage_percent),
            start_deadline_seconds: number(start_deadline_seconds),
        },
        target: PlanTarget {
            url: target.url.clone(),
            protocol: target.protocol,
        },
        requests: requests_of(&spec.requests),
        scenarios,
        warmup: Warmup {
            requests: spec.warmup.as_ref().map_or(0, |warmup| number(warmup.requests)),
        },
        stages,
    };
    plan.validate().map_err(|errors| impossible(errors.to_string()))?;
    thresholds(spec)
        .validate()
        .map_err(|errors| impossible(errors.join("; ")))?;
    Ok(plan)
}

/// Requests of a LoadTest, as planned; 0 where its stages make no sense.
pub fn planned(spec: &LoadTestSpec) -> u64 {
    let stages = spec.stages.iter().filter_map(|stage| stage_of(stage).ok());
    stages.fold(0, |total, stage| total.saturating_add(stage.arrivals.requests()))
}

/// Seconds that a LoadTest's schedule lasts.
pub fn seconds(spec: &LoadTestSpec) -> u64 {
    let stages = spec.stages.iter().filter_map(|stage| stage_of(stage).ok());
    stages.fold(0, |total, stage| total.saturating_add(stage.arrivals.seconds()))
}

/// What a LoadTest is judged by.
pub fn thresholds(spec: &LoadTestSpec) -> Thresholds {
    let Some(thresholds) = &spec.thresholds else {
        return Thresholds::default();
    };
    let api::Thresholds {
        p50_milliseconds,
        p90_milliseconds,
        p95_milliseconds,
        p99_milliseconds,
        failed_percent,
        confidence_percent,
        custom,
    } = thresholds;
    let limit = |milliseconds: &Option<i32>| milliseconds.map(|limit| u64::from(number(limit)));
    Thresholds {
        p50_milliseconds: limit(p50_milliseconds),
        p90_milliseconds: limit(p90_milliseconds),
        p95_milliseconds: limit(p95_milliseconds),
        p99_milliseconds: limit(p99_milliseconds),
        failed_percent: failed_percent.clone(),
        confidence_percent: number(*confidence_percent),
        custom: custom.iter().map(custom_of).collect(),
    }
}

fn custom_of(threshold: &api::CustomThreshold) -> CustomThreshold {
    let api::CustomThreshold {
        name,
        metric,
        stat,
        max_milliseconds,
    } = threshold;
    CustomThreshold {
        name: name.clone(),
        metric: match metric {
            api::Metric::Latency => Metric::Latency,
            api::Metric::FirstToken => Metric::FirstToken,
            api::Metric::InterTokenGap => Metric::InterTokenGap,
        },
        stat: match stat {
            api::Stat::P50 => Stat::P50,
            api::Stat::P90 => Stat::P90,
            api::Stat::P95 => Stat::P95,
            api::Stat::P99 => Stat::P99,
        },
        max_milliseconds: u64::from(number(*max_milliseconds)),
    }
}

fn requests_of(requests: &api::Requests) -> Requests {
    let api::Requests {
        timeout_milliseconds,
        max_attempts,
        stream,
        model,
        method,
        path,
        content_type,
    } = requests;
    let defaults = Requests::default();
    Requests {
        timeout_milliseconds: u64::from(number(*timeout_milliseconds)),
        max_attempts: number(*max_attempts),
        stream: *stream,
        model: model.clone().unwrap_or(defaults.model),
        method: match method {
            api::HttpMethod::GET => Method::GET,
            api::HttpMethod::POST => Method::POST,
            api::HttpMethod::PUT => Method::PUT,
        },
        path: path.clone(),
        content_type: content_type.clone().unwrap_or(defaults.content_type),
    }
}

fn scenario_of(scenario: &api::Scenario, prompts: &Prompts) -> Result<Scenario, PlanError> {
    let api::Scenario { name, weight, prompt } = scenario;
    let text = match (&prompt.text, &prompt.config_map_key_ref) {
        (Some(text), _) => text.clone(),
        (None, Some(ConfigMapKeyRef { name, key })) => {
            let wait = |message: String| PlanError::NotYet(NotYet::reference(message));
            let text = prompts.get(&(name.clone(), key.clone())).ok_or_else(|| {
                wait(format!(
                    "ConfigMap {name} with key {key} does not exist in this namespace; create it"
                ))
            })?;
            if text.is_empty() {
                return Err(wait(format!(
                    "key {key} of ConfigMap {name} is empty; write the prompt into it"
                )));
            }
            Template::parse(text).map_err(|sentence| {
                wait(format!(
                    "key {key} of ConfigMap {name} is no usable prompt: {sentence}"
                ))
            })?;
            text.clone()
        }
        (None, None) => {
            return Err(PlanError::Impossible(format!(
                "scenarios[{name}].prompt: write text or configMapKeyRef"
            )));
        }
    };
    Ok(Scenario {
        name: name.clone(),
        weight: number(*weight),
        prompt: text,
    })
}

fn stage_of(stage: &api::Stage) -> Result<Stage, String> {
    let api::Stage {
        name,
        type_,
        constant_rate,
        batch,
    } = stage;
    let missing = |member: &str| format!("stages[{name}]: its member {member} is missing; add it");
    let arrivals = match type_ {
        api::StageType::ConstantRate => {
            let api::ConstantRate {
                per_second,
                seconds,
                arrival,
                max_in_flight,
            } = constant_rate.as_ref().ok_or_else(|| missing("constantRate"))?;
            Arrivals::ConstantRate {
                constant_rate: ConstantRate {
                    per_second: per_second.clone(),
                    seconds: number(*seconds),
                    arrival: match arrival {
                        api::Arrival::Uniform => Arrival::Uniform,
                        api::Arrival::Poisson => Arrival::Poisson,
                    },
                    max_in_flight: number(*max_in_flight),
                },
            }
        }
        api::StageType::Batch => {
            let api::Batch {
                size,
                delay_seconds,
                requests,
            } = batch.as_ref().ok_or_else(|| missing("batch"))?;
            Arrivals::Batch {
                batch: Batch {
                    size: number(*size),
                    delay_seconds: number(*delay_seconds),
                    requests: number(*requests),
                },
            }
        }
    };
    Ok(Stage {
        name: name.clone(),
        arrivals,
    })
}

/// The API has no unsigned numbers; what the schema lets through is none below zero.
fn number(value: i32) -> u32 {
    u32::try_from(value).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use flotilla_core::load::plan::Protocol;
    use serde_json::{Value, json};

    use super::*;

    fn spec(change: Value) -> LoadTestSpec {
        let mut spec = json!({
            "target": {"poolRef": {"name": "support"}},
            "seed": 7,
            "workers": {"count": 4, "minCoveragePercent": 98, "startDeadlineSeconds": 60},
            "requests": {"timeoutMilliseconds": 5000, "maxAttempts": 2, "stream": true},
            "scenarios": [
                {"name": "a", "weight": 4, "prompt": {"configMapKeyRef": {"name": "cases", "key": "a.txt"}}},
                {"name": "b", "prompt": {"text": "order {{order}}"}},
            ],
            "warmup": {"requests": 20},
            "stages": [
                {"name": "smoke", "type": "Batch", "batch": {"size": 5, "delaySeconds": 5, "requests": 10}},
                {"name": "steady", "type": "ConstantRate", "constantRate": {"perSecond": "25", "seconds": 120, "arrival": "Uniform", "maxInFlight": 200}},
            ],
            "thresholds": {"p95Milliseconds": 4000, "failedPercent": "1", "custom": [
                {"name": "gaps", "metric": "InterTokenGap", "stat": "P99", "maxMilliseconds": 200},
            ]},
        });
        for (key, value) in change.as_object().unwrap() {
            spec[key] = value.clone();
        }
        serde_json::from_value(spec).unwrap()
    }

    fn target() -> Target {
        Target {
            url: "http://support.shop.svc".into(),
            protocol: Protocol::A2A,
        }
    }

    fn prompts(text: &str) -> Prompts {
        BTreeMap::from([(("cases".to_owned(), "a.txt".to_owned()), text.to_owned())])
    }

    #[test]
    fn everything_reaches_the_plan() {
        let plan = build(
            "steady",
            &spec(json!({})),
            &target(),
            &prompts("My {{product}} broke."),
        )
        .unwrap();
        let expected = json!({
            "name": "steady",
            "seed": 7,
            "workers": {"count": 4, "minCoveragePercent": 98, "startDeadlineSeconds": 60},
            "target": {"url": "http://support.shop.svc", "protocol": "A2A"},
            "requests": {"timeoutMilliseconds": 5000, "maxAttempts": 2, "stream": true, "model": "default", "method": "POST", "contentType": "text/plain; charset=utf-8"},
            "scenarios": [
                {"name": "a", "weight": 4, "prompt": "My {{product}} broke."},
                {"name": "b", "weight": 1, "prompt": "order {{order}}"},
            ],
            "warmup": {"requests": 20},
            "stages": [
                {"name": "smoke", "type": "Batch", "batch": {"size": 5, "delaySeconds": 5, "requests": 10}},
                {"name": "steady", "type": "ConstantRate", "constantRate": {"perSecond": "25", "seconds": 120, "arrival": "Uniform", "maxInFlight": 200}},
            ],
        });
        assert_eq!(serde_json::to_value(&plan).unwrap(), expected);
        assert_eq!(
            (planned(&spec(json!({}))), seconds(&spec(json!({})))),
            (plan.requests(), plan.seconds())
        );
    }

    #[test]
    fn what_others_must_mend_is_waited_for_and_what_is_impossible_is_said() {
        let wait = |prompts: Prompts| match build("t", &spec(json!({})), &target(), &prompts) {
            Err(PlanError::NotYet(wait)) => wait.message,
            other => panic!("{other:?}"),
        };
        assert!(wait(Prompts::new()).contains("ConfigMap cases with key a.txt does not exist"));
        assert!(wait(prompts("")).contains("is empty"));
        assert!(wait(prompts("{{ordr}}")).contains("is no usable prompt"));
        let scenarios = json!([{"name": "b", "prompt": {"text": "{{ordr}}"}}]);
        match build(
            "t",
            &spec(json!({"scenarios": scenarios})),
            &target(),
            &Prompts::new(),
        ) {
            Err(PlanError::Impossible(sentence)) => {
                assert!(sentence.contains("scenarios[b].prompt"), "{sentence}")
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn thresholds_are_taken_over() {
        let thresholds = thresholds(&spec(json!({})));
        assert_eq!(
            (thresholds.p95_milliseconds, thresholds.p50_milliseconds),
            (Some(4000), None)
        );
        assert_eq!(
            (
                thresholds.failed_percent.as_deref(),
                thresholds.confidence_percent
            ),
            (Some("1"), 95)
        );
        let custom = &thresholds.custom[0];
        assert_eq!(
            (custom.metric, custom.stat, custom.max_milliseconds),
            (Metric::InterTokenGap, Stat::P99, 200)
        );
    }

    #[test]
    fn references_are_those_of_the_scenarios() {
        let spec = spec(json!({}));
        let names: Vec<_> = references(&spec)
            .map(|reference| reference.name.as_str())
            .collect();
        assert_eq!(names, ["cases"]);
    }
}
