//! The kubectl plugin's command line.

use clap::Parser;
use kubectl_flotilla::args::Cli;
use std::process::ExitCode;

fn main() -> ExitCode {
    kubectl_flotilla::args::run(Cli::parse(), &mut std::io::stdout().lock())
}
