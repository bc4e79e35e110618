//! The processes of the cluster and their command lines.
//!
//! A command line is a pure function of the settings, so that `start kubelet` starts exactly what `up` started. Every
//! one of them holds a path below the root or run folder: that is how the process is recognised as ours.

use std::fmt;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::binaries::Programs;
use crate::settings::Settings;

/// A process of the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs)]
pub enum Component {
    #[value(name = "etcd")]
    Etcd,
    #[value(name = "kube-apiserver", alias = "apiserver")]
    ApiServer,
    #[value(name = "containerd")]
    Containerd,
    #[value(name = "kube-controller-manager", alias = "controller-manager")]
    ControllerManager,
    #[value(name = "kube-scheduler", alias = "scheduler")]
    Scheduler,
    #[value(name = "kubelet")]
    Kubelet,
    #[value(name = "kube-proxy", alias = "proxy")]
    KubeProxy,
    #[value(name = "coredns", alias = "dns")]
    CoreDns,
    #[value(name = "kwok")]
    Kwok,
}

impl Component {
    /// What runs in every cluster, in the order of starting. kwok is there only with fake nodes.
    pub const ALWAYS: [Self; 8] = [
        Self::Etcd,
        Self::ApiServer,
        Self::Containerd,
        Self::ControllerManager,
        Self::Scheduler,
        Self::Kubelet,
        Self::KubeProxy,
        Self::CoreDns,
    ];

    /// Every component there is.
    pub const ALL: [Self; 9] = [
        Self::Etcd,
        Self::ApiServer,
        Self::Containerd,
        Self::ControllerManager,
        Self::Scheduler,
        Self::Kubelet,
        Self::KubeProxy,
        Self::CoreDns,
        Self::Kwok,
    ];

    /// The program's file name, also the name of the log and of the pid file.
    pub fn program(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::ApiServer => "kube-apiserver",
            Self::Containerd => "containerd",
            Self::ControllerManager => "kube-controller-manager",
            Self::Scheduler => "kube-scheduler",
            Self::Kubelet => "kubelet",
            Self::KubeProxy => "kube-proxy",
            Self::CoreDns => "coredns",
            Self::Kwok => "kwok",
        }
    }

    /// The component that runs the given command line, when it is one of this cluster's.
    pub fn of(arguments: &[String], settings: &Settings) -> Option<Self> {
        let (program, rest) = arguments.split_first()?;
        let name = Path::new(program).file_name()?.to_str()?;
        let component = Self::ALL
            .into_iter()
            .find(|component| component.program() == name)?;
        rest.iter()
            .any(|argument| settings.owns_path_in(argument))
            .then_some(component)
    }

    /// The log file.
    pub fn log(self, settings: &Settings) -> PathBuf {
        settings.logs().join(format!("{}.log", self.program()))
    }

    /// The pid file, written when the process starts and removed by `down`.
    pub fn pid_file(self, settings: &Settings) -> PathBuf {
        settings.pids().join(self.program())
    }

    /// What usually is wrong when the component does not come up.
    pub fn advice(self) -> &'static str {
        match self {
            Self::Etcd => {
                "is the disk of the root folder full? `flotilla-cluster down` and `up` start with empty data"
            }
            Self::ApiServer => {
                "a port or address in use is named in the log; change --api-port or --pod-cidr"
            }
            Self::Containerd => "are containerd and runc installed, and does the kernel have overlayfs?",
            Self::ControllerManager | Self::Scheduler => "does the API server run? `flotilla-cluster status`",
            Self::Kubelet => "the log names what the node lacks (cgroups, mounts, containerd)",
            Self::KubeProxy => {
                "does `nft list tables` work, and does no other kube-proxy run on this machine?"
            }
            Self::CoreDns => "is --dns-port in use on all addresses?",
            Self::Kwok => "does the API server run? `flotilla-cluster status`",
        }
    }

    /// The command line.
    pub fn command(self, settings: &Settings, programs: &Programs) -> Vec<String> {
        let mut line = vec![match self {
            Self::Containerd => "containerd".to_owned(),
            _ => programs.path(self.program()).display().to_string(),
        }];
        line.extend(match self {
            Self::Etcd => etcd(settings),
            Self::ApiServer => api_server(settings),
            Self::Containerd => vec![flag("--config", settings.config("containerd.toml"))],
            Self::ControllerManager => controller_manager(settings),
            Self::Scheduler => scheduler(settings),
            Self::Kubelet => kubelet(settings),
            Self::KubeProxy => vec![flag("--config", settings.config("kube-proxy.json"))],
            Self::CoreDns => vec!["-conf".into(), settings.config("Corefile").display().to_string()],
            Self::Kwok => kwok(settings),
        });
        line
    }
}

