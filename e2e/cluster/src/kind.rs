//! The same cluster through kind, where a container engine runs. It has no audit log, and its components cannot be
//! stopped one by one: tests that need either use the native cluster.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use crate::binaries::Programs;
use crate::progress::Progress;
use crate::record::{RECORD, Record};
use crate::settings::Settings;
use crate::shell;

/// Name of the kind cluster.
const NAME: &str = "flotilla";
/// Container engines kind works with.
const ENGINES: [&str; 3] = ["docker", "podman", "nerdctl"];

fn kind() -> Result<PathBuf> {
    let kind = shell::find("kind").context("CLUSTER=kind, but `kind` is not on the search path")?;
    let running = ENGINES
        .iter()
        .any(|engine| shell::find(engine).is_some_and(|path| shell::run(path, &["info"]).is_ok()));
    if !running {
        bail!(
            "CLUSTER=kind, but no container engine answers ({}): start one, or leave CLUSTER away for processes on this machine",
            ENGINES.map(|engine| format!("`{engine} info`")).join(", ")
        );
    }
    Ok(kind)
}

fn exists(kind: &PathBuf) -> Result<bool> {
    Ok(shell::run(kind, &["get", "clusters"])?
        .lines()
        .any(|line| line.trim() == NAME))
}

/// Makes the cluster and writes its kubeconfig, without touching the user's own.
///
/// # Errors
/// What kind said.
pub fn up(settings: &Settings, kwok: Option<u32>, programs: &Programs) -> Result<()> {
    let progress = Progress::default();
    if kwok.unwrap_or(0) > 0 {
        bail!("fake nodes (--kwok) are not made on kind: leave CLUSTER away for processes on this machine");
    }
    let kind = kind()?;
    programs.build(settings, &progress)?;
    programs.link(settings)?;
    let kubeconfig = settings.kubeconfig().display().to_string();
    std::fs::create_dir_all(&settings.state)?;
    Record::kind(settings, 0).write(&settings.state)?;
    if exists(&kind)? {
        let text = shell::run(&kind, &["get", "kubeconfig", "--name", NAME])?;
        shell::write_atomically(&settings.kubeconfig(), text.as_bytes(), 0o600)?;
        progress.say("the kind cluster is there already");
    } else {
        let arguments = [
            "create",
            "cluster",
            "--name",
            NAME,
            "--kubeconfig",
            &kubeconfig,
            "--wait",
            "180s",
        ];
        progress.long("making a kind cluster", || shell::run(&kind, &arguments))?;
    }
    progress.say(format_args!("ready: export KUBECONFIG={kubeconfig}"));
    Ok(())
}

/// Removes the cluster.
///
/// # Errors
/// What kind said.
pub fn down(settings: &Settings) -> Result<()> {
    let kubeconfig = settings.kubeconfig();
    shell::run(
        kind()?,
        &[
            "delete",
            "cluster",
            "--name",
            NAME,
            "--kubeconfig",
            &kubeconfig.display().to_string(),
        ],
    )?;
    for file in [kubeconfig, settings.state.join(RECORD)] {
        let _ = std::fs::remove_file(file);
    }
    Progress::default().say("the kind cluster is removed");
    Ok(())
}

/// Loads image archives. kind itself skips what is there.
///
/// # Errors
/// What kind said.
pub fn load(files: &[PathBuf]) -> Result<()> {
    let kind = kind()?;
    let progress = Progress::default();
    for file in files {
        shell::run(
            &kind,
            &[
                "load",
                "image-archive",
                "--name",
                NAME,
                &file.display().to_string(),
            ],
        )?;
        progress.say(format_args!("loaded {}", file.display()));
    }
    Ok(())
}

/// Says whether the cluster is there.
///
/// # Errors
/// When it is not.
pub fn status() -> Result<()> {
    if !exists(&kind()?)? {
        bail!("there is no kind cluster `{NAME}`: `CLUSTER=kind flotilla-cluster up` makes it");
    }
    Progress::default().say(format_args!("the kind cluster `{NAME}` is there"));
    Ok(())
}
