//! The real operator on the simulated cluster.

#![allow(clippy::unwrap_used, reason = "a helper of a test fails where the test does")]

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
