//! The data plane in this process, with real sockets on loopback.
#![allow(clippy::unwrap_used, reason = "what cannot be set up fails the test")]

mod choice;
mod egress;
mod leaving;
mod ports;
mod protocol;
mod quota;
mod retries;
mod slots;
mod support;
