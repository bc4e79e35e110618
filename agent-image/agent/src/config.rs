//! The agent's configuration, and what of it decides about readiness.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Map, Value};

use crate::model::{ModelClient, parameters};
use crate::prompt::{self, Prompt};
use crate::session::SessionLimits;
use crate::task_store::TaskLimits;

/// Everything the agent can be told.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where to listen.
    pub listen: SocketAddr,
    /// The address in the agent card; default the address it listens on.
    pub public_url: Option<String>,
    /// The name in the agent card: the pool's.
    pub name: String,
    /// The version in the agent card: the revision's.
    pub version: String,
    /// The model to call.
    pub model: ModelSettings,
    /// The prompt's file.
    pub prompt_file: PathBuf,
    /// The folder of behaviour files.
    pub behaviour_dir: PathBuf,
    /// A whole reply of the model must be there within this time.
    pub model_timeout: Duration,
    /// The bounds of the session store.
    pub sessions: SessionLimits,
    /// The bounds of the task store.
    pub tasks: TaskLimits,
    /// How long a streamed task may be without a watcher before it is cancelled.
    pub orphan_grace: Duration,
    /// Larger request bodies are answered with 413.
    pub max_body_bytes: usize,
    /// More requests at work than this are answered with 503.
    pub max_in_flight: usize,
    /// After SIGTERM the agent accepts for at least this long.
    pub drain_minimum: Duration,
    /// After SIGTERM requests in flight may take this long.
    pub drain_timeout: Duration,
}

/// Which model, where.
#[derive(Clone, Default)]
pub struct ModelSettings {
    /// Its name.
    pub name: Option<String>,
    /// The provider's base URL, ending in `/v1`.
    pub base_url: Option<String>,
    /// What goes into the `Authorization` header. Behind the gateway it is a placeholder.
    pub api_key: String,
    /// File with a token that is sent instead; whoever mounted it renews it.
    pub token_file: Option<PathBuf>,
    /// A JSON object that goes into every request's body; numbers may be strings.
    pub parameters: Option<String>,
}

/// Without the key.
impl std::fmt::Debug for ModelSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            name,
            base_url,
            api_key: _,
            token_file,
            parameters,
        } = self;
        f.debug_struct("ModelSettings")
            .field("name", name)
            .field("base_url", base_url)
            .field("token_file", token_file)
            .field("parameters", parameters)
            .finish_non_exhaustive()
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 8080)),
            public_url: None,
            name: "flotilla-agent".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            model: ModelSettings::default(),
            prompt_file: PathBuf::from(prompt::DEFAULT_PROMPT_FILE),
            behaviour_dir: PathBuf::from("/etc/agent/tools"),
            model_timeout: Duration::from_secs(120),
            sessions: SessionLimits {
                ttl: Duration::from_secs(1_800),
                count: 2_000,
                history_bytes: 32 << 10,
            },
            tasks: TaskLimits {
                ttl: Duration::from_secs(600),
                count: 1_000,
                bytes: 64 << 20,
            },
            orphan_grace: Duration::from_secs(5),
            max_body_bytes: 1 << 20,
            max_in_flight: 512,
            drain_minimum: Duration::from_secs(1),
            drain_timeout: Duration::from_secs(25),
        }
    }
}

impl Config {
    /// A configuration for tests in the same process: a free port on loopback, `model` at `base_url`, quick ends.
    pub fn local(base_url: impl Into<String>, model: &str) -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            model: ModelSettings {
                name: Some(model.to_owned()),
                base_url: Some(base_url.into()),
                api_key: "flotilla".to_owned(),
                token_file: None,
                parameters: None,
            },
            drain_minimum: Duration::ZERO,
            drain_timeout: Duration::from_secs(2),
            orphan_grace: Duration::from_millis(50),
            ..Self::default()
        }
    }
}

/// What an agent needs to answer.
#[derive(Debug)]
pub struct Setup {
    /// Its prompt.
    pub prompt: Prompt,
    /// Its model.
    pub client: ModelClient,
}

impl Setup {
    /// Reads the files and checks everything. The errors are what `/readyz` answers.
    pub fn load(config: &Config) -> Result<Self, Vec<String>> {
        let mut problems = Vec::new();
        let prompt = prompt::load(&config.prompt_file, &config.behaviour_dir);
        let prompt = prompt.map_err(|found| problems.extend(found)).ok();
        let named = prompt
            .as_ref()
            .and_then(|prompt| prompt.directives.model.as_ref());
        let model = &config.model;
        if model.base_url.is_none() {
            problems.push("OPENAI_BASE_URL is not set".to_owned());
        }
        let name = named.or(model.name.as_ref());
        if name.is_none() {
            problems.push("no model is set: FLOTILLA_MODEL or FLOTILLA_MODEL_DEFAULT names it".to_owned());
        }
        let parameters = match model
            .parameters
            .as_deref()
            .map(serde_json::from_str::<Map<String, Value>>)
        {
            None => Map::new(),
            Some(Ok(values)) => parameters(values),
            Some(Err(error)) => {
                problems.push(format!("the model's parameters are not a JSON object: {error}"));
                Map::new()
            }
        };
        let client = name.zip(model.base_url.as_ref()).and_then(|(name, base_url)| {
            ModelClient::new(base_url, &model.api_key, name, parameters, config.model_timeout)
                .map(|client| client.with_token_file(model.token_file.clone()))
                .map_err(|error| problems.push(error.to_string()))
                .ok()
        });
        match (prompt, client) {
            (Some(prompt), Some(client)) if problems.is_empty() => Ok(Self { prompt, client }),
            _ => Err(problems),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_that_cannot_answer_says_why() {
        let good = Config::local("http://gateway/v1", "sim");
        let with = |model: ModelSettings| Config {
            model,
            ..good.clone()
        };
        for (config, problem) in [
            (good.clone(), None),
            (
                with(ModelSettings {
                    name: None,
                    ..good.model.clone()
                }),
                Some("no model is set"),
            ),
            (
                with(ModelSettings {
                    base_url: None,
                    ..good.model.clone()
                }),
                Some("OPENAI_BASE_URL is not set"),
            ),
            (
                with(ModelSettings {
                    name: Some("a b".into()),
                    ..good.model.clone()
                }),
                Some("has spaces"),
            ),
            (
                with(ModelSettings {
                    parameters: Some("[]".into()),
                    ..good.model.clone()
                }),
                Some("not a JSON object"),
            ),
            (
                Config {
                    prompt_file: "/nowhere/prompt.md".into(),
                    ..good.clone()
                },
                Some("cannot be read"),
            ),
        ] {
            let problems = Setup::load(&config).err().unwrap_or_default();
            match problem {
                None => assert_eq!(problems, Vec::<String>::new()),
                Some(text) => assert!(
                    problems.len() == 1 && problems[0].contains(text),
                    "{text}: {problems:?}"
                ),
            }
        }
        let nothing = Config {
            model: ModelSettings::default(),
            ..good
        };
        assert_eq!(
            Setup::load(&nothing).err().map(|problems| problems.len()),
            Some(2),
            "all problems at once"
        );
    }
}
