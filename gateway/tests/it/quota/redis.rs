//! Quotas that namespaces share, with a real Redis. Where the machine has no `redis-server` these tests are left out, and say so;
//! with `FLOTILLA_REDIS=required`, as in continuous integration, they fail. `FLOTILLA_REDIS_SERVER` names another program that
//! takes the same options, for example `valkey-server`.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use flotilla_core::quota::Terms;
use flotilla_gateway::config::{Config, ProviderConfig};
use flotilla_gateway::egress::quota::redis::{Place, Server};
use flotilla_gateway::egress::quota::store::{Claim, Contents, Memory, StoreError};
use flotilla_gateway::egress::quota::{
    AllQuotas, Ask, Clock, Groups, Http, NotAdmitted, Pace, Permit, Setup, Store as _, Used, Why,
};
use flotilla_gateway::peers::Peers;
use http::{HeaderMap, StatusCode};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SanType};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::support::fresh_ip;

const PASSWORD: &str = "hunter2";

/// A server that keeps what it is told, and the Secret with its password.
struct Redis {
    child: Child,
    folder: PathBuf,
    /// By which its certificate names it, if it has one.
    ip: IpAddr,
    /// The same server, by which its certificate does not.
    alias: IpAddr,
    scheme: &'static str,
    /// Over TLS clients must show a certificate: `yes` or `no`.
    asks_clients: &'static str,
}

impl Redis {
    async fn start() -> Option<Self> {
        Self::start_with("redis", "no").await
    }

