//! A provider's quota on a real cluster: the Lease, the record, a gateway lost while it deals quotas out; and one that two
//! namespaces hold together.

use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use flotilla_core::stats::Stats;
use flotilla_crds::ModelProvider;
use flotilla_crds::common::{condition, is_true};
use flotilla_crds::names::GATEWAY_ADMIN_PORT;
use flotilla_e2e::fixtures::with;
use flotilla_e2e::namespace::in_namespace;
use flotilla_e2e::scenario::{load_test, pool};
use flotilla_e2e::traffic::{Plan, Traffic};
use flotilla_e2e::{Cluster, Namespace, fixtures, wait, with_namespace};
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http1::handshake;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::api::{DeleteParams, ListParams};
use serde_json::json;
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

const QUOTA: &str = "flotilla-quota";

#[tokio::test(flavor = "multi_thread")]
async fn a_quota_is_held_while_the_gateway_that_deals_it_out_is_lost() {
    with_namespace("quota", |namespace| async move {
        // More is asked for than there is: requests wait, and none is refused.
        let quotas = json!([{"name": "rps", "resource": "Requests", "limit": 60, "windowSeconds": 10}]);
        namespace
            .apply(&with(fixtures::provider("main"), "/spec/quotas", quotas))
            .await?;
        namespace.apply(&fixtures::pool("support", 2)).await?;
        pool::ready(&namespace, "support", pool::SOON).await?;
        namespace
            .apply(&fixtures::load_test("steady", "support", "5", 60, 1))
            .await?;

        let leases = namespace.api::<Lease>();
        let holder = wait::until("a gateway to be elected", pool::SOON, || async {
            let lease = leases.get(QUOTA).await.map_err(|error| error.to_string())?;
            let holder = lease
                .spec
                .and_then(|spec| spec.holder_identity)
                .unwrap_or_default();
            if holder.is_empty() {
                Err("nobody holds it".to_owned())
            } else {
                Ok(holder)
            }
        })
        .await?;
        let records = namespace.api::<ConfigMap>();
        wait::until("shares to be written", pool::SOON, || async {
            let record = records.get(QUOTA).await.map_err(|error| error.to_string())?;
            let entry = record
                .data
                .and_then(|data| data.get("main").cloned())
                .unwrap_or_default();
            if entry.contains("\"granted\":{\"rps/Requests/10000ms\":") {
                Ok(())
            } else {
                Err(entry)
            }
        })
        .await?;
        let providers = namespace.api::<ModelProvider>();
        wait::until("the status to show its use", Duration::from_secs(90), || async {
            let provider = providers.get("main").await.map_err(|error| error.to_string())?;
            let quotas = provider.status.map(|status| status.quotas).unwrap_or_default();
            match quotas.as_slice() {
                [quota] if quota.name == "rps" && quota.used > 0 && quota.used <= 60 && quota.limit == 60 => {
                    Ok(())
                }
                other => Err(format!("{other:?}")),
            }
        })
        .await?;

        let now = DeleteParams {
            grace_period_seconds: Some(0),
            ..DeleteParams::default()
        };
        namespace.api::<Pod>().delete(&holder, &now).await?;
        wait::until("another gateway to be elected", pool::SOON, || async {
            let lease = leases.get(QUOTA).await.map_err(|error| error.to_string())?;
            let other = lease
                .spec
                .and_then(|spec| spec.holder_identity)
                .unwrap_or_default();
            if other != holder && !other.is_empty() {
                Ok(())
            } else {
                Err(other)
            }
        })
        .await?;

        let done = load_test::complete(&namespace, "steady", Duration::from_secs(180)).await?;
        let status = done.status.unwrap_or_default();
        let summary = status.summary.clone().unwrap_or_default();
        anyhow::ensure!(summary.requests.total >= 200, "{status:?}");
        // Requests on their way through the killed gateway, and those that wait in it for the quota, are lost with it: at five
        // a second a few dozen at most.
        anyhow::ensure!(summary.requests.failed <= 45, "{summary:?}");
        let provider = providers.get("main").await?;
        let status = provider.status.unwrap_or_default();
        anyhow::ensure!(!status.conditions.is_empty(), "{status:?}");
        anyhow::ensure!(
            status
                .conditions
                .iter()
                .any(|known| known.type_ == condition::QUOTA_EXHAUSTED),
            "{status:?}"
        );
        // The gateway that was lost is back, or will be.
        wait::until("the provider to be Ready", Duration::from_secs(90), || async {
            let provider = providers.get("main").await.map_err(|error| error.to_string())?;
            let status = provider.status.unwrap_or_default();
            if is_true(&status.conditions, condition::READY) {
                Ok(())
            } else {
                Err(format!("{:?}", status.conditions))
            }
        })
        .await?;
        Ok(())
    })
    .await;
}

/// Where `install.sh` tells the gateways to find Redis, on the address of the API server.
const REDIS_PORT: &str = "16379";
const PASSWORD: &str = "of-the-scenario";

