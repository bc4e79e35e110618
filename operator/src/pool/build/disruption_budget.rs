//! What node drains may take from a pool at once.

use flotilla_crds::{AgentPool, names};
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt as _;

use super::{AGENT, child_meta, selector};

/// The budget over all pods of the pool, of whatever revision. Pods that are not ready may always be evicted: a
/// crashing release must not block a drain.
pub fn build(pool: &AgentPool) -> PodDisruptionBudget {
    let name = pool.name_any();
    let mut pods = selector(&name, None);
    pods.insert(names::APP_NAME.into(), AGENT.into());
    PodDisruptionBudget {
        metadata: child_meta(pool, name, None),
        spec: Some(PodDisruptionBudgetSpec {
            max_unavailable: Some(IntOrString::Int(pool.spec.disruption.max_unavailable)),
            selector: Some(LabelSelector {
                match_labels: Some(pods),
                ..LabelSelector::default()
            }),
            unhealthy_pod_eviction_policy: Some("AlwaysAllow".into()),
            ..PodDisruptionBudgetSpec::default()
        }),
        ..PodDisruptionBudget::default()
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::pool;
    use super::*;
    use serde_json::json;

    #[test]
    fn it_takes_the_number_from_spec() {
        for (spec, expected) in [(json!({}), 1), (json!({"disruption": {"maxUnavailable": 3}}), 3)] {
            let spec = build(&pool(spec)).spec.unwrap();
            assert_eq!(spec.max_unavailable, Some(IntOrString::Int(expected)));
            assert_eq!(
                spec.selector
                    .unwrap()
                    .match_labels
                    .unwrap()
                    .get(names::POOL)
                    .unwrap(),
                "support"
            );
        }
    }
}
