//! A dry run: what the release of the wanted revision would do. Pure.
//!
//! With the annotation [`DRY_RUN`] on the pool nothing new is released, and a release under way holds where it is, as with
//! `rollout.paused`; status tells what a release would do. Everything else goes on: the size of what serves, its repair, commands. A
//! new pool makes nothing at all.

use flotilla_core::release;
use flotilla_core::revision::Content;
use flotilla_core::rollout::Reason;
use flotilla_crds::AgentPool;
use flotilla_crds::agent_pool::ReleasePlan;
use flotilla_crds::names::DRY_RUN;
use kube::ResourceExt as _;
use serde_json::Value;

use super::build::snapshot;
use super::dereference::Observed;
use super::judge;
use super::validate::Wanted;

/// Reason of `Ready` while a dry run holds a release.
pub const DRY_RUN_HOLDS: &str = "DryRun";

/// Whether the pool is in a dry run.
pub fn is_dry(pool: &AgentPool) -> bool {
    pool.annotations()
        .get(DRY_RUN)
        .is_some_and(|value| value == "true")
}

/// What a held release waits for.
pub fn held(revision: &str) -> Reason {
    Reason::new(
        DRY_RUN_HOLDS,
        format!(
            "{revision} is not released because of the annotation {DRY_RUN}; status.plan shows what its release would do; \
             remove the annotation to release it"
        ),
    )
}

/// The plan for `wanted`, if that is not what serves; `stable` is what does.
pub fn build(observed: &Observed, wanted: Option<&Wanted>, stable: Option<&str>) -> Option<ReleasePlan> {
    let wanted = wanted.filter(|wanted| stable != Some(wanted.revision.as_str()))?;
    let spec = &observed.pool.spec;
    let serving = stable.and_then(|stable| observed.record(stable)?.content.as_ref());
    let (steps, message) = match stable {
        Some(stable) => {
            let traffic = judge::traffic(&observed.gateways, &observed.name(), stable);
            release::plan(spec, traffic)
        }
        None => (Vec::new(), release::first(spec)),
    };
    Some(ReleasePlan {
        revision: wanted.revision.clone(),
        from: stable.map(str::to_owned),
        changes: serving.map_or_else(Vec::new, |serving| changes(serving, &wanted.content)),
        objects: objects(observed, wanted),
        message,
        steps,
    })
}

/// Fields of `spec.agent` that differ, and sources whose bytes do. Names only: a value may be nobody's business.
fn changes(old: &Content, new: &Content) -> Vec<String> {
    let fields = |content: &Content| match serde_json::to_value(&content.agent) {
        Ok(Value::Object(fields)) => fields,
        _ => serde_json::Map::new(),
    };
    let (before, after) = (fields(old), fields(new));
    let mut names: Vec<&String> = before.keys().chain(after.keys()).collect();
    names.sort();
    names.dedup();
    let differs = |name: &&String| before.get(*name) != after.get(*name);
    let mut changes: Vec<String> = names
        .into_iter()
        .filter(differs)
        .map(|name| format!("spec.agent.{name}"))
        .collect();
    let mut sources: Vec<&String> = old.sources.keys().chain(new.sources.keys()).collect();
    sources.sort();
    sources.dedup();
    let moved = sources
        .into_iter()
        .filter(|source| old.sources.get(*source) != new.sources.get(*source));
    changes.extend(moved.map(|source| format!("content of {source}")));
    changes
}

/// Objects that are not there yet and would be made at the begin of the release.
fn objects(observed: &Observed, wanted: &Wanted) -> Vec<String> {
    let (pool, revision) = (observed.name(), &wanted.revision);
    let snapshots = wanted
        .content
        .sources
        .iter()
        .map(|(source, hash)| snapshot::name(&pool, source, hash));
    let is_kept = |name: &String| observed.snapshots.iter().any(|known| known.name_any() == *name);
    let mut objects: Vec<String> = snapshots
        .filter(|name| !is_kept(name))
        .map(|name| format!("ConfigMap {name}"))
        .collect();
    if observed.record(revision).is_none() {
        objects.push(format!("ControllerRevision {revision}"));
    }
    if !observed.sets.contains_key(revision) {
        objects.push(format!("ReplicaSet {revision}"));
    }
    if !observed
        .services
        .iter()
        .any(|service| service.name_any() == *revision)
    {
        objects.push(format!("Service {revision}"));
    }
    objects
}

#[cfg(test)]
mod tests {
    use super::super::build::fixtures::{content, pool};
    use super::*;
    use serde_json::json;

    #[test]
    fn changes_are_named_without_their_values() {
        let old = pool(json!({"agent": {"env": [{"name": "TOKEN", "value": "hidden"}]}}));
        let new = pool(json!({"agent": {"image": "agent:2", "env": [{"name": "TOKEN", "value": "other"}]}}));
        let (old, new) = (
            content(&old, &[("prompt", "1"), ("file-a", "1")]),
            content(&new, &[("prompt", "2"), ("file-a", "1"), ("file-b", "1")]),
        );
        assert_eq!(
            changes(&old, &new),
            [
                "spec.agent.env",
                "spec.agent.image",
                "content of file-b",
                "content of prompt"
            ]
        );
        assert!(changes(&old, &old).is_empty());
    }

    #[test]
    fn only_true_is_a_dry_run() {
        for (value, expected) in [(None, false), (Some("true"), true), (Some("false"), false)] {
            let mut pool = pool(json!({}));
            if let Some(value) = value {
                pool.annotations_mut().insert(DRY_RUN.into(), value.into());
            }
            assert_eq!(is_dry(&pool), expected, "{value:?}");
        }
    }
}
