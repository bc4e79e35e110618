//! The simulated model provider; see the library.

use std::process::ExitCode;

use clap::Parser;
use flotilla_simulator::args::Args;

#[tokio::main]
async fn main() -> ExitCode {
    match flotilla_simulator::run(Args::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            flotilla_serve::log_error(error.as_ref(), "the simulator cannot run");
            ExitCode::FAILURE
        }
    }
}
