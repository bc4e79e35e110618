//! A provider's quota held exactly by several gateway replicas: the protocol, as pure values.
//!
//! # One idea: every limit is a number of permits
//!
//! A provider counts a request at an instant that we cannot see: anywhere between our sending it and its answer's
//! headers. So a request takes a permit when it is admitted and gives it back **one window after the headers**
//! ([`window`]). Proof that this is enough: a request counted at `c` within the last window before `t` was admitted at
//! `a ≤ c ≤ t`, and its headers came at `h ≥ c`, so `h + window > t`: it holds its permit at `t`. Hence the units
//! counted in *any* interval as long as a window never exceed the permits in use. A sliding window is respected
//! directly, a fixed one because each is such an interval, whatever its phase, and a token bucket because `n` full
//! windows hold at most `n` limits. A concurrency limit is the same with a window of no length, a budget the same
//! with nano-dollars. Windows of the calendar end where the calendar says, seen through two clocks that differ.
//!
//! Sharing a quota then means sharing permits, and permits can be moved but not doubled. One replica, the
//! [`Allocator`], keeps for every other the most permits it may have in use; each replica's [`Holder`] admits from its
//! share without asking anybody.
//!
//! # The protocol
//!
//! ```text
//!  Holder                          Allocator                       ConfigMap
//!    │ Report n: "my share is s, I hold u, I want w"                  │
//!    ├──────────────────────────────►│ share := s                     │
//!    │                               ├── write the new share ────────►│ compare-and-swap
//!    │                               │◄──────────────────── written ──┤
//!    │◄──────────────────────────────┤ Grant n: share g, for a lease  │
//! ```
//!
//! * A holder accepts one grant, for its newest report, from the newest term it knows. So when the allocator reads
//!   report `n`, every earlier grant is dead, and what the report claims is all the holder can ever use. Loss,
//!   duplication and reordering of messages need no further thought.
//! * A share is lowered by the holder: it is told the target, and reports the lower claim once it holds no more.
//! * A share that rises is written before it is sent. A new allocator finds in the ConfigMap at least what any holder
//!   may have, and counts it as used until that holder reports, or until its lease and then its window have passed. Once it
//!   reports, what the ConfigMap says of its units is of the past: they may be free by then, and be used again. So the first
//!   answer is written even where it grants no more.
//! * A lease counts from the sending of the report on the holder's clock and from the decision, which is later, on the
//!   allocator's, lengthened by the drift. Renewals stay within an end that is already written, so not even an allocator
//!   that does not know it was replaced can give more than its successor has read: safety needs the compare-and-swap
//!   and clocks of bounded drift, nothing else. Elections may overlap.
//! * Ages in the ConfigMap count from when its reader first saw that version, on the reader's own clock, so no two
//!   clocks are ever compared for a rolling window.
//!
//! # Why a limit is never exceeded
//!
//! 1. A holder never has more in use than its share, and without a lease it only gives back (but for a floor).
//! 2. For every holder the allocator counts at least what it can have in use: what its newest report claims, or what was granted
//!    since, if that is more. This becomes less by three things only: the next report; once the lease is over, units that the report
//!    said to be given back after that, when they are ([`Fade`]); and the end of everything, a window after its last request must
//!    have been counted ([`Limit::within_lost`]).
//! 3. It raises a share only while all that it counts stays within the limit.
//! 4. Whoever takes over counts as much: every grant is written before it is sent, or lies within what is written of its holder since
//!    that holder spoke to this allocator, or is told to a witness that the record names ([`Vouch`]); and of two that take over
//!    from one record only one can write the next.
//!
//! # What the loss of a replica costs
//!
//! What a holder may have used unseen, since its last report and to the end of its lease, is set aside until the last of it
//! must have been counted, and for a window more. It was used in part or not at all, so it is wasted. Four things keep it small:
//!
//! * Leases are short ([`Terms::shortest_lease`]) where too little would be left for all if their holder was lost. A holder
//!   that finds no allocator then pauses, which is cheap: what it does not use meanwhile it may use after. Where there is
//!   plenty leases are long, and outlast the election of another allocator.
//! * Reports say when the units in use will be free. Those that outlast the lease were in use at its end, so they
//!   are free when they said, and only the rest is set aside.
//! * What the ConfigMap says of leases is far ahead of them, so that it is seldom written. That is harmless for a holder that the
//!   allocator outlives, and for one that outlives it. But the allocator's own holder goes with it. So that one has a
//!   *witness*: another holder, named in the ConfigMap, that is told of each of its grants before it may use it and
//!   tells the next allocator. One that rests will do: it says that it is there when another allocator is elected. Without
//!   a second gateway there is no witness: each end of a lease that is not far ahead is a write. So a gateway that is alone has
//!   short leases at first, and longer ones, up to an eighth of a window, the longer it has lived: what it may lose at its end
//!   is a small part of what it has used.
//! * A holder's successor in the same pod says that it has ended ([`Allocator::gone`]), and one that leaves gives all back.
//!
//! Only the calendar needs wall clocks. There the allocator alone says when a new window has begun, by the lower median
//! of the replicas' clocks, each of which is slewed and never jumps ([`clock`]), and with a margin on both sides.
//!
//! All instants are nanoseconds of a process's own monotonic clock ([`Nanos`]).

