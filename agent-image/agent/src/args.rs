//! The command line and the environment that the operator sets.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;

use crate::config::{Config, ModelSettings};
use crate::prompt::DEFAULT_PROMPT_FILE;
use crate::session::SessionLimits;
use crate::task_store::TaskLimits;

/// The reference agent: A2A 1.0 (POST /), plain chat (POST /chat) and OpenAI chat (POST /v1/chat/completions) on one port.
///
/// Liveness is GET /healthz, readiness GET /readyz, the agent card GET /.well-known/agent-card.json. The model is the one
/// that FLOTILLA_MODEL names, else FLOTILLA_MODEL_DEFAULT, else the only FLOTILLA_MODEL_<NAME>.
#[derive(Debug, Parser)]
#[command(name = "flotilla-agent", version)]
pub struct Args {
    /// Port to listen on
    #[arg(long, env = "PORT", default_value_t = 8080)]
    pub port: u16,

    /// Address to listen on
    #[arg(long, env = "FLOTILLA_AGENT_ADDRESS", default_value_t = IpAddr::V4(Ipv4Addr::UNSPECIFIED))]
    pub address: IpAddr,

    /// The agent's public address, for its card [default: the address it listens on]
    #[arg(long, env = "FLOTILLA_PUBLIC_URL", value_name = "URL")]
    pub public_url: Option<String>,

    /// The name in the agent card
    #[arg(long, env = "FLOTILLA_POOL", default_value = "flotilla-agent")]
    pub name: String,

    /// The version in the agent card
    #[arg(long, env = "FLOTILLA_REVISION", default_value = env!("CARGO_PKG_VERSION"))]
    pub revision: String,

    /// Base URL of the model provider, ending in /v1
    #[arg(long, env = "OPENAI_BASE_URL", value_name = "URL")]
    pub base_url: Option<String>,

    /// API key of the model provider; behind the gateway a placeholder
    #[arg(
        long,
        env = "OPENAI_API_KEY",
        default_value = "flotilla",
        hide_env_values = true
    )]
    pub api_key: String,

    /// File with a token that is sent in the place of the API key, read again for each request
    #[arg(long, env = "FLOTILLA_EGRESS_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,

    /// Name of the model
    #[arg(long, env = "FLOTILLA_MODEL")]
    pub model: Option<String>,

    /// JSON object that goes into every request to the model; its numbers may be strings
    #[arg(long, env = "FLOTILLA_MODEL_PARAMETERS", value_name = "JSON")]
    pub parameters: Option<String>,

    /// The prompt; see the README for its placeholders and directives
    #[arg(long, env = "FLOTILLA_PROMPT_FILE", default_value = DEFAULT_PROMPT_FILE, value_name = "FILE")]
    pub prompt_file: PathBuf,

    /// Folder of files that complete the prompt
    #[arg(
        long,
        env = "FLOTILLA_BEHAVIOUR_DIR",
        default_value = "/etc/agent/tools",
        value_name = "FOLDER"
    )]
    pub behaviour_dir: PathBuf,

    /// Seconds within which the model's reply must be whole
    #[arg(
        long,
        env = "FLOTILLA_AGENT_MODEL_TIMEOUT_SECONDS",
        default_value_t = 120,
        value_name = "SECONDS"
    )]
    pub model_timeout_seconds: u64,

    /// Seconds after which a resting session is forgotten
    #[arg(
        long,
        env = "FLOTILLA_AGENT_SESSION_TTL_SECONDS",
        default_value_t = 1_800,
        value_name = "SECONDS"
    )]
    pub session_ttl_seconds: u64,

    /// Sessions kept at most; beyond, the least recently used is forgotten
    #[arg(
        long,
        env = "FLOTILLA_AGENT_MAX_SESSIONS",
        default_value_t = 2_000,
        value_name = "COUNT"
    )]
    pub max_sessions: usize,

    /// Bytes of history kept of each session; beyond, the oldest exchange is forgotten
    #[arg(long, env = "FLOTILLA_AGENT_SESSION_BYTES", default_value_t = 32 << 10, value_name = "BYTES")]
    pub session_bytes: usize,

    /// Seconds for which an ended A2A task is kept
    #[arg(
        long,
        env = "FLOTILLA_AGENT_TASK_TTL_SECONDS",
        default_value_t = 600,
        value_name = "SECONDS"
    )]
    pub task_ttl_seconds: u64,

    /// A2A tasks kept at most
    #[arg(
        long,
        env = "FLOTILLA_AGENT_MAX_TASKS",
        default_value_t = 1_000,
        value_name = "COUNT"
    )]
    pub max_tasks: usize,

    /// Bytes of A2A tasks at which ended ones are forgotten early
    #[arg(long, env = "FLOTILLA_AGENT_TASK_BYTES", default_value_t = 64 << 20, value_name = "BYTES")]
    pub task_bytes: usize,

    /// Milliseconds for which a streamed A2A task may have no reader before it is cancelled
    #[arg(
        long,
        env = "FLOTILLA_AGENT_ORPHAN_GRACE_MS",
        default_value_t = 5_000,
        value_name = "MILLISECONDS"
    )]
    pub orphan_grace_ms: u64,

    /// Bytes of a request's body at most
    #[arg(long, env = "FLOTILLA_AGENT_MAX_BODY_BYTES", default_value_t = 1 << 20, value_name = "BYTES")]
    pub max_body_bytes: usize,

    /// Requests at work at most; beyond, 503
    #[arg(
        long,
        env = "FLOTILLA_AGENT_MAX_IN_FLIGHT",
        default_value_t = 512,
        value_name = "COUNT"
    )]
    pub max_in_flight: usize,

    /// Milliseconds for which requests are still accepted after SIGTERM
    #[arg(
        long,
        env = "FLOTILLA_AGENT_DRAIN_MIN_MS",
        default_value_t = 1_000,
        value_name = "MILLISECONDS"
    )]
    pub drain_min_ms: u64,

    /// Seconds that requests in flight may take after SIGTERM
    #[arg(
        long,
        env = "FLOTILLA_AGENT_DRAIN_TIMEOUT_SECONDS",
        default_value_t = 25,
        value_name = "SECONDS"
    )]
    pub drain_timeout_seconds: u64,

    /// Which logs: error, warn, info, debug, or tracing's filter syntax
    #[arg(long, env = "FLOTILLA_LOG", default_value = "info", value_name = "FILTER")]
    pub log: String,
}

