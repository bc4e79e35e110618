//! What the API server does not answer while a pool is looked at: it holds what is new, and nothing else.

use serde_json::json;

use super::controller::{MINUTE, SETS, change, objects, operator, play, reach, sentence, shop};
use crate::fakecluster::{FakeCluster, eventually};

const PROMPT: &str = "/api/v1/namespaces/shop/configmaps/prompts";

/// The pool holds with `word`, serves on and can be scaled; once the server answers again the release is made.
async fn only_what_is_new_is_held(cluster: &FakeCluster, word: &str, part: &str) {
    reach(cluster, word).await;
    assert!(sentence(cluster).contains(part), "{}", sentence(cluster));
    change(cluster, "/spec/replicas", json!(3));
    eventually("the stable revision grows", MINUTE, || {
        play(cluster);
        match objects(cluster, SETS).as_slice() {
            [set] if set["spec"]["replicas"] == 3 => Ok(()),
            sets => Err(format!("{sets:#?}")),
        }
    })
    .await;
    reach(cluster, word).await;
    cluster.permit();
    reach(cluster, "Ready").await;
    assert_eq!(objects(cluster, SETS).len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_source_that_cannot_be_read_holds_only_what_is_new() {
    let prompt = json!({"configMapKeyRef": {"name": "prompts", "key": "p"}});
    for code in [403, 503] {
        let cluster = shop(json!({"agent": {"image": "agent:1", "prompt": prompt}}));
        cluster.put(
            PROMPT,
            json!({"metadata": {"name": "prompts"}, "data": {"p": "be kind"}}),
        );
        let _running = operator(&cluster);
        reach(&cluster, "Ready").await;
        cluster.forbid(PROMPT, code);
        cluster.update(PROMPT, |object| object["data"] = json!({"p": "be brief"}));
        let part = "failed to read ConfigMap shop/prompts: somebody does not want that";
        only_what_is_new_is_held(&cluster, "SourcesUnreadable", part).await;
    }
}

#[tokio::test(start_paused = true)]
async fn pods_that_cannot_be_checked_hold_only_what_is_new() {
    let cluster = shop(json!({}));
    let _running = operator(&cluster);
    reach(&cluster, "Ready").await;
    cluster.forbid("/api/v1/namespaces/shop/pods", 500);
    change(
        &cluster,
        "/spec/agent",
        json!({"image": "agent:2", "podTemplate": {"spec": {"hostNetwork": true}}}),
    );
    let part = "cannot say whether it accepts the pods of support-";
    only_what_is_new_is_held(&cluster, "PodsUnchecked", part).await;
}
