//! Ports of pools, routes on the shared one, readiness.

use crate::support::{Agent, Client, Fixture, PoolExt as _, config, fresh_ip, get, pool, request, settings};
use flotilla_gateway::config::Config;
use http::{Method, StatusCode};
use std::net::SocketAddr;
use tokio::net::{TcpListener, TcpStream};

/// A port that is free at `ip`.
async fn free_port(ip: std::net::IpAddr) -> u16 {
    TcpListener::bind((ip, 0))
        .await
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

#[tokio::test]
async fn ports_come_and_go_with_their_pools() {
    let agent = Agent::named("a").await;
    let settings = settings();
    let ip = settings.listen;
    let fixture = Fixture::start(settings).await;
    let (status, text) = fixture.readyz().await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(text.contains("waiting for the first lists"), "{text}");

    let on = |port| {
        let mut pool = pool().revision("a", 100, 8, &[agent.address]);
        pool.port = Some(port);
        config(pool)
    };
    let (first, second) = (free_port(ip).await, free_port(ip).await);
    fixture.tell(on(first)).await;
    assert_eq!(fixture.readyz().await.0, StatusCode::OK);
    assert_eq!(fixture.stats().await.pools["support"].traffic_generation, 1);
    assert_eq!(get(SocketAddr::new(ip, first), "/any").await.text(), "a");

    let mut open = Client::connect(SocketAddr::new(ip, first)).await;
    fixture.tell(on(second)).await;
    assert_eq!(get(SocketAddr::new(ip, second), "/any").await.text(), "a");
    assert!(
        TcpStream::connect((ip, first)).await.is_err(),
        "the old port is given up"
    );
    assert_eq!(
        open.get("/any").await.text(),
        "a",
        "what was connected is served on"
    );

    fixture.tell_only(Config::default());
    fixture
        .wait("the pool is gone", |stats| stats.pools.is_empty())
        .await;
    assert!(TcpStream::connect((ip, second)).await.is_err());
    assert_eq!(open.get("/any").await.status, StatusCode::NOT_FOUND);
    let metrics = get(fixture.gateway.admin, "/metrics").await.text();
    assert!(!metrics.contains("pool=\"support\""), "{metrics}");
}

#[tokio::test]
async fn one_port_that_cannot_be_bound_stops_nobody_else() {
    let agent = Agent::named("a").await;
    let settings = settings();
    let taken = TcpListener::bind((settings.listen, 0)).await.unwrap();
    let (ip, taken_port) = (settings.listen, taken.local_addr().unwrap().port());
    let free = free_port(ip).await;
    let fixture = Fixture::start(settings).await;
    let mut config = config(pool().revision("a", 100, 8, &[agent.address]));
    config.pools.get_mut("support").unwrap().port = Some(free);
    for (name, port) in [("blocked", taken_port), ("twin", free)] {
        let mut pool = pool().revision("a", 100, 8, &[agent.address]);
        (pool.port, pool.service, pool.uid) = (Some(port), name.into(), name.into());
        config.pools.insert(name.into(), pool);
    }
    fixture.tell_only(config);
    fixture
        .wait("the free port is bound", |stats| {
            stats.pools.get("support").is_some_and(|p| p.port.is_some())
        })
        .await;
    assert_eq!(get(SocketAddr::new(ip, free), "/").await.text(), "a");
    let (status, text) = fixture.readyz().await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(text.contains("pool blocked: failed to bind port"), "{text}");
    assert!(
        text.contains("pool twin: port") && text.contains("is held by the pool \"support\""),
        "{text}"
    );
    let stats = fixture.stats().await;
    assert_eq!(
        stats.pools["blocked"].traffic_generation, -1,
        "not in force without a port"
    );
    drop(taken);
    fixture
        .wait("it is bound once it is free", |stats| {
            stats.pools["blocked"].port.is_some()
        })
        .await;
}

#[tokio::test]
async fn the_shared_port_knows_hosts_and_paths() {
    let agent = Agent::start(|request| async move {
        let headers = request.headers();
        let text = |name| {
            headers
                .get(name)
                .map(|value| value.to_str().unwrap_or_default())
                .unwrap_or_default()
        };
        let seen = format!(
            "{} {} {}",
            request.uri(),
            text("host"),
            text("x-forwarded-prefix")
        );
        http::Response::new(crate::support::full(seen))
    })
    .await;
    let fixture = Fixture::with(config(pool().revision("a", 100, 8, &[agent.address]))).await;
    let mut client = Client::connect(fixture.gateway.ingress).await;
    assert_eq!(
        client.get("/pools/support/x?y=1").await.text(),
        "/x?y=1 gateway /pools/support"
    );
    let mut by_host = request(Method::GET, "/pools/other", "");
    by_host
        .headers_mut()
        .insert("host", "support.apps.svc:80".parse().unwrap());
    assert_eq!(
        client.send(by_host).await.unwrap().text(),
        "/pools/other support.apps.svc:80 "
    );
    assert_eq!(client.get("/pools/nobody/").await.code(), "NoSuchPool");
    assert_eq!(client.get("/").await.code(), "NoSuchRoute");
}

#[tokio::test]
async fn draining_is_started_from_the_pod_itself_only() {
    let fixture = Fixture::start(settings()).await;
    // All of 127.0.0.0/8 is the pod itself.
    let mut client = Client::connect_from(fresh_ip(), fixture.gateway.admin).await;
    assert_eq!(client.get("/drain").await.status, StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(
        client
            .send(request(Method::POST, "/drain", ""))
            .await
            .unwrap()
            .status,
        StatusCode::ACCEPTED
    );
    assert!(fixture.readyz().await.1.contains("draining"));
    assert!(fixture.stats().await.draining);
}
