//! The objects of one LoadTest, one module per kind.

pub mod config_map;
pub mod job;
pub mod service;

use std::collections::BTreeMap;

use flotilla_crds::{LoadTest, names};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt as _;

use crate::runtime::owned_by;

/// Annotation with the workload's hash, on everything that belongs to one run.
pub const WORKLOAD: &str = "flotilla.dev/workload";
/// Annotation on worker pods with the LoadTest's UID, so that pods of an earlier test of the same name are told apart.
pub const LOAD_TEST_UID: &str = "flotilla.dev/loadtest-uid";

/// Name of the Job.
pub fn job_name(load_test: &str) -> String {
    load_test.to_owned()
}

/// Name of the ConfigMap with the plan.
pub fn plan_name(load_test: &str) -> String {
    format!("{load_test}-plan")
}

/// Name of the ConfigMap with the results.
pub fn result_name(load_test: &str) -> String {
    format!("{load_test}-result")
}

/// Name of the Service in front of worker 0.
pub fn coordinator_name(load_test: &str) -> String {
    format!("{load_test}-coordinator")
}

fn labels(load_test: &LoadTest) -> BTreeMap<String, String> {
    BTreeMap::from([
        (names::APP_NAME.to_owned(), "flotilla-loadgen".to_owned()),
        (names::MANAGED_BY.to_owned(), names::MANAGER.to_owned()),
        (names::LOAD_TEST.to_owned(), load_test.name_any()),
    ])
}

fn metadata(load_test: &LoadTest, name: String, workload: &str) -> ObjectMeta {
    ObjectMeta {
        name: Some(name),
        namespace: load_test.namespace(),
        labels: Some(labels(load_test)),
        annotations: Some(BTreeMap::from([(WORKLOAD.to_owned(), workload.to_owned())])),
        owner_references: Some(vec![owned_by(load_test)]),
        ..ObjectMeta::default()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::json;

    use super::*;

    /// A LoadTest of pool `support` with two workers.
    pub fn load_test() -> LoadTest {
        serde_json::from_value(json!({
            "metadata": {"name": "steady", "namespace": "shop", "uid": "u-1", "generation": 1},
            "spec": {
                "target": {"poolRef": {"name": "support"}},
                "workers": {"count": 2},
                "scenarios": [{"name": "a", "prompt": {"text": "order {{order}}"}}],
                "stages": [{"name": "steady", "type": "ConstantRate", "constantRate": {"perSecond": "5", "seconds": 60}}],
                "thresholds": {"p95Milliseconds": 4000},
            },
        }))
        .unwrap()
    }

    #[test]
    fn names_of_the_longest_test_fit() {
        let longest = "a".repeat(names::POOL_NAME_MAX);
        for name in [
            job_name(&longest),
            plan_name(&longest),
            result_name(&longest),
            coordinator_name(&longest),
        ] {
            assert!(name.len() <= 63, "{name}");
        }
    }

    #[test]
    fn everything_belongs_to_the_test_and_says_to_which_run() {
        let metadata = metadata(&load_test(), "steady-plan".into(), "sha256:1");
        let owners = metadata.owner_references.unwrap();
        assert_eq!(
            (owners.len(), owners[0].uid.as_str(), owners[0].controller),
            (1, "u-1", Some(true))
        );
        assert_eq!(metadata.annotations.unwrap()[WORKLOAD], "sha256:1");
        assert_eq!(metadata.labels.unwrap()[names::LOAD_TEST], "steady");
    }
}
