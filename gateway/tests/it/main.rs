//! The data plane in this process, with real sockets on loopback.

mod choice;
mod egress;
mod leaving;
mod ports;
mod protocol;
mod retries;
mod slots;
mod support;
