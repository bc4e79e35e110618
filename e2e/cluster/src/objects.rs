//! The objects every cluster gets: the DNS's Service and rights, and the fake nodes.

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::binaries::Programs;
use crate::settings::Settings;
use crate::shell;

/// CoreDNS runs on the host, behind a Service without a selector.
fn dns(settings: &Settings) -> Vec<Value> {
    let port = settings.ports.dns_port;
    let ports = |name: &str, protocol: &str| json!({ "name": name, "protocol": protocol, "port": port });
    let metadata = json!({
        "name": "kube-dns",
        "namespace": "kube-system",
        "labels": {
            "k8s-app": "kube-dns",
            "kubernetes.io/name": "CoreDNS",
            "kubernetes.io/service-name": "kube-dns",
            "endpointslice.kubernetes.io/managed-by": "flotilla-cluster",
        },
    });
    vec![
        json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": metadata,
            "spec": {
                "clusterIP": settings.dns_service_ip(),
                "ports": [
                    { "name": "dns", "protocol": "UDP", "port": 53, "targetPort": port },
                    { "name": "dns-tcp", "protocol": "TCP", "port": 53, "targetPort": port },
                ],
            },
        }),
        json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": metadata,
            "addressType": "IPv4",
            "endpoints": [{
                "addresses": [settings.node_ip()],
                "conditions": { "ready": true },
                "nodeName": Settings::NODE,
            }],
            "ports": [ports("dns", "UDP"), ports("dns-tcp", "TCP")],
        }),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRole",
            "metadata": { "name": "system:coredns" },
            "rules": [
                { "apiGroups": [""], "resources": ["services", "pods", "namespaces"], "verbs": ["list", "watch"] },
                { "apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"] },
            ],
        }),
        binding("system:coredns", "system:coredns"),
        // kwok plays kubelet for nodes whose names it does not know beforehand.
        binding("system:kwok", "cluster-admin"),
    ]
}

fn binding(user: &str, role: &str) -> Value {
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": { "name": user },
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role },
        "subjects": [{ "apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user }],
    })
}

/// Name of fake node `number`.
fn fake_node_name(number: u32) -> String {
    format!("kwok-{number}")
}

/// A node that exists only as an object; tainted, so that nothing lands there unasked.
fn fake_node(number: u32) -> Value {
    let name = fake_node_name(number);
    let size = json!({ "cpu": "64", "memory": "512Gi", "pods": "2000", "ephemeral-storage": "1Ti" });
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "labels": {
                "type": "kwok",
                "kubernetes.io/hostname": name,
                "kubernetes.io/os": "linux",
                "kubernetes.io/arch": kubernetes_arch(),
            },
            "annotations": { "kwok.x-k8s.io/node": "fake" },
        },
        "spec": { "taints": [{ "key": "kwok.x-k8s.io/node", "value": "fake", "effect": "NoSchedule" }] },
        "status": { "capacity": size, "allocatable": size },
    })
}

/// This machine's architecture as Kubernetes and container images name it.
pub fn kubernetes_arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Makes or renews the DNS's objects.
///
/// # Errors
/// What the API server said.
pub fn apply_dns(settings: &Settings, programs: &Programs) -> Result<()> {
    apply(settings, programs, dns(settings)).context("failed to make the cluster's own objects")
}

/// Makes the fake nodes exactly `count`.
///
/// # Errors
/// What the API server said.
pub fn apply_fake_nodes(settings: &Settings, programs: &Programs, count: u32) -> Result<()> {
    let failed = "failed to make the fake nodes";
    let wanted: Vec<String> = (0..count).map(fake_node_name).collect();
    let present = fake_nodes(settings, programs)?;
    let new: Vec<Value> = (0..count)
        .filter(|number| !present.contains(&fake_node_name(*number)))
        .map(fake_node)
        .collect();
    if !new.is_empty() {
        apply(settings, programs, new).context(failed)?;
    }
    let surplus: Vec<&str> = present
        .iter()
        .filter(|name| !wanted.contains(name))
        .map(String::as_str)
        .collect();
    if !surplus.is_empty() {
        kubectl(
            settings,
            programs,
            &[&["delete", "node", "--wait=false"], &surplus[..]].concat(),
            None,
        )
        .context(failed)?;
    }
    Ok(())
}

/// Names of the fake nodes there are.
///
/// # Errors
/// What the API server said.
pub fn fake_nodes(settings: &Settings, programs: &Programs) -> Result<Vec<String>> {
    let text = kubectl(
        settings,
        programs,
        &["get", "nodes", "--selector=type=kwok", "--output=name"],
        None,
    )?;
    Ok(text
        .lines()
        .filter_map(|line| line.strip_prefix("node/"))
        .map(str::to_owned)
        .collect())
}

fn apply(settings: &Settings, programs: &Programs, items: Vec<Value>) -> Result<()> {
    let list = json!({ "apiVersion": "v1", "kind": "List", "items": items }).to_string();
    let arguments = [
        "apply",
        "--server-side",
        "--force-conflicts",
        "--validate=false",
        "--field-manager=flotilla-cluster",
        "-f",
        "-",
    ];
    kubectl(settings, programs, &arguments, Some(&list)).map(drop)
}

/// Runs our kubectl against this cluster, whatever the user's own context is.
///
/// # Errors
/// What kubectl said.
pub fn kubectl(
    settings: &Settings,
    programs: &Programs,
    arguments: &[&str],
    input: Option<&str>,
) -> Result<String> {
    let kubeconfig = format!("--kubeconfig={}", settings.kubeconfig().display());
    let cache = format!("--cache-dir={}", settings.root.join("kubectl").display());
    let all = [
        &[kubeconfig.as_str(), cache.as_str(), "--request-timeout=10s"],
        arguments,
    ]
    .concat();
    shell::run_with_input(programs.path("kubectl"), &all, input)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::example;

    #[test]
    fn the_dns_service_leads_to_coredns() {
        let objects = dns(&example());
        assert_eq!(objects[0]["spec"]["clusterIP"], "10.96.0.10");
        assert_eq!(objects[1]["endpoints"][0]["addresses"][0], "10.244.0.1");
        assert_eq!(objects[1]["ports"][0]["port"], 1053);
        assert!(objects[0]["spec"].get("selector").is_none());
    }

    #[test]
    fn fake_nodes_are_tainted_and_labelled() {
        let node = fake_node(3);
        assert_eq!(node["metadata"]["name"], "kwok-3");
        assert_eq!(node["metadata"]["labels"]["type"], "kwok");
        assert_eq!(node["spec"]["taints"][0]["key"], "kwok.x-k8s.io/node");
    }
}
