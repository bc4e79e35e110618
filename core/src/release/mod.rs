//! A pool's spec as its release: the ladder of weights, what judges each step, where it starts, and how long it is expected to
//! take. The operator decides by it; a dry run and `kubectl flotilla plan` show it beforehand, so neither can say anything else.
//!
//! | question | answer |
//! |---|---|
//! | how does a candidate take over? | [`ladder()`] as [`crate::rollout`] climbs it |
//! | by what is it judged? | [`judged`] metrics, as [`crate::evidence`] judges them, with a [`strictness`] |
//! | how much traffic is there? | [`traffic()`], out of the gateways' counts |
//! | where does it start? | behind the steps that are [`left_out`] |
//! | what will it do, and when? | [`plan()`] |

mod ladder;
mod metrics;
mod plan;
mod traffic;

pub use ladder::{ladder, steps};
pub use metrics::{judged, sourced, strictness};
pub use plan::{first, plan};
pub use traffic::{left_out, traffic};
