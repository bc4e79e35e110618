//! The evidence of one release: a checkpoint that is read back to the last bit.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

use super::metric::{MetricEvidence, Place};
use super::plan::{Compare, Counted, Mode, Plan, Rule, Step};
use super::ratio::{Arm, ln_mean};
use super::window::{Observation, Scrape, Tally};
use crate::stats::WINDOW_SECONDS;

/// The version of the checkpoint's format.
pub const VERSION: u32 = 2;
/// How long after its close a window waits for sources that have not answered. A gateway keeps windows that long.
pub const GRACE_SECONDS: i64 = 30;
/// Whether stable is degraded is judged by its last minute, to see an outage start, and by its last five, to see one at
/// low traffic.
const DEGRADED_SECONDS: [i64; 2] = [60, 300];
/// So many bad requests of stable, or fewer, are no outage.
const DEGRADED_EVENTS: u64 = 3;
/// Standard errors by which stable's rate must be above the limit.
const DEGRADED_ERRORS: f64 = 3.0;
/// Starts of steps kept for the warm-up; older ones are over.
const STARTS_KEPT: usize = 16;

/// Whose evidence it is. Evidence is never shared between revisions or attempts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Key {
    /// The stable revision.
    pub stable: String,
    /// The candidate.
    pub candidate: String,
    /// Which attempt to release it, from 1.
    pub attempt: i32,
}

/// A closed window of one source, waiting for the others.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Pending {
    start: i64,
    epoch: i64,
    instance: String,
    metrics: BTreeMap<String, Observation>,
}

impl Pending {
    fn id(&self) -> (i64, i64, &str) {
        (self.start, self.epoch, &self.instance)
    }
}

/// Stable's errors in one window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Recent {
    start: i64,
    requests: u64,
    events: u64,
}

/// The most evidence of harm there has been. By Ville's inequality the maximum is what α bounds, so a rollback that was due
/// stays due however many windows were closed in one update.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Peak {
    /// Bits of ln E.
    bits: u64,
    /// The metric with the most.
    pub metric: String,
    /// Start of the window that brought it.
    pub start: i64,
}

impl Peak {
    pub fn ln_e(&self) -> f64 {
        f64::from_bits(self.bits)
    }
}

/// The evidence of one release.
///
/// A window counts exactly once: it is applied, summed over sources, when every source has reported it after its close, or 30 s
/// after that at the latest, in the order of (start, epoch), and from then on anything about windows that start no later
/// is only counted as late. A source's repeated report replaces its former one. So the state depends on what was measured, not on
/// how often or in what order it was read, nor on restarts in between.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Evidence {
    /// [`VERSION`].
    version: u32,
    key: Key,
    /// Windows that start earlier have been applied or given up.
    sealed_before: i64,
    step: Option<Step>,
    /// So much of the present step was spent in an outage of stable.
    set_aside_seconds: i64,
    step_starts: VecDeque<i64>,
    pending: Vec<Pending>,
    /// By source, the start of the last of its windows that was applied or found late.
    sources: BTreeMap<String, i64>,
    /// By name.
    metrics: BTreeMap<String, MetricEvidence>,
    recent: VecDeque<Recent>,
    peak: Option<Peak>,
    late: u64,
}

/// What an update did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Update {
    /// Windows (by start and epoch) that were applied. Write a checkpoint if there are any.
    pub applied: usize,
    /// Windows of single sources that came too late and do not count.
    pub late: u64,
    /// Metrics whose definition has changed and whose evidence has started anew: worth an event.
    pub reset: Vec<String>,
}

/// Why a checkpoint cannot be used; the release then starts its evidence anew.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// It is not one of ours.
    #[error("failed to read the checkpoint: {0}")]
    Json(#[from] serde_json::Error),
    /// Another version wrote it.
    #[error("failed to read the checkpoint: it has version {0}, not {VERSION}")]
    Version(u32),
    /// Its parts do not fit each other.
    #[error("failed to read the checkpoint: the evidence on {0} does not fit its definition")]
    Unsound(String),
}

