//! Provider keys from mounted Secrets.
//!
//! kubelet mounts each provider's Secret (optionally: one that is missing must not stop the others) at
//! `<folder>/<provider>/api-key` and changes it in place when the Secret changes. The file is read again every few seconds,
//! so a rotated key is used without a restart. A key exists only as a header value marked sensitive: it is not in any
//! debug output, and hyper does not index it in HTTP/2.

use std::path::{Path, PathBuf};

use arc_swap::ArcSwapOption;
use flotilla_crds::names;
use http::HeaderValue;
use tracing::{info, warn};

/// Longest key that is read.
const MAX_KEY: usize = 16 * 1024;

/// The key of one provider, as the header that carries it.
pub struct Key {
    path: PathBuf,
    header: ArcSwapOption<HeaderValue>,
}

impl Key {
    /// The key of `provider` under `folder`, not read yet.
    pub fn new(folder: &Path, provider: &str) -> Self {
        Self {
            path: folder.join(provider).join(names::API_KEY_FILE),
            header: ArcSwapOption::empty(),
        }
    }

    /// `Bearer <key>`, if there is one.
    pub fn header(&self) -> Option<HeaderValue> {
        self.header.load().as_deref().cloned()
    }

    /// Reads the file again.
    pub async fn refresh(&self) {
        let bytes = tokio::fs::read(&self.path).await.unwrap_or_default();
        let header = bearer(&bytes);
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

/// The header for the content of a key file; none if that is empty, too long, or nothing that fits a header.
pub fn bearer(bytes: &[u8]) -> Option<HeaderValue> {
    let key = bytes.trim_ascii();
    if key.is_empty() || key.len() > MAX_KEY {
        return None;
    }
    let mut header = HeaderValue::from_bytes(&[b"Bearer ", key].concat()).ok()?;
    header.set_sensitive(true);
    Some(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_trimmed_and_never_shown() {
        let header = bearer(b"  sk-secret\n").expect("a header");
        assert_eq!(header, "Bearer sk-secret");
        assert_eq!(format!("{header:?}"), "Sensitive");
        for nothing in [&b""[..], b" \n", b"a\nb", &[b'x'; MAX_KEY + 1]] {
            assert_eq!(bearer(nothing), None);
        }
    }
}
