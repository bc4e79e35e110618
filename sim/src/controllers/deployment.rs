//! The Deployment controller: one ReplicaSet per template, replaced by steps.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash as _, Hasher as _};
use std::time::Duration;

use http::Method;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{
    Controller, Found, all, condition, conditioned, controller_reference, delete, is_controlled_by, number,
    request, write_status,
};
use crate::cluster::{Cluster, seconds};

const HASH: &str = "pod-template-hash";
const REVISION: &str = "deployment.kubernetes.io/revision";

/// Keeps Deployments.
pub(super) struct Deployments;

impl Controller for Deployments {
    fn kinds(&self) -> &'static [&'static str] {
        &["/apis/apps/v1/deployments", "/apis/apps/v1/replicasets"]
    }

    fn pass(&mut self, cluster: &Cluster) -> Option<Instant> {
        let sets = all(cluster, "/apis/apps/v1/replicasets");
        let mut again = None;
        for deployment in all(cluster, "/apis/apps/v1/deployments") {
            let own: Vec<&Found> = sets
                .iter()
                .filter(|set| set.key.namespace == deployment.key.namespace)
                .filter(|set| is_controlled_by(&set.object, &deployment) && !set.is_deleting())
                .collect();
            if deployment.is_deleting() {
                continue;
            }
            if let Some(due) = reconcile(cluster, &deployment, &own) {
                again = Some(again.map_or(due, |earlier: Instant| earlier.min(due)));
            }
        }
        again
    }
}

fn replicas(set: &Found) -> i64 {
    number(&set.object, "/spec/replicas")
}

fn available(set: &Found) -> i64 {
    number(&set.object, "/status/availableReplicas")
}

fn reconcile(cluster: &Cluster, deployment: &Found, sets: &[&Found]) -> Option<Instant> {
    let object = &deployment.object;
    let hash = template_hash(&object["spec"]["template"]);
    let wanted = number(object, "/spec/replicas");
    let new = sets
        .iter()
        .find(|set| set.object["metadata"]["labels"][HASH] == hash.as_str())
        .copied();
    let old: Vec<&Found> = sets
        .iter()
        .copied()
        .filter(|set| new.is_none_or(|new| new.uid() != set.uid()))
        .collect();
    let total: i64 = sets.iter().map(|set| replicas(set)).sum();
    let recreate = object["spec"]["strategy"]["type"] == "Recreate";
    let surge = if recreate {
        0
    } else {
        share(
            &object["spec"]["strategy"]["rollingUpdate"]["maxSurge"],
            wanted,
            true,
        )
    };
    let mut unavailable = share(
        &object["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"],
        wanted,
        false,
    );
    if surge == 0 && unavailable == 0 {
        unavailable = 1;
    }
    match new {
        None => {
            let is_waiting = recreate && old.iter().any(|set| number(&set.object, "/status/replicas") > 0);
            let room = (wanted + surge - total).clamp(0, wanted);
            if !is_waiting {
                make(cluster, deployment, sets, &hash, room);
            }
        }
        Some(new) => {
            let size = replicas(new);
            let goal = if size > wanted || old.is_empty() {
                wanted
            } else {
                size + (wanted + surge - total).clamp(0, wanted - size)
            };
            scale(cluster, new, goal);
        }
    }
    if recreate {
        old.iter().for_each(|set| scale(cluster, set, 0));
    } else {
        shrink(cluster, &old, new, wanted, unavailable, total);
    }
    forget(cluster, deployment, &old);
    tell(cluster, deployment, new, sets, wanted, unavailable)
}

/// Takes from old sets what the new one's available pods make up for: broken pods first.
fn shrink(cluster: &Cluster, old: &[&Found], new: Option<&Found>, wanted: i64, unavailable: i64, total: i64) {
    let floor = wanted - unavailable;
    let new_broken = new.map_or(0, |new| replicas(new) - available(new));
    let mut spare = (total - floor - new_broken).max(0);
    // What was taken a moment ago is still in the old sets' status.
    if spare == 0 {
        return;
    }
    let mut sizes: Vec<(i64, i64)> = old.iter().map(|set| (replicas(set), available(set))).collect();
    for (size, available) in &mut sizes {
        let broken = (*size - *available).clamp(0, spare);
        *size -= broken;
        spare -= broken;
    }
    let ready: i64 = sizes.iter().map(|(_, ready)| ready).sum::<i64>() + new.map_or(0, available);
    let mut spare = (ready - floor).max(0);
    for (size, _) in &mut sizes {
        let less = (*size).clamp(0, spare);
        *size -= less;
        spare -= less;
    }
    for (set, (size, _)) in old.iter().zip(sizes) {
        scale(cluster, set, size);
    }
}

fn scale(cluster: &Cluster, set: &Found, goal: i64) {
    if replicas(set) != goal {
        // It may be gone by now.
        let _ = request(
            cluster,
            Method::PATCH,
            &set.path,
            json!({"spec": {"replicas": goal}}),
        );
    }
}

fn make(cluster: &Cluster, deployment: &Found, sets: &[&Found], hash: &str, size: i64) {
    let object = &deployment.object;
    let mut template = object["spec"]["template"].clone();
    template["metadata"]["labels"][HASH] = json!(hash);
    let mut selector = object["spec"]["selector"].clone();
    selector["matchLabels"][HASH] = json!(hash);
    let newest = sets.iter().map(|set| revision(set)).max().unwrap_or_default();
    let set = json!({
        "metadata": {
            "name": format!("{}-{hash}", deployment.name()), "labels": template["metadata"]["labels"],
            "annotations": {REVISION: (newest + 1).to_string()},
            "ownerReferences": [controller_reference(deployment)],
        },
        "spec": {"replicas": size, "selector": selector, "template": template},
    });
    let path = deployment.sibling("/apis/apps/v1", "replicasets");
    // Refused only when somebody else's set has this name.
    let _ = request(cluster, Method::POST, &path, set);
}

