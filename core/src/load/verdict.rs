//! Whether a run shows what it was meant to show.
//!
//! A threshold such as "p95 ≤ 4 s" is a claim about the target, and the run is a sample. Of `n` measured requests
//! `t` took longer than the limit. With confidence `c` (MLPerf's early-stopping rule, mlcommons/inference_policies,
//! `inference_rules.adoc`):
//!
//! - **Passed** if so few misses would be improbable (`≤ 1-c`) were the true rate of misses as high as 5 %;
//! - **Failed** if so many would be improbable were it as low as that;
//! - **Inconclusive** otherwise, with the number of samples that are still needed.
//!
//! So 50 requests without a miss do not prove a p95 (59 do), and no data is never Passed. A limit of 0 % (and
//! `Max`) is no claim about a rate: it is a census of this run, which one miss fails.
//!
//! Failed requests stay in the latency series with the time they took, and a target that fails fast has fine
//! latencies. So failures are always judged: where `failedPercent` is not set, a share of failures that is shown to
//! be above 1 % fails the run (but need not be shown to be below it). `"100"` allows any.
//!
//! Requests are treated as independent. Gaps between tokens of one answer are not, so a verdict on
//! `InterTokenGap` is more confident than it should be.

use serde::{Deserialize, Serialize};

use super::binomial;
use super::decimal::{Decimal, DecimalError};
use super::result::RunResult;
use crate::histogram::Histogram;

/// A generator is late when the 99th percentile of its own lateness is above this many microseconds …
const LATE_MICROSECONDS: f64 = 5_000.0;
/// … and above this share of both the median latency and the tightest limit on a latency, of which it would then be a
/// visible part. Latency counts from the intended start, so a late generator can only make a target look worse: with
/// a limit of 4 s, 13 ms of its own change no verdict, and a median of 20 ms alone must not make them a reason.
const LATE_SHARE: f64 = 0.01;

/// The share of failures, in millionths of a percent, above which a run fails that sets no `failedPercent`.
const UNASKED_FAILED_MILLIONTHS: u128 = 1_000_000;

/// What a run is judged by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Thresholds {
    /// Limit of the median latency.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p50_milliseconds: Option<u64>,
    /// Limit of the 90th percentile.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p90_milliseconds: Option<u64>,
    /// Limit of the 95th percentile.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p95_milliseconds: Option<u64>,
    /// Limit of the 99th percentile.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p99_milliseconds: Option<u64>,
    /// Limit of the share of failed requests, a decimal string; `"0"` allows none. See the module for `None`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failed_percent: Option<String>,
    /// How sure a verdict must be, 50 to 99.
    pub confidence_percent: u32,
    /// Limits of other series.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub custom: Vec<CustomThreshold>,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self {
            p50_milliseconds: None,
            p90_milliseconds: None,
            p95_milliseconds: None,
            p99_milliseconds: None,
            failed_percent: None,
            confidence_percent: 95,
            custom: Vec::new(),
        }
    }
}

/// A limit of any series.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CustomThreshold {
    /// Its name in the results.
    pub name: String,
    /// The series.
    pub metric: Metric,
    /// Which part of it.
    pub stat: Stat,
    /// Its limit.
    pub max_milliseconds: u64,
}

/// A measured series.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Metric {
    /// From the intended start to the end.
    Latency,
    /// From the intended start to the first token.
    FirstToken,
    /// Between tokens.
    InterTokenGap,
    /// From the sending to the end.
    ServiceTime,
}

/// A percentile, or the largest value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stat {
    /// The median.
    P50,
    /// The 90th percentile.
    P90,
    /// The 95th percentile.
    P95,
    /// The 99th percentile.
    P99,
    /// The largest value.
    Max,
}

impl Stat {
    /// The quantile, and the share of misses it allows.
    fn quantile_and_rate(self) -> (f64, f64) {
        match self {
            Self::P50 => (0.5, 0.5),
            Self::P90 => (0.9, 0.1),
            Self::P95 => (0.95, 0.05),
            Self::P99 => (0.99, 0.01),
            Self::Max => (1.0, 0.0),
        }
    }
}

/// What a run or a threshold shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Verdict {
    /// The claim holds.
    Passed,
    /// Too few samples to say.
    Inconclusive,
    /// The claim does not hold.
    Failed,
    /// The measurement itself cannot be trusted.
    Invalid,
}

/// The verdict on one threshold, in the shape of `status.thresholds`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ThresholdResult {
    /// `p95`, `failed`, or the custom name.
    pub name: String,
    /// Never Invalid.
    pub verdict: Verdict,
    /// What was measured, with its unit; empty where nothing was.
    pub observed: String,
    /// The limit, with its unit.
    pub limit: String,
    /// Samples beyond the limit.
    pub misses: u64,
    /// Samples.
    pub samples: u64,
    /// A sentence that says why.
    pub message: String,
}

/// What makes a run trustworthy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// Share of the planned requests that must have been measured.
    pub min_coverage_percent: u32,
    /// Whether somebody stopped it.
    pub stopped: bool,
}

