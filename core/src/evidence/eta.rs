//! How long evidence takes at a given traffic: the estimate shown to users, and the choice of the first step.
//!
//! While the candidate is as good as stable with rate θ, and stable has `a` and the candidate `b` requests a second, the
//! logarithm of the pass test's e-value grows by
//!
//! ```text
//! θ [(a+b) ln((a + m b)/(a+b)) - b ln m]   per second, → θ b (m - 1 - ln m) for a ≫ b
//! ```
//!
//! and has to reach ln 1/β. The expectation is what is shown; half of the releases take longer.

use super::plan::{Compare, Counted, Metric, Mode, Strictness};
use super::ratio::{Arm, ln_mean};

/// What a mixture over 24 alternatives costs against the one that fits best, in units of ln E.
const MIXTURE: f64 = 0.5;
/// Estimates beyond this say "never".
const NEVER_SECONDS: f64 = 30.0 * 86_400.0;

/// Requests a second of both arms.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Rates {
    pub stable: f64,
    pub candidate: f64,
}

/// Evidence so far, as ln E.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Sofar {
    pub pass: f64,
    pub acceptable: f64,
}

/// Seconds until a candidate as good as stable, whose rate of bad requests is `rate`, is expected to have the evidence that it
/// is not `times_worse`; none where that is not in sight.
pub(super) fn seconds_to_pass(
    compare: &Compare,
    strictness: Strictness,
    times_worse: u32,
    rates: Rates,
    rate: f64,
    sofar: Sofar,
) -> Option<f64> {
    let m = f64::from(times_worse.max(2));
    let Rates {
        stable: a,
        candidate: b,
    } = rates;
    let needed = -strictness.false_promotion().ln();
    let comparison = if a > 0.0 && b > 0.0 {
        rate * ((a + b) * ((a + m * b) / (a + b)).ln() - b * m.ln()) / compare.cluster()
    } else {
        0.0
    };
    let absolute = compare.acceptable_test().map(|test| b * test.growth(rate));
    let after = |seconds: f64| {
        let pass = sofar.pass + comparison * seconds;
        match absolute {
            Some(growth) => ln_mean([pass, sofar.acceptable + growth * seconds].into_iter()),
            None => pass,
        }
    };
    let left = (1.0 - after(0.0) / needed).clamp(0.0, 1.0);
    let target = needed + MIXTURE * left;
    if after(NEVER_SECONDS) < target {
        return None;
    }
    let (mut low, mut high) = (0.0, NEVER_SECONDS);
    while high - low > 1.0 {
        let middle = (low + high) / 2.0;
        if after(middle) < target {
            low = middle;
        } else {
            high = middle;
        }
    }
    Some(high)
}

/// A rate from counts that is not 0 only because there are few.
pub(super) fn estimated_rate(arm: Arm) -> f64 {
    (arm.events as f64 + 0.5) / (arm.requests as f64 + 1.0)
}

/// A step that a release could start with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rung {
    /// Its weight, 1 to 99.
    pub weight_percent: u32,
    /// `ruleOutTimesWorse`.
    pub times_worse: u32,
    /// `minDurationSeconds`.
    pub min_seconds: i64,
    /// `decideWithinSeconds`.
    pub decide_within_seconds: i64,
}

/// The default ladder: the margin narrows as exposure grows, because at 1 % of the traffic only a disaster must be ruled
/// out, and nothing finer could be.
pub const DEFAULT_STEPS: [Rung; 4] = [
    rung(1, 10, 300),
    rung(10, 5, 300),
    rung(25, 3, 600),
    rung(50, 2, 600),
];

const fn rung(weight_percent: u32, times_worse: u32, min_seconds: i64) -> Rung {
    Rung {
        weight_percent,
        times_worse,
        min_seconds,
        decide_within_seconds: 3600,
    }
}

/// A pool's traffic before the release.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Traffic {
    /// Requests a second, all arms.
    pub requests_per_second: f64,
    /// Stable's requests and failures of the last hour or so.
    pub stable: Arm,
}

/// Where a release starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Start {
    /// Index of the step.
    pub step: usize,
    /// Expected time of its verdict for a good candidate; none where none is in sight.
    pub expected_seconds: Option<i64>,
    /// The step can be judged within its `decideWithinSeconds`; otherwise it will most likely end undecided.
    pub in_time: bool,
    /// Why this one, in a sentence.
    pub message: String,
}

