//! The spec as the metrics that judge a candidate.

use flotilla_crds::AgentPoolSpec;
use flotilla_crds::agent_pool::{self as api, Analysis, AnalysisMode, LatencyAnalysis};
use flotilla_crds::sourced_metric::SourcedMetric;

use crate::evidence::{Compare, Counted, Metric, Mode, Rule, Strictness, Threshold};

fn mode(mode: AnalysisMode) -> Mode {
    match mode {
        AnalysisMode::Enforce => Mode::Enforce,
        AnalysisMode::Observe => Mode::Observe,
    }
}

/// A metric whose numbers come from another source; none if it says nothing to judge by, which the schema does not let through.
pub fn sourced(metric: &SourcedMetric) -> Option<Metric> {
    let limit = |text: &Option<String>| {
        let value: f64 = text.as_deref()?.parse().ok()?;
        Some((value * 1e6).round() as i64)
    };
    let above = |text: &String| Some((text.parse::<f64>().ok()? * 1e6).round() as u64);
    let rule = match (&metric.counts, &metric.threshold) {
        (Some(counts), _) => Rule::Compare(Compare {
            counted: match counts.thresholds.as_slice() {
                [] => Counted::Events,
                thresholds => Counted::Above(thresholds.iter().map(above).collect::<Option<_>>()?),
            },
            tolerate_worse_percent: u32::try_from(counts.tolerate_worse_percent).unwrap_or_default(),
            acceptable_millionths: millionths(&counts.acceptable_percent),
            ..Compare::errors()
        }),
        (None, Some(threshold)) => Rule::Threshold(Threshold {
            minimum_millionths: limit(&threshold.minimum),
            maximum_millionths: limit(&threshold.maximum),
            failure_limit: u32::try_from(threshold.failure_limit).unwrap_or_default(),
        }),
        (None, None) => return None,
    };
    Some(Metric {
        name: metric.name.clone(),
        mode: mode(metric.mode),
        rule,
    })
}

/// A metric whose requests take longer than each of some times.
fn timed(name: &str, time: &LatencyAnalysis, counted: fn(Vec<u64>) -> Counted) -> Metric {
    let thresholds = time.thresholds_milliseconds.iter();
    let thresholds = thresholds.filter_map(|threshold| u64::try_from(*threshold).ok());
    Metric {
        name: name.to_owned(),
        mode: mode(time.mode),
        rule: Rule::Compare(Compare {
            counted: counted(thresholds.collect()),
            tolerate_worse_percent: percent(time.tolerate_worse_percent),
            ..Compare::latency(Vec::new())
        }),
    }
}

fn percent(number: i32) -> u32 {
    u32::try_from(number).unwrap_or_default()
}

fn metrics(analysis: &Analysis) -> Vec<Metric> {
    let errors = &analysis.errors;
    let mut metrics = vec![Metric {
        name: "errors".to_owned(),
        mode: mode(errors.mode),
        rule: Rule::Compare(Compare {
            tolerate_worse_percent: percent(errors.tolerate_worse_percent),
            acceptable_millionths: millionths(&errors.acceptable_error_percent),
            abort_above_millionths: errors.abort_above_percent.as_deref().map_or(0, millionths),
            ..Compare::errors()
        }),
    }];
    metrics.extend(analysis.metrics.iter().filter_map(sourced));
    let latency = analysis.latency.as_ref();
    metrics.extend(latency.map(|time| timed("latency", time, Counted::Latency)));
    let first_byte = analysis.first_byte.as_ref();
    metrics.extend(first_byte.map(|time| timed("firstByte", time, Counted::FirstByte)));
    metrics
}

/// What a release is judged by: nothing that the gateways count where they do not see the requests.
pub fn judged(spec: &AgentPoolSpec) -> Vec<Metric> {
    let mut metrics = metrics(&spec.rollout.analysis());
    if !spec.traffic.is_counted() {
        let is_of_gateways = |rule: &Rule| match rule {
            Rule::Compare(compare) => matches!(
                compare.counted,
                Counted::Errors | Counted::Latency(_) | Counted::FirstByte(_)
            ),
            Rule::Threshold(_) => false,
        };
        metrics.retain(|metric| !is_of_gateways(&metric.rule));
    }
    metrics
}

/// A percentage like `0.5`, which the schema has checked, in millionths of a whole.
fn millionths(percent: &str) -> u32 {
    let percent: f64 = percent.parse().unwrap_or_default();
    (percent * 10_000.0).round().clamp(0.0, 1_000_000.0) as u32
}

/// How sure a verdict must be.
pub fn strictness(spec: &AgentPoolSpec) -> Strictness {
    match spec.rollout.analysis().strictness {
        api::Strictness::Relaxed => Strictness::Relaxed,
        api::Strictness::Standard => Strictness::Standard,
        api::Strictness::Strict => Strictness::Strict,
    }
}
