//! Provider keys from mounted Secrets.
//!
//! kubelet mounts each provider's Secret (optionally: one that is missing must not stop the others) at
//! `<folder>/<provider>/api-key` and changes it in place when the Secret changes. The file is read again every few seconds,
//! so a rotated key is used without a restart. A key exists only as a header value marked sensitive: it is not in any
//! debug output, and hyper does not index it in HTTP/2.

use std::path::{Path, PathBuf};

use arc_swap::ArcSwapOption;
use flotilla_crds::names;
use http::header::{self, HeaderName, HeaderValue};
use tracing::{info, warn};

use crate::config::ProviderType;

const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");
/// Longest key that is read.
const MAX_KEY: usize = 16 * 1024;

/// The key of one provider, as the header that carries it.
pub struct Key {
    path: PathBuf,
    type_: ProviderType,
    header: ArcSwapOption<HeaderValue>,
}

impl Key {
    /// The key of `provider`, which is of this type, under `folder`, not read yet.
    pub fn new(folder: &Path, provider: &str, type_: ProviderType) -> Self {
        Self {
            path: folder.join(provider).join(names::API_KEY_FILE),
            type_,
            header: ArcSwapOption::empty(),
        }
    }

    /// The type of provider that it is for.
    pub fn type_(&self) -> ProviderType {
        self.type_
    }

    /// `Authorization: Bearer <key>` or `x-api-key: <key>`, if there is one.
    pub fn header(&self) -> Option<(HeaderName, HeaderValue)> {
        let value = self.header.load().as_deref().cloned()?;
        Some(match self.type_ {
            ProviderType::OpenAI => (header::AUTHORIZATION, value),
            ProviderType::Anthropic => (X_API_KEY, value),
        })
    }

    /// Reads the file again.
    pub async fn refresh(&self) {
        let bytes = tokio::fs::read(&self.path).await.unwrap_or_default();
        let header = value(self.type_, &bytes);
        let before = self.header.load_full();
        if before.as_deref() == header.as_ref() {
            return;
        }
        match (&header, before.is_some()) {
            (Some(_), false) => info!(path = %self.path.display(), "provider key found"),
            (Some(_), true) => info!(path = %self.path.display(), "provider key changed"),
            (None, _) => warn!(path = %self.path.display(), "provider key is gone or unusable"),
        }
        self.header.store(header.map(std::sync::Arc::new));
    }
}

/// The header's value for the content of a key file; none if that is empty, too long, or nothing that fits a header.
pub fn value(type_: ProviderType, bytes: &[u8]) -> Option<HeaderValue> {
    let key = bytes.trim_ascii();
    if key.is_empty() || key.len() > MAX_KEY {
        return None;
    }
    let mut header = match type_ {
        ProviderType::OpenAI => HeaderValue::from_bytes(&[b"Bearer ", key].concat()),
        ProviderType::Anthropic => HeaderValue::from_bytes(key),
    }
    .ok()?;
    header.set_sensitive(true);
    Some(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_trimmed_and_never_shown() {
        let openai = |bytes| value(ProviderType::OpenAI, bytes);
        let header = openai(b"  sk-secret\n").expect("a header");
        assert_eq!(header, "Bearer sk-secret");
        let anthropic = value(ProviderType::Anthropic, b"sk-secret\n").expect("a header");
        assert!(anthropic == "sk-secret" && anthropic.is_sensitive());
        assert_eq!(format!("{header:?}"), "Sensitive");
        for nothing in [&b""[..], b" \n", b"a\nb", &[b'x'; MAX_KEY + 1]] {
            assert_eq!(openai(nothing), None);
        }
    }
}
