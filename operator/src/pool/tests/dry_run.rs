//! The annotation that shows what a release would do, and the mark of testers in status.

use flotilla_crds::names::DRY_RUN;
use serde_json::json;

use super::world::pool;
use super::{release, said, serving_with, state};

#[test]
fn a_dry_run_tells_and_does_nothing() {
    let steps = json!([{"weight": 25}, {"weight": 50, "approval": "Manual", "replicas": 3}]);
    let mut world = serving_with(json!({"rollout": {"type": "Canary", "canary": {"steps": steps}}}));
    world.pool["metadata"]["annotations"] = json!({DRY_RUN: "true"});
    assert_eq!(world.status().plan, None);
    release(&mut world, json!({"agent": {"image": "agent:2"}}));
    world.settle(4);
    assert_eq!(state(&world), said("DryRun", "FTTF"));
    assert!(
        world.sentence().contains("remove the annotation"),
        "{}",
        world.sentence()
    );
    assert_eq!(world.names("ReplicaSet").len(), 1);
    let plan = world.status().plan.unwrap();
    let of = |kind: &str| format!("{kind} {}", plan.revision);
    assert_eq!(plan.changes, ["spec.agent.image"]);
    assert_eq!(
        plan.objects,
        [of("ControllerRevision"), of("ReplicaSet"), of("Service")]
    );
    assert_eq!(plan.from, Some(world.revision_of("agent:1")));
    let steps: Vec<_> = plan
        .steps
        .iter()
        .map(|step| {
            let numbers = (step.weight, step.candidate_replicas, step.stable_replicas);
            (numbers, step.approval.is_some(), step.expected_seconds)
        })
        .collect();
    // Nothing is known of the traffic, so neither is the time of a verdict; the bake is.
    assert_eq!(
        steps,
        [
            ((25, 2, 4), false, None),
            ((50, 3, 4), true, None),
            ((100, 4, 0), false, Some(600)),
        ]
    );
    assert_eq!(
        plan.message,
        "no time can be told, because the present traffic is not known, and once for a person; up to 8 replicas at once"
    );
    // What serves is kept in size all the same.
    world.change(json!({"replicas": 5}));
    world.settle(4);
    assert_eq!(world.sizes()["agent:1"], 5);
    // Without the annotation it goes on, and there is nothing left to tell.
    world.pool["metadata"]["annotations"] = json!({});
    world.settle(5);
    assert_eq!(world.status().plan, None);
    assert_eq!(world.sizes()["agent:2"], 2);
}

#[test]
fn a_new_pool_in_a_dry_run_makes_nothing() {
    let mut world = pool();
    world.pool["metadata"]["annotations"] = json!({DRY_RUN: "true"});
    world.settle(0);
    assert_eq!(state(&world), said("DryRun", "FFTF"));
    assert!(world.store.is_empty(), "{:?}", world.store.keys());
    let plan = world.status().plan.unwrap();
    assert_eq!((plan.from, plan.steps.len()), (None, 0));
    assert_eq!(
        plan.message,
        "the first revision: its 4 replicas start at once, without steps"
    );
    world.pool["metadata"]["annotations"] = json!({});
    world.settle(0);
    assert_eq!(state(&world), said("Ready", "TTFF"));
}

#[test]
fn batches_and_numbers_are_told_too() {
    for (spec, message) in [
        (
            json!({}),
            "4 replicas are replaced in batches of 1; the traffic follows the available share",
        ),
        (
            json!({
                "traffic": {"type": "ReplicaRatio"},
                "rollout": {"type": "Canary", "canary": {
                    "candidateMinReplicas": 1, "steps": [{"weight": 1, "minDurationSeconds": 90}],
                }},
            }),
            "all the traffic after about 2 min and the start of the pods; up to 8 replicas at once",
        ),
        (
            json!({"rollout": {"type": "BlueGreen", "blueGreen": {"approval": "Manual"}}}),
            "the swap waits for the new replicas, and once for a person; up to 8 replicas at once",
        ),
    ] {
        let mut world = serving_with(spec.clone());
        world.pool["metadata"]["annotations"] = json!({DRY_RUN: "true"});
        release(&mut world, json!({"agent": {"image": "agent:2"}}));
        world.settle(4);
        let plan = world.status().plan.unwrap();
        assert_eq!(plan.message, message, "{spec}");
        let truth = plan.steps.first().map(|step| step.true_weight_percent.as_str());
        if spec["traffic"]["type"] == "ReplicaRatio" {
            assert_eq!(truth, Some("20.0"));
        }
    }
}

#[test]
fn testers_are_led_to_a_candidate_that_can_answer() {
    let preview = json!({"header": "X-Preview", "value": "yes"});
    let canary = json!({"steps": [{"weight": 25}]});
    let mut world =
        serving_with(json!({"rollout": {"type": "Canary", "canary": canary, "preview": preview}}));
    let marks = |world: &super::World| {
        let traffic = world.status().traffic;
        traffic
            .iter()
            .map(|share| (share.weight, share.preview))
            .collect::<Vec<_>>()
    };
    assert_eq!(marks(&world), [(100, false)]);
    release(&mut world, json!({"agent": {"image": "agent:2"}}));
    world.visit();
    assert_eq!(marks(&world), [(100, false), (0, false)], "it has no replica yet");
    world.settle(4);
    assert_eq!(marks(&world), [(75, false), (25, true)]);
    world.change(json!({"rollout": {"paused": true}}));
    world.settle(4);
    assert_eq!(
        marks(&world),
        [(75, false), (25, true)],
        "also while it is paused"
    );
}
