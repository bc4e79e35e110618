//! The ground every controller of the operator stands on.
//!
//! kube's own `Controller` is not used. It retries nothing per object, dies with the first panic, cannot be told that
//! this replica is not the leader, sends no trigger for an object that vanished while a watch was down, and offers no
//! read-your-writes. Those five are the difference between a demo and an operator, and each of them sits in the
//! driver, so the driver is ours (`queue`, `controller`, `cache`); kube's `watcher` state machine below it is kept.
//!
//! | module | holds |
//! |---|---|
//! | [`manager`] | [`Manager`]: makes caches and controllers, runs everything until shutdown |
//! | [`cache`] | [`Cache`]: all objects of one kind, kept by a watch; look-ups by key, owner, namespace, index |
//! | [`controller`] | [`Reconciler`], [`Controller`], [`Next`], [`Trigger`] |
//! | [`visit`] | [`Visit`]: what a reconciler is given: the clock, writes, status, events |
//! | [`action`], [`executor`], [`subset`] | [`Action`]: one write as data; carrying it out only when something differs |
//! | [`status`], [`conditions`] | diffed, paced status writes; [`Conditions`] |
//! | [`gate`] | read-your-writes: a key is held until the caches have seen what it wrote |
//! | [`lease`] | leadership, fenced by the local monotonic clock |
//! | [`client`] | the client stack: timeouts, bounded tries, bounded concurrency, metrics |
//! | [`events`] | Kubernetes Events, best effort |
//! | [`errors`] | [`Error`], [`Blame`], [`Failure`]: errors by who can act |
//! | [`time`] | [`Clock`], [`Jitter`]: the only places that read a clock or a random source |
//!
//! # How a controller is written
//!
//! ```ignore
//! use crate::caches::Caches;
//! use crate::runtime::*;
//!
//! pub struct PoolReconciler { caches: Caches }
//!
//! impl Reconciler for PoolReconciler {
//!     type Kind = AgentPool;
//!     type Error = PoolError;                                    // implements `Failure`; `#[from] runtime::Error`
//!
//!     async fn reconcile(&self, pool: Arc<AgentPool>, visit: &Visit) -> Result<Next, PoolError> {
//!         let now = visit.now();                                 // the only clock
//!         let sets = self.caches.replica_sets.owned_by(&uid_of(&*pool));     // dereference: caches only, no I/O
//!         let validated = validate(&pool)?;                      // Blame::User: no retry until the object changes
//!         let plan = plan(&validated, &sets, now);               // pure: Vec<Action>, status, when to look again
//!         let applied = visit.execute(plan.actions).await;       // in order; what is already so costs no request
//!         let status = plan.status.with_outcome(&applied);
//!         visit.write_status(&*pool, &status, StatusWrite::default()).await?;
//!         applied?;
//!         Ok(plan.look_again.map_or(Next::on_change(), Next::after))
//!     }
//!
//!     fn forget(&self, key: &Key) { /* drop what is remembered in memory about a deleted pool */ }
//! }
//!
//! /// Called once by `operator::run` for each controller.
//! pub fn register(manager: &mut Manager, caches: &Caches) -> Trigger {
//!     Controller::new("agentpool", &caches.pools)
//!         .owns(&caches.replica_sets)                            // children, by controller owner reference
//!         .owns(&caches.services)
//!         .watches(&caches.config_maps, pools_that_refer(caches.clone()))     // Fn(&ConfigMapMeta) -> Vec<Key>
//!         .register(manager, PoolReconciler { caches: caches.clone() })
//! }
//! ```
//!
//! Writes are data. [`Action::apply`] takes any typed object built from scratch, with `namespace`, `name` and owner
//! references set ([`owned_by`] makes the reference); [`Action::create`] is for what never changes (snapshots,
//! ControllerRevisions, Jobs); [`Action::scale`] sets `spec.replicas` on the resourceVersion it was decided on;
//! [`Action::patch`] merges labels, annotations or single fields; [`Action::delete`] removes exactly the object that
//! was seen (UID). Every kind written must have a [`Cache`] (add it to `caches.rs`): the cached object is what the
//! desired one is compared with, and what read-your-writes waits for.
//!
//! A reconciler holds no lock over `.await`, never sleeps, and never reads a clock. What it wants to do later it says
//! with [`Next::after`]; what another part learns (a scrape, a finished call) reaches it through [`Trigger::now`].
//! A periodic task that must run on the leader only is given to [`Manager::leader_task`]. The reconciler runs on the
//! leader only, never twice at once for a key, and never before all caches are filled.
//!
//! # Errors
//!
//! | [`Blame`] | driver |
//! |---|---|
//! | `User` | Warning event with the category as reason; waits for a change of the object or of anything watched |
//! | `Cluster` | retried with per-object exponential back-off and jitter (0.25 s up to 8 s, or 30 s when refused) |
//! | `Bug` | as `Cluster` up to 5 min, counted in `controller_runtime_reconcile_errors_total`; panics count as this |
//!
//! Conflicts, lost leadership and unread writes are `Cluster` errors without an event: they mend themselves.

pub mod action;
pub mod cache;
pub mod client;
pub mod conditions;
pub mod controller;
pub mod errors;
pub mod events;
pub mod executor;
pub mod gate;
pub mod informer;
pub mod key;
pub mod lease;
pub mod manager;
pub mod optional;
pub mod queue;
pub mod readiness;
pub mod status;
pub mod subset;
pub mod time;
pub mod visit;

#[cfg(test)]
pub(crate) mod testing;

pub use action::{Action, Applied, Outcome, Ownership, owned_by};
pub use cache::{Cache, Watch};
pub use conditions::Conditions;
pub use controller::{Controller, Next, Reconciler, Trigger};
pub use errors::{Blame, Error, Failure};
pub use events::{EventKind, Note};
pub use gate::ResourceVersion;
pub use key::{Key, key_of, uid_of};
pub use lease::Leadership;
pub use manager::Manager;
pub use optional::{Optional, Presence};
pub use status::{StatusOutcome, StatusWrite};
pub use time::{Clock, Jitter};
pub use visit::Visit;
