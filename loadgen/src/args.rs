//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Parser, ValueEnum};

/// Sends the requests of a LoadTest and leaves its result where Kubernetes keeps it.
///
/// In a cluster the operator starts it with everything in the environment. By hand, without Kubernetes, it needs no
/// more than `flotilla-loadgen --plan plan.json -o text`.
///
/// A plan with more than one worker needs one process each: the one with --index 0 listens, the others get its
/// address as --coordinator.
///
/// Exit codes: 0 measured to the end, 64 the plan or a flag is wrong, 65 the plan's file or the target's name does not
/// exist, 75 stopped before the start (may be repeated), 76 stopped after it (a partial result was left).
#[derive(Clone, Debug, Parser)]
#[command(name = "flotilla-loadgen", version)]
pub struct Args {
    /// The plan, JSON.
    #[arg(
        long,
        env = "FLOTILLA_PLAN",
        value_name = "FILE",
        default_value = "/etc/flotilla/plan/plan.json"
    )]
    pub plan: PathBuf,

    /// Which worker this is, from 0; worker 0 coordinates.
    #[arg(long, env = "JOB_COMPLETION_INDEX", value_name = "N", default_value_t = 0)]
    pub index: u32,

    /// Where worker 0 is found; not needed by worker 0.
    #[arg(long, env = "FLOTILLA_COORDINATOR", value_name = "HOST:PORT")]
    pub coordinator: Option<String>,

    /// Where worker 0 listens.
    #[arg(
        long,
        env = "FLOTILLA_LISTEN",
        value_name = "ADDRESS",
        default_value = "0.0.0.0:9091"
    )]
    pub listen: SocketAddr,

    /// From the last worker's arrival to the common start, at least; only with several workers.
    #[arg(
        long,
        env = "FLOTILLA_START_LEAD_MILLISECONDS",
        value_name = "MILLISECONDS",
        default_value_t = 2000
    )]
    pub start_lead_milliseconds: u64,

    /// Where the result goes as a termination message of at most 4096 bytes; skipped if the file does not exist.
    #[arg(
        long,
        env = "FLOTILLA_TERMINATION_LOG",
        value_name = "FILE",
        default_value = "/dev/termination-log"
    )]
    pub termination_log: PathBuf,

    /// Write one CSV line per request to this file.
    #[arg(long, value_name = "FILE")]
    pub samples: Option<PathBuf>,

    /// How to print the result; text on a terminal, else json.
    #[arg(short, long, value_enum)]
    pub output: Option<Output>,

    /// What to log: error, warn, info, debug, trace, or a tracing filter. Text on a terminal, else JSON; to stderr.
    #[arg(long, env = "FLOTILLA_LOG", value_name = "FILTER", default_value = "info")]
    pub log: String,
}

/// How the result is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// A table for people.
    Text,
    /// The summary in the shape of a LoadTest's status.
    Json,
    /// Nothing.
    None,
}
