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
use flotilla_core::stats::WINDOW_SECONDS;
use flotilla_crds::sourced_metric::{CountedMetric, SourcedMetric, ThresholdMetric};
use futures::StreamExt as _;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use super::judge;
use crate::runtime::{Clock, Key};
use read::{Question, Read};

/// Longest wait for one number.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Questions under way at once.
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

/// One number for each of the two revisions, or for the candidate alone.
#[derive(Clone, Debug, PartialEq)]
enum Value {
    Counters { stable: [f64; 2], candidate: [f64; 2] },
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
        let ask = |text: &str, revision: &str, is_counter: bool| {
            let question = Question {
                type_: source.type_,
                address: address.clone(),
                text: fill(text, revision, subject, pool),
                time: *boundary,
                is_counter,
            };
            let answer = self.0.read.read(question);
            async move {
                let answer = timeout(TIMEOUT, answer).await;
                answer.unwrap_or_else(|_| Err(format!("no answer within {} s", TIMEOUT.as_secs())))
            }
        };
        match (&metric.counts, &metric.threshold) {
            (Some(CountedMetric { requests, events, .. }), _) => {
                let of = |revision: &str| {
                    futures::future::try_join(ask(requests, revision, true), ask(events, revision, true))
                };
                let (stable, candidate) =
                    futures::future::try_join(of(&subject.stable), of(&subject.candidate)).await?;
                Ok(Value::Counters {
                    stable: [stable.0, stable.1],
                    candidate: [candidate.0, candidate.1],
                })
            }
            (None, Some(ThresholdMetric { value, .. })) => {
                ask(value, &subject.candidate, false).await.map(Value::Reading)
            }
            (None, None) => Err("it has neither counts nor a threshold".to_owned()),
        }
    }
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
    let Some(rule) = judge::sourced(metric).map(|metric| metric.rule) else {
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
    let rise = |from: f64, to: f64| (to >= from).then(|| (to - from).round() as u64);
    let counts = |from: &[f64; 2], to: &[f64; 2]| {
        let (requests, events) = (rise(from[0], to[0])?, rise(from[1], to[1])?);
        Some(Counts::new(requests, events.min(requests)))
    };
    Some(Tally {
        stable: counts(stable, stable_end)?,
        candidate: counts(candidate, candidate_end)?,
    })
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use futures::future::BoxFuture;
    use jiff::Timestamp;
    use serde_json::{Value as Json, json};

    use super::*;

    /// Counters of 60 requests a minute and revision, and of twelve failures a minute of the candidate; every question is kept.
    #[derive(Clone, Default)]
    struct Script(Arc<Mutex<(Vec<Question>, Option<String>)>>);

    impl Read for Script {
        fn read(&self, question: Question) -> BoxFuture<'static, Result<f64, String>> {
            let mut script = self.0.lock();
            let second = question.time as f64;
            let value = match question.text.as_str() {
                text if text.starts_with("failures support-2") => second / 5.0,
                text if text.starts_with("failures") => 0.0,
                text if text.starts_with("requests") => second,
                _ => 4.0,
            };
            script.0.push(question);
            let answer = script.1.clone().map_or(Ok(value), Err);
            async move { answer }.boxed()
        }
    }

    fn metric(name: &str, rule: Json) -> SourcedMetric {
        let mut metric = json!({"name": name, "source": {"type": "Prometheus", "name": "main"}});
        metric
            .as_object_mut()
            .unwrap()
            .extend(rule.as_object().unwrap().clone());
        serde_json::from_value(metric).unwrap()
    }

    fn counted() -> SourcedMetric {
        metric(
            "checkouts",
            json!({"counts": {"requests": "requests {{revision}}", "events": "failures {{revision}} {{pool}} {{namespace}}"}}),
        )
    }

    fn subject(metrics: Vec<SourcedMetric>) -> Subject {
        Subject {
            uid: "u-1".into(),
            stable: "support-1".into(),
            candidate: "support-2".into(),
            attempt: 1,
            metrics,
        }
    }

    fn figures(script: &Script) -> Figures {
        Figures::new(
            Arc::new(script.clone()),
            [("main".to_owned(), "http://prometheus.monitoring.svc".to_owned())].into(),
        )
    }

    #[tokio::test(start_paused = true)]
    async fn counters_become_windows_under_the_generation_in_force_at_their_start() {
        let (script, pool) = (Script::default(), Key::new("shop", "support"));
        let figures = figures(&script);
        let clock = Clock::virtual_from(Timestamp::from_second(1_200).unwrap());
        let working = tokio::spawn(figures.clone().run(clock));
        let limit = metric(
            "p95",
            json!({"threshold": {"value": "p95 {{revision}} {{stable}}", "maximum": "4.5"}}),
        );
        figures.follow(&pool, Some((subject(vec![counted(), limit.clone()]), 3)));
        sleep(Duration::from_secs(20)).await;
        figures.follow(&pool, Some((subject(vec![counted(), limit]), 4)));
        sleep(Duration::from_secs(26)).await;
        working.abort();
        let reports = figures.reports(&pool, 1_246, 30);
        assert_eq!(
            (reports[0].instance.as_str(), reports[0].time),
            ("metrics/checkouts", 1_231)
        );
        let counts: Vec<(i64, i64, Observation)> = reports[0]
            .windows
            .iter()
            .map(|window| (window.start, window.epoch, window.metrics["checkouts"].clone()))
            .collect();
        let tally = |events| {
            Observation::Counts(Tally {
                stable: Counts::new(15, 0),
                candidate: Counts::new(15, events),
            })
        };
        assert_eq!(
            counts,
            [(1_200, 3, tally(3)), (1_215, 3, tally(3)), (1_230, 4, tally(3))]
        );
        let readings: Vec<_> = reports[1]
            .windows
            .iter()
            .map(|window| &window.metrics["p95"])
            .collect();
        assert_eq!(readings, [&Observation::Reading { good: true }; 4]);
        let asked: Vec<String> = script
            .0
            .lock()
            .0
            .iter()
            .take(5)
            .map(|question| question.text.clone())
            .collect();
        assert!(
            asked.contains(&"failures support-2 support shop".to_owned()),
            "{asked:?}"
        );
        assert!(asked.contains(&"p95 support-2 support-1".to_owned()), "{asked:?}");
    }

    #[test]
    fn a_counter_that_falls_and_a_gap_have_no_data() {
        let counters = |requests, events| Value::Counters {
            stable: [requests, 0.0],
            candidate: [requests, events],
        };
        let tally = between(&counters(10.0, 1.0), &counters(40.0, 3.4)).unwrap();
        assert_eq!(
            (tally.candidate, tally.stable),
            (Counts::new(30, 2), Counts::new(30, 0))
        );
        assert_eq!(between(&counters(10.0, 1.0), &counters(4.0, 1.0)), None);
        assert_eq!(between(&counters(10.0, 1.0), &Value::Reading(1.0)), None);
        let boundaries = [(0, counters(1.0, 0.0)), (30, counters(9.0, 0.0))].map(|(start, value)| {
            let values = [("checkouts".to_owned(), value)].into();
            (start, Boundary { epoch: 1, values })
        });
        assert_eq!(windows(&boundaries.into(), &counted()), []);
    }

    #[tokio::test(start_paused = true)]
    async fn a_source_that_is_not_allowed_or_does_not_answer_is_said() {
        let (script, pool) = (Script::default(), Key::new("shop", "support"));
        let figures = figures(&script);
        let clock = Clock::virtual_from(Timestamp::from_second(1_200).unwrap());
        let working = tokio::spawn(figures.clone().run(clock));
        let mut foreign = counted();
        foreign.source.name = "secret".into();
        figures.follow(&pool, Some((subject(vec![foreign]), 1)));
        sleep(Duration::from_secs(16)).await;
        let problem = figures.problem(&pool).unwrap();
        assert!(
            problem.contains("no metric source secret, only: main"),
            "{problem}"
        );
        script.0.lock().1 = Some("connection refused".into());
        figures.follow(&pool, Some((subject(vec![counted()]), 1)));
        sleep(Duration::from_secs(16)).await;
        assert_eq!(
            figures.problem(&pool).as_deref(),
            Some("checkouts cannot be read: connection refused")
        );
        assert!(figures.reports(&pool, 1_230, 30)[0].windows.is_empty());
        script.0.lock().1 = None;
        sleep(Duration::from_secs(16)).await;
        assert_eq!(figures.problem(&pool), None);
        figures.follow(&pool, None);
        let so_far = script.0.lock().0.len();
        sleep(Duration::from_secs(60)).await;
        assert_eq!(script.0.lock().0.len(), so_far);
        working.abort();
    }
}
