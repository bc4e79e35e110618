//! Evidence: whether a release may go on, from measured counts of both revisions.
//!
//! # Why sequential, and why a comparison
//!
//! A fixed limit per interval ignores how many requests it saw: one failure of six is 83 %, so healthy canaries at low
//! traffic are aborted and threefold regressions pass unseen below the line. And one that looks again every minute accepts at
//! each look a chance of being wrong. Here evidence is an *e-value*: it starts at 1, and under the hypothesis that it speaks against it
//! ever reaches 1/α with a probability of at most α, however often and whenever one looks ([`ratio`], [`rate`]). Candidate
//! and stable are compared over the same time, so a provider's outage, the hour of the day and a change of weight cancel.
//!
//! Two questions are asked at once. *Harm*: is the candidate worse than tolerated? One e-value over the whole release, never
//! restarted, against α. *Pass*: is it shown not to be as many times worse as this step must rule out? Anew at each step,
//! against β. Silence answers neither: no traffic is no evidence.
//!
//! # The way of a count
//!
//! ```text
//!  /stats of each gateway ──► Report ──► Evidence::update ──► judge ──► Judgement
//!  another source ──────────►  (closed windows, once each)     (plan, now)
//! ```
//!
//! * [`window`]: what a source reports; the cohort rule for long requests; the cluster factor from history.
//! * [`state`]: the checkpoint, each window exactly once, the warm-up, the guard against an outage of both arms.
//! * [`metric`]: the tests of one metric.
//! * [`mod@judge`]: verdicts, percentages and sentences. [`eta`]: how long it takes; which step to start with.
//! * [`share`]: whether requests follow the weights.
//! * [`breaker`]: many pools that fail at once.
//! * [`simulation`], [`exceedance`], [`statistics`]: seeded releases, and the promises below as figures of them.
//! * [`peers`], [`comparison`]: the rules of Argo Rollouts and Flagger, and the table beside ours.
//!
//! # What is guaranteed, and what it rests on
//!
//! With [`Strictness::Standard`], a candidate whose rates are at most the tolerated times stable's is rolled back with a probability
//! of at most 1 % over the whole release, bake included (several metrics share it). A step lets one pass that is `ruleOutTimesWorse` times
//! worse, and above the acceptable rate, with at most 5 %. An outage of both changes neither ([`metric`]). Both hold for rates that drift, provided that both arms get the same kind of traffic, and that
//! failures are independent or come in bursts no larger than the cluster factor. [`Rule::Threshold`] has no such guarantee. During the
//! bake there is no second arm: an outage then looks like the candidate's fault; the storm breaker is what is left.

pub mod breaker;
pub mod comparison;
pub mod eta;
pub mod exceedance;
pub mod judge;
pub mod metric;
pub mod peers;
pub mod plan;
pub mod rate;
pub mod ratio;
pub mod share;
pub mod simulation;
pub mod state;
pub mod statistics;
pub mod window;

#[cfg(test)]
mod tests;

pub use breaker::{Cause, Permit, StormBreaker};
pub use eta::{DEFAULT_STEPS, Rung, Start, Traffic, expected_seconds, starting_step};
pub use judge::{Judgement, MetricJudgement, Verdict, judge};
pub use plan::{Compare, Counted, Metric, Mode, Plan, Question, Rule, Step, Strictness, Threshold};
pub use ratio::Arm;
pub use state::{CheckpointError, Evidence, Key, Update};
pub use window::{Counts, Observation, Report, Scrape, Tally, Window, cluster_thousandths};
