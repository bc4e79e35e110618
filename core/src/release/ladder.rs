//! The spec as a ladder of weights.

use flotilla_crds::AgentPoolSpec;
use flotilla_crds::agent_pool::{self as api, Approval, CanaryStep, InitialGates, StableScale};
use flotilla_crds::release_test::SmokeTest;
use jiff::SignedDuration;

use crate::evidence;
use crate::rollout::{Ladder, OnUndecided, Rung, shift};

/// The steps of a canary: those of the spec, else the default ladder.
pub fn steps(canary: &api::Canary) -> Vec<CanaryStep> {
    if !canary.steps.is_empty() {
        return canary.steps.clone();
    }
    let step = |rung: &evidence::Rung| CanaryStep {
        weight: clamp(rung.weight_percent),
        rule_out_times_worse: clamp(rung.times_worse),
        min_duration_seconds: clamp(rung.min_seconds),
        decide_within_seconds: clamp(rung.decide_within_seconds),
        replicas: None,
        approval: Approval::Automatic,
        load_test: None,
    };
    evidence::DEFAULT_STEPS.iter().map(step).collect()
}

fn clamp(number: impl TryInto<i32>) -> i32 {
    number.try_into().unwrap_or(i32::MAX)
}

/// How a candidate of this pool takes over; none for batch by batch.
pub fn ladder(spec: &AgentPoolSpec) -> Option<Ladder> {
    let seconds = |seconds: i32| SignedDuration::from_secs(seconds.into());
    if let Some(canary) = spec.rollout.canary() {
        let rung = |step: &CanaryStep| Rung {
            weight: step.weight,
            pods: step.replicas,
            needs_approval: step.approval == Approval::Manual,
        };
        let steps = steps(&canary);
        let tested = tests_before(spec).then(|| Rung {
            weight: 0,
            pods: steps.first().and_then(|step| step.replicas),
            needs_approval: false,
        });
        return Some(Ladder {
            rungs: tested.into_iter().chain(steps.iter().map(rung)).collect(),
            least_pods: canary.candidate_min_replicas,
            keeps_stable: canary.stable_scale == StableScale::Keep,
            by_number: spec.traffic.is_by_number(),
            scale_down_delay: seconds(canary.scale_down_delay_seconds),
            bake: seconds(canary.bake_seconds),
            on_undecided: match canary.on_undecided {
                api::OnUndecided::Hold => OnUndecided::Hold,
                api::OnUndecided::Promote => OnUndecided::Promote,
                api::OnUndecided::Abort => OnUndecided::Abort,
            },
            tests_first: tests_first(spec),
            tested_after: tests_after(spec),
            ..Ladder::default()
        });
    }
    let Some(green) = spec.rollout.blue_green() else {
        return tests_before(spec).then(|| tested_batch(spec));
    };
    Some(Ladder {
        rungs: vec![Rung {
            weight: 0,
            pods: Some(green.preview_replicas.unwrap_or(i32::MAX)),
            needs_approval: green.approval == Approval::Manual,
        }],
        least_pods: 1,
        keeps_stable: true,
        by_number: spec.traffic.is_by_number(),
        scale_down_delay: seconds(green.scale_down_delay_seconds),
        bake: seconds(green.bake_seconds),
        tests_first: tests_first(spec),
        tested_after: tests_after(spec),
        ..Ladder::default()
    })
}

/// Whether a candidate of this pool is tested before it gets traffic.
fn tests_before(spec: &AgentPoolSpec) -> bool {
    spec.rollout.smoke_tests.iter().any(SmokeTest::runs_before)
}

/// Whether a candidate of this pool is tested when it has all the traffic.
fn tests_after(spec: &AgentPoolSpec) -> bool {
    spec.rollout.smoke_tests.iter().any(SmokeTest::runs_after)
}

fn tests_first(spec: &AgentPoolSpec) -> bool {
    tests_before(spec) && spec.rollout.initial_gates == InitialGates::Enforce
}

/// A rolling update whose first batch is tested before it gets traffic.
fn tested_batch(spec: &AgentPoolSpec) -> Ladder {
    let batch = shift::surge(spec.effective_replicas(), spec.rolling_update().max_surge_percent);
    Ladder {
        rungs: vec![Rung {
            weight: 0,
            pods: Some(batch),
            needs_approval: false,
        }],
        least_pods: 1,
        keeps_stable: true,
        rolls: true,
        tests_first: tests_first(spec),
        ..Ladder::default()
    }
}
