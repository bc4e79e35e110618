//! A simulated model provider that speaks the protocols of OpenAI and Anthropic.
//!
//! Load tests, the demo and the end-to-end tests need a provider that costs nothing, is as slow and as flaky as asked
//! for, and whose limits can be checked to the nanosecond. It answers `POST /v1/chat/completions`, `/v1/responses`,
//! `/v1/messages` (streamed or not), `/v1/embeddings` and `GET /v1/models`; a model's name selects its behaviour ([`model`]); limits are enforced in the three ways
//! that providers use ([`limit`]); every decision is in a log from which a test recomputes the windows ([`log`]).
//!
//! What it says is a function of the seed and the request ([`plan`]); how it looks is in [`wire`]. A test may ask for
//! failures in a set order ([`script`]).
//!
//! `/admin/*` is open to anyone who reaches the port. It is a test tool; give it no public address.

pub mod api;
pub mod args;
pub mod config;
pub mod distribution;
mod exchange;
pub mod limit;
pub mod log;
pub mod model;
pub mod plan;
pub mod quota;
pub mod random;
mod refusal;
pub mod reply;
pub mod script;
mod server;
pub mod wire;

pub use config::{Config, ConfigError};
pub use server::{Simulator, StartError};

/// Runs the program until SIGTERM or SIGINT and the end of the requests in flight.
pub async fn run(args: args::Args) -> Result<(), Box<dyn std::error::Error>> {
    flotilla_serve::init_logging(&args.log);
    let simulator = Simulator::start(args.into_config()?).await?;
    flotilla_serve::terminated().await?;
    tracing::info!("the simulator ends");
    simulator.shutdown().await;
    Ok(())
}
