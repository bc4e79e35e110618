//! What can be chosen about the cluster, and the paths and addresses that follow from it.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde::{Deserialize, Serialize};

use crate::cidr::Cidr;

/// Longest path of a unix socket (`sun_path` without its terminating zero).
const SOCKET_PATH_MAX: usize = 107;
/// Longest name of a network interface (`IFNAMSIZ` without its terminating zero).
const INTERFACE_NAME_MAX: usize = 15;
/// Longest socket name below the run folder: `containerd.sock.ttrpc`.
const LONGEST_RUN_SOCKET: &str = "containerd.sock.ttrpc";
/// Longest socket name below the root folder.
const LONGEST_ROOT_SOCKET: &str = "kubelet/pod-resources/kubelet.sock";

/// Every choice, as flags and environment variables. Written to `cluster.json` by `up`, and read from there by the
/// other commands, so that flags need not be repeated.
#[derive(Args, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Settings {
    /// Folder for what people use: kubeconfig, bin/, logs/, audit.log, pids/.
    #[arg(
        long,
        global = true,
        env = "FLOTILLA_STATE",
        default_value = ".local",
        help_heading = "Places"
    )]
    pub state: PathBuf,
    /// Folder for data: etcd, containerd's images, the kubelet's pods, certificates, configuration.
    #[arg(
        long,
        global = true,
        env = "FLOTILLA_CLUSTER_ROOT",
        default_value = "/var/lib/flotilla-local",
        help_heading = "Places"
    )]
    pub root: PathBuf,
    /// Folder for sockets and containerd's run-time state; short, because socket paths have at most 107 bytes.
    #[arg(
        long,
        global = true,
        env = "FLOTILLA_CLUSTER_RUN",
        default_value = "/run/flotilla-local",
        help_heading = "Places"
    )]
    pub run: PathBuf,
    /// Folder with the CNI plugins; found in /usr/lib/cni, /opt/cni/bin or /usr/libexec/cni when not given.
    #[arg(
        long,
        global = true,
        env = "FLOTILLA_CLUSTER_CNI_BIN",
        help_heading = "Places"
    )]
    pub cni_bin: Option<PathBuf>,
    /// Name of the node's bridge.
    #[arg(
        long,
        global = true,
        env = "FLOTILLA_CLUSTER_BRIDGE",
        default_value = "flot0",
        help_heading = "Network"
    )]
    pub bridge: String,
    /// Name of the control group that holds all pods.
    #[arg(
        long,
        global = true,
        env = "FLOTILLA_CLUSTER_CGROUP",
        default_value = "flotilla-local",
        help_heading = "Places"
    )]
    pub cgroup: String,
    /// Address range of the pods; its first address is the node's.
    #[arg(
        long,
        global = true,
        env = "FLOTILLA_CLUSTER_POD_CIDR",
        default_value = "10.244.0.0/24",
        help_heading = "Network"
    )]
    pub pod_cidr: Cidr,
    /// Address range of the Services; the API server is its first address, the DNS its tenth.
    #[arg(
        long,
        global = true,
        env = "FLOTILLA_CLUSTER_SERVICE_CIDR",
        default_value = "10.96.0.0/16",
        help_heading = "Network"
    )]
    pub service_cidr: Cidr,
    /// Address range of pods on fake nodes. Nothing answers there.
    #[arg(
        long,
        global = true,
        env = "FLOTILLA_CLUSTER_KWOK_CIDR",
        default_value = "198.18.0.0/15",
        help_heading = "Network"
    )]
    pub kwok_cidr: Cidr,
    /// Ports.
    #[command(flatten)]
    pub ports: Ports,
}

/// TCP and UDP ports, all on the node's address.
#[derive(Args, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ports {
    /// Port of the API server.
    #[arg(
        long,
        global = true,
        env = "FLOTILLA_CLUSTER_API_PORT",
        default_value_t = 6443,
        help_heading = "Network"
    )]
    pub api_port: u16,
    /// Port of the kubelet (logs, exec, port-forward).
    #[arg(
        long,
        global = true,
        env = "FLOTILLA_CLUSTER_KUBELET_PORT",
        default_value_t = 10250,
        help_heading = "Network"
    )]
    pub kubelet_port: u16,
    /// Port of the kubelet's health check.
    #[arg(
        long,
        global = true,
        env = "FLOTILLA_CLUSTER_KUBELET_HEALTH_PORT",
        default_value_t = 10248,
        help_heading = "Network"
    )]
    pub kubelet_health_port: u16,
    /// Port of the controller manager (metrics, health).
    #[arg(
        long,
        global = true,
        env = "FLOTILLA_CLUSTER_CONTROLLER_PORT",
        default_value_t = 10257,
        help_heading = "Network"
    )]
    pub controller_port: u16,
    /// Port of the scheduler (metrics, health).
    #[arg(
        long,
        global = true,
        env = "FLOTILLA_CLUSTER_SCHEDULER_PORT",
        default_value_t = 10259,
        help_heading = "Network"
    )]
    pub scheduler_port: u16,
    /// Port of kube-proxy's health check.
    #[arg(
        long,
        global = true,
        env = "FLOTILLA_CLUSTER_PROXY_HEALTH_PORT",
        default_value_t = 10256,
        help_heading = "Network"
    )]
    pub proxy_health_port: u16,
    /// Port of kube-proxy's metrics.
    #[arg(
        long,
        global = true,
        env = "FLOTILLA_CLUSTER_PROXY_METRICS_PORT",
        default_value_t = 10249,
        help_heading = "Network"
    )]
    pub proxy_metrics_port: u16,
    /// Port of CoreDNS behind the DNS Service (TCP and UDP).
    #[arg(
        long,
        global = true,
        env = "FLOTILLA_CLUSTER_DNS_PORT",
        default_value_t = 1053,
        help_heading = "Network"
    )]
    pub dns_port: u16,
    /// Port of the fake nodes' controller (metrics, health).
    #[arg(
        long,
        global = true,
        env = "FLOTILLA_CLUSTER_KWOK_PORT",
        default_value_t = 10247,
        help_heading = "Network"
    )]
    pub kwok_port: u16,
}

