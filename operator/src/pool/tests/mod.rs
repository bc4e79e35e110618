//! Whole lives of pools against a [`world`] in miniature.

mod controller;
mod drain;
mod dry_run;
mod evidence;
mod traffic;
mod trials;
mod unanswered;
mod world;

use flotilla_crds::names;
use serde_json::{Value, json};

use crate::pool::build::controller_revision::RESTARTED_AT;
use crate::pool::memory::Memory;
use crate::pool::validate::{INVALID_POD_TEMPLATE, Problem};
use crate::runtime::Error;
use world::{Fate, World, pool};

fn pulling() -> Fate {
    let waiting = json!({"waiting": {"reason": "ErrImagePull", "message": "not found"}});
    Fate::Stuck(json!({
        "name": "agent", "image": "agent:bad", "imageID": "", "ready": false, "restartCount": 0, "state": waiting
    }))
}

fn crashing() -> Fate {
    let ended = json!({"terminated": {"exitCode": 2, "reason": "Error", "message": "no prompt"}});
    Fate::Stuck(json!({
        "name": "agent", "image": "agent:bad", "imageID": "", "ready": false, "restartCount": 3,
        "state": {"waiting": {"reason": "CrashLoopBackOff"}}, "lastState": ended,
    }))
}

fn state(world: &World) -> (String, String) {
    world.state()
}

fn said(reason: &str, letters: &str) -> (String, String) {
    (reason.to_owned(), letters.to_owned())
}

/// A pool that serves `agent:1`, ready.
fn serving() -> World {
    serving_with(json!({}))
}

fn serving_with(spec: Value) -> World {
    let mut world = pool().with(spec);
    world.settle(0);
    assert_eq!(state(&world), said("Ready", "TTFF"), "{:#}", world.pool["status"]);
    world
}

/// A change that has rested.
fn release(world: &mut World, spec: Value) {
    world.change(spec);
    world.visit();
    world.pass(5);
}

#[test]
fn a_first_revision_serves_within_the_budget_of_writes() {
    let mut world = pool().with(json!({"agent": {"prompt": {"text": "hello"}}}));
    world.settle(0);
    assert_eq!(state(&world), said("Ready", "TTFF"));
    let objects = world.store.keys().filter(|(kind, _)| kind != "Pod").count();
    assert_eq!(objects, 7, "{:?}", world.store.keys());
    // The world writes every difference of status, the runtime holds back counts: so this is the upper end.
    assert!(
        world.writes <= objects + 4,
        "{} writes for {objects} objects",
        world.writes
    );
    assert_eq!(world.weights(), [100]);
    assert_eq!(world.status().traffic_generation, Some(1));
    assert_eq!(world.standings()["agent:1"], "stable");
    let status = world.status();
    assert_eq!((status.ready.as_deref(), status.replicas), (Some("4/4"), Some(4)));
    let revision = world.revision_of("agent:1");
    assert_eq!(
        status.selector,
        Some(format!(
            "flotilla.dev/pool=support,flotilla.dev/revision={revision}"
        ))
    );
}

#[test]
fn at_rest_nothing_is_written() {
    let mut world = serving();
    let writes = world.writes;
    for _ in 0..3 {
        world.pass(60);
        assert!(!world.visit());
    }
    let plan = world.peek();
    assert_eq!((world.writes, plan.eager, plan.look_again), (writes, false, None));
}

#[test]
fn a_release_replaces_batch_by_batch_and_keeps_capacity() {
    let mut world = serving();
    release(&mut world, json!({"agent": {"image": "agent:2"}}));
    world.settle(4);
    assert_eq!(state(&world), said("Ready", "TTFF"));
    assert_eq!(
        world.sizes(),
        [("agent:1".into(), 0), ("agent:2".into(), 4)].into()
    );
    assert_eq!(
        world.standings(),
        [
            ("agent:1".into(), "verified".into()),
            ("agent:2".into(), "stable".into())
        ]
        .into()
    );
    assert_eq!(world.weights(), [100]);
}

