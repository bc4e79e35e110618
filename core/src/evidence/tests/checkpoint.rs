//! Each window once, whatever is read when; and a restart that changes no bit.

use proptest::prelude::*;

use super::*;
use crate::histogram::Histogram;
use crate::stats::{PoolStats, RevisionStats, Stats, WindowStats};

/// One metric of each kind.
fn rich_plan() -> Plan {
    let mut plan = plan();
    plan.metrics.push(Metric::latency(vec![1_000, 4_000]));
    plan.metrics.push(Metric {
        name: "cost".to_owned(),
        mode: Mode::Observe,
        rule: Rule::Threshold(Threshold {
            minimum_millionths: None,
            maximum_millionths: Some(2_500_000),
            failure_limit: 3,
        }),
    });
    plan.warmup_seconds = 30;
    plan
}

/// What three sources saw in 60 windows over two steps, drawn from `seed`: the windows by source.
fn history(seed: u64) -> Vec<(&'static str, Vec<Window>)> {
    let mut dice = simulation::Dice::new(crate::load::random::Stream::new(seed, 1));
    let mut of = |instance: &'static str| {
        let windows = (0..60).map(|n| {
            let epoch = if n < 30 { 1 } else { 2 };
            let mut counts = |mean: f64| {
                let requests = dice.poisson(mean);
                let events = [0.02, 0.3].map(|rate| dice.poisson(requests as f64 * rate).min(requests));
                (requests, events)
            };
            let (stable, candidate) = (counts(30.0), counts(0.7));
            let mut window = window(
                n * 15,
                epoch,
                (stable.0, stable.1[0]),
                (candidate.0, candidate.1[0]),
            );
            let latency = |(requests, events): (u64, [u64; 2])| Counts {
                requests,
                events: vec![events[1], events[0]],
            };
            let tally = Tally {
                stable: latency(stable),
                candidate: latency(candidate),
            };
            window
                .metrics
                .insert("latency".to_owned(), Observation::Counts(tally));
            window
        });
        (instance, windows.collect::<Vec<_>>())
    };
    let (a, b) = (of("gateway-a"), of("gateway-b"));
    let readings = (0..60).step_by(4).map(|n| Window {
        start: n * 15,
        epoch: if n < 30 { 1 } else { 2 },
        metrics: BTreeMap::from([("cost".to_owned(), Observation::Reading { good: n % 24 != 0 })]),
    });
    vec![a, b, ("cost", readings.collect())]
}

/// The plan in force at `now`: the second step starts at 450.
fn plan_at(now: i64) -> Plan {
    let mut plan = rich_plan();
    if now >= 600 {
        plan.step.index = 1;
        plan.step.epoch = 2;
        plan.step.start = 450;
        plan.step.question = Question::Advance { times_worse: 2 };
    }
    plan
}

/// How long after its close a window is reported.
const KEPT_SECONDS: i64 = 60;

/// What everybody reports at `now`: all windows that gateways still keep.
fn scrape_at(history: &[(&str, Vec<Window>)], now: i64) -> Scrape {
    let plan = plan_at(now);
    let kept = |window: &&Window| window.start + 15 <= now && plan.closes(window.start) + KEPT_SECONDS > now;
    let reports = history.iter().map(|(instance, windows)| {
        let windows = windows.iter().filter(kept).cloned().collect();
        report(instance, now, windows)
    });
    Scrape {
        now,
        complete: true,
        reports: reports.collect(),
    }
}

fn uninterrupted(history: &[(&str, Vec<Window>)], plan_at: fn(i64) -> Plan) -> Evidence {
    let mut evidence = Evidence::new(Key::default());
    for now in (0..1_200).step_by(15) {
        evidence.update(&plan_at(now), &scrape_at(history, now));
    }
    evidence
}

