//! Errors by who can act on them.
//!
//! A caller of an error asks one question: who mends this? The user (then a condition and no retry), the cluster
//! (then back-off), or we (then it is a bug: typed, counted, never a panic). [`Failure::category`] is a stable
//! PascalCase word that becomes the event's reason and a metric label, so it is part of the interface: never built at
//! run time, never changed without a line in the changelog.
//!
//! The HTTP status alone decides the class: error bodies of proxies and load balancers are not `Status` objects, and
//! `client` has already put the real code into those that are not.

use std::time::Duration;

use kube::Error as KubeError;
use kube::core::Status;

/// Who can mend an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Blame {
    /// The author of the object: nothing is tried again until something changes.
    User,
    /// The API server, the network, quotas or another writer: tried again with back-off.
    Cluster,
    /// Us: tried again rarely, counted.
    Bug,
}

/// What the driver needs to know of a reconciler's error.
pub trait Failure: std::error::Error + Send + Sync + 'static {
    /// Stable PascalCase word: event reason and metric label.
    fn category(&self) -> &'static str;

    /// Who can mend it.
    fn blame(&self) -> Blame;

    /// The longest pause between two tries. The default is by [`Failure::blame`].
    fn backoff_cap(&self) -> Duration {
        match self.blame() {
            Blame::User => Duration::ZERO,
            Blame::Cluster => Duration::from_secs(8),
            Blame::Bug => Duration::from_secs(300),
        }
    }

    /// Whether the failure is worth an Event on the object. Conflicts and lost leadership are not.
    fn is_notable(&self) -> bool {
        true
    }
}

/// Errors of the runtime itself. Reconcilers wrap it with `#[from]` and delegate [`Failure`] to it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The object asks for something impossible; `category` is the condition's and event's reason.
    #[error("{message}")]
    User {
        /// Stable PascalCase word.
        category: &'static str,
        /// A sentence that says what to do.
        message: String,
    },
    /// A child's name is taken by an object that is not ours.
    #[error("{kind} {name} exists and belongs to {owner}; delete or rename it, or choose another name")]
    NameTaken {
        /// Kind of the child.
        kind: String,
        /// Name of the child.
        name: String,
        /// `Kind/name` of its controller, or "nobody".
        owner: String,
    },
    /// A child is on its way out: it is being deleted, or it carries the UID of a former owner of the same name and
    /// the garbage collector is about to remove it.
    #[error("{kind} {name} is still being deleted")]
    BeingCollected {
        /// Kind of the child.
        kind: String,
        /// Name of the child.
        name: String,
    },
    /// The object was changed since it was read.
    #[error("failed to {action}: it was changed by somebody else meanwhile")]
    Conflict {
        /// What was tried, for example `update status of AgentPool a/b`.
        action: String,
    },
    /// The API server refused the request for good (403 quota or policy, 422 invalid, 404 namespace …).
    #[error("failed to {action}: {message}")]
    Refused {
        /// What was tried.
        action: String,
        /// HTTP status.
        code: u16,
        /// The server's sentence.
        message: String,
    },
    /// The namespace is on its way out, and everything in it, the visited object included.
    #[error("failed to {action}: the namespace is being deleted")]
    NamespaceTerminating {
        /// What was tried.
        action: String,
    },
    /// The API server could not be reached, timed out or asked us to come back.
    #[error("failed to {action}")]
    Unavailable {
        /// What was tried.
        action: String,
        /// Why.
        #[source]
        source: Box<KubeError>,
    },
    /// This replica does not lead, or not for long enough to finish a call: nothing was sent.
    #[error("not the leader: nothing was written")]
    NotLeader,
    /// The caches have not yet seen what this key wrote.
    #[error("the cache has not seen the last write of {kind} {key} yet")]
    StaleCache {
        /// Kind of the object written.
        kind: String,
        /// The object written.
        key: String,
    },
    /// A defect of the operator.
    #[error("internal error: {0}")]
    Bug(String),
}

impl Error {
    /// An error only the object's author can mend.
    pub fn user(category: &'static str, message: impl Into<String>) -> Self {
        Self::User {
            category,
            message: message.into(),
        }
    }

