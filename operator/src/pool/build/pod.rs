//! The pod template of a revision.
//!
//! Pods pass Pod Security `restricted` as they are. The agent container sleeps 5 s before it is told to stop, so that
//! gateways have forgotten its endpoint before its socket closes, and has the request timeout to finish what it has.

use std::collections::BTreeSet;

use flotilla_core::revision::Content;
use flotilla_crds::agent_pool::{Agent, EgressIdentity, Model, Probes};
use flotilla_crds::{AgentPool, names};
use k8s_openapi::api::core::v1::{
    Capabilities, ConfigMapVolumeSource, Container, ContainerPort, EnvVar, EnvVarSource, Lifecycle,
    LifecycleHandler, ObjectFieldSelector, Pod, PodSecurityContext, PodSpec, PodTemplateSpec, Probe,
    ProjectedVolumeSource, SeccompProfile, SecurityContext, ServiceAccountTokenProjection, SleepAction,
    TCPSocketAction, Volume, VolumeMount, VolumeProjection,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt as _;

use super::{labels, overlay, service_account, snapshot};

/// Source of the prompt in [`Content::sources`], and the file's name inside its snapshot.
pub const PROMPT: &str = "prompt";
/// The user that distroless images call `nonroot`.
const USER: i64 = 65_532;
/// Seconds between the end of a pod's endpoint and the signal to its agent.
const PRE_STOP_SECONDS: i64 = 5;
/// Seconds a pod gets beyond the request timeout: the sleep above, and time to end by itself.
const GRACE_MARGIN_SECONDS: i64 = 15;
/// Life of an agent's token in seconds; kubelet renews it after four fifths of that.
const TOKEN_SECONDS: i64 = 3600;
/// Longest grace. A node drain waits for it, so an hour is where patience ends, whatever the request timeout.
const MAX_GRACE_SECONDS: i64 = 3600;

/// The source name of an entry of `files`.
pub fn file_source(name: &str) -> String {
    format!("file-{name}")
}

/// The template of a revision's pods.
pub fn template(
    pool: &AgentPool,
    revision: &str,
    content: &Content,
    over: PodTemplateSpec,
) -> PodTemplateSpec {
    let pool_name = pool.name_any();
    let agent = &content.agent;
    let (volumes, mounts) = mounted(&pool_name, content);
    let ours = PodTemplateSpec {
        metadata: Some(ObjectMeta {
            annotations: Some(
                [(
                    "kubectl.kubernetes.io/default-container".to_owned(),
                    names::AGENT_CONTAINER.to_owned(),
                )]
                .into(),
            ),
            ..ObjectMeta::default()
        }),
        spec: Some(PodSpec {
            containers: vec![container(pool, revision, agent, mounts)],
            volumes: (!volumes.is_empty()).then_some(volumes),
            service_account_name: Some(
                agent
                    .service_account_name
                    .clone()
                    .unwrap_or_else(|| service_account::name(&pool_name)),
            ),
            // Variables of every Service of the namespace: a busy namespace has thousands.
            enable_service_links: Some(false),
            termination_grace_period_seconds: Some(grace(pool)),
            security_context: Some(PodSecurityContext {
                run_as_non_root: Some(true),
                run_as_user: Some(USER),
                run_as_group: Some(USER),
                fs_group: Some(USER),
                seccomp_profile: Some(SeccompProfile {
                    type_: "RuntimeDefault".into(),
                    ..SeccompProfile::default()
                }),
                ..PodSecurityContext::default()
            }),
            ..PodSpec::default()
        }),
    };
    let mut merged = overlay::merge(ours, over);
    // Selectors, PodDisruptionBudget and gateways go by these.
    let metadata = merged.metadata.get_or_insert_default();
    metadata
        .labels
        .get_or_insert_default()
        .extend(labels(&pool_name, Some(revision)));
    merged
}

/// A pod of the template, for a dry run: what the ReplicaSet controller would create. Our own ServiceAccount need not
/// exist yet (it is made once the template is known to be good), so the namespace's `default` stands in for it.
pub fn sample(pool: &AgentPool, revision: &str, mut template: PodTemplateSpec) -> Pod {
    let metadata = template.metadata.take().unwrap_or_default();
    if let Some(spec) = &mut template.spec
        && spec.service_account_name.as_deref() == Some(service_account::name(&pool.name_any()).as_str())
    {
        spec.service_account_name = None;
    }
    Pod {
        metadata: ObjectMeta {
            name: Some(format!("{revision}-check")),
            namespace: pool.namespace(),
            owner_references: Some(vec![crate::runtime::owned_by(pool)]),
            ..metadata
        },
        spec: template.spec,
        ..Pod::default()
    }
}

fn grace(pool: &AgentPool) -> i64 {
    (i64::from(pool.spec.traffic.request_timeout_seconds) + GRACE_MARGIN_SECONDS).min(MAX_GRACE_SECONDS)
}

fn container(pool: &AgentPool, revision: &str, agent: &Agent, mounts: Vec<VolumeMount>) -> Container {
    let probes = agent.probes.clone().unwrap_or_default();
    let Probes {
        startup,
        readiness,
        liveness,
    } = probes;
    let complete = |probe| complete_probe(probe, agent.port);
    Container {
        name: names::AGENT_CONTAINER.into(),
        image: Some(agent.image.clone()),
        image_pull_policy: Some(agent.image_pull_policy.as_str().into()),
        command: (!agent.command.is_empty()).then(|| agent.command.clone()),
        args: (!agent.args.is_empty()).then(|| agent.args.clone()),
        ports: Some(vec![ContainerPort {
            name: Some("http".into()),
            container_port: agent.port,
            protocol: Some("TCP".into()),
            ..ContainerPort::default()
        }]),
        env: Some(environment(pool, revision, agent)),
        env_from: (!agent.env_from.is_empty()).then(|| agent.env_from.clone()),
        resources: agent.resources.clone(),
        volume_mounts: (!mounts.is_empty()).then_some(mounts),
        startup_probe: startup.map(complete),
        readiness_probe: Some(readiness.map_or_else(|| default_readiness(agent.port), complete)),
        liveness_probe: liveness.map(complete),
        lifecycle: Some(Lifecycle {
            pre_stop: Some(LifecycleHandler {
                sleep: Some(SleepAction {
                    seconds: PRE_STOP_SECONDS,
                }),
                ..LifecycleHandler::default()
            }),
            ..Lifecycle::default()
        }),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            capabilities: Some(Capabilities {
                drop: Some(vec!["ALL".into()]),
                ..Capabilities::default()
            }),
            ..SecurityContext::default()
        }),
        // A crashed agent's last words reach the pool's conditions.
        termination_message_policy: Some("FallbackToLogsOnError".into()),
        ..Container::default()
    }
}

