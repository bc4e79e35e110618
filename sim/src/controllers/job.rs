//! The Job controller, for Jobs of pods that run once: indexed or not, with a failure policy, a deadline, suspension.

use std::collections::BTreeSet;
use std::time::Duration;

use http::Method;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{
    Controller, Found, all, condition, conditioned, delete, is_controlled_by, is_over, is_ready, number,
    phase, pod_from, request, write_status,
};
use crate::cluster::{Cluster, seconds};

const INDEX: &str = "batch.kubernetes.io/job-completion-index";
const TRACKING: &str = "batch.kubernetes.io/job-tracking";

/// Runs Jobs.
pub(super) struct Jobs;

impl Controller for Jobs {
    fn kinds(&self) -> &'static [&'static str] {
        &["/apis/batch/v1/jobs", "/api/v1/pods"]
    }

    fn pass(&mut self, cluster: &Cluster) -> Option<Instant> {
        let pods = all(cluster, "/api/v1/pods");
        let jobs = all(cluster, "/apis/batch/v1/jobs");
        // A pod whose Job is gone is counted by nobody.
        for pod in pods.iter().filter(|pod| is_tracked(pod)) {
            if !jobs.iter().any(|job| is_controlled_by(&pod.object, job)) {
                untrack(cluster, pod);
            }
        }
        let mut again = None;
        for job in &jobs {
            let own: Vec<&Found> = pods
                .iter()
                .filter(|pod| pod.key.namespace == job.key.namespace)
                .filter(|pod| is_controlled_by(&pod.object, job))
                .collect();
            if let Some(due) = reconcile(cluster, job, &own) {
                again = Some(again.map_or(due, |earlier: Instant| earlier.min(due)));
            }
        }
        again
    }
}

/// What a failed pod means for its Job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Count,
    Ignore,
    FailIndex,
    FailJob,
}

fn reconcile(cluster: &Cluster, job: &Found, pods: &[&Found]) -> Option<Instant> {
    let (object, spec) = (&job.object, &job.object["spec"]);
    let over = ["Complete", "Failed"]
        .iter()
        .any(|type_| condition(object, type_).is_some_and(|condition| condition["status"] == "True"));
    let ended: Vec<&&Found> = pods.iter().filter(|pod| is_over(&pod.object)).collect();
    for pod in &ended {
        if is_tracked(pod) {
            untrack(cluster, pod);
        }
    }
    if over || job.is_deleting() {
        return None;
    }
    let now = cluster.now();
    let time = seconds(now);
    let mut status = object.get("status").cloned().unwrap_or_else(|| json!({}));
    let tally = Tally::of(spec, &status, pods);
    let active: Vec<&&Found> = pods
        .iter()
        .filter(|pod| !is_over(&pod.object) && !pod.is_deleting())
        .collect();
    let suspended = spec["suspend"] == true;
    if !suspended && status["startTime"].is_null() {
        status["startTime"] = json!(time);
    }
    let started = status["startTime"]
        .as_str()
        .and_then(|start| start.parse::<Timestamp>().ok());
    let deadline = spec["activeDeadlineSeconds"].as_u64();
    let expiry = started
        .filter(|_| !suspended)
        .zip(deadline)
        .and_then(|(start, seconds)| start.checked_add(Duration::from_secs(seconds)).ok());
    let failure = tally.failure(spec).or_else(|| {
        let is_late = expiry.is_some_and(|expiry| now >= expiry);
        is_late.then(|| {
            (
                "DeadlineExceeded",
                "Job was active longer than specified deadline".to_owned(),
            )
        })
    });
    let complete = tally.is_complete(spec);
    let mut present = active.len();
    let stops = suspended || failure.is_some() || complete;
    if stops {
        active.iter().for_each(|pod| delete(cluster, pod, None));
        present = 0;
    } else {
        present += fill(cluster, job, spec, pods, &tally, active.len());
    }
    let stopping = pods
        .iter()
        .filter(|pod| pod.is_deleting() && !is_over(&pod.object))
        .count()
        + if stops { active.len() } else { 0 };
    write_tally(&mut status, &tally, spec, present, stopping);
    let ready = active.iter().filter(|pod| is_ready(&pod.object)).count();
    set_count(&mut status, "ready", if stops { 0 } else { ready });
    let mut conditions = Vec::new();
    let mut put = |type_: &str, value: &str, reason: &str, message: &str| {
        let mut made = conditioned(condition(object, type_), type_, value, reason, message, &time);
        made["lastProbeTime"] = made["lastTransitionTime"].clone();
        conditions.push(made);
    };
    if suspended {
        put("Suspended", "True", "JobSuspended", "Job suspended");
        if let Some(fields) = status.as_object_mut() {
            fields.remove("startTime");
        }
    } else if condition(object, "Suspended").is_some() {
        put("Suspended", "False", "JobResumed", "Job resumed");
    }
    if let Some((reason, message)) = &failure {
        put("FailureTarget", "True", reason, message);
        if stopping == 0 {
            put("Failed", "True", reason, message);
        }
    } else if complete {
        put(
            "SuccessCriteriaMet",
            "True",
            "CompletionsReached",
            "Reached expected number of succeeded pods",
        );
        if stopping == 0 {
            put(
                "Complete",
                "True",
                "CompletionsReached",
                "Reached expected number of succeeded pods",
            );
            status["completionTime"] = json!(time);
        }
    }
    if conditions.is_empty() {
        if let Some(fields) = status.as_object_mut() {
            fields.remove("conditions");
        }
    } else {
        status["conditions"] = json!(conditions);
    }
    write_status(cluster, job, status);
    let left = expiry
        .filter(|_| !stops)
        .map(|expiry| expiry.as_millisecond() - now.as_millisecond());
    left.map(|left| Instant::now() + Duration::from_millis(left.unsigned_abs() + 1))
}

