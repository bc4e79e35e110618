//! `kubectl-flotilla`, the kubectl plugin: `kubectl flotilla …`.
//!
//! * [`check`] says about a manifest what the API server would say, without one, so that an editor or a pipeline finds a mistake
//!   before anything is applied.
//! * [`plan`] says what the next release of a pool will do, by the functions that the operator follows; [`cluster`] reads the
//!   pool and its present traffic.

pub mod args;
pub mod check;
pub mod cluster;
pub mod plan;
pub mod structure;
