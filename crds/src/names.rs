//! Names that more than one part must agree on: labels, annotations, ports, paths and environment variables.

use crate::agent_pool::Model;
use crate::route;

/// `app.kubernetes.io/managed-by` label; on every object the operator makes its value is [`MANAGER`].
pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// Value of [`MANAGED_BY`], prefix of every field manager (`flotilla/<kind>`), and the category of the kinds.
pub const MANAGER: &str = "flotilla";
/// `app.kubernetes.io/name` label.
pub const APP_NAME: &str = "app.kubernetes.io/name";
/// Label with the pool's name on everything that belongs to a pool.
pub const POOL: &str = "flotilla.dev/pool";
/// Label with the full revision name (`<pool>-<hash>`) on everything that belongs to one revision.
pub const REVISION: &str = "flotilla.dev/revision";
/// Label on a revision's Service, copied to its EndpointSlices: `agent.concurrency` of that revision.
pub const CONCURRENCY: &str = "flotilla.dev/concurrency";
/// `appProtocol` of a Service's port: HTTP/2 without TLS, with prior knowledge.
pub const H2C: &str = "kubernetes.io/h2c";
/// Label on a revision's Service, copied to its EndpointSlices: `agent.egressIdentity` of that revision, when it is `Token`.
pub const EGRESS_IDENTITY: &str = "flotilla.dev/egress-identity";
/// Label with the LoadTest's name on its Job, pods, ConfigMaps and Service.
pub const LOAD_TEST: &str = "flotilla.dev/loadtest";
/// Label on a ControllerRevision: its standing, one of `candidate`, `stable`, `verified`, `rejected`.
pub const REVISION_STATE: &str = "flotilla.dev/revision-state";
/// Annotation on a ControllerRevision: why it was rejected, `<reason>: <message>`.
pub const REJECTED_REASON: &str = "flotilla.dev/rejected-reason";
/// Annotation on an AgentPool: with the value `true` nothing is released, and status tells what a release would do.
pub const DRY_RUN: &str = "flotilla.dev/dry-run";
/// Label on a snapshot ConfigMap: the content's hash.
pub const CONTENT_HASH: &str = "flotilla.dev/content-hash";

/// Label on Jobs and LoadTests that test a revision, and on the Jobs' pods: the pool's name. No Service selects by it.
pub const TESTED_POOL: &str = "flotilla.dev/tested-pool";
/// Annotation on them: the release they belong to, `<revision>/<attempt>`.
pub const TESTED_RELEASE: &str = "flotilla.dev/tested-release";
/// Annotation on them: the test's name.
pub const TEST: &str = "flotilla.dev/test";

/// Name of the gateway's Deployment, Service, ServiceAccount, RoleBinding and PodDisruptionBudget in each namespace.
pub const GATEWAY: &str = "flotilla-gateway";
/// Name of the Lease that says which gateway replica deals out quotas, and of the ConfigMap with its records.
pub const QUOTA: &str = "flotilla-quota";
/// Name of the main container in agent pods.
pub const AGENT_CONTAINER: &str = "agent";
/// Name of the container in gateway pods.
pub const GATEWAY_CONTAINER: &str = "gateway";
/// Name of the container in load generator pods.
pub const WORKER_CONTAINER: &str = "worker";

/// Shared ingress port of the gateway: `/pools/<pool>/…` and known hosts.
pub const GATEWAY_INGRESS_PORT: u16 = 8080;
/// Egress port of the gateway: `/providers/<provider>/v1/…`, for agent pods of the namespace only.
pub const GATEWAY_EGRESS_PORT: u16 = 8081;
/// Admin port of the gateway: `/metrics`, `/stats`, `/healthz`, `/readyz`. Reached by pod address, never by a Service.
pub const GATEWAY_ADMIN_PORT: u16 = 9090;
/// First of the ports given to pools (`status.gatewayPort`).
pub const POOL_PORT_MIN: i32 = 20000;
/// Last of the ports given to pools.
pub const POOL_PORT_MAX: i32 = 29999;
/// Port of a LoadTest's coordinator (worker 0).
pub const COORDINATOR_PORT: u16 = 9091;

/// Folder in the gateway with one folder per ModelProvider, each holding [`API_KEY_FILE`].
pub const CREDENTIALS_DIR: &str = "/etc/flotilla/credentials";
/// File with a provider's key inside its folder of [`CREDENTIALS_DIR`].
pub const API_KEY_FILE: &str = "api-key";
/// Name of the Secret in each namespace with `username` and `password` for the Redis in which quotas are shared.
pub const QUOTA_REDIS_SECRET: &str = "flotilla-quota-redis";
/// Folder in the gateway where that Secret is.
pub const QUOTA_REDIS_DIR: &str = "/etc/flotilla/quota-redis";
/// Variable in gateway pods with that Redis's address.
pub const QUOTA_REDIS_VARIABLE: &str = "FLOTILLA_QUOTA_REDIS";
/// Audience of the tokens by which agent pods prove themselves to the gateway's egress.
pub const TOKEN_AUDIENCE: &str = GATEWAY;
/// Folder in agent pods with [`TOKEN_FILE`], where `agent.egressIdentity` is `Token`.
pub const TOKEN_DIR: &str = "/var/run/secrets/flotilla.dev/egress";
/// File with the pod's token inside [`TOKEN_DIR`].
pub const TOKEN_FILE: &str = "token";
/// Variable in agent pods that holds the path of that file.
pub const TOKEN_FILE_VARIABLE: &str = "FLOTILLA_EGRESS_TOKEN_FILE";
/// Default mount path of an agent's prompt.
pub const PROMPT_PATH: &str = "/etc/agent/prompt/prompt.md";
/// Where a worker finds its plan.
pub const PLAN_PATH: &str = "/etc/flotilla/plan/plan.json";
/// Key of the plan in the ConfigMap `<loadtest>-plan`.
pub const PLAN_KEY: &str = "plan.json";
/// Key of an A2A message's metadata that carries token usage.
pub const USAGE_METADATA: &str = "flotilla.dev/usage";

/// Longest name of a pool: `<pool>-<10 characters>` stays a DNS-1035 label with room for a pod's suffix.
pub const POOL_NAME_MAX: usize = 45;

/// Base URL, without a trailing slash, that agents of `namespace` use for a model.
pub fn egress_url(namespace: &str, model: &Model) -> String {
    let path = route::path_of(model);
    format!("http://{GATEWAY}.{namespace}.svc:{GATEWAY_EGRESS_PORT}{path}")
}

/// The suffix of an agent's environment variables for the model entry `name`: upper case, `-` as `_`.
pub fn model_variable(name: &str) -> String {
    format!("FLOTILLA_MODEL_{}", name.to_ascii_uppercase().replace('-', "_"))
}
