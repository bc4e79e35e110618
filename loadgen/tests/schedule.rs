//! One schedule for any number of workers, and figures that are true: seen from the target.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod common;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use common::{Received, Target, constant_rate, plan, run_alone, run_workers, settings};
use flotilla_core::load::plan::LoadPlan;
use flotilla_core::load::result::RunResult;
use flotilla_core::load::schedule::Schedule;
use flotilla_core::load::verdict::{Thresholds, Validity, judge};
use flotilla_core::load::wire::WorkerResult;

/// Repeats a measurement of times that the machine disturbed: it may delay any process by any time, but three times
/// in a row only on behalf of a defect. What does not depend on time must be asserted inside.
fn undisturbed(mut measure: impl FnMut() -> Result<(), String>) {
    static ALONE: parking_lot::Mutex<()> = parking_lot::Mutex::new(());
    let _alone = ALONE.lock();
    let disturbances: Vec<String> = (0..3).map_while(|_| measure().err()).collect();
    assert!(disturbances.len() < 3, "{disturbances:#?}");
}

/// The same seed with 1, 2 and 4 workers sends the same bodies at the same offsets.
#[test]
fn any_number_of_workers_sends_the_same_requests_at_the_same_offsets() {
    let mut bodies = Vec::new();
    for workers in [1, 2, 4] {
        undisturbed(|| {
            let target = Target::echo();
            let batch = serde_json::json!({"size": 6, "delaySeconds": 1, "requests": 12});
            let stages = serde_json::json!([
                {"name": "batches", "type": "Batch", "batch": batch},
                constant_rate("150", 2, "Poisson"),
            ]);
            let mut plan = plan(&target, workers, stages);
            plan.warmup.requests = 5;
            let results: Vec<WorkerResult> = run_workers(&plan).into_iter().map(Result::unwrap).collect();
            let merged = RunResult::merge(workers, plan.requests(), plan.workload_id(), &results);
            assert_eq!(
                (merged.totals().done, merged.totals().failed),
                (312, 0),
                "{workers} workers"
            );

            let (warmup, mut run): (Vec<_>, Vec<_>) = target
                .received()
                .into_iter()
                .partition(|received| received.index.starts_with("warmup-"));
            assert_eq!((warmup.len(), run.len()), (5, 312));
            run.sort_by_key(|received| received.index.parse::<u64>().unwrap());
            bodies.push(
                run.iter()
                    .map(|r| (r.index.clone(), r.body.clone()))
                    .collect::<BTreeMap<_, _>>(),
            );
            arrived_as_scheduled(&plan, &run)
        });
    }
    assert!(bodies.iter().all(|others| *others == bodies[0]));
    assert!(bodies[0].values().any(|body| body.starts_with("order ")));
}

/// Where the requests really arrived, against the offsets of the one schedule. A machine under load only ever
/// delays, so of every worker's share, in every quarter of the run, the quickest ones must be in time.
fn arrived_as_scheduled(plan: &LoadPlan, run: &[Received]) -> Result<(), String> {
    let workers = plan.workers.count as usize;
    let first = run.iter().map(|received| received.arrived).min().unwrap();
    let schedule = Schedule::new(plan).unwrap();
    let late: Vec<i128> = schedule
        .starts()
        .zip(run)
        .map(|(start, r)| (r.arrived - first).as_nanos() as i128 - i128::from(start.offset_nanoseconds))
        .collect();
    let origin = lower(&late, 10);
    if late.iter().any(|late| late - origin < -50_000_000) {
        return Err("a request came early".to_owned());
    }
    for (quarter, chunk) in late.chunks(late.len() / 4).enumerate() {
        for worker in 0..workers {
            let share: Vec<i128> = chunk.iter().skip(worker).step_by(workers).copied().collect();
            let quickest = (lower(&share, 4) - origin) / 1_000_000;
            if quickest >= 50 {
                return Err(format!(
                    "share {worker} of {workers}, quarter {quarter}: {quickest} ms late"
                ));
            }
        }
    }
    Ok(())
}

/// The value below which one of `parts` equal parts of the values lie.
fn lower(values: &[i128], parts: usize) -> i128 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    sorted[sorted.len() / parts]
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
    let mut worst: f64 = 0.0;
    for q in [0.5, 0.95, 0.99] {
        let truth = exact[(q * 900.0f64).ceil() as usize - 1] as f64;
        let merged = run.series.latency.quantile(q).unwrap();
        worst = worst.max((merged / truth - 1.0).abs());
        assert!(
            (merged / truth - 1.0).abs() <= 0.01,
            "p{q}: {merged} against {truth}"
        );
    }
    println!(
        "merged percentiles: at most {:.2} % from the exact",
        100.0 * worst
    );
}

/// A target that stalls is seen to stall, because latency runs from the intended start.
///
/// With `FLOTILLA_FULL=1`: 1 s in every 10 s, 1,000/s, 30 s; p95 within 5 % of 500 ms and p99 within 5 % of 900 ms.
/// That is meant for an optimised build (`--profile image`): a debug build takes 150 ms to work off 1,000 answers.
/// Otherwise a fifth of it in every respect, within 20 %.
#[test]
fn a_stalled_target_is_reported_as_stalled() {
    let full = std::env::var("FLOTILLA_FULL").is_ok_and(|value| value == "1");
    undisturbed(|| match full {
        true => stall(full, Duration::from_secs(10), Duration::from_secs(1), "1000", 30),
        false => stall(full, Duration::from_secs(2), Duration::from_millis(200), "200", 6),
    });
}

/// Stalls for the last `stall` of every `period`, a tenth of it, and compares p95 with half of the stall and p99 with
/// nine tenths of it.
fn stall(full: bool, period: Duration, stall: Duration, rate: &str, seconds: u32) -> Result<(), String> {
    let tolerance = if full { 0.05 } else { 0.2 };
    let epoch = Instant::now();
    let target = Target::start(move |_| async move {
        let into = Duration::from_nanos((epoch.elapsed().as_nanos() % period.as_nanos()) as u64);
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
    let (p50, p95, p99) = (reported(0.5), reported(0.95), reported(0.99));
    let figures = format!("stalled target: p50 {p50:.1} ms, p95 {p95:.1} ms, p99 {p99:.1} ms");
    println!("{figures}");
    let stall = stall.as_secs_f64() * 1000.0;
    let near = |reported: f64, truth: f64| (reported / truth - 1.0).abs() <= tolerance;
    // Both are impossible for a generator that omits what it could not send, on any machine.
    assert!(
        p95 >= 0.5 * stall * (1.0 - tolerance) && p99 >= 0.9 * stall * (1.0 - tolerance),
        "{figures}"
    );
    if near(p95, 0.5 * stall) && near(p99, 0.9 * stall) && p50 < 0.1 * stall {
        return Ok(());
    }
    // Too busy a machine makes the figures larger. The verdict knows: such a run is Invalid.
    let run = RunResult::merge(1, plan.requests(), plan.workload_id(), &[result]);
    let validity = Validity {
        min_coverage_percent: 99,
        stopped: false,
    };
    let judgement = judge(&run, &Thresholds::default(), &validity);
    match judgement.reason.as_str() {
        "GeneratorLate" if !full => {
            println!("{}", judgement.message);
            Ok(())
        }
        _ => Err(figures),
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
