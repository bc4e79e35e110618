//! Removing the cluster from the machine, whatever state it is in.
//!
//! Every step looks at the machine instead of at a list of what was made, tolerates what is gone already, and may be
//! killed: the record in the root folder, by which the rest is recognised as ours, goes last. Folders are removed only
//! when nothing is mounted below them any more, so that a pod's `hostPath` is never deleted through its mount.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::Signal;

use crate::clash;
use crate::config::CNI_NETWORK;
use crate::iptables;
use crate::network;
use crate::process::{self, Pinned};
use crate::record::{self, RECORD, Record};
use crate::settings::Settings;
use crate::shell;

/// How long killed processes may take to leave the kernel.
const END_LIMIT: Duration = Duration::from_secs(20);
/// How long control groups may take to become empty.
const CGROUP_LIMIT: Duration = Duration::from_secs(10);
/// Where the kubelet puts links to logs; it cannot be told otherwise.
const LOG_LINKS: &str = "/var/log/containers";
/// Where the CNI library remembers results; containerd 1.x cannot be told otherwise.
const CNI_RESULTS: &str = "/var/lib/cni/results";
/// Where containerd's shims put their sockets; they cannot be told otherwise.
const SHIM_SOCKETS: &str = "/run/containerd/s";
/// Where the kubelet listens for device plugins; it cannot be told otherwise.
const DEVICE_PLUGINS: &str = "/var/lib/kubelet/device-plugins";

/// Removes everything of the cluster but its logs.
///
/// # Errors
/// Names what is still there.
pub fn clean(settings: &Settings) -> Result<()> {
    let record = Record::of(settings);
    end_processes(settings, record.is_some())?;
    let sockets = shim_sockets(settings);
    unmount_all(settings)?;
    remove_links(settings, record.is_some());
    remove_rules(settings, record.is_some());
    if record.is_some() {
        remove_cgroups(settings);
    }
    for socket in sockets {
        let _ = std::fs::remove_file(socket);
    }
    if record.is_some() {
        remove_strays(settings);
    }
    if let Some(record) = &record {
        network::restore_kernel_settings(&record.kernel);
    }
    for folder in [&settings.run, &settings.root] {
        // A folder that holds something and is not recorded as a cluster's is somebody's, whatever its name.
        if record.is_some() || record::is_free(folder) {
            remove_folder(folder)?;
        }
    }
    for file in ["kubeconfig", RECORD] {
        let _ = std::fs::remove_file(settings.state.join(file));
    }
    let _ = std::fs::remove_dir_all(settings.pids());
    let left = leftovers(settings, record.is_some());
    if !left.is_empty() {
        bail!("this is still there:\n  - {}", left.join("\n  - "));
    }
    Ok(())
}

/// What of the cluster is on the machine, in sentences. Without a record of a cluster, folders, control groups and
/// kube-proxy's rules are taken for somebody else's: only their names could say otherwise.
pub fn leftovers(settings: &Settings, recorded: bool) -> Vec<String> {
    let mut left = Vec::new();
    for process in process::everything_of_ours(settings) {
        let program = process.arguments.first().map(String::as_str).unwrap_or_default();
        left.push(format!("process {} ({program})", process.pid));
    }
    left.extend(
        mounts(settings)
            .iter()
            .map(|mount| format!("mount {}", mount.display())),
    );
    if bridge_is_ours(settings, recorded) {
        left.push(format!("bridge {}", settings.bridge));
    }
    let tables = shell::run("nft", &["list", "tables"]).unwrap_or_default();
    let proxy_is_ours = recorded && clash::foreign(settings, "kube-proxy").is_empty();
    for table in [
        &format!("table ip {}", network::nft_table(settings)),
        "table ip kube-proxy",
        "table ip6 kube-proxy",
    ] {
        let foreign = table.ends_with("kube-proxy") && !proxy_is_ours;
        if tables.lines().any(|line| line.trim() == table) && !foreign {
            left.push(format!("packet filter {table}"));
        }
    }
    let groups = network::cgroups(settings)
        .into_iter()
        .filter(|group| recorded && group.exists());
    left.extend(groups.map(|group| format!("control group {}", group.display())));
    for folder in [&settings.root, &settings.run] {
        if recorded && folder.exists() {
            left.push(format!("folder {}", folder.display()));
        }
    }
    left
}

