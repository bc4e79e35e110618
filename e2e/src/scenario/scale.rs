//! Many pools on fake nodes, beside as many native Deployments created the same way.

use crate::audit::Mark;
use crate::fixtures::with;
use crate::{Namespace, fixtures, operator};
use anyhow::{Context, Result, bail};
use flotilla_crds::AgentPool;
use flotilla_crds::common::{condition, is_true};
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::PostParams;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use std::collections::HashSet;
use std::pin::pin;
use std::time::{Duration, Instant};

const CREATORS: usize = 16;
const LIMIT: Duration = Duration::from_secs(900);

/// What a fleet cost.
#[derive(Clone, Debug)]
pub struct Cost {
    /// From the first create to the last object being Ready (or Available).
    pub seconds: f64,
    /// Writes of whoever controls the kind, per object.
    pub writes_per_object: f64,
    /// Resident memory of the controlling process afterwards, in MiB; for Deployments the controller manager's.
    pub memory_mib: f64,
    /// Resident memory of the operator that does not lead, in MiB.
    pub standby_mib: Option<f64>,
}

/// Tolerations and selector of pods that belong on fake nodes.
fn on_fake_nodes() -> Value {
    json!({
        "nodeSelector": {"type": "kwok"},
        "tolerations": [{"key": "kwok.x-k8s.io/node", "operator": "Exists", "effect": "NoSchedule"}]
    })
}

/// Creates `count` pools of one replica at once and waits until all are Ready.
pub async fn pools(namespace: Namespace, count: usize) -> Result<Cost> {
    super::pool::provider(&namespace).await?;
    let api = namespace.api::<AgentPool>();
    let mark = Mark::now(&namespace.cluster)?;
    let start = Instant::now();
    create_all(count, |i| {
        let mut object = with(
            fixtures::pool(&format!("p{i:04}"), 1),
            "/spec/agent/podTemplate",
            json!({"spec": on_fake_nodes()}),
        );
        object["spec"]["agent"]["probes"] = json!({});
        create(api.clone(), object)
    })
    .await?;
    all_become(&api, count, |pool: &AgentPool| {
        let status = pool.status.as_ref();
        status.is_some_and(|status| is_true(&status.conditions, condition::READY))
    })
    .await?;
    let seconds = start.elapsed().as_secs_f64();
    let requests = mark.since(operator::USER)?;
    let counts = |r: &&crate::audit::Request| {
        r.is_write() && r.namespace() == namespace.name && r.resource() != "events"
    };
    let writes = requests.iter().filter(counts).count();
    let leader = operator::leader(&namespace.cluster)
        .await?
        .context("nobody leads")?;
    let (mut memory_mib, mut standby_mib) = (0.0, None);
    for pod in operator::pods(&namespace.cluster).await? {
        let mib = operator::resident_bytes(&pod, "flotilla-operator")? as f64 / 1024.0 / 1024.0;
        if pod.metadata.name.as_deref() == Some(&leader) {
            memory_mib = mib;
        } else {
            standby_mib = Some(mib);
        }
    }
    Ok(Cost {
        seconds,
        writes_per_object: writes as f64 / count as f64,
        memory_mib,
        standby_mib,
    })
}

