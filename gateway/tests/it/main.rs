//! The data plane in this process, with real sockets on loopback.
#![allow(clippy::unwrap_used, reason = "what cannot be set up fails the test")]

mod abuse;
mod choice;
mod collector;
mod egress;
mod h2c;
mod leaving;
mod ports;
mod protocol;
mod retries;
mod secrets;
mod slots;
mod support;
mod telling;
mod websocket;
