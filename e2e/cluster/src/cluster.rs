//! `up`, `down`, `status`, and the single components.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

use crate::binaries::Programs;
use crate::clash;
use crate::cleanup;
use crate::component::Component;
use crate::config::{self, Machine};
use crate::health;
use crate::images;
use crate::lock::Lock;
use crate::network;
use crate::objects;
use crate::packages;
use crate::pki;
use crate::process::{self, Started};
use crate::progress::Progress;
use crate::record::{Engine, Folder, Record, boot_id, inspect, require};
use crate::settings::Settings;
use crate::shell;

/// How long the API server may take; seconds on a quiet machine, more beside a compiler.
const API_LIMIT: Duration = Duration::from_secs(90);
/// How long everything after it may take.
const READY_LIMIT: Duration = Duration::from_secs(90);

/// Hash over everything that decides how the cluster behaves.
fn fingerprint(settings: &Settings, machine: &Machine, programs: &Programs) -> String {
    let mut hash = Sha256::new();
    hash.update(programs.fingerprint());
    for (path, content) in config::render(settings, machine) {
        hash.update(path.as_os_str().as_encoded_bytes());
        hash.update(content);
    }
    for component in Component::ALL {
        hash.update(component.command(settings, programs).join("\0"));
    }
    hash.finalize()
        .iter()
        .take(8)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn ensure_root() -> Result<()> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "the local cluster makes control groups, mounts and a bridge: run as root (`sudo -E make cluster`), or use a \
         container engine and kind (`CLUSTER=kind`)"
    );
    Ok(())
}

fn lock(settings: &Settings, progress: &Progress) -> Result<Lock> {
    Lock::take(&settings.run.with_extension("lock"), progress)
}

/// Makes sure that root and run folder are ours or nobody's. What a dead cluster of another clone left is removed.
fn claim_folders(settings: &Settings, progress: &Progress) -> Result<()> {
    for (flag, folder) in [("--root", &settings.root), ("--run", &settings.run)] {
        match inspect(folder) {
            Folder::Free => {}
            Folder::Stranger if Record::of(settings).is_some() => {}
            Folder::Stranger => bail!(
                "the folder {} exists, is not empty and was not made by flotilla-cluster: choose another one with {flag}",
                folder.display()
            ),
            Folder::Cluster(other) if other.state == settings.state => {}
            Folder::Cluster(other) if process::components(&other).is_empty() => {
                progress.say(format_args!(
                    "removing what the cluster of {} left",
                    other.state.display()
                ));
                cleanup::clean(&other)?;
            }
            Folder::Cluster(other) => bail!(
                "the cluster of another clone runs here: {state} uses {folder}. `flotilla-cluster down --state {state}` ends it \
                 (to keep it, choose other places with --root, --run, --bridge, --cgroup, --pod-cidr and --service-cidr; \
                 but two kube-proxies on one machine overwrite each other's rules)",
                state = other.state.display(),
                folder = folder.display()
            ),
        }
    }
    Ok(())
}

/// Starts the cluster, or whatever of it does not run.
///
/// # Errors
/// Names the component, shows its log and says what to do.
pub fn up(settings: &Settings, kwok: Option<u32>, programs: &Programs) -> Result<()> {
    ensure_root()?;
    let progress = Progress::default();
    let _lock = lock(settings, &progress)?;
    if let Some(previous) = Record::read(&settings.state) {
        replace(&previous, settings, &progress)?;
    }
    claim_folders(settings, &progress)?;
    programs.build(settings, &progress)?;
    programs.link(settings)?;
    let cni_bin = packages::ensure(settings.cni_bin.as_deref(), &progress)?;
    let resolv_conf = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let machine = Machine {
        cni_bin,
        name_servers: config::name_servers(&resolv_conf),
    };
    let start = Start {
        settings,
        programs,
        machine: &machine,
        progress: &progress,
    };

    if let Some(record) = Record::of(settings).filter(|record| start.can_go_on(record)) {
        let count = kwok.unwrap_or(record.kwok);
        let expected = expected(record.kwok);
        if health::first_problem(settings, programs, &expected).is_none() {
            if record.fingerprint != start.fingerprint() {
                progress.say("this cluster was started by another version; `down` and `up` renew it");
            }
            if count != record.kwok {
                start.set_fake_nodes(record, count)?;
            }
            progress.say(format_args!(
                "the cluster is running: export KUBECONFIG={}",
                settings.kubeconfig().display()
            ));
            return Ok(());
        }
        if record.fingerprint == start.fingerprint() {
            progress.say("the cluster runs in part: starting what is missing");
            match start.components(record, count) {
                Ok(()) => return Ok(()),
                Err(error) => progress.say(format_args!("that did not help, starting anew. {error:#}")),
            }
        } else {
            progress.say("the cluster runs in part and was started by another version: starting anew");
        }
    }
    cleanup::clean(settings).context("failed to remove what an earlier cluster left")?;
    start.afresh(kwok.unwrap_or(0))
}

