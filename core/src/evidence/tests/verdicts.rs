//! What is said of the evidence, case by case.

use super::*;

fn verdict(plan: &Plan, windows: i64, stable: (u64, u64), candidate: (u64, u64)) -> Judgement {
    let (evidence, now) = seen(plan, windows, stable, candidate);
    judge(&evidence, plan, now)
}

#[test]
fn verdicts_and_their_sentences() {
    let plan = plan();
    for (windows, stable, candidate, expected, message) in [
        (
            20,
            (540, 3),
            (60, 0),
            Verdict::Advance,
            "every metric is shown to be good enough",
        ),
        (
            4,
            (540, 3),
            (60, 0),
            Verdict::Continue,
            "errors: 74 % of the evidence to advance, about 69 s at this traffic",
        ),
        (
            20,
            (540, 3),
            (60, 3),
            Verdict::Rollback,
            "errors: the candidate is worse than stable: 60 of 1200 requests failed, against 60 of 10800",
        ),
        (20, (540, 3), (60, 1), Verdict::Continue, ""),
        // Without a failure on either side.
        (
            40,
            (540, 0),
            (60, 0),
            Verdict::Advance,
            "every metric is shown to be good enough",
        ),
        (
            40,
            (540, 200),
            (60, 22),
            Verdict::CommonMode,
            "errors: stable fails too (37.0 % lately, more than 5.0 %), so both arms may be bad for one reason; \
             where that is normal, raise acceptableErrorPercent",
        ),
        // Stable is broken and the candidate mends it.
        (
            40,
            (540, 200),
            (60, 0),
            Verdict::Advance,
            "every metric is shown to be good enough",
        ),
        (
            10,
            (600, 3),
            (0, 0),
            Verdict::Continue,
            "errors: waits until the first requests of this step are over",
        ),
    ] {
        let judgement = verdict(&plan, windows, stable, candidate);
        let name = format!("{windows} x {stable:?} {candidate:?}: {}", judgement.message);
        assert_eq!(judgement.verdict, expected, "{name}");
        assert!(message.is_empty() || judgement.message == message, "{name}");
        let metric = &judgement.metrics[0];
        assert_eq!(
            metric.advance_percent == 100,
            expected == Verdict::Advance,
            "{name}"
        );
        assert_eq!(
            metric.rollback_percent == 100,
            expected == Verdict::Rollback,
            "{name}"
        );
        assert_eq!(metric.release.candidate.requests, windows as u64 * candidate.0);
    }
}

/// However long it lasts, whatever is asked, and whenever it stops.
#[test]
fn missing_data_is_neither_failure_nor_pass() {
    let mut plan = plan();
    plan.metrics.push(Metric::latency(vec![1_000]));
    for deadline in [60, 3_600] {
        plan.step.decide_within_seconds = deadline;
        for (windows, stable, candidate) in [
            (0, (0, 0), (0, 0)),
            (200, (500, 2), (0, 0)),
            (200, (0, 0), (500, 200)),
        ] {
            let (mut evidence, now) = seen(&plan, windows, stable, candidate);
            for later in [0, 60, 700, 4_000, 100_000] {
                let now = now + later;
                evidence.update(&plan, &look(now, vec![]));
                let judgement = judge(&evidence, &plan, now);
                let early = matches!(judgement.verdict, Verdict::Continue) && now < deadline.min(600);
                assert!(
                    early || judgement.verdict == Verdict::NoData,
                    "{now}: {judgement:?}"
                );
            }
        }
        // Good counts that end before there is enough, and errors without the latency that was asked for.
        let (evidence, now) = seen(&plan, 4, (540, 3), (60, 0));
        assert_eq!(judge(&evidence, &plan, now + 5_000).verdict, Verdict::NoData);
        let (evidence, now) = seen(&plan, 400, (540, 3), (60, 0));
        let judgement = judge(&evidence, &plan, now);
        assert_eq!(judgement.verdict, Verdict::NoData, "{judgement:?}");
        assert_eq!(judgement.metrics[0].verdict, Verdict::Advance);
        assert_eq!(
            judgement.message,
            "latency: no closed window has a request of the candidate at this step"
        );
    }
}

