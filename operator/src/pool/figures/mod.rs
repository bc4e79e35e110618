//! Numbers of a release that come from elsewhere than the gateways: `analysis.metrics`.
//!
//! Every source is read at each boundary of a window (15 s), while a step is judged. Counters are read for both revisions, and the
//! difference between two boundaries is the window's count; a counter that falls, or a reading that failed, makes a window without
//! data. What was read is kept in memory until evidence has taken it in: a restart loses the windows that were still open, and
//! repeats none.
//!
//! Only sources that whoever runs the operator has named can be read ([`Sources`]), without credentials: the operator has no right
//! on Secrets, and reaches more of the network than the author of a pool.
//!
//! | step | module | client |
//! |---|---|---|
//! | a source's answer as a number | [`read`] | the source |
//! | which numbers a pool wants, readings as evidence | here | no |

pub mod read;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use flotilla_core::evidence::{Counts, Observation, Report, Rule, Tally, Window};
use flotilla_core::release;
use flotilla_core::stats::WINDOW_SECONDS;
use flotilla_crds::sourced_metric::{CountedMetric, SourcedMetric, ThresholdMetric};
use futures::StreamExt as _;
use futures::future::{try_join, try_join_all};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use crate::runtime::{Clock, Key};
use read::{Question, Read};

/// Longest wait for one number.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Metrics that are read at once: of each up to 18 numbers, requests and eight thresholds of both revisions.
const CONCURRENCY: usize = 16;
/// A reading speaks for its boundary if it was begun so soon after it, in seconds.
const LATE_SECONDS: i64 = 8;
/// Sources have this long after the end of a window before it counts as reported, in seconds.
const PATIENCE_SECONDS: i64 = 15;

/// Addresses by name, as allowed by flags.
pub type Sources = BTreeMap<String, String>;

/// What is to be read for one pool.
#[derive(Clone, Debug, PartialEq)]
pub struct Subject {
    /// UID of the pool.
    pub uid: String,
    /// The revision that serves.
    pub stable: String,
    /// The candidate.
    pub candidate: String,
    /// Which attempt to release it.
    pub attempt: i32,
    /// The metrics.
    pub metrics: Vec<SourcedMetric>,
}

/// Counters of both revisions (requests, then events by series), or one number of the candidate.
#[derive(Clone, Debug, PartialEq)]
enum Value {
    Counters { stable: Vec<f64>, candidate: Vec<f64> },
    Reading(f64),
}

#[derive(Clone, Debug, Default)]
struct Boundary {
    epoch: i64,
    values: BTreeMap<String, Value>,
}

#[derive(Debug)]
struct Watch {
    subject: Subject,
    epoch: i64,
    read_at: i64,
    boundaries: BTreeMap<i64, Boundary>,
    problems: BTreeMap<String, String>,
}

struct Inner {
    read: Arc<dyn Read>,
    sources: Sources,
    pools: Mutex<HashMap<Key, Watch>>,
    wake: Notify,
}

/// The readings of all pools. Cheap to clone.
#[derive(Clone)]
pub struct Figures(Arc<Inner>);

impl std::fmt::Debug for Figures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Figures({} pools)", self.0.pools.lock().len())
    }
}

/// A question that is due, and whose answer it will be.
struct Due {
    pool: Key,
    subject: Subject,
    metric: SourcedMetric,
    boundary: i64,
    epoch: i64,
}

impl Figures {
    /// Figures from these sources.
    pub fn new(read: Arc<dyn Read>, sources: Sources) -> Self {
        Self(Arc::new(Inner {
            read,
            sources,
            pools: Mutex::default(),
            wake: Notify::new(),
        }))
    }

    /// Reads for a pool from now on, under this `trafficGeneration`; with `None` nothing. Another subject begins anew.
    pub fn follow(&self, pool: &Key, subject: Option<(Subject, i64)>) {
        let mut pools = self.0.pools.lock();
        let Some((subject, epoch)) = subject.filter(|(subject, _)| !subject.metrics.is_empty()) else {
            pools.remove(pool);
            return;
        };
        match pools.get_mut(pool).filter(|watch| watch.subject == subject) {
            Some(watch) => watch.epoch = epoch,
            None => {
                let watch = Watch {
                    subject,
                    epoch,
                    read_at: i64::MIN,
                    boundaries: BTreeMap::new(),
                    problems: BTreeMap::new(),
                };
                pools.insert(pool.clone(), watch);
                self.0.wake.notify_one();
            }
        }
    }

