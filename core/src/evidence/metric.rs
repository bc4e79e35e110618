//! The evidence on one metric.
//!
//! # What an outage of both arms leaves behind
//!
//! An outage says nothing about the candidate, but it is full of events: within minutes it drives an e-value so far down that a good
//! candidate cannot climb back in the time of a step, and that harm which comes later stays unseen. So what is counted while
//! stable is degraded (the guard of [`state`](super::state)) is set aside, and its time does not count for `decideWithinSeconds`:
//!
//! * The comparisons leave out each block of windows ([`CARRY_SECONDS`]) that begins when stable is degraded already. In one during which
//!   it becomes so the evidence for advancing may only fall, since both fail alike for a reason that is not the candidate's.
//! * The tests of the candidate alone leave out each window in which stable is degraded.
//!
//! Two tests must go on all the same: harm, for the candidate may be what breaks both, and the absolute test, for it may be what mends
//! them. They are kept twice ([`Guarded`]), over all windows and over those that are not set aside, each with half of the stake.
//! Without an outage the halves are equal; one that an outage has ruined costs the other ln 2.
//!
//! Why the bounds hold. A factor of expectation at most 1, given the past, may be replaced by 1 by any rule that depends on
//! the past alone: whether a block begins degraded is known before its first request ends. `min(f, 1) ≤ f`. The rule for
//! the candidate alone looks at how *stable's* requests of the same window ended, which given both rates says nothing about how the
//! candidate's end. And the mean of two e-values is one (Vovk and Wang, arXiv 1912.06116). So each is a non-negative
//! supermartingale from 1 as before, and Ville's inequality gives the same α and β. While stable is degraded only the part of the
//! mean counts that goes on, which is never more than the whole.

use serde::{Deserialize, Serialize};

use super::plan::{Metric, Plan, Question, Rule};
use super::rate::{self, RateTest, odds_times};
use super::ratio::{LogE, RATIOS, RatioTest, ln_mean};
use super::window::{Counts, Observation, Tally};

/// How long counts of one arm wait for counts of the other. With a canary of 1 % of one request a second, six windows
/// of seven have no request of the candidate; alone they would compare nothing, and stable's counts would be lost.
/// The choice depends on numbers of requests only, never on how they ended.
const CARRY_SECONDS: i64 = 60;

/// An e-value kept twice, see the module.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Guarded<const N: usize> {
    /// Over all windows.
    pub all: LogE<N>,
    /// Over those in which nothing is wrong with stable.
    pub calm: LogE<N>,
}

impl<const N: usize> Guarded<N> {
    /// The logarithm of the mean of both.
    pub fn ln_mean(&self) -> f64 {
        ln_mean([self.all.ln_mean(), self.calm.ln_mean()].into_iter())
    }
}

/// Evidence on one series of events.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Series {
    /// That the candidate is worse than tolerated; over the whole release.
    pub harm: Guarded<RATIOS>,
    /// That it is not as bad as this step must rule out; since the step's start.
    pub pass: LogE<RATIOS>,
    /// That its rate is below the acceptable one; since the step's start.
    pub acceptable: Guarded<{ rate::BELOW }>,
    /// That its rate is above `abortAbovePercent`; over the whole release.
    pub abort: LogE<{ rate::ABOVE }>,
    /// That its rate is above the bake's limit.
    pub bake: LogE<{ rate::ABOVE }>,
    /// The bake's limit, in millionths, fixed when it starts; none before, or where stable showed nothing.
    pub bake_limit_millionths: Option<u32>,
}

/// Counts that wait for a request of the other arm.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Carry {
    start: i64,
    epoch: i64,
    tally: Tally,
    /// Stable was degraded before its first window.
    begins_degraded: bool,
    /// Stable was degraded at the end of one of its windows.
    is_degraded: bool,
}

/// Evidence on one metric.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MetricEvidence {
    /// What it was collected for; another definition starts anew.
    pub definition: Metric,
    /// By series; empty for a threshold.
    pub series: Vec<Series>,
    /// Counts of the whole release.
    pub release: Tally,
    /// Counts of the present step.
    pub step: Tally,
    /// Start of the newest window with data on what is judged.
    pub newest: Option<i64>,
    /// Bad readings of a threshold, over the whole release.
    pub failures: u32,
    /// The last reading of a threshold in this step.
    pub last_good: Option<bool>,
    carry: Option<Carry>,
}