/// The operator has moved on and not yet looked: nothing of the former step counts.
#[test]
fn a_step_that_was_never_looked_at_has_no_data() {
    let plan = plan();
    let (evidence, now) = seen(&plan, 20, (540, 3), (60, 0));
    let mut next = plan.clone();
    next.step.index = 1;
    next.step.epoch = 2;
    next.step.start = now;
    let judgement = judge(&evidence, &next, now);
    assert_eq!(judgement.verdict, Verdict::Continue);
    assert_eq!(
        judgement.message,
        "errors: waits until the first requests of this step are over"
    );
    assert_eq!(judgement.metrics[0].advance_percent, 0);
    assert_eq!(judge(&evidence, &next, now + 5_000).verdict, Verdict::NoData);
}

#[test]
fn a_step_lasts_as_long_as_it_should_and_no_longer() {
    let mut plan = plan();
    plan.step.min_seconds = 900;
    let (evidence, now) = seen(&plan, 20, (540, 3), (60, 0));
    let judgement = judge(&evidence, &plan, now);
    assert_eq!(judgement.verdict, Verdict::Continue);
    assert_eq!(judgement.message, "good so far; the step lasts 8 min more");
    assert_eq!(judgement.eta_seconds, Some(900 - now));
    plan.step.min_seconds = 60;
    plan.step.decide_within_seconds = 300;
    let (evidence, now) = seen(&plan, 20, (50, 1), (2, 0));
    let judgement = judge(&evidence, &plan, now);
    assert_eq!(judgement.verdict, Verdict::Undecided);
    assert!(
        judgement
            .message
            .starts_with("not decided within 5 min: errors: "),
        "{}",
        judgement.message
    );
}

#[test]
fn an_outage_of_both_holds_and_passes() {
    let plan = plan();
    let (mut evidence, _) = seen(&plan, 3, (540, 3), (60, 0));
    let mut verdicts = Vec::new();
    for n in 3..60 {
        let (stable, candidate) = if n < 20 {
            ((540, 270), (60, 30))
        } else {
            ((540, 3), (60, 0))
        };
        let now = plan.closes(n * 15);
        evidence.update(&plan, &look(now, vec![window(n * 15, 1, stable, candidate)]));
        verdicts.push(judge(&evidence, &plan, now).verdict);
    }
    assert!(
        verdicts[..17]
            .iter()
            .all(|verdict| *verdict == Verdict::CommonMode),
        "{verdicts:?}"
    );
    assert_eq!(verdicts.last(), Some(&Verdict::Advance));
    assert!(!verdicts.contains(&Verdict::Rollback));
}

/// Windows until the verdict after `calm` good ones, `outage` in which both fail half of their requests, and then `counts` for ever.
fn windows_after_outage(
    plan: &Plan,
    calm: i64,
    outage: i64,
    good: [(u64, u64); 2],
    then: [(u64, u64); 2],
    verdict: Verdict,
) -> i64 {
    let mut evidence = Evidence::new(Key::default());
    let half = |(requests, _): (u64, u64)| (requests, requests / 2);
    let over = calm + outage;
    for n in 0..over + 1_000 {
        let [stable, candidate] = match n {
            _ if n < calm => good,
            _ if n < over => good.map(half),
            _ => then,
        };
        let now = plan.closes(n * 15);
        evidence.update(plan, &look(now, vec![window(n * 15, 1, stable, candidate)]));
        let said = judge(&evidence, plan, now).verdict;
        if n >= over && said == verdict {
            return n + 1 - over;
        }
        let may_be = [Verdict::Continue, Verdict::CommonMode].contains(&said);
        assert!(may_be, "window {n}: {said:?} instead of {verdict:?}");
    }
    panic!("no verdict after 1,000 windows")
}

/// The guard looks back five minutes, which is 20 windows; what comes after that takes as long as it would have taken without the
/// outage, or a little longer.
#[test]
fn an_outage_of_both_takes_no_more_than_its_time() {
    let plan = plan();
    for good in [[(540, 0), (60, 0)], [(540, 3), (60, 0)], [(54, 0), (6, 0)]] {
        let without = windows_after_outage(&plan, 0, 0, good, good, Verdict::Advance);
        for outage in [4, 20, 240] {
            let after = windows_after_outage(&plan, 2, outage, good, good, Verdict::Advance);
            assert!(
                after <= 20 + without * 3 / 2,
                "{good:?}, {outage} windows: {after} instead of {without}"
            );
        }
    }
}