/// Deals with an earlier cluster of this clone whose settings were different.
fn replace(previous: &Record, wanted: &Settings, progress: &Progress) -> Result<()> {
    if previous.engine == Engine::Kind {
        bail!("this clone's cluster runs on kind: `CLUSTER=kind flotilla-cluster down` ends it");
    }
    if previous.settings == *wanted || previous.settings.state != wanted.state {
        return Ok(());
    }
    if !process::components(&previous.settings).is_empty() {
        bail!(
            "the cluster runs with other settings ({}): repeat the flags it was started with, or `flotilla-cluster down` first",
            differences(&previous.settings, wanted).join(", ")
        );
    }
    progress.say("removing what the cluster with the former settings left");
    cleanup::clean(&previous.settings)
}

/// Names and values of the settings that differ, as `name: old -> new`.
fn differences(old: &Settings, new: &Settings) -> Vec<String> {
    let flat = |settings: &Settings| {
        let mut values = BTreeMap::new();
        if let Ok(serde_json::Value::Object(map)) = serde_json::to_value(settings) {
            for (name, value) in map {
                match value {
                    serde_json::Value::Object(inner) => values.extend(inner),
                    other => {
                        values.insert(name, other);
                    }
                }
            }
        }
        values
    };
    let new = flat(new);
    flat(old)
        .into_iter()
        .filter_map(|(name, value)| {
            let now = new.get(&name)?;
            (*now != value).then(|| format!("{name}: {value} -> {now}"))
        })
        .collect()
}

fn expected(kwok: u32) -> Vec<Component> {
    let mut expected = Component::ALWAYS.to_vec();
    if kwok > 0 {
        expected.push(Component::Kwok);
    }
    expected
}

struct Start<'a> {
    settings: &'a Settings,
    programs: &'a Programs,
    machine: &'a Machine,
    progress: &'a Progress,
}

