//! The data plane in this process, with real sockets on loopback.
#![allow(clippy::unwrap_used, reason = "what cannot be set up fails the test")]

mod balancing;
mod choice;
mod egress;
mod fairness;
mod fallback;
mod identity;
mod leaving;
mod models;
mod ports;
mod protocol;
mod quota;
mod resilience;
mod retries;
mod sessions;
mod slots;
mod support;
