//! Who a caller of the egress is: by its address, or by a token that only its pod has.
//!
//! An address is enough where nobody can send from another pod's. Where a mesh or a network address translation stands
//! between, or where pods may forge addresses, a revision asks for more (`agent.egressIdentity: Token`): kubelet mounts a
//! token of audience [`TOKEN_AUDIENCE`](flotilla_crds::names::TOKEN_AUDIENCE) into its pods, bound to the pod, and the agent sends it in the place of the API key, which
//! every SDK can. The token's pod then *is* the caller, wherever the connection came from; the address of that pod, known
//! from the EndpointSlices, goes on as its name. A pod of such a revision that comes without its token is refused.
//!
//! A token is verified once: signature by the cluster's published keys ([`crate::config::issuer`]), issuer, audience, life. After that it
//! is remembered until it ends, so the hot path is one look into a map. Only verified tokens are remembered, so strangers
//! cannot fill it. That the pod still exists is looked up each time: a deleted pod's token is good for nothing, although
//! it may have an hour to live.

mod token;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use http::{HeaderMap, StatusCode, header};
use tokio::sync::watch;

use crate::config::{AgentPods, Config};
use crate::reply::Refusal;
pub use token::{Keys, TokenError, is_ours};

/// How long a verified pod may be ahead of the watch that tells of it.
const GRACE: Duration = Duration::from_secs(2);
/// Tokens remembered at most: an hour of the largest namespace. Beyond it they are verified each time.
const MAX_KNOWN: usize = 16_384;

/// A token that was found good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// UID of the pod it is bound to.
    pub pod: Arc<str>,
    /// End of its life in seconds since the Unix epoch.
    pub expires: u64,
}

/// Tells callers apart.
#[derive(Default)]
pub struct Identity {
    pods: watch::Sender<Arc<AgentPods>>,
    keys: ArcSwap<Option<Keys>>,
    known: ArcSwap<HashMap<Box<str>, Verified>>,
}

impl Identity {
    /// Puts `config` in force.
    pub fn apply(&self, config: &Config) {
        let current = self.keys.load();
        let issuer = current.as_ref().as_ref().map(Keys::issuer);
        if issuer != config.issuer.as_deref() {
            let keys = config.issuer.as_ref().map(|issuer| Keys::new(issuer));
            self.keys.store(Arc::new(keys));
            // A key that was taken away must not live on in what it signed.
            self.known.store(Arc::default());
        }
        self.pods.send_if_modified(|pods| {
            let changed = **pods != config.pods;
            if changed {
                *pods = Arc::new(config.pods.clone());
            }
            changed
        });
    }

    /// The address by which the caller is known: `peer`, or that of the pod whose token it sends.
    ///
    /// # Errors
    /// When it sends a token for us that is not good.
    pub async fn caller(&self, headers: &HeaderMap, peer: IpAddr) -> Result<IpAddr, Refusal> {
        let Some(token) = presented(headers) else {
            return Ok(peer);
        };
        let verified = self.verify(token, now())?;
        let mut pods = self.pods.subscribe();
        let found = pods.wait_for(|pods| pods.addresses.contains_key(&*verified.pod));
        let found = tokio::time::timeout(GRACE, found).await;
        let address = match &found {
            Ok(Ok(pods)) => pods.addresses.get(&*verified.pod).copied(),
            _ => None,
        };
        address.ok_or_else(|| {
            let message = "the token is good, but its pod is no agent of this namespace (any more)";
            Refusal::new(StatusCode::FORBIDDEN, "NotAnAgent", message)
        })
    }

    /// Refuses a pod that has to send its token and did not. `caller` is an agent's address.
    ///
    /// # Errors
    /// The refusal.
    pub fn admit(&self, caller: IpAddr, headers: &HeaderMap) -> Result<(), Refusal> {
        if !self.pods.borrow().proven.contains(&caller) || presented(headers).is_some() {
            return Ok(());
        }
        let message = format!(
            "this pool proves itself by a token (agent.egressIdentity: Token): send the content of the file that {} names as the API key",
            flotilla_crds::names::TOKEN_FILE_VARIABLE
        );
        Err(Refusal::new(StatusCode::UNAUTHORIZED, "TokenRequired", message))
    }

