//! The reference agent.
//!
//! It shows what an agent in a Flotilla pool looks like: one port with A2A 1.0 ([`Agent`], `POST /`), plain chat and
//! OpenAI chat; its model behind `OPENAI_BASE_URL`; sessions that fail visibly when they are lost ([`session`]);
//! readiness that says why not; usage in message metadata; a drain that lets streams end. And it is what the
//! demo and the end-to-end tests release, well or badly, by configuration alone ([`prompt`]).
//!
//! A2A's wire types are those of the official SDK (`a2a-lf`): they are plain serde types with four small
//! dependencies. Its server crate is not used: tasks there end with their stores, not with their clients, and
//! cancellation, memory bounds and drain are what this agent is about.

mod a2a_server;
pub mod args;
mod card;
mod chat;
pub mod config;
mod core;
pub mod error;
pub mod model;
pub mod prompt;
mod server;
pub mod session;
pub mod task;
pub mod task_store;

pub use config::{Config, ModelSettings};
pub use server::{Agent, StartError};

/// Runs the program until SIGTERM or SIGINT and the end of the drain.
pub async fn run(args: args::Args) -> Result<(), Box<dyn std::error::Error>> {
    flotilla_serve::init_logging(&args.log);
    let agent = Agent::start(args.into_config(std::env::vars())).await?;
    flotilla_serve::terminated().await?;
    tracing::info!("the agent drains");
    agent.shutdown().await;
    Ok(())
}