#[test]
fn a_release_waits_for_rest() {
    let mut world = serving();
    world.change(json!({"agent": {"image": "agent:2"}}));
    world.settle(4);
    assert_eq!(state(&world), said("Settling", "FTTF"));
    world.pass(4);
    world.change(json!({"agent": {"image": "agent:3"}}));
    world.settle(4);
    world.pass(4);
    world.settle(4);
    assert_eq!(
        world.names("ReplicaSet").len(),
        1,
        "the second change began a new rest"
    );
    world.pass(1);
    world.settle(4);
    assert_eq!(
        world.sizes(),
        [("agent:1".into(), 0), ("agent:3".into(), 4)].into()
    );
}

#[test]
fn a_changed_prompt_is_a_release_and_keeps_the_old_bytes() {
    let spec = json!({"agent": {"prompt": {"configMapKeyRef": {"name": "prompts", "key": "p"}}}});
    let mut world = pool().with(spec);
    world.prompt = Some("be kind".into());
    world.settle(0);
    world.prompt = Some("be brief".into());
    world.visit();
    world.pass(5);
    world.settle(4);
    assert_eq!(world.names("ConfigMap").len(), 2);
    assert_eq!(world.names("ReplicaSet").len(), 2);
    assert_eq!(state(&world), said("Ready", "TTFF"));
}

#[test]
fn a_missing_config_map_is_waited_for_and_stalls_at_the_deadline() {
    let mut world =
        pool().with(json!({"agent": {"prompt": {"configMapKeyRef": {"name": "prompts", "key": "p"}}}}));
    world.settle(0);
    assert_eq!(state(&world), said("WaitingForReference", "FFTF"));
    assert!(world.sentence().contains("ConfigMap prompts does not exist"));
    let waiting = |world: &World| world.status().rollout.unwrap().waiting_for.unwrap();
    let until = waiting(&world).deadline_time.unwrap().0;
    assert_eq!(until.duration_since(world.now).as_secs(), 600);
    let message = waiting(&world).message;
    assert!(message.ends_with(&format!("; until {until}")), "{message}");
    assert!(world.peek().look_again.is_some());
    // A new operator counts on.
    world.memory = Memory::recovered("u-1", &world.status());
    world.pass(600);
    world.settle(0);
    assert_eq!(state(&world), said("WaitingForReference", "FFFT"));
    let message = waiting(&world).message;
    assert!(
        message.ends_with(&format!("; overdue since {until}")),
        "{message}"
    );
    world.prompt = Some("here".into());
    world.settle(0);
    assert_eq!(state(&world), said("Ready", "TTFF"));
}

#[test]
fn a_missing_reference_does_not_touch_what_serves() {
    let mut world = serving();
    world.change(
        json!({"agent": {"models": [{"name": "default", "providerRef": {"name": "main"}, "model": "m"}]}}),
    );
    world.settle(4);
    assert_eq!(state(&world), said("WaitingForReference", "FTTF"));
    assert!(world.sentence().contains("ModelProvider main does not exist"));
    let provider = json!({
        "apiVersion": "flotilla.dev/v1alpha1", "kind": "ModelProvider", "metadata": {"name": "main"},
        "spec": {"endpoint": "https://x.example/v1", "models": [{"name": "other"}]},
    });
    world
        .store
        .insert(("ModelProvider".into(), "main".into()), provider);
    world.settle(4);
    assert!(
        world
            .sentence()
            .contains("does not offer model m; add it to its spec.models or name one of: other")
    );
}

