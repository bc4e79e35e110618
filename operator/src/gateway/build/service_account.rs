//! The gateway's ServiceAccount. Its token is mounted by the gateway's own pods alone.

use k8s_openapi::api::core::v1::ServiceAccount;

use super::Shared;

/// The ServiceAccount; a pod that runs as it gets no token unless it asks.
pub fn build(shared: &Shared<'_>) -> ServiceAccount {
    ServiceAccount {
        metadata: shared.metadata(),
        automount_service_account_token: Some(false),
        ..ServiceAccount::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_no_token_unasked() {
        let account = build(&Shared {
            namespace: "shop",
            owners: &[],
        });
        assert_eq!(account.automount_service_account_token, Some(false));
        assert_eq!(account.metadata.name.as_deref(), Some("flotilla-gateway"));
    }
}