pub mod allocator;
pub mod clock;
pub mod estimate;
pub mod hint;
pub mod holder;
pub mod record;
mod share;
mod slope;
pub mod spec;
mod vouch;
pub mod window;

#[cfg(test)]
mod provider_model;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use allocator::{Action, Allocator, Checkpoint, CheckpointError, Usage};
pub use clock::WallClock;
pub use estimate::{Estimator, OutputCharge, Price};
pub use hint::{Hint, parse};
pub use holder::{Admission, Class, Holder, Ticket, Waiting};
pub use record::{Found, Record};
pub use slope::Slope;
pub use vouch::Vouch;
pub use window::{Calendar, CalendarUnit, Window};

/// An instant or a length in nanoseconds; instants count from the origin of one process's monotonic clock.
pub type Nanos = u64;

pub(crate) const MILLISECOND: Nanos = 1_000_000;
pub(crate) const SECOND: Nanos = 1_000 * MILLISECOND;

/// What a limit counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Resource {
    /// Requests.
    Requests,
    /// Input tokens.
    InputTokens,
    /// Output tokens.
    OutputTokens,
    /// Input and output tokens together.
    Tokens,
    /// Spend in billionths of the budget's currency.
    NanoDollars,
    /// Requests that have not ended.
    Concurrency,
}

impl Resource {
    /// What one request with these `amounts` takes.
    pub fn units(self, amounts: &Amounts) -> u64 {
        match self {
            Self::Requests | Self::Concurrency => 1,
            Self::InputTokens => amounts.input,
            Self::OutputTokens => amounts.output,
            Self::Tokens => amounts.input.saturating_add(amounts.output),
            Self::NanoDollars => amounts.nano_dollars,
        }
    }
}

/// What one request uses, estimated or reported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amounts {
    /// Input tokens.
    pub input: u64,
    /// Output tokens.
    pub output: u64,
    /// Its price in billionths of the budget's currency.
    pub nano_dollars: u64,
}

/// The last instant at which a provider may count a request's units.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Counted {
    /// When its answer's headers arrive: requests, input, and output where it is charged by an estimate.
    ByHeaders,
    /// When its answer ends: output tokens that are counted as they are made. Costs utilisation where answers are long
    /// against the window.
    ByEnd,
}

