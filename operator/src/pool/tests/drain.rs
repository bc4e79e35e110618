//! A former revision is kept for its conversations.

use std::time::Duration;

use super::*;

fn talking(max_drain_seconds: i32) -> World {
    let sessions = json!({"key": {"type": "Header"}, "maxDrainSeconds": max_drain_seconds});
    let mut world = serving_with(json!({"sessions": sessions}));
    world.conversations = true;
    release(&mut world, json!({"agent": {"image": "agent:2"}}));
    world.settle(4);
    world
}

#[test]
fn the_last_batch_stays_until_the_last_conversation_has_ended() {
    let mut world = talking(3_600);
    assert_eq!(state(&world), said("Ready", "TTFF"), "the release has ended");
    assert_eq!(world.weights(), [100, 0]);
    let sizes = world.sizes();
    assert_eq!(sizes["agent:2"], 4);
    assert!(sizes["agent:1"] > 0, "{sizes:?}");
    let until = world.status().traffic[1]
        .drain_deadline_time
        .clone()
        .expect("a date");
    assert!(until.0 > world.now && until.0.duration_since(world.now).as_secs() <= 3_600);
    let plan = world.peek();
    assert!(!plan.eager, "gateways are asked at their own pace");
    assert!(
        plan.look_again
            .is_some_and(|after| after <= Duration::from_secs(15))
    );
    assert!(!world.visit(), "nothing is written meanwhile");

    world.conversations = false;
    world.settle(4);
    assert_eq!((world.weights(), world.sizes()["agent:1"]), (vec![100], 0));
    assert_eq!(state(&world), said("Ready", "TTFF"));
}

#[test]
fn it_goes_at_the_end_of_its_time() {
    let mut world = talking(60);
    assert_eq!(world.weights(), [100, 0]);
    world.pass(61);
    world.settle(4);
    assert_eq!((world.weights(), world.sizes()["agent:1"]), (vec![100], 0));
    assert_eq!(talking(0).weights(), [100], "0 means not at all");
}

#[test]
fn a_release_beside_a_drain_ends_as_any() {
    let mut world = talking(3_600);
    release(&mut world, json!({"agent": {"image": "agent:3"}}));
    world.settle(4);
    assert_eq!(state(&world), said("Ready", "TTFF"));
    assert_eq!(world.sizes()["agent:3"], 4);
    assert_eq!(world.weights().iter().sum::<i32>(), 100);
    assert_eq!(world.weights().len(), 3, "the two newest are kept");
    release(&mut world, json!({"agent": {"image": "agent:4"}}));
    world.settle(4);
    assert_eq!(world.weights().len(), 3);
    assert_eq!(world.sizes()["agent:1"], 0, "the oldest is not");
}
