//! The result on a terminal.

use std::fmt::Write;

use flotilla_core::load::plan::LoadPlan;
use flotilla_core::load::result::RunResult;

/// The summary as JSON, in the shape of a LoadTest's `status.summary`, with the coverage beside it.
pub fn json(plan: &LoadPlan, run: &RunResult) -> String {
    serde_json::json!({
        "name": plan.name,
        "workload": plan.workload_hash(),
        "coveragePercent": run.coverage_percent().to_string(),
        "startSkewMilliseconds": run.start_skew_microseconds.div_ceil(1000),
        "summary": run.summary(None),
    })
    .to_string()
}

/// The summary as a table.
pub fn text(plan: &LoadPlan, run: &RunResult) -> String {
    let summary = run.summary(None);
    let requests = summary.requests;
    let mut out = format!(
        "{}: {} of {} planned requests measured ({:.1} %), {} succeeded, {} failed, {} retries\n",
        plan.name,
        requests.total,
        run.planned,
        run.coverage_percent(),
        requests.succeeded,
        requests.failed,
        requests.retries
    );
    for error in &summary.errors {
        let _ = writeln!(out, "  {:<14} {:>8}", error.category.as_str(), error.count);
    }
    let _ = writeln!(
        out,
        "\n{:<14} {:>8} {:>8} {:>8} {:>8} {:>8}",
        "milliseconds", "p50", "p90", "p95", "p99", "max"
    );
    let series = &run.series;
    for (name, series) in [
        ("latency", &series.latency),
        ("first token", &series.first_token),
        ("token gap", &series.inter_token_gap),
        ("service time", &series.service),
        ("queue delay", &series.queue_delay),
        ("lateness", &series.lateness),
    ] {
        if !series.is_empty() {
            let _ = write!(out, "{name:<14}");
            for q in [0.5, 0.9, 0.95, 0.99, 1.0] {
                let _ = write!(out, " {:>8.1}", series.quantile(q).unwrap_or(0.0) / 1000.0);
            }
            out.push('\n');
        }
    }
    if let Some(tokens) = summary.tokens {
        let _ = writeln!(
            out,
            "\ntokens: {} in, {} out, reported by {} answers",
            tokens.input, tokens.output, tokens.reported
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use flotilla_core::load::result::{ErrorCategory, Series, StageCounts};
    use flotilla_core::load::wire::WorkerResult;

    use super::*;

    #[test]
    fn both_forms_name_the_figures() {
        let plan: LoadPlan = serde_json::from_value(serde_json::json!({
            "name": "smoke", "seed": 1, "target": {"url": "http://t", "protocol": "HTTP"},
            "scenarios": [{"name": "a", "weight": 1, "prompt": "x"}],
            "stages": [{"name": "s", "type": "Batch", "batch": {"size": 2, "delaySeconds": 1, "requests": 2}}],
        }))
        .unwrap();
        let mut result = WorkerResult {
            workers: 1,
            workload: plan.workload_id(),
            stages: vec![StageCounts {
                planned: 2,
                started: 2,
                done: 2,
                failed: 1,
            }],
            series: Series {
                latency: [10_000, 20_000].into_iter().collect(),
                ..Series::default()
            },
            ..WorkerResult::default()
        };
        result.errors.add(ErrorCategory::Timeout, 1);
        let run = RunResult::merge(1, 2, plan.workload_id(), &[result]);
        let text = text(&plan, &run);
        assert!(
            text.contains("smoke: 2 of 2 planned requests measured (100.0 %), 1 succeeded, 1 failed"),
            "{text}"
        );
        assert!(text.contains("Timeout") && text.contains("latency"), "{text}");
        let json: serde_json::Value = serde_json::from_str(&json(&plan, &run)).unwrap();
        assert_eq!(json["summary"]["latency"]["maxMilliseconds"], 20);
        assert_eq!(json["coveragePercent"], "100");
    }
}
