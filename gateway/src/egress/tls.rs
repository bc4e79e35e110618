//! TLS towards providers: Mozilla's roots as compiled in, and the certificates of `SSL_CERT_FILE` or `SSL_CERT_DIR` where
//! one is set (a company's own authority).

use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore};
use tracing::warn;

/// The configuration for all providers.
pub fn client_config() -> Arc<ClientConfig> {
    let mut roots = RootCertStore {
        roots: webpki_roots::TLS_SERVER_ROOTS.to_vec(),
    };
    if ["SSL_CERT_FILE", "SSL_CERT_DIR"]
        .iter()
        .any(|name| std::env::var_os(name).is_some())
    {
        let found = rustls_native_certs::load_native_certs();
        for error in &found.errors {
            warn!(%error, "failed to read a certificate");
        }
        let (added, ignored) = roots.add_parsable_certificates(found.certs);
        if ignored > 0 {
            warn!(added, ignored, "some certificates could not be parsed");
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring supports the default protocol versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Arc::new(config)
}
