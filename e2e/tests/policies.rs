//! The chart's admission policies: the operator makes pods and mounts Secrets, so whoever may only write our kinds must
//! not be able to use its hand; and whoever changes nothing of that kind must not be stopped.
//!
//! Users are impersonated; every request of theirs is a dry run. No operator is needed.

use anyhow::{Context, Result, ensure};
use flotilla_e2e::fixtures::with;
use flotilla_e2e::{Namespace, wait, with_namespace};
use kube::core::DynamicObject;
use serde_json::{Value, json};
use std::time::Duration;

/// May write our kinds, status and scale, and nothing else.
const EVE: &str = "eve";
/// As eve; may also create pods.
const BOB: &str = "bob";
/// As eve; may also get the Secrets `theirs` and `s0` to `s19`, by name.
const CAROL: &str = "carol";
/// As eve; may also get all Secrets.
const DAVE: &str = "dave";
const USERS: [&str; 4] = [EVE, BOB, CAROL, DAVE];
/// Rights reach the API server's caches a moment after they are written.
const SOON: Duration = Duration::from_secs(30);

async fn grant(namespace: &Namespace) -> Result<()> {
    let named: Vec<String> = (0..20)
        .map(|n| format!("s{n}"))
        .chain(["theirs".into()])
        .collect();
    let everybody: Vec<&str> = USERS.to_vec();
    for (name, users, rules) in [
        (
            "kinds",
            everybody,
            json!([
                {"apiGroups": ["flotilla.dev"], "resources": ["agentpools", "modelproviders"], "verbs": ["get", "create", "update", "patch"]},
                {"apiGroups": ["flotilla.dev"], "resources": ["agentpools/status", "agentpools/scale", "modelproviders/status"], "verbs": ["get", "update", "patch"]}
            ]),
        ),
        (
            "pods",
            vec![BOB],
            json!([{"apiGroups": [""], "resources": ["pods"], "verbs": ["create"]}]),
        ),
        (
            "named",
            vec![CAROL],
            json!([{"apiGroups": [""], "resources": ["secrets"], "resourceNames": named, "verbs": ["get"]}]),
        ),
        (
            "secrets",
            vec![DAVE],
            json!([{"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]}]),
        ),
    ] {
        let group = "rbac.authorization.k8s.io";
        let subjects: Vec<Value> = users
            .iter()
            .map(|user| json!({"apiGroup": group, "kind": "User", "name": user}))
            .collect();
        let version = format!("{group}/v1");
        namespace
            .apply(
                &json!({"apiVersion": version, "kind": "Role", "metadata": {"name": name}, "rules": rules}),
            )
            .await?;
        namespace
            .apply(&json!({
                "apiVersion": version, "kind": "RoleBinding", "metadata": {"name": name},
                "roleRef": {"apiGroup": group, "kind": "Role", "name": name}, "subjects": subjects
            }))
            .await?;
    }
    // Both the first and the last right are there, and so are the policies.
    wait::until("the users' rights and the policies", SOON, || async {
        for (user, object, good) in [
            (EVE, pool(json!({})), true),
            (EVE, pool(json!({"serviceAccountName": "admin"})), false),
            (EVE, provider("theirs"), false),
            (BOB, pool(json!({"serviceAccountName": "admin"})), true),
            (CAROL, provider("theirs"), true),
            (DAVE, provider("theirs"), true),
        ] {
            let said = create(namespace, user, &object)
                .await
                .map_err(|e| e.to_string())?;
            if said.is_none() != good {
                return Err(format!("{user}: {object}: {said:?}"));
            }
        }
        Ok(())
    })
    .await
}

/// A pool called `x` with these fields of `spec.agent` and an image.
fn pool(agent: Value) -> Value {
    let mut all = json!({"image": "registry.example.com/agent:1"});
    json_patch::merge(&mut all, &agent);
    json!({"apiVersion": "flotilla.dev/v1alpha1", "kind": "AgentPool", "metadata": {"name": "x"}, "spec": {"agent": all}})
}

/// A provider called `x` with the key in this Secret.
fn provider(secret: &str) -> Value {
    json!({
        "apiVersion": "flotilla.dev/v1alpha1", "kind": "ModelProvider", "metadata": {"name": "x"},
        "spec": {
            "endpoint": "https://api.example.com/v1",
            "auth": {"type": "APIKey", "apiKey": {"secretKeyRef": {"name": secret, "key": "key"}}}
        }
    })
}

fn from_secret(variable: &str, secret: &str) -> Value {
    json!({"name": variable, "valueFrom": {"secretKeyRef": {"name": secret, "key": "key"}}})
}

fn many_secrets(count: usize) -> Value {
    let each = (0..count).map(|n| from_secret(&format!("V{n}"), &format!("s{n}")));
    pool(json!({"env": each.collect::<Vec<_>>()}))
}

fn plural(object: &Value) -> &'static str {
    if object["kind"] == "AgentPool" {
        "agentpools"
    } else {
        "modelproviders"
    }
}

/// What the API server says against a dry run of `user`; none when it accepts.
async fn send(
    namespace: &Namespace,
    user: &str,
    request: http::request::Builder,
    body: &Value,
) -> Result<Option<String>> {
    let request = request
        .header("impersonate-user", user)
        .body(body.to_string().into_bytes())?;
    match namespace.cluster.client.request::<DynamicObject>(request).await {
        Ok(_) => Ok(None),
        Err(kube::Error::Api(status)) => Ok(Some(status.message)),
        Err(error) => Err(error.into()),
    }
}

fn url(namespace: &Namespace, object: &Value, rest: &str) -> String {
    format!(
        "/apis/flotilla.dev/v1alpha1/namespaces/{}/{}{rest}?dryRun=All",
        namespace.name,
        plural(object)
    )
}

async fn create(namespace: &Namespace, user: &str, object: &Value) -> Result<Option<String>> {
    let request = http::Request::post(url(namespace, object, "")).header("content-type", "application/json");
    send(namespace, user, request, object).await
}

/// As `kubectl patch --type=merge`; `part` is empty, `/status` or `/scale`.
async fn patch(
    namespace: &Namespace,
    user: &str,
    object: &Value,
    part: &str,
    change: &Value,
) -> Result<Option<String>> {
    let name = object["metadata"]["name"].as_str().context("a name")?;
    let request = http::Request::patch(url(namespace, object, &format!("/{name}{part}")))
        .header("content-type", "application/merge-patch+json");
    send(namespace, user, request, change).await
}

/// Fails unless `said` is a refusal with all of `words`, or, without words, nothing.
fn check(what: &str, said: Option<String>, words: &[&str]) -> Result<()> {
    match said {
        None => ensure!(words.is_empty(), "{what}: accepted"),
        Some(said) => {
            ensure!(!words.is_empty(), "{what}: {said}");
            for word in words {
                ensure!(said.contains(word), "{what}: no word of {word:?} in {said}");
            }
        }
    }
    Ok(())
}

const PODS: &[&str] = &[
    "may be written by who may create pods in namespace",
    "which eve may not",
];
const FINE: &[&str] = &[];

#[tokio::test(flavor = "multi_thread")]
async fn who_sets_a_field_must_have_the_right_that_it_uses() {
    with_namespace("rights-set", async |namespace: Namespace| {
        grant(&namespace).await?;
        let template = pool(json!({"podTemplate": {"spec": {"nodeSelector": {"a": "b"}}}}));
        let account = pool(json!({"serviceAccountName": "admin"}));
        let variable = |secret: &str| pool(json!({"env": [{"name": "A", "value": "b"}, from_secret("B", secret)]}));
        let all_keys = |secret: &str| pool(json!({"envFrom": [{"secretRef": {"name": secret, "optional": true}}]}));
        let env: &[&str] = &["give Secret theirs to what this pool runs", "eve has neither"];
        let others: &[&str] = &["give Secret others to what this pool runs", "carol has neither"];
        let of_carol: &[&str] = &["which carol may not"];
        let of_dave: &[&str] = &["which dave may not"];
        let sent: &[&str] = &["spec.auth sends Secret theirs to spec.endpoint, which needs the right to get it"];
        let mixed = pool(json!({"env": [from_secret("A", "theirs")], "envFrom": [{"secretRef": {"name": "others"}}]}));
        // The same Secret in many variables is one Secret.
        let often: Vec<Value> = (0..60).map(|n| from_secret(&format!("V{n}"), "theirs")).collect();
        let often = pool(json!({"env": often}));
        for (what, user, object, words) in [
            ("a plain pool", EVE, pool(json!({})), FINE),
            ("an empty podTemplate", EVE, pool(json!({"podTemplate": {}})), FINE),
            ("a podTemplate", EVE, template.clone(), PODS),
            ("a podTemplate", BOB, template.clone(), FINE),
            ("a podTemplate", CAROL, template.clone(), of_carol),
            ("a podTemplate", DAVE, template, of_dave),
            ("a ServiceAccount", EVE, account.clone(), PODS),
            ("a ServiceAccount", BOB, account, FINE),
            ("variables without Secrets", EVE, pool(json!({"env": [{"name": "A", "value": "b"}, {"name": "B", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "k"}}}], "envFrom": [{"configMapRef": {"name": "c"}}]})), FINE),
            ("a variable", EVE, variable("theirs"), env),
            ("a variable", BOB, variable("theirs"), FINE),
            ("a variable", CAROL, variable("theirs"), FINE),
            ("a variable from another Secret", CAROL, variable("others"), others),
            ("a variable", DAVE, variable("theirs"), FINE),
            ("all keys", EVE, all_keys("theirs"), env),
            ("all keys", CAROL, all_keys("theirs"), FINE),
            ("all keys of another Secret", CAROL, all_keys("others"), others),
            ("one of two Secrets", CAROL, mixed, others),
            ("sixty variables from one Secret", CAROL, often, FINE),
            ("sixteen Secrets", CAROL, many_secrets(16), FINE),
            ("seventeen Secrets", CAROL, many_secrets(17), &["name more than 16 Secrets", "carol has neither"]),
            ("twenty Secrets", DAVE, many_secrets(20), FINE),
            ("twenty Secrets", BOB, many_secrets(20), FINE),
            ("a provider without a key", EVE, json!({"apiVersion": "flotilla.dev/v1alpha1", "kind": "ModelProvider", "metadata": {"name": "x"}, "spec": {"endpoint": "https://e/v1"}}), FINE),
            ("a provider's key", EVE, provider("theirs"), sent),
            ("a provider's key", BOB, provider("theirs"), sent),
            ("a provider's key", CAROL, provider("theirs"), FINE),
            ("another provider's key", CAROL, provider("others"), &["spec.auth sends Secret others", "carol has not"]),
            ("a provider's key", DAVE, provider("others"), FINE),
        ] {
            check(&format!("{what}, {user}"), create(&namespace, user, &object).await?, words)?;
        }
        Ok(())
    })
    .await;
}