impl Ports {
    /// Every port with the flag that changes it.
    pub fn named(&self) -> [(&'static str, u16); 9] {
        [
            ("--api-port", self.api_port),
            ("--kubelet-port", self.kubelet_port),
            ("--kubelet-health-port", self.kubelet_health_port),
            ("--controller-port", self.controller_port),
            ("--scheduler-port", self.scheduler_port),
            ("--proxy-health-port", self.proxy_health_port),
            ("--proxy-metrics-port", self.proxy_metrics_port),
            ("--dns-port", self.dns_port),
            ("--kwok-port", self.kwok_port),
        ]
    }
}

impl Settings {
    /// Makes the state folder absolute and checks what can be checked without looking at the machine.
    ///
    /// # Errors
    /// A sentence that names the flag to change.
    pub fn resolve(mut self) -> Result<Self> {
        self.state = std::path::absolute(&self.state).context("failed to resolve --state")?;
        self.validate()?;
        Ok(self)
    }

    fn validate(&self) -> Result<()> {
        for (flag, path) in [("--root", &self.root), ("--run", &self.run)] {
            let normal = path
                .components()
                .skip(1)
                .all(|part| matches!(part, std::path::Component::Normal(_)));
            ensure!(
                path.is_absolute() && normal && path.components().count() >= 3,
                "{flag} {} must be an absolute path at least two folders deep, without `..`: everything in it is removed by `down`",
                path.display()
            );
            ensure!(
                path.to_str()
                    .is_some_and(|text| !text.contains([' ', '"', '\\', '\n'])),
                "{flag} {} must not contain spaces, quotes or backslashes",
                path.display()
            );
        }
        ensure!(
            !self.root.starts_with(&self.run) && !self.run.starts_with(&self.root),
            "--root {} and --run {} must not contain each other",
            self.root.display(),
            self.run.display()
        );
        for (flag, folder, socket) in [
            ("--run", &self.run, LONGEST_RUN_SOCKET),
            ("--root", &self.root, LONGEST_ROOT_SOCKET),
        ] {
            let length = folder.join(socket).as_os_str().len();
            ensure!(
                length <= SOCKET_PATH_MAX,
                "{flag} {} is too long: the socket {socket} in it has {length} bytes, and a socket's path at most {SOCKET_PATH_MAX}",
                folder.display()
            );
        }
        let plain = |text: &str| {
            !text.is_empty()
                && text
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
        };
        ensure!(
            plain(&self.bridge) && self.bridge.len() <= INTERFACE_NAME_MAX,
            "--bridge {:?} must be 1 to {INTERFACE_NAME_MAX} letters, digits, `-` or `_`",
            self.bridge
        );
        ensure!(
            plain(&self.cgroup),
            "--cgroup {:?} must be letters, digits, `-` or `_`",
            self.cgroup
        );
        ensure!(
            (16..=27).contains(&self.pod_cidr.prefix()),
            "--pod-cidr {} must be a /16 to /27: a node runs up to 200 pods",
            self.pod_cidr
        );
        ensure!(
            (12..=27).contains(&self.service_cidr.prefix()),
            "--service-cidr {} must be a /12 to /27",
            self.service_cidr
        );
        let ranges = [
            ("--pod-cidr", self.pod_cidr),
            ("--service-cidr", self.service_cidr),
            ("--kwok-cidr", self.kwok_cidr),
        ];
        for (at, (flag, range)) in ranges.iter().enumerate() {
            for (other_flag, other) in ranges.iter().skip(at + 1) {
                ensure!(
                    !range.overlaps(*other),
                    "{flag} {range} and {other_flag} {other} overlap"
                );
            }
        }
        let ports = self.ports.named();
        for (at, (flag, port)) in ports.iter().enumerate() {
            ensure!(*port != 0, "{flag} must not be 0");
            if let Some((other, _)) = ports.iter().skip(at + 1).find(|(_, other)| other == port) {
                bail!("{flag} and {other} are both {port}");
            }
        }
        Ok(())
    }

    /// The node's name.
    pub const NODE: &'static str = "local";
    /// Domain of Service names.
    pub const DOMAIN: &'static str = "cluster.local";

