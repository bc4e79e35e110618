//! ServiceAccount tokens: which are meant for us, and which are good.

use std::collections::HashMap;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use flotilla_crds::names::TOKEN_AUDIENCE as AUDIENCE;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};
use serde::Deserialize;

use super::Verified;
use crate::config::issuer::Issuer;

/// Longest token that is looked at; Kubernetes' have about 1 KiB.
const MAX_TOKEN: usize = 16 * 1024;
/// Clocks of nodes may differ by this many seconds.
const LEEWAY: u64 = 60;

/// Why a token is not good. None of these holds a part of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It names a key that the issuer does not publish.
    #[error("the token is signed by a key that this cluster does not publish")]
    UnknownKey,
    /// Signature, issuer, audience, or form.
    #[error("the token is not one of this cluster for audience {AUDIENCE}")]
    Invalid,
    /// Its life is over.
    #[error("the token has expired; read its file again for each request, kubelet renews it")]
    Expired,
    /// Its life has not begun.
    #[error("the token is not valid yet; the clocks of the nodes differ")]
    Early,
    /// It is no pod's.
    #[error("the token is bound to no pod; use the one that kubelet mounts")]
    Unbound,
}

/// An issuer's keys, prepared.
pub struct Keys {
    issuer: Issuer,
    by_id: HashMap<String, (DecodingKey, Validation)>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Many(Vec<String>),
}

#[derive(Deserialize)]
struct Addressed {
    aud: Audience,
}

#[derive(Deserialize)]
struct Claims {
    exp: u64,
    #[serde(default)]
    nbf: u64,
    #[serde(rename = "kubernetes.io")]
    kubernetes: Bound,
}

#[derive(Deserialize)]
struct Bound {
    pod: Option<Object>,
}

#[derive(Deserialize)]
struct Object {
    uid: String,
}

/// True for a token of audience [`AUDIENCE`], good or not: what SDKs send when they were given no token is anything.
pub fn is_ours(token: &str) -> bool {
    // Every JSON object begins with `{"`.
    if !token.starts_with("eyJ") || token.len() > MAX_TOKEN {
        return false;
    }
    let mut parts = token.split('.');
    let (Some(_), Some(payload), Some(_), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
        return false;
    };
    let Ok(payload) = URL_SAFE_NO_PAD.decode(payload) else {
        return false;
    };
    serde_json::from_slice::<Addressed>(&payload).is_ok_and(|claims| match claims.aud {
        Audience::One(audience) => audience == AUDIENCE,
        Audience::Many(audiences) => audiences.iter().any(|audience| audience == AUDIENCE),
    })
}

impl Keys {
    /// Prepares the keys of `issuer`. One that cannot be used signs nothing that is good.
    pub fn new(issuer: &Issuer) -> Self {
        let prepared = issuer.keys.keys.iter().filter_map(|jwk| {
            let id = jwk.common.key_id.clone()?;
            let mut validation = Validation::new(algorithm(jwk)?);
            validation.set_audience(&[AUDIENCE]);
            validation.set_issuer(&[&issuer.name]);
            validation.set_required_spec_claims(&["exp", "aud", "iss"]);
            // By the caller's clock, below.
            validation.validate_exp = false;
            Some((id, (DecodingKey::from_jwk(jwk).ok()?, validation)))
        });
        Self {
            by_id: prepared.collect(),
            issuer: issuer.clone(),
        }
    }

    /// What they were made of.
    pub fn issuer(&self) -> &Issuer {
        &self.issuer
    }

    /// What `token` proves at `now`, in seconds since the Unix epoch.
    ///
    /// # Errors
    /// Why it proves nothing.
    pub fn verify(&self, token: &str, now: u64) -> Result<Verified, TokenError> {
        let head = decode_header(token).map_err(|_| TokenError::Invalid)?;
        let (key, validation) = head
            .kid
            .and_then(|id| self.by_id.get(&id))
            .ok_or(TokenError::UnknownKey)?;
        // The algorithm is the key's: a token must not choose it.
        let claims = decode::<Claims>(token, key, validation)
            .map_err(|_| TokenError::Invalid)?
            .claims;
        if now >= claims.exp.saturating_add(LEEWAY) {
            return Err(TokenError::Expired);
        }
        if claims.nbf > now.saturating_add(LEEWAY) {
            return Err(TokenError::Early);
        }
        let pod = claims.kubernetes.pod.ok_or(TokenError::Unbound)?;
        Ok(Verified {
            pod: pod.uid.into(),
            expires: claims.exp,
        })
    }
}

