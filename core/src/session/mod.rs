//! Sessions: a conversation stays on its revision while that revision serves, whatever the weights do, on every gateway.
//!
//! # Who keeps what
//!
//! A pool's conversations are kept by its gateways, without a store of their own. [`View::homes`] names two gateways for each
//! [`SessionKey`]: the *first home* decides, the *second* has the copy, and every other one asks once and remembers. An
//! entry is a revision, perhaps a replica, and the traffic generation under which it was assigned (its *epoch*). Requests whose conversation is
//! remembered cost a look into a table ([`Shard::lookup`]); the first one that a gateway sees costs one round trip to the
//! home; a new conversation's *response* waits, while the agent works, until two gateways have the entry.
//!
//! # Why nothing switches
//!
//! 1. *One decision.* Whoever decides is the first home in its own view, or has asked everybody who ranks higher and answers.
//! 2. *Seen means copied.* A client has seen a revision only after all homes that answer have the entry. So whoever is asked
//!    next has it: a first home by the decision, a second one by the copy. If both homes die at once it is lost, unless another gateway
//!    remembers it; then that one brings it back as soon as it sees them gone.
//! 3. *Change of members.* Views differ for a while. Each gateway tells each other one what that one should have in its new view, then
//!    says `done` for that view. A home that lacks `done` from somebody, or has heard of another view from somebody (in its own
//!    view or not), asks these before it decides. The question itself tells them that there is another home. So two
//!    gateways with different views that both feel responsible know of each other before either decides.
//! 4. *Repair.* Entries merge in one order that all agree on: later move, then older epoch, then by name. In use, they are told to
//!    their homes again every quarter of the idle time, which also restores copies that were evicted.
//! 5. *Aborts.* An entry is dead once its revision has a floor above its epoch ([`Route`]). The first home moves it, and a moved
//!    conversation's response waits until all gateways that answer know the floor. So nobody serves it from an old copy
//!    afterwards, and a retry of the same revision does not draw old conversations back.
//! 6. *Nobody waits for ever.* Who does not answer for [`Timing::silence`] is passed over. After [`Timing::patience`] a gateway decides alone.
//!    That is no second decision in most cases, because [`choose`] gives the same answer everywhere under the same weights; it is counted
//!    (`unprotected`, and `split` where two did differ).
//!
//! # What is assumed
//!
//! * An instance that has left the members never comes back under the same id (members are processes, not pods; readiness must
//!   not make a gateway a non-member).
//! * Messages are not forged. They may be lost, repeated, delayed and reordered.
//! * A partition that outlasts the patience, and the death of both homes within the time it takes to copy again (detection of
//!   the first death and one handover), may cost switches: of the conversations whose two homes these were, and only where today's
//!   weights choose otherwise than those of the time of assignment.
//! * A full table forgets: first what it only remembered, then the conversations idle for longest.
//!
//! # A2A
//!
//! The first message has no `contextId`: it goes by weight, and [`a2a`] learns the names of the context and the task from the
//! response. A task's key has an entry of its own, at its own homes, that names its conversation, so `GetTask` costs one round
//! trip too, and both move alike.

pub mod a2a;
mod key;
mod members;
mod route;
mod shard;
mod table;
pub mod wire;

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;

pub use key::{InvalidKey, Keyer, SHARDS, SessionKey, cookie_value};
pub use members::{Homes, MemberId, View, homes};
pub use route::{MoveReason, Route, Share, choose, evidence_epoch};
pub use shard::{Assignment, CHUNK, Counts, MAX_PENDING, Output, Settings, Shard, Ticket, Timing};
pub use table::Removed;
