//! Who may use the egress where a revision's pods prove themselves by a token.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::support::{Agent, Answer, Client, Fixture, fresh_ip, full, provider, request, settings};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use flotilla_gateway::config::issuer::{Issuer, Jwk, JwkSet};
use flotilla_gateway::config::{AgentPods, Config};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use serde_json::json;

const ISSUER: &str = "https://kubernetes.default.svc";

struct Signer(EcdsaKeyPair);

impl Signer {
    fn new() -> Self {
        let random = SystemRandom::new();
        let document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
        Self(EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, document.as_ref(), &random).unwrap())
    }

    fn issuer(&self) -> Issuer {
        let point = self.0.public_key().as_ref();
        let key = Jwk {
            kid: "k".into(),
            alg: "ES256".into(),
            x: URL_SAFE_NO_PAD.encode(&point[1..33]),
            y: URL_SAFE_NO_PAD.encode(&point[33..]),
            ..Jwk::default()
        };
        Issuer {
            name: ISSUER.into(),
            keys: JwkSet { keys: vec![key] },
        }
    }

    fn token(&self, pod: &str) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let part = |value: serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let head = part(json!({"alg": "ES256", "kid": "k"}));
        let claims = part(json!({
            "iss": ISSUER, "aud": ["flotilla-gateway"], "nbf": now, "exp": now + 600, "kubernetes.io": {"pod": {"name": "p", "uid": pod}}
        }));
        let signed = format!("{head}.{claims}");
        let signature = self.0.sign(&SystemRandom::new(), signed.as_bytes()).unwrap();
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref()))
    }
}

/// A provider that answers with what it was given as a proof.
async fn upstream() -> Agent {
    Agent::start(|request: Request<Incoming>| async move {
        let headers = request.headers();
        let proofs: Vec<_> = ["authorization", "x-api-key"]
            .iter()
            .filter_map(|name| headers.get(*name))
            .map(|value| value.to_str().unwrap().to_owned())
            .collect();
        Response::new(full(format!("proofs: {proofs:?}")))
    })
    .await
}

/// `proven` has to send a token, `plain` has not.
fn config(at: &Agent, signer: &Signer, proven: IpAddr, plain: IpAddr) -> Config {
    Config {
        agents: [proven, plain].into(),
        pods: AgentPods {
            addresses: [("u-proven".to_owned(), proven), ("u-plain".to_owned(), plain)].into(),
            proven: [proven].into(),
        },
        issuer: Some(Arc::new(signer.issuer())),
        providers: [(
            "open".to_owned(),
            provider(format!("http://{}/v1", at.address), None),
        )]
        .into(),
        ..Config::default()
    }
}

async fn ask(fixture: &Fixture, from: IpAddr, proof: &[(&'static str, String)]) -> Answer {
    let mut request = request(Method::GET, "/providers/open/v1/models", "");
    for (name, value) in proof {
        request
            .headers_mut()
            .insert(*name, HeaderValue::from_str(value).unwrap());
    }
    let mut client = Client::connect_from(from, fixture.gateway.egress).await;
    client.send(request).await.unwrap()
}

#[tokio::test]
async fn a_token_is_its_pod_and_without_it_the_pod_is_nobody() {
    let (signer, at, proven, plain) = (Signer::new(), upstream().await, fresh_ip(), fresh_ip());
    let fixture = Fixture::start(settings()).await;
    fixture.tell(config(&at, &signer, proven, plain)).await;
    let bearer = |token: &str| vec![("authorization", format!("Bearer {token}"))];
    let key = |token: &str| vec![("x-api-key", token.to_owned())];
    let good = signer.token("u-proven");
    let anywhere = fresh_ip();
    for (what, from, proof, code) in [
        ("the token from its own address", proven, bearer(&good), ""),
        ("the token as Anthropic's SDK sends it", proven, key(&good), ""),
        (
            "the token behind a translated address",
            anywhere,
            bearer(&good),
            "",
        ),
        ("an address that is enough", plain, bearer("flotilla"), ""),
        (
            "a token where none is needed",
            plain,
            key(&signer.token("u-plain")),
            "",
        ),
        ("no token", proven, bearer("flotilla"), "TokenRequired"),
        ("nothing at all", proven, vec![], "TokenRequired"),
        ("a stranger", anywhere, bearer("flotilla"), "NotAnAgent"),
        (
            "a token of another cluster",
            proven,
            bearer(&Signer::new().token("u-proven")),
            "TokenRefused",
        ),
        (
            "a token of another cluster from a good address",
            plain,
            key(&Signer::new().token("u-plain")),
            "TokenRefused",
        ),
        (
            "a token of a pod that has gone",
            proven,
            bearer(&signer.token("u-gone")),
            "NotAnAgent",
        ),
    ] {
        let answer = ask(&fixture, from, &proof).await;
        assert_eq!(answer.code(), code, "{what}: {}", answer.text());
        assert_eq!(answer.status == StatusCode::OK, code.is_empty(), "{what}");
        // Neither is a token told to anybody, nor does it reach the provider.
        assert!(!answer.text().contains("eyJ"), "{what}: {}", answer.text());
    }
    assert_eq!(at.hits(), 5);
}

#[tokio::test]
async fn without_the_clusters_keys_a_token_waits() {
    let (signer, at, proven, plain) = (Signer::new(), upstream().await, fresh_ip(), fresh_ip());
    let fixture = Fixture::start(settings()).await;
    let mut before = config(&at, &signer, proven, plain);
    before.issuer = None;
    fixture.tell(before).await;
    let proof = [("x-api-key", signer.token("u-proven"))];
    let answer = ask(&fixture, proven, &proof).await;
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (StatusCode::SERVICE_UNAVAILABLE, "TokenUnverifiable")
    );
    assert_eq!(answer.headers["retry-after"], "2");
    fixture.tell(config(&at, &signer, proven, plain)).await;
    for attempt in 0.. {
        let answer = ask(&fixture, proven, &proof).await;
        if answer.status == StatusCode::OK {
            break;
        }
        assert!(
            attempt < 200 && answer.code() == "TokenUnverifiable",
            "{}",
            answer.text()
        );
    }
}
