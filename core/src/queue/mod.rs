//! The fair queue: who is served next when not everybody can be.
//!
//! It stands in front of a pool's slots (a request costs 1) and in front of a provider's quota (a request costs its
//! estimated tokens). [`FairQueue`] is plain data, `&mut self` and no clock: the gateway keeps one per line behind one
//! short lock, which a request takes only when it has to wait, and which whoever frees a slot takes only while somebody
//! waits. What is done under the lock is bounded as the table says, with no allocation once the queue has been as long
//! and as many tenants have waited at once as it gets; answering those who are let go is done after it.
//!
//! | operation | cost |
//! |---|---|
//! | [`FairQueue::push`], [`FairQueue::cancel`], [`FairQueue::predict`] | O(1) amortised; a push of one that has waited before, O(those who came after it) |
//! | [`FairQueue::pop`] | O(1) amortised while the quantum is not far below the mean cost; O(lanes) at worst |
//!
//! # Order
//!
//! Fairness between tenants comes first, the class of a request second. Were it the other way round, a tenant that calls
//! everything Critical would keep the others out for as long as it likes.
//!
//! 1. **Rounds.** Tenants take turns by deficit round robin (Shreedhar, Varghese: "Efficient Fair Queuing Using Deficit
//!    Round Robin", SIGCOMM 1995): in each round a tenant's lane may spend a quantum more, and it sends while its next
//!    entry costs no more than it may spend. A lane that gets its first entry comes in the next round. Rounds in which
//!    nobody can send are taken all at once, so a quantum far below the costs is slow only in proportion to the lanes.
//! 2. **Levels.** An entry starts at the level of its [`Class`] and rises by one after every
//!    [`Settings::ageing_nanoseconds`] (N) it has waited. A lane's highest level is served first, and within a round the
//!    lanes come in the order of their highest levels.
//! 3. **Age.** Within a lane and level, who reached the level first.
//!
//! So a class costs no other tenant its share, and where no tenants are told apart it rules alone. An entry of class *c*
//! (Low 0 … Critical 3) is at the top after (3 − c)·N, whatever arrives. From then on only entries of its own lane that
//! reached the top earlier go before it, and each other lane sends at most two quanta and a largest entry more than it.
//! With *w* the cost of the former and its own, *L* lanes, quantum *q*, largest cost *m* and service rate *r* it is
//! served within
//!
//! ```text
//! (3 − c)·N  +  L·(w + 2·q + m) / r
//! ```
//!
//! of its arrival, if its deadline allows. The tests `ageing_bounds_every_wait` and `no_wait_exceeds_the_bound` hold it.
//!
//! # Tenants
//!
//! [`Settings::lanes`] tenants have a lane to themselves while they wait; further ones share [`Settings::shared_lanes`]
//! by hash, and those without a name have one of their own always. An attacker who invents names gets many shares, but
//! no memory; so let the header that names tenants be set by something you trust.
//!
//! # When it is full
//!
//! An arrival displaces, in this order:
//!
//! 1. the newest entry, at its lowest level, of the tenant that holds most, if that one still holds no fewer than the
//!    arrival's tenant afterwards (one that floods cannot keep others out, whatever classes it uses);
//! 2. the newest entry of a lower level, if its tenant holds more than the arrival's (a higher class comes first among
//!    equals);
//! 3. the newest entry of a lower level of its own tenant.
//!
//! Otherwise it is refused. So fairness decides who gives way, and the class decides which of his requests.
//!
//! # Deadlines and predictions
//!
//! An entry whose deadline has passed is let go wherever it is met. An arrival is refused at once when the wait
//! predicted for it ends after its deadline. The prediction is the longer of two: the work that goes before it under the
//! order above, over the rate at which waiting requests are served; and the work before it in its own lane, over the
//! rate at which that lane is served, which knows of tenants that come again and again and hardly ever wait. What
//! cannot be known is left out: higher classes and new tenants that come later, who will give up, and the spread of
//! service times, which with *n* entries before it is alone about 1/√n of the wait.
//!
//! # Entries that do not fit
//!
//! Of a quota there may be something left, but not enough for the entry whose turn it is. It keeps its turn and later
//! ones that fit go past it, up to as much as it costs itself. So it waits for at most twice its cost, a large request
//! does not hold up small ones, and what is left of a window is used.

mod fair;
mod lanes;
mod rate;
mod slab;

#[cfg(test)]
mod agreement;
#[cfg(test)]
mod model;
#[cfg(test)]
mod predictions;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;

use std::fmt;

pub use fair::FairQueue;
pub use lanes::Tenant;

/// The number of classes, and of levels.
pub const LEVELS: usize = 4;
/// The largest cost; larger ones count as this. Above any context window, and a million of them fit a `u64`.
pub const MAX_COST: u64 = 1 << 40;
/// The largest capacity; larger ones count as this.
pub const MAX_CAPACITY: usize = 1 << 20;
/// The longest `Retry-After`: a prediction beyond it is a guess.
pub const MAX_RETRY_AFTER_SECONDS: u64 = 3600;

/// How urgent a request is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// Batch work.
    Low,
    /// What a request is that does not say.
    #[default]
    Normal,
    /// Somebody waits.
    High,
    /// Before all others.
    Critical,
}

impl Class {
    /// All, from the least urgent.
    pub const ALL: [Self; LEVELS] = [Self::Low, Self::Normal, Self::High, Self::Critical];

