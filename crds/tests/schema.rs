//! The API's rules over the generated definitions: what a linter of Go types would check, on the schema users get.

use serde_json::Value;
use std::collections::BTreeSet;

/// Longest definition, as compact JSON: client-side `kubectl apply` keeps a copy in an annotation of at most 262,144.
const MAX_BYTES: usize = 200_000;

/// One property of a definition, or the definition's root.
struct Field<'a> {
    /// Where it is, for example `AgentPool.spec.agent.env[].name`.
    path: String,
    /// Its key; none for the root, list items and map values.
    name: Option<&'a str>,
    /// Its schema.
    schema: &'a Value,
    /// Whether its parent requires it.
    required: bool,
}

impl Field<'_> {
    fn is(&self, kind: &str) -> bool {
        self.schema["type"] == kind
    }

    fn in_status(&self) -> bool {
        self.path.split('.').nth(1) == Some("status")
    }
}

fn definitions() -> Vec<Value> {
    flotilla_crds::yaml::all()
        .into_iter()
        .map(|(_, definition)| definition)
        .collect()
}

fn schema_of(definition: &Value) -> &Value {
    &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
}

fn walk<'a>(
    path: String,
    name: Option<&'a str>,
    schema: &'a Value,
    required: bool,
    found: &mut Vec<Field<'a>>,
) {
    if let Some(properties) = schema["properties"].as_object() {
        let needs: Vec<&str> = schema["required"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        for (key, inner) in properties {
            walk(
                format!("{path}.{key}"),
                Some(key),
                inner,
                needs.contains(&key.as_str()),
                found,
            );
        }
    }
    if let Some(items) = schema.get("items") {
        walk(format!("{path}[]"), None, items, false, found);
    }
    if let Some(values) = schema
        .get("additionalProperties")
        .filter(|values| values.is_object())
    {
        walk(format!("{path}{{}}"), None, values, false, found);
    }
    found.push(Field {
        path,
        name,
        schema,
        required,
    });
}

/// The paths at which `wrong` says what is wrong, apart from the `allowed` ones, each with its reason; an exception
/// that is not needed is an error, too.
fn check(allowed: &[(&str, &str)], wrong: impl Fn(&Field<'_>) -> Option<String>) {
    let mut unused: BTreeSet<&str> = allowed.iter().map(|(path, _)| *path).collect();
    let mut problems = Vec::new();
    for definition in &definitions() {
        let mut fields = Vec::new();
        let kind = definition["spec"]["names"]["kind"]
            .as_str()
            .expect("a definition names its kind");
        walk(kind.to_owned(), None, schema_of(definition), true, &mut fields);
        assert!(
            fields.len() > 5,
            "{kind} has only {} fields: the walk is broken",
            fields.len()
        );
        for field in &fields {
            if let Some(problem) = wrong(field) {
                match allowed.iter().find(|(path, _)| field.path == *path) {
                    Some((path, _)) => drop(unused.remove(path)),
                    None => problems.push(format!("{}: {problem}", field.path)),
                }
            }
        }
    }
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
    assert!(unused.is_empty(), "exceptions that are not needed: {unused:?}");
}

#[test]
fn a_definition_fits_into_the_annotation_of_kubectl_apply() {
    for definition in definitions() {
        let bytes = definition.to_string().len();
        assert!(
            bytes < MAX_BYTES,
            "{} has {bytes} bytes",
            definition["metadata"]["name"]
        );
    }
}

#[test]
fn every_list_has_a_list_type_and_an_end() {
    check(&[], |field| {
        if !field.is("array") {
            return None;
        }
        let schema = field.schema;
        let keys: Vec<&str> = schema["x-kubernetes-list-map-keys"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        match schema["x-kubernetes-list-type"].as_str() {
            None => Some("has no x-kubernetes-list-type".into()),
            Some("map") => {
                let required: Vec<&Value> = schema["items"]["required"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .collect();
                let missing = keys
                    .iter()
                    .find(|key| !required.iter().any(|name| **name == **key));
                (keys.is_empty() || missing.is_some())
                    .then(|| format!("is a map by {keys:?}, which are not required"))
            }
            Some("set") if schema["items"]["type"] == "object" => Some("is a set of objects".into()),
            Some(_) => schema["maxItems"].is_null().then(|| "has no maxItems".into()),
        }
    });
}

#[test]
fn every_map_string_and_number_is_bounded() {
    check(&[], |field| {
        let schema = field.schema;
        let has = |key: &str| !schema[key].is_null();
        if field.is("string") {
            (!has("maxLength") && !has("enum") && schema["format"] != "date-time")
                .then(|| "has no maxLength".into())
        } else if field.is("integer") {
            let format = matches!(schema["format"].as_str(), Some("int32" | "int64"));
            let whole = schema["minimum"].is_i64() && schema["maximum"].is_i64();
            (!format || !whole).then(|| format!("needs format int32 or int64 and whole bounds: {schema}"))
        } else if has("additionalProperties") {
            (!has("maxProperties")).then(|| "has no maxProperties".into())
        } else if schema["x-kubernetes-int-or-string"] == true {
            (!has("maxLength")).then(|| "has no maxLength".into())
        } else {
            None
        }
    });
}

#[test]
fn there_are_no_floats_nulls_unsigned_numbers_or_unions_of_types() {
    check(&[], |field| {
        let schema = field.schema;
        let any = schema["x-kubernetes-int-or-string"] == true;
        let keep = schema["x-kubernetes-preserve-unknown-fields"] == true;
        if field.is("number") {
            Some("is a float".into())
        } else if !schema["nullable"].is_null() {
            Some("is nullable".into())
        } else if schema["format"]
            .as_str()
            .is_some_and(|format| format.starts_with("uint"))
        {
            Some("is unsigned".into())
        } else if ["oneOf", "anyOf", "allOf", "not"]
            .iter()
            .any(|key| !schema[key].is_null())
            && !any
        {
            Some("is a union of schemas".into())
        } else if !any && !keep && !schema["type"].is_string() {
            Some("has no type".into())
        } else {
            None
        }
    });
}

#[test]
fn documentation_begins_with_the_fields_name() {
    check(&[], |field| {
        let name = field.name?;
        let text = field.schema["description"].as_str().unwrap_or_default();
        let begins = text
            .strip_prefix(name)
            .is_some_and(|rest| rest.starts_with([' ', ':', ',']));
        (!begins || !text.ends_with('.')).then(|| format!("says {text:?}"))
    });
}

#[test]
fn a_default_that_is_not_obvious_is_in_the_documentation() {
    check(&[], |field| {
        let default = field
            .schema
            .get("default")
            .filter(|default| !default.is_object())?;
        if field.in_status() {
            return None;
        }
        let said = default
            .as_str()
            .map_or_else(|| default.to_string(), str::to_owned);
        let text = field.schema["description"].as_str().unwrap_or_default();
        (!text.contains("Default") || !text.contains(&said))
            .then(|| format!("does not say its default {said}: {text:?}"))
    });
}

#[test]
fn names_follow_the_conventions() {
    check(&[], |field| {
        let name = field.name?;
        let lower = name.to_ascii_lowercase();
        if !name.starts_with(|c: char| c.is_ascii_lowercase())
            || !name.chars().all(|c| c.is_ascii_alphanumeric())
        {
            Some("is not camelCase".into())
        } else if ["on", "off", "yes", "no", "y", "n", "true", "false", "null"].contains(&lower.as_str()) {
            Some("reads as a boolean in YAML 1.1".into())
        } else if lower.contains("phase") {
            Some("is a phase: write conditions".into())
        } else if lower.ends_with("timestamp") {
            Some("ends in Timestamp: write …Time".into())
        } else if lower.ends_with("reference") {
            Some("ends in Reference: write …Ref".into())
        } else if lower.contains("permille") || lower.ends_with("duration") {
            Some("write the unit into the name (…Seconds, …Milliseconds, …Percent)".into())
        } else if field.is("object")
            && field.schema["properties"]["name"].is_object()
            && field.schema["properties"].as_object().is_some_and(|properties| {
                properties
                    .keys()
                    .all(|key| ["name", "key", "port", "optional"].contains(&key.as_str()))
            })
            && !name.ends_with("Ref")
        {
            Some("is a reference: write …Ref".into())
        } else {
            None
        }
    });
}

#[test]
fn times_are_named_so() {
    check(
        &[
            (
                "AgentPool.status.rejected[].time",
                "the entry is an event: its only time",
            ),
            (
                "AgentPool.status.lastAction.time",
                "the entry is an event: its only time",
            ),
            (
                "AgentPool.status.restart.time",
                "the entry is an event: its only time",
            ),
            (
                "ModelProvider.status.usage.time",
                "of the newest count: its only time",
            ),
            (
                "RolloutAction.status.time",
                "the object is an event: its only time",
            ),
        ],
        |field| {
            let time = field.schema["format"] == "date-time";
            (time && !field.name.is_some_and(|name| name.ends_with("Time")))
                .then(|| "is a time: write …Time".into())
        },
    );
}

#[test]
fn booleans_are_few_and_each_has_a_reason() {
    const CORE: &str = "core/v1 has it";
    check(
        &[
            ("AgentPool.spec.stopped", "a kill switch has two positions"),
            ("AgentPool.spec.rollout.paused", "as Deployment.spec.paused"),
            (
                "AgentPool.spec.agent.env[].valueFrom.configMapKeyRef.optional",
                CORE,
            ),
            ("AgentPool.spec.agent.env[].valueFrom.secretKeyRef.optional", CORE),
            ("AgentPool.spec.agent.envFrom[].configMapRef.optional", CORE),
            ("AgentPool.spec.agent.envFrom[].secretRef.optional", CORE),
            ("LoadTest.spec.suspend", "as Job.spec.suspend"),
            ("LoadTest.spec.requests.stream", "the field of the OpenAI API"),
        ],
        |field| {
            field
                .is("boolean")
                .then(|| "is a boolean: would an enum leave room?".into())
        },
    );
}

#[test]
fn enum_values_are_words_that_yaml_leaves_alone() {
    check(&[], |field| {
        let values: Vec<&str> = field.schema["enum"]
            .as_array()?
            .iter()
            .filter_map(Value::as_str)
            .collect();
        let count = field.schema["enum"].as_array().map_or(0, Vec::len);
        let conditions = field.path.ends_with(".conditions[].status");
        let bad = values.iter().find(|value| {
            let lower = value.to_ascii_lowercase();
            let boolean =
                ["on", "off", "yes", "no", "y", "n", "true", "false", "null"].contains(&lower.as_str());
            !value.starts_with(|c: char| c.is_ascii_uppercase()) || (boolean && !conditions)
        });
        (values.len() != count || bad.is_some()).then(|| format!("has values {:?}", field.schema["enum"]))
    });
}

#[test]
fn a_field_is_required_or_has_a_default_and_the_default_is_valid() {
    check(&[], |field| {
        let default = field.schema.get("default")?;
        if field.required {
            return Some("is required and has a default".into());
        }
        let mut problems = Vec::new();
        fits(default, field.schema, &mut problems);
        (!problems.is_empty()).then(|| format!("its default {default} does not fit: {}", problems.join(", ")))
    });
}

fn fits(value: &Value, schema: &Value, problems: &mut Vec<String>) {
    let within = |number: i64, low: &Value, high: &Value| {
        low.as_i64().is_none_or(|low| number >= low) && high.as_i64().is_none_or(|high| number <= high)
    };
    let good = match (schema["type"].as_str().unwrap_or_default(), value) {
        ("object", Value::Object(map)) => {
            for (key, inner) in map {
                match schema["properties"].get(key) {
                    Some(schema) => fits(inner, schema, problems),
                    None => problems.push(format!("{key} is unknown")),
                }
            }
            schema["required"]
                .as_array()
                .into_iter()
                .flatten()
                .all(|name| name.as_str().is_some_and(|name| map.contains_key(name)))
        }
        ("integer", Value::Number(number)) => number
            .as_i64()
            .is_some_and(|number| within(number, &schema["minimum"], &schema["maximum"])),
        ("string", Value::String(text)) => {
            within(
                text.chars().count() as i64,
                &schema["minLength"],
                &schema["maxLength"],
            ) && schema["enum"]
                .as_array()
                .is_none_or(|values| values.contains(value))
        }
        ("boolean", Value::Bool(_)) => true,
        ("array", Value::Array(entries)) => {
            entries
                .iter()
                .for_each(|entry| fits(entry, &schema["items"], problems));
            within(entries.len() as i64, &schema["minItems"], &schema["maxItems"])
        }
        _ => false,
    };
    if !good {
        problems.push(format!("{value} under {schema}"));
    }
}

#[test]
fn lists_hold_objects_that_say_something_and_required_strings_are_not_empty() {
    check(
        &[
            (
                "AgentPool.spec.agent.envFrom[]",
                "core/v1 has it; a rule asks for exactly one source",
            ),
            (
                "LoadTest.status.conditions[].message",
                "the API conventions allow an empty message",
            ),
            (
                "AgentPool.status.conditions[].message",
                "the API conventions allow an empty message",
            ),
            (
                "ModelProvider.status.conditions[].message",
                "the API conventions allow an empty message",
            ),
            (
                "AgentPool.spec.agent.probes.startup.httpGet.httpHeaders[].value",
                "core/v1 has it: a header may be empty",
            ),
            (
                "AgentPool.spec.agent.probes.readiness.httpGet.httpHeaders[].value",
                "core/v1 has it: a header may be empty",
            ),
            (
                "AgentPool.spec.agent.probes.liveness.httpGet.httpHeaders[].value",
                "core/v1 has it: a header may be empty",
            ),
        ],
        |field| {
            let schema = field.schema;
            if field.path.ends_with("[]") && field.is("object") && schema["required"].is_null() {
                return Some("is a list of objects without a required field".into());
            }
            let open = field.is("string") && schema["enum"].is_null() && schema["format"] != "date-time";
            (field.required && open && schema["minLength"].as_i64().unwrap_or(0) < 1)
                .then(|| "may be empty".into())
        },
    );
}

#[test]
fn maps_hold_strings() {
    check(&[], |field| {
        let values = field.schema.get("additionalProperties")?;
        let quantity = values["x-kubernetes-int-or-string"] == true;
        (values["type"] != "string" && !quantity).then(|| format!("is a map of {values}"))
    });
}

#[test]
fn status_is_a_subresource_with_conditions_and_a_generation() {
    for definition in definitions() {
        let kind = definition["spec"]["names"]["kind"].as_str().unwrap();
        assert!(
            definition["spec"]["versions"][0]["subresources"]["status"].is_object(),
            "{kind}"
        );
        let status = &schema_of(&definition)["properties"]["status"];
        // A RolloutAction is decided once: its result is its status.
        if kind == "RolloutAction" {
            assert!(status["properties"]["conditions"].is_null());
            continue;
        }
        assert_eq!(
            status["default"],
            serde_json::json!({"observedGeneration": -1}),
            "{kind}"
        );
        assert_eq!(
            status["properties"]["observedGeneration"]["default"], -1,
            "{kind}"
        );
        let conditions = &status["properties"]["conditions"];
        assert_eq!(conditions["x-kubernetes-list-type"], "map", "{kind}");
        assert_eq!(
            conditions["x-kubernetes-list-map-keys"],
            serde_json::json!(["type"]),
            "{kind}"
        );
        let names: BTreeSet<&str> = conditions["items"]["properties"]
            .as_object()
            .unwrap()
            .keys()
            .map(String::as_str)
            .collect();
        assert_eq!(
            names,
            BTreeSet::from([
                "type",
                "status",
                "observedGeneration",
                "lastTransitionTime",
                "reason",
                "message"
            ]),
            "{kind}"
        );
        assert_eq!(
            conditions["items"]["properties"]["status"]["enum"],
            serde_json::json!(["True", "False", "Unknown"]),
            "{kind}"
        );
    }
}

#[test]
fn the_state_column_is_readys_reason_and_columns_point_at_fields() {
    for definition in definitions() {
        let kind = definition["spec"]["names"]["kind"].as_str().unwrap();
        let columns = definition["spec"]["versions"][0]["additionalPrinterColumns"]
            .as_array()
            .unwrap();
        if kind != "RolloutAction" {
            assert_eq!(columns[0]["name"], "State", "{kind}");
            assert_eq!(
                columns[0]["jsonPath"], ".status.conditions[?(@.type==\"Ready\")].reason",
                "{kind}"
            );
        }
        for column in columns {
            let path = column["jsonPath"].as_str().unwrap();
            let wide = column["priority"].as_i64().unwrap_or(0) > 0;
            if path.contains('[') || path.starts_with(".metadata") {
                continue;
            }
            let pointer = path.replace('.', "/properties/");
            let field = schema_of(&definition).pointer(&pointer);
            let field = field.unwrap_or_else(|| panic!("{kind}: column {path} points at nothing"));
            assert_eq!(field["type"], column["type"], "{kind}: column {path}");
            assert!(wide || column["type"] != "object", "{kind}: column {path}");
        }
    }
}

#[test]
fn the_scale_subresource_points_at_fields() {
    let definition = &definitions()[0];
    let scale = definition["spec"]["versions"][0]["subresources"]["scale"]
        .as_object()
        .unwrap();
    for path in scale.values() {
        let pointer = path.as_str().unwrap().replace('.', "/properties/");
        assert!(schema_of(definition).pointer(&pointer).is_some(), "{path}");
    }
    assert_eq!(scale.len(), 3);
}

#[test]
fn a_load_test_is_immutable_but_for_two_fields() {
    let definition = definitions()
        .into_iter()
        .find(|d| d["spec"]["names"]["kind"] == "LoadTest")
        .unwrap();
    let spec = &schema_of(&definition)["properties"]["spec"];
    let rules = spec["x-kubernetes-validations"].as_array().unwrap();
    let rule = rules
        .iter()
        .filter_map(|rule| rule["rule"].as_str())
        .find(|rule| rule.contains("oldSelf"))
        .unwrap();
    for name in spec["properties"].as_object().unwrap().keys() {
        let fixed = rule.contains(&format!("self.{name} == oldSelf.{name}"));
        let free = ["suspend", "ttlSecondsAfterFinished"].contains(&name.as_str());
        assert!(
            fixed != free,
            "{name}: the rule on changes must hold every field but suspend and ttlSecondsAfterFinished"
        );
    }
}

#[test]
fn every_rule_has_a_sentence_and_a_case() {
    let table: Value = serde_saphyr::from_str(include_str!("cel_cases.yaml")).unwrap();
    let cases = table["cases"].as_array().unwrap();
    check(&[], |field| {
        field.schema["x-kubernetes-validations"]
            .as_array()?
            .iter()
            .find_map(|rule| {
                let message = rule["message"].as_str().unwrap_or_default();
                let kind = field.path.split('.').next();
                let said = cases.iter().any(|case| {
                    let base = &table["bases"][case["base"].as_str().unwrap_or_default()];
                    base["kind"].as_str() == kind
                        && case["says"].as_str().is_some_and(|says| message.contains(says))
                });
                (message.len() < 20 || !said)
                    .then(|| format!("no case in cel_cases.yaml expects {message:?}"))
            })
    });
}
