//! Many pools on fake nodes, beside as many native Deployments created the same way.

use crate::audit::Mark;
use crate::fixtures::with;
use crate::{Namespace, fixtures, operator, wait};
use anyhow::{Context, Result};
use flotilla_crds::AgentPool;
use flotilla_crds::common::{condition, is_true};
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::apps::v1::Deployment;
use kube::Api;
use kube::api::{ListParams, PostParams};
use serde_json::{Value, json};
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
    wait::until(&format!("{count} pools to be Ready"), LIMIT, || async {
        let list = api
            .list(&ListParams::default())
            .await
            .map_err(|e| e.to_string())?;
        let ready = |p: &&AgentPool| {
            p.status
                .as_ref()
                .is_some_and(|s| is_true(&s.conditions, condition::READY))
        };
        let ready = list.items.iter().filter(ready).count();
        tokio::time::sleep(Duration::from_secs(1)).await;
        if ready == count {
            Ok(())
        } else {
            Err(format!("{ready} of {count}"))
        }
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

/// Creates `count` Deployments of one replica at once and waits until all are Available.
pub async fn deployments(namespace: Namespace, count: usize) -> Result<Cost> {
    let api = namespace.api::<Deployment>();
    let mark = Mark::now(&namespace.cluster)?;
    let start = Instant::now();
    create_all(count, |i| create(api.clone(), deployment(&format!("p{i:04}")))).await?;
    wait::until(&format!("{count} Deployments to be Available"), LIMIT, || async {
        let list = api
            .list(&ListParams::default())
            .await
            .map_err(|e| e.to_string())?;
        let ready = |d: &&Deployment| d.status.as_ref().and_then(|s| s.available_replicas) == Some(1);
        let ready = list.items.iter().filter(ready).count();
        tokio::time::sleep(Duration::from_secs(1)).await;
        if ready == count {
            Ok(())
        } else {
            Err(format!("{ready} of {count}"))
        }
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
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
        "spec": {
            "replicas": 1, "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}}, "spec": spec}
        }
    })
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
