//! Metrics of pools and their revisions, read from the cached status at the time of the scrape.
//!
//! They are the only series of the operator whose number grows with the number of objects: four for each revision that serves or is
//! released, and a handful more while a release is judged. Nothing is kept for them, and the series of a pool that is gone are
//! gone. Only the leader shows them, so that no sum counts them twice.

use std::fmt;
use std::sync::{Arc, Weak};

use flotilla_crds::AgentPool;
use flotilla_crds::common::{condition, find};
use kube::ResourceExt as _;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::runtime::Cache;
use crate::runtime::manager::Context;

/// Shows what the status of all pools says.
pub struct PoolMetrics {
    /// The pools.
    pub pools: Cache<AgentPool>,
    /// Tells whether this replica leads. Weak: the context holds the registry that holds this.
    pub context: Weak<Context>,
}

impl fmt::Debug for PoolMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PoolMetrics({:?})", self.pools)
    }
}

/// A label and its value.
type Label = (&'static str, String);

/// One number of one pool.
#[derive(Clone, Debug, PartialEq)]
struct Sample {
    family: usize,
    labels: Vec<Label>,
    value: f64,
}

/// Names and what they say, in the order of the exposition.
const FAMILIES: [(&str, &str); 8] = [
    (
        "flotilla_pool_ready",
        "1 if the pool is Ready, else 0; the reason is that of the condition",
    ),
    (
        "flotilla_revision_weight_percent",
        "The weight asked for: of new requests, or with traffic.type ReplicaRatio of the replicas",
    ),
    ("flotilla_revision_replicas", "Replicas that exist"),
    ("flotilla_revision_ready_replicas", "Replicas that are ready"),
    (
        "flotilla_release_measured_weight_percent",
        "The candidate's share of the requests counted at this step, or of the ready replicas",
    ),
    (
        "flotilla_release_evidence_percent",
        "Evidence of what is needed, by metric, for going on (advance) and for leading back (rollback)",
    ),
    (
        "flotilla_release_step_requests",
        "Requests counted at this step, by metric",
    ),
    (
        "flotilla_release_duration_seconds",
        "How long the newest release that has ended took, pauses and approvals included",
    ),
];

impl Collector for PoolMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let leads = self
            .context
            .upgrade()
            .is_some_and(|context| context.leadership.is_leader());
        let pools = if leads { self.pools.list() } else { Vec::new() };
        let samples: Vec<Sample> = pools.iter().flat_map(samples).collect();
        for (index, (name, help)) in FAMILIES.iter().enumerate() {
            let mut of_family = samples.iter().filter(|sample| sample.family == index).peekable();
            if of_family.peek().is_none() {
                continue;
            }
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for sample in of_family {
                ConstGauge::new(sample.value).encode(family.encode_family(&sample.labels)?)?;
            }
        }
        Ok(())
    }
}

