//! Who signs ServiceAccount tokens in this cluster: read from the API server's OpenID discovery, as a plain value.
//!
//! Why not `TokenReview`: that is a right on the whole cluster, which an operator without ClusterRoleBindings could not give a
//! gateway, and a call to the API server for each new token. The discovery documents may be read by every ServiceAccount
//! (`system:service-account-issuer-discovery`, bound by Kubernetes itself), and then nothing is asked any more. What
//! `TokenReview` would add, that the pod still exists, the gateway knows from its own watch of endpoints.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use kube::Client;
use serde::Deserialize;
use tokio::sync::{Notify, mpsc};
use tracing::{info, warn};

/// How often the keys are read again. A cluster that changes its key publishes the new one before it signs with it.
const REFRESH: Duration = Duration::from_secs(300);
/// Pause after a failure.
const PAUSE: Duration = Duration::from_secs(5);

/// A public key as RFC 7517 writes it; parts that its kind does not have are empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Jwk {
    /// Its name, which tokens repeat.
    pub kid: String,
    /// Its algorithm, for example `RS256`.
    pub alg: String,
    /// RSA: the modulus, base64.
    pub n: String,
    /// RSA: the exponent, base64.
    pub e: String,
    /// Elliptic curves: the first coordinate, base64.
    pub x: String,
    /// Elliptic curves: the second coordinate, base64.
    pub y: String,
}

/// Public keys.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct JwkSet {
    /// All of them.
    pub keys: Vec<Jwk>,
}

/// Who signs tokens, and by which keys they are known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issuer {
    /// The `iss` of its tokens.
    pub name: String,
    /// Its public keys.
    pub keys: JwkSet,
}

#[derive(Deserialize)]
struct Discovery {
    issuer: String,
}

async fn read(client: &Client) -> anyhow::Result<Issuer> {
    let get = |path: &str| http::Request::get(path).body(Vec::new());
    let discovery: Discovery = client
        .request(get("/.well-known/openid-configuration")?)
        .await
        .context("failed to read /.well-known/openid-configuration")?;
    let keys: JwkSet = client
        .request(get("/openid/v1/jwks")?)
        .await
        .context("failed to read /openid/v1/jwks")?;
    Ok(Issuer {
        name: discovery.issuer,
        keys,
    })
}

/// Reads the issuer as soon as `wanted` is told that some pool needs it, and again from time to time.
pub async fn follow<C>(
    client: Client,
    wanted: Arc<Notify>,
    change: fn(Arc<Issuer>) -> C,
    events: mpsc::UnboundedSender<C>,
) {
    wanted.notified().await;
    loop {
        let pause = match read(&client).await {
            Ok(issuer) => {
                info!(
                    issuer = issuer.name,
                    keys = issuer.keys.keys.len(),
                    "token issuer read"
                );
                if events.send(change(Arc::new(issuer))).is_err() {
                    return;
                }
                REFRESH
            }
            Err(error) => {
                warn!(
                    error = format!("{error:#}"),
                    "tokens of agents cannot be verified; what is known stays in force"
                );
                PAUSE
            }
        };
        tokio::time::sleep(pause).await;
    }
}