/// A Redis that pods reach. None where this machine has no `redis-server`, which is an error with `FLOTILLA_REDIS=required`.
async fn redis(cluster: &Cluster) -> Result<Option<Child>> {
    let server = [
        "config",
        "view",
        "--minify",
        "-o",
        "jsonpath={.clusters[0].cluster.server}",
    ];
    let server: http::Uri = cluster.kubectl(&server).await?.trim().parse()?;
    let host = server.host().context("the API server has no address")?;
    let options = ["--bind", host, "--port", REDIS_PORT, "--requirepass", PASSWORD];
    let started = Command::new("redis-server")
        .args(options)
        .args(["--save", "", "--appendonly", "no"])
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn();
    let mut child = match started {
        Ok(child) => child,
        Err(error) => {
            let required = std::env::var("FLOTILLA_REDIS").is_ok_and(|value| value == "required");
            ensure!(
                !required,
                "redis-server cannot be started: {error}; install Debian's package of that name"
            );
            println!(
                "left out: redis-server cannot be started: {error}; install Debian's package of that name"
            );
            return Ok(None);
        }
    };
    wait::until("Redis to listen", Duration::from_secs(10), || async {
        let connected = TcpStream::connect(format!("{host}:{REDIS_PORT}")).await;
        connected.map(drop).map_err(|error| error.to_string())
    })
    .await?;
    // Another one that had the port would answer as well.
    ensure!(
        child.try_wait()?.is_none(),
        "redis-server has ended: port {REDIS_PORT} of {host} is taken"
    );
    Ok(Some(child))
}

/// Requests to provider `main` that all gateways of a namespace have admitted.
async fn admitted(namespace: &Namespace) -> Result<u64> {
    let gateways = ListParams::default().labels("app.kubernetes.io/name=flotilla-gateway");
    let mut all = 0;
    for pod in namespace.api::<Pod>().list(&gateways).await?.items {
        let Some(ip) = pod.status.and_then(|status| status.pod_ip) else {
            continue;
        };
        let stream = TcpStream::connect((ip.as_str(), GATEWAY_ADMIN_PORT)).await?;
        let (mut sender, connection) = handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let request = http::Request::get("/stats").header("host", "gateway");
        let response = sender.send_request(request.body(Empty::<Bytes>::new())?).await?;
        let stats: Stats = serde_json::from_slice(&response.into_body().collect().await?.to_bytes())?;
        let pools = stats.providers.get("main").map(|main| main.quota_pools.values());
        all += pools
            .into_iter()
            .flatten()
            .map(|pool| pool.admitted + pool.waited)
            .sum::<u64>();
    }
    Ok(all)
}

async fn member(namespace: &Namespace, group: &str) -> Result<Traffic> {
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "flotilla-quota-redis"}, "stringData": {"password": PASSWORD},
    });
    namespace.apply(&secret).await?;
    let quotas = json!([{"name": "rps", "resource": "Requests", "limit": 60, "windowSeconds": 10}]);
    let provider = with(fixtures::provider("main"), "/spec/quotas", quotas);
    namespace
        .apply(&with(provider, "/spec/quotaGroup", json!(group)))
        .await?;
    namespace.apply(&fixtures::pool("support", 2)).await?;
    pool::ready(namespace, "support", pool::SOON).await?;
    pool::provider_ready(namespace, "main").await?;
    // Each alone asks for less than the quota, both together for much more.
    Ok(Traffic::start(Plan {
        address: pool::address(namespace, "support").await?,
        host: format!("support.{}.svc", namespace.name),
        per_second: 6,
        connections: 16,
        timeout: Duration::from_secs(60),
    }))
}

async fn held_together(one: Namespace, other: Namespace) -> Result<()> {
    let (first, second) = tokio::try_join!(member(&one, &one.name), member(&other, &one.name))?;
    let begin = Instant::now();
    let mut seen = Vec::new();
    let (mut here, mut there) = (0, 0);
    while begin.elapsed() < Duration::from_secs(60) {
        let asked = Instant::now();
        (here, there) = tokio::try_join!(admitted(&one), admitted(&other))?;
        seen.push((asked, Instant::now(), here + there));
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    first.stop().await;
    second.stop().await;
    for (index, (from, _, before)) in seen.iter().enumerate() {
        for (_, to, after) in &seen[index..] {
            let (stretch, units) = (*to - *from, after.saturating_sub(*before));
            ensure!(
                stretch > Duration::from_secs(10) || units <= 60,
                "{units} requests within {stretch:?}, of 60 within 10 s"
            );
        }
    }
    println!("{here} requests of one namespace and {there} of the other, of 360 in a minute");
    // There was more to do than the quota allows, and neither went without.
    ensure!(here + there >= 200 && here.min(there) >= 60, "{here} and {there}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quota_group_is_held_over_two_namespaces() {
    with_namespace("group", |one| async move {
        let cluster = one.cluster.clone();
        let Some(_redis) = redis(&cluster).await? else {
            return Ok(());
        };
        in_namespace(&cluster, "group", |other| held_together(one, other)).await
    })
    .await;
}