    /// What was read for a pool, one report per metric; `keep_seconds` is how long a window takes to close.
    pub fn reports(&self, pool: &Key, now: i64, keep_seconds: i64) -> Vec<Report> {
        let mut pools = self.0.pools.lock();
        let Some(watch) = pools.get_mut(pool) else {
            return Vec::new();
        };
        let oldest = now - keep_seconds - PATIENCE_SECONDS - 4 * WINDOW_SECONDS;
        watch.boundaries.retain(|boundary, _| *boundary >= oldest);
        let metrics = watch.subject.metrics.iter();
        metrics
            .map(|metric| Report {
                instance: format!("metrics/{}", metric.name),
                time: now - PATIENCE_SECONDS,
                windows: windows(&watch.boundaries, metric),
            })
            .collect()
    }

    /// Why numbers of a pool could not be read the last time.
    pub fn problem(&self, pool: &Key) -> Option<String> {
        let pools = self.0.pools.lock();
        let (metric, problem) = pools.get(pool)?.problems.iter().next()?;
        Some(format!("{metric} cannot be read: {problem}"))
    }

    /// Reads for ever; for the leader.
    pub async fn run(self, clock: Clock) {
        loop {
            if self.0.pools.lock().is_empty() {
                self.0.wake.notified().await;
            }
            let due = self.due(clock.now().as_second());
            futures::stream::iter(due)
                .for_each_concurrent(CONCURRENCY, |due| self.answer(due))
                .await;
            sleep(Duration::from_secs(1)).await;
        }
    }

    /// The questions of a boundary that has just passed.
    fn due(&self, now: i64) -> Vec<Due> {
        let boundary = now.div_euclid(WINDOW_SECONDS) * WINDOW_SECONDS;
        if now - boundary > LATE_SECONDS {
            return Vec::new();
        }
        let mut due = Vec::new();
        for (pool, watch) in self.0.pools.lock().iter_mut() {
            if watch.read_at >= boundary {
                continue;
            }
            watch.read_at = boundary;
            due.extend(watch.subject.metrics.iter().map(|metric| Due {
                pool: pool.clone(),
                subject: watch.subject.clone(),
                metric: metric.clone(),
                boundary,
                epoch: watch.epoch,
            }));
        }
        due
    }

    async fn answer(&self, due: Due) {
        let value = self.value(&due).await;
        let mut pools = self.0.pools.lock();
        let watch = pools
            .get_mut(&due.pool)
            .filter(|watch| watch.subject == due.subject);
        let Some(watch) = watch else { return };
        match value {
            Ok(value) => {
                watch.problems.remove(&due.metric.name);
                let boundary = watch.boundaries.entry(due.boundary).or_default();
                boundary.epoch = due.epoch;
                boundary.values.insert(due.metric.name, value);
            }
            Err(problem) => {
                watch.problems.insert(due.metric.name, problem);
            }
        }
    }

    async fn value(&self, due: &Due) -> Result<Value, String> {
        let Due {
            pool,
            subject,
            metric,
            boundary,
            ..
        } = due;
        let source = &metric.source;
        let address = self.0.sources.get(&source.name).ok_or_else(|| {
            let known: Vec<&str> = self.0.sources.keys().map(String::as_str).collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            format!(
                "this operator has no metric source {}, only: {known}; whoever runs it can add one with --metric-source",
                source.name
            )
        })?;
        let ask = |text: &str, revision: &str| {
            let question = Question {
                type_: source.type_,
                address: address.clone(),
                text: fill(text, revision, subject, pool),
                time: *boundary,
            };
            let answer = self.0.read.read(question);
            async move {
                let answer = timeout(TIMEOUT, answer).await;
                answer.unwrap_or_else(|_| Err(format!("no answer within {} s", TIMEOUT.as_secs())))
            }
        };
        match (&metric.counts, &metric.threshold) {
            (Some(counts), _) => {
                let of = |revision| counters(counts, move |text| ask(text, revision));
                let (stable, candidate) = try_join(of(&subject.stable), of(&subject.candidate)).await?;
                Ok(Value::Counters { stable, candidate })
            }
            (None, Some(ThresholdMetric { value, .. })) => {
                let value = ask(value, &subject.candidate).await?;
                value
                    .map(Value::Reading)
                    .ok_or_else(|| "the query has no result".to_owned())
            }
            (None, None) => Err("it has neither counts nor a threshold".to_owned()),
        }
    }
}

