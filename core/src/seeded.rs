//! Bugs that the simulated cluster seeds, to see whether its oracles find them.
//!
//! Without the feature `seeded-bugs`, which nothing that ships turns on, [`has`] is a constant `false` and each bug is gone
//! from the program. With it one bug at a time is turned on for the present thread.

#[cfg(feature = "seeded-bugs")]
use std::cell::Cell;

/// A mistake that a change could bring, and that a fault or an unlucky order of events would show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// Changes of standing are written in the wrong order: a pool has no stable revision for a moment.
    PromoteBackwards,
    /// A command is answered before it is carried out.
    AnswerBeforePatch,
    /// A command leaves no mark where it took effect.
    NoCommandMark,
    /// A restarted operator does not read the evidence back.
    EvidenceNotRestored,
    /// Evidence of a former candidate is taken for that of the present one.
    EvidenceOfAnother,
    /// Nobody waits for gateways to apply the weights.
    ScaleBeforeConfirmation,
    /// A canary's weight rises before its pods are there.
    WeightBeforePods,
    /// A rolling release's weight rises before its batch is there.
    WeightBeforeBatch,
    /// Other weights keep the generation of the former ones.
    GenerationStays,
    /// After a lost status generations begin at 1 again.
    GenerationRestarts,
    /// A key is planned again before the caches have seen what it wrote.
    NoGate,
    /// Of the history the newest revisions go.
    PruneNewest,
    /// A status is written whether it differs or not.
    NoisyStatus,
    /// A visit that failed is not repeated.
    NoRetry,
    /// Every pool has the same gateway port.
    PortReused,
    /// A restart takes a pod more than it may.
    RestartTooMany,
    /// A command does not go with its pool.
    NoAdoption,
    /// A third revision begins while the second one has traffic.
    SupersedeDirectly,
    /// A rejected revision is released again.
    RejectedAgain,
    /// The way back does not wait for stable's pods.
    DropWeightAtOnce,
    /// Old pods go before the traffic has left them.
    ScaleDownFirst,
    /// A passed step is not recorded.
    PassedNotWritten,
    /// The gateway belongs to one pool only.
    GatewayOfFirst,
    /// Children are applied whether they differ or not.
    AlwaysApply,
}

impl Bug {
    /// All of them.
    pub const ALL: [Self; 24] = [
        Self::PromoteBackwards,
        Self::AnswerBeforePatch,
        Self::NoCommandMark,
        Self::EvidenceNotRestored,
        Self::EvidenceOfAnother,
        Self::ScaleBeforeConfirmation,
        Self::WeightBeforePods,
        Self::WeightBeforeBatch,
        Self::GenerationStays,
        Self::GenerationRestarts,
        Self::NoGate,
        Self::PruneNewest,
        Self::NoisyStatus,
        Self::NoRetry,
        Self::PortReused,
        Self::RestartTooMany,
        Self::NoAdoption,
        Self::SupersedeDirectly,
        Self::RejectedAgain,
        Self::DropWeightAtOnce,
        Self::ScaleDownFirst,
        Self::PassedNotWritten,
        Self::GatewayOfFirst,
        Self::AlwaysApply,
    ];
}

#[cfg(feature = "seeded-bugs")]
thread_local! {
    static SEEDED: Cell<Option<Bug>> = const { Cell::new(None) };
}

/// Turns a bug on in this thread, and every other one off.
#[cfg(feature = "seeded-bugs")]
pub fn seed(bug: Option<Bug>) {
    SEEDED.set(bug);
}

/// Whether this bug is on.
#[cfg(feature = "seeded-bugs")]
pub fn has(bug: Bug) -> bool {
    SEEDED.get() == Some(bug)
}

/// Whether this bug is on: never, without the feature.
#[cfg(not(feature = "seeded-bugs"))]
#[inline]
pub const fn has(_: Bug) -> bool {
    false
}
