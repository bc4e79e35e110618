//! The real operator on the simulated cluster.

#![allow(clippy::unwrap_used, reason = "a helper of a test fails where the test does")]

/// A run is mostly small objects that come and go.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

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
