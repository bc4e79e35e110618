//! The gateways of this namespace, as the EndpointSlices of their Service name them.
//!
//! Gateways speak to each other on the admin port. Who asks is known by its address and by nothing it says.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use crate::config::Config;

/// Pods that are remembered as gone.
const MAX_LEFT: usize = 256;

/// Who the gateways are, ready or not, this one among them.
#[derive(Debug)]
pub struct Peers {
    /// The admin port, which is the same in all.
    port: u16,
    /// By pod name.
    addresses: ArcSwap<BTreeMap<String, IpAddr>>,
    /// Those that were there once.
    left: Mutex<BTreeSet<String>>,
    /// Not all are in this namespace: whoever is not known may be elsewhere.
    elsewhere: bool,
}

impl Peers {
    /// Nobody is known yet. `port` is the admin port of every gateway.
    pub fn new(port: u16) -> Self {
        Self {
            port,
            addresses: ArcSwap::default(),
            left: Mutex::default(),
            elsewhere: false,
        }
    }

    /// Gateways of several namespaces, of which nobody says who is there: each may be.
    pub fn elsewhere() -> Self {
        Self {
            elsewhere: true,
            ..Self::new(0)
        }
    }

    /// Takes over who is there.
    pub fn apply(&self, config: &Config) {
        let there = &config.gateway_pods;
        let known = self.addresses.load();
        if **known == *there {
            return;
        }
        let mut left = self.left.lock();
        left.retain(|pod| !there.contains_key(pod));
        if left.len() >= MAX_LEFT {
            left.clear();
        }
        left.extend(known.keys().filter(|pod| !there.contains_key(*pod)).cloned());
        self.addresses.store(Arc::new(there.clone()));
    }

    /// Whether a gateway has this address.
    pub fn is_gateway(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.addresses.load().values().any(|known| *known == address)
    }

    /// Whether this pod is there, or may be.
    pub fn has(&self, pod: &str) -> bool {
        self.elsewhere || self.addresses.load().contains_key(pod)
    }

    /// Whether this pod was there and is not any more: it was deleted, or has ended.
    pub fn has_left(&self, pod: &str) -> bool {
        self.left.lock().contains(pod)
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
        assert!(
            !peers.has_left("g-1") && !peers.has_left("g-2"),
            "it may still come"
        );
        peers.apply(&Config::default());
        assert!(peers.has_left("g-1") && !peers.has("g-1"));
        peers.apply(&Config {
            gateway_pods: [("g-1".to_owned(), address)].into(),
            ..Config::default()
        });
        assert!(!peers.has_left("g-1"), "it is back");
    }
}