/// What a window is, beside its counts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub start: i64,
    pub epoch: i64,
    /// Stable was degraded before it.
    pub begins_degraded: bool,
    /// Stable is degraded, as far as its requests up to the end of this window tell.
    pub is_degraded: bool,
}

/// The tests of one metric at one step, made once per update.
struct Tests {
    harm: RatioTest,
    pass: Option<RatioTest>,
    acceptable: Option<RateTest<{ rate::BELOW }>>,
    abort: Option<RateTest<{ rate::ABOVE }>>,
}

impl MetricEvidence {
    /// No evidence.
    pub fn new(definition: Metric) -> Self {
        let series = definition.compare().map_or(0, |compare| compare.counted.series());
        Self {
            definition,
            series: vec![Series::default(); series],
            release: Tally::default(),
            step: Tally::default(),
            newest: None,
            failures: 0,
            last_good: None,
            carry: None,
        }
    }

    /// Whether a checkpoint is of one piece.
    pub(super) fn is_sound(&self) -> bool {
        self.series.len()
            == self
                .definition
                .compare()
                .map_or(0, |compare| compare.counted.series())
    }

    /// Evidence for advancing starts anew, because each step asks another question; evidence of harm goes on.
    pub(super) fn begin_step(&mut self, question: Question) {
        self.step = Tally::default();
        self.newest = None;
        self.last_good = None;
        self.carry = None;
        for index in 0..self.series.len() {
            let limit = (question == Question::Bake)
                .then(|| self.bake_limit(index))
                .flatten();
            if let Some(series) = self.series.get_mut(index) {
                series.pass = LogE::default();
                series.acceptable = Guarded::default();
                series.bake = LogE::default();
                series.bake_limit_millionths = limit;
            }
        }
    }

    /// Twice the odds of the most that stable's rate may be by its counts (about the upper 99 % bound), or the
    /// acceptable rate where that is more: times differ more than arms do.
    fn bake_limit(&self, index: usize) -> Option<u32> {
        let compare = self.definition.compare()?;
        let stable = self.release.stable.arm(index);
        if stable.requests == 0 {
            return None;
        }
        let (n, x) = (stable.requests as f64, stable.events as f64 / compare.cluster());
        let upper = compare.cluster() * (x + 2.7 + 2.33 * (x + 1.0).sqrt()) / n;
        let limit = odds_times(upper.min(0.9), 2.0).max(compare.acceptable().unwrap_or_default());
        Some((limit * 1e6) as u32)
    }

    /// Adds one closed window of the release. `counts_for_step`: its requests were assigned at the step's weight.
    pub(super) fn observe(
        &mut self,
        observation: &Observation,
        place: Place,
        plan: &Plan,
        counts_for_step: bool,
    ) {
        match (observation, &self.definition.rule) {
            (Observation::Counts(tally), Rule::Compare(_)) => self.count(tally, place, plan, counts_for_step),
            (Observation::Reading { good }, Rule::Threshold(_)) => {
                self.failures = self.failures.saturating_add(u32::from(!good));
                if counts_for_step {
                    self.last_good = Some(*good);
                    self.newest = Some(place.start);
                }
            }
            // A source that speaks of something else has no data on this.
            (Observation::Counts(_), Rule::Threshold(_))
            | (Observation::Reading { .. }, Rule::Compare(_)) => {}
        }
    }

    fn tests(&self, plan: &Plan) -> Option<Tests> {
        let compare = self.definition.compare()?;
        Some(Tests {
            harm: compare.harm_test(),
            pass: match plan.step.question {
                Question::Advance { times_worse } => {
                    Some(RatioTest::pass(f64::from(times_worse), compare.cluster()))
                }
                Question::Bake => None,
            },
            acceptable: compare.acceptable_test(),
            abort: compare.abort_test(),
        })
    }

