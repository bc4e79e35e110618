//! The gateway's Deployment.
//!
//! Provider keys are one optional Secret volume each, so a missing key stops nothing (the gateway reports it, and kubelet
//! mounts it when it appears), and the operator needs no right on Secrets. One volume per provider rather than one
//! projected volume for all: the mount path then names the provider, and two keys of one Secret need no renaming.

use std::collections::BTreeMap;

use flotilla_crds::names;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, DeploymentStrategy, RollingUpdateDeployment};
use k8s_openapi::api::core::v1::{
    Capabilities, Container, ContainerPort, EnvVar, EnvVarSource, HTTPGetAction, KeyToPath, Lifecycle,
    LifecycleHandler, ObjectFieldSelector, PodSecurityContext, PodSpec, PodTemplateSpec, Probe,
    ResourceRequirements, SeccompProfile, SecretVolumeSource, SecurityContext, SleepAction,
    TopologySpreadConstraint, Volume, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use super::{Credential, Shared, label_selector, labels};
use crate::gateway::Settings;

/// Annotation with a hash of the pod template.
pub const TEMPLATE_HASH: &str = "flotilla.dev/gateway-template";
/// Annotation with a hash of the credentials that the template mounts.
pub const CREDENTIALS_HASH: &str = "flotilla.dev/gateway-credentials";

/// Endpoints must have lost the pod before its sockets close; slower clusters than this are rare.
const PRE_STOP_SECONDS: i64 = 5;
/// `preStop`, five minutes for streams that are under way, and some seconds to hand over.
const GRACE_SECONDS: i64 = 330;
/// After this the Deployment says that it is stuck, and a stuck one holds up no other namespace.
const PROGRESS_SECONDS: i32 = 120;
/// The image's user, as in every image of ours.
const USER: i64 = 65532;

/// The Deployment.
pub fn build(shared: &Shared<'_>, settings: &Settings, credentials: &[Credential]) -> Deployment {
    let template = template(settings, credentials);
    let mounted: Vec<[&str; 3]> = credentials
        .iter()
        .map(|credential| [&*credential.provider, &*credential.secret, &*credential.key])
        .collect();
    let mut metadata = shared.metadata();
    metadata.annotations = Some(BTreeMap::from([
        (TEMPLATE_HASH.to_owned(), hash(&template)),
        (CREDENTIALS_HASH.to_owned(), hash(&mounted)),
    ]));
    Deployment {
        metadata,
        spec: Some(DeploymentSpec {
            replicas: Some(settings.replicas),
            selector: label_selector(),
            strategy: Some(DeploymentStrategy {
                type_: Some("RollingUpdate".to_owned()),
                rolling_update: Some(RollingUpdateDeployment {
                    max_unavailable: Some(IntOrString::Int(0)),
                    max_surge: Some(IntOrString::Int(1)),
                }),
            }),
            progress_deadline_seconds: Some(PROGRESS_SECONDS),
            revision_history_limit: Some(2),
            template,
            ..DeploymentSpec::default()
        }),
        status: None,
    }
}

fn template(settings: &Settings, credentials: &[Credential]) -> PodTemplateSpec {
    PodTemplateSpec {
        metadata: Some(ObjectMeta {
            labels: Some(labels()),
            ..ObjectMeta::default()
        }),
        spec: Some(PodSpec {
            service_account_name: Some(names::GATEWAY.to_owned()),
            automount_service_account_token: Some(true),
            enable_service_links: Some(false),
            termination_grace_period_seconds: Some(GRACE_SECONDS),
            security_context: Some(PodSecurityContext {
                run_as_non_root: Some(true),
                run_as_user: Some(USER),
                run_as_group: Some(USER),
                // Lets the user read mounted keys.
                fs_group: Some(USER),
                seccomp_profile: Some(SeccompProfile {
                    type_: "RuntimeDefault".to_owned(),
                    ..SeccompProfile::default()
                }),
                ..PodSecurityContext::default()
            }),
            topology_spread_constraints: Some(vec![
                spread("kubernetes.io/hostname"),
                spread("topology.kubernetes.io/zone"),
            ]),
            containers: vec![container(settings, credentials)],
            volumes: Some(
                credentials
                    .iter()
                    .map(volume)
                    .chain(quota_volume(settings))
                    .collect(),
            ),
            ..PodSpec::default()
        }),
    }
}

/// Spread where possible, among pods of the same template: old ones are on their way out.
fn spread(topology_key: &str) -> TopologySpreadConstraint {
    TopologySpreadConstraint {
        max_skew: 1,
        topology_key: topology_key.to_owned(),
        when_unsatisfiable: "ScheduleAnyway".to_owned(),
        label_selector: Some(label_selector()),
        match_label_keys: Some(vec!["pod-template-hash".to_owned()]),
        ..TopologySpreadConstraint::default()
    }
}

fn container(settings: &Settings, credentials: &[Credential]) -> Container {
    let port = |name: &str, port: u16| ContainerPort {
        name: Some(name.to_owned()),
        container_port: i32::from(port),
        ..ContainerPort::default()
    };
    let quantities = |cpu: Option<&str>, memory: &str| {
        let cpu = cpu.map(|cpu| ("cpu".to_owned(), Quantity(cpu.to_owned())));
        cpu.into_iter()
            .chain([("memory".to_owned(), Quantity(memory.to_owned()))])
            .collect::<BTreeMap<_, _>>()
    };
    Container {
        name: names::GATEWAY_CONTAINER.to_owned(),
        image: Some(settings.image.clone()),
        image_pull_policy: Some("IfNotPresent".to_owned()),
        env: Some(
            [
                field("POD_NAME", "metadata.name"),
                field("POD_NAMESPACE", "metadata.namespace"),
                field("POD_UID", "metadata.uid"),
                field("POD_IP", "status.podIP"),
            ]
            .into_iter()
            .chain(settings.env.iter().map(variable))
            .collect(),
        ),
        // The ports of pools need no declaration, and a list of them would replace the pods with every pool.
        ports: Some(vec![
            port("ingress", names::GATEWAY_INGRESS_PORT),
            port("egress", names::GATEWAY_EGRESS_PORT),
            port("admin", names::GATEWAY_ADMIN_PORT),
        ]),
        readiness_probe: Some(probe("/readyz", 1, 3)),
        // Generous: a gateway that is busy is not dead, and killing it cuts every stream it carries.
        liveness_probe: Some(probe("/healthz", 10, 6)),
        lifecycle: Some(Lifecycle {
            pre_stop: Some(LifecycleHandler {
                sleep: Some(SleepAction {
                    seconds: PRE_STOP_SECONDS,
                }),
                ..LifecycleHandler::default()
            }),
            ..Lifecycle::default()
        }),
        // No CPU limit: throttling a proxy is latency for everybody.
        resources: Some(ResourceRequirements {
            requests: Some(quantities(Some("50m"), "32Mi")),
            limits: Some(quantities(None, "1Gi")),
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
        volume_mounts: Some(
            credentials
                .iter()
                .map(mount)
                .chain(quota_mount(settings))
                .collect(),
        ),
        ..Container::default()
    }
}

fn field(name: &str, path: &str) -> EnvVar {
    EnvVar {
        name: name.to_owned(),
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector {
                field_path: path.to_owned(),
                ..ObjectFieldSelector::default()
            }),
            ..EnvVarSource::default()
        }),
        ..EnvVar::default()
    }
}

