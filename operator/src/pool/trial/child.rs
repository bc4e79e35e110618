//! Jobs and LoadTests that test a candidate: built from its revision, read back. Pure.
//!
//! A Job's pod is the revision's own with another command: the image, environment, files, ServiceAccount and pod template that the
//! agent has, so that it sees what the agent sees. It has none of the labels by which Services and gateways find agents.

use std::sync::Arc;

use flotilla_core::revision::Content;
use flotilla_crds::agent_pool::Protocol;
use flotilla_crds::common::{condition, find};
use flotilla_crds::load_test::{LoadProtocol, OnInconclusive, ServiceRef, Target, Verdict};
use flotilla_crds::{AgentPool, LoadTest, names};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::{Job, JobSpec};
use k8s_openapi::api::core::v1::{EnvVar, Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Resource, ResourceExt as _};
use sha2::{Digest as _, Sha256};

use super::list::{Check, Test};
use super::sitting::Outcome;
use crate::pool::build::{child_meta, pod};
use crate::pool::validate::overlay_of;

/// Characters of the pool's name in a child's: LoadTests have at most 45.
const NAME_PART: usize = 34;
/// Seconds a pod of a Job may take to start.
pub(super) const START_SECONDS: i64 = 60;
/// `app.kubernetes.io/name` of the Jobs' pods.
const APP: &str = "flotilla-smoke-test";

/// Which candidate is tested, and at which rung.
#[derive(Clone, Copy, Debug)]
pub struct Whose<'a> {
    /// The pool.
    pub pool: &'a AgentPool,
    /// The revision.
    pub revision: &'a str,
    /// Which attempt to release it.
    pub attempt: i32,
    /// The rung's weight.
    pub weight: i32,
}

/// The release as its children are marked.
pub fn release(revision: &str, attempt: i32) -> String {
    format!("{revision}/{attempt}")
}

/// The name of the child for the `run`-th run of a test: another one for another definition, the same after a restart.
pub fn name(whose: Whose<'_>, check: &Check, run: i32) -> String {
    let Whose {
        pool,
        revision,
        attempt,
        weight,
    } = whose;
    let what = serde_json::json!([revision, attempt, weight, check, run]);
    let digest = Sha256::digest(what.to_string());
    let hash: String = digest.iter().take(5).map(|byte| format!("{byte:02x}")).collect();
    let pool: String = pool.name_any().chars().take(NAME_PART).collect();
    format!("{pool}-{hash}")
}

/// Whether the pool of this UID is the owner.
pub fn is_owned<K: Resource<DynamicType = ()>>(object: &K, pool: &str) -> bool {
    let owners = object.owner_references().iter();
    object.meta().deletion_timestamp.is_none() && owners.into_iter().any(|owner| owner.uid == pool)
}

/// Metadata of a child: the pool's, but none of the labels by which its own objects are found.
pub(super) fn metadata(whose: Whose<'_>, name: &str, check: &Check) -> ObjectMeta {
    let mut metadata = child_meta(whose.pool, name, None);
    let labels = metadata.labels.get_or_insert_default();
    // It is no agent, and a pool's own objects are found by this label.
    labels.remove(names::POOL);
    labels.insert(names::APP_NAME.to_owned(), APP.to_owned());
    labels.insert(names::TESTED_POOL.to_owned(), whose.pool.name_any());
    let annotations = metadata.annotations.get_or_insert_default();
    annotations.insert(
        names::TESTED_RELEASE.to_owned(),
        release(whose.revision, whose.attempt),
    );
    annotations.insert(names::TEST.to_owned(), check.name.clone());
    metadata
}

/// The Job of a test of type Job.
///
/// # Errors
/// A sentence, if the revision's pod template cannot be read.
pub fn job(whose: Whose<'_>, check: &Check, name: &str, content: &Content) -> Result<Job, String> {
    let Test::Job(test) = &check.test else {
        return Err(format!("{} is no test of type Job", check.name));
    };
    let over = overlay_of(content.agent.pod_template.as_ref()).map_err(|problem| problem.sentence)?;
    let mut template = pod::template(whose.pool, whose.revision, content, over);
    let metadata = metadata(whose, name, check);
    template.metadata = Some(ObjectMeta {
        labels: metadata.labels.clone(),
        annotations: metadata.annotations.clone(),
        ..ObjectMeta::default()
    });
    let spec = template.spec.get_or_insert_default();
    spec.containers
        .retain(|container| container.name == names::AGENT_CONTAINER);
    spec.restart_policy = Some("Never".to_owned());
    spec.active_deadline_seconds = Some(check.seconds);
    spec.termination_grace_period_seconds = Some(5);
    let namespace = whose.pool.namespace().unwrap_or_default();
    for container in &mut spec.containers {
        container.command = Some(test.command.clone());
        container.args = (!test.args.is_empty()).then(|| test.args.clone());
        if let Some(image) = &test.image {
            container.image = Some(image.clone());
        }
        container.ports = None;
        container.startup_probe = None;
        container.readiness_probe = None;
        container.liveness_probe = None;
        container.lifecycle = None;
        container.env.get_or_insert_default().push(EnvVar {
            name: "FLOTILLA_REVISION_URL".to_owned(),
            value: Some(format!("http://{}.{namespace}.svc", whose.revision)),
            ..EnvVar::default()
        });
    }
    Ok(Job {
        metadata,
        spec: Some(JobSpec {
            backoff_limit: Some(check.attempts.saturating_sub(1)),
            active_deadline_seconds: Some(check.longest_seconds()),
            template: PodTemplateSpec {
                metadata: template.metadata,
                spec: template.spec,
            },
            ..JobSpec::default()
        }),
        status: None,
    })
}

