//! The whole controller on an API server in memory, under virtual time, with reports that the test writes.

use std::sync::Arc;
use std::time::Duration;

use flotilla_core::price::{Currency, Money};
use flotilla_core::stats::{Credential, ModelUse, ProviderStats, Stats};
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::{Reports, register};
use crate::caches::Caches;
use crate::fakecluster::{FakeCluster, Running, eventually};
use crate::gateway::GatewayHealth;
use crate::runtime::Key;

const PROVIDER: &str = "/apis/flotilla.dev/v1alpha1/namespaces/shop/modelproviders/main";
const DEPLOYMENT: &str = "/apis/apps/v1/namespaces/shop/deployments/flotilla-gateway";
const POD: &str = "/api/v1/namespaces/shop/pods/g-1";
const MINUTE: Duration = Duration::from_secs(60);

#[derive(Clone, Default)]
struct Written(Arc<Mutex<Vec<Arc<Stats>>>>);

impl Reports for Written {
    fn of_namespace(&self, _: &str) -> Vec<Arc<Stats>> {
        self.0.lock().clone()
    }

    fn set_eager(&self, _: &Key, _: bool) {}
}

impl Written {
    /// One gateway, `g-1`, reports this.
    fn write(&self, credential: Credential, requests: u64) {
        let used = ModelUse {
            requests,
            failed: 0,
            input_tokens: requests * 10,
            output_tokens: requests,
        };
        let provider = ProviderStats {
            generation: 1,
            credential,
            in_flight: 0,
            models: [("mini".to_owned(), used)].into(),
            // A cent for each request.
            spend: [(
                Currency::USD,
                Money::of_tokens(requests * 10_000, "1".parse().unwrap()),
            )]
            .into(),
            ..ProviderStats::default()
        };
        *self.0.lock() = vec![Arc::new(Stats {
            instance: "i-1".into(),
            pod: "g-1".into(),
            providers: [("main".to_owned(), provider)].into(),
            ..Stats::default()
        })];
    }
}

fn operator(cluster: &FakeCluster, reports: &Written) -> Running {
    let mut manager = cluster.manager();
    let caches = Caches::new(&mut manager);
    register(
        &mut manager,
        &caches,
        reports.clone(),
        GatewayHealth::default(),
        false,
    );
    Running::start(manager)
}

fn put_provider(cluster: &FakeCluster) {
    let auth = json!({"type": "APIKey", "apiKey": {"secretKeyRef": {"name": "vault", "key": "token"}}});
    cluster.put(
        PROVIDER,
        json!({"metadata": {"name": "main"}, "spec": {"endpoint": "https://m/v1", "auth": auth}}),
    );
}

/// A pool, and a gateway whose pods have the newest template.
fn put_gateway(cluster: &FakeCluster) {
    let pool = "/apis/flotilla.dev/v1alpha1/namespaces/shop/agentpools/support";
    cluster.put(
        pool,
        json!({"metadata": {"name": "support"}, "spec": {"agent": {"image": "a"}}}),
    );
    let labels =
        json!({"app.kubernetes.io/name": "flotilla-gateway", "app.kubernetes.io/managed-by": "flotilla"});
    let status =
        json!({"observedGeneration": 1, "replicas": 1, "updatedReplicas": 1, "availableReplicas": 1});
    let spec = json!({"replicas": 1, "selector": {}, "template": {}});
    cluster.put(
        DEPLOYMENT,
        json!({"metadata": {"name": "flotilla-gateway", "labels": labels}, "spec": spec, "status": status}),
    );
    cluster.put(POD, json!({"metadata": {"name": "g-1", "labels": labels}}));
}

fn status(cluster: &FakeCluster) -> Value {
    cluster
        .get(PROVIDER)
        .map(|provider| provider["status"].clone())
        .unwrap_or_default()
}

