//! `kubectl-flotilla`, the kubectl plugin: `kubectl flotilla …`.
//!
//! So far it holds what needs no cluster: [`check`] says about a manifest what the API server would say, so that an
//! editor or a pipeline finds a mistake before anything is applied.

pub mod args;
pub mod check;
pub mod structure;