fn variable((name, value): &(String, String)) -> EnvVar {
    EnvVar {
        name: name.clone(),
        value: Some(value.clone()),
        ..EnvVar::default()
    }
}

fn probe(path: &str, period_seconds: i32, failure_threshold: i32) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.to_owned()),
            port: IntOrString::Int(i32::from(names::GATEWAY_ADMIN_PORT)),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(period_seconds),
        timeout_seconds: Some(2),
        failure_threshold: Some(failure_threshold),
        ..Probe::default()
    }
}

fn volume(credential: &Credential) -> Volume {
    Volume {
        name: volume_name(&credential.provider),
        secret: Some(SecretVolumeSource {
            secret_name: Some(credential.secret.clone()),
            items: Some(vec![KeyToPath {
                key: credential.key.clone(),
                path: names::API_KEY_FILE.to_owned(),
                ..KeyToPath::default()
            }]),
            // One missing key must not stop a namespace.
            optional: Some(true),
            default_mode: Some(0o440),
        }),
        ..Volume::default()
    }
}

fn mount(credential: &Credential) -> VolumeMount {
    VolumeMount {
        name: volume_name(&credential.provider),
        mount_path: format!("{}/{}", names::CREDENTIALS_DIR, credential.provider),
        read_only: Some(true),
        ..VolumeMount::default()
    }
}

/// The credentials of the Redis where quotas are shared, in namespaces that have them.
fn quota_volume(settings: &Settings) -> Option<Volume> {
    settings.shares_quotas().then(|| Volume {
        name: names::QUOTA_REDIS_SECRET.to_owned(),
        secret: Some(SecretVolumeSource {
            secret_name: Some(names::QUOTA_REDIS_SECRET.to_owned()),
            optional: Some(true),
            default_mode: Some(0o440),
            ..SecretVolumeSource::default()
        }),
        ..Volume::default()
    })
}

