//! The Service of the shared ingress and the egress. Pools have front Services of their own; the admin port has none.

use flotilla_crds::names;
use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{Shared, selector};

/// The Service.
pub fn build(shared: &Shared<'_>) -> Service {
    let port = |name: &str, port: i32, target: u16| ServicePort {
        name: Some(name.to_owned()),
        port,
        target_port: Some(IntOrString::Int(i32::from(target))),
        ..ServicePort::default()
    };
    Service {
        metadata: shared.metadata(),
        spec: Some(ServiceSpec {
            selector: Some(selector()),
            ports: Some(vec![
                port("ingress", 80, names::GATEWAY_INGRESS_PORT),
                port(
                    "egress",
                    i32::from(names::GATEWAY_EGRESS_PORT),
                    names::GATEWAY_EGRESS_PORT,
                ),
            ]),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exposes_ingress_and_egress_and_never_the_admin_port() {
        let service = build(&Shared {
            namespace: "shop",
            owners: &[],
        });
        let spec = service.spec.unwrap();
        let ports: Vec<_> = spec
            .ports
            .unwrap()
            .into_iter()
            .map(|port| (port.name.unwrap(), port.port, port.target_port.unwrap()))
            .collect();
        assert_eq!(
            ports,
            [
                ("ingress".to_owned(), 80, IntOrString::Int(8080)),
                ("egress".to_owned(), 8081, IntOrString::Int(8081))
            ]
        );
        assert_eq!(
            spec.selector.unwrap().into_iter().collect::<Vec<_>>(),
            [("app.kubernetes.io/name".to_owned(), "flotilla-gateway".to_owned())]
        );
    }
}
