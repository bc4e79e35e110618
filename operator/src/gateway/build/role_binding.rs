//! The gateway's rights in its own namespace: those of the ClusterRole `flotilla-gateway`, which the chart ships. The
//! operator holds every rule in it, so it may bind it without `bind` or `escalate`.

use flotilla_crds::names;
use k8s_openapi::api::rbac::v1::{RoleBinding, RoleRef, Subject};

use super::Shared;

/// The RoleBinding.
pub fn build(shared: &Shared<'_>) -> RoleBinding {
    RoleBinding {
        metadata: shared.metadata(),
        role_ref: RoleRef {
            api_group: "rbac.authorization.k8s.io".to_owned(),
            kind: "ClusterRole".to_owned(),
            name: names::GATEWAY.to_owned(),
        },
        subjects: Some(vec![Subject {
            kind: "ServiceAccount".to_owned(),
            name: names::GATEWAY.to_owned(),
            namespace: Some(shared.namespace.to_owned()),
            ..Subject::default()
        }]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn binds_the_shipped_role_to_the_account_of_the_same_namespace() {
        let binding = build(&Shared {
            namespace: "shop",
            owners: &[],
        });
        assert_eq!(
            (binding.role_ref.kind.as_str(), binding.role_ref.name.as_str()),
            ("ClusterRole", "flotilla-gateway")
        );
        let subjects = binding.subjects.unwrap();
        assert_eq!(subjects.len(), 1);
        assert_eq!(subjects[0].namespace.as_deref(), Some("shop"));
    }
}
