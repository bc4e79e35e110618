//! What on the machine is in the way, found before anything is started.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use serde_json::Value;

use crate::cidr::Cidr;
use crate::network;
use crate::process::{self, Process};
use crate::record::Record;
use crate::settings::Settings;
use crate::shell;

/// A socket somebody listens on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// The address, none for all of them.
    pub address: Option<Ipv4Addr>,
    /// The port.
    pub port: u16,
    /// `tcp` or `udp`.
    pub protocol: &'static str,
    /// The socket's number in the kernel, by which its process is found.
    pub inode: u64,
}

/// What was found on the machine.
#[derive(Clone, Debug, Default)]
pub struct Machine {
    /// Listening sockets.
    pub listeners: Vec<Listener>,
    /// Address ranges in use with the interface they lead to.
    pub routes: Vec<(Cidr, String)>,
    /// Whether an interface with the bridge's name exists.
    pub bridge: bool,
    /// Control groups with our name.
    pub cgroups: Vec<PathBuf>,
    /// kube-proxy processes that are not ours.
    pub proxies: Vec<Process>,
    /// kubelet processes that are not ours.
    pub kubelets: Vec<Process>,
    /// Whether kube-proxy's table of rules exists.
    pub proxy_table: bool,
}

impl Machine {
    /// Looks at this machine. To be called when nothing of ours is left on it.
    pub fn look(settings: &Settings) -> Self {
        let read = |file: &str| std::fs::read_to_string(file).unwrap_or_default();
        let mut listeners = Vec::new();
        for (file, protocol) in [("tcp", "tcp"), ("tcp6", "tcp"), ("udp", "udp"), ("udp6", "udp")] {
            listeners.extend(parse_listeners(&read(&format!("/proc/net/{file}")), protocol));
        }
        let routes = shell::run("ip", &["-j", "-4", "route", "show", "table", "all"]).unwrap_or_default();
        let tables = shell::run("nft", &["list", "tables"]).unwrap_or_default();
        Self {
            listeners,
            routes: parse_routes(&routes),
            bridge: network::bridge_exists(settings),
            cgroups: network::cgroups(settings)
                .into_iter()
                .filter(|path| path.exists())
                .collect(),
            proxies: foreign(settings, "kube-proxy"),
            kubelets: foreign(settings, "kubelet"),
            proxy_table: tables.lines().any(|line| line.trim() == "table ip kube-proxy"),
        }
    }
}

/// Processes of a program on this machine that are not ours. Two kube-proxies share one table of rules, two kubelets one
/// socket for device plugins, and neither can be told otherwise.
pub fn foreign(settings: &Settings, program: &str) -> Vec<Process> {
    let foreign = |process: &Process| {
        let name = process
            .arguments
            .first()
            .and_then(|program| Path::new(program).file_name());
        name.is_some_and(|name| name == program)
            && !process.arguments.iter().any(|a| settings.owns_path_in(a))
    };
    process::all().into_iter().filter(foreign).collect()
}

/// Fails with one sentence per clash, each naming the flag that avoids it.
///
/// # Errors
/// When there is any.
pub fn check(settings: &Settings, machine: &Machine) -> Result<()> {
    let clashes = clashes(settings, machine, &|inode| socket_owner(inode));
    if clashes.is_empty() {
        return Ok(());
    }
    bail!(
        "the cluster cannot start beside what is on this machine:\n  - {}",
        clashes.join("\n  - ")
    )
}

