//! The real operator on the simulated cluster.

mod campaign;
mod conformance;
mod controllers;
mod converge;
#[cfg(feature = "seeded-bugs")]
mod bugs;
mod operator;
mod scenarios;
mod server;
mod workloads;
