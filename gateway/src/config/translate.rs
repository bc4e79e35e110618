//! Kubernetes objects to [`Config`], without a client.
//!
//! Slots. `agent.concurrency` bounds what a replica works on at once, but each gateway sees only its own requests. So the G
//! ready gateways divide it: each has `concurrency / G` slots at a replica, and those left over go to the gateways that
//! rendezvous hashing names for that replica ([`Gateways::slots`]). All see the same gateways, so the bound is met
//! exactly, but for moments in which they do not, and where `concurrency` is below G: each has one slot then, because a
//! replica without any gateway that may use it would be idle.
//! Concurrency belongs to the revision, so it is read from the revision's EndpointSlices ([`CONCURRENCY`], which the
//! EndpointSlice controller copies from the Service's labels) and only without that label from the pool's present spec.

mod providers;
mod slices;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use flotilla_crds::agent_pool::AgentPool;
use flotilla_crds::model_provider::ModelProvider;
use flotilla_crds::names;
use k8s_openapi::api::discovery::v1::EndpointSlice;

use super::issuer::Issuer;
use super::{
    AppProtocol, Config, EndpointConfig, HttpConfig, PoolConfig, PreviewConfig, RevisionConfig, resilience,
};
use providers::{model_spends, provider_config, spend_config};
use slices::{
    Gateways, agent_pods, agent_pools, agents, endpoints, gateway_pods, is_ready, is_terminating, label,
    other_gateways, owner, pod_uid_of,
};

pub use flotilla_crds::names::CONCURRENCY;
/// Label of the EndpointSlice controller: the Service's name.
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// The watched objects, by name.
#[derive(Default)]
pub struct Objects {
    /// AgentPools.
    pub pools: HashMap<String, AgentPool>,
    /// ModelProviders.
    pub providers: HashMap<String, ModelProvider>,
    /// EndpointSlices of revision Services.
    pub slices: HashMap<String, EndpointSlice>,
    /// EndpointSlices of the gateway's own Service.
    pub gateways: HashMap<String, EndpointSlice>,
    /// Who signs ServiceAccount tokens.
    pub issuer: Option<Arc<Issuer>>,
}

/// The configuration that `objects` describe, for the gateway pod with UID `pod_uid`.
pub fn config(objects: &Objects, pod_uid: &str) -> Config {
    let gateways = Gateways::new(objects, pod_uid);
    let mut revisions = revisions(objects);
    let pools = objects
        .pools
        .iter()
        // Its work does not come this way; its agents' calls of models do.
        .filter(|(_, pool)| !pool.spec.traffic.is_by_number())
        .map(|(name, pool)| {
            (
                name.clone(),
                pool_config(name, pool, revisions.remove(name).unwrap_or_default(), &gateways),
            )
        })
        .collect();
    Config {
        pools,
        providers: objects
            .providers
            .iter()
            .map(|(name, provider)| (name.clone(), provider_config(provider)))
            .collect(),
        spends: objects
            .providers
            .iter()
            .filter_map(|(name, provider)| Some((name.clone(), spend_config(provider)?)))
            .collect(),
        model_spends: objects
            .providers
            .iter()
            .map(|(name, provider)| (name.clone(), model_spends(provider)))
            .filter(|(_, models)| !models.is_empty())
            .collect(),
        ready_gateways: u32::try_from(gateways.ready.len()).unwrap_or(u32::MAX).max(1),
        agents: agents(objects),
        agent_pools: agent_pools(objects),
        gateway_pods: gateway_pods(objects),
        gateways: other_gateways(objects, pod_uid),
        pods: agent_pods(objects),
        issuer: objects.issuer.clone(),
        terminating: is_terminating(objects, pod_uid),
    }
}

