//! What the evidence says now.

use super::eta::{self, Rates, Sofar, duration, estimated_rate};
use super::metric::MetricEvidence;
use super::plan::{Compare, Counted, Metric, Mode, Plan, Question, Rule, Threshold};
use super::state::{Evidence, GRACE_SECONDS};
use super::window::Tally;
use crate::stats::WINDOW_SECONDS;

/// A step whose newest counts are older than this, beyond the time a window needs to close, has no data: its source is
/// down, or nobody asks.
const STALE_SECONDS: i64 = 300;

/// What to do, for one metric or for the step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is shown that the step's question is answered: the weight may rise.
    Advance,
    /// Neither is shown yet.
    Continue,
    /// It is shown that the candidate is worse than tolerated.
    Rollback,
    /// There is nothing to judge. Neither good nor bad, however long it lasts: hold.
    NoData,
    /// Stable fails too: whatever it is, it is not the candidate. Hold.
    CommonMode,
    /// `decideWithinSeconds` has passed without either being shown: `onUndecided` decides. Only of a step, never of a
    /// metric.
    Undecided,
}

impl Verdict {
    /// The word that status shows.
    pub fn word(self) -> &'static str {
        match self {
            Self::Advance => "Advance",
            Self::Continue => "Continue",
            Self::Rollback => "Rollback",
            Self::NoData => "NoData",
            Self::CommonMode => "CommonMode",
            Self::Undecided => "Undecided",
        }
    }
}

/// One metric's part.
#[derive(Clone, Debug, PartialEq)]
pub struct MetricJudgement {
    /// The metric.
    pub name: String,
    /// Whether it decides.
    pub mode: Mode,
    /// What it says.
    pub verdict: Verdict,
    /// Evidence for advancing, in percent of what is needed; 100 exactly when there is enough.
    pub advance_percent: u8,
    /// Evidence of harm, in percent of what this metric alone would need; 100 exactly when there is enough.
    pub rollback_percent: u8,
    /// Counts of this step; a threshold has none.
    pub step: Tally,
    /// Counts of the whole release.
    pub release: Tally,
    /// Expected time until the evidence for advancing is there, for a candidate as good as stable, at the present traffic; none
    /// where it is not in sight.
    pub eta_seconds: Option<i64>,
    /// One sentence.
    pub message: String,
}

/// The step's judgement.
#[derive(Clone, Debug, PartialEq)]
pub struct Judgement {
    /// What to do.
    pub verdict: Verdict,
    /// By metric, in the plan's order.
    pub metrics: Vec<MetricJudgement>,
    /// Expected time until the step may advance; none where that is not in sight.
    pub eta_seconds: Option<i64>,
    /// One sentence for users.
    pub message: String,
}

/// Judges the step of `plan` at `now` (seconds since the Unix epoch).
pub fn judge(evidence: &Evidence, plan: &Plan, now: i64) -> Judgement {
    let judge = Judge { evidence, plan, now };
    let metrics: Vec<MetricJudgement> = plan.metrics.iter().map(|metric| judge.metric(metric)).collect();
    judge.step(metrics)
}

struct Judge<'a> {
    evidence: &'a Evidence,
    plan: &'a Plan,
    now: i64,
}