    /// # Errors
    /// A refusal that says why the token is not good, without a word of it.
    fn verify(&self, token: &str, now: u64) -> Result<Verified, Refusal> {
        if let Some(known) = self.known.load().get(token)
            && now < known.expires
        {
            return Ok(known.clone());
        }
        let keys = self.keys.load();
        let Some(keys) = keys.as_ref() else {
            let message = "the cluster's signing keys are not known yet; try again in a moment";
            return Err(
                Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "TokenUnverifiable", message).retry_after(2),
            );
        };
        let verified = keys
            .verify(token, now)
            .map_err(|error| Refusal::new(StatusCode::UNAUTHORIZED, "TokenRefused", error.to_string()))?;
        self.remember(token, &verified, now);
        Ok(verified)
    }

    /// One new token per pod and hour: copying the map then is cheaper than a lock at each request.
    fn remember(&self, token: &str, verified: &Verified, now: u64) {
        self.known.rcu(|known| {
            let mut known: HashMap<Box<str>, Verified> = known
                .iter()
                .filter(|(_, verified)| now < verified.expires)
                .map(|(token, verified)| (token.clone(), verified.clone()))
                .collect();
            if known.len() < MAX_KNOWN {
                known.insert(token.into(), verified.clone());
            }
            known
        });
    }
}

/// The token for us that a request carries where SDKs put the API key.
fn presented(headers: &HeaderMap) -> Option<&str> {
    let bearer = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.strip_prefix("Bearer "));
    let key = || headers.get("x-api-key").and_then(|value| value.to_str().ok());
    bearer
        .filter(|token| is_ours(token))
        .or_else(|| key().filter(|token| is_ours(token)))
}

fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::token::tests::{Signer, claims};
    use super::*;
    use serde_json::json;

    fn headers(name: &'static str, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(
            http::HeaderName::from_static(name),
            value.parse().expect("a header value"),
        )])
    }

    fn address(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    /// Pod `u-1` at 10.0.0.1 has to prove itself, pod `u-2` at 10.0.0.2 has not.
    fn identity(signer: &Signer) -> Identity {
        let identity = Identity::default();
        let config = Config {
            pods: AgentPods {
                addresses: [("u-1".to_owned(), address(1)), ("u-2".to_owned(), address(2))].into(),
                proven: [address(1)].into(),
            },
            issuer: Some(Arc::new(signer.issuer())),
            ..Config::default()
        };
        identity.apply(&config);
        identity
    }

    fn code(result: Result<impl std::fmt::Debug, Refusal>) -> &'static str {
        result.expect_err("a refusal").code
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_is_its_token_wherever_it_comes_from() {
        let signer = Signer::new("k");
        let identity = identity(&signer);
        let token = signer.sign(&claims("u-1", now()));
        for headers in [
            headers("authorization", &format!("Bearer {token}")),
            headers("x-api-key", &token),
        ] {
            for peer in [address(1), address(99)] {
                assert_eq!(identity.caller(&headers, peer).await.ok(), Some(address(1)));
            }
            assert!(identity.admit(address(1), &headers).is_ok());
        }
        let stranger = signer.sign(&claims("u-9", now()));
        let stranger = headers("x-api-key", &stranger);
        assert_eq!(code(identity.caller(&stranger, address(1)).await), "NotAnAgent");
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_token_for_us_the_address_counts() {
        let signer = Signer::new("k");
        let identity = identity(&signer);
        let mut foreign = claims("u-1", now());
        foreign["aud"] = json!(["https://kubernetes.default.svc"]);
        for value in [
            "Bearer flotilla",
            "Bearer a.b.c",
            &format!("Bearer {}", signer.sign(&foreign)),
        ] {
            let headers = headers("authorization", value);
            assert_eq!(identity.caller(&headers, address(2)).await.ok(), Some(address(2)));
            assert!(identity.admit(address(2), &headers).is_ok());
            assert_eq!(code(identity.admit(address(1), &headers)), "TokenRequired");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_bad_token_is_refused_and_never_shown() {
        let (signer, other) = (Signer::new("k"), Signer::new("k"));
        let identity = identity(&signer);
        let token = other.sign(&claims("u-1", now()));
        let refusal = identity
            .caller(&headers("x-api-key", &token), address(2))
            .await
            .expect_err("another signer's");
        let text = format!("{refusal:?}");
        assert!(text.contains("TokenRefused") && !text.contains(&token), "{text}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_verified_is_remembered_until_it_ends_or_the_keys_change() {
        let signer = Signer::new("k");
        let identity = identity(&signer);
        let token = signer.sign(&claims("u-1", now()));
        let verified = identity.verify(&token, now()).expect("a good token");
        assert_eq!(identity.known.load().get(&*token), Some(&verified));
        assert_eq!(
            code(identity.verify(&token, verified.expires + 120)),
            "TokenRefused"
        );
        let config = Config {
            issuer: Some(Arc::new(Signer::new("k").issuer())),
            ..Config::default()
        };
        identity.apply(&config);
        assert!(identity.known.load().is_empty());
        assert_eq!(code(identity.verify(&token, now())), "TokenRefused");
        identity.apply(&Config::default());
        assert_eq!(code(identity.verify(&token, now())), "TokenUnverifiable");
    }
}
