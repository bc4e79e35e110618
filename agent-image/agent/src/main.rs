//! The reference agent; see the library.

use std::process::ExitCode;

use clap::Parser;
use flotilla_agent::args::Args;

#[tokio::main]
async fn main() -> ExitCode {
    match flotilla_agent::run(Args::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            flotilla_serve::log_error(error.as_ref(), "the agent cannot run");
            ExitCode::FAILURE
        }
    }
}
