//! `spec.sessions` of an AgentPool: conversations stay on their revision.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How conversations are known and kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Sessions {
    /// key says where a request names its conversation.
    #[serde(default)]
    pub key: SessionKey,
    /// idleSeconds after its last request a conversation is forgotten (at the earliest; at the latest a quarter later). Its
    /// next request is then like that of a new one. Default 1800.
    #[serde(default = "half_an_hour")]
    #[schemars(range(min = 1, max = 604800))]
    pub idle_seconds: i32,
    /// maxDrainSeconds for which a revision that was replaced keeps running for the conversations it has, counted from when it lost its
    /// weight; they end earlier by idleSeconds without a request, and with the last one its pods go. What is left then moves to the
    /// revision that serves, and is counted in `flotilla_gateway_sessions_moved_total`. Those pods run beside the new ones meanwhile,
    /// so the cluster needs room for both. A batch-by-batch release keeps its last batch. 0: conversations move with the weight.
    /// Default 3600.
    #[serde(default = "an_hour")]
    #[schemars(range(min = 0, max = 604800))]
    pub max_drain_seconds: i32,
}

impl Default for Sessions {
    fn default() -> Self {
        Self {
            key: SessionKey::default(),
            idle_seconds: 1800,
            max_drain_seconds: 3600,
        }
    }
}

/// Where a request names its conversation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[x_kube(
    validation = Rule::new("!has(self.header) || self.type == 'Header'")
        .message("sessions.key.header belongs to type Header; set type: Header or leave header out"),
    validation = Rule::new("!has(self.cookie) || self.type == 'Cookie'")
        .message("sessions.key.cookie belongs to type Cookie; set type: Cookie or leave cookie out")
)]
#[serde(rename_all = "camelCase")]
pub struct SessionKey {
    /// type is Header (the value of a header, sent by the client or first given by the agent in a response; a request
    /// without it goes by weight), Cookie (the
    /// value of a cookie, which the gateway sets where it is missing), A2AContext (the contextId of an A2A message;
    /// requests about a task follow it, and both go to the replica that has them) or None (no conversations are kept:
    /// each request goes by weight). Default None.
    #[serde(default, rename = "type")]
    pub type_: SessionKeyType,
    /// header whose value names the conversation, for example `X-Session-Id`, which is the default of type Header.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128))]
    #[x_kube(validation = Rule::new("self.matches('^[A-Za-z0-9_-]+$')")
        .message("a header's name consists of letters, digits, '-' and '_'; write for example X-Session-Id"))]
    pub header: Option<String>,
    /// cookie whose value names the conversation, for example `flotilla-session`, which is the default of type Cookie.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128))]
    #[x_kube(validation = Rule::new("self.matches('^[A-Za-z0-9_-]+$')")
        .message("a cookie's name consists of letters, digits, '-' and '_'; write for example flotilla-session"))]
    pub cookie: Option<String>,
}

impl SessionKey {
    /// The header of type Header.
    pub fn header_name(&self) -> &str {
        self.header.as_deref().unwrap_or("X-Session-Id")
    }

    /// The cookie of type Cookie.
    pub fn cookie_name(&self) -> &str {
        self.cookie.as_deref().unwrap_or("flotilla-session")
    }
}

/// How a conversation is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum SessionKeyType {
    /// By a header's value.
    Header,
    /// By a cookie's value.
    Cookie,
    /// By an A2A contextId.
    A2AContext,
    /// Not at all.
    #[default]
    None,
}

fn an_hour() -> i32 {
    3600
}

fn half_an_hour() -> i32 {
    1800
}
