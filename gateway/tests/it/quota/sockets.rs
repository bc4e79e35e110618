//! Whole gateways with real sockets: reports over the admin port, what agents see, what is reported.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use flotilla_gateway::config::watch::Freshness;
use flotilla_gateway::config::{Config, Quota};
use flotilla_gateway::egress::quota::store::{Claim, Memory, Store};
use flotilla_gateway::egress::quota::{PATH, VOUCH_PATH};
use flotilla_gateway::{Gateway, Settings};
use futures::StreamExt as _;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Frame, Incoming};
use parking_lot::Mutex;
use serde_json::json;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;

use crate::models::{ask, chat as asks, config, idle, priced, spent, with_budget};
use crate::support::{Agent, Body, Client, Fixture, fresh_ip, full, get, post, provider, request, settings};

fn admin_port() -> u16 {
    static PORT: AtomicU16 = AtomicU16::new(19_090);
    PORT.fetch_add(1, Ordering::Relaxed)
}

/// Gateways of one namespace: their admin port is the same, on addresses of their own.
struct Namespace {
    gateways: Vec<(Gateway, watch::Sender<Option<Arc<Config>>>)>,
    agent: IpAddr,
}

impl Namespace {
    async fn start(count: usize, at: &Agent, quotas: serde_json::Value) -> Self {
        Self::start_with(count, at, quotas, admin_port(), None).await
    }

