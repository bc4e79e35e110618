//! The Service in front of worker 0.
//!
//! A ClusterIP, not a headless Service: its name resolves before the pod is there, where a headless one would be answered
//! with NXDOMAIN, which resolvers remember for half a minute.

use std::collections::BTreeMap;

use flotilla_crds::{LoadTest, names};
use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt as _;

use super::{coordinator_name, job_name, metadata};

/// The Service.
pub fn build(load_test: &LoadTest, workload: &str) -> Service {
    let name = load_test.name_any();
    let port = i32::from(names::COORDINATOR_PORT);
    Service {
        metadata: metadata(load_test, coordinator_name(&name), workload),
        spec: Some(ServiceSpec {
            selector: Some(BTreeMap::from([
                ("batch.kubernetes.io/job-name".to_owned(), job_name(&name)),
                (
                    "batch.kubernetes.io/job-completion-index".to_owned(),
                    "0".to_owned(),
                ),
            ])),
            ports: Some(vec![ServicePort {
                name: Some("coordinator".to_owned()),
                port,
                target_port: Some(IntOrString::Int(port)),
                ..ServicePort::default()
            }]),
            // The workers look for it while its pod is still being started.
            publish_not_ready_addresses: Some(true),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::load_test;
    use super::*;

    #[test]
    fn selects_worker_0_of_its_own_job() {
        let service = build(&load_test(), "sha256:1");
        let spec = service.spec.unwrap();
        let selector: Vec<String> = spec
            .selector
            .unwrap()
            .into_iter()
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        assert_eq!(
            selector,
            [
                "batch.kubernetes.io/job-completion-index=0",
                "batch.kubernetes.io/job-name=steady"
            ]
        );
        assert_eq!(service.metadata.name.as_deref(), Some("steady-coordinator"));
        assert_eq!(spec.ports.unwrap()[0].port, 9091);
    }
}
