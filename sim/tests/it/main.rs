//! The real operator on the simulated cluster.

#[cfg(feature = "seeded-bugs")]
mod bugs;
mod campaign;
mod conformance;
mod controllers;
mod converge;
mod operator;
mod scenarios;
mod server;
mod workloads;
