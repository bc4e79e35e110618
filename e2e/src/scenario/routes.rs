//! Pools whose traffic does not go through Flotilla's gateway, and testers.
//!
//! The Gateway API is not fetched: the definition of HTTPRoute here is as small as the scenario needs, and a task plays the
//! controller of the Gateway by writing what one says in `status.parents`. So this shows the operator's part, on the real API server;
//! that a proxy follows the route is the proxy's own conformance.

use super::pool::{self, SOON};
use crate::fixtures::with;
use crate::{Cluster, Namespace, fixtures, wait};
use anyhow::{Context, Result, ensure};
use flotilla_crds::AgentPool;
use flotilla_crds::common::{condition, find};
use kube::Api;
use kube::api::{DynamicObject, Patch, PatchParams};
use kube::core::{ApiResource, GroupVersionKind};
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const DEFINITION: &str = "httproutes.gateway.networking.k8s.io";

/// HTTPRoute `v1`, as small as it can be. Names below `k8s.io` need an annotation that says that nobody has reviewed them.
fn definition() -> Value {
    let open = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": DEFINITION, "annotations": {
            "api-approved.kubernetes.io": "unapproved, written by Flotilla's tests",
        }},
        "spec": {
            "group": "gateway.networking.k8s.io", "scope": "Namespaced",
            "names": {"kind": "HTTPRoute", "plural": "httproutes", "singular": "httproute"},
            "versions": [{
                "name": "v1", "served": true, "storage": true, "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                    "spec": {"type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {
                        "rules": {"type": "array", "x-kubernetes-list-type": "atomic", "items": open},
                        "parentRefs": {"type": "array", "x-kubernetes-list-type": "atomic", "items": open},
                    }},
                    "status": open,
                }}},
            }],
        },
    })
}

fn routes(namespace: &Namespace) -> Api<DynamicObject> {
    let kind = GroupVersionKind::gvk("gateway.networking.k8s.io", "v1", "HTTPRoute");
    let resource = ApiResource::from_gvk_with_plural(&kind, "httproutes");
    Api::namespaced_with(namespace.cluster.client.clone(), &namespace.name, &resource)
}

