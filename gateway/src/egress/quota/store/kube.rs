//! The meeting place in Kubernetes: Lease and ConfigMap `flotilla-quota` of the namespace.
//!
//! Writes are merge patches that carry the resourceVersion they were decided on, which the API server refuses with 409
//! when the object has changed. So a gateway needs no right but get, create and patch, and a patch of the ConfigMap
//! sends only the entries that change. Neither carries the operator's label: it does not watch them.

use std::collections::BTreeMap;
use std::time::Duration;

use flotilla_crds::names;
use futures::future::BoxFuture;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};

use super::{Claim, Contents, Store, StoreError, Version};

/// For one call.
const CALL_TIMEOUT: Duration = Duration::from_secs(3);
/// Recorded as the writer of both objects' fields.
const FIELD_MANAGER: &str = "flotilla/quota";

/// Objects of one namespace.
#[derive(Clone)]
pub struct Kube {
    leases: Api<Lease>,
    records: Api<ConfigMap>,
}

impl std::fmt::Debug for Kube {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Kube")
    }
}

impl Kube {
    /// The objects of `namespace`. `client` must not retry by itself.
    pub fn new(client: Client, namespace: &str) -> Self {
        Self {
            leases: Api::namespaced(client.clone(), namespace),
            records: Api::namespaced(client, namespace),
        }
    }

    async fn put<K>(api: &Api<K>, version: Version, mut body: Value) -> Result<K, StoreError>
    where
        K: Clone + std::fmt::Debug + serde::de::DeserializeOwned + serde::Serialize,
    {
        match version {
            None => {
                body["metadata"] =
                    json!({"name": names::QUOTA, "labels": {names::MANAGED_BY: names::GATEWAY}});
                let object = serde_json::from_value(body).map_err(unclear)?;
                let params = PostParams {
                    field_manager: Some(FIELD_MANAGER.into()),
                    ..PostParams::default()
                };
                within(api.create(&params, &object)).await
            }
            Some(version) => {
                body["metadata"] = json!({"resourceVersion": version});
                let params = PatchParams {
                    field_manager: Some(FIELD_MANAGER.into()),
                    ..PatchParams::default()
                };
                within(api.patch(names::QUOTA, &params, &Patch::Merge(&body))).await
            }
        }
    }
}

fn unclear(error: impl std::fmt::Display) -> StoreError {
    StoreError::Unclear(error.to_string())
}

async fn within<T>(call: impl Future<Output = kube::Result<T>>) -> Result<T, StoreError> {
    match tokio::time::timeout(CALL_TIMEOUT, call).await {
        Ok(Ok(answer)) => Ok(answer),
        // Already there, or changed; gone in the case of a patch.
        Ok(Err(kube::Error::Api(status))) if matches!(status.code, 404 | 409) => Err(StoreError::Conflict),
        Ok(Err(error)) => Err(unclear(error)),
        Err(_) => Err(StoreError::Unclear(format!(
            "the API server did not answer within {} s",
            CALL_TIMEOUT.as_secs()
        ))),
    }
}

fn claim_of(lease: Lease) -> Claim {
    let spec = lease.spec.unwrap_or_default();
    let number = |number: Option<i32>| number.and_then(|number| u32::try_from(number).ok()).unwrap_or(0);
    Claim {
        holder: spec.holder_identity.unwrap_or_default(),
        seconds: number(spec.lease_duration_seconds),
        renewal: spec.renew_time.map(|time| time.0.to_string()).unwrap_or_default(),
        transitions: number(spec.lease_transitions),
        version: lease.metadata.resource_version,
    }
}

/// The Lease's spec. Times of Leases have microseconds.
fn spec_of(claim: &Claim, now: Timestamp) -> Value {
    json!({"spec": {
        "holderIdentity": claim.holder,
        "leaseDurationSeconds": claim.seconds,
        "leaseTransitions": claim.transitions,
        "renewTime": now.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string(),
    }})
}

