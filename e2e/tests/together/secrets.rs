//! A planted key, from the Secret to the provider and nowhere else: after requests that succeed and that fail in every way
//! a provider can fail, it is looked for in whatever a person or a program may read.

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use flotilla_e2e::fixtures::{self, with};
use flotilla_e2e::scenario::pool::{self, SOON};
use flotilla_e2e::{Namespace, wait, with_namespace};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::handshake;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::TcpStream;

/// Part of every planted key, and of nothing else.
fn mark(namespace: &Namespace) -> String {
    format!("planted{}", namespace.name.replace('-', ""))
}

/// The mark as it may be written: plainly, and inside base64 at each of its three places.
fn spellings(mark: &str) -> Vec<String> {
    let inside = (0..3).map(|shift| {
        let text = STANDARD.encode(format!("{}{mark}", &"   "[..shift]));
        // The first and the last characters depend on what stands beside the mark.
        let from = (shift * 8).div_ceil(6);
        let to = (shift + mark.len()) * 8 / 6;
        text[from..to].to_owned()
    });
    std::iter::once(mark.to_owned()).chain(inside).collect()
}

#[test]
fn a_mark_is_found_however_it_is_written() {
    let spellings = spellings("planted-123");
    for hidden in [
        "Bearer sk-planted-123".to_owned(),
        STANDARD.encode("sk-planted-123"),
        STANDARD.encode("Bearer sk-planted-123-x"),
        STANDARD.encode("{\"key\":\"planted-123\"}"),
    ] {
        assert!(
            spellings.iter().any(|spelling| hidden.contains(spelling)),
            "{hidden}"
        );
    }
    assert!(
        !spellings
            .iter()
            .any(|spelling| "Bearer sk-other".contains(spelling))
    );
}

/// A provider that takes only the planted key, so that an answer of it proves that the key was sent.
fn simulator(name: &str) -> [Value; 2] {
    let labels = json!({"app": name});
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
        "spec": {
            "replicas": 1, "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {
                "automountServiceAccountToken": false,
                "securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
                "containers": [{
                    "name": "simulator", "image": "flotilla.dev/simulator:dev", "imagePullPolicy": "IfNotPresent",
                    "env": [{"name": "FLOTILLA_SIMULATOR_API_KEYS", "valueFrom": {"secretKeyRef": {"name": "good", "key": "api-key"}}}],
                    "args": ["--latency=fixed:1", "--tokens-per-second=fixed:0"],
                    "ports": [{"containerPort": 8080}],
                    "readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1},
                    "securityContext": {"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]}}
                }]
            }}
        }
    });
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
        "spec": {"selector": labels, "ports": [{"port": 80, "targetPort": 8080}]}
    });
    [deployment, service]
}

/// Name of the pool and its provider, the Secret, the endpoint, the model, and the status a client is to see for
/// `POST /chat`; `None` where an error of any kind is right.
struct Case {
    name: &'static str,
    secret: &'static str,
    endpoint: String,
    model: &'static str,
    status: Option<u16>,
}

fn cases(namespace: &Namespace) -> Vec<Case> {
    let simulator = format!("http://provider.{}.svc/v1", namespace.name);
    let case = |name, secret, endpoint: &str, model, status| Case {
        name,
        secret,
        endpoint: endpoint.to_owned(),
        model,
        status,
    };
    vec![
        case("good", "good", &simulator, "sim-fast", Some(200)),
        case("error", "good", &simulator, "sim-error-100", None),
        case("cut", "good", &simulator, "sim-cut-100", None),
        case("unknown", "good", &simulator, "sim-nonsense", None),
        case("path", "good", &format!("{simulator}/nowhere"), "sim-fast", None),
        case("refused", "wrong", &simulator, "sim-fast", None),
        // Two lines: no header can carry it.
        case("unusable", "broken", &simulator, "sim-fast", None),
        case(
            "away",
            "good",
            &format!("http://nobody.{}.svc/v1", namespace.name),
            "sim-fast",
            None,
        ),
        case(
            "tls",
            "good",
            &format!("https://provider.{}.svc:80/v1", namespace.name),
            "sim-fast",
            None,
        ),
    ]
}

/// Status, headers and body as text, of one POST.
async fn post(address: SocketAddr, path: &str, body: &str, proof: Option<&str>) -> Result<(u16, String)> {
    let stream = TcpStream::connect(address).await?;
    let (mut sender, connection) = handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let mut request = http::Request::post(path)
        .header("host", "pool")
        .header("content-type", "application/json");
    if let Some(proof) = proof {
        request = request.header("authorization", proof);
    }
    let response = sender
        .send_request(request.body(Full::new(Bytes::from(body.to_owned())))?)
        .await?;
    let (head, body) = response.into_parts();
    // A stream that is cut still shows what had come.
    let text = match body.collect().await {
        Ok(body) => String::from_utf8_lossy(&body.to_bytes()).into_owned(),
        Err(error) => format!("{error:?}"),
    };
    Ok((head.status.as_u16(), format!("{:?}\n{text}", head.headers)))
}