fn revision(set: &Found) -> u64 {
    let annotation = set.object["metadata"]["annotations"][REVISION].as_str();
    annotation
        .and_then(|revision| revision.parse().ok())
        .unwrap_or_default()
}

/// Deletes old sets beyond the history that is kept.
fn forget(cluster: &Cluster, deployment: &Found, old: &[&Found]) {
    let limit = usize::try_from(number(&deployment.object, "/spec/revisionHistoryLimit")).unwrap_or_default();
    let mut idle: Vec<&Found> = old
        .iter()
        .copied()
        .filter(|set| replicas(set) == 0 && number(&set.object, "/status/replicas") == 0)
        .collect();
    idle.sort_by_key(|set| revision(set));
    let surplus = idle.len().saturating_sub(limit);
    idle.iter()
        .take(surplus)
        .for_each(|set| delete(cluster, set, None));
}

fn tell(
    cluster: &Cluster,
    deployment: &Found,
    new: Option<&Found>,
    sets: &[&Found],
    wanted: i64,
    unavailable: i64,
) -> Option<Instant> {
    let object = &deployment.object;
    let sum = |pointer: &str| -> i64 { sets.iter().map(|set| number(&set.object, pointer)).sum() };
    let all = sum("/status/replicas");
    let updated = new.map_or(0, |new| number(&new.object, "/status/replicas"));
    let (ready, usable) = (sum("/status/readyReplicas"), sum("/status/availableReplicas"));
    let mut status = json!({"observedGeneration": object["metadata"]["generation"]});
    for (field, count) in [
        ("replicas", all),
        ("updatedReplicas", updated),
        ("readyReplicas", ready),
        ("availableReplicas", usable),
        (
            "unavailableReplicas",
            (sets.iter().map(|set| replicas(set)).sum::<i64>() - usable).max(0),
        ),
    ] {
        if count != 0 {
            status[field] = json!(count);
        }
    }
    let now = cluster.now();
    let text = seconds(now);
    let enough = usable >= wanted - unavailable;
    let available = conditioned(
        condition(object, "Available"),
        "Available",
        if enough { "True" } else { "False" },
        if enough {
            "MinimumReplicasAvailable"
        } else {
            "MinimumReplicasUnavailable"
        },
        if enough {
            "Deployment has minimum availability."
        } else {
            "Deployment does not have minimum availability."
        },
        &text,
    );
    let before = condition(object, "Progressing");
    let is_complete = updated == wanted && all == wanted && usable == wanted;
    let counts = |status: &Value| {
        [
            "replicas",
            "updatedReplicas",
            "readyReplicas",
            "availableReplicas",
        ]
        .map(|field| status[field].as_i64().unwrap_or_default())
    };
    let moved = counts(&status) != counts(&object["status"])
        || object["status"]["observedGeneration"] != object["metadata"]["generation"];
    let last_move = before
        .and_then(|before| before["lastUpdateTime"].as_str())
        .filter(|_| !moved)
        .and_then(|time| time.parse::<Timestamp>().ok())
        .unwrap_or(now);
    let deadline = Duration::from_secs(number(object, "/spec/progressDeadlineSeconds").unsigned_abs());
    let late_at = last_move.checked_add(deadline).unwrap_or(Timestamp::MAX);
    let was_late = before.is_some_and(|before| before["reason"] == "ProgressDeadlineExceeded") && !moved;
    let is_late = !is_complete && (was_late || now >= late_at);
    let (state, reason, message) = match (is_complete, is_late) {
        (true, _) => (
            "True",
            "NewReplicaSetAvailable",
            "ReplicaSet has successfully progressed.",
        ),
        (_, true) => (
            "False",
            "ProgressDeadlineExceeded",
            "ReplicaSet has timed out progressing.",
        ),
        _ => ("True", "ReplicaSetUpdated", "ReplicaSet is progressing."),
    };
    let mut progressing = conditioned(before, "Progressing", state, reason, message, &text);
    progressing["lastUpdateTime"] = match before {
        Some(before) if before["reason"] == reason && !moved => before["lastUpdateTime"].clone(),
        _ => json!(text),
    };
    let mut available = available;
    available["lastUpdateTime"] = available["lastTransitionTime"].clone();
    let mut conditions = vec![available, progressing];
    let failure = sets
        .iter()
        .find_map(|set| condition(&set.object, "ReplicaFailure"));
    conditions.extend(failure.cloned());
    status["conditions"] = json!(conditions);
    write_status(cluster, deployment, status);
    let left = late_at.as_millisecond() - now.as_millisecond();
    (!is_complete && !is_late).then(|| Instant::now() + Duration::from_millis(left.unsigned_abs() + 1))
}

/// A number or a percentage of the wanted replicas.
fn share(value: &Value, wanted: i64, up: bool) -> i64 {
    match value {
        Value::Number(number) => number.as_i64().unwrap_or_default(),
        Value::String(text) => {
            let percent: i64 = text.trim_end_matches('%').parse().unwrap_or_default();
            (wanted * percent + if up { 99 } else { 0 }) / 100
        }
        _ => 0,
    }
}

fn template_hash(template: &Value) -> String {
    // The same for the same template in every run: this hasher has fixed keys.
    let mut hasher = DefaultHasher::new();
    template.to_string().hash(&mut hasher);
    const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut rest = hasher.finish();
    let mut text = String::new();
    for _ in 0..10 {
        let letter = usize::try_from(rest % LETTERS.len() as u64).unwrap_or_default();
        text.push(char::from(LETTERS[letter]));
        rest /= LETTERS.len() as u64;
    }
    text
}
