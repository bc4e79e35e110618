//! The rules of the peers, as judges to compare with: fixed limits on the candidate's last interval.
//!
//! They follow what the documentation of Argo Rollouts 1.9 and Flagger 1.44 sets up for a success rate. An expert could tune them for one
//! service at one traffic; the point of the comparison is that no setting is right at every traffic.

use super::ratio::Arm;

/// What a peer does after an interval.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerVerdict {
    /// Its schedule goes on.
    Continue,
    /// It rolls back.
    Abort,
    /// It is at its end: promoted.
    Promote,
}

/// An Argo AnalysisRun in the background: a measurement fails below the success rate; more than `failure_limit` failed ones
/// over the run, or more than four without data in a row, abort.
#[derive(Clone, Debug)]
pub struct ArgoStyle {
    success: f64,
    failure_limit: u32,
    failed: u32,
    errors_in_a_row: u32,
}

/// Argo's default `consecutiveErrorLimit`.
const CONSECUTIVE_ERROR_LIMIT: u32 = 4;

impl ArgoStyle {
    /// `success` is a share, `failure_limit` as in the AnalysisTemplate.
    pub fn new(success: f64, failure_limit: u32) -> Self {
        Self {
            success,
            failure_limit,
            failed: 0,
            errors_in_a_row: 0,
        }
    }

    /// One interval's counts of the candidate.
    pub fn measure(&mut self, candidate: Arm) -> PeerVerdict {
        match success(candidate) {
            // An empty result is an error of the measurement.
            None => self.errors_in_a_row += 1,
            Some(rate) => {
                self.errors_in_a_row = 0;
                self.failed += u32::from(rate < self.success);
            }
        }
        if self.failed > self.failure_limit || self.errors_in_a_row > CONSECUTIVE_ERROR_LIMIT {
            PeerVerdict::Abort
        } else {
            PeerVerdict::Continue
        }
    }
}

/// A Flagger Canary: each interval whose success rate holds raises the weight; one that does not, or has no data, is a failed
/// check, and `threshold` of them over the run roll back.
#[derive(Clone, Debug)]
pub struct FlaggerStyle {
    success: f64,
    threshold: u32,
    step_weight: u32,
    max_weight: u32,
    weight: u32,
    failed: u32,
}

impl FlaggerStyle {
    /// `success` is a share; weights are in percent; the first interval has the first step's weight.
    pub fn new(success: f64, threshold: u32, step_weight: u32, max_weight: u32) -> Self {
        Self {
            success,
            threshold,
            step_weight,
            max_weight,
            weight: step_weight,
            failed: 0,
        }
    }

    /// The candidate's weight in the present interval, in percent.
    pub fn weight(&self) -> u32 {
        self.weight
    }

    /// One interval's counts of the candidate.
    pub fn measure(&mut self, candidate: Arm) -> PeerVerdict {
        if success(candidate).is_none_or(|rate| rate < self.success) {
            self.failed += 1;
            let is_over = self.failed >= self.threshold;
            return if is_over {
                PeerVerdict::Abort
            } else {
                PeerVerdict::Continue
            };
        }
        if self.weight >= self.max_weight {
            return PeerVerdict::Promote;
        }
        self.weight = (self.weight + self.step_weight).min(self.max_weight);
        PeerVerdict::Continue
    }
}

fn success(arm: Arm) -> Option<f64> {
    (arm.requests > 0).then(|| 1.0 - arm.events as f64 / arm.requests as f64)
}
