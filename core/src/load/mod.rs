//! Load tests: the plan, the schedule, what workers report, and the verdict.
//!
//! The operator writes a [`plan::LoadPlan`], every worker computes the same [`schedule::Schedule`] from it and
//! takes its share, each leaves a [`wire::WorkerResult`], [`result::RunResult`] merges them, and
//! [`verdict::judge`] says what was shown. All of it is values in and values out.

pub mod binomial;
pub mod decimal;
pub mod plan;
pub mod random;
pub mod result;
pub mod schedule;
pub mod template;
pub mod verdict;
pub mod wire;