/// What one pool's status says.
fn samples(pool: &Arc<AgentPool>) -> Vec<Sample> {
    let Some(status) = &pool.status else {
        return Vec::new();
    };
    let of_pool = [
        ("namespace", pool.namespace().unwrap_or_default()),
        ("pool", pool.name_any()),
    ];
    let with = |more: Vec<Label>| of_pool.iter().cloned().chain(more).collect::<Vec<_>>();
    let mut samples = Vec::new();
    let mut add = |family: usize, labels: Vec<Label>, value: f64| {
        samples.push(Sample {
            family,
            labels: with(labels),
            value,
        });
    };
    if let Some(ready) = find(&status.conditions, condition::READY) {
        let value = f64::from(u8::from(ready.status == "True"));
        add(0, vec![("reason", ready.reason.clone())], value);
    }
    let stable = status
        .stable
        .as_ref()
        .map(|stable| ("stable", &stable.revision, stable.replicas, stable.ready_replicas));
    let candidate = status.candidate.as_ref().map(|candidate| {
        (
            "candidate",
            &candidate.revision,
            candidate.replicas,
            candidate.ready_replicas,
        )
    });
    for (role, revision, replicas, ready) in stable.into_iter().chain(candidate) {
        let share = status.traffic.iter().find(|share| share.revision == *revision);
        let labels = vec![("revision", revision.clone()), ("role", role.to_owned())];
        add(
            1,
            labels.clone(),
            f64::from(share.map_or(0, |share| share.weight)),
        );
        add(2, labels.clone(), f64::from(replicas));
        add(3, labels, f64::from(ready));
    }
    if let Some(last) = &status.last_release
        && let (Some(start), Some(end)) = (&last.start_time, &last.completion_time)
    {
        let labels = vec![
            ("revision", last.revision.clone()),
            ("result", last.result.clone()),
        ];
        add(7, labels, end.0.duration_since(start.0).as_secs_f64());
    }
    let (Some(candidate), Some(rollout)) = (&status.candidate, &status.rollout) else {
        return samples;
    };
    let revision = || ("revision", candidate.revision.clone());
    let measured = rollout.measured_weight_percent.as_deref();
    if let Some(measured) = measured.and_then(|text| text.parse().ok()) {
        add(4, vec![revision()], measured);
    }
    for metric in &rollout.metrics {
        let name = || ("metric", metric.name.clone());
        for (direction, percent) in [
            ("advance", metric.advance_percent),
            ("rollback", metric.rollback_percent),
        ] {
            let labels = vec![revision(), name(), ("direction", direction.to_owned())];
            add(5, labels, f64::from(percent));
        }
        for (role, counts) in [("candidate", &metric.candidate), ("stable", &metric.stable)] {
            if let Some(counts) = counts {
                let labels = vec![revision(), name(), ("role", role.to_owned())];
                add(6, labels, counts.requests as f64);
            }
        }
    }
    samples
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::Duration;

    use super::super::trial::Trials;
    use super::super::trial::ask::Network;
    use super::super::trial::runner::Runner;
    use super::super::trial::sitting::State;
    use super::*;
    use crate::metrics::EventOutcome;
    use serde_json::{Value, json};

    fn shown(status: Value) -> Vec<String> {
        let pool: AgentPool = serde_json::from_value(json!({
            "apiVersion": "flotilla.dev/v1alpha1", "kind": "AgentPool",
            "metadata": {"namespace": "shop", "name": "support"}, "spec": {"agent": {"image": "a"}}, "status": status,
        }))
        .unwrap();
        let samples = samples(&Arc::new(pool));
        samples
            .iter()
            .map(|sample| {
                let labels: Vec<_> = sample
                    .labels
                    .iter()
                    .map(|(name, value)| format!("{name}={value}"))
                    .collect();
                let name = FAMILIES[sample.family].0;
                format!(
                    "{}{{{}}} {}",
                    name.trim_start_matches("flotilla_"),
                    labels[2..].join(","),
                    sample.value
                )
            })
            .collect()
    }

    /// Names in the first column of a table of the page Metrics, without what a counter's has at its end.
    fn documented(heading: &str) -> BTreeSet<String> {
        let page = include_str!("../../../docs/src/operations/metrics.md");
        let (_, section) = page.split_once(heading).unwrap();
        let section = section.split("\n## ").next().unwrap();
        let columns = section
            .lines()
            .filter_map(|line| line.strip_prefix("| `")?.split(" | ").next());
        let names = columns.flat_map(|column| column.split(", ").map(|name| name.trim_matches('`')));
        names
            .map(|name| name.trim_end_matches("_total").to_owned())
            .collect()
    }

    #[tokio::test(start_paused = true)]
    async fn the_page_names_every_metric_and_no_other() {
        let mut manager = crate::fakecluster::FakeCluster::new().manager();
        let settings = crate::Settings {
            gateway_image: "gateway:1".into(),
            loadgen_image: "loadgen:1".into(),
            gateway_replicas: 2,
            upgrade_parallelism: 2,
            gateway_env: Vec::new(),
            metric_sources: Default::default(),
        };
        crate::register(&mut manager, &settings, crate::Network::default());
        // What has never happened is not shown.
        let metrics = manager.metrics();
        metrics.set_leader("lease", true);
        metrics.request(&http::Method::GET, "GET", Some(200), Duration::from_millis(3));
        metrics.request_retry("GET");
        metrics.watch_error("Pod");
        metrics.relist("Pod");
        metrics.event(EventOutcome::Sent);
        metrics.controller("agentpool", 16).failed("Conflict");
        let trials = Trials::new(Runner::new(Arc::new(Network::default())), metrics);
        trials.count("HTTP", State::Passed);
        let text = metrics.encode();
        let types = text
            .lines()
            .filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
        let pools = FAMILIES.iter().map(|(name, _)| *name);
        let shown: BTreeSet<String> = types.chain(pools).map(str::to_owned).collect();
        assert_eq!(shown, documented("## Operator"));
    }

    #[test]
    fn a_release_shows_both_revisions_and_its_evidence() {
        let status = json!({
            "observedGeneration": 1,
            "conditions": [{"type": "Ready", "status": "False", "reason": "Judging", "message": "", "lastTransitionTime": "2026-11-21T10:00:00Z"}],
            "stable": {"revision": "support-1", "replicas": 4, "readyReplicas": 4},
            "candidate": {"revision": "support-2", "replicas": 2, "readyReplicas": 1, "weight": 10},
            "lastRelease": {
                "revision": "support-1", "result": "Promoted",
                "startTime": "2026-11-21T09:00:00Z", "completionTime": "2026-11-21T09:12:30Z",
            },
            "traffic": [{"revision": "support-1", "weight": 90}, {"revision": "support-2", "weight": 10}],
            "rollout": {"measuredWeightPercent": "9.8", "metrics": [{
                "name": "errors", "verdict": "Continue", "advancePercent": 41, "rollbackPercent": 3,
                "candidate": {"requests": 48, "events": 1},
            }]},
        });
        assert_eq!(
            shown(status),
            [
                "pool_ready{reason=Judging} 0",
                "revision_weight_percent{revision=support-1,role=stable} 90",
                "revision_replicas{revision=support-1,role=stable} 4",
                "revision_ready_replicas{revision=support-1,role=stable} 4",
                "revision_weight_percent{revision=support-2,role=candidate} 10",
                "revision_replicas{revision=support-2,role=candidate} 2",
                "revision_ready_replicas{revision=support-2,role=candidate} 1",
                "release_duration_seconds{revision=support-1,result=Promoted} 750",
                "release_measured_weight_percent{revision=support-2} 9.8",
                "release_evidence_percent{revision=support-2,metric=errors,direction=advance} 41",
                "release_evidence_percent{revision=support-2,metric=errors,direction=rollback} 3",
                "release_step_requests{revision=support-2,metric=errors,role=candidate} 48",
            ]
        );
        assert!(shown(json!({"observedGeneration": -1})).is_empty());
    }
}
