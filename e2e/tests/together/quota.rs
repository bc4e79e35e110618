//! A provider's quota on a real cluster: the Lease, the record, a gateway lost while it deals quotas out.

use std::time::Duration;

use flotilla_crds::ModelProvider;
use flotilla_crds::common::{condition, is_true};
use flotilla_e2e::fixtures::with;
use flotilla_e2e::scenario::{load_test, pool};
use flotilla_e2e::{fixtures, wait, with_namespace};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::api::DeleteParams;
use serde_json::json;

const QUOTA: &str = "flotilla-quota";

#[tokio::test(flavor = "multi_thread")]
async fn a_quota_is_held_while_the_gateway_that_deals_it_out_is_lost() {
    with_namespace("quota", |namespace| async move {
        // More is asked for than there is: requests wait, and none is refused.
        let quotas = json!([{"name": "rps", "resource": "Requests", "limit": 60, "windowSeconds": 10}]);
        namespace
            .apply(&with(fixtures::provider("main"), "/spec/quotas", quotas))
            .await?;
        namespace.apply(&fixtures::pool("support", 2)).await?;
        pool::ready(&namespace, "support", pool::SOON).await?;
        namespace
            .apply(&fixtures::load_test("steady", "support", "5", 60, 1))
            .await?;

        let leases = namespace.api::<Lease>();
        let holder = wait::until("a gateway to be elected", pool::SOON, || async {
            let lease = leases.get(QUOTA).await.map_err(|error| error.to_string())?;
            let holder = lease
                .spec
                .and_then(|spec| spec.holder_identity)
                .unwrap_or_default();
            if holder.is_empty() {
                Err("nobody holds it".to_owned())
            } else {
                Ok(holder)
            }
        })
        .await?;
        let records = namespace.api::<ConfigMap>();
        wait::until("shares to be written", pool::SOON, || async {
            let record = records.get(QUOTA).await.map_err(|error| error.to_string())?;
            let entry = record
                .data
                .and_then(|data| data.get("main").cloned())
                .unwrap_or_default();
            if entry.contains("\"granted\":{\"rps/Requests/10000ms\":") {
                Ok(())
            } else {
                Err(entry)
            }
        })
        .await?;
        let providers = namespace.api::<ModelProvider>();
        wait::until("the status to show its use", Duration::from_secs(90), || async {
            let provider = providers.get("main").await.map_err(|error| error.to_string())?;
            let quotas = provider.status.map(|status| status.quotas).unwrap_or_default();
            match quotas.as_slice() {
                [quota] if quota.name == "rps" && quota.used > 0 && quota.used <= 60 && quota.limit == 60 => {
                    Ok(())
                }
                other => Err(format!("{other:?}")),
            }
        })
        .await?;

        let now = DeleteParams {
            grace_period_seconds: Some(0),
            ..DeleteParams::default()
        };
        namespace.api::<Pod>().delete(&holder, &now).await?;
        wait::until("another gateway to be elected", pool::SOON, || async {
            let lease = leases.get(QUOTA).await.map_err(|error| error.to_string())?;
            let other = lease
                .spec
                .and_then(|spec| spec.holder_identity)
                .unwrap_or_default();
            if other != holder && !other.is_empty() {
                Ok(())
            } else {
                Err(other)
            }
        })
        .await?;

        let done = load_test::complete(&namespace, "steady", Duration::from_secs(180)).await?;
        let status = done.status.unwrap_or_default();
        let summary = status.summary.clone().unwrap_or_default();
        anyhow::ensure!(summary.requests.total >= 200, "{status:?}");
        // Requests on their way through the killed gateway, and those that wait in it for the quota, are lost with it: at five
        // a second a few dozen at most.
        anyhow::ensure!(summary.requests.failed <= 45, "{summary:?}");
        let provider = providers.get("main").await?;
        let status = provider.status.unwrap_or_default();
        anyhow::ensure!(!status.conditions.is_empty(), "{status:?}");
        anyhow::ensure!(
            status
                .conditions
                .iter()
                .any(|known| known.type_ == condition::QUOTA_EXHAUSTED),
            "{status:?}"
        );
        // The gateway that was lost is back, or will be.
        wait::until("the provider to be Ready", Duration::from_secs(90), || async {
            let provider = providers.get("main").await.map_err(|error| error.to_string())?;
            let status = provider.status.unwrap_or_default();
            if is_true(&status.conditions, condition::READY) {
                Ok(())
            } else {
                Err(format!("{:?}", status.conditions))
            }
        })
        .await?;
        Ok(())
    })
    .await;
}