fn clashes(settings: &Settings, machine: &Machine, owner: &dyn Fn(u64) -> Option<Process>) -> Vec<String> {
    let mut found = Vec::new();
    if let Some(proxy) = machine.proxies.first() {
        found.push(format!(
            "another kube-proxy runs (pid {}{}); two of them overwrite each other's rules, so only one cluster can run on a \
             machine at a time: stop that one first",
            proxy.pid,
            cluster_of(proxy)
        ));
    } else if machine.proxy_table {
        found.push(
            "the rules of a kube-proxy are there (`nft list table ip kube-proxy`), but nothing of this cluster: if no \
             Kubernetes runs on this machine, remove them with `nft delete table ip kube-proxy`"
                .to_owned(),
        );
    }
    if let Some(kubelet) = machine.kubelets.first().filter(|_| machine.proxies.is_empty()) {
        found.push(format!(
            "another kubelet runs (pid {}{}); two of them take each other's device plugin socket: stop that one first",
            kubelet.pid,
            cluster_of(kubelet)
        ));
    }
    if machine.bridge {
        found.push(format!(
            "an interface {0} exists and is not ours: choose another name with --bridge",
            settings.bridge
        ));
    }
    if let Some(group) = machine.cgroups.first() {
        found.push(format!(
            "the control group {} exists and is not ours: choose another name with --cgroup",
            group.display()
        ));
    }
    for (flag, range) in [
        ("--pod-cidr", settings.pod_cidr),
        ("--service-cidr", settings.service_cidr),
        ("--kwok-cidr", settings.kwok_cidr),
    ] {
        if let Some((route, interface)) = machine.routes.iter().find(|(route, _)| route.overlaps(range)) {
            found.push(format!(
                "{route} is in use on {interface} and overlaps {range}: choose another range with {flag}"
            ));
        }
    }
    for (flag, port) in settings.ports.named() {
        let taken = machine.listeners.iter().find(|listener| {
            listener.port == port
                && listener
                    .address
                    .is_none_or(|address| address == settings.node_ip())
                && (listener.protocol == "tcp" || flag == "--dns-port")
        });
        if let Some(listener) = taken {
            let by = owner(listener.inode).map_or_else(String::new, |process| {
                format!(
                    " by pid {} ({}{})",
                    process.pid,
                    shortened(&process),
                    cluster_of(&process)
                )
            });
            found.push(format!(
                "port {port}/{} is taken{by}: stop that, or choose another port with {flag}",
                listener.protocol
            ));
        }
    }
    found
}

fn shortened(process: &Process) -> String {
    let text = process
        .arguments
        .iter()
        .flat_map(|argument| argument.split_whitespace())
        .collect::<Vec<_>>()
        .join(" ");
    if text.chars().count() <= 60 {
        text
    } else {
        text.chars().take(60).collect::<String>() + "..."
    }
}

/// `, of the cluster <state>` when the process belongs to another cluster of ours.
fn cluster_of(process: &Process) -> String {
    let paths = process
        .arguments
        .iter()
        .filter_map(|argument| argument.rsplit('=').next());
    for path in paths.filter(|path| path.starts_with('/')) {
        for folder in Path::new(path).ancestors().skip(1) {
            if let Some(record) = Record::read(folder) {
                let state = record.settings.state.display();
                return format!(
                    ", of the Flotilla cluster {state}: `flotilla-cluster down --state {state}` ends it"
                );
            }
        }
    }
    String::new()
}

/// The process that holds a socket.
fn socket_owner(inode: u64) -> Option<Process> {
    let wanted = format!("socket:[{inode}]");
    process::all().into_iter().find(|process| {
        let descriptors = std::fs::read_dir(format!("/proc/{}/fd", process.pid))
            .into_iter()
            .flatten()
            .flatten();
        descriptors
            .filter_map(|descriptor| std::fs::read_link(descriptor.path()).ok())
            .any(|target| target.as_os_str() == wanted.as_str())
    })
}

/// Listening sockets in the text of `/proc/net/{tcp,tcp6,udp,udp6}`.
fn parse_listeners(text: &str, protocol: &'static str) -> Vec<Listener> {
    /// `TCP_LISTEN`, and for UDP `TCP_CLOSE`: a socket without a peer.
    const STATES: [(&str, &str); 2] = [("tcp", "0A"), ("udp", "07")];
    let mut listeners = Vec::new();
    for line in text.lines().skip(1) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (Some(local), Some(state), Some(inode)) = (words.get(1), words.get(3), words.get(9)) else {
            continue;
        };
        if !STATES.contains(&(protocol, *state)) {
            continue;
        }
        let Some((address, port)) = local.split_once(':') else {
            continue;
        };
        let (Ok(port), Ok(inode)) = (u16::from_str_radix(port, 16), inode.parse()) else {
            continue;
        };
        let address = match address.len() {
            8 => match u32::from_str_radix(address, 16) {
                // The kernel prints the four bytes as one number in the machine's byte order.
                Ok(number) => Some(Ipv4Addr::from(number.to_ne_bytes())).filter(|ip| !ip.is_unspecified()),
                Err(_) => continue,
            },
            // An IPv6 socket takes IPv4 too when it listens on all addresses; others never clash with ours.
            _ if address.bytes().all(|byte| byte == b'0') => None,
            _ => continue,
        };
        listeners.push(Listener {
            address,
            port,
            protocol,
            inode,
        });
    }
    listeners
}

