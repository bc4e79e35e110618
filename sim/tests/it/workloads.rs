//! What users do, and what must come of it.

use std::sync::Arc;
use std::time::Duration;

use flotilla_core::load::result::{Series, StageCounts};
use flotilla_core::load::wire::WorkerResult;
use flotilla_sim::Cluster;
use flotilla_sim::controllers::Fate;
use flotilla_sim::gateways::Silence;
use flotilla_sim::run::{Step, Workload};
use serde_json::{Value, json};

pub const POOLS: &str = "/apis/flotilla.dev/v1alpha1/namespaces/shop/agentpools";
pub const POOL: &str = "/apis/flotilla.dev/v1alpha1/namespaces/shop/agentpools/support";
const TESTS: &str = "/apis/flotilla.dev/v1alpha1/namespaces/shop/loadtests";
const PROVIDERS: &str = "/apis/flotilla.dev/v1alpha1/namespaces/shop/modelproviders";
const ACTIONS: &str = "/apis/flotilla.dev/v1alpha1/namespaces/shop/rolloutactions";
const CONFIG_MAPS: &str = "/api/v1/namespaces/shop/configmaps";
const SECRETS: &str = "/api/v1/namespaces/shop/secrets";
const LIMIT: Duration = Duration::from_secs(900);

/// All of them.
pub fn all() -> Vec<Workload> {
    vec![rolling(), prompts(), gateway(), load_test(), provider(), action()]
}

fn step(
    name: &'static str,
    act: impl Fn(&Cluster) + Send + Sync + 'static,
    reached: impl Fn(&Cluster) -> Result<(), String> + Send + Sync + 'static,
) -> Step {
    Step {
        name,
        act: Arc::new(act),
        reached: Arc::new(reached),
        limit: LIMIT,
    }
}

fn workload(name: &'static str, steps: Vec<Step>) -> Workload {
    Workload {
        name,
        fates: Arc::new(fate),
        traffic: Arc::new(Silence),
        steps,
        may_differ: &[],
    }
}

/// Images say what becomes of their pods.
fn fate(cluster: &Cluster, pod: &Value) -> Fate {
    let image = pod["spec"]["containers"][0]["image"].as_str().unwrap_or_default();
    if image.contains("bad") {
        return Fate::Exits {
            after: Duration::from_millis(500),
            code: 1,
            message: "no prompt".into(),
        };
    }
    if image.contains("missing") {
        return Fate::ImagePull(format!("Back-off pulling image {image:?}"));
    }
    if image.contains("loadgen") {
        return Fate::Exits {
            after: Duration::from_secs(70),
            code: 0,
            message: result_of(cluster, pod),
        };
    }
    Fate::Ready(Duration::from_millis(700))
}

/// What a worker leaves behind that did all it had to.
fn result_of(cluster: &Cluster, pod: &Value) -> String {
    let label = &pod["metadata"]["labels"]["batch.kubernetes.io/job-completion-index"];
    let index = label.as_str().and_then(|index| index.parse().ok()).unwrap_or_default();
    let owner = pod["metadata"]["ownerReferences"][0]["name"].as_str().unwrap_or_default();
    let job = cluster
        .get(&format!("/apis/batch/v1/namespaces/shop/jobs/{owner}"))
        .unwrap_or_default();
    let workload = job["metadata"]["annotations"]["flotilla.dev/workload"].as_str().unwrap_or_default();
    let hex = workload.trim_start_matches("sha256:").get(..16).unwrap_or("0");
    let result = WorkerResult {
        index,
        workers: 2,
        attempt: 1,
        workload: u64::from_str_radix(hex, 16).unwrap_or_default(),
        stages: vec![StageCounts {
            planned: 150,
            started: 150,
            done: 150,
            failed: 0,
        }],
        series: Series {
            latency: (0..150).map(|_| 1_000_000).collect(),
            lateness: (0..150).map(|_| 10).collect(),
            ..Series::default()
        },
        ..WorkerResult::default()
    };
    result.to_message()
}

// === what is asked of objects ===

fn condition(object: &Value, type_: &str) -> Value {
    let conditions = object["status"]["conditions"].as_array();
    let found = conditions
        .into_iter()
        .flatten()
        .find(|condition| condition["type"] == type_);
    found.cloned().unwrap_or_default()
}