/// What the agent is told, then what the user adds. A name the user gives wins over ours.
fn environment(pool: &AgentPool, revision: &str, agent: &Agent) -> Vec<EnvVar> {
    let (pool_name, namespace) = (pool.name_any(), pool.namespace().unwrap_or_default());
    let plain = |name: &str, value: String| EnvVar {
        name: name.into(),
        value: Some(value),
        ..EnvVar::default()
    };
    let field = |name: &str, path: &str| EnvVar {
        name: name.into(),
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector {
                field_path: path.into(),
                api_version: Some("v1".into()),
            }),
            ..EnvVarSource::default()
        }),
        ..EnvVar::default()
    };
    let front = pool.spec.front_service(&pool_name);
    let mut ours = vec![
        plain("PORT", agent.port.to_string()),
        plain("FLOTILLA_POOL", pool_name.clone()),
        plain("FLOTILLA_REVISION", revision.to_owned()),
        field("POD_NAME", "metadata.name"),
        field("POD_NAMESPACE", "metadata.namespace"),
        plain("FLOTILLA_PUBLIC_URL", format!("http://{front}.{namespace}.svc")),
    ];
    if let Some(model) = main_model(agent) {
        ours.push(plain("OPENAI_BASE_URL", names::egress_url(&namespace, model)));
        ours.push(plain("OPENAI_API_KEY", names::MANAGER.to_owned()));
    }
    for model in &agent.models {
        let variable = names::model_variable(&model.name);
        let parameters = serde_json::to_string(&model.parameters).unwrap_or_default();
        ours.push(plain(&variable, model.model.clone()));
        ours.push(plain(
            &format!("{variable}_BASE_URL"),
            names::egress_url(&namespace, model),
        ));
        ours.push(plain(&format!("{variable}_PARAMETERS"), parameters));
    }
    if let Some(prompt) = &agent.prompt {
        ours.push(plain("FLOTILLA_PROMPT_FILE", prompt.mount_path.clone()));
    }
    if agent.egress_identity == EgressIdentity::Token {
        let path = format!("{}/{}", names::TOKEN_DIR, names::TOKEN_FILE);
        ours.push(plain(names::TOKEN_FILE_VARIABLE, path));
    }
    let theirs: BTreeSet<&str> = agent.env.iter().map(|variable| variable.name.as_str()).collect();
    ours.retain(|variable| !theirs.contains(variable.name.as_str()));
    ours.extend(agent.env.iter().cloned());
    ours
}

