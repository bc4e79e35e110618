use std::sync::Arc;

use http::Method;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Service};
use parking_lot::Mutex;

use super::*;
use crate::metrics::Metrics;
use crate::runtime::cache::{AnyCache, Cache};
use crate::runtime::conditions::Conditions;
use crate::runtime::errors::Failure as _;
use crate::runtime::events::{EventPublisher, Regarding};
use crate::runtime::gate::Gate;
use crate::runtime::lease::Leadership;
use crate::runtime::manager::Context;
use crate::runtime::status::{StatusOutcome, StatusPacer, StatusWrite};
use crate::runtime::testing::{FakeApi, answer, status};
use crate::runtime::time::{Clock, Jitter};

/// A visit to the ConfigMap `a/owner` (standing for one of our kinds) with the given cached Services.
fn visit(api: &FakeApi, services: Vec<Service>, leads: bool) -> Visit {
    let (client, clock, metrics) = (
        api.clients().api,
        Clock::virtual_from(Timestamp::UNIX_EPOCH),
        Metrics::new(),
    );
    let leadership = if leads {
        Leadership::always()
    } else {
        Leadership::never()
    };
    let (events, _) = EventPublisher::new(client.clone(), leadership.clone(), clock.clone(), metrics.clone());
    let context = Arc::new(Context {
        client,
        clock,
        jitter: Jitter::seeded(1),
        leadership,
        events,
        metrics,
        gate: Gate::default(),
        status: StatusPacer::default(),
    });
    let cache: Arc<dyn AnyCache> = Arc::new(Cache::filled(services));
    context.gate.add_cache(cache);
    let regarding = Regarding::of(&owner());
    Visit {
        context,
        controller: "test",
        key: Key::new("a", "owner"),
        regarding,
        again: Mutex::new(None),
    }
}

fn owner() -> ConfigMap {
    serde_json::from_value(json!({
        "metadata": {"name": "owner", "namespace": "a", "uid": "owner-uid", "resourceVersion": "5", "generation": 2},
    }))
    .unwrap()
}

fn owner_reference(kind: &str, name: &str, uid: &str) -> Value {
    json!({"apiVersion": "v1", "kind": kind, "name": name, "uid": uid, "controller": true})
}

fn service(port: i32) -> Service {
    serde_json::from_value(json!({
        "metadata": {
            "name": "x", "namespace": "a", "labels": {MANAGED_BY: "flotilla"},
            "ownerReferences": [owner_reference("ConfigMap", "owner", "owner-uid")],
        },
        "spec": {"ports": [{"port": port}], "selector": {"app": "x"}},
    }))
    .unwrap()
}

/// The desired service as the API server would hold it after an apply.
fn stored(port: i32) -> Service {
    let mut value = with_hash(&Child::new(&service(port), Ownership::Controller));
    set(&mut value, &["metadata", "uid"], json!("x-uid"));
    set(&mut value, &["metadata", "resourceVersion"], json!("7"));
    set(&mut value, &["spec", "clusterIP"], json!("10.96.0.1"));
    serde_json::from_value(value).unwrap()
}

fn with(mut service: Service, change: impl FnOnce(&mut Service)) -> Service {
    change(&mut service);
    service
}

fn owned_by_somebody(kind: &str, name: &str, uid: &str) -> Service {
    let owners = json!([owner_reference(kind, name, uid)]);
    with(stored(80), |service| {
        service.metadata.owner_references = serde_json::from_value(owners).unwrap()
    })
}

/// Answers writes with version 8, reads with `live`.
fn server(live: Option<Service>) -> FakeApi {
    FakeApi::new(move |got| {
        let live = live.clone();
        async move {
            match (got.method, live) {
                (Method::GET, Some(live)) => answer(200, &json!(live)),
                (Method::GET, None) => status(404, "NotFound", "none"),
                _ => answer(
                    200,
                    &json!({
                        "apiVersion": "v1", "kind": "Service",
                        "metadata": {"name": "x", "namespace": "a", "resourceVersion": "8"},
                    }),
                ),
            }
        }
    })
}

const WRITTEN_AT_8: fn() -> Outcome = || Outcome::Written {
    resource_version: "8".into(),
};

