//! What a cluster says of a pool: the pool, and what its gateways have counted. Only reads.
//!
//! Gateways are asked through the API server (`get` on `pods/proxy` of the namespace): the port that counts is in no Service. Who
//! has not that right is told so, and can tell the traffic.

use std::time::Duration;

use flotilla_core::evidence::Traffic;
use flotilla_core::release;
use flotilla_core::stats::{self, Stats};
use flotilla_crds::{AgentPool, names};
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config, ResourceExt as _};

use crate::plan::Known;

/// Longest wait for one answer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A client for the kubeconfig's context, the current one by default, with the default namespace.
///
/// # Errors
/// A sentence, if there is no usable kubeconfig.
pub async fn connect(context: Option<String>) -> Result<Client, String> {
    let options = KubeConfigOptions {
        context,
        ..KubeConfigOptions::default()
    };
    let read = Kubeconfig::read().map_err(|error| format!("failed to read the kubeconfig: {error}"))?;
    let mut config = Config::from_custom_kubeconfig(read, &options)
        .await
        .map_err(|error| format!("failed to use the kubeconfig: {error}"))?;
    config.connect_timeout = Some(TIMEOUT);
    config.read_timeout = Some(TIMEOUT);
    config.write_timeout = Some(TIMEOUT);
    Client::try_from(config).map_err(|error| format!("failed to use the kubeconfig: {error}"))
}

/// A pool.
///
/// # Errors
/// A sentence, if it is not there or cannot be read.
pub async fn pool(client: &Client, namespace: &str, name: &str) -> Result<AgentPool, String> {
    let pools = Api::<AgentPool>::namespaced(client.clone(), namespace);
    match pools.get_opt(name).await {
        Ok(Some(pool)) => Ok(pool),
        Ok(None) => Err(format!(
            "there is no AgentPool {name} in namespace {namespace}; name another one, or another namespace with -n"
        )),
        Err(error) => Err(format!("failed to read AgentPool {namespace}/{name}: {error}")),
    }
}

/// The present traffic of a pool by its gateways.
pub async fn traffic(client: &Client, namespace: &str, pool: &AgentPool) -> Known {
    let status = pool.status.clone().unwrap_or_default();
    let Some(stable) = status.stable.map(|stable| stable.revision) else {
        return Known::Unknown("no revision serves yet".to_owned());
    };
    let found = match ask(client, namespace).await {
        Ok(found) => found,
        Err(why) => return Known::Unknown(why),
    };
    let name = pool.name_any();
    let of = |revision: &str| release::traffic(found.iter(), &name, revision);
    // While a release is under way the rest of the requests goes to its candidate.
    let candidate = status.candidate.and_then(|candidate| of(&candidate.revision));
    let other = candidate.map_or(0.0, |traffic| traffic.requests_per_second);
    match of(&stable) {
        Some(traffic) if traffic.requests_per_second > 0.0 => Known::Counted(Traffic {
            requests_per_second: traffic.requests_per_second + other,
            ..traffic
        }),
        Some(_) | None => Known::Unknown("the gateways have counted no request of late".to_owned()),
    }
}

/// What each gateway of the namespace says. Part of them is not enough: the traffic would seem to be less than it is.
async fn ask(client: &Client, namespace: &str) -> Result<Vec<Stats>, String> {
    let pods = Api::<Pod>::namespaced(client.clone(), namespace);
    let label = format!("{}={}", names::APP_NAME, names::GATEWAY);
    let listed = pods.list(&ListParams::default().labels(&label)).await;
    let listed = listed.map_err(|error| {
        forbidden(&error, "list pods", namespace)
            .unwrap_or_else(|| format!("failed to list the gateways of {namespace}: {error}"))
    })?;
    let running = listed.items.iter().filter(|pod| is_ready(pod));
    let mut found = Vec::new();
    for pod in running.map(kube::ResourceExt::name_any) {
        let port = names::GATEWAY_ADMIN_PORT;
        let path = format!("/api/v1/namespaces/{namespace}/pods/{pod}:{port}/proxy/stats");
        let failed = |error: &dyn std::fmt::Display| {
            format!("gateway {pod} cannot be asked through the API server: {error}")
        };
        let request = http::Request::get(path)
            .body(Vec::new())
            .map_err(|error| failed(&error))?;
        let said = client.request::<Stats>(request).await;
        let said = said.map_err(|error| {
            forbidden(&error, "get pods/proxy", namespace).unwrap_or_else(|| failed(&error))
        })?;
        if said.version != stats::VERSION {
            return Err(failed(&format!(
                "it speaks version {} of /stats, this plugin speaks {}",
                said.version,
                stats::VERSION
            )));
        }
        found.push(said);
    }
    match found.len() {
        0 => Err(format!("no gateway is ready in namespace {namespace}")),
        _ => Ok(found),
    }
}