#[test]
fn a_candidate_that_cannot_be_pulled_leaves_stable_serving() {
    let mut world = serving().whose_image("agent:bad", pulling());
    release(&mut world, json!({"agent": {"image": "agent:bad"}}));
    world.settle(4);
    assert_eq!(state(&world), said("Progressing", "FTTF"));
    assert!(world.sentence().contains("ImagePull"), "{}", world.sentence());
    world.pass(600);
    world.settle(4);
    assert_eq!(state(&world), said("ImagePull", "FTFT"));
    assert_eq!((world.sizes()["agent:bad"], world.weights()), (0, vec![100]));
    let rejected = world.status().rejected;
    assert_eq!((rejected[0].reason.as_str(), rejected.len()), ("ImagePull", 1));
    assert!(
        world.sentence().contains("not found") && world.sentence().contains("Retry"),
        "{}",
        world.sentence()
    );
    // Neither time nor a new operator tries it again.
    world.memory = Memory::recovered("u-1", &world.status());
    world.pass(3600);
    assert!(!world.visit());
}

#[test]
fn a_crash_loop_needs_no_deadline_and_going_back_clears_it() {
    let mut world = serving().whose_image("agent:bad", crashing());
    release(&mut world, json!({"agent": {"image": "agent:bad"}}));
    world.settle(4);
    assert_eq!(state(&world), said("CrashLoop", "FTFT"));
    assert_eq!(world.standings()["agent:bad"], "rejected");
    world.change(json!({"agent": {"image": "agent:1"}}));
    world.settle(4);
    assert_eq!(state(&world), said("Ready", "TTFF"));
    assert_eq!(world.status().rejected.len(), 1, "it stays known");
}

/// Gateways tell by it whose conversations are of this attempt, and which are evidence.
#[test]
fn a_candidates_weight_is_dated_and_stays_so() {
    let mut world = serving();
    let since = |world: &World| -> Vec<Option<i64>> {
        let status = world.status();
        status
            .traffic
            .iter()
            .map(|share| share.since_generation)
            .collect()
    };
    assert_eq!(since(&world), [None], "nothing came before it");
    release(&mut world, json!({"agent": {"image": "agent:2"}}));
    let mut dated = Vec::new();
    for _ in 0..200 {
        world.visit();
        world.cluster();
        let status = world.status();
        let candidate = status
            .traffic
            .iter()
            .find(|share| share.since_generation.is_some());
        if let Some(share) = candidate {
            assert!(share.weight > 0);
            dated.push((
                status.traffic_generation.unwrap(),
                share.since_generation.unwrap(),
            ));
        }
    }
    let first = dated.first().copied().unwrap();
    assert_eq!(
        first.0, first.1,
        "dated with the generation that gave it a weight"
    );
    assert!(dated.last().unwrap().0 > first.0, "{dated:?}");
    assert!(dated.iter().all(|(_, since)| *since == first.1), "{dated:?}");
    world.settle(4);
    assert_eq!(since(&world), [Some(first.1)]);
    world.pool["status"] = Value::Null;
    world.settle(4);
    assert_eq!(since(&world), [None], "a lost status moves no conversation");
}

#[test]
fn a_lost_status_loses_nothing() {
    let mut world = serving().whose_image("agent:bad", crashing());
    release(&mut world, json!({"agent": {"image": "agent:bad"}}));
    world.settle(4);
    let (port, generation) = (world.status().gateway_port, world.status().traffic_generation);
    world.pool["status"] = Value::Null;
    world.memory = Memory::default();
    world.settle(4);
    assert_eq!(state(&world), said("CrashLoop", "FTFT"));
    assert_eq!(
        (world.status().gateway_port, world.status().rejected.len()),
        (port, 1)
    );
    assert!(
        world.status().traffic_generation > generation,
        "no gateway may confirm what it has not seen"
    );
}

#[test]
fn a_first_revision_that_fails_keeps_trying_and_recovers() {
    let quota = "pods \"support-1-abc\" is forbidden: exceeded quota: none, requested: pods=1";
    let mut world = pool().whose_image("agent:1", Fate::Refused(quota.into()));
    world.settle(0);
    assert_eq!(state(&world), said("QuotaExceeded", "FFTF"));
    world.pass(600);
    world.settle(0);
    assert_eq!(state(&world), said("QuotaExceeded", "FFFT"));
    world.fates.clear();
    world.settle(0);
    assert_eq!(state(&world), said("Ready", "TTFF"));
}

