//! Where a conversation's name comes from, and who may talk to gateways about it.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use flotilla_gateway::config::{Config, KeySource, SessionsConfig};
use http::{HeaderMap, Method, Request, StatusCode};
use tokio::net::TcpListener;

use super::{Cluster, by_header, sessions};
use crate::support::{
    Agent, Answer, Body, Client, Fixture, PoolExt as _, config, fresh_ip, full, pool, request,
};

async fn agents() -> [Agent; 2] {
    [Agent::named("a").await, Agent::named("b").await]
}

fn halves(agents: &[Agent; 2], of: SessionsConfig) -> Config {
    let mut pool =
        pool()
            .revision("a", 50, 100, &[agents[0].address])
            .revision("b", 50, 100, &[agents[1].address]);
    pool.sessions = Some(of);
    config(pool)
}

fn asking(headers: &[(&str, &str)]) -> Request<Body> {
    let mut request = Request::builder()
        .uri("/pools/support/")
        .header("host", "gateway");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(full("")).unwrap()
}

async fn ask(to: SocketAddr, headers: &[(&str, &str)]) -> Answer {
    Client::connect(to).await.send(asking(headers)).await.unwrap()
}

fn cookies(headers: &HeaderMap) -> Vec<&str> {
    headers
        .get_all("set-cookie")
        .iter()
        .map(|value| value.to_str().unwrap())
        .collect()
}

#[tokio::test]
async fn a_header_names_a_conversation_and_one_without_goes_by_weight() {
    let agents = agents().await;
    let cluster = Cluster::start(2, halves(&agents, by_header(&[]))).await;
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for person in 0..40 {
        let name = format!("person {person}");
        let first = ask(cluster.nodes[0].ingress, &[("X-Session-Id", &name)])
            .await
            .text();
        let spaced = format!("  {name}");
        let again = ask(cluster.nodes[1].ingress, &[("x-session-id", &spaced)])
            .await
            .text();
        assert_eq!(first, again);
        *seen.entry(first).or_default() += 1;
    }
    assert!(seen.len() == 2, "{seen:?}");
    assert_eq!(
        cluster.metric("flotilla_gateway_sessions_assigned_total").await,
        40
    );
    // Exactly by weight, which conversations are only on average.
    let before = agents.each_ref().map(Agent::hits);
    for _ in 0..20 {
        ask(cluster.nodes[0].ingress, &[]).await;
        ask(cluster.nodes[0].ingress, &[("x-session-id", "")]).await;
    }
    assert_eq!(agents.each_ref().map(Agent::hits), before.map(|hits| hits + 20));
    assert_eq!(
        cluster.metric("flotilla_gateway_sessions_assigned_total").await,
        40
    );
}

/// As the reference agent does it: its memory of the conversation is in the replica that answered first.
#[tokio::test]
async fn a_header_that_the_agent_gives_names_a_conversation() {
    async fn naming(agent: &'static str) -> Agent {
        Agent::start(move |request: Request<hyper::body::Incoming>| async move {
            let mut response = http::Response::new(full(agent));
            if !request.headers().contains_key("x-session-id") {
                let name = format!("{agent}-{}", rand::random::<u64>());
                response
                    .headers_mut()
                    .insert("x-session-id", name.parse().unwrap());
            }
            response
        })
        .await
    }
    let agents = [naming("a1").await, naming("a2").await, naming("b").await];
    let [a1, a2, b] = agents.each_ref().map(|agent| agent.address);
    let mut pool = pool()
        .revision("a", 50, 100, &[a1, a2])
        .revision("b", 50, 100, &[b]);
    pool.sessions = Some(by_header(&[]));
    let cluster = Cluster::start(2, config(pool)).await;
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for _ in 0..24 {
        let first = ask(cluster.nodes[0].ingress, &[]).await;
        let name = first.headers["x-session-id"].to_str().unwrap();
        for node in &cluster.nodes {
            assert_eq!(
                ask(node.ingress, &[("x-session-id", name)]).await.text(),
                first.text()
            );
        }
        *seen.entry(first.text()).or_default() += 1;
    }
    assert_eq!(seen.len(), 3, "{seen:?}");
}