    /// The node's address, on the bridge: where every component listens.
    pub fn node_ip(&self) -> Ipv4Addr {
        self.pod_cidr.nth(1)
    }

    /// Service address of the API server.
    pub fn api_service_ip(&self) -> Ipv4Addr {
        self.service_cidr.nth(1)
    }

    /// Service address of the DNS.
    pub fn dns_service_ip(&self) -> Ipv4Addr {
        self.service_cidr.nth(10)
    }

    /// Where the API server answers.
    pub fn api_url(&self) -> String {
        format!("https://{}:{}", self.node_ip(), self.ports.api_port)
    }

    /// The user's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.state.join("kubeconfig")
    }

    /// Log files of the components.
    pub fn logs(&self) -> PathBuf {
        self.state.join("logs")
    }

    /// Pid files of the components.
    pub fn pids(&self) -> PathBuf {
        self.state.join("pids")
    }

    /// The API server's audit log, one JSON event a line.
    pub fn audit_log(&self) -> PathBuf {
        self.state.join("audit.log")
    }

    /// Configuration files of the components.
    pub fn config(&self, file: &str) -> PathBuf {
        self.root.join("config").join(file)
    }

    /// A certificate or key.
    pub fn pki(&self, file: &str) -> PathBuf {
        self.root.join("pki").join(file)
    }

    /// A component's own kubeconfig.
    pub fn component_kubeconfig(&self, user: &str) -> PathBuf {
        self.root.join("pki").join(format!("{user}.kubeconfig"))
    }

    /// containerd's socket.
    pub fn containerd_socket(&self) -> PathBuf {
        self.run.join("containerd.sock")
    }

    /// etcd's socket: no port to clash on, and no pod can reach it.
    pub fn etcd_socket(&self) -> PathBuf {
        self.run.join("etcd.sock")
    }

    /// Whether `text`, an argument of some process or a mount point, lies in our root or run folder.
    pub fn owns_path_in(&self, text: &str) -> bool {
        [&self.root, &self.run]
            .into_iter()
            .any(|folder| contains_path(text, folder))
    }
}

/// Whether `text` contains `folder` as a whole path or as a path's beginning, also after `--flag=` or `unix://`.
fn contains_path(text: &str, folder: &Path) -> bool {
    let Some(folder) = folder.to_str() else {
        return false;
    };
    text.match_indices(folder).any(|(at, found)| {
        let before = text.get(..at).unwrap_or_default();
        let after = text.get(at + found.len()..).unwrap_or_default();
        (before.is_empty() || before.ends_with(['=', ':', ',']) || before.ends_with("://"))
            && (after.is_empty() || after.starts_with(['/', ',']))
    })
}

/// The default settings with the state folder at `/clone/.local`, for tests.
#[cfg(test)]
pub(crate) fn example() -> Settings {
    use clap::Parser;
    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        settings: Settings,
    }
    Line::parse_from(["test", "--state", "/clone/.local"]).settings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn validation_names_the_flag() {
        let broken = |change: &dyn Fn(&mut Settings)| {
            let mut settings = example();
            change(&mut settings);
            settings.resolve().unwrap_err().to_string()
        };
        assert!(example().resolve().is_ok());
        assert!(broken(&|s| s.root = "/".into()).starts_with("--root"));
        assert!(broken(&|s| s.root = "/var/lib/../..".into()).starts_with("--root"));
        assert!(broken(&|s| s.run = "run/x".into()).starts_with("--run"));
        assert!(broken(&|s| s.run = format!("/run/{}", "x".repeat(90)).into()).contains("too long"));
        assert!(broken(&|s| s.run = "/var/lib/flotilla-local/run".into()).contains("contain each other"));
        assert!(broken(&|s| s.bridge = "a-very-long-bridge".into()).starts_with("--bridge"));
        assert!(broken(&|s| s.bridge = "a b".into()).starts_with("--bridge"));
        assert!(broken(&|s| s.cgroup = "../x".into()).starts_with("--cgroup"));
        assert!(broken(&|s| s.pod_cidr = "10.96.0.0/24".parse().unwrap()).contains("--service-cidr"));
        assert!(broken(&|s| s.ports.dns_port = 6443).contains("--api-port and --dns-port"));
    }

    #[test]
    fn our_paths_are_whole_paths() {
        let settings = example();
        for (text, ours) in [
            ("--config=/var/lib/flotilla-local/config/kubelet.json", true),
            ("/run/flotilla-local/containerd.sock", true),
            ("unix:///run/flotilla-local/etcd.sock", true),
            ("--data-dir=/var/lib/flotilla-local", true),
            ("/var/lib/flotilla-local-2/etcd", false),
            ("/home/me/var/lib/flotilla-local/x", false),
            ("/var/lib/containerd", false),
        ] {
            assert_eq!(settings.owns_path_in(text), ours, "{text}");
        }
    }

    #[test]
    fn settings_survive_their_file() {
        let settings = example();
        let text = serde_json::to_string(&settings).unwrap();
        assert_eq!(serde_json::from_str::<Settings>(&text).unwrap(), settings);
    }
}