impl Evidence {
    /// No evidence.
    pub fn new(key: Key) -> Self {
        Self {
            version: VERSION,
            key,
            sealed_before: i64::MIN,
            step: None,
            set_aside_seconds: 0,
            step_starts: VecDeque::new(),
            pending: Vec::new(),
            sources: BTreeMap::new(),
            metrics: BTreeMap::new(),
            recent: VecDeque::new(),
            peak: None,
            late: 0,
        }
    }

    /// Reads a checkpoint.
    ///
    /// # Errors
    /// If it was not written by [`Evidence::to_checkpoint`] of this version.
    pub fn from_checkpoint(text: &str) -> Result<Self, CheckpointError> {
        #[derive(Deserialize)]
        struct Header {
            version: u32,
        }
        let Header { version } = serde_json::from_str(text)?;
        if version != VERSION {
            return Err(CheckpointError::Version(version));
        }
        let evidence: Self = serde_json::from_str(text)?;
        if let Some((name, _)) = evidence.metrics.iter().find(|(_, metric)| !metric.is_sound()) {
            return Err(CheckpointError::Unsound(name.clone()));
        }
        Ok(evidence)
    }

    /// The checkpoint as JSON, about 1.1 kB per series of events.
    pub fn to_checkpoint(&self) -> String {
        serde_json::to_string(self).expect("keys are strings and floats are text, so nothing can fail")
    }

    /// Whose evidence it is.
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// Windows of single sources that came too late so far.
    pub fn late(&self) -> u64 {
        self.late
    }

    /// The evidence on one metric, once an update has named it.
    pub fn metric(&self, name: &str) -> Option<&MetricEvidence> {
        self.metrics.get(name)
    }

    /// Whether it is about the step of `plan`.
    pub(super) fn is_at(&self, step: &Step) -> bool {
        self.step.as_ref().is_some_and(|mine| same_question(mine, step))
    }

    /// When the step of `plan` has to be decided, in seconds since the Unix epoch: `decideWithinSeconds` after its start, the time of
    /// outages not counted.
    pub fn due(&self, plan: &Plan) -> i64 {
        let step = &plan.step;
        let aside = if self.is_at(step) {
            self.set_aside_seconds
        } else {
            0
        };
        step.start
            .saturating_add(step.decide_within_seconds)
            .saturating_add(aside)
    }

    pub(super) fn peak(&self) -> Option<&Peak> {
        self.peak.as_ref()
    }

    /// Takes in one look at all sources. Costs nothing worth naming but for windows that close, then some microseconds
    /// per metric and series.
    pub fn update(&mut self, plan: &Plan, scrape: &Scrape) -> Update {
        let mut update = Update {
            reset: self.align(plan),
            ..Update::default()
        };
        for report in &scrape.reports {
            for window in &report.windows {
                if plan.closes(window.start) <= report.time && window.epoch >= plan.first_epoch {
                    update.late += self.take_in(&report.instance, window);
                }
            }
        }
        let sealable = sealable_before(plan, scrape);
        while let Some(first) = self.pending.first() {
            let (start, epoch) = (first.start, first.epoch);
            if start >= sealable {
                break;
            }
            let of_window = self
                .pending
                .partition_point(|pending| (pending.start, pending.epoch) <= (start, epoch));
            let parts: Vec<Pending> = self.pending.drain(..of_window).collect();
            self.apply(plan, start, epoch, parts);
            update.applied += 1;
        }
        self.sealed_before = self.sealed_before.max(sealable);
        self.late += update.late;
        // A source that has been silent for an hour has no window left to be late with.
        let stale = self.sealed_before.saturating_sub(3600);
        self.sources.retain(|_, last| *last >= stale);
        update
    }

