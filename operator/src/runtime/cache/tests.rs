use std::sync::Arc;

use k8s_openapi::api::core::v1::ConfigMap;
use parking_lot::Mutex;
use serde_json::json;

use super::*;
use crate::runtime::gate::Mark;

fn map(name: &str, version: u64, owner: &str) -> ConfigMap {
    serde_json::from_value(json!({
        "metadata": {
            "name": name, "namespace": "a", "uid": format!("uid-{name}"), "resourceVersion": version.to_string(),
            "labels": {"color": owner}, "managedFields": [{"manager": "x"}],
            "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}", "kept": "yes"},
            "ownerReferences": [{"apiVersion": "v1", "kind": "X", "name": owner, "uid": owner}],
        },
        "data": {"large": "text"},
    }))
    .unwrap()
}

fn watched() -> (Cache<ConfigMap>, Arc<Mutex<Vec<String>>>) {
    let watch = Watch::all()
        .trim(|map: &mut ConfigMap| map.data = None)
        .index("color", |map: &ConfigMap| {
            map.metadata
                .labels
                .iter()
                .flatten()
                .map(|(_, v)| v.clone())
                .collect()
        });
    let cache = Cache::new(watch, [String::new()]);
    let changes = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&changes);
    cache.on_change(move |change| {
        let version = |object: &Option<Arc<ConfigMap>>| {
            object
                .as_ref()
                .and_then(|object| object.metadata.resource_version.clone())
                .unwrap_or("-".into())
        };
        log.lock().push(format!(
            "{} {}→{}",
            change.key.name,
            version(&change.old),
            version(&change.new)
        ));
    });
    (cache, changes)
}

fn relist(objects: Vec<Result<ConfigMap, Undecodable>>) -> Relist<ConfigMap> {
    let mut relist = Relist::default();
    let (cache, _) = watched();
    objects.into_iter().for_each(|object| relist.add(&cache, object));
    relist
}

fn names(objects: Vec<Arc<ConfigMap>>) -> Vec<String> {
    objects
        .iter()
        .filter_map(|object| object.metadata.name.clone())
        .collect()
}

#[test]
fn a_relist_reports_exactly_what_changed_while_nobody_watched() {
    let (cache, changes) = watched();
    assert!(!cache.is_synced());
    cache.finish(
        &String::new(),
        relist(vec![
            Ok(map("x", 1, "p")),
            Ok(map("y", 2, "p")),
            Ok(map("z", 3, "q")),
        ]),
    );
    assert!(cache.is_synced());
    changes.lock().clear();
    cache.finish(
        &String::new(),
        relist(vec![
            Ok(map("x", 1, "p")),
            Ok(map("z", 9, "q")),
            Ok(map("new", 8, "q")),
        ]),
    );
    assert_eq!(*changes.lock(), ["z 3→9", "new -→8", "y 2→-"]);
}

#[test]
fn look_ups_follow_changes() {
    let (cache, _) = watched();
    cache.finish(
        &String::new(),
        relist(vec![Ok(map("x", 1, "p")), Ok(map("y", 2, "p"))]),
    );
    assert_eq!(names(cache.owned_by("p")), ["x", "y"]);
    cache.upsert("", Ok(map("x", 3, "q")));
    assert_eq!(names(cache.owned_by("p")), ["y"]);
    assert_eq!(names(cache.by_index("color", "q")), ["x"]);
    assert_eq!(names(cache.in_namespace("a")), ["x", "y"]);
    assert!(cache.in_namespace("").is_empty() && cache.in_namespace("b").is_empty());
    cache.remove("", &map("x", 4, "q").metadata);
    assert!(cache.by_index("color", "q").is_empty() && cache.owned_by("q").is_empty());
    assert!(cache.by_index("unknown", "q").is_empty());
}

#[test]
fn packed_objects_are_the_same_objects() {
    let plain = Cache::filled([map("x", 1, "p"), map("y", 2, "q")]);
    let packed = Cache::new(Watch::all().packed(), [String::new()]);
    for cache in [&plain, &packed] {
        for number in 0..UNPACKED {
            cache.upsert("", Ok(map(&format!("a-{number:02}"), 1, "other")));
        }
    }
    packed.upsert("", Ok(map("y", 2, "q")));
    packed.upsert("", Ok(map("x", 1, "p")));
    assert_eq!(packed.list(), plain.list());
    assert_eq!(packed.owned_by("q"), plain.owned_by("q"));
    assert_eq!(packed.get(&Key::new("a", "x")), plain.get(&Key::new("a", "x")));
    packed.remove("", &map("x", 3, "p").metadata);
    assert!(packed.owned_by("p").is_empty() && packed.len() == 1 + UNPACKED);
}

#[test]
fn bulk_is_dropped() {
    let (cache, _) = watched();
    cache.upsert("", Ok(map("x", 1, "p")));
    let held = cache.get(&Key::new("a", "x")).unwrap();
    assert!(held.metadata.managed_fields.is_none() && held.data.is_none());
    assert_eq!(
        held.metadata
            .annotations
            .as_ref()
            .unwrap()
            .keys()
            .collect::<Vec<_>>(),
        ["kept"]
    );
}

#[test]
fn an_undecodable_object_takes_the_place_of_the_good_one_and_gives_it_back() {
    let (cache, changes) = watched();
    let key = Key::new("a", "x");
    cache.upsert("", Ok(map("x", 1, "p")));
    cache.upsert(
        "",
        Err(Undecodable {
            metadata: Box::new(map("x", 2, "p").metadata),
            error: "bad".into(),
        }),
    );
    assert!(cache.get(&key).is_none() && cache.undecodable(&key).is_some());
    assert_eq!(cache.keys(), std::slice::from_ref(&key));
    cache.upsert("", Ok(map("x", 3, "p")));
    assert!(cache.get(&key).is_some() && cache.undecodable(&key).is_none());
    assert_eq!(*changes.lock(), ["x -→1", "x 1→-", "x -→3"]);
}

#[test]
fn shards_are_filled_and_relisted_apart() {
    let cache = Cache::<ConfigMap>::new(Watch::all(), ["a".to_owned(), "b".to_owned()]);
    cache.finish(&"a".to_owned(), relist(vec![Ok(map("x", 1, "p"))]));
    assert!(!cache.is_synced());
    cache.finish(&"b".to_owned(), relist(vec![]));
    assert!(cache.is_synced() && cache.len() == 1);
}

#[test]
fn what_the_cache_has_seen() {
    let (cache, _) = watched();
    cache.upsert("", Ok(map("x", 10, "p")));
    let seen = |name: &str, mark: &Mark| AnyCache::has_seen(&cache, &Key::new("a", name), mark);
    let written = |version: &str| Mark::Written {
        version: ResourceVersion::parse(version),
    };
    assert!(seen("x", &written("10")) && seen("x", &written("9")));
    assert!(!seen("x", &written("11")));
    assert!(
        !seen("x", &written("opaque")),
        "only a live read settles what is not a number"
    );
    assert!(!seen("x", &Mark::Deleted { uid: "uid-x".into() }));
    assert!(
        seen("x", &Mark::Deleted { uid: "former".into() })
            && seen("gone", &Mark::Deleted { uid: "y".into() })
    );
    // A later event of the kind: the write to x has been read past (x was deleted since, or is not selected).
    cache.upsert("", Ok(map("other", 12, "p")));
    assert!(seen("x", &written("11")));
    // After a restore of etcd versions go back, and the mark starts again from the list.
    cache.finish(&String::new(), relist(vec![Ok(map("x", 5, "p"))]));
    assert!(!seen("x", &written("11")));
}
