//! The configuration files of the components. Pure functions of the settings and of what was found on the machine.

use std::path::{Path, PathBuf};

use anyhow::Result;
use serde_json::{Value, json};

use crate::settings::Settings;
use crate::shell;

/// The image every pod's sandbox runs; imported, never pulled.
pub const PAUSE_IMAGE: &str = "flotilla.dev/pause:local";
/// The CNI network's name; it is in the comment of every packet filter rule the plugins make, and in their files.
pub const CNI_NETWORK: &str = "flotilla-local";

/// What the files depend on besides the settings.
#[derive(Clone, Debug)]
pub struct Machine {
    /// Folder of the CNI plugins.
    pub cni_bin: PathBuf,
    /// Name servers of the machine, for names outside the cluster.
    pub name_servers: Vec<String>,
}

/// The name servers in the text of a `resolv.conf`.
pub fn name_servers(resolv_conf: &str) -> Vec<String> {
    let mut servers: Vec<String> = Vec::new();
    for line in resolv_conf.lines() {
        let mut words = line.split_whitespace();
        if words.next() == Some("nameserver")
            && let Some(server) = words.next()
            && server.parse::<std::net::IpAddr>().is_ok()
        {
            servers.push(server.to_owned());
        }
    }
    servers
}

/// Every file as its path and its content.
pub fn render(settings: &Settings, machine: &Machine) -> Vec<(PathBuf, String)> {
    let file = |name: &str, content: Value| (settings.config(name), format!("{content:#}\n"));
    vec![
        file("audit-policy.json", audit_policy()),
        file("kube-scheduler.json", scheduler(settings)),
        file("kubelet.json", kubelet(settings)),
        file("kube-proxy.json", kube_proxy(settings)),
        (
            cni_folder(settings).join("10-flotilla.conflist"),
            format!("{:#}\n", cni(settings)),
        ),
        (
            settings.config("containerd.toml"),
            containerd(settings, &machine.cni_bin),
        ),
        (
            settings.config("Corefile"),
            corefile(settings, &machine.name_servers),
        ),
        (settings.config("resolv.conf"), resolv_conf(&machine.name_servers)),
        (
            settings.config("kwok.yaml"),
            include_str!("files/kwok.yaml").to_owned(),
        ),
    ]
}

/// Writes every file.
///
/// # Errors
/// When the root folder cannot be written.
pub fn write(settings: &Settings, machine: &Machine) -> Result<()> {
    for (path, content) in render(settings, machine) {
        shell::write_atomically(&path, content.as_bytes(), 0o600)?;
    }
    Ok(())
}

/// Our own folder of CNI configurations; containerd uses the first file in it.
pub fn cni_folder(settings: &Settings) -> PathBuf {
    settings.root.join("cni/net.d")
}

/// Where container logs are written.
pub fn pod_logs(settings: &Settings) -> PathBuf {
    settings.root.join("pod-logs")
}

/// Who did what to which object, without bodies: tests count requests per user.
fn audit_policy() -> Value {
    json!({
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "omitStages": ["RequestReceived"],
        "rules": [{ "level": "Metadata" }],
    })
}

fn scheduler(settings: &Settings) -> Value {
    json!({
        "apiVersion": "kubescheduler.config.k8s.io/v1",
        "kind": "KubeSchedulerConfiguration",
        "leaderElection": { "leaderElect": false },
        "clientConnection": {
            "kubeconfig": settings.component_kubeconfig("scheduler"),
            "qps": 200,
            "burst": 400,
        },
    })
}

