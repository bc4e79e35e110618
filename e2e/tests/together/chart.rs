//! The Helm chart: lint, rendering, schemas, rights, and an installation, with Helm 4 and Helm 3.

use anyhow::{Context, Result, bail, ensure};
use flotilla_e2e::{Namespace, with_namespace};
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

const TABLE_START: &str = "<!-- values: generated from values.yaml by `FLOTILLA_UPDATE=1 cargo test -p flotilla-e2e --test together chart::readme` -->\n";
const TABLE_END: &str = "<!-- end of values -->";

/// The comments `# -- …` of the values, by the path of the value below them.
fn comments(values: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut path: Vec<(usize, String)> = Vec::new();
    let mut comment: Option<String> = None;
    for line in values.lines() {
        let text = line.trim_start();
        let indent = line.len() - text.len();
        if let Some(first) = text.strip_prefix("# -- ") {
            comment = Some(first.to_owned());
        } else if let Some(more) = text.strip_prefix("# ") {
            comment = comment.map(|comment| format!("{comment} {more}"));
        } else if let Some((key, _)) = text.split_once(':') {
            path.retain(|(depth, _)| *depth < indent);
            path.push((indent, key.to_owned()));
            if let Some(comment) = comment.take() {
                let names: Vec<&str> = path.iter().map(|(_, name)| name.as_str()).collect();
                found.insert(names.join("."), comment);
            }
        }
    }
    found
}

/// Rows of the table: every documented value; a leaf without a comment is an error.
fn rows(
    at: &str,
    values: &Map<String, Value>,
    comments: &BTreeMap<String, String>,
    rows: &mut String,
) -> Result<()> {
    for (name, value) in values {
        let path = if at.is_empty() {
            name.clone()
        } else {
            format!("{at}.{name}")
        };
        match (comments.get(&path), value) {
            (Some(comment), value) => rows.push_str(&format!(
                "| `{path}` | `{value}` | {} |\n",
                comment.replace('|', "\\|")
            )),
            (None, Value::Object(inner)) if !inner.is_empty() => self::rows(&path, inner, comments, rows)?,
            (None, _) => bail!("values.yaml: {path} has no comment `# -- …`"),
        }
    }
    Ok(())
}

#[test]
fn readme_lists_every_value() -> Result<()> {
    let text = std::fs::read_to_string(root().join("charts/flotilla/values.yaml"))?;
    let values: Value = serde_saphyr::from_str(&text)?;
    let mut table = "| value | default | |\n|---|---|---|\n".to_owned();
    rows(
        "",
        values.as_object().context("values are a map")?,
        &comments(&text),
        &mut table,
    )?;
    let path = root().join("charts/flotilla/README.md");
    let readme = std::fs::read_to_string(&path)?;
    let (before, rest) = readme
        .split_once(TABLE_START)
        .context("README.md has lost the mark before the table")?;
    let (_, after) = rest
        .split_once(TABLE_END)
        .context("README.md has lost the mark after the table")?;
    let fresh = format!("{before}{TABLE_START}\n{table}\n{TABLE_END}{after}");
    if std::env::var_os("FLOTILLA_UPDATE").is_some() {
        std::fs::write(&path, fresh)?;
    } else {
        ensure!(
            readme == fresh,
            "charts/flotilla/README.md is stale; run `FLOTILLA_UPDATE=1 cargo test -p flotilla-e2e --test together chart::readme`"
        );
    }
    Ok(())
}

