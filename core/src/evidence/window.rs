//! What sources report of closed windows, and how a gateway's counts become that.
//!
//! # Cohorts
//!
//! An agent's call takes minutes and its failures are often fast, so right after a change of weight the candidate's *finished*
//! requests are mostly failures. Requests are therefore counted where they started, and a window counts only
//! once the request timeout has passed since its end; what has not ended by then is bad on every metric. Requests that
//! the client gave up count nowhere: they are nobody's fault, though a candidate that is only slower than its clients' patience
//! shows it in the latency of the others alone.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::plan::{Counted, Plan, Rule};
use super::ratio::Arm;
use crate::stats::{Stats, WindowStats};

/// Requests of one arm, and how many of them were bad, by series (one for errors, one per threshold otherwise).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Counts {
    /// Requests.
    pub requests: u64,
    /// Bad ones by series; each at most `requests`.
    pub events: Vec<u64>,
}

impl Counts {
    /// Of one series.
    pub fn new(requests: u64, events: u64) -> Self {
        Self {
            requests,
            events: vec![events],
        }
    }

    /// Adds `other`; series that one lacks count as 0 there.
    pub fn add(&mut self, other: &Self) {
        self.requests = self.requests.saturating_add(other.requests);
        if self.events.len() < other.events.len() {
            self.events.resize(other.events.len(), 0);
        }
        for (mine, theirs) in self.events.iter_mut().zip(&other.events) {
            *mine = mine.saturating_add(*theirs);
        }
    }

    /// One series; events never exceed requests, whatever a source says.
    pub fn arm(&self, series: usize) -> Arm {
        let events = self.events.get(series).copied().unwrap_or_default();
        Arm {
            requests: self.requests,
            events: events.min(self.requests),
        }
    }
}

/// Both arms of one comparison.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Tally {
    /// The stable revision.
    pub stable: Counts,
    /// The candidate.
    pub candidate: Counts,
}

impl Tally {
    /// Adds `other`.
    pub fn add(&mut self, other: &Self) {
        self.stable.add(&other.stable);
        self.candidate.add(&other.candidate);
    }
}

/// What one source says of one metric in one window.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Observation {
    /// Counts, for [`Rule::Compare`].
    Counts(Tally),
    /// Whether a reading was within its limits, for [`Rule::Threshold`].
    Reading {
        /// It was.
        good: bool,
    },
}

/// One window as one source reports it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Window {
    /// Its start in seconds since the Unix epoch, a multiple of [`WINDOW_SECONDS`](crate::stats::WINDOW_SECONDS).
    pub start: i64,
    /// `trafficGeneration` under which its requests were assigned.
    pub epoch: i64,
    /// By metric name. A metric that is missing has no data.
    pub metrics: BTreeMap<String, Observation>,
}

/// What one source reports.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// Unique for the life of one source: a gateway process, or a query's name.
    pub instance: String,
    /// The source's wall clock when it looked, in seconds since the Unix epoch, rounded down. Windows that are not closed at this
    /// time are ignored.
    pub time: i64,
    /// Windows, in any order.
    pub windows: Vec<Window>,
}

impl Report {
    /// What a gateway says of one pool. Only metrics that gateways count are in it: errors and times.
    pub fn of_gateway(stats: &Stats, pool: &str, stable: &str, candidate: &str, plan: &Plan) -> Self {
        let windows_of = |revision: &str| {
            let pool = stats.pools.get(pool);
            let revision = pool.and_then(|pool| pool.revisions.get(revision));
            revision.map_or(&[][..], |revision| revision.windows.as_slice())
        };
        let mut by_window: BTreeMap<(i64, i64), [Option<&WindowStats>; 2]> = BTreeMap::new();
        for (arm, revision) in [stable, candidate].into_iter().enumerate() {
            for window in windows_of(revision) {
                by_window.entry((window.start, window.epoch)).or_default()[arm] = Some(window);
            }
        }
        let windows = by_window
            .into_iter()
            .map(|((start, epoch), [stable, candidate])| {
                let observe = |counted: &Counted| {
                    let counts = |window: Option<&WindowStats>| {
                        window.map_or(Some(Counts::default()), |w| cohort(w, counted))
                    };
                    Some(Observation::Counts(Tally {
                        stable: counts(stable)?,
                        candidate: counts(candidate)?,
                    }))
                };
                let metrics = plan.metrics.iter().filter_map(|metric| match &metric.rule {
                    Rule::Compare(compare) => Some((metric.name.clone(), observe(&compare.counted)?)),
                    Rule::Threshold(_) => None,
                });
                Window {
                    start,
                    epoch,
                    metrics: metrics.collect(),
                }
            });
        Self {
            instance: stats.instance.clone(),
            time: stats.time_milliseconds.div_euclid(1000),
            windows: windows.collect(),
        }
    }
}

