//! `flotilla-cluster`: starts, stops and looks after the local Kubernetes cluster.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command as Process, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use flotilla_cluster::binaries::Programs;
use flotilla_cluster::cluster;
use flotilla_cluster::component::Component;
use flotilla_cluster::progress::Progress;
use flotilla_cluster::record::{Engine, Record};
use flotilla_cluster::settings::Settings;
use flotilla_cluster::{images, kind, process};

/// A real Kubernetes on this machine, without a container engine.
#[derive(Parser)]
#[command(version, about)]
struct Line {
    #[command(flatten)]
    settings: Settings,
    /// What runs the cluster: `native` (processes on this machine) or `kind`.
    #[arg(long = "cluster", global = true, env = "CLUSTER", default_value = "native", value_parser = engine)]
    engine: Engine,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Starts the cluster, or what of it does not run; the first time on a machine it builds Kubernetes.
    Up {
        /// Number of fake nodes for scale tests, tainted `kwok.x-k8s.io/node=fake:NoSchedule`. Without it a running
        /// cluster keeps those it has.
        #[arg(long, env = "KWOK")]
        kwok: Option<String>,
    },
    /// Ends the cluster and removes everything it made but its logs.
    Down,
    /// Shows the components and whether the cluster is ready.
    Status,
    /// Builds the programs into the cache and links kubectl, helm, helm3, kwok and kubeconform into <state>/bin.
    Build,
    /// Imports image archives (docker-archive tars); images that are there already are skipped.
    Load {
        /// The archives.
        #[arg(required = true)]
        archives: Vec<PathBuf>,
    },
    /// Starts stopped components.
    Start {
        /// Which ones.
        #[arg(required = true, value_enum)]
        components: Vec<Component>,
    },
    /// Stops components; `up` or `start` starts them again.
    Stop {
        #[command(flatten)]
        how: How,
    },
    /// Stops and starts components.
    Restart {
        #[command(flatten)]
        how: How,
    },
    /// Shows the end of a component's log.
    Logs {
        /// Which one.
        #[arg(value_enum)]
        component: Component,
        /// Number of lines.
        #[arg(long, short = 'n', default_value_t = 50)]
        lines: u32,
        /// Goes on showing what is written.
        #[arg(long, short)]
        follow: bool,
    },
    /// Leaves the session, writes the pid file and becomes a component.
    #[command(hide = true)]
    Become {
        pid_file: PathBuf,
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        line: Vec<String>,
    },
}

#[derive(clap::Args)]
struct How {
    /// Which ones.
    #[arg(required = true, value_enum)]
    components: Vec<Component>,
    /// SIGKILL at once.
    #[arg(long)]
    kill: bool,
    /// Seconds between SIGTERM and SIGKILL.
    #[arg(long, default_value_t = 10, value_name = "SECONDS")]
    grace: u64,
}

impl How {
    fn grace(&self) -> Duration {
        if self.kill {
            Duration::ZERO
        } else {
            Duration::from_secs(self.grace)
        }
    }
}

fn engine(text: &str) -> Result<Engine> {
    match text {
        // `make cluster CLUSTER=` means the default.
        "" | "native" => Ok(Engine::Native),
        "kind" => Ok(Engine::Kind),
        other => bail!("{other:?} is neither `native` nor `kind`"),
    }
}

fn main() -> ExitCode {
    match run(Line::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(line: Line) -> Result<()> {
    if let Command::Become { pid_file, line } = &line.command {
        return Err(process::become_component(pid_file, line));
    }
    let settings = line.settings.resolve()?;
    let programs = Programs::in_cache()?;
    match line.command {
        Command::Up { kwok } => {
            let kwok = count(kwok.as_deref())?;
            match line.engine {
                Engine::Native => cluster::up(&settings, kwok, &programs),
                Engine::Kind => kind::up(&settings, kwok, &programs),
            }
        }
        Command::Build => {
            programs.build(&settings, &Progress::default())?;
            programs.link(&settings)
        }
        other => existing(other, line.engine, settings, &programs),
    }
}

/// Commands for a cluster that is there: what `up` recorded counts, not the flags.
fn existing(command: Command, engine: Engine, settings: Settings, programs: &Programs) -> Result<()> {
    let record = Record::read(&settings.state).filter(|record| record.settings.state == settings.state);
    let (settings, engine) = record.map_or((settings, engine), |record| (record.settings, record.engine));
    match (command, engine) {
        (Command::Down, Engine::Native) => cluster::down(&settings),
        (Command::Down, Engine::Kind) => kind::down(&settings),
        (Command::Status, Engine::Native) => cluster::status(&settings, programs),
        (Command::Status, Engine::Kind) => kind::status(),
        (Command::Load { archives }, Engine::Native) => {
            images::load(&settings, &archives, &Progress::default())
        }
        (Command::Load { archives }, Engine::Kind) => kind::load(&archives),
        (Command::Start { components }, Engine::Native) => cluster::start(&settings, &components, programs),
        (Command::Stop { how }, Engine::Native) => cluster::stop(&settings, &how.components, how.grace()),
        (Command::Restart { how }, Engine::Native) => {
            cluster::stop(&settings, &how.components, how.grace())?;
            cluster::start(&settings, &how.components, programs)
        }
        (
            Command::Logs {
                component,
                lines,
                follow,
            },
            Engine::Native,
        ) => {
            let file = component.log(&settings);
            let follow = if follow { &["-F"][..] } else { &[] };
            let status = Process::new("tail")
                .args(["-n", &lines.to_string()])
                .args(follow)
                .arg(&file)
                .status();
            let status = status.with_context(|| format!("failed to show {}", file.display()))?;
            if !status.success() {
                bail!("failed to show {}", file.display());
            }
            Ok(())
        }
        (
            Command::Start { .. } | Command::Stop { .. } | Command::Restart { .. } | Command::Logs { .. },
            Engine::Kind,
        ) => {
            bail!("single components cannot be reached on kind: they run in its node's container")
        }
        (Command::Up { .. } | Command::Build | Command::Become { .. }, _) => {
            bail!("not a command for a running cluster")
        }
    }
}

fn count(text: Option<&str>) -> Result<Option<u32>> {
    match text {
        None | Some("") => Ok(None),
        Some(text) => text
            .parse()
            .map(Some)
            .with_context(|| format!("--kwok {text:?} is not a number of nodes")),
    }
}