#[test]
fn harm_that_comes_after_an_outage_is_found() {
    let mut plan = plan();
    plan.step.min_seconds = 100_000;
    let (good, bad) = ([(540, 3), (60, 0)], [(540, 3), (60, 3)]);
    for outage in [4, 20, 240] {
        // The window in which the guard fires has counted against it.
        let after = windows_after_outage(&plan, 4, outage, good, bad, Verdict::Rollback);
        assert!(after <= 60, "{outage} windows: {after}");
    }
}

/// What breaks both is found while it does.
#[test]
fn a_candidate_that_is_worse_in_the_outage_goes_back() {
    let judgement = verdict(&plan(), 40, (540, 100), (60, 45));
    assert_eq!(judgement.verdict, Verdict::Rollback, "{judgement:?}");
}

#[test]
fn an_absolute_limit_aborts_what_the_comparison_tolerates() {
    let mut plan = plan();
    let relative = verdict(&plan, 40, (30, 1), (30, 1));
    assert_eq!(relative.verdict, Verdict::Advance);
    plan.metrics[0].rule = Rule::Compare(Compare {
        abort_above_millionths: 5_000,
        ..Compare::errors()
    });
    let absolute = verdict(&plan, 40, (30, 1), (30, 1));
    assert_eq!(absolute.verdict, Verdict::Rollback, "{absolute:?}");
    // But not for an outage of both.
    let outage = verdict(&plan, 40, (30, 15), (30, 15));
    assert_eq!(outage.verdict, Verdict::CommonMode, "{outage:?}");
}

#[test]
fn a_rollback_that_was_due_stays_due() {
    let plan = plan();
    let windows: Vec<Window> = (0..60)
        .map(|n| window(n * 15, 1, (540, 3), if n < 10 { (60, 6) } else { (60, 0) }))
        .collect();
    let now = plan.closes(59 * 15);
    let mut at_once = Evidence::new(Key::default());
    at_once.update(&plan, &look(now, windows.clone()));
    let mut one_by_one = Evidence::new(Key::default());
    for window in windows {
        one_by_one.update(&plan, &look(plan.closes(window.start), vec![window]));
    }
    assert_eq!(judge(&at_once, &plan, now).verdict, Verdict::Rollback);
    assert_eq!(at_once.to_checkpoint(), one_by_one.to_checkpoint());
}

#[test]
fn what_only_observes_decides_nothing() {
    let mut plan = plan();
    plan.metrics[0].mode = Mode::Observe;
    let judgement = verdict(&plan, 20, (540, 3), (60, 30));
    assert_eq!(judgement.metrics[0].verdict, Verdict::Rollback);
    assert_eq!(judgement.verdict, Verdict::Advance);
    assert_eq!(
        judgement.message,
        "no metric decides: the step has lasted as long as it should"
    );
}

#[test]
fn a_threshold_counts_bad_readings() {
    let threshold = Threshold {
        minimum_millionths: Some(990_000),
        maximum_millionths: None,
        failure_limit: 2,
    };
    assert_eq!(threshold.read(f64::NAN), None);
    assert_eq!(threshold.read(f64::INFINITY), None);
    let mut plan = plan();
    plan.metrics = vec![Metric {
        name: "slo".to_owned(),
        mode: Mode::Enforce,
        rule: Rule::Threshold(threshold.clone()),
    }];
    let mut evidence = Evidence::new(Key::default());
    let mut verdicts = Vec::new();
    for (n, value) in [0.995, 0.5, 0.99, 0.98, 0.999, 0.1].into_iter().enumerate() {
        let start = n as i64 * 15;
        let metrics = BTreeMap::from([("slo".to_owned(), threshold.read(value).unwrap())]);
        let window = Window {
            start,
            epoch: 1,
            metrics,
        };
        let now = plan.closes(start);
        evidence.update(&plan, &look(now, vec![window]));
        verdicts.push(judge(&evidence, &plan, now).verdict);
    }
    use Verdict::{Advance, Continue, Rollback};
    assert_eq!(
        verdicts,
        [Advance, Continue, Advance, Continue, Advance, Rollback]
    );
    let judgement = judge(&evidence, &plan, plan.closes(75));
    assert_eq!(
        judgement.message,
        "slo: 3 of at most 2 readings outside the limits"
    );
    assert_eq!(judge(&evidence, &plan, 10_000).verdict, Rollback);
}

