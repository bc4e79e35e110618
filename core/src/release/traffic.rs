//! A pool's traffic, and where a release starts with it: at the smallest step that it can judge in time.

use flotilla_crds::AgentPoolSpec;

use super::{judged, steps, strictness};
use crate::evidence::{Arm, DEFAULT_STEPS, Traffic, starting_step};
use crate::stats::{Stats, WINDOW_SECONDS};

/// The weight below the step at which a release of this pool starts: where the spec names no steps, those that its traffic cannot judge in
/// time are left out. None when it starts at the first, or when nothing is known of the traffic.
pub fn left_out(spec: &AgentPoolSpec, traffic: Option<Traffic>) -> Option<(i32, String)> {
    let canary = spec.rollout.canary().filter(|canary| canary.steps.is_empty())?;
    let start = starting_step(&DEFAULT_STEPS, strictness(spec), &judged(spec), traffic?);
    let before = steps(&canary).get(start.step.checked_sub(1)?)?.weight;
    Some((before, start.message))
}

/// What the gateways have counted of a revision in the windows they keep; none while they have counted nothing of it.
pub fn traffic<'a>(gateways: impl Iterator<Item = &'a Stats>, pool: &str, revision: &str) -> Option<Traffic> {
    let windows = gateways
        .filter_map(|stats| stats.pools.get(pool)?.revisions.get(revision))
        .flat_map(|found| &found.windows);
    let (mut requests, mut failed) = (0u64, 0u64);
    let (mut first, mut last) = (i64::MAX, i64::MIN);
    for window in windows {
        requests += window.started;
        failed += window.failed;
        first = first.min(window.start);
        last = last.max(window.start + WINDOW_SECONDS);
    }
    (last > first).then(|| Traffic {
        requests_per_second: requests as f64 / (last - first) as f64,
        stable: Arm {
            requests,
            events: failed.min(requests),
        },
    })
}