fn kubelet(settings: &Settings) -> Value {
    let socket = format!("unix://{}", settings.containerd_socket().display());
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": settings.node_ip(),
        "port": settings.ports.kubelet_port,
        "readOnlyPort": 0,
        "healthzBindAddress": settings.node_ip(),
        "healthzPort": settings.ports.kubelet_health_port,
        "tlsCertFile": settings.pki("kubelet-server.crt"),
        "tlsPrivateKeyFile": settings.pki("kubelet-server.key"),
        "authentication": {
            "anonymous": { "enabled": false },
            "webhook": { "enabled": true },
            "x509": { "clientCAFile": settings.pki("ca.crt") },
        },
        "authorization": { "mode": "Webhook" },
        "containerRuntimeEndpoint": socket,
        "clusterDNS": [settings.dns_service_ip()],
        "clusterDomain": Settings::DOMAIN,
        // Without the machine's search domains, so that names resolve the same on every machine.
        "resolvConf": settings.config("resolv.conf"),
        // Machines with cgroup v1, or without the right to lower oom_score_adj, are good enough here.
        "failCgroupV1": false,
        "featureGates": { "KubeletInUserNamespace": true },
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": format!("/{}", settings.cgroup),
        "failSwapOn": false,
        // kube-proxy owns the packet filter; the kubelet's legacy iptables chains have no user.
        "makeIPTablesUtilChains": false,
        "maxPods": 200,
        // A scenario kills one container fifty times; minutes of back-off would be all it measured.
        "crashLoopBackOff": { "maxContainerRestartPeriod": "4s" },
        "podLogsDir": pod_logs(settings),
        "volumePluginDir": settings.root.join("volume-plugins"),
        "containerLogMaxSize": "20Mi",
        "containerLogMaxFiles": 3,
        // Images are imported, not pulled: one collected is one lost. A full disk is the developer's to notice.
        "imageGCHighThresholdPercent": 100,
        "evictionHard": {
            "memory.available": "0%",
            "nodefs.available": "0%",
            "nodefs.inodesFree": "0%",
            "imagefs.available": "0%",
            "imagefs.inodesFree": "0%",
        },
        "serializeImagePulls": false,
        // Few processors: look at volumes rarely, report quickly.
        "syncFrequency": "10s",
        "volumeStatsAggPeriod": "-1s",
        "nodeStatusUpdateFrequency": "5s",
        "nodeStatusReportFrequency": "1m",
        "kubeAPIQPS": 200,
        "kubeAPIBurst": 400,
        "eventRecordQPS": 0,
    })
}

fn kube_proxy(settings: &Settings) -> Value {
    let ip = settings.node_ip();
    json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "clientConnection": { "kubeconfig": settings.component_kubeconfig("kube-proxy") },
        "hostnameOverride": Settings::NODE,
        "bindAddress": ip,
        "healthzBindAddress": format!("{ip}:{}", settings.ports.proxy_health_port),
        "metricsBindAddress": format!("{ip}:{}", settings.ports.proxy_metrics_port),
        "clusterCIDR": settings.pod_cidr,
        "detectLocalMode": "ClusterCIDR",
        "nftables": { "minSyncPeriod": "100ms", "syncPeriod": "30s" },
        // Zero leaves the machine's conntrack limits and time-outs as they are.
        "conntrack": {
            "maxPerCore": 0,
            "min": 0,
            "tcpEstablishedTimeout": "0s",
            "tcpCloseWaitTimeout": "0s",
        },
        "oomScoreAdj": 0,
        "iptables": {},
        "ipvs": {},
    })
}

/// The bridge exists before the first pod ([`crate::network`]), and masquerading is one rule of ours instead of a
/// chain per pod: nothing to clean up per pod but its address file.
fn cni(settings: &Settings) -> Value {
    json!({
        "cniVersion": "0.4.0",
        "name": CNI_NETWORK,
        "plugins": [
            {
                "type": "bridge",
                "bridge": settings.bridge,
                "isGateway": true,
                "ipMasq": false,
                "hairpinMode": true,
                "ipam": {
                    "type": "host-local",
                    "ranges": [[{ "subnet": settings.pod_cidr, "gateway": settings.node_ip() }]],
                    "routes": [{ "dst": "0.0.0.0/0" }],
                    "dataDir": settings.root.join("cni/addresses"),
                },
            },
            { "type": "portmap", "capabilities": { "portMappings": true } },
        ],
    })
}