#[test]
fn a_restart_after_any_window_changes_no_bit() {
    let history = history(1);
    let expected = uninterrupted(&history, plan_at);
    assert!(expected.metric("errors").unwrap().release.candidate.requests > 20);
    assert!(expected.metric("cost").unwrap().failures > 1);
    for restart in (0..1_200).step_by(45) {
        let mut evidence = Evidence::new(Key::default());
        for now in (0..1_200).step_by(15) {
            if now == restart {
                let text = evidence.to_checkpoint();
                evidence = Evidence::from_checkpoint(&text).unwrap();
                assert_eq!(evidence.to_checkpoint(), text);
            }
            evidence.update(&plan_at(now), &scrape_at(&history, now));
        }
        assert_eq!(
            evidence.to_checkpoint(),
            expected.to_checkpoint(),
            "restart at {restart}"
        );
        assert_eq!(
            judge(&evidence, &plan_at(1_200), 1_200),
            judge(&expected, &plan_at(1_200), 1_200)
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Looks at random times, reports doubled and in another order, and a restart from any former checkpoint: the
    /// same bits in the end.
    #[test]
    fn what_is_read_again_counts_once(seed in 0u64..1_000, choices in prop::collection::vec(0u64..6, 120)) {
        let history = history(seed);
        let plan = rich_plan();
        let expected = uninterrupted(&history, |_| rich_plan());
        let mut evidence = Evidence::new(Key::default());
        let mut former = evidence.to_checkpoint();
        for (n, choice) in choices.into_iter().enumerate() {
            let now = n as i64 * 10;
            let mut scrape = scrape_at(&history, now);
            match choice {
                0 => former = evidence.to_checkpoint(),
                // The last few writes of the checkpoint were lost, but no window was forgotten meanwhile.
                1 => {
                    let restored = Evidence::from_checkpoint(&former).unwrap();
                    if now < first_missing(&plan, &restored) + KEPT_SECONDS {
                        evidence = restored;
                    }
                }
                2 => scrape.reports.reverse(),
                3 => scrape.reports.extend(scrape.reports.clone()),
                _ => {}
            }
            evidence.update(&plan, &scrape);
        }
        for name in ["errors", "latency", "cost"] {
            prop_assert_eq!(evidence.metric(name), expected.metric(name), "{}", name);
        }
    }
}

/// When the first window closes that a checkpoint does not have.
fn first_missing(plan: &Plan, evidence: &Evidence) -> i64 {
    let state: serde_json::Value = serde_json::from_str(&evidence.to_checkpoint()).unwrap();
    plan.closes(state["sealedBefore"].as_i64().unwrap().max(0))
}

#[test]
fn gateways_add_up() {
    let plan = plan();
    let one = seen(&plan, 20, (100, 3), (20, 1)).0;
    let mut two = Evidence::new(Key::default());
    for n in 0..20 {
        let now = plan.closes(n * 15);
        let part = |instance: &str, stable, candidate| {
            report(instance, now, vec![window(n * 15, 1, stable, candidate)])
        };
        let reports = vec![part("b", (60, 1), (5, 1)), part("a", (40, 2), (15, 0))];
        let complete = true;
        two.update(
            &plan,
            &Scrape {
                now,
                complete,
                reports,
            },
        );
    }
    assert_eq!(one.metric("errors"), two.metric("errors"));
}

#[test]
fn a_window_waits_for_the_slow_and_not_for_the_lost() {
    let plan = plan();
    let mut evidence = Evidence::new(Key::default());
    let closed = plan.closes(0);
    let of = |instance: &str, time| report(instance, time, vec![window(0, 1, (10, 0), (10, 0))]);
    let mut at = |now: i64, complete, reports| {
        evidence.update(
            &plan,
            &Scrape {
                now,
                complete,
                reports,
            },
        )
    };

    assert_eq!(
        at(closed - 1, true, vec![of("a", closed - 1), of("b", closed - 1)]).applied,
        0
    );
    // One cannot be reached …
    assert_eq!(at(closed, false, vec![of("a", closed)]).applied, 0);
    assert_eq!(at(closed + 29, false, vec![of("a", closed + 29)]).applied, 0);
    // … until its time is over; what it says then is late, once.
    assert_eq!(at(closed + 30, false, vec![of("a", closed + 30)]).applied, 1);
    let update = at(
        closed + 31,
        true,
        vec![of("a", closed + 31), of("b", closed + 31)],
    );
    assert_eq!((update.applied, update.late), (0, 1));
    let update = at(
        closed + 32,
        true,
        vec![of("a", closed + 32), of("b", closed + 32)],
    );
    assert_eq!((update.applied, update.late), (0, 0));
    assert_eq!(evidence.late(), 1);
    assert_eq!(evidence.metric("errors").unwrap().release.candidate.requests, 10);
}

#[test]
fn conversations_older_than_the_candidate_and_cold_pods_do_not_count() {
    let mut plan = plan();
    plan.warmup_seconds = 60;
    plan.step.start = 100;
    plan.first_epoch = 5;
    plan.step.epoch = 5;
    let mut evidence = Evidence::new(Key::default());
    let windows = (0..20).flat_map(|n| [4, 5].map(|epoch| window(n * 15, epoch, (10, 0), (10, 0))));
    let now = plan.closes(300);
    evidence.update(&plan, &look(now, windows.collect()));
    // Of epoch 5: windows at 0 … 75 are before the weight, 90 … 150 touch 100 … 160.
    let counted = evidence.metric("errors").unwrap().release.candidate.requests;
    assert_eq!(
        counted,
        10 * (6 + 9),
        "windows that start at 0 … 75 and at 165 … 285"
    );
}

#[test]
fn a_step_asks_anew_and_harm_is_never_forgotten() {
    let plan = plan();
    let (mut evidence, now) = seen(&plan, 30, (100, 3), (20, 1));
    let before = evidence.metric("errors").unwrap().clone();
    let mut next = plan.clone();
    next.step.index = 1;
    next.step.epoch = 2;
    next.step.start = now;
    evidence.update(&next, &look(now, vec![]));
    let after = evidence.metric("errors").unwrap();
    assert_eq!(after.series[0].harm, before.series[0].harm);
    assert_ne!(before.series[0].pass.to_bits(), [0; 24]);
    assert_eq!(after.series[0].pass.to_bits(), [0; 24]);
    assert_eq!(
        (after.step.candidate.requests, after.release.candidate.requests),
        (0, 600)
    );

    // A window that was assigned at the former weight: for harm only.
    let start = now - 15;
    evidence.update(
        &next,
        &look(next.closes(start), vec![window(start, 1, (100, 3), (20, 1))]),
    );
    let after = evidence.metric("errors").unwrap();
    assert_eq!(
        (after.step.candidate.requests, after.release.candidate.requests),
        (0, 620)
    );
}

#[test]
fn another_definition_starts_anew_and_says_so() {
    let plan = rich_plan();
    let mut evidence = uninterrupted(&history(3), plan_at);
    let mut changed = plan_at(1_200);
    changed.strictness = Strictness::Strict;
    assert_eq!(
        evidence.update(&changed, &Scrape::default()).reset,
        Vec::<String>::new()
    );
    changed.metrics[1] = Metric::latency(vec![1_000, 8_000]);
    let errors = evidence.metric("errors").cloned();
    let update = evidence.update(&changed, &Scrape::default());
    assert_eq!(update.reset, ["latency"]);
    assert_eq!(evidence.metric("errors").cloned(), errors);
    assert_eq!(evidence.metric("latency").unwrap().release.candidate.requests, 0);
    assert_eq!(plan.metrics.len(), 3);
}

#[test]
fn damaged_checkpoints_are_refused() {
    let text = uninterrupted(&history(2), plan_at).to_checkpoint();
    assert!(matches!(
        Evidence::from_checkpoint(&text.replacen("\"version\":2", "\"version\":3", 1)),
        Err(CheckpointError::Version(3))
    ));
    assert!(matches!(
        Evidence::from_checkpoint(&text[..text.len() / 2]),
        Err(CheckpointError::Json(_))
    ));
    let mut state: serde_json::Value = serde_json::from_str(&text).unwrap();
    let series = state["metrics"]["latency"]["series"].as_array_mut().unwrap();
    series.pop();
    assert!(matches!(
        Evidence::from_checkpoint(&state.to_string()),
        Err(CheckpointError::Unsound(name)) if name == "latency"
    ));
    let mut state: serde_json::Value = serde_json::from_str(&text).unwrap();
    let not_a_number = [f64::NAN; 24].map(f64::to_le_bytes).concat();
    use base64::Engine as _;
    state["metrics"]["errors"]["series"][0]["harm"]["all"] = base64::engine::general_purpose::STANDARD
        .encode(not_a_number)
        .into();
    assert!(Evidence::from_checkpoint(&state.to_string()).is_err());
    state["metrics"]["errors"]["series"][0]["harm"]["all"] = "AAAA".into();
    assert!(Evidence::from_checkpoint(&state.to_string()).is_err());
}

#[test]
fn a_gateways_windows_become_cohorts() {
    let latencies = |milliseconds: &[u64]| milliseconds.iter().map(|ms| ms * 1000).collect::<Histogram>();
    let revision = |windows| RevisionStats {
        windows,
        ..RevisionStats::default()
    };
    let stable = WindowStats {
        start: 30,
        epoch: 7,
        started: 10,
        ended: 8,
        failed: 1,
        cancelled: 2,
        latency: latencies(&[100, 200, 900, 1_500, 5_000, 90]),
        first_byte: latencies(&[50, 60, 2_000, 70, 80, 90]),
    };
    let mut pool = PoolStats::default();
    pool.revisions.insert("p-a".into(), revision(vec![stable]));
    let candidate = WindowStats {
        start: 45,
        epoch: 7,
        started: 1,
        ended: 1,
        latency: latencies(&[300]),
        ..WindowStats::default()
    };
    pool.revisions.insert("p-b".into(), revision(vec![candidate]));
    let mut stats = Stats {
        instance: "i".into(),
        time_milliseconds: 200_999,
        ..Stats::default()
    };
    stats.pools.insert("p".into(), pool);
    let mut plan = rich_plan();
    let mut first_byte = Metric::latency(vec![1_000]);
    first_byte.name = "first-byte".to_owned();
    first_byte.rule = Rule::Compare(Compare {
        counted: Counted::FirstByte(vec![1_000]),
        ..Compare::errors()
    });
    plan.metrics.push(first_byte);

    let report = Report::of_gateway(&stats, "p", "p-a", "p-b", &plan);
    assert_eq!((report.instance.as_str(), report.time), ("i", 200));
    let windows: Vec<_> = report
        .windows
        .iter()
        .map(|window| (window.start, window.epoch))
        .collect();
    assert_eq!(windows, [(30, 7), (45, 7)]);
    let arm = |window: usize, metric: &str| match &report.windows[window].metrics[metric] {
        Observation::Counts(tally) => tally.clone(),
        Observation::Reading { .. } => unreachable!("gateways count"),
    };
    // 8 that count: 6 over, one of them failed, and 2 that should be over and are not.
    assert_eq!(arm(0, "errors").stable, Counts::new(8, 3));
    assert_eq!(arm(0, "errors").candidate, Counts::default());
    assert_eq!(
        (arm(0, "latency").stable.requests, arm(0, "latency").stable.events),
        (8, vec![4, 3])
    );
    assert_eq!(
        (
            arm(0, "first-byte").stable.requests,
            arm(0, "first-byte").stable.events
        ),
        (8, vec![3])
    );
    assert_eq!(arm(1, "errors").candidate, Counts::new(1, 0));
    assert_eq!(arm(1, "errors").stable, Counts::default());
    assert!(!report.windows[0].metrics.contains_key("cost"));
    let elsewhere = Report::of_gateway(&stats, "other", "p-a", "p-b", &plan);
    assert!(elsewhere.windows.is_empty());
}