impl fmt::Display for Component {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.program())
    }
}

fn flag(name: &str, value: impl AsRef<Path>) -> String {
    format!("{name}={}", value.as_ref().display())
}

/// Both sockets are unix sockets in the run folder: no port, and nobody but root gets in.
fn etcd(settings: &Settings) -> Vec<String> {
    let client = format!("unix://{}", settings.etcd_socket().display());
    let peer = format!("unix://{}", settings.run.join("etcd-peer.sock").display());
    vec![
        flag("--data-dir", settings.root.join("etcd")),
        format!("--listen-client-urls={client}"),
        format!("--advertise-client-urls={client}"),
        format!("--listen-peer-urls={peer}"),
        format!("--initial-advertise-peer-urls={peer}"),
        format!("--initial-cluster=default={peer}"),
        // The data is disposable; waiting for the disk would dominate every write.
        "--unsafe-no-fsync".into(),
        "--enable-grpc-gateway=false".into(),
        // Tests write a lot: keep the database from growing without end.
        "--auto-compaction-retention=10m".into(),
        format!("--quota-backend-bytes={}", 4_u64 << 30),
        "--log-level=warn".into(),
    ]
}

fn api_server(settings: &Settings) -> Vec<String> {
    let ip = settings.node_ip();
    vec![
        format!("--advertise-address={ip}"),
        format!("--bind-address={ip}"),
        format!("--secure-port={}", settings.ports.api_port),
        format!("--etcd-servers=unix://{}", settings.etcd_socket().display()),
        format!("--service-cluster-ip-range={}", settings.service_cidr),
        flag("--client-ca-file", settings.pki("ca.crt")),
        flag("--tls-cert-file", settings.pki("apiserver.crt")),
        flag("--tls-private-key-file", settings.pki("apiserver.key")),
        flag("--kubelet-certificate-authority", settings.pki("ca.crt")),
        flag(
            "--kubelet-client-certificate",
            settings.pki("apiserver-kubelet-client.crt"),
        ),
        flag(
            "--kubelet-client-key",
            settings.pki("apiserver-kubelet-client.key"),
        ),
        // The node's name resolves nowhere.
        "--kubelet-preferred-address-types=InternalIP".into(),
        format!(
            "--service-account-issuer=https://kubernetes.default.svc.{}",
            Settings::DOMAIN
        ),
        flag("--service-account-key-file", settings.pki("sa.pub")),
        flag("--service-account-signing-key-file", settings.pki("sa.key")),
        flag(
            "--requestheader-client-ca-file",
            settings.pki("front-proxy-ca.crt"),
        ),
        "--requestheader-allowed-names=front-proxy-client".into(),
        "--requestheader-extra-headers-prefix=X-Remote-Extra-".into(),
        "--requestheader-group-headers=X-Remote-Group".into(),
        "--requestheader-username-headers=X-Remote-User".into(),
        flag("--proxy-client-cert-file", settings.pki("front-proxy-client.crt")),
        flag("--proxy-client-key-file", settings.pki("front-proxy-client.key")),
        "--authorization-mode=Node,RBAC".into(),
        "--enable-admission-plugins=NodeRestriction".into(),
        "--allow-privileged=true".into(),
        flag("--audit-policy-file", settings.config("audit-policy.json")),
        flag("--audit-log-path", settings.audit_log()),
        "--audit-log-maxsize=500".into(),
        "--audit-log-maxbackup=2".into(),
        flag("--cert-dir", settings.root.join("kube-apiserver")),
        "--max-requests-inflight=3000".into(),
        "--max-mutating-requests-inflight=1000".into(),
        "--v=1".into(),
    ]
}

