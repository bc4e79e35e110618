//! One schedule for any number of workers, and figures that are true: seen from the target.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod common;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use common::{Target, constant_rate, plan, run_alone, run_workers, settings};
use flotilla_core::load::result::RunResult;
use flotilla_core::load::schedule::Schedule;
use flotilla_core::load::wire::WorkerResult;

/// The same seed with 1, 2 and 4 workers sends the same bodies at the same offsets.
#[test]
fn any_number_of_workers_sends_the_same_requests_at_the_same_offsets() {
    let stages = || {
        serde_json::json!([
            {"name": "batches", "type": "Batch", "batch": {"size": 6, "delaySeconds": 1, "requests": 12}},
            constant_rate("150", 2, "Poisson"),
        ])
    };
    let mut bodies = Vec::new();
    for workers in [1, 2, 4] {
        let target = Target::echo();
        let mut plan = plan(&target, workers, stages());
        plan.warmup.requests = 5;
        let results: Vec<WorkerResult> = run_workers(&plan).into_iter().map(Result::unwrap).collect();
        let run = RunResult::merge(workers, plan.requests(), plan.workload_id(), &results);
        assert_eq!(
            (run.totals().done, run.totals().failed),
            (312, 0),
            "{workers} workers"
        );

        let received = target.received();
        let (warmup, mut run): (Vec<_>, Vec<_>) =
            received.into_iter().partition(|r| r.index.starts_with("warmup-"));
        assert_eq!(warmup.len(), 5);
        run.sort_by_key(|received| received.index.parse::<u64>().unwrap());
        bodies.push(
            run.iter()
                .map(|r| (r.index.clone(), r.body.clone()))
                .collect::<BTreeMap<_, _>>(),
        );
        assert_eq!(run.len(), 312);

        // Where the requests really arrived, against the offsets of the one schedule. The common origin is
        // unknown to the target: take the median difference for it. A machine under load delays some; most
        // must be within a few milliseconds.
        let schedule = Schedule::new(&plan).unwrap();
        let first = run[0].arrived;
        let mut differences: Vec<i128> = schedule
            .starts()
            .zip(&run)
            .map(|(start, received)| {
                let arrived = received
                    .arrived
                    .checked_duration_since(first)
                    .map_or(0, |since| since.as_nanos() as i128);
                arrived - i128::from(start.offset_nanoseconds)
            })
            .collect();
        differences.sort_unstable();
        let median = differences[differences.len() / 2];
        let near = differences
            .iter()
            .filter(|difference| (**difference - median).abs() < 20_000_000)
            .count();
        assert!(
            near * 10 >= differences.len() * 8,
            "{workers} workers: {near} of {} in time",
            differences.len()
        );
    }
    assert_eq!(bodies[0], bodies[1]);
    assert_eq!(bodies[0], bodies[2]);
    assert!(bodies[0].values().any(|body| body.starts_with("order ")));
}

