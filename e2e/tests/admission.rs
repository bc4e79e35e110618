//! What the API server itself refuses, with which words, and what it accepts: the table of `crds/tests/cel_cases.yaml`.
//!
//! Objects are created with a dry run, so nothing is left behind and no operator is needed; the definitions are those
//! in the cluster. A case about a change creates its first object for real, since a dry run has nothing to change.

use anyhow::{Context, Result, ensure};
use flotilla_e2e::{Namespace, with_namespace};
use kube::api::{Patch, PatchParams, PostParams};
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use kube::{Api, discovery};
use serde_json::{Value, json};

#[tokio::test(flavor = "multi_thread")]
async fn the_api_server_says_what_the_table_says() {
    with_namespace("admission", every_case).await;
}

async fn every_case(namespace: Namespace) -> Result<()> {
    let table: Value = serde_saphyr::from_str(include_str!("../../crds/tests/cel_cases.yaml"))?;
    let cases = table["cases"].as_array().context("no cases")?;
    ensure!(cases.len() > 80, "the table has {} cases", cases.len());
    let mut wrong = Vec::new();
    for (index, case) in cases.iter().enumerate() {
        let base = &table["bases"][case["base"].as_str().context("a case without base")?];
        let said = one(&namespace, index, base, case)
            .await
            .with_context(|| format!("case {}", case["name"]))?;
        let good = match (case["says"].as_str(), &said) {
            (Some(says), Some(message)) => message.contains(says),
            (None, None) => true,
            _ => false,
        };
        if !good {
            wrong.push(format!(
                "{}: expected {}, got {said:?}",
                case["name"], case["says"]
            ));
        }
    }
    ensure!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    Ok(())
}

/// The API server's message about one case; none when it accepts the object.
async fn one(namespace: &Namespace, index: usize, base: &Value, case: &Value) -> Result<Option<String>> {
    let patched = |patch: &Value| {
        let mut object = base.clone();
        json_patch::merge(&mut object, patch);
        object
    };
    let mut object = patched(&case["set"]);
    let api = api_of(namespace, base).await?;
    let result = if let Some(old) = case.get("old") {
        let mut old = patched(old);
        let name = format!("case-{index}");
        old["metadata"]["name"] = Value::String(name.clone());
        object["metadata"]["name"] = Value::String(name.clone());
        // Suspended, a LoadTest starts nothing; a RolloutAction's pool does not exist.
        if base["kind"] == "LoadTest" {
            old["spec"]["suspend"] = Value::Bool(true);
        }
        api.create(&PostParams::default(), &serde_json::from_value(old)?)
            .await
            .context("failed to create the first")?;
        let parameters = PatchParams {
            dry_run: true,
            ..PatchParams::default()
        };
        api.patch(&name, &parameters, &Patch::Merge(merge_of(&object, case)))
            .await
    } else {
        // Strict, as kubectl sends it: an unknown field is an error. `PostParams` has no word for it.
        let url = format!("{}?dryRun=All&fieldValidation=Strict", api.resource_url());
        let request = http::Request::post(url)
            .header("content-type", "application/json")
            .body(object.to_string().into_bytes())?;
        namespace.cluster.client.request::<DynamicObject>(request).await
    };
    match result {
        Ok(_) => Ok(None),
        Err(kube::Error::Api(status)) => Ok(Some(status.message)),
        Err(error) => Err(error.into()),
    }
}

/// A change as a user's `kubectl edit` sends it: only what differs, with nulls for what goes away.
fn merge_of(object: &Value, case: &Value) -> Value {
    let mut patch = case["set"].clone();
    patch["apiVersion"] = object["apiVersion"].clone();
    patch["kind"] = object["kind"].clone();
    patch
}