/// How its pods have fared.
struct Tally {
    indexed: bool,
    succeeded: BTreeSet<i64>,
    failed: BTreeSet<i64>,
    failures: usize,
    successes: usize,
    fatal: Option<String>,
}

impl Tally {
    fn of(spec: &Value, status: &Value, pods: &[&Found]) -> Self {
        let indexed = spec["completionMode"] == "Indexed";
        let mut tally = Self {
            indexed,
            succeeded: ranges(status["completedIndexes"].as_str().unwrap_or_default()),
            failed: ranges(status["failedIndexes"].as_str().unwrap_or_default()),
            failures: 0,
            successes: 0,
            fatal: None,
        };
        let per_index = spec["backoffLimitPerIndex"].as_u64();
        for pod in pods.iter().filter(|pod| is_over(&pod.object)) {
            let index = index_of(&pod.object);
            if phase(&pod.object) == "Succeeded" {
                tally.successes += 1;
                tally.succeeded.extend(index);
                continue;
            }
            match verdict(spec, &pod.object) {
                Verdict::Ignore => continue,
                Verdict::FailJob => {
                    tally.fatal = Some(format!(
                        "Container worker for pod {}/{} failed with exit code {} matching FailJob rule at index 0",
                        pod.key.namespace,
                        pod.name(),
                        exit_code(&pod.object).unwrap_or_default()
                    ));
                }
                Verdict::FailIndex => tally.failed.extend(index),
                Verdict::Count => {}
            }
            tally.failures += 1;
            let of_index = pods
                .iter()
                .filter(|other| phase(&other.object) == "Failed" && index_of(&other.object) == index)
                .filter(|other| verdict(spec, &other.object) != Verdict::Ignore)
                .count();
            if per_index.is_some_and(|limit| of_index as u64 > limit) {
                tally.failed.extend(index);
            }
        }
        // Pods that are gone were counted when they ended.
        let told = |field: &str| usize::try_from(number(status, &format!("/{field}"))).unwrap_or_default();
        tally.successes = tally.successes.max(told("succeeded"));
        tally.failures = tally.failures.max(told("failed"));
        tally
    }

    fn failure(&self, spec: &Value) -> Option<(&'static str, String)> {
        if let Some(message) = &self.fatal {
            return Some(("PodFailurePolicy", message.clone()));
        }
        if let Some(most) = spec["maxFailedIndexes"].as_u64()
            && self.failed.len() as u64 > most
        {
            let message = "Job has exceeded the specified maximal number of failed indexes";
            return Some(("MaxFailedIndexesExceeded", message.to_owned()));
        }
        let done = self.failed.len() + self.succeeded.len();
        if self.indexed && !self.failed.is_empty() && done as i64 >= number(spec, "/completions") {
            return Some(("FailedIndexes", "Job has failed indexes".to_owned()));
        }
        let limit = number(spec, "/backoffLimit");
        (self.failures as i64 > limit).then(|| {
            (
                "BackoffLimitExceeded",
                "Job has reached the specified backoff limit".to_owned(),
            )
        })
    }

    fn is_complete(&self, spec: &Value) -> bool {
        let wanted = spec["completions"].as_i64();
        if self.indexed {
            wanted.is_some_and(|wanted| self.succeeded.len() as i64 >= wanted)
        } else {
            self.successes as i64 >= wanted.unwrap_or(1)
        }
    }
}

/// Makes pods that are missing; gives how many.
fn fill(
    cluster: &Cluster,
    job: &Found,
    spec: &Value,
    pods: &[&Found],
    tally: &Tally,
    active: usize,
) -> usize {
    let parallelism = usize::try_from(number(spec, "/parallelism")).unwrap_or_default();
    let room = parallelism.saturating_sub(active);
    // With the policy `Failed` a pod is replaced only once it has ended.
    let occupied: BTreeSet<i64> = pods
        .iter()
        .filter(|pod| !is_over(&pod.object))
        .filter_map(|pod| index_of(&pod.object))
        .collect();
    let path = job.sibling("/api/v1", "pods");
    let mut made = 0;
    if !tally.indexed {
        let wanted = usize::try_from(spec["completions"].as_i64().unwrap_or(1)).unwrap_or_default();
        let missing = wanted.saturating_sub(tally.successes + active);
        for _ in 0..missing.min(room) {
            made += usize::from(request(cluster, Method::POST, &path, pod_of(job, spec, None)).is_ok());
        }
        return made;
    }
    let missing = (0..number(spec, "/completions"))
        .filter(|index| !occupied.contains(index))
        .filter(|index| !tally.succeeded.contains(index) && !tally.failed.contains(index));
    for index in missing.take(room) {
        made += usize::from(request(cluster, Method::POST, &path, pod_of(job, spec, Some(index))).is_ok());
    }
    made
}