/// The object's present spec was seen, and Ready says this word.
fn says(path: &str, word: &'static str) -> impl Fn(&Cluster) -> Result<(), String> + Send + Sync + use<> {
    let path = path.to_owned();
    move |cluster| {
        let object = cluster.get(&path).ok_or("it is not there")?;
        let is_current = object["status"]["observedGeneration"] == object["metadata"]["generation"];
        if is_current && condition(&object, "Ready")["reason"] == word {
            Ok(())
        } else {
            Err(format!("not {word}: {:#}", object["status"]))
        }
    }
}

fn gone(prefix: &'static str) -> impl Fn(&Cluster) -> Result<(), String> + Send + Sync {
    move |cluster| {
        let left: Vec<String> = cluster
            .paths("shop")
            .into_iter()
            .filter(|path| path.contains(prefix))
            .collect();
        if left.is_empty() {
            Ok(())
        } else {
            Err(format!("left: {left:?}"))
        }
    }
}

fn create(
    collection: &'static str,
    object: Value,
) -> impl Fn(&Cluster) + Send + Sync + use<> {
    move |cluster| {
        cluster
            .create(collection, &object)
            .unwrap_or_else(|failure| panic!("{}", failure.message));
    }
}

fn patch(path: &'static str, change: Value) -> impl Fn(&Cluster) + Send + Sync + use<> {
    move |cluster| {
        cluster
            .patch(path, change.clone())
            .unwrap_or_else(|failure| panic!("{}", failure.message));
    }
}

fn pool(spec: Value) -> Value {
    let mut pool = json!({"replicas": 2, "agent": {"image": "agent:1"}, "rollout": {"settleSeconds": 1}});
    for (key, value) in spec.as_object().into_iter().flatten() {
        pool[key] = value.clone();
    }
    json!({"metadata": {"name": "support"}, "spec": pool})
}

fn image(name: &'static str) -> impl Fn(&Cluster) + Send + Sync {
    patch(POOL, json!({"spec": {"agent": {"image": name}}}))
}

// === workloads ===

/// A first revision, a release, one that fails, and the way back.
pub fn rolling() -> Workload {
    let steps = vec![
        step("the first revision", create(POOLS, pool(json!({}))), says(POOL, "Ready")),
        step("a release", image("agent:2"), says(POOL, "Ready")),
        step("a bad release", image("agent:bad"), says(POOL, "CrashLoop")),
        step("the way back", image("agent:2"), says(POOL, "Ready")),
    ];
    workload("rolling", steps)
}

/// A pool whose prompt is in a ConfigMap that comes late and changes.
pub fn prompts() -> Workload {
    let reference = json!({"configMapKeyRef": {"name": "prompts", "key": "p"}});
    let spec = json!({"agent": {"image": "agent:1", "prompt": reference}});
    let sets = |count: usize| {
        move |cluster: &Cluster| {
            let sets = cluster.list("/apis/apps/v1/namespaces/shop/replicasets");
            let of_pool = sets.iter().filter(|set| {
                set["metadata"]["name"].as_str().is_some_and(|name| name.starts_with("support-"))
            });
            let found = of_pool.count();
            if found == count { Ok(()) } else { Err(format!("{found} revisions")) }
        }
    };
    let two = sets(2);
    let steps = vec![
        step("no prompt yet", create(POOLS, pool(spec)), says(POOL, "WaitingForReference")),
        step(
            "the prompt",
            create(CONFIG_MAPS, json!({"metadata": {"name": "prompts"}, "data": {"p": "be kind"}})),
            says(POOL, "Ready"),
        ),
        step(
            "another prompt",
            patch("/api/v1/namespaces/shop/configmaps/prompts", json!({"data": {"p": "be brief"}})),
            move |cluster| {
                two(cluster)?;
                says(POOL, "Ready")(cluster)
            },
        ),
    ];
    workload("prompts", steps)
}

