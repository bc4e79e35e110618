//! Response headers that name the revision and the replica, for whoever asks (`spec.traffic.servedBy`).

use std::net::SocketAddr;
use std::sync::Arc;

use http::header::{HeaderMap, HeaderName, HeaderValue};

use super::revision::{Permit, Revision};
use crate::config::{self, HttpConfig};

/// A request with this header, whatever its value, asks for the others.
pub const ASKED: HeaderName = HeaderName::from_static("x-flotilla-served-by");
/// Name of the revision.
pub const REVISION: HeaderName = HeaderName::from_static("x-flotilla-revision");
/// Address and port of the replica.
pub const REPLICA: HeaderName = HeaderName::from_static("x-flotilla-replica");

/// Who gave a response.
pub struct ServedBy {
    revision: Arc<Revision>,
    replica: SocketAddr,
}

impl HttpConfig {
    /// Whether the response to a request with `headers` names its origin.
    pub fn tells(&self, headers: &HeaderMap) -> bool {
        match self.served_by {
            config::ServedBy::Always => true,
            config::ServedBy::OnRequest => headers.contains_key(&ASKED),
            config::ServedBy::Never => false,
        }
    }
}

impl ServedBy {
    pub(super) fn new(permit: &Permit) -> Self {
        Self {
            revision: permit.revision.clone(),
            replica: permit.endpoint.address,
        }
    }

    /// Writes the headers; an agent's own of these names are replaced.
    pub(super) fn tell(&self, headers: &mut HeaderMap) {
        let values = [
            (REVISION, self.revision.name.clone()),
            (REPLICA, self.replica.to_string()),
        ];
        for (name, value) in values {
            if let Ok(value) = HeaderValue::from_str(&value) {
                headers.insert(name, value);
            }
        }
    }
}