/// Revisions by pool.
fn revisions(objects: &Objects) -> BTreeMap<String, BTreeMap<String, RevisionConfig>> {
    let mut pools: BTreeMap<String, BTreeMap<String, RevisionConfig>> = BTreeMap::new();
    for slice in objects.slices.values() {
        let Some((pool, revision)) = owner(slice) else {
            continue;
        };
        let config = pools
            .entry(pool.to_owned())
            .or_default()
            .entry(revision.to_owned())
            .or_default();
        if let Some(concurrency) = label(slice, CONCURRENCY).and_then(|text| text.parse().ok()) {
            config.slots = concurrency;
        }
        let port = slice.ports.iter().flatten().find_map(|port| {
            let number = u16::try_from(port.port?).ok()?;
            Some((number, port.app_protocol.as_deref()))
        });
        let Some((port, app_protocol)) = port else {
            continue;
        };
        if app_protocol == Some(names::H2C) {
            config.app_protocol = AppProtocol::H2C;
        }
        for endpoint in endpoints(slice) {
            let Some(address) = endpoint
                .addresses
                .first()
                .and_then(|text| text.parse::<IpAddr>().ok())
            else {
                continue;
            };
            let entry = EndpointConfig {
                uid: pod_uid_of(endpoint).to_owned(),
                ready: is_ready(endpoint),
                slots: None,
            };
            // While the controller moves an endpoint between slices it is in both.
            let known = config
                .endpoints
                .entry(SocketAddr::new(address, port))
                .or_insert_with(|| entry.clone());
            if entry.ready {
                *known = entry;
            }
        }
    }
    pools
}

fn seconds(value: i32) -> Duration {
    Duration::from_secs(u64::try_from(value).unwrap_or(1))
}

fn pool_config(
    name: &str,
    pool: &AgentPool,
    mut revisions: BTreeMap<String, RevisionConfig>,
    gateways: &Gateways<'_>,
) -> PoolConfig {
    let (spec, status) = (&pool.spec, pool.status.as_ref());
    let weights: Vec<(String, u32)> = status
        .map(|status| status.traffic.as_slice())
        .unwrap_or_default()
        .iter()
        .map(|share| {
            (
                share.revision.clone(),
                u32::try_from(share.weight).unwrap_or(0).min(100),
            )
        })
        .collect();
    for (revision, _) in &weights {
        revisions.entry(revision.clone()).or_default();
    }
    for revision in revisions.values_mut() {
        let concurrency = match i32::try_from(revision.slots) {
            Ok(0) | Err(_) => spec.agent.concurrency,
            Ok(concurrency) => concurrency,
        };
        for (address, endpoint) in &mut revision.endpoints {
            let slots = match endpoint.uid.as_str() {
                "" => gateways.slots(concurrency, &address.to_string()),
                uid => gateways.slots(concurrency, uid),
            };
            endpoint.slots = Some(slots);
        }
        revision.slots = gateways.slots(concurrency, "");
    }
    PoolConfig {
        uid: pool.metadata.uid.clone().unwrap_or_default(),
        service: spec.front_service(name).to_owned(),
        port: status
            .and_then(|status| status.gateway_port)
            .and_then(|port| u16::try_from(port).ok()),
        generation: status.and_then(|status| status.traffic_generation).unwrap_or(-1),
        weights,
        balancing: spec.traffic.balancing,
        request_timeout: seconds(spec.traffic.request_timeout_seconds),
        max_requests: usize::try_from(spec.traffic.max_concurrent_requests).unwrap_or(1),
        retries: resilience::retries(&spec.traffic.retries),
        ejection: resilience::ejection(&spec.traffic.ejection),
        queue_requests: usize::try_from(spec.traffic.queue.max_requests).unwrap_or(0),
        queue_wait: seconds(spec.traffic.queue.max_wait_seconds),
        http: HttpConfig {
            max_request_bytes: u64::try_from(spec.traffic.max_request_bytes).unwrap_or(0),
            served_by: spec.traffic.served_by,
        },
        tenant_header: resilience::header(spec.traffic.queue.tenant_header.as_deref()),
        priority_header: resilience::header(spec.traffic.queue.priority_header.as_deref()),
        stopped: spec.stopped,
        sessions: crate::session::config::of_pool(pool),
        preview: preview(pool),
        revisions,
    }
}

/// Who the testers are, as the API server has checked, and the revision that status names for them.
fn preview(pool: &AgentPool) -> Option<PreviewConfig> {
    let preview = pool.spec.rollout.preview.as_ref()?;
    let traffic = pool.status.iter().flat_map(|status| &status.traffic);
    Some(PreviewConfig {
        header: preview.header.parse().ok()?,
        value: preview.value.parse().ok()?,
        revision: traffic
            .filter(|share| share.preview)
            .map(|share| share.revision.clone())
            .next(),
    })
}
