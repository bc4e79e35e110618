//! The ConfigMaps of a LoadTest: the plan, for the workers, and the results.
//!
//! The cache holds metadata of ConfigMaps only, so what decisions need of the result is written into its annotations too:
//! which workers' results are in it, and whether it has been judged.

use std::collections::{BTreeMap, BTreeSet};

use flotilla_core::load::plan::LoadPlan;
use flotilla_crds::{LoadTest, names};
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt as _;
use serde_json::{Value, json};

use super::{metadata, plan_name, result_name};

/// Annotation with the workers whose results are in the ConfigMap, as `0,2,5`.
pub const HARVESTED: &str = "flotilla.dev/harvested";
/// Annotation with the verdict once the merged result is in the ConfigMap.
pub const JUDGED: &str = "flotilla.dev/judged";
/// Key of the merged result.
pub const RESULT_KEY: &str = "result.json";
/// Prefix of the keys with one worker's message each.
const WORKER_PREFIX: &str = "worker-";
/// What a ConfigMap holds, less some room for its keys.
const MAX_PLAN: usize = (1 << 20) - 4096;

/// The immutable ConfigMap with the plan.
///
/// # Errors
/// A sentence when the plan does not fit into a ConfigMap.
pub fn plan(load_test: &LoadTest, plan: &LoadPlan) -> Result<ConfigMap, String> {
    let text = serde_json::to_string(plan).map_err(|error| format!("the plan cannot be written: {error}"))?;
    if text.len() > MAX_PLAN {
        return Err(format!(
            "the plan with all its prompts has {} bytes and a ConfigMap holds 1 MiB; shorten the prompts",
            text.len()
        ));
    }
    Ok(ConfigMap {
        metadata: metadata(load_test, plan_name(&load_test.name_any()), &plan.workload_hash()),
        data: Some(BTreeMap::from([(names::PLAN_KEY.to_owned(), text)])),
        immutable: Some(true),
        binary_data: None,
    })
}

/// The ConfigMap for the results, without any.
pub fn result(load_test: &LoadTest, workload: &str) -> ConfigMap {
    ConfigMap {
        metadata: metadata(load_test, result_name(&load_test.name_any()), workload),
        ..ConfigMap::default()
    }
}

/// The workers whose results are in a result ConfigMap.
pub fn harvested(metadata: &ObjectMeta) -> BTreeSet<u32> {
    let text = metadata
        .annotations
        .as_ref()
        .and_then(|annotations| annotations.get(HARVESTED));
    text.iter()
        .flat_map(|text| text.split(','))
        .filter_map(|index| index.trim().parse().ok())
        .collect()
}

/// Whether a result ConfigMap holds the merged result.
pub fn is_judged(metadata: &ObjectMeta) -> bool {
    metadata
        .annotations
        .as_ref()
        .is_some_and(|annotations| annotations.contains_key(JUDGED))
}

/// The patch that adds workers' messages; `before` are those already there.
pub fn harvest_patch(before: &BTreeSet<u32>, messages: &BTreeMap<u32, String>) -> Value {
    let all: BTreeSet<u32> = before.iter().chain(messages.keys()).copied().collect();
    let list = all.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
    let data: BTreeMap<String, &String> = messages
        .iter()
        .map(|(index, message)| (format!("{WORKER_PREFIX}{index}"), message))
        .collect();
    json!({"metadata": {"annotations": {HARVESTED: list}}, "data": data})
}

/// The patch that adds the merged result and closes the ConfigMap for good.
pub fn judged_patch(verdict: &str, result: &Value) -> Value {
    json!({
        "metadata": {"annotations": {JUDGED: verdict}},
        "data": {RESULT_KEY: format!("{result:#}")},
        "immutable": true,
    })
}

/// The workers' messages in a result ConfigMap.
pub fn messages(config_map: &ConfigMap) -> BTreeMap<u32, String> {
    let data = config_map.data.iter().flatten();
    data.filter_map(|(key, message)| Some((key.strip_prefix(WORKER_PREFIX)?.parse().ok()?, message.clone())))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::tests::load_test;
    use super::*;

    #[test]
    fn what_is_harvested_is_known_from_metadata_and_found_again() {
        let before = BTreeSet::from([0, 10]);
        let added = BTreeMap::from([(2, "lt1:two".to_owned())]);
        let patch = harvest_patch(&before, &added);
        assert_eq!(patch["metadata"]["annotations"][HARVESTED], "0,2,10");
        assert_eq!(patch["data"], json!({"worker-2": "lt1:two"}));
        let mut stored = result(&load_test(), "sha256:1");
        assert!(harvested(&stored.metadata).is_empty() && !is_judged(&stored.metadata));
        stored.metadata.annotations =
            serde_json::from_value(patch["metadata"]["annotations"].clone()).unwrap();
        stored.data = serde_json::from_value(patch["data"].clone()).unwrap();
        stored
            .data
            .as_mut()
            .unwrap()
            .insert(RESULT_KEY.into(), "{}".into());
        assert_eq!(harvested(&stored.metadata), BTreeSet::from([0, 2, 10]));
        assert_eq!(messages(&stored), added);
    }

    #[test]
    fn the_merged_result_closes_it() {
        let patch = judged_patch("Passed", &json!({"a": 1}));
        assert_eq!(
            (&patch["immutable"], &patch["metadata"]["annotations"][JUDGED]),
            (&json!(true), &json!("Passed"))
        );
    }

    #[test]
    fn a_plan_that_does_not_fit_is_refused_with_a_sentence() {
        let plan_of = |length: usize| -> LoadPlan {
            let prompt = "a".repeat(length);
            serde_json::from_value(json!({
                "name": "steady", "seed": 1, "target": {"url": "http://a", "protocol": "HTTP"},
                "scenarios": [{"name": "a", "weight": 1, "prompt": prompt}], "stages": [],
            }))
            .unwrap()
        };
        let small = plan(&load_test(), &plan_of(10)).unwrap();
        assert_eq!(small.immutable, Some(true));
        assert!(small.data.unwrap().contains_key("plan.json"));
        assert!(
            plan(&load_test(), &plan_of(1 << 20))
                .unwrap_err()
                .contains("shorten the prompts")
        );
    }
}
