//! The gateway against peers and against no gateway at all: CPU per request, latency, streams, memory, throughput, and
//! how fast a change of weights is in force; and a provider's quota against a provider that counts.
//!
//! Everything is on this machine: this process is the client, the origin, the gateway and the peers are children of it.
//! Whatever is compared is measured in turns within one round, so that a slow minute of the machine slows both.

mod api;
mod chunks;
mod closed;
mod cpu;
mod fleet;
mod http;
mod install;
mod latency;
mod machine;
mod memory;
mod objects;
mod open;
pub mod origin;
mod peers;
mod process;
pub mod profile;
mod quota;
mod streaming;
mod streams;
mod throughput;
mod weights;

use crate::report::Row;
use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;
use std::path::PathBuf;

use machine::Cores;

/// One part of the gateway's benchmarks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// CPU per request, against Envoy, nginx, LiteLLM and Portkey.
    Cpu,
    /// Added latency at 1,000 and 3,000 requests per second.
    Latency,
    /// 50 and 500 streams at once.
    Streaming,
    /// Memory idle, with 2,000 streams, and over many requests.
    Memory,
    /// Throughput against no gateway.
    Throughput,
    /// A change of weights on three gateways.
    Weights,
    /// A provider's quota on three gateways.
    Quota,
}

/// What the benchmarks run with.
pub struct Bench {
    /// The gateway's program.
    pub program: PathBuf,
    /// Where peers are installed.
    pub cache: PathBuf,
    /// Rounds of each comparison.
    pub rounds: usize,
    /// The full ten million requests.
    pub full: bool,
    folder: PathBuf,
    cores: Cores,
}

impl Bench {
    /// Finds what is needed.
    ///
    /// # Errors
    /// When the gateway's program is missing or the machine is too small.
    pub fn new(program: Option<PathBuf>, rounds: usize, full: bool) -> Result<Self> {
        let beside = || -> Result<PathBuf> {
            let own = std::env::current_exe().context("failed to find this program")?;
            Ok(own.with_file_name("flotilla-gateway"))
        };
        let program = program.map_or_else(beside, Ok)?;
        if !program.is_file() {
            bail!(
                "there is no gateway at {}: build it with `cargo build --profile image -p flotilla-gateway`, or name one with --gateway",
                program.display()
            );
        }
        let program = program.canonicalize()?;
        let cache = std::env::var_os("FLOTILLA_CACHE").map(PathBuf::from).or_else(|| {
            let home = std::env::var_os("HOME")?;
            Some(PathBuf::from(home).join(".cache/flotilla"))
        });
        let folder = std::env::temp_dir().join(format!("flotilla-bench-{}", std::process::id()));
        machine::allow_files()?;
        Ok(Self {
            program,
            cache: cache.context("neither FLOTILLA_CACHE nor HOME is set: there is no place for peers")?,
            rounds,
            full,
            folder,
            cores: Cores::find()?,
        })
    }

    /// Runs `part`, and gives its rows.
    ///
    /// # Errors
    /// When the gateway cannot be measured. A peer that is missing is a row that says so.
    pub fn run(&self, part: Part) -> Result<Vec<Row>> {
        match part {
            Part::Cpu => cpu::run(self),
            Part::Latency => latency::run(self),
            Part::Streaming => streaming::run(self),
            Part::Memory => memory::run(self),
            Part::Throughput => throughput::run(self),
            Part::Weights => weights::run(self),
            Part::Quota => quota::run(self),
        }
    }

    /// An empty folder for `part`.
    fn folder(&self, part: &str) -> Result<PathBuf> {
        let folder = self.folder.join(part);
        std::fs::create_dir_all(&folder).with_context(|| format!("failed to make {}", folder.display()))?;
        Ok(folder)
    }

    /// A fleet of one gateway that shares both cores with client and origin.
    fn shared_fleet(&self, part: &str) -> Result<fleet::Fleet> {
        fleet::Fleet::start(&fleet::Layout {
            program: &self.program,
            folder: &self.folder(part)?,
            origin: self.cores.both(),
            gateway: self.cores.both(),
            gateways: 1,
            split: false,
        })
    }

    /// Both cores, for the client's thread.
    fn both(&self) -> Vec<usize> {
        vec![self.cores.load, self.cores.proxy]
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        // Logs and configurations; nobody needs them after a run that told what was wrong.
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// A row that could not be measured; it never counts as reached.
fn not_measured(name: impl Into<String>, goal: &str, error: &anyhow::Error) -> Row {
    let why = format!("{error:#}");
    let why: String = why.lines().next().unwrap_or_default().chars().take(200).collect();
    Row::new(name, format!("not measured: {why}"), goal, false)
}