/// `restrict_oom_score_adj` lets pods start without `CAP_SYS_RESOURCE`; the rest keeps containerd inside our folders.
fn containerd(settings: &Settings, cni_bin: &Path) -> String {
    let run = settings.run.display();
    let root = settings.root.display();
    format!(
        r#"version = 2
root = "{root}/containerd"
state = "{run}/containerd"
temp = "{root}/tmp"
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs",
  "io.containerd.tracing.processor.v1.otlp",
  "io.containerd.internal.v1.tracing",
]

[grpc]
  address = "{socket}"

[plugins."io.containerd.internal.v1.opt"]
  path = "{root}/opt"

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true

  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{cni_bin}"
    conf_dir = "{cni_conf}"

  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"

    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"

      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        Root = "{run}/runc"
        SystemdCgroup = false
"#,
        socket = settings.containerd_socket().display(),
        cni_bin = cni_bin.display(),
        cni_conf = cni_folder(settings).display(),
    )
}

/// Short times to live: tests make Services and ask for them at once.
fn corefile(settings: &Settings, name_servers: &[String]) -> String {
    let forward = if name_servers.is_empty() {
        String::new()
    } else {
        format!("    forward . {}\n", name_servers.join(" "))
    };
    format!(
        r"{domain}:{port} in-addr.arpa:{port} ip6.arpa:{port} .:{port} {{
    bind {ip}
    errors
    kubernetes {domain} in-addr.arpa ip6.arpa {{
        kubeconfig {kubeconfig}
        pods insecure
        ttl 5
        fallthrough in-addr.arpa ip6.arpa
    }}
{forward}    cache 5 {{
        denial 1000 1
    }}
    loadbalance
}}
",
        domain = Settings::DOMAIN,
        port = settings.ports.dns_port,
        ip = settings.node_ip(),
        kubeconfig = settings.component_kubeconfig("coredns").display(),
    )
}

fn resolv_conf(name_servers: &[String]) -> String {
    name_servers
        .iter()
        .map(|server| format!("nameserver {server}\n"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::example;

    fn machine() -> Machine {
        Machine {
            cni_bin: "/usr/lib/cni".into(),
            name_servers: vec!["192.0.2.53".into()],
        }
    }

    #[test]
    fn name_servers_are_read() {
        let text = "# comment\nsearch example.test\nnameserver 192.0.2.53\nnameserver fd00::53\nnameserver\nnameserver x\n";
        assert_eq!(name_servers(text), ["192.0.2.53", "fd00::53"]);
    }

    #[test]
    fn every_file_follows_the_settings() {
        let mut settings = example();
        settings.root = "/srv/other/data".into();
        settings.run = "/run/other".into();
        settings.bridge = "other0".into();
        settings.cgroup = "other".into();
        settings.pod_cidr = "10.60.0.0/24".parse().unwrap();
        settings.service_cidr = "10.61.0.0/16".parse().unwrap();
        settings.ports.dns_port = 9053;
        for (path, content) in render(&settings, &machine()) {
            assert!(path.starts_with("/srv/other/data"), "{}", path.display());
            for default in [
                "flotilla-local/",
                "/flotilla-local\"",
                "flot0",
                "10.244.",
                "10.96.",
                "1053",
            ] {
                assert!(
                    !content.contains(default),
                    "{default} in {}:\n{content}",
                    path.display()
                );
            }
        }
    }

    #[test]
    fn nothing_outside_our_folders_is_named() {
        for (path, content) in render(&example(), &machine()) {
            for folder in [
                "/var/lib/kubelet",
                "/var/lib/containerd",
                "/run/containerd",
                "/etc/",
                "/opt/",
                "/var/log/",
            ] {
                assert!(!content.contains(folder), "{folder} in {}", path.display());
            }
        }
    }

    #[test]
    fn a_machine_without_name_servers_forwards_nothing() {
        let machine = Machine {
            name_servers: Vec::new(),
            ..machine()
        };
        let files = render(&example(), &machine);
        let corefile = &files
            .iter()
            .find(|(path, _)| path.ends_with("Corefile"))
            .unwrap()
            .1;
        assert!(!corefile.contains("forward"));
        assert!(corefile.contains("bind 10.244.0.1"));
    }
}
