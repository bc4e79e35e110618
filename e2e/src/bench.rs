//! `make bench`: ratios against peers, each pair measured in turns within one run.

mod admission;
pub mod evidence;
mod fleet;
pub mod gateway;
mod histogram;
mod stats;

use crate::Cluster;
use anyhow::Result;
use clap::{Parser, Subcommand, ValueEnum};
use gateway::profile::Direction;
use gateway::{Bench, Part};
use std::path::PathBuf;

const ROUNDS: usize = 5;

/// Prints a row for each figure: name, measured, goal, and `ok` or `short`.
#[derive(Debug, Parser)]
#[command(name = "flotilla-bench")]
pub struct Args {
    /// Run only these, separated by commas. Default: all. `gateway` means admission and all parts from cpu to quota; only
    /// fleet needs a cluster.
    #[arg(long, value_enum, value_delimiter = ',')]
    pub only: Vec<Selection>,
    /// Rounds of each comparison of the gateway.
    #[arg(long, default_value_t = ROUNDS, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=100))]
    pub rounds: usize,
    /// Take ten million requests, not a sample of them, to see whether the gateway's memory grows, and 10,000 releases in each
    /// simulated world.
    #[arg(long, env = "FLOTILLA_FULL", value_parser = clap::builder::FalseyValueParser::new())]
    pub full: bool,
    /// Put the tables and the picture of evidence into this page of the documentation.
    #[arg(long, value_name = "PAGE")]
    pub write_evidence: Option<PathBuf>,
    /// The gateway's program. Default: flotilla-gateway beside this one.
    #[arg(long)]
    pub gateway: Option<PathBuf>,
    /// Anything but the benchmarks.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// Anything but the benchmarks.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// The origin that stands in for agents and providers.
    #[command(hide = true)]
    Origin {
        /// Where it listens, on 127.0.0.1 and the next addresses.
        #[arg(long)]
        port: u16,
    },
    /// Put load on one gateway and print its process id, for perf and strace.
    Profile {
        /// The way of the load.
        #[arg(value_enum)]
        direction: Direction,
        /// Bytes of each request's body; above 8 KiB the answer has 16 KiB, else 1 KiB. 0: 100 paced streams instead.
        #[arg(long, default_value_t = 1024)]
        bytes: usize,
        /// Seconds of load.
        #[arg(long, default_value_t = 10)]
        seconds: u64,
    },
}

/// What can be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Selection {
    /// The histogram against HDR's.
    Histogram,
    /// How releases are judged, beside the rules of Argo Rollouts and Flagger; simulated.
    Evidence,
    /// What quotas and budgets cost a request.
    Admission,
    /// Pools against Deployments, on the local cluster.
    Fleet,
    /// Admission, and all parts from cpu to quota.
    Gateway,
    /// The gateway's CPU per request, against Envoy, nginx, LiteLLM and Portkey.
    Cpu,
    /// The gateway's added latency.
    Latency,
    /// The gateway with 50 and with 500 streams at once.
    Streaming,
    /// The gateway's memory.
    Memory,
    /// The gateway's throughput.
    Throughput,
    /// A change of weights on three gateways.
    Weights,
    /// A provider's quota on three gateways, and what of it a modest pool gets beside a greedy one.
    Quota,
}

impl Selection {
    fn part(self) -> Option<Part> {
        match self {
            Self::Histogram | Self::Evidence | Self::Admission | Self::Fleet | Self::Gateway => None,
            Self::Cpu => Some(Part::Cpu),
            Self::Latency => Some(Part::Latency),
            Self::Streaming => Some(Part::Streaming),
            Self::Memory => Some(Part::Memory),
            Self::Throughput => Some(Part::Throughput),
            Self::Weights => Some(Part::Weights),
            Self::Quota => Some(Part::Quota),
        }
    }
}

/// Runs what `args` select. Not to be called inside a runtime: loads run on threads and runtimes of their own.
///
/// # Errors
/// When a benchmark cannot be run at all.
pub fn run(args: &Args) -> Result<()> {
    let gateway_bench = || Bench::new(args.gateway.clone(), args.rounds, args.full);
    match &args.command {
        Some(Command::Origin { port }) => return gateway::origin::run(*port),
        Some(Command::Profile {
            direction,
            bytes,
            seconds,
        }) => {
            let time = std::time::Duration::from_secs(*seconds);
            return gateway::profile::run(&gateway_bench()?, *direction, *bytes, time);
        }
        None => {}
    }
    let wants = |one: Selection| args.only.is_empty() || args.only.contains(&one);
    let whole_gateway = args.only.contains(&Selection::Gateway);
    if wants(Selection::Histogram) {
        for row in histogram::run()? {
            println!("{row}");
        }
    }
    if wants(Selection::Evidence) {
        for row in evidence::run(args.full, args.write_evidence.as_deref())? {
            println!("{row}");
        }
    }
    if wants(Selection::Admission) || whole_gateway {
        for row in admission::run()? {
            println!("{row}");
        }
    }
    let parts: Vec<Part> = Selection::value_variants()
        .iter()
        .filter(|one| wants(**one) || whole_gateway)
        .filter_map(|one| one.part())
        .collect();
    if !parts.is_empty() {
        let bench = gateway_bench()?;
        for part in parts {
            for row in bench.run(part)? {
                println!("{row}");
            }
        }
    }
    if wants(Selection::Fleet) {
        tokio::runtime::Runtime::new()?.block_on(run_fleet())?;
    }
    Ok(())
}

async fn run_fleet() -> Result<()> {
    let cluster = Cluster::connect().await?;
    if !cluster.is_local() {
        println!(
            "fleets beside Deployments: skipped, the audit log and the fake nodes need the local cluster"
        );
        return Ok(());
    }
    for row in fleet::run(&cluster).await? {
        println!("{row}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn flags_are_consistent() {
        Args::command().debug_assert();
        let args = Args::parse_from(["flotilla-bench", "--only", "cpu,weights", "--rounds", "7"]);
        assert_eq!(args.only, [Selection::Cpu, Selection::Weights]);
    }
}