#[test]
fn a_fix_replaces_a_first_revision_that_never_worked() {
    let mut world = pool().whose_image("agent:1", crashing());
    world.settle(0);
    release(&mut world, json!({"agent": {"image": "agent:2"}}));
    world.settle(0);
    assert_eq!(state(&world), said("Ready", "TTFF"));
    assert_eq!(
        world.sizes(),
        [("agent:1".into(), 0), ("agent:2".into(), 4)].into()
    );
}

#[test]
fn without_gateways_a_release_holds() {
    let mut world = serving();
    world.gateways = false;
    release(&mut world, json!({"agent": {"image": "agent:2"}}));
    world.settle(4);
    assert_eq!(state(&world), said("GatewayUnconfirmed", "FTTF"));
    assert_eq!((world.sizes()["agent:1"], world.weights()), (4, vec![100, 0]));
    world.pass(600);
    world.settle(4);
    assert_eq!(state(&world), said("GatewayUnconfirmed", "FTFT"));
    assert_eq!(
        world.standings()["agent:2"],
        "candidate",
        "it is not the candidate's fault"
    );
    world.gateways = true;
    world.settle(4);
    assert_eq!(state(&world), said("Ready", "TTFF"));
}

#[test]
fn a_new_pool_is_ready_only_when_gateways_serve_it() {
    let mut world = pool();
    world.gateways = false;
    world.settle(0);
    assert_eq!(state(&world), said("GatewayUnconfirmed", "FTTF"));
    assert!(world.peek().eager);
    world.gateways = true;
    world.settle(4);
    assert_eq!(state(&world), said("Ready", "TTFF"));
}

#[test]
fn stopped_means_no_pod_and_traffic_stays() {
    let mut world = serving();
    world.change(json!({"stopped": true}));
    world.settle(0);
    assert_eq!(state(&world), said("Stopped", "TFFF"));
    assert_eq!((world.ready_pods(), world.weights()), (0, vec![100]));
    world.change(json!({"stopped": false}));
    world.settle(0);
    assert_eq!((state(&world), world.ready_pods()), (said("Ready", "TTFF"), 4));
}

#[test]
fn paused_holds_and_goes_on() {
    let mut world = serving_with(json!({"rollout": {"paused": true}}));
    release(&mut world, json!({"agent": {"image": "agent:2"}}));
    world.settle(4);
    assert_eq!(state(&world), said("Paused", "FTTF"));
    assert_eq!(world.names("ReplicaSet").len(), 1);
    world.change(json!({"rollout": {"paused": false}}));
    world.settle(4);
    assert_eq!(state(&world), said("Ready", "TTFF"));
}

#[test]
fn a_pin_goes_back_at_once_and_an_unknown_one_lists_what_there_is() {
    let mut world = serving();
    let first = world.revision_of("agent:1");
    release(&mut world, json!({"agent": {"image": "agent:2"}}));
    world.settle(4);
    world.change(json!({"rollout": {"pinnedRevision": "support-nothing"}}));
    world.settle(4);
    assert_eq!(state(&world), said("UnknownRevision", "FTFT"));
    assert!(world.sentence().contains(&first), "{}", world.sentence());
    world.change(json!({"rollout": {"pinnedRevision": first}}));
    world.settle(4);
    assert_eq!(state(&world), said("Ready", "TTFF"));
    assert_eq!(
        world.sizes(),
        [("agent:1".into(), 4), ("agent:2".into(), 0)].into()
    );
}