/// The verdict on a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Judgement {
    /// The worst of what is true: Invalid > Failed > Inconclusive > Passed.
    pub verdict: Verdict,
    /// One word: ThresholdsMet, ThresholdFailed, TooFewSamples, Stopped, NoData, CoverageTooLow, GeneratorLate.
    pub reason: String,
    /// A sentence that says why.
    pub message: String,
    /// Each threshold.
    pub thresholds: Vec<ThresholdResult>,
}

impl Thresholds {
    /// Checks what [`judge`] relies on.
    ///
    /// # Errors
    /// A sentence per problem that says what to write instead.
    pub fn validate(&self) -> Result<(), Vec<String>> {
        let mut errors = Vec::new();
        if let Err(error) = self.failed_share() {
            errors.push(format!("thresholds.failedPercent: {error}"));
        }
        if !(50..=99).contains(&self.confidence_percent) {
            errors.push(format!(
                "thresholds.confidencePercent is {}; write a number from 50 to 99",
                self.confidence_percent
            ));
        }
        if errors.is_empty() { Ok(()) } else { Err(errors) }
    }

    fn failed_share(&self) -> Result<Option<Decimal>, DecimalError> {
        self.failed_percent.as_deref().map(str::parse).transpose()
    }
}

/// Judges a merged run.
///
/// Invalid thresholds (see [`Thresholds::validate`]) are taken as their strictest: no failure, 99 % sure.
pub fn judge(run: &RunResult, thresholds: &Thresholds, validity: &Validity) -> Judgement {
    let results = threshold_results(run, thresholds);
    let worst = results.iter().map(|result| result.verdict).max();
    let named = |verdict: Verdict| {
        let failing: Vec<String> = results
            .iter()
            .filter(|result| result.verdict == verdict)
            .map(|result| format!("{}: {}", result.name, result.message))
            .collect();
        failing.join("; ")
    };
    let (verdict, reason, message) = match invalidity(run, thresholds, validity) {
        Some((reason, message)) => (Verdict::Invalid, reason, message),
        None if run.totals().done == 0 => (
            Verdict::Inconclusive,
            "NoData",
            "no request was measured, so nothing is shown".to_owned(),
        ),
        None => match worst {
            Some(Verdict::Passed) => (Verdict::Passed, "ThresholdsMet", named(Verdict::Passed)),
            Some(Verdict::Failed) => (Verdict::Failed, "ThresholdFailed", named(Verdict::Failed)),
            _ => (
                Verdict::Inconclusive,
                "TooFewSamples",
                named(Verdict::Inconclusive),
            ),
        },
    };
    Judgement {
        verdict,
        reason: reason.to_owned(),
        message,
        thresholds: results,
    }
}

/// Why the measurement itself cannot be trusted, if it cannot.
fn invalidity(
    run: &RunResult,
    thresholds: &Thresholds,
    validity: &Validity,
) -> Option<(&'static str, String)> {
    if validity.stopped {
        return Some((
            "Stopped",
            "the test was stopped before its end; create a new one to repeat it".to_owned(),
        ));
    }
    let coverage = run.coverage_percent();
    let needed = Decimal::from_millionths(u128::from(validity.min_coverage_percent) * 1_000_000);
    if coverage < needed {
        return Some((
            "CoverageTooLow",
            format!(
                "{} of {} planned requests were measured ({coverage:.1} %), and {needed} % are needed; {} of {} workers \
                 left a result, {} of them cut short: look at the Job's pods",
                run.totals().done,
                run.planned,
                run.reported,
                run.workers,
                run.interrupted
            ),
        ));
    }
    let lateness = run.series.lateness.quantile(0.99)?;
    let median = run.series.latency.quantile(0.5).unwrap_or(0.0);
    let tightest = tightest_limit(thresholds).unwrap_or(0.0);
    let limit = LATE_MICROSECONDS.max(median.max(tightest) * LATE_SHARE);
    (lateness > limit).then(|| {
        (
            "GeneratorLate",
            format!(
                "the generator started 1 % of its requests more than {} late ({} are allowed), so latencies are partly \
                 its own; raise workers.count, or give the workers whole CPUs",
                milliseconds(lateness),
                milliseconds(limit)
            ),
        )
    })
}

/// The smallest limit of any threshold on a time, in microseconds.
fn tightest_limit(thresholds: &Thresholds) -> Option<f64> {
    let Thresholds {
        p50_milliseconds,
        p90_milliseconds,
        p95_milliseconds,
        p99_milliseconds,
        failed_percent: _,
        confidence_percent: _,
        custom,
    } = thresholds;
    let named = [
        p50_milliseconds,
        p90_milliseconds,
        p95_milliseconds,
        p99_milliseconds,
    ];
    let named = named.into_iter().flatten().copied();
    let limits = named.chain(custom.iter().map(|threshold| threshold.max_milliseconds));
    limits.min().map(|milliseconds| milliseconds as f64 * 1000.0)
}

/// Microseconds as text in milliseconds, with one place below 100.
fn milliseconds(microseconds: f64) -> String {
    let value = microseconds / 1000.0;
    if value < 99.95 && value.fract() != 0.0 {
        format!("{value:.1} ms")
    } else {
        format!("{value:.0} ms")
    }
}

