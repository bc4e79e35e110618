//! What is not a release: sources, gateways, load tests, providers, and the end of things.

use super::*;

pub(super) fn all() -> Vec<Workload> {
    vec![
        prompts(),
        gateway(),
        load_test(),
        provider(),
        stop(),
        deletion(),
        again(),
        lost_status(),
        restart(),
    ]
}

/// A pool whose prompt is in a ConfigMap that comes late and changes.
fn prompts() -> Workload {
    let reference = json!({"configMapKeyRef": {"name": "prompts", "key": "p"}});
    let spec = json!({"agent": {"image": "agent:1", "prompt": reference}});
    let sets = |count: usize| {
        move |cluster: &Cluster| {
            let sets = cluster.objects("/apis/apps/v1/namespaces/shop/replicasets");
            let of_pool = sets.iter().filter(|set| {
                set["metadata"]["name"]
                    .as_str()
                    .is_some_and(|name| name.starts_with("support-"))
            });
            let found = of_pool.count();
            if found == count {
                Ok(())
            } else {
                Err(format!("{found} revisions"))
            }
        }
    };
    let two = sets(2);
    let steps = vec![
        step(
            "no prompt yet",
            create(POOLS, pool(spec)),
            says(POOL, "WaitingForReference"),
        ),
        step(
            "the prompt",
            create(
                CONFIG_MAPS,
                json!({"metadata": {"name": "prompts"}, "data": {"p": "be kind"}}),
            ),
            says(POOL, "Ready"),
        ),
        step(
            "another prompt",
            patch(
                "/api/v1/namespaces/shop/configmaps/prompts",
                json!({"data": {"p": "be brief"}}),
            ),
            move |cluster| {
                two(cluster)?;
                says(POOL, "Ready")(cluster)
            },
        ),
    ];
    workload("prompts", steps)
}

/// A namespace's gateway from the first pool to the last.
fn gateway() -> Workload {
    let other =
        json!({"metadata": {"name": "other"}, "spec": {"replicas": 1, "agent": {"image": "agent:1"}}});
    let steps = vec![
        step("a pool", create(POOLS, pool(json!({}))), says(POOL, "Ready")),
        // Until it is theirs as well, the gateway goes with its first pool.
        step("another", create(POOLS, other), |cluster| {
            let gateway = cluster
                .object("/apis/apps/v1/namespaces/shop/deployments/flotilla-gateway")
                .unwrap_or_default();
            match gateway["metadata"]["ownerReferences"].as_array().map(Vec::len) {
                Some(2) => says(&format!("{POOLS}/other"), "Ready")(cluster),
                owners => Err(format!("the gateway has {owners:?} owners")),
            }
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
fn load_test() -> Workload {
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
                let test = cluster.object(&format!("{TESTS}/steady")).unwrap_or_default();
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
fn provider() -> Workload {
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
            create(
                SECRETS,
                json!({"metadata": {"name": "keys"}, "data": {"main": "aGk="}}),
            ),
            says(&provider, "Ready"),
        ),
        step("the pool", |_| {}, says(POOL, "Ready")),
    ];
    workload("provider", steps)
}

/// No pod runs, and then they run again.
fn stop() -> Workload {
    let steps = vec![
        step("a pool", create(POOLS, pool(json!({}))), says(POOL, "Ready")),
        step(
            "it is stopped",
            spec(json!({"stopped": true})),
            says(POOL, "Stopped"),
        ),
        step("a release meanwhile", image("agent:2"), says(POOL, "Stopped")),
        step(
            "it runs again",
            spec(json!({"stopped": false})),
            says(POOL, "Ready"),
        ),
    ];
    workload("stop", steps)
}

/// A pool that goes in the middle of a release.
fn deletion() -> Workload {
    let steps = vec![
        step(
            "a pool",
            create(POOLS, pool(json!({"replicas": 4}))),
            says(POOL, "Ready"),
        ),
        step(
            "a command",
            command("support-again", "Restart"),
            both(answered("support-again", "Applied"), says(POOL, "Ready")),
        ),
        step("a release", image("agent:2"), |cluster| {
            let pool = cluster.object(POOL).unwrap_or_default();
            let weight = pool["status"]["candidate"]["weight"].as_i64().unwrap_or_default();
            if weight > 0 {
                Ok(())
            } else {
                Err("no weight yet".to_owned())
            }
        }),
        step("it goes", |cluster| drop(cluster.delete(POOL)), gone("support")),
    ];
    workload("deletion", steps)
}

/// A pool that goes, and another of the same name that comes while the first one's children are still there.
fn again() -> Workload {
    let steps = vec![
        step("a pool", create(POOLS, pool(json!({}))), says(POOL, "Ready")),
        step(
            "another of its name",
            |cluster| {
                drop(cluster.delete(POOL));
                create(POOLS, pool(json!({"agent": {"image": "agent:2"}})))(cluster);
            },
            says(POOL, "Ready"),
        ),
    ];
    Workload {
        // The gateway goes with the first pool unless the second one owns it, too, when the garbage collector comes by.
        renewed: &[
            "deployments.apps",
            "replicasets.apps",
            "poddisruptionbudgets.policy",
            "rolebindings.rbac.authorization.k8s.io",
            "serviceaccounts",
            "services",
        ],
        ..workload("again", steps)
    }
}

/// A restore from a backup that has no status, at rest and in the middle of a release.
fn lost_status() -> Workload {
    let lose = |cluster: &Cluster| {
        let path = format!("{POOL}/status");
        cluster
            .patch(&path, json!({"status": null}))
            .unwrap_or_else(|failure| panic!("{}", failure.message));
    };
    let steps = vec![
        step("a pool", create(POOLS, pool(json!({}))), says(POOL, "Ready")),
        step("a bad release", image("agent:bad"), led_back("CrashLoop")),
        step("its status is lost", lose, led_back("CrashLoop")),
        step(
            "a good release",
            image("agent:2"),
            shows("/traffic/1/weight", json!(0)),
        ),
        step("its status is lost again", lose, says(POOL, "Ready")),
    ];
    workload("lost status", steps)
}

/// Pods are replaced by command.
fn restart() -> Workload {
    let is_new = |cluster: &Cluster| {
        let made =
            cluster.object(&format!("{ACTIONS}/again")).unwrap_or_default()["metadata"]["creationTimestamp"]
                .clone();
        let pods = cluster.objects("/api/v1/namespaces/shop/pods");
        let old = pods.iter().filter(|pod| {
            let name = pod["metadata"]["name"].as_str().unwrap_or_default();
            let time = pod["metadata"]["creationTimestamp"].as_str();
            name.starts_with("support-") && time < made.as_str()
        });
        match old.count() {
            0 => says(POOL, "Ready")(cluster),
            count => Err(format!("{count} old pods")),
        }
    };
    let steps = vec![
        step(
            "a pool",
            create(POOLS, pool(json!({"replicas": 3}))),
            says(POOL, "Ready"),
        ),
        step(
            "a while later",
            |_| {},
            |cluster| {
                if cluster.age().as_secs() >= 20 {
                    Ok(())
                } else {
                    Err("too early".to_owned())
                }
            },
        ),
        step(
            "a restart",
            command("again", "Restart"),
            both(answered("again", "Applied"), is_new),
        ),
    ];
    Workload {
        // The time of the command is in the answer.
        counted: &["/message"],
        ..workload("restart", steps)
    }
}