impl Store for Kube {
    fn claim(&self) -> BoxFuture<'_, Result<Option<Claim>, StoreError>> {
        Box::pin(async {
            let lease = within(self.leases.get_opt(names::QUOTA)).await?;
            Ok(lease.map(claim_of))
        })
    }

    fn put_claim(&self, claim: Claim) -> BoxFuture<'_, Result<Claim, StoreError>> {
        Box::pin(async move {
            let body = spec_of(&claim, Timestamp::now());
            let lease = Self::put(&self.leases, claim.version, body).await?;
            Ok(claim_of(lease))
        })
    }

    fn read(&self) -> BoxFuture<'_, Result<(Version, Contents), StoreError>> {
        Box::pin(async {
            let record = within(self.records.get_opt(names::QUOTA)).await?;
            Ok(record.map_or_else(
                || (None, BTreeMap::new()),
                |record| (record.metadata.resource_version, record.data.unwrap_or_default()),
            ))
        })
    }

    fn write(&self, version: Version, entries: Contents) -> BoxFuture<'_, Result<Version, StoreError>> {
        Box::pin(async move {
            let record = Self::put(&self.records, version, json!({"data": entries})).await?;
            Ok(record.metadata.resource_version)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use http::{Method, Request, Response};
    use http_body_util::{BodyExt as _, Full};
    use kube::client::Body;
    use parking_lot::Mutex;
    use std::sync::Arc;

    /// An API server with one object of each kind, as the real one behaves in what matters here.
    fn store(objects: Arc<Mutex<BTreeMap<String, Value>>>) -> Kube {
        let service = tower::service_fn(move |request: Request<Body>| {
            let objects = objects.clone();
            async move {
                let (head, body) = request.into_parts();
                let body = body.collect().await?.to_bytes();
                let body: Value = serde_json::from_slice(&body).unwrap_or_default();
                let path = head.uri.path().trim_end_matches("/flotilla-quota").to_owned();
                let mut objects = objects.lock();
                let known = objects.get(&path).cloned();
                let version = |object: &Value| object["metadata"]["resourceVersion"].clone();
                let (code, object) = match (head.method, known) {
                    (Method::GET, Some(object)) => (200, object),
                    (Method::GET, None) => (404, Value::Null),
                    (Method::POST, None) => (201, body.clone()),
                    (Method::POST, Some(_)) => (409, Value::Null),
                    (_, Some(object)) if version(&object) != version(&body) => (409, Value::Null),
                    (_, Some(mut object)) => {
                        for part in ["spec", "data"] {
                            for (key, value) in body[part].as_object().into_iter().flatten() {
                                object[part][key] = value.clone();
                            }
                        }
                        (200, object)
                    }
                    (_, None) => (404, Value::Null),
                };
                let reason = if code == 404 { "NotFound" } else { "Conflict" };
                let text = if code < 300 {
                    let mut object = object;
                    if body != Value::Null {
                        let next = version(&object)
                            .as_str()
                            .and_then(|text| text.parse().ok())
                            .unwrap_or(6u64)
                            + 1;
                        object["metadata"]["resourceVersion"] = next.to_string().into();
                        objects.insert(path, object.clone());
                    }
                    object.to_string()
                } else {
                    json!({"kind": "Status", "status": "Failure", "code": code, "message": "", "reason": reason})
                        .to_string()
                };
                let mut response = Response::new(Full::new(Bytes::from(text)));
                *response.status_mut() = http::StatusCode::from_u16(code)?;
                Ok::<_, Box<dyn std::error::Error + Send + Sync>>(response)
            }
        });
        Kube::new(Client::new(service, "shop"), "shop")
    }

    #[tokio::test]
    async fn both_objects_are_overwritten_by_compare_and_swap() {
        let objects = Arc::default();
        let (one, two) = (store(Arc::clone(&objects)), store(objects));
        assert!(one.claim().await.expect("an answer").is_none());
        let claim = Claim {
            holder: "g-1".into(),
            seconds: 10,
            ..Claim::default()
        };
        let held = one.put_claim(claim.clone()).await.expect("it is free");
        assert_eq!(
            (held.holder.as_str(), held.version.as_deref()),
            ("g-1", Some("7"))
        );
        assert!(!held.renewal.is_empty());
        assert!(
            matches!(two.put_claim(claim).await, Err(StoreError::Conflict)),
            "it is there"
        );
        let renewed = one.put_claim(held.clone()).await.expect("a renewal");
        assert!(
            matches!(two.put_claim(held).await, Err(StoreError::Conflict)),
            "it has changed"
        );
        assert_eq!(two.claim().await.expect("an answer"), Some(renewed));

        assert_eq!(one.read().await.expect("an answer"), (None, Contents::new()));
        let entry = |key: &str, text: &str| Contents::from([(key.to_owned(), text.to_owned())]);
        let first = one.write(None, entry("main", "a")).await.expect("the first");
        assert!(matches!(
            two.write(None, entry("main", "b")).await,
            Err(StoreError::Conflict)
        ));
        let second = two
            .write(first.clone(), entry("spare", "c"))
            .await
            .expect("a patch");
        assert!(matches!(
            one.write(first, entry("main", "d")).await,
            Err(StoreError::Conflict)
        ));
        let both = Contents::from([("main".into(), "a".into()), ("spare".into(), "c".into())]);
        assert_eq!(one.read().await.expect("an answer"), (second, both));
    }
}
