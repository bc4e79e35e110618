//! The account agents run as when the pool names none: no rights, no token.

use flotilla_crds::AgentPool;
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::ResourceExt as _;

use super::child_meta;

/// Name of the account of a pool.
pub fn name(pool: &str) -> String {
    format!("{pool}-agent")
}

/// The account.
pub fn build(pool: &AgentPool) -> ServiceAccount {
    ServiceAccount {
        metadata: child_meta(pool, name(&pool.name_any()), None),
        automount_service_account_token: Some(false),
        ..ServiceAccount::default()
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::pool;
    use super::*;
    use serde_json::json;

    #[test]
    fn it_has_no_token() {
        let account = build(&pool(json!({})));
        assert_eq!(account.metadata.name.as_deref(), Some("support-agent"));
        assert_eq!(account.automount_service_account_token, Some(false));
    }
}
