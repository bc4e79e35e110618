//! Releases: which revision runs where, with how much traffic, and what is waited for.
//!
//! ```text
//!                 target ≠ stable, rested, not rejected, not paused
//!    Serving ──────────────────────────────────────────────────────► Releasing ⇄ Judging ──► Baking
//!       ▲  ▲                                                          │     │       │          │
//!       │  └──────── 100 % confirmed, old pods gone: promoted ────────┘─────┼───────┼──────────┤
//!       │                                                                   ├───────┴──────────┘
//!       │                                                                   │ rejected (deadline, crash loop, evidence,
//!       │                                                                   │ Abort), superseded, or the spec is back
//!       └──────────────── traffic and pods are back ◄── Returning ◄─────────┘
//! ```
//!
//! The states are not stored. They follow at each look from what a cluster keeps anyway: the standing of each revision
//! (a label on its ControllerRevision), its pods, and the weights in force. So there is nothing to repair after a
//! crash between two writes, and nothing is lost with `status`: [`decide`] looks again and goes on.
//!
//! * [`shift`] moves capacity and traffic between two revisions, one safe step at a time.
//! * [`ladder`] does so by the weights that a canary must prove itself with, or at once (blue-green).
//! * [`ratio`] does the same where numbers of pods are all the weight there is.
//! * [`decide`] chooses the state, judges a candidate, and names the changes of standing.
//! * [`mod@forecast`] tells beforehand which pods and weights a release will have.
//! * [`restart`] replaces the pods of one revision.
//!
//! # Rules
//!
//! * Weights of a pool add up to 100, and only two revisions ever have one. Former ones may be listed at 0, for their
//!   conversations.
//! * On a ladder, a candidate has at most the weight of the first rung whose question it has not answered.
//! * A revision is rejected only for its *own* pods or by evidence. A gateway that cannot be reached is not its fault: then
//!   everything holds where it is. Nor is what stable's pods suffer from, too.
//! * A rejected revision is not tried again until the spec names another one or somebody asks ([`Standing::Rejected`]
//!   turned into [`Standing::Candidate`] from outside).
//! * Superseding returns to stable first: a third revision never inherits the second one's traffic.
//! * The first revision of a pool is stable from the start, since there is nothing to protect from it; with [`Ladder::tests_first`]
//!   from its tests on.
//! * Where nothing of stable has served for a minute, for a reason of its own pods, a candidate takes over as its pods become available:
//!   it may be the fix. Until then gateways send it what finds no replica of stable, and it is judged: a probe that was late, or a
//!   container that starts again, must not promote a candidate that the evidence speaks against.

mod decide;
pub mod forecast;
pub mod ladder;
pub mod ratio;
pub mod restart;
pub mod shift;

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;

use jiff::{SignedDuration, Timestamp};

pub use decide::decide;
pub use ladder::{Ladder, OnUndecided, Rung};
pub use ratio::Split;
pub use restart::{Restart, RestartStep};
pub use shift::{Arm, Shift, Step, Wait};

/// What is known of a revision's quality; a label on its ControllerRevision.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// Nothing: it was superseded before it was proved.
    #[default]
    Unproved,
    /// It is being released.
    Candidate,
    /// It serves.
    Stable,
    /// It has served.
    Verified,
    /// It was stopped.
    Rejected,
}

impl Standing {
    /// The label's value; none for [`Standing::Unproved`].
    pub fn label(self) -> Option<&'static str> {
        match self {
            Self::Unproved => None,
            Self::Candidate => Some("candidate"),
            Self::Stable => Some("stable"),
            Self::Verified => Some("verified"),
            Self::Rejected => Some("rejected"),
        }
    }

    /// The standing with this label; anything unknown is [`Standing::Unproved`].
    pub fn from_label(label: Option<&str>) -> Self {
        match label {
            Some("candidate") => Self::Candidate,
            Some("stable") => Self::Stable,
            Some("verified") => Self::Verified,
            Some("rejected") => Self::Rejected,
            _ => Self::Unproved,
        }
    }
}

