//! `flotilla-loadgen`: see [`flotilla_loadgen`].

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    flotilla_loadgen::app::main(flotilla_loadgen::args::Args::parse())
}
