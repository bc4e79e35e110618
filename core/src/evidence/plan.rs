//! What a release is judged by: the spec's fields as integers, so that a checkpoint can be compared with them exactly.

use serde::{Deserialize, Serialize};

use super::rate::{self, RateTest};
use super::ratio::RatioTest;
use super::window::Observation;

/// How sure a verdict must be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Strictness {
    /// Decides sooner and errs more often: of 100 good releases at most 5 are rolled back, of 100 that are as bad as a step must
    /// rule out at most 10 pass it. For development.
    Relaxed,
    /// At most 1 and at most 5 of 100.
    #[default]
    Standard,
    /// At most 1 in 1000 and at most 1 in 100; needs about half as much traffic again.
    Strict,
}

impl Strictness {
    /// α: the probability, over a whole release and however often one looks, that a candidate which is not worse
    /// than tolerated is rolled back.
    pub fn false_rollback(self) -> f64 {
        match self {
            Self::Relaxed => 0.05,
            Self::Standard => 0.01,
            Self::Strict => 0.001,
        }
    }

    /// β: the probability that a step advances a candidate as bad as the step must rule out.
    pub fn false_promotion(self) -> f64 {
        match self {
            Self::Relaxed => 0.10,
            Self::Standard => 0.05,
            Self::Strict => 0.01,
        }
    }
}

/// Whether a metric decides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mode {
    /// It must pass for a step to advance, and it can roll back.
    #[default]
    Enforce,
    /// It is judged and shown, and decides nothing.
    Observe,
}

/// One metric of a release.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Metric {
    /// Its name, unique in the pool.
    pub name: String,
    /// Whether it decides.
    #[serde(default)]
    pub mode: Mode,
    /// How it is judged.
    pub rule: Rule,
}

/// How a metric is judged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Rule {
    /// By comparing the candidate's counts with stable's.
    Compare(Compare),
    /// By a fixed limit on one value at a time, as the peers do: knows no sample size and has no guarantee.
    Threshold(Threshold),
}

/// A comparison of counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Compare {
    /// What is counted as bad.
    pub counted: Counted,
    /// `tolerateWorsePercent`: a candidate that much worse than stable is still good. 20 for errors, 5 for latency.
    pub tolerate_worse_percent: u32,
    /// `acceptableErrorPercent` in millionths (10,000 is 1 %): a rate that is good enough whatever stable's is. 0: none.
    pub acceptable_millionths: u32,
    /// `abortAbovePercent` in millionths: a candidate shown to be above is rolled back whatever stable's rate is,
    /// unless stable is degraded. 0: none.
    pub abort_above_millionths: u32,
    /// The largest burst of bad requests with one cause, in thousandths: 1,000 for independent requests. See
    /// [`cluster_thousandths`](super::cluster_thousandths).
    pub cluster_thousandths: u32,
}

/// What is counted as bad. Of several thresholds each is an event series of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Counted {
    /// Failed requests.
    Errors,
    /// Requests that took longer than each of these, in milliseconds.
    Latency(Vec<u64>),
    /// Requests whose first body byte took longer than each of these, in milliseconds.
    FirstByte(Vec<u64>),
    /// Requests or tasks that ended badly, as another source than the gateway counts them.
    Events,
    /// Requests or tasks with more than each of these, in millionths of the source's own unit (tokens, cost …); counted
    /// by another source than the gateway.
    Above(Vec<u64>),
}

/// A fixed limit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Threshold {
    /// The least good value, in millionths of the source's unit.
    pub minimum_millionths: Option<i64>,
    /// The greatest good value, in millionths of the source's unit.
    pub maximum_millionths: Option<i64>,
    /// More bad readings than this, over the whole release, roll back.
    pub failure_limit: u32,
}

impl Threshold {
    /// What a reading in the source's unit says; none for one that is no number: that is no data.
    pub fn read(&self, value: f64) -> Option<Observation> {
        let limit = |millionths: i64| millionths as f64 / 1e6;
        let good = self
            .minimum_millionths
            .is_none_or(|minimum| value >= limit(minimum))
            && self
                .maximum_millionths
                .is_none_or(|maximum| value <= limit(maximum));
        value.is_finite().then_some(Observation::Reading { good })
    }
}

impl Counted {
    /// The number of event series.
    pub fn series(&self) -> usize {
        match self {
            Self::Errors | Self::Events => 1,
            Self::Latency(thresholds) | Self::FirstByte(thresholds) | Self::Above(thresholds) => {
                thresholds.len()
            }
        }
    }
}

impl Compare {
    /// Failed requests with the defaults of `analysis.errors`.
    pub fn errors() -> Self {
        Self {
            counted: Counted::Errors,
            tolerate_worse_percent: 20,
            acceptable_millionths: 10_000,
            abort_above_millionths: 0,
            cluster_thousandths: 1_000,
        }
    }

    /// Latency with the defaults of `analysis.latency`.
    pub fn latency(thresholds_milliseconds: Vec<u64>) -> Self {
        Self {
            counted: Counted::Latency(thresholds_milliseconds),
            tolerate_worse_percent: 5,
            ..Self::errors()
        }
    }