fn job_condition<'a>(job: &'a Job, type_: &str) -> Option<&'a str> {
    let conditions = job.status.as_ref()?.conditions.as_ref()?;
    let found = conditions
        .iter()
        .find(|condition| condition.type_ == type_ && condition.status == "True")?;
    Some(found.message.as_deref().unwrap_or_default())
}

/// Whether a Job has ended.
pub fn is_job_over(job: &Job) -> bool {
    job_condition(job, "Complete").is_some() || job_condition(job, "Failed").is_some()
}

/// By when a child has ended that was made for `check` and may go on for `seconds`.
pub(super) fn until<K: Resource>(object: &K, seconds: i64) -> Option<Timestamp> {
    let made = object.meta().creation_timestamp.as_ref()?.0;
    made.checked_add(SignedDuration::from_secs(seconds)).ok()
}

/// What has come of a Job; `pods` are its pods.
pub fn outcome_of_job(job: &Job, pods: impl FnOnce() -> Vec<Arc<Pod>>) -> Outcome {
    let failed = job
        .status
        .as_ref()
        .and_then(|status| status.failed)
        .unwrap_or_default();
    if job_condition(job, "Complete").is_some() {
        return Outcome::passed(failed + 1, "");
    }
    let Some(why) = job_condition(job, "Failed") else {
        return Outcome::running();
    };
    let message = match last_words(&pods()) {
        Some(words) => words,
        None => format!("Job {}: {why}", job.name_any()),
    };
    Outcome::failed(failed.max(1), message)
}

/// How the newest of a Job's pods ended.
fn last_words(pods: &[Arc<Pod>]) -> Option<String> {
    let mut pods: Vec<&Arc<Pod>> = pods.iter().collect();
    pods.sort_by_key(|pod| pod.creation_timestamp());
    let status = pods.last()?.status.as_ref()?;
    if status.reason.as_deref() == Some("DeadlineExceeded") {
        return Some("the command did not end within timeoutSeconds".to_owned());
    }
    let mut containers = status.container_statuses.iter().flatten();
    let ended = containers.find_map(|container| container.state.as_ref()?.terminated.as_ref())?;
    let said = ended.message.as_deref().unwrap_or_default().trim();
    let code = ended.exit_code;
    Some(if said.is_empty() {
        format!("the command exited with {code}")
    } else {
        format!("the command exited with {code}: {said}")
    })
}

/// The LoadTest made from `template`, against the candidate's own Service.
pub fn load_test(
    whose: Whose<'_>,
    check: &Check,
    name: &str,
    template: &LoadTest,
    protocol: Protocol,
) -> LoadTest {
    let mut spec = template.spec.clone();
    spec.target = Target {
        service_ref: Some(ServiceRef {
            name: whose.revision.to_owned(),
            port: 80,
        }),
        ..Target::default()
    };
    spec.protocol = Some(spec.protocol.unwrap_or(match protocol {
        Protocol::HTTP => LoadProtocol::HTTP,
        Protocol::A2A => LoadProtocol::A2A,
    }));
    spec.suspend = false;
    spec.ttl_seconds_after_finished = None;
    LoadTest {
        metadata: metadata(whose, name, check),
        spec,
        status: None,
    }
}

/// Whether a LoadTest has ended.
pub fn has_verdict(test: &LoadTest) -> bool {
    test.status
        .as_ref()
        .is_some_and(|status| status.verdict.is_some())
}

/// What has come of the `run`-th LoadTest of a test that may take `seconds`.
pub fn outcome_of_load_test(test: &LoadTest, seconds: i64, run: i32, now: Timestamp) -> Outcome {
    let status = test.status.clone().unwrap_or_default();
    let name = test.name_any();
    let said = |type_| {
        find(&status.conditions, type_)
            .map(|condition| condition.message.clone())
            .filter(|message| !message.is_empty())
    };
    let Some(verdict) = status.verdict else {
        let made = test.creation_timestamp().map_or(now, |time| time.0);
        let waits = said(condition::READY);
        if now.duration_since(made) < SignedDuration::from_secs(seconds) {
            return Outcome {
                attempts: run,
                message: waits.unwrap_or_default(),
                ..Outcome::running()
            };
        }
        let why = waits.map(|waits| format!(": {waits}")).unwrap_or_default();
        let message = format!("LoadTest {name} has no verdict after {seconds} s{why}");
        return Outcome::undecided(run, message);
    };
    let message = match said(condition::SUCCEEDED).or_else(|| said(condition::COMPLETE)) {
        Some(said) => format!("LoadTest {name}: {said}"),
        None => format!("LoadTest {name}: {verdict:?}"),
    };
    match verdict {
        Verdict::Passed => Outcome::passed(run, message),
        Verdict::Failed => Outcome::failed(run, message),
        Verdict::Inconclusive if test.spec.on_inconclusive == OnInconclusive::Pass => {
            Outcome::passed(run, message)
        }
        Verdict::Inconclusive | Verdict::Invalid => Outcome::undecided(run, message),
    }
}

#[cfg(test)]
mod tests;
