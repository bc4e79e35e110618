//! From `kubectl apply` to Ready: how long, and with how many writes.

use crate::audit::Mark;
use crate::{Namespace, fixtures, operator, wait};
use anyhow::{Context, Result};
use flotilla_crds::common::{condition, find, is_true};
use flotilla_crds::{AgentPool, ModelProvider};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::ListParams;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Limit for anything that needs no image pull.
pub const SOON: Duration = Duration::from_secs(60);

/// Applies provider `main` (the simulator, no key).
pub async fn provider(namespace: &Namespace) -> Result<()> {
    namespace.apply(&fixtures::provider("main")).await
}

/// Waits until `pool` answers `Ready=True` for its present generation.
pub async fn ready(namespace: &Namespace, pool: &str, limit: Duration) -> Result<AgentPool> {
    let api = namespace.api::<AgentPool>();
    wait::until(&format!("pool {pool} to be Ready"), limit, || async {
        let object = api.get(pool).await.map_err(|e| e.to_string())?;
        let status = object.status.as_ref().ok_or("no status")?;
        let ready = find(&status.conditions, condition::READY).ok_or("no Ready condition")?;
        let current = Some(status.observed_generation) == object.metadata.generation;
        if current && ready.status == "True" {
            Ok(object)
        } else {
            Err(format!("{}: {}", ready.reason, ready.message))
        }
    })
    .await
}

/// Waits until the pool's condition `kind` is True with one of `reasons`; gives its message.
pub async fn condition_is(
    namespace: &Namespace,
    pool: &str,
    kind: &str,
    reasons: &[&str],
    limit: Duration,
) -> Result<String> {
    let api = namespace.api::<AgentPool>();
    wait::until(
        &format!("pool {pool} to be {kind} with {reasons:?}"),
        limit,
        || async {
            let object = api.get(pool).await.map_err(|e| e.to_string())?;
            let status = object.status.as_ref().ok_or("no status")?;
            let found = find(&status.conditions, kind).ok_or("no such condition")?;
            if found.status == "True" && reasons.contains(&found.reason.as_str()) {
                Ok(found.message.clone())
            } else {
                Err(format!(
                    "{}={} {}: {}",
                    kind, found.status, found.reason, found.message
                ))
            }
        },
    )
    .await
}

/// Address of a Service's cluster IP, once it takes connections: kube-proxy learns of a Service's first endpoint after we do.
pub async fn address(namespace: &Namespace, service: &str) -> Result<SocketAddr> {
    let object = namespace.api::<Service>().get(service).await?;
    let spec = object.spec.context("a Service without spec")?;
    let ip = spec.cluster_ip.context("a Service without cluster IP")?;
    let port = spec
        .ports
        .and_then(|p| p.first().map(|p| p.port))
        .context("a Service without port")?;
    let address = SocketAddr::new(ip.parse()?, u16::try_from(port)?);
    wait::until(&format!("{address} to take connections"), SOON, || async move {
        let connected = tokio::net::TcpStream::connect(address).await;
        connected.map(drop).map_err(|error| error.to_string())
    })
    .await?;
    Ok(address)
}

/// What it took to bring a pool up.
#[derive(Clone, Debug)]
pub struct BroughtUp {
    /// From the end of `kubectl apply` to Ready.
    pub seconds: f64,
    /// Objects the operator made in the namespace (K).
    pub objects: usize,
    /// Writes of the operator from apply to Ready, events and leases apart.
    pub writes: usize,
    /// The writes by verb and resource.
    pub by_kind: BTreeMap<String, usize>,
}

/// Applies a pool of ≤ 15 lines in an empty namespace and measures its way to Ready.
pub async fn bring_up(namespace: Namespace) -> Result<BroughtUp> {
    provider(&namespace).await?;
    provider_ready(&namespace, "main").await?;
    let mark = Mark::now(&namespace.cluster).ok();
    namespace.apply(&fixtures::pool("support", 2)).await?;
    let start = Instant::now();
    ready(&namespace, "support", SOON).await?;
    let seconds = start.elapsed().as_secs_f64();
    // The audit log is written when a response has been sent; the last write is the one that was waited for.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let requests = mark
        .map(|m| m.since(operator::USER))
        .transpose()?
        .unwrap_or_default();
    let mut by_kind = BTreeMap::new();
    for request in requests
        .iter()
        .filter(|r| r.is_write() && r.namespace() == namespace.name)
    {
        // The provider is an object of its own: its status says that gateways came, whichever pool brought them.
        if !matches!(
            request.resource().as_str(),
            "events" | "leases" | "modelproviders/status"
        ) {
            *by_kind
                .entry(format!("{} {}", request.verb, request.resource()))
                .or_default() += 1;
        }
    }
    let objects = children(&namespace).await?;
    Ok(BroughtUp {
        seconds,
        objects,
        writes: by_kind.values().sum(),
        by_kind,
    })
}

/// Waits until a provider has its Ready condition.
pub async fn provider_ready(namespace: &Namespace, name: &str) -> Result<()> {
    let api = namespace.api::<ModelProvider>();
    wait::until("the provider to be Ready", SOON, || async {
        let object = api.get(name).await.map_err(|e| e.to_string())?;
        let conditions = object.status.map(|s| s.conditions).unwrap_or_default();
        if is_true(&conditions, condition::READY) {
            Ok(())
        } else {
            Err(format!("{conditions:?}"))
        }
    })
    .await
}

/// Number of objects with our label in the namespace: what the operator made.
async fn children(namespace: &Namespace) -> Result<usize> {
    let kinds = "replicasets,services,configmaps,controllerrevisions,serviceaccounts,poddisruptionbudgets,deployments,rolebindings";
    let text = namespace
        .kubectl(&[
            "get",
            kinds,
            "-l",
            "app.kubernetes.io/managed-by=flotilla",
            "-o",
            "json",
        ])
        .await?;
    let list: serde_json::Value = serde_json::from_str(&text)?;
    let items = list["items"].as_array().cloned().unwrap_or_default();
    // The gateway's ReplicaSet is made by the Deployment controller, with the pod template's labels.
    let made_by_us = |item: &&serde_json::Value| {
        let owner = item
            .pointer("/metadata/ownerReferences/0/kind")
            .and_then(serde_json::Value::as_str);
        owner != Some("Deployment")
    };
    Ok(items.iter().filter(made_by_us).count())
}

/// Addresses of the endpoints of a Service that are ready.
pub async fn endpoints(namespace: &Namespace, service: &str) -> Result<Vec<String>> {
    let slices = namespace
        .api::<EndpointSlice>()
        .list(&ListParams::default().labels(&format!("kubernetes.io/service-name={service}")))
        .await?;
    let ready = slices.items.into_iter().flat_map(|s| s.endpoints);
    Ok(ready
        .filter(|e| e.conditions.as_ref().and_then(|c| c.ready) != Some(false))
        .flat_map(|e| e.addresses)
        .collect())
}

/// Waits until a pool's front Service has two endpoints.
pub async fn two_gateways(namespace: &Namespace, pool: &str) -> Result<()> {
    wait::until("two gateway endpoints", SOON, || async {
        let addresses = endpoints(namespace, pool).await.map_err(|e| e.to_string())?;
        match addresses.len() {
            2.. => Ok(()),
            n => Err(format!("{n} endpoints")),
        }
    })
    .await
}
