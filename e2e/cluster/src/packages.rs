//! Programs that come from the distribution: the container runtime and the network tools.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::progress::Progress;
use crate::shell;

/// Programs looked for, each with the Debian package that has it.
const PROGRAMS: [(&str, &str); 10] = [
    ("containerd", "containerd"),
    ("containerd-shim-runc-v2", "containerd"),
    ("ctr", "containerd"),
    ("runc", "runc"),
    ("nft", "nftables"),
    ("iptables", "iptables"),
    ("ip", "iproute2"),
    ("conntrack", "conntrack"),
    ("mount", "mount"),
    ("ethtool", "ethtool"),
];

/// Where distributions put the CNI plugins.
const CNI_FOLDERS: [&str; 3] = ["/usr/lib/cni", "/opt/cni/bin", "/usr/libexec/cni"];
/// The plugins the network's configuration names.
const CNI_PLUGINS: [&str; 4] = ["bridge", "host-local", "loopback", "portmap"];
/// Debian's package of the plugins.
const CNI_PACKAGE: &str = "containernetworking-plugins";

/// The folder with the CNI plugins: the chosen one, or the first that has them all.
pub fn cni_folder(chosen: Option<&Path>) -> Option<PathBuf> {
    let complete = |folder: &Path| CNI_PLUGINS.iter().all(|plugin| folder.join(plugin).is_file());
    match chosen {
        Some(folder) => complete(folder).then(|| folder.to_owned()),
        None => CNI_FOLDERS
            .into_iter()
            .map(PathBuf::from)
            .find(|folder| complete(folder)),
    }
}

/// Debian packages of what is missing, each once.
fn missing(find: impl Fn(&str) -> bool, cni: bool) -> Vec<&'static str> {
    let mut packages: Vec<&str> = Vec::new();
    let needed = PROGRAMS
        .iter()
        .filter(|(program, _)| !find(program))
        .map(|(_, package)| *package);
    for package in needed.chain((!cni).then_some(CNI_PACKAGE)) {
        if !packages.contains(&package) {
            packages.push(package);
        }
    }
    packages
}

/// Installs what is missing and gives the folder of the CNI plugins.
///
/// # Errors
/// When it cannot be installed here; the message names the packages.
pub fn ensure(chosen_cni: Option<&Path>, progress: &Progress) -> Result<PathBuf> {
    let look = || {
        missing(
            |program| shell::find(program).is_some(),
            cni_folder(chosen_cni).is_some(),
        )
    };
    if let Some(folder) = chosen_cni
        && cni_folder(chosen_cni).is_none()
    {
        bail!(
            "--cni-bin {} does not hold the CNI plugins {}",
            folder.display(),
            CNI_PLUGINS.join(", ")
        );
    }
    let packages = look();
    if !packages.is_empty() {
        install(&packages, progress)?;
        let still = look();
        if !still.is_empty() {
            bail!(
                "after installing them, programs of these packages are still missing: {}",
                still.join(" ")
            );
        }
    }
    cni_folder(chosen_cni).context("the CNI plugins are missing")
}

fn install(packages: &[&str], progress: &Progress) -> Result<()> {
    let list = packages.join(" ");
    if shell::find("apt-get").is_none() {
        bail!(
            "programs are missing and this machine has no apt-get; install what Debian calls {list} with the machine's own \
             package manager, then run this again"
        );
    }
    progress.long(&format!("installing packages: {list}"), || {
        let advice = || format!("failed to install {list}; install them by hand, then run this again");
        let apt = [
            "DEBIAN_FRONTEND=noninteractive",
            "apt-get",
            "-o",
            "DPkg::Lock::Timeout=300",
            "-y",
            "-qq",
        ];
        shell::run("env", &[&apt[..], &["update"]].concat()).with_context(advice)?;
        let install = [&apt[..], &["install", "--no-install-recommends"], packages].concat();
        shell::run("env", &install).with_context(advice)?;
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_missing_package_is_named_once() {
        assert!(missing(|_| true, true).is_empty());
        assert_eq!(missing(|_| true, false), [CNI_PACKAGE]);
        assert_eq!(
            missing(|program| !["ctr", "containerd"].contains(&program), true),
            ["containerd"]
        );
    }

    #[test]
    fn a_chosen_folder_must_have_the_plugins() {
        assert_eq!(cni_folder(Some(Path::new("/nowhere"))), None);
    }
}