#[tokio::test(start_paused = true)]
async fn what_is_already_so_costs_no_request() {
    let api = server(None);
    let visit = visit(&api, vec![stored(80)], true);
    let seen = stored(80);
    let applied = visit
        .execute(vec![
            Action::apply(&service(80)),
            Action::create(&service(80)),
            Action::label(
                &seen,
                &[(MANAGED_BY, Some("flotilla")), ("absent", None)],
                &[("absent", None)],
            ),
        ])
        .await
        .unwrap();
    assert_eq!(
        applied.0,
        [Outcome::Unchanged, Outcome::Unchanged, Outcome::Unchanged]
    );
    assert!(!applied.changed() && api.got().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_difference_is_applied_with_our_manager_and_the_uid() {
    let api = server(None);
    let visit = visit(&api, vec![stored(80)], true);
    let applied = visit.execute(vec![Action::apply(&service(81))]).await.unwrap();
    assert_eq!(applied.0, [WRITTEN_AT_8()]);
    let got = api.got();
    assert_eq!(got.len(), 1);
    assert_eq!(
        (&got[0].method, got[0].path.as_str()),
        (&Method::PATCH, "/api/v1/namespaces/a/services/x")
    );
    assert!(got[0].query.contains("force=true") && got[0].query.contains("fieldManager=flotilla%2Fservice"));
    assert_eq!(got[0].body["metadata"]["uid"], "x-uid");
    assert_eq!(got[0].body["spec"]["ports"][0]["port"], 81);
    assert!(got[0].body["status"].is_null());
}

#[tokio::test(start_paused = true)]
async fn a_field_that_is_wanted_no_more_is_noticed_by_the_hash() {
    let api = server(None);
    let visit = visit(&api, vec![stored(80)], true);
    let less = with(service(80), |service| {
        if let Some(spec) = &mut service.spec {
            spec.selector = None;
        }
    });
    visit.execute(vec![Action::apply(&less)]).await.unwrap();
    assert_eq!(api.writes().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_absent_child_is_looked_up_before_it_is_taken() {
    let api = server(None);
    let applied = visit(&api, vec![], true)
        .execute(vec![Action::apply(&service(80))])
        .await
        .unwrap();
    assert_eq!((applied.0, api.writes().len()), (vec![WRITTEN_AT_8()], 1));
    assert!(api.writes()[0].body["metadata"]["uid"].is_null());

    let api = server(Some(owned_by_somebody("Deployment", "shop", "other")));
    let error = visit(&api, vec![], true)
        .execute(vec![Action::apply(&service(80))])
        .await
        .unwrap_err();
    assert_eq!(error.category(), "NameTaken");
    assert!(api.writes().is_empty());
}

#[test]
fn whose_a_child_is() {
    let child = Child::new(&service(80), Ownership::Controller);
    let shared = Child::new(&service(80), Ownership::Shared);
    let deleting = with(stored(80), |service| {
        service.metadata.deletion_timestamp = serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap();
    });
    for (what, child, existing, expected) in [
        ("ours", &child, stored(80), None),
        (
            "another controller's",
            &child,
            owned_by_somebody("Deployment", "shop", "d"),
            Some("NameTaken"),
        ),
        (
            "another of our kind's",
            &child,
            owned_by_somebody("ConfigMap", "other", "o"),
            Some("NameTaken"),
        ),
        (
            "a former owner's",
            &child,
            owned_by_somebody("ConfigMap", "owner", "old"),
            Some("BeingCollected"),
        ),
        (
            "nobody's",
            &child,
            with(stored(80), |s| s.metadata.owner_references = None),
            Some("NameTaken"),
        ),
        ("ours, going", &child, deleting, Some("BeingCollected")),
        (
            "shared, ours",
            &shared,
            with(stored(80), |s| s.metadata.owner_references = None),
            None,
        ),
        (
            "shared, without our label",
            &shared,
            with(stored(80), |s| s.metadata.labels = None),
            Some("NameTaken"),
        ),
    ] {
        let found = check_ours(child, &existing.metadata)
            .err()
            .map(|error| error.category());
        assert_eq!(found, expected, "{what}");
    }
    let orphan = with(service(80), |service| service.metadata.owner_references = None);
    let error = check_ours(&Child::new(&orphan, Ownership::Controller), &stored(80).metadata).unwrap_err();
    assert_eq!(error.category(), "InternalError");
}

#[test]
fn a_taken_name_is_a_sentence_that_says_whose() {
    let child = Child::new(&service(80), Ownership::Controller);
    let error = check_ours(&child, &owned_by_somebody("Deployment", "shop", "d").metadata).unwrap_err();
    assert_eq!(
        error.to_string(),
        "Service x exists and belongs to Deployment shop; delete or rename it, or choose another name"
    );
}

#[tokio::test(start_paused = true)]
async fn a_create_whose_answer_was_lost_is_recognised_as_done() {
    let api = FakeApi::new(|got| async move {
        if got.method == Method::GET {
            answer(200, &json!(stored(80)))
        } else {
            status(409, "AlreadyExists", "there")
        }
    });
    let applied = visit(&api, vec![], true)
        .execute(vec![Action::create(&service(80))])
        .await
        .unwrap();
    assert_eq!(
        applied.0,
        [Outcome::Written {
            resource_version: "7".into()
        }]
    );

    let api = FakeApi::new(|got| async move {
        let other = owned_by_somebody("Deployment", "shop", "d");
        if got.method == Method::GET {
            answer(200, &json!(other))
        } else {
            status(409, "AlreadyExists", "there")
        }
    });
    let error = visit(&api, vec![], true)
        .execute(vec![Action::create(&service(80))])
        .await
        .unwrap_err();
    assert_eq!(error.category(), "NameTaken");
}

#[tokio::test(start_paused = true)]
async fn scaling_and_exact_deletes_carry_what_they_were_decided_on() {
    let api = server(None);
    let visit = visit(&api, vec![stored(80)], true);
    let seen = stored(80);
    let applied = visit
        .execute(vec![Action::scale(&seen, 3), Action::delete_exactly(&seen)])
        .await
        .unwrap();
    assert_eq!(applied.0, [WRITTEN_AT_8(), Outcome::Deleted]);
    let writes = api.writes();
    assert_eq!(
        writes[0].body,
        json!({"metadata": {"uid": "x-uid", "resourceVersion": "7"}, "spec": {"replicas": 3}})
    );
    assert_eq!(
        writes[1].body["preconditions"],
        json!({"uid": "x-uid", "resourceVersion": "7"})
    );
    assert_eq!(writes[1].body["propagationPolicy"], "Background");
}

#[tokio::test(start_paused = true)]
async fn an_object_that_is_gone_or_replaced_is_not_touched() {
    let api = server(None);
    let visit = visit(&api, vec![stored(80)], true);
    let former = with(stored(80), |service| service.metadata.uid = Some("former".into()));
    let applied = visit.execute(vec![Action::delete(&former)]).await.unwrap();
    assert_eq!(applied.0, [Outcome::Unchanged]);
    let error = visit.execute(vec![Action::scale(&former, 1)]).await.unwrap_err();
    assert_eq!(error.category(), "Conflict");
    assert!(api.got().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_does_not_lead_sends_no_write() {
    let api = server(None);
    let visit = visit(&api, vec![stored(80)], false);
    let seen = stored(80);
    for action in [
        Action::apply(&service(81)),
        Action::scale(&seen, 3),
        Action::delete(&seen),
        Action::patch(&seen, json!({"a": 1})),
    ] {
        assert_eq!(
            visit.execute(vec![action]).await.unwrap_err().category(),
            "NotLeader"
        );
    }
    let error = visit
        .write_status(&owner(), &json!({"a": 1}), StatusWrite::default())
        .await
        .unwrap_err();
    assert_eq!(error.category(), "NotLeader");
    assert!(api.writes().is_empty());
}

#[tokio::test(start_paused = true)]
async fn the_first_failure_stops_the_list_and_an_unwatched_kind_is_a_bug() {
    let api = server(None);
    let visit = visit(&api, vec![], true);
    let error = visit
        .execute(vec![Action::create(&owner()), Action::create(&service(80))])
        .await
        .unwrap_err();
    assert_eq!(error.category(), "InternalError");
    assert!(api.got().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_status_is_written_once_and_then_at_its_pace() {
    let api = server(None);
    let visit = visit(&api, vec![], true);
    let observed = owner();
    let write = |desired: Value, how: StatusWrite| {
        let (visit, observed) = (&visit, &observed);
        async move { visit.write_status(observed, &desired, how).await.unwrap() }
    };
    let mut conditions = Conditions::new(&[], Some(2), visit.now());
    conditions.set("Ready", false, "Progressing", "");
    let first = json!({"conditions": conditions.into_vec()});
    assert_eq!(write(first, StatusWrite::default()).await, StatusOutcome::Written);
    let sent = api.writes();
    assert_eq!(sent[0].path, "/api/v1/namespaces/a/configmaps/owner/status");
    assert_eq!(
        sent[0].body["metadata"],
        json!({"uid": "owner-uid", "resourceVersion": "5"})
    );

    let pace = write(json!({"a": 1}), StatusWrite::default()).await;
    assert!(matches!(pace, StatusOutcome::Deferred(left) if left <= std::time::Duration::from_secs(1)));
    assert!(visit.again.lock().is_some(), "the deferred write brings a visit");
    assert_eq!(
        write(json!({"a": 1}), StatusWrite::urgent()).await,
        StatusOutcome::Written
    );
    tokio::time::advance(std::time::Duration::from_secs(2)).await;
    let lazy = StatusWrite {
        lazy: &["/count"],
        ..StatusWrite::default()
    };
    let waits = write(json!({"count": 9}), lazy).await;
    assert!(matches!(waits, StatusOutcome::Deferred(left) if left > std::time::Duration::from_secs(27)));
    tokio::time::advance(std::time::Duration::from_secs(29)).await;
    assert_eq!(write(json!({"count": 9}), lazy).await, StatusOutcome::Written);
    assert_eq!(api.writes().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_dry_run_gives_the_servers_sentence() {
    let api = FakeApi::new(|_| async { status(422, "Invalid", "spec.ports: Required value") });
    let visited = visit(&api, vec![], true);
    let answer = visited.dry_run(&service(80)).await.unwrap();
    assert_eq!(
        answer,
        crate::runtime::visit::DryRun::Rejected {
            code: 422,
            message: "spec.ports: Required value".into()
        }
    );
    assert!(api.got()[0].query.contains("dryRun=All"));
    let api = FakeApi::new(|_| async { status(409, "AlreadyExists", "there") });
    assert_eq!(
        visit(&api, vec![], true).dry_run(&service(80)).await.unwrap(),
        crate::runtime::visit::DryRun::Accepted
    );
}
