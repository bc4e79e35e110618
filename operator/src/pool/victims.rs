//! Which pods go when a revision shrinks.
//!
//! The ReplicaSet controller takes pods that are not ready first and then goes by the annotation
//! `controller.kubernetes.io/pod-deletion-cost`, which is lowered here for the pods with the fewest requests in flight.
//! Where the choice makes no difference, nothing is written.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use serde_json::json;

use super::dereference::{address, is_ready};
use crate::runtime::Action;

/// The annotation, see the module.
pub const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";
/// Lower than the cost of a pod without the annotation (0), and than most that people set.
const CHOSEN: &str = "-1000";

/// The patches to make before `pods` are scaled down to `keep`; empty when it can be done now.
pub fn mark(pods: &[Arc<Pod>], keep: usize, in_flight: &BTreeMap<String, u64>) -> Vec<Action> {
    let (ready, unready): (Vec<_>, Vec<_>) = pods.iter().partition(|pod| is_ready(pod));
    let Some(victims) = pods
        .len()
        .checked_sub(keep)
        .and_then(|gone| gone.checked_sub(unready.len()))
    else {
        return Vec::new();
    };
    let chosen = ready.iter().filter(|pod| is_chosen(pod)).count();
    if victims == 0 || victims >= ready.len() || chosen >= victims {
        return Vec::new();
    }
    let load = |pod: &Arc<Pod>| {
        address(pod)
            .and_then(|address| in_flight.get(address))
            .copied()
            .unwrap_or_default()
    };
    let mut by_load = ready;
    by_load.sort_by_key(|pod| (load(pod), pod.name_any()));
    let loads: Vec<_> = by_load.iter().map(|pod| load(pod)).collect();
    let makes_a_difference = loads.get(..victims).and_then(<[u64]>::last) < loads.last();
    if !makes_a_difference {
        return Vec::new();
    }
    let unmarked = by_load.into_iter().take(victims).filter(|pod| !is_chosen(pod));
    unmarked
        .map(|pod| {
            Action::patch(
                &**pod,
                json!({"metadata": {"annotations": {DELETION_COST: CHOSEN}}}),
            )
        })
        .collect()
}

/// The pods with the fewest requests in flight, oldest first among equals; at most `count`.
pub fn idlest<'a>(
    mut pods: Vec<&'a Arc<Pod>>,
    count: usize,
    in_flight: &BTreeMap<String, u64>,
) -> Vec<&'a Arc<Pod>> {
    let load = |pod: &Arc<Pod>| {
        address(pod)
            .and_then(|address| in_flight.get(address))
            .copied()
            .unwrap_or_default()
    };
    pods.sort_by_key(|pod| (load(pod), pod.creation_timestamp(), pod.name_any()));
    pods.truncate(count);
    pods
}

fn is_chosen(pod: &Pod) -> bool {
    pod.annotations()
        .get(DELETION_COST)
        .is_some_and(|cost| cost == CHOSEN)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(number: u64, ready: bool, chosen: bool) -> Arc<Pod> {
        let annotations = if chosen {
            json!({DELETION_COST: CHOSEN})
        } else {
            json!({})
        };
        let status = if ready { "True" } else { "False" };
        Arc::new(
            serde_json::from_value(json!({
                "metadata": {"name": format!("p-{number}"), "annotations": annotations},
                "status": {"podIP": format!("10.0.0.{number}"), "conditions": [{"type": "Ready", "status": status}]},
            }))
            .unwrap(),
        )
    }

    fn marked(pods: &[Arc<Pod>], keep: usize, loads: &[u64]) -> Vec<String> {
        let in_flight = loads
            .iter()
            .enumerate()
            .map(|(at, load)| (format!("10.0.0.{at}"), *load))
            .collect();
        let actions = mark(pods, keep, &in_flight);
        actions
            .into_iter()
            .map(|action| match action {
                Action::Patch { target, .. } => target.key.name,
                other => panic!("unexpected {other:?}"),
            })
            .collect()
    }

    #[test]
    fn the_idlest_are_marked_where_it_matters() {
        let pods: Vec<_> = (0..4).map(|number| pod(number, true, false)).collect();
        assert_eq!(marked(&pods, 3, &[5, 1, 7, 9]), ["p-1"]);
        assert_eq!(marked(&pods, 2, &[5, 1, 7, 9]), ["p-1", "p-0"]);
        assert!(marked(&pods, 3, &[2, 2, 2, 2]).is_empty(), "all the same");
        assert!(marked(&pods, 3, &[]).is_empty(), "nothing known");
        assert!(marked(&pods, 0, &[1, 2, 3, 4]).is_empty(), "all go");
        assert!(marked(&pods, 4, &[1, 2, 3, 4]).is_empty(), "none goes");
        assert!(marked(&pods, 9, &[1, 2, 3, 4]).is_empty(), "it grows");
    }

    #[test]
    fn unready_pods_go_first_and_marks_are_not_repeated() {
        let mut pods: Vec<_> = (0..3).map(|number| pod(number, true, false)).collect();
        pods.push(pod(3, false, false));
        assert!(
            marked(&pods, 3, &[1, 2, 3, 0]).is_empty(),
            "the unready one goes anyway"
        );
        assert_eq!(marked(&pods, 2, &[1, 2, 3, 0]), ["p-0"]);
        let chosen = [pod(0, true, false), pod(1, true, true), pod(2, true, false)];
        assert!(
            marked(&chosen, 2, &[0, 5, 9]).is_empty(),
            "a mark that is there is good enough"
        );
    }
}