async fn ask(namespace: &Namespace, case: &Case, seen: &mut Vec<(String, String)>) -> Result<()> {
    let address = pool::address(namespace, case.name).await?;
    let turns = [
        ("/chat", json!({"message": "Where is my order?"})),
        (
            "/v1/chat/completions",
            json!({"model": "default", "stream": true, "messages": [{"role": "user", "content": "Where?"}]}),
        ),
    ];
    for (path, body) in turns {
        let what = format!("the answer of pool {} to {path}", case.name);
        let answer = wait::until(&what, SOON, || async {
            let (status, text) = post(address, path, &body.to_string(), None)
                .await
                .map_err(|error| format!("{error:#}"))?;
            match case.status {
                Some(wanted) if wanted != status => Err(format!("{status} {text}")),
                _ => Ok(format!("{status} {text}")),
            }
        })
        .await?;
        if case.status.is_none() {
            let failed = !answer.starts_with("200") || path != "/chat";
            ensure!(failed, "{what} is a success: {answer}");
        }
        seen.push((what, answer));
    }
    Ok(())
}

/// Whether a pod is gone or on its way out.
async fn is_going(pods: &kube::Api<Pod>, name: &str) -> Result<bool> {
    let pod = pods.get_opt(name).await?;
    Ok(pod.is_none_or(|pod| pod.metadata.deletion_timestamp.is_some()))
}

