//! Rolling releases.

use super::*;

pub(super) fn all() -> Vec<Workload> {
    vec![
        rolling(),
        action(),
        pause(),
        scale(),
        abort(),
        supersede(),
        back(),
        pinned(),
        missing_image(),
        history(),
    ]
}

/// A first revision, a release, one that fails, and the way back.
fn rolling() -> Workload {
    let steps = vec![
        step(
            "the first revision",
            create(POOLS, pool(json!({}))),
            says(POOL, "Ready"),
        ),
        step("a release", image("agent:2"), says(POOL, "Ready")),
        step("a bad release", image("agent:bad"), led_back("CrashLoop")),
        step("the way back", image("agent:2"), says(POOL, "Ready")),
    ];
    workload("rolling", steps)
}

/// A failed release that is tried again by command, and a command that comes twice.
fn action() -> Workload {
    let steps = vec![
        step(
            "the first revision",
            create(POOLS, pool(json!({}))),
            says(POOL, "Ready"),
        ),
        step("a bad release", image("agent:bad"), led_back("CrashLoop")),
        step(
            "a retry",
            retry("a-retry"),
            both(
                answered("a-retry", "Applied"),
                both(is_given_up, led_back("CrashLoop")),
            ),
        ),
        step(
            "the same again",
            retry("b-retry"),
            both(answered("b-retry", "Rejected"), led_back("CrashLoop")),
        ),
    ];
    workload("action", steps)
}

/// The second attempt has failed as well.
fn is_given_up(cluster: &Cluster) -> Result<(), String> {
    let records = cluster.objects("/apis/apps/v1/namespaces/shop/controllerrevisions");
    let is_it = |record: &&Arc<Value>| {
        let metadata = &record["metadata"];
        metadata["annotations"]["flotilla.dev/attempt"] == "2"
            && metadata["labels"]["flotilla.dev/revision-state"] == "rejected"
    };
    let found = records.iter().find(is_it);
    found
        .map(|_| ())
        .ok_or_else(|| "no second attempt has been given up".to_owned())
}

/// The same command each time: about the first attempt.
fn retry(name: &'static str) -> impl Fn(&Cluster) + Send + Sync {
    move |cluster| {
        let pool = cluster.object(POOL).unwrap_or_default();
        let revision = pool["status"]["rejected"][0]["revision"].clone();
        let spec = json!({
            "poolRef": {"name": "support"}, "type": "Retry", "expect": {"revision": revision, "attempt": 1},
        });
        create(ACTIONS, json!({"metadata": {"name": name}, "spec": spec}))(cluster);
    }
}

fn is_moving(cluster: &Cluster) -> Result<(), String> {
    let pool = cluster.object(POOL).unwrap_or_default();
    let weight = pool["status"]["candidate"]["weight"].as_i64().unwrap_or_default();
    if weight > 0 {
        Ok(())
    } else {
        Err(format!("no weight yet: {:#}", pool["status"]))
    }
}

/// A release that is held, scaled and let go.
fn pause() -> Workload {
    let steps = vec![
        step(
            "a pool",
            create(POOLS, pool(json!({"replicas": 4}))),
            says(POOL, "Ready"),
        ),
        step("a release", image("agent:2"), is_moving),
        step(
            "it is held",
            spec(json!({"rollout": {"paused": true}})),
            says(POOL, "Paused"),
        ),
        step("it grows", spec(json!({"replicas": 6})), says(POOL, "Paused")),
        step(
            "it goes on",
            spec(json!({"rollout": {"paused": false}})),
            says(POOL, "Ready"),
        ),
    ];
    workload("pause", steps)
}

/// Sizes, alone and with a release.
fn scale() -> Workload {
    let steps = vec![
        step("a pool", create(POOLS, pool(json!({}))), says(POOL, "Ready")),
        step("it grows", spec(json!({"replicas": 5})), says(POOL, "Ready")),
        step(
            "it shrinks and is released at once",
            spec(json!({"replicas": 3, "agent": {"image": "agent:2"}})),
            says(POOL, "Ready"),
        ),
        step("it shrinks", spec(json!({"replicas": 1})), says(POOL, "Ready")),
    ];
    workload("scale", steps)
}