/// Requests of one revision, then its events by series.
///
/// A counter that does not exist yet has counted nothing. But what is above a threshold is known as soon as there are requests:
/// where it is not, the source does not have this threshold, and no candidate would ever be above it.
async fn counters<A>(counts: &CountedMetric, ask: impl Fn(&str) -> A) -> Result<Vec<f64>, String>
where
    A: Future<Output = Result<Option<f64>, String>>,
{
    let CountedMetric {
        requests,
        events,
        thresholds,
        ..
    } = counts;
    let asked = match thresholds.as_slice() {
        [] => vec![ask(events)],
        thresholds => thresholds
            .iter()
            .map(|threshold| ask(&events.replace("{{threshold}}", threshold)))
            .collect(),
    };
    let (requests, events) = try_join(ask(requests), try_join_all(asked)).await?;
    let requests = requests.unwrap_or_default();
    let mut counters = vec![requests];
    for (index, events) in events.into_iter().enumerate() {
        match (events, thresholds.get(index)) {
            (None, Some(threshold)) if requests > 0.0 => {
                return Err(format!(
                    "there are requests, but events has no result for the threshold {threshold}; write it as the source does \
                     (Prometheus may have le=\"2000.0\"), or end the query with \"or vector(0)\""
                ));
            }
            (events, _) => counters.push(events.unwrap_or_default()),
        }
    }
    Ok(counters)
}

fn fill(text: &str, revision: &str, subject: &Subject, pool: &Key) -> String {
    [
        ("{{revision}}", revision),
        ("{{stable}}", &subject.stable),
        ("{{pool}}", &pool.name),
        ("{{namespace}}", &pool.namespace),
    ]
    .into_iter()
    .fold(text.to_owned(), |text, (slot, value)| text.replace(slot, value))
}

/// The windows of one metric.
fn windows(boundaries: &BTreeMap<i64, Boundary>, metric: &SourcedMetric) -> Vec<Window> {
    let name = &metric.name;
    let Some(rule) = release::sourced(metric).map(|metric| metric.rule) else {
        return Vec::new();
    };
    let window = |start: i64, boundary: &Boundary, observation: Observation| Window {
        start,
        epoch: boundary.epoch,
        metrics: [(name.clone(), observation)].into(),
    };
    let found = boundaries
        .iter()
        .filter_map(|(start, boundary)| match (boundary.values.get(name)?, &rule) {
            (Value::Reading(value), Rule::Threshold(threshold)) => {
                Some(window(*start, boundary, threshold.read(*value)?))
            }
            (begin @ Value::Counters { .. }, Rule::Compare(_)) => {
                let end = boundaries.get(&(start + WINDOW_SECONDS))?.values.get(name)?;
                Some(window(
                    *start,
                    boundary,
                    Observation::Counts(between(begin, end)?),
                ))
            }
            _ => None,
        });
    found.collect()
}

/// What was counted between two readings; none if a counter began anew.
fn between(begin: &Value, end: &Value) -> Option<Tally> {
    let (
        Value::Counters { stable, candidate },
        Value::Counters {
            stable: stable_end,
            candidate: candidate_end,
        },
    ) = (begin, end)
    else {
        return None;
    };
    let counts = |from: &[f64], to: &[f64]| {
        let rise = |(from, to): (&f64, &f64)| (to >= from).then(|| (to - from).round() as u64);
        let mut rises = from.iter().zip(to).map(rise);
        let requests = rises.next()??;
        let events = rises.map(|events| Some(events?.min(requests)));
        Some(Counts {
            requests,
            events: events.collect::<Option<_>>()?,
        })
    };
    Some(Tally {
        stable: counts(stable, stable_end)?,
        candidate: counts(candidate, candidate_end)?,
    })
}

#[cfg(test)]
mod tests;