    /// Brings metrics and step in line with `plan`; answers with the metrics that started anew.
    fn align(&mut self, plan: &Plan) -> Vec<String> {
        let mut reset = Vec::new();
        let before = self.metrics.len();
        self.metrics
            .retain(|name, _| plan.metrics.iter().any(|metric| metric.name == *name));
        if self.metrics.len() < before {
            self.peak = None;
        }
        for metric in &plan.metrics {
            match self.metrics.get_mut(&metric.name) {
                Some(evidence) if evidence.definition.rule == metric.rule => {
                    evidence.definition.mode = metric.mode
                }
                former => {
                    if former.is_some() {
                        reset.push(metric.name.clone());
                        self.peak = None;
                    }
                    let mut evidence = MetricEvidence::new(metric.clone());
                    evidence.begin_step(plan.step.question);
                    self.metrics.insert(metric.name.clone(), evidence);
                }
            }
        }
        if !self.is_at(&plan.step) {
            self.set_aside_seconds = 0;
            for metric in self.metrics.values_mut() {
                metric.begin_step(plan.step.question);
            }
        }
        if self.step.is_none_or(|step| step.start != plan.step.start) {
            self.step_starts.push_back(plan.step.start);
            if self.step_starts.len() > STARTS_KEPT {
                self.step_starts.pop_front();
            }
        }
        self.step = Some(plan.step);
        reset
    }

    /// Files one closed window of one source; answers with 1 if it is late.
    fn take_in(&mut self, instance: &str, window: &super::window::Window) -> u64 {
        if window.start < self.sealed_before {
            let known = self
                .sources
                .get(instance)
                .is_some_and(|last| *last >= window.start);
            if !known {
                self.sources.insert(instance.to_owned(), window.start);
            }
            return u64::from(!known);
        }
        let pending = Pending {
            start: window.start,
            epoch: window.epoch,
            instance: instance.to_owned(),
            metrics: window.metrics.clone(),
        };
        match self
            .pending
            .binary_search_by(|other| other.id().cmp(&pending.id()))
        {
            Ok(place) => {
                if let Some(former) = self.pending.get_mut(place) {
                    *former = pending;
                }
            }
            Err(place) => self.pending.insert(place, pending),
        }
        0
    }

    fn apply(&mut self, plan: &Plan, start: i64, epoch: i64, parts: Vec<Pending>) {
        let mut merged: BTreeMap<String, Observation> = BTreeMap::new();
        for part in parts {
            for (name, observation) in part.metrics {
                match (merged.get_mut(&name), observation) {
                    (Some(Observation::Counts(sum)), Observation::Counts(tally)) => sum.add(&tally),
                    (Some(Observation::Reading { good: all }), Observation::Reading { good }) => *all &= good,
                    (Some(_), _) => {}
                    (None, observation) => {
                        merged.insert(name, observation);
                    }
                }
            }
            let last = self.sources.entry(part.instance).or_insert(start);
            *last = start.max(*last);
        }
        let begins_degraded = self.is_stable_degraded(plan);
        let is_first_of_start = self.recent.back().is_none_or(|last| last.start < start);
        if begins_degraded && is_first_of_start && epoch >= plan.step.epoch {
            self.set_aside_seconds += WINDOW_SECONDS;
        }
        if let Some(Observation::Counts(tally)) = errors_name(plan).and_then(|name| merged.get(name)) {
            self.remember(start, tally);
        }
        let ends = start + WINDOW_SECONDS;
        let warming = |began: &i64| ends > *began && start < began.saturating_add(plan.warmup_seconds);
        if plan.warmup_seconds > 0 && self.step_starts.iter().any(warming) {
            return;
        }
        let place = Place {
            start,
            epoch,
            begins_degraded,
            is_degraded: self.is_stable_degraded(plan),
        };
        let counts_for_step = epoch >= plan.step.epoch;
        for (name, observation) in &merged {
            if let Some(metric) = self.metrics.get_mut(name) {
                metric.observe(observation, place, plan, counts_for_step);
            }
        }
        self.note_peak(plan, start);
    }

    fn remember(&mut self, start: i64, tally: &Tally) {
        let Arm { requests, events } = tally.stable.arm(0);
        self.recent.push_back(Recent {
            start,
            requests,
            events,
        });
        let oldest = start - DEGRADED_SECONDS[1] + WINDOW_SECONDS;
        self.recent.retain(|recent| recent.start >= oldest);
    }

