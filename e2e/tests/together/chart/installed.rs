//! The chart beside a real API server: schemas, Pod Security, rights, and an installation.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use flotilla_e2e::{Namespace, with_namespace};
use serde_json::{Value, json};

use super::{HELMS, VARIANTS, chart, find, objects, render, run};

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