    fn count(&mut self, tally: &Tally, place: Place, plan: &Plan, counts_for_step: bool) {
        let has_candidate = tally.candidate.requests > 0;
        self.release.add(tally);
        if counts_for_step {
            self.step.add(tally);
            if has_candidate && plan.step.question == Question::Bake {
                self.newest = Some(place.start);
            }
        }
        let Some(tests) = self.tests(plan) else {
            return;
        };
        if has_candidate {
            self.observe_alone(&tally.candidate, place, &tests, counts_for_step);
        }

        let keep = |carry: &Carry| carry.epoch == place.epoch && place.start - carry.start < CARRY_SECONDS;
        let mut block = self.carry.take().filter(keep).unwrap_or_else(|| Carry {
            start: place.start,
            epoch: place.epoch,
            begins_degraded: place.begins_degraded,
            ..Carry::default()
        });
        block.tally.add(tally);
        block.is_degraded |= place.is_degraded;
        if block.tally.stable.requests > 0 && block.tally.candidate.requests > 0 {
            self.compare(&block, &tests, counts_for_step);
            if counts_for_step {
                self.newest = Some(place.start);
            }
        } else {
            self.carry = Some(block);
        }
    }

    /// The tests that need no stable arm.
    fn observe_alone(&mut self, candidate: &Counts, place: Place, tests: &Tests, counts_for_step: bool) {
        let cluster = self
            .definition
            .compare()
            .map_or(1.0, super::plan::Compare::cluster);
        for (index, series) in self.series.iter_mut().enumerate() {
            let arm = candidate.arm(index);
            if let Some(test) = tests.abort.as_ref().filter(|_| !place.is_degraded) {
                test.observe(&mut series.abort, arm);
            }
            if !counts_for_step {
                continue;
            }
            if let Some(test) = &tests.acceptable {
                test.observe(&mut series.acceptable.all, arm);
                if !place.is_degraded {
                    test.observe(&mut series.acceptable.calm, arm);
                }
            }
            if let Some(limit) = series.bake_limit_millionths {
                RateTest::above(f64::from(limit) / 1e6, cluster).observe(&mut series.bake, arm);
            }
        }
    }

    fn compare(&mut self, block: &Carry, tests: &Tests, counts_for_step: bool) {
        for (index, series) in self.series.iter_mut().enumerate() {
            let (stable, candidate) = (block.tally.stable.arm(index), block.tally.candidate.arm(index));
            tests.harm.observe(&mut series.harm.all, candidate, stable, false);
            if block.begins_degraded {
                continue;
            }
            tests
                .harm
                .observe(&mut series.harm.calm, candidate, stable, false);
            if let Some(pass) = tests.pass.as_ref().filter(|_| counts_for_step) {
                pass.observe(&mut series.pass, stable, candidate, block.is_degraded);
            }
        }
    }

    /// ln of the e-value that the candidate is worse than tolerated or above `abortAbovePercent`: the mean over series,
    /// so that many thresholds cost nothing when all shift and at most their number when one does.
    pub fn ln_harm(&self) -> f64 {
        let aborts = self
            .definition
            .compare()
            .is_some_and(|compare| compare.abort_above().is_some());
        ln_mean(self.series.iter().map(|series| {
            let harm = series.harm.ln_mean();
            if aborts {
                ln_mean([harm, series.abort.ln_mean()].into_iter())
            } else {
                harm
            }
        }))
    }

    /// ln of the e-value that the candidate is above the bake's limit.
    pub fn ln_bake(&self) -> f64 {
        ln_mean(self.series.iter().map(|series| series.bake.ln_mean()))
    }

    /// ln of the e-value that the candidate is good enough for this step: the least over series, since all must be
    /// shown. Of each, the mean of the comparison and of the absolute test, which alone can speak where nothing fails.
    pub fn ln_pass(&self) -> f64 {
        let absolute = self
            .definition
            .compare()
            .is_some_and(|compare| compare.acceptable().is_some());
        let each = self.series.iter().map(|series| {
            let pass = series.pass.ln_mean();
            if absolute {
                ln_mean([pass, series.acceptable.ln_mean()].into_iter())
            } else {
                pass
            }
        });
        each.fold(f64::INFINITY, f64::min)
    }

    /// The part of [`Self::ln_pass`] that goes on while stable is degraded: that the candidate's rate is below the acceptable one on
    /// every series; -∞ where none is set. A quarter of the absolute test over all windows, as there.
    pub fn ln_pass_degraded(&self) -> f64 {
        if self
            .definition
            .compare()
            .and_then(super::plan::Compare::acceptable)
            .is_none()
        {
            return f64::NEG_INFINITY;
        }
        let each = self.series.iter().map(|series| series.acceptable.all.ln_mean());
        each.fold(f64::INFINITY, f64::min) - 4f64.ln()
    }
}
