//! ServiceAccount tokens: which are meant for us, and which are good.
//!
//! Of JSON Web Tokens (RFC 7515, 7519) this needs one form, one audience and the two kinds of keys that API servers sign with.
//! The algorithm is the published key's, never the token's, so none can ask for `none` or for a public key to be taken as
//! a secret; claims are read into types, so one of another type is an error and not absent. Signatures are checked by ring,
//! which our TLS stands on; the libraries for more bring a second cryptography along.

use std::collections::HashMap;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use flotilla_crds::names::TOKEN_AUDIENCE as AUDIENCE;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA384,
    RSA_PKCS1_2048_8192_SHA512, RsaPublicKeyComponents, UnparsedPublicKey, VerificationAlgorithm,
};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::Verified;
use crate::config::issuer::{Issuer, Jwk};

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
    /// With the name of its algorithm.
    by_id: HashMap<String, (String, Key)>,
}

/// One public key.
enum Key {
    Rsa(
        &'static ring::signature::RsaParameters,
        RsaPublicKeyComponents<Vec<u8>>,
    ),
    Curve(&'static dyn VerificationAlgorithm, Vec<u8>),
}

#[derive(Deserialize)]
struct Head {
    alg: String,
    kid: String,
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
    iss: String,
    aud: Audience,
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

impl Audience {
    fn is_us(&self) -> bool {
        match self {
            Self::One(audience) => audience == AUDIENCE,
            Self::Many(audiences) => audiences.iter().any(|audience| audience == AUDIENCE),
        }
    }
}

/// True for a token of audience [`AUDIENCE`], good or not: what SDKs send when they were given no token is anything.
pub fn is_ours(token: &str) -> bool {
    // Every JSON object begins with `{"`.
    if !token.starts_with("eyJ") || token.len() > MAX_TOKEN {
        return false;
    }
    let Some([_, payload, _]) = parts(token) else {
        return false;
    };
    read::<Addressed>(payload).is_some_and(|claims| claims.aud.is_us())
}

fn parts(token: &str) -> Option<[&str; 3]> {
    let mut parts = token.split('.');
    let found = [parts.next()?, parts.next()?, parts.next()?];
    parts.next().is_none().then_some(found)
}

fn read<T: DeserializeOwned>(part: &str) -> Option<T> {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).ok()?).ok()
}

impl Key {
    /// A key that can be used, and its algorithm's name.
    fn new(jwk: &Jwk) -> Option<(String, Self)> {
        let bytes = |text: &str| {
            URL_SAFE_NO_PAD
                .decode(text)
                .ok()
                .filter(|bytes| !bytes.is_empty())
        };
        let rsa = |parameters| {
            let (n, e) = (bytes(&jwk.n)?, bytes(&jwk.e)?);
            Some(Self::Rsa(parameters, RsaPublicKeyComponents { n, e }))
        };
        let curve = |algorithm| {
            // Uncompressed, as SEC 1 section 2.3.3 writes points.
            let point = [&[4][..], &bytes(&jwk.x)?, &bytes(&jwk.y)?].concat();
            Some(Self::Curve(algorithm, point))
        };
        let key = match jwk.alg.as_str() {
            "RS256" => rsa(&RSA_PKCS1_2048_8192_SHA256),
            "RS384" => rsa(&RSA_PKCS1_2048_8192_SHA384),
            "RS512" => rsa(&RSA_PKCS1_2048_8192_SHA512),
            "ES256" => curve(&ECDSA_P256_SHA256_FIXED),
            "ES384" => curve(&ECDSA_P384_SHA384_FIXED),
            _ => None,
        };
        Some((jwk.alg.clone(), key?))
    }

    fn has_signed(&self, message: &[u8], signature: &[u8]) -> bool {
        match self {
            Self::Rsa(parameters, key) => key.verify(parameters, message, signature),
            Self::Curve(algorithm, point) => {
                UnparsedPublicKey::new(*algorithm, point).verify(message, signature)
            }
        }
        .is_ok()
    }
}

impl Keys {
    /// Prepares the keys of `issuer`. One that cannot be used signs nothing that is good.
    pub fn new(issuer: &Issuer) -> Self {
        let prepared = issuer
            .keys
            .keys
            .iter()
            .filter(|jwk| !jwk.kid.is_empty())
            .filter_map(|jwk| Some((jwk.kid.clone(), Key::new(jwk)?)));
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
        let [head, payload, signature] = parts(token).ok_or(TokenError::Invalid)?;
        let Head { alg, kid } = read(head).ok_or(TokenError::Invalid)?;
        let (algorithm, key) = self.by_id.get(&kid).ok_or(TokenError::UnknownKey)?;
        let signature = URL_SAFE_NO_PAD
            .decode(signature)
            .map_err(|_| TokenError::Invalid)?;
        let signed = token.get(..head.len() + 1 + payload.len()).unwrap_or_default();
        if alg != *algorithm || !key.has_signed(signed.as_bytes(), &signature) {
            return Err(TokenError::Invalid);
        }
        let claims: Claims = read(payload).ok_or(TokenError::Invalid)?;
        if claims.iss != self.issuer.name || !claims.aud.is_us() {
            return Err(TokenError::Invalid);
        }
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

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use ring::rand::SystemRandom;
    use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
    use serde_json::{Value, json};

    const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

    /// A cluster's signing key.
    pub struct Signer {
        id: String,
        pair: EcdsaKeyPair,
    }

    impl Signer {
        pub fn new(id: &str) -> Self {
            let random = SystemRandom::new();
            let document =
                EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).expect("a key");
            let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, document.as_ref(), &random)
                .expect("a key");
            Self {
                id: id.to_owned(),
                pair,
            }
        }