impl Judge<'_> {
    fn needed_to_advance(&self) -> f64 {
        -self.plan.strictness.false_promotion().ln()
    }

    fn needed_to_roll_back(&self) -> f64 {
        -self.plan.strictness.false_rollback().ln()
    }

    fn metric(&self, metric: &Metric) -> MetricJudgement {
        let fits = |evidence: &&MetricEvidence| evidence.definition.rule == metric.rule;
        let known = self.evidence.metric(&metric.name).filter(fits);
        let is_at = self.evidence.is_at(&self.plan.step);
        let anew;
        let evidence = match known {
            Some(evidence) if is_at => evidence,
            // What was shown at another step answers nothing here.
            former => {
                let mut evidence = former
                    .cloned()
                    .unwrap_or_else(|| MetricEvidence::new(metric.clone()));
                evidence.begin_step(self.plan.step.question);
                anew = evidence;
                &anew
            }
        };
        let has_data = self.has_data(evidence);
        match &metric.rule {
            Rule::Compare(compare) => self.comparison(metric, compare, evidence, has_data),
            Rule::Threshold(threshold) => self.threshold(metric, threshold, evidence, has_data),
        }
    }

    fn has_data(&self, evidence: &MetricEvidence) -> bool {
        evidence.newest.is_some_and(|newest| {
            let fresh_until = self.plan.closes(newest) + GRACE_SECONDS + STALE_SECONDS;
            self.now < fresh_until
        })
    }

    /// Whether the step's first requests have hardly had time to be over: then there is no data, as there should not be. Never beyond
    /// the step's deadline, where no data must not be taken for undecided.
    fn is_early(&self, evidence: &MetricEvidence) -> bool {
        let step = &self.plan.step;
        let first = step.start.saturating_add(self.plan.warmup_seconds) + WINDOW_SECONDS;
        let due = self.plan.closes(first) + GRACE_SECONDS + STALE_SECONDS;
        evidence.newest.is_none() && self.now < due.min(step.start.saturating_add(step.decide_within_seconds))
    }

    /// Whether this metric has shown harm: as the one that brought the release's evidence to its peak, or, if it only
    /// observes, by itself.
    fn shows_harm(&self, metric: &Metric, evidence: &MetricEvidence) -> bool {
        match metric.mode {
            Mode::Enforce => self
                .evidence
                .peak()
                .is_some_and(|peak| peak.ln_e() >= self.needed_to_roll_back() && peak.metric == metric.name),
            Mode::Observe => evidence.ln_harm() >= self.needed_to_roll_back(),
        }
    }

    fn comparison(
        &self,
        metric: &Metric,
        compare: &Compare,
        evidence: &MetricEvidence,
        has_data: bool,
    ) -> MetricJudgement {
        let is_harmful = self.shows_harm(metric, evidence);
        let is_errors = compare.counted == Counted::Errors;
        let is_degraded = self.evidence.is_stable_degraded(self.plan);
        // Where stable is no measure, only being good by itself counts: so a candidate that mends stable may advance.
        let ln_pass = if is_degraded && is_errors {
            evidence.ln_pass_degraded()
        } else {
            evidence.ln_pass()
        };
        let bakes = self.plan.step.question == Question::Bake;
        let advance_percent = if bakes {
            self.bake_percent()
        } else {
            percent(ln_pass, self.needed_to_advance())
        };
        let eta_seconds = if bakes {
            self.rest()
        } else {
            self.eta(compare, evidence, has_data)
        };
        let verdict = match () {
            () if is_harmful => Verdict::Rollback,
            () if !has_data && self.is_early(evidence) => Verdict::Continue,
            () if !has_data => Verdict::NoData,
            () if advance_percent == 100 => Verdict::Advance,
            () if is_degraded && is_errors && !bakes => Verdict::CommonMode,
            () => Verdict::Continue,
        };
        let shares = self.plan.shares();
        let metrics = match metric.mode {
            Mode::Enforce => self.evidence.deciding_count().max(1) as f64,
            Mode::Observe => 1.0,
        };
        let harm = (shares.0 / metrics).ln() + evidence.ln_harm();
        let bake = (shares.1 / metrics).ln() + evidence.ln_bake();
        let rollback_percent = match is_harmful {
            true => 100,
            false => percent(harm.max(bake), self.needed_to_roll_back()).min(99),
        };
        let mut judgement = MetricJudgement {
            name: metric.name.clone(),
            mode: metric.mode,
            verdict,
            advance_percent,
            rollback_percent,
            step: evidence.step.clone(),
            release: evidence.release.clone(),
            eta_seconds,
            message: String::new(),
        };
        judgement.message = self.sentence(&judgement, compare, evidence);
        judgement
    }

    fn threshold(
        &self,
        metric: &Metric,
        threshold: &Threshold,
        evidence: &MetricEvidence,
        has_data: bool,
    ) -> MetricJudgement {
        let is_over = evidence.failures > threshold.failure_limit;
        let verdict = match evidence.last_good {
            _ if is_over => Verdict::Rollback,
            None if self.is_early(evidence) => Verdict::Continue,
            Some(true) if has_data => Verdict::Advance,
            Some(false) if has_data => Verdict::Continue,
            _ => Verdict::NoData,
        };
        let name = &metric.name;
        let readings = format!(
            "{} of at most {} readings outside the limits",
            evidence.failures, threshold.failure_limit
        );
        let used = (u64::from(evidence.failures) * 100 / (u64::from(threshold.failure_limit) + 1)).min(100);
        MetricJudgement {
            name: name.clone(),
            mode: metric.mode,
            verdict,
            advance_percent: if verdict == Verdict::Advance { 100 } else { 0 },
            rollback_percent: used as u8,
            step: evidence.step.clone(),
            release: evidence.release.clone(),
            eta_seconds: None,
            message: match verdict {
                Verdict::NoData => format!("{name}: no reading at this step"),
                _ => format!("{name}: {readings}"),
            },
        }
    }

    /// Seconds of the step's least time that are left.
    fn rest(&self) -> Option<i64> {
        Some((self.plan.step.start + self.plan.step.min_seconds - self.now).max(0))
    }

    fn bake_percent(&self) -> u8 {
        let least = self.plan.step.min_seconds.max(1);
        let done = (self.now - self.plan.step.start).clamp(0, least);
        (i128::from(done) * 100 / i128::from(least)) as u8
    }

    fn eta(&self, compare: &Compare, evidence: &MetricEvidence, has_data: bool) -> Option<i64> {
        let Question::Advance { times_worse } = self.plan.step.question else {
            return None;
        };
        let newest = evidence.newest.filter(|_| has_data)?;
        let since = self.plan.step.start + self.plan.warmup_seconds;
        let seconds = (newest + WINDOW_SECONDS - since).max(WINDOW_SECONDS) as f64;
        let rates = Rates {
            stable: evidence.step.stable.requests as f64 / seconds,
            candidate: evidence.step.candidate.requests as f64 / seconds,
        };
        let mut longest = 0.0f64;
        for (index, series) in evidence.series.iter().enumerate() {
            let sofar = Sofar {
                pass: series.pass.ln_mean(),
                acceptable: series.acceptable.ln_mean(),
            };
            let rate = estimated_rate(evidence.release.stable.arm(index));
            let needs = eta::seconds_to_pass(compare, self.plan.strictness, times_worse, rates, rate, sofar)?;
            longest = longest.max(needs);
        }
        if evidence.ln_pass() >= self.needed_to_advance() {
            longest = 0.0;
        }
        Some((longest.ceil() as i64).max(self.rest()?))
    }

    fn sentence(&self, judgement: &MetricJudgement, compare: &Compare, evidence: &MetricEvidence) -> String {
        let name = &judgement.name;
        match judgement.verdict {
            Verdict::Rollback => {
                let worst = evidence.series.iter().enumerate().max_by(|(_, a), (_, b)| {
                    let most = |series: &super::metric::Series| {
                        let comparison = series.harm.ln_mean();
                        comparison.max(series.abort.ln_mean()).max(series.bake.ln_mean())
                    };
                    most(a).total_cmp(&most(b))
                });
                let index = worst.map_or(0, |(index, _)| index);
                let candidate = evidence.release.candidate.arm(index);
                let stable = evidence.release.stable.arm(index);
                format!(
                    "{name}: the candidate is worse than stable: {} of {} requests {}, against {} of {}",
                    candidate.events,
                    candidate.requests,
                    what(&compare.counted, index),
                    stable.events,
                    stable.requests,
                )
            }
            Verdict::NoData => {
                let arm = match (evidence.step.candidate.requests, evidence.step.stable.requests) {
                    (0, _) => "no closed window has a request of the candidate at this step",
                    (_, 0) if self.plan.step.question != Question::Bake => {
                        "no closed window has a request of stable at this step"
                    }
                    _ => "no new counts for minutes",
                };
                format!("{name}: {arm}")
            }
            Verdict::CommonMode => format!(
                "{name}: stable fails too ({:.1} % lately, more than {:.1} %), so both arms may be bad for one reason; \
                 where that is normal, raise acceptableErrorPercent",
                self.evidence.recent_error_rate() * 100.0,
                self.plan.degraded_above() * 100.0,
            ),
            Verdict::Advance if self.plan.step.question == Question::Bake => {
                format!("{name}: as good as before")
            }
            Verdict::Advance => format!("{name}: shown to be good enough for this step"),
            Verdict::Continue if evidence.newest.is_none() => {
                format!("{name}: waits until the first requests of this step are over")
            }
            Verdict::Continue | Verdict::Undecided => {
                let eta = match judgement.eta_seconds {
                    Some(seconds) => format!("about {} at this traffic", duration(seconds)),
                    None => "not in sight at this traffic".to_owned(),
                };
                let of = if self.plan.step.question == Question::Bake {
                    "bake"
                } else {
                    "evidence to advance"
                };
                format!("{name}: {} % of the {of}, {eta}", judgement.advance_percent)
            }
        }
    }

    fn step(&self, metrics: Vec<MetricJudgement>) -> Judgement {
        let deciding = || metrics.iter().filter(|metric| metric.mode == Mode::Enforce);
        let first = |verdict: Verdict| deciding().find(|metric| metric.verdict == verdict);
        let step = &self.plan.step;
        let rest = step.start + step.min_seconds - self.now;
        let held = [Verdict::Rollback, Verdict::NoData, Verdict::CommonMode]
            .into_iter()
            .find_map(first);
        let slowest = deciding()
            .filter(|metric| metric.verdict == Verdict::Continue)
            .min_by_key(|metric| metric.advance_percent);
        let (verdict, message) = match (held, slowest) {
            (Some(metric), _) => (metric.verdict, metric.message.clone()),
            (None, Some(metric)) => {
                let is_due = self.now >= self.evidence.due(self.plan);
                let is_bake = step.question == Question::Bake;
                if is_due && !is_bake {
                    let limit = duration(step.decide_within_seconds);
                    (
                        Verdict::Undecided,
                        format!("not decided within {limit}: {}", metric.message),
                    )
                } else {
                    (Verdict::Continue, metric.message.clone())
                }
            }
            (None, None) if rest > 0 => {
                let message = format!("good so far; the step lasts {} more", duration(rest));
                (Verdict::Continue, message)
            }
            (None, None) if deciding().next().is_none() => {
                let message = "no metric decides: the step has lasted as long as it should".to_owned();
                (Verdict::Advance, message)
            }
            (None, None) => (
                Verdict::Advance,
                "every metric is shown to be good enough".to_owned(),
            ),
        };
        let etas: Option<Vec<i64>> = deciding()
            .filter(|metric| metric.verdict != Verdict::Advance)
            .map(|metric| metric.eta_seconds)
            .collect();
        let eta_seconds = match verdict {
            Verdict::Rollback | Verdict::NoData | Verdict::CommonMode => None,
            _ => etas.map(|etas| etas.into_iter().fold(rest.max(0), i64::max)),
        };
        Judgement {
            verdict,
            metrics,
            eta_seconds,
            message,
        }
    }
}

fn what(counted: &Counted, index: usize) -> String {
    let limit = |thresholds: &[u64]| thresholds.get(index).copied().unwrap_or_default();
    match counted {
        Counted::Errors => "failed".to_owned(),
        Counted::Events => "ended badly".to_owned(),
        Counted::Latency(thresholds) => format!("above {} ms", limit(thresholds)),
        Counted::FirstByte(thresholds) => format!("with the first byte above {} ms", limit(thresholds)),
        Counted::Above(thresholds) => format!("above {}", limit(thresholds) as f64 / 1e6),
    }
}

/// `ln_e` in percent of `needed`; 100 exactly if it is reached.
fn percent(ln_e: f64, needed: f64) -> u8 {
    if ln_e >= needed {
        return 100;
    }
    ((ln_e / needed * 100.0).max(0.0) as u8).min(99)
}
