//! The node's bridge, the rules that let pods out, the kernel settings, and the pods' control group.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::settings::Settings;
use crate::shell;

/// Kernel settings without which no pod is reached. They stay after `down`: something else may rely on them by then.
const NEEDED: [(&str, &str); 2] = [
    ("net/ipv4/ip_forward", "1"),
    ("net/bridge/bridge-nf-call-iptables", "1"),
];

/// Kernel settings the kubelet changes by itself; `down` puts the old values back.
const CHANGED_BY_KUBELET: [&str; 6] = [
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
];

/// Kernel modules asked for, where the kernel has modules.
const MODULES: [&str; 5] = ["overlay", "bridge", "br_netfilter", "veth", "nf_conntrack"];

/// What the bridge is labelled with, to be recognised as ours without a record. (The kernel takes no label when the
/// bridge is made, so a start killed in between leaves one without.)
pub fn bridge_alias(settings: &Settings) -> String {
    format!("flotilla-cluster {}", settings.root.display())
}

/// Whether the bridge exists and is labelled as ours.
pub fn bridge_is_labelled(settings: &Settings) -> bool {
    let file = Path::new("/sys/class/net").join(&settings.bridge).join("ifalias");
    std::fs::read_to_string(file).is_ok_and(|alias| alias.trim() == bridge_alias(settings))
}

/// Whether an interface of the bridge's name exists.
pub fn bridge_exists(settings: &Settings) -> bool {
    Path::new("/sys/class/net").join(&settings.bridge).exists()
}

/// Our table of packet filter rules.
pub fn nft_table(settings: &Settings) -> String {
    format!("flotilla-{}", settings.bridge)
}

/// The comment of our two iptables rules.
pub fn forward_comment(settings: &Settings) -> String {
    format!("flotilla-cluster-{}", settings.bridge)
}

/// The present values of the settings the kubelet changes.
pub fn kernel_settings() -> BTreeMap<String, String> {
    let value = |name: &str| {
        std::fs::read_to_string(sysctl(name))
            .ok()
            .map(|text| text.trim().to_owned())
    };
    CHANGED_BY_KUBELET
        .iter()
        .filter_map(|name| Some(((*name).to_owned(), value(name)?)))
        .collect()
}

/// Puts kernel settings back. Those that cannot be written are left: it is the last thing `down` should fail on.
pub fn restore_kernel_settings(saved: &BTreeMap<String, String>) {
    for (name, value) in saved {
        if CHANGED_BY_KUBELET.contains(&name.as_str()) {
            let _ = std::fs::write(sysctl(name), value);
        }
    }
}

fn sysctl(name: &str) -> PathBuf {
    Path::new("/proc/sys").join(name)
}

/// Makes bridge, rules and control group, as far as they are not there yet.
///
/// # Errors
/// When the kernel lacks something; the message says what.
pub fn create(settings: &Settings) -> Result<()> {
    for module in MODULES {
        // Fails where modules are built in; what matters is checked below.
        let _ = shell::run("modprobe", &[module]);
    }
    let bridge = settings.bridge.as_str();
    if !bridge_exists(settings) {
        shell::run("ip", &["link", "add", "name", bridge, "type", "bridge"])
            .context("failed to make the bridge: does the kernel have bridges?")?;
    }
    shell::run(
        "ip",
        &["link", "set", "dev", bridge, "alias", &bridge_alias(settings)],
    )?;
    let address = format!("{}/{}", settings.node_ip(), settings.pod_cidr.prefix());
    shell::run("ip", &["address", "replace", &address, "dev", bridge])?;
    shell::run("ip", &["link", "set", bridge, "up"])?;
    for (name, value) in NEEDED {
        let file = sysctl(name);
        let now = std::fs::read_to_string(&file)
            .with_context(|| format!("the kernel lacks {}: load br_netfilter", file.display()))?;
        if now.trim() != value {
            std::fs::write(&file, value)
                .with_context(|| format!("failed to set {} to {value}", file.display()))?;
        }
    }
    shell::run_with_input("nft", &["-f", "-"], Some(&rules(settings)))
        .context("failed to set packet filter rules: does the kernel have nftables?")?;
    allow_forwarding(settings)?;
    create_cgroup(settings)
}