/// A reason in one PascalCase word and a sentence.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reason {
    /// One word, for example `CrashLoop`.
    pub word: String,
    /// One sentence.
    pub message: String,
}

impl Reason {
    /// A reason.
    pub fn new(word: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            word: word.into(),
            message: message.into(),
        }
    }
}

/// Why a revision's pods do not become available.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// What is wrong.
    pub reason: Reason,
    /// It will not mend itself: a candidate need not wait for its deadline.
    pub is_final: bool,
}

/// One revision as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Member {
    /// Its name, `<pool>-<hash>`.
    pub revision: String,
    /// Its standing.
    pub standing: Standing,
    /// Later ones were made candidate later (`ControllerRevision.revision`).
    pub order: i64,
    /// Its pods.
    pub arm: Arm,
    /// Its weight in force, in percent; none when `status.traffic` does not name it.
    pub weight: Option<i32>,
    /// What keeps its pods from being available.
    pub trouble: Option<Trouble>,
    /// Since when none of its pods is available, where none is.
    pub down_since: Option<Timestamp>,
    /// Why it was rejected.
    pub rejected: Option<Reason>,
    /// The highest weight of a [`Ladder`] whose question this release of it has answered.
    pub passed: Option<i32>,
    /// It has served not long ago: it takes over without being judged again.
    pub is_trusted: bool,
    /// Gateways know conversations of it, or cannot tell.
    pub has_conversations: bool,
    /// When its conversations have to move at the latest, if it is kept for them already.
    pub drain_until: Option<Timestamp>,
}

/// The revision that spec asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// It cannot be told yet (a reference is missing, the spec is impossible): what runs goes on.
    Unknown,
    /// This one. `settles` is when it will have rested long enough to be released, if that is still to come.
    Revision {
        /// Its name.
        revision: String,
        /// End of its rest.
        settles: Option<Timestamp>,
    },
}

/// What the gateways say about the weights in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Gateways {
    /// Every one of them has applied the weights.
    Confirmed,
    /// All can be reached, some have not applied them yet.
    Pending,
    /// There is none, or one cannot be reached; a sentence.
    Unreachable(String),
    /// Something else that carries the traffic does not follow the weights.
    Unrouted(Reason),
}

/// What a deadline is counted for. Another subject starts another count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// The stable revision reaching its size.
    Serving,
    /// One attempt to release a revision.
    Release {
        /// Which.
        revision: String,
        /// Which attempt, from 1.
        attempt: i32,
    },
    /// Leading back to stable.
    Returning,
}

/// How long something has been going on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// What.
    pub subject: Subject,
    /// Since when.
    pub start: Timestamp,
    /// When it last moved on. None while the count is stopped (paused, stopped).
    pub moved: Option<Timestamp>,
    /// The most available pods seen: flapping is no progress.
    pub best: i32,
}

/// What is to be done with a candidate that has reached its rung.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opinion {
    /// Nothing yet: the answer is being worked on.
    Continue,
    /// The question is answered: it may go on.
    Advance,
    /// Nothing, until somebody or something else has changed: no data, both revisions bad, a person is asked.
    Hold,
    /// It was not decided in time: [`OnUndecided`] says what happens.
    Undecided,
    /// It is bad.
    RollBack,
}

/// What evidence and tests say about the candidate at the rung in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gate {
    /// The rung's weight; 100 for all the traffic. One that speaks about another rung is not heard.
    pub weight: i32,
    /// What to do.
    pub opinion: Opinion,
    /// Why, for users.
    pub reason: Reason,
    /// When the opinion changes by itself at the latest, if it does.
    pub deadline: Option<Timestamp>,
    /// It comes from tests that have not all been passed, not from evidence: a bake does not end before they are.
    pub by_test: bool,
}

