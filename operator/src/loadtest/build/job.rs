//! The Job of a LoadTest (`shared/research/loadtest.md` 5.6 and 5.7).
//!
//! One pod per worker, never a second measurement: a worker that has begun is not repeated, because a second pass would
//! shift load and time. One that never began (exit code 75) is replaced freely. The Job has no TTL: it goes when its
//! results are safe.

use std::collections::BTreeMap;

use flotilla_core::load::plan::LoadPlan;
use flotilla_crds::{LoadTest, names};
use k8s_openapi::api::batch::v1::{
    Job, JobSpec, PodFailurePolicy, PodFailurePolicyOnExitCodesRequirement,
    PodFailurePolicyOnPodConditionsPattern, PodFailurePolicyRule,
};
use k8s_openapi::api::core::v1::{
    Capabilities, ConfigMapVolumeSource, Container, ContainerPort, EnvVar, EnvVarSource, ObjectFieldSelector,
    Pod, PodSecurityContext, PodSpec, PodTemplateSpec, ResourceRequirements, SeccompProfile, SecurityContext,
    Volume, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt as _;

use super::{LOAD_TEST_UID, coordinator_name, job_name, labels, metadata, plan_name};
use crate::loadtest::state::EXIT_NOT_STARTED;
use crate::runtime::uid_of;

/// Exit codes that are the same in every pod (no usable plan, no such target): the Job stops.
const EXIT_HOPELESS: [i32; 2] = [64, 65];
/// Exit code of a worker that was interrupted after the start; its result is partial.
const EXIT_INTERRUPTED: i32 = 76;
/// What the Job gets beyond start deadline, plan and timeout: pods that start, warm-up, last snapshots.
const SLACK_SECONDS: i64 = 120;
/// Memory of a worker without any requests, in MiB.
const BASE_MEMORY: u64 = 32;
/// Requests of one worker for which it is given one MiB more. Their results are histograms, whose size does not grow; it
/// is requests in flight that take memory.
const REQUESTS_PER_MEMORY: u64 = 100_000;
/// The image's user, as in every image of ours.
const USER: i64 = 65532;

/// The Job for a plan.
pub fn build(load_test: &LoadTest, plan: &LoadPlan, image: &str) -> Job {
    let workers = i32::try_from(plan.workers.count).unwrap_or(i32::MAX);
    Job {
        metadata: metadata(load_test, job_name(&load_test.name_any()), &plan.workload_hash()),
        spec: Some(JobSpec {
            completion_mode: Some("Indexed".to_owned()),
            completions: Some(workers),
            parallelism: Some(workers),
            backoff_limit_per_index: Some(0),
            max_failed_indexes: Some(max_failed(plan)),
            pod_replacement_policy: Some("Failed".to_owned()),
            pod_failure_policy: Some(failure_policy()),
            active_deadline_seconds: Some(active_deadline(plan)),
            template: template(load_test, plan, image),
            ..JobSpec::default()
        }),
        status: None,
    }
}

/// One worker pod as the Job controller would make it, to ask the API server whether it would accept it.
pub fn worker_pod(load_test: &LoadTest, template: PodTemplateSpec) -> Pod {
    let mut metadata = template.metadata.unwrap_or_default();
    metadata.name = Some(format!("{}-0-probe", job_name(&load_test.name_any())));
    metadata.namespace = load_test.namespace();
    Pod {
        metadata,
        spec: template.spec,
        status: None,
    }
}

/// How many workers may fail before the coverage cannot be reached any more.
fn max_failed(plan: &LoadPlan) -> i32 {
    let workers = &plan.workers;
    let failing =
        u64::from(workers.count) * u64::from(100_u32.saturating_sub(workers.min_coverage_percent)) / 100;
    i32::try_from(failing).unwrap_or(i32::MAX)
}

fn active_deadline(plan: &LoadPlan) -> i64 {
    let seconds = u64::from(plan.workers.start_deadline_seconds)
        .saturating_add(plan.seconds())
        .saturating_add(plan.requests.timeout_milliseconds.div_ceil(1000));
    i64::try_from(seconds)
        .unwrap_or(i64::MAX)
        .saturating_add(SLACK_SECONDS)
}

fn failure_policy() -> PodFailurePolicy {
    let on_exit = |action: &str, values: &[i32]| PodFailurePolicyRule {
        action: action.to_owned(),
        on_exit_codes: Some(PodFailurePolicyOnExitCodesRequirement {
            container_name: Some(names::WORKER_CONTAINER.to_owned()),
            operator: "In".to_owned(),
            values: values.to_vec(),
        }),
        on_pod_conditions: None,
    };
    let disrupted = PodFailurePolicyRule {
        action: "FailIndex".to_owned(),
        on_exit_codes: None,
        on_pod_conditions: Some(vec![PodFailurePolicyOnPodConditionsPattern {
            type_: "DisruptionTarget".to_owned(),
            status: "True".to_owned(),
        }]),
    };
    PodFailurePolicy {
        rules: vec![
            on_exit("FailJob", &EXIT_HOPELESS),
            on_exit("Ignore", &[EXIT_NOT_STARTED]),
            on_exit("FailIndex", &[EXIT_INTERRUPTED]),
            disrupted,
        ],
    }
}

fn template(load_test: &LoadTest, plan: &LoadPlan, image: &str) -> PodTemplateSpec {
    let name = load_test.name_any();
    PodTemplateSpec {
        metadata: Some(ObjectMeta {
            labels: Some(labels(load_test)),
            annotations: Some(BTreeMap::from([(LOAD_TEST_UID.to_owned(), uid_of(load_test))])),
            ..ObjectMeta::default()
        }),
        spec: Some(PodSpec {
            restart_policy: Some("Never".to_owned()),
            automount_service_account_token: Some(false),
            enable_service_links: Some(false),
            // A worker that is told to stop leaves its result within 5 s.
            termination_grace_period_seconds: Some(15),
            security_context: Some(PodSecurityContext {
                run_as_non_root: Some(true),
                run_as_user: Some(USER),
                run_as_group: Some(USER),
                seccomp_profile: Some(SeccompProfile {
                    type_: "RuntimeDefault".to_owned(),
                    ..SeccompProfile::default()
                }),
                ..PodSecurityContext::default()
            }),
            containers: vec![container(load_test, plan, image)],
            volumes: Some(vec![Volume {
                name: "plan".to_owned(),
                config_map: Some(ConfigMapVolumeSource {
                    name: plan_name(&name),
                    ..ConfigMapVolumeSource::default()
                }),
                ..Volume::default()
            }]),
            ..PodSpec::default()
        }),
    }
}

fn container(load_test: &LoadTest, plan: &LoadPlan, image: &str) -> Container {
    let namespace = load_test.namespace().unwrap_or_default();
    let coordinator = coordinator_name(&load_test.name_any());
    let folder = names::PLAN_PATH
        .rsplit_once('/')
        .map_or("/", |(folder, _)| folder);
    let quantity = |mebibytes: u64| Quantity(format!("{mebibytes}Mi"));
    let share = plan.requests() / u64::from(plan.workers.count.max(1));
    let memory = BASE_MEMORY + share / REQUESTS_PER_MEMORY;
    Container {
        name: names::WORKER_CONTAINER.to_owned(),
        image: Some(image.to_owned()),
        image_pull_policy: Some("IfNotPresent".to_owned()),
        // JOB_COMPLETION_INDEX comes from the Job controller.
        env: Some(vec![
            EnvVar {
                name: "FLOTILLA_COORDINATOR".to_owned(),
                value: Some(format!(
                    "{coordinator}.{namespace}.svc:{}",
                    names::COORDINATOR_PORT
                )),
                value_from: None,
            },
            EnvVar {
                name: "POD_NAME".to_owned(),
                value: None,
                value_from: Some(EnvVarSource {
                    field_ref: Some(ObjectFieldSelector {
                        field_path: "metadata.name".to_owned(),
                        ..ObjectFieldSelector::default()
                    }),
                    ..EnvVarSource::default()
                }),
            },
        ]),
        ports: Some(vec![ContainerPort {
            name: Some("coordinator".to_owned()),
            container_port: i32::from(names::COORDINATOR_PORT),
            ..ContainerPort::default()
        }]),
        // The result is the message. The log must not take its place when there is none.
        termination_message_policy: Some("File".to_owned()),
        // No CPU limit: a throttled generator is late, and a late one makes its own test Invalid.
        resources: Some(ResourceRequirements {
            requests: Some(BTreeMap::from([
                ("cpu".to_owned(), Quantity("100m".to_owned())),
                ("memory".to_owned(), quantity(memory)),
            ])),
            limits: Some(BTreeMap::from([(
                "memory".to_owned(),
                quantity((memory * 8).max(512)),
            )])),
            ..ResourceRequirements::default()
        }),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            read_only_root_filesystem: Some(true),
            capabilities: Some(Capabilities {
                drop: Some(vec!["ALL".to_owned()]),
                ..Capabilities::default()
            }),
            ..SecurityContext::default()
        }),
        volume_mounts: Some(vec![VolumeMount {
            name: "plan".to_owned(),
            mount_path: folder.to_owned(),
            read_only: Some(true),
            ..VolumeMount::default()
        }]),
        ..Container::default()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::tests::load_test;
    use super::*;

    fn plan(workers: u32, min_coverage: u32) -> LoadPlan {
        serde_json::from_value(json!({
            "name": "steady", "seed": 1,
            "workers": {"count": workers, "minCoveragePercent": min_coverage, "startDeadlineSeconds": 180},
            "target": {"url": "http://support.shop.svc", "protocol": "HTTP"},
            "requests": {"timeoutMilliseconds": 30001},
            "scenarios": [{"name": "a", "weight": 1, "prompt": "hello"}],
            "stages": [{"name": "steady", "type": "ConstantRate", "constantRate": {"perSecond": "5", "seconds": 60}}],
        }))
        .unwrap()
    }

    #[test]
    fn the_job_is_as_the_contract_says() {
        let job = serde_json::to_value(build(&load_test(), &plan(4, 99), "loadgen:1")).unwrap();
        let at = |pointer: &str| job.pointer(pointer).cloned().unwrap_or_default();
        let pod = "/spec/template/spec";
        let worker = "/spec/template/spec/containers/0";
        for (pointer, expected) in [
            ("/metadata/name".to_owned(), json!("steady")),
            ("/spec/completionMode".to_owned(), json!("Indexed")),
            ("/spec/completions".to_owned(), json!(4)),
            ("/spec/parallelism".to_owned(), json!(4)),
            ("/spec/backoffLimitPerIndex".to_owned(), json!(0)),
            ("/spec/maxFailedIndexes".to_owned(), json!(0)),
            ("/spec/podReplacementPolicy".to_owned(), json!("Failed")),
            (
                "/spec/activeDeadlineSeconds".to_owned(),
                json!(180 + 60 + 31 + 120),
            ),
            ("/spec/ttlSecondsAfterFinished".to_owned(), Value::Null),
            (format!("{pod}/restartPolicy"), json!("Never")),
            (format!("{pod}/automountServiceAccountToken"), json!(false)),
            (format!("{pod}/volumes/0/configMap/name"), json!("steady-plan")),
            (format!("{worker}/name"), json!("worker")),
            (format!("{worker}/terminationMessagePolicy"), json!("File")),
            (
                format!("{worker}/volumeMounts/0/mountPath"),
                json!("/etc/flotilla/plan"),
            ),
            (
                format!("{worker}/env/0/value"),
                json!("steady-coordinator.shop.svc:9091"),
            ),
        ] {
            assert_eq!(at(&pointer), expected, "{pointer}");
        }
        assert_eq!(at("/spec/template/metadata/annotations")[LOAD_TEST_UID], "u-1");
        let rules: Vec<String> = at("/spec/podFailurePolicy/rules")
            .as_array()
            .unwrap()
            .iter()
            .map(|rule| format!("{} {}", rule["action"], rule["onExitCodes"]["values"]))
            .collect();
        assert_eq!(
            rules,
            [
                r#""FailJob" [64,65]"#,
                r#""Ignore" [75]"#,
                r#""FailIndex" [76]"#,
                r#""FailIndex" null"#
            ]
        );
    }

    #[test]
    fn pods_pass_pod_security_restricted() {
        let job = serde_json::to_value(build(&load_test(), &plan(1, 99), "loadgen:1")).unwrap();
        let pod = &job["spec"]["template"]["spec"];
        assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
        assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
        assert_eq!(
            pod["containers"][0]["securityContext"]["capabilities"],
            json!({"drop": ["ALL"]})
        );
        assert_eq!(
            pod["containers"][0]["securityContext"]["allowPrivilegeEscalation"],
            false
        );
    }

    #[test]
    fn as_many_may_fail_as_the_coverage_allows() {
        for (workers, coverage, expected) in [
            (1, 99, 0),
            (4, 99, 0),
            (4, 75, 1),
            (200, 99, 2),
            (10, 1, 9),
            (3, 100, 0),
        ] {
            assert_eq!(
                max_failed(&plan(workers, coverage)),
                expected,
                "{workers} workers, {coverage} %"
            );
        }
    }
}
