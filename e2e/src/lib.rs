//! Scenarios on a real API server, the demo, and the benchmarks.
//!
//! A scenario is a function of a [`Cluster`] and its sizes: `make test` calls it with small ones, `make acceptance` with
//! those the issues name. The cluster is the one that `FLOTILLA_KUBECONFIG` names (the Makefile sets it); nothing here
//! ever looks at the user's current context.

pub mod acceptance;
pub mod audit;
pub mod bench;
pub mod cluster;
pub mod demo;
pub mod fixtures;
pub mod namespace;
pub mod operator;
pub mod report;
pub mod scenario;
pub mod traffic;
pub mod wait;

pub use cluster::Cluster;
pub use namespace::{Namespace, with_namespace};