    /// Whether stable fails so much that both arms may be bad for one reason.
    pub fn is_stable_degraded(&self, plan: &Plan) -> bool {
        let Some(newest) = self.recent.back().map(|recent| recent.start) else {
            return false;
        };
        let cluster = plan.errors().map_or(1.0, Compare::cluster);
        let least = DEGRADED_EVENTS as f64 * cluster;
        DEGRADED_SECONDS.iter().any(|seconds| {
            let since = newest - seconds + WINDOW_SECONDS;
            let (requests, events) = self
                .recent
                .iter()
                .filter(|recent| recent.start >= since)
                .fold((0u64, 0u64), |(n, x), recent| {
                    (n + recent.requests, x + recent.events)
                });
            let limit = plan.degraded_above() * requests as f64;
            // Well above, for chance alone must not freeze a quiet pool: in a minute with many failures of stable lies most of the
            // evidence that the candidate is no worse.
            events as f64 > least.max(limit + DEGRADED_ERRORS * (limit * cluster).sqrt())
        })
    }

    /// Stable's rate of errors in the last minutes, as a share.
    pub(super) fn recent_error_rate(&self) -> f64 {
        let requests: u64 = self.recent.iter().map(|recent| recent.requests).sum();
        let events: u64 = self.recent.iter().map(|recent| recent.events).sum();
        events as f64 / (requests.max(1)) as f64
    }

    /// The compared metrics that decide.
    fn deciding(&self) -> impl Iterator<Item = (&String, &MetricEvidence)> + Clone {
        self.metrics.iter().filter(|(_, metric)| {
            metric.definition.mode == Mode::Enforce && matches!(metric.definition.rule, Rule::Compare(_))
        })
    }

    /// The number of compared metrics that decide: each has an equal share of α.
    pub(super) fn deciding_count(&self) -> usize {
        self.deciding().count()
    }

    /// ln of the e-value of harm over all deciding metrics: their mean, valid however they depend on each other (Vovk and
    /// Wang, arXiv 1912.06116) and never worse than dividing α among them.
    pub fn ln_harm(&self, plan: &Plan) -> f64 {
        if self.deciding_count() == 0 {
            return 0.0;
        }
        let (comparison, bake) = plan.shares();
        let harm = ln_mean(self.deciding().map(|(_, metric)| metric.ln_harm())) + comparison.ln();
        if bake == 0.0 {
            return harm;
        }
        let bake = ln_mean(self.deciding().map(|(_, metric)| metric.ln_bake())) + bake.ln();
        let highest = harm.max(bake);
        highest + ((harm - highest).exp() + (bake - highest).exp()).ln()
    }

    fn note_peak(&mut self, plan: &Plan, start: i64) {
        let ln_e = self.ln_harm(plan);
        if self.peak.as_ref().is_some_and(|peak| peak.ln_e() >= ln_e) {
            return;
        }
        let worst = self.deciding().max_by(|(_, a), (_, b)| {
            let most = |metric: &MetricEvidence| metric.ln_harm().max(metric.ln_bake());
            most(a).total_cmp(&most(b))
        });
        let metric = worst.map(|(name, _)| name.clone()).unwrap_or_default();
        let bits = ln_e.to_bits();
        self.peak = Some(Peak { bits, metric, start });
    }
}

fn same_question(a: &Step, b: &Step) -> bool {
    (a.index, a.question, a.epoch) == (b.index, b.question, b.epoch)
}

fn errors_name(plan: &Plan) -> Option<&str> {
    let counts_errors = |metric: &&super::plan::Metric| {
        metric
            .compare()
            .is_some_and(|compare| compare.counted == Counted::Errors)
    };
    plan.metrics
        .iter()
        .find(counts_errors)
        .map(|metric| metric.name.as_str())
}

/// Windows that start before this can be applied: every source has spoken of them, or has had its time.
fn sealable_before(plan: &Plan, scrape: &Scrape) -> i64 {
    let length = plan.closes(0);
    let overdue = scrape.now.saturating_sub(length).saturating_sub(GRACE_SECONDS);
    let slowest = scrape.reports.iter().map(|report| report.time).min();
    match slowest.filter(|_| scrape.complete) {
        // Inclusive: a window is closed at the very second.
        Some(time) => overdue.max(time.saturating_sub(length)).saturating_add(1),
        None => overdue.saturating_add(1),
    }
}