/// Ranges in the JSON of `ip route show table all`, without the default route.
fn parse_routes(text: &str) -> Vec<(Cidr, String)> {
    let Ok(Value::Array(routes)) = serde_json::from_str::<Value>(text) else {
        return Vec::new();
    };
    routes
        .iter()
        .filter_map(|route| {
            let range: Cidr = route.get("dst")?.as_str()?.parse().ok()?;
            let interface = route
                .get("dev")
                .and_then(Value::as_str)
                .unwrap_or("no interface")
                .to_owned();
            (range.prefix() > 0).then_some((range, interface))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::example;

    fn sentences(machine: &Machine) -> Vec<String> {
        clashes(&example(), machine, &|_| None)
    }

    #[test]
    fn an_empty_machine_has_no_clash() {
        assert!(sentences(&Machine::default()).is_empty());
    }

    #[test]
    fn every_clash_names_its_flag() {
        let listener = |address, port, protocol| Listener {
            address,
            port,
            protocol,
            inode: 1,
        };
        let on_all = Machine {
            listeners: vec![listener(None, 6443, "tcp")],
            ..Machine::default()
        };
        assert!(sentences(&on_all)[0].contains("--api-port"));
        let dns = Machine {
            listeners: vec![listener(None, 1053, "udp")],
            ..Machine::default()
        };
        assert!(sentences(&dns)[0].contains("--dns-port"));
        let bridge = Machine {
            bridge: true,
            ..Machine::default()
        };
        assert!(sentences(&bridge)[0].contains("--bridge"));
        let cgroup = Machine {
            cgroups: vec!["/sys/fs/cgroup/cpu/flotilla-local".into()],
            ..Machine::default()
        };
        assert!(sentences(&cgroup)[0].contains("--cgroup"));
        for (route, flag) in [("10.0.0.0/8", "--pod-cidr"), ("10.96.4.0/24", "--service-cidr")] {
            let routes = vec![(route.parse().unwrap(), "eth0".to_owned())];
            let text = sentences(&Machine {
                routes,
                ..Machine::default()
            })
            .join("\n");
            assert!(text.contains(flag) && text.contains("eth0"), "{text}");
        }
        let proxy = Process {
            pid: 7,
            arguments: vec!["kube-proxy".into()],
        };
        let text = sentences(&Machine {
            proxies: vec![proxy],
            proxy_table: true,
            ..Machine::default()
        });
        assert!(text.len() == 1 && text[0].contains("pid 7"), "{text:?}");
        let kubelet = Process {
            pid: 8,
            arguments: vec!["/usr/bin/kubelet".into()],
        };
        let text = sentences(&Machine {
            kubelets: vec![kubelet],
            ..Machine::default()
        });
        assert!(text.len() == 1 && text[0].contains("pid 8"), "{text:?}");
    }

    #[test]
    fn other_addresses_do_not_clash() {
        let loopback = Listener {
            address: Some(Ipv4Addr::LOCALHOST),
            port: 6443,
            protocol: "tcp",
            inode: 1,
        };
        let udp = Listener {
            address: None,
            port: 6443,
            protocol: "udp",
            inode: 1,
        };
        assert!(
            sentences(&Machine {
                listeners: vec![loopback, udp],
                ..Machine::default()
            })
            .is_empty()
        );
    }

    #[test]
    fn sockets_are_read_as_the_kernel_prints_them() {
        let text = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
            0: 0100007F:192B 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 111 1 x\n\
            1: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 222 1 x\n\
            2: 0100007F:192B 0100007F:D431 01 00000000:00000000 00:00000000 00000000     0        0 333 1 x\n";
        let listeners = parse_listeners(text, "tcp");
        assert_eq!(
            listeners,
            [
                Listener {
                    address: Some(Ipv4Addr::LOCALHOST),
                    port: 6443,
                    protocol: "tcp",
                    inode: 111
                },
                Listener {
                    address: None,
                    port: 22,
                    protocol: "tcp",
                    inode: 222
                },
            ]
        );
        let six = "head\n 0: 00000000000000000000000000000000:1A0A 0:0 0A 0:0 0:0 0 0 0 444 1 x\n";
        assert_eq!(parse_listeners(six, "tcp")[0].port, 6666);
    }

    #[test]
    fn routes_are_read_without_the_default() {
        let text = r#"[{"dst":"default","dev":"eth0"},{"dst":"192.0.2.0/24","dev":"eth0"},{"dst":"192.0.2.2","dev":"eth0"}]"#;
        assert_eq!(parse_routes(text).len(), 2);
        assert!(parse_routes("not json").is_empty());
    }
}
