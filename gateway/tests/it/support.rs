//! Agents, clients and gateways on loopback, each with an address of its own.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use flotilla_core::balance::EjectionPolicy;
use flotilla_core::stats::Stats;
use flotilla_gateway::config::watch::Freshness;
use flotilla_gateway::config::{
    AppProtocol, Balancing, Config, EndpointConfig, HttpConfig, PoolConfig, ProviderConfig, RetryConfig,
    RevisionConfig,
};
use flotilla_gateway::observe::Observe;
use flotilla_gateway::server::ConnectionLimits;
use flotilla_gateway::upstream::Limits;
use flotilla_gateway::{Gateway, Ports, Settings};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub type Body = BoxBody<Bytes, hyper::Error>;

pub fn full(text: impl Into<Bytes>) -> Body {
    Full::new(text.into()).map_err(|never| match never {}).boxed()
}

/// A loopback address that no other test has.
pub fn fresh_ip() -> IpAddr {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    let number = NEXT.fetch_add(1, Ordering::Relaxed).to_be_bytes();
    IpAddr::V4(Ipv4Addr::new(127, 77, number[2], number[3]))
}

/// An HTTP server in the place of an agent or a provider.
pub struct Agent {
    pub address: SocketAddr,
    pub hits: Arc<AtomicUsize>,
    stop: CancellationToken,
}

