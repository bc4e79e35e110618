//! What EndpointSlices say of gateways and agents.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use flotilla_core::balance::hash_bytes;
use flotilla_crds::names;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};

use super::{Objects, SERVICE_NAME};
use crate::config::AgentPods;

pub(super) fn endpoints(slice: &EndpointSlice) -> impl Iterator<Item = &Endpoint> {
    slice.endpoints.iter()
}

pub(super) fn is_ready(endpoint: &Endpoint) -> bool {
    let conditions = endpoint.conditions.as_ref();
    let ready = conditions.and_then(|conditions| conditions.ready).unwrap_or(true);
    ready && !is_leaving(endpoint)
}

pub(super) fn is_leaving(endpoint: &Endpoint) -> bool {
    endpoint
        .conditions
        .as_ref()
        .and_then(|conditions| conditions.terminating)
        .unwrap_or(false)
}

pub(super) fn pod_uid_of(endpoint: &Endpoint) -> &str {
    endpoint
        .target_ref
        .as_ref()
        .and_then(|target| target.uid.as_deref())
        .unwrap_or_default()
}

pub(super) fn label<'a>(slice: &'a EndpointSlice, key: &str) -> Option<&'a str> {
    slice.metadata.labels.as_ref()?.get(key).map(String::as_str)
}

/// The gateways that divide the slots.
pub(super) struct Gateways<'a> {
    /// By address: the UIDs of the ready ones.
    pub(super) ready: BTreeMap<&'a str, &'a str>,
    own: &'a str,
}

impl<'a> Gateways<'a> {
    pub(super) fn new(objects: &'a Objects, pod_uid: &'a str) -> Self {
        let endpoints = objects.gateways.values().flat_map(endpoints);
        let ready = endpoints.filter(|endpoint| is_ready(endpoint));
        Self {
            ready: ready
                .filter_map(|endpoint| Some((endpoint.addresses.first()?.as_str(), pod_uid_of(endpoint))))
                .collect(),
            own: pod_uid,
        }
    }

    /// What this gateway may have in flight at `replica`, of `concurrency` in all.
    pub(super) fn slots(&self, concurrency: i32, replica: &str) -> u32 {
        let concurrency = usize::try_from(concurrency).unwrap_or(1);
        let gateways = self.ready.len().max(1);
        let (each, left_over) = (concurrency / gateways, concurrency % gateways);
        let score = |gateway: &str| hash_bytes(format!("{gateway} {replica}").as_bytes());
        let own = score(self.own);
        let is_ready = self.ready.values().any(|gateway| *gateway == self.own);
        let before = self.ready.values().filter(|gateway| score(gateway) < own).count();
        let slots = each + usize::from(is_ready && before < left_over);
        u32::try_from(slots).unwrap_or(u32::MAX).max(1)
    }
}

/// Those that stop are among them: they hand over what they know.
pub(super) fn other_gateways(objects: &Objects, pod_uid: &str) -> BTreeSet<SocketAddr> {
    let others = objects
        .gateways
        .values()
        .flat_map(endpoints)
        .filter(|endpoint| pod_uid.is_empty() || pod_uid_of(endpoint) != pod_uid);
    let addresses = others.filter_map(|endpoint| endpoint.addresses.first()?.parse::<IpAddr>().ok());
    addresses
        .map(|address| SocketAddr::new(address, names::GATEWAY_ADMIN_PORT))
        .collect()
}

pub(super) fn is_terminating(objects: &Objects, pod_uid: &str) -> bool {
    let mut own = objects
        .gateways
        .values()
        .flat_map(endpoints)
        .filter(|endpoint| pod_uid_of(endpoint) == pod_uid);
    !pod_uid.is_empty() && own.any(is_leaving)
}

/// The pool and the revision a slice belongs to. The front Service's slices name gateways, not agents, and have no
/// revision.
pub(super) fn owner(slice: &EndpointSlice) -> Option<(&str, &str)> {
    let revision = label(slice, names::REVISION)?;
    (label(slice, SERVICE_NAME) == Some(revision)).then_some((label(slice, names::POOL)?, revision))
}

pub(super) fn agents(objects: &Objects) -> HashSet<IpAddr> {
    objects
        .slices
        .values()
        .filter(|slice| owner(slice).is_some())
        .flat_map(endpoints)
        .flat_map(|endpoint| &endpoint.addresses)
        .filter_map(|address| address.parse().ok())
        .collect()
}

pub(super) fn agent_pools(objects: &Objects) -> HashMap<IpAddr, Arc<str>> {
    let mut names: HashMap<&str, Arc<str>> = HashMap::new();
    let mut pools = HashMap::new();
    for slice in objects.slices.values() {
        let Some((pool, _)) = owner(slice) else { continue };
        let name = names.entry(pool).or_insert_with(|| Arc::from(pool));
        let addresses = endpoints(slice).flat_map(|endpoint| &endpoint.addresses);
        let addresses = addresses.filter_map(|address| address.parse().ok());
        pools.extend(addresses.map(|address| (address, name.clone())));
    }
    pools
}

pub(super) fn gateway_pods(objects: &Objects) -> BTreeMap<String, IpAddr> {
    let endpoints = objects.gateways.values().flat_map(endpoints);
    endpoints
        .filter_map(|endpoint| {
            let pod = endpoint.target_ref.as_ref()?.name.clone()?;
            Some((pod, endpoint.addresses.first()?.parse().ok()?))
        })
        .collect()
}

pub(super) fn agent_pods(objects: &Objects) -> AgentPods {
    let mut pods = AgentPods::default();
    for slice in objects.slices.values().filter(|slice| owner(slice).is_some()) {
        let proven = label(slice, names::EGRESS_IDENTITY) == Some("Token");
        for endpoint in endpoints(slice) {
            let addresses = endpoint
                .addresses
                .iter()
                .filter_map(|address| address.parse().ok());
            for address in addresses {
                pods.addresses.insert(pod_uid_of(endpoint).to_owned(), address);
                if proven {
                    pods.proven.insert(address);
                }
            }
        }
    }
    pods.addresses.remove("");
    pods
}