/// The API server's own check of the expressions against the kinds' schemas: a field that does not exist is a warning there,
/// and an error only when somebody's request meets it.
#[tokio::test(flavor = "multi_thread")]
async fn the_policies_fit_the_kinds() {
    let cluster = flotilla_e2e::Cluster::connect().await.expect("a cluster");
    let path = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies";
    for name in ["flotilla-agentpools", "flotilla-modelproviders"] {
        let policy = wait::until(&format!("{name} to be checked"), SOON, || async {
            let request = http::Request::get(format!("{path}/{name}"))
                .body(Vec::new())
                .map_err(|e| e.to_string())?;
            let policy: Value = cluster.client.request(request).await.map_err(|e| e.to_string())?;
            if policy["status"]["observedGeneration"] == policy["metadata"]["generation"] {
                Ok(policy)
            } else {
                Err(policy["status"].to_string())
            }
        })
        .await
        .expect("the controller manager checks policies");
        let warnings = &policy["status"]["typeChecking"]["expressionWarnings"];
        assert!(warnings.is_null(), "{name}: {warnings:#}");
    }
}

/// A pool with everything that needs a right, made by somebody who has it.
fn full(name: &str) -> Value {
    let pool = pool(json!({
        "command": ["/agent"], "args": ["serve"],
        "prompt": {"text": "Be kind."},
        "files": [{"name": "tools", "configMapRef": {"name": "tools"}, "mountPath": "/etc/agent/tools"}],
        "env": [from_secret("TOKEN", "theirs")],
        "serviceAccountName": "named",
        "podTemplate": {"metadata": {"labels": {"team": "a"}}}
    }));
    let pool = with(pool, "/metadata/name", json!(name));
    // Nothing needs to run for this.
    with(pool, "/spec/stopped", json!(true))
}

