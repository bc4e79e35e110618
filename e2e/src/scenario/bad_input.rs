//! Bad input that only shows in the cluster: each gives a condition with a sentence, and recovers when mended.

use super::pool::{self, SOON};
use crate::fixtures::with;
use crate::{Namespace, fixtures, wait};
use anyhow::{Context, Result, ensure};
use flotilla_crds::common::find;
use flotilla_crds::{AgentPool, LoadTest, ModelProvider};
use serde_json::{Value, json};
use std::time::Duration;

/// Waits until condition Ready of a pool is not True and its message names `word`; gives reason and message.
async fn pool_says(namespace: &Namespace, pool: &str, reasons: &[&str], word: &str) -> Result<()> {
    let api = namespace.api::<AgentPool>();
    wait::until(
        &format!("pool {pool} to say {reasons:?} and name {word}"),
        Duration::from_secs(90),
        || async {
            let status = api
                .get(pool)
                .await
                .map_err(|e| e.to_string())?
                .status
                .unwrap_or_default();
            let ready = find(&status.conditions, "Ready")
                .ok_or("no Ready condition")?
                .clone();
            if ready.status != "True"
                && reasons.contains(&ready.reason.as_str())
                && ready.message.contains(word)
            {
                Ok(())
            } else {
                Err(format!(
                    "{}={} {}: {}",
                    ready.type_, ready.status, ready.reason, ready.message
                ))
            }
        },
    )
    .await
}

/// A ConfigMap that is not there: named, waited for, recovered.
pub async fn missing_config_map(namespace: Namespace) -> Result<()> {
    pool::provider(&namespace).await?;
    let prompt = json!({"configMapKeyRef": {"name": "cases", "key": "prompt.md"}});
    namespace
        .apply(&with(fixtures::pool("support", 1), "/spec/agent/prompt", prompt))
        .await?;
    pool_says(&namespace, "support", &["WaitingForReference"], "cases").await?;
    let map = |data: Value| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "cases"}, "data": data});
    namespace.apply(&map(json!({"other": "x"}))).await?;
    pool_says(&namespace, "support", &["WaitingForReference"], "prompt.md").await?;
    namespace
        .apply(&map(json!({"prompt.md": fixtures::PROMPT})))
        .await?;
    pool::ready(&namespace, "support", SOON).await.map(drop)
}

/// A ModelProvider that is not there.
pub async fn missing_provider(namespace: Namespace) -> Result<()> {
    namespace.apply(&fixtures::pool("support", 1)).await?;
    pool_says(&namespace, "support", &["WaitingForReference"], "main").await?;
    pool::provider(&namespace).await?;
    pool::ready(&namespace, "support", SOON).await.map(drop)
}

/// A provider's Secret that is not there: seen through the gateway, never by reading Secrets.
pub async fn missing_secret(namespace: Namespace) -> Result<()> {
    let auth =
        json!({"type": "APIKey", "apiKey": {"secretKeyRef": {"name": "provider-key", "key": "api-key"}}});
    let mut provider = fixtures::provider("main");
    provider["spec"]["auth"] = auth;
    namespace.apply(&provider).await?;
    namespace.apply(&fixtures::pool("support", 1)).await?;
    let api = namespace.api::<ModelProvider>();
    let state = |want: &'static str, word: &'static str| {
        let api = api.clone();
        async move {
            wait::until(
                &format!("the provider to be Ready={want}"),
                Duration::from_secs(120),
                || async {
                    let status = api
                        .get("main")
                        .await
                        .map_err(|e| e.to_string())?
                        .status
                        .unwrap_or_default();
                    let ready = find(&status.conditions, "Ready")
                        .ok_or("no Ready condition")?
                        .clone();
                    if ready.status == want && ready.message.contains(word) {
                        Ok(())
                    } else {
                        Err(format!("{ready:?}"))
                    }
                },
            )
            .await
        }
    };
    state("False", "provider-key").await?;
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "provider-key"}, "stringData": {"api-key": "sk-e2e"}});
    namespace.apply(&secret).await?;
    state("True", "").await
}

/// An agent's own Secret that is not there: seen from the pods.
pub async fn missing_agent_secret(namespace: Namespace) -> Result<()> {
    pool::provider(&namespace).await?;
    let mut object = fixtures::pool("support", 1);
    object["spec"]["agent"]["env"] =
        json!([{"name": "CRM", "valueFrom": {"secretKeyRef": {"name": "crm", "key": "token"}}}]);
    object["spec"]["rollout"]["progressDeadlineSeconds"] = json!(15);
    namespace.apply(&object).await?;
    pool_says(&namespace, "support", &["ConfigError"], "crm").await?;
    namespace.apply(&json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "crm"}, "stringData": {"token": "t"}})).await?;
    pool::ready(&namespace, "support", Duration::from_secs(120))
        .await
        .map(drop)
}