impl Start<'_> {
    fn fingerprint(&self) -> String {
        fingerprint(self.settings, self.machine, self.programs)
    }

    /// Whether there is a cluster whose data is worth keeping: its files are whole and something of it is alive.
    fn can_go_on(&self, record: &Record) -> bool {
        record.configured
            && record.settings == *self.settings
            && record.boot == boot_id()
            && network::bridge_exists(self.settings)
            && self.settings.kubeconfig().is_file()
            && !process::components(self.settings).is_empty()
    }

    fn afresh(&self, kwok: u32) -> Result<()> {
        let settings = self.settings;
        clash::check(settings, &clash::Machine::look(settings))?;
        let mut record = Record {
            settings: settings.clone(),
            engine: Engine::Native,
            kwok,
            boot: boot_id(),
            fingerprint: self.fingerprint(),
            kernel: network::kernel_settings(),
            configured: false,
        };
        record.write_everywhere()?;
        for folder in [&settings.root, &settings.run] {
            use std::os::unix::fs::PermissionsExt;
            std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o711))?;
        }
        rotate_logs(settings);
        network::create(settings)?;
        config::write(settings, self.machine)?;
        pki::generate(settings).context("failed to make the certificates")?;
        record.configured = true;
        record.write_everywhere()?;
        self.progress
            .say("network, certificates and configuration are made");
        self.components(record, kwok)
    }

    /// Starts the components that do not run, in waves: each wave needs the one before, and within one they start
    /// together.
    fn components(&self, mut record: Record, kwok: u32) -> Result<()> {
        let Self {
            settings,
            programs,
            progress,
            ..
        } = *self;
        let mut started = Vec::new();
        for component in [Component::Etcd, Component::ApiServer, Component::Containerd] {
            self.start(component, &mut started)?;
        }
        health::wait_for_containerd(settings, &mut started, API_LIMIT)?;
        images::import_pause(settings, programs)?;
        progress.say("containerd is ready");
        health::wait_for_api(settings, programs, &mut started, API_LIMIT)?;
        progress.say(format_args!("the API server is ready at {}", settings.api_url()));
        for component in [
            Component::Kubelet,
            Component::ControllerManager,
            Component::KubeProxy,
            Component::Scheduler,
        ] {
            self.start(component, &mut started)?;
        }
        objects::apply_dns(settings, programs)?;
        self.start(Component::CoreDns, &mut started)?;
        if kwok != record.kwok {
            record.kwok = kwok;
            record.write_everywhere()?;
        }
        if kwok > 0 {
            self.start(Component::Kwok, &mut started)?;
            objects::apply_fake_nodes(settings, programs, kwok)?;
        }
        health::wait_until_ready(settings, programs, &expected(kwok), &mut started, READY_LIMIT)?;
        progress.say(format_args!(
            "the node is ready, Services and DNS ({}) answer",
            settings.dns_service_ip()
        ));
        health::wait_for_fake_nodes(settings, programs, kwok, &mut started, READY_LIMIT, progress)?;
        progress.say(format_args!(
            "ready: export KUBECONFIG={}",
            settings.kubeconfig().display()
        ));
        Ok(())
    }

    fn start(&self, component: Component, started: &mut Vec<Started>) -> Result<()> {
        if process::find(component, self.settings).is_none() {
            started.push(process::start(component, self.settings, self.programs)?);
        }
        Ok(())
    }

    fn set_fake_nodes(&self, mut record: Record, count: u32) -> Result<()> {
        let Self {
            settings,
            programs,
            progress,
            ..
        } = *self;
        let mut started = Vec::new();
        if count > 0 {
            self.start(Component::Kwok, &mut started)?;
        }
        objects::apply_fake_nodes(settings, programs, count)?;
        if count == 0 {
            process::stop(Component::Kwok, settings, Duration::from_secs(5))?;
        }
        record.kwok = count;
        record.write_everywhere()?;
        health::wait_for_fake_nodes(settings, programs, count, &mut started, READY_LIMIT, progress)
    }
}

/// Keeps the logs of the run before, one generation, and begins an empty audit log.
fn rotate_logs(settings: &Settings) {
    for component in Component::ALL {
        let log = component.log(settings);
        let _ = std::fs::rename(&log, log.with_extension("log.1"));
    }
    let _ = std::fs::remove_file(settings.audit_log());
}

/// Removes the cluster.
///
/// # Errors
/// Names what could not be removed.
pub fn down(settings: &Settings) -> Result<()> {
    ensure_root()?;
    let progress = Progress::default();
    let _lock = lock(settings, &progress)?;
    if let Folder::Cluster(other) = inspect(&settings.root)
        && other.state != settings.state
    {
        if !process::components(&other).is_empty() {
            bail!(
                "the cluster in {} belongs to {state}: `flotilla-cluster down --state {state}` removes it",
                settings.root.display(),
                state = other.state.display()
            );
        }
        cleanup::clean(&other)?;
    }
    cleanup::clean(settings)?;
    progress.say(format_args!(
        "the cluster is removed; its logs stay in {}",
        settings.logs().display()
    ));
    Ok(())
}