/// A folder with one JSON schema per kind, from the API server's own OpenAPI: nothing is fetched, and the version is the
/// one the objects will meet.
async fn schemas(namespace: &Namespace) -> Result<PathBuf> {
    let folder = std::env::temp_dir().join(format!("{}-schemas", namespace.name));
    std::fs::create_dir_all(&folder)?;
    for group in [
        "api/v1",
        "apis/apps/v1",
        "apis/policy/v1",
        "apis/rbac.authorization.k8s.io/v1",
        "apis/networking.k8s.io/v1",
        "apis/admissionregistration.k8s.io/v1",
        "apis/apiextensions.k8s.io/v1",
    ] {
        let request = http::Request::get(format!("/openapi/v3/{group}")).body(Vec::new())?;
        let mut document: Value = namespace
            .cluster
            .client
            .request(request)
            .await
            .with_context(|| format!("no OpenAPI of {group}"))?;
        let mut components = document["components"].take();
        for schema in components["schemas"]
            .as_object_mut()
            .into_iter()
            .flat_map(|schemas| schemas.values_mut())
        {
            // What `kubectl` would warn of as an unknown field.
            if schema["properties"].is_object() && schema["x-kubernetes-preserve-unknown-fields"].is_null() {
                schema["additionalProperties"] = json!(false);
            }
        }
        for (name, schema) in components["schemas"].as_object().into_iter().flatten() {
            for kind in schema["x-kubernetes-group-version-kind"]
                .as_array()
                .into_iter()
                .flatten()
            {
                let word = |key: &str| kind[key].as_str().unwrap_or_default().to_ascii_lowercase();
                let first = word("group").split('.').next().unwrap_or_default().to_owned();
                let suffix = if first.is_empty() {
                    word("version")
                } else {
                    format!("{first}-{}", word("version"))
                };
                let file = folder.join(format!("{}-{suffix}.json", word("kind")));
                let content =
                    json!({"components": components, "$ref": format!("#/components/schemas/{name}")});
                std::fs::write(file, content.to_string())?;
            }
        }
    }
    Ok(folder)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_object_fits_its_schema() {
    with_namespace("chart-schemas", async |namespace: Namespace| {
        let folder = schemas(&namespace).await?;
        let location = format!(
            "{}/{{{{ .ResourceKind }}}}{{{{ .KindSuffix }}}}.json",
            folder.display()
        );
        let check = |text: &str| -> Result<String> {
            let file = folder.join("rendered.yaml");
            std::fs::write(&file, text)?;
            run(
                "kubeconform",
                &["-summary", "-schema-location", &location, &file.to_string_lossy()],
            )
        };
        for values in VARIANTS {
            for helm in HELMS {
                let rendered = render(helm, &namespace.name, values)?;
                let summary = check(&rendered)?;
                ensure!(
                    summary.contains("Invalid: 0, Errors: 0, Skipped: 0"),
                    "{helm} {values:?}: {summary}"
                );
                // The server's own word, with its defaults and CEL type checks.
                let file = folder.join("rendered.yaml");
                let watched = values.iter().any(|value| value.contains("watchNamespaces"));
                if !watched {
                    namespace
                        .kubectl(&[
                            "apply",
                            "--server-side",
                            "--force-conflicts",
                            "--dry-run=server",
                            "-f",
                            &file.to_string_lossy(),
                        ])
                        .await?;
                }
            }
        }
        let broken = render("helm", &namespace.name, &[])?.replacen("replicas: 2", "replica: 2", 1);
        ensure!(
            check(&broken).is_err(),
            "kubeconform accepts an unknown field, so it says nothing about the others"
        );
        std::fs::remove_dir_all(&folder)?;
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_pass_pod_security_restricted() {
    with_namespace("chart-pods", async |namespace: Namespace| {
        namespace
            .kubectl(&["create", "serviceaccount", "flotilla-operator"])
            .await?;
        let objects = objects(&render("helm", &namespace.name, &["simulator.enabled=true"])?)?;
        for name in ["flotilla-operator", "flotilla-simulator"] {
            let deployment =
                find(&objects, "Deployment", name).with_context(|| format!("no Deployment {name}"))?;
            let mut pod = deployment["spec"]["template"].clone();
            pod["apiVersion"] = json!("v1");
            pod["kind"] = json!("Pod");
            pod["metadata"]["name"] = json!(name);
            // The namespace's `default` appears a moment later.
            pod["spec"]["serviceAccountName"] = json!("flotilla-operator");
            let url = format!(
                "/api/v1/namespaces/{}/pods?dryRun=All&fieldValidation=Strict",
                namespace.name
            );
            let request = http::Request::post(url)
                .header("content-type", "application/json")
                .body(pod.to_string().into_bytes())?;
            namespace
                .cluster
                .client
                .request::<Value>(request)
                .await
                .with_context(|| format!("the pod of {name} is refused"))?;
        }
        Ok(())
    })
    .await;
}

/// The definitions, cluster roles and policies are the cluster's, installed once by `make install`; here each Helm
/// installs what lives in a namespace, and the operator must become ready with rights in that namespace only.
#[tokio::test(flavor = "multi_thread")]
async fn both_helms_install_upgrade_and_uninstall() {
    for helm in HELMS {
        with_namespace(&format!("chart-{helm}"), async move |namespace: Namespace| {
            let name = namespace.name.clone();
            let subject = json!([{"kind": "ServiceAccount", "name": "flotilla-operator", "namespace": name}]);
            let bind = |binding: &str, kind: &str, role: &str| {
                json!({
                    "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": binding}, "subjects": subject,
                    "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": role}
                })
            };
            namespace
                .apply(&json!({
                    "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "leases"},
                    "rules": [{"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["get", "create", "update", "patch"]}]
                }))
                .await?;
            namespace.apply(&bind("leases", "Role", "leases")).await?;
            namespace.apply(&bind("operator", "ClusterRole", "flotilla-operator")).await?;
            let kubeconfig = namespace.cluster.kubeconfig.to_string_lossy().into_owned();
            let watch = format!("operator.watchNamespaces={{{name}}}");
            let chart = chart();
            let install = |command: &str, values: &[&str]| {
                let mut arguments = vec![command, "flotilla", &chart, "--kubeconfig", &kubeconfig, "--namespace", &name];
                arguments.extend(["--wait", "--timeout", "150s", "--set", &watch]);
                for value in VARIANTS[3].iter().filter(|value| !value.starts_with("operator.")).chain(values) {
                    arguments.extend(["--set", value]);
                }
                run(helm, &arguments)
            };
            let notes = install("install", &[])?;
            ensure!(notes.contains("kubectl get agentpools") && notes.contains(&name), "the notes do not say what to do next: {notes}");
            let ready = ["get", "deployment", "flotilla-operator", "-o", "jsonpath={.status.readyReplicas}"];
            ensure!(namespace.kubectl(&ready).await? == "2", "two replicas must be ready");
            install("upgrade", &["operator.logLevel=debug", "operator.replicaCount=1"])?;
            ensure!(namespace.kubectl(&ready).await? == "1", "one replica must be left");
            run(helm, &["uninstall", "flotilla", "--kubeconfig", &kubeconfig, "--namespace", &name, "--wait"])?;
            let left = namespace.kubectl(&["get", "deployments,services,serviceaccounts,pdb", "-l", "app.kubernetes.io/part-of=flotilla", "-o", "name"]).await?;
            ensure!(left.is_empty(), "left behind: {left}");
            namespace.kubectl(&["get", "crd", "agentpools.flotilla.dev"]).await.map(drop)
        })
        .await;
    }
}

/// On the cluster's own installation: what the operator's account may do, asked of the API server.
#[tokio::test(flavor = "multi_thread")]
async fn the_operator_may_bind_the_gateways_role_and_no_other() {
    with_namespace("chart-rights", async |namespace: Namespace| {
        let user = format!("--as={}", flotilla_e2e::operator::USER);
        let bind = async |role: &str| {
            let role = format!("--clusterrole={role}");
            let subject = format!("--serviceaccount={}:flotilla-gateway", namespace.name);
            namespace
                .kubectl(&[
                    "create",
                    "rolebinding",
                    "flotilla-gateway",
                    &role,
                    &subject,
                    "--dry-run=server",
                    &user,
                ])
                .await
        };
        bind("flotilla-gateway").await?;
        for role in ["system:aggregate-to-edit", "cluster-admin"] {
            let refused = bind(role)
                .await
                .err()
                .map(|error| error.to_string())
                .unwrap_or_default();
            ensure!(
                refused.contains("attempting to grant RBAC permissions not currently held"),
                "{role}: {refused}"
            );
        }
        for (verb, resource) in [
            ("get", "secrets"),
            ("list", "secrets"),
            ("create", "clusterrolebindings"),
            ("update", "agentpools"),
        ] {
            let answer = namespace.kubectl(&["auth", "can-i", verb, resource, &user]).await;
            ensure!(answer.is_err(), "the operator may {verb} {resource}");
        }
        let answer = namespace
            .kubectl(&["auth", "can-i", "list", "agentpools.flotilla.dev", &user])
            .await?;
        ensure!(
            answer.trim() == "yes",
            "the operator may not list AgentPools: {answer}"
        );
        Ok(())
    })
    .await;
}
