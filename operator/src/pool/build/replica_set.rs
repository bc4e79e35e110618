//! The ReplicaSet of a revision. Created once; afterwards only `replicas` changes.

use flotilla_core::revision::Content;
use flotilla_crds::AgentPool;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetSpec};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::ResourceExt as _;

use super::{child_meta, pod, selector};

/// The ReplicaSet of a revision with this content.
pub fn build(
    pool: &AgentPool,
    revision: &str,
    content: &Content,
    overlay: PodTemplateSpec,
    replicas: i32,
) -> ReplicaSet {
    let selector = selector(&pool.name_any(), Some(revision));
    ReplicaSet {
        metadata: child_meta(pool, revision, Some(revision)),
        spec: Some(ReplicaSetSpec {
            replicas: Some(replicas),
            selector: LabelSelector {
                match_labels: Some(selector),
                ..LabelSelector::default()
            },
            template: Some(pod::template(pool, revision, content, overlay)),
            ..ReplicaSetSpec::default()
        }),
        ..ReplicaSet::default()
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{content, pool};
    use super::*;
    use serde_json::json;

    #[test]
    fn the_selector_is_in_the_template_whatever_the_overlay_says() {
        let pool = pool(json!({}));
        let overlay =
            serde_json::from_value(json!({"metadata": {"labels": {"flotilla.dev/revision": "other"}}}))
                .unwrap();
        let set = build(&pool, "support-1", &content(&pool, &[]), overlay, 3)
            .spec
            .unwrap();
        let labels = set.template.unwrap().metadata.unwrap().labels.unwrap();
        for (label, value) in set.selector.match_labels.unwrap() {
            assert_eq!(labels.get(&label), Some(&value), "{label}");
        }
        assert_eq!(set.replicas, Some(3));
    }
}