/// Ten minutes in which the candidate never fails, and exceeds the second of two thresholds of this metric far too often.
fn exceeded(metric: Metric) -> Judgement {
    let mut plan = plan();
    let name = metric.name.clone();
    plan.metrics.push(metric);
    let mut evidence = Evidence::new(Key::default());
    let counts = |requests: u64, events: [u64; 2]| Counts {
        requests,
        events: events.to_vec(),
    };
    let mut last = None;
    for n in 0..40 {
        let mut window = window(n * 15, 1, (540, 3), (60, 0));
        let more = Tally {
            stable: counts(540, [100, 30]),
            candidate: counts(60, [11, 9]),
        };
        window.metrics.insert(name.clone(), Observation::Counts(more));
        let now = plan.closes(n * 15);
        evidence.update(&plan, &look(now, vec![window]));
        last = Some(judge(&evidence, &plan, now));
    }
    last.unwrap()
}

#[test]
fn several_metrics_share_alpha_and_must_all_pass() {
    for (counted, above) in [
        (Counted::Latency(vec![1_000, 2_000]), "above 2000 ms"),
        (
            Counted::FirstByte(vec![50, 400]),
            "with the first byte above 400 ms",
        ),
        (Counted::Above(vec![1, 2_000_000_000]), "above 2000"),
        (Counted::Above(vec![50_000, 500_000]), "above 0.5"),
    ] {
        let judgement = exceeded(Metric {
            name: "more".to_owned(),
            rule: Rule::Compare(Compare {
                counted,
                ..Compare::latency(Vec::new())
            }),
            ..Metric::errors()
        });
        assert_eq!(judgement.verdict, Verdict::Rollback);
        assert_eq!(judgement.metrics[0].verdict, Verdict::Advance);
        assert_eq!(
            judgement.message,
            format!(
                "more: the candidate is worse than stable: 360 of 2400 requests {above}, against 1200 of 21600"
            )
        );
    }
}

#[test]
fn the_bake_compares_with_what_stable_showed() {
    let mut plan = plan();
    plan.bakes = true;
    let bake = |candidate: (u64, u64), windows: i64| {
        let (mut evidence, now) = seen(&plan, 40, (540, 3), (60, 0));
        let mut plan = plan.clone();
        plan.step = Step {
            index: 1,
            question: Question::Bake,
            epoch: 2,
            start: now,
            min_seconds: 1_800,
            decide_within_seconds: 3_600,
        };
        evidence.update(&plan, &look(now, vec![]));
        let first = now - now % 15;
        let mut last = judge(&evidence, &plan, now);
        for n in 0..windows {
            let start = first + n * 15;
            let time = plan.closes(start);
            evidence.update(&plan, &look(time, vec![window(start, 2, (0, 0), candidate)]));
            last = judge(&evidence, &plan, time);
        }
        last
    };
    assert_eq!(bake((600, 3), 60).verdict, Verdict::Continue);
    assert_eq!(bake((600, 3), 120).verdict, Verdict::Advance);
    let worse = bake((600, 24), 10);
    assert_eq!(worse.verdict, Verdict::Rollback, "{worse:?}");
    assert_eq!(bake((0, 0), 200).verdict, Verdict::NoData);
}