/// One limit of a provider.
#[derive(Clone, Debug, PartialEq)]
pub struct Limit {
    /// Its name, unique in its provider.
    pub name: String,
    /// What it counts.
    pub resource: Resource,
    /// How long a unit counts.
    pub window: Window,
    /// Units in a window.
    pub limit: u64,
    /// Only requests for these models count; empty: all.
    pub models: Vec<String>,
    /// Until when a unit may be counted.
    pub counted: Counted,
    /// The longest time between a request's admission and that instant: the timeout for the headers or for the whole
    /// request. A provider known to count on arrival may have less, which raises utilisation when answers are slow.
    pub within: Nanos,
    /// The same for the last requests of a replica that is not heard of any more: so long its share is set aside before
    /// the window. None: [`Limit::within`]. Less raises utilisation after a replica is lost, where a provider is known to
    /// count a request soon after it was sent or not at all.
    pub within_lost: Option<Nanos>,
    /// False: only counted (a budget with `onExhausted: Allow`).
    pub enforced: bool,
    /// Units a replica may go on using when it has lost the allocator; 0: it stops. A replica gets this right only while
    /// the limit has room for it beside everybody else's share, and keeps it until it is known to be gone. In a calendar
    /// window any floor above 0 means: what is left of its share.
    pub floor: u64,
    /// The limit grows from a start with what was used, in steps. For rolling windows.
    pub slope: Option<Slope>,
}

impl Limit {
    /// An enforced limit for all models, counted by the headers within 10 minutes, or, for concurrency, by the end.
    pub fn new(name: impl Into<String>, resource: Resource, window: Window, limit: u64) -> Self {
        Self {
            name: name.into(),
            resource,
            window,
            limit,
            models: Vec::new(),
            counted: match resource {
                Resource::Concurrency => Counted::ByEnd,
                _ => Counted::ByHeaders,
            },
            within: 600 * SECOND,
            within_lost: None,
            enforced: true,
            floor: 0,
            slope: None,
        }
    }

    /// The longest time between the last request of a lost replica and the instant at which it is counted.
    pub(crate) fn within_lost(&self) -> Nanos {
        self.within_lost.unwrap_or(self.within)
    }

    /// What its counts are filed under in messages and checkpoints: another window or resource is another limit, another
    /// number is not.
    pub fn key(&self) -> String {
        format!("{}/{:?}/{}", self.name, self.resource, self.window)
    }
}

/// Numbers that all replicas share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// How long a grant lasts. Longer than the election of an allocator takes, or holders stop meanwhile; a replica that
    /// vanishes keeps its share for this time and a window.
    pub lease: Nanos,
    /// The shortest lease. Leases are short where the loss of their holder would leave too little of a window of at most ten
    /// minutes for all; then it reports four times in each. Grows by itself where writes are slow.
    pub shortest_lease: Nanos,
    /// How often a busy holder reports; four times as often while requests wait.
    pub report_every: Nanos,
    /// How much two clocks may differ in rate, in millionths. Also lengthens windows, for the provider's clock.
    pub drift_ppm: u64,
    /// How much the provider's wall clock and ours may differ, and how late a report may come, together in milliseconds.
    /// Calendar windows only.
    pub calendar_margin_ms: i64,
}

impl Default for Terms {
    fn default() -> Self {
        Self {
            lease: 15 * SECOND,
            shortest_lease: 400 * MILLISECOND,
            report_every: SECOND,
            drift_ppm: 500,
            calendar_margin_ms: 5_000,
        }
    }
}

impl Terms {
    /// A length on one clock that surely covers `length` on another.
    pub(crate) fn stretch(&self, length: Nanos) -> Nanos {
        let more = u128::from(length) * u128::from(self.drift_ppm) / 1_000_000 + 1;
        length.saturating_add(u64::try_from(more).unwrap_or(u64::MAX))
    }

    /// A length on one clock that is surely over when `length` is over on another.
    pub(crate) fn shrink(&self, length: Nanos) -> Nanos {
        let less = u128::from(length) * u128::from(self.drift_ppm) / 1_000_000 + 1;
        length.saturating_sub(u64::try_from(less).unwrap_or(u64::MAX))
    }
}

/// The time in the allocator's process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Its monotonic clock.
    pub nanos: Nanos,
    /// Its wall clock, from [`WallClock`], in milliseconds since 1970.
    pub unix_ms: i64,
}