#[test]
fn history_is_kept_to_its_limit() {
    let mut world = serving_with(json!({"revisionHistoryLimit": 2, "agent": {"prompt": {"text": "0"}}}));
    for number in 2..=6 {
        release(
            &mut world,
            json!({"agent": {"image": format!("agent:{number}"), "prompt": {"text": number.to_string()}}}),
        );
        world.settle(4);
    }
    let kept: Vec<_> = world.standings().into_keys().collect();
    assert_eq!(kept, ["agent:4", "agent:5", "agent:6"]);
    for kind in ["ReplicaSet", "ControllerRevision", "ConfigMap"] {
        assert_eq!(world.names(kind).len(), 3, "{kind}");
    }
    assert_eq!(world.names("Service").len(), 4, "three revisions and the front");
}

#[test]
fn a_renamed_front_service_replaces_the_former() {
    let mut world = serving();
    let port = world.status().gateway_port;
    world.change(json!({"traffic": {"serviceName": "help"}}));
    world.settle(4);
    let names = world.names("Service");
    assert!(
        names.contains(&"help".to_owned()) && !names.contains(&"support".to_owned()),
        "{names:?}"
    );
    assert_eq!(world.status().gateway_port, port);
}

#[test]
fn an_upgrade_of_the_operator_releases_nothing() {
    let mut world = serving();
    // The stored copy of an older version lacks fields that have defaults today, and its name is another hash.
    let (id, mut record) = world
        .store
        .iter()
        .find(|((kind, _), _)| kind == "ControllerRevision")
        .map(|(id, record)| (id.clone(), record.clone()))
        .unwrap();
    record["data"] = json!({"content": json!({"agent": {"image": "agent:1"}}).to_string()});
    world.store.insert(id, record);
    let writes = world.writes;
    world.settle(4);
    assert_eq!((world.writes, state(&world)), (writes, said("Ready", "TTFF")));
}

#[test]
fn a_replica_set_deleted_by_hand_comes_back() {
    let mut world = serving();
    let name = world.revision_of("agent:1");
    world.store.remove(&("ReplicaSet".into(), name.clone()));
    world.store.retain(|(kind, _), _| kind != "Pod");
    world.settle(0);
    assert_eq!(
        (world.names("ReplicaSet"), state(&world)),
        (vec![name], said("Ready", "TTFF"))
    );
}

#[test]
fn a_restart_replaces_old_pods_and_keeps_capacity() {
    let mut world = serving();
    let before = world.names("Pod");
    world.pass(60);
    let name = world.revision_of("agent:1");
    let record = world.store.get_mut(&("ControllerRevision".into(), name)).unwrap();
    record["metadata"]["annotations"] = json!({RESTARTED_AT: world.now.to_string()});
    world.pass(1);
    world.visit();
    assert_eq!(state(&world), said("Restarting", "FTTF"));
    assert_eq!(world.status().restart.unwrap().replaced.as_deref(), Some("0/4"));
    world.settle(4);
    assert_eq!(state(&world), said("Ready", "TTFF"));
    assert_eq!((world.status().restart, world.names("Pod").len()), (None, 4));
    assert!(world.names("Pod").iter().all(|pod| !before.contains(pod)));
}

#[test]
fn a_scale_is_followed_also_during_a_release() {
    let mut world = serving();
    world.change(json!({"replicas": 2}));
    world.settle(2);
    assert_eq!(
        (world.sizes()["agent:1"], state(&world)),
        (2, said("Ready", "TTFF"))
    );
    release(&mut world, json!({"agent": {"image": "agent:2"}}));
    for _ in 0..3 {
        world.visit();
        world.cluster();
    }
    world.change(json!({"replicas": 6}));
    world.settle(2);
    assert_eq!(
        (world.sizes()["agent:2"], world.ready_pods(), state(&world)),
        (6, 6, said("Ready", "TTFF"))
    );
}

#[test]
fn an_impossible_pod_template_says_where() {
    let mut world = serving();
    world.change(json!({"agent": {"podTemplate": {"spec": {"nodeSelectr": {"a": "b"}}}}}));
    world.settle(4);
    assert_eq!(state(&world), said("InvalidPodTemplate", "FTFT"));
    assert!(world.sentence().contains("podTemplate.spec.nodeSelectr"));
}

