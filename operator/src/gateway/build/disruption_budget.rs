//! Node drains take one gateway at a time.

use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{Shared, label_selector};

/// The PodDisruptionBudget. A gateway that is not ready anyway may always be evicted, so that it cannot block a drain.
pub fn build(shared: &Shared<'_>) -> PodDisruptionBudget {
    PodDisruptionBudget {
        metadata: shared.metadata(),
        spec: Some(PodDisruptionBudgetSpec {
            selector: Some(label_selector()),
            max_unavailable: Some(IntOrString::Int(1)),
            unhealthy_pod_eviction_policy: Some("AlwaysAllow".to_owned()),
            ..PodDisruptionBudgetSpec::default()
        }),
        status: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time() {
        let spec = build(&Shared {
            namespace: "shop",
            owners: &[],
        })
        .spec
        .unwrap();
        assert_eq!(spec.max_unavailable, Some(IntOrString::Int(1)));
        assert_eq!(spec.selector, Some(label_selector()));
    }
}