    /// `lost`: the address of a gateway that was elected and does not answer any more.
    async fn start_with(
        count: usize,
        at: &Agent,
        quotas: serde_json::Value,
        port: u16,
        lost: Option<IpAddr>,
    ) -> Self {
        let quotas: Vec<Quota> = serde_json::from_value(quotas).unwrap();
        let store: Arc<dyn Store> = Arc::new(Memory::default());
        if lost.is_some() {
            let claim = Claim {
                holder: "lost".to_owned(),
                seconds: 10,
                ..Claim::default()
            };
            store.put_claim(claim).await.unwrap();
        }
        let agent = fresh_ip();
        let mut main = provider(format!("http://{}/v1", at.address), None);
        main.quotas = quotas;
        let all: Vec<Settings> = (0..count)
            .map(|number| {
                let mut settings = settings();
                settings.pod = format!("g-{number}");
                settings.ports.admin = port;
                settings
            })
            .collect();
        let config = Arc::new(Config {
            agents: [agent].into(),
            agent_pools: [(agent, Arc::from("support"))].into(),
            gateway_pods: all
                .iter()
                .map(|settings| (settings.pod.clone(), settings.listen))
                .chain(lost.map(|address| ("lost".to_owned(), address)))
                .collect(),
            providers: [("main".to_owned(), main)].into(),
            ..Config::default()
        });
        let mut gateways = Vec::new();
        for settings in all {
            let (told, source) = watch::channel(Some(config.clone()));
            let freshness = Arc::new(Freshness::default());
            let gateway = Gateway::start_with(settings, source, freshness, store.clone(), None)
                .await
                .unwrap();
            gateways.push((gateway, told));
        }
        let namespace = Self { gateways, agent };
        for number in 0..count {
            for attempt in 0.. {
                if namespace.stats(number).await.providers.contains_key("main") {
                    break;
                }
                assert!(attempt < 500, "the provider is not in force");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        namespace
    }

    async fn stats(&self, number: usize) -> flotilla_core::stats::Stats {
        let answer = get(self.gateways[number].0.admin, "/stats").await;
        serde_json::from_slice(&answer.body).unwrap()
    }

    fn egress(&self, number: usize) -> SocketAddr {
        self.gateways[number].0.egress
    }
}

fn chat(patience: Option<&'static str>) -> Request<Body> {
    let body = r#"{"model":"mini","max_tokens":10,"messages":[{"role":"user","content":"hello"}]}"#;
    let mut request = request(Method::POST, "/providers/main/v1/chat/completions", body);
    let headers = request.headers_mut();
    headers.insert("content-type", HeaderValue::from_static("application/json"));
    if let Some(patience) = patience {
        headers.insert("x-stainless-read-timeout", HeaderValue::from_static(patience));
    }
    request
}

/// A provider that notes when it was asked.
async fn counting() -> (Agent, Arc<Mutex<Vec<Instant>>>) {
    let counted: Arc<Mutex<Vec<Instant>>> = Arc::default();
    let noted = counted.clone();
    let agent = Agent::start(move |request: Request<Incoming>| {
        noted.lock().push(Instant::now());
        async move {
            let _ = request.into_body().collect().await;
            let mut response = Response::new(full(
                r#"{"model":"mini","usage":{"prompt_tokens":9,"completion_tokens":5}}"#,
            ));
            let headers = response.headers_mut();
            headers.insert("content-type", HeaderValue::from_static("application/json"));
            headers.insert("x-ratelimit-remaining-requests", HeaderValue::from_static("1000"));
            response
        }
    })
    .await;
    (agent, counted)
}

#[tokio::test]
async fn three_gateways_hold_one_quota_and_agents_see_no_refusal() {
    let (at, counted) = counting().await;
    let quota = json!([{"name": "rps", "resource": "Requests", "limit": 30, "windowSeconds": 2}]);
    let namespace = Namespace::start(3, &at, quota).await;
    let mut agents = Vec::new();
    for number in [0, 0, 0, 0, 1, 2] {
        let (agent, to) = (namespace.agent, namespace.egress(number));
        agents.push(tokio::spawn(async move {
            let mut client = Client::connect_from(agent, to).await;
            for _ in 0..20 {
                let answer = client.send(chat(None)).await.unwrap();
                assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
            }
        }));
    }
    for agent in agents {
        agent.await.unwrap();
    }
    let counted = counted.lock().clone();
    assert_eq!(counted.len(), 120);
    // The provider's own clock, which is this one: any 31 in a row take longer than the window.
    let tightest = counted.windows(31).map(|part| part[30] - part[0]).min().unwrap();
    assert!(
        tightest >= Duration::from_secs(2),
        "31 of 30 requests within {tightest:?}"
    );

    let mut total = 0;
    let mut pools = BTreeMap::new();
    for number in 0..3 {
        let stats = namespace.stats(number).await;
        let main = &stats.providers["main"];
        assert_eq!((main.quotas[0].name.as_str(), main.quotas[0].limit), ("rps", 30));
        total += usize::from(main.quotas[0].total.is_some());
        for (pool, counts) in &main.quota_pools {
            let sums: &mut (u64, u64) = pools.entry(pool.clone()).or_default();
            sums.0 += counts.admitted + counts.waited;
            sums.1 += counts.wait_microseconds;
        }
    }
    assert_eq!(total, 1, "one of them knows the whole");
    let (admitted, waited) = pools["support"];
    assert_eq!(admitted, 120);
    assert!(
        waited > 1_000_000,
        "some waited for seconds: {waited} us together"
    );
    let metrics = get(namespace.gateways[0].0.admin, "/metrics").await.text();
    for name in [
        "flotilla_gateway_quota_held{provider=\"main\",quota=\"rps\"}",
        "flotilla_gateway_quota_wait_seconds_count{provider=\"main\",pool=\"support\"}",
        "flotilla_gateway_quota_requests_total{provider=\"main\",pool=\"support\",result=\"waited\"}",
    ] {
        assert!(metrics.contains(name), "{name}: {metrics}");
    }
}

/// An address as that of a pod that is gone: packets to it are swallowed. The kernel takes the first connections, and nobody
/// answers on them; when their queue is `full`, it drops the packets that would open another.
async fn swallowing(address: SocketAddr, full: bool) -> (TcpListener, Vec<TcpStream>) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(address).unwrap();
    let listener = socket.listen(1).unwrap();
    let mut queued = Vec::new();
    if full {
        let connect = || tokio::time::timeout(Duration::from_millis(300), TcpStream::connect(address));
        while let Ok(stream) = connect().await {
            queued.push(stream.unwrap());
            assert!(queued.len() < 100, "its queue is never full");
        }
    }
    (listener, queued)
}

#[tokio::test]
async fn one_whose_packets_are_swallowed_is_replaced_before_its_claim_ends() {
    for full in [false, true] {
        let (at, counted) = counting().await;
        let (lost, port) = (fresh_ip(), admin_port());
        let _silent = swallowing(SocketAddr::new(lost, port), full).await;
        let quota = json!([{"name": "rps", "resource": "Requests", "limit": 30, "windowSeconds": 2}]);
        let namespace = Namespace::start_with(2, &at, quota, port, Some(lost)).await;
        for number in 0..2 {
            let mut client = Client::connect_from(namespace.agent, namespace.egress(number)).await;
            // The claim of the lost one lasts for 10 s.
            let answer = client.send(chat(Some("9"))).await.unwrap();
            assert_eq!(answer.status, StatusCode::OK, "{full}: {}", answer.text());
        }
        assert_eq!(counted.lock().len(), 2);
    }
}

#[tokio::test]
async fn one_whose_time_is_over_is_told_which_quota_and_when_to_come_back() {
    let (at, counted) = counting().await;
    let quotas = json!([
        {"name": "rph", "resource": "Requests", "limit": 1, "window": "Hour"},
        {"name": "tph", "resource": "Tokens", "limit": 100_000, "window": "Hour"},
    ]);
    let namespace = Namespace::start(1, &at, quotas).await;
    let mut client = Client::connect_from(namespace.agent, namespace.egress(0)).await;
    assert_eq!(client.send(chat(None)).await.unwrap().status, StatusCode::OK);
    let answer = client.send(chat(Some("0.3"))).await.unwrap();
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (StatusCode::TOO_MANY_REQUESTS, "QuotaExceeded")
    );
    let seconds: u64 = answer.headers["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((3_500..=3_700).contains(&seconds), "{seconds}");
    assert!(
        answer
            .text()
            .contains("quota \\\"rph\\\" of ModelProvider \\\"main\\\" (1 requests in 3600 s)")
    );
    assert_eq!(counted.lock().len(), 1, "the provider has not seen it");
    let stats = namespace.stats(0).await;
    let main = &stats.providers["main"];
    assert_eq!(
        (
            main.quotas[0].held,
            main.quotas[0].throttled,
            main.quotas[0].exhausted
        ),
        (1, 1, true)
    );
    assert_eq!(main.quotas[1].held, 14, "settled by usage");
    assert_eq!(
        (
            main.quota_pools["support"].refused,
            main.quota_pools["support"].waiting
        ),
        (1, 0)
    );
    // A client that gives up gives its place up.
    let patient = tokio::spawn(async move { client.send(chat(None)).await });
    for attempt in 0.. {
        if namespace.stats(0).await.providers["main"].quota_pools["support"].waiting == 1 {
            break;
        }
        assert!(attempt < 500, "it does not wait");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    patient.abort();
    for attempt in 0.. {
        if namespace.stats(0).await.providers["main"].quota_pools["support"].waiting == 0 {
            break;
        }
        assert!(attempt < 500, "it waits for ever");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Who has connected is never answered: with TLS that is before the request is sent, without it after.
#[tokio::test]
async fn what_was_never_sent_has_used_nothing() {
    let quotas = json!([
        {"name": "rph", "resource": "Requests", "limit": 9, "window": "Hour"},
        {"name": "tph", "resource": "Tokens", "limit": 100_000, "window": "Hour"},
    ]);
    for (scheme, used) in [("https", 0), ("http", 1)] {
        let listener = TcpListener::bind((fresh_ip(), 0)).await.unwrap();
        let (to, agent) = (listener.local_addr().unwrap(), fresh_ip());
        let mut settings = settings();
        settings.provider_timeout = Duration::from_millis(300);
        let fixture = Fixture::start(settings).await;
        let mut main = with_budget(priced(to, Default::default()), "100");
        main.endpoint = format!("{scheme}://{to}/v1");
        main.quotas = serde_json::from_value(quotas.clone()).unwrap();
        fixture.tell(config(agent, &[("main", main)])).await;
        let path = "/providers/main/v1/chat/completions";
        let held = async || {
            let stats = idle(&fixture).await;
            let main = &stats.providers["main"];
            let is_free = spent(&stats, "main") == "0";
            assert_eq!(is_free, main.quotas[1].held == 0, "{:?}", main.quotas);
            (main.quotas[0].held, is_free)
        };

        // Its client goes meanwhile.
        let mut client = Client::connect_from(agent, fixture.gateway.egress).await;
        let asking = tokio::spawn(async move { client.send(ask(path, &asks("sim"))).await });
        let mut connected = listener.accept().await.unwrap().0;
        let mut begun = [0; 5];
        tokio::io::AsyncReadExt::read_exact(&mut connected, &mut begun)
            .await
            .unwrap();
        assert_eq!(&begun == b"POST ", used == 1, "{begun:?}");
        asking.abort();
        assert_eq!(held().await, (used, used == 0), "{scheme}, given up");

        // Its time ends meanwhile.
        let mut client = Client::connect_from(agent, fixture.gateway.egress).await;
        let answer = client.send(ask(path, &asks("sim"))).await.unwrap();
        assert_eq!(answer.code(), "ProviderTimeout");
        assert_eq!(held().await, (2 * used, used == 0), "{scheme}, too late");
    }
}

#[tokio::test]
async fn a_stream_of_messages_that_is_given_up_has_used_what_was_seen() {
    const PIECES: u64 = 30;
    let at = Agent::start(|_| async {
        let start = json!({"type": "message_start", "message": {"model": "mini", "usage": {"input_tokens": 9, "output_tokens": 1}}});
        let delta = json!({"type": "content_block_delta", "delta": {"type": "text_delta", "text": "a"}});
        let events = std::iter::once(start).chain((0..PIECES).map(move |_| delta.clone()));
        let frames = events.map(|event| Ok(Frame::data(Bytes::from(format!("data: {event}\n\n")))));
        let never = futures::stream::pending();
        let body = StreamBody::new(futures::stream::iter(frames).chain(never));
        let mut response = Response::new(http_body_util::BodyExt::boxed(body));
        let headers = response.headers_mut();
        headers.insert("content-type", HeaderValue::from_static("text/event-stream"));
        response
    })
    .await;
    let quotas = json!([{"name": "oph", "resource": "OutputTokens", "limit": 1_000, "window": "Hour"}]);
    let namespace = Namespace::start(1, &at, quotas).await;
    let mut client = Client::connect_from(namespace.agent, namespace.egress(0)).await;
    let body = json!({"model": "mini", "max_tokens": 100, "stream": true, "messages": []});
    let asked = ask("/providers/main/v1/messages", &body);
    let response = client.sender.send_request(asked).await.unwrap();
    let mut events = response.into_body();
    let mut seen = 0;
    while seen < PIECES {
        let piece = events.frame().await.unwrap().unwrap().into_data().unwrap();
        seen += String::from_utf8_lossy(&piece)
            .matches("content_block_delta")
            .count() as u64;
    }
    drop((events, client));
    for attempt in 0.. {
        let held = namespace.stats(0).await.providers["main"].quotas[0].held;
        if (PIECES..PIECES + 10).contains(&held) {
            break;
        }
        assert!(attempt < 200, "{held} are held, of {PIECES} and a few");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn reports_are_taken_from_gateways_only() {
    let (at, _) = counting().await;
    let quotas = json!([{"name": "rph", "resource": "Requests", "limit": 1, "window": "Hour"}]);
    let namespace = Namespace::start(1, &at, quotas).await;
    let (gateway, _) = &namespace.gateways[0];
    for path in [PATH, VOUCH_PATH] {
        let answer = post(gateway.admin, path, "{}").await;
        assert_eq!(answer.status, StatusCode::FORBIDDEN, "{}", answer.text());
        let mut peer = Client::connect_from(gateway.admin.ip(), gateway.admin).await;
        let answer = peer.send(request(Method::POST, path, "{}")).await.unwrap();
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{}", answer.text());
        assert_eq!(peer.get(path).await.status, StatusCode::METHOD_NOT_ALLOWED);
    }
}
