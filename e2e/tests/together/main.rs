//! Scenarios that share a cluster: each in its own namespace, several at a time. One program, because cargo runs test
//! programs one after the other. What disturbs the whole cluster, or listens to all of it, is in `../alone`.

mod admission;
mod bad_input;
mod budget;
mod chart;
mod docs;
mod identity;
mod load_test;
mod policies;
mod pool;
mod quota;
mod release;
mod release_tests;
mod releases;
mod routes;
mod secrets;
mod sessions;
