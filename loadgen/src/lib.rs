//! The load generator worker of Flotilla.
//!
//! A LoadTest's Job runs N of these. Each computes the same seeded schedule ([`flotilla_core::load::schedule`]), takes
//! every N-th start, sends it at its absolute due time, and leaves a mergeable result in its termination message.
//! Worker 0 also coordinates: it lets all begin at the same moment and merges their progress for the operator.
//!
//! The load is open: a start does not wait for the answer before it, and latency is counted from the intended start,
//! so a target that stalls is seen to stall.
//!
//! [`run::run`] is a whole worker as a future, for tests and tools; [`app::main`] is the binary around it.

pub mod app;
pub mod args;
pub mod barrier;
pub mod coordinator;
pub mod exchange;
mod follower;
pub mod pacer;
pub mod pool;
pub mod protocol;
pub mod recorder;
pub mod run;
pub mod sse;
pub mod worker;

mod report;

pub use follower::BarrierError;
pub use run::{RunError, Settings, run};