/// A rung that every gateway has confirmed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reached {
    /// Whose.
    pub revision: String,
    /// In which attempt.
    pub attempt: i32,
    /// The rung's weight; 100 for all the traffic.
    pub weight: i32,
    /// Since when, without having lost it.
    pub since: Timestamp,
}

/// A pool's release as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Situation {
    /// The time.
    pub now: Timestamp,
    /// Replicas that should serve; 0 while stopped.
    pub replicas: i32,
    /// `maxSurgePercent`.
    pub surge_percent: i32,
    /// `rollout.paused`.
    pub paused: bool,
    /// `stopped`.
    pub stopped: bool,
    /// `progressDeadlineSeconds`.
    pub deadline: SignedDuration,
    /// What spec asks for.
    pub target: Target,
    /// Attempts of the target so far, counted from 1.
    pub attempt: i32,
    /// All revisions that are recorded or have pods; the target too, once it is recorded.
    pub members: Vec<Member>,
    /// What the gateways have done.
    pub gateways: Gateways,
    /// What was being waited for at the last look.
    pub progress: Option<Progress>,
    /// How a candidate takes over; none for batch by batch (RollingUpdate).
    pub ladder: Option<Ladder>,
    /// What is said about the rung in force.
    pub gate: Option<Gate>,
    /// The rung reached at the last look.
    pub reached: Option<Reached>,
    /// `sessions.maxDrainSeconds`, where conversations are kept.
    pub max_drain: Option<SignedDuration>,
}

/// Where a release stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Nothing can run yet: the first revision is not known.
    Empty,
    /// The target serves with its capacity, and every gateway knows.
    Ready,
    /// The stable revision has not its capacity yet (start, scale-up, lost pods).
    Starting,
    /// The stable revision has more pods than wanted.
    Shrinking,
    /// A candidate takes over.
    Releasing,
    /// A candidate has reached its rung and is judged.
    Judging,
    /// A candidate has all the traffic and is still judged; the way back is open.
    Baking,
    /// Capacity and traffic go back to stable.
    Returning,
    /// A release waits for the spec to rest.
    Settling,
    /// A release is held by `paused`.
    Paused,
    /// No pod runs, or the last ones are going, because of `stopped`.
    Stopped,
    /// The target was rejected; stable serves.
    Rejected(Reason),
}

/// What is waited for, until when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// What.
    pub reason: Reason,
    /// When the wait ends or is reported as stalled; none: for ever.
    pub deadline: Option<Timestamp>,
}

/// A change of standing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Which revision.
    pub revision: String,
    /// From now on.
    pub standing: Standing,
    /// Why, for [`Standing::Rejected`].
    pub reason: Option<Reason>,
}

/// What to do now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The revision that serves, after `changes`.
    pub stable: Option<String>,
    /// The revision being released or led back from.
    pub candidate: Option<String>,
    /// Changes of standing, in the order in which they must be written.
    pub changes: Vec<Change>,
    /// A weight whose question the candidate has answered: to be written with its revision, before what follows from it.
    pub passed: Option<(String, i32)>,
    /// Rungs up to that weight were left out, not answered: the traffic could not judge them in time.
    pub left_out: bool,
    /// `spec.replicas` by revision; what is not named stays.
    pub scale: Vec<(String, i32)>,
    /// The weights, in percent; they add up to 100. Empty while nothing can serve.
    pub traffic: Vec<(String, i32)>,
    /// Revisions of these that are kept for their conversations only, and until when at the latest.
    pub draining: Vec<(String, Timestamp)>,
    /// Where the release stands.
    pub state: State,
    /// What it waits for; none when there is nothing to wait for.
    pub waiting: Option<Waiting>,
    /// The wait is over its deadline, or needs a person: a reason. What runs goes on.
    pub stalled: Option<Reason>,
    /// What to remember for the next look.
    pub progress: Option<Progress>,
    /// The rung that is reached, to remember.
    pub reached: Option<Reached>,
}
