//! Where a release begins: at the smallest step that the pool's traffic can judge in time. Pure.

use flotilla_core::evidence::Traffic;
use flotilla_core::release;
use flotilla_core::rollout::Standing;

use crate::pool::dereference::Observed;
use crate::scrape::View;

/// Where a release of this pool starts that starts now, see [`release::left_out`].
pub fn start(observed: &Observed) -> Option<(i32, String)> {
    let spec = &observed.pool.spec;
    spec.rollout.canary().filter(|canary| canary.steps.is_empty())?;
    let records = observed.revisions.iter().map(|known| &known.record);
    let stable = records
        .filter(|record| record.standing == Standing::Stable)
        .max_by_key(|record| record.order)?;
    let traffic = traffic(&observed.gateways, &observed.name(), &stable.revision);
    release::left_out(spec, traffic)
}

/// What the gateways have counted of a revision in the windows they keep.
pub fn traffic(views: &[View], pool: &str, revision: &str) -> Option<Traffic> {
    let stats = views.iter().filter_map(|view| view.stats.as_deref());
    release::traffic(stats, pool, revision)
}