    async fn start_with(scheme: &'static str, asks_clients: &'static str) -> Option<Self> {
        let folder = std::env::temp_dir().join(format!("flotilla-redis-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("password"), format!("{PASSWORD}\n")).unwrap();
        let (ip, alias) = (fresh_ip(), fresh_ip());
        if scheme == "rediss" {
            certify(&folder, ip);
        }
        let Some(child) = run(&folder, [ip, alias], scheme, asks_clients) else {
            let required = std::env::var("FLOTILLA_REDIS").is_ok_and(|value| value == "required");
            assert!(
                !required,
                "there is no redis-server on this machine; install Debian's package of that name"
            );
            println!(
                "left out: there is no redis-server on this machine; install Debian's package of that name"
            );
            return None;
        };
        let redis = Self {
            child,
            folder,
            ip,
            alias,
            scheme,
            asks_clients,
        };
        redis.answers().await;
        Some(redis)
    }

    async fn answers(&self) {
        let place = Place::new(self.server(), "any");
        for _ in 0..500 {
            if place.read().await.is_ok() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("Redis does not answer");
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    async fn again(&mut self) {
        self.child = run(
            &self.folder,
            [self.ip, self.alias],
            self.scheme,
            self.asks_clients,
        )
        .unwrap();
        self.answers().await;
    }

    fn server(&self) -> Arc<Server> {
        self.server_at(self.scheme, self.ip)
    }

    fn server_at(&self, scheme: &str, ip: IpAddr) -> Arc<Server> {
        Arc::new(Server::new(&format!("{scheme}://{ip}:6379"), &self.folder).unwrap())
    }
}

/// An authority, and what it has signed for the server at `ip`.
fn certify(folder: &Path, ip: IpAddr) {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let authority = params.self_signed(&key).unwrap().pem();
    let issuer = Issuer::new(params, key);
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::IpAddress(ip)];
    // Named as the authority it would be taken for one that has signed itself.
    params.distinguished_name.push(DnType::CommonName, "redis");
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, &issuer).unwrap().pem();
    for (file, text) in [
        ("ca.crt", authority),
        ("tls.crt", certificate),
        ("tls.key", key.serialize_pem()),
    ] {
        std::fs::write(folder.join(file), text).unwrap();
    }
}

fn run(folder: &Path, ips: [IpAddr; 2], scheme: &str, asks_clients: &str) -> Option<Child> {
    let [ip, alias] = ips.map(|ip| ip.to_string());
    let ports = match scheme {
        "rediss" => &[
            "--port",
            "0",
            "--tls-port",
            "6379",
            "--tls-cert-file",
            "tls.crt",
            "--tls-key-file",
            "tls.key",
            "--tls-ca-cert-file",
            "ca.crt",
            "--tls-auth-clients",
            asks_clients,
        ][..],
        _ => &["--port", "6379"],
    };
    let program = std::env::var("FLOTILLA_REDIS_SERVER").unwrap_or_else(|_| "redis-server".to_owned());
    Command::new(program)
        .args(["--bind", &ip, &alias, "--requirepass", PASSWORD])
        .args(ports)
        .args(["--save", "", "--appendonly", "yes", "--appendfsync", "always"])
        .current_dir(folder)
        .stdout(Stdio::null())
        .spawn()
        .ok()
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// A gateway alone in a namespace; without `server` it can be in no group.
struct Gateway {
    quotas: Arc<AllQuotas>,
    stop: CancellationToken,
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Gateway {
    /// Its provider is called after its namespace.
    fn start(namespace: &str, server: Option<Arc<Server>>, limit: u64) -> Self {
        let peers = Arc::new(Peers::new(0));
        let stop = CancellationToken::new();
        let setup = Setup {
            pod: "gateway-0".to_owned(),
            instance: uuid::Uuid::new_v4().to_string(),
            within: Duration::from_secs(5),
            terms: Terms::default(),
            pace: Pace {
                claim: Duration::from_secs(2),
                renew: Duration::from_millis(500),
            },
            store: Arc::new(Memory::default()),
            peers: peers.clone(),
            transport: Arc::new(Http::new(peers, fresh_ip())),
            clock: Clock::system(),
        };
        let groups = server.map(|server| Groups {
            server,
            name: format!("{namespace}.gateway-0.uid"),
        });
        let quotas = AllQuotas::start(setup, groups, stop.clone());
        let limits = json!([{"name": "rpd", "resource": "Requests", "limit": limit, "window": "Day"}]);
        let provider = ProviderConfig {
            quotas: serde_json::from_value(limits).unwrap(),
            quota_group: Some("prod".to_owned()),
            ..ProviderConfig::default()
        };
        quotas.apply(&Config {
            providers: [(namespace.to_owned(), provider)].into(),
            ..Config::default()
        });
        Self { quotas, stop }
    }

    async fn reserve(&self, namespace: &str, patience: Duration) -> Result<Permit, NotAdmitted> {
        let ask = Ask {
            pool: "support",
            model: Some("mini"),
            bytes: 100,
            max_tokens: None,
            deadline: tokio::time::Instant::now() + patience,
        };
        Ok(self.quotas.reserve(namespace, ask).await?.expect("it has quotas"))
    }

    /// How many of `count` requests, all at once, are admitted.
    async fn send(&self, namespace: &str, count: usize, patience: Duration) -> usize {
        let requests = (0..count).map(|_| async {
            let mut permit = self.reserve(namespace, patience).await.ok()?;
            permit.answered(StatusCode::OK, &HeaderMap::new());
            permit.settle(Used::default());
            Some(())
        });
        let done = futures::future::join_all(requests).await;
        done.into_iter().flatten().count()
    }
}

#[tokio::test]
async fn claim_and_record_are_overwritten_by_compare_and_swap() {
    let Some(redis) = Redis::start().await else { return };
    let (one, two) = (Place::new(redis.server(), "a"), Place::new(redis.server(), "a"));
    let conflict = |result: Result<_, StoreError>| assert!(matches!(result, Err(StoreError::Conflict)));
    assert!(one.claim().await.unwrap().is_none());
    let claim = Claim {
        holder: "shop.g-1".into(),
        seconds: 10,
        transitions: 3,
        ..Claim::default()
    };
    let held = one.put_claim(claim.clone()).await.unwrap();
    assert_eq!(two.claim().await.unwrap().as_ref(), Some(&held));
    assert_eq!((held.transitions, held.seconds), (3, 10));
    conflict(two.put_claim(claim).await.map(drop));
    let renewed = one.put_claim(held.clone()).await.unwrap();
    assert_ne!(renewed.renewal, held.renewal);
    conflict(two.put_claim(held).await.map(drop));

    assert_eq!(one.read().await.unwrap(), (None, Contents::new()));
    let entry = |key: &str, text: &str| Contents::from([(key.to_owned(), text.to_owned())]);
    let first = one.write(None, entry("version", "a")).await.unwrap();
    conflict(two.write(None, entry("version", "b")).await.map(drop));
    let second = two.write(first.clone(), entry("spare", "c")).await.unwrap();
    conflict(one.write(first, entry("version", "d")).await.map(drop));
    let both = Contents::from([("version".into(), "a".into()), ("spare".into(), "c".into())]);
    assert_eq!(one.read().await.unwrap(), (second.clone(), both));
    // Another group knows nothing of it.
    let other = Place::new(redis.server(), "b");
    assert_eq!(other.read().await.unwrap(), (None, Contents::new()));

    let begin = Instant::now();
    let mut version = second;
    for _ in 0..100 {
        version = one.write(version, entry("spare", "c")).await.unwrap();
    }
    println!("a write: {:.2} ms", begin.elapsed().as_secs_f64() * 10.0);

    // A wrong password is no conflict, and is not repeated.
    std::fs::write(redis.folder.join("password"), "letmein").unwrap();
    let error = Place::new(redis.server(), "a").read().await.unwrap_err();
    let StoreError::Unclear(words) = &error else {
        panic!("{error}")
    };
    assert!(words.contains("Redis") && !words.contains("letmein"), "{words}");
}

#[tokio::test]
async fn namespaces_hold_a_quota_together_through_the_end_of_all_gateways_and_of_redis() {
    const LIMIT: usize = 60;
    let Some(mut redis) = Redis::start().await else {
        return;
    };
    let patience = Duration::from_secs(10);
    let (shop, bank) = (
        Gateway::start("shop", Some(redis.server()), LIMIT as u64),
        Gateway::start("bank", Some(redis.server()), LIMIT as u64),
    );
    // Both get a lease from whichever of them is elected.
    assert_eq!(shop.send("shop", 10, patience).await, 10);
    assert_eq!(bank.send("bank", 10, patience).await, 10);

    // All gateways are gone without a word, in the same moment.
    drop((shop, bank));
    let (shop, bank) = (
        Gateway::start("shop", Some(redis.server()), LIMIT as u64),
        Gateway::start("bank", Some(redis.server()), LIMIT as u64),
    );
    assert_eq!(bank.send("bank", 10, patience).await, 10);

    // What they have is used up while Redis is away, and no more.
    redis.kill();
    let patience = Duration::from_millis(500);
    let meanwhile = shop.send("shop", LIMIT, patience).await + bank.send("bank", LIMIT, patience).await;
    assert!(30 + meanwhile <= LIMIT, "{meanwhile} without Redis");
    redis.again().await;
    let patience = Duration::from_secs(10);
    let (one, other) = tokio::join!(
        shop.send("shop", LIMIT, patience),
        bank.send("bank", LIMIT, patience)
    );
    println!("{meanwhile} without Redis, {one} and {other} after it");
    // What the first two may have sent in their last moments, unseen, counts as sent for the whole day.
    let all = 30 + meanwhile + one + other;
    assert!((LIMIT - 10..=LIMIT).contains(&all), "{all} of {LIMIT}");

    let NotAdmitted::Refused(refused) = shop.reserve("shop", Duration::from_secs(1)).await.err().unwrap()
    else {
        panic!("not its quota");
    };
    assert_eq!(
        (refused.provider.as_str(), refused.quota.as_str()),
        ("shop", "rpd")
    );
    assert_ne!(refused.why, Why::NoShare);
    shop.quotas.leave().await;
}

#[tokio::test]
async fn over_tls_only_the_server_that_the_authority_names_is_spoken_to() {
    let Some(redis) = Redis::start_with("rediss", "no").await else {
        return;
    };
    let patience = Duration::from_secs(10);
    let (shop, bank) = (
        Gateway::start("shop", Some(redis.server()), 20),
        Gateway::start("bank", Some(redis.server()), 20),
    );
    let (one, other) = tokio::join!(shop.send("shop", 8, patience), bank.send("bank", 8, patience));
    assert_eq!((one, other), (8, 8));

    let refused = async |server: Arc<Server>, why: &str| {
        let error = Place::new(server, "prod").read().await.unwrap_err();
        let StoreError::Unclear(words) = &error else {
            panic!("{error}")
        };
        assert!(words.contains(why) && !words.contains(PASSWORD), "{why}: {words}");
    };
    refused(redis.server_at("rediss", redis.alias), "certificate").await;
    refused(redis.server_at("redis", redis.ip), "Redis").await;
    // Neither somebody else's authority nor, without any, one that the world trusts.
    let own = std::fs::read(redis.folder.join("ca.crt")).unwrap();
    certify(&redis.folder, redis.ip);
    refused(redis.server(), "certificate").await;
    std::fs::remove_file(redis.folder.join("ca.crt")).unwrap();
    refused(redis.server(), "certificate").await;
    // One that comes later is used without a restart.
    std::fs::write(redis.folder.join("ca.crt"), own).unwrap();
    Place::new(redis.server(), "prod").read().await.unwrap();
}

#[tokio::test]
async fn a_server_that_asks_for_a_certificate_is_shown_the_secrets() {
    let Some(redis) = Redis::start_with("rediss", "yes").await else {
        return;
    };
    Place::new(redis.server(), "prod").read().await.unwrap();
    // One that comes later is used without a restart; without its key it is of no use.
    let (server, key) = (redis.server(), redis.folder.join("tls.key"));
    let own = std::fs::read(&key).unwrap();
    std::fs::remove_file(&key).unwrap();
    let error = Place::new(server.clone(), "prod").read().await.unwrap_err();
    assert!(matches!(error, StoreError::Unclear(_)), "{error}");
    std::fs::write(&key, own).unwrap();
    Place::new(server, "prod").read().await.unwrap();
}

#[tokio::test]
async fn a_group_without_redis_is_told_what_to_do() {
    let alone = Gateway::start("shop", None, 10);
    let why = alone.reserve("shop", Duration::from_secs(1)).await.err().unwrap();
    let NotAdmitted::Impossible(sentence) = why else {
        panic!("{why:?}")
    };
    assert!(sentence.contains("gateway.quotaRedis"), "{sentence}");
}
