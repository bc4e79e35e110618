//! The Helm chart, with Helm 4 and Helm 3: lint, rendering and rights here; what needs more in the modules.

mod installed;
mod readme;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Both majors that are supported.
const HELMS: [&str; 2] = ["helm", "helm3"];
/// Everything the chart can render, and the least.
const VARIANTS: [&[&str]; 4] = [
    &[],
    &[
        "simulator.enabled=true",
        "networkPolicy.enabled=true",
        "gateway.env.OTEL_EXPORTER_OTLP_ENDPOINT=http://collector:4318",
        "commonLabels.team=a",
        "admissionPolicies.environmentSecrets=false",
        "admissionPolicies.actions={Deny,Audit}",
    ],
    &[
        "operator.watchNamespaces={a,b}",
        "operator.image.digest=sha256:0000000000000000000000000000000000000000000000000000000000000000",
    ],
    &[
        "crds.install=false",
        "rbac.create=false",
        "rbac.userRoles=false",
        "admissionPolicies.enabled=false",
        "operator.replicaCount=1",
        "operator.podDisruptionBudget.enabled=false",
    ],
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Runs a program of the local cluster's `bin` folder, else of the PATH; gives what it printed.
fn run(program: &str, arguments: &[&str]) -> Result<String> {
    let state = std::env::var_os("FLOTILLA_STATE").map_or_else(|| root().join(".local"), PathBuf::from);
    let local = state.join("bin").join(program);
    let path = if local.exists() {
        local
    } else {
        PathBuf::from(program)
    };
    let output = Command::new(&path)
        .args(arguments)
        .output()
        .with_context(|| format!("failed to start {program}; `make cluster` builds it into .local/bin"))?;
    if !output.status.success() {
        let (out, err) = (
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        bail!("{program} {}: {}\n{out}{err}", arguments.join(" "), output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn chart() -> String {
    root().join("charts/flotilla").to_string_lossy().into_owned()
}

fn render(helm: &str, namespace: &str, values: &[&str]) -> Result<String> {
    let chart = chart();
    let mut arguments = vec![
        "template",
        "flotilla",
        &chart,
        "--namespace",
        namespace,
        "--kube-version",
        "1.37",
    ];
    for value in values {
        arguments.extend(["--set", value]);
    }
    run(helm, &arguments)
}

fn objects(yaml: &str) -> Result<Vec<Value>> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(yaml)?;
    Ok(documents.into_iter().filter(Value::is_object).collect())
}

fn find<'a>(objects: &'a [Value], kind: &str, name: &str) -> Option<&'a Value> {
    objects
        .iter()
        .find(|object| object["kind"] == kind && object["metadata"]["name"] == name)
}

#[test]
fn it_lints_with_both_helms() -> Result<()> {
    HELMS
        .iter()
        .try_for_each(|helm| run(helm, &["lint", "--strict", &chart()]).map(drop))
}

#[test]
fn both_helms_render_the_same() -> Result<()> {
    for values in VARIANTS {
        let sorted = |helm: &str| -> Result<Vec<String>> {
            let mut texts: Vec<String> = objects(&render(helm, "flotilla-system", values)?)?
                .iter()
                .map(Value::to_string)
                .collect();
            texts.sort();
            Ok(texts)
        };
        ensure!(
            sorted("helm")? == sorted("helm3")?,
            "the renderings with {values:?} differ"
        );
    }
    Ok(())
}

#[test]
fn values_that_are_misspelt_or_out_of_range_are_refused() -> Result<()> {
    for (value, says) in [
        ("operator.replicas=3", "replicas"),
        ("operator.replicaCount=0", "replicaCount"),
        ("simulator.enable=true", "enable"),
        ("operator.image.digest=latest", "digest"),
        ("gateway.replicas=none", "replicas"),
        ("gateway.quotaRedis=redis://bob:hunter2@redis", "quotaRedis"),
        ("gateway.quotaRedis=rediss://redis/#insecure", "quotaRedis"),
        ("surprise=1", "surprise"),
        ("admissionPolicies.actions={Deny,Warn}", "actions"),
        ("admissionPolicies.actions={Refuse}", "actions"),
        ("admissionPolicies.environmentSecrets=some", "environmentSecrets"),
    ] {
        for helm in HELMS {
            let error = match render(helm, "flotilla-system", &[value]) {
                Ok(_) => bail!("{helm} accepted {value}"),
                Err(error) => error.to_string(),
            };
            ensure!(
                error.contains(says) && error.contains("schema"),
                "{helm} {value}: {error}"
            );
        }
    }
    Ok(())
}

#[test]
fn definitions_are_templates_that_stay() -> Result<()> {
    let count = |values: &[&str]| -> Result<(usize, usize)> {
        let objects = objects(&render("helm", "flotilla-system", values)?)?;
        let crds: Vec<&Value> = objects
            .iter()
            .filter(|object| object["kind"] == "CustomResourceDefinition")
            .collect();
        let kept = crds
            .iter()
            .filter(|crd| crd["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep")
            .count();
        Ok((crds.len(), kept))
    };
    assert_eq!(count(&[])?, (4, 4));
    assert_eq!(count(&["crds.keep=false"])?, (4, 0));
    assert_eq!(count(&["crds.install=false"])?, (0, 0));
    // Escaping for Helm must not have changed them.
    let rendered = objects(&render("helm", "flotilla-system", &[])?)?;
    for (plural, definition) in flotilla_crds::yaml::all() {
        let name = format!("{plural}.flotilla.dev");
        let found = find(&rendered, "CustomResourceDefinition", &name)
            .with_context(|| format!("{name} is missing"))?;
        ensure!(
            found["spec"] == definition["spec"],
            "{name} differs from the types'"
        );
    }
    Ok(())
}

/// One permission: group, resource, verb.
type Right = (String, String, String);

fn rights(role: &Value) -> Vec<Right> {
    let list = |rule: &Value, key: &str| -> Vec<String> {
        rule[key]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|v| v.as_str().map(str::to_owned))
            .collect()
    };
    let mut rights = Vec::new();
    for rule in role["rules"].as_array().into_iter().flatten() {
        for group in list(rule, "apiGroups") {
            for resource in list(rule, "resources") {
                rights.extend(
                    list(rule, "verbs")
                        .into_iter()
                        .map(|verb| (group.clone(), resource.clone(), verb)),
                );
            }
        }
    }
    rights
}

#[test]
fn the_operator_has_no_more_rights_than_it_needs() -> Result<()> {
    let objects = objects(&render("helm", "flotilla-system", &[])?)?;
    let role = |kind: &str, name: &str| {
        find(&objects, kind, name)
            .map(rights)
            .with_context(|| format!("no {kind} {name}"))
    };
    let operator = role("ClusterRole", "flotilla-operator")?;
    ensure!(operator.len() > 50, "the operator has {} rights", operator.len());
    for (group, resource, verb) in &operator {
        ensure!(
            ![group, resource, verb].contains(&&"*".to_owned()),
            "a wildcard: {group} {resource} {verb}"
        );
        ensure!(
            !["bind", "escalate", "impersonate", "deletecollection"].contains(&verb.as_str()),
            "{verb} on {resource}"
        );
        let forbidden = [
            "secrets",
            "pods/exec",
            "pods/log",
            "serviceaccounts/token",
            "clusterroles",
            "clusterrolebindings",
            "nodes",
        ];
        ensure!(!forbidden.contains(&resource.as_str()), "{verb} on {resource}");
        let spec = group == flotilla_crds::GROUP && !resource.contains('/');
        // A RolloutAction is given its pool as owner.
        let owner = resource == "rolloutactions" && verb == "patch";
        // A release makes load tests of its own from a user's.
        let copies = resource == "loadtests" && verb == "create";
        ensure!(
            !spec || owner || copies || ["get", "list", "watch", "delete"].contains(&verb.as_str()),
            "{verb} on {resource}: spec is the user's"
        );
    }
    // Otherwise the API server refuses the RoleBinding that the operator makes in each namespace.
    for right in role("ClusterRole", "flotilla-gateway")? {
        ensure!(
            operator.contains(&right),
            "the operator lacks the gateway's {right:?}"
        );
    }
    for (_, resource, _) in role("Role", "flotilla-operator")? {
        ensure!(resource == "leases", "the Role holds {resource}");
    }
    Ok(())
}

#[test]
fn with_watched_namespaces_the_rights_hold_only_there() -> Result<()> {
    let objects = objects(&render(
        "helm",
        "flotilla-system",
        &["operator.watchNamespaces={a,b}"],
    )?)?;
    ensure!(
        find(&objects, "ClusterRoleBinding", "flotilla-operator").is_none(),
        "a ClusterRoleBinding is left"
    );
    let namespaces: Vec<&str> = objects
        .iter()
        .filter(|object| object["kind"] == "RoleBinding" && object["roleRef"]["kind"] == "ClusterRole")
        .filter_map(|object| object["metadata"]["namespace"].as_str())
        .collect();
    assert_eq!(namespaces, ["a", "b"]);
    let operator = find(&objects, "Deployment", "flotilla-operator").context("no operator")?;
    let arguments = operator["spec"]["template"]["spec"]["containers"][0]["args"].to_string();
    ensure!(arguments.contains("--watch-namespaces=a,b"), "{arguments}");
    Ok(())
}

/// Every text under `value`.
fn texts<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
    match value {
        Value::String(text) => found.push(text),
        Value::Array(items) => items.iter().for_each(|item| texts(item, found)),
        Value::Object(members) => members.values().for_each(|member| texts(member, found)),
        _ => {}
    }
}

#[test]
fn policies_follow_the_values_and_stay_within_what_kubernetes_evaluates() -> Result<()> {
    let of = |values: &[&str], kind: &str| -> Result<Vec<Value>> {
        let mut objects = objects(&render("helm", "flotilla-system", values)?)?;
        objects.retain(|object| object["kind"] == kind);
        Ok(objects)
    };
    let (policy, binding) = ("ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding");
    let policies = of(&[], policy)?;
    ensure!(
        policies.len() == 2 && of(&[], binding)?.len() == 2,
        "{} policies",
        policies.len()
    );
    for policy in &policies {
        ensure!(policy["spec"]["failurePolicy"] == "Fail", "{policy}");
        ensure!(
            policy["spec"]["matchConstraints"]["resourceRules"][0]["resources"]
                .as_array()
                .map(Vec::len)
                == Some(1),
            "{policy}"
        );
        // A check of a right costs 350,000; an expression may cost 1,000,000, a policy 10,000,000.
        let mut expressions = Vec::new();
        texts(&policy["spec"], &mut expressions);
        let checks = |text: &&str| text.matches(".check(").count();
        ensure!(
            expressions.iter().map(checks).max() == Some(1),
            "an expression with two checks"
        );
        let all: usize = expressions.iter().map(checks).sum();
        ensure!(all <= 26, "{all} checks in {}", policy["metadata"]["name"]);
        for validation in policy["spec"]["validations"]
            .as_array()
            .context("no validations")?
        {
            ensure!(
                validation["reason"] == "Forbidden" && validation["messageExpression"].is_string(),
                "{validation}"
            );
        }
    }
    for kind in [policy, binding] {
        ensure!(
            of(&["admissionPolicies.enabled=false"], kind)?.is_empty(),
            "a {kind} is left"
        );
    }
    let without = of(&["admissionPolicies.environmentSecrets=false"], policy)?;
    let pools = find(&without, policy, "flotilla-agentpools").context("no policy of pools")?;
    ensure!(!pools.to_string().contains("'secrets'"), "{pools}");
    ensure!(
        pools["spec"]["validations"].as_array().map(Vec::len) == Some(1),
        "{pools}"
    );
    for (values, expected) in [
        (&[][..], json!(["Deny"])),
        (
            &["admissionPolicies.actions={Warn,Audit}"],
            json!(["Warn", "Audit"]),
        ),
    ] {
        for binding in of(values, binding)? {
            ensure!(binding["spec"]["validationActions"] == expected, "{binding}");
        }
    }
    Ok(())
}

#[test]
fn an_images_reference_follows_the_values() -> Result<()> {
    let digest = format!("sha256:{}", "ab".repeat(32));
    let with_digest = format!("operator.image.digest={digest}");
    for (values, expected) in [
        (vec![], "flotilla.dev/operator:dev".to_owned()),
        (
            vec!["operator.image.tag=1.2.3"],
            "flotilla.dev/operator:1.2.3".to_owned(),
        ),
        (
            vec![
                "global.imageRegistry=r.example.com/x",
                "operator.image.registry=y",
            ],
            "r.example.com/x/operator:dev".to_owned(),
        ),
        (
            vec![with_digest.as_str(), "operator.image.tag=1.2.3"],
            format!("flotilla.dev/operator@{digest}"),
        ),
        (vec!["operator.image.registry="], "operator:dev".to_owned()),
    ] {
        let objects = objects(&render("helm", "flotilla-system", &values)?)?;
        let operator = find(&objects, "Deployment", "flotilla-operator").context("no operator")?;
        assert_eq!(
            operator["spec"]["template"]["spec"]["containers"][0]["image"], expected,
            "{values:?}"
        );
    }
    Ok(())
}
