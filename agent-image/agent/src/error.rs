//! What can go wrong in a request, and how HTTP says it.

use http::{HeaderValue, StatusCode};

use crate::session::SessionError;

/// Why the model gave no reply. Messages carry the provider's own words, never a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ModelError {
    /// 429: ours to wait for, or the client's.
    #[error("the model provider's limit is reached: {message}")]
    RateLimited {
        /// The provider's words.
        message: String,
        /// Its `Retry-After`, as it was sent.
        retry_after: Option<HeaderValue>,
    },
    /// Another 4xx: the request, the key or the model's name is wrong.
    #[error("the model provider refused the request with {status}: {message}")]
    Refused {
        /// The provider's status.
        status: StatusCode,
        /// Its words.
        message: String,
    },
    /// 5xx.
    #[error("the model provider failed with {status}: {message}")]
    Failed {
        /// The provider's status.
        status: StatusCode,
        /// Its words.
        message: String,
    },
    /// No connection.
    #[error("failed to reach the model provider: {0}")]
    Unreachable(String),
    /// No whole reply in time.
    #[error("the model provider gave no whole reply within {seconds} s")]
    TimedOut {
        /// The time it had.
        seconds: u64,
    },
    /// A reply that breaks off or cannot be read.
    #[error("the model provider's reply broke off: {0}")]
    Broken(String),
}

impl ModelError {
    /// The status for the agent's client: a limit stays a limit, everything else is the fault of what is behind us.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::RateLimited { .. } => StatusCode::TOO_MANY_REQUESTS,
            Self::TimedOut { .. } => StatusCode::GATEWAY_TIMEOUT,
            Self::Refused { .. } | Self::Failed { .. } | Self::Unreachable(_) | Self::Broken(_) => {
                StatusCode::BAD_GATEWAY
            }
        }
    }

    /// The status where the client wrote the model's request itself: then a refusal of its content is about it.
    pub fn status_of_passthrough(&self) -> StatusCode {
        match self {
            Self::Refused { status, .. } if matches!(status.as_u16(), 400 | 413 | 422) => *status,
            other => other.status(),
        }
    }
}

/// Why a request got no reply.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The configuration cannot be used; `/readyz` says the same.
    #[error("the agent is not ready: {0}")]
    NotReady(String),
    /// The prompt's `error-rate` directive.
    #[error("the agent failed, as its prompt's error-rate directive asks")]
    Directive,
    /// The client's mistake.
    #[error("{0}")]
    BadRequest(String),
    /// The body is too large or broke off.
    #[error(transparent)]
    Body(#[from] flotilla_serve::BodyError),
    /// The conversation is not here.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// As many requests at work as allowed.
    #[error("the agent has as many requests at work as it may have")]
    Overloaded,
    /// The model gave no reply.
    #[error(transparent)]
    Model(#[from] ModelError),
}

impl AgentError {
    /// The HTTP status.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::NotReady(_) | Self::Overloaded => StatusCode::SERVICE_UNAVAILABLE,
            Self::Directive => StatusCode::INTERNAL_SERVER_ERROR,
            Self::BadRequest(_) => StatusCode::BAD_REQUEST,
            Self::Body(error) => error.status(),
            Self::Session(SessionError::ContextLost { .. }) => StatusCode::CONFLICT,
            Self::Session(_) => StatusCode::BAD_REQUEST,
            Self::Model(error) => error.status(),
        }
    }

    /// A word for programs.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NotReady(_) => "NotReady",
            Self::Overloaded => "Overloaded",
            Self::Directive => "ErrorDirective",
            Self::BadRequest(_) => "BadRequest",
            Self::Body(_) => "Body",
            Self::Session(SessionError::ContextLost { .. }) => "SessionContextLost",
            Self::Session(_) => "BadSession",
            Self::Model(ModelError::RateLimited { .. }) => "ModelRateLimited",
            Self::Model(ModelError::Refused { .. }) => "ModelRefused",
            Self::Model(ModelError::Failed { .. }) => "ModelFailed",
            Self::Model(ModelError::Unreachable(_)) => "ModelUnreachable",
            Self::Model(ModelError::TimedOut { .. }) => "ModelTimedOut",
            Self::Model(ModelError::Broken(_)) => "ModelBroken",
        }
    }

    /// When to come back, where that is known.
    pub fn retry_after(&self) -> Option<HeaderValue> {
        match self {
            Self::Overloaded => Some(HeaderValue::from_static("1")),
            Self::Model(ModelError::RateLimited { retry_after, .. }) => retry_after.clone(),
            _ => None,
        }
    }
}