/// A namespace's gateway from the first pool to the last.
pub fn gateway() -> Workload {
    let other = json!({"metadata": {"name": "other"}, "spec": {"replicas": 1, "agent": {"image": "agent:1"}}});
    let steps = vec![
        step("a pool", create(POOLS, pool(json!({}))), says(POOL, "Ready")),
        step("another", create(POOLS, other), |cluster| {
            says(&format!("{POOLS}/other"), "Ready")(cluster)
        }),
        step(
            "the first goes",
            |cluster| drop(cluster.delete(POOL)),
            gone("/support"),
        ),
        step(
            "the last goes",
            |cluster| drop(cluster.delete(&format!("{POOLS}/other"))),
            gone("flotilla-gateway"),
        ),
    ];
    workload("gateway", steps)
}

/// A load test of a pool, from the spec to the verdict.
pub fn load_test() -> Workload {
    let spec = json!({
        "target": {"poolRef": {"name": "support"}},
        "workers": {"count": 2},
        "scenarios": [{"name": "a", "prompt": {"text": "order {{order}}"}}],
        "stages": [{"name": "steady", "type": "ConstantRate", "constantRate": {"perSecond": "5", "seconds": 60}}],
        "thresholds": {"p95Milliseconds": 4000},
    });
    let steps = vec![
        step("a pool", create(POOLS, pool(json!({}))), says(POOL, "Ready")),
        step(
            "a test",
            create(TESTS, json!({"metadata": {"name": "steady"}, "spec": spec})),
            |cluster| {
                let test = cluster.get(&format!("{TESTS}/steady")).unwrap_or_default();
                if test["status"]["verdict"] == "Passed" {
                    gone("/jobs/")(cluster)
                } else {
                    Err(format!("{:#}", test["status"]))
                }
            },
        ),
    ];
    workload("load test", steps)
}

/// A provider whose key comes late.
pub fn provider() -> Workload {
    let spec = json!({
        "endpoint": "https://models.example.com/v1",
        "auth": {"type": "APIKey", "apiKey": {"secretKeyRef": {"name": "keys", "key": "main"}}},
        "models": [{"name": "fast", "price": {"inputPerMillion": "0.25", "outputPerMillion": "2.00"}}],
    });
    let models = json!([{"name": "default", "providerRef": {"name": "main"}, "model": "fast"}]);
    let pool = pool(json!({"agent": {"image": "agent:1", "models": models}}));
    let provider = format!("{PROVIDERS}/main");
    let steps = vec![
        step(
            "a provider without its key",
            move |cluster| {
                create(POOLS, pool.clone())(cluster);
                create(PROVIDERS, json!({"metadata": {"name": "main"}, "spec": spec}))(cluster);
            },
            says(&provider, "WaitingForReference"),
        ),
        step(
            "its key",
            create(SECRETS, json!({"metadata": {"name": "keys"}, "data": {"main": "aGk="}})),
            says(&provider, "Ready"),
        ),
        step("the pool", |_| {}, says(POOL, "Ready")),
    ];
    workload("provider", steps)
}

/// A failed release that is tried again by command, and a command that comes twice.
pub fn action() -> Workload {
    let answered = |name: &'static str, result: &'static str| {
        move |cluster: &Cluster| {
            let action = cluster.get(&format!("{ACTIONS}/{name}")).unwrap_or_default();
            if action["status"]["result"] == result {
                says(POOL, "CrashLoop")(cluster)
            } else {
                Err(action["status"].to_string())
            }
        }
    };
    let retry = |name: &'static str| {
        move |cluster: &Cluster| {
            let pool = cluster.get(POOL).unwrap_or_default();
            let revision = pool["status"]["rejected"][0]["revision"].clone();
            let spec = json!({
                "poolRef": {"name": "support"}, "type": "Retry", "expect": {"revision": revision, "attempt": 1},
            });
            create(ACTIONS, json!({"metadata": {"name": name}, "spec": spec}))(cluster);
        }
    };
    let steps = vec![
        step("the first revision", create(POOLS, pool(json!({}))), says(POOL, "Ready")),
        step("a bad release", image("agent:bad"), says(POOL, "CrashLoop")),
        step("a retry", retry("a-retry"), answered("a-retry", "Applied")),
        step("the same again", retry("b-retry"), answered("b-retry", "Rejected")),
    ];
    workload("action", steps)
}