/// The Gateway's controller: accepts every route at its present generation.
async fn accept_routes(namespace: Namespace) {
    let api = routes(&namespace);
    loop {
        if let Ok(list) = api.list(&kube::api::ListParams::default()).await {
            for route in list {
                let generation = route.metadata.generation;
                let seen = route
                    .data
                    .pointer("/status/parents/0/conditions/0/observedGeneration");
                if seen.and_then(Value::as_i64) == generation {
                    continue;
                }
                let condition = |type_: &str| {
                    json!({
                        "type": type_, "status": "True", "reason": type_, "message": "", "observedGeneration": generation,
                        "lastTransitionTime": "2026-11-21T10:00:00Z",
                    })
                };
                let parents = route.data.pointer("/spec/parentRefs").and_then(Value::as_array);
                let parents: Vec<Value> = parents
                    .into_iter()
                    .flatten()
                    .map(|parent| {
                        json!({
                            "parentRef": parent, "controllerName": "flotilla.dev/test",
                            "conditions": [condition("Accepted"), condition("ResolvedRefs")],
                        })
                    })
                    .collect();
                let status = json!({"status": {"parents": parents}});
                let name = route.metadata.name.unwrap_or_default();
                let _ = api
                    .patch_status(&name, &PatchParams::default(), &Patch::Merge(&status))
                    .await;
            }
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Waits until `Ready` has this reason; gives its message.
async fn says(namespace: &Namespace, reason: &str, limit: Duration) -> Result<String> {
    let api = namespace.api::<AgentPool>();
    wait::until(&format!("the pool to say {reason}"), limit, || async {
        let status = api
            .get("support")
            .await
            .map_err(|e| e.to_string())?
            .status
            .unwrap_or_default();
        let ready = find(&status.conditions, condition::READY).ok_or("no Ready condition")?;
        if ready.reason == reason {
            Ok(ready.message.clone())
        } else {
            Err(format!("{}: {}", ready.reason, ready.message))
        }
    })
    .await
}

/// Weights of the route's last rule.
async fn weights(namespace: &Namespace) -> Result<Vec<i64>, String> {
    let route = routes(namespace)
        .get("support")
        .await
        .map_err(|e| e.to_string())?;
    let rules = route
        .data
        .pointer("/spec/rules")
        .and_then(Value::as_array)
        .cloned();
    let last = rules.and_then(|rules| rules.last().cloned()).unwrap_or_default();
    let backends = last["backendRefs"].as_array().cloned().unwrap_or_default();
    Ok(backends
        .iter()
        .filter_map(|backend| backend["weight"].as_i64())
        .collect())
}

async fn weights_become(namespace: &Namespace, expected: &[i64], limit: Duration) -> Result<()> {
    wait::until(&format!("weights {expected:?} in the route"), limit, || async {
        let weights = weights(namespace).await?;
        if weights == expected {
            Ok(())
        } else {
            Err(format!("{weights:?}"))
        }
    })
    .await
}

/// What [`http_route`] has measured.
#[derive(Clone, Debug)]
pub struct Routed {
    /// The cluster had no Gateway API before, so that its absence was seen, too.
    pub was_absent: bool,
    /// From a change of the route by hand to its correction.
    pub corrected_milliseconds: u128,
}

/// A pool with an HTTPRoute: without the Gateway API, with it, with a Gateway that accepts, through a canary, and back.
pub async fn http_route(namespace: Namespace) -> Result<Routed> {
    let was_absent = definitions(&namespace.cluster).await?.is_none();
    pool::provider(&namespace).await?;
    let step = json!({"weight": 25, "minDurationSeconds": 20, "decideWithinSeconds": 600});
    let base = with(
        with(
            fixtures::pool("support", 2),
            "/spec/traffic",
            json!({"type": "HTTPRoute", "httpRoute": {"parentRefs": [{"name": "public", "namespace": "infra"}]}}),
        ),
        "/spec/rollout",
        json!({"type": "Canary", "settleSeconds": 0, "canary": {"steps": [step], "bakeSeconds": 5, "scaleDownDelaySeconds": 0}}),
    );
    namespace.apply(&base).await?;
    if was_absent {
        let message = says(&namespace, "GatewayAPIMissing", SOON).await?;
        ensure!(
            message.contains("install the CRDs of the Gateway API"),
            "{message}"
        );
        namespace.apply(&definition()).await?;
    }
    let result = with_definition(namespace.clone(), base).await;
    if was_absent {
        namespace
            .cluster
            .kubectl(&["delete", "crd", DEFINITION, "--wait=false"])
            .await?;
    }
    Ok(Routed {
        was_absent,
        corrected_milliseconds: result?,
    })
}

async fn definitions(cluster: &Cluster) -> Result<Option<String>> {
    let found = cluster
        .kubectl(&["get", "crd", DEFINITION, "--ignore-not-found", "-o", "name"])
        .await?;
    Ok(Some(found.trim().to_owned()).filter(|name| !name.is_empty()))
}

async fn with_definition(namespace: Namespace, base: Value) -> Result<u128> {
    weights_become(&namespace, &[100], SOON).await?;
    let controller = tokio::spawn(accept_routes(namespace.clone()));
    let result = through_a_canary(&namespace, base).await;
    controller.abort();
    result
}

async fn through_a_canary(namespace: &Namespace, base: Value) -> Result<u128> {
    pool::ready(namespace, "support", SOON).await?;
    let prompt = format!("{} Be brief.", fixtures::PROMPT);
    let changed = with(base.clone(), "/spec/agent/prompt/text", json!(prompt));
    namespace.apply(&changed).await?;
    weights_become(namespace, &[75, 25], SOON).await?;
    let start = Instant::now();
    let emptied = json!({"spec": {"rules": [{"backendRefs": []}]}});
    routes(namespace)
        .patch("support", &PatchParams::default(), &Patch::Merge(&emptied))
        .await?;
    weights_become(namespace, &[75, 25], Duration::from_secs(5)).await?;
    let corrected = start.elapsed().as_millis();
    weights_become(namespace, &[100], Duration::from_secs(180)).await?;
    let after = pool::ready(namespace, "support", SOON).await?;
    ensure!(
        after.status.is_some_and(|status| status.rejected.is_empty()),
        "it was rejected"
    );
    namespace
        .apply(&with(changed, "/spec/traffic", json!({"type": "Gateway"})))
        .await?;
    wait::until("the route to go", SOON, || async {
        match routes(namespace).get_opt("support").await {
            Ok(None) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await?;
    Ok(corrected)
}

/// Workers without a front Service through a canary; gives the measured weights of its steps.
pub async fn workers(namespace: Namespace) -> Result<Vec<String>> {
    pool::provider(&namespace).await?;
    let step = |weight: i32| json!({"weight": weight, "minDurationSeconds": 10, "decideWithinSeconds": 600});
    let base = with(
        with(
            fixtures::pool("support", 3),
            "/spec/traffic",
            json!({"type": "ReplicaRatio"}),
        ),
        "/spec/rollout",
        json!({"type": "Canary", "settleSeconds": 0, "canary": {
            "candidateMinReplicas": 1, "steps": [step(1), step(50)], "bakeSeconds": 5,
        }}),
    );
    namespace.apply(&base).await?;
    let before = pool::ready(&namespace, "support", SOON).await?;
    ensure!(
        before.status.is_some_and(|status| status.gateway_port.is_none()),
        "it has a gateway port"
    );
    let services = namespace
        .kubectl(&[
            "get",
            "services",
            "-l",
            "flotilla.dev/pool=support,!flotilla.dev/revision",
            "-o",
            "name",
        ])
        .await?;
    ensure!(services.trim().is_empty(), "there is a front Service: {services}");
    let prompt = format!("{} Be brief.", fixtures::PROMPT);
    namespace
        .apply(&with(base, "/spec/agent/prompt/text", json!(prompt)))
        .await?;
    let api = namespace.api::<AgentPool>();
    let mut measured = Vec::new();
    for weight in [1, 50] {
        let share = wait::until(
            &format!("the step of {weight} %"),
            Duration::from_secs(120),
            || async {
                let status = api
                    .get("support")
                    .await
                    .map_err(|e| e.to_string())?
                    .status
                    .unwrap_or_default();
                let rollout = status.rollout.ok_or("no release")?;
                match rollout.step {
                    Some(step) if step.weight == weight => {
                        rollout.measured_weight_percent.ok_or("no share".to_owned())
                    }
                    other => Err(format!("{other:?} {:?}", rollout.waiting_for)),
                }
            },
        )
        .await?;
        measured.push(share);
    }
    pool::ready(&namespace, "support", Duration::from_secs(120)).await?;
    Ok(measured)
}

/// The revision that answers a request with these header lines, as a tester is told.
async fn answered_by(namespace: &Namespace, headers: &str) -> Result<Option<String>> {
    let address = pool::address(namespace, "support").await?;
    let mut stream = tokio::net::TcpStream::connect(address).await?;
    let request = format!("GET /healthz HTTP/1.1\r\nHost: support\r\nConnection: close\r\n{headers}\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    tokio::time::timeout(Duration::from_secs(30), stream.read_to_string(&mut answer)).await??;
    ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let named = answer
        .lines()
        .find_map(|line| line.strip_prefix("x-flotilla-revision: "));
    Ok(named.map(|name| name.trim().to_owned()))
}

/// Testers through the gateway: at stable before the release, at the candidate as soon as it has a replica, and in no evidence.
pub async fn testers(namespace: Namespace) -> Result<()> {
    const TESTER: &str = "X-Preview: candidate\r\n";
    pool::provider(&namespace).await?;
    let step = json!({"weight": 1, "minDurationSeconds": 600, "decideWithinSeconds": 3600});
    let base = with(
        fixtures::pool("support", 2),
        "/spec/rollout",
        json!({
            "type": "Canary", "settleSeconds": 0, "canary": {"steps": [step]},
            "preview": {"header": "X-Preview", "value": "candidate"},
        }),
    );
    namespace.apply(&base).await?;
    let before = pool::ready(&namespace, "support", SOON).await?;
    let stable = before
        .status
        .and_then(|status| status.stable)
        .map(|stable| stable.revision);
    ensure!(
        answered_by(&namespace, TESTER).await? == stable,
        "without a release stable answers"
    );
    ensure!(
        answered_by(&namespace, "").await?.is_none(),
        "who is no tester is told nothing"
    );
    let prompt = format!("{} Be brief.", fixtures::PROMPT);
    namespace
        .apply(&with(base, "/spec/agent/prompt/text", json!(prompt)))
        .await?;
    let candidate = super::release::wait_for_candidate(&namespace, "support").await?;
    wait::until("the candidate to answer testers", SOON, || async {
        match answered_by(&namespace, TESTER).await {
            Ok(Some(name)) if name == candidate => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await?;
    for _ in 0..50 {
        ensure!(
            answered_by(&namespace, TESTER).await?.as_ref() == Some(&candidate),
            "a tester was led elsewhere"
        );
    }
    // Two windows later they would have been counted.
    tokio::time::sleep(Duration::from_secs(45)).await;
    let status = namespace
        .api::<AgentPool>()
        .get("support")
        .await?
        .status
        .unwrap_or_default();
    let metrics = status.rollout.map(|rollout| rollout.metrics).unwrap_or_default();
    ensure!(
        metrics.iter().all(|metric| metric.candidate.is_none()),
        "testers were counted: {metrics:?}"
    );
    Ok(())
}

/// A dry run: gives `status.plan`, after which the annotation is taken away and the release goes through.
pub async fn dry_run(namespace: Namespace) -> Result<flotilla_crds::agent_pool::ReleasePlan> {
    pool::provider(&namespace).await?;
    let base = fixtures::pool("support", 2);
    namespace.apply(&base).await?;
    let before = pool::ready(&namespace, "support", SOON).await?;
    let stable = |pool: AgentPool| {
        pool.status
            .and_then(|status| status.stable)
            .map(|stable| stable.revision)
    };
    let prompt = format!("{} Be brief.", fixtures::PROMPT);
    let changed = with(base, "/spec/agent/prompt/text", json!(prompt));
    let dry = with(
        changed.clone(),
        "/metadata/annotations",
        json!({"flotilla.dev/dry-run": "true"}),
    );
    namespace.apply(&dry).await?;
    says(&namespace, "DryRun", SOON).await?;
    let held = namespace.api::<AgentPool>().get("support").await?;
    let plan = held
        .status
        .clone()
        .and_then(|status| status.plan)
        .context("no plan")?;
    let was = stable(before);
    ensure!(stable(held) == was, "it was released");
    namespace
        .kubectl(&["annotate", "apool/support", "flotilla.dev/dry-run-"])
        .await?;
    let after = pool::ready(&namespace, "support", SOON).await?;
    ensure!(
        stable(after) == Some(plan.revision.clone()),
        "another revision than planned was released"
    );
    Ok(plan)
}
