//! What can go wrong between a client and the API server, planned and repeatable.
//!
//! A [`Plan`] is data: a seed and a list of [`Fault`]s that count writes, requests or events. A [`Wire`] is one life of
//! one client: it carries requests to the cluster, a little later, and lets what is planned happen. When the plan kills
//! the process, the wire goes dead (nothing it sends is heard, nothing is answered) and [`Line::crashed`] tells the test,
//! which drops the process and starts it anew on a [`Wire`] of the same [`Line`].
//!
//! A crash right after an answer was read is the crash before the next write: nothing happens in between that the cluster
//! could see. So the crashes at a write are three: before it, after it without an answer, and the answer lost while the
//! process lives on.

pub mod line;
pub mod plan;
pub mod watch;
pub mod wire;

pub use line::{Line, Record};
pub use plan::{Fault, Plan};
pub use wire::Wire;