#[tokio::test(flavor = "multi_thread")]
async fn who_changes_something_else_needs_no_right() {
    with_namespace("rights-change", async |namespace: Namespace| {
        grant(&namespace).await?;
        let whole = full("whole");
        namespace.apply(&whole).await?;
        let secret_only = with(pool(json!({"env": [from_secret("TOKEN", "theirs")]})), "/metadata/name", json!("secret"));
        let secret_only = with(secret_only, "/spec/stopped", json!(true));
        namespace.apply(&secret_only).await?;
        let agent = |change: Value| json!({"spec": {"agent": change}});
        let env: &[&str] = &["give Secret theirs to what this pool runs"];
        for (what, object, change, words) in [
            ("a label", &whole, json!({"metadata": {"labels": {"a": "b"}}}), FINE),
            ("an owner", &whole, json!({"metadata": {"finalizers": ["example.com/f"]}}), FINE),
            ("replicas", &whole, json!({"spec": {"replicas": 7}}), FINE),
            ("the release's pace", &whole, json!({"spec": {"rollout": {"settleSeconds": 9}}}), FINE),
            ("the prompt", &whole, agent(json!({"prompt": {"text": "Be brief."}})), FINE),
            ("the model", &whole, agent(json!({"models": [{"name": "default", "providerRef": {"name": "p"}, "model": "m"}]})), FINE),
            ("slots", &whole, agent(json!({"concurrency": 3})), FINE),
            ("resources", &whole, agent(json!({"resources": {"limits": {"memory": "1Gi"}}})), FINE),
            ("another ConfigMap of files", &whole, agent(json!({"files": [{"name": "tools", "configMapRef": {"name": "tools-2"}, "mountPath": "/etc/agent/tools"}]})), FINE),
            ("the image", &whole, agent(json!({"image": "registry.example.com/evil:1"})), PODS),
            ("the image beside a Secret", &secret_only, agent(json!({"image": "registry.example.com/evil:1"})), env),
            ("the command", &whole, agent(json!({"command": ["/bin/sh"]})), PODS),
            ("the command beside a Secret", &secret_only, agent(json!({"command": ["/bin/sh"]})), env),
            ("the arguments", &whole, agent(json!({"args": ["--dump"]})), PODS),
            ("a variable", &whole, agent(json!({"env": [from_secret("TOKEN", "theirs"), {"name": "LD_PRELOAD", "value": "/x"}]})), PODS),
            ("a variable beside a Secret", &secret_only, agent(json!({"env": [from_secret("TOKEN", "theirs"), {"name": "LD_PRELOAD", "value": "/x"}]})), env),
            ("a probe", &whole, agent(json!({"probes": {"liveness": {"exec": {"command": ["sh"]}}}})), PODS),
            ("a file's place", &whole, agent(json!({"files": [{"name": "tools", "configMapRef": {"name": "tools"}, "mountPath": "/usr/lib/agent"}]})), PODS),
            ("the prompt's place", &whole, agent(json!({"prompt": {"mountPath": "/usr/lib/agent.py"}})), PODS),
            ("the podTemplate", &whole, agent(json!({"podTemplate": {"metadata": {"labels": {"team": "b"}}}})), PODS),
            ("the ServiceAccount", &whole, agent(json!({"serviceAccountName": "other"})), PODS),
            ("one of two gone", &whole, agent(json!({"serviceAccountName": null})), PODS),
            ("all of it gone, with another image", &whole, agent(json!({"serviceAccountName": null, "podTemplate": null, "env": null, "image": "registry.example.com/mine:1"})), FINE),
            ("the Secret gone, with another image", &secret_only, agent(json!({"env": null, "image": "registry.example.com/mine:1"})), FINE),
        ] {
            check(&format!("{what}, eve"), patch(&namespace, EVE, object, "", &change).await?, words)?;
            let bob = patch(&namespace, BOB, object, "", &change).await?;
            check(&format!("{what}, bob"), bob, FINE)?;
        }
        let image = agent(json!({"image": "registry.example.com/new:1"}));
        check("the image beside her Secret, carol", patch(&namespace, CAROL, &secret_only, "", &image).await?, FINE)?;
        // What the operator and an autoscaler write.
        let status = json!({"status": {"replicas": 3}});
        check("status", patch(&namespace, EVE, &whole, "/status", &status).await?, FINE)?;
        let scale = json!({"spec": {"replicas": 3}});
        check("scale", patch(&namespace, EVE, &whole, "/scale", &scale).await?, FINE)?;
        // The whole object written back, as controllers do that know only a part of it.
        let get = http::Request::get(url(&namespace, &whole, "/whole")).body(Vec::new())?;
        let mut back: Value = namespace.cluster.client.request(get).await?;
        back["metadata"]["annotations"]["seen"] = json!("yes");
        let put = || http::Request::put(url(&namespace, &whole, "/whole")).header("content-type", "application/json");
        check("written back", send(&namespace, EVE, put(), &back).await?, FINE)?;
        back["spec"]["agent"]["image"] = json!("registry.example.com/evil:1");
        check("written back with another image", send(&namespace, EVE, put(), &back).await?, PODS)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_providers_secret_goes_where_its_reader_says() {
    with_namespace("rights-provider", async |namespace: Namespace| {
        grant(&namespace).await?;
        let object = with(provider("theirs"), "/metadata/name", json!("p"));
        namespace.apply(&object).await?;
        let sent: &[&str] = &["spec.auth sends Secret theirs", "eve has not"];
        let others: &[&str] = &["spec.auth sends Secret others"];
        let reference = |secret: &str, key: &str| json!({"spec": {"auth": {"apiKey": {"secretKeyRef": {"name": secret, "key": key}}}}});
        for (what, change, eve, carol) in [
            ("a label", json!({"metadata": {"labels": {"a": "b"}}}), FINE, FINE),
            ("models", json!({"spec": {"models": [{"name": "m"}]}}), FINE, FINE),
            ("the endpoint", json!({"spec": {"endpoint": "https://evil.example.com/v1"}}), sent, FINE),
            ("the key", reference("theirs", "other"), sent, FINE),
            ("the Secret", reference("others", "key"), others, others),
            ("no key any more", json!({"spec": {"endpoint": "https://evil.example.com/v1", "auth": null}}), FINE, FINE),
        ] {
            check(&format!("{what}, eve"), patch(&namespace, EVE, &object, "", &change).await?, eve)?;
            check(&format!("{what}, carol"), patch(&namespace, CAROL, &object, "", &change).await?, carol)?;
        }
        let status = json!({"status": {"usage": {"requests": 3}}});
        check("status", patch(&namespace, EVE, &object, "/status", &status).await?, FINE)
    })
    .await;
}
