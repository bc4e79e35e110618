//! A simulated cluster: an in-memory Kubernetes API server and its controllers, for deterministic tests.

pub mod api;
pub mod apply;
pub mod cluster;
pub mod conformance;
pub mod controllers;
pub mod faults;
pub mod gateways;
pub mod kinds;
pub mod outcome;
pub mod run;
pub mod schema;
pub mod state;
pub mod store;

pub use api::failure::Failure;
pub use cluster::{ApiService, Cluster, START};
