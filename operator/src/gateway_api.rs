//! The HTTPRoute of the Gateway API (`gateway.networking.k8s.io/v1`), as far as the operator writes and reads it.
//!
//! `spec` is kept as it is: it is written whole and compared whole. Its lists are atomic for server-side apply, so nobody can own
//! a weight alone, and the operator owns the object. Of `status` only what says whether the weights are in force is read; whatever
//! is missing there has its default, so that no implementation's status can stop the watch.

use std::borrow::Cow;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Group of the Gateway API.
pub const GROUP: &str = "gateway.networking.k8s.io";
const VERSION: &str = "v1";
const KIND: &str = "HTTPRoute";

/// An HTTPRoute.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HTTPRoute {
    #[serde(default = "api_version")]
    api_version: String,
    #[serde(default = "kind")]
    kind: String,
    /// Metadata.
    pub metadata: ObjectMeta,
    /// Which requests go where.
    #[serde(default)]
    pub spec: Value,
    /// What the controllers of its parents say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<RouteStatus>,
}

/// What the controllers of a route's parents say.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RouteStatus {
    /// One for each parent and controller.
    pub parents: Vec<ParentStatus>,
}

/// What one controller says of one parent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ParentStatus {
    /// The parent, as the route names it.
    pub parent_ref: flotilla_crds::agent_pool::ParentRef,
    /// `Accepted`, `ResolvedRefs` and the controller's own.
    pub conditions: Vec<RouteCondition>,
}

/// A condition, as far as it is read.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct RouteCondition {
    /// For example `Accepted`.
    #[serde(rename = "type")]
    pub type_: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// The generation of the route that it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// In one word.
    pub reason: String,
    /// In a sentence.
    pub message: String,
}

impl HTTPRoute {
    /// A route without a status.
    pub fn new(metadata: ObjectMeta, spec: Value) -> Self {
        Self {
            api_version: api_version(),
            kind: kind(),
            metadata,
            spec,
            status: None,
        }
    }
}

fn api_version() -> String {
    format!("{GROUP}/{VERSION}")
}

fn kind() -> String {
    KIND.to_owned()
}

impl Resource for HTTPRoute {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        KIND.into()
    }

    fn group((): &()) -> Cow<'_, str> {
        GROUP.into()
    }

    fn version((): &()) -> Cow<'_, str> {
        VERSION.into()
    }

    fn plural((): &()) -> Cow<'_, str> {
        "httproutes".into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn any_status_is_read_as_far_as_it_goes() {
        let route: HTTPRoute = serde_json::from_value(json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
            "metadata": {"name": "support"}, "spec": {"rules": []},
            "status": {"parents": [{"controllerName": "x.example/y", "parentRef": {"name": "public"}, "conditions": [
                {"type": "Accepted", "status": "True", "lastTransitionTime": "2026-11-21T10:00:00Z"},
            ]}, {}]},
        }))
        .unwrap();
        let parents = route.status.unwrap().parents;
        assert_eq!(
            (parents.len(), parents[0].parent_ref.name.as_str()),
            (2, "public")
        );
        assert_eq!(parents[0].conditions[0].observed_generation, None);
    }

    #[test]
    fn it_is_asked_for_where_the_api_server_has_it() {
        assert_eq!(
            HTTPRoute::url_path(&(), Some("shop")),
            "/apis/gateway.networking.k8s.io/v1/namespaces/shop/httproutes"
        );
    }
}