    /// The class of this name, in any case of letters: `low`, `normal`, `high`, `critical`.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|class| class.name().eq_ignore_ascii_case(name))
    }

    /// Its name, for example `Low`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Low => "Low",
            Self::Normal => "Normal",
            Self::High => "High",
            Self::Critical => "Critical",
        }
    }
}

/// What a queue goes by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// Entries at most.
    pub capacity: usize,
    /// Tenants that have a lane to themselves at one time. A lane takes about 300 bytes.
    pub lanes: usize,
    /// Lanes that further tenants share; at least 1.
    pub shared_lanes: usize,
    /// What a lane may spend each turn, in units of cost; at least 1. For slots 1; for a quota about the mean cost.
    pub quantum: u64,
    /// Time after which an entry rises by a level; at least 1.
    pub ageing_nanoseconds: u64,
    /// How far back the service rate is measured, in time in which somebody waits; for a quota several of its windows.
    /// After so much time in which nobody waits it is forgotten. Until it is known (again) nobody is refused for a
    /// predicted wait.
    pub memory_nanoseconds: u64,
    /// The rate is known when somebody has waited for so long; 0: as soon as some were served.
    pub least_nanoseconds: u64,
}

/// Long enough that 8 slots with services of 2.5 s give about 100 handovers, short enough that a scale-up is believed
/// within the longest usual wait.
const MEMORY_NANOSECONDS: u64 = 30_000_000_000;

impl Settings {
    /// In front of slots: 256 lanes and 16 shared ones, a level every 5 s, a memory of 30 s.
    pub fn of_slots(capacity: usize) -> Self {
        Self {
            capacity,
            lanes: 256,
            shared_lanes: 16,
            quantum: 1,
            ageing_nanoseconds: 5_000_000_000,
            memory_nanoseconds: MEMORY_NANOSECONDS,
            least_nanoseconds: 0,
        }
    }

    /// In front of a quota: the same for requests of about `mean_cost`, with a memory of at least three windows. The rate is
    /// known after two: who comes to a rolling window has what others leave in the first one, and all of it may be used in a
    /// moment, so that nothing is served for the rest.
    pub fn of_quota(capacity: usize, mean_cost: u64, window_nanoseconds: u64) -> Self {
        Self {
            quantum: mean_cost,
            memory_nanoseconds: window_nanoseconds.saturating_mul(3).max(MEMORY_NANOSECONDS),
            least_nanoseconds: window_nanoseconds.saturating_mul(2),
            ..Self::of_slots(capacity)
        }
    }
}

/// A request that asks to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// For whom.
    pub tenant: Tenant,
    /// How urgent.
    pub class: Class,
    /// 1 for a slot, estimated tokens for a quota; from 1 to [`MAX_COST`].
    pub cost: u64,
    /// When it came. Earlier than now for one that has waited before and keeps its age.
    pub arrived_nanoseconds: u64,
    /// When waiting has no more use: the client's deadline or the longest wait the pool allows, whichever is earlier.
    pub deadline_nanoseconds: u64,
}

/// A place in the queue. Worthless after the entry has left it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ticket {
    index: u32,
    generation: u32,
}

/// A request that has left the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<T> {
    /// What the gateway has put in.
    pub item: T,
    /// Its class.
    pub class: Class,
    /// What it costs.
    pub cost: u64,
    /// How long it has waited.
    pub waited_nanoseconds: u64,
    /// Its deadline.
    pub deadline_nanoseconds: u64,
}

/// An arrival that waits now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admitted<T> {
    /// Its place.
    pub ticket: Ticket,
    /// How long it will wait, as far as that can be told.
    pub predicted_nanoseconds: Option<u64>,
    /// Who had to go for it and must be answered.
    pub gone: Option<Gone<T>>,
}

/// Why an entry was let go for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gone<T> {
    /// Its deadline has passed.
    Expired(Entry<T>),
    /// It gave way; to be answered like one refused for [`Limit::QueueFull`].
    Displaced(Entry<T>),
}

/// Which limit refuses an arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Limit {
    /// The queue holds as many as it may.
    QueueFull,
    /// The queue is full and this tenant has its share of it.
    TenantShare,
    /// The predicted wait ends after the deadline.
    PredictedWait,
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::QueueFull => "the queue is full",
            Self::TenantShare => "the queue is full and this tenant has its share of it",
            Self::PredictedWait => "the predicted wait ends after the deadline",
        })
    }
}

/// An arrival that may not wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused<T> {
    /// What the gateway wanted to put in.
    pub item: T,
    /// Why.
    pub limit: Limit,
    /// How long it would wait, as far as that can be told.
    pub predicted_nanoseconds: Option<u64>,
}

impl<T> Refused<T> {
    /// For `Retry-After`: the predicted wait in whole seconds, rounded up, from 1 to [`MAX_RETRY_AFTER_SECONDS`]; 1 where
    /// nothing is known.
    pub fn retry_after_seconds(&self) -> u64 {
        self.predicted_nanoseconds
            .map_or(1, |wait| wait.div_ceil(1_000_000_000))
            .clamp(1, MAX_RETRY_AFTER_SECONDS)
    }
}

/// Who is next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next<T> {
    /// This one.
    Entry(Entry<T>),
    /// One that needs so much, and what is available is less. It keeps its turn.
    Short(u64),
    /// Nobody waits.
    Nobody,
}
