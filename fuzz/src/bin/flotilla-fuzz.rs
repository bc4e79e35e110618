//! `flotilla-fuzz`: runs the targets and prints a line for each.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use flotilla_fuzz::engine::{Failure, Plan, execute, run};
use flotilla_fuzz::{Target, regressions, targets};

/// Feeds mutated real input to every parser of foreign input.
#[derive(Debug, Parser)]
#[command(name = "flotilla-fuzz")]
struct Args {
    /// Executions of each target.
    #[arg(long, default_value_t = 1_000_000)]
    executions: u64,
    /// Only the targets whose name contains this.
    #[arg(long, default_value = "")]
    only: String,
    /// Seed of the random numbers.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Threads. Default: one per processor.
    #[arg(long)]
    threads: Option<u64>,
    /// Where inputs that fail are written, in a folder per target.
    #[arg(long, default_value = "fuzz-failures")]
    out: PathBuf,
    /// Execute this file once instead.
    #[arg(long)]
    input: Option<PathBuf>,
    /// Only list the targets.
    #[arg(long)]
    list: bool,
}

fn main() -> Result<ExitCode> {
    let args = Args::parse();
    let chosen: Vec<Target> = targets::all()
        .into_iter()
        .filter(|target| target.name.contains(&args.only))
        .collect();
    ensure!(
        !chosen.is_empty(),
        "no target's name contains {:?}; --list names them",
        args.only
    );
    let mut good = true;
    for target in &chosen {
        if args.list {
            println!("{:<20} {}", target.name, target.about);
        } else if let Some(path) = &args.input {
            let input = std::fs::read(path).with_context(|| format!("failed to read {}", path.display()))?;
            good &= once(target, &input);
        } else {
            good &= many(target, &args)?;
        }
    }
    Ok(if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn once(target: &Target, input: &[u8]) -> bool {
    match execute(target, input) {
        Ok((outcome, taken)) => println!("{:<20} ok, outcome {outcome:016x}, {taken:?}", target.name),
        Err(failure) => {
            say(target, &failure);
            return false;
        }
    }
    true
}

fn many(target: &Target, args: &Args) -> Result<bool> {
    let processors = std::thread::available_parallelism().map_or(1, |count| count.get() as u64);
    let plan = Plan {
        executions: args.executions,
        seed: args.seed,
        threads: args.threads.unwrap_or(processors),
    };
    let start = Instant::now();
    let report = run(target, &regressions(target.name)?, plan);
    println!(
        "{:<20} {:>9} executions, {:>5} outcomes, slowest {:>9.3?}, {:>4.0} s, {}",
        target.name,
        report.executions,
        report.outcomes,
        report.slowest,
        start.elapsed().as_secs_f64(),
        if report.is_good() { "ok" } else { "FAILED" }
    );
    for failure in report.failures.values() {
        say(target, failure);
        println!("  written to {}", keep(&args.out, target, failure)?.display());
    }
    Ok(report.is_good())
}

fn say(target: &Target, failure: &Failure) {
    println!("{}: {} at {}", target.name, failure.message, failure.place);
    println!("  input: {}", failure.input.escape_ascii());
}

fn keep(folder: &Path, target: &Target, failure: &Failure) -> Result<PathBuf> {
    let folder = folder.join(target.name);
    std::fs::create_dir_all(&folder).with_context(|| format!("failed to make {}", folder.display()))?;
    let name = failure.place.replace(|c: char| !c.is_ascii_alphanumeric(), "-");
    let path = folder.join(format!("{}.bin", name.trim_matches('-')));
    std::fs::write(&path, &failure.input).with_context(|| format!("failed to write {}", path.display()))?;
    Ok(path)
}