/// Pods reach the world behind the machine's address. Declaring and deleting the table first makes this repeatable.
fn rules(settings: &Settings) -> String {
    let table = nft_table(settings);
    format!(
        r#"table ip {table} {{}}
delete table ip {table}
table ip {table} {{
    chain postrouting {{
        type nat hook postrouting priority srcnat;
        ip saddr {pods} ip daddr != {pods} oifname != "{bridge}" masquerade
    }}
}}
"#,
        pods = settings.pod_cidr,
        bridge = settings.bridge,
    )
}

/// A container engine sets iptables' FORWARD policy to DROP, which hits our bridge too, and no rule in another table
/// can undo a drop: so two rules go in front of it, only where the policy is DROP.
fn allow_forwarding(settings: &Settings) -> Result<()> {
    let saved = shell::run("iptables-save", &["-t", "filter"]).unwrap_or_default();
    let comment = forward_comment(settings);
    if !saved.lines().any(|line| line.starts_with(":FORWARD DROP")) || saved.contains(&comment) {
        return Ok(());
    }
    for direction in ["-i", "-o"] {
        let rule = [
            "-I",
            "FORWARD",
            direction,
            &settings.bridge,
            "-m",
            "comment",
            "--comment",
            &comment,
            "-j",
            "ACCEPT",
        ];
        shell::run("iptables", &rule)?;
    }
    Ok(())
}

/// Mount points of control group hierarchies: one per controller in version 1, one in version 2.
pub fn cgroup_mounts(mountinfo: &str) -> Vec<(PathBuf, bool)> {
    let mut mounts = Vec::new();
    for line in mountinfo.lines() {
        let Some((before, after)) = line.split_once(" - ") else {
            continue;
        };
        let kind = after.split(' ').next().unwrap_or_default();
        if let ("cgroup" | "cgroup2", Some(point)) = (kind, before.split(' ').nth(4)) {
            mounts.push((PathBuf::from(point), kind == "cgroup2"));
        }
    }
    mounts
}

/// Our control group in every hierarchy.
pub fn cgroups(settings: &Settings) -> Vec<PathBuf> {
    let mountinfo = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    cgroup_mounts(&mountinfo)
        .into_iter()
        .map(|(mount, _)| mount.join(&settings.cgroup))
        .collect()
}

/// The kubelet wants its root group to exist in every hierarchy.
fn create_cgroup(settings: &Settings) -> Result<()> {
    let mountinfo = std::fs::read_to_string("/proc/self/mountinfo")?;
    let mounts = cgroup_mounts(&mountinfo);
    ensure!(
        !mounts.is_empty(),
        "no control groups are mounted at /sys/fs/cgroup"
    );
    let unified = mounts.len() == 1;
    for (mount, version2) in mounts {
        let group = mount.join(&settings.cgroup);
        if version2 && unified {
            // Each controller by itself: one the kernel lacks must not keep the others off.
            for controller in ["cpuset", "cpu", "io", "memory", "pids", "hugetlb"] {
                let _ = std::fs::write(mount.join("cgroup.subtree_control"), format!("+{controller}"));
            }
        }
        std::fs::create_dir_all(&group)
            .with_context(|| format!("failed to make the control group {}", group.display()))?;
        // Version 1: an empty cpuset accepts no process.
        for file in ["cpuset.cpus", "cpuset.mems"] {
            let own = std::fs::read_to_string(group.join(file)).unwrap_or_default();
            if !version2 && own.trim().is_empty() && group.join(file).exists() {
                let parent = std::fs::read_to_string(mount.join(file))?;
                std::fs::write(group.join(file), parent.trim())?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::example;

    #[test]
    fn cgroup_hierarchies_are_found() {
        let text = "22 21 0:20 / /sys/fs/cgroup/cpu rw,relatime shared:1 - cgroup cgroup rw,cpu\n\
                    23 21 0:21 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
                    24 1 8:1 / / rw - ext4 /dev/vda rw\n";
        assert_eq!(
            cgroup_mounts(text),
            [
                ("/sys/fs/cgroup/cpu".into(), false),
                ("/sys/fs/cgroup/unified".into(), true)
            ]
        );
    }

    #[test]
    fn rules_name_only_our_table() {
        let text = rules(&example());
        assert!(text.contains("table ip flotilla-flot0"));
        assert!(text.contains("ip saddr 10.244.0.0/24"));
    }
}