/// A LoadTest of a pool that is not there.
pub async fn missing_pool(namespace: Namespace) -> Result<()> {
    namespace
        .apply(&fixtures::load_test("early", "support", "5", 5, 1))
        .await?;
    let api = namespace.api::<LoadTest>();
    wait::until("the test to wait for its pool", SOON, || async {
        let status = api
            .get("early")
            .await
            .map_err(|e| e.to_string())?
            .status
            .unwrap_or_default();
        let ready = find(&status.conditions, "Ready")
            .ok_or("no Ready condition")?
            .clone();
        if ready.reason == "WaitingForReference" && ready.message.contains("support") {
            Ok(())
        } else {
            Err(format!("{ready:?}"))
        }
    })
    .await?;
    pool::provider(&namespace).await?;
    namespace.apply(&fixtures::pool("support", 1)).await?;
    super::load_test::complete(&namespace, "early", Duration::from_secs(120))
        .await
        .map(drop)
}

/// An image that cannot be pulled: the release stops with the reason from the pods, stable serves, mending ends it.
pub async fn unpullable_image(namespace: Namespace) -> Result<()> {
    pool::provider(&namespace).await?;
    let mut base = fixtures::pool("support", 1);
    base["spec"]["rollout"]["progressDeadlineSeconds"] = json!(15);
    namespace.apply(&base).await?;
    pool::ready(&namespace, "support", SOON).await?;
    namespace
        .apply(&with(
            base.clone(),
            "/spec/agent/image",
            json!("flotilla.dev/no-such-agent:1"),
        ))
        .await?;
    pool::condition_is(
        &namespace,
        "support",
        "Stalled",
        &["ImagePull"],
        Duration::from_secs(120),
    )
    .await?;
    let status = namespace
        .api::<AgentPool>()
        .get("support")
        .await?
        .status
        .context("no status")?;
    ensure!(
        flotilla_crds::common::is_true(&status.conditions, "Available"),
        "stable must go on serving: {status:?}"
    );
    namespace.apply(&base).await?;
    pool::ready(&namespace, "support", SOON).await.map(drop)
}

/// A namespace whose quota allows no pod.
pub async fn quota_zero(namespace: Namespace) -> Result<()> {
    let quota = json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}}});
    namespace.apply(&quota).await?;
    pool::provider(&namespace).await?;
    let mut object = fixtures::pool("support", 1);
    object["spec"]["rollout"]["progressDeadlineSeconds"] = json!(15);
    namespace.apply(&object).await?;
    pool_says(&namespace, "support", &["QuotaExceeded"], "quota").await?;
    namespace.kubectl(&["delete", "resourcequota", "none"]).await?;
    pool::ready(&namespace, "support", Duration::from_secs(120))
        .await
        .map(drop)
}

/// A child's name that is taken by somebody else's object.
pub async fn name_taken(namespace: Namespace) -> Result<()> {
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "support"}, "spec": {"ports": [{"port": 80}], "selector": {"app": "other"}}});
    namespace.apply(&service).await?;
    pool::provider(&namespace).await?;
    namespace.apply(&fixtures::pool("support", 1)).await?;
    pool_says(&namespace, "support", &["NameTaken"], "support").await?;
    let kept = namespace
        .kubectl(&["get", "service", "support", "-o", "jsonpath={.spec.selector.app}"])
        .await?;
    ensure!(
        kept == "other",
        "somebody else's Service was changed: selector app={kept}"
    );
    namespace.kubectl(&["delete", "service", "support"]).await?;
    pool::ready(&namespace, "support", SOON).await.map(drop)
}

/// A `podTemplate` that the API server refuses: its sentence is shown.
pub async fn bad_pod_template(namespace: Namespace) -> Result<()> {
    pool::provider(&namespace).await?;
    let base = fixtures::pool("support", 1);
    let mut bad = base.clone();
    bad["spec"]["agent"]["podTemplate"] = json!({"spec": {"restartPolicy": "Sometimes"}});
    namespace.apply(&bad).await?;
    pool_says(&namespace, "support", &["InvalidPodTemplate"], "Sometimes").await?;
    namespace.apply(&base).await?;
    // `kubectl apply` removes podTemplate, since the last applied object had it.
    pool::ready(&namespace, "support", SOON).await.map(drop)
}