/// The counts of a closed window; none if gateways do not count this. Requests that the client gave up do not count.
fn cohort(window: &WindowStats, counted: &Counted) -> Option<Counts> {
    let unfinished = window.started.saturating_sub(window.ended);
    let finished = window.ended.saturating_sub(window.cancelled);
    let above = |requests: u64, histogram: &crate::histogram::Histogram, thresholds: &[u64]| Counts {
        requests: requests.saturating_add(unfinished),
        events: thresholds
            .iter()
            .map(|milliseconds| histogram.count_above(milliseconds.saturating_mul(1000)) + unfinished)
            .collect(),
    };
    match counted {
        Counted::Errors => Some(Counts::new(finished + unfinished, window.failed + unfinished)),
        Counted::Latency(thresholds) => Some(above(finished, &window.latency, thresholds)),
        // One that ended without a body has no first byte: a failure, which is counted as one.
        Counted::FirstByte(thresholds) => Some(above(
            window.first_byte.count().min(window.ended),
            &window.first_byte,
            thresholds,
        )),
        Counted::Events | Counted::Above(_) => None,
    }
}

/// One look at all sources.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scrape {
    /// The reader's wall clock, in seconds since the Unix epoch.
    pub now: i64,
    /// Every source that is expected to have counts has answered.
    pub complete: bool,
    /// What they said.
    pub reports: Vec<Report>,
}

/// The cluster factor of a pool, in thousandths, from its stable revision's windows before the release (errors by
/// window, oldest first or not): how many times more the failures vary than independent ones would, rounded up to a whole number.
///
/// Bursts of c failures have c times the variance of single ones, whatever the burst's cause: a client that retries, a session
/// that is broken, a bad node. Drift within `windows` adds to it, which errs on the safe side; give it an hour or so. Below
/// 30 failures, or where the excess is within three standard errors of none, the answer is 1,000: independent. At most 20,000.
pub fn cluster_thousandths(windows: &[Arm]) -> u32 {
    let (requests, events) = windows
        .iter()
        .fold((0u64, 0u64), |(n, x), arm| (n + arm.requests, x + arm.events));
    let used: Vec<&Arm> = windows.iter().filter(|arm| arm.requests > 0).collect();
    if events < 30 || events >= requests || used.len() < 10 {
        return 1_000;
    }
    let rate = events as f64 / requests as f64;
    let squares: f64 = used
        .iter()
        .map(|arm| {
            let expected = rate * arm.requests as f64;
            (arm.events as f64 - expected).powi(2) / (expected * (1.0 - rate))
        })
        .sum();
    let freedom = (used.len() - 1) as f64;
    let dispersion = squares / freedom;
    // Of the dispersion of Poisson counts: 2/ν, and 1/(ν μ) more for few events per window.
    let mean_events = events as f64 / used.len() as f64;
    let error = ((2.0 + 1.0 / mean_events) / freedom).sqrt();
    if dispersion <= 1.0 + 3.0 * error {
        return 1_000;
    }
    // Bursts seen are a sample of bursts to come, so one standard error of the estimate (about √(2/ν) of itself) more.
    let upper = dispersion * (1.0 + error);
    (upper.ceil().clamp(1.0, 20.0) * 1e3) as u32
}