/// Signatures only: a symmetric algorithm would make the public key a secret.
fn algorithm(jwk: &Jwk) -> Option<Algorithm> {
    let named = jwk.common.key_algorithm?.to_string().parse().ok()?;
    matches!(
        named,
        Algorithm::RS256 | Algorithm::RS384 | Algorithm::RS512 | Algorithm::ES256 | Algorithm::ES384
    )
    .then_some(named)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use jsonwebtoken::{EncodingKey, Header, encode};
    use ring::rand::SystemRandom;
    use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
    use serde_json::{Value, json};

    const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

    /// A cluster's signing key.
    pub struct Signer {
        id: String,
        key: EncodingKey,
        public: Vec<u8>,
    }

    impl Signer {
        pub fn new(id: &str) -> Self {
            let random = SystemRandom::new();
            let document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).expect("a key");
            let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, document.as_ref(), &random).expect("a key");
            Self {
                id: id.to_owned(),
                key: EncodingKey::from_ec_der(document.as_ref()),
                public: pair.public_key().as_ref().to_vec(),
            }
        }

        pub fn issuer(&self) -> Issuer {
            let part = |range: std::ops::Range<usize>| URL_SAFE_NO_PAD.encode(&self.public[range]);
            let keys = json!({"keys": [{
                "use": "sig", "kty": "EC", "kid": self.id, "crv": "P-256", "alg": "ES256", "x": part(1..33), "y": part(33..65)
            }]});
            Issuer {
                name: ISSUER.to_owned(),
                keys: serde_json::from_value(keys).expect("keys"),
            }
        }

        pub fn sign(&self, claims: &Value) -> String {
            let header = Header {
                kid: Some(self.id.clone()),
                ..Header::new(Algorithm::ES256)
            };
            encode(&header, claims, &self.key).expect("a token")
        }
    }

    /// Claims as kubelet gets them for a projected volume.
    pub fn claims(pod: &str, now: u64) -> Value {
        json!({
            "iss": ISSUER, "aud": [AUDIENCE], "sub": "system:serviceaccount:shop:support-agent", "jti": "j",
            "iat": now, "nbf": now, "exp": now + 3600,
            "kubernetes.io": {
                "namespace": "shop", "node": {"name": "n", "uid": "u-n"}, "pod": {"name": "support-1", "uid": pod},
                "serviceaccount": {"name": "support-agent", "uid": "u-s"}
            }
        })
    }

    const NOW: u64 = 1_795_276_800;

    #[test]
    fn a_projected_token_names_its_pod() {
        let signer = Signer::new("k");
        let verified = Keys::new(&signer.issuer()).verify(&signer.sign(&claims("u-1", NOW)), NOW);
        assert_eq!(
            verified,
            Ok(Verified {
                pod: "u-1".into(),
                expires: NOW + 3600
            })
        );
    }

    #[test]
    fn each_thing_that_can_be_wrong_is_found() {
        let signer = Signer::new("k");
        let keys = Keys::new(&signer.issuer());
        type Change = fn(&mut Value);
        let table: [(Change, TokenError); 7] = [
            (|c| c["iss"] = json!("https://elsewhere"), TokenError::Invalid),
            (|c| c["aud"] = json!(["other"]), TokenError::Invalid),
            (|c| drop(c.as_object_mut().map(|c| c.remove("aud"))), TokenError::Invalid),
            (|c| drop(c.as_object_mut().map(|c| c.remove("kubernetes.io"))), TokenError::Invalid),
            (|c| c["exp"] = json!(NOW - 61), TokenError::Expired),
            (|c| c["nbf"] = json!(NOW + 61), TokenError::Early),
            (|c| drop(c["kubernetes.io"].as_object_mut().map(|c| c.remove("pod"))), TokenError::Unbound),
        ];
        for (change, expected) in table {
            let mut claims = claims("u-1", NOW);
            change(&mut claims);
            assert_eq!(keys.verify(&signer.sign(&claims), NOW), Err(expected), "{claims}");
        }
        let mut late = claims("u-1", NOW);
        late["exp"] = json!(NOW - 59);
        assert!(keys.verify(&signer.sign(&late), NOW).is_ok(), "clocks differ a little");
        let other = Signer::new("k").sign(&claims("u-1", NOW));
        assert_eq!(keys.verify(&other, NOW), Err(TokenError::Invalid));
        let unknown = Signer::new("l").sign(&claims("u-1", NOW));
        assert_eq!(keys.verify(&unknown, NOW), Err(TokenError::UnknownKey));
    }

    #[test]
    fn a_token_does_not_choose_its_algorithm() {
        let signer = Signer::new("k");
        let keys = Keys::new(&signer.issuer());
        let good = signer.sign(&claims("u-1", NOW));
        let payload = good.split('.').nth(1).expect("a payload");
        let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
        for (algorithm, signature) in [("none", String::new()), ("HS256", URL_SAFE_NO_PAD.encode([0; 32]))] {
            let token = format!("{}.{payload}.{signature}", part(json!({"alg": algorithm, "kid": "k", "typ": "JWT"})));
            assert_eq!(keys.verify(&token, NOW), Err(TokenError::Invalid), "{algorithm}");
        }
        let symmetric = EncodingKey::from_secret(&signer.public);
        let header = Header {
            kid: Some("k".into()),
            ..Header::new(Algorithm::HS256)
        };
        let token = encode(&header, &claims("u-1", NOW), &symmetric).expect("a token");
        assert_eq!(keys.verify(&token, NOW), Err(TokenError::Invalid));
    }

    #[test]
    fn tokens_for_us_are_told_by_their_audience() {
        let signer = Signer::new("k");
        let with = |audience: Value| {
            let mut claims = claims("u-1", NOW);
            claims["aud"] = audience;
            signer.sign(&claims)
        };
        assert!(is_ours(&with(json!([AUDIENCE]))) && is_ours(&with(json!(AUDIENCE))));
        assert!(is_ours(&with(json!(["a", AUDIENCE]))));
        for other in [with(json!(["a"])), with(json!(3)), "flotilla".into(), "eyJ.eyJ.".into(), String::new(), "sk-abc".into()] {
            assert!(!is_ours(&other), "{other}");
        }
        assert!(!is_ours(&format!("{}.x", with(json!(AUDIENCE)))), "four parts");
    }
}
