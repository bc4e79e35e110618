//! Counting requests in the API server's audit log.

use anyhow::{Context, Result};
use serde::Deserialize;
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;

/// One finished request.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Request {
    /// `create`, `patch`, `update`, `delete`, `get`, `list`, `watch` …
    pub verb: String,
    /// Who asked.
    pub user: User,
    /// What was asked for; absent for non-resource paths.
    #[serde(default)]
    pub object_ref: Option<Object>,
    /// The answer.
    #[serde(default)]
    pub response_status: Option<Response>,
    stage: String,
}

/// A user of the API.
#[derive(Clone, Debug, Deserialize)]
pub struct User {
    /// For example `system:serviceaccount:flotilla-system:flotilla-operator`.
    pub username: String,
}

/// An answer.
#[derive(Clone, Debug, Deserialize)]
pub struct Response {
    /// HTTP status.
    #[serde(default)]
    pub code: i32,
}

/// What a request was about.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Object {
    /// For example `pods`.
    pub resource: String,
    /// For example `status`.
    pub subresource: String,
    /// Empty for cluster-wide ones.
    pub namespace: String,
    /// Empty for lists.
    pub name: String,
}

impl Request {
    /// True for create, update, patch and delete.
    pub fn is_write(&self) -> bool {
        matches!(
            self.verb.as_str(),
            "create" | "update" | "patch" | "delete" | "deletecollection"
        )
    }

    /// True for the requests that are allowed at rest: watches, and the lease of leader election.
    pub fn is_allowed_at_rest(&self) -> bool {
        self.verb == "watch" || self.resource() == "leases"
    }

    /// The resource, with its subresource after a slash.
    pub fn resource(&self) -> String {
        match &self.object_ref {
            Some(o) if o.subresource.is_empty() => o.resource.clone(),
            Some(o) => format!("{}/{}", o.resource, o.subresource),
            None => String::new(),
        }
    }

    /// Namespace of the object, or empty.
    pub fn namespace(&self) -> &str {
        self.object_ref.as_ref().map_or("", |o| o.namespace.as_str())
    }
}

/// A place in the audit log, from which later requests are read.
pub struct Mark {
    path: PathBuf,
    offset: u64,
}

impl Mark {
    /// Marks the present end of `.local/audit.log`.
    pub fn now(cluster: &crate::Cluster) -> Result<Self> {
        let path = cluster.state.join("audit.log");
        let offset = std::fs::metadata(&path)
            .with_context(|| format!("no {}", path.display()))?
            .len();
        Ok(Self { path, offset })
    }

    /// Requests that ended since the mark, of users whose name ends with `user`. Watches count when they start.
    pub fn since(&self, user: &str) -> Result<Vec<Request>> {
        let mut file = std::fs::File::open(&self.path)?;
        if file.metadata()?.len() < self.offset {
            anyhow::bail!("the audit log was rotated during the measurement");
        }
        file.seek(SeekFrom::Start(self.offset))?;
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        let requests = text
            .lines()
            .filter_map(|line| serde_json::from_str::<Request>(line).ok())
            .filter(|r| r.stage == "ResponseComplete" || (r.verb == "watch" && r.stage == "ResponseStarted"))
            .filter(|r| r.user.username.ends_with(user))
            .collect();
        Ok(requests)
    }
}
