//! `make bench`: ratios against peers.

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    match flotilla_e2e::bench::run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
