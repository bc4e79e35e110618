//! The cluster under test: its client, its tools, and its state folder.

use anyhow::{Context, Result, bail};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

/// Handle to the cluster named by the environment.
#[derive(Clone)]
pub struct Cluster {
    /// Administrator's client.
    pub client: Client,
    /// Path of its kubeconfig.
    pub kubeconfig: PathBuf,
    /// `.local` of the clone; `logs/`, `audit.log` and `bin/` are in it when the cluster is ours.
    pub state: PathBuf,
    tool: Option<PathBuf>,
}

impl Cluster {
    /// Connects to the cluster of `FLOTILLA_KUBECONFIG`.
    ///
    /// # Errors
    /// When the variable is not set (these tests never use the current context) or the file cannot be used.
    pub async fn connect() -> Result<Self> {
        let kubeconfig = std::env::var_os("FLOTILLA_KUBECONFIG")
            .map(PathBuf::from)
            .context("FLOTILLA_KUBECONFIG is not set: these scenarios need a cluster; run `make test` or `make e2e`")?;
        let state = std::env::var_os("FLOTILLA_STATE").map_or_else(|| PathBuf::from(".local"), PathBuf::from);
        let tool = std::env::var_os("FLOTILLA_CLUSTER_TOOL")
            .map(PathBuf::from)
            .filter(|_| state.join("audit.log").exists());
        let client = client(&kubeconfig).await?;
        Ok(Self {
            client,
            kubeconfig,
            state,
            tool,
        })
    }

    /// True when the cluster is the local one, whose components can be stopped and whose processes are on this machine.
    pub fn is_local(&self) -> bool {
        self.tool.is_some()
    }

    /// Runs the cluster tool with `arguments`.
    pub async fn tool(&self, arguments: &[&str]) -> Result<()> {
        let tool = self
            .tool
            .as_deref()
            .context("this scenario stops components and needs the local cluster")?;
        run(
            tool,
            &[arguments, &["--state", &self.state.to_string_lossy()]].concat(),
        )
        .await
        .map(drop)
    }

    /// Runs kubectl and gives what it printed.
    pub async fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        run(
            Path::new("kubectl"),
            &[&["--kubeconfig", &self.kubeconfig.to_string_lossy()], arguments].concat(),
        )
        .await
    }
}

async fn client(kubeconfig: &Path) -> Result<Client> {
    let file = Kubeconfig::read_from(kubeconfig)
        .with_context(|| format!("failed to read {}", kubeconfig.display()))?;
    let mut config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
    config.default_retry = false;
    config.connect_timeout = Some(Duration::from_secs(5));
    config.read_timeout = Some(Duration::from_secs(60));
    Ok(Client::try_from(config)?)
}

async fn run(program: &Path, arguments: &[&str]) -> Result<String> {
    let output = tokio::process::Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .with_context(|| format!("failed to start {}", program.display()))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!(
            "{} {}: {}\n{text}{}",
            program.display(),
            arguments.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(text)
}