#[test]
fn pods_the_server_refuses_are_not_made() {
    let mut world = serving();
    world.change(json!({"agent": {"podTemplate": {"spec": {"priorityClassName": "none"}}}}));
    world.visit();
    world.pass(5);
    let plan = world.peek();
    let (revision, pod) = plan.check.unwrap();
    assert!(pod.metadata.labels.unwrap().contains_key(names::POOL));
    let until = world
        .now
        .checked_add(jiff::SignedDuration::from_secs(30))
        .unwrap();
    let problem = Problem::invalid(INVALID_POD_TEMPLATE, "no PriorityClass none");
    world.memory.refused = Some((revision, problem, until));
    world.settle(4);
    assert_eq!(state(&world), said("InvalidPodTemplate", "FTFT"));
    assert!(world.sentence().contains("no PriorityClass none"));
    assert_eq!(world.names("ReplicaSet").len(), 1);
    world.pass(30);
    world.settle(4);
    assert_eq!(state(&world), said("Ready", "TTFF"));
}

#[test]
fn dying_before_any_write_of_a_release_ends_in_the_same_place() {
    let run = |dies_before: Option<usize>| {
        let mut world = pool().with(json!({"agent": {"prompt": {"text": "1"}}}));
        world.dies_before = dies_before;
        world.settle(0);
        world.change(json!({"agent": {"image": "agent:2", "prompt": {"text": "2"}}}));
        for _ in 0..3 {
            world.visit();
            world.pass(5);
        }
        world.settle(4);
        let mut names: Vec<_> = world
            .store
            .keys()
            .filter(|(kind, _)| kind != "Pod")
            .cloned()
            .collect();
        names.sort();
        (
            state(&world),
            world.sizes(),
            world.standings(),
            world.weights(),
            names,
        )
    };
    let undisturbed = run(None);
    assert_eq!(undisturbed.0, said("Ready", "TTFF"));
    for write in 0..60 {
        assert_eq!(run(Some(write)), undisturbed, "died before write {write}");
    }
}

#[test]
fn dying_before_any_write_of_a_failing_release_ends_in_the_same_place() {
    for write in 0..40 {
        let mut world = serving().whose_image("agent:bad", crashing());
        world.dies_before = Some(write);
        world.change(json!({"agent": {"image": "agent:bad"}}));
        for _ in 0..3 {
            world.visit();
            world.pass(5);
        }
        world.settle(4);
        assert_eq!(
            state(&world),
            said("CrashLoop", "FTFT"),
            "died before write {write}"
        );
        assert_eq!((world.sizes()["agent:bad"], world.weights()), (0, vec![100]));
    }
}

#[test]
fn a_refusal_names_its_object_and_only_that_of_pods_blames_the_template() {
    let refused = |action: &str, code, message: &str| Error::Refused {
        action: action.into(),
        code,
        message: message.into(),
    };
    let rows = [
        (
            refused("create ReplicaSet shop/support-1", 422, "hostPort: Invalid value"),
            ("InvalidPodTemplate", false),
            "the API server refuses the pods: hostPort: Invalid value",
        ),
        (
            refused("apply Service shop/support", 422, "spec.clusterIP: Invalid value"),
            ("Refused", false),
            "failed to apply Service shop/support: spec.clusterIP: Invalid value",
        ),
        (
            refused("create Job shop/support-ab", 403, "exceeded quota: jobs"),
            ("QuotaExceeded", true),
            "exceeded quota: jobs",
        ),
        (
            refused("create LoadTest shop/support-ab", 403, "forbidden"),
            ("Refused", true),
            "failed to create LoadTest shop/support-ab: forbidden",
        ),
    ];
    for (error, (word, may_mend), sentence) in rows {
        let problem = super::blocking(&error).unwrap();
        assert_eq!((problem.word, problem.may_mend), (word, may_mend), "{error}");
        assert_eq!(problem.sentence, sentence);
    }
    assert_eq!(super::blocking(&Error::NotLeader), None);
}
