//! What the API server would say about an object of ours.
//!
//! The definitions are those the cluster gets (`flotilla_crds::yaml`), so this cannot drift from them: their structure
//! is checked by [`crate::structure`], their CEL rules by `kube-cel`, and the prompts of a LoadTest are parsed as a
//! worker parses them. Words follow the API server's where it has some.

use crate::structure;
use flotilla_core::load::template::Template;
use kube_cel::Validator;
use serde_json::{Value, json};

/// What came of a check.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The object is not of group `flotilla.dev`.
    Foreign,
    /// Everything that is wrong with it, one sentence each; nothing when it is valid.
    Checked(Vec<String>),
}

/// Kind and name of an object, for messages.
pub fn title(object: &Value) -> String {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str);
    let name = text("/metadata/name")
        .or_else(|| text("/metadata/generateName"))
        .unwrap_or("without a name");
    format!("{} {name}", text("/kind").unwrap_or("object"))
}

/// Checks an object that is to be created.
pub fn create(object: &Value) -> Outcome {
    change(None, object)
}

/// Checks an object that replaces `old`; without it, one that is to be created.
pub fn change(old: Option<&Value>, object: &Value) -> Outcome {
    let version = object
        .get("apiVersion")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let kind = object.get("kind").and_then(Value::as_str).unwrap_or_default();
    if version.split('/').next() != Some(flotilla_crds::GROUP) {
        return Outcome::Foreign;
    }
    if version != format!("{}/{}", flotilla_crds::GROUP, flotilla_crds::VERSION) {
        return Outcome::Checked(vec![format!(
            "apiVersion: {version} is not known; write {}/{}",
            flotilla_crds::GROUP,
            flotilla_crds::VERSION
        )]);
    }
    let definitions = flotilla_crds::yaml::all();
    let kinds: Vec<&str> = definitions
        .iter()
        .filter_map(|(_, d)| d.pointer("/spec/names/kind").and_then(Value::as_str))
        .collect();
    let schema = definitions
        .iter()
        .map(|(_, definition)| definition)
        .find(|definition| definition.pointer("/spec/names/kind").and_then(Value::as_str) == Some(kind))
        .and_then(|definition| definition.pointer("/spec/versions/0/schema/openAPIV3Schema"));
    let Some(schema) = schema else {
        return Outcome::Checked(vec![format!(
            "kind: {kind:?} is not known; write one of {}",
            kinds.join(", ")
        )]);
    };
    let object = named(object);
    let mut problems = Vec::new();
    if object.pointer("/metadata/name").is_none() {
        problems.push("metadata.name: Required value: name or generateName is required".to_owned());
    }
    structure::check(&object, schema, &mut problems);
    // Rules read fields by name: on a wrong structure they would only add errors about themselves.
    if problems.is_empty() {
        if let Err(errors) = Validator::new().validate(schema, &object, old) {
            problems.extend(errors.as_slice().iter().map(ToString::to_string));
        }
        prompts(&object, &mut problems);
    }
    Outcome::Checked(problems)
}

/// The object with a name, as the API server makes one from `generateName` before it validates.
fn named(object: &Value) -> Value {
    let mut object = object.clone();
    let prefix = object
        .pointer("/metadata/generateName")
        .and_then(Value::as_str)
        .map(str::to_owned);
    if let Some(prefix) = prefix
        && let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut)
    {
        metadata
            .entry("name")
            .or_insert_with(|| json!(format!("{prefix}x7k2p")));
    }
    object
}

/// Slots in a LoadTest's prompts that do not exist; the API server cannot know them, the operator reports them.
fn prompts(object: &Value, problems: &mut Vec<String>) {
    let scenarios = object
        .pointer("/spec/scenarios")
        .and_then(Value::as_array)
        .into_iter()
        .flatten();
    for (index, scenario) in scenarios.enumerate() {
        let text = scenario
            .pointer("/prompt/text")
            .and_then(Value::as_str)
            .unwrap_or_default();
        if let Err(sentence) = Template::parse(text) {
            problems.push(format!("spec.scenarios[{index}].prompt.text: {sentence}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(object: Value) -> Vec<String> {
        match create(&object) {
            Outcome::Checked(problems) => problems,
            Outcome::Foreign => panic!("foreign: {object}"),
        }
    }

    #[test]
    fn other_groups_are_foreign_and_unknown_kinds_are_not() {
        assert_eq!(
            create(&json!({"apiVersion": "v1", "kind": "Pod"})),
            Outcome::Foreign
        );
        assert_eq!(
            create(&json!({"apiVersion": "apps.flotilla.dev/v1", "kind": "AgentPool"})),
            Outcome::Foreign
        );
        let old = problems(json!({"apiVersion": "flotilla.dev/v1", "kind": "AgentPool"}));
        assert_eq!(
            old,
            ["apiVersion: flotilla.dev/v1 is not known; write flotilla.dev/v1alpha1"]
        );
        let kind = problems(json!({"apiVersion": "flotilla.dev/v1alpha1", "kind": "AgentPol"}));
        assert!(
            kind[0].contains("\"AgentPol\" is not known; write one of AgentPool, LoadTest"),
            "{kind:?}"
        );
    }

    #[test]
    fn a_slot_that_does_not_exist_is_found_before_the_cluster_sees_it() {
        let found = problems(json!({
            "apiVersion": "flotilla.dev/v1alpha1", "kind": "LoadTest", "metadata": {"generateName": "check-"},
            "spec": {
                "target": {"poolRef": {"name": "support"}},
                "scenarios": [{"name": "a", "prompt": {"text": "Where is {{ordr}}?"}}],
                "stages": [{"name": "s", "type": "Batch", "batch": {"size": 1, "requests": 1}}]
            }
        }));
        assert!(
            found.len() == 1 && found[0].starts_with("spec.scenarios[0].prompt.text: "),
            "{found:?}"
        );
    }

    #[test]
    fn an_object_needs_a_name() {
        let found = problems(json!({
            "apiVersion": "flotilla.dev/v1alpha1", "kind": "ModelProvider", "metadata": {},
            "spec": {"endpoint": "https://e/v1"}
        }));
        assert_eq!(
            found,
            ["metadata.name: Required value: name or generateName is required"]
        );
    }
}
