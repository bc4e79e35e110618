//! The operator as a process on this machine: found through its pod, killed without warning.

use crate::Cluster;
use anyhow::{Context, Result, ensure};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::ListParams;
use std::path::Path;

/// Namespace of the chart.
pub const NAMESPACE: &str = "flotilla-system";
/// Audit name of the operator.
pub const USER: &str = "system:serviceaccount:flotilla-system:flotilla-operator";
const SELECTOR: &str = "app.kubernetes.io/name=flotilla-operator";

/// The operator's pods that run now.
pub async fn pods(cluster: &Cluster) -> Result<Vec<Pod>> {
    let api: Api<Pod> = Api::namespaced(cluster.client.clone(), NAMESPACE);
    let mut pods = api.list(&ListParams::default().labels(SELECTOR)).await?.items;
    pods.retain(|p| p.metadata.deletion_timestamp.is_none());
    Ok(pods)
}

/// Name of the pod that leads, if one holds the lease.
pub async fn leader(cluster: &Cluster) -> Result<Option<String>> {
    let api: Api<Lease> = Api::namespaced(cluster.client.clone(), NAMESPACE);
    let lease = api.get_opt("flotilla-operator").await?;
    Ok(lease
        .and_then(|l| l.spec)
        .and_then(|s| s.holder_identity)
        .filter(|holder| !holder.is_empty()))
}

/// Kills the operator's process in `pod` with SIGKILL; kubelet starts the container again.
///
/// # Errors
/// When the pod has no process on this machine.
pub async fn kill(pod: &Pod) -> Result<()> {
    let uid = pod.metadata.uid.clone().context("a pod without uid")?;
    let pid = process_of(&uid, "flotilla-operator").context("the operator has no process on this machine")?;
    let status = tokio::process::Command::new("kill")
        .args(["-9", &pid.to_string()])
        .status()
        .await?;
    ensure!(status.success(), "kill -9 {pid}: {status}");
    Ok(())
}

/// Kills the process called `program` of a pod on this machine with SIGKILL.
pub async fn kill_process(pod: &Pod, program: &str) -> Result<()> {
    let uid = pod.metadata.uid.clone().context("a pod without uid")?;
    let pid = process_of(&uid, program).with_context(|| format!("no process {program} in that pod"))?;
    let status = tokio::process::Command::new("kill")
        .args(["-9", &pid.to_string()])
        .status()
        .await?;
    ensure!(status.success(), "kill -9 {pid}: {status}");
    Ok(())
}

/// Resident memory of a pod's process called `program`, in bytes.
pub fn resident_bytes(pod: &Pod, program: &str) -> Result<u64> {
    let uid = pod.metadata.uid.clone().context("a pod without uid")?;
    let pid = process_of(&uid, program).with_context(|| format!("no process {program} in that pod"))?;
    let text = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let kilobytes = text
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|rest| rest.split_whitespace().next())
        .and_then(|number| number.parse::<u64>().ok())
        .context("no VmRSS")?;
    Ok(kilobytes * 1024)
}

/// Id of the process whose program is `program` in the control group of the pod with `uid`.
fn process_of(uid: &str, program: &str) -> Option<u32> {
    std::fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let folder = entry.path();
        let groups = std::fs::read_to_string(folder.join("cgroup")).ok()?;
        let ours = groups.contains(uid) || groups.contains(&uid.replace('-', "_"));
        let command = std::fs::read(folder.join("cmdline")).ok()?;
        let first = command.split(|b| *b == 0).next()?;
        let name = Path::new(std::str::from_utf8(first).ok()?)
            .file_name()?
            .to_str()?
            .to_owned();
        (ours && name == program).then_some(pid)
    })
}