fn ready(cluster: &FakeCluster) -> (String, String) {
    let conditions = status(cluster)["conditions"].clone();
    let ready = conditions
        .as_array()
        .into_iter()
        .flatten()
        .find(|condition| condition["type"] == "Ready")
        .cloned();
    let ready = ready.unwrap_or_default();
    let text = |field: &str| ready[field].as_str().unwrap_or_default().to_owned();
    (text("status"), text("reason"))
}

async fn becomes(cluster: &FakeCluster, expected: &str, reason: &str) {
    eventually(&format!("Ready={expected} {reason}"), MINUTE, || {
        let is = ready(cluster);
        if is == (expected.to_owned(), reason.to_owned()) {
            Ok(())
        } else {
            Err(format!("{is:?}"))
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_missing_secret_is_seen_through_the_gateway_and_recovers() {
    let (cluster, reports) = (FakeCluster::new(), Written::default());
    let _operator = operator(&cluster, &reports);
    put_provider(&cluster);
    becomes(&cluster, "True", "Unused").await;
    put_gateway(&cluster);
    becomes(&cluster, "False", "WaitingForGateway").await;
    reports.write(Credential::Missing, 0);
    becomes(&cluster, "False", "WaitingForReference").await;
    tokio::time::sleep(11 * MINUTE).await;
    let stalled = status(&cluster)["conditions"]
        .as_array()
        .unwrap()
        .iter()
        .any(|c| c["type"] == "Stalled" && c["status"] == "True");
    assert!(stalled, "{}", status(&cluster));
    reports.write(Credential::Present, 0);
    becomes(&cluster, "True", "Ready").await;
    let reads = cluster
        .requests(0)
        .into_iter()
        .filter(|request| request.contains("/secrets"))
        .count();
    assert_eq!(reads, 0, "Secrets are never read");
}

#[tokio::test(start_paused = true)]
async fn use_is_counted_once_whoever_is_restarted_and_written_rarely() {
    let (cluster, reports) = (FakeCluster::new(), Written::default());
    put_provider(&cluster);
    put_gateway(&cluster);
    reports.write(Credential::Present, 10);
    let first = operator(&cluster, &reports);
    eventually(
        "the first count",
        MINUTE,
        || match status(&cluster)["usage"]["requests"].as_i64() {
            Some(10) => Ok(()),
            other => Err(format!("{other:?}")),
        },
    )
    .await;

    let skip = cluster.request_count();
    for requests in 11..=70 {
        reports.write(Credential::Present, requests);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let writes = cluster.requests(skip).len();
    assert!(writes <= 3, "{writes} writes in a minute");
    drop(first);
    let _second = operator(&cluster, &reports);
    tokio::time::sleep(MINUTE).await;
    let usage = status(&cluster)["usage"].clone();
    assert_eq!(
        (usage["requests"].as_i64(), usage["inputTokens"].as_i64()),
        (Some(70), Some(700))
    );

    let skip = cluster.request_count();
    tokio::time::sleep(10 * MINUTE).await;
    assert_eq!(
        cluster.requests(skip),
        Vec::<String>::new(),
        "without use nothing is written"
    );
}

#[tokio::test(start_paused = true)]
async fn the_last_counts_of_a_gateway_that_goes_are_kept() {
    let (cluster, reports) = (FakeCluster::new(), Written::default());
    put_provider(&cluster);
    put_gateway(&cluster);
    reports.write(Credential::Present, 10);
    let _operator = operator(&cluster, &reports);
    eventually("the first count", MINUTE, || {
        status(&cluster)["usage"]["requests"]
            .as_i64()
            .map(drop)
            .ok_or_else(String::new)
    })
    .await;
    reports.write(Credential::Present, 25);
    tokio::time::sleep(Duration::from_secs(12)).await;
    cluster.delete(POD);
    reports.0.lock().clear();
    eventually(
        "all of it",
        2 * MINUTE,
        || match status(&cluster)["usage"]["requests"].as_i64() {
            Some(25) => Ok(()),
            other => Err(format!("{other:?}")),
        },
    )
    .await;
    tokio::time::sleep(2 * MINUTE).await;
    assert_eq!(
        status(&cluster)["usage"]["counted"]
            .as_array()
            .map(Vec::len)
            .unwrap_or_default(),
        0
    );
    assert_eq!(status(&cluster)["usage"]["requests"], 25);
}

#[tokio::test(start_paused = true)]
async fn an_impossible_spec_is_told() {
    let (cluster, reports) = (FakeCluster::new(), Written::default());
    let _operator = operator(&cluster, &reports);
    cluster.put(PROVIDER, json!({"metadata": {"name": "main"}, "spec": {"endpoint": "http://flotilla-gateway:8081/providers/main/v1"}}));
    becomes(&cluster, "False", "InvalidSpec").await;
    cluster.update(PROVIDER, |provider| {
        provider["spec"]["endpoint"] = json!("https://m/v1")
    });
    becomes(&cluster, "True", "Unused").await;
}

#[tokio::test(start_paused = true)]
async fn a_budget_is_counted_announced_once_and_outlives_everybody() {
    let (cluster, reports) = (FakeCluster::new(), Written::default());
    put_provider(&cluster);
    cluster.update(PROVIDER, |provider| {
        provider["spec"]["budget"] = json!({"limit": "1.00", "window": "Year"})
    });
    put_gateway(&cluster);
    reports.write(Credential::Present, 0);
    let first = operator(&cluster, &reports);
    let budget = |cluster: &FakeCluster| {
        let status = status(cluster);
        let alert = status["conditions"].as_array().into_iter().flatten();
        let alert = alert.filter(|condition| condition["type"] == "BudgetAlert");
        let reason = alert
            .map(|condition| condition["reason"].as_str().unwrap_or_default().to_owned())
            .next();
        let spent = status["budget"]["spent"].as_str().unwrap_or_default().to_owned();
        (
            spent,
            status["budget"]["percent"].as_i64(),
            reason.unwrap_or_default(),
        )
    };
    let becomes = async |cluster: &FakeCluster, spent: &str, percent: i64, reason: &str| {
        eventually(&format!("{spent} {reason}"), 2 * MINUTE, || {
            let is = budget(cluster);
            if is == (spent.to_owned(), Some(percent), reason.to_owned()) {
                Ok(())
            } else {
                Err(format!("{is:?}"))
            }
        })
        .await;
    };
    becomes(&cluster, "0", 0, "WithinBudget").await;
    reports.write(Credential::Present, 85);
    becomes(&cluster, "0.85", 85, "Spent80Percent").await;
    drop(first);
    // All gateways are replaced and the operator restarts: the new process counts from zero.
    let replaced = |requests: u64| {
        reports.write(Credential::Present, requests);
        let mut stats = (*reports.0.lock()[0]).clone();
        stats.instance = "i-2".into();
        *reports.0.lock() = vec![Arc::new(stats)];
    };
    replaced(3);
    let _second = operator(&cluster, &reports);
    becomes(&cluster, "0.88", 88, "Spent80Percent").await;
    replaced(15);
    becomes(&cluster, "1", 100, "Exhausted").await;
    tokio::time::sleep(MINUTE).await;
    let events = cluster.events("main");
    for (reason, count) in [
        ("BudgetSpent80Percent", 1),
        ("BudgetSpent90Percent", 1),
        ("BudgetExhausted", 1),
    ] {
        assert_eq!(
            events.iter().filter(|event| *event == reason).count(),
            count,
            "{events:?}"
        );
    }
    // A larger limit takes the alert back; the spend stays.
    cluster.update(PROVIDER, |provider| {
        provider["spec"]["budget"]["limit"] = json!("2")
    });
    becomes(&cluster, "1", 50, "WithinBudget").await;
}
