//! The data plane in this process, with real sockets on loopback.
#![allow(clippy::unwrap_used, reason = "what cannot be set up fails the test")]

mod choice;
mod egress;
mod fallback;
mod leaving;
mod models;
mod ports;
mod protocol;
mod retries;
mod slots;
mod support;