/// A holder tells what it has and wants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Unique to the process (and its configuration): pod, container start and a random part.
    pub holder: String,
    /// The allocator it speaks to; 0 before it knows one.
    pub term: u64,
    /// Counts its reports.
    pub seq: u64,
    /// Its weight when there is too little for all; 0 counts as 1.
    pub weight: u32,
    /// Its wall clock.
    pub unix_ms: i64,
    /// It will admit nothing before its next grant: it rests, or leaves for good. Not answered.
    pub released: bool,
    /// It leaves for good, and will be nobody's witness.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub leaving: bool,
    /// It may fall back to its floors.
    #[serde(default)]
    pub floored: bool,
    /// How long the lease that it has lasts from here on, in milliseconds. None: it does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leased_ms: Option<u64>,
    /// [`Grant::at`] of the newest grant of this term that it took.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heard: Option<Nanos>,
    /// By [`Limit::key`].
    pub limits: BTreeMap<String, Claim>,
    /// When units in use will be free, by [`Limit::key`]; soonest first. Not all of them: only those of which it is certain.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub fades: BTreeMap<String, Vec<Fade>>,
    /// What it knows, as the witness, of the holder beside an earlier allocator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub testimony: Option<Box<Vouch>>,
}

/// Units that are in use for certain until they are given back by themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "[u64; 3]", into = "[u64; 3]")]
pub struct Fade {
    /// None of them is given back earlier than this, in milliseconds.
    pub from_ms: u64,
    /// All of them are given back by then, in milliseconds.
    pub until_ms: u64,
    /// How many.
    pub units: u64,
}

impl From<[u64; 3]> for Fade {
    fn from([from_ms, until_ms, units]: [u64; 3]) -> Self {
        Self {
            from_ms,
            until_ms,
            units,
        }
    }
}

impl From<Fade> for [u64; 3] {
    fn from(fade: Fade) -> Self {
        [fade.from_ms, fade.until_ms, fade.units]
    }
}

/// What a holder says of one limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Claim {
    /// The most units it can have in use until its next grant.
    pub share: u64,
    /// Units in use.
    pub held: u64,
    /// Units it wants beyond those: what waits, and slack for what will come.
    pub more: u64,
    /// Units of its largest waiting request.
    pub need: u64,
    /// How long its oldest request has waited, in milliseconds.
    pub age_ms: u64,
    /// The start of the calendar window that `held` counts from, in milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<i64>,
    /// What the provider's headers said since the last report.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seen: Option<Seen>,
}

/// What a provider's headers said of one limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Seen {
    /// Units in a window.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
    /// Units left.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remaining: Option<u64>,
    /// How long this is worth believing, in milliseconds.
    pub reset_ms: u64,
}

/// The allocator's answer to a report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Reply {
    /// Report again, to this term.
    Term(u64),
    /// What the holder may use.
    Grant(Grant),
}

/// What a holder may use, and how long.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Grant {
    /// The allocator's term.
    pub term: u64,
    /// The report it answers.
    pub seq: u64,
    /// The lease in milliseconds, from the sending of that report.
    pub lease_ms: u64,
    /// When it was decided, on the allocator's clock.
    #[serde(default)]
    pub at: Nanos,
    /// The holder is to report again after this many milliseconds; 0: at its own pace.
    #[serde(default)]
    pub report_ms: u64,
    /// The holder may fall back to its floors when the lease is over.
    pub floored: bool,
    /// By [`Limit::key`].
    pub limits: BTreeMap<String, Share>,
}

/// A holder's part of one limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Share {
    /// The most units it may have in use.
    pub share: u64,
    /// For a calendar window, which one it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<Epoch>,
}

/// A calendar window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Epoch {
    /// Its start, in milliseconds since 1970.
    pub start: i64,
    /// From the decision on, no provider's next window begins earlier than this, in milliseconds.
    pub next_in_ms: u64,
}