#[tokio::test]
async fn a_cookie_is_set_where_it_is_missing_and_only_there() {
    let agents = agents().await;
    let of = sessions(KeySource::Cookie("sid".into()), &[]);
    let fixture = Fixture::with(halves(&agents, of)).await;
    let to = fixture.gateway.ingress;
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for _ in 0..40 {
        let first = ask(to, &[("cookie", "other=1")]).await;
        let set = cookies(&first.headers);
        let [set] = set.as_slice() else { panic!("{set:?}") };
        let (pair, rest) = set.split_once(';').unwrap();
        assert_eq!(rest, " Path=/pools/support/; HttpOnly; SameSite=Lax");
        for _ in 0..2 {
            let sent = format!("other=1; {pair}");
            let again = ask(to, &[("cookie", &sent)]).await;
            assert_eq!((again.text(), cookies(&again.headers).len()), (first.text(), 0));
        }
        *seen.entry(first.text()).or_default() += 1;
    }
    assert_eq!(seen.len(), 2, "{seen:?}");
    let secure = ask(to, &[("x-forwarded-proto", "https")]).await;
    assert!(cookies(&secure.headers)[0].ends_with("; Secure"));
}

#[tokio::test]
async fn only_gateways_of_the_namespace_may_say_anything_about_conversations() {
    let agents = agents().await;
    let cluster = Cluster::start(2, halves(&agents, by_header(&[]))).await;
    let [node, peer] = [&cluster.nodes[0], &cluster.nodes[1]];
    let path = flotilla_gateway::session::PATH;
    let post = |body: &'static str| request(Method::POST, path, body);
    let hello = r#"{"version":1,"instance":"x","envelopes":[]}"#;
    let mut stranger = Client::connect_from(fresh_ip(), node.admin).await;
    let answer = stranger.send(post(hello)).await.unwrap();
    assert_eq!(answer.status, StatusCode::FORBIDDEN);
    assert_eq!(node.metric("flotilla_gateway_peers").await, 1);
    let mut known = Client::connect_from(peer.ingress.ip(), node.admin).await;
    for (body, status) in [
        ("{", StatusCode::BAD_REQUEST),
        (r#"{"version":1}"#, StatusCode::BAD_REQUEST),
        (r#"{"version":2,"instance":"x"}"#, StatusCode::BAD_REQUEST),
        (
            r#"{"version":1,"instance":"x","envelopes":[{}]}"#,
            StatusCode::BAD_REQUEST,
        ),
    ] {
        let answer = known.send(post(body)).await.unwrap();
        assert_eq!(answer.status, status, "{body}");
    }
    let get = request(Method::GET, path, "");
    assert_eq!(
        known.send(get).await.unwrap().status,
        StatusCode::METHOD_NOT_ALLOWED
    );
}

/// One that is listed and does not answer is no member yet; it delays readiness for a moment and no request.
#[tokio::test]
async fn a_gateway_that_never_answers_stops_nobody() {
    let agents = agents().await;
    let silent = TcpListener::bind((fresh_ip(), 0)).await.unwrap();
    let nobody = SocketAddr::new(fresh_ip(), 9);
    let fixture = Fixture::start(crate::support::settings()).await;
    let mut config = halves(&agents, by_header(&[]));
    config.gateways = [silent.local_addr().unwrap(), nobody].into();
    fixture.tell(config).await;
    let answer = ask(fixture.gateway.ingress, &[("x-session-id", "a")]).await;
    assert_eq!(answer.status, StatusCode::OK);
    for _ in 0..1000 {
        if fixture.readyz().await.0 == StatusCode::OK {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("{:?}", fixture.readyz().await);
}
