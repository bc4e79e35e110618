//! What happens to a release: the scenarios that need real pods, gateways and traffic, most of them known from the suites
//! of Argo Rollouts, OpenKruise and Flagger. Each runs in its own namespace under traffic of which no request may fail.
//!
//! * [`canary`]: steps, scales, aborts.
//! * [`blue_green`]: previews, swaps.
//! * [`lifecycle`]: good and bad revisions, pauses, pins, restarts, deletion.

pub mod blue_green;
pub mod canary;
pub mod lifecycle;
mod stage;

pub use stage::Stage;

use crate::Namespace;
use anyhow::Result;
use futures::future::BoxFuture;

/// A scenario and its name.
pub type Scenario = (&'static str, fn(Namespace) -> BoxFuture<'static, Result<()>>);

/// A list of [`Scenario`]s in a module.
macro_rules! scenarios {
    ($($name:ident),* $(,)?) => {
        /// All of them.
        pub const ALL: &[super::Scenario] = &[$((stringify!($name), |namespace| Box::pin($name(namespace)))),*];
    };
}
use scenarios;

/// All scenarios.
pub fn all() -> impl Iterator<Item = Scenario> {
    [canary::ALL, blue_green::ALL, lifecycle::ALL]
        .into_iter()
        .flatten()
        .copied()
}