/// Chooses the first of `steps` (weights increasing) that this pool's traffic can judge in time: whose expected time is at most two
/// thirds of `decideWithinSeconds`, since half of the releases take longer than expected. Where none can be, the one that comes nearest.
///
/// Errors decide: they are rarer than long latencies. Without an errors metric it is the first step.
pub fn starting_step(steps: &[Rung], strictness: Strictness, metrics: &[Metric], traffic: Traffic) -> Start {
    if deciding_errors(metrics).is_none() {
        return Start {
            step: 0,
            expected_seconds: None,
            in_time: true,
            message: "starts at the first step: errors do not decide".to_owned(),
        };
    }
    let candidates: Vec<Candidate<'_>> = steps
        .iter()
        .map(|step| Candidate::new(step, expected_seconds(step, strictness, metrics, traffic)))
        .collect();
    let found = candidates.iter().position(|candidate| candidate.in_time);
    let nearest =
        || (0..candidates.len()).min_by_key(|index| candidates.get(*index).map(Candidate::lateness));
    let step = found.or_else(nearest).unwrap_or_default();
    Start {
        step,
        expected_seconds: candidates.get(step).and_then(|candidate| candidate.seconds),
        in_time: found.is_some(),
        message: why(&candidates, step, traffic.requests_per_second),
    }
}

/// How long a step is expected to take with a candidate as good as stable, in seconds; none where no verdict is in sight.
///
/// Errors decide, as for [`starting_step`]; without them the step lasts as long as it has to.
pub fn expected_seconds(
    step: &Rung,
    strictness: Strictness,
    metrics: &[Metric],
    traffic: Traffic,
) -> Option<i64> {
    let Some(compare) = deciding_errors(metrics) else {
        return Some(step.min_seconds);
    };
    let share = f64::from(step.weight_percent) / 100.0;
    let rates = Rates {
        stable: traffic.requests_per_second * (1.0 - share),
        candidate: traffic.requests_per_second * share,
    };
    let seconds = seconds_to_pass(
        compare,
        strictness,
        step.times_worse,
        rates,
        estimated_rate(traffic.stable),
        Sofar::default(),
    )?;
    Some((seconds.ceil() as i64).max(step.min_seconds))
}

fn deciding_errors(metrics: &[Metric]) -> Option<&Compare> {
    let deciding = metrics.iter().filter(|metric| metric.mode == Mode::Enforce);
    deciding
        .filter_map(Metric::compare)
        .find(|compare| compare.counted == Counted::Errors)
}

/// A step and how long it is expected to take.
struct Candidate<'a> {
    step: &'a Rung,
    seconds: Option<i64>,
    in_time: bool,
}

impl<'a> Candidate<'a> {
    fn new(step: &'a Rung, seconds: Option<i64>) -> Self {
        let in_time = seconds.is_some_and(|seconds| seconds <= step.decide_within_seconds / 3 * 2);
        Self {
            step,
            seconds,
            in_time,
        }
    }

    /// By how much it takes longer than it should, in thousandths.
    fn lateness(&self) -> i64 {
        let limit = self.step.decide_within_seconds.max(1);
        self.seconds
            .map_or(i64::MAX, |seconds| seconds.saturating_mul(1000) / limit)
    }

    fn takes(&self) -> String {
        let seconds = self.seconds.map(duration);
        seconds.map_or("more than a month".to_owned(), |seconds| {
            format!("about {seconds}")
        })
    }
}

fn why(candidates: &[Candidate<'_>], chosen: usize, requests_per_second: f64) -> String {
    let (Some(start), Some(first)) = (candidates.get(chosen), candidates.first()) else {
        return "there are no steps".to_owned();
    };
    let mut sentence = format!(
        "starts at {} %: at {} requests/s a verdict takes {}",
        start.step.weight_percent,
        figure(requests_per_second),
        start.takes()
    );
    if !start.in_time {
        let limit = duration(start.step.decide_within_seconds);
        let advice = "top up with a LoadTest, raise ruleOutTimesWorse, or approve by hand";
        return format!("{sentence}; its {limit} may not suffice, and no step is better: {advice}");
    }
    if chosen > 0 {
        sentence += &format!(", at {} % {}", first.step.weight_percent, first.takes());
    }
    let later = candidates
        .iter()
        .skip(chosen + 1)
        .find(|candidate| !candidate.in_time);
    if let Some(later) = later {
        let limit = duration(later.step.decide_within_seconds);
        sentence += &format!(
            "; at {} % {}, for which its {limit} may not suffice",
            later.step.weight_percent,
            later.takes()
        );
    }
    sentence
}

/// Seconds in words: `45 s`, `9 min`, `3 h`, `2 days`; rounded up.
pub fn duration(seconds: i64) -> String {
    match seconds {
        ..90 => format!("{seconds} s"),
        90..5_400 => format!("{} min", (seconds + 59) / 60),
        5_400..172_800 => format!("{} h", (seconds + 3_599) / 3_600),
        _ => format!("{} days", (seconds + 86_399) / 86_400),
    }
}

/// Two significant digits or so.
fn figure(x: f64) -> String {
    if x >= 10.0 {
        format!("{x:.0}")
    } else if x >= 1.0 {
        format!("{x:.1}")
    } else {
        format!("{x:.2}")
    }
}
