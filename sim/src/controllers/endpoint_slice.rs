//! The EndpointSlice controller: one slice per Service with a selector.

use http::Method;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{Controller, Found, all, controller_reference, is_controlled_by, is_over, is_ready, request};
use crate::api::selector::Selector;
use crate::cluster::Cluster;

/// Keeps EndpointSlices.
pub(super) struct EndpointSlices;

impl Controller for EndpointSlices {
    fn kinds(&self) -> &'static [&'static str] {
        &["/api/v1/services", "/api/v1/pods"]
    }

    fn pass(&mut self, cluster: &Cluster) -> Option<Instant> {
        let pods = all(cluster, "/api/v1/pods");
        let slices = all(cluster, "/apis/discovery.k8s.io/v1/endpointslices");
        for service in all(cluster, "/api/v1/services") {
            let selector = &service.object["spec"]["selector"];
            if service.is_deleting() || !selector.is_object() {
                continue;
            }
            let selector = Selector::of_object(&json!({"matchLabels": selector}));
            let endpoints: Vec<Value> = pods
                .iter()
                .filter(|pod| pod.key.namespace == service.key.namespace)
                .filter(|pod| selector.matches_labels(&pod.object["metadata"]["labels"]))
                .filter(|pod| !is_over(&pod.object))
                .filter_map(endpoint)
                .collect();
            let slice = slices
                .iter()
                .find(|slice| is_controlled_by(&slice.object, &service));
            write(cluster, &service, slice, endpoints);
        }
        None
    }
}

fn endpoint(pod: &Found) -> Option<Value> {
    let address = pod.object.pointer("/status/podIP")?;
    let ready = is_ready(&pod.object);
    Some(json!({
        "addresses": [address], "nodeName": pod.object["spec"]["nodeName"],
        "conditions": {"ready": ready && !pod.is_deleting(), "serving": ready, "terminating": pod.is_deleting()},
        "targetRef": {"kind": "Pod", "name": pod.name(), "namespace": pod.key.namespace, "uid": pod.uid()},
    }))
}

fn write(cluster: &Cluster, service: &Found, slice: Option<&Found>, endpoints: Vec<Value>) {
    let ports = service.object.pointer("/spec/ports").and_then(Value::as_array);
    let ports: Vec<Value> = ports
        .into_iter()
        .flatten()
        .map(|port| {
            let number = match &port["targetPort"] {
                Value::Number(number) => json!(number),
                _ => port["port"].clone(),
            };
            let name = port["name"].as_str().unwrap_or_default();
            json!({"name": name, "port": number, "protocol": port["protocol"]})
        })
        .collect();
    let (endpoints, ports) = (json!(endpoints), json!(ports));
    let mut object = match slice {
        Some(slice) => {
            let is_so = |field: &str, wanted: &Value| {
                let found = slice.object.get(field).cloned().unwrap_or_else(|| json!([]));
                found == *wanted
            };
            if is_so("endpoints", &endpoints) && is_so("ports", &ports) {
                return;
            }
            (*slice.object).clone()
        }
        None => json!({
            "metadata": {
                "generateName": format!("{}-", service.name()),
                "labels": {
                    "kubernetes.io/service-name": service.name(),
                    "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
                },
                "ownerReferences": [controller_reference(service)],
            },
            "addressType": "IPv4",
        }),
    };
    object["endpoints"] = endpoints;
    object["ports"] = ports;
    let (method, path) = match slice {
        Some(slice) => (Method::PUT, slice.path.clone()),
        None => (
            Method::POST,
            service.sibling("/apis/discovery.k8s.io/v1", "endpointslices"),
        ),
    };
    // The namespace may be on its way out.
    let _ = request(cluster, method, &path, object);
}