        pub fn issuer(&self) -> Issuer {
            let part = |range: std::ops::Range<usize>| {
                URL_SAFE_NO_PAD.encode(&self.pair.public_key().as_ref()[range])
            };
            let keys = json!({"keys": [{
                "use": "sig", "kty": "EC", "kid": self.id, "crv": "P-256", "alg": "ES256", "x": part(1..33), "y": part(33..65)
            }]});
            Issuer {
                name: ISSUER.to_owned(),
                keys: serde_json::from_value(keys).expect("keys"),
            }
        }

        pub fn sign(&self, claims: &Value) -> String {
            self.sign_with(&json!({"alg": "ES256", "kid": self.id, "typ": "JWT"}), claims)
        }

        fn sign_with(&self, head: &Value, claims: &Value) -> String {
            let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
            let signed = format!("{}.{}", part(head), part(claims));
            let signature = self
                .pair
                .sign(&SystemRandom::new(), signed.as_bytes())
                .expect("a signature");
            format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref()))
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
            (
                |c| drop(c.as_object_mut().map(|c| c.remove("aud"))),
                TokenError::Invalid,
            ),
            (
                |c| drop(c.as_object_mut().map(|c| c.remove("kubernetes.io"))),
                TokenError::Invalid,
            ),
            (|c| c["exp"] = json!(NOW - 61), TokenError::Expired),
            (|c| c["nbf"] = json!(NOW + 61), TokenError::Early),
            (
                |c| drop(c["kubernetes.io"].as_object_mut().map(|c| c.remove("pod"))),
                TokenError::Unbound,
            ),
        ];
        for (change, expected) in table {
            let mut claims = claims("u-1", NOW);
            change(&mut claims);
            assert_eq!(keys.verify(&signer.sign(&claims), NOW), Err(expected), "{claims}");
        }
        let mut late = claims("u-1", NOW);
        late["exp"] = json!(NOW - 59);
        assert!(
            keys.verify(&signer.sign(&late), NOW).is_ok(),
            "clocks differ a little"
        );
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
        for (algorithm, signature) in [
            ("none", String::new()),
            ("HS256", URL_SAFE_NO_PAD.encode([0; 32])),
        ] {
            let token = format!(
                "{}.{payload}.{signature}",
                part(json!({"alg": algorithm, "kid": "k", "typ": "JWT"}))
            );
            assert_eq!(keys.verify(&token, NOW), Err(TokenError::Invalid), "{algorithm}");
        }
        let other = signer.sign_with(&json!({"alg": "RS256", "kid": "k"}), &claims("u-1", NOW));
        assert_eq!(
            keys.verify(&other, NOW),
            Err(TokenError::Invalid),
            "signed well, but named wrongly"
        );
    }

    #[test]
    fn the_keys_of_api_servers_are_understood() {
        // As a Kubernetes 1.37 API server signed and published it, with a key made for this test.
        let signed: Value = serde_json::from_str(include_str!("kubernetes.json")).expect("JSON");
        let issuer = Issuer {
            name: signed["issuer"].as_str().expect("an issuer").to_owned(),
            keys: serde_json::from_value(signed["jwks"].clone()).expect("keys"),
        };
        let token = signed["token"].as_str().expect("a token");
        assert!(is_ours(token));
        let now = signed["time"].as_u64().expect("a time");
        let verified = Keys::new(&issuer).verify(token, now).expect("a good token");
        assert_eq!(*verified.pod, *signed["pod"].as_str().expect("a pod"));
        assert!(verified.expires > now);
    }

    #[test]
    fn keys_that_cannot_be_used_are_left_out() {
        let good = Signer::new("k").issuer();
        type Change = fn(&mut Jwk);
        let table: [Change; 4] = [
            |k| k.kid.clear(),
            |k| k.alg = "HS256".into(),
            |k| k.x = "*".into(),
            |k| k.y.clear(),
        ];
        for change in table {
            let mut issuer = good.clone();
            issuer.keys.keys.iter_mut().for_each(change);
            assert!(Keys::new(&issuer).by_id.is_empty(), "{issuer:?}");
        }
        assert_eq!(Keys::new(&good).by_id.len(), 1);
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
        for other in [
            with(json!(["a"])),
            with(json!(3)),
            "flotilla".into(),
            "eyJ.eyJ.".into(),
            String::new(),
            "sk-abc".into(),
        ] {
            assert!(!is_ours(&other), "{other}");
        }
        assert!(!is_ours(&format!("{}.x", with(json!(AUDIENCE)))), "four parts");
    }
}
