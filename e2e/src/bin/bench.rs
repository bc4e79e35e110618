//! `make bench`: ratios against peers.

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    match flotilla_e2e::bench::run(&flotilla_e2e::bench::Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
