//! What users do, and what must come of it: at least 18 workloads, each run under every crash.

mod ladders;
mod others;
mod releases;

use std::sync::Arc;
use std::time::Duration;

use flotilla_core::load::result::{Series, StageCounts};
use flotilla_core::load::wire::WorkerResult;
use flotilla_sim::Cluster;
use flotilla_sim::controllers::Fate;
use flotilla_sim::gateways::{Silence, Steady};
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
    [releases::all(), ladders::all(), others::all()].concat()
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
        counted: &[],
        renewed: &[],
    }
}

/// A workload whose pool is asked for something. How many requests a release was judged by depends on when each step
/// was reached, and so do the sentences that say it.
fn judged(name: &'static str, steps: Vec<Step>) -> Workload {
    let traffic = Steady {
        rate: 100.0,
        failing: vec![("failing".to_owned(), 0.5)],
    };
    Workload {
        traffic: Arc::new(traffic),
        counted: &["/message", "/annotations/flotilla.dev/rejected-reason"],
        ..workload(name, steps)
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
pub fn result_of(cluster: &Cluster, pod: &Value) -> String {
    let label = &pod["metadata"]["labels"]["batch.kubernetes.io/job-completion-index"];
    let index = label
        .as_str()
        .and_then(|index| index.parse().ok())
        .unwrap_or_default();
    let owner = pod["metadata"]["ownerReferences"][0]["name"]
        .as_str()
        .unwrap_or_default();
    let job = cluster
        .get(&format!("/apis/batch/v1/namespaces/shop/jobs/{owner}"))
        .unwrap_or_default();
    let workload = job["metadata"]["annotations"]["flotilla.dev/workload"]
        .as_str()
        .unwrap_or_default();
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
        let object = cluster.object(&path).ok_or("it is not there")?;
        let is_current = object["status"]["observedGeneration"] == object["metadata"]["generation"];
        if is_current && condition(&object, "Ready")["reason"] == word {
            Ok(())
        } else {
            Err(format!("not {word}: {:#}", object["status"]))
        }
    }
}

/// The same, and nothing is being released any more: pods in trouble are called by the same word before they are given up.
fn led_back(word: &'static str) -> impl Fn(&Cluster) -> Result<(), String> + Send + Sync {
    both(says(POOL, word), |cluster: &Cluster| {
        let pool = cluster.object(POOL).unwrap_or_default();
        match &pool["status"]["candidate"] {
            Value::Null => Ok(()),
            candidate => Err(format!("{candidate} is still being released")),
        }
    })
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

fn create(collection: &'static str, object: Value) -> impl Fn(&Cluster) + Send + Sync + use<> {
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

/// All of these.
fn both(
    one: impl Fn(&Cluster) -> Result<(), String> + Send + Sync + 'static,
    other: impl Fn(&Cluster) -> Result<(), String> + Send + Sync + 'static,
) -> impl Fn(&Cluster) -> Result<(), String> + Send + Sync {
    move |cluster| one(cluster).and_then(|()| other(cluster))
}

/// The pool's status shows this at a JSON pointer.
fn shows(pointer: &'static str, value: Value) -> impl Fn(&Cluster) -> Result<(), String> + Send + Sync {
    move |cluster| {
        let pool = cluster.object(POOL).ok_or("it is not there")?;
        match pool["status"].pointer(pointer) {
            Some(found) if *found == value => Ok(()),
            found => Err(format!(
                "{pointer} is {found:?}, not {value}: {:#}",
                pool["status"]
            )),
        }
    }
}

/// The candidate is judged at a weight, or at a higher one: a step may come and go before anybody looks.
fn judged_at(weight: i64) -> impl Fn(&Cluster) -> Result<(), String> + Send + Sync {
    move |cluster| {
        let pool = cluster.object(POOL).ok_or("it is not there")?;
        let is_reached = |pointer: &str| {
            let found = pool["status"].pointer(pointer).and_then(Value::as_i64);
            found.is_some_and(|found| found >= weight)
        };
        if is_reached("/rollout/step/weight") && is_reached("/candidate/weight") {
            Ok(())
        } else {
            Err(format!("it is not judged at {weight}: {:#}", pool["status"]))
        }
    }
}

/// A command got this answer.
fn answered(
    name: &'static str,
    result: &'static str,
) -> impl Fn(&Cluster) -> Result<(), String> + Send + Sync {
    move |cluster| {
        let action = cluster.object(&format!("{ACTIONS}/{name}")).unwrap_or_default();
        if action["status"]["result"] == result {
            Ok(())
        } else {
            Err(format!("{name}: {}", action["status"]))
        }
    }
}

/// Gives a command about the candidate as it is now, or about the revision that was rejected.
fn command(name: &'static str, type_: &'static str) -> impl Fn(&Cluster) + Send + Sync {
    move |cluster| {
        let pool = cluster.object(POOL).unwrap_or_default();
        let status = &pool["status"];
        let mut spec = json!({"poolRef": {"name": "support"}, "type": type_});
        match type_ {
            "Restart" => {}
            "Retry" => spec["expect"] = json!({"revision": status["rejected"][0]["revision"]}),
            _ => spec["expect"] = json!({"revision": status["candidate"]["revision"]}),
        }
        if matches!(type_, "Promote" | "SkipStep") {
            spec["expect"]["step"] = status["rollout"]["step"]["index"].clone();
        }
        create(ACTIONS, json!({"metadata": {"name": name}, "spec": spec}))(cluster);
    }
}

fn spec(change: Value) -> impl Fn(&Cluster) + Send + Sync {
    patch(POOL, json!({"spec": change}))
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