/// Everything at once and without grace: nothing here is worth a clean shutdown, and a kubelet that outlives its
/// containers would start them again.
fn end_processes(settings: &Settings, recorded: bool) -> Result<()> {
    let begun = Instant::now();
    loop {
        let mut pinned: Vec<Pinned> = process::everything_of_ours(settings)
            .iter()
            .filter_map(process::Process::pin)
            .collect();
        if recorded {
            let contained = contained(settings);
            pinned.extend(
                contained
                    .iter()
                    .filter_map(|pid| Pinned::when(*pid, || self::contained(settings).contains(pid))),
            );
        }
        if pinned.is_empty() {
            return Ok(());
        }
        for process in &pinned {
            process.signal(Signal::KILL);
        }
        pinned.retain(|process| !process.wait_gone(END_LIMIT.saturating_sub(begun.elapsed())));
        if !pinned.is_empty() || begun.elapsed() > END_LIMIT {
            let pids: Vec<i32> = pinned.iter().map(|process| process.pid).collect();
            bail!("processes do not end, even by SIGKILL: {pids:?}. They hang in the kernel; see `dmesg`");
        }
    }
}

/// Processes in our control groups: the containers.
fn contained(settings: &Settings) -> Vec<i32> {
    let mut pids = Vec::new();
    for group in network::cgroups(settings) {
        for folder in descendants(&group) {
            let text = std::fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
            pids.extend(
                text.lines()
                    .filter_map(|line| line.parse::<i32>().ok())
                    .filter(|pid| *pid > 0),
            );
        }
    }
    pids.sort_unstable();
    pids.dedup();
    pids
}

/// A folder and all folders in it, children before parents.
fn descendants(folder: &Path) -> Vec<PathBuf> {
    if !folder.is_dir() {
        return Vec::new();
    }
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(descendants(&entry.path()));
        }
    }
    found.push(folder.to_owned());
    found
}

/// Mount points at or below a folder, in the order of mounting.
fn mounts_below(mountinfo: &[u8], folders: &[&Path]) -> Vec<PathBuf> {
    let points = mountinfo
        .split(|byte| *byte == b'\n')
        .filter_map(|line| line.split(|byte| *byte == b' ').nth(4));
    points
        .map(|point| PathBuf::from(OsString::from_vec(unescape(point))))
        .filter(|point| folders.iter().any(|folder| point.starts_with(folder)))
        .collect()
}

/// The kernel writes spaces, tabs, newlines and backslashes as three octal digits.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, tail)) = rest.split_first() {
        let code = tail
            .get(..3)
            .and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        match (first, code) {
            (b'\\', Some(code)) => {
                plain.push(code);
                rest = tail.get(3..).unwrap_or_default();
            }
            _ => {
                plain.push(*first);
                rest = tail;
            }
        }
    }
    plain
}

fn mounts(settings: &Settings) -> Vec<PathBuf> {
    let mountinfo = std::fs::read("/proc/self/mountinfo").unwrap_or_default();
    mounts_below(&mountinfo, &[&settings.root, &settings.run])
}

