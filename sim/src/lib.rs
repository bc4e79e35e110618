//! A simulated cluster: an in-memory Kubernetes API server and its controllers, for deterministic tests.
//!
//! The real operator runs on it, in virtual time, with crashes between any two writes, lost responses, and stale or
//! delayed watches, which no real cluster can be told to produce.
//!
//! ```text
//!   operator ──► faults::Wire ──► Cluster (api, apply, schema, store) ◄── controllers: ReplicaSet, Deployment, Job,
//!      ▲          what is planned        │                                 EndpointSlice, kubelet, GC, namespaces
//!      └── gateways::Gateways ◄──────────┘ /stats, with traffic by lot
//! ```
//!
//! | module | holds |
//! |---|---|
//! | [`cluster`] | the handle: a tower service for `kube::Client`, and the inside for tests |
//! | [`api`] | requests and answers |
//! | [`apply`] | server-side apply: who owns which fields |
//! | [`schema`] | shapes, defaults and checks of built-in and custom kinds |
//! | [`store`], [`state`], [`kinds`] | objects and their history; the lot; what is served |
//! | [`controllers`], [`gateways`] | what else runs in a cluster |
//! | [`pulse`] | who waits for changes |
//! | [`faults`] | what goes wrong between a client and the server |
//! | [`run`], [`outcome`] | a workload under a plan, and what must hold afterwards |
//! | [`invariants`] | what must hold at every event |
//! | [`conformance`] | the same requests to this server and to a real one |
//!
//! # What is assumed of tests
//!
//! Tokio's time is paused and its runtime has one thread. Time moves only when nobody can do anything, so a day of a
//! quiet cluster takes no time. Everything drawn by lot comes from one seed.
//!
//! # What is not simulated
//!
//! Authentication and authorisation, admission webhooks and policies (a test refuses creations with
//! [`Cluster::admit`]), quotas, several versions of a kind, tables for `kubectl`, exec and logs, taints and node loss.
//! `PodDisruptionBudget`s have no status and hold back no eviction.

pub mod api;
pub mod apply;
pub mod cluster;
pub mod conformance;
pub mod controllers;
pub mod faults;
pub mod gateways;
pub mod invariants;
pub mod kinds;
pub mod outcome;
pub mod pulse;
pub mod run;
pub mod schema;
pub mod state;
pub mod store;

pub use api::failure::Failure;
pub use cluster::{ApiService, Cluster, START};
