//! The gateways of this namespace, as the EndpointSlices of their Service name them.
//!
//! Gateways speak to each other on the admin port. Who asks is known by its address and by nothing it says.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::config::Config;

/// Who the gateways are, ready or not, this one among them.
#[derive(Debug)]
pub struct Peers {
    /// The admin port, which is the same in all.
    port: u16,
    /// By pod name.
    addresses: ArcSwap<BTreeMap<String, IpAddr>>,
}

impl Peers {
    /// Nobody is known yet. `port` is the admin port of every gateway.
    pub fn new(port: u16) -> Self {
        Self {
            port,
            addresses: ArcSwap::default(),
        }
    }

    /// Takes over who is there.
    pub fn apply(&self, config: &Config) {
        if **self.addresses.load() != config.gateway_pods {
            self.addresses.store(Arc::new(config.gateway_pods.clone()));
        }
    }

    /// Whether a gateway has this address.
    pub fn is_gateway(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.addresses.load().values().any(|known| *known == address)
    }

    /// Whether this pod is there.
    pub fn has(&self, pod: &str) -> bool {
        self.addresses.load().contains_key(pod)
    }

    /// The admin port of a pod.
    pub fn admin(&self, pod: &str) -> Option<SocketAddr> {
        let address = *self.addresses.load().get(pod)?;
        Some(SocketAddr::new(address, self.port))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gateway_is_known_by_its_address_and_its_pods_name() {
        let peers = Peers::new(9090);
        let address: IpAddr = "10.0.0.7".parse().expect("an address");
        assert!(!peers.is_gateway(address));
        peers.apply(&Config {
            gateway_pods: [("g-1".to_owned(), address)].into(),
            ..Config::default()
        });
        assert!(peers.is_gateway(address) && peers.has("g-1"));
        assert!(peers.is_gateway("::ffff:10.0.0.7".parse().expect("an address")));
        assert!(!peers.is_gateway("10.0.0.8".parse().expect("an address")));
        assert_eq!(
            peers.admin("g-1"),
            Some("10.0.0.7:9090".parse().expect("an address"))
        );
        assert_eq!(peers.admin("g-2"), None);
    }
}
