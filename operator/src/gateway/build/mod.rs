//! The gateway's objects, one module per kind. All are named `flotilla-gateway`.

pub mod deployment;
pub mod disruption_budget;
pub mod role_binding;
pub mod service;
pub mod service_account;

use std::collections::BTreeMap;

use flotilla_crds::model_provider::AuthType;
use flotilla_crds::{ModelProvider, names};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference};
use kube::ResourceExt as _;

/// What all objects of one gateway have in common.
pub struct Shared<'a> {
    /// The namespace.
    pub namespace: &'a str,
    /// The pools that need it.
    pub owners: &'a [OwnerReference],
}

/// Where one provider's key comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credential {
    /// The ModelProvider.
    pub provider: String,
    /// The Secret in the same namespace.
    pub secret: String,
    /// The key inside the Secret.
    pub key: String,
}

/// The keys that a gateway needs, ordered by provider. Providers without authentication need none.
pub fn credentials(providers: &[&ModelProvider]) -> Vec<Credential> {
    let mut credentials: Vec<Credential> = providers
        .iter()
        .filter(|provider| provider.spec.auth.type_ == AuthType::APIKey)
        .filter_map(|provider| {
            let reference = &provider.spec.auth.api_key.as_ref()?.secret_key_ref;
            Some(Credential {
                provider: provider.name_any(),
                secret: reference.name.clone(),
                key: reference.key.clone(),
            })
        })
        .collect();
    credentials.sort_by(|a, b| a.provider.cmp(&b.provider));
    credentials
}

/// The labels that select a namespace's gateway pods, for Services and for whoever looks for them.
pub fn selector() -> BTreeMap<String, String> {
    BTreeMap::from([(names::APP_NAME.to_owned(), names::GATEWAY.to_owned())])
}

/// Whether an object is (part of) a gateway.
pub fn is_gateway(metadata: &ObjectMeta) -> bool {
    let label = metadata
        .labels
        .as_ref()
        .and_then(|labels| labels.get(names::APP_NAME));
    label.is_some_and(|name| name == names::GATEWAY)
}

/// Whether every wanted pod of the newest template is available and none of an older one is left.
pub fn is_settled(deployment: &Deployment) -> bool {
    let wanted = deployment
        .spec
        .as_ref()
        .and_then(|spec| spec.replicas)
        .unwrap_or(1);
    deployment.status.as_ref().is_some_and(|status| {
        status.observed_generation >= deployment.metadata.generation
            && status.updated_replicas.unwrap_or_default() >= wanted
            && status.available_replicas.unwrap_or_default() >= wanted
            && status.replicas.unwrap_or_default() <= wanted
    })
}

/// Whether pods are being replaced and the Deployment has not given up on it.
pub fn is_rolling(deployment: &Deployment) -> bool {
    let conditions = deployment
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_deref())
        .unwrap_or_default();
    let given_up = conditions.iter().any(|condition| {
        (condition.type_ == "Progressing" && condition.status == "False")
            || (condition.type_ == "ReplicaFailure" && condition.status == "True")
    });
    !is_settled(deployment) && !given_up
}

impl Shared<'_> {
    fn metadata(&self) -> ObjectMeta {
        ObjectMeta {
            name: Some(names::GATEWAY.to_owned()),
            namespace: Some(self.namespace.to_owned()),
            labels: Some(labels()),
            owner_references: Some(self.owners.to_vec()),
            ..ObjectMeta::default()
        }
    }
}

fn labels() -> BTreeMap<String, String> {
    let mut labels = selector();
    labels.insert(names::MANAGED_BY.to_owned(), names::MANAGER.to_owned());
    labels
}

fn label_selector() -> LabelSelector {
    LabelSelector {
        match_labels: Some(selector()),
        ..LabelSelector::default()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn provider(name: &str, auth: Value) -> ModelProvider {
        let spec = json!({"endpoint": "https://api.example.com/v1", "auth": auth});
        serde_json::from_value(json!({"metadata": {"name": name}, "spec": spec})).unwrap()
    }

    #[test]
    fn only_providers_with_a_key_need_one() {
        let key = json!({"type": "APIKey", "apiKey": {"secretKeyRef": {"name": "s", "key": "k"}}});
        let (with, without) = (provider("b", key.clone()), provider("a", json!({})));
        let also = provider("a2", key);
        let found = credentials(&[&with, &without, &also]);
        let names: Vec<_> = found
            .iter()
            .map(|credential| credential.provider.as_str())
            .collect();
        assert_eq!(names, ["a2", "b"]);
        assert_eq!((found[0].secret.as_str(), found[0].key.as_str()), ("s", "k"));
    }

    #[test]
    fn rollouts() {
        let status = |observed: i64, replicas: i32, updated: i32, available: i32| json!({"observedGeneration": observed, "replicas": replicas, "updatedReplicas": updated, "availableReplicas": available});
        let mut stuck = status(3, 3, 1, 2);
        stuck["conditions"] = json!([{"type": "Progressing", "status": "False"}]);
        for (what, status, settled, rolling) in [
            ("just made", json!({}), false, true),
            ("not yet observed", status(2, 2, 2, 2), false, true),
            ("surging", status(3, 3, 1, 2), false, true),
            ("old pods are left", status(3, 3, 2, 2), false, true),
            ("done", status(3, 2, 2, 2), true, false),
            ("given up", stuck, false, false),
        ] {
            let object = json!({"metadata": {"generation": 3}, "spec": {"replicas": 2, "selector": {}, "template": {}}, "status": status});
            let deployment: Deployment = serde_json::from_value(object).unwrap();
            assert_eq!(
                (is_settled(&deployment), is_rolling(&deployment)),
                (settled, rolling),
                "{what}"
            );
        }
    }

    #[test]
    fn pods_of_a_gateway_are_known_by_their_name_label() {
        assert!(is_gateway(&ObjectMeta {
            labels: Some(labels()),
            ..ObjectMeta::default()
        }));
        assert!(!is_gateway(&ObjectMeta::default()));
    }
}
