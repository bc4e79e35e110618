//! Canaries and blue-green releases.

use super::*;

pub(super) fn all() -> Vec<Workload> {
    vec![
        canary(),
        failing(),
        aborted(),
        approved(),
        superseded(),
        promoted(),
        shrinking(),
        swapped(),
        undone(),
        baked(),
    ]
}

fn rung(weight: i32) -> Value {
    json!({"weight": weight, "ruleOutTimesWorse": 10, "minDurationSeconds": 10, "decideWithinSeconds": 600})
}

/// A canary as below that stays at its second step: what happens meanwhile happens then or earlier, however late news are.
fn staying(change: Value) -> Value {
    let mut last = rung(50);
    last["approval"] = json!("Manual");
    let mut settings = json!({"steps": [rung(20), last]});
    for (key, value) in change.as_object().into_iter().flatten() {
        settings[key] = value.clone();
    }
    canary_of(settings)
}

/// A canary of four with two steps that a hundred requests per second decide within a minute or two.
fn canary_of(change: Value) -> Value {
    let mut settings = json!({"steps": [rung(20), rung(50)], "bakeSeconds": 20, "scaleDownDelaySeconds": 10});
    for (key, value) in change.as_object().into_iter().flatten() {
        settings[key] = value.clone();
    }
    ladder("Canary", "canary", settings)
}

fn green_of(settings: Value) -> Value {
    ladder("BlueGreen", "blueGreen", settings)
}

fn ladder(type_: &str, member: &str, settings: Value) -> Value {
    pool(json!({
        "replicas": 4, "traffic": {"requestTimeoutSeconds": 5},
        "rollout": {
            "type": type_, "settleSeconds": 1, member: settings,
            "analysis": {"warmupSeconds": 0, "errors": {"acceptableErrorPercent": "5"}},
        },
    }))
}

fn first(pool: Value) -> Step {
    step("a pool", create(POOLS, pool), says(POOL, "Ready"))
}

/// Promoted by evidence.
fn canary() -> Workload {
    let steps = vec![
        first(canary_of(json!({}))),
        step("a release", image("agent:2"), says(POOL, "Ready")),
    ];
    judged("canary", steps)
}

/// Led back by evidence, and replaced.
fn failing() -> Workload {
    let steps = vec![
        first(canary_of(json!({}))),
        step(
            "a release that fails requests",
            image("agent:failing"),
            says(POOL, "AnalysisFailed"),
        ),
        step("its correction", image("agent:2"), says(POOL, "Ready")),
    ];
    judged("failing canary", steps)
}

/// Stopped by a person.
fn aborted() -> Workload {
    let steps = vec![
        first(staying(json!({}))),
        step("a release", image("agent:2"), judged_at(50)),
        step(
            "it is stopped",
            command("stop-it", "Abort"),
            both(answered("stop-it", "Applied"), says(POOL, "Aborted")),
        ),
    ];
    judged("aborted canary", steps)
}

/// A step that a person lets pass, once.
fn approved() -> Workload {
    let rung =
        json!({"weight": 25, "minDurationSeconds": 0, "decideWithinSeconds": 600, "approval": "Manual"});
    let steps = vec![
        first(canary_of(
            json!({"steps": [rung], "bakeSeconds": 0, "scaleDownDelaySeconds": 0}),
        )),
        step("a release", image("agent:2"), says(POOL, "ApprovalNeeded")),
        step(
            "it may",
            command("yes", "Promote"),
            both(answered("yes", "Applied"), says(POOL, "Ready")),
        ),
    ];
    judged("approved canary", steps)
}

/// A third revision while the second is judged.
fn superseded() -> Workload {
    let steps = vec![
        first(staying(json!({}))),
        step("a release", image("agent:2"), judged_at(50)),
        step(
            "another",
            spec(
                json!({"agent": {"image": "agent:3"}, "rollout": {"canary": {"steps": [rung(20), rung(50)]}}}),
            ),
            says(POOL, "Ready"),
        ),
    ];
    judged("superseded canary", steps)
}

/// All steps are passed by command.
fn promoted() -> Workload {
    let steps = vec![
        first(staying(json!({}))),
        step("a release", image("agent:2"), judged_at(20)),
        step(
            "all of it",
            command("all", "PromoteFull"),
            both(answered("all", "Applied"), says(POOL, "Ready")),
        ),
    ];
    judged("promoted canary", steps)
}

/// The old revision gives up what the new one carries, and both grow meanwhile.
fn shrinking() -> Workload {
    let steps = vec![
        first(staying(json!({"stableScale": "Shrink"}))),
        step("a release", image("agent:2"), judged_at(20)),
        step("it grows", spec(json!({"replicas": 6})), judged_at(50)),
        step("back", image("agent:1"), says(POOL, "Ready")),
    ];
    judged("shrinking canary", steps)
}

/// All traffic at once, by command.
fn swapped() -> Workload {
    let settings =
        json!({"approval": "Manual", "previewReplicas": 1, "bakeSeconds": 0, "scaleDownDelaySeconds": 15});
    let steps = vec![
        first(green_of(settings)),
        step("a preview", image("agent:2"), says(POOL, "ApprovalNeeded")),
        step(
            "the swap",
            command("swap", "Promote"),
            both(answered("swap", "Applied"), says(POOL, "Baking")),
        ),
        step("the end", |_| {}, says(POOL, "Ready")),
    ];
    workload("blue-green", steps)
}

/// A preview that nobody wants.
fn undone() -> Workload {
    let settings = json!({"approval": "Manual", "bakeSeconds": 0, "scaleDownDelaySeconds": 0});
    let steps = vec![
        first(green_of(settings)),
        step("a preview", image("agent:2"), says(POOL, "ApprovalNeeded")),
        step(
            "it is stopped",
            command("no", "Abort"),
            both(answered("no", "Applied"), says(POOL, "Aborted")),
        ),
        step(
            "it is tried again",
            command("again", "Retry"),
            both(answered("again", "Applied"), says(POOL, "ApprovalNeeded")),
        ),
        step(
            "the swap",
            command("yes", "Promote"),
            both(answered("yes", "Applied"), says(POOL, "Ready")),
        ),
    ];
    workload("undone blue-green", steps)
}

/// What fails after the swap is led back: while the preview waits for a person, the old revision shows what is usual.
fn baked() -> Workload {
    let settings = json!({"approval": "Manual", "bakeSeconds": 600, "scaleDownDelaySeconds": 600});
    let steps = vec![
        first(green_of(settings)),
        step("a preview", image("agent:failing"), says(POOL, "ApprovalNeeded")),
        step(
            "some traffic",
            |_| {},
            |cluster| {
                if cluster.age().as_secs() >= 120 {
                    Ok(())
                } else {
                    Err("too early".to_owned())
                }
            },
        ),
        step(
            "a swap that fails",
            command("yes", "Promote"),
            both(answered("yes", "Applied"), says(POOL, "AnalysisFailed")),
        ),
    ];
    judged("failing blue-green", steps)
}