/// The entry named `default`, else the first.
fn main_model(agent: &Agent) -> Option<&Model> {
    agent
        .models
        .iter()
        .find(|model| model.name == "default")
        .or_else(|| agent.models.first())
}

/// Volumes of the snapshots and where they are mounted.
fn mounted(pool: &str, content: &Content) -> (Vec<Volume>, Vec<VolumeMount>) {
    let volume = |name: &str, source: &str| {
        let hash = content
            .sources
            .get(source)
            .map(String::as_str)
            .unwrap_or_default();
        Volume {
            name: name.into(),
            config_map: Some(ConfigMapVolumeSource {
                name: snapshot::name(pool, source, hash),
                ..ConfigMapVolumeSource::default()
            }),
            ..Volume::default()
        }
    };
    let (mut volumes, mut mounts) = (Vec::new(), Vec::new());
    if let Some(prompt) = &content.agent.prompt {
        volumes.push(volume("flotilla-prompt", PROMPT));
        mounts.push(VolumeMount {
            name: "flotilla-prompt".into(),
            mount_path: prompt.mount_path.clone(),
            // One file, so that its neighbours in the image stay. The snapshot never changes, so nothing is missed.
            sub_path: Some(PROMPT.into()),
            read_only: Some(true),
            ..VolumeMount::default()
        });
    }
    for file in &content.agent.files {
        let name = format!("flotilla-file-{}", file.name);
        volumes.push(volume(&name, &file_source(&file.name)));
        mounts.push(VolumeMount {
            name,
            mount_path: file.mount_path.clone(),
            read_only: Some(true),
            ..VolumeMount::default()
        });
    }
    if content.agent.egress_identity == EgressIdentity::Token {
        let name = "flotilla-egress-token";
        volumes.push(token(name));
        mounts.push(VolumeMount {
            name: name.into(),
            mount_path: names::TOKEN_DIR.into(),
            read_only: Some(true),
            ..VolumeMount::default()
        });
    }
    (volumes, mounts)
}

/// A token of the pod's own ServiceAccount, good for nothing but the gateway's egress.
fn token(name: &str) -> Volume {
    Volume {
        name: name.into(),
        projected: Some(ProjectedVolumeSource {
            sources: Some(vec![VolumeProjection {
                service_account_token: Some(ServiceAccountTokenProjection {
                    audience: Some(names::TOKEN_AUDIENCE.into()),
                    expiration_seconds: Some(TOKEN_SECONDS),
                    path: names::TOKEN_FILE.into(),
                }),
                ..VolumeProjection::default()
            }]),
            ..ProjectedVolumeSource::default()
        }),
        ..Volume::default()
    }
}

/// Readiness by a TCP connect, often enough that a pool is ready soon after its agents listen.
fn default_readiness(port: i32) -> Probe {
    Probe {
        period_seconds: Some(2),
        timeout_seconds: Some(2),
        ..complete_probe(Probe::default(), port)
    }
}

