use futures::FutureExt as _;
use futures::future::BoxFuture;
use jiff::Timestamp;
use serde_json::{Value as Json, json};

use super::*;

/// Counters of 60 requests a minute and revision, and of twelve failures a minute of the candidate; what is above 2000.0 is a
/// third of them, above 0.5 all but those of stable, and of nothing else anything is known. Every question is kept.
#[derive(Clone, Default)]
struct Script(Arc<Mutex<(Vec<Question>, Option<String>)>>);

impl Read for Script {
    fn read(&self, question: Question) -> BoxFuture<'static, Result<Option<f64>, String>> {
        let mut script = self.0.lock();
        let second = question.time as f64;
        let value = match question.text.as_str() {
            text if text.starts_with("failures support-2") => Some(second / 5.0),
            text if text.starts_with("failures") => Some(0.0),
            text if text.starts_with("requests nobody") => None,
            text if text.starts_with("requests") => Some(second),
            text if text.ends_with("/above/2000.0") => Some(second / 3.0),
            "/support-1#/above/0.5" => Some(0.0),
            "/support-2#/above/0.5" => Some(second),
            text if text.contains("above") => None,
            _ => Some(4.0),
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

/// What is read of a metric with this rule in the first window, and why it is not.
async fn first_window(script: &Script, rule: Json) -> (Option<Observation>, Option<String>) {
    let (figures, pool) = (figures(script), Key::new("shop", "support"));
    let clock = Clock::virtual_from(Timestamp::from_second(1_200).unwrap());
    let working = tokio::spawn(figures.clone().run(clock));
    figures.follow(&pool, Some((subject(vec![metric("tokens", rule)]), 1)));
    sleep(Duration::from_secs(17)).await;
    working.abort();
    let report = figures.reports(&pool, 1_217, 30).remove(0);
    let window = report.windows.into_iter().next();
    let observed = window.and_then(|mut window| window.metrics.remove("tokens"));
    (observed, figures.problem(&pool))
}

#[tokio::test(start_paused = true)]
async fn what_is_above_each_threshold_is_a_series() {
    let script = Script::default();
    let counts = json!({"counts": {
        "requests": "requests {{revision}}", "events": "/{{revision}}#/above/{{threshold}}", "thresholds": ["0.5", "2000.0"],
    }});
    let counted = |events: [u64; 2]| Counts {
        requests: 15,
        events: events.to_vec(),
    };
    let expected = Tally {
        stable: counted([0, 5]),
        candidate: counted([15, 5]),
    };
    assert_eq!(
        first_window(&script, counts).await,
        (Some(Observation::Counts(expected)), None)
    );
    let script = script.0.lock();
    let mut asked: Vec<&str> = script.0.iter().map(|question| question.text.as_str()).collect();
    asked.sort_unstable();
    asked.dedup();
    assert_eq!(
        asked,
        [
            "/support-1#/above/0.5",
            "/support-1#/above/2000.0",
            "/support-2#/above/0.5",
            "/support-2#/above/2000.0",
            "requests support-1",
            "requests support-2",
        ]
    );
}

/// A bucket that is written otherwise in the source would pass every candidate.
#[tokio::test(start_paused = true)]
async fn a_threshold_that_the_source_does_not_have_is_no_data() {
    let events = "sum(above{revision=\"{{revision}}\",le=\"{{threshold}}\"})";
    let counts =
        |requests: &str| json!({"counts": {"requests": requests, "events": events, "thresholds": ["2000"]}});
    let (observed, problem) = first_window(&Script::default(), counts("requests {{revision}}")).await;
    assert_eq!(observed, None);
    let problem = problem.unwrap_or_default();
    assert!(problem.contains("no result for the threshold 2000;"), "{problem}");
    // Before the first request there is nothing to be known.
    let (observed, problem) = first_window(&Script::default(), counts("requests nobody {{revision}}")).await;
    let nothing = Tally {
        stable: Counts::new(0, 0),
        candidate: Counts::new(0, 0),
    };
    assert_eq!((observed, problem), (Some(Observation::Counts(nothing)), None));
    let value = json!({"threshold": {"value": "above {{revision}}", "maximum": "1"}});
    let problem = "tokens cannot be read: the query has no result";
    assert_eq!(
        first_window(&Script::default(), value).await,
        (None, Some(problem.to_owned()))
    );
}

#[test]
fn a_counter_that_falls_and_a_gap_have_no_data() {
    let counters = |requests, events| Value::Counters {
        stable: vec![requests, 0.0],
        candidate: vec![requests, events],
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
