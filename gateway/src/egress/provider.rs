//! One ModelProvider: where it is, its key, its connections, and what was used.

use std::path::Path;
use std::sync::Arc;

use flotilla_core::stats::Credential;
use http::{HeaderValue, Uri};
use rustls::pki_types::ServerName;

use super::content::Need;
use super::genai::GenAi;
use super::health::Health;
use super::keys::Key;
use super::spend::Usage;
use crate::config::ProviderConfig;
use crate::upstream::{Limits, Peer, Target};

/// One provider, for one version of its spec.
pub struct Provider {
    /// Its name.
    pub name: String,
    /// The spec in force.
    pub config: ProviderConfig,
    /// Connections to it; the sentence says what is wrong with the endpoint.
    pub place: Result<Place, String>,
    /// Its key; none where it needs none.
    pub key: Option<Arc<Key>>,
    /// Outlives changes of the spec.
    pub usage: Arc<Usage>,
    /// The same by OpenTelemetry's conventions.
    pub genai: Arc<GenAi>,
    /// Whether it answers. Begins anew with another endpoint.
    pub health: Arc<Health>,
}

/// Where a provider is.
pub struct Place {
    /// Connections.
    pub peer: Peer,
    /// Value of `Host`.
    pub host: HeaderValue,
    /// Path of the endpoint, without a slash at its end.
    base: String,
}

impl Provider {
    pub(super) fn new(
        name: &str,
        config: &ProviderConfig,
        keys: &Path,
        tls: &Arc<rustls::ClientConfig>,
        limits: Limits,
        before: Option<&Provider>,
    ) -> Self {
        let same_key = before
            .and_then(|before| before.key.clone())
            .filter(|key| key.type_() == config.type_);
        let new_key = || Arc::new(Key::new(keys, name, config.type_));
        let same_endpoint = before.filter(|before| before.config.endpoint == config.endpoint);
        Self {
            name: name.to_owned(),
            config: config.clone(),
            place: Place::new(&config.endpoint, tls, limits),
            key: config.secret.is_some().then(|| same_key.unwrap_or_else(new_key)),
            usage: before.map(|before| before.usage.clone()).unwrap_or_default(),
            genai: before.map(|before| before.genai.clone()).unwrap_or_default(),
            health: same_endpoint
                .map(|before| before.health.clone())
                .unwrap_or_default(),
        }
    }

    /// What must be known of a request before it is sent.
    pub(super) fn need(&self) -> Need {
        let config = &self.config;
        if !config.model_budgets.is_empty() {
            return Need::ModelBudget;
        }
        // A budget that blocks refuses models without a price.
        let blocks = config.budget.as_ref().is_some_and(|budget| budget.blocks);
        if blocks || config.quotas.iter().any(|quota| !quota.models.is_empty()) {
            return Need::Limits;
        }
        Need::Nothing
    }

    /// Whether its key is there.
    pub fn credential(&self) -> Credential {
        match &self.key {
            None => Credential::NotNeeded,
            Some(key) if key.header().is_some() => Credential::Present,
            Some(_) => Credential::Missing,
        }
    }
}

impl Place {
    /// For the base address `endpoint`.
    ///
    /// # Errors
    /// A sentence that says what is wrong with it.
    pub fn new(endpoint: &str, tls: &Arc<rustls::ClientConfig>, limits: Limits) -> Result<Self, String> {
        let wrong = |what: &str| format!("spec.endpoint \"{endpoint}\" {what}");
        let uri: Uri = endpoint.parse().map_err(|_| wrong("is no address"))?;
        let (authority, secure) = match (uri.authority(), uri.scheme_str()) {
            (Some(authority), Some("https")) => (authority, true),
            (Some(authority), Some("http")) => (authority, false),
            _ => return Err(wrong("must begin with https:// or http://")),
        };
        let host = authority
            .host()
            .trim_start_matches('[')
            .trim_end_matches(']')
            .to_owned();
        let tls = if secure {
            let name = ServerName::try_from(host.clone()).map_err(|_| wrong("has no valid host name"))?;
            Some((tls.clone(), name))
        } else {
            None
        };
        let port = authority.port_u16().unwrap_or(if secure { 443 } else { 80 });
        Ok(Self {
            peer: Peer::new(Target::Name { host, port, tls }, limits),
            host: HeaderValue::from_str(authority.as_str()).map_err(|_| wrong("has no valid host name"))?,
            base: uri.path().trim_end_matches('/').to_owned(),
        })
    }

    /// The target of a request for `rest`, which begins with a slash, in origin form. `None` if that would leave the
    /// endpoint's own path or is no path.
    pub fn target(&self, rest: &str, query: Option<&str>) -> Option<Uri> {
        if rest.split('/').any(is_dots) {
            return None;
        }
        let query = query.map(|query| format!("?{query}")).unwrap_or_default();
        format!("{}{rest}{query}", self.base).parse().ok()
    }
}

/// `.` and `..`, also percent-encoded: a provider would resolve them, and with them our path.
fn is_dots(segment: &str) -> bool {
    let plain = segment
        .to_ascii_lowercase()
        .replace("%2e", ".")
        .replace("%2f", "/")
        .replace("%5c", "/")
        .replace('\\', "/");
    plain.split('/').any(|part| part == "." || part == "..")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn place(endpoint: &str) -> Result<Place, String> {
        let tls = super::super::tls::client_config();
        Place::new(
            endpoint,
            &tls,
            Limits {
                connect: Duration::from_secs(1),
                idle: Duration::from_secs(1),
            },
        )
    }

    #[test]
    fn paths_stay_below_the_endpoint() {
        let place = place("https://api.example.com/v1").expect("a place");
        let target = |rest, query| place.target(rest, query).map(|uri| uri.to_string());
        assert_eq!(
            target("/chat/completions", Some("a=b")).as_deref(),
            Some("/v1/chat/completions?a=b")
        );
        assert_eq!(target("", None).as_deref(), Some("/v1"));
        for rest in ["/../admin", "/x/%2E%2e/y", "/.", "/a%2f..%2fb", "/..\\x"] {
            assert_eq!(target(rest, None), None, "{rest}");
        }
        assert!(target("/models/a..b", None).is_some());
    }

    #[test]
    fn a_wrong_endpoint_is_a_sentence() {
        for endpoint in ["ftp://x/v1", "api.example.com", "https://"] {
            let sentence = place(endpoint).err().unwrap_or_default();
            assert!(sentence.contains(endpoint), "{endpoint}: {sentence}");
        }
    }
}