fn pod_of(job: &Found, spec: &Value, index: Option<i64>) -> Value {
    let mut pod = pod_from(job, &spec["template"]);
    pod["metadata"]["finalizers"] = json!([TRACKING]);
    if let Some(index) = index {
        pod["metadata"]["generateName"] = json!(format!("{}-{index}-", job.name()));
        pod["metadata"]["labels"][INDEX] = json!(index.to_string());
        pod["metadata"]["annotations"][INDEX] = json!(index.to_string());
    }
    pod
}

fn is_tracked(pod: &Found) -> bool {
    let finalizers = pod.object["metadata"]["finalizers"].as_array();
    finalizers
        .into_iter()
        .flatten()
        .any(|finalizer| finalizer == TRACKING)
}

fn untrack(cluster: &Cluster, pod: &Found) {
    let patch = json!({"metadata": {"uid": pod.uid(), "finalizers": null}});
    // It may be gone by now.
    let _ = request(cluster, Method::PATCH, &pod.path, patch);
}

fn index_of(pod: &Value) -> Option<i64> {
    pod["metadata"]["labels"][INDEX].as_str()?.parse().ok()
}

fn exit_code(pod: &Value) -> Option<i64> {
    pod.pointer("/status/containerStatuses/0/state/terminated/exitCode")?
        .as_i64()
}

/// The first rule of the failure policy that fits.
fn verdict(spec: &Value, pod: &Value) -> Verdict {
    let rules = spec.pointer("/podFailurePolicy/rules").and_then(Value::as_array);
    for rule in rules.into_iter().flatten() {
        let codes = rule.pointer("/onExitCodes/values").and_then(Value::as_array);
        let by_code = codes.is_some_and(|codes| {
            let is_in = exit_code(pod).is_some_and(|code| codes.contains(&json!(code)));
            is_in == (rule["onExitCodes"]["operator"] == "In") && exit_code(pod).is_some_and(|code| code != 0)
        });
        let patterns = rule["onPodConditions"].as_array();
        let by_condition = patterns.into_iter().flatten().any(|pattern| {
            condition(pod, pattern["type"].as_str().unwrap_or_default())
                .is_some_and(|condition| condition["status"] == pattern["status"])
        });
        if by_code || by_condition {
            return match rule["action"].as_str() {
                Some("FailJob") => Verdict::FailJob,
                Some("FailIndex") => Verdict::FailIndex,
                Some("Ignore") => Verdict::Ignore,
                _ => Verdict::Count,
            };
        }
    }
    Verdict::Count
}

fn set_count(status: &mut Value, field: &str, count: usize) {
    let Some(fields) = status.as_object_mut() else {
        return;
    };
    if count == 0 {
        fields.remove(field);
    } else {
        fields.insert(field.to_owned(), json!(count));
    }
}

fn write_tally(status: &mut Value, tally: &Tally, spec: &Value, active: usize, stopping: usize) {
    let succeeded = if tally.indexed {
        tally.succeeded.len()
    } else {
        tally.successes
    };
    set_count(status, "active", active);
    set_count(status, "succeeded", succeeded);
    set_count(status, "failed", tally.failures);
    set_count(status, "terminating", stopping);
    if tally.indexed {
        if !tally.succeeded.is_empty() {
            status["completedIndexes"] = json!(as_ranges(&tally.succeeded));
        }
        if spec["backoffLimitPerIndex"].is_i64() {
            status["failedIndexes"] = json!(as_ranges(&tally.failed));
        }
    }
    status["uncountedTerminatedPods"] = json!({});
}

/// `1,3-5` and back.
fn ranges(text: &str) -> BTreeSet<i64> {
    let mut all = BTreeSet::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.parse::<i64>(), last.parse::<i64>()) {
            all.extend(first..=last);
        }
    }
    all
}

fn as_ranges(numbers: &BTreeSet<i64>) -> String {
    let mut parts: Vec<(i64, i64)> = Vec::new();
    for number in numbers {
        match parts.last_mut() {
            Some((_, last)) if *last + 1 == *number => *last = *number,
            _ => parts.push((*number, *number)),
        }
    }
    let parts: Vec<String> = parts
        .iter()
        .map(|(first, last)| {
            if first == last {
                first.to_string()
            } else {
                format!("{first}-{last}")
            }
        })
        .collect();
    parts.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_indexes() {
        assert_eq!(ranges("1,3-5"), BTreeSet::from([1, 3, 4, 5]));
        assert_eq!(as_ranges(&BTreeSet::from([1, 3, 4, 5])), "1,3-5");
        assert_eq!(as_ranges(&ranges("")), "");
    }
}
