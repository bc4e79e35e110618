//! The data plane in this process, with real sockets on loopback.
#![allow(clippy::unwrap_used, reason = "what cannot be set up fails the test")]

mod abuse;
mod balancing;
mod budgets;
mod choice;
mod collector;
mod egress;
mod fairness;
mod fallback;
mod h2c;
mod identity;
mod leaving;
mod models;
mod ports;
mod preview;
mod protocol;
mod quota;
mod resilience;
mod retries;
mod secrets;
mod sessions;
mod slots;
mod support;
mod telling;
mod together;
mod websocket;
