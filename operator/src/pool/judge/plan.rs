//! The spec as what a candidate is judged by. Pure.

use flotilla_core::evidence::{self, Question, Step};
use flotilla_core::release::{judged, steps, strictness};
use flotilla_core::rollout::{Ladder, Reached};
use flotilla_crds::AgentPoolSpec;

/// What the rung that is reached asks. `epoch` is the `trafficGeneration` that brought its weight.
pub(super) fn evidence_plan(
    spec: &AgentPoolSpec,
    ladder: &Ladder,
    reached: &Reached,
    epoch: i64,
    first_epoch: i64,
) -> evidence::Plan {
    let analysis = spec.rollout.analysis();
    let canary = spec
        .rollout
        .canary()
        .map(|canary| steps(&canary))
        .unwrap_or_default();
    let step = canary.iter().find(|step| step.weight == reached.weight);
    let (question, min_seconds, decide_within_seconds) = match step {
        Some(step) => (
            Question::Advance {
                times_worse: u32::try_from(step.rule_out_times_worse).unwrap_or(2),
            },
            step.min_duration_seconds.into(),
            step.decide_within_seconds.into(),
        ),
        // A preview has no traffic to judge; what is counted meanwhile is what the bake compares with.
        None if reached.weight == 0 => (Question::Advance { times_worse: 2 }, 0, i64::MAX),
        None => (Question::Bake, ladder.bake.as_secs(), ladder.bake.as_secs()),
    };
    evidence::Plan {
        strictness: strictness(spec),
        metrics: judged(spec),
        step: Step {
            index: u32::try_from(ladder.index(reached.weight)).unwrap_or(u32::MAX),
            question,
            epoch,
            start: reached.since.as_second(),
            min_seconds,
            decide_within_seconds,
        },
        first_epoch,
        request_timeout_seconds: spec.traffic.request_timeout_seconds.into(),
        warmup_seconds: analysis.warmup_seconds.into(),
        bakes: !ladder.bake.is_zero(),
    }
}