/// A release that a person stops, and the next one.
fn abort() -> Workload {
    let steps = vec![
        step(
            "a pool",
            create(POOLS, pool(json!({"replicas": 4}))),
            says(POOL, "Ready"),
        ),
        step("a release", image("agent:2"), is_moving),
        step(
            "it is stopped",
            command("stop-it", "Abort"),
            both(answered("stop-it", "Applied"), says(POOL, "Aborted")),
        ),
        step("the next one", image("agent:3"), says(POOL, "Ready")),
    ];
    workload("abort", steps)
}

/// A third revision in the middle of the second one's release.
fn supersede() -> Workload {
    let steps = vec![
        step(
            "a pool",
            create(POOLS, pool(json!({"replicas": 4}))),
            says(POOL, "Ready"),
        ),
        step("a release", image("agent:2"), is_moving),
        step("another", image("agent:3"), says(POOL, "Ready")),
    ];
    workload("supersede", steps)
}

/// Back to what serves in the middle of a release.
fn back() -> Workload {
    let steps = vec![
        step(
            "a pool",
            create(POOLS, pool(json!({"replicas": 4}))),
            says(POOL, "Ready"),
        ),
        step("a release", image("agent:2"), is_moving),
        step("back", image("agent:1"), says(POOL, "Ready")),
    ];
    workload("back", steps)
}

/// Back to a revision of the history by its name.
fn pinned() -> Workload {
    let pin = |cluster: &Cluster| {
        let sets = cluster.objects("/apis/apps/v1/namespaces/shop/replicasets");
        let first = sets
            .iter()
            .find(|set| set["spec"]["template"]["spec"]["containers"][0]["image"] == "agent:1");
        let name = first
            .map(|set| set["metadata"]["name"].clone())
            .unwrap_or_default();
        spec(json!({"rollout": {"pinnedRevision": name}}))(cluster);
    };
    let steps = vec![
        step("a pool", create(POOLS, pool(json!({}))), says(POOL, "Ready")),
        step("a release", image("agent:2"), says(POOL, "Ready")),
        step("another", image("agent:3"), says(POOL, "Ready")),
        step("back to the first", pin, says(POOL, "Ready")),
    ];
    workload("pinned", steps)
}

/// An image that does not exist, until the deadline, and its correction.
fn missing_image() -> Workload {
    let rollout = json!({"settleSeconds": 1, "progressDeadlineSeconds": 30});
    let steps = vec![
        step(
            "a pool",
            create(POOLS, pool(json!({"rollout": rollout}))),
            says(POOL, "Ready"),
        ),
        step(
            "a release that cannot start",
            image("agent:missing"),
            led_back("ImagePull"),
        ),
        step("its correction", image("agent:2"), says(POOL, "Ready")),
    ];
    workload("missing image", steps)
}

/// More revisions than are kept.
fn history() -> Workload {
    let mut steps = vec![step(
        "a pool",
        create(POOLS, pool(json!({"replicas": 1, "revisionHistoryLimit": 1}))),
        says(POOL, "Ready"),
    )];
    for (name, before) in [
        ("agent:2", "agent:1"),
        ("agent:3", "agent:2"),
        ("agent:4", "agent:3"),
    ] {
        let reached = both(says(POOL, "Ready"), only_kept([before, name]));
        steps.push(step(name, image(name), reached));
    }
    workload("history", steps)
}

/// No other revision than those of these images, in order, is kept.
fn only_kept(images: [&'static str; 2]) -> impl Fn(&Cluster) -> Result<(), String> + Send + Sync {
    move |cluster| {
        let sets = cluster.objects("/apis/apps/v1/namespaces/shop/replicasets");
        let image = |set: &Arc<Value>| {
            let image = set.pointer("/spec/template/spec/containers/0/image");
            image.and_then(Value::as_str).unwrap_or_default().to_owned()
        };
        // The gateway has one as well.
        let mut kept: Vec<String> = sets.iter().map(image).collect();
        kept.retain(|image| image.starts_with("agent:"));
        kept.sort();
        if kept == images {
            Ok(())
        } else {
            Err(format!("kept are {kept:?}"))
        }
    }
}