fn quota_mount(settings: &Settings) -> Option<VolumeMount> {
    settings.shares_quotas().then(|| VolumeMount {
        name: names::QUOTA_REDIS_SECRET.to_owned(),
        mount_path: names::QUOTA_REDIS_DIR.to_owned(),
        read_only: Some(true),
        ..VolumeMount::default()
    })
}

/// Volume names are DNS labels of at most 63 characters; a provider's name may fill all of them itself.
fn volume_name(provider: &str) -> String {
    const PREFIX: &str = "key-";
    const MAX: usize = 63;
    let plain = format!("{PREFIX}{provider}");
    if plain.len() <= MAX {
        return plain;
    }
    let hash = hash(&provider);
    let kept: String = provider
        .chars()
        .take(MAX - PREFIX.len() - 1 - hash.len())
        .collect();
    format!("{PREFIX}{}-{hash}", kept.trim_end_matches('-'))
}

/// 16 hex digits that change with the value's JSON.
fn hash(value: &impl Serialize) -> String {
    // serde_json's maps are sorted, so equal values have equal text; our types always serialise.
    let text = serde_json::to_value(value).unwrap_or_default().to_string();
    Sha256::digest(text)
        .iter()
        .take(8)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn settings() -> Settings {
        Settings {
            image: "flotilla.dev/gateway:dev".into(),
            replicas: 2,
            env: vec![],
            upgrade_parallelism: 2,
        }
    }

    fn credential(provider: &str) -> Credential {
        Credential {
            provider: provider.into(),
            secret: "keys".into(),
            key: "main".into(),
        }
    }

    fn built(credentials: &[Credential]) -> Value {
        serde_json::to_value(build(
            &Shared {
                namespace: "shop",
                owners: &[],
            },
            &settings(),
            credentials,
        ))
        .unwrap()
    }

    #[test]
    fn where_quotas_are_shared_the_password_is_mounted_if_there_is_one() {
        let shared = Settings {
            env: vec![(
                names::QUOTA_REDIS_VARIABLE.into(),
                "redis://redis.tools.svc:6379".into(),
            )],
            ..settings()
        };
        for (settings, expected) in [
            (
                shared,
                json!({"secretName": "flotilla-quota-redis", "optional": true, "defaultMode": 0o440}),
            ),
            (settings(), Value::Null),
        ] {
            let pod = serde_json::to_value(template(&settings, &[])).unwrap();
            let at = |pointer: &str| pod.pointer(pointer).cloned().unwrap_or_default();
            assert_eq!(at("/spec/volumes/0/secret"), expected);
            let mounted = at("/spec/containers/0/volumeMounts/0/mountPath");
            assert_eq!(mounted == "/etc/flotilla/quota-redis", !expected.is_null());
        }
    }

    #[test]
    fn the_pods_are_as_the_contract_says() {
        let deployment = built(&[credential("main")]);
        let at = |pointer: &str| deployment.pointer(pointer).cloned().unwrap_or_default();
        let pod = "/spec/template/spec";
        let gateway = "/spec/template/spec/containers/0";
        for (pointer, expected) in [
            ("/metadata/name".to_owned(), json!("flotilla-gateway")),
            ("/spec/replicas".to_owned(), json!(2)),
            (
                "/spec/strategy/rollingUpdate".to_owned(),
                json!({"maxUnavailable": 0, "maxSurge": 1}),
            ),
            (format!("{pod}/serviceAccountName"), json!("flotilla-gateway")),
            (format!("{pod}/automountServiceAccountToken"), json!(true)),
            (format!("{pod}/terminationGracePeriodSeconds"), json!(330)),
            (format!("{gateway}/name"), json!("gateway")),
            (format!("{gateway}/image"), json!("flotilla.dev/gateway:dev")),
            (
                format!("{gateway}/lifecycle/preStop"),
                json!({"sleep": {"seconds": 5}}),
            ),
            (
                format!("{gateway}/readinessProbe/httpGet"),
                json!({"path": "/readyz", "port": 9090}),
            ),
            (
                format!("{gateway}/livenessProbe/httpGet"),
                json!({"path": "/healthz", "port": 9090}),
            ),
            (
                format!("{gateway}/ports"),
                json!([
                    {"name": "ingress", "containerPort": 8080},
                    {"name": "egress", "containerPort": 8081},
                    {"name": "admin", "containerPort": 9090},
                ]),
            ),
        ] {
            assert_eq!(at(&pointer), expected, "{pointer}");
        }
        let variables: Vec<String> = at(&format!("{gateway}/env"))
            .as_array()
            .unwrap()
            .iter()
            .map(|variable| {
                format!(
                    "{}={}",
                    variable["name"], variable["valueFrom"]["fieldRef"]["fieldPath"]
                )
            })
            .collect();
        assert_eq!(
            variables.join(" "),
            r#""POD_NAME"="metadata.name" "POD_NAMESPACE"="metadata.namespace" "POD_UID"="metadata.uid" "POD_IP"="status.podIP""#
        );
    }

    #[test]
    fn further_variables_come_behind_ours_and_make_new_pods() {
        let shared = Shared {
            namespace: "shop",
            owners: &[],
        };
        let with = |env: &[(&str, &str)]| {
            let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
            let settings = Settings {
                env: env.iter().map(own).collect(),
                ..settings()
            };
            serde_json::to_value(build(&shared, &settings, &[])).unwrap()
        };
        let (without, with) = (
            with(&[]),
            with(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4318")]),
        );
        let last = with.pointer("/spec/template/spec/containers/0/env/4").unwrap();
        assert_eq!(
            *last,
            json!({"name": "OTEL_EXPORTER_OTLP_ENDPOINT", "value": "http://c:4318"})
        );
        let hash = |deployment: &Value| deployment["metadata"]["annotations"][TEMPLATE_HASH].clone();
        assert_ne!(hash(&without), hash(&with));
    }

    #[test]
    fn pods_pass_pod_security_restricted() {
        let deployment = built(&[]);
        let pod = &deployment["spec"]["template"]["spec"];
        assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
        assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
        let container = &pod["containers"][0]["securityContext"];
        assert_eq!(container["allowPrivilegeEscalation"], false);
        assert_eq!(container["capabilities"], json!({"drop": ["ALL"]}));
    }

    #[test]
    fn keys_are_optional_mounts_by_provider() {
        let deployment = built(&[credential("main"), credential("spare")]);
        let pod = &deployment["spec"]["template"]["spec"];
        assert_eq!(
            pod["volumes"][0],
            json!({"name": "key-main", "secret": {
                "secretName": "keys", "optional": true, "defaultMode": 0o440, "items": [{"key": "main", "path": "api-key"}],
            }})
        );
        assert_eq!(
            pod["containers"][0]["volumeMounts"][1],
            json!({"name": "key-spare", "mountPath": "/etc/flotilla/credentials/spare", "readOnly": true})
        );
    }

    #[test]
    fn volume_names_are_labels_and_differ() {
        let long = |end: char| format!("{}{end}", "a".repeat(62));
        for (provider, expected) in [("main", "key-main"), ("a-59-long", "key-a-59-long")] {
            assert_eq!(volume_name(provider), expected);
        }
        let (first, second) = (volume_name(&long('a')), volume_name(&long('b')));
        assert_eq!(first.len(), 63);
        assert_ne!(first, second);
        let dashes = volume_name(&format!("{}{}", "b".repeat(41), "-c".repeat(11)));
        assert!(dashes.len() <= 63 && !dashes.contains("--"), "{dashes}");
    }

    #[test]
    fn the_marks_tell_credentials_from_all_else() {
        let marks = |deployment: &Value| {
            let annotations = &deployment["metadata"]["annotations"];
            (
                annotations[TEMPLATE_HASH].clone(),
                annotations[CREDENTIALS_HASH].clone(),
            )
        };
        let (template, keys) = marks(&built(&[credential("main")]));
        let (other_template, other_keys) = marks(&built(&[credential("main"), credential("spare")]));
        assert!(template != other_template && keys != other_keys);
        let newer = Settings {
            image: "flotilla.dev/gateway:next".into(),
            ..settings()
        };
        let upgraded = build(
            &Shared {
                namespace: "shop",
                owners: &[],
            },
            &newer,
            &[credential("main")],
        );
        let (next_template, next_keys) = marks(&serde_json::to_value(upgraded).unwrap());
        assert!(next_template != template && next_keys == keys);
        let scaled = Settings {
            replicas: 5,
            ..settings()
        };
        let scaled = build(
            &Shared {
                namespace: "shop",
                owners: &[],
            },
            &scaled,
            &[credential("main")],
        );
        assert_eq!(
            marks(&serde_json::to_value(scaled).unwrap()),
            (template, keys),
            "scaling replaces no pod"
        );
    }
}
