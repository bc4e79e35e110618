//! Services: one per revision whose selector never changes, and the front one that clients use.
//!
//! A revision's Service makes EndpointSlices by which gateways find its pods. Its selector is the revision for good;
//! a Service that is pointed from one revision to the next is where a proxy's 503s at promotion come from.

use flotilla_crds::agent_pool::{Agent, EgressIdentity};
use flotilla_crds::{AgentPool, names};
use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt as _;

use super::{child_meta, selector};

/// The Service of one revision: port 80 to the agent's port of its ready pods. Its labels are copied to the
/// EndpointSlices, by which gateways learn how many requests a replica of this revision takes at once, and how its pods prove
/// themselves.
pub fn of_revision(pool: &AgentPool, revision: &str, agent: &Agent) -> Service {
    let name = pool.name_any();
    let mut metadata = child_meta(pool, revision, Some(revision));
    let labels = metadata.labels.get_or_insert_default();
    labels.insert(names::CONCURRENCY.to_owned(), agent.concurrency.to_string());
    if agent.egress_identity == EgressIdentity::Token {
        labels.insert(names::EGRESS_IDENTITY.to_owned(), "Token".to_owned());
    }
    Service {
        metadata,
        spec: Some(ServiceSpec {
            selector: Some(selector(&name, Some(revision))),
            ports: Some(vec![port(agent.port)]),
            publish_not_ready_addresses: Some(false),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

/// The Service that clients use: port 80 to the pool's own port of the namespace's gateways.
pub fn front(pool: &AgentPool, gateway_port: i32) -> Service {
    let name = pool.name_any();
    Service {
        metadata: child_meta(pool, pool.spec.front_service(&name), None),
        spec: Some(ServiceSpec {
            selector: Some([(names::APP_NAME.to_owned(), names::GATEWAY.to_owned())].into()),
            ports: Some(vec![port(gateway_port)]),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

/// The gateway port that a front Service was given, if that is what it is.
pub fn gateway_port(service: &Service) -> Option<i32> {
    let spec = service.spec.as_ref()?;
    let is_front = spec
        .selector
        .as_ref()?
        .get(names::APP_NAME)
        .is_some_and(|app| app == names::GATEWAY);
    match spec.ports.as_ref()?.first()?.target_port.as_ref()? {
        IntOrString::Int(port) if is_front => Some(*port),
        _ => None,
    }
}

fn port(target: i32) -> ServicePort {
    ServicePort {
        name: Some("http".into()),
        port: 80,
        protocol: Some("TCP".into()),
        target_port: Some(IntOrString::Int(target)),
        ..ServicePort::default()
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::pool;
    use super::*;
    use serde_json::json;

    #[test]
    fn a_revision_is_selected_by_pool_and_revision() {
        let service = of_revision(&pool(json!({})), "support-1", &pool(json!({})).spec.agent);
        let spec = service.spec.unwrap();
        assert_eq!(service.metadata.name.as_deref(), Some("support-1"));
        assert_eq!(
            spec.selector.unwrap(),
            [
                (names::POOL.to_owned(), "support".to_owned()),
                (names::REVISION.to_owned(), "support-1".to_owned())
            ]
            .into()
        );
        assert_eq!(spec.ports.unwrap()[0].target_port, Some(IntOrString::Int(8080)));
    }

    #[test]
    fn gateways_learn_of_a_revision_by_its_labels() {
        let labels = |agent: serde_json::Value| {
            let pool = pool(json!({"agent": agent}));
            let service = of_revision(&pool, "support-1", &pool.spec.agent);
            let labels = service.metadata.labels.unwrap_or_default();
            [names::CONCURRENCY, names::EGRESS_IDENTITY].map(|name| labels.get(name).cloned())
        };
        assert_eq!(
            labels(json!({"image": "i", "concurrency": 3})),
            [Some("3".to_owned()), None]
        );
        assert_eq!(
            labels(json!({"image": "i", "egressIdentity": "Token"}))[1].as_deref(),
            Some("Token")
        );
    }

    #[test]
    fn the_front_selects_gateways_and_remembers_the_port() {
        for (spec, name) in [
            (json!({}), "support"),
            (json!({"traffic": {"serviceName": "help"}}), "help"),
        ] {
            let service = front(&pool(spec), 20_417);
            assert_eq!(service.metadata.name.as_deref(), Some(name));
            assert_eq!(gateway_port(&service), Some(20_417));
        }
        assert_eq!(
            gateway_port(&of_revision(
                &pool(json!({})),
                "support-1",
                &pool(json!({})).spec.agent
            )),
            None
        );
        assert_eq!(gateway_port(&Service::default()), None);
    }
}
