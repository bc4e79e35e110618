//! The API of group `flotilla.dev`: the kinds users write, their documentation, validation rules and generated YAML.
//!
//! Types here are plain data. Whoever reads a field finds its meaning, unit and default in its doc comment, which
//! is also what `kubectl explain` prints. [`yaml`] turns the types into the CustomResourceDefinitions that are
//! committed in `crds/yaml/`, [`reference`] into the pages of the book; [`names`] holds every name that more than one part of Flotilla must agree on.

pub mod agent;
pub mod agent_pool;
pub mod common;
pub mod files;
pub mod load_status;
pub mod load_test;
pub mod model_provider;
pub mod names;
pub mod plan;
pub mod pool_status;
pub mod quota;
pub mod reference;
pub mod release_test;
pub mod resilience;
pub mod rollout;
pub mod rollout_action;
pub mod route;
mod rules;
pub mod schema;
pub mod sessions;
pub mod sourced_metric;
pub mod traffic;
pub mod yaml;

pub use agent_pool::{AgentPool, AgentPoolSpec, AgentPoolStatus};
pub use load_test::{LoadTest, LoadTestSpec, LoadTestStatus};
pub use model_provider::{ModelProvider, ModelProviderSpec, ModelProviderStatus};
pub use rollout_action::{RolloutAction, RolloutActionSpec, RolloutActionStatus};

/// API group of every kind.
pub const GROUP: &str = "flotilla.dev";
/// Served and stored version of every kind.
pub const VERSION: &str = "v1alpha1";