/// Creates `count` Deployments of one replica at once, each with the two Services and the budget that a pool has, and
/// waits until all are Available.
pub async fn deployments(namespace: Namespace, count: usize) -> Result<Cost> {
    let api = namespace.api::<Deployment>();
    let mark = Mark::now(&namespace.cluster)?;
    let start = Instant::now();
    let (services, budgets) = (namespace.api::<Service>(), namespace.api::<PodDisruptionBudget>());
    create_all(count, |i| {
        let name = format!("p{i:04}");
        let (api, services, budgets) = (api.clone(), services.clone(), budgets.clone());
        async move {
            create(api, deployment(&name)).await?;
            for service in [name.clone(), format!("{name}-0")] {
                let spec = json!({"selector": {"app": name}, "ports": [{"port": 80}]});
                create(services.clone(), object("v1", "Service", &service, spec)).await?;
            }
            let spec = json!({"selector": {"matchLabels": {"app": name}}, "maxUnavailable": 1});
            create(budgets, object("policy/v1", "PodDisruptionBudget", &name, spec)).await
        }
    })
    .await?;
    all_become(&api, count, |deployment: &Deployment| {
        deployment.status.as_ref().and_then(|s| s.available_replicas) == Some(1)
    })
    .await?;
    let seconds = start.elapsed().as_secs_f64();
    let mut writes = 0;
    for user in [":deployment-controller", ":replicaset-controller"] {
        let ours = |r: &&crate::audit::Request| {
            r.is_write()
                && r.namespace() == namespace.name
                && r.resource() != "events"
                && r.resource() != "pods"
        };
        writes += mark.since(user)?.iter().filter(ours).count();
    }
    let memory_mib =
        process_mib("kube-controller-manager").context("no controller manager on this machine")?;
    Ok(Cost {
        seconds,
        writes_per_object: writes as f64 / count as f64,
        memory_mib,
        standby_mib: None,
    })
}

fn deployment(name: &str) -> Value {
    let mut spec = on_fake_nodes();
    spec["securityContext"] =
        json!({"runAsNonRoot": true, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}});
    spec["containers"] = json!([{
        "name": "agent", "image": fixtures::AGENT,
        "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}}
    }]);
    let spec = json!({
        "replicas": 1, "selector": {"matchLabels": {"app": name}},
        "template": {"metadata": {"labels": {"app": name}}, "spec": spec}
    });
    object("apps/v1", "Deployment", name, spec)
}

fn object(api_version: &str, kind: &str, name: &str, spec: Value) -> Value {
    json!({"apiVersion": api_version, "kind": kind, "metadata": {"name": name}, "spec": spec})
}

/// Waits until `count` objects are `done`, by a watch: lists of a thousand objects would be most of what is measured.
async fn all_become<K>(api: &Api<K>, count: usize, done: impl Fn(&K) -> bool) -> Result<()>
where
    K: kube::Resource + Clone + std::fmt::Debug + serde::de::DeserializeOwned + Send + 'static,
{
    let mut objects = pin!(watcher(api.clone(), watcher::Config::default()).applied_objects());
    let mut names = HashSet::new();
    let all_done = async {
        while names.len() < count {
            match objects.next().await {
                Some(Ok(object)) if done(&object) => names.insert(object.name_any()),
                Some(Ok(object)) => names.remove(&object.name_any()),
                Some(Err(error)) => return Err(error.into()),
                None => bail!("the watch ended"),
            };
        }
        Ok(())
    };
    match tokio::time::timeout(LIMIT, all_done).await {
        Ok(ended) => ended,
        Err(_) => bail!(
            "{} of {count} were done within {} s",
            names.len(),
            LIMIT.as_secs()
        ),
    }
}

async fn create_all<F>(count: usize, make: impl Fn(usize) -> F) -> Result<()>
where
    F: Future<Output = Result<()>>,
{
    stream::iter((0..count).map(make))
        .buffer_unordered(CREATORS)
        .try_collect::<Vec<()>>()
        .await
        .map(drop)
}

async fn create<K>(api: Api<K>, object: Value) -> Result<()>
where
    K: kube::Resource + Clone + std::fmt::Debug + serde::de::DeserializeOwned + serde::Serialize,
{
    let object: K = serde_json::from_value(object)?;
    api.create(&PostParams::default(), &object).await?;
    Ok(())
}

fn process_mib(program: &str) -> Option<f64> {
    std::fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let text = std::fs::read_to_string(entry.path().join("status")).ok()?;
        let command = std::fs::read(entry.path().join("cmdline")).ok()?;
        let first = String::from_utf8_lossy(command.split(|b| *b == 0).next()?).into_owned();
        first.ends_with(program).then_some(())?;
        let kilobytes: f64 = text
            .lines()
            .find_map(|l| l.strip_prefix("VmRSS:"))?
            .split_whitespace()
            .next()?
            .parse()
            .ok()?;
        Some(kilobytes / 1024.0)
    })
}
