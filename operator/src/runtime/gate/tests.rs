use std::sync::atomic::{AtomicU64, Ordering};

use k8s_openapi::api::core::v1::ConfigMap;
use serde_json::json;

use super::*;
use crate::runtime::cache::{Cache, Watch};
use crate::runtime::errors::Failure as _;
use crate::runtime::testing::{FakeApi, answer, status};

fn map(version: u64) -> ConfigMap {
    serde_json::from_value(json!({
        "metadata": {"name": "x", "namespace": "a", "uid": "u", "resourceVersion": version.to_string()},
    }))
    .unwrap()
}

/// A gate with one cache that holds `a/x` at version 10, and a server that has it at `live` (0: not at all).
fn gate(live: u64) -> (Gate, Cache<ConfigMap>, FakeApi, Arc<AtomicU64>) {
    let cache = Cache::new(Watch::all(), [String::new()]);
    cache.upsert("", Ok(map(10)));
    let gate = Gate::default();
    gate.add_cache(Arc::new(cache.clone()));
    let live = Arc::new(AtomicU64::new(live));
    let version = Arc::clone(&live);
    let api = FakeApi::new(move |_| {
        let version = version.load(Ordering::SeqCst);
        async move {
            if version == 0 {
                status(404, "NotFound", "gone")
            } else {
                answer(200, &json!(map(version)))
            }
        }
    });
    (gate, cache, api, live)
}

fn visitor() -> Key {
    Key::new("a", "pool")
}

fn record(gate: &Gate, mark: Mark) {
    let resource = ApiResource::erase::<ConfigMap>(&());
    gate.record(("agentpool", &visitor()), &resource, &Key::new("a", "x"), mark);
}

fn written(version: &str) -> Mark {
    Mark::Written {
        version: ResourceVersion::parse(version),
    }
}

#[tokio::test(start_paused = true)]
async fn the_key_passes_as_soon_as_the_watch_delivers_its_write() {
    let (gate, cache, api, _) = gate(11);
    record(&gate, written("11"));
    let start = Instant::now();
    let client = api.clients().api;
    let key = visitor();
    let deliver = async {
        tokio::time::sleep(Duration::from_millis(700)).await;
        cache.upsert("", Ok(map(11)));
    };
    let (passed, ()) = tokio::join!(gate.pass(&client, ("agentpool", &key)), deliver);
    passed.unwrap();
    assert_eq!(
        (start.elapsed(), api.got().len()),
        (Duration::from_millis(700), 0)
    );
    gate.pass(&client, ("agentpool", &key)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn other_keys_and_other_controllers_are_not_held() {
    let (gate, _, api, _) = gate(11);
    record(&gate, written("11"));
    let client = api.clients().api;
    for (controller, key) in [("loadtest", visitor()), ("agentpool", Key::new("a", "other"))] {
        gate.pass(&client, (controller, &key)).await.unwrap();
    }
    assert!(api.got().is_empty());
}

#[tokio::test(start_paused = true)]
async fn who_plans_from_what_another_wrote_is_held_as_well() {
    let (gate, cache, api, _) = gate(11);
    record(&gate, written("11"));
    let (client, reader) = (api.clients().api, Key::new("a", "reader"));
    gate.share(("agentpool", &visitor()), ("loadtest", &reader));
    for visitor in [("agentpool", &visitor()), ("loadtest", &reader)] {
        assert!(gate.pass(&client, visitor).await.is_err());
    }
    cache.upsert("", Ok(map(11)));
    gate.pass(&client, ("loadtest", &reader)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_cache_that_stays_behind_puts_the_key_off_after_one_read() {
    let (gate, cache, api, _) = gate(11);
    record(&gate, written("11"));
    let client = api.clients().api;
    let start = Instant::now();
    let error = gate.pass(&client, ("agentpool", &visitor())).await.unwrap_err();
    assert_eq!(
        (error.category(), start.elapsed(), api.got().len()),
        ("StaleCache", PATIENCE, 1)
    );
    cache.upsert("", Ok(map(11)));
    gate.pass(&client, ("agentpool", &visitor())).await.unwrap();
    assert_eq!(api.got().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_live_read_settles_what_the_watch_will_never_deliver() {
    // The write was undone by a restore of etcd: the live version is the cached one, below the mark.
    let (gate, _, api, _) = gate(10);
    record(&gate, written("999"));
    gate.pass(&api.clients().api, ("agentpool", &visitor()))
        .await
        .unwrap();
    assert_eq!(api.got().len(), 1);
    // An opaque version cannot be compared: read at once, not after a wait.
    record(&gate, written("opaque"));
    let start = Instant::now();
    gate.pass(&api.clients().api, ("agentpool", &visitor()))
        .await
        .unwrap();
    assert_eq!(start.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_deleted_object_must_leave_the_cache() {
    let (gate, cache, api, _) = gate(0);
    record(&gate, Mark::Deleted { uid: "u".into() });
    let client = api.clients().api;
    assert!(gate.pass(&client, ("agentpool", &visitor())).await.is_err());
    cache.remove("", &map(12).metadata);
    gate.pass(&client, ("agentpool", &visitor())).await.unwrap();
}

#[test]
fn versions_are_numbers() {
    let parse = ResourceVersion::parse;
    assert!(parse("9") < parse("10"));
    assert!(parse("99999999999999999999") < parse("100000000000000000000"));
    assert_eq!(
        (parse(""), parse("1a"), parse("-1"), parse("+1")),
        (None, None, None, None)
    );
}