    pub(super) fn cluster(&self) -> f64 {
        f64::from(self.cluster_thousandths.max(1_000)) / 1e3
    }

    /// Above 0 and below 1.
    pub(super) fn acceptable(&self) -> Option<f64> {
        share(self.acceptable_millionths)
    }

    pub(super) fn abort_above(&self) -> Option<f64> {
        share(self.abort_above_millionths)
    }

    pub(super) fn harm_test(&self) -> RatioTest {
        RatioTest::harm(
            1.0 + f64::from(self.tolerate_worse_percent) / 100.0,
            self.cluster(),
        )
    }

    pub(super) fn acceptable_test(&self) -> Option<RateTest<{ rate::BELOW }>> {
        self.acceptable()
            .map(|limit| RateTest::below(limit, self.cluster()))
    }

    pub(super) fn abort_test(&self) -> Option<RateTest<{ rate::ABOVE }>> {
        self.abort_above()
            .map(|limit| RateTest::above(limit, self.cluster()))
    }
}

fn share(millionths: u32) -> Option<f64> {
    (1..1_000_000)
        .contains(&millionths)
        .then(|| f64::from(millionths) / 1e6)
}

impl Metric {
    /// A metric `errors` with the defaults.
    pub fn errors() -> Self {
        Self {
            name: "errors".to_owned(),
            mode: Mode::Enforce,
            rule: Rule::Compare(Compare::errors()),
        }
    }

    /// A metric `latency` with the defaults.
    pub fn latency(thresholds_milliseconds: Vec<u64>) -> Self {
        Self {
            name: "latency".to_owned(),
            mode: Mode::Enforce,
            rule: Rule::Compare(Compare::latency(thresholds_milliseconds)),
        }
    }

    pub(super) fn compare(&self) -> Option<&Compare> {
        match &self.rule {
            Rule::Compare(compare) => Some(compare),
            Rule::Threshold(_) => None,
        }
    }
}

/// What the present step asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Question {
    /// May the weight rise? `ruleOutTimesWorse`: only once it is shown that the candidate is not this many times worse.
    Advance {
        /// At least 2.
        times_worse: u32,
    },
    /// Is it still good with all the traffic? Stable has none, so the candidate is held against what stable showed during the release.
    Bake,
}

/// The step that a release is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Step {
    /// From 0; the bake has the last one plus 1.
    pub index: u32,
    /// What it asks.
    pub question: Question,
    /// `trafficGeneration` since which its weight is in force: only requests assigned under it or a later one count for it.
    pub epoch: i64,
    /// When its weight was confirmed, in seconds since the Unix epoch.
    pub start: i64,
    /// `minDurationSeconds` (`bakeSeconds` for the bake).
    pub min_seconds: i64,
    /// `decideWithinSeconds`.
    pub decide_within_seconds: i64,
}

/// All a judgement depends on but the counts and the time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// How sure a verdict must be.
    pub strictness: Strictness,
    /// The metrics; names are unique.
    pub metrics: Vec<Metric>,
    /// The present step.
    pub step: Step,
    /// `trafficGeneration` with which the candidate's weight first left 0: requests and sessions assigned earlier do not count on
    /// either arm, else the candidate would have only fresh conversations.
    pub first_epoch: i64,
    /// The pool's request timeout: a window is closed once all its requests must be over.
    pub request_timeout_seconds: i64,
    /// Left out, on both arms, after each start of a step: its new pods are cold.
    pub warmup_seconds: i64,
    /// A bake follows the last step. Then a fifth of α is kept for it, so that α holds for the release as a whole.
    pub bakes: bool,
}

/// The bake's share of α. It compares with a fixed limit and all the traffic, so it needs little of it.
const BAKE_SHARE: f64 = 0.2;

/// A stable revision below this error rate is not degraded, whatever `acceptableErrorPercent` says.
const LEAST_DEGRADED: f64 = 0.05;

impl Plan {
    /// The error rate (a share) of stable above which both arms may be bad for one reason: 5 %, or twice
    /// `acceptableErrorPercent` where that is more.
    pub fn degraded_above(&self) -> f64 {
        let acceptable = self.errors().and_then(Compare::acceptable).unwrap_or_default();
        LEAST_DEGRADED.max(2.0 * acceptable)
    }

    /// The rule of the first metric that counts errors: it tells an outage of both arms.
    pub(super) fn errors(&self) -> Option<&Compare> {
        let mut rules = self.metrics.iter().filter_map(Metric::compare);
        rules.find(|compare| compare.counted == Counted::Errors)
    }

    /// The shares of α of the comparison and of the bake.
    pub(super) fn shares(&self) -> (f64, f64) {
        let bake = if self.bakes { BAKE_SHARE } else { 0.0 };
        (1.0 - bake, bake)
    }

    /// When a window is closed that starts at `start`, in seconds since the Unix epoch.
    pub fn closes(&self, start: i64) -> i64 {
        start
            .saturating_add(crate::stats::WINDOW_SECONDS)
            .saturating_add(self.request_timeout_seconds)
    }
}
