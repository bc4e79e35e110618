//! Fleets of pools against Deployments on the local cluster.

use super::stats::median;
use crate::Cluster;
use crate::namespace::{cleared, in_namespace};
use crate::report::Row;
use crate::scenario::scale;
use anyhow::Result;
use std::time::Duration;

const POOLS: usize = 100;
/// For the objects of one run to be deleted.
const CLEARED: Duration = Duration::from_secs(120);

pub(super) async fn run(cluster: &Cluster) -> Result<Vec<Row>> {
    cluster.tool(&["up", "--kwok", "4"]).await?;
    let (mut ours, mut native) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        cleared(cluster, CLEARED).await?;
        native.push(in_namespace(cluster, "native", |n| scale::deployments(n, POOLS)).await?);
        cleared(cluster, CLEARED).await?;
        ours.push(in_namespace(cluster, "fleet", |n| scale::pools(n, POOLS)).await?);
    }
    let of =
        |costs: &[scale::Cost], figure: fn(&scale::Cost) -> f64| median(costs.iter().map(figure).collect());
    let (writes, their_writes) = (
        of(&ours, |c| c.writes_per_object),
        of(&native, |c| c.writes_per_object),
    );
    let (seconds, their_seconds) = (of(&ours, |c| c.seconds), of(&native, |c| c.seconds));
    let (memory, their_memory) = (of(&ours, |c| c.memory_mib), of(&native, |c| c.memory_mib));
    Ok(vec![
        Row::note(
            format!("{POOLS} pools Ready against {POOLS} Deployments Available"),
            format!(
                "{:.2} × ({seconds:.0} / {their_seconds:.0} s)",
                seconds / their_seconds
            ),
        ),
        Row::note(
            "writes per pool against writes per Deployment",
            format!("{:.2} × ({writes:.1} / {their_writes:.1})", writes / their_writes),
        ),
        Row::new(
            "memory of the operator against kube-controller-manager",
            format!(
                "{:.2} × ({memory:.0} / {their_memory:.0} MiB)",
                memory / their_memory
            ),
            "≤ 0.50 ×",
            memory <= 0.5 * their_memory,
        ),
    ])
}