/// A port that is left out is the agent's; a probe without a question is a TCP connect.
fn complete_probe(mut probe: Probe, port: i32) -> Probe {
    let is_missing = |port: &IntOrString| match port {
        IntOrString::Int(port) => *port == 0,
        IntOrString::String(name) => name.is_empty(),
    };
    if let Some(http) = &mut probe.http_get
        && is_missing(&http.port)
    {
        http.port = IntOrString::Int(port);
    }
    if let Some(tcp) = &mut probe.tcp_socket
        && is_missing(&tcp.port)
    {
        tcp.port = IntOrString::Int(port);
    }
    if let Some(grpc) = &mut probe.grpc
        && grpc.port == 0
    {
        grpc.port = port;
    }
    if probe.http_get.is_none() && probe.tcp_socket.is_none() && probe.grpc.is_none() && probe.exec.is_none()
    {
        probe.tcp_socket = Some(TCPSocketAction {
            port: IntOrString::Int(port),
            ..TCPSocketAction::default()
        });
    }
    probe
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{content, pool};
    use super::*;
    use serde_json::{Value, json};

    fn built(spec: Value, sources: &[(&str, &str)]) -> PodTemplateSpec {
        let pool = pool(spec);
        let overlay = pool
            .spec
            .agent
            .pod_template
            .as_ref()
            .map(|value| overlay::decode(value).unwrap());
        template(
            &pool,
            "support-1",
            &content(&pool, sources),
            overlay.unwrap_or_default(),
        )
    }

    fn agent(template: &PodTemplateSpec) -> &Container {
        template
            .spec
            .as_ref()
            .unwrap()
            .containers
            .iter()
            .find(|container| container.name == "agent")
            .unwrap()
    }

    fn variable(template: &PodTemplateSpec, name: &str) -> Option<String> {
        let env = agent(template).env.as_ref().unwrap();
        let found: Vec<_> = env.iter().filter(|variable| variable.name == name).collect();
        assert!(found.len() <= 1, "{name} is given twice");
        found.first().and_then(|variable| variable.value.clone())
    }

    #[test]
    fn pods_are_restricted_and_stop_gently() {
        let template = built(json!({}), &[]);
        let spec = template.spec.as_ref().unwrap();
        let security = spec.security_context.as_ref().unwrap();
        assert_eq!(
            (security.run_as_non_root, security.run_as_user),
            (Some(true), Some(65_532))
        );
        assert_eq!(security.seccomp_profile.as_ref().unwrap().type_, "RuntimeDefault");
        let container = agent(&template);
        let security = container.security_context.as_ref().unwrap();
        assert_eq!(security.allow_privilege_escalation, Some(false));
        assert_eq!(
            security.capabilities.as_ref().unwrap().drop,
            Some(vec!["ALL".to_owned()])
        );
        let stop = container.lifecycle.as_ref().unwrap().pre_stop.as_ref().unwrap();
        assert_eq!(stop.sleep, Some(SleepAction { seconds: 5 }));
        assert_eq!(spec.service_account_name.as_deref(), Some("support-agent"));
    }

    #[test]
    fn a_token_is_mounted_where_it_is_asked_for() {
        let without = built(json!({}), &[]);
        assert_eq!(variable(&without, "FLOTILLA_EGRESS_TOKEN_FILE"), None);
        assert!(without.spec.as_ref().unwrap().volumes.is_none());
        let template = built(json!({"agent": {"egressIdentity": "Token"}}), &[]);
        let path = variable(&template, "FLOTILLA_EGRESS_TOKEN_FILE");
        assert_eq!(
            path.as_deref(),
            Some("/var/run/secrets/flotilla.dev/egress/token")
        );
        let volume = &template.spec.as_ref().unwrap().volumes.as_ref().unwrap()[0];
        assert_eq!(
            serde_json::to_value(volume).unwrap(),
            json!({"name": "flotilla-egress-token", "projected": {"sources": [
                {"serviceAccountToken": {"audience": "flotilla-gateway", "expirationSeconds": 3600, "path": "token"}}
            ]}})
        );
        let mount = &agent(&template).volume_mounts.as_ref().unwrap()[0];
        assert_eq!(
            (mount.mount_path.as_str(), mount.read_only),
            ("/var/run/secrets/flotilla.dev/egress", Some(true))
        );
    }

    #[test]
    fn the_grace_follows_the_request_timeout_up_to_an_hour() {
        for (timeout, grace) in [(120, 135), (1, 16), (86_400, 3600)] {
            let template = built(json!({"traffic": {"requestTimeoutSeconds": timeout}}), &[]);
            assert_eq!(
                template.spec.unwrap().termination_grace_period_seconds,
                Some(grace),
                "{timeout}"
            );
        }
    }

    #[test]
    fn the_environment_names_models_and_lets_the_user_win() {
        let template = built(
            json!({"agent": {
                "models": [
                    {"name": "fast-one", "providerRef": {"name": "other"}, "model": "m-1", "parameters": {"t": "0.2"}},
                    {"name": "default", "providerRef": {"name": "main"}, "model": "m-2",
                     "fallbacks": [{"providerRef": {"name": "other"}, "model": "m/3"}]},
                ],
                "env": [{"name": "PORT", "value": "9"}, {"name": "MINE", "value": "x"}],
                "prompt": {"text": "hi"},
            }}),
            &[("prompt", "aa")],
        );
        for (name, value) in [
            ("PORT", "9"),
            ("MINE", "x"),
            ("FLOTILLA_POOL", "support"),
            ("FLOTILLA_REVISION", "support-1"),
            ("FLOTILLA_PUBLIC_URL", "http://support.shop.svc"),
            (
                "OPENAI_BASE_URL",
                "http://flotilla-gateway.shop.svc:8081/providers/main/for/m-2/else/other/m%2F3/v1",
            ),
            ("OPENAI_API_KEY", "flotilla"),
            ("FLOTILLA_MODEL_FAST_ONE", "m-1"),
            (
                "FLOTILLA_MODEL_FAST_ONE_BASE_URL",
                "http://flotilla-gateway.shop.svc:8081/providers/other/v1",
            ),
            ("FLOTILLA_MODEL_FAST_ONE_PARAMETERS", r#"{"t":"0.2"}"#),
            ("FLOTILLA_MODEL_DEFAULT", "m-2"),
            ("FLOTILLA_PROMPT_FILE", "/etc/agent/prompt/prompt.md"),
        ] {
            assert_eq!(variable(&template, name).as_deref(), Some(value), "{name}");
        }
        assert_eq!(variable(&built(json!({}), &[]), "OPENAI_BASE_URL"), None);
    }

    #[test]
    fn pods_mount_snapshots_never_sources() {
        let template = built(
            json!({"agent": {
                "prompt": {"configMapKeyRef": {"name": "source", "key": "p.md"}},
                "files": [{"name": "tools", "configMapRef": {"name": "tools-source"}, "mountPath": "/etc/agent/tools"}],
            }}),
            &[("prompt", "aa"), ("file-tools", "bb")],
        );
        let spec = template.spec.as_ref().unwrap();
        let names: Vec<_> = spec
            .volumes
            .iter()
            .flatten()
            .map(|v| v.config_map.as_ref().unwrap().name.as_str())
            .collect();
        assert_eq!(names, ["support-prompt-aa", "support-file-tools-bb"]);
        let mounts = agent(&template).volume_mounts.as_ref().unwrap();
        assert_eq!(mounts[0].sub_path.as_deref(), Some("prompt"));
        assert_eq!(mounts[1].mount_path, "/etc/agent/tools");
    }

    #[test]
    fn probes_without_port_ask_the_agent() {
        let template = built(
            json!({"agent": {"port": 9000, "probes": {
                "readiness": {"httpGet": {"path": "/healthz"}},
                "liveness": {"periodSeconds": 9},
                "startup": {"httpGet": {"path": "/", "port": 1234}},
            }}}),
            &[],
        );
        let container = agent(&template);
        let port = |probe: &Option<Probe>| {
            let probe = probe.as_ref().unwrap();
            let http = probe.http_get.as_ref().map(|http| http.port.clone());
            http.or_else(|| probe.tcp_socket.as_ref().map(|tcp| tcp.port.clone()))
                .unwrap()
        };
        assert_eq!(port(&container.readiness_probe), IntOrString::Int(9000));
        assert_eq!(port(&container.liveness_probe), IntOrString::Int(9000));
        assert_eq!(port(&container.startup_probe), IntOrString::Int(1234));
        assert_eq!(
            port(&agent(&built(json!({}), &[])).readiness_probe),
            IntOrString::Int(8080)
        );
    }

    #[test]
    fn the_overlay_merges_by_name() {
        let template = built(
            json!({"agent": {"podTemplate": {
                "metadata": {"labels": {"team": "a"}},
                "spec": {
                    "containers": [
                        {"name": "agent", "env": [{"name": "EXTRA", "value": "1"}]},
                        {"name": "side", "image": "side:1"},
                    ],
                    "securityContext": {"runAsUser": 1000},
                },
            }}}),
            &[],
        );
        let spec = template.spec.as_ref().unwrap();
        assert_eq!(spec.containers.len(), 2);
        assert_eq!(agent(&template).image.as_deref(), Some("agent:1"));
        assert_eq!(variable(&template, "EXTRA").as_deref(), Some("1"));
        assert_eq!(variable(&template, "PORT").as_deref(), Some("8080"));
        let security = spec.security_context.as_ref().unwrap();
        assert_eq!(
            (security.run_as_user, security.run_as_non_root),
            (Some(1000), Some(true))
        );
        let labels = template.metadata.unwrap().labels.unwrap();
        assert_eq!(
            (labels["team"].as_str(), labels[names::POOL].as_str()),
            ("a", "support")
        );
    }
}