fn unmount_all(settings: &Settings) -> Result<()> {
    /// Mounts can lie on top of each other; each round takes the uppermost ones.
    const ROUNDS: usize = 20;
    for _ in 0..ROUNDS {
        let mounts = mounts(settings);
        if mounts.is_empty() {
            return Ok(());
        }
        for mount in mounts.iter().rev() {
            let _ = unmount(mount, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
        }
    }
    let left: Vec<String> = mounts(settings)
        .iter()
        .map(|mount| mount.display().to_string())
        .collect();
    bail!("failed to unmount {}", left.join(", "))
}

/// A cluster is recorded only when no interface had the bridge's name, so with a record the bridge is ours.
fn bridge_is_ours(settings: &Settings, recorded: bool) -> bool {
    network::bridge_is_labelled(settings) || recorded && network::bridge_exists(settings)
}

/// The bridge, and the host's ends of the pods' interfaces: a pod's network is destroyed some time after its last
/// mount, and until then its end would be left.
fn remove_links(settings: &Settings, recorded: bool) {
    if !bridge_is_ours(settings, recorded) {
        return;
    }
    let ports = Path::new("/sys/class/net").join(&settings.bridge).join("brif");
    for port in std::fs::read_dir(ports).into_iter().flatten().flatten() {
        let name = port.file_name().to_string_lossy().into_owned();
        if name.starts_with("veth") {
            let _ = shell::run("ip", &["link", "delete", &name]);
        }
    }
    let _ = shell::run("ip", &["link", "delete", &settings.bridge]);
}

fn remove_rules(settings: &Settings, recorded: bool) {
    let mut tables = vec![("ip", network::nft_table(settings))];
    if recorded && clash::foreign(settings, "kube-proxy").is_empty() {
        tables.extend([("ip", "kube-proxy".to_owned()), ("ip6", "kube-proxy".to_owned())]);
    }
    let present = shell::run("nft", &["list", "tables"]).unwrap_or_default();
    for (family, table) in tables {
        if present
            .lines()
            .any(|line| line.trim() == format!("table {family} {table}"))
        {
            let _ = shell::run("nft", &["delete", "table", family, &table]);
        }
    }
    let saved = shell::run("iptables-save", &[]).unwrap_or_default();
    let script = iptables::removal(&saved, &network::forward_comment(settings));
    if !script.is_empty() {
        let _ = shell::run_with_input("iptables-restore", &["--noflush"], Some(&script));
    }
    // `iptables` over nftables leaves its table when the last rule is gone.
    let table = shell::run("nft", &["list", "table", "ip", "nat"]).unwrap_or_default();
    if recorded && iptables::is_empty_table(&table) {
        let _ = shell::run("nft", &["delete", "table", "ip", "nat"]);
    }
}

fn remove_cgroups(settings: &Settings) {
    let begun = Instant::now();
    loop {
        let folders: Vec<PathBuf> = network::cgroups(settings)
            .iter()
            .flat_map(|group| descendants(group))
            .collect();
        if folders.is_empty() || begun.elapsed() > CGROUP_LIMIT {
            return;
        }
        let left = folders
            .iter()
            .filter(|folder| std::fs::remove_dir(folder).is_err())
            .count();
        if left > 0 {
            shell::pause(Duration::from_millis(50));
        }
    }
}

/// Sockets of the shims of our containers, as their bundles say.
fn shim_sockets(settings: &Settings) -> Vec<PathBuf> {
    let tasks = settings
        .run
        .join("containerd/io.containerd.runtime.v2.task/k8s.io");
    let bundles = std::fs::read_dir(tasks).into_iter().flatten().flatten();
    bundles
        .filter_map(|bundle| std::fs::read_to_string(bundle.path().join("address")).ok())
        .filter_map(|address| address.trim().strip_prefix("unix://").map(PathBuf::from))
        .filter(|socket| socket.starts_with(SHIM_SOCKETS))
        .collect()
}

/// Files of ours in folders that are not ours.
fn remove_strays(settings: &Settings) {
    // The CNI library's file about a pod's loopback interface bears only the sandbox's id.
    let sandboxes = settings
        .root
        .join("containerd/io.containerd.grpc.v1.cri/sandboxes");
    let sandboxes = std::fs::read_dir(sandboxes).into_iter().flatten().flatten();
    let sandboxes: Vec<String> = sandboxes
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    for link in std::fs::read_dir(LOG_LINKS).into_iter().flatten().flatten() {
        if std::fs::read_link(link.path()).is_ok_and(|target| target.starts_with(&settings.root)) {
            let _ = std::fs::remove_file(link.path());
        }
    }
    for result in std::fs::read_dir(CNI_RESULTS).into_iter().flatten().flatten() {
        let name = result.file_name().to_string_lossy().into_owned();
        if name.starts_with(&format!("{CNI_NETWORK}-")) || sandboxes.iter().any(|id| name.contains(id)) {
            let _ = std::fs::remove_file(result.path());
        }
    }
    if clash::foreign(settings, "kubelet").is_empty() {
        for file in ["kubelet.sock", "kubelet_internal_checkpoint", "DEPRECATION"] {
            let _ = std::fs::remove_file(Path::new(DEVICE_PLUGINS).join(file));
        }
    }
    // Succeeds only for empty folders.
    for folder in [
        DEVICE_PLUGINS,
        "/var/lib/kubelet",
        LOG_LINKS,
        CNI_RESULTS,
        "/var/lib/cni",
        SHIM_SOCKETS,
        "/run/containerd",
        "/run/mount",
    ] {
        let _ = std::fs::remove_dir(folder);
    }
}

/// Removes a folder of ours, its record last: killed half-way, the rest is still known to be ours.
fn remove_folder(folder: &Path) -> Result<()> {
    let failed = || format!("failed to remove {}", folder.display());
    if !folder.exists() {
        return Ok(());
    }
    for entry in std::fs::read_dir(folder).with_context(failed)? {
        let entry = entry.with_context(failed)?;
        if entry.file_name() == RECORD {
            continue;
        }
        let path = entry.path();
        let removed = if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            std::fs::remove_dir_all(&path)
        } else {
            std::fs::remove_file(&path)
        };
        removed.with_context(|| format!("failed to remove {}", path.display()))?;
    }
    let _ = std::fs::remove_file(folder.join(RECORD));
    std::fs::remove_dir(folder).with_context(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_below_our_folders_are_found() {
        let text = b"1 0 8:1 / / rw - ext4 /dev/vda rw\n\
            2 1 0:5 / /run/flotilla-local/netns/cni-1 rw - nsfs nsfs rw\n\
            3 1 0:5 / /run/flotilla-local-2/x rw - tmpfs tmpfs rw\n\
            4 1 0:6 / /var/lib/flotilla-local/a\\040b rw - tmpfs tmpfs rw\n";
        let found = mounts_below(
            text,
            &[
                Path::new("/var/lib/flotilla-local"),
                Path::new("/run/flotilla-local"),
            ],
        );
        assert_eq!(
            found,
            [
                PathBuf::from("/run/flotilla-local/netns/cni-1"),
                PathBuf::from("/var/lib/flotilla-local/a b")
            ]
        );
    }

    #[test]
    fn octal_escapes_are_undone() {
        assert_eq!(unescape(b"a\\040b\\134c\\"), b"a b\\c\\");
    }

    #[test]
    fn a_strangers_folder_is_not_removed() {
        let mut settings = crate::settings::example();
        let folder = std::env::temp_dir().join(format!("flotilla-thesis-{}", std::process::id()));
        settings.root = folder.join("root");
        settings.run = folder.join("run");
        settings.state = folder.join("state");
        settings.bridge = "flotilla-none".into();
        std::fs::create_dir_all(&settings.root).unwrap();
        std::fs::create_dir_all(&settings.run).unwrap();
        std::fs::write(settings.root.join("thesis.tex"), "x").unwrap();
        clean(&settings).unwrap();
        assert!(settings.root.join("thesis.tex").exists());
        assert!(!settings.run.exists());
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn the_record_goes_last() {
        let folder = std::env::temp_dir().join(format!("flotilla-remove-{}", std::process::id()));
        std::fs::create_dir_all(folder.join("etcd/member")).unwrap();
        std::fs::write(folder.join(RECORD), "{}").unwrap();
        std::fs::write(folder.join("file"), "x").unwrap();
        remove_folder(&folder).unwrap();
        assert!(!folder.exists());
        remove_folder(&folder).unwrap();
    }
}