async fn api_of(namespace: &Namespace, base: &Value) -> Result<Api<DynamicObject>> {
    let kind = base["kind"].as_str().context("a base without kind")?;
    let version = GroupVersionKind::gvk(flotilla_crds::GROUP, flotilla_crds::VERSION, kind);
    let (resource, _): (ApiResource, _) = discovery::pinned_kind(&namespace.cluster.client, &version)
        .await
        .with_context(|| format!("{kind} is not known to the cluster; is the chart installed?"))?;
    Ok(Api::namespaced_with(
        namespace.cluster.client.clone(),
        &namespace.name,
        &resource,
    ))
}

/// The chart's admission policies: the operator makes pods and mounts Secrets, so whoever may only write our kinds must
/// not be able to use its hand.
#[tokio::test(flavor = "multi_thread")]
async fn the_operators_rights_are_not_lent() {
    with_namespace("lent-rights", async |namespace: Namespace| {
        let role = |name: &str, rules: Value| {
            json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": name}, "rules": rules})
        };
        let bind = |name: &str| {
            json!({
                "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": name},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
                "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "eve"}]
            })
        };
        let verbs = json!(["get", "create", "update", "patch"]);
        namespace.apply(&role("kinds", json!([{"apiGroups": ["flotilla.dev"], "resources": ["agentpools", "modelproviders"], "verbs": verbs}]))).await?;
        namespace.apply(&role("more", json!([{"apiGroups": [""], "resources": ["pods"], "verbs": ["create"]}, {"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["theirs"], "verbs": ["get"]}]))).await?;
        namespace.apply(&bind("kinds")).await?;
        let object = |kind: &str, spec: Value| json!({"apiVersion": "flotilla.dev/v1alpha1", "kind": kind, "metadata": {"name": "x"}, "spec": spec});
        let pool = |agent: Value| object("AgentPool", json!({"agent": agent}));
        let secret = |name: &str| object("ModelProvider", json!({"endpoint": "https://e/v1", "auth": {"type": "APIKey", "apiKey": {"secretKeyRef": {"name": name, "key": "k"}}}}));
        let template = pool(json!({"image": "i", "podTemplate": {"spec": {"nodeSelector": {"a": "b"}}}}));
        // May eve create it?
        let may = async |object: &Value| -> Result<Option<String>> {
            let url = match object["kind"].as_str() {
                Some("AgentPool") => "agentpools",
                _ => "modelproviders",
            };
            let url = format!("/apis/flotilla.dev/v1alpha1/namespaces/{}/{url}?dryRun=All", namespace.name);
            let request = http::Request::post(url)
                .header("content-type", "application/json")
                .header("impersonate-user", "eve")
                .body(object.to_string().into_bytes())?;
            match namespace.cluster.client.request::<DynamicObject>(request).await {
                Ok(_) => Ok(None),
                Err(kube::Error::Api(status)) => Ok(Some(status.message)),
                Err(error) => Err(error.into()),
            }
        };
        // Rights and policies reach the API server's caches a moment after they are written.
        flotilla_e2e::wait::until("eve's first rights", std::time::Duration::from_secs(30), || async {
            match may(&pool(json!({"image": "i"}))).await {
                Ok(None) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await?;
        for (object, says) in [
            (&template, "need the right to create pods in namespace"),
            (&pool(json!({"image": "i", "serviceAccountName": "admin"})), "which eve has not"),
            (&secret("theirs"), "spec.auth sends Secret theirs to spec.endpoint, which needs the right to get it"),
        ] {
            let said = may(object).await?.with_context(|| format!("accepted: {object}"))?;
            ensure!(said.contains(says), "{said}");
        }
        ensure!(may(&object("ModelProvider", json!({"endpoint": "https://e/v1"}))).await?.is_none(), "a provider without a key needs no right");
        namespace.apply(&bind("more")).await?;
        flotilla_e2e::wait::until("eve's further rights", std::time::Duration::from_secs(30), || async {
            for object in [&template, &secret("theirs")] {
                if let Some(said) = may(object).await.map_err(|error| error.to_string())? {
                    return Err(said);
                }
            }
            Ok(())
        })
        .await?;
        ensure!(may(&secret("others")).await?.is_some(), "another Secret must stay out of reach");
        Ok(())
    })
    .await;
}
