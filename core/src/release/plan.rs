//! The plan of a release: its steps with pods, true weights and expected times, and what it comes to in a sentence.

use flotilla_crds::AgentPoolSpec;
use flotilla_crds::agent_pool::{CanaryStep, PlannedStep, RolloutType};

use super::{judged, ladder, left_out, steps, strictness};
use crate::evidence::eta::duration;
use crate::evidence::{Rung, Traffic, expected_seconds};
use crate::rollout::forecast::{Stage, forecast};
use crate::rollout::shift;

/// What the release of another revision of a pool that serves would do at this traffic: its steps, all the traffic last, and a
/// sentence. Of a canary, the steps that this traffic cannot judge in time are left out, as they will be.
pub fn plan(spec: &AgentPoolSpec, traffic: Option<Traffic>) -> (Vec<PlannedStep>, String) {
    let ladder = ladder(spec);
    let skipped = left_out(spec, traffic).map(|(weight, _)| weight);
    let canary = spec.rollout.canary().map(|canary| steps(&canary));
    let canary = canary.unwrap_or_default();
    let stages = forecast(ladder.as_ref(), spec.effective_replicas()).into_iter();
    let stages =
        stages.filter(|stage| stage.weight == 0 || skipped.is_none_or(|skipped| stage.weight > skipped));
    let planned: Vec<PlannedStep> = stages
        .map(|stage| {
            let step = canary.iter().find(|step| step.weight == stage.weight);
            let bake = ladder.as_ref().filter(|_| stage.weight == 100);
            let expected = match (step, bake) {
                (Some(step), _) => expected(spec, step, traffic),
                (None, Some(ladder)) => Some(ladder.bake.as_secs()),
                (None, None) => None,
            };
            planned(&stage, expected)
        })
        .collect();
    let message = message(spec, &planned, traffic);
    (planned, message)
}

fn expected(spec: &AgentPoolSpec, step: &CanaryStep, traffic: Option<Traffic>) -> Option<i64> {
    let number = |number: i32| u32::try_from(number).unwrap_or_default();
    let rung = Rung {
        weight_percent: number(step.weight),
        times_worse: number(step.rule_out_times_worse),
        min_seconds: step.min_duration_seconds.into(),
        decide_within_seconds: step.decide_within_seconds.into(),
    };
    if !spec.traffic.is_counted() {
        return Some(rung.min_seconds);
    }
    expected_seconds(&rung, strictness(spec), &judged(spec), traffic?)
}

fn planned(stage: &Stage, expected_seconds: Option<i64>) -> PlannedStep {
    PlannedStep {
        weight: stage.weight,
        true_weight_percent: format!("{:.1}", stage.percent),
        candidate_replicas: stage.candidate,
        stable_replicas: stage.stable,
        expected_seconds,
        approval: stage.needs_approval.then(|| "Manual".to_owned()),
    }
}

fn message(spec: &AgentPoolSpec, steps: &[PlannedStep], traffic: Option<Traffic>) -> String {
    let replicas = spec.effective_replicas();
    if spec.rollout.type_ == RolloutType::RollingUpdate {
        let batch = shift::surge(replicas, spec.rolling_update().max_surge_percent);
        return format!(
            "{replicas} replicas are replaced in batches of {batch}; the traffic follows the available share"
        );
    }
    // On the way to all the traffic the old replicas are still there.
    let most = 2 * replicas;
    let before = steps.iter().filter(|step| step.weight < 100);
    // What has no weight is not judged by its traffic.
    let judged = before.clone().filter(|step| step.weight > 0);
    let times: Option<Vec<i64>> = judged.map(|step| step.expected_seconds).collect();
    let approvals = before.filter(|step| step.approval.is_some()).count();
    let persons = match approvals {
        0 => String::new(),
        1 => ", and once for a person".to_owned(),
        more => format!(", and {more} times for a person"),
    };
    let time = match times {
        _ if spec.rollout.blue_green().is_some() => "the swap waits for the new replicas".to_owned(),
        Some(times) => {
            let time = duration(times.iter().sum());
            format!("all the traffic after about {time} and the start of the pods")
        }
        None if traffic.is_none() => {
            "no time can be told, because the present traffic is not known".to_owned()
        }
        None => "no time can be told, because at this traffic a step has no verdict in sight".to_owned(),
    };
    format!("{time}{persons}; up to {most} replicas at once")
}

/// What the release of a pool's first revision does, in a sentence.
pub fn first(spec: &AgentPoolSpec) -> String {
    let replicas = spec.effective_replicas();
    format!("the first revision: its {replicas} replicas start at once, without steps")
}
