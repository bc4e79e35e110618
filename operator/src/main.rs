//! `flotilla-operator`.

use std::process::ExitCode;

use clap::Parser as _;
use flotilla_operator::args::Cli;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

#[tokio::main]
async fn main() -> ExitCode {
    match Box::pin(flotilla_operator::execute(Cli::parse())).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let mut text = error.to_string();
            let mut source = std::error::Error::source(&error);
            while let Some(cause) = source {
                text = format!("{text}: {cause}");
                source = cause.source();
            }
            eprintln!("flotilla-operator: {text}");
            ExitCode::FAILURE
        }
    }
}