fn threshold_results(run: &RunResult, thresholds: &Thresholds) -> Vec<ThresholdResult> {
    let Thresholds {
        p50_milliseconds,
        p90_milliseconds,
        p95_milliseconds,
        p99_milliseconds,
        failed_percent: _,
        confidence_percent,
        custom,
    } = thresholds;
    let confidence = match confidence_percent {
        50..=99 => f64::from(*confidence_percent) / 100.0,
        _ => 0.99,
    };
    let mut results = Vec::new();
    for (name, stat, limit) in [
        ("p50", Stat::P50, p50_milliseconds),
        ("p90", Stat::P90, p90_milliseconds),
        ("p95", Stat::P95, p95_milliseconds),
        ("p99", Stat::P99, p99_milliseconds),
    ] {
        if let Some(limit) = limit {
            results.push(latency_threshold(
                name,
                &run.series.latency,
                stat,
                *limit,
                confidence,
            ));
        }
    }
    for CustomThreshold {
        name,
        metric,
        stat,
        max_milliseconds,
    } in custom
    {
        let series = match metric {
            Metric::Latency => &run.series.latency,
            Metric::FirstToken => &run.series.first_token,
            Metric::InterTokenGap => &run.series.inter_token_gap,
            Metric::ServiceTime => &run.series.service,
        };
        results.push(latency_threshold(
            name,
            series,
            *stat,
            *max_milliseconds,
            confidence,
        ));
    }
    results.push(failure_threshold(
        run,
        thresholds.failed_share().unwrap_or(Some(Decimal::default())),
        confidence,
    ));
    results
}

fn latency_threshold(
    name: &str,
    series: &Histogram,
    stat: Stat,
    limit: u64,
    confidence: f64,
) -> ThresholdResult {
    let (quantile, rate) = stat.quantile_and_rate();
    let (misses, samples) = (series.count_above(limit.saturating_mul(1000)), series.count());
    let what = format!("{misses} of {samples} over {limit} ms");
    let (verdict, message) = decide(misses, samples, rate, confidence, &what);
    ThresholdResult {
        name: name.to_owned(),
        verdict,
        observed: series.quantile(quantile).map(milliseconds).unwrap_or_default(),
        limit: format!("{limit} ms"),
        misses,
        samples,
        message,
    }
}

fn failure_threshold(run: &RunResult, limit: Option<Decimal>, confidence: f64) -> ThresholdResult {
    let totals = run.totals();
    let (misses, samples) = (totals.failed, totals.done);
    let what = format!("{misses} of {samples} failed");
    let asked = limit.is_some();
    let limit = limit.unwrap_or(Decimal::from_millionths(UNASKED_FAILED_MILLIONTHS));
    let (mut verdict, mut message) = decide(misses, samples, limit.to_f64() / 100.0, confidence, &what);
    if !asked && samples > 0 && verdict == Verdict::Inconclusive {
        verdict = Verdict::Passed;
        message = format!("{what}; not shown to be above {limit} %, and failedPercent asks for no more");
    }
    let observed = match samples {
        0 => String::new(),
        _ => {
            let millionths = u128::from(misses) * 100_000_000 / u128::from(samples);
            format!("{:.2} %", Decimal::from_millionths(millionths))
        }
    };
    ThresholdResult {
        name: "failed".to_owned(),
        verdict,
        observed,
        limit: format!("{limit} %"),
        misses,
        samples,
        message,
    }
}

/// Whether `misses` of `samples` show that the rate of misses is at most `rate`.
fn decide(misses: u64, samples: u64, rate: f64, confidence: f64, what: &str) -> (Verdict, String) {
    if samples == 0 {
        return (Verdict::Inconclusive, "nothing was measured".to_owned());
    }
    if rate <= 0.0 {
        return if misses == 0 {
            (Verdict::Passed, what.to_owned())
        } else {
            (Verdict::Failed, format!("{what}; none is allowed"))
        };
    }
    if rate >= 1.0 {
        return (Verdict::Passed, format!("{what}; any number is allowed"));
    }
    let improbable = 1.0 - confidence;
    let percent = (confidence * 100.0).round();
    if binomial::at_most(misses, samples, rate) <= improbable {
        return (Verdict::Passed, what.to_owned());
    }
    let allowed = match binomial::most_misses(samples, rate, confidence) {
        Some(most) => format!("at most {most} allow a pass at {percent} % confidence"),
        None => format!("so few samples cannot show it at {percent} % confidence"),
    };
    if binomial::at_least(misses, samples, rate) <= improbable {
        return (Verdict::Failed, format!("{what}; {allowed}"));
    }
    let needed = match binomial::fewest_samples(misses, rate, confidence) {
        Some(needed) => format!(
            "needs {} more samples without another miss",
            needed.saturating_sub(samples)
        ),
        None => "no practical number of samples can show so small a rate".to_owned(),
    };
    (Verdict::Inconclusive, format!("{what}; {allowed}; {needed}"))
}

#[cfg(test)]
mod tests;
