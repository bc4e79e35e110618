//! Where a release begins: at the smallest step that the pool's traffic can judge in time. Pure.

use flotilla_core::evidence;
use flotilla_core::rollout::Standing;
use flotilla_crds::AgentPoolSpec;

use super::plan::{judged, strictness};
use super::steps;
use crate::pool::dereference::Observed;
use crate::scrape::View;

/// Where a release of this pool starts that starts now, see [`left_out`].
pub fn start(observed: &Observed) -> Option<(i32, String)> {
    let spec = &observed.pool.spec;
    spec.rollout.canary().filter(|canary| canary.steps.is_empty())?;
    let records = observed.revisions.iter().map(|known| &known.record);
    let stable = records
        .filter(|record| record.standing == Standing::Stable)
        .max_by_key(|record| record.order)?;
    let traffic = traffic(&observed.gateways, &observed.name(), &stable.revision);
    left_out(spec, traffic)
}

/// How long a step is expected to take at this traffic, see [`evidence::expected_seconds`].
pub fn expected_seconds(
    spec: &AgentPoolSpec,
    rung: &evidence::Rung,
    traffic: evidence::Traffic,
) -> Option<i64> {
    evidence::expected_seconds(rung, strictness(spec), &judged(spec), traffic)
}

/// The weight below the step at which a release of this pool starts: where the spec names no steps, those that its traffic cannot judge in
/// time are left out. None when it starts at the first, or when nothing is known of the traffic.
pub fn left_out(spec: &AgentPoolSpec, rate: Option<evidence::Traffic>) -> Option<(i32, String)> {
    let canary = spec.rollout.canary().filter(|canary| canary.steps.is_empty())?;
    let start = evidence::starting_step(&evidence::DEFAULT_STEPS, strictness(spec), &judged(spec), rate?);
    let before = steps(&canary).get(start.step.checked_sub(1)?)?.weight;
    Some((before, start.message))
}

/// What the gateways have counted of a revision in the windows they keep.
pub fn traffic(views: &[View], pool: &str, revision: &str) -> Option<evidence::Traffic> {
    let (mut requests, mut failed) = (0u64, 0u64);
    let (mut first, mut last) = (i64::MAX, i64::MIN);
    for view in views {
        let pool = view.stats.as_ref().and_then(|stats| stats.pools.get(pool));
        let windows = pool
            .and_then(|pool| pool.revisions.get(revision))
            .map(|found| &found.windows);
        for window in windows.into_iter().flatten() {
            requests += window.started;
            failed += window.failed;
            first = first.min(window.start);
            last = last.max(window.start + flotilla_core::stats::WINDOW_SECONDS);
        }
    }
    (last > first).then(|| evidence::Traffic {
        requests_per_second: requests as f64 / (last - first) as f64,
        stable: evidence::Arm {
            requests,
            events: failed.min(requests),
        },
    })
}