impl Agent {
    pub async fn start<F, R>(answer: F) -> Self
    where
        F: Fn(Request<Incoming>) -> R + Send + Sync + 'static,
        R: Future<Output = Response<Body>> + Send + 'static,
    {
        let listener = TcpListener::bind((fresh_ip(), 0)).await.unwrap();
        let (stop, hits) = (CancellationToken::new(), Arc::new(AtomicUsize::new(0)));
        let agent = Self {
            address: listener.local_addr().unwrap(),
            hits: hits.clone(),
            stop: stop.clone(),
        };
        let answer = Arc::new(answer);
        tokio::spawn(async move {
            loop {
                let stream = tokio::select! {
                    accepted = listener.accept() => accepted.unwrap().0,
                    () = stop.cancelled() => return,
                };
                stream.set_nodelay(true).unwrap();
                let (answer, hits, stop) = (answer.clone(), hits.clone(), stop.clone());
                tokio::spawn(async move {
                    let service = service_fn(move |request| {
                        hits.fetch_add(1, Ordering::SeqCst);
                        let response = answer(request);
                        async move { Ok::<_, Infallible>(response.await) }
                    });
                    let connection = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service);
                    tokio::select! {
                        _ = connection => {}
                        () = stop.cancelled() => {}
                    }
                });
            }
        });
        agent
    }

    /// Answers with `name`.
    pub async fn named(name: &'static str) -> Self {
        Self::start(move |_| async move { Response::new(full(name)) }).await
    }

    pub fn hits(&self) -> usize {
        self.hits.load(Ordering::SeqCst)
    }

    /// Closes everything at once, as a process that is killed.
    pub fn kill(&self) {
        self.stop.cancel();
    }

    pub fn ip(&self) -> String {
        self.address.ip().to_string()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// An address at which nobody listens.
pub async fn nobody() -> SocketAddr {
    let listener = TcpListener::bind((fresh_ip(), 0)).await.unwrap();
    listener.local_addr().unwrap()
}

/// A pool with patience and room, on no port.
pub fn pool() -> PoolConfig {
    PoolConfig {
        uid: "uid".into(),
        service: "support".into(),
        port: None,
        generation: 1,
        weights: vec![],
        balancing: Balancing::RoundRobin,
        request_timeout: Duration::from_secs(10),
        max_requests: 10_000,
        retries: RetryConfig::default(),
        ejection: EjectionPolicy::default(),
        queue_requests: 100,
        queue_wait: Duration::from_secs(5),
        http: HttpConfig::default(),
        tenant_header: None,
        priority_header: None,
        stopped: false,
        sessions: None,
        preview: None,
        revisions: BTreeMap::new(),
    }
}

pub trait PoolExt {
    fn revision(self, name: &str, weight: u32, slots: u32, agents: &[SocketAddr]) -> Self;
}

impl PoolExt for PoolConfig {
    fn revision(mut self, name: &str, weight: u32, slots: u32, agents: &[SocketAddr]) -> Self {
        let endpoint = |address: &SocketAddr| {
            (
                *address,
                EndpointConfig {
                    uid: String::new(),
                    ready: true,
                    slots: None,
                },
            )
        };
        let revision = RevisionConfig {
            slots,
            app_protocol: AppProtocol::HTTP1,
            endpoints: agents.iter().map(endpoint).collect(),
        };
        self.revisions.insert(name.into(), revision);
        self.weights.push((name.into(), weight));
        self
    }
}

pub fn config(pool: PoolConfig) -> Config {
    Config {
        pools: [("support".to_owned(), pool)].into(),
        ..Config::default()
    }
}

pub fn provider(endpoint: String, secret: Option<(&str, &str)>) -> ProviderConfig {
    ProviderConfig {
        generation: 1,
        endpoint,
        secret: secret.map(|(name, key)| (name.into(), key.into())),
        ..ProviderConfig::default()
    }
}

/// A gateway that is told by the test.
pub struct Fixture {
    pub gateway: Gateway,
    told: watch::Sender<Option<Arc<Config>>>,
}

pub fn settings() -> Settings {
    Settings {
        namespace: "apps".into(),
        pod: "gateway-0".into(),
        cluster_domain: "cluster.local".into(),
        listen: fresh_ip(),
        ports: Ports {
            ingress: 0,
            egress: 0,
            admin: 0,
        },
        credentials: PathBuf::from("/nonexistent"),
        max_connections: 1000,
        clients: ConnectionLimits {
            head: Duration::from_secs(10),
            idle: Duration::from_secs(60),
            stall: Duration::from_secs(60),
        },
        agents: Limits {
            connect: Duration::from_secs(1),
            idle: Duration::from_secs(4),
        },
        providers: Limits {
            connect: Duration::from_secs(5),
            idle: Duration::from_secs(20),
        },
        provider_timeout: Duration::from_secs(10),
        max_provider_request_bytes: 32 << 20,
        observe: Observe::default(),
        workers: 2,
        drain_idle: Duration::from_millis(300),
        drain_deadline: Duration::from_secs(10),
    }
}

impl Fixture {
    pub async fn start(settings: Settings) -> Self {
        let (told, source) = watch::channel(None);
        let gateway = Gateway::start(settings, source, Arc::new(Freshness::default()))
            .await
            .unwrap();
        Self { gateway, told }
    }

    pub async fn with(config: Config) -> Self {
        let fixture = Self::start(settings()).await;
        fixture.tell(config).await;
        fixture
    }

    /// Sends a configuration and waits until it is in force.
    pub async fn tell(&self, config: Config) {
        self.tell_only(config.clone());
        self.wait("the configuration is in force", |stats| {
            config.pools.iter().all(|(name, wanted)| {
                stats.pools.get(name).is_some_and(|pool| {
                    pool.port == wanted.port.map(i32::from)
                        && wanted.revisions.iter().all(|(name, revision)| {
                            let mut ready: Vec<_> = revision
                                .endpoints
                                .iter()
                                .filter(|(_, e)| e.ready)
                                .map(|(a, _)| *a)
                                .collect();
                            ready.sort_unstable();
                            let ready: Vec<_> =
                                ready.iter().map(|address| address.ip().to_string()).collect();
                            pool.revisions
                                .get(name)
                                .is_some_and(|seen| seen.endpoints == ready)
                        })
                })
            }) && config
                .providers
                .keys()
                .all(|name| stats.providers.contains_key(name))
        })
        .await;
        // Applied in this order: pools, ports, providers, agents.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    pub fn tell_only(&self, config: Config) {
        self.told.send_replace(Some(Arc::new(config)));
    }

    pub async fn stats(&self) -> Stats {
        let answer = get(self.gateway.admin, "/stats").await;
        assert_eq!(answer.status, StatusCode::OK);
        serde_json::from_slice(&answer.body).unwrap()
    }

    pub async fn wait(&self, what: &str, met: impl Fn(&Stats) -> bool) -> Stats {
        for _ in 0..500 {
            let stats = self.stats().await;
            if met(&stats) {
                return stats;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("not within 5 s: {what}; {:#?}", self.stats().await);
    }

    pub async fn readyz(&self) -> (StatusCode, String) {
        let answer = get(self.gateway.admin, "/readyz").await;
        (answer.status, answer.text())
    }

    pub async fn metrics(&self) -> String {
        get(self.gateway.admin, "/metrics").await.text()
    }

    /// Does `act` again and again until `line` is among the metrics.
    pub async fn wait_for_metric<F: Future<Output = ()>>(&self, line: &str, act: impl Fn() -> F) {
        for _ in 0..500 {
            if self.metrics().await.contains(line) {
                return;
            }
            act().await;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("not within 5 s: {line}; {}", self.metrics().await);
    }

    pub fn path(&self, rest: &str) -> String {
        format!("/pools/support{rest}")
    }
}

#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn code(&self) -> String {
        let json: serde_json::Value = serde_json::from_slice(&self.body).unwrap_or_default();
        json["error"]["code"].as_str().unwrap_or_default().to_owned()
    }

    pub fn closes(&self) -> bool {
        self.headers
            .get("connection")
            .is_some_and(|value| value == "close")
    }
}

/// One keep-alive connection without retries.
pub struct Client {
    pub sender: SendRequest<Body>,
    pub task: tokio::task::JoinHandle<()>,
}

impl Client {
    pub async fn connect(to: SocketAddr) -> Self {
        Self::over(TcpStream::connect(to).await.unwrap()).await
    }

    pub async fn connect_from(from: IpAddr, to: SocketAddr) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::new(from, 0)).unwrap();
        Self::over(socket.connect(to).await.unwrap()).await
    }

    pub async fn over(stream: TcpStream) -> Self {
        stream.set_nodelay(true).unwrap();
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .unwrap();
        let task = tokio::spawn(async move {
            let _ = connection.await;
        });
        Self { sender, task }
    }

    pub async fn send(&mut self, request: Request<Body>) -> Result<Answer, hyper::Error> {
        self.sender.ready().await?;
        let (head, body) = self.sender.send_request(request).await?.into_parts();
        Ok(Answer {
            status: head.status,
            headers: head.headers,
            body: body.collect().await?.to_bytes(),
        })
    }

    pub async fn get(&mut self, path: &str) -> Answer {
        self.send(request(Method::GET, path, "")).await.unwrap()
    }
}

pub fn request(method: Method, path: &str, body: impl Into<Bytes>) -> Request<Body> {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "gateway");
    request.body(full(body)).unwrap()
}

pub async fn get(to: SocketAddr, path: &str) -> Answer {
    Client::connect(to).await.get(path).await
}

pub async fn post(to: SocketAddr, path: &str, body: &'static str) -> Answer {
    Client::connect(to)
        .await
        .send(request(Method::POST, path, body))
        .await
        .unwrap()
}