#[test]
fn a_release_starts_where_its_traffic_can_be_judged() {
    let stable = |rate: f64| Arm {
        requests: 100_000,
        events: (rate * 1e5) as u64,
    };
    for (requests_per_second, rate, step, in_time) in [
        (100.0, 0.005, 0, true),
        (10.0, 0.005, 0, true),
        (2.0, 0.005, 1, true),
        (1.0, 0.02, 1, true),
        (1.0, 0.0, 2, true),
        (0.5, 0.005, 1, false),
        (0.01, 0.005, 1, false),
        (0.0, 0.005, 0, false),
    ] {
        let traffic = Traffic {
            requests_per_second,
            stable: stable(rate),
        };
        let start = starting_step(&DEFAULT_STEPS, Strictness::Standard, &[Metric::errors()], traffic);
        assert_eq!(
            (start.step, start.in_time),
            (step, in_time),
            "{requests_per_second}/s {rate}: {start:?}"
        );
    }
    let traffic = Traffic {
        requests_per_second: 2.0,
        stable: stable(0.005),
    };
    let start = |metrics: &[Metric]| starting_step(&DEFAULT_STEPS, Strictness::Standard, metrics, traffic);
    assert_eq!(
        start(&[Metric::errors()]).message,
        "starts at 10 %: at 2.0 requests/s a verdict takes about 40 min, at 1 % about 2 h; at 25 % about 52 min, for \
         which its 60 min may not suffice"
    );
    assert_eq!(
        start(&[]).message,
        "starts at the first step: errors do not decide"
    );
}

#[test]
fn many_at_once_are_held_for_a_person() {
    let mut breaker = StormBreaker::new(3, 600);
    for (n, release) in ["a", "b", "c"].into_iter().enumerate() {
        assert_eq!(breaker.ask(release, Cause::Evidence, n as i64), Permit::RollBack);
    }
    assert!(breaker.is_open(10));
    assert_eq!(
        breaker.ask("a", Cause::Evidence, 10),
        Permit::RollBack,
        "the same answer again"
    );
    assert_eq!(breaker.ask("d", Cause::Evidence, 10), Permit::Hold);
    assert_eq!(breaker.ask("e", Cause::Hard, 11), Permit::RollBack);
    let text = serde_json::to_string(&breaker).unwrap();
    let mut breaker: StormBreaker = serde_json::from_str(&text).unwrap();
    assert_eq!(
        breaker.ask("d", Cause::Evidence, 5_000),
        Permit::Hold,
        "until somebody looks"
    );
    assert_eq!(breaker.held().collect::<Vec<_>>(), ["d"]);
    assert!(!breaker.is_open(5_000));
    assert_eq!(breaker.ask("f", Cause::Evidence, 5_000), Permit::RollBack);
    assert_eq!(breaker.ask("d", Cause::Hard, 5_001), Permit::RollBack);
    breaker.ask("g", Cause::Evidence, 5_002);
    breaker.ask("h", Cause::Evidence, 5_003);
    breaker.ask("i", Cause::Evidence, 5_003);
    breaker.forget("i");
    assert_eq!(breaker.held().count(), 0);
}

#[test]
fn peers_follow_their_rules() {
    use super::super::peers::{ArgoStyle, FlaggerStyle, PeerVerdict};
    let arm = |requests, events| Arm { requests, events };
    let mut argo = ArgoStyle::new(0.99, 3);
    let verdicts: Vec<_> = (0..5).map(|_| argo.measure(arm(6, 1))).collect();
    assert_eq!(verdicts[2..4], [PeerVerdict::Continue, PeerVerdict::Abort]);
    let mut argo = ArgoStyle::new(0.99, 3);
    let verdicts: Vec<_> = (0..5).map(|_| argo.measure(arm(0, 0))).collect();
    assert_eq!(verdicts[3..], [PeerVerdict::Continue, PeerVerdict::Abort]);
    let mut flagger = FlaggerStyle::new(0.99, 2, 20, 50);
    assert_eq!(flagger.measure(arm(10, 0)), PeerVerdict::Continue);
    assert_eq!(flagger.weight(), 40);
    assert_eq!(flagger.measure(arm(0, 0)), PeerVerdict::Continue);
    assert_eq!(flagger.weight(), 40);
    assert_eq!(flagger.measure(arm(100, 1)), PeerVerdict::Continue);
    assert_eq!(flagger.weight(), 50);
    assert_eq!(flagger.clone().measure(arm(10, 0)), PeerVerdict::Promote);
    assert_eq!(flagger.measure(arm(10, 1)), PeerVerdict::Abort);
}
