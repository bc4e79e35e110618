//! A simulated cluster: an in-memory Kubernetes API server and its controllers, for deterministic tests.
//!
//! This crate is empty so far. It will let the tests run the real operator under virtual time, with crashes between any
//! two writes, lost responses, and stale or delayed watches, which no real cluster can be told to produce. A check
//! against a real API server will keep the model honest. Until then such cases are tested on the operator's pure parts
//! and on the local cluster in `e2e`.