impl Args {
    /// The configuration; `environment` is searched for the operator's `FLOTILLA_MODEL_…`.
    pub fn into_config(self, environment: impl IntoIterator<Item = (String, String)>) -> Config {
        let environment: BTreeMap<String, String> = environment.into_iter().collect();
        let model = model_settings(
            ModelSettings {
                name: self.model,
                base_url: self.base_url,
                api_key: self.api_key,
                token_file: self.token_file,
                parameters: self.parameters,
            },
            &environment,
        );
        Config {
            listen: SocketAddr::new(self.address, self.port),
            public_url: self.public_url.filter(|url| !url.is_empty()),
            name: self.name,
            version: self.revision,
            model,
            prompt_file: self.prompt_file,
            behaviour_dir: self.behaviour_dir,
            model_timeout: Duration::from_secs(self.model_timeout_seconds),
            sessions: SessionLimits {
                ttl: Duration::from_secs(self.session_ttl_seconds),
                count: self.max_sessions,
                history_bytes: self.session_bytes,
            },
            tasks: TaskLimits {
                ttl: Duration::from_secs(self.task_ttl_seconds),
                count: self.max_tasks,
                bytes: self.task_bytes,
            },
            orphan_grace: Duration::from_millis(self.orphan_grace_ms),
            max_body_bytes: self.max_body_bytes,
            max_in_flight: self.max_in_flight,
            drain_minimum: Duration::from_millis(self.drain_min_ms),
            drain_timeout: Duration::from_secs(self.drain_timeout_seconds),
        }
    }
}

const PREFIX: &str = "FLOTILLA_MODEL_";
const BASE_URL: &str = "_BASE_URL";
const PARAMETERS: &str = "_PARAMETERS";

/// Completes `given` from the operator's variables. With several models and none called `default`, none is chosen: the
/// agent says so at readiness instead of guessing.
fn model_settings(given: ModelSettings, environment: &BTreeMap<String, String>) -> ModelSettings {
    if given.name.is_some() {
        return given;
    }
    let names: Vec<&str> = environment
        .keys()
        .filter_map(|key| key.strip_prefix(PREFIX))
        .filter(|name| !name.ends_with(BASE_URL) && !name.ends_with(PARAMETERS) && *name != "PARAMETERS")
        .collect();
    let chosen = match names.as_slice() {
        names if names.contains(&"DEFAULT") => "DEFAULT",
        [only] => only,
        _ => return given,
    };
    let of_chosen = |suffix: &str| environment.get(&format!("{PREFIX}{chosen}{suffix}")).cloned();
    ModelSettings {
        name: of_chosen(""),
        base_url: of_chosen(BASE_URL).or(given.base_url),
        parameters: given.parameters.or(of_chosen(PARAMETERS)),
        api_key: given.api_key,
        token_file: given.token_file,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn the_flags_defaults_are_the_configurations() {
        let config = Args::parse_from(["flotilla-agent"]).into_config([]);
        let default = Config::default();
        assert_eq!(
            format!("{:?}", config.sessions),
            format!("{:?}", default.sessions)
        );
        assert_eq!(format!("{:?}", config.tasks), format!("{:?}", default.tasks));
        assert_eq!(
            (config.drain_minimum, config.drain_timeout),
            (default.drain_minimum, default.drain_timeout)
        );
        assert_eq!(
            (config.prompt_file, config.behaviour_dir),
            (default.prompt_file, default.behaviour_dir)
        );
    }

    #[test]
    fn the_operators_variables_name_the_model() {
        let environment = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            pairs
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect()
        };
        let given = ModelSettings {
            base_url: Some("http://main".to_owned()),
            ..ModelSettings::default()
        };
        for (variables, name, base_url, parameters) in [
            (
                environment(&[("FLOTILLA_MODEL_DEFAULT", "a"), ("FLOTILLA_MODEL_CHEAP", "b")]),
                Some("a"),
                "http://main",
                None,
            ),
            (
                environment(&[
                    ("FLOTILLA_MODEL_MAIN", "a"),
                    ("FLOTILLA_MODEL_MAIN_BASE_URL", "http://own"),
                    ("FLOTILLA_MODEL_MAIN_PARAMETERS", "{}"),
                ]),
                Some("a"),
                "http://own",
                Some("{}"),
            ),
            (
                environment(&[("FLOTILLA_MODEL_X", "a"), ("FLOTILLA_MODEL_Y", "b")]),
                None,
                "http://main",
                None,
            ),
            (environment(&[]), None, "http://main", None),
        ] {
            let found = model_settings(given.clone(), &variables);
            assert_eq!(found.name.as_deref(), name, "{variables:?}");
            assert_eq!(found.base_url.as_deref(), Some(base_url));
            assert_eq!(found.parameters.as_deref(), parameters);
        }
        let named = ModelSettings {
            name: Some("mine".to_owned()),
            ..given
        };
        let found = model_settings(named, &environment(&[("FLOTILLA_MODEL_DEFAULT", "a")]));
        assert_eq!(found.name.as_deref(), Some("mine"));
    }
}