fn controller_manager(settings: &Settings) -> Vec<String> {
    let kubeconfig = settings.component_kubeconfig("controller-manager");
    vec![
        flag("--kubeconfig", &kubeconfig),
        flag("--authentication-kubeconfig", &kubeconfig),
        flag("--authorization-kubeconfig", &kubeconfig),
        format!("--bind-address={}", settings.node_ip()),
        format!("--secure-port={}", settings.ports.controller_port),
        flag("--cert-dir", settings.root.join("kube-controller-manager")),
        flag("--root-ca-file", settings.pki("ca.crt")),
        flag("--service-account-private-key-file", settings.pki("sa.key")),
        flag("--cluster-signing-cert-file", settings.pki("ca.crt")),
        flag("--cluster-signing-key-file", settings.pki("ca.key")),
        "--use-service-account-credentials=true".into(),
        // One of each: an election would only delay the start and write a lease every two seconds.
        "--leader-elect=false".into(),
        "--horizontal-pod-autoscaler-sync-period=5s".into(),
        "--kube-api-qps=200".into(),
        "--kube-api-burst=400".into(),
        "--v=1".into(),
    ]
}

fn scheduler(settings: &Settings) -> Vec<String> {
    let kubeconfig = settings.component_kubeconfig("scheduler");
    vec![
        flag("--config", settings.config("kube-scheduler.json")),
        flag("--authentication-kubeconfig", &kubeconfig),
        flag("--authorization-kubeconfig", &kubeconfig),
        format!("--bind-address={}", settings.node_ip()),
        format!("--secure-port={}", settings.ports.scheduler_port),
        flag("--cert-dir", settings.root.join("kube-scheduler")),
        "--v=1".into(),
    ]
}

fn kubelet(settings: &Settings) -> Vec<String> {
    vec![
        flag("--config", settings.config("kubelet.json")),
        flag("--kubeconfig", settings.component_kubeconfig("kubelet")),
        format!("--hostname-override={}", Settings::NODE),
        format!("--node-ip={}", settings.node_ip()),
        flag("--root-dir", settings.root.join("kubelet")),
        flag("--cert-dir", settings.root.join("kubelet/pki")),
        "--v=1".into(),
    ]
}

fn kwok(settings: &Settings) -> Vec<String> {
    vec![
        flag("--config", settings.config("kwok.yaml")),
        flag("--kubeconfig", settings.component_kubeconfig("kwok")),
        "--manage-all-nodes=false".into(),
        "--manage-nodes-with-label-selector=type=kwok".into(),
        "--manage-nodes-with-annotation-selector=".into(),
        format!("--cidr={}", settings.kwok_cidr),
        format!("--node-ip={}", settings.node_ip()),
        format!(
            "--server-address={}:{}",
            settings.node_ip(),
            settings.ports.kwok_port
        ),
        "--node-lease-duration-seconds=40".into(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::example;

    #[test]
    fn every_component_is_recognised_by_its_command_line() {
        let settings = example();
        let programs = Programs::at("/cache".into());
        let mut other = settings.clone();
        other.root = "/var/lib/flotilla-other".into();
        other.run = "/run/flotilla-other".into();
        for component in Component::ALL {
            let line = component.command(&settings, &programs);
            assert_eq!(Component::of(&line, &settings), Some(component), "{line:?}");
            assert_eq!(Component::of(&line, &other), None, "{line:?}");
        }
    }

    #[test]
    fn strangers_are_not_ours() {
        let settings = example();
        let line = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        for stranger in [
            "/usr/bin/containerd",
            "/usr/bin/containerd --config=/etc/containerd/config.toml",
            "vi /var/lib/flotilla-local/config/kubelet.json",
            "etcd --data-dir=/var/lib/etcd",
            "",
        ] {
            assert_eq!(Component::of(&line(stranger), &settings), None, "{stranger}");
        }
        assert_eq!(Component::of(&[], &settings), None);
    }

    #[test]
    fn nothing_listens_on_all_addresses() {
        let settings = example();
        let programs = Programs::at("/cache".into());
        for component in Component::ALL {
            for argument in component.command(&settings, &programs) {
                assert!(
                    !argument.contains("0.0.0.0") && !argument.contains("127.0.0.1"),
                    "{argument}"
                );
            }
        }
    }
}