/// Which right is missing, if that is the error.
fn forbidden(error: &kube::Error, right: &str, namespace: &str) -> Option<String> {
    match error {
        kube::Error::Api(status) if status.code == 403 => Some(format!(
            "you may not {right} in namespace {namespace}; tell the traffic with --requests-per-second, or ask for that right"
        )),
        _ => None,
    }
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    let mut conditions = conditions.into_iter().flatten();
    conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

#[cfg(test)]
mod tests {
    use super::*;
    use flotilla_core::evidence::Arm;
    use flotilla_core::stats::{PoolStats, RevisionStats, WindowStats};
    use http::{Request, Response};
    use kube::client::Body;
    use serde_json::{Value, json};

    const NO: u16 = 403;

    fn no() -> Value {
        json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": NO, "message": "no"})
    }

    /// A cluster with one gateway that is ready and one that is not, of which the first answers `said`, or nobody.
    fn cluster(said: Option<Value>) -> Client {
        let service = tower::service_fn(move |request: Request<Body>| {
            let pod = |name: &str, ready: &str| json!({"metadata": {"name": name}, "status": {"conditions": [{"type": "Ready", "status": ready}]}});
            let (code, body) = match request.uri().path() {
                "/api/v1/namespaces/shop/pods" => {
                    assert_eq!(
                        request.uri().query(),
                        Some("&labelSelector=app.kubernetes.io%2Fname%3Dflotilla-gateway")
                    );
                    let items = [pod("g-1", "True"), pod("g-2", "False")];
                    (
                        200,
                        json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items}),
                    )
                }
                "/api/v1/namespaces/shop/pods/g-1:9090/proxy/stats" => match &said {
                    Some(said) => (200, said.clone()),
                    None => (NO, no()),
                },
                "/api/v1/namespaces/closed/pods" => (NO, no()),
                other => panic!("{other}"),
            };
            assert_eq!(request.method(), http::Method::GET);
            let response = Response::builder()
                .status(code)
                .body(Body::from(body.to_string().into_bytes()));
            async move { response }
        });
        Client::new(service, "shop")
    }

    fn serving() -> AgentPool {
        serde_json::from_value(json!({
            "apiVersion": "flotilla.dev/v1alpha1", "kind": "AgentPool", "metadata": {"name": "support"},
            "spec": {"agent": {"image": "agent:1"}},
            "status": {
                "stable": {"revision": "support-1", "replicas": 1, "readyReplicas": 1},
                "candidate": {"revision": "support-2", "attempt": 1, "weight": 10, "replicas": 1, "readyReplicas": 1},
            },
        }))
        .unwrap()
    }

    fn counted(version: u32) -> Value {
        let windows = |started, failed| {
            let window = |start, failed| WindowStats {
                start,
                started,
                failed,
                ..WindowStats::default()
            };
            RevisionStats {
                windows: vec![window(150, failed), window(165, 0)],
                ..RevisionStats::default()
            }
        };
        let revisions = [("support-1", windows(270, 6)), ("support-2", windows(30, 0))];
        let pool = PoolStats {
            revisions: revisions
                .map(|(revision, stats)| (revision.to_owned(), stats))
                .into(),
            ..PoolStats::default()
        };
        let stats = Stats {
            version,
            pools: [("support".to_owned(), pool)].into(),
            ..Stats::default()
        };
        serde_json::to_value(stats).unwrap()
    }

    #[tokio::test]
    async fn the_gateways_counts_are_the_present_traffic() {
        let expected = Traffic {
            requests_per_second: 20.0,
            stable: Arm {
                requests: 540,
                events: 6,
            },
        };
        let known = traffic(&cluster(Some(counted(stats::VERSION))), "shop", &serving()).await;
        assert_eq!(known, Known::Counted(expected));
    }

    #[tokio::test]
    async fn where_it_cannot_be_known_it_is_said_why() {
        let nothing = serde_json::to_value(Stats {
            version: stats::VERSION,
            ..Stats::default()
        });
        let nothing = nothing.unwrap();
        for (namespace, said, part) in [
            ("closed", None, "you may not list pods in namespace closed; tell"),
            ("shop", None, "you may not get pods/proxy in namespace shop; tell"),
            ("shop", Some(counted(99)), "it speaks version 99 of /stats"),
            ("shop", Some(nothing), "have counted no request of late"),
        ] {
            match traffic(&cluster(said), namespace, &serving()).await {
                Known::Unknown(why) => assert!(why.contains(part), "{why}"),
                Known::Counted(traffic) => panic!("{traffic:?}"),
            }
        }
    }
}