    /// The error with what caused it, for people: of what the API server has said, its sentence.
    pub fn in_full(&self) -> String {
        match self {
            Self::Unavailable { source, .. } => match &**source {
                KubeError::Api(status) => format!("{self}: {}", status.message),
                _ => super::informer::Chain(self).to_string(),
            },
            _ => self.to_string(),
        }
    }

    /// Classifies an error of the client by HTTP status; `action` reads as in "failed to `<action>`".
    pub fn from_kube(action: impl Into<String>, error: KubeError) -> Self {
        let action = action.into();
        match error {
            KubeError::Api(status) => match status.code {
                409 if status.reason != "AlreadyExists" => Self::Conflict { action },
                403 if is_terminating(&status) => Self::NamespaceTerminating { action },
                // How a patch with another UID than the live object's is refused: the object was replaced meanwhile.
                422 if status.message.contains("metadata.uid: Invalid value") => Self::Conflict { action },
                408 | 429 | 500..=599 => Self::Unavailable {
                    action,
                    source: Box::new(KubeError::Api(status)),
                },
                code => Self::Refused {
                    action,
                    code,
                    message: status.message,
                },
            },
            KubeError::SerdeError(error) => Self::Bug(format!("failed to {action}: {error}")),
            KubeError::BuildRequest(error) => Self::Bug(format!("failed to {action}: {error}")),
            error => Self::Unavailable {
                action,
                source: Box::new(error),
            },
        }
    }

    /// Whether the API server refused something about an object of this kind: `action` reads "verb Kind name".
    pub fn is_refusal_of(&self, kind: &str) -> bool {
        matches!(self, Self::Refused { action, .. } if action.split(' ').nth(1) == Some(kind))
    }

    /// Whether the API server said that the object is not there.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { code: 404, .. })
    }
}

impl Failure for Error {
    fn category(&self) -> &'static str {
        match self {
            Self::User { category, .. } => category,
            Self::NameTaken { .. } => "NameTaken",
            Self::BeingCollected { .. } => "BeingCollected",
            Self::Conflict { .. } => "Conflict",
            Self::Refused { .. } => "Refused",
            Self::NamespaceTerminating { .. } => "NamespaceTerminating",
            Self::Unavailable { .. } => "Unavailable",
            Self::NotLeader => "NotLeader",
            Self::StaleCache { .. } => "StaleCache",
            Self::Bug(_) => "InternalError",
        }
    }

    fn blame(&self) -> Blame {
        match self {
            Self::User { .. } => Blame::User,
            Self::Bug(_) => Blame::Bug,
            Self::NameTaken { .. }
            | Self::BeingCollected { .. }
            | Self::Conflict { .. }
            | Self::Refused { .. }
            | Self::NamespaceTerminating { .. }
            | Self::Unavailable { .. }
            | Self::NotLeader
            | Self::StaleCache { .. } => Blame::Cluster,
        }
    }

    fn backoff_cap(&self) -> Duration {
        match self {
            Self::Refused { .. } | Self::NamespaceTerminating { .. } | Self::NameTaken { .. } => {
                Duration::from_secs(30)
            }
            Self::Conflict { .. } | Self::BeingCollected { .. } | Self::StaleCache { .. } => {
                Duration::from_secs(2)
            }
            Self::Bug(_) => Duration::from_secs(300),
            _ => Duration::from_secs(8),
        }
    }

    fn is_notable(&self) -> bool {
        !matches!(
            self,
            Self::Conflict { .. }
                | Self::NamespaceTerminating { .. }
                | Self::Unavailable { .. }
                | Self::NotLeader
                | Self::StaleCache { .. }
                | Self::BeingCollected { .. }
        )
    }
}

/// Whether a refusal is for the reason that the namespace is being deleted.
fn is_terminating(status: &Status) -> bool {
    let causes = status.details.iter().flat_map(|details| &details.causes);
    causes
        .into_iter()
        .any(|cause| cause.reason == "NamespaceTerminating")
        || status.message.contains("because it is being terminated")
}