/// Merged p50, p95 and p99 are within 1 % of the exact values over all samples of all workers.
#[test]
fn merged_percentiles_are_within_one_percent_of_all_samples() {
    let target = Target::start(|request| async move {
        // A spread of latencies that depends on the request alone.
        let index: u64 = request.headers()["x-flotilla-request"]
            .to_str()
            .unwrap()
            .parse()
            .unwrap_or(0);
        tokio::time::sleep(Duration::from_millis((index * index) % 97)).await;
        common::answer(http::StatusCode::OK, "text/plain", "ok")
    });
    let plan = plan(
        &target,
        2,
        serde_json::json!([constant_rate("300", 3, "Uniform")]),
    );
    let folder = std::env::temp_dir().join(format!("flotilla-samples-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let coordinator = common::free_address();
    let workers: Vec<_> = (0..2)
        .map(|index| {
            let mut settings = settings(&plan, index, coordinator);
            settings.samples = Some(folder.join(index.to_string()));
            std::thread::spawn(move || run_alone(settings).unwrap())
        })
        .collect();
    let messages: Vec<String> = workers
        .into_iter()
        .map(|worker| worker.join().unwrap().to_message())
        .collect();
    let results: Vec<WorkerResult> = messages
        .iter()
        .map(|message| WorkerResult::from_message(message).unwrap())
        .collect();
    let run = RunResult::merge(2, plan.requests(), plan.workload_id(), &results);

    let mut exact: Vec<u64> = Vec::new();
    for index in 0..2 {
        let csv = std::fs::read_to_string(folder.join(index.to_string())).unwrap();
        let column = csv
            .lines()
            .next()
            .unwrap()
            .split(',')
            .position(|name| name == "latency_us")
            .unwrap();
        exact.extend(
            csv.lines()
                .skip(1)
                .map(|line| line.split(',').nth(column).unwrap().parse::<u64>().unwrap()),
        );
    }
    std::fs::remove_dir_all(&folder).unwrap();
    exact.sort_unstable();
    assert_eq!(exact.len(), 900);
    for q in [0.5, 0.95, 0.99] {
        let truth = exact[(q * 900.0f64).ceil() as usize - 1] as f64;
        let merged = run.series.latency.quantile(q).unwrap();
        assert!(
            (merged / truth - 1.0).abs() <= 0.01,
            "p{q}: {merged} against {truth}"
        );
    }
}

/// A target that stalls is seen to stall, because latency runs from the intended start.
///
/// With `FLOTILLA_FULL=1`: 1 s in every 10 s, 1,000/s, 30 s; p95 within 5 % of 500 ms and p99 within 5 % of 900 ms.
/// Otherwise a fifth of it in every respect, against what the target itself saw.
#[test]
fn a_stalled_target_is_reported_as_stalled() {
    let full = std::env::var("FLOTILLA_FULL").is_ok_and(|value| value == "1");
    let (period, stall, rate, seconds) = match full {
        true => (Duration::from_secs(10), Duration::from_secs(1), "1000", 30),
        false => (Duration::from_secs(2), Duration::from_millis(200), "200", 6),
    };
    let epoch = Instant::now();
    let target = Target::start(move |_| async move {
        let into = Duration::from_nanos((epoch.elapsed().as_nanos() % period.as_nanos()) as u64);
        // The stall is at the end of each period; it ends for all at once.
        if into >= period - stall {
            tokio::time::sleep(period - into).await;
        }
        common::answer(http::StatusCode::OK, "text/plain", "ok")
    });
    let plan = plan(
        &target,
        1,
        serde_json::json!([constant_rate(rate, seconds, "Uniform")]),
    );
    let result = run_workers(&plan).remove(0).unwrap();
    assert_eq!(
        (result.stages[0].done, result.stages[0].failed),
        (plan.requests(), 0)
    );
    let reported = |q| result.series.latency.quantile(q).unwrap() / 1000.0;
    let stall_ms = stall.as_secs_f64() * 1000.0;
    let (p95, p99) = (reported(0.95), reported(0.99));
    println!(
        "stalled target: p50 {:.1} ms, p95 {p95:.1} ms, p99 {p99:.1} ms",
        reported(0.5)
    );
    if full {
        assert!((p95 / 500.0 - 1.0).abs() <= 0.05, "p95 {p95} ms, 500 ms expected");
        assert!((p99 / 900.0 - 1.0).abs() <= 0.05, "p99 {p99} ms, 900 ms expected");
    } else {
        // Requests that a stalled target delays must show: no less than the target itself saw. A busy machine adds
        // its own delays to that, which the generator's lateness shows in part.
        let mut waits: Vec<f64> = target
            .received()
            .iter()
            .map(|r| (r.answered - r.arrived).as_secs_f64() * 1000.0)
            .collect();
        waits.sort_by(f64::total_cmp);
        let seen = |q: f64| waits[(q * waits.len() as f64).ceil() as usize - 1];
        let slack = result.series.lateness.quantile(0.99).unwrap() / 1000.0 + stall_ms / 2.0;
        for (name, reported, truth, ideal) in [("p95", p95, seen(0.95), 0.5), ("p99", p99, seen(0.99), 0.9)] {
            let highest = truth.max(ideal * stall_ms) + slack;
            assert!(
                reported >= truth * 0.95 && reported <= highest,
                "{name} {reported} ms, {truth} ms seen"
            );
        }
        assert!(reported(0.5) < stall_ms / 4.0, "p50 {} ms", reported(0.5));
    }
}

/// With one place below `maxInFlight` the wait for it is latency, and the reason when the time runs out.
#[test]
fn waiting_for_a_place_is_part_of_the_latency() {
    let target = Target::start(|_| async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        common::answer(http::StatusCode::OK, "text/plain", "ok")
    });
    let mut plan = plan(
        &target,
        1,
        serde_json::json!([{"name": "s", "type": "ConstantRate", "constantRate":
            {"perSecond": "20", "seconds": 1, "arrival": "Uniform", "maxInFlight": 1}}]),
    );
    plan.requests.timeout_milliseconds = 700;
    let result = run_workers(&plan).remove(0).unwrap();
    assert_eq!(result.stages[0].done, 20);
    let out_of_time = result
        .errors
        .get(flotilla_core::load::result::ErrorCategory::InFlightLimit);
    assert!(out_of_time >= 3, "{out_of_time} ran out of time waiting");
    assert_eq!(result.stages[0].failed, out_of_time);
    assert!(result.series.queue_delay.quantile(0.8).unwrap() > 300_000.0);
    assert!(result.series.service.quantile(0.5).unwrap() < 300_000.0);
    assert!(result.series.lateness.quantile(0.5).unwrap() < 50_000.0);
}
