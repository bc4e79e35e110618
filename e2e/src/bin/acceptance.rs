//! `make acceptance`: the full figures.

use clap::Parser;
use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    match flotilla_e2e::acceptance::run(flotilla_e2e::acceptance::Args::parse()).await {
        Ok(rows) if rows.iter().all(|row| row.reached != Some(false)) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