/// Prints what runs, and says whether all is well.
///
/// # Errors
/// The first thing that does not work.
pub fn status(settings: &Settings, programs: &Programs) -> Result<()> {
    let kwok = require(settings)?.kwok;
    let running = process::components(settings);
    let out = std::io::stdout();
    let mut out = out.lock();
    let mut line = |text: String| {
        use std::io::Write;
        // A closed standard output, as with `| head`, is the reader's choice.
        let _ = writeln!(out, "{text}");
    };
    for component in expected(kwok) {
        let pid = running
            .iter()
            .find(|(found, _)| *found == component)
            .map(|(_, process)| process.pid);
        let pid = pid.map_or_else(|| "not running".to_owned(), |pid| format!("pid {pid}"));
        line(format!(
            "{:<24} {pid:<12} {}",
            component.program(),
            component.log(settings).display()
        ));
    }
    line(format!("{:<24} {}", "API server", settings.api_url()));
    line(format!(
        "{:<24} {}",
        "kubeconfig",
        settings.kubeconfig().display()
    ));
    match health::first_problem(settings, programs, &expected(kwok)) {
        None => {
            line("ready".to_owned());
            Ok(())
        }
        Some(problem) => Err(health::failure(settings, problem.component, &problem.text)),
    }
}

/// Stops single components.
///
/// # Errors
/// When one does not end.
pub fn stop(settings: &Settings, components: &[Component], grace: Duration) -> Result<()> {
    let progress = Progress::default();
    let _lock = running_lock(settings, &progress)?;
    for component in components {
        match process::stop(*component, settings, grace)? {
            Some(pid) => progress.say(format_args!("{component} (pid {pid}) is stopped")),
            None => progress.say(format_args!("{component} did not run")),
        }
    }
    Ok(())
}

/// Starts single components and waits for the API server, when it is one of them, to be ready.
///
/// # Errors
/// Names the component, shows its log and says what to do.
pub fn start(settings: &Settings, components: &[Component], programs: &Programs) -> Result<()> {
    /// A component that cannot run ends within this time.
    const SETTLE: Duration = Duration::from_millis(300);
    let progress = Progress::default();
    let _lock = running_lock(settings, &progress)?;
    let mut started = Vec::new();
    for component in components {
        if process::find(*component, settings).is_some() {
            progress.say(format_args!("{component} runs already"));
        } else {
            started.push(process::start(*component, settings, programs)?);
        }
    }
    if components.contains(&Component::Containerd) {
        health::wait_for_containerd(settings, &mut started, API_LIMIT)?;
    }
    if components.contains(&Component::ApiServer) {
        health::wait_for_api(settings, programs, &mut started, API_LIMIT)?;
    }
    shell::pause(SETTLE);
    for process in &mut started {
        if let Some(status) = process.ended() {
            return Err(health::failure(
                settings,
                process.component,
                &format!("ended at once ({status})"),
            ));
        }
        progress.say(format_args!("{} is started", process.component));
    }
    Ok(())
}

fn running_lock(settings: &Settings, progress: &Progress) -> Result<Lock> {
    ensure_root()?;
    let lock = lock(settings, progress)?;
    require(settings)?;
    Ok(lock)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::example;

    fn temporary(name: &str) -> std::path::PathBuf {
        let folder = std::env::temp_dir().join(format!("flotilla-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        folder
    }

    #[test]
    fn a_strangers_folder_is_refused() {
        let mut settings = example();
        settings.root = temporary("stranger");
        std::fs::write(settings.root.join("thesis.tex"), "x").unwrap();
        let error = claim_folders(&settings, &Progress::default())
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("--root") && error.contains("thesis").eq(&false),
            "{error}"
        );
        assert!(settings.root.join("thesis.tex").exists());
        std::fs::remove_dir_all(&settings.root).unwrap();
    }

    #[test]
    fn changed_settings_are_named() {
        let mut new = example();
        new.bridge = "other0".into();
        new.ports.api_port = 7443;
        let text = differences(&example(), &new).join(", ");
        assert_eq!(text, "apiPort: 6443 -> 7443, bridge: \"flot0\" -> \"other0\"");
    }

    #[test]
    fn the_fingerprint_follows_settings_and_machine() {
        let programs = Programs::at("/cache".into());
        let machine = Machine {
            cni_bin: "/usr/lib/cni".into(),
            name_servers: Vec::new(),
        };
        let base = fingerprint(&example(), &machine, &programs);
        assert_eq!(base, fingerprint(&example(), &machine, &programs));
        let mut other = example();
        other.ports.api_port = 7443;
        assert_ne!(base, fingerprint(&other, &machine, &programs));
        let moved = Machine {
            cni_bin: "/opt/cni/bin".into(),
            ..machine
        };
        assert_ne!(base, fingerprint(&example(), &moved, &programs));
    }
}
