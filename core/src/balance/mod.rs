//! Which replica takes a request, which one is left alone for a while, and what may be tried again.
//!
//! A gateway keeps the replicas of a revision in a list that is replaced as a whole and never changed, and in each of
//! them a few atomic words. Everything here works on that: the pickers read a [`Candidates`] view and return an
//! index; health, latency and budget are words that are updated by compare-exchange. No lock is taken, and nothing is
//! allocated on the way of a request (only [`Adaptive`] allocates, four times a second).
//!
//! ```text
//!              Balancer::claim ──► a slot ──► Health::begin ──► Ticket
//!                     ▲                                           │ the replica answers, or does not
//!   is_ejected        │ latency                                   ▼
//!   Health ───────────┴─────────── PeakEwma ◄──────────── Ejector::end ──► Change (log, metric)
//!     ▲                                                           │ failed
//!     └── Ejector::sweep, every 10 s                              ▼
//!                                                   may_retry ──► RetryBudget::withdraw ──► once more
//! ```
//!
//! * [`candidates`]: the view, and what a pick may say.
//! * [`turns`], [`choices`], [`adaptive`], [`hash`]: the five strategies; [`balancer`] holds what one pool needs of them.
//! * [`ewma`]: latency, quick to rise and slow to fall.
//! * [`breaker`]: the three states of one replica. [`health`]: the policy over the pool that opens it.
//! * [`budget`], [`retry`]: how many further tries there may be, and for which requests.
//!
//! # Ejection and breaker are one thing
//!
//! Each replica has exactly one state, its [`Breaker`]. *Ejection* is the decision, made over the whole pool by
//! [`Ejector`], to open it: after a failed connection or consecutive failures, or when the replica answers worse than
//! the others. The cap on
//! the ejected share stands there because only the pool can know it. From then on the breaker alone says how long, and
//! lets the replica back through a few probes. Nothing else keeps a replica out, so no two mechanisms can disagree.
//!
//! # Time and chance
//!
//! `now_nanos` counts from any fixed origin of the process, and may be read slightly out of order by different threads.
//! `random` is 64 uniform bits.

pub mod adaptive;
pub mod balancer;
pub mod breaker;
pub mod budget;
pub mod candidates;
pub mod choices;
pub mod ewma;
pub mod hash;
pub mod health;
pub mod outlier;
pub mod retry;
pub mod turns;

#[cfg(test)]
mod tests;

pub use adaptive::Adaptive;
pub use balancer::{Balancer, Draw, Strategy};
pub use breaker::{Breaker, BreakerPolicy, Ticket};
pub use budget::{BudgetPolicy, RetryBudget};
pub use candidates::{Candidates, Pick};
pub use choices::least_loaded;
pub use ewma::PeakEwma;
pub use hash::{consistent_hash, hash_bytes};
pub use health::{Census, Change, EjectionPolicy, Ejector, Health, Outcome};
pub use retry::{Attempt, Failure, NoRetry, RetryPolicy, is_stale, may_retry};
pub use turns::{Wheel, round_robin, weighted};
