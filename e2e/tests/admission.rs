//! What the API server itself refuses, with which words, and what it accepts: the table of `crds/tests/cel_cases.yaml`.
//!
//! Objects are created with a dry run, so nothing is left behind and no operator is needed; the definitions are those
//! in the cluster. A case about a change creates its first object for real, since a dry run has nothing to change.

use anyhow::{Context, Result, ensure};
use flotilla_e2e::{Namespace, with_namespace};
use kube::api::{Patch, PatchParams, PostParams};
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use kube::{Api, discovery};
use serde_json::Value;

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