/// Everything that may be read in the namespace and of the operator, Secrets apart: (what, text).
async fn readable(namespace: &Namespace) -> Result<Vec<(String, String)>> {
    let mut all = Vec::new();
    let kinds = namespace
        .kubectl(&["api-resources", "--namespaced", "--verbs=list", "-o", "name"])
        .await?;
    let kinds: Vec<&str> = kinds.lines().filter(|kind| *kind != "secrets").collect();
    ensure!(
        kinds.contains(&"configmaps") && kinds.contains(&"pods"),
        "{kinds:?}"
    );
    for kind in kinds {
        let text = namespace
            .kubectl(&["get", kind, "-o", "yaml", "--show-managed-fields"])
            .await
            .or_else(|error| {
                // Kinds of an aggregated API that is not there just now, or of a test that has ended, hold nothing of ours.
                let error_text = error.to_string();
                let is_gone = [
                    "could not find the requested resource",
                    "doesn't have a resource type",
                ];
                if is_gone.iter().any(|words| error_text.contains(words)) {
                    Ok(String::new())
                } else {
                    Err(error)
                }
            })?;
        all.push((format!("objects of kind {kind}"), text));
    }
    let system = "flotilla-system";
    for space in [namespace.name.as_str(), system] {
        let pods: kube::Api<Pod> = kube::Api::namespaced(namespace.cluster.client.clone(), space);
        for pod in pods.list(&ListParams::default()).await?.items {
            let name = pod.metadata.name.context("a pod without name")?;
            let logs = namespace
                .cluster
                .kubectl(&["-n", space, "logs", &name, "--all-containers"])
                .await;
            let logs = match logs {
                Ok(logs) => logs,
                // A gateway is replaced when a provider with another key comes.
                Err(_) if is_going(&pods, &name).await? => continue,
                Err(error) => return Err(error),
            };
            all.push((format!("the log of {space}/{name}"), logs));
            let labels = pod.metadata.labels.unwrap_or_default();
            let program = labels.get("app.kubernetes.io/name").map(String::as_str);
            let pages: &[(&str, &str)] = match program {
                Some("flotilla-gateway") => &[("9090", "metrics"), ("9090", "stats")],
                Some("flotilla-operator") => &[("8080", "metrics")],
                _ => &[],
            };
            for (port, page) in pages {
                let path = format!("/api/v1/namespaces/{space}/pods/{name}:{port}/proxy/{page}");
                let text = match namespace.cluster.kubectl(&["get", "--raw", &path]).await {
                    Ok(text) => text,
                    Err(_) if is_going(&pods, &name).await? => continue,
                    Err(error) => return Err(error),
                };
                all.push((format!("{page} of {space}/{name}"), text));
            }
        }
    }
    let system_objects = "configmaps,leases,events,pods,deployments";
    let text = namespace
        .cluster
        .kubectl(&["-n", system, "get", system_objects, "-o", "yaml"])
        .await?;
    all.push((format!("objects in {system}"), text));
    Ok(all)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_planted_key_is_found_nowhere() {
    with_namespace("secrets", async |namespace: Namespace| {
        let mark = mark(&namespace);
        for (name, key) in [
            ("good", format!("sk-{mark}-good")),
            ("wrong", format!("sk-{mark}-wrong")),
            ("broken", format!("sk-{mark}\nbroken")),
            ("crm", format!("crm-{mark}")),
        ] {
            // Created, not applied: kubectl would copy it into an annotation, of the Secret only, but needlessly.
            let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": {"api-key": key}});
            let api = namespace.api::<k8s_openapi::api::core::v1::Secret>();
            api.create(&Default::default(), &serde_json::from_value(secret)?).await?;
        }
        for object in simulator("provider") {
            namespace.apply(&object).await?;
        }
        let cases = cases(&namespace);
        for case in &cases {
            let provider = fixtures::provider(case.name);
            let provider = with(provider, "/spec/endpoint", json!(case.endpoint));
            let auth = json!({"type": "APIKey", "apiKey": {"secretKeyRef": {"name": case.secret, "key": "api-key"}}});
            let provider = with(with(provider, "/spec/auth", auth), "/spec/models", json!([{"name": case.model}]));
            namespace.apply(&provider).await?;
            let pool = with(fixtures::pool(case.name, 1), "/spec/agent/models/0/providerRef/name", json!(case.name));
            let pool = with(pool, "/spec/agent/models/0/model", json!(case.model));
            // An agent's own Secret, too.
            let env = json!([{"name": "CRM_TOKEN", "valueFrom": {"secretKeyRef": {"name": "crm", "key": "api-key"}}}]);
            namespace.apply(&with(pool, "/spec/agent/env", env)).await?;
        }
        let mut seen = Vec::new();
        for case in &cases {
            wait::until(&format!("a replica of {}", case.name), Duration::from_secs(120), || async {
                ready_pods(&namespace, case.name).await
            })
            .await?;
            ask(&namespace, case, &mut seen).await?;
        }
        let (name, good) = seen.first().context("no answer")?;
        ensure!(good.starts_with("200"), "{name}: {good}");

        // Somebody who is no agent, and one who asks for what is not there.
        let egress = SocketAddr::new(pool::address(&namespace, "flotilla-gateway").await?.ip(), 8081);
        for path in ["/providers/good/v1/chat/completions", "/providers/nothing/v1/x", "/", "/providers/good/v1/../x"] {
            let (status, text) = post(egress, path, "{}", Some("Bearer guess")).await?;
            ensure!((400..500).contains(&status), "{path}: {status} {text}");
            seen.push((format!("the egress's answer to {path}"), text));
        }

        // Rotated while it serves: the new one carries the mark too.
        let patch = json!({"stringData": {"api-key": format!("sk-{mark}-rotated")}});
        namespace
            .api::<k8s_openapi::api::core::v1::Secret>()
            .patch("wrong", &Default::default(), &kube::api::Patch::Merge(patch))
            .await?;

        seen.extend(readable(&namespace).await?);
        ensure!(seen.len() > 40, "only {} texts were searched", seen.len());
        let gateway = seen.iter().any(|(what, text)| what.starts_with("metrics of") && text.contains("flotilla_"));
        ensure!(gateway, "no metrics were searched");
        let spellings = spellings(&mark);
        let leaks: Vec<&str> = seen
            .iter()
            .filter(|(_, text)| spellings.iter().any(|spelling| text.contains(spelling)))
            .map(|(what, _)| what.as_str())
            .collect();
        ensure!(leaks.is_empty(), "the key is in: {leaks:?}");
        // The search itself finds it where it is.
        let secrets = namespace.kubectl(&["get", "secrets", "-o", "yaml"]).await?;
        ensure!(spellings.iter().any(|spelling| secrets.contains(spelling)), "the search is blind");
        Ok(())
    })
    .await;
}

async fn ready_pods(namespace: &Namespace, pool: &str) -> Result<(), String> {
    let selector = ListParams::default().labels(&format!("flotilla.dev/pool={pool}"));
    let pods = namespace
        .api::<Pod>()
        .list(&selector)
        .await
        .map_err(|error| error.to_string())?;
    let ready = pods.items.iter().any(|pod| {
        let conditions = pod
            .status
            .iter()
            .flat_map(|status| status.conditions.iter().flatten());
        conditions
            .into_iter()
            .any(|condition| condition.type_ == "Ready" && condition.status == "True")
    });
    if ready {
        Ok(())
    } else {
        Err(format!("{} pods, none ready", pods.items.len()))
    }
}
